// One sasori that feeds many HAProxy instances: how long until the last of them has what moved. And many sasoris that look at
// one PuppetDB, each with a map of its own, on the default schedule: what PuppetDB and PostgreSQL spend on them.

import { writeFile } from "node:fs/promises";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { runtimeCommand } from "../test/support/haproxy-server.js";
import type { PuppetdbServer } from "../test/support/puppetdb-server.js";
import type { Bench, Row } from "./bench.js";
import {
  type Daemon,
  lookupConfig,
  memoryMiB,
  moveNodes,
  newestHaproxy,
  ROUNDS,
  round,
  startSasori,
} from "./daemon.js";
import { FLEET, loadPerMinute, warmUp, withFleet } from "./fleet.js";
import { cpuMs, type Haproxy, median, preciseCpuMs, Stage } from "./stage.js";

/** Others by `BENCH_HAPROXYS=100`. */
const HAPROXYS = (process.env.BENCH_HAPROXYS ?? "1,4,16,100").split(",").map(Number);
const SASORIS = [1, 4, 8];
const MOVED = 100;
const LOOK_SECONDS = 30;
/** The default SASORI_SCHEDULE. */
const EVERY_SECONDS = 5;

type Progress = (text: string) => void;

export const fanout: Bench = {
  what: `one sasori to many HAProxy instances: until the last one has ${MOVED} moved nodes; medians`,
  run: ({ signal, progress, ran }) =>
    withFleet({ progress, ran }, async (puppetdb) => {
      const rows: Row[] = [];
      for (const count of HAPROXYS) rows.push(await feedMany(puppetdb, count, signal, progress));
      return rows;
    }),
};

export const fanin: Bench = {
  what: "many sasoris on one PuppetDB, nothing moves: what it spends on them, and how long a pass takes",
  run: ({ signal, progress, ran }) =>
    withFleet({ progress, ran }, async (puppetdb) => {
      progress("warming up PuppetDB");
      await warmUp(puppetdb, signal);
      progress(`PuppetDB alone for ${LOOK_SECONDS} s`);
      const idle = await loadPerMinute(puppetdb, LOOK_SECONDS, signal);
      const rows: Row[] = [];
      for (const count of SASORIS) rows.push(await askedByMany(puppetdb, count, idle, signal, progress));
      return rows;
    }),
};

function feedMany(
  puppetdb: PuppetdbServer,
  count: number,
  signal: AbortSignal,
  progress: Progress,
): Promise<Row> {
  return Stage.with(signal, async (stage) => {
    const map = path.join(stage.folder, "sasori.map");
    await writeFile(map, "");
    const haproxys: Haproxy[] = [];
    for (let index = 1; index <= count; index += 1) {
      haproxys.push(
        await stage.haproxy(`haproxy${index}`, newestHaproxy().bin, (port, socket) =>
          lookupConfig(map, port, socket, ["nbthread 1"]),
        ),
      );
    }
    progress(`${count} HAProxy instances, the first filling`);
    const sasori = await startSasori(stage, "sasori", {
      SASORI_PUPPETDB_URL: puppetdb.url,
      SASORI_HAPROXY: haproxys.map(({ socket }) => socket).join(","),
    });
    const seen = { all: [] as number[], push: [] as number[], cpu: [] as number[] };
    for (let turn = 1; turn <= ROUNDS; turn += 1) {
      progress(`${count} HAProxy instances, round ${turn} of ${ROUNDS}`);
      await moveNodes(puppetdb, MOVED);
      const [cpu, began] = [preciseCpuMs(sasori.pid), performance.now()];
      const report = await sasori.sync({});
      seen.all.push(performance.now() - began);
      seen.push.push(report.phasesMs.push);
      seen.cpu.push(preciseCpuMs(sasori.pid) - cpu);
      if (report.outcome !== "done" || report.moved !== MOVED)
        throw new Error(JSON.stringify(report).slice(0, 500));
      await haveAll(haproxys, map, report.targets[0]?.changes ?? []);
    }
    const quiet: number[] = [];
    for (let turn = 1; turn <= ROUNDS; turn += 1) {
      const cpu = preciseCpuMs(sasori.pid);
      await sasori.sync({});
      quiet.push(preciseCpuMs(sasori.pid) - cpu);
    }
    return {
      nodes: FLEET,
      haproxys: count,
      "first filling s": round(sasori.startMs / 1_000, 1),
      "all have it ms": round(median(seen.all)),
      "of which push": round(median(seen.push)),
      "sasori CPU ms": round(median(seen.cpu)),
      "quiet pass CPU ms": round(median(quiet), 1),
      "peak MiB": memoryMiB(sasori.pid, "VmHWM"),
    };
  });
}

/** Throws unless each HAProxy's map says what the report says. */
async function haveAll(
  haproxys: readonly Haproxy[],
  map: string,
  changes: readonly { certname: string; to?: string | undefined }[],
): Promise<void> {
  if (changes.length === 0) throw new Error("the report names no change");
  for (const { socket } of haproxys) {
    // As many as one line of the Runtime API holds.
    for (let from = 0; from < changes.length; from += 25) {
      const some = changes.slice(from, from + 25);
      const commands = some.map(({ certname }) => `get map ${map} ${certname}`);
      const found = [...(await runtimeCommand(socket, commands.join(";"))).matchAll(/value="([^"]*)"/g)];
      const wrong = some.find(({ to }, index) => found[index]?.[1] !== to);
      if (wrong !== undefined) throw new Error(`${socket} has ${wrong.certname} otherwise`);
    }
  }
}

function askedByMany(
  puppetdb: PuppetdbServer,
  count: number,
  idle: number,
  signal: AbortSignal,
  progress: Progress,
): Promise<Row> {
  return Stage.with(signal, async (stage) => {
    const daemons: Daemon[] = [];
    for (let index = 1; index <= count; index += 1) {
      progress(`${count} sasoris on one PuppetDB, starting ${index}`);
      daemons.push(
        await startSasori(stage, `sasori${index}`, {
          SASORI_PUPPETDB_URL: puppetdb.url,
          SASORI_HAPROXY: "none",
          SASORI_SCHEDULE: "*/5 * * * * *",
        }),
      );
    }
    progress(`${count} sasoris on one PuppetDB for ${LOOK_SECONDS} s`);
    const cpu = () => daemons.reduce((sum, { pid }) => sum + cpuMs(pid), 0);
    const before = cpu();
    const passes: number[] = [];
    const load = await loadPerMinute(
      puppetdb,
      async () => {
        for (let at = 0; at < LOOK_SECONDS; at += EVERY_SECONDS) {
          await sleep(EVERY_SECONDS * 1_000, undefined, { signal });
          for (const { call } of daemons) passes.push(await passMs(call));
        }
      },
      signal,
    );
    return {
      nodes: FLEET,
      sasoris: count,
      "PuppetDB + PostgreSQL CPU ms/min": load - idle,
      "of one sasori": round((load - idle) / count),
      "idle CPU ms/min": idle,
      "pass p50 ms": round(median(passes)),
      "pass max ms": Math.max(...passes),
      "one sasori's CPU ms/min": round((((cpu() - before) / count) * 60) / LOOK_SECONDS),
    };
  });
}

/** How long its last pass took. Throws when that was not a good one. */
async function passMs(call: Daemon["call"]): Promise<number> {
  const { lastPass } = (await call("GET", "/api/v1/status")) as {
    lastPass: { outcome: string; durationMs: number };
  };
  if (lastPass.outcome !== "done") throw new Error(JSON.stringify(lastPass));
  return lastPass.durationMs;
}
