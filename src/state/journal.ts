// The state file: the rows of rows.ts, one per line. A change is added at the end, so its cost does not grow with the file.
// Now and then the file is rewritten without outdated lines.
// Promises: a file that cannot be read is set aside, never overwritten, and never keeps sasori from starting; a bad line
// costs only that line; a last line that a kill cut off belongs to a change that was not confirmed yet. Two sasoris may
// share the file: each reads and merges what the other one wrote, the newest wins, and what one of them had confirmed is not
// lost when it is killed.

import { type BigIntStats, constants } from "node:fs";
import { type FileHandle, open, rename, stat } from "node:fs/promises";
import { crc32 } from "node:zlib";
import { z } from "zod";
import { counted, number } from "../counts.js";
import { Patience } from "../deadline.js";
import { reason, SasoriError, systemCode } from "../errors.js";
import { eachInPieces, inPieces, letOthersIn, listOf } from "../pieces.js";
import { removeLeftovers, replaceFile, writeError } from "../target/atomic-file.js";
import { inLine, READ_ONLY, readInPieces, readWhole, SilentFile } from "../whole-file.js";
import { type Change, checksum, GUARD, parseLine, parseRow, type Row, Rows, toLine } from "./rows.js";
import type { State } from "./state.js";

/** The first line. An earlier sasori wrote one JSON object instead. */
const HEADER = "sasori-state 2\n";

/**
 * The file is rewritten when more than half of its lines, and more than this many, are outdated, or if there are too many
 * about what is over.
 */
const MANY_LINES = 1_000;
/** How many lines are written at once. */
const CHUNK = 500;

/** On some file systems a file has another inode each time. */
const MAX_TRIES = 3;

/** A larger file is neither written nor read. This is enough for ten million rows. */
const MAX_BYTES = 2 * 1024 * 1024 * 1024;
/** Longer lines are cut here, and then their checksum is wrong. sasori's own longest line has 40 kB. */
const MAX_LINE_BYTES = 64 * 1024;

/** Deadline for each piece of the file. sasori does not start before it has read all of it. */
const LOAD_MS = 15_000;

/** The file has no secrets, only names of nodes and masters. But no other user needs to read it. */
const STATE_FILE_MODE = 0o640;

/** O_NONBLOCK, because opening a pipe would otherwise wait for its other end. */
const APPEND = constants.O_WRONLY | constants.O_APPEND | constants.O_NONBLOCK | constants.O_NOCTTY;

const MISSING = "missing";

export interface Found {
  rows: Row[];
  /** Entries that cannot be used: the place of each, and what is wrong with it. */
  unusable: string[];
  /** How many lines it has. */
  lines: number;
  /** The file must be rewritten before a line can be added. */
  isOld: boolean;
  /** Checksum of the whole file. */
  checksum: string;
}

/** Reads the file in pieces, and calls `again` after each. Throws Node's errors, or what `stateProblem` explains. */
export async function readState(file: string | FileHandle, again = () => {}): Promise<Found> {
  const found: Found = { rows: [], unusable: [], lines: 0, isOld: false, checksum: "" };
  let [sum, isBegun, rest] = [0, false, Buffer.alloc(0)];
  for await (const piece of readInPieces(file, MAX_BYTES)) {
    sum = crc32(piece, sum);
    let bytes = Buffer.concat([rest, piece]);
    if (!isBegun) {
      if (bytes.toString("latin1", 0, 1) === "{") return readVersion1(await readWhole(file, "utf8"));
      if (bytes.toString("latin1", 0, HEADER.length) !== HEADER) break;
      [isBegun, bytes] = [true, bytes.subarray(HEADER.length)];
    }
    const end = bytes.lastIndexOf("\n") + 1;
    if (end > 0) takeLines(found, bytes.toString("utf8", 0, end - 1).split("\n"));
    rest = bytes.subarray(end, end + MAX_LINE_BYTES);
    again();
    await letOthersIn();
  }
  if (!isBegun) throw new Error(`its first line is not ${JSON.stringify(HEADER.trim())}`);
  // Half a line: its writer was killed before it could confirm the change.
  return { ...found, isOld: rest.length > 0, checksum: checksum("", sum) };
}

function takeLines(found: Found, lines: readonly string[]): void {
  for (const line of lines) {
    found.lines += 1;
    try {
      found.rows.push(parseLine(line));
    } catch (error) {
      found.unusable.push(`line ${found.lines + 1}: ${stateProblem(error).replaceAll(/\s*\n\s*/g, ", ")}`);
    }
  }
}

