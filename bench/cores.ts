// Binds programs to cores, so that the work of others on the machine does not look like HAProxy's.

import { execFile } from "node:child_process";
import os from "node:os";
import { promisify } from "node:util";

const run = promisify(execFile);
const last = os.cpus().length - 1;

export const FIRST_CORE = "0";
export const OTHER_CORES = `1-${last}`;
export const ALL_CORES = `0-${last}`;

/** Binds all threads of these processes, and what they start from now on. */
export async function bind(cores: string, ...pids: number[]): Promise<void> {
  await Promise.all(pids.map((pid) => run("taskset", ["-apc", cores, String(pid)])));
}

/** As `bind`. This process, and what it starts, then runs only when nobody else wants its cores. */
export async function giveWay(cores: string): Promise<void> {
  await bind(cores, process.pid);
  await run("chrt", ["--all-tasks", "--idle", "--pid", "0", String(process.pid)]);
}

/** Ends both. */
export async function takeBack(): Promise<void> {
  await run("chrt", ["--all-tasks", "--other", "--pid", "0", String(process.pid)]);
  await bind(ALL_CORES, process.pid);
}

/** Put before the command of a program that must not give way although its parent does. Only root may do that. */
export const WITHOUT_GIVING_WAY = ["chrt", "--other", "0"];
