// What sasori takes while nothing moves: processor time in an hour with the default schedules, and memory. And how long
// it takes from its start until it serves (GET /readyz), with the last good map in its file and PuppetDB down.

import { execFile } from "node:child_process";
import { copyFile, writeFile } from "node:fs/promises";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { freePort } from "../test/support/child.js";
import type { PuppetdbServer } from "../test/support/puppetdb-server.js";
import type { Bench, Row } from "./bench.js";
import { CLI, lookupConfig, memoryMiB, newestHaproxy, ROUNDS, round, startSasori } from "./daemon.js";
import { FLEET, withFleet } from "./fleet.js";
import { cpuMs, type Haproxy, median, Stage } from "./stage.js";

/** A multiple of the default schedule's five seconds. */
const QUIET_SECONDS = 60;
const SETTLE_SECONDS = 10;
const SECONDS_PER_HOUR = 3_600;
/** SASORI_FULL_SCHEDULE by default. */
const FULL_PER_HOUR = 4;
const READY_DEADLINE_MS = 60_000;

export const rest: Bench = {
  what: "sasori at rest: CPU of an hour, memory; from start to ready with PuppetDB down; medians",
  run: ({ signal, progress, ran }) =>
    withFleet({ progress, ran }, (puppetdb) =>
      Stage.with(signal, async (stage) => {
        const map = path.join(stage.folder, "sasori.map");
        await writeFile(map, "");
        const start = (name: string, file: string) =>
          stage.haproxy(name, newestHaproxy().bin, (port, socket) => lookupConfig(file, port, socket));
        const quiet = await atRest(stage, puppetdb, await start("haproxy", map), signal, progress);
        await puppetdb.stopPuppetdb();
        const times = { full: [] as number[], empty: [] as number[], node: [] as number[] };
        for (let turn = 1; turn <= ROUNDS; turn += 1) {
          progress(`start with PuppetDB down, round ${turn} of ${ROUNDS}`);
          const file = path.join(stage.folder, `round${turn}.map`);
          // One HAProxy has nothing yet, and gets all of it before sasori is ready; the other has read the file.
          await writeFile(file, "");
          const empty = await start(`empty${turn}`, file);
          await copyFile(map, file);
          const full = await start(`full${turn}`, file);
          times.empty.push(await startTime(puppetdb, file, empty, signal));
          times.full.push(await startTime(puppetdb, file, full, signal));
          times.node.push(await timed(() => promisify(execFile)(process.execPath, [CLI, "--version"])));
        }
        return [
          {
            nodes: FLEET,
            ...quiet,
            "ready ms": round(median(times.full)),
            "ready ms, HAProxy empty": round(median(times.empty)),
            "sasori --version ms": round(median(times.node)),
          },
        ];
      }),
    ),
};

async function atRest(
  stage: Stage,
  puppetdb: PuppetdbServer,
  haproxy: Haproxy,
  signal: AbortSignal,
  progress: (text: string) => void,
): Promise<Row> {
  const sasori = await startSasori(stage, "sasori", {
    SASORI_PUPPETDB_URL: puppetdb.url,
    SASORI_HAPROXY: haproxy.socket,
    SASORI_SCHEDULE: "*/5 * * * * *",
  });
  await sleep(SETTLE_SECONDS * 1_000, undefined, { signal });
  progress(`${QUIET_SECONDS} s in which nothing moves`);
  const before = cpuMs(sasori.pid);
  await sleep(QUIET_SECONDS * 1_000, undefined, { signal });
  const looking = ((cpuMs(sasori.pid) - before) * SECONDS_PER_HOUR) / QUIET_SECONDS;
  const resident = memoryMiB(sasori.pid, "VmRSS");
  const fulls: number[] = [];
  for (let turn = 1; turn <= ROUNDS; turn += 1) {
    progress(`full pass ${turn} of ${ROUNDS}`);
    const began = cpuMs(sasori.pid);
    await sasori.sync({ full: true });
    fulls.push(cpuMs(sasori.pid) - began);
  }
  return {
    "CPU s/hour, looking": round(looking / 1_000, 1),
    "CPU s/hour, full passes": round((median(fulls) * FULL_PER_HOUR) / 1_000, 1),
    "CPU %": round((looking + median(fulls) * FULL_PER_HOUR) / (SECONDS_PER_HOUR * 10), 2),
    "RSS MiB": resident,
    "RSS MiB after full passes": memoryMiB(sasori.pid, "VmRSS"),
    "peak MiB": memoryMiB(sasori.pid, "VmHWM"),
  };
}

/** Starts a sasori of its own on a stage of its own, asks until it is ready, and ends it. Milliseconds. */
function startTime(
  puppetdb: PuppetdbServer,
  file: string,
  haproxy: Haproxy,
  signal: AbortSignal,
): Promise<number> {
  return Stage.with(signal, async (stage) => {
    const port = await freePort();
    const env = {
      SASORI_PUPPETDB_URL: puppetdb.url,
      SASORI_HAPROXY: haproxy.socket,
      SASORI_MAP_FILE: file,
      SASORI_MAP_NAME: file,
      SASORI_LISTEN: `127.0.0.1:${port}`,
    };
    const began = performance.now();
    let ready = 0;
    const watch = watchReady(port).then(() => {
      ready = performance.now() - began;
    });
    await stage.program("sasori", [process.execPath, CLI, "serve"], env, async () => ready > 0);
    await watch;
    return ready;
  });
}

/** More often than the stage asks its programs. */
async function watchReady(port: number): Promise<void> {
  const deadline = performance.now() + READY_DEADLINE_MS;
  for (;;) {
    const isReady = await fetch(`http://127.0.0.1:${port}/readyz`).then(
      ({ ok }) => ok,
      () => false,
    );
    if (isReady) return;
    if (performance.now() > deadline) throw new Error(`not ready after ${READY_DEADLINE_MS / 1_000} s`);
    await sleep(5);
  }
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const began = performance.now();
  await work();
  return performance.now() - began;
}