const Time = z.iso.datetime().transform((text) => Date.parse(text));
const Stone1 = z.object({ certname: z.string(), at: Time, since: Time });
/** Turns each list of a version 1 file into rows. Entries without a time count as older than all others. */
const LISTS = {
  observations: z
    .looseObject({ certname: z.string(), master: z.string(), at: Time, reported: Time.optional() })
    .transform(({ certname: key, at, ...value }) => ({ kind: "route", key, at, value })),
  homes: z
    .tuple([z.string(), z.string()])
    .transform(([key, master]) => ({ kind: "home", key, at: 0, value: { master } })),
  tombstones: Stone1.transform(({ certname: key, at, since }) => ({
    kind: "removed",
    key,
    at: since,
    value: { at },
  })),
  ended: Stone1.transform(({ certname: key, at, since }) => ({ kind: "ended", key, at, value: { since } })),
};
const SizeShape = z.object({ at: Time, size: z.int().positive() });
const Version1 = z.object({
  version: z.literal(1),
  observations: z.array(z.unknown()),
  homes: z.array(z.unknown()),
  tombstones: z.array(z.unknown()).default([]),
  ended: z.array(z.unknown()).default([]),
  sizes: z.array(z.unknown()).default([]),
});

function readVersion1(text: string): Found {
  const { sizes, ...lists } = Version1.parse(JSON.parse(text));
  const rows: Row[] = [];
  const unusable: string[] = [];
  const attempt = (place: string, make: () => Row) => {
    try {
      rows.push(make());
    } catch (error) {
      const issue = error instanceof z.ZodError ? error.issues[0] : undefined;
      const path = issue?.path.filter((part) => part !== "value" && part !== "key") ?? [];
      unusable.push(`${[place, ...path].join(".")}: ${issue?.message ?? reason(error)}`);
    }
  };
  for (const [list, shape] of Object.entries(LISTS))
    for (const [index, entry] of lists[list as keyof typeof LISTS].entries())
      attempt(`${list}[${index}]`, () => parseRow(shape.parse(entry)));
  const usable = sizes.flatMap((size) => SizeShape.safeParse(size).data ?? []);
  const at = usable.at(-1)?.at;
  if (at !== undefined)
    rows.push(parseRow({ kind: "sizes", key: GUARD, at, value: { forgottenAt: 0, sizes: usable } }));
  return { rows, unusable, lines: 0, isOld: true, checksum: checksum(text) };
}

/** The first few of many, for a message. */
export const unusableEntries = (unusable: readonly string[]): string => {
  const some = unusable.slice(0, 3).join("; ");
  return `${counted(unusable.length, "entry", "entries")} (${some}${unusable.length > 3 ? "; …" : ""})`;
};

export const stateProblem = (error: unknown): string =>
  error instanceof z.ZodError ? z.prettifyError(error) : reason(error);

export class Journal implements State {
  readonly rows = new Rows();
  readonly #file: string;
  readonly #patience = new Patience();
  /** What is not in the file yet. */
  readonly #unwritten = new Rows();
  /** The file must be written as a whole, because it is missing or damaged. */
  #isAnew = true;
  #lines = 0;
  /** The file as it was left, see #fingerprint. */
  #left = MISSING;
  /** The file is never written, because this is a dry run and something is wrong with it. */
  #blocked: SasoriError | undefined;
  /** Why the file, or some of it, is not in force or cannot be kept, until it can. */
  #unread: SasoriError | undefined;
  #aside: { file: string; error: SasoriError } | undefined;
  /** Set if somebody else changed the file and it can no longer be used as a whole: sets it aside before it is rewritten. */
  #keepStrange: ((again: () => void) => Promise<void>) | undefined;
  /** What others have put into the file, and was not passed on yet. */
  readonly #news: Row[] = [];

  constructor(file: string) {
    this.#file = file;
  }

  /**
   * The problem that `load` or `readOthers` found. It goes away when the file that was set aside is removed, or could be read.
   */
  get trouble(): SasoriError | undefined {
    return this.#aside?.error ?? this.#blocked ?? this.#unread;
  }

