// What sasori believes about the fleet: the desired map, the nodes that cannot be routed, what waits for approval, what was
// removed. A reading of PuppetDB is merged in here; nothing here knows where the map is put. docs/evidence.md has the rules.
// Pure state: no I/O, no clock.

import { type Aliases, dnsName } from "./aliases.js";
import { Flapping } from "./flapping.js";
import {
  type EstateLosses,
  Guard,
  type GuardRules,
  type Losses,
  type StepBack,
  type Verdict,
} from "./guard.js";
import { LargeMap, LargeSet } from "./large-map.js";
import {
  type Assignment,
  type Before,
  type Certname,
  isMaster,
  isOfPuppetdb,
  type Master,
  NodeMap,
  type Observation,
  placeOf,
} from "./node-map.js";
import { copyInPieces, eachInPieces, latestOf, listOf, setOf } from "./pieces.js";
import { type Ahead, MAX_REFUSED, type Names, type Reading, type Submission } from "./source/reading.js";
import { beats, type Change, type Kind } from "./state/rows.js";
import type { Contents, Server } from "./target/target.js";
import { type End, Tombstones } from "./tombstones.js";

/** Finds a producer's server in HAProxy; undefined if HAProxy has none. */
export type Resolve = (producer: string) => Master | undefined;

/**
 * A node that was seen this lately is not gone because one answer does not list it: a PuppetDB behind a balancer may
 * lag, and one that was restored from a backup has never heard of it. A deactivation is believed at once.
 */
const FRESH_MS = 10 * 60_000;

/**
 * An inherited route counts as this much older than the file that had it: when sasori stopped, PuppetDB may not have
 * stored yet what it had received, and the clock of a master may be behind.
 */
const INHERITED_ALLOWANCE_MS = 5 * 60_000;

/** How many producers a resolver remembers. */
const MAX_FOUND = 1_000;

/**
 * The clocks of two replicas may differ by this much, and the status warns of it. So a registration that is ahead by up to
 * this much does not count as one from the future.
 */
const CLOCKS_DIFFER_MS = 5 * 60_000;

/** One change that is held. `from` is null for a foreign entry, `to` is null if the entry would be removed. */
export interface HeldChange {
  certname: string;
  from: Master | null;
  to: Master | null;
}

export class Fleet {
  readonly map: NodeMap;
  /** Nodes with a newer submission of a producer without a server. The route of an older one is kept. */
  readonly unroutable: Map<Certname, Submission> = new LargeMap();
  /** Registrations and learned routes in force. PuppetDB does not know them yet, so they must not be lost. */
  readonly own: Map<Certname, Observation> = new LargeMap();
  /** Displaced nodes with their home: the master that they left while it was down, or by hand while it was drained. */
  readonly homes: Map<Certname, Master> = new LargeMap();
  /** Homes that are no longer servers in HAProxy, and the first full reading without them (ms, PuppetDB's clock). */
  readonly #lostHomes: Map<Master, number>;
  /** Nodes that were removed, and registrations and learned routes that were ended. */
  readonly tombstones: Tombstones;
  readonly ended: Tombstones<End>;
  readonly flapping: Flapping;
  readonly guard: Guard;
  /** Which rows of `own`, `homes`, `tombstones`, `ended` and `guard.approvals` have changed since the last `takeUnsaved`. */
  #unsaved = new Map<Exclude<Kind, "sizes">, LargeSet<string>>();
  verdict: Verdict;
  /** Removals of a held verdict that are still held, and whether what is held has changed since. */
  #held = new LargeSet<Certname>();
  #heldChanged: boolean;
  /** What PuppetDB said in the last full reading that is older than the route it would replace. */
  readonly #stepsBack: Map<Certname, StepBack> = new LargeMap();
  /**
   * Set if somebody else made the map: its entries that cannot be sasori's routes, each with its node if its key is a
   * certname. Undefined: the map is our own.
   */
  foreign: Map<string, Certname | undefined> | undefined;
  /** Certnames that cannot be map keys, and nodes without a known producer, since the last full reading. */
  readonly refused: Set<string>;
  readonly withoutProducer: Set<Certname>;
  /** Nodes with a submission that is dated later than PuppetDB's clock. */
  readonly ahead: Map<Certname, Ahead>;
  /** Everything was read at least once. Before that, a node that PuppetDB does not list does not count as gone. */
  complete: boolean;
  /** The time of the oldest observation in the map (ms), as of the last full reading; 0: unknown. */
  oldestAt = 0;

