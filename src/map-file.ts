// The map file as a target: what HAProxy loads when it starts, and sasori's own last good map.
// Promises: the file is always whole (see atomic-file.ts), sorted, and not touched when nothing changed.
// Format, from HAProxy: "#" in column 1 is a comment; the key ends at the first blank; the rest is the value.

import { readFile, stat } from "node:fs/promises";
import { removeLeftovers, replaceFile } from "./atomic-file.js";
import { reason, SasoriError, systemCode } from "./errors.js";
import { type Certname, isCertname, isMaster, type NodeMap } from "./node-map.js";
import type { Plan } from "./plan.js";
import type { Applied, Contents, Fingerprint, Sighting, Target } from "./target.js";

const HEADER =
  "# node (certname) and its Puppet master (HAProxy server). Written by sasori: edits are replaced.\n";

/** Large enough to make few writes of a big map, small enough to cost no memory. */
const CHUNK_CHARACTERS = 256 * 1024;

export class MapFile implements Target {
  readonly kind = "file";
  readonly name: string;
  #lookups: Promise<unknown> = Promise.resolve();

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
    for (const line of (text ?? "").split("\n")) {
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

  async apply(plan: Plan, desired: NodeMap): Promise<Applied> {
    if (plan.kind === "changes") await replaceFile(this.name, formatMap(desired));
    return { method: "file", fingerprint: await this.#fingerprint(), disturbed: false };
  }

  async #fingerprint(): Promise<Fingerprint> {
    const found = await stat(this.name, { bigint: true }).catch(() => undefined);
    const content = found === undefined ? "missing" : `${found.ino}:${found.size}:${found.mtimeNs}`;
    return { process: "file", content };
  }
}

function parseLine(line: string): { certname: Certname; master: string } | "stray" | undefined {
  if (line.startsWith("#") || line.trim() === "") return undefined;
  const [, certname = "", master = ""] = /^[ \t]*([^ \t]+)[ \t]+([^ \t]+)[ \t\r]*$/.exec(line) ?? [];
  return isCertname(certname) && isMaster(master) ? { certname, master } : "stray";
}

/** The file's text in chunks, sorted by certname so that two versions of it can be compared with `diff`. */
export function* formatMap(map: NodeMap): Generator<string> {
  const certnames = Array.from(map.assignments(), ({ certname }) => certname).sort();
  let chunk = HEADER;
  for (const certname of certnames) {
    chunk += `${certname} ${map.get(certname)?.master}\n`;
    if (chunk.length < CHUNK_CHARACTERS) continue;
    yield chunk;
    chunk = "";
  }
  if (chunk !== "") yield chunk;
}