  /**
   * Reads the file. A file that cannot be read or understood is set aside under another name. If that fails, it is read again
   * later, and not written before. If `untouched`, the file is left alone and never written. Lines that cannot be used are left
   * out, and a copy of the file with them is set aside. `trouble` tells of both.
   */
  async load(untouched = false): Promise<Row[]> {
    try {
      const [left, found] = await inLine(
        this.#file,
        LOAD_MS,
        undefined,
        // The fingerprint is taken before reading, so that lines that somebody adds meanwhile are noticed next time.
        async (again) => [await this.#fingerprint(), await readState(this.#file, again)] as const,
      );
      const { rows, unusable, lines, isOld } = found;
      await inPieces(eachInPieces(rows, (row) => this.rows.take(row)));
      this.#lines = lines;
      this.#isAnew = isOld || unusable.length > 0;
      this.#left = left;
      if (unusable.length > 0) await this.#keepWhatWasFound(found, untouched);
    } catch (error) {
      if (systemCode(error) === "ENOENT") return [];
      if (untouched) this.#blocked = this.#unusable(error);
      // If the file system does not answer, renaming would hang too.
      else if (error instanceof SilentFile) this.#unread = this.#unusable(error);
      else await this.#setAside(error);
    }
    return [...this.rows];
  }

  removeLeftovers(): Promise<void> {
    return removeLeftovers(this.#file);
  }

  /** Nothing to close: the file is open only during a write. */
  async close(): Promise<void> {}

  async #keepWhatWasFound({ unusable, checksum }: Found, untouched: boolean): Promise<void> {
    const what = `${unusableEntries(unusable)} of the state file ${this.#file} cannot be used; the others are in force`;
    if (untouched) {
      this.#blocked = new SasoriError("STATE_FILE", what);
      return;
    }
    const keep = (again: () => void) => this.#keepCopy(checksum, what, again);
    try {
      await inLine(this.#file, LOAD_MS, undefined, keep);
    } catch (error) {
      this.#keepStrange = keep; // Before the next write, for example when the disk has space again.
      const why = `. New entries are not saved, because the file cannot be copied: ${reason(error)}`;
      this.#unread = new SasoriError("STATE_FILE", `${what}${why}`, { cause: error });
    }
  }

  /**
   * Sets a copy aside, because the file must stay where it is until the new one replaces it. Its name has the checksum, so sasori
   * makes only one copy of the same file, however often it starts.
   */
  async #keepCopy(checksum: string, what: string, again: () => void): Promise<void> {
    const aside = this.#asideName(checksum);
    const isKept = await stat(aside).then(isThere, () => false);
    if (!isKept) await replaceFile(aside, piecesOf(this.#file, again), STATE_FILE_MODE);
    const message = `${what}. A copy of the whole file was set aside as ${aside}`;
    this.#unread = undefined;
    this.#aside = { file: aside, error: new SasoriError("STATE_FILE", message) };
  }

  #asideName(sign = new Date().toISOString().replaceAll(":", "")): string {
    return `${this.#file}.broken-${sign}`;
  }

  async #setAside(error: unknown): Promise<void> {
    const what = stateProblem(error);
    const aside = this.#asideName();
    try {
      await rename(this.#file, aside);
    } catch {
      const remedy = ", and new ones are not kept; let sasori's user read and write it";
      this.#unread = this.#unusable(error, ", nor set it aside", remedy);
      return;
    }
    const message = `${this.#file} is not a usable state file (${what}): it was set aside as ${aside}. Its registrations and learned routes are not in force`;
    this.#aside = { file: aside, error: new SasoriError("STATE_FILE", message, { cause: error }) };
  }

  #unusable(error: unknown, tried = "", remedy = ""): SasoriError {
    const message = `cannot use the state file ${this.#file} (${stateProblem(error)})${tried}: registrations and learned routes in it are not in force${remedy}`;
    return new SasoriError("STATE_FILE", message, { cause: error });
  }

  /** Takes changes that happened here. Returns their rows; `write` writes them. */
  async record(changes: readonly Change[]): Promise<Row[]> {
    const now = Date.now();
    return this.#note(changes, (change) => {
      const row = this.rows.toRow(change, now);
      return row !== undefined && this.rows.take(row) ? row : undefined;
    });
  }

  /** Takes rows from elsewhere. Returns those that are new; `write` writes them. */
  async take(rows: Iterable<Row>): Promise<Row[]> {
    return this.#note(rows, (row) => (this.rows.take(row) ? row : undefined));
  }

  /** Notes the rows that `take` returns as not written. */
  async #note<Found>(found: Iterable<Found>, take: (one: Found) => Row | undefined): Promise<Row[]> {
    const news: Row[] = [];
    await inPieces(
      eachInPieces(found, (one) => {
        const row = take(one);
        if (row === undefined) return;
        news.push(row);
        this.#unwritten.take(row);
      }),
    );
    return news;
  }

  /** Takes changes that happened here, and writes them. */
  async save(changes: readonly Change[], signal?: AbortSignal, again?: () => void): Promise<void> {
    await this.record(changes);
    return this.write(signal, again);
  }

  /** Writes what is not in the file yet. Throws `FILE_...` as replaceFile does; what was not written waits for the next time. */
  async write(signal?: AbortSignal, again = () => {}): Promise<void> {
    if (this.#blocked !== undefined) throw this.#blocked;
    const isNothing = this.#unwritten.size === 0 && !this.#isAnew;
    if (isNothing || this.rows.size === 0) return;
    await this.#patience.wait(signal, this.#silent, async () => {
      const batch = await inPieces(listOf(this.#unwritten));
      const isCrowded = this.#lines + batch.length > 2 * this.rows.size + MANY_LINES || this.rows.isCrowded;
      if (this.#isAnew || isCrowded || !(await this.#append(batch, again))) await this.#writeAnew(again);
      await inPieces(eachInPieces(batch, (row) => this.#unwritten.delete(row)));
    });
  }

  /** Adds lines at the end. False if the file must be rewritten instead. */
  async #append(batch: readonly Row[], again: () => void): Promise<boolean> {
    this.#isAnew = true; // Until all is written, there may be half a line.
    let handle: FileHandle | undefined;
    try {
      const before = await this.#fingerprint();
      handle = await open(this.#file, APPEND);
      if (!(await handle.stat()).isFile()) return false;
      let written = 0;
      for (const lines of linesOf(batch)) {
        const bytes = Buffer.from(lines);
        written += bytes.length;
        if (sizeOf(before) + written > MAX_BYTES) return false;
        await handle.writeFile(bytes);
        again();
      }
      await handle.datasync();
      const { ino } = await handle.stat({ bigint: true });
      const after = await this.#fingerprint();
      if (!after.startsWith(`${ino}:`)) return false; // Another one has replaced the file meanwhile.
      const isAlone = sizeOf(after) - sizeOf(before) === written; // Nobody else has added a line meanwhile.
      if (before === this.#left && isAlone) this.#left = after;
      this.#lines += batch.length;
      this.#isAnew = false;
      return true;
    } catch (error) {
      if (systemCode(error) === "ENOENT") return false;
      throw writeError(this.#file, error);
    } finally {
      await handle?.close();
    }
  }

  /**
   * Another sasori may add lines meanwhile, and be killed before it sees that they are gone. Lines that it added before the
   * rename are found in the replaced file. After adding a line, each sasori checks that the file is still in its place.
   */
  async #writeAnew(again: () => void, tries = MAX_TRIES): Promise<void> {
    await this.#readNews(again);
    const read = this.#left;
    const replaced = await open(this.#file, READ_ONLY).catch(() => undefined);
    try {
      this.rows.prune();
      const rows = await inPieces(listOf(this.rows));
      await this.#keepStrange?.(again);
      this.#keepStrange = undefined;
      const isStill = async () => tries === 1 || inodeOf(await this.#fingerprint()) === inodeOf(read);
      const content = contentOf(rows, again);
      const written = await replaceFile(this.#file, content, STATE_FILE_MODE, isStill);
      if (written === undefined) return await this.#writeAnew(again, tries - 1); // Another sasori has just done the same.
      this.#isAnew = false;
      this.#lines = rows.length;
      this.#left = fingerprintOf(written);
      if (replaced !== undefined) await this.#saveLate(replaced, read, again);
    } finally {
      await replaced?.close();
    }
  }

  /** Adds to the new file what another sasori had added to the old one after that was `read`. */
  async #saveLate(replaced: FileHandle, read: string, again: () => void): Promise<void> {
    if (fingerprintOf(await replaced.stat({ bigint: true })) === read) return;
    const late = await this.take((await readState(replaced, again)).rows);
    await inPieces(eachInPieces(late, (row) => this.#news.push(row)));
    if (late.length > 0 && (await this.#append(late, again)))
      await inPieces(eachInPieces(late, (row) => this.#unwritten.delete(row)));
  }

  /** Sets aside a file that cannot be used at all. */
  async #keepUnusable(what: string): Promise<void> {
    const aside = this.#asideName();
    try {
      await rename(this.#file, aside);
    } catch (error) {
      if (systemCode(error) === "ENOENT") return;
      throw writeError(this.#file, error);
    }
    const message = `${what}. That file was set aside as ${aside} and is not in force`;
    this.#unread = undefined;
    this.#aside = { file: aside, error: new SasoriError("STATE_FILE", message) };
  }

  /**
   * Returns the rows that somebody else has put into the file. Rows that the file lacks are written by the next `write`. A file
   * that cannot be understood is set aside by `write` and not here, because somebody may still be writing it, for example from a
   * backup.
   */
  async readOthers(signal: AbortSignal, again?: () => void): Promise<Row[]> {
    if (this.#blocked === undefined)
      await this.#patience.wait(signal, this.#silent, () => this.#readNews(again));
    return this.#news.splice(0);
  }

  /** If no caller waits any more when it is done, the next `readOthers` returns the rows. */
  async #readNews(again?: () => void): Promise<void> {
    const isGone = async (file: string) => !(await stat(file).then(isThere, isElse));
    if (this.#aside !== undefined && (await isGone(this.#aside.file))) this.#aside = undefined;
    if (this.#unread !== undefined && (await isGone(this.#file))) this.#unread = undefined;
    const found = await this.#fingerprint();
    if (found === this.#left) return;
    this.#left = found;
    this.#isAnew = true;
    this.#keepStrange = undefined;
    if (found === MISSING) return;
    try {
      await inPieces(this.#merge(await readState(this.#file, again)));
      this.#unread = undefined;
    } catch (error) {
      if (systemCode(error) === "ENOENT") return;
      if (systemCode(error) !== "") this.#left = MISSING; // The file may be as it was, and readable next time.
      const was = this.#unread === undefined ? "was replaced by a file that is not" : "is not";
      const what = `${this.#file} ${was} a usable state file (${stateProblem(error)})`;
      this.#keepStrange = () => this.#keepUnusable(what);
    }
  }

  *#merge(state: Found): Generator<void> {
    const theirs = new Rows();
    yield* eachInPieces(state.rows, (row) => theirs.take(row));
    yield* eachInPieces(this.rows, (row) => {
      if (theirs.take(row)) this.#unwritten.take(row);
    });
    this.#isAnew = state.isOld || state.unusable.length > 0;
    this.#lines = state.lines;
    if (state.unusable.length > 0) {
      const what = `another program changed the state file ${this.#file}, and ${unusableEntries(state.unusable)} of it cannot be used; the others are in force`;
      this.#keepStrange = (again) => this.#keepCopy(state.checksum, what, again);
    }
    yield* eachInPieces(state.rows, (row) => {
      if (this.rows.take(row)) this.#news.push(row);
    });
  }

  async #fingerprint(): Promise<string> {
    const found = await stat(this.#file, { bigint: true }).catch(() => undefined);
    return found === undefined ? MISSING : fingerprintOf(found);
  }

  readonly #silent = (why: string) =>
    new SasoriError(
      "FILE_WRITE",
      `cannot write the state file ${this.#file}: its file system does not answer (${why})`,
    );
}

const fingerprintOf = ({ ino, size, mtimeNs }: BigIntStats): string => `${ino}:${size}:${mtimeNs}`;
const inodeOf = (fingerprint: string): string | undefined => fingerprint.split(":")[0];
const sizeOf = (fingerprint: string): number => Number(fingerprint.split(":")[1]);

const isThere = () => true;
/** A file counts as gone only if that is certain. */
const isElse = (error: unknown) => systemCode(error) !== "ENOENT";

async function* piecesOf(file: string, again: () => void): AsyncGenerator<Buffer> {
  for await (const piece of readInPieces(file, MAX_BYTES)) {
    again();
    yield piece;
  }
}

/** Throws if the file would be larger than what is read. */
function* contentOf(rows: readonly Row[], again: () => void): Generator<string> {
  yield HEADER;
  let bytes = HEADER.length;
  for (const lines of linesOf(rows)) {
    bytes += Buffer.byteLength(lines);
    if (bytes > MAX_BYTES)
      throw new Error(`its ${number(rows.length)} entries would take more than the 2 GiB that sasori reads`);
    again();
    yield lines;
  }
}

function* linesOf(rows: readonly Row[]): Generator<string> {
  for (let from = 0; from < rows.length; from += CHUNK)
    yield rows
      .slice(from, from + CHUNK)
      .map(toLine)
      .join("");
}
