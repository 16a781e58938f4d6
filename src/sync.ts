// One pass: look at the targets, read PuppetDB, merge, plan each target, write the file, then push to every
// HAProxy in parallel. Its result is one SyncReport, and whoever tells people about a pass (log, metrics,
// HTTP, command line, exit code) reads that report.
// Promises: one pass at a time; a request during a pass joins the next one; one target's failure never stops
// another; a target that failed is read again and planned afresh.

import type { Config } from "./config.js";
import { type Failure, SasoriError, toFailure } from "./errors.js";
import { Fleet, type Guard, type Resolve, resolver } from "./fleet.js";
import { HaproxyInstance } from "./haproxy.js";
import { Journal } from "./journal.js";
import { MapFile } from "./map-file.js";
import { type MasterChange, NewMasters } from "./masters.js";
import type { Before, Certname, Master, Observation } from "./node-map.js";
import {
  type Change,
  type Contents,
  type Fingerprint,
  learnedRoutes,
  type Plan,
  planFromChanges,
  planFromContents,
  type Server,
  type Sighting,
  type Target,
} from "./plan.js";
import { PuppetDb, type Reading } from "./puppetdb.js";

/** Deadlines of a whole pass. A quiet pass takes milliseconds, a full read of a million nodes a minute. */
const CHANGES_DEADLINE_MS = 60_000;
const FULL_DEADLINE_MS = 10 * 60_000;

/** How long a target that stalled is left alone by passes that only look for changes. */
const STALLED_PAUSE_MS = 60_000;

/** How many changes a report lists one by one; it always counts all. */
const MAX_LISTED = 1_000;

/** A push that somebody disturbs (a reload, another writer) is planned again this often in one pass. */
const MAX_ROUNDS = 3;

/** A submission may be stored some time after it was received: look back this far, or further when seen. */
const MIN_OVERLAP_MS = 15_000;
const MAX_OVERLAP_MS = 15 * 60_000;

export interface SyncRequest {
  /** Do not ask PuppetDB: only bring what is known to the targets. */
  known?: boolean | undefined;
  /** Read everything and compare it with every target, instead of looking for changes. */
  full?: boolean | undefined;
  /** Plan only. */
  dryRun?: boolean | undefined;
  /** Let the removals of the held plan of this id through. */
  approve?: string | undefined;
}

export interface TargetReport {
  target: string;
  kind: Target["kind"];
  outcome: "unchanged" | "planned" | "applied" | "failed";
  add: number;
  set: number;
  del: number;
  /** The first of these changes. */
  changes: Change[];
  /** Routes that this HAProxy had learned by itself. */
  learned: number;
  method?: string;
  durationMs: number;
  failure?: Failure;
}

export interface SyncReport {
  /** `known`: PuppetDB was not asked, only what was known went to the targets. */
  kind: "known" | "changes" | "full";
  dryRun: boolean;
  outcome: "done" | "failed" | "held";
  /** ISO 8601. */
  startedAt: string;
  durationMs: number;
  phasesMs: { look: number; fetch: number; plan: number; file: number; push: number };
  source: { outcome: "done" | "failed" | "not asked"; submissions: number; failure?: Failure };
  /** Nodes in the desired map after the pass. */
  nodes: number;
  /** How many nodes changed in the map, by the plan of the file; which ones stands in its report. */
  moved: number;
  learned: number;
  /** HAProxy servers that were added or removed at run time, and producers that could get none. */
  masters: { changes: MasterChange[]; failures: Failure[] };
  /** Nodes that left a master while it was down, and have not come back. */
  displaced: number;
  unroutable: { nodes: number; producers: Record<string, number> };
  refused: { count: number; samples: string[] };
  withoutProducer: { count: number; samples: string[] };
  held?: { id: string; reason: string; count: number; samples: string[] };
  targets: TargetReport[];
  /** The state file could not be written. */
  journal?: Failure;
}

export interface TargetState {
  target: string;
  kind: Target["kind"];
  /** It held the desired map when it was last looked at. */
  inSync: boolean;
  /** Changes that it does not have yet. */
  pending: number;
  version?: string;
  servers?: readonly Server[];
  failure?: Failure;
}

