// Loaded into sasori (`node --import`): how long its thread did not come back to those who wait. A timer that wants to run
// every two milliseconds writes a line for each time that it came late: when (ms since the epoch), by how much on the clock,
// and for how long this thread had a core meanwhile. What is much more on the clock waited for a core, or for a disk.

import { closeSync, openSync, readFileSync, writeSync } from "node:fs";

const EVERY_MS = 2;
const LATE_MS = 4;
const file = process.env.BENCH_TURNS;

if (file !== undefined) watch(openSync(file, "a"), `/proc/self/task/${process.pid}/schedstat`);

function watch(out: number, schedstat: string): void {
  // Nanoseconds on a core, nanoseconds waiting for one. The kernel counts in steps of 4 ms at most.
  const ran = () => Number(readFileSync(schedstat, "latin1").split(" ")[0]) / 1e6;
  let [at, onCore] = [performance.now(), ran()];
  setInterval(() => {
    const [now, core] = [performance.now(), ran()];
    const late = now - at - EVERY_MS;
    if (late > LATE_MS)
      writeSync(out, `${Date.now()} ${late.toFixed(1)} ${Math.min(late, core - onCore).toFixed(1)}\n`);
    [at, onCore] = [performance.now(), ran()];
  }, EVERY_MS).unref();
  process.once("exit", () => closeSync(out));
}
