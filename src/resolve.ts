// "Who has this node now?", asked by HAProxy when a route turned out wrong, with a client waiting for the answer.
// Answers from what sasori knows newer than that route, else from PuppetDB, for this one node, else by asking the
// masters themselves. Promises: questions for one node at a time are one question; answers, and that there is
// none, are remembered for seconds; questions under way and those to the masters are bounded, so that bogus or dying
// nodes can flood neither PuppetDB nor the masters. What was never asked is neither an answer nor remembered.

import { request } from "undici";
import { within } from "./deadline.js";
import { SasoriError } from "./errors.js";
import type { Fleet, Resolve } from "./fleet.js";
import type { Assignment, Certname, Master, Observation } from "./node-map.js";
import type { PuppetDb, Submission } from "./source/puppetdb.js";
import type { Server } from "./target/target.js";

/** HAProxy waits 2 s. */
const DEADLINE_MS = 1_800;
const PROBE_DEADLINE_MS = 800;
const PUPPETDB_DEADLINE_MS = DEADLINE_MS - PROBE_DEADLINE_MS;

/** A person can wait longer. */
const PATIENT_MS = 15_000;

/** A moved node's requests come in bursts; a route that was right a moment ago may be wrong soon. */
const REMEMBERED_MS = 3_000;
const MAX_REMEMBERED = 10_000;

/** A probe asks every master, so a flood of bogus names must not become one of probes. What comes beyond is refused too. */
const MAX_PROBES_PER_SECOND = 200;

/**
 * Nodes asked about at once. What comes beyond is refused, and HAProxy goes on by itself. Names that the map does not hold
 * may take no more than this share of it, and of the probes: anybody can make up such names, however many.
 */
const MAX_UNDERWAY = 200;
const STRANGERS_SHARE = 0.5;

/** Nodes in one question to PuppetDB; with long names it still fits a request line. */
const MAX_BATCH = 50;

export interface ResolverParts {
  fleet: Pick<Fleet, "map">;
  puppetdb: Pick<PuppetDb, "readNodes">;
  /** Producer to server, by the servers that HAProxy has now. */
  resolve: () => Resolve;
  servers: () => readonly Server[];
  /** Path of a master that answers 200 for a node that it has, with `{certname}` in it. */
  probePath: string | undefined;
  /** Told what was found out; it must reach the map. */
  onObservation: (observation: Observation) => void;
}

interface Answer {
  owner: Master | undefined;
  /** What the map said then: with news of the node the answer is forgotten. */
  known: Assignment | undefined;
  until: number;
}

interface Waiting {
  resolve: (submission: Submission | undefined) => void;
  reject: (error: unknown) => void;
}

export class Resolver {
  readonly #parts: ResolverParts;
  readonly #underway = new Map<Certname, Promise<Master | undefined>>();
  /** In the order of their time, so that the first is the oldest. */
  readonly #remembered = new Map<Certname, Answer>();
  readonly #waiting = new Map<Certname, Waiting>();
  #asking = false;
  #probes = { second: 0, count: 0 };

  constructor(parts: ResolverParts) {
    this.#parts = parts;
  }

  /**
   * The node's master, or undefined when nobody knows one. `wrong` is the master whose answer raised the
   * question. Throws, and HAProxy then looks for the node by itself: `BUSY` when too much is asked at once; when no owner
   * was found, `PUPPETDB_...` if PuppetDB could not be asked, or `PROBE_TIMEOUT` if a master did not say whether it has
   * the node.
   */
  async owner(certname: Certname, wrong: string | undefined): Promise<Master | undefined> {
    const known = this.#parts.fleet.map.get(certname);
    // The map already says otherwise than the route that was tried: that HAProxy has not got it yet.
    if (known !== undefined && known.source !== "inherited" && known.master !== wrong) return known.master;
    const answer = this.#remembered.get(certname);
    if (answer !== undefined && answer.known === known && performance.now() < answer.until)
      return answer.owner;
    const underway = this.#underway.get(certname);
    if (underway !== undefined) return underway;
    if (this.#underway.size >= MAX_UNDERWAY * shareOf(known)) {
      throw busy(`${this.#underway.size} nodes are being looked for`);
    }
    const asked = this.#ask(certname, wrong).finally(() => this.#underway.delete(certname));
    this.#underway.set(certname, asked);
    return asked;
  }

  async #ask(certname: Certname, wrong: string | undefined): Promise<Master | undefined> {
    const observation = await this.#observed(certname).catch((error: unknown) => error);
    let unanswered = observation instanceof Error ? observation : undefined;
    let owner: Master | undefined;
    let isNews = false;
    if (isObservation(observation)) {
      owner = observation.master;
      // What PuppetDB has may be older than what a probe has found out, and then it is no answer.
      isNews = owner !== wrong && observation.at > (this.#parts.fleet.map.get(certname)?.at ?? 0);
      if (isNews) this.#parts.onObservation(observation);
    }
    if (!isNews) {
      if (!this.#mayProbe(certname)) {
        // Nobody was asked: there is nothing to remember, and the master that was wrong is no answer.
        if (owner !== undefined && owner !== wrong) return owner;
        throw unanswered ?? busy("too many nodes are being looked for at the masters");
      }
      const found = await this.#probe(certname).catch((error: Error) => error);
      if (found instanceof Error) unanswered ??= found;
      else owner = found ?? owner;
    }
    if (owner === undefined && unanswered !== undefined) throw unanswered;
    this.#remember(certname, owner);
    return owner;
  }

