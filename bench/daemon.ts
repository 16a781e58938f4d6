// What several benchmarks start: sasori as a process of its own, an HAProxy that answers with the master it looked up,
// the real PuppetDB, and wrk asking for one node after another.

import { execFile } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import type { SyncRequest } from "../src/pass-queue.js";
import type { SyncReport } from "../src/sync-report.js";
import { freePort } from "../test/support/child.js";
import { type PuppetdbServer, startPuppetdb } from "../test/support/puppetdb-server.js";
import { ON_DEMAND } from "../test/support/schedules.js";
import {
  type Config,
  globalSection,
  type HaproxyBinary,
  haproxyBinaries,
  type Stage,
  wrkBinary,
} from "./stage.js";

export const CLI = fileURLToPath(new URL("../src/cli.js", import.meta.url));
const SCRIPT = fileURLToPath(new URL("../../bench/nodes.lua", import.meta.url));

export const MASTERS = ["master1", "master2", "master3"];

/** Sizes of fleets; fewer by `BENCH_NODES=10000,100000`. */
export const SIZES = (process.env.BENCH_NODES ?? "10000,100000,1000000").split(",").map(Number);

/** Rounds of which the median is taken. */
export const ROUNDS = 5;

export const round = (value: number, digits = 0): number => Number(value.toFixed(digits));

export const newestHaproxy = (): HaproxyBinary => {
  const haproxy = haproxyBinaries().at(-1);
  if (haproxy === undefined) throw new Error("no HAProxy: run setup/parts.sh test");
  return haproxy;
};

/** How often it is asked whether the first pass is over, which takes a minute with a million nodes. */
const READY_AGAIN_MS = 10;

export interface Daemon {
  url: string;
  pid: number;
  /** From its start until its first pass was over, in milliseconds. */
  startMs: number;
  call(method: string, path: string, body?: object): Promise<unknown>;
  sync(request: SyncRequest): Promise<SyncReport>;
}

/** Starts sasori and waits for its first pass. It makes others only when told, unless `env` has schedules. */
export async function startSasori(stage: Stage, name: string, env: Record<string, string>): Promise<Daemon> {
  const listen = env.SASORI_LISTEN ?? `127.0.0.1:${await freePort()}`;
  const url = `http://${listen}`;
  const call: Daemon["call"] = async (method, at, body) => {
    const response = await fetch(`${url}${at}`, {
      method,
      ...(body && { headers: { "content-type": "application/json" }, body: JSON.stringify(body) }),
    });
    const text = await response.text();
    if (!response.ok) throw new Error(`${method} ${at}: ${response.status} ${text.slice(0, 300)}`);
    return text === "" ? undefined : JSON.parse(text);
  };
  const began = performance.now();
  const settings = {
    MALLOC_ARENA_MAX: "1", // As in the image, and in the systemd unit.
    SASORI_MAP_FILE: path.join(stage.folder, `${name}.map`),
    ...ON_DEMAND,
    SASORI_LISTEN: listen,
    ...env,
  };
  const pid = await stage.program(name, [process.execPath, CLI, "serve"], settings, async () => {
    return (await call("GET", "/healthz")) !== undefined;
  });
  const isReady = async () =>
    ((await call("GET", "/api/v1/status")) as { lastPass?: unknown }).lastPass !== undefined;
  while (!(await isReady())) await sleep(READY_AGAIN_MS);
  const startMs = performance.now() - began;
  return {
    url,
    pid,
    startMs,
    call,
    sync: async (request) => (await call("POST", "/api/v1/sync", request)) as SyncReport,
  };
}

/** Answers each request itself, with the master that the map has for the node. */
export function lookupConfig(
  map: string,
  port: number,
  socket: string,
  lines: readonly string[] = [],
): Config {
  const text = `${globalSection([`stats socket "${socket}" level admin`, ...lines])}
defaults
  mode http
  timeout connect 2s
  timeout client 30s
  timeout server 30s
frontend gateway
  bind 127.0.0.1:${port}
  http-request set-var(txn.master) req.fhdr(x-node-name),map_str("${map}",none)
  http-request return status 200 content-type text/plain lf-string %[var(txn.master)]
backend puppet
${MASTERS.map((name, index) => `  server ${name} 127.0.0.1:${index + 1}\n`).join("")}`;
  return { text };
}

/** Starts PuppetDB, lends it to `use`, and ends it in any case. */
export async function withPuppetdb<T>(use: (puppetdb: PuppetdbServer) => Promise<T>): Promise<T> {
  const puppetdb = await startPuppetdb();
  try {
    return await use(puppetdb);
  } finally {
    await puppetdb.stop();
  }
}

/** So many nodes run now, at another master each, spread over the fleet; PuppetDB has their facts and no report yet. */
export function moveNodes(puppetdb: PuppetdbServer, count: number): Promise<string> {
  if (count === 0) return Promise.resolve("");
  return puppetdb.sql(`
    UPDATE factsets f SET timestamp = clock_timestamp(), producer_timestamp = clock_timestamp(),
      producer_id = coalesce((SELECT min(id) FROM producers WHERE id > f.producer_id), (SELECT min(id) FROM producers))
    WHERE f.certname IN (SELECT certname FROM certnames WHERE (id - (SELECT min(id) FROM certnames))
      % ((SELECT count(*) FROM certnames) / ${count}) = 0 LIMIT ${count})`);
}

/** Bytes that a process has read and written so far, sockets and files. */
export function bytesMoved(pid: number): number {
  const io = readFileSync(`/proc/${pid}/io`, "utf8");
  return Number(/rchar: (\d+)/.exec(io)?.[1]) + Number(/wchar: (\d+)/.exec(io)?.[1]);
}

/** Memory of a process in MiB: what it has now, or at its peak. */
export function memoryMiB(pid: number, which: "VmRSS" | "VmHWM"): number {
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  return Math.round(Number(new RegExp(`${which}:\\s+(\\d+)`).exec(status)?.[1]) / 1024);
}

/** From now on VmHWM is the peak since then. */
export function forgetPeak(pid: number): void {
  writeFileSync(`/proc/${pid}/clear_refs`, "5");
}

export interface Traffic {
  requests: number;
  p50: number;
  p99: number;
  failed: number;
}

/**
 * Asks for nodes (their numbers in the format `names`) for so long, by so many connections; `through` is a command that
 * starts wrk. Times in microseconds.
 */
export async function wrk(
  port: number,
  {
    seconds,
    connections = 20,
    nodes = 10_000,
    names = "node%d.example.com",
    first = 0,
    through = [],
  }: {
    seconds: number;
    connections?: number;
    nodes?: number;
    names?: string;
    first?: number;
    through?: readonly string[];
  },
  signal: AbortSignal,
): Promise<Traffic> {
  const args = ["-t1", `-c${connections}`, `-d${seconds}s`, "-s", SCRIPT, `http://127.0.0.1:${port}/`, "--"];
  const options = { signal, timeout: seconds * 1000 + 30_000 };
  const [command = "", ...rest] = [...through, wrkBinary(), ...args, String(nodes), names, String(first)];
  const { stdout } = await promisify(execFile)(command, rest, options);
  return JSON.parse(/^\{.*\}$/m.exec(stdout)?.[0] ?? "{}");
}
