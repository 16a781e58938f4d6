// The clients of the master that is overloaded, as a process of its own: each asks again when it is answered, and after
// a while when it is refused. Prints a line when each of them has been answered once, and, when its input ends, status
// and milliseconds of each answer from then on, as JSON. Arguments: port, clients, and for how many milliseconds a refused
// one stays away, at least; at most twice as long, so that they do not come all in the same moment.

import { setTimeout as sleep } from "node:timers/promises";
import { Pool } from "undici";

const [port = 0, clients = 0, patienceMs = 0] = process.argv.slice(2).map(Number);
const pool = new Pool(`http://127.0.0.1:${port}`, { connections: clients, pipelining: 1 });
const request = { method: "GET", path: "/", headers: { "x-node-name": "node1.example.com" } } as const;

let answers: { status: number; ms: number }[] = [];
let newcomers = clients;
let running = true;

async function client(): Promise<void> {
  for (let isNew = true; running; isNew = false) {
    const began = performance.now();
    const status = await pool.request(request).then(
      async ({ statusCode, body }) => {
        await body.dump();
        return statusCode;
      },
      () => 0,
    );
    answers.push({ status, ms: performance.now() - began });
    if (isNew && --newcomers === 0) {
      answers = [];
      process.stdout.write("begun\n");
    }
    if (status !== 200) await sleep(patienceMs * (1 + Math.random()));
  }
}

const all = Array.from({ length: clients }, client);
process.stdin.resume().once("end", async () => {
  const counted = answers.slice();
  running = false;
  await Promise.all(all);
  await pool.close();
  process.stdout.write(`${JSON.stringify(counted)}\n`);
});
