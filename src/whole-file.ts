// Files that are read whole: secrets, the state file, the map file. A user who can write to their folder can put anything in
// their place, and they may be on a file server that no longer answers.
// Promises: only regular files are read, never more than their size or a bound, so that a pipe, a device or a file in /proc
// neither blocks nor fills the memory. A file system that hangs blocks one thread of Node and no more.

import {
  closeSync,
  constants,
  fstatSync,
  openSync,
  readFileSync,
  readSync,
  type Stats,
  statSync,
} from "node:fs";
import { type FileHandle, open, stat } from "node:fs/promises";
import path from "node:path";
import { Line, within } from "./deadline.js";

/** Maximum size of a file: enough for a map of five million nodes. */
const MAX_BYTES = 256 * 1024 * 1024;
/** Work on a piece of this size takes some milliseconds. */
const PIECE_BYTES = 64 * 1024;
/** Maximum size of a secret or PEM file. A system's bundle of all CA certificates has 300 kB. */
const MAX_SECRET_BYTES = 1024 * 1024;

/**
 * With these flags a pipe does not block, and a terminal does not become our controlling terminal. For a file they change
 * nothing.
 */
export const READ_ONLY = constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY;

/** A small file takes a millisecond. */
const SECRET_MS = 5_000;

/** There is no regular file at this path, or it is too large. The message says what it is. */
export class UnusableFile extends Error {}

/** The file system does not answer. The operation may still end later. */
export class SilentFile extends Error {}

/** A path, or a file that was opened before and stays open. */
type Place = string | FileHandle;

/** Reads the whole text. Throws `UnusableFile`, or Node's errors. */
export async function readWhole(
  file: Place,
  encoding: "latin1" | "utf8",
  limit = MAX_BYTES,
): Promise<string> {
  const { handle, size, close } = await openUsable(file, limit);
  try {
    const bytes = Buffer.allocUnsafe(size);
    let length = 0;
    for (let read = -1; read !== 0 && length < size; length += read)
      ({ bytesRead: read } = await handle.read(bytes, length, size - length, length));
    return bytes.toString(encoding, 0, length);
  } finally {
    await close();
  }
}

/** The same in pieces, for large files. A piece is valid only until the next one comes. */
export async function* readInPieces(file: Place, limit: number): AsyncGenerator<Buffer> {
  const { handle, size, close } = await openUsable(file, limit);
  try {
    const bytes = Buffer.allocUnsafe(PIECE_BYTES);
    for (let at = 0; at < size; ) {
      const { bytesRead } = await handle.read(bytes, 0, Math.min(PIECE_BYTES, size - at), at);
      if (bytesRead === 0) return; // The file was shortened meanwhile.
      at += bytesRead;
      yield bytes.subarray(0, bytesRead);
    }
  } finally {
    await close();
  }
}

async function openUsable(file: Place, limit: number) {
  if (typeof file !== "string")
    return { handle: file, size: usableSize(await file.stat(), limit), close: async () => {} };
  usableSize(await stat(file), limit); // Checked before it is opened, because opening a device may already have an effect.
  const handle = await open(file, READ_ONLY);
  try {
    return { handle, size: usableSize(await handle.stat(), limit), close: () => handle.close() };
  } catch (error) {
    await handle.close();
    throw error;
  }
}

/** Reads a token or PEM file. Throws `SilentFile`, the reason of `signal`, or what `readWhole` throws. */
export function readSecretFile(file: string, signal?: AbortSignal): Promise<string> {
  return inLine(file, SECRET_MS, signal, () => readWhole(file, "latin1", MAX_SECRET_BYTES));
}

/** The same, but synchronous, for a program that has nothing else to do yet. */
export function readSecretFileSync(file: string): string {
  let descriptor: number | undefined;
  try {
    usableSize(statSync(file), MAX_SECRET_BYTES);
    descriptor = openSync(file, READ_ONLY);
    const bytes = Buffer.alloc(usableSize(fstatSync(descriptor), MAX_SECRET_BYTES));
    return bytes.toString("latin1", 0, readSync(descriptor, bytes));
  } finally {
    if (descriptor !== undefined) closeSync(descriptor);
  }
}

/** One queue for each folder, because whole file systems hang, not single files. */
const lines = new Map<string, Line>();
/** Node has four threads for files and DNS names. One is left for the map file, whatever hangs. */
const threads = new Line(3);

/**
 * Work on the files of one folder, except the map, runs one after the other here. So a file system that hangs blocks only one
 * thread for each of its folders. Callers that wait get an error after `ms`. Longer work calls `again` after each step.
 */
export function inLine<T>(
  file: string,
  ms: number,
  signal: AbortSignal | undefined,
  work: (again: () => void) => Promise<T>,
): Promise<T> {
  const folder = path.dirname(file);
  const line = lines.get(folder) ?? new Line(1);
  lines.set(folder, line);
  const late = new SilentFile(`its file system has not answered within ${ms / 1_000} s`);
  return within(ms, signal, late, (signal, again) => {
    const done = line.join(signal, () =>
      threads.join(signal, async () => {
        signal.throwIfAborted();
        return work(again);
      }),
    );
    return new Promise((resolve, reject) => {
      signal.addEventListener("abort", () => reject(signal.reason), { once: true });
      done.then(resolve, reject);
    });
  });
}

/** Files in /proc report a size of 0, so they count as empty. */
function usableSize(found: Stats, limit: number): number {
  if (!found.isFile()) {
    const kinds = { isDirectory: "a folder", isFIFO: "a pipe", isSocket: "a socket" } as const;
    const [, kind = "a device"] =
      Object.entries(kinds).find(([is]) => found[is as keyof typeof kinds]()) ?? [];
    throw new UnusableFile(`it is ${kind}, not a file`);
  }
  if (found.size <= limit) return found.size;
  throw new UnusableFile(`it has ${megabytes(found.size)}, more than the ${megabytes(limit)} that are read`);
}

const megabytes = (bytes: number) => `${Math.ceil(bytes / 1024 / 1024)} MiB`;

/**
 * `36 35 98:0 /maps/nodes.map /var/lib/sasori/nodes.map rw ...`: a file that is mounted by itself. A program that replaces it
 * outside makes another file, and the mount still shows the old one.
 */
export function isMountPoint(file: string): boolean {
  try {
    const place = file.replaceAll(" ", "\\040");
    return readFileSync("/proc/self/mountinfo", "utf8")
      .split("\n")
      .some((line) => line.split(" ")[4] === place);
  } catch {
    return false; // Not on Linux.
  }
}
