// A master as a process of its own, to be killed or frozen in mid-request. It prints a line when a request has come
// ("+ 17") and one when its answer has gone to the kernel ("- 17"): what is between the two is in flight. Arguments:
// port, milliseconds that an answer takes, and how many connections may wait to be accepted.

import http from "node:http";
import { setTimeout as sleep } from "node:timers/promises";

const [port, ms, backlog] = process.argv.slice(2).map(Number);

const server = http.createServer(async (request, response) => {
  if (request.url === "/status/v1/simple") {
    response.end("running");
    return;
  }
  const id = request.headers["x-request"];
  process.stdout.write(`+ ${id}\n`);
  await sleep(ms);
  response.end("done", () => process.stdout.write(`- ${id}\n`));
});
server.keepAliveTimeout = 0; // It closes no connection by itself while it lives.
server.listen({ port, host: "127.0.0.1", backlog });
