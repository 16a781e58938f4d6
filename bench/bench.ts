// `npm run bench -- [names]`: runs the benchmarks one after the other, shows the progress on a terminal, prints a
// table of each, and writes it with machine, versions and date to bench/results/<name>.json. It checks nothing.

import { mkdir, writeFile } from "node:fs/promises";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { formatTable, Terminal } from "../demo/terminal.js";
import { agree, registrations } from "./agree.js";
import { fanin, fanout } from "./fanout.js";
import { freshness } from "./freshness.js";
import { healing } from "./healing.js";
import { instead } from "./instead.js";
import { lookup } from "./lookup.js";
import { overload } from "./overload.js";
import { changes, full } from "./passes.js";
import { pushes, traffic } from "./push.js";
import { rest } from "./rest.js";
import { haproxyBinaries } from "./stage.js";
import { stalls } from "./stalls.js";
import { start } from "./start.js";
import { gateway, rules, threads } from "./throughput.js";

export type Row = Record<string, string | number>;

export interface Bench {
  /** One line for people. */
  what: string;
  run(context: {
    signal: AbortSignal;
    progress: (text: string) => void;
    /** Versions of programs that this benchmark alone runs, for its result: `{ puppetdb: "7.12.1" }`. */
    ran: (versions: Record<string, string>) => void;
  }): Promise<Row[]>;
}

const BENCHES: Record<string, Bench> = {
  gateway,
  threads,
  overload,
  healing,
  rules,
  full,
  changes,
  pushes,
  traffic,
  lookup,
  freshness,
  rest,
  stalls,
  fanout,
  fanin,
  agree,
  registrations,
  instead,
  start,
};
const RESULTS = fileURLToPath(new URL("../../bench/results/", import.meta.url));

/** Beyond what one needs (`pushes` half an hour: a million entries take an HAProxy a minute); a slower machine measures nothing. */
const DEADLINE_MS = 60 * 60_000;

const terminal = new Terminal();
const stop = new AbortController();
for (const name of ["SIGINT", "SIGTERM"] as const) {
  process.once(name, () => stop.abort(new Error(`ended by ${name}`)));
}

const list = formatTable(Object.entries(BENCHES).map(([name, { what }]) => [`  ${name}`, what])).join("\n");
const names = process.argv.length > 2 ? process.argv.slice(2) : Object.keys(BENCHES);
if (names.some((name) => name === "--help" || name === "-h")) {
  console.log(`npm run bench -- [name ...]: runs these; without a name all, in more than an hour.\n${list}`);
  process.exit();
}
const unknown = names.filter((name) => BENCHES[name] === undefined);
if (unknown.length > 0) {
  console.error(`no such benchmark: ${unknown.join(", ")}. There are:\n${list}`);
  process.exit(2);
}
try {
  for (const name of names) await runOne(name);
} catch (error) {
  terminal.waiting("");
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
}

async function runOne(name: string): Promise<void> {
  const bench = BENCHES[name];
  if (bench === undefined) return;
  const startedAt = new Date();
  const signal = AbortSignal.any([stop.signal, AbortSignal.timeout(DEADLINE_MS)]);
  const versions = {};
  const rows = await bench.run({
    signal,
    progress: (text) => terminal.waiting(`${name}: ${text}`),
    ran: (more) => Object.assign(versions, more),
  });
  const seconds = Math.round((Date.now() - startedAt.getTime()) / 1000);
  terminal.print(`${name}: ${bench.what} (${seconds} s)\n`);
  const columns = Object.keys(rows[0] ?? {});
  const cells = rows.map((row) => columns.map((column) => String(row[column])));
  terminal.print(`${formatTable([columns, ...cells]).join("\n")}\n`);
  const on = { ...machine(), ...versions };
  const told = Object.entries(on).map(([what, value]) => `${what} ${value}`);
  terminal.print(`On: ${told.join("; ")}\n`);
  await mkdir(RESULTS, { recursive: true });
  const result = { name, what: bench.what, at: startedAt.toISOString(), seconds, machine: on, rows };
  await writeFile(path.join(RESULTS, `${name}.json`), `${JSON.stringify(result, undefined, 2)}\n`);
}

function machine() {
  return {
    cpus: os.cpus().length,
    model: os.cpus()[0]?.model ?? "unknown",
    memoryGiB: Math.round(os.totalmem() / 2 ** 30),
    kernel: `${os.type()} ${os.release()}`,
    node: process.version,
    haproxy: haproxyBinaries()
      .map(({ version }) => version)
      .join(", "),
    /** The load of the last minute. The bench itself needs both cores. */
    load: Number((os.loadavg()[0] ?? 0).toFixed(1)),
  };
}
