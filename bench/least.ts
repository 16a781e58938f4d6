// The least that a full pass can be in Node: the same queries, JSON.parse, the newest row of each node, a sorted file,
// synced, and payloads down a socket. Nothing is checked, compared, read back or remembered, and nobody is told.
// Run as a program: node least.js SOCKET MAP URL...; prints how long it took, in milliseconds.

import { once } from "node:events";
import { open } from "node:fs/promises";
import net from "node:net";
import { fileURLToPath } from "node:url";
import { request } from "undici";
import { payloads } from "../src/target/runtime-api.js";

interface Row {
  certname: string;
  producer?: string;
  producer_timestamp?: string;
  max?: string;
}

/** Makes lines of the map the payloads of an unfinished version. */
export function readyPayloads(map: string, lines: readonly string[]): string[] {
  const command = `add map @1 ${map}`;
  return Array.from(payloads(lines, command.length, "at once"), (payload) => `${command} <<\n${payload}\n`);
}

/** Fills a new version of the map with payloads prepared before, commits it, and reads no more than the prompts. */
export async function pushRaw(socketPath: string, map: string, ready: readonly string[]): Promise<void> {
  const socket = net.connect(socketPath);
  let prompts = 0;
  socket.on("data", (text: Buffer) => {
    // "\n> " ends each reply, and nothing else here has a ">".
    prompts += text.toString("latin1").split(">").length - 1;
  });
  const until = async (count: number) => {
    while (prompts < count) await once(socket, "data");
  };
  socket.write("prompt\n");
  await until(1);
  socket.write(`prepare map ${map}\n`);
  await until(2);
  for (const payload of ready) socket.write(payload);
  await until(2 + ready.length);
  socket.write(`commit map @1 ${map}\n`);
  await until(3 + ready.length);
  socket.destroy();
}

async function readRows(url: string, newest: Map<string, { producer: string; at: number }>): Promise<void> {
  const { body } = await request(url, { headers: { accept: "application/json" } });
  if (!url.includes("/pdb/query/")) return body.dump(); // PuppetDB's clock, version or queue.
  let text = "";
  for await (const chunk of body) {
    text += String(chunk);
    const end = text.lastIndexOf("}") + 1;
    if (end === 0) continue;
    // "[" or "," stands before each batch.
    for (const row of JSON.parse(`[${text.slice(1, end)}]`) as Row[]) {
      if (row.producer === undefined) continue; // Of the questions that count, or list inactive nodes.
      const at = Date.parse(row.max ?? row.producer_timestamp ?? "");
      const known = newest.get(row.certname);
      if (known === undefined) newest.set(row.certname, { producer: row.producer, at });
      else if (known.at < at) Object.assign(known, { producer: row.producer, at });
    }
    text = text.slice(end);
  }
}

async function pass(socket: string, map: string, urls: readonly string[]): Promise<void> {
  const newest = new Map<string, { producer: string; at: number }>();
  await Promise.all(urls.map((url) => readRows(url, newest)));
  const lines = Array.from(newest, ([certname, { producer }]) => `${certname} ${producer}`).sort();
  const file = await open(`${map}.least`, "w");
  await file.writeFile(`${lines.join("\n")}\n`, "latin1");
  await file.sync();
  await file.close();
  await pushRaw(socket, map, readyPayloads(map, lines));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [, , socket = "", map = "", ...urls] = process.argv;
  const began = performance.now();
  await pass(socket, map, urls);
  process.stdout.write(`${performance.now() - began}\n`);
}