/** What is remembered of a target between passes. */
interface Tracked {
  target: Target;
  /** As it was left; undefined when it must be read: never seen, failed, or disturbed. */
  left: Fingerprint | undefined;
  /** The process that was last in sync: only there can another value have been learned. */
  process: string | undefined;
  /** Nodes that changed since, with what the target still has. */
  pending: Before;
  servers: readonly Server[];
  /** Servers that sasori added to it at run time. */
  added: Set<Master>;
  failure: Failure | undefined;
  /** A stalled target is left alone until then (`performance.now()`). */
  retryAt: number;
  version: string;
}

/** What one pass knows of one target. */
interface Turn {
  tracked: Tracked;
  report: TargetReport;
  sighting: Sighting | undefined;
  contents: Contents | undefined;
}

/** What a pass has gathered for its report. */
interface PassFacts {
  kind: SyncReport["kind"];
  clock: Phases;
  reading: Reading | Failure | undefined;
  turns: readonly Turn[];
  learned: number;
  masters: SyncReport["masters"];
  journal: Failure | undefined;
}

const NO_MASTERS: SyncReport["masters"] = { changes: [], failures: [] };

export interface SyncParts {
  config: Pick<Config, "haproxy" | "masterAliases" | "maxRemoved">;
  puppetdb: PuppetDb;
  file: MapFile;
  instances: readonly HaproxyInstance[];
  journal: Journal;
  newMasters?: NewMasters | undefined;
}

/** All parts as the configuration wants them. */
export function assemble(config: Config): SyncParts {
  return {
    config,
    puppetdb: new PuppetDb(config.puppetdb),
    file: new MapFile(config.mapFile),
    instances: config.haproxy.map((endpoint) => new HaproxyInstance(endpoint, config)),
    journal: new Journal(config.stateFile),
    newMasters: config.newMasters && new NewMasters(config.newMasters),
  };
}

export class Sync {
  readonly fleet = new Fleet();
  readonly #parts: SyncParts;
  readonly #onReport: ((report: SyncReport) => void) | undefined;
  readonly #tracked: Tracked[];
  /** Ends the pass under way. One for each: a signal that lives as long as the process gathers listeners. */
  #abort = new AbortController();
  #stopping: SasoriError | undefined;
  /** What was found out or ordered outside of a pass, for the next one. */
  readonly #submitted: ((fleet: Fleet) => void)[] = [];
  #savedRevision = 0;
  #watermark: { asOf: number; overlapMs: number } | undefined;
  #serverNames = "";
  #running: Promise<SyncReport> | undefined;
  #next: { request: SyncRequest; report: Promise<SyncReport> } | undefined;
  lastReport: SyncReport | undefined;
  /** The step of the pass under way, for whoever shows progress. */
  phase: Phase | undefined;

