// What a pass costs: a full one beside its parts done by nothing but curl, a socket and dd; a quiet one and one with
// few changes in fleets of very different size.

import { execFile } from "node:child_process";
import { readFile, stat, writeFile } from "node:fs/promises";
import http from "node:http";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { PuppetDb } from "../src/source/puppetdb.js";
import { freePort } from "../test/support/child.js";
import { runtimeCommand } from "../test/support/haproxy-server.js";
import type { PuppetdbServer } from "../test/support/puppetdb-server.js";
import type { Bench, Row } from "./bench.js";
import { ALL_CORES, bind, FIRST_CORE, OTHER_CORES } from "./cores.js";
import {
  bytesMoved,
  lookupConfig,
  MASTERS,
  memoryMiB,
  moveNodes,
  newestHaproxy,
  ROUNDS,
  round,
  SIZES,
  startSasori,
  withPuppetdb,
} from "./daemon.js";
import { pushRaw, readyPayloads } from "./least.js";
import { childrenOf, type Haproxy, median, preciseCpuMs, Stage } from "./stage.js";

const run = promisify(execFile);
const LEAST = fileURLToPath(new URL("./least.js", import.meta.url));
const CHANGES = [0, 100, 1_000, 10_000];
const WARM_UP_ROUNDS = 3;
const CHANGE_ROUNDS = 20;

/** The URLs of the queries that `read` sends to PuppetDB. */
async function recordQueries(url: string, read: (source: PuppetDb) => Promise<unknown>): Promise<string[]> {
  const urls: string[] = [];
  const proxy = http.createServer((request, response) => {
    const at = new URL(request.url ?? "", url);
    urls.push(at.href);
    http.get(at, { headers: { accept: "application/json" } }, (answer) => {
      response.writeHead(answer.statusCode ?? 502, answer.headers);
      answer.pipe(response);
    });
  });
  const port = await freePort();
  await new Promise<void>((resolve) => proxy.listen(port, "127.0.0.1", resolve));
  const source = new PuppetDb({ url: `http://127.0.0.1:${port}` });
  try {
    await read(source);
    return urls;
  } finally {
    await source.close();
    proxy.closeAllConnections();
    proxy.close();
  }
}

/** All of them side by side, as sasori asks them; nobody looks at the answers. */
async function curl(urls: readonly string[]): Promise<void> {
  await Promise.all(urls.map((url) => run("curl", ["-sf", "-o", "/dev/null", url])));
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const began = performance.now();
  await work();
  return performance.now() - began;
}

/** Empties PuppetDB and fills it. */
async function fillFresh(puppetdb: PuppetdbServer, nodes: number, progress: (text: string) => void) {
  progress(`filling PuppetDB with ${nodes} nodes`);
  await puppetdb.reset();
  await puppetdb.fill(nodes, MASTERS, nodes > 100_000 ? 1 : 5);
}

/** Where PuppetDB runs: beside sasori, or as on a machine of its own. */
const PLACES = ["the same cores", "a core of its own"] as const;

/** Binds PuppetDB to one core, and this process with all that it starts from now on to the others; or nothing at all. */
async function place(puppetdb: PuppetdbServer, where: (typeof PLACES)[number]): Promise<void> {
  const isApart = where === "a core of its own";
  await bind(isApart ? OTHER_CORES : ALL_CORES, process.pid);
  const pids = puppetdb.pids();
  const postgres = [pids.postgres, ...childrenOf(pids.postgres)];
  await bind(isApart ? FIRST_CORE : ALL_CORES, pids.puppetdb, ...postgres);
}

export const full: Bench = {
  what: "a full pass into an empty HAProxy beside curl, a raw socket and dd, and the least in Node; ms, medians",
  run: ({ signal, progress }) =>
    withPuppetdb(async (puppetdb) => {
      const rows: Row[] = [];
      for (const nodes of SIZES) {
        await fillFresh(puppetdb, nodes, progress);
        const urls = await recordQueries(puppetdb.url, (source) => source.readAll(signal));
        for (const where of PLACES) {
          await place(puppetdb, where);
          const say = (text: string) => progress(`${nodes} nodes, PuppetDB on ${where}, ${text}`);
          rows.push({
            nodes,
            "PuppetDB on": where,
            ...(await fullRounds(puppetdb.url, urls, nodes > 100_000, signal, say)),
          });
        }
        await place(puppetdb, "the same cores");
      }
      return rows;
    }),
};

