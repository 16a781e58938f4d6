// The map file as a target. HAProxy loads it when it starts, and for sasori it is the last good map.
// Promises: the file is always whole (see atomic-file.ts), sorted, and not touched when nothing changed.
// Format, from HAProxy: "#" in column 1 is a comment; the key ends at the first blank; the rest is the value.
// The last line has the time of PuppetDB's newest submission in the file, and a checksum. A sasori that starts later takes no
// step back before that time. The first line says that sasori wrote the file. A file of somebody else has neither, until
// sasori may replace it.

import { stat } from "node:fs/promises";
import { crc32 } from "node:zlib";
import { Patience, Shared } from "../deadline.js";
import { reason, SasoriError, systemCode } from "../errors.js";
import { type Certname, isMaster, type Master, type NodeMap } from "../node-map.js";
import { eachInPieces, inPieces, sortInPieces } from "../pieces.js";
import { countOf, type Plan } from "../plan.js";
import { lowerBound } from "../sorted.js";
import { readWhole, UnusableFile } from "../whole-file.js";
import { removeLeftovers, replaceFile } from "./atomic-file.js";
import { Routes } from "./routes.js";
import type { Applied, Contents, Fingerprint, Sighting, Target } from "./target.js";

export const HEADER =
  "# node (certname) and its Puppet master (HAProxy server). Written by sasori: edits are replaced.\n";

/** Bytes of one write: few writes for a big map, little memory. */
const CHUNK_BYTES = 256 * 1024;

/** Entries of a page when it is made. A page that changes is searched line by line, which takes some microseconds. */
const PAGE_ENTRIES = 100;
/** Free bytes in a new page, for nodes that are added or get a master with a longer name. */
const PAGE_ROOM = 256;
/** Upper bound of a page. A new one is always smaller: a line has at most 383 bytes. */
const MAX_PAGE_BYTES = 64 * 1024;

export class MapFile implements Target {
  readonly kind = "file";
  readonly name: string;
  readonly #patience = new Patience();
  // Shared by all who ask at the same time: the text of a big map is large, and a file system that hangs takes threads.
  readonly #looks = new Shared(() => this.#fingerprint());
  readonly #texts = new Shared(async () => `\n${(await this.#text()) ?? ""}\n`);
  /** The text of the last write, and the file's fingerprint after it. */
  #written: { text: MapText; content: string } | undefined;
  /** Lines that stay in a file that somebody else made; undefined if the file is our own. */
  #others: string[] | undefined;
  #isAdopted = false;
  readonly #seed: number;

  /** `rules`: the settings that turn submissions into routes. If they have changed, the times in the file do not count. */
  constructor(file: string, rules = "") {
    this.name = file;
    this.#seed = crc32(rules);
  }

  /** From now on the file is sasori's own, even if somebody else made it. */
  adopt(): void {
    this.#isAdopted = true;
    this.#others = undefined;
  }

  async look(signal?: AbortSignal): Promise<Sighting> {
    const fingerprint = await this.#patience.wait(signal, unread, () => this.#fingerprint());
    return { fingerprint, servers: [], version: "" };
  }

  /** A file that does not exist is an empty map: HAProxy and sasori may start in any order. */
  read(signal?: AbortSignal, desired?: NodeMap): Promise<Contents> {
    return this.#patience.wait(signal, unread, () => this.#read(desired));
  }

  async #read(desired: NodeMap | undefined): Promise<Contents> {
    const fingerprint = await this.#fingerprint();
    const found = new Routes(desired);
    const text = await this.#text();
    await inPieces(
      eachInPieces(linesOf(text ?? ""), (line) => {
        const entry = parseLine(line);
        if (entry !== undefined) found.add(entry.key, entry.value);
      }),
    );
    const { all: routes, capitals, strays } = found.end();
    const isOurs = text?.startsWith(HEADER) === true;
    const isEmpty = routes.size + strays.length === 0;
    if (!isOurs && !isEmpty && !this.#isAdopted) this.#others = [...strays, ...linesOfOthers(routes)];
    // HAProxy does not start without the file, even if it would be empty.
    const rebuild = text === undefined || strays.length + capitals.size > 0 || !(isOurs || isEmpty);
    return {
      fingerprint,
      routes,
      rebuild,
      capitals,
      strays,
      origin: isOurs ? "sasori" : isEmpty ? "nobody" : "others",
      writtenUntil: this.#written === undefined ? await inPieces(this.#writtenUntil(text ?? "")) : 0,
    };
  }

