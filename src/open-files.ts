// How many files and connections this process may have open at once. Node has raised the limit as far as it may.

import { readFileSync } from "node:fs";

/** `Max open files            20000                20000                files`: the limit, and the highest that is allowed. */
function readLimit(): number {
  try {
    const [, limit] = /^Max open files\s+(\d+)/m.exec(readFileSync("/proc/self/limits", "utf8")) ?? [];
    return Number(limit ?? Number.POSITIVE_INFINITY);
  } catch {
    return Number.POSITIVE_INFINITY; // Not on Linux.
  }
}

export const MAX_OPEN_FILES = readLimit();
