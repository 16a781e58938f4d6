// Replaces a file so that a reader, or a crash at any moment, finds the old content or the new one, whole.
// Temp file in the same folder, fsync, rename, fsync of the folder; owner and mode of the old file are kept.
// This is our own code and not a library, because each way in which it fails needs its own remedy.

import { randomBytes } from "node:crypto";
import type { BigIntStats } from "node:fs";
import { type FileHandle, open, readdir, realpath, rename, stat, unlink } from "node:fs/promises";
import path from "node:path";
import { reason, SasoriError, systemCode } from "../errors.js";
import { inLine } from "../whole-file.js";

/** A new file is readable by all (HAProxy runs as another user) unless `mode` says otherwise. */
const NEW_FILE_MODE = 0o644;

type Chunks = Iterable<string | Buffer> | AsyncIterable<string | Buffer>;

const LEFTOVER_AGE_MS = 60 * 60_000;
const LEFTOVERS_MS = 5_000;

/**
 * Returns what the new file is, as it was written. Undefined if `isStill`, which is asked last before the rename, says that the
 * old file is another one by now. Throws `FILE_FULL`, `FILE_READ_ONLY`, `FILE_MOUNTED` or `FILE_WRITE`. In both cases the old
 * file is still in place and the temp file is gone.
 */
export async function replaceFile(
  name: string,
  chunks: Chunks,
  mode = NEW_FILE_MODE,
  isStill = async () => true,
): Promise<BigIntStats | undefined> {
  // A link stays a link: what it points to is replaced.
  const file = await realpath(name).catch(() => name);
  const folder = path.dirname(file);
  const temporary = path.join(folder, `.${path.basename(file)}.${randomBytes(6).toString("hex")}.tmp`);
  let written: BigIntStats;
  try {
    const old = await stat(file).catch(() => undefined);
    written = await writeWhole(temporary, chunks, old ?? { mode });
    if (!(await isStill())) {
      await unlink(temporary);
      return undefined;
    }
    await rename(temporary, file);
  } catch (error) {
    await unlink(temporary).catch(() => undefined);
    throw writeError(file, error);
  }
  await syncFolder(folder);
  return written;
}

/**
 * Removes temp files of writers that were killed. One that is younger than an hour may still be written. Where the file
 * system does not answer they stay: nothing waits for it.
 */
export function removeLeftovers(name: string): Promise<void> {
  return inLine(name, LEFTOVERS_MS, undefined, () => removeThem(name)).catch(() => undefined);
}

async function removeThem(name: string): Promise<void> {
  const file = await realpath(name).catch(() => name);
  const folder = path.dirname(file);
  const left = (await readdir(folder).catch(() => [])).filter(
    (entry) => entry.startsWith(`.${path.basename(file)}.`) && entry.endsWith(".tmp"),
  );
  for (const entry of left) {
    const temporary = path.join(folder, entry);
    const { mtimeMs } = await stat(temporary).catch(() => ({ mtimeMs: Number.POSITIVE_INFINITY }));
    if (mtimeMs < Date.now() - LEFTOVER_AGE_MS) await unlink(temporary).catch(() => undefined);
  }
}

async function writeWhole(
  file: string,
  chunks: Chunks,
  old: { mode: number; uid?: number; gid?: number },
): Promise<BigIntStats> {
  const handle = await open(file, "wx", old.mode & 0o777);
  try {
    await keepOwner(handle, old);
    await handle.chmod(old.mode & 0o777); // The umask does not decide what HAProxy may read.
    for await (const chunk of chunks) await handle.writeFile(chunk);
    await handle.sync();
    return await handle.stat({ bigint: true });
  } finally {
    await handle.close();
  }
}

async function keepOwner(handle: FileHandle, old: { uid?: number; gid?: number }): Promise<void> {
  if (old.uid === undefined || old.gid === undefined) return;
  const now = await handle.stat();
  if (now.uid === old.uid && now.gid === old.gid) return;
  // Only root may give a file away; an ordinary user may still hand it to one of its own groups.
  await handle
    .chown(old.uid, old.gid)
    .catch(() => handle.chown(now.uid, old.gid ?? now.gid).catch(() => undefined));
}

/**
 * Without this the rename itself may be lost when the machine stops. Some file systems do not offer it, and the folder may
 * be one that cannot be listed; the new file is in place all the same.
 */
async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, "r").catch(() => undefined);
  await handle?.sync().catch(() => undefined);
  await handle?.close().catch(() => undefined);
}

/** What `replaceFile` throws: the code and the remedy that belong to the reason. */
export function writeError(file: string, error: unknown): SasoriError {
  const folder = path.dirname(file);
  const full = `the disk or quota is full, or its inodes are used up: free some space in ${folder}`;
  const readOnly = `the folder ${folder} is not writable for sasori: give its user or group write permission (the file is replaced by a rename, so the folder counts)`;
  const known: Record<string, ["FILE_FULL" | "FILE_READ_ONLY" | "FILE_MOUNTED" | "FILE_WRITE", string]> = {
    ENOSPC: ["FILE_FULL", full],
    EDQUOT: ["FILE_FULL", full],
    EROFS: ["FILE_READ_ONLY", `the file system of ${folder} is mounted read-only: mount it for writing`],
    EACCES: ["FILE_READ_ONLY", readOnly],
    EPERM: ["FILE_READ_ONLY", readOnly],
    EBUSY: [
      "FILE_MOUNTED",
      `the file itself is a mount point and cannot be replaced: mount its folder ${folder} instead of the file`,
    ],
    ENOENT: ["FILE_WRITE", `the folder ${folder} does not exist: create it`],
    EISDIR: ["FILE_WRITE", "it is a folder, not a file"],
  };
  const [code, remedy] = known[systemCode(error)] ?? ["FILE_WRITE", reason(error)];
  return new SasoriError(code, `cannot write ${file}: ${remedy}; the old file stays in force`, {
    cause: error,
  });
}
