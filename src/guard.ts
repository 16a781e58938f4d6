// The guard decides what may be removed from the map, and what waits until a person approves it. It holds too many removals,
// all removals from a map that somebody else made, and steps back in time of PuppetDB.
// Promises: a new or restored PuppetDB, whose empty answer `[]` is valid, does not empty the map; many removals are noticed
// even if they come little by little; an approval counts only for the plan that it names. Pure state: no I/O, no clock.

import { createHash } from "node:crypto";
import type { RemovalLimit } from "./config.js";
import { counted, number } from "./counts.js";
import { LargeSet } from "./large-map.js";
import type { Certname, Observation } from "./node-map.js";
import { eachInPieces, latestOf, listOf, mapInPieces, sortInPieces } from "./pieces.js";

/** By what one pass is judged: the limit, the plan id that a person approved, and the time (ms) of the monotonic clock. */
export interface GuardRules {
  limit: RemovalLimit;
  approved?: string | undefined;
  now: number;
}

/**
 * The guard's decision. `byApproval`: the plan that was approved. `id` is a checksum of exactly what is held. `certnames` are the
 * nodes that are held, and foreign entries that belong to no node, as they are in the map.
 */
export type Verdict =
  | { kind: "allowed"; byApproval?: string }
  | { kind: "held"; id: string; reason: string; certnames: readonly string[] };

/** What would change. */
export interface Losses {
  /** Nodes that PuppetDB no longer lists. */
  gone: readonly Certname[];
  /** Entries of somebody else's map that cannot be a route of sasori's; undefined when the map is our own. */
  foreign: readonly string[] | undefined;
  /** Submissions that are older than the route they would replace. */
  stepsBack: readonly StepBack[];
  /** The time of the newest route that would be removed or replaced. An older approval was not given for it. */
  newestAt: number;
  /** With several estates: what each would lose. Each is then judged by itself. */
  estates?: readonly EstateLosses[] | undefined;
}

export interface EstateLosses {
  /** The URL of its first PuppetDB. */
  name: string;
  /** How many nodes it had. */
  size: number;
  gone: readonly Certname[];
}

export interface StepBack {
  certname: Certname;
  /** What would take the place of the route; undefined: PuppetDB has an old deactivation. */
  observation: Observation | undefined;
  /** The time of what PuppetDB says now (ms). */
  at: number;
  /** The time of the route (ms). */
  from: number;
}

export interface Judgement {
  verdict: Verdict;
  mayRemove: boolean;
  held: readonly Certname[];
}

/** In a small map a few removals are a large share, so up to this many are allowed, unless they empty the map. */
const FEW_ENTRIES = 10;

/** The guard compares with the largest map of this time: fleets grow and shrink, but not by much within a month. */
const DAY_MS = 24 * 60 * 60_000;
const MEMORY_MS = 30 * DAY_MS;

/** The size of the map at a time (ms) of the monotonic clock. */
export interface SizeThen {
  at: number;
  size: number;
}

export class Guard {
  /** The largest size of each day, the oldest first. A size that a later one exceeds is left out. */
  readonly sizes: SizeThen[];
  /** When removals were last approved: larger sizes before that no longer count. Minus infinity: never. */
  forgottenAt: number;
  /** Plans that a person approved, here or at another replica, and when (ms since the epoch). */
  readonly approvals: Map<string, number>;
  /** A guard for each estate, if there are several. */
  readonly estates: Map<string, Guard>;

  constructor(like?: Guard) {
    this.sizes = like === undefined ? [] : like.sizes.map((one) => ({ ...one }));
    this.forgottenAt = like?.forgottenAt ?? Number.NEGATIVE_INFINITY;
    this.approvals = new Map(like?.approvals);
    this.estates = new Map(Array.from(like?.estates ?? [], ([name, guard]) => [name, new Guard(guard)]));
  }

  /**
   * Returns the verdict, whether nodes may be removed (yes, if only steps back are held), and which nodes may not be removed:
   * with several estates, only those of estates that lost too many.
   */
  *judge(losses: Losses, size: number, rules: GuardRules): Generator<void, Judgement> {
    this.#remember(size, rules.now);
    const { foreign, stepsBack } = losses;
    const { reason: removals, held, lossesHeld } = yield* this.#removals(losses, size, rules);
    const names = [...held, ...(removals === undefined ? [] : (foreign ?? []))];
    if (names.length + stepsBack.length === 0)
      return { verdict: { kind: "allowed" }, mayRemove: true, held: [] };
    const id = yield* planId(names, stepsBack);
    if (rules.approved === id || (this.approvals.get(id) ?? -1) >= losses.newestAt) {
      if (names.length > 0) this.#forgetAll(size - losses.gone.length, lossesHeld, rules.now);
      return { verdict: { kind: "allowed", byApproval: id }, mayRemove: true, held: [] };
    }
    const reasons = [removals, yield* stepsBackReason(stepsBack)];
    const reason = reasons.filter((why) => why !== undefined).join("; ");
    const certnames = [...names, ...(yield* mapInPieces(stepsBack, ({ certname }) => certname))];
    return { verdict: { kind: "held", id, reason, certnames }, mayRemove: removals === undefined, held };
  }

