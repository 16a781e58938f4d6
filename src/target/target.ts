// What holds the map: the contract that the map file and every HAProxy fulfil.

import type { Assignment, Certname, Master, NodeMap } from "../node-map.js";
import type { Plan } from "../plan.js";

/**
 * What tells cheaply whether a target is as it was left. `process` changes when another process holds the
 * map; `content` changes when its entries do, but may miss a value that somebody else replaced.
 */
export interface Fingerprint {
  process: string;
  content: string;
}

export const isSame = (a: Fingerprint, b: Fingerprint) => a.process === b.process && a.content === b.content;

/** What a target holds. */
export interface Contents {
  fingerprint: Fingerprint;
  routes: ReadonlyMap<Certname, string>;
  /**
   * It must be replaced whole: it holds lines that no command may name (duplicates, illegal keys), or a version that
   * somebody left unfinished, or the file is missing.
   */
  rebuild: boolean;
  /** Nodes whose key has capitals, and entries that no command may name, as they are. */
  capitals?: ReadonlySet<Certname>;
  strays?: readonly string[];
  /** Of the file: who wrote it. A missing or empty one has nobody's entries. */
  origin?: "sasori" | "others" | "nobody";
  /** Of a file that sasori wrote: the time of PuppetDB's newest observation that it rests on (ms). */
  writtenUntil?: number;
}

/**
 * A master as an HAProxy has it: a server of the masters' backend, or a backend that is a pool of servers. `host` is the
 * name or address in HAProxy's configuration; of a pool it is that of one server that serves, if any does.
 */
export interface Server {
  name: Master;
  host: string;
  /** `host:port`. */
  address: string;
  /**
   * HAProxy serves it; `drained`: only those requests that name it, as the map does for its nodes. A pool is up while any
   * of its servers is, and drained when those that serve are all drained.
   */
  state: "up" | "drained" | "down";
  /** It is not `down`. */
  up: boolean;
  /** It has this weight beside a healer (haproxy.cfg), where masters must have 0: HAProxy sends it other masters' nodes. */
  strayWeight?: number;
  /** It was added at run time and never got out of the maintenance that HAProxy adds servers in. */
  halfAdded?: true;
  /** The servers of a pool. */
  members?: Member[];
}

export type Member = Pick<Server, "name" | "host" | "address" | "state">;

/** What a look at a target tells without reading its map. The map file has no servers. */
export interface Sighting {
  fingerprint: Fingerprint;
  servers: readonly Server[];
  version: string;
}

export interface Applied {
  /** How it was done; undefined when nothing was, because the target was not as the plan had seen it. */
  method: "file" | "incremental" | "swap" | undefined;
  fingerprint: Fingerprint;
  /** The target was changed by somebody else meanwhile, or is another process now: read it again. */
  disturbed: boolean;
}

/** Something that holds the map: the map file, or one HAProxy. Every method throws SasoriError. */
export interface Target {
  readonly name: string;
  readonly kind: "file" | "haproxy";
  look(signal: AbortSignal): Promise<Sighting>;
  /** Names that `desired` has as well are not held twice: a dump's names keep all of its text in memory. */
  read(signal: AbortSignal, desired?: NodeMap): Promise<Contents>;
  /** Whether these nodes lead there right now: one lookup each, not a dump. A file is read whole or not at all. */
  holds?(routes: readonly Assignment[], signal: AbortSignal): Promise<boolean>;
  /** Whether a push of so many changes would replace what it holds whole, whatever others wrote to it meanwhile. */
  replaces(changes: number, desired: NodeMap): boolean;
  /**
   * Afterwards the target holds `desired`, in one way or another, or the call has failed. Nothing is done where the target
   * is not as it was `seen`, but for entries that came meanwhile if `insist`.
   */
  apply(
    plan: Plan,
    desired: NodeMap,
    seen: Fingerprint,
    signal: AbortSignal,
    insist?: boolean,
  ): Promise<Applied>;
}
