// The map file as a target: what HAProxy loads when it starts, and sasori's own last good map.
// Promises: the file is always whole (see atomic-file.ts), sorted, and not touched when nothing changed.
// Format, from HAProxy: "#" in column 1 is a comment; the key ends at the first blank; the rest is the value.

import { readFile, stat } from "node:fs/promises";
import { reason, SasoriError, systemCode } from "../errors.js";
import { type Certname, isCertname, isMaster, type NodeMap } from "../node-map.js";
import type { Plan } from "../plan.js";
import { lowerBound } from "../sorted.js";
import { removeLeftovers, replaceFile } from "./atomic-file.js";
import type { Applied, Contents, Fingerprint, Sighting, Target } from "./target.js";

const HEADER =
  "# node (certname) and its Puppet master (HAProxy server). Written by sasori: edits are replaced.\n";

/** Large enough to make few writes of a big map, small enough to cost no memory. */
const CHUNK_CHARACTERS = 256 * 1024;

/** A page that changes is put together anew: 0.05 ms. */
const PAGE_ENTRIES = 100;
const MAX_PAGE_ENTRIES = 4 * PAGE_ENTRIES;

export class MapFile implements Target {
  readonly kind = "file";
  readonly name: string;
  #lookups: Promise<unknown> = Promise.resolve();
  /** The text as it was written last, and the file's fingerprint then. */
  #written: { text: MapText; content: string } | undefined;

  constructor(file: string) {
    this.name = file;
  }

  async look(): Promise<Sighting> {
    return { fingerprint: await this.#fingerprint(), servers: [], version: "" };
  }

  /** A file that does not exist is an empty map: HAProxy and sasori may start in any order. */
  async read(): Promise<Contents> {
    const fingerprint = await this.#fingerprint();
    const routes = new Map<Certname, string>();
    const text = await this.#text();
    let rebuild = text === undefined; // HAProxy does not start without the file, even if it would be empty.
    for (const line of linesOf(text ?? "")) {
      const entry = parseLine(line);
      if (entry === undefined) continue;
      if (entry === "stray" || routes.has(entry.certname)) rebuild = true;
      else routes.set(entry.certname, entry.master);
    }
    return { fingerprint, routes, rebuild };
  }

  async #text(): Promise<string | undefined> {
    try {
      return await readFile(this.name, "latin1");
    } catch (error) {
      if (systemCode(error) === "ENOENT") return undefined;
      throw new SasoriError(
        "FILE_READ",
        `cannot read the map file: ${reason(error)}; let sasori's user or group read it`,
        { cause: error },
      );
    }
  }

  /** Where a certname leads in the file, or undefined. Throws `FILE_READ`. */
  lookUp(certname: Certname): Promise<string | undefined> {
    // One at a time: the text of a big map is large.
    const found = this.#lookups.then(() => this.#find(certname));
    this.#lookups = found.catch(() => undefined);
    return found;
  }

  async #find(certname: Certname): Promise<string | undefined> {
    const text = `\n${(await this.#text()) ?? ""}\n`;
    const start = text.indexOf(`\n${certname} `) + 1;
    if (start === 0) return undefined;
    const entry = parseLine(text.slice(start, text.indexOf("\n", start)));
    return typeof entry === "object" ? entry.master : undefined;
  }

  removeLeftovers(): Promise<void> {
    return removeLeftovers(this.name);
  }

  /** Nobody else writes to the file. */
  replaces(): boolean {
    return false;
  }

  async apply(plan: Plan, desired: NodeMap, seen: Fingerprint): Promise<Applied> {
    if (plan.kind === "changes") await this.#replace(plan, desired, seen.content);
    return { method: "file", fingerprint: await this.#fingerprint(), disturbed: false };
  }

  async #replace(plan: Plan & { kind: "changes" }, desired: NodeMap, content: string): Promise<void> {
    const { text } = this.#written?.content === content ? { ...this.#written } : {};
    this.#written = undefined;
    const changes = [...plan.add, ...plan.set, ...plan.del];
    const isSmall = changes.length * 10 < desired.size;
    const next = text !== undefined && isSmall && text.update(changes, desired) ? text : new MapText(desired);
    await replaceFile(this.name, next.chunks());
    this.#written = { text: next, content: (await this.#fingerprint()).content };
  }

  async #fingerprint(): Promise<Fingerprint> {
    const found = await stat(this.name, { bigint: true }).catch(() => undefined);
    const content = found === undefined ? "missing" : `${found.ino}:${found.size}:${found.mtimeNs}`;
    return { process: "file", content };
  }
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

function parseLine(line: string): { certname: Certname; master: string } | "stray" | undefined {
  if (line.startsWith("#") || line.trim() === "") return undefined;
  const [, certname = "", master = ""] = /^[ \t]*([^ \t]+)[ \t]+([^ \t]+)[ \t\r]*$/.exec(line) ?? [];
  return isCertname(certname) && isMaster(master) ? { certname, master } : "stray";
}

interface Page {
  /** Sorted. */
  certnames: Certname[];
  text: string;
}

/**
 * The file's text, sorted by certname so that two versions of it can be compared with `diff`. It is kept in pages
 * because agents move all the time: to write a million nodes anew takes 1.8 s of processor time, to change 100 of them
 * 70 ms, which are the writing; with 100,000 nodes 180 and 15 ms.
 */
export class MapText {
  readonly #pages: Page[] = [];

  constructor(map: NodeMap) {
    const sorted = Array.from(map.assignments(), ({ certname }) => certname).sort();
    for (let from = 0; from < sorted.length; from += PAGE_ENTRIES) {
      const certnames = sorted.slice(from, from + PAGE_ENTRIES);
      this.#pages.push({ certnames, text: format(certnames, map) });
    }
  }

  /** Takes over how these nodes stand in the map now. False if it has to be made anew. */
  update(changes: Iterable<{ certname: Certname }>, map: NodeMap): boolean {
    const changed = new Set<Page>();
    for (const { certname } of changes) {
      const index =
        lowerBound(this.#pages.length, (at) => (this.#pages[at]?.certnames[0] ?? "") > certname) - 1;
      const page = this.#pages[Math.max(0, index)];
      if (page === undefined) return false;
      const { certnames } = page;
      const at = lowerBound(certnames.length, (at) => (certnames[at] ?? "") >= certname);
      const isThere = certnames[at] === certname;
      if (map.get(certname) === undefined) certnames.splice(at, isThere ? 1 : 0);
      else if (!isThere) certnames.splice(at, 0, certname);
      // The first name of a page is how it is found.
      if (certnames.length === 0 || certnames.length > MAX_PAGE_ENTRIES) return false;
      changed.add(page);
    }
    for (const page of changed) page.text = format(page.certnames, map);
    return true;
  }

  *chunks(): Generator<string> {
    let chunk = HEADER;
    for (const { text } of this.#pages) {
      chunk += text;
      if (chunk.length < CHUNK_CHARACTERS) continue;
      yield chunk;
      chunk = "";
    }
    if (chunk !== "") yield chunk;
  }
}

const format = (certnames: readonly Certname[], map: NodeMap): string =>
  certnames.map((certname) => `${certname} ${map.get(certname)?.master}\n`).join("");
