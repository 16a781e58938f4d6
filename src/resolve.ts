// "Who has this node now?" HAProxy asks this when a route was wrong, while a client waits for the answer.
// sasori answers from what it knows, if that is newer than the route. Otherwise it asks PuppetDB about this one node, and
// then the masters themselves.
// Promises: an answer rests on evidence that is newer than the route, or there is no answer; "nothing newer is known" is not
// remembered, so a node that moves right afterwards is found; PuppetDB gets one question at a time, for all nodes that wait,
// and the questions to it and to the masters are bounded, so that bogus or dying nodes cannot flood them. If PuppetDB or a
// master was not asked, that does not count as a "no".

import { setTimeout as sleep } from "node:timers/promises";
import { within } from "./deadline.js";
import { SasoriError } from "./errors.js";
import type { Fleet, Resolve } from "./fleet.js";
import type { Assignment, Certname, Master, Observation } from "./node-map.js";
import type { HasNode } from "./probe.js";
import type { HasServer, Submission } from "./source/reading.js";
import { PartlyRead, type Source } from "./source/source.js";
import type { Server } from "./target/target.js";

/** Less than the 2 s that HAProxy waits (heal.lua). */
const DEADLINE_MS = 1_800;
const PROBE_DEADLINE_MS = 800;
const PUPPETDB_DEADLINE_MS = DEADLINE_MS - PROBE_DEADLINE_MS;

/** A person can wait longer. */
const PATIENT_MS = 15_000;

/** How long an answer is remembered: a moved node's requests come in bursts, but a correct route may soon be wrong. */
const REMEMBERED_MS = 3_000;
const MAX_REMEMBERED = 10_000;

/**
 * A probe asks every master, so a flood of bogus names must not cause a flood of probes. Further probes wait, for a short
 * time.
 */
const PROBES_PER_SECOND = 100;
const MAX_PROBE_WAIT_MS = 400;
/** After a quiet time, as many probes may run at once as are otherwise spread over this time. */
const PROBE_BURST_MS = 1_000;

/**
 * For how many nodes an answer may be sought at once. Further ones are refused. Names that the map does not hold get only a
 * share of that, and of the probes, because anybody can make up any number of them.
 */
const MAX_UNDERWAY = 1_000;
const STRANGERS_SHARE = 0.5;

/** Maximum number of nodes in one query to PuppetDB. */
const MAX_BATCH = 200;
/** Between two queries PuppetDB gets a pause as long as the first one took, but no longer than this. */
const MAX_REST_MS = 100;

export interface ResolverParts {
  fleet: Pick<Fleet, "map" | "tombstones" | "timeAfterKnown">;
  puppetdb: Pick<Source, "readNodes">;
  /** Finds a producer's server among those that HAProxy has now. */
  resolve: () => Resolve;
  /** False after a start, until the first HAProxy was read. */
  knowsServers: () => boolean;
  servers: () => readonly Server[];
  /** Path of a master that answers 200 for a node that it has, with `{certname}` in it. */
  probePath: string | undefined;
  hasNode: HasNode;
  /** Called with what was found out. It must bring that into the map. */
  onObservation: (observation: Observation) => void;
}

/** An owner that was found out, and is not in the map yet. */
interface Answer {
  owner: Master;
  /** The node's assignment at that time. If it has changed since, the answer is forgotten. */
  known: Assignment | undefined;
  until: number;
}

/** A question to PuppetDB that was not sent yet. All who ask about the same node share it. */
interface Waiting {
  askers: number;
  found: Promise<Submission | undefined>;
  resolve: (submission: Submission | undefined) => void;
  reject: (error: unknown) => void;
}

export class Resolver {
  readonly #parts: ResolverParts;
  /** In the order of their time, so that the first is the oldest. */
  readonly #remembered = new Map<Certname, Answer>();
  readonly #waiting = new Map<Certname, Waiting>();
  #asking = false;
  #underway = 0;
  /** When the next probe may begin (`performance.now()`). */
  #nextProbeAt = 0;

  constructor(parts: ResolverParts) {
    this.#parts = parts;
  }