  /** Makes an empty fleet, or a copy for trying something out: see `copy`. */
  constructor(like?: Fleet, map = new NodeMap()) {
    this.map = map;
    this.#lostHomes = new Map(like === undefined ? [] : like.#lostHomes);
    this.tombstones = new Tombstones(like?.tombstones);
    this.ended = new Tombstones(like?.ended);
    this.flapping = new Flapping(like?.flapping);
    this.guard = new Guard(like?.guard);
    this.verdict = like?.verdict ?? { kind: "allowed" };
    this.#heldChanged = like === undefined ? false : like.#heldChanged;
    this.refused = new Set(like?.refused);
    this.withoutProducer = new Set(like?.withoutProducer);
    this.ahead = new Map(like?.ahead);
    this.complete = like?.complete ?? false;
  }

  static *copy(like: Fleet): Generator<void, Fleet> {
    const copy = new Fleet(like, yield* NodeMap.copy(like.map));
    yield* copyInPieces(like.unroutable, copy.unroutable);
    yield* copyInPieces(like.own, copy.own);
    yield* copyInPieces(like.homes, copy.homes);
    yield* copyInPieces(like.#stepsBack, copy.#stepsBack);
    copy.#held = yield* setOf(like.#held);
    if (like.foreign !== undefined) copy.foreign = yield* copyInPieces(like.foreign);
    return copy;
  }

  /**
   * Takes over the routes of a target, for nodes that are not known yet. So a sasori that starts while PuppetDB is down serves
   * and guards the last good map. If sasori wrote the file, its routes get a time shortly before `writtenUntil`, so nothing
   * older than that moves a node. If PuppetDB was not read since a registration ended, the node may still have that route.
   */
  *inherit({ routes, writtenUntil = 0, origin, strays }: Contents): Generator<void> {
    if (origin === "others" && !this.complete) this.foreign ??= new LargeMap();
    const at = Math.max(0, writtenUntil - INHERITED_ALLOWANCE_MS);
    yield* eachInPieces(routes, ([certname, master]) => {
      if (this.map.get(certname) !== undefined || this.tombstones.has(certname)) return;
      const end = this.ended.get(certname);
      const isOpen = end !== undefined && end.since > at;
      const since = isOpen ? Math.min(at, timeBefore(end)) : at;
      if (isMaster(master)) this.map.observe({ certname, master, at: since, source: "inherited" });
      else this.foreign?.set(`${certname} ${master}`, certname);
    });
    for (const stray of strays ?? []) this.foreign?.set(stray, undefined);
  }

  /**
   * False if something newer is known. A registration or a learned route becomes one of our own; its place is after all
   * others of the node.
   */
  observe(observation: Observation): boolean {
    const { certname, at } = observation;
    if (isOfPuppetdb(observation)) return this.#take(observation);
    if (at <= this.#overUntil(certname)) return false;
    const own = this.own.get(certname);
    const last = Math.max(own === undefined ? -1 : placeOf(own), this.ended.get(certname)?.at ?? -1);
    return this.#take(last < at ? observation : { ...observation, place: last + 1 });
  }

  /** Everything that was seen until then is over (ms). The clock that dated it may have been ahead. */
  #overUntil(certname: Certname): number {
    const { at = -1, since = -1 } = this.ended.get(certname) ?? {};
    return Math.min(at, since);
  }

  /** `saved`: what the rows have already. */
  #take(observation: Observation, saved?: Observation): boolean {
    const { certname, source } = observation;
    const stone = this.tombstones.get(certname);
    const isOldWord = stone?.told !== undefined && isOfOther(observation, stone.told);
    const voidUntil = Math.max(stone?.at ?? -1, isOldWord ? (stone?.told?.at ?? -1) : -1);
    if (source !== "registration" && observation.at <= voidUntil) return false;
    const known = this.map.get(certname);
    const isOwn = source === "learned" || source === "registration";
    const reported = isOwn && known !== undefined ? reportedOf(known) : undefined;
    const taken = reported === undefined ? observation : { ...observation, reported };
    if (!this.map.observe(taken)) return false;
    this.#took(taken, saved);
    return true;
  }

