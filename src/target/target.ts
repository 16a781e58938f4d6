// A target holds the map. This is the interface of the map file and of each HAProxy.

import type { Assignment, Certname, Master, NodeMap } from "../node-map.js";
import type { Plan } from "../plan.js";

/**
 * Tells cheaply whether a target has changed since sasori's last write. `process` changes if another process holds the map.
 * `content` changes if the number of entries or the version does. It misses a value that somebody else replaced.
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
   * The map must be replaced whole, because it has entries that no command can change (duplicates, illegal keys), or an
   * unfinished version that somebody left, or because the file is missing.
   */
  rebuild: boolean;
  /** `capitals`: nodes whose key has capital letters. `strays`: entries that no command can change, as they are. */
  capitals?: ReadonlySet<Certname>;
  strays?: readonly string[];
  /** For the file: who wrote it. "nobody": it is missing or empty. */
  origin?: "sasori" | "others" | "nobody";
  /** For a file that sasori wrote: the time of PuppetDB's newest observation in it (ms). */
  writtenUntil?: number;
}

/**
 * A master as an HAProxy has it: a server of the masters' backend, or a backend that is a pool of servers. `host` is the
 * name or address in HAProxy's configuration; of a pool it is that of one server that serves, if any does.
 */
export interface Server {
  name: Master;
  host: string;
  /** `host:port`. Empty if HAProxy reaches it by a socket file, whose path it does not tell. */
  address: string;
  /**
   * "up": HAProxy sends it requests. "drained": only those that name it, as the map does for its nodes. A pool is up while any
   * of its servers is up, and drained if all of its servers that serve are drained.
   */
  state: "up" | "drained" | "down";
  /** It is not `down`. */
  up: boolean;
  /**
   * Set if it has a weight other than 0 beside a healer (haproxy.cfg). HAProxy then sends it requests for other masters'
   * nodes.
   */
  strayWeight?: number;
  /** It was added at run time, and is still in maintenance, in which HAProxy adds servers. */
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
  /** How the plan was applied. Undefined if it was not, because the target had changed since the plan was made. */
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
  /**
   * Reads the map. Names that are in `desired` are taken from there, because those of a dump would keep its whole text in
   * memory.
   */
  read(signal: AbortSignal, desired?: NodeMap): Promise<Contents>;
  /** Whether these nodes lead there right now: one lookup each, not a dump. A file is read whole or not at all. */
  holds?(routes: readonly Assignment[], signal: AbortSignal): Promise<boolean>;
  /** Whether a push of so many changes would replace what it holds whole, whatever others wrote to it meanwhile. */
  replaces(changes: number, desired: NodeMap): boolean;
  /**
   * Applies the plan. Afterwards the target holds `desired`, or the call has failed. Nothing is done if the target has changed
   * since it was `seen`. With `insist`, entries that were only added meanwhile are allowed.
   */
  apply(
    plan: Plan,
    desired: NodeMap,
    seen: Fingerprint,
    signal: AbortSignal,
    insist?: boolean,
  ): Promise<Applied>;
}