  /** PuppetDB's newest observation of a node at a master that HAProxy has. Throws `PUPPETDB_...`. */
  async #observed(certname: Certname): Promise<Observation | undefined> {
    const submission = await within(
      PUPPETDB_DEADLINE_MS,
      undefined,
      late(PUPPETDB_DEADLINE_MS),
      (signal) =>
        new Promise<Submission | undefined>((resolve, reject) => {
          // Its turn may not have come, behind a question that PuppetDB is slow to answer.
          const onAbort = () => {
            this.#waiting.delete(certname);
            reject(signal.reason);
          };
          signal.addEventListener("abort", onAbort, { once: true });
          this.#waiting.set(certname, { resolve, reject });
          if (!this.#asking) void this.#askWaiting();
        }),
    );
    const master = submission && this.#parts.resolve()(submission.producer);
    return submission && master && { certname, master, at: submission.at, source: submission.source };
  }

  /**
   * What takes the place of a registration that ends: PuppetDB's newest observation, undefined for a node that it does not
   * know. A node whose producer has no server keeps its route. Throws `PUPPETDB_...`.
   */
  async withoutRegistration(certname: Certname): Promise<Observation | undefined> {
    const found = await within(PATIENT_MS, undefined, late(PATIENT_MS), (signal) =>
      this.#parts.puppetdb.readNodes([certname], signal),
    );
    const submission = found.get(certname);
    if (submission === undefined) return undefined;
    const { producer, at, source } = submission;
    const master = this.#parts.resolve()(producer) ?? this.#parts.fleet.map.get(certname)?.master;
    return master && { certname, master, at, source };
  }

  // One question at a time, for all nodes that wait by then: thousands of stale routes are few queries.
  async #askWaiting(): Promise<void> {
    this.#asking = true;
    while (this.#waiting.size > 0) {
      const batch = new Map([...this.#waiting].slice(0, MAX_BATCH));
      for (const certname of batch.keys()) this.#waiting.delete(certname);
      try {
        const found = await within(PUPPETDB_DEADLINE_MS, undefined, late(PUPPETDB_DEADLINE_MS), (signal) =>
          this.#parts.puppetdb.readNodes([...batch.keys()], signal),
        );
        for (const [certname, { resolve }] of batch) resolve(found.get(certname));
      } catch (error) {
        for (const { reject } of batch.values()) reject(error);
      }
    }
    this.#asking = false;
  }

  /** Asks all masters that are up, at once. The first that has the node wins. Throws `PROBE_TIMEOUT`. */
  async #probe(certname: Certname): Promise<Master | undefined> {
    const { probePath, servers } = this.#parts;
    if (probePath === undefined) return undefined;
    const path = probePath.replaceAll("{certname}", certname);
    const slow = new SasoriError("PROBE_TIMEOUT", "not every master said in time whether it has the node");
    return within(PROBE_DEADLINE_MS, undefined, slow, async (signal) => {
      const up = new Map(servers().flatMap((server) => (server.up ? [[server.address, server]] : [])));
      const master = await Promise.any(
        Array.from(up.values(), (server) => hasNode(server, path, signal)),
      ).catch(() => {
        signal.throwIfAborted(); // A master that was too slow may have it.
        return undefined;
      });
      const at = this.#parts.fleet.map.timeAfterKnown(certname, Date.now());
      if (master !== undefined) this.#parts.onObservation({ certname, master, at, source: "learned" });
      return master;
    });
  }

  /** Also where there are no probes: then there is nothing to refuse. */
  #mayProbe(certname: Certname): boolean {
    if (this.#parts.probePath === undefined) return true;
    const second = Math.floor(performance.now() / 1000);
    if (this.#probes.second !== second) this.#probes = { second, count: 0 };
    if (this.#probes.count >= MAX_PROBES_PER_SECOND * shareOf(this.#parts.fleet.map.get(certname)))
      return false;
    this.#probes.count += 1;
    return true;
  }

  #remember(certname: Certname, owner: Master | undefined): void {
    this.#remembered.delete(certname);
    const known = this.#parts.fleet.map.get(certname);
    this.#remembered.set(certname, { owner, known, until: performance.now() + REMEMBERED_MS });
    if (this.#remembered.size <= MAX_REMEMBERED) return;
    const [oldest] = this.#remembered.keys();
    if (oldest !== undefined) this.#remembered.delete(oldest);
  }
}

const shareOf = (known: Assignment | undefined) => (known === undefined ? STRANGERS_SHARE : 1);

const late = (ms: number) =>
  new SasoriError("PUPPETDB_TIMEOUT", `PuppetDB has not answered within ${ms} ms: it is too slow or hangs`);

const busy = (what: string) => new SasoriError("BUSY", `${what}: ask again`);

function isObservation(value: unknown): value is Observation {
  return typeof value === "object" && value !== null && "master" in value;
}

/** Rejects unless the master answers 200. */
async function hasNode({ name, address }: Server, path: string, signal: AbortSignal): Promise<Master> {
  const { statusCode, body } = await request(`http://${address}${path}`, { signal });
  await body.dump();
  if (statusCode !== 200) throw new Error(`${name} answered ${statusCode}`);
  return name;
}
