// What sasori believes of the fleet: the desired map, the nodes that cannot be routed, the removals that wait
// for approval. A reading of PuppetDB is merged in here; nothing here knows where the map is put.
// Pure state: no I/O, no clock.

import type { RemovalLimit } from "./config.js";
import { type Before, type Certname, isMaster, type Master, NodeMap, type Observation } from "./node-map.js";
import { judgeRemovals, type Verdict } from "./plan.js";
import { MAX_REFUSED, type Names, type Reading, type Submission } from "./source/puppetdb.js";
import type { Contents, Server } from "./target/target.js";

/** Finds the HAProxy server of a producer; undefined for a producer that is no master of this HAProxy. */
export type Resolve = (producer: string) => Master | undefined;

/**
 * How removals are judged in one pass: the limit, the plan id that a person approved for it, and the time (ms) on a clock
 * that nobody sets.
 */
export interface Guard {
  limit: RemovalLimit;
  approved?: string | undefined;
  now: number;
}

/** The guard looks back this far: a fleet that vanishes little by little vanishes all the same. */
const GUARD_MEMORY_MS = 60 * 60_000;

/**
 * A node that was seen this lately is not gone because one answer does not list it: a PuppetDB behind a balancer may
 * lag, and one that was restored from a backup has never heard of it. Its deactivation is believed at once.
 */
const FRESH_MS = 10 * 60_000;

/** A time that lies further ahead of PuppetDB's clock is that of a wrong clock. */
const AHEAD_MS = 10 * 60_000;

export class Fleet {
  readonly map: NodeMap;
  /** Nodes whose newest submission came from a producer without a server. An older route is kept. */
  readonly unroutable: Map<Certname, Submission>;
  /** Registrations and learned routes in force: what PuppetDB does not know yet, and must not be lost. */
  readonly own: Map<Certname, Observation>;
  /** Displaced nodes, and where they were at home: they left a master while it was down, or by hand while it was drained. */
  readonly homes: Map<Certname, Master>;
  /** Grows with every change of `own`, `homes` and `removals`. */
  revision = 0;
  verdict: Verdict;
  /** The nodes of a held verdict that are still held, and whether some of them no longer are. */
  #held: Set<Certname>;
  #heldChanged: boolean;
  /** Removals of the last hour, but for approved ones; the oldest first. `at` as Guard's `now`. */
  readonly removals: { at: number; count: number }[];
  /** Certnames that cannot be map keys, and nodes without a known producer, since the last full reading. */
  readonly refused: Set<string>;
  readonly withoutProducer: Set<Certname>;
  /** Everything was read at least once: only then is a node that PuppetDB does not list gone. */
  complete: boolean;

  /** Empty, or a copy to try something out on. */
  constructor(like?: Fleet) {
    this.map = new NodeMap(like?.map);
    this.unroutable = new Map(like?.unroutable);
    this.own = new Map(like?.own);
    this.homes = new Map(like?.homes);
    this.verdict = like?.verdict ?? { kind: "allowed" };
    this.#held = new Set(like === undefined ? [] : like.#held);
    this.#heldChanged = like === undefined ? false : like.#heldChanged;
    this.removals = like === undefined ? [] : [...like.removals];
    this.refused = new Set(like?.refused);
    this.withoutProducer = new Set(like?.withoutProducer);
    this.complete = like?.complete ?? false;
  }

  /**
   * Takes over what a target holds, for nodes that are not known otherwise: a sasori that starts while PuppetDB is
   * down serves, and guards, the last good map.
   */
  inherit(contents: Contents): void {
    for (const [certname, master] of contents.routes) {
      if (this.map.get(certname) !== undefined || !isMaster(master)) continue;
      this.map.observe({ certname, master, at: 0, source: "inherited" });
    }
  }

  /** False if something newer is known. A registration or a learned route becomes one of our own. */
  observe(observation: Observation): boolean {
    if (!this.map.observe(observation)) return false;
    const { certname, source } = observation;
    this.#unhold(certname);
    if (source === "registration" || source === "learned") {
      this.own.set(certname, observation);
      this.revision += 1;
    } else {
      this.#disown(certname);
    }
    return true;
  }

  /** Ends a registration or a learned route. What PuppetDB says (undefined: nothing) takes its place. */
  withdraw(certname: Certname, observation: Observation | undefined): void {
    if (!this.own.has(certname)) return; // PuppetDB has spoken since this was ordered.
    this.#remove(certname);
    if (observation !== undefined) this.observe(observation);
  }

