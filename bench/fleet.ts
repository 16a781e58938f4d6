// The fleet of several benchmarks: the real PuppetDB with 100,000 nodes that have run (BENCH_NODES=10000 makes it smaller),
// and the processor time that PuppetDB and PostgreSQL spend on questions about it.

import { setTimeout as sleep } from "node:timers/promises";
import type { PuppetdbServer } from "../test/support/puppetdb-server.js";
import type { Bench } from "./bench.js";
import { MASTERS, round, SIZES, startSasori, withPuppetdb } from "./daemon.js";
import { cpuMs, cpuMsOfTree, Stage } from "./stage.js";

export const FLEET = Math.min(100_000, Math.max(...SIZES));

/** As `fill` of PuppetDB names them, from 1 on; for printf and wrk. */
export const NAMES = "node-%07d.example";
export const nameOf = (node: number): string => `node-${String(node).padStart(7, "0")}.example`;
/** The master that node has at first, and after so many moves. */
export const masterOf = (node: number, moves = 0): string => MASTERS[(node + moves) % MASTERS.length] ?? "";

const REPORTS = 2;

/** A PuppetDB that was just started compiles what it runs: after 50 passes one still cost three times as much as later. */
const WARM_UP_PASSES = 300;

/** Starts PuppetDB with the fleet in it, lends it to `use`, and ends it in any case. */
export function withFleet<T>(
  { progress, ran }: Pick<Parameters<Bench["run"]>[0], "progress" | "ran">,
  use: (puppetdb: PuppetdbServer) => Promise<T>,
): Promise<T> {
  progress("starting PuppetDB");
  return withPuppetdb(async (puppetdb) => {
    const answer = await fetch(`${puppetdb.url}/pdb/meta/v1/version`);
    const { version } = (await answer.json()) as { version: string };
    ran({ puppetdb: version, postgresql: await puppetdb.sql("SHOW server_version") });
    progress(`filling PuppetDB with ${FLEET} nodes`);
    await puppetdb.reset();
    await puppetdb.fill(FLEET, MASTERS, REPORTS);
    // As if some time had passed since these runs, so that only what moves is news.
    await puppetdb.sql("UPDATE factsets SET timestamp = timestamp - interval '1 hour'");
    await puppetdb.sql(
      "UPDATE reports SET receive_time = receive_time - interval '1 hour' WHERE receive_time > now() - interval '1 hour'",
    );
    await puppetdb.sql("VACUUM ANALYZE");
    return use(puppetdb);
  });
}

/** Lets PuppetDB run the queries of a pass often enough that what they cost from then on is usual. */
export function warmUp(puppetdb: PuppetdbServer, signal: AbortSignal): Promise<void> {
  return Stage.with(signal, async (stage) => {
    const env = { SASORI_PUPPETDB_URL: puppetdb.url, SASORI_HAPROXY: "none" };
    const { sync } = await startSasori(stage, "sasori", env);
    for (let pass = 1; pass <= WARM_UP_PASSES; pass += 1) await sync({});
  });
}

/** Processor time of PuppetDB and its PostgreSQL so far, in milliseconds. */
export function puppetdbCpuMs(puppetdb: PuppetdbServer): number {
  const pids = puppetdb.pids();
  return cpuMs(pids.puppetdb) + cpuMsOfTree(pids.postgres);
}

/** What they spend in a minute, as seen in so many seconds or for as long as `work` lasts; CPU milliseconds. */
export async function loadPerMinute(
  puppetdb: PuppetdbServer,
  work: number | (() => Promise<unknown>),
  signal: AbortSignal,
): Promise<number> {
  const [began, before] = [performance.now(), puppetdbCpuMs(puppetdb)];
  await (typeof work === "number" ? sleep(work * 1000, undefined, { signal }) : work());
  return round(((puppetdbCpuMs(puppetdb) - before) * 60_000) / (performance.now() - began));
}
