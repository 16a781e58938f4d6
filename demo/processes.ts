// The programs of the demo as child processes, each with a log file of its own. One that ends before it was
// told to is an error that says why, with the end of its log. stop() ends all of them and waits for it.

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, openSync } from "node:fs";
import { readFile } from "node:fs/promises";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { reason } from "../src/errors.js";

/** A slow machine may need long. A program that fails is noticed at once, so nobody waits in vain. */
const START_DEADLINE_MS = 60_000;
const STOP_DEADLINE_MS = 10_000;
const POLL_MS = 50;
const LOG_TAIL_LINES = 15;
const MAX_LINE_CHARACTERS = 200;

export interface Program {
  name: string;
  command: string;
  args: readonly string[];
  env: NodeJS.ProcessEnv;
  /** Whether it does its work; an error counts as "not yet". */
  isReady: () => Promise<boolean>;
}

export class Processes {
  /** Rejects when a program ends by itself. */
  readonly death: Promise<never>;
  readonly #folder: string;
  readonly #running = new Set<ChildProcess>();
  #stopping = false;
  #reportDeath: (error: Error) => void = () => {};

  /** The log files go into the folder. */
  constructor(folder: string) {
    this.#folder = folder;
    this.death = new Promise((_, reject) => {
      this.#reportDeath = reject;
    });
    this.death.catch(() => undefined); // Whoever races against it is told; nobody else has to be.
  }

  /** Resolves when the program is ready. */
  async start({ name, command, args, env, isReady }: Program, signal: AbortSignal): Promise<void> {
    signal.throwIfAborted(); // After stop() nobody would end it.
    const log = openSync(this.#logFile(name), "a");
    // A process group of its own: Ctrl-C in the terminal is for us, and we end the children in our order.
    const child = spawn(command, args, { env, detached: true, stdio: ["ignore", log, log] });
    closeSync(log);
    child.once("error", (error) => this.#onEnd(name, `could not be started: ${reason(error)}`));
    child.once("exit", (code, killer) => {
      this.#running.delete(child);
      this.#onEnd(name, `ended unexpectedly (${killer ?? `exit code ${code}`})`);
    });
    if (child.pid !== undefined) this.#running.add(child);
    try {
      await until(`${name} is ready`, isReady, { deadlineMs: START_DEADLINE_MS, signal });
    } catch (error) {
      if (signal.aborted) throw error;
      throw new Error(`${reason(error)}${await this.#logTail(name)}`);
    }
  }

  /** Ends everything; what does not end in time is killed. */
  async stop(): Promise<void> {
    this.#stopping = true;
    await Promise.all([...this.#running].map(end));
  }

  async #onEnd(name: string, what: string): Promise<void> {
    if (!this.#stopping) this.#reportDeath(new Error(`${name} ${what}${await this.#logTail(name)}`));
  }

  async #logTail(name: string): Promise<string> {
    const text = await readFile(this.#logFile(name), "utf8").catch(() => "");
    const lines = text.trimEnd().split("\n").slice(-LOG_TAIL_LINES).map(shorten);
    return text.trim() === "" ? "" : `\nThe end of its log:\n${lines.map((line) => `  ${line}`).join("\n")}`;
  }

  #logFile(name: string): string {
    return path.join(this.#folder, `${name}.log`);
  }
}

const shorten = (line: string): string =>
  line.length > MAX_LINE_CHARACTERS ? `${line.slice(0, MAX_LINE_CHARACTERS)}…` : line;

async function end(child: ChildProcess): Promise<void> {
  const ended = once(child, "exit");
  child.kill("SIGTERM");
  const killer = setTimeout(() => child.kill("SIGKILL"), STOP_DEADLINE_MS);
  await ended;
  clearTimeout(killer);
}

/** Asks again and again whether `what` is so. Rejects after the deadline, with the last error if there was one. */
export async function until(
  what: string,
  isSo: () => Promise<boolean>,
  { deadlineMs, signal, pollMs = POLL_MS }: { deadlineMs: number; signal: AbortSignal; pollMs?: number },
): Promise<void> {
  const deadline = Date.now() + deadlineMs;
  for (;;) {
    let failure = "";
    try {
      if (await isSo()) return;
    } catch (error) {
      failure = `: ${reason(error)}`;
    }
    if (Date.now() > deadline) throw new Error(`not within ${deadlineMs / 1000} s: ${what}${failure}`);
    await sleep(pollMs, undefined, { signal });
  }
}