  *#writtenUntil(text: string): Generator<void, number> {
    const [, until = "", found] = TRAILER.exec(text.slice(-TRAILER_CHARACTERS)) ?? [];
    if (found === undefined) return 0;
    let sum = this.#seed;
    const end = text.lastIndexOf("#");
    for (let from = 0; from < end; from += CHUNK_BYTES) {
      sum = crc32(Buffer.from(text.slice(from, Math.min(from + CHUNK_BYTES, end)), "latin1"), sum);
      yield;
    }
    return sumOf(sum, until) === found ? Date.parse(until) || 0 : 0;
  }

  async #text(): Promise<string | undefined> {
    try {
      return await readWhole(this.name, "latin1");
    } catch (error) {
      if (systemCode(error) === "ENOENT") return undefined;
      throw new SasoriError("FILE_READ", `cannot read the map file: ${reason(error)}; ${remedyFor(error)}`, {
        cause: error,
      });
    }
  }

  /**
   * Where a certname leads in the file, or undefined. `known` is an earlier answer, with the file's fingerprint then. If the
   * file has not changed since, it is not read again. Throws `FILE_READ`.
   */
  async lookUp(
    certname: Certname,
    known?: { content: string; master: Master | undefined },
  ): Promise<string | undefined> {
    if (known !== undefined && (await this.#looks.get()).content === known.content) return known.master;
    const text = await this.#texts.get();
    const start = text.indexOf(`\n${certname} `) + 1;
    if (start === 0) return undefined;
    return parseLine(text.slice(start, text.indexOf("\n", start)))?.value;
  }

  removeLeftovers(): Promise<void> {
    return removeLeftovers(this.name);
  }

  /** Nobody else writes to the file. */
  replaces(): boolean {
    return false;
  }

  apply(plan: Plan, desired: NodeMap, seen: Fingerprint, signal?: AbortSignal): Promise<Applied> {
    return this.#patience.wait(signal, unwritten, async () => {
      if (plan.kind === "changes") await this.#replace(plan, desired, seen.content);
      return { method: "file", fingerprint: await this.#fingerprint(), disturbed: false };
    });
  }

  async #replace(plan: Plan, desired: NodeMap, content: string): Promise<void> {
    const written = this.#written?.content === content ? this.#written.text : undefined;
    this.#written = undefined;
    const isSmall = countOf(plan) * 10 < desired.size;
    const isUpdated = isSmall && written !== undefined && (await inPieces(written.update(plan, desired)));
    const next = isUpdated ? written : await MapText.of(desired);
    await replaceFile(this.name, this.#chunks(next, desired));
    this.#written = { text: next, content: (await this.#fingerprint()).content };
  }

  *#chunks(text: MapText, desired: NodeMap): Generator<Buffer> {
    if (this.#others !== undefined) {
      yield* text.chunks("");
      const lines = this.#others.filter((line) => desired.get(line.split(" ")[0] as Certname) === undefined);
      yield Buffer.from(lines.map((line) => `${line}\n`).join(""), "latin1");
      return;
    }
    let sum = this.#seed;
    for (const chunk of text.chunks(HEADER)) {
      sum = crc32(chunk, sum);
      yield chunk;
    }
    const until = new Date(desired.newestAt).toISOString();
    yield Buffer.from(`# PuppetDB's word until ${until}, checksum ${sumOf(sum, until)}\n`, "latin1");
  }

  async #fingerprint(): Promise<Fingerprint> {
    const found = await stat(this.name, { bigint: true }).catch(() => undefined);
    const content = found === undefined ? "missing" : `${found.ino}:${found.size}:${found.mtimeNs}`;
    return { process: "file", content };
  }
}

const unread = (why: string) =>
  new SasoriError("FILE_READ", `cannot read the map file: its file system does not answer (${why})`);
const unwritten = (why: string) =>
  new SasoriError("FILE_WRITE", `cannot write the map file: its file system does not answer (${why})`);

function remedyFor(error: unknown): string {
  if (error instanceof UnusableFile) return "remove it: sasori writes the file again";
  if (systemCode(error) === "ELOOP")
    return "it is a link that leads back to itself; remove it: sasori writes the file again";
  return "let sasori's user or group read it";
}

/** `# PuppetDB's word until 2026-11-30T06:25:02.123Z, checksum 1a2b3c4d` */
const TRAILER = /\n# PuppetDB's word until ([0-9TZ:.-]{24}), checksum ([0-9a-f]{8})\n$/;
const TRAILER_CHARACTERS = 100;

const sumOf = (sum: number, until: string) => crc32(until, sum).toString(16).padStart(8, "0");

/** Entries whose value cannot be one of sasori's. */
function* linesOfOthers(routes: ReadonlyMap<Certname, string>): Generator<string> {
  for (const [certname, value] of routes) if (!isMaster(value)) yield `${certname} ${value}`;
}

/** One at a time: a list of a million lines takes 100 MB. */
function* linesOf(text: string): Generator<string> {
  let from = 0;
  for (let end = text.indexOf("\n"); end >= 0; end = text.indexOf("\n", from)) {
    yield text.slice(from, end);
    from = end + 1;
  }
  yield text.slice(from);
}