  /**
   * The node's master. It is never `wrong`, the master that said that it does not have the node. Undefined if nothing newer
   * than the map is known. Throws `BUSY` if too much is asked at once or too soon after the start, `PUPPETDB_...` if PuppetDB
   * could not be asked, and `PROBE_TIMEOUT` if a master did not say whether it has the node. A master's silence does not
   * count if `wrong` is the node's master by the map, and PuppetDB knows nothing newer.
   */
  async owner(certname: Certname, wrong: string | undefined): Promise<Master | undefined> {
    const known = this.#parts.fleet.map.get(certname);
    // The map already has another master than the one that was tried. The HAProxy that asks does not have the change yet.
    if (known !== undefined && known.source !== "inherited" && known.master !== wrong) return known.master;
    const answer = this.#remembered.get(certname);
    if (answer?.known === known && answer !== undefined && performance.now() < answer.until)
      return answer.owner === wrong ? undefined : answer.owner;
    // Without the servers every producer would look unroutable, and the answer "nothing newer is known" could be wrong.
    if (!this.#parts.knowsServers()) throw busy("sasori does not know HAProxy's servers yet");
    const share = known === undefined ? STRANGERS_SHARE : 1;
    if (this.#underway >= MAX_UNDERWAY * share) throw busy(`${this.#underway} nodes are being looked for`);
    this.#underway += 1;
    try {
      const owner = await this.#find(certname, known, wrong);
      return owner === wrong ? undefined : owner;
    } finally {
      this.#underway -= 1;
    }
  }

  /**
   * Asks PuppetDB whether the node has moved away from its master in the map. If so, the move is brought into the map. Never
   * asks the masters. Throws `PUPPETDB_...`.
   */
  async look(certname: Certname): Promise<boolean> {
    const known = this.#parts.fleet.map.get(certname);
    const observation = await this.#observed(certname);
    if (observation === undefined || !this.#isNews(observation, known)) return false;
    this.#learn(observation, known);
    return observation.master !== known?.master;
  }

  /** The node's master by evidence that is newer than what is known, or undefined. */
  async #find(certname: Certname, known: Assignment | undefined, wrong: string | undefined) {
    const observation = await this.#observed(certname).catch((error: Error) => error);
    if (!(observation instanceof Error) && observation !== undefined && this.#isNews(observation, known)) {
      this.#learn(observation, known);
      return observation.master;
    }
    const isConfirmed = !(observation instanceof Error) && known !== undefined && known.master === wrong;
    const probed = await this.#probe(certname, known).catch((error: SasoriError) => {
      if (isConfirmed && error.code === "PROBE_TIMEOUT") return undefined; // This is not evidence.
      throw error;
    });
    if (probed === undefined && observation instanceof Error) throw observation;
    return probed;
  }

  #isNews({ certname, at }: Observation, known: Assignment | undefined): boolean {
    return at > (known?.at ?? this.#parts.fleet.tombstones.get(certname)?.at ?? -1);
  }

  /** Reading is not writing: nothing is learned that the map says already. */
  #learn(observation: Observation, known: Assignment | undefined): void {
    const { certname, master: owner } = observation;
    if (owner === known?.master) return;
    this.#remembered.delete(certname);
    this.#remembered.set(certname, { owner, known, until: performance.now() + REMEMBERED_MS });
    const [oldest] = this.#remembered.keys();
    if (oldest !== undefined && this.#remembered.size > MAX_REMEMBERED) this.#remembered.delete(oldest);
    this.#parts.onObservation(observation);
  }