  /** `onReport` gets the report of each pass before those who asked for it. */
  constructor(parts: SyncParts, onReport?: (report: SyncReport) => void) {
    this.#parts = parts;
    this.#onReport = onReport;
    this.#tracked = [parts.file, ...parts.instances].map((target) => ({
      target,
      left: undefined,
      process: undefined,
      pending: new Map(),
      servers: [],
      added: new Set(),
      failure: undefined,
      retryAt: 0,
      version: "",
    }));
  }

  /** The state of each target between passes. */
  targets(): TargetState[] {
    return this.#tracked.map(({ target, left, pending, failure, version, servers }) => ({
      target: target.name,
      kind: target.kind,
      inSync: left !== undefined && pending.size === 0,
      pending: pending.size,
      ...(target.kind === "haproxy" && { version, servers }),
      ...(failure && { failure }),
    }));
  }

  /** Takes over registrations and learned routes of an earlier run. Throws `STATE_FILE`. */
  async restore(): Promise<void> {
    const { observations, homes } = await this.#parts.journal.load();
    for (const observation of observations) this.fleet.observe(observation);
    for (const [certname, home] of homes) this.fleet.homes.set(certname, home);
  }

  /**
   * Runs a pass, or joins the one that will follow the pass under way: what is asked for now may have been
   * read too early by it. Never rejects for a failed pass: the report says so.
   */
  request(request: SyncRequest): Promise<SyncReport> {
    if (this.#stopping !== undefined) return Promise.reject(this.#stopping);
    if (this.#running === undefined) return this.#run(request);
    if (this.#next === undefined) {
      const joined: SyncRequest = { ...request };
      const report = this.#running.then(
        () => this.#runNext(),
        () => this.#runNext(),
      );
      this.#next = { request: joined, report };
    } else {
      const joined = this.#next.request;
      joined.full = joined.full || request.full;
      joined.dryRun = joined.dryRun && request.dryRun;
      joined.known = joined.known && request.known;
      joined.approve = request.approve ?? joined.approve;
    }
    return this.#next.report;
  }

  /** Takes an observation made outside of a pass, and brings it to every target as soon as possible. */
  submit(observation: Observation): Promise<SyncReport> {
    return this.#submit((fleet) => fleet.observe(observation));
  }

  /** Ends a registration or learned route; `observation` is what PuppetDB has of the node instead. */
  withdraw(certname: Certname, observation: Observation | undefined): Promise<SyncReport> {
    return this.#submit((fleet) => fleet.withdraw(certname, observation));
  }

  #submit(change: (fleet: Fleet) => void): Promise<SyncReport> {
    this.#submitted.push(change);
    return this.request({ known: true });
  }

  /** The servers of every instance, as last seen; undefined when there is no HAProxy to ask. */
  servers(): readonly Server[] | undefined {
    if (this.#parts.instances.length === 0) return undefined;
    return this.#tracked.flatMap(({ servers }) => servers);
  }

  /** Finds the server of a producer, by the servers that are there now. */
  resolver(): Resolve {
    return resolver(this.#parts.config.masterAliases, this.servers());
  }

  /** Lets a pass under way finish for `graceMs`, then abandons it: no target is left half-written. */
  async stop(graceMs: number): Promise<void> {
    const stopping = new SasoriError("STOPPED", "sasori was told to stop");
    this.#stopping = stopping; // From here on nothing new begins: who waits for the next pass is told so.
    const timer = setTimeout(() => this.#abort.abort(stopping), graceMs);
    await this.#running?.catch(() => undefined);
    clearTimeout(timer);
  }

  #runNext(): Promise<SyncReport> {
    const request = this.#next?.request ?? {};
    this.#next = undefined;
    return this.request(request);
  }

  #run(request: SyncRequest): Promise<SyncReport> {
    this.#running = this.#pass(request).finally(() => {
      this.#running = undefined;
    });
    return this.#running;
  }

  async #pass(request: SyncRequest): Promise<SyncReport> {
    const clock = new Phases((phase) => {
      this.phase = phase;
    });
    const turns = this.#tracked.map((tracked) => newTurn(tracked));
    clock.begin("look");
    this.#abort = new AbortController();
    const looking = AbortSignal.any([this.#abort.signal, AbortSignal.timeout(CHANGES_DEADLINE_MS)]);
    await Promise.all(turns.map((turn) => attempt(turn, () => look(turn, request.full === true, looking))));

    clock.begin("fetch");
    const kind = this.#kindOf(request);
    const deadline = AbortSignal.timeout(kind === "full" ? FULL_DEADLINE_MS : CHANGES_DEADLINE_MS);
    const signal = AbortSignal.any([this.#abort.signal, deadline]);
    const [reading] = await Promise.all([
      this.#fetch(kind, signal),
      ...turns.map((turn) => attempt(turn, () => readIfNeeded(turn, kind === "full", signal))),
    ]);

    clock.begin("plan");
    this.#merge(turns, reading, request);
    const learned = this.#learn(turns);
    const masters = request.dryRun ? NO_MASTERS : await this.#settleMasters(turns, kind, signal);

    clock.begin("file");
    const [file, ...instances] = turns as [Turn, ...Turn[]];
    const settle = (turn: Turn) => attempt(turn, () => this.#settle(turn, request.dryRun === true, signal));
    // The file first: an HAProxy that restarts in this moment must not load what was just replaced.
    await settle(file);
    clock.begin("push");
    await Promise.all(instances.map(settle));
    const journal = request.dryRun ? undefined : await this.#saveJournal();
    clock.end();

    const report = this.#report(request, { kind, clock, reading, turns, learned, masters, journal });
    this.lastReport = report;
    this.#onReport?.(report);
    return report;
  }

  // A producer that had no server may have one now, and its nodes' submissions are not sent twice.
  #kindOf(request: SyncRequest): SyncReport["kind"] {
    if (request.known && !request.full) return "known";
    const names = (this.servers() ?? [])
      .map(({ name, host }) => `${name}=${host}`)
      .sort()
      .join();
    const newServers = names !== this.#serverNames && this.fleet.unroutable.size > 0;
    this.#serverNames = names;
    return request.full || newServers || this.#watermark === undefined ? "full" : "changes";
  }

  async #fetch(kind: SyncReport["kind"], signal: AbortSignal): Promise<Reading | Failure | undefined> {
    if (kind === "known") return undefined;
    try {
      if (kind === "full" || this.#watermark === undefined) return await this.#parts.puppetdb.readAll(signal);
      const { asOf, overlapMs } = this.#watermark;
      return await this.#parts.puppetdb.readChanges(asOf - overlapMs, signal);
    } catch (error) {
      return toFailure(error);
    }
  }

  /** Merges what was read and what was submitted into the fleet. */
  #merge(turns: readonly Turn[], reading: Reading | Failure | undefined, request: SyncRequest): void {
    for (const { contents } of turns) if (contents !== undefined) this.fleet.inherit(contents);
    this.#remember(this.fleet.map.takeChanges());
    if (reading !== undefined && !("code" in reading)) this.#mergeReading(reading, request);
    for (const change of this.#submitted.splice(0)) change(this.fleet);
    const changes = this.fleet.map.takeChanges();
    this.fleet.noteMoves(changes, (master) => this.#isUp(master));
    this.#remember(changes);
  }

  #mergeReading(reading: Reading, request: SyncRequest): void {
    const guard: Guard = { limit: this.#parts.config.maxRemoved, approved: request.approve };
    const { lateMs } = this.fleet.merge(reading, this.resolver(), guard, this.#watermark?.asOf ?? 0);
    this.#watermark = advance(this.#watermark, reading, lateMs);
  }

  /** Routes that a HAProxy learned since it was last in sync become observations for all others. */
  #learn(turns: readonly Turn[]): number {
    const names = new Set(this.servers()?.map(({ name }) => name));
    const isServer = (name: Master) => names.has(name);
    let learned = 0;
    for (const { tracked, contents, report } of turns) {
      if (contents === undefined || report.kind !== "haproxy") continue;
      if (contents.fingerprint.process !== tracked.process) continue;
      const routes = learnedRoutes(this.fleet.map, tracked.pending, contents, isServer, Date.now());
      report.learned = routes.filter((route) => this.fleet.observe(route)).length;
      learned += report.learned;
    }
    this.#remember(this.fleet.map.takeChanges());
    return learned;
  }

  /** Adds and removes servers; what PuppetDB said of their nodes is merged by the next pass, a full one. */
  async #settleMasters(turns: readonly Turn[], kind: SyncReport["kind"], signal: AbortSignal) {
    const { newMasters, instances } = this.#parts;
    if (newMasters === undefined) return NO_MASTERS;
    const failures = await newMasters.consider(this.fleet, kind === "full");
    const reachable = turns.filter(({ sighting }) => sighting !== undefined);
    const settled = reachable.map(async ({ tracked }) => {
      const host = instances.find(({ name }) => name === tracked.target.name);
      return host === undefined ? [] : newMasters.settle(host, tracked.servers, tracked.added, signal);
    });
    return { changes: (await Promise.all(settled)).flat(), failures };
  }

  /** Whether any HAProxy sees the master alive. With none to ask, nobody can say that it is down. */
  #isUp(master: Master): boolean {
    const servers = this.servers()?.filter(({ name }) => name === master) ?? [];
    return servers.length === 0 || servers.some(({ up }) => up);
  }

  #remember(changes: Before): void {
    for (const { pending } of this.#tracked) {
      for (const [certname, master] of changes) if (!pending.has(certname)) pending.set(certname, master);
    }
  }

  /** Plans and applies until the target holds the desired map. */
  async #settle(turn: Turn, dryRun: boolean, signal: AbortSignal): Promise<void> {
    const { tracked, report, sighting } = turn;
    const { target, pending } = tracked;
    const desired = this.fleet.map;
    let contents = turn.contents;
    let seen = contents?.fingerprint ?? sighting?.fingerprint;
    if (seen === undefined) return; // It was not reachable: the report says why.
    for (let round = 1; round <= MAX_ROUNDS; round += 1) {
      const plan =
        contents === undefined ? planFromChanges(desired, pending) : planFromContents(desired, contents);
      if (round === 1) count(report, plan);
      if (dryRun) {
        report.outcome = plan.kind === "unchanged" ? "unchanged" : "planned";
        return;
      }
      if (plan.kind === "unchanged") return inSync(tracked, seen);
      tracked.left = undefined; // Whatever happens below, until it is known to be right.
      const applied = await target.apply(plan, desired, seen, signal);
      report.outcome = "applied";
      report.method = applied.method;
      if (!applied.disturbed) return inSync(tracked, applied.fingerprint);
      contents = await target.read(signal);
      seen = contents.fingerprint;
    }
    throw new SasoriError(
      "HAPROXY_CHANGED",
      `${target.name}: it was reloaded or changed by another writer during each of ${MAX_ROUNDS} pushes; the next pass reads it again`,
    );
  }

  async #saveJournal(): Promise<Failure | undefined> {
    const { own, homes, revision } = this.fleet;
    if (revision === this.#savedRevision) return undefined;
    try {
      await this.#parts.journal.save(own.values(), homes);
      this.#savedRevision = revision;
      return undefined;
    } catch (error) {
      return toFailure(error);
    }
  }

  #report(
    request: SyncRequest,
    { kind, clock, reading, turns, learned, masters, journal }: PassFacts,
  ): SyncReport {
    const { fleet } = this;
    const targets = turns.map(({ report }) => report);
    const source = sourceReport(reading);
    const failures = [source, ...targets, ...masters.changes].map(({ failure }) => failure);
    const failed = [...failures, ...masters.failures, journal].some((failure) => failure !== undefined);
    const { verdict } = fleet;
    return {
      kind,
      dryRun: request.dryRun === true,
      outcome: failed ? "failed" : verdict.kind === "held" ? "held" : "done",
      startedAt: clock.startedAt,
      ...clock.durations(),
      source,
      nodes: fleet.map.size,
      moved: targets[0] === undefined ? 0 : targets[0].add + targets[0].set + targets[0].del,
      learned,
      masters,
      displaced: fleet.homes.size,
      unroutable: { nodes: fleet.unroutable.size, producers: countProducers(fleet) },
      refused: sample(fleet.refused),
      withoutProducer: sample(fleet.withoutProducer),
      ...(verdict.kind === "held" && {
        held: { id: verdict.id, reason: verdict.reason, ...sample(new Set(verdict.certnames)) },
      }),
      targets,
      ...(journal && { journal }),
    };
  }
}