function parseLine(line: string): { key: string; value: string } | undefined {
  if (line.startsWith("#")) return undefined;
  const [, key, value = ""] = /^[ \t]*([^ \t\r]+)(?:[ \t]+(.*?))?[ \t\r]*$/.exec(line) ?? [];
  return key === undefined ? undefined : { key, value };
}

/** Some neighbouring lines of the file: the first `length` bytes of a buffer. */
interface Page {
  /** The page's first certname when the page was made. The first page also holds names that sort before it. */
  from: string;
  bytes: Buffer;
  length: number;
}

/**
 * The file's text, sorted by certname, so that `diff` can compare two versions of it. It is kept in pages, because nodes move
 * all the time: changing 1,000 of a million lines takes 5 ms of processor time, making the whole text 0.7 s. Pages are bytes,
 * because bytes are written as they are (30 ms for a million lines instead of 60). They are changed in place: with new pages
 * for each change, V8 collected all of its memory in every fourth pass, which took 0.3 s.
 */
export class MapText {
  readonly #pages: Page[] = [];

  static of(map: NodeMap): Promise<MapText> {
    return inPieces(MapText.#inPieces(map));
  }

  static *#inPieces(map: NodeMap): Generator<void, MapText> {
    const text = new MapText();
    // Sorts the assignments and not only the names: looking up each name again would take longer.
    const sorted = yield* sortInPieces(map.assignments(), (a, b) => (a.certname < b.certname ? -1 : 1));
    for (let from = 0; from < sorted.length; from += PAGE_ENTRIES) {
      const entries = sorted.slice(from, from + PAGE_ENTRIES);
      const lines = entries.map(({ certname, master }) => lineOf(certname, master)).join("");
      text.#pages.push({ from: entries[0]?.certname ?? "", ...newPage(lines) });
      yield;
    }
    return text;
  }

  /** Writes the current lines of these nodes into the pages. False if the whole text must be made again. */
  *update({ add, set, del }: Pick<Plan, "add" | "set" | "del">, map: NodeMap): Generator<void, boolean> {
    let isCrowded = this.#pages.length === 0;
    for (const changes of [add, set, del])
      yield* eachInPieces(changes, ({ certname }) => {
        const after = lowerBound(this.#pages.length, (at) => (this.#pages[at]?.from ?? "") > certname);
        const page = this.#pages[Math.max(0, after - 1)];
        if (page === undefined) return;
        putLine(page, certname, map.get(certname)?.master);
        isCrowded ||= page.length > MAX_PAGE_BYTES;
      });
    return !isCrowded;
  }

  /**
   * The text in pieces, all in one buffer: each is valid until the next one is asked for. Separate buffers of 29 MB in all
   * made V8 collect a large heap.
   */
  *chunks(header: string): Generator<Buffer> {
    const chunk = Buffer.allocUnsafe(CHUNK_BYTES + MAX_PAGE_BYTES);
    let end = chunk.write(header, "latin1");
    for (const { bytes, length } of this.#pages) {
      end += bytes.copy(chunk, end, 0, length);
      if (end < CHUNK_BYTES) continue;
      yield chunk.subarray(0, end);
      end = 0;
    }
    yield chunk.subarray(0, end);
  }
}

const lineOf = (certname: Certname, master: Master | undefined) =>
  master === undefined ? "" : `${certname} ${master}\n`;

function newPage(text: string): { bytes: Buffer; length: number } {
  // Not from Node's buffer pool, where one page that lives on would keep the memory of its neighbours.
  const bytes = Buffer.allocUnsafeSlow(text.length + PAGE_ROOM);
  return { bytes, length: bytes.write(text, "latin1") };
}

/** Adds, changes or (no master) removes the line of this node. */
function putLine(page: Page, certname: Certname, master: Master | undefined): void {
  const text = page.bytes.toString("latin1", 0, page.length);
  const { start, end } = findLine(text, certname);
  const line = lineOf(certname, master);
  const length = text.length - (end - start) + line.length;
  if (length > page.bytes.length) {
    Object.assign(page, newPage(text.slice(0, start) + line + text.slice(end)));
    return;
  }
  page.bytes.copyWithin(start + line.length, end, page.length);
  page.bytes.write(line, start, "latin1");
  page.length = length;
}

/** Where the line of this node is, or (an empty range) where it belongs. */
function findLine(lines: string, certname: Certname): { start: number; end: number } {
  let start = 0;
  while (start < lines.length) {
    const end = lines.indexOf("\n", start) + 1;
    const name = lines.slice(start, lines.indexOf(" ", start));
    if (name >= certname) return { start, end: name === certname ? end : start };
    start = end;
  }
  return { start, end: start };
}