async function fullRounds(
  url: string,
  urls: readonly string[],
  isLarge: boolean,
  signal: AbortSignal,
  say: (text: string) => void,
): Promise<Row> {
  const seen: Awaited<ReturnType<typeof fullRound>>[] = [];
  const [warmUps, rounds] = isLarge ? [1, 3] : [WARM_UP_ROUNDS, ROUNDS];
  // The first turns warm PuppetDB and the disk up, and do not count.
  for (let turn = 1 - warmUps; turn <= rounds; turn += 1) {
    say(turn > 0 ? `round ${turn} of ${rounds}` : "warming up");
    const round = await fullRound(url, urls, signal);
    if (turn > 0) seen.push(round);
  }
  const of = (measure: (round: (typeof seen)[number]) => number) => median(seen.map(measure));
  return {
    "sasori ms": round(of(({ sasori }) => sasori)),
    "of which PuppetDB": round(of(({ fetch }) => fetch)),
    "least Node ms": round(of(({ least }) => least)),
    "curl ms": round(of(({ curl }) => curl)),
    "raw push ms": round(of(({ push }) => push)),
    "dd ms": round(of(({ dd }) => dd)),
    "of the limit": round(
      of(({ sasori, curl, push, dd }) => sasori / (curl + push + dd)),
      2,
    ),
    "of the least": round(
      of(({ sasori, least }) => sasori / least),
      2,
    ),
    "peak MiB": Math.max(...seen.map(({ memory }) => memory)),
  };
}

async function fullRound(url: string, urls: readonly string[], signal: AbortSignal) {
  return Stage.with(signal, async (stage) => {
    const map = path.join(stage.folder, "sasori.map");
    await writeFile(map, "");
    const start = (name: string) =>
      stage.haproxy(name, newestHaproxy().bin, (port, socket) => lookupConfig(map, port, socket));
    const [haproxy, other, third] = [await start("haproxy"), await start("other"), await start("third")];
    const sasori = await startSasori(stage, "sasori", {
      SASORI_PUPPETDB_URL: url,
      SASORI_HAPROXY: haproxy.socket,
    });
    const { lastPass } = (await sasori.call("GET", "/api/v1/status")) as {
      lastPass: { outcome: string; durationMs: number; phasesMs: { fetch: number } };
    };
    if (lastPass.outcome !== "done") throw new Error(JSON.stringify(lastPass));
    const text = await readFile(map, "latin1");
    const lines = text.split("\n").filter((line) => line !== "" && !line.startsWith("#"));
    const ready = readyPayloads(map, lines);
    const push = await timed(() => pushRaw(other.socket, map, ready));
    const dd = await timed(() => run("dd", [`if=${map}`, `of=${map}.copy`, "bs=1M", "conv=fsync"]));
    const least = await run(process.execPath, [LEAST, third.socket, map, ...urls], { signal });
    const asked = await timed(() => curl(urls));
    const count = async ({ socket }: Haproxy) =>
      /entry_cnt=(\d+)/.exec(await runtimeCommand(socket, "show map"))?.[1];
    for (const one of [other, third])
      if ((await count(one)) !== (await count(haproxy))) throw new Error(`${one.socket} has other entries`);
    const { durationMs: took, phasesMs } = lastPass;
    return {
      sasori: took,
      fetch: phasesMs.fetch,
      least: Number(least.stdout),
      curl: asked,
      push,
      dd,
      memory: memoryMiB(sasori.pid, "VmHWM"),
    };
  });
}