  /** Its removal waits for approval. */
  isHeld(certname: Certname): boolean {
    return this.#held.has(certname);
  }

  /** What was held is another plan then: the next look at PuppetDB gives it another id. */
  #unhold(certname: Certname): void {
    if (this.#held.delete(certname)) this.#heldChanged = true;
  }

  #disown(certname: Certname): void {
    if (this.own.delete(certname)) this.revision += 1;
  }

  /**
   * Remembers where nodes were at home that leave a master while it is down, or that somebody moves away from one that is
   * drained: nothing brings them back by itself, because the producer follows the route. A node that leaves a living
   * master has a new home.
   */
  noteMoves(changes: Before, stateOf: (master: Master) => Server["state"]): void {
    for (const [certname, from] of changes) {
      const home = this.homes.get(certname);
      if (from === undefined && home === undefined) continue; // A new node has no home to lose.
      const { master: now, source } = this.map.get(certname) ?? {};
      if (now === from) continue;
      if (home !== undefined) {
        if (now === undefined || now === home || stateOf(home) === "up") this.#setHome(certname, undefined);
      } else if (from !== undefined && now !== undefined) {
        const state = stateOf(from);
        if (state === "down" || (state === "drained" && source === "registration"))
          this.#setHome(certname, from);
      }
    }
  }

  #setHome(certname: Certname, home: Master | undefined): void {
    this.revision += 1;
    if (home === undefined) this.homes.delete(certname);
    else this.homes.set(certname, home);
  }

  /**
   * Takes over a reading of PuppetDB, and removes what is gone if the guard lets it. Returns how long before `since`
   * (ms, PuppetDB's clock) a submission, new to us, had been received: PuppetDB stamps a command when it arrives and
   * stores it when its queue gets there. 0 when nothing came late.
   */
  merge(reading: Reading, resolve: Resolve, guard: Guard, since: number): number {
    let lateMs = 0;
    for (const submission of reading.submissions.values()) {
      if (reading.kind === "full") this.#correctTime(submission, reading.asOf);
      const news = this.#takeSubmission(submission, resolve(submission.producer));
      if (news && submission.receivedAt > 0) lateMs = Math.max(lateMs, since - submission.receivedAt);
    }
    this.#takeNames(reading);
    this.#judge(reading, guard);
    if (reading.kind === "full") this.complete = true;
    return lateMs;
  }

  #judge(reading: Reading, { limit, approved, now }: Guard): void {
    const gone =
      reading.active === undefined ? this.#goneSince(reading) : this.#goneFrom(reading, reading.active);
    // As many may be held as the fleet has nodes: nothing new costs nothing.
    if (gone === "as held" && approved === undefined) return;
    const nodes = gone === "as held" ? [...this.#held] : gone;
    while ((this.removals[0]?.at ?? now) < now - GUARD_MEMORY_MS) this.removals.shift();
    const lately = this.removals.reduce((sum, { count }) => sum + count, 0);
    this.verdict = judgeRemovals(nodes, this.map.size, limit, { approved, lately });
    this.#held = new Set(this.verdict.kind === "held" ? nodes : []);
    this.#heldChanged = false;
    if (this.verdict.kind === "held" || nodes.length === 0) return;
    const leaving = this.verdict.byApproval
      ? nodes
      : nodes.filter((certname) => !this.#isFresh(certname, reading));
    for (const certname of leaving) this.#remove(certname);
    if (this.verdict.byApproval || leaving.length === 0) return;
    this.removals.push({ at: now, count: leaving.length });
    this.revision += 1;
  }

  #isFresh(certname: Certname, { asOf, inactive }: Reading): boolean {
    // A time far ahead is that of a wrong clock.
    return !inactive.has(certname) && Math.abs(asOf - (this.map.get(certname)?.at ?? 0)) < FRESH_MS;
  }

  /**
   * A time far ahead would keep its node until then. PuppetDB is believed once it lists nothing as new any more. What was
   * ordered or learned meanwhile had to be later than the wrong time, and wins over that for as long as it is listed;
   * then it has the time when it was made, or, where nobody remembers, that of the reading.
   */
  #correctTime({ certname, at }: Submission, asOf: number): void {
    const isWrong = (time = 0) => time > asOf + AHEAD_MS && time > at;
    if (isWrong(this.unroutable.get(certname)?.at)) this.unroutable.delete(certname);
    const known = this.map.get(certname);
    if (known === undefined || !isWrong(known.at)) return;
    if (!this.own.has(certname)) this.map.redate(certname, at - 1);
    else if (at <= asOf + AHEAD_MS) this.#redateOwn(certname, Math.min(known.made ?? asOf, asOf));
  }

  #redateOwn(certname: Certname, at: number): void {
    const redated = this.map.redate(certname, at);
    if (redated === undefined) return;
    this.own.set(certname, redated);
    this.revision += 1;
  }

  #takeSubmission(submission: Submission, master: Master | undefined): boolean {
    const { certname, at, source } = submission;
    const known = this.map.get(certname);
    const unroutable = this.unroutable.get(certname);
    // Seen before, but HAProxy may have other servers since.
    const again = known?.at === at && known.source === source;
    if (master === undefined) {
      const news = at > Math.max(known?.at ?? 0, unroutable?.at ?? 0);
      if (news || again) this.unroutable.set(certname, submission);
      return news;
    }
    if (unroutable !== undefined && unroutable.at <= at) this.unroutable.delete(certname);
    return again ? this.map.reassign(certname, master) : this.observe({ certname, master, at, source });
  }

  #takeNames({ kind, refused, withoutProducer, submissions }: Reading): void {
    if (kind === "full") {
      this.refused.clear();
      this.withoutProducer.clear();
    }
    for (const name of refused) if (this.refused.size < MAX_REFUSED) this.refused.add(name);
    for (const certname of withoutProducer) this.withoutProducer.add(certname);
    for (const certname of submissions.keys()) this.withoutProducer.delete(certname);
  }

  /** After a full reading: everything that it does not list. */
  #goneFrom(reading: Reading, active: Names): Certname[] {
    for (const certname of this.unroutable.keys())
      if (!active.has(certname)) this.unroutable.delete(certname);
    const gone: Certname[] = [];
    for (const { certname, at } of this.map.assignments()) {
      if (active.has(certname)) continue;
      // A registration may be for a node that PuppetDB has never seen; a later deactivation ends it.
      if (this.own.has(certname) && (reading.inactive.get(certname) ?? 0) <= at) continue;
      gone.push(certname);
    }
    return gone;
  }

  /** After a reading of changes: what was deactivated lately, and what was held and has not come back. */
  #goneSince({ inactive, submissions }: Reading): Certname[] | "as held" {
    const news = new Set<Certname>();
    for (const [certname, at] of inactive) {
      const assignment = this.map.get(certname);
      const back = (submissions.get(certname)?.at ?? 0) > at;
      if (assignment === undefined || back || (this.own.has(certname) && assignment.at >= at)) continue;
      if (!this.#held.has(certname)) news.add(certname);
    }
    for (const certname of submissions.keys()) this.#unhold(certname);
    if (news.size === 0 && !this.#heldChanged) return this.#held.size === 0 ? [] : "as held";
    return [...this.#held, ...news];
  }

  #remove(certname: Certname): void {
    this.#unhold(certname);
    this.map.remove(certname);
    this.unroutable.delete(certname);
    this.#disown(certname);
  }
}

/** As DNS compares names: letter case and a dot at the end make no difference. */
const dnsName = (name: string) => name.toLowerCase().replace(/\.$/, "");

/**
 * An alias first, then a server of the producer's name, then a server with the producer as its host. With no
 * HAProxy to ask (`servers` undefined) the producer's own name is the server's.
 */
export function resolver(
  aliases: ReadonlyMap<string, Master>,
  servers: readonly Server[] | undefined,
): Resolve {
  const aliasOf = new Map(Array.from(aliases, ([producer, server]) => [dnsName(producer), server]));
  const known = new Map<string, Master>();
  for (const { name, host } of servers ?? []) if (!known.has(dnsName(host))) known.set(dnsName(host), name);
  for (const { name } of servers ?? []) known.set(dnsName(name), name);
  const names = new Set<string>(servers?.map(({ name }) => name));
  return (producer) => {
    const alias = aliasOf.get(dnsName(producer));
    if (servers === undefined) return alias ?? (isMaster(producer) ? producer : undefined);
    if (alias !== undefined) return names.has(alias) ? alias : undefined;
    return names.has(producer) ? (producer as Master) : known.get(dnsName(producer));
  };
}
