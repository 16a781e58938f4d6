/**
 * A file system that stops to answer, as one on a network does: no test can make a real one hang without root. A test
 * file that wants it puts it between itself and Node:
 *
 *     vi.mock("node:fs/promises", async (original) =>
 *       (await import("./support/slow-disk.js")).slowDisk(await original()));
 */
type Fs = typeof import("node:fs/promises");

let frozen: { where: string; what: "reads" | "writes"; thawed: Promise<void> } | undefined;

/** Nothing whose path begins with `where` is read, or written as sasori does it, until what is returned is called. */
export function freeze(where: string, what: "reads" | "writes"): () => void {
  let thaw = () => {};
  const thawed = new Promise<void>((resolve) => {
    thaw = () => {
      frozen = undefined;
      resolve();
    };
  });
  frozen = { where, what, thawed };
  return thaw;
}

let reads = 0;
let waiting = 0;

/** How many files were opened to be read. */
export const opened = (): number => reads;

/** How many wait for what is frozen. */
export const held = (): number => waiting;

let inodes = 0n;
let areShifting = false;

/** From now on each file has another inode each time, as on some network file systems, until what is returned is called. */
export function shiftInodes(): () => void {
  areShifting = true;
  return () => {
    areShifting = false;
  };
}

/** `real`, but for what is frozen or shifting. sasori opens what it reads by flags of its own (whole-file.ts). */
export function slowDisk(real: Fs): Fs {
  const open: Fs["open"] = async (file, flags, mode) => {
    const what = typeof flags === "number" ? "reads" : "writes";
    if (what === "reads") reads += 1;
    if (frozen?.what === what && String(file).startsWith(frozen.where)) {
      waiting += 1;
      await frozen.thawed;
      waiting -= 1;
    }
    return real.open(file, flags, mode);
  };
  const stat = (async (file: string, options?: { bigint: true }) => {
    const found = await real.stat(file, options);
    if (areShifting && typeof found.ino === "bigint") {
      inodes += 1n;
      found.ino += inodes;
    }
    return found;
  }) as Fs["stat"];
  return { ...real, open, stat };
}
