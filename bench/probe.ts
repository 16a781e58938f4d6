// The clients of masters that are not overloaded, as a process of its own: asks at a steady rate, whatever the answers
// take, and prints status and milliseconds of each answer as JSON. Arguments: port, requests per second, seconds.

import { Pool } from "undici";

const [port = 0, perSecond = 0, seconds = 0] = process.argv.slice(2).map(Number);
const pool = new Pool(`http://127.0.0.1:${port}`, { connections: 20, pipelining: 1 });
const answers: Promise<{ status: number; ms: number }>[] = [];

/** The timer's own lateness. What comes later than that has waited, and its clock runs from here on. */
const TICK_MS = 1;

async function ask(index: number, due = performance.now()): Promise<{ status: number; ms: number }> {
  const headers = { "x-node-name": `node${2 + (index % 2)}.example.com` };
  const began = Math.min(performance.now(), due + TICK_MS);
  const status = await pool
    .request({ method: "GET", path: "/", headers })
    .then(async ({ statusCode, body }) => {
      await body.dump();
      return statusCode;
    })
    .catch(() => 0);
  return { status, ms: performance.now() - began };
}

// Connections and code are warm before the clock starts.
await Promise.all(Array.from({ length: 40 }, (_, index) => ask(index)));
const began = performance.now();
const timer = setInterval(() => {
  const due = Math.min((performance.now() - began) / 1_000, seconds) * perSecond;
  while (answers.length < due)
    answers.push(ask(answers.length, began + (answers.length * 1_000) / perSecond));
  if (answers.length < seconds * perSecond) return;
  clearInterval(timer);
  Promise.all(answers).then(async (all) => {
    await pool.close();
    process.stdout.write(JSON.stringify(all));
  });
}, 1);