/** PuppetDB's clock at the last good reading, and how far the next one looks back behind it. */
function advance(
  previous: { asOf: number; overlapMs: number } | undefined,
  { asOf }: Reading,
  lateMs: number,
): { asOf: number; overlapMs: number } {
  // A queue in PuppetDB makes submissions appear late. It grows and shrinks gradually, so twice the worst
  // lateness of this reading covers the next one, and a full reading covers the rest.
  const decayed = (previous?.overlapMs ?? 0) * 0.9;
  return { asOf, overlapMs: Math.min(Math.max(MIN_OVERLAP_MS, 2 * lateMs, decayed), MAX_OVERLAP_MS) };
}

function newTurn(tracked: Tracked): Turn {
  const { name, kind } = tracked.target;
  const report: TargetReport = {
    target: name,
    kind,
    outcome: "unchanged",
    add: 0,
    set: 0,
    del: 0,
    changes: [],
    learned: 0,
    durationMs: 0,
  };
  return { tracked, report, sighting: undefined, contents: undefined };
}

/** Runs one step for one target. Its failure is the target's own: it is reported, and nothing else stops. */
async function attempt(turn: Turn, step: () => Promise<void>): Promise<void> {
  if (turn.report.failure !== undefined) return;
  const began = performance.now();
  try {
    await step();
    turn.tracked.failure = undefined;
  } catch (error) {
    turn.report.outcome = "failed";
    turn.report.failure = turn.tracked.failure = toFailure(error);
    turn.tracked.left = undefined;
    turn.sighting = turn.contents = undefined;
  } finally {
    turn.report.durationMs += Math.round(performance.now() - began);
  }
}

