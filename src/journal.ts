// The state file: registrations, learned routes, homes, tombstones, and how large the map was, which neither PuppetDB nor
// the map file can give back. Two sasoris may share it: what the other one wrote is read and merged, the newest wins.
// Promises: written atomically and only when something changed; a file that cannot be read
// is set aside, never overwritten, and never keeps sasori from starting; one bad entry costs that entry.

import { existsSync } from "node:fs";
import { rename, stat } from "node:fs/promises";
import { z } from "zod";
import { Patience } from "./deadline.js";
import { reason, SasoriError, systemCode } from "./errors.js";
import type { SizeThen } from "./guard.js";
import {
  type Certname,
  isCertname,
  isMaster,
  LATEST_TIME,
  type Master,
  type Observation,
} from "./node-map.js";
import { removeLeftovers, replaceFile } from "./target/atomic-file.js";
import type { Tombstone } from "./tombstones.js";
import { inLine, readWhole, SilentFile } from "./whole-file.js";

const CertnameShape = z.custom<Certname>((value) => typeof value === "string" && isCertname(value));
const MasterShape = z.custom<Master>((value) => typeof value === "string" && isMaster(value));
const ObservationShape = z.object({
  certname: CertnameShape,
  master: MasterShape,
  at: z.iso.datetime(),
  source: z.enum(["registration", "learned"]),
  reported: z.iso.datetime().optional(),
});
const HomeShape = z.tuple([CertnameShape, MasterShape]);
const TombstoneShape = z.object({ certname: CertnameShape, at: z.iso.datetime(), since: z.iso.datetime() });
const SizeShape = z.object({ at: z.iso.datetime(), size: z.int().positive() });
/** Its entries are looked at one by one: a bad one is no reason to lose the others. */
const StateShape = z.object({
  version: z.literal(1),
  observations: z.array(z.unknown()),
  homes: z.array(z.unknown()),
  // Files of earlier versions have none.
  tombstones: z.array(z.unknown()).default([]),
  ended: z.array(z.unknown()).default([]),
  sizes: z.array(z.unknown()).default([]),
});

export interface State {
  observations: Observation[];
  /** Where displaced nodes were at home. */
  homes: [Certname, Master][];
  tombstones: [Certname, Tombstone][];
  /** Registrations and learned routes that were ended. */
  ended: [Certname, Tombstone][];
  /** What the guard compares with: how large the map was, and when (ms since the epoch). */
  sizes: SizeThen[];
}

const EMPTY: State = { observations: [], homes: [], tombstones: [], ended: [], sizes: [] };

/** The same, as it is kept in memory. */
type Saved = { [Part in keyof State]: Iterable<State[Part][number]> };

/** `unusable`: entries that are left out, each with its place and what is wrong. Throws what `stateProblem` puts into words. */
export function parseState(text: string): State & { unusable: string[] } {
  const { observations, homes, tombstones, ended, sizes } = StateShape.parse(JSON.parse(text));
  const unusable: string[] = [];
  const usable = <Entry>(list: string, entries: unknown[], shape: z.ZodType<Entry>) =>
    entries.flatMap((entry, index) => {
      const { data, error } = shape.safeParse(entry);
      const [issue] = error?.issues ?? [];
      if (issue !== undefined)
        unusable.push([`${list}[${index}]`, ...issue.path].join(".").concat(`: ${issue.message}`));
      return data === undefined ? [] : [data];
    });
  return {
    observations: usable("observations", observations, ObservationShape).map(
      ({ at, reported, ...entry }) => ({
        ...entry,
        at: Date.parse(at),
        ...(reported !== undefined && { reported: Date.parse(reported) }),
      }),
    ),
    homes: usable("homes", homes, HomeShape),
    tombstones: usable("tombstones", tombstones, TombstoneShape).map(fromStone),
    ended: usable("ended", ended, TombstoneShape).map(fromStone),
    sizes: usable("sizes", sizes, SizeShape).map(({ at, size }) => ({ at: Date.parse(at), size })),
    unusable,
  };
}

const fromStone = ({ certname, at, since }: z.output<typeof TombstoneShape>): [Certname, Tombstone] => [
  certname,
  { at: Date.parse(at), since: Date.parse(since) },
];

const toStone = ([certname, { at, since }]: [Certname, Tombstone]) => ({
  certname,
  at: iso(at),
  since: iso(since),
});

/** A few of many, for a message. */
export const unusableEntries = (unusable: readonly string[]): string => {
  const [entries, some] = [unusable.length === 1 ? "entry" : "entries", unusable.slice(0, 3).join("; ")];
  return `${unusable.length} ${entries} (${some}${unusable.length > 3 ? "; …" : ""})`;
};

export const stateProblem = (error: unknown): string =>
  error instanceof z.ZodError ? z.prettifyError(error) : reason(error);

/** Of what is written here, nothing may be refused when it is read again. */
const iso = (at: number): string => new Date(Math.min(at, LATEST_TIME)).toISOString();

/** A million entries are read in less than a second; sasori does not start before. */
const LOAD_MS = 15_000;

/** The file holds names of nodes and masters only; still nobody else needs it. */
const STATE_FILE_MODE = 0o640;

const MISSING = "missing";

export class Journal {
  readonly #file: string;
  readonly #patience = new Patience();
  #written = "";
  /** The file as it was left, see #fingerprint. */
  #left = MISSING;
  #blocked: SasoriError | undefined;
  #aside: { file: string; error: SasoriError } | undefined;