  /**
   * Takes a route that an HAProxy holds and sasori did not put there. Three exceptions: for a removed node it is a leftover
   * and does not count. For a registered node a person has set it, so it counts as a registration. If another sasori has ended
   * the node's registration, it is the route that this other sasori put there.
   */
  learn(route: Observation): boolean {
    const { certname, master } = route;
    if (this.tombstones.has(certname)) return false;
    const isEnded = this.map.get(certname)?.source === "inherited" && this.ended.has(certname);
    if (isEnded) return this.map.reassign(certname, master);
    const isOrder = this.own.get(certname)?.source === "registration";
    return this.observe(isOrder ? { ...route, source: "registration" } : route);
  }

  /** The time of something seen or registered at `now`: newer than what is known, and than what was ended. */
  timeAfterKnown(certname: Certname, now: number): number {
    return Math.max(this.map.timeAfterKnown(certname, now), this.#overUntil(certname) + 1);
  }

  /**
   * Our clock was ahead, and was set back by this much (ms). What it had dated later than `latest` gets a new date, so that
   * newer observations of PuppetDB count. Its place stays as it is.
   */
  *setBack(byMs: number, latest: number): Generator<void> {
    const dated = (at: number) => (at > latest ? Math.min(at - byMs, latest) : at);
    yield* eachInPieces(this.own.values(), (own) => {
      const at = believedAt(own, dated(own.at));
      if (at === own.at) return;
      const believed = { ...own, at, place: placeOf(own) };
      this.own.set(own.certname, believed);
      this.map.replace(believed);
    });
    for (const [certname, stone] of [...this.tombstones])
      this.tombstones.set(certname, { ...stone, at: dated(stone.at) });
    for (const [certname, end] of [...this.ended])
      this.ended.set(certname, { ...end, since: dated(end.since) });
  }

  #took(observation: Observation, saved?: Observation): void {
    const { certname, source } = observation;
    this.#unhold(certname);
    if (this.#stepsBack.delete(certname)) this.#heldChanged = true;
    if (this.tombstones.delete(certname)) this.#changed("removed", certname);
    if (source === "registration" || source === "learned") {
      this.own.set(certname, observation);
      if (observation !== saved) this.#changed("route", certname);
    } else {
      this.#disown(certname);
    }
  }

  /** Ends this registration or learned route at `now` (ms). What PuppetDB says (undefined: nothing) takes its place. */
  withdraw(ended: Observation, observation: Observation | undefined, now: number): void {
    const { certname } = ended;
    const own = this.own.get(certname);
    // Meanwhile there is another registration, or PuppetDB has had something newer.
    if (own === undefined || placeOf(own) !== placeOf(ended)) return;
    this.#remove(certname, own.at);
    this.ended.set(certname, { at: placeOf(own), since: now, reported: own.reported });
    this.#changed("ended", certname);
    if (observation === undefined) return;
    this.tombstones.delete(certname);
    this.observe(observation);
  }

  /**
   * Takes over that another sasori ended a registration or learned route. False if it is not in force here. The node keeps its
   * route until PuppetDB is read again.
   */
  takeEnd(certname: Certname, end: End): boolean {
    this.ended.set(certname, end);
    const own = this.own.get(certname);
    if (own === undefined || placeOf(own) > end.at) return false;
    this.map.replace({ certname, master: own.master, at: timeBefore(end), source: "inherited" });
    this.#disown(certname);
    return true;
  }

  /**
   * Takes a registration or learned route of another sasori. If ours is a registration or learned route too, theirs replaces
   * it if it wins where rows are merged. A route from PuppetDB is replaced only if theirs is newer. A time much later than `latest`
   * is that of a clock that was ahead. False if it does not count.
   */
  takeOwn(theirs: Observation, latest: number): boolean {
    const { certname } = theirs;
    const isAhead = theirs.at > latest + CLOCKS_DIFFER_MS;
    const at = isAhead ? believedAt(theirs, latest) : theirs.at;
    const observation = at === theirs.at ? theirs : { ...theirs, at, place: theirs.at };
    const known = this.map.get(certname);
    const own = this.own.get(certname);
    const isOver = theirs.at <= (this.ended.get(certname)?.at ?? -1);
    const isBeaten = own !== undefined && beats(routeOf(own), routeOf(observation));
    if (!isOver && !isBeaten) {
      if (known !== undefined && !isOfPuppetdb(known)) {
        this.map.replace(observation);
        this.#took(observation, observation);
        return true;
      }
      if (this.#take(observation, observation)) return true;
    }
    this.#changed("route", certname);
    return false;
  }

  /** Takes over a plan that was approved at another replica. */
  takeApproval(id: string, at: number): void {
    this.guard.approvals.set(id, at);
    if (this.verdict.kind === "held" && this.verdict.id === id) this.#heldChanged = true;
  }

  /** The changes since the last call that must be saved. */
  *takeUnsaved(): Generator<void, Change[]> {
    const unsaved = this.#unsaved;
    this.#unsaved = new Map();
    const changes: Change[] = [];
    for (const [kind, keys] of unsaved)
      yield* eachInPieces(keys, (key) => changes.push(this.#changeOf(kind, key as Certname)));
    return changes;
  }

  #changeOf(kind: Exclude<Kind, "sizes">, key: Certname): Change {
    switch (kind) {
      case "route": {
        const own = this.own.get(key);
        return own === undefined ? { kind, key, value: null } : { kind, key, ...routeOf(own) };
      }
      case "ended": {
        const { at, ...value } = this.ended.get(key) ?? { at: 0, since: 0 };
        return { kind, key, at, value };
      }
      case "removed": {
        const stone = this.tombstones.get(key);
        return { kind, key, value: stone === undefined ? null : { ...stone } };
      }
      case "home": {
        const master = this.homes.get(key);
        return { kind, key, value: master === undefined ? null : { master } };
      }
      case "approval":
        return { kind, key, at: this.guard.approvals.get(key) ?? 0, value: {} };
    }
  }

  #changed(kind: Exclude<Kind, "sizes">, key: string): void {
    const keys = this.#unsaved.get(kind) ?? new LargeSet();
    this.#unsaved.set(kind, keys.add(key));
  }

  /** The node's removal, or its step back, waits for approval. */
  isHeld(certname: Certname): boolean {
    return this.#held.has(certname) || this.#stepsBack.has(certname);
  }

  /** What an approval of the held plan would do to this entry. */
  heldChange(certname: string): HeldChange {
    const step = this.#stepsBack.get(certname as Certname);
    const from = this.map.get(certname as Certname)?.master ?? null;
    return { certname, from, to: step?.observation?.master ?? null };
  }

  /** The node is no longer held. What remains is another plan, which gets another id with the next reading. */
  #unhold(certname: Certname): void {
    if (this.#held.delete(certname)) this.#heldChanged = true;
  }

  #disown(certname: Certname): void {
    if (this.own.delete(certname)) this.#changed("route", certname);
  }

  /**
   * Remembers the master (the home) of nodes that leave it while it is down, or that a person moves away while it is drained.
   * They do not return by themselves, because a node runs where its route leads. If a node leaves a master that is up, the
   * master that it goes to is its new home.
   */
  *noteMoves(changes: Before, stateOf: (master: Master) => Server["state"]): Generator<void> {
    yield* eachInPieces(changes, ([certname, from]) => {
      const home = this.homes.get(certname);
      if (from === undefined && home === undefined) return; // A new node has no home to lose.
      const { master: now, source } = this.map.get(certname) ?? {};
      if (now === from) return;
      if (home !== undefined) {
        // A node that was only found at its master has not moved there.
        const hasMoved = from !== undefined && stateOf(home) === "up";
        if (now === undefined || now === home || hasMoved) this.#setHome(certname, undefined);
      } else if (from !== undefined && now !== undefined) {
        const state = stateOf(from);
        if (state === "down" || (state === "drained" && source === "registration"))
          this.#setHome(certname, from);
      }
    });
  }

  #setHome(certname: Certname, home: Master | undefined): void {
    this.#changed("home", certname);
    if (home === undefined) this.homes.delete(certname);
    else this.homes.set(certname, home);
  }