  /** PuppetDB's newest observation of a node at a master that HAProxy has. Throws `PUPPETDB_...`. */
  async #observed(certname: Certname): Promise<Observation | undefined> {
    const waiting = this.#waiting.get(certname) ?? this.#enqueue(certname);
    waiting.askers += 1;
    const submission = await within(PUPPETDB_DEADLINE_MS, undefined, late(PUPPETDB_DEADLINE_MS), (signal) =>
      Promise.race([waiting.found, rejection(signal)]),
    ).finally(() => {
      waiting.askers -= 1;
      // The query may still wait for an earlier one that PuppetDB answers slowly.
      const isUnsent = this.#waiting.get(certname) === waiting;
      if (isUnsent && waiting.askers === 0) this.#waiting.delete(certname);
    });
    const master = submission && this.#parts.resolve()(submission.producer);
    if (submission === undefined || master === undefined) return undefined;
    const { at, source, from } = submission;
    return { certname, master, at, source, ...(from !== undefined && { from }) };
  }

  #enqueue(certname: Certname): Waiting {
    const waiting = { askers: 0 } as Waiting;
    waiting.found = new Promise((resolve, reject) => Object.assign(waiting, { resolve, reject }));
    waiting.found.catch(() => undefined); // If no caller waits any more, a failure must not be an unhandled rejection.
    this.#waiting.set(certname, waiting);
    if (!this.#asking) void this.#askWaiting();
    return waiting;
  }

  /**
   * What replaces a registration that ends: PuppetDB's newest observation, or undefined for a node that PuppetDB does not know.
   * A node whose producer has no server keeps its route. Throws `PUPPETDB_...`, also if one of several PuppetDBs does not
   * answer and the others know only routes that are older than the one that the registration replaced.
   */
  async withoutRegistration({ certname, reported }: Observation): Promise<Observation | undefined> {
    const resolve = this.#parts.resolve();
    const read = (hasServer: HasServer) =>
      within(PATIENT_MS, undefined, late(PATIENT_MS), (signal) =>
        this.#parts.puppetdb.readNodes([certname], signal, hasServer, true),
      ).catch((error: unknown) => {
        if (!(error instanceof PartlyRead)) throw error;
        const { at = -1 } = error.found.get(certname) ?? {};
        if (at < (reported ?? Number.POSITIVE_INFINITY)) throw error;
        return error.found;
      });
    const routable = await read((producer) => resolve(producer) !== undefined);
    const submission = routable.get(certname) ?? (await read(() => true)).get(certname);
    if (submission === undefined) return undefined;
    const { producer, at, source, from } = submission;
    const master = resolve(producer) ?? this.#parts.fleet.map.get(certname)?.master;
    return master && { certname, master, at, source, ...(from !== undefined && { from }) };
  }

  // One question at a time, for all nodes that wait by then. So thousands of stale routes are few queries. A caller that asks
  // about a node whose question was already sent waits for the next one, because the node may have moved meanwhile.
  async #askWaiting(): Promise<void> {
    this.#asking = true;
    while (this.#waiting.size > 0) {
      const batch = this.#nextBatch();
      for (const certname of batch.keys()) this.#waiting.delete(certname);
      const began = performance.now();
      try {
        const resolve = this.#parts.resolve();
        const hasServer = (producer: string) => resolve(producer) !== undefined;
        const found = await within(PUPPETDB_DEADLINE_MS, undefined, late(PUPPETDB_DEADLINE_MS), (signal) =>
          this.#parts.puppetdb.readNodes([...batch.keys()], signal, hasServer),
        );
        for (const [certname, { resolve }] of batch) resolve(found.get(certname));
      } catch (error) {
        const found = error instanceof PartlyRead ? error.found : undefined;
        for (const [certname, { resolve, reject }] of batch) {
          const submission = found?.get(certname);
          if (submission === undefined) reject(error);
          else resolve(submission);
        }
      }
      if (this.#waiting.size > 0) await sleep(Math.min(performance.now() - began, MAX_REST_MS));
    }
    this.#asking = false;
  }

  /** Nodes of the map come first, so that none of them waits for names that somebody made up. */
  #nextBatch(): Map<Certname, Waiting> {
    const { map } = this.#parts.fleet;
    const isStranger = ([certname]: [Certname, Waiting]) => Number(map.get(certname) === undefined);
    const inTurn = [...this.#waiting].sort((one, other) => isStranger(one) - isStranger(other));
    return new Map(inTurn.slice(0, MAX_BATCH));
  }

  /**
   * Asks all masters that are up, in parallel. If several have the node, the one in the map wins, otherwise the first to
   * answer. Throws `BUSY` or `PROBE_TIMEOUT`.
   */
  async #probe(certname: Certname, known: Assignment | undefined): Promise<Master | undefined> {
    const { probePath, servers, fleet, hasNode } = this.#parts;
    if (probePath === undefined) return undefined;
    await this.#probeTurn(known === undefined);
    const path = probePath.replaceAll("{certname}", certname);
    const unsaid = new SasoriError("PROBE_TIMEOUT", "not every master said in time whether it has the node");
    const master = await within(PROBE_DEADLINE_MS, undefined, unsaid, async (signal) => {
      const up = new Map(servers().flatMap((server) => (server.up ? [[server.address, server]] : [])));
      const asked = Array.from(up.values(), (server) => ({
        name: server.name,
        found: hasNode(server, path, signal),
      }));
      const own = asked.find(({ name }) => name === known?.master)?.found.catch(() => undefined);
      const first = await firstFound(asked.map(({ found }) => found)).catch(() => {
        throw unsaid; // The master that did not answer may have it.
      });
      return first && ((await own) ?? first);
    });
    const at = fleet.timeAfterKnown(certname, Date.now());
    if (master !== undefined) this.#learn({ certname, master, at, source: "learned" }, known);
    return master;
  }

  async #probeTurn(isStranger: boolean): Promise<void> {
    const now = performance.now();
    const turn = Math.max(this.#nextProbeAt, now - PROBE_BURST_MS) + 1_000 / PROBES_PER_SECOND;
    const latest = isStranger ? -PROBE_BURST_MS * STRANGERS_SHARE : MAX_PROBE_WAIT_MS;
    if (turn > now + latest) throw busy("too many nodes are being looked for at the masters");
    this.#nextProbeAt = turn;
    if (turn > now) await sleep(turn - now);
  }
}

/** The first that is found; undefined if all say that there is nothing. Rejects if there is nothing and one has failed. */
async function firstFound<T>(asked: readonly Promise<T | undefined>[]): Promise<T | undefined> {
  const nothing = new Error("nothing");
  const found = asked.map((one) => one.then((it) => it ?? Promise.reject(nothing)));
  return Promise.any(found).catch(({ errors }: AggregateError) => {
    const failure = errors.find((error) => error !== nothing);
    if (failure !== undefined) throw failure;
    return undefined;
  });
}

/** Never resolves. */
const rejection = (signal: AbortSignal): Promise<never> =>
  new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason), { once: true }));

const late = (ms: number) =>
  new SasoriError("PUPPETDB_TIMEOUT", `PuppetDB has not answered within ${ms} ms: it is too slow or hangs`);

const busy = (what: string) => new SasoriError("BUSY", `${what}: ask again`);
