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

/** Put before the command of a program that comes first on its core, and ends after so many seconds. Only root may do that. */
export const first = (seconds: number): string[] => [
  ...["chrt", "--rr", "2"],
  ...["timeout", "--preserve-status", "--signal", "INT", String(seconds)],
];