  /**
   * Takes over a reading of PuppetDB, and removes what is gone if the guard allows it. Returns how late a submission became
   * visible (ms): PuppetDB notes the time when it receives a submission, but stores it only when its queue gets there. So
   * one that was received before the previous reading may show only in this one. 0: nothing came late.
   */
  *merge(reading: Reading, resolve: Resolve, rules: GuardRules): Generator<void, number> {
    let lateMs = 0;
    if (reading.kind === "full") this.#beginAnew();
    yield* eachInPieces(reading.submissions.values(), (submission) => {
      const news = this.#takeSubmission(submission, resolve, reading);
      if (news) lateMs = Math.max(lateMs, submission.lateMs ?? 0);
    });
    yield* eachInPieces(reading.unroutable?.values() ?? [], (submission) => {
      this.#takeUnroutable(submission);
    });
    yield* this.#takeNames(reading);
    const { active } = reading;
    const gone =
      active === undefined ? yield* this.#goneSince(reading) : yield* this.#goneFrom(reading, active);
    yield* this.#judge(gone, reading, rules);
    if (active !== undefined) this.complete = true;
    if (reading.kind === "full") {
      yield* this.#settleHomeless(reading.asOf, resolve);
      yield* this.#findOldest();
    }
    return lateMs;
  }