  constructor(file: string) {
    this.#file = file;
  }

  /** What `load` met, for as long as the file that it set aside is still there. */
  get trouble(): SasoriError | undefined {
    if (this.#aside !== undefined && existsSync(this.#aside.file)) return this.#aside.error;
    return this.#blocked;
  }

  /**
   * Throws `STATE_FILE` when the file cannot be read or understood. It is then set aside under another name, or, if
   * even that fails or nothing is to be touched, left alone for good. Entries that cannot be used are left out; `trouble`
   * tells of them, and a copy with them is set aside.
   */
  async load(untouched = false): Promise<State> {
    try {
      const text = await inLine(this.#file, LOAD_MS, undefined, () => readWhole(this.#file, "utf8"));
      const { unusable, ...state } = parseState(text);
      this.#written = text;
      this.#left = await this.#fingerprint();
      if (unusable.length > 0) await this.#keepCopy(unusable, text, untouched);
      return state;
    } catch (error) {
      if (systemCode(error) === "ENOENT") return EMPTY;
      // Where the file system does not answer, it is no use to touch it.
      throw untouched || error instanceof SilentFile ? this.#block(error) : await this.#setAside(error);
    }
  }

  removeLeftovers(): Promise<void> {
    return removeLeftovers(this.#file);
  }

  async #keepCopy(unusable: readonly string[], text: string, untouched: boolean): Promise<void> {
    const what = `${unusableEntries(unusable)} of the state file ${this.#file} cannot be used and are not in force, the others are`;
    try {
      if (untouched) throw new Error("nothing is to be touched");
      const aside = this.#asideName();
      await replaceFile(aside, [text], STATE_FILE_MODE);
      const message = `${what}: a copy with all was set aside as ${aside}`;
      this.#aside = { file: aside, error: new SasoriError("STATE_FILE", message) };
    } catch (error) {
      const remedy = untouched
        ? ""
        : `, and new ones are not kept: no copy can be set aside: ${reason(error)}`;
      this.#blocked = new SasoriError("STATE_FILE", `${what}${remedy}`, { cause: error });
    }
  }

  #asideName(): string {
    return `${this.#file}.broken-${new Date().toISOString().replaceAll(":", "")}`;
  }

  async #setAside(error: unknown): Promise<SasoriError> {
    const what = stateProblem(error);
    const aside = this.#asideName();
    try {
      await rename(this.#file, aside);
    } catch {
      return this.#block(
        error,
        ", nor set it aside",
        ", and new ones are not kept; let sasori's user read and write it",
      );
    }
    const message = `${this.#file} is no usable state file (${what}): it was set aside as ${aside}; registrations and learned routes in it are not in force`;
    this.#aside = { file: aside, error: new SasoriError("STATE_FILE", message, { cause: error }) };
    return this.#aside.error;
  }

  #block(error: unknown, tried = "", remedy = ""): SasoriError {
    const message = `cannot use the state file ${this.#file} (${stateProblem(error)})${tried}: registrations and learned routes in it are not in force${remedy}`;
    this.#blocked = new SasoriError("STATE_FILE", message, { cause: error });
    return this.#blocked;
  }

  /** Throws `FILE_...` as replaceFile does. */
  async save({ observations, homes, tombstones, ended, sizes }: Saved, signal?: AbortSignal): Promise<void> {
    const state = {
      version: 1,
      observations: Array.from(observations, ({ certname, master, at, source, reported }) => ({
        certname,
        master,
        at: iso(at),
        source,
        ...(reported !== undefined && { reported: iso(reported) }),
      })),
      homes: [...homes],
      tombstones: Array.from(tombstones, toStone),
      ended: Array.from(ended, toStone),
      sizes: Array.from(sizes, ({ at, size }) => ({ at: iso(at), size })),
    };
    const text = `${JSON.stringify(state, null, 1)}\n`;
    // How large the map was is worth a file only once something was removed from it.
    const { sizes: _, version: __, ...lists } = state;
    const nothing = Object.values(lists).every(({ length }) => length === 0);
    if (this.#blocked !== undefined) throw this.#blocked;
    if (text === this.#written || (nothing && this.#written === "")) return;
    await this.#patience.wait(signal, this.#silent, async () => {
      await replaceFile(this.#file, [text], STATE_FILE_MODE);
      this.#written = text;
      this.#left = await this.#fingerprint();
    });
  }

  /**
   * What somebody else has put into the file since, or undefined when it is as it was left. What sasori has must be saved
   * again then; of what cannot be understood nothing is taken.
   */
  async readOthers(signal: AbortSignal): Promise<State | undefined> {
    if (this.#blocked !== undefined) return undefined;
    return this.#patience.wait(signal, this.#silent, async () => {
      const found = await this.#fingerprint();
      if (found === this.#left) return undefined;
      this.#left = found;
      this.#written = found === MISSING ? "" : "another's";
      return found === MISSING
        ? EMPTY
        : await readWhole(this.#file, "utf8")
            .then(parseState)
            .catch(() => EMPTY);
    });
  }

  async #fingerprint(): Promise<string> {
    const found = await stat(this.#file, { bigint: true }).catch(() => undefined);
    return found === undefined ? MISSING : `${found.ino}:${found.size}:${found.mtimeNs}`;
  }

  readonly #silent = (why: string) =>
    new SasoriError(
      "FILE_WRITE",
      `cannot write the state file ${this.#file}: its file system does not answer (${why})`,
    );
}