export const changes: Bench = {
  what: "a pass that looks for changes: what sasori spends by moved nodes and by size of the fleet, medians",
  run: ({ signal, progress }) =>
    withPuppetdb(async (puppetdb) => {
      const rows: Row[] = [];
      for (const nodes of SIZES) {
        await fillFresh(puppetdb, nodes, progress);
        // As if a long time had passed since these runs, so that only what moves is news.
        await puppetdb.sql("UPDATE factsets SET timestamp = timestamp - interval '1 hour'");
        await puppetdb.sql(
          "UPDATE reports SET receive_time = receive_time - interval '1 hour'; VACUUM ANALYZE",
        );
        const since = Date.now();
        const urls = await recordQueries(puppetdb.url, (source) => source.readChanges(since, signal));
        rows.push(...(await changeRounds(puppetdb, nodes, urls, signal, progress)));
      }
      return rows;
    }),
};

type Puppetdb = Parameters<Parameters<typeof withPuppetdb>[0]>[0];

async function changeRounds(
  puppetdb: Puppetdb,
  nodes: number,
  urls: readonly string[],
  signal: AbortSignal,
  progress: (text: string) => void,
): Promise<Row[]> {
  return Stage.with(signal, async (stage) => {
    const map = path.join(stage.folder, "sasori.map");
    await writeFile(map, "");
    const haproxy = await stage.haproxy("haproxy", newestHaproxy().bin, (port, socket) =>
      lookupConfig(map, port, socket),
    );
    const env = { SASORI_PUPPETDB_URL: puppetdb.url, SASORI_HAPROXY: haproxy.socket };
    const sasori = await startSasori(stage, "sasori", env);
    const pass = async (moved: number) => {
      await moveNodes(puppetdb, moved);
      // What moved is told again for as long as the readings overlap: until there is nothing new.
      const [cpu, bytes] = [preciseCpuMs(sasori.pid), bytesMoved(sasori.pid)];
      const report = await sasori.sync({});
      if (report.outcome !== "done" || report.moved !== moved)
        throw new Error(JSON.stringify(report).slice(0, 500));
      const cost = {
        cpu: preciseCpuMs(sasori.pid) - cpu,
        bytes: bytesMoved(sasori.pid) - bytes,
        ms: report.durationMs,
      };
      const asked = await timed(() => curl(urls));
      await puppetdb.sql(
        "UPDATE factsets SET timestamp = timestamp - interval '1 hour' WHERE timestamp > now() - interval '30 minutes'",
      );
      return { ...cost, curl: asked };
    };
    const rows: Row[] = [];
    // sasori has just read the whole fleet: V8 tidies up after that, and compiles what it sees often, for some passes.
    for (let turn = 1; turn <= CHANGE_ROUNDS; turn += 1) {
      progress(`${nodes} nodes, warming up, round ${turn} of ${CHANGE_ROUNDS}`);
      await pass(Math.min(1_000, nodes / 10));
    }
    for (const moved of CHANGES.filter((count) => count * 10 <= nodes)) {
      const seen: Awaited<ReturnType<typeof pass>>[] = [];
      for (let turn = 1; turn <= CHANGE_ROUNDS; turn += 1) {
        progress(`${nodes} nodes, ${moved} moved, round ${turn} of ${CHANGE_ROUNDS}`);
        seen.push(await pass(moved));
      }
      const middle = (measure: (pass: (typeof seen)[number]) => number) => median(seen.map(measure));
      const file = moved === 0 ? 0 : (await stat(map)).size;
      rows.push({
        nodes,
        moved,
        "pass ms": round(middle(({ ms }) => ms)),
        // The cleaning of memory comes in one pass of many.
        "sasori CPU ms": round(seen.reduce((sum, { cpu }) => sum + cpu, 0) / seen.length, 1),
        "median CPU ms": round(
          middle(({ cpu }) => cpu),
          1,
        ),
        "kB moved": round(middle(({ bytes }) => bytes) / 1000),
        "of it the file": round(file / 1000),
        "PuppetDB alone ms": round(middle(({ curl }) => curl)),
      });
    }
    return rows;
  });
}