  /**
   * If HAProxy no longer has a node's home, nobody can move the node back. So after its next run the node no longer counts as
   * displaced. A home that is missing only for a moment, such as during a reload, is not lost.
   */
  *#settleHomeless(asOf: number, resolve: Resolve): Generator<void> {
    const before = new Map(this.#lostHomes);
    this.#lostHomes.clear();
    yield* eachInPieces(this.homes, ([certname, home]) => {
      if (resolve(home) === home) return;
      const since = before.get(home) ?? asOf;
      this.#lostHomes.set(home, since);
      if ((this.map.get(certname)?.at ?? 0) > since) this.#setHome(certname, undefined);
    });
  }

  *#findOldest(): Generator<void> {
    let oldest = Number.POSITIVE_INFINITY;
    yield* eachInPieces(this.map.assignments(), ({ at }) => {
      if (at > 0 && at < oldest) oldest = at;
    });
    this.oldestAt = Number.isFinite(oldest) ? oldest : 0;
  }

  #beginAnew(): void {
    if (this.#stepsBack.size > 0) this.#heldChanged = true;
    this.#stepsBack.clear();
    this.ahead.clear();
  }

  *#judge(gone: Certname[] | "as held", reading: Reading, rules: GuardRules): Generator<void> {
    // All nodes of the fleet may be held. If nothing about them has changed, they are not judged again.
    if (gone === "as held" && rules.approved === undefined && !this.#heldChanged) return;
    const nodes = gone === "as held" ? yield* listOf(this.#held) : gone;
    const stepsBack = yield* listOf(this.#stepsBack.values());
    const newestAt = Math.max(
      yield* latestOf(stepsBack, ({ from }) => from),
      yield* latestOf(nodes, (certname) => this.map.get(certname)?.at ?? 0),
    );
    const estates = yield* this.#lossesOfEstates(nodes, reading);
    const losses = { gone: nodes, foreign: yield* this.#foreignEntries(), stepsBack, newestAt, estates };
    const { verdict, mayRemove, held } = yield* this.guard.judge(losses, this.map.size, rules);
    const heldNow = yield* setOf(held);
    this.verdict = verdict;
    this.#held = heldNow;
    this.#heldChanged = false;
    const approved = verdict.kind === "allowed" ? verdict.byApproval : undefined;
    const isApproved = approved !== undefined;
    if (approved !== undefined && approved === rules.approved) {
      this.guard.approvals.set(approved, reading.asOf);
      this.#changed("approval", approved);
    }
    if (isApproved) yield* eachInPieces(stepsBack, (step) => this.#stepBack(step));
    yield* eachInPieces(nodes, (certname) => {
      if (this.#held.has(certname) || (!isApproved && this.#isFresh(certname, reading))) return;
      const voidUntil = Math.min(reading.inactive.get(certname) ?? 0, reading.asOf);
      this.#remove(certname, voidUntil);
    });
    // What a standby does not list is not judged. So after reading one, foreign entries stay foreign.
    if (mayRemove && reading.active !== undefined && reading.isStandby !== true) this.foreign = undefined;
  }

  /** What each estate lost. A node whose estate is unknown counts for every estate. */
  *#lossesOfEstates(gone: readonly Certname[], { estates }: Reading): Generator<void, Losses["estates"]> {
    if (estates === undefined) return undefined;
    const known = new Set(estates.flatMap(({ puppetdbs }) => puppetdbs));
    const losses: EstateLosses[] = [];
    for (const { puppetdbs, size } of estates) {
      const ofIt: Certname[] = [];
      yield* eachInPieces(gone, (certname) => {
        const from = this.map.get(certname)?.from;
        if (from === undefined || puppetdbs.includes(from) || !known.has(from)) ofIt.push(certname);
      });
      losses.push({ name: puppetdbs[0] ?? "", size: size + ofIt.length, gone: ofIt });
    }
    return losses;
  }

  /** The foreign entries that would be lost. If PuppetDB knows the node, its entry is changed and not lost. */
  *#foreignEntries(): Generator<void, string[] | undefined> {
    if (this.foreign === undefined) return undefined;
    const lost: string[] = [];
    yield* eachInPieces(this.foreign, ([entry, certname]) => {
      if (certname === undefined || this.map.get(certname) === undefined) lost.push(entry);
    });
    return lost;
  }

  #stepBack({ certname, observation, at }: StepBack): void {
    this.#stepsBack.delete(certname);
    if (observation === undefined) {
      this.#remove(certname, at);
    } else {
      this.map.replace(observation);
      this.#took(observation);
    }
  }

  #hold(step: StepBack): void {
    const known = this.map.get(step.certname);
    if (known?.source === "inherited") this.map.replace({ ...known, confirmed: true });
    this.#stepsBack.set(step.certname, step);
    this.#heldChanged = true;
  }

  #isFresh(certname: Certname, { asOf, inactive }: Reading): boolean {
    const known = this.map.get(certname);
    const at = known === undefined ? 0 : (reportedOf(known) ?? known.at);
    return !inactive.has(certname) && Math.abs(asOf - at) < FRESH_MS;
  }

  #takeSubmission(submission: Submission, resolve: Resolve, reading: Reading): boolean {
    const { producer, at, source, from, rival } = submission;
    const master = resolve(producer);
    if (master === undefined) return this.#takeUnroutable(submission);
    const known = this.map.get(submission.certname);
    const certname = known?.certname ?? submission.certname; // This keeps each name in memory only once.
    if ((this.unroutable.get(certname)?.at ?? Number.POSITIVE_INFINITY) <= at)
      this.unroutable.delete(certname);
    // The same submission as before, but its producer may have another server now.
    if (known?.at === at && known.source === source) {
      if (isOfOther(submission, known) && known.master !== master && resolve(known.master) !== undefined)
        return false; // Two estates have the node with the same time, so the map stays as it is.
      if (from !== undefined) this.map.credit(certname, from);
      return this.map.reassign(certname, master);
    }
    const observation = { certname, master, at, source, ...(from !== undefined && { from }) };
    if (known?.source === "inherited" && known.master === master) {
      this.map.replace(observation);
      this.#took(observation);
      return true;
    }
    if (known !== undefined && this.#mayBeOfOther(known, reading) && resolve(known.master) !== undefined)
      if (at <= known.at + INHERITED_ALLOWANCE_MS) return false;
    if (reading.kind === "full" && known !== undefined && isStepBack(observation, known, resolve)) {
      this.#hold({ certname, observation, at, from: known.at });
      return false;
    }
    if (!this.observe(observation)) return false;
    const other = rival && resolve(rival.producer);
    const beside = other && ({ master: other, source: source === "facts" ? "report" : "facts" } as const);
    this.flapping.note(certname, observation, beside ?? known);
    return true;
  }

  /**
   * The route is from the map file, and perhaps from a PuppetDB that was not read since. Then it gives way only to what is
   * newer than everything in the file. The route of a registration that ended did not come from PuppetDB.
   */
  #mayBeOfOther({ certname, source, at }: Assignment, { isStandby, active }: Reading): boolean {
    if (source !== "inherited") return false;
    const end = this.ended.get(certname);
    const isEnded = end !== undefined && at === timeBefore(end);
    return !isEnded && (isStandby === true || (active === undefined && !this.complete));
  }

  /** False if it is older than what is known. The age of an inherited route is unknown, so everything is newer. */
  #takeUnroutable(submission: Submission): boolean {
    const { certname, at, source } = submission;
    const known = this.map.get(certname);
    const knownAt = known === undefined || known.source === "inherited" ? 0 : known.at;
    const news = at > Math.max(knownAt, this.unroutable.get(certname)?.at ?? 0);
    const isKnown = known?.at === at && known.source === source; // HAProxy had a server for it.
    if (news || isKnown) this.unroutable.set(certname, submission);
    return news;
  }

  *#takeNames({ kind, asOf, refused, withoutProducer, submissions, ahead }: Reading): Generator<void> {
    if (kind === "full") {
      this.refused.clear();
      this.withoutProducer.clear();
    }
    for (const name of refused) if (this.refused.size < MAX_REFUSED) this.refused.add(name);
    yield* eachInPieces(withoutProducer, (certname) => this.withoutProducer.add(certname));
    yield* eachInPieces(this.withoutProducer, (certname) => {
      if (submissions.has(certname)) this.withoutProducer.delete(certname);
    });
    for (const [certname, { until }] of this.ahead) if (until <= asOf) this.ahead.delete(certname);
    for (const [certname, found] of ahead ?? []) if (found.until > asOf) this.ahead.set(certname, found);
  }

  /** After a full reading: the nodes that it does not list. */
  *#goneFrom(reading: Reading, active: Names): Generator<void, Certname[]> {
    yield* eachInPieces(this.unroutable.keys(), (certname) => {
      if (!active.has(certname)) this.unroutable.delete(certname);
    });
    // A node may have been removed while no sasori ran. Then it is not displaced any more.
    yield* eachInPieces(this.homes.keys(), (certname) => {
      if (!active.has(certname) && this.map.get(certname) === undefined) this.#setHome(certname, undefined);
    });
    const gone: Certname[] = [];
    yield* eachInPieces(this.map.assignments(), (known) => {
      const { certname } = known;
      if (active.has(certname)) return;
      const inactiveSince = reading.inactive.get(certname);
      if (this.#outlives(certname, inactiveSince) || isToldByOther(known, reading, inactiveSince)) return;
      if (inactiveSince !== undefined && isOfPuppetdb(known) && inactiveSince < known.at)
        this.#hold({ certname, observation: undefined, at: inactiveSince, from: known.at });
      else gone.push(certname);
    });
    return gone;
  }

  /**
   * A registration may be for a node that PuppetDB has never seen; only a later deactivation ends it. A learned route ends
   * with the node.
   */
  #outlives(certname: Certname, inactiveSince = 0): boolean {
    const own = this.own.get(certname);
    return own?.source === "registration" && inactiveSince <= own.at;
  }

  /** After a reading of changes: nodes that were deactivated lately, and held ones that have not come back. */
  *#goneSince(reading: Reading): Generator<void, Certname[] | "as held"> {
    const { inactive, submissions } = reading;
    const news = new Set<Certname>();
    for (const [certname, at] of inactive) {
      const back = (submissions.get(certname)?.at ?? 0) > at;
      const known = this.map.get(certname);
      if (known === undefined || back || this.#outlives(certname, at) || isToldByOther(known, reading, at))
        continue;
      if (!this.#held.has(certname)) news.add(certname);
    }
    for (const certname of submissions.keys()) this.#unhold(certname);
    if (news.size === 0 && !this.#heldChanged) return this.#held.size === 0 ? [] : "as held";
    return [...(yield* listOf(this.#held)), ...news];
  }

  /** `voidUntil`: what PuppetDB said until then (ms) does not bring the node back. */
  #remove(certname: Certname, voidUntil: number): void {
    this.#unhold(certname);
    const { from, at = 0 } = this.map.get(certname) ?? {};
    const told = from === undefined ? undefined : { from, at };
    this.map.remove(certname);
    this.unroutable.delete(certname);
    this.flapping.delete(certname);
    this.#disown(certname);
    this.tombstones.set(certname, { at: voidUntil, ...(told && { told }) });
    this.#changed("removed", certname);
  }
}

/** The time of what PuppetDB knew of a node when this was observed, or undefined if it knew nothing. */
const reportedOf = (known: Assignment): number | undefined =>
  isOfPuppetdb(known) ? known.at : known.reported;

/** A registration or learned route as it is saved. */
function routeOf(own: Observation) {
  const { master, reported, reason, by } = own;
  const source = own.source === "learned" ? own.source : ("registration" as const);
  return { at: placeOf(own), value: { master, source, reported, reason, by } };
}

/**
 * When a registration or learned route counts as made: not later than `latest`. But it stays newer than what PuppetDB had said by
 * then, because our clock may be behind PuppetDB's.
 */
const believedAt = ({ at, reported = -1 }: Observation, latest: number): number =>
  Math.min(at, Math.max(latest, reported + 1));

/** A time shortly before what PuppetDB had said when the ended route was made, so that this, and everything newer, counts. */
const timeBefore = ({ reported = 0 }: End): number => Math.max(0, reported - 1);

/**
 * A step back: PuppetDB says something older than the route, so it was restored from a backup. If HAProxy no longer has the
 * route's server, it is not a step back, because then any route is better.
 */
const isStepBack = (observation: Observation, known: Assignment, resolve: Resolve): boolean =>
  observation.at < known.at &&
  observation.master !== known.master &&
  !isOfOther(observation, known) &&
  (isOfPuppetdb(known) || known.source === "inherited") &&
  resolve(known.master) !== undefined;

/** The two come from different PuppetDBs. One that is behind the other has not gone back in time. */
const isOfOther = (one: Pick<Observation, "from">, other: Pick<Observation, "from">): boolean =>
  one.from !== undefined && other.from !== undefined && one.from !== other.from;

/**
 * The route came from another PuppetDB. Then the node stays, although this PuppetDB does not list it or lists an older
 * deactivation, because this one may be behind. If it is unknown where the route came from, the node stays if only a standby
 * does not list it.
 */
function isToldByOther(known: Assignment, { told, isStandby }: Reading, inactiveSince?: number): boolean {
  if (told === undefined) return false;
  const isOther = known.from === undefined ? isStandby === true : !told.has(known.from);
  return isOther && (inactiveSince === undefined || inactiveSince <= (reportedOf(known) ?? known.at));
}

/**
 * First by an alias, then by a master with the producer's name, then by a server with that name or host. With no HAProxy to
 * ask (`servers` undefined) the producer's own name is the master's.
 */
export function resolver(aliases: Aliases, servers: readonly Server[] | undefined): Resolve {
  const known = new Map<string, Master | undefined>();
  for (const { name, host } of servers ?? []) if (!known.has(dnsName(host))) known.set(dnsName(host), name);
  for (const [host, pool] of poolsByServer(servers ?? [])) known.set(host, pool);
  for (const { name } of servers ?? []) known.set(dnsName(name), name);
  const names = new Set<string>(servers?.map(({ name }) => name));
  const find: Resolve = (producer) => {
    const alias = aliases.of(producer);
    if (servers === undefined) return alias ?? (isMaster(producer) ? producer : undefined);
    if (alias !== undefined) return names.has(alias) ? alias : undefined;
    return names.has(producer) ? (producer as Master) : known.get(dnsName(producer));
  };
  // A few producers come again and again. With `puppet apply` each node is one, so there is a bound.
  const found = new Map<string, Master | undefined>();
  return (producer) => {
    if (found.has(producer)) return found.get(producer);
    const master = find(producer);
    if (found.size < MAX_FOUND) found.set(producer, master);
    return master;
  };
}

/** The pool of each server, by the server's name and by its host; undefined for a server that is in several pools. */
function poolsByServer(pools: readonly Server[]): Map<string, Master | undefined> {
  const found = new Map<string, Master | undefined>();
  for (const { name: pool, members = [] } of pools)
    for (const key of members.flatMap(({ name, host }) => [dnsName(name), dnsName(host)]))
      found.set(key, found.has(key) && found.get(key) !== pool ? undefined : pool);
  return found;
}