  /**
   * Which removals are held, why, and of which estates. A node that may belong to several estates is held if one of them
   * holds it.
   */
  *#removals(losses: Losses, size: number, { limit, now }: GuardRules) {
    const { gone, foreign, estates } = losses;
    if (estates === undefined || foreign !== undefined) {
      const reason = this.#removalReason(losses, size, limit);
      return { reason, held: reason === undefined ? [] : gone, lossesHeld: estates ?? [] };
    }
    const reasons: string[] = [];
    const held = new LargeSet<Certname>();
    const lossesHeld: EstateLosses[] = [];
    for (const losses of estates) {
      const { name, size, gone } = losses;
      const guard = this.ofEstate(name);
      guard.#remember(size, now);
      const reason = guard.#removalReason({ gone, foreign }, size, limit, "leave it empty");
      if (reason === undefined) continue;
      reasons.push(`${name}: ${reason}`);
      lossesHeld.push(losses);
      yield* eachInPieces(gone, (certname) => held.add(certname));
    }
    const reason = reasons.length === 0 ? undefined : reasons.join("; ");
    return { reason, held: yield* listOf(held), lossesHeld };
  }

  ofEstate(name: string): Guard {
    const guard = this.estates.get(name) ?? new Guard();
    this.estates.set(name, guard);
    return guard;
  }

  /** Only for the estates whose losses were approved. */
  #forgetAll(size: number, estates: readonly EstateLosses[], now: number): void {
    this.#forget(size, now);
    for (const { name, size, gone } of estates) this.ofEstate(name).#forget(size - gone.length, now);
  }

  /** Why the removals are held, or undefined. */
  #removalReason(
    { gone, foreign }: Pick<Losses, "gone" | "foreign">,
    size: number,
    limit: RemovalLimit,
    allOfIt = "empty the map",
  ): string | undefined {
    const would = (count: number, of: number) =>
      `${number(count)} of ${counted(of, "entry", "entries")} would be removed`;
    if (foreign !== undefined) {
      const count = gone.length + foreign.length;
      const all = size + foreign.length;
      return count === 0 ? undefined : `${would(count, all)} from a map that sasori did not make`;
    }
    if (gone.length === 0) return undefined;
    const most = Math.max(size, ...this.sizes.map((then) => then.size));
    const lately = most - size;
    const allowed = "entries" in limit ? limit.entries : Math.max(FEW_ENTRIES, (most * limit.percent) / 100);
    if (gone.length >= size) return `${would(gone.length, size)}: that would ${allOfIt}`;
    if (gone.length + lately <= allowed) return undefined;
    const before = lately > 0 ? `, after ${number(lately)} in the last 30 days` : "";
    return `${would(gone.length, size)}${before}: more than SASORI_MAX_REMOVED allows (${describe(limit)})`;
  }

  #remember(size: number, now: number): void {
    while ((this.sizes[0]?.at ?? now) < now - MEMORY_MS) this.sizes.shift();
    const isOld = ({ at }: SizeThen) => now - at >= DAY_MS;
    const isExceeded = (then: SizeThen) => then.size < size || (then.size === size && isOld(then));
    for (let last = this.sizes.at(-1); last !== undefined && isExceeded(last); last = this.sizes.at(-1))
      this.sizes.pop();
    const last = this.sizes.at(-1);
    if (last === undefined || isOld(last)) this.sizes.push({ at: now, size });
  }

  /** Takes what an earlier run, or another replica, has remembered. */
  take(sizes: readonly SizeThen[], forgottenAt: number): void {
    this.forgottenAt = Math.max(this.forgottenAt, forgottenAt);
    const all = [...this.sizes, ...sizes].sort((a, b) => b.at - a.at);
    const kept: SizeThen[] = [];
    for (const then of all)
      if (then.at >= this.forgottenAt && then.size > (kept.at(-1)?.size ?? 0)) kept.push({ ...then });
    this.sizes.splice(0, this.sizes.length, ...kept.reverse());
  }

  /** After an approval later maps are compared with the smaller one. */
  #forget(size: number, now: number): void {
    this.forgottenAt = now;
    this.sizes.splice(0, this.sizes.length, ...(size > 0 ? [{ at: now, size }] : []));
  }
}

function* stepsBackReason(stepsBack: readonly StepBack[]): Generator<void, string | undefined> {
  if (stepsBack.length === 0) return undefined;
  const time = (at: number) => new Date(at).toISOString();
  const from = time(yield* latestOf(stepsBack, (step) => step.from));
  const to = time(yield* latestOf(stepsBack, ({ at }) => at));
  return `PuppetDB went back from ${from} to ${to}: ${counted(stepsBack.length, "node")} would move or be removed`;
}

function describe(limit: RemovalLimit): string {
  return "entries" in limit ? number(limit.entries) : `${limit.percent}%, at least ${FEW_ENTRIES} entries`;
}

/** The form of a plan id, as a person types it. */
export const PLAN_ID = /^[0-9a-f]{12}$/;

function* planId(names: readonly string[], stepsBack: readonly StepBack[]): Generator<void, string> {
  const hash = createHash("sha256");
  let between = "";
  const add = (text: string) => {
    hash.update(`${between}${text}`);
    between = "\n";
  };
  yield* eachInPieces(yield* sortInPieces(names, (a, b) => (a < b ? -1 : 1)), add);
  const steps = yield* sortInPieces(stepsBack, (a, b) => (a.certname < b.certname ? -1 : 1));
  yield* eachInPieces(steps, ({ certname, observation }) => add(`${certname} ${observation?.master ?? "-"}`));
  return hash.digest("hex").slice(0, 12);
}
