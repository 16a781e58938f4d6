// What has to change, as values: the plan of one target (desired minus actual), the verdict of the guard on
// removals, and the three-way comparison that tells a route learned by HAProxy from one that is stale.
// Pure: no I/O, no clock. The interface of a target stands here too, because a plan is what it applies.

import { createHash } from "node:crypto";
import type { RemovalLimit } from "./config.js";
import {
  type Before,
  type Certname,
  isMaster,
  type Master,
  type NodeMap,
  type Observation,
} from "./node-map.js";

/** One entry that changes. No `from`: it is added. No `to`: it is removed. */
export interface Change {
  certname: Certname;
  from?: string;
  to?: Master;
}

export type Plan =
  | { kind: "unchanged" }
  | {
      kind: "changes";
      add: Change[];
      set: Change[];
      del: Change[];
      /** The target must be replaced whole, see Contents. */
      rebuild: boolean;
    };

export const UNCHANGED: Plan = { kind: "unchanged" };

/**
 * What tells cheaply whether a target is as it was left. `process` changes when another process holds the
 * map; `content` changes when its entries do, but may miss a value that somebody else replaced.
 */
export interface Fingerprint {
  process: string;
  content: string;
}

/** What a target holds. */
export interface Contents {
  fingerprint: Fingerprint;
  routes: ReadonlyMap<Certname, string>;
  /** It also holds lines that no command may name (duplicates, illegal keys), or its file is missing. */
  rebuild: boolean;
}

/** A server of the masters' backend. `host` is the name or address in HAProxy's configuration. */
export interface Server {
  name: Master;
  host: string;
  /** `host:port`. */
  address: string;
  up: boolean;
}

/** What a look at a target tells without reading its map. The map file has no servers. */
export interface Sighting {
  fingerprint: Fingerprint;
  servers: readonly Server[];
  version: string;
}

export interface Applied {
  /** How it was done: `file`, `incremental` or `swap`. */
  method: "file" | "incremental" | "swap";
  fingerprint: Fingerprint;
  /** The target was changed by somebody else meanwhile, or is another process now: read it again. */
  disturbed: boolean;
}

/** Something that holds the map: the map file, or one HAProxy. Every method throws SasoriError. */
export interface Target {
  readonly name: string;
  readonly kind: "file" | "haproxy";
  look(signal: AbortSignal): Promise<Sighting>;
  read(signal: AbortSignal): Promise<Contents>;
  /** Afterwards the target holds `desired`, in one way or another, or the call has failed. */
  apply(plan: Plan, desired: NodeMap, seen: Fingerprint, signal: AbortSignal): Promise<Applied>;
}

/** Compares everything: for a target whose contents were just read. */
export function planFromContents(desired: NodeMap, actual: Contents): Plan {
  const add: Change[] = [];
  const set: Change[] = [];
  const del: Change[] = [];
  for (const { certname, master, source } of desired.assignments()) {
    const from = actual.routes.get(certname);
    if (from === undefined) add.push({ certname, to: master });
    // What was only inherited from one target never overrules what another one holds.
    else if (from !== master && source !== "inherited") set.push({ certname, from, to: master });
  }
  // As many entries as the two have in common means that the target has nothing else.
  if (actual.routes.size > desired.size - add.length) {
    for (const [certname, from] of actual.routes) {
      if (desired.get(certname) === undefined) del.push({ certname, from });
    }
  }
  return toPlan(add, set, del, actual.rebuild);
}

/** Looks only at what changed since the target was in sync: the cost follows the changes, not the fleet. */
export function planFromChanges(desired: NodeMap, pending: Before): Plan {
  const add: Change[] = [];
  const set: Change[] = [];
  const del: Change[] = [];
  for (const [certname, from] of pending) {
    const to = desired.get(certname)?.master;
    if (from === to) continue;
    if (from === undefined && to !== undefined) add.push({ certname, to });
    else if (from !== undefined && to === undefined) del.push({ certname, from });
    else if (from !== undefined && to !== undefined) set.push({ certname, from, to });
  }
  return toPlan(add, set, del, false);
}

function toPlan(add: Change[], set: Change[], del: Change[], rebuild: boolean): Plan {
  const nothing = add.length + set.length + del.length === 0 && !rebuild;
  return nothing ? UNCHANGED : { kind: "changes", add, set, del, rebuild };
}

/** What the guard says of nodes that PuppetDB no longer lists. `id` names exactly this set of nodes. */
export type Verdict =
  | { kind: "allowed" }
  | { kind: "held"; id: string; reason: string; certnames: readonly Certname[] };

/** A share of a small map is soon reached: below this many entries only an empty result is held. */
const FEW_ENTRIES = 10;

/**
 * Judges a removal of `gone` from a map of `size` entries. A fresh or restored PuppetDB answers `[]`, which
 * is valid and must not empty a map: that is held whatever the limit. Approval by `id` lets it through.
 */
export function judgeRemovals(
  gone: readonly Certname[],
  size: number,
  limit: RemovalLimit,
  approved?: string,
): Verdict {
  if (gone.length === 0) return { kind: "allowed" };
  const most = "entries" in limit ? limit.entries : Math.max(FEW_ENTRIES, (size * limit.percent) / 100);
  if (gone.length <= most && gone.length < size) return { kind: "allowed" };
  const id = planId(gone);
  if (approved === id) return { kind: "allowed" };
  const why =
    gone.length >= size
      ? "that would empty the map"
      : `more than SASORI_MAX_REMOVED allows (${describe(limit)})`;
  return { kind: "held", id, reason: `${gone.length} of ${size} entries would go: ${why}`, certnames: gone };
}

function describe(limit: RemovalLimit): string {
  return "entries" in limit ? `${limit.entries}` : `${limit.percent}% and ${FEW_ENTRIES} entries`;
}

function planId(certnames: readonly Certname[]): string {
  return createHash("sha256")
    .update([...certnames].sort().join("\n"))
    .digest("hex")
    .slice(0, 12);
}

/**
 * Finds the routes that HAProxy learned by itself (a redispatched request found the node elsewhere) or that
 * a person set by hand: the same process holds another value than sasori left there, and nothing newer for
 * that node waits to be pushed (`pending`). They become observations; everything else that differs is drift
 * and is corrected.
 */
export function learnedRoutes(
  desired: NodeMap,
  pending: Before,
  live: Contents,
  isServer: (master: Master) => boolean,
  now: number,
): Observation[] {
  const learned: Observation[] = [];
  for (const [certname, master] of live.routes) {
    if (desired.get(certname)?.master === master || pending.has(certname)) continue;
    if (isMaster(master) && isServer(master)) learned.push({ certname, master, at: now, source: "learned" });
  }
  return learned;
}
