// Whose turn it is to change a file that several processes read, change and replace: a lock file beside it. Only
// somebody who may replace the file, whose folder holds the lock, can take a turn or keep others from it.
// Promises: one holder at a time; the lock of a process that was killed holds up nobody; the wait has a bound. No
// library does this: proper-lockfile judges a lock by its age alone, and lockfile is no longer maintained. Node has no
// flock(2), and anybody who can read the file could take that lock.

import { randomUUID } from "node:crypto";
import { type FileHandle, open, readFile, readlink, realpath, rename, stat, unlink } from "node:fs/promises";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { SasoriError, systemCode } from "../errors.js";
import { readWhole } from "../whole-file.js";
import { writeError } from "./atomic-file.js";

const LOOK_AGAIN_MS = 20;

/** No turn takes so long. If the holder is on another machine, or in another container, only the lock's age can be judged. */
const FORGOTTEN_MS = 60_000;

const MAX_LOCK_BYTES = 4 * 1024;

/** A turn that was taken. It must be ended. */
export interface Turn {
  end(): Promise<void>;
}

/** Who holds a lock: which process of which machine (or container), and which of its turns. */
interface Holder {
  pid: number;
  /** When it started, in the kernel's own ticks: the same pid later is another process. */
  started: string;
  /** This boot of the machine, and the set of processes in which the pid counts. */
  place: string;
  turn: string;
}

/** Waits for the turn at most `waitMs`. Throws `BUSY` then, and `FILE_...` where no lock can be made. */
export async function takeTurn(name: string, waitMs: number): Promise<Turn> {
  const folder = await realpath(path.dirname(name)).catch(() => path.dirname(name));
  const file = await realpath(name).catch(() => path.join(folder, path.basename(name)));
  const lock = `${file}.lock`;
  const { started = "" } = (await statusOf(process.pid)) ?? {};
  const holder: Holder = { pid: process.pid, started, place: await placeOf(), turn: randomUUID() };
  const us = JSON.stringify(holder);
  const until = performance.now() + waitMs;
  for (;;) {
    if (await isMade(lock, us)) return { end: () => removeIf(lock, us) };
    const theirs = await readLock(lock).catch(() => undefined);
    if (theirs !== undefined && (await isForgotten(lock, theirs))) await removeIf(lock, theirs);
    if (performance.now() > until) throw busy(file, lock, theirs, waitMs);
    await sleep(LOOK_AGAIN_MS);
  }
}

/** Anybody who may write to the folder can put anything in its place, such as a pipe. */
const readLock = (lock: string): Promise<string> => readWhole(lock, "utf8", MAX_LOCK_BYTES);

/** False if it is there already. */
async function isMade(lock: string, content: string): Promise<boolean> {
  let handle: FileHandle | undefined;
  try {
    handle = await open(lock, "wx");
    await handle.writeFile(content);
    return true;
  } catch (error) {
    if (systemCode(error) === "EEXIST") return false;
    if (handle !== undefined) await unlink(lock).catch(() => undefined); // On a full disk it is empty, and nobody's.
    throw writeError(lock, error);
  } finally {
    await handle?.close();
  }
}

/**
 * Removes the lock if it still is what was read. It is taken aside first, because between reading and removing another
 * process may have removed it, and a third one may have made its own. Then it is put back.
 */
async function removeIf(lock: string, content: string): Promise<void> {
  const aside = `${lock}.${randomUUID()}`;
  const isOurs = await rename(lock, aside).then(
    () => true,
    () => false, // Another one was faster.
  );
  if (!isOurs) return;
  const found = await readLock(aside).catch(() => content);
  if (found !== content) await isMade(lock, found);
  await unlink(aside).catch(() => undefined);
}

/** Its holder has ended without ending its turn. */
async function isForgotten(lock: string, content: string): Promise<boolean> {
  const holder = parse(content);
  if (holder !== undefined && holder.place !== "" && holder.place === (await placeOf()))
    return hasEnded(holder);
  const { mtimeMs } = await stat(lock).catch(() => ({ mtimeMs: Date.now() }));
  return Math.abs(Date.now() - mtimeMs) > FORGOTTEN_MS;
}

async function hasEnded({ pid, started }: Holder): Promise<boolean> {
  try {
    process.kill(pid, 0); // Signal 0 only checks that the process exists.
  } catch (error) {
    if (systemCode(error) === "ESRCH") return true;
  }
  const now = await statusOf(pid);
  return now !== undefined && (now.started !== started || /[ZX]/.test(now.state));
}

function parse(content: string): Holder | undefined {
  try {
    const { pid, started, place, turn } = JSON.parse(content) as Record<string, unknown>;
    if (typeof pid !== "number" || typeof started !== "string" || typeof place !== "string") return undefined;
    return { pid, started, place, turn: String(turn) };
  } catch {
    return undefined;
  }
}

/**
 * `4711 (any name) S 1 ...`: the state, and as 20th word behind the name when it started. Undefined if that cannot be found
 * out.
 */
async function statusOf(pid: number): Promise<{ state: string; started: string } | undefined> {
  const status = await readFile(`/proc/${pid}/stat`, "latin1").catch(() => undefined);
  if (status === undefined) return undefined;
  const words = status.slice(status.lastIndexOf(")") + 2).split(" ");
  return { state: words[0] ?? "", started: words[19] ?? "" };
}

/** Empty without /proc, as outside of Linux: then the age of a lock decides. */
async function placeOf(): Promise<string> {
  const boot = await readFile("/proc/sys/kernel/random/boot_id", "latin1").catch(() => "");
  const processes = await readlink("/proc/self/ns/pid").catch(() => "");
  return boot && processes && `${boot.trim()} ${processes}`;
}

function busy(file: string, lock: string, theirs: string | undefined, waitMs: number): SasoriError {
  const holder = theirs === undefined ? undefined : parse(theirs);
  const who = holder === undefined ? "another process" : `process ${holder.pid}`;
  const what = `${who} has been changing ${file} for more than ${waitMs / 1_000} s`;
  return new SasoriError("BUSY", `${what}: end it if it hangs (its lock is ${lock}), and try again`);
}