async function look(turn: Turn, evenIfStalled: boolean, signal: AbortSignal): Promise<void> {
  const { failure, retryAt } = turn.tracked;
  // A target that stalls would make every pass as slow as its time-out, for all the others too.
  if (failure?.code === "HAPROXY_TIMEOUT" && performance.now() < retryAt && !evenIfStalled) {
    throw new SasoriError(failure.code, failure.message);
  }
  turn.tracked.retryAt = performance.now() + STALLED_PAUSE_MS;
  turn.sighting = await turn.tracked.target.look(signal);
  turn.tracked.servers = turn.sighting.servers;
  turn.tracked.version = turn.sighting.version;
}

async function readIfNeeded(turn: Turn, full: boolean, signal: AbortSignal): Promise<void> {
  const { target, left } = turn.tracked;
  const seen = turn.sighting?.fingerprint;
  const asLeft = left !== undefined && left.process === seen?.process && left.content === seen.content;
  if (full || !asLeft) turn.contents = await target.read(signal);
}

function inSync(tracked: Tracked, fingerprint: Fingerprint): void {
  tracked.left = fingerprint;
  tracked.process = fingerprint.process;
  tracked.pending.clear();
}

function count(report: TargetReport, plan: Plan): void {
  if (plan.kind === "unchanged") return;
  report.add = plan.add.length;
  report.set = plan.set.length;
  report.del = plan.del.length;
  report.changes = [...plan.set, ...plan.add, ...plan.del].slice(0, MAX_LISTED);
}

