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

/** `real`, but for what is frozen. */
export function slowDisk(real: Fs): Fs {
  const slow = <Call extends (...args: never[]) => unknown>(call: Call, what: "reads" | "writes") =>
    (async (...args: Parameters<Call>) => {
      if (frozen?.what === what && String(args[0]).startsWith(frozen.where)) await frozen.thawed;
      return call(...args);
    }) as Call;
  return { ...real, open: slow(real.open, "writes"), readFile: slow(real.readFile, "reads") };
}
