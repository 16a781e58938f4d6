// What the benchmarks run on: HAProxy instances, masters and sasori as processes of their own, on 127.0.0.1, in a folder
// that is removed in the end. Promises: nothing outlives the stage; nobody's log slows the bench down (standard
// output goes to /dev/null, errors to a file that is shown when a program fails).

import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { copyFile, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { Processes } from "../demo/processes.js";
import { freePort } from "../test/support/child.js";

const ROOT = fileURLToPath(new URL("../../", import.meta.url));
const HAPROXY_DIR = path.join(ROOT, "haproxy");
const PARTS = path.join(ROOT, "setup/parts.sh");

export { type HaproxyBinary, haproxyBinaries } from "../test/support/parts.js";

export function wrkBinary(): string {
  const [bin] = listed("wrk", "wrk");
  if (bin === undefined) throw new Error("no wrk: run setup/parts.sh wrk");
  return bin;
}

/** As deploy/systemd/gateway.env has it: otherwise a commit stops HAProxy 2.6 for twice as long. */
export const HAPROXY_ENV = { GLIBC_TUNABLES: "glibc.malloc.mxfast=0" };

/** What `setup/parts.sh <command>` has told. */
const told = new Map<string, string>();

/** The paths of the programs of this name that `setup/parts.sh <command>` tells. */
export function listed(command: string, name: string): string[] {
  const text = told.get(command) ?? execFileSync(PARTS, [command], { encoding: "utf8" });
  told.set(command, text);
  const lines = text.split("\n").map((line) => line.split("\t"));
  return lines.flatMap(([part, at]) => (part === name && at ? [at] : []));
}

export interface Haproxy {
  port: number;
  pid: number;
  socket: string;
}

/** A gateway's configuration: text, and the environment that it takes its values from. */
export interface Config {
  text: string;
  env?: Record<string, string>;
}

export class Stage {
  readonly folder: string;
  readonly #processes: Processes;
  readonly #signal: AbortSignal;

  private constructor(folder: string, signal: AbortSignal) {
    this.folder = folder;
    this.#processes = new Processes(folder);
    this.#signal = signal;
  }

  /** Gives `use` a stage, and takes everything down in any case. Rejects also when a program dies. */
  static async with<T>(signal: AbortSignal, use: (stage: Stage) => Promise<T>): Promise<T> {
    const folder = await mkdtemp(path.join(tmpdir(), "sasori-bench-"));
    const stage = new Stage(folder, signal);
    let onAbort = () => {};
    const stopped = new Promise<never>((_, reject) => {
      onAbort = () => reject(signal.reason);
      signal.addEventListener("abort", onAbort, { once: true });
    });
    stopped.catch(() => undefined);
    try {
      signal.throwIfAborted();
      return await Promise.race([use(stage), stage.#processes.death, stopped]);
    } finally {
      signal.removeEventListener("abort", onAbort);
      await stage.#processes.stop();
      await rm(folder, { recursive: true, force: true });
    }
  }

  /** Starts a HAProxy in a folder of its own; it is ready when its port takes connections. */
  async haproxy(
    name: string,
    bin: string,
    config: (port: number, socket: string) => Config,
  ): Promise<Haproxy> {
    const port = await freePort();
    const socket = path.join(this.folder, `${name}.sock`);
    const { text, env } = config(port, socket);
    const file = path.join(this.folder, `${name}.cfg`);
    await writeFile(file, text);
    await copyFile(path.join(HAPROXY_DIR, "heal.lua"), path.join(this.folder, "heal.lua"));
    const isReady = async () => (await fetch(`http://127.0.0.1:${port}/`)).status > 0;
    const pid = await this.program(name, [bin, "-db", "-f", file], { ...HAPROXY_ENV, ...env }, isReady);
    return { port, socket, pid };
  }

  /** Starts any program, and answers with its process id. */
  async program(
    name: string,
    [command = "", ...args]: readonly string[],
    env: Record<string, string>,
    isReady: () => Promise<boolean>,
  ): Promise<number> {
    const pidFile = path.join(this.folder, `${name}.pid`);
    // The shell becomes the program, so the process id is the program's.
    const script = 'echo $$ > "$0"; exec "$@" > /dev/null';
    const program = {
      name,
      command: "/bin/sh",
      args: ["-c", script, pidFile, command, ...args],
      env: { PATH: process.env.PATH, ...env },
      isReady,
    };
    await this.#processes.start(program, this.#signal);
    return Number(readFileSync(pidFile, "utf8"));
  }
}

/** The project's own gateway in front of these masters, listening where it is told. */
export function gatewayConfig(
  masters: readonly number[],
  places: { port: number; socket: string; map: string; statsPort: number; sasoriPort: number },
  globalLines: readonly string[] = [],
): Config {
  const names = masters.map((_, index) => `MASTER${index + 1}`);
  const text = readFileSync(path.join(HAPROXY_DIR, "haproxy.cfg"), "utf8");
  return {
    text: `${globalSection(globalLines)}${text}`,
    env: {
      NODE_MASTER_MAP: places.map,
      HAPROXY_SOCKET: places.socket,
      STATS_USER: "admin",
      STATS_PASSWORD: "admin",
      GATEWAY_PORT: String(places.port),
      STATS_PORT: String(places.statsPort),
      RESOLVER_ADDRESS: `127.0.0.1:${places.sasoriPort}`,
      ...Object.fromEntries(names.map((name, index) => [name, `127.0.0.1:${masters[index]}`])),
    },
  };
}

export const globalSection = (lines: readonly string[]): string =>
  `global\n  noreuseport\n${lines.map((line) => `  ${line}\n`).join("")}`;

/** Processor time that a process has used so far, in milliseconds. Linux counts it in steps of 10 ms. */
export function cpuMs(pid: number): number {
  const [own = 0] = cpuTimes(pid);
  return own;
}

/** As `cpuMs`, without steps, for a process whose threads live as long as it does, such as Node's. */
export function preciseCpuMs(pid: number): number {
  const threads = readdirSync(`/proc/${pid}/task`);
  // Nanoseconds on a processor, nanoseconds waiting for one, turns.
  const times = threads.map((thread) =>
    readFileSync(`/proc/${pid}/task/${thread}/schedstat`, "utf8").split(" "),
  );
  return times.reduce((sum, [ran]) => sum + Number(ran) / 1e6, 0);
}

/** As `cpuMs`, with its children, those that have ended too. */
export function cpuMsOfTree(pid: number): number {
  const living = childrenOf(pid).map((child) => {
    try {
      return cpuMs(child);
    } catch {
      return 0; // It has just ended, and its parent has its time.
    }
  });
  // Read last: what ended meanwhile is in here.
  const [own = 0, ended = 0] = cpuTimes(pid);
  return [own, ended, ...living].reduce((sum, ms) => sum + ms, 0);
}

export function childrenOf(pid: number): number[] {
  return readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim().split(" ").map(Number);
}

function cpuTimes(pid: number): number[] {
  const fields = readFileSync(`/proc/${pid}/stat`, "utf8")
    .replace(/^.*\) /, "")
    .split(" ");
  const [user = 0, system = 0, endedUser = 0, endedSystem = 0] = fields.slice(11, 15).map(Number);
  return [(user + system) * 10, (endedUser + endedSystem) * 10];
}

export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const [low = 0, high = 0] = [sorted[sorted.length % 2 === 0 ? middle - 1 : middle], sorted[middle]];
  return (low + high) / 2;
}

/** The value below which this share of all is: 0.9 is the 90th percentile. */
export function quantile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length * share)] ?? Number.NaN;
}