function sourceReport(reading: Reading | Failure | undefined): SyncReport["source"] {
  if (reading === undefined) return { outcome: "not asked", submissions: 0 };
  if ("code" in reading) return { outcome: "failed", submissions: 0, failure: reading };
  return { outcome: "done", submissions: reading.submissions.size };
}

function countProducers(fleet: Fleet): Record<string, number> {
  const producers = new Map<string, number>();
  for (const { producer } of fleet.unroutable.values())
    producers.set(producer, (producers.get(producer) ?? 0) + 1);
  return Object.fromEntries([...producers].sort((a, b) => b[1] - a[1]).slice(0, 20));
}

function sample(names: ReadonlySet<string>): { count: number; samples: string[] } {
  return { count: names.size, samples: [...names].slice(0, 20) };
}

type Phase = keyof SyncReport["phasesMs"];

/** Stopwatch of a pass. Whole milliseconds. */
class Phases {
  readonly startedAt = new Date().toISOString();
  readonly #began = performance.now();
  readonly #onPhase: (phase: Phase | undefined) => void;
  readonly #phases: SyncReport["phasesMs"] = { look: 0, fetch: 0, plan: 0, file: 0, push: 0 };
  #phase: Phase | undefined;
  #since = this.#began;

  constructor(onPhase: (phase: Phase | undefined) => void) {
    this.#onPhase = onPhase;
  }

  begin(phase: Phase | undefined): void {
    const now = performance.now();
    if (this.#phase !== undefined) this.#phases[this.#phase] = Math.round(now - this.#since);
    this.#phase = phase;
    this.#since = now;
    this.#onPhase(phase);
  }

  end(): void {
    this.begin(undefined);
  }

  durations(): Pick<SyncReport, "durationMs" | "phasesMs"> {
    return { durationMs: Math.round(this.#since - this.#began), phasesMs: this.#phases };
  }
}
