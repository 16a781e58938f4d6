/** A program that a test runs: what it printed is kept, its end can be waited for, and it never outlives us. */
import { type ChildProcess, type SpawnOptions, spawn } from "node:child_process";
import { createServer } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { patient } from "./patience.js";

const STOP_DEADLINE_MS = 10_000;
const READY_DEADLINE_MS = 20_000;

/** A started program. Its output, stderr too, is collected in `printed`. */
export class Child {
  ended = false;
  printed = "";
  readonly #command: string;
  readonly #process: ChildProcess;
  readonly #exit: Promise<void>;
  #code: number | null = null;

  constructor(command: string, args: readonly string[], options: SpawnOptions = {}) {
    this.#command = [command, ...args].join(" ");
    // A process group of its own, so that a kill takes its workers too.
    this.#process = spawn(command, args, { ...options, detached: true, stdio: ["ignore", "pipe", "pipe"] });
    const keep = (chunk: Buffer): void => {
      this.printed += chunk.toString();
    };
    this.#process.stdout?.on("data", keep);
    this.#process.stderr?.on("data", keep);

    // If the test run itself is killed, nobody calls end().
    const orphaned = (): void => this.#signal("SIGKILL");
    process.once("exit", orphaned);
    this.#exit = new Promise((resolve) => {
      const done = (note = ""): void => {
        this.#code = this.#process.exitCode;
        this.printed += note;
        this.ended = true;
        process.off("exit", orphaned);
        resolve();
      };
      this.#process.once("close", () => done());
      this.#process.once("error", (error) => done(error.message)); // it could not be started at all
    });
  }

  /** Its process id; 0 when it could not be started. */
  get pid(): number {
    return this.#process.pid ?? 0;
  }

  /** Waits until it has gone by itself; its exit code, -1 when a signal has ended it. */
  async code(): Promise<number> {
    await this.#exit;
    return this.#code ?? -1;
  }

  /** Sends `signal` and waits until it has gone. After 10 s, with patience, it is killed. Does nothing when it has ended. */
  async end(signal: NodeJS.Signals = "SIGTERM"): Promise<void> {
    this.#signal(signal);
    const killer = setTimeout(() => this.#signal("SIGKILL"), patient(STOP_DEADLINE_MS));
    await this.#exit;
    clearTimeout(killer);
  }

  /**
   * Asks again and again whether it is `ready`, until it is. When the child ends or `deadlineMs` has passed, with
   * patience, ends it and rejects with the command, the last error of `ready` and all that was printed.
   */
  async untilReady(
    ready: () => Promise<boolean>,
    deadlineMs = READY_DEADLINE_MS,
    everyMs = 10,
  ): Promise<void> {
    const waitMs = patient(deadlineMs);
    const deadline = Date.now() + waitMs;
    let last = "";
    while (!this.ended && Date.now() < deadline) {
      try {
        if (await ready()) return;
      } catch (error) {
        last = error instanceof Error ? error.message : String(error);
      }
      await sleep(everyMs);
    }
    const why = this.ended ? "ended" : `is not ready after ${waitMs / 1000} s (${last})`;
    await this.end("SIGKILL");
    throw new Error(`${this.#command} ${why}; it printed:\n${this.printed}`);
  }

  /** SIGKILL goes to its workers as well: nobody else could end them then. */
  #signal(signal: NodeJS.Signals): void {
    if (this.ended || this.pid === 0) return;
    try {
      process.kill(signal === "SIGKILL" ? -this.pid : this.pid, signal);
    } catch {
      // ESRCH: it has just ended by itself
    }
  }
}

/** Runs a program to its end and resolves with what it printed. Rejects with that when it fails. */
export async function run(
  command: string,
  args: readonly string[],
  options: SpawnOptions & { input?: string } = {},
): Promise<string> {
  const { input = "", ...spawnOptions } = options;
  const child = spawn(command, args, { ...spawnOptions, stdio: "pipe" });
  let out = "";
  let err = "";
  child.stdout.on("data", (chunk: Buffer) => {
    out += chunk.toString();
  });
  child.stderr.on("data", (chunk: Buffer) => {
    err += chunk.toString();
  });
  child.stdin.on("error", () => {}); // it ended without reading all: its exit code says why
  child.stdin.end(input);
  const code = await new Promise<number | null>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", resolve);
  });
  if (code !== 0) throw new Error(`${[command, ...args].join(" ")} failed (${code}):\n${err}${out}`);
  return out;
}

/**
 * A port on 127.0.0.1 that nobody listens on, for a program that will be started soon. Not one that the kernel offers:
 * by the time the program starts, the kernel may have given that to somebody's outgoing connection. The ports below its
 * range (32768 by default) are walked through instead, each test worker in a part of its own.
 */
export async function freePort(): Promise<number> {
  for (let tries = 0; tries < PORTS_PER_WORKER; tries += 1) {
    nextPort = (nextPort + 1) % PORTS_PER_WORKER;
    const port = FIRST_PORT + (WORKER % WORKERS) * PORTS_PER_WORKER + nextPort;
    if (await isFree(port)) return port;
  }
  throw new Error(`no free port among ${PORTS_PER_WORKER}`);
}

const FIRST_PORT = 20_000;
const WORKERS = 8;
const PORTS_PER_WORKER = 1_500;
const WORKER = Number(process.env.VITEST_POOL_ID ?? 0);
/** Different in each process, because of other runs on this machine. */
let nextPort = Math.floor(Math.random() * PORTS_PER_WORKER);

/** Nobody listens on this port of 127.0.0.1. */
export function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once("error", () => resolve(false));
    server.listen(port, "127.0.0.1", () => server.close(() => resolve(true)));
  });
}
