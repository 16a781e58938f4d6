// One pass: look at the targets, read PuppetDB, merge, plan each target, write the file, then push to every
// HAProxy in parallel. Its result is one SyncReport.
// Promises: while PuppetDB answers slowly, targets still get what is known already; one target's failure never stops
// another; what was learned is saved in the state file first, before it goes anywhere else.

import { setTimeout as sleep } from "node:timers/promises";
import { latestTime, timeOfNow } from "./clock.js";
import type { Config, Endpoint } from "./config.js";
import { within } from "./deadline.js";
import { type Failure, SasoriError, toFailure } from "./errors.js";
import { Fleet, type Resolve, resolver } from "./fleet.js";
import type { Guard } from "./guard.js";
import { NewMasters } from "./masters.js";
import type { Before, Master, Observation } from "./node-map.js";
import { PassQueue, type SyncRequest } from "./pass-queue.js";
import { eachInPieces, inPieces } from "./pieces.js";
import { plansFromChanges } from "./plan.js";
import type { Reading } from "./source/reading.js";
import { type Source, sourceOf } from "./source/source.js";
import { Journal } from "./state/journal.js";
import { type Change, GUARD, type Kind, type Row } from "./state/rows.js";
import { SharedState } from "./state/shared-state.js";
import type { State } from "./state/state.js";
import { makeReport, type Phase, Phases, type SyncReport, sourceReport } from "./sync-report.js";
import { DnsNames, follow } from "./target/dns-names.js";
import { HaproxyInstance } from "./target/haproxy.js";
import { MapFile } from "./target/map-file.js";
import type { Contents, Server } from "./target/target.js";
import { type TargetDetail, type TargetState, TrackedTarget } from "./target/tracked-target.js";

/** Deadline for a look at a target, and for the state file. Both are a few lines, which take milliseconds. */
const LOOK_MS = 15_000;
/** While PuppetDB is read, the targets are looked at this often, so that a restarted HAProxy does not wait for PuppetDB. */
const LOOK_AGAIN_MS = 5_000;
/** Deadline for reading a target: a million entries take seconds. A push gets more time, because HAProxy may be far away. */
const TARGET_MS = 2 * 60_000;
const PUSH_MS_PER_ENTRY = 0.2;
/**
 * Deadline for the map file, because every HAProxy waits for it. It takes two seconds at most, unless its file system
 * hangs.
 */
const FILE_MS = 15_000;

/**
 * Each changes pass compares a sample of the entries of each live map. It is large enough to compare all entries between two
 * full passes. But for all HAProxy instances together it is at most MAX_SAMPLE, which takes 0.2 s of a core. So with a
 * hundred HAProxy instances only a full pass compares all entries.
 */
const FIRST_CHANGES_PER_FULL = 180;
const SAMPLE_ALLOWANCE = 0.8;
const MIN_SAMPLE = 100;
const MAX_SAMPLE = 10_000;

/** If the wall clock and the monotonic clock drift apart by more, somebody has set the wall clock. */
const CLOCK_SET_MS = 1_000;

/** How long the status says that another sasori writes here. It writes only when something changes, so this is long. */
const OTHERS_REMEMBERED_MS = 30 * 60_000;

/** The order in which rows are taken over: first what ended, then what began later. */
const ORDER: readonly Kind[] = ["ended", "removed", "route", "home", "sizes", "approval"];

const NO_MASTERS: SyncReport["masters"] = { changes: [], failures: [] };

export interface SyncParts {
  config: Pick<Config, "haproxy" | "masterAliases" | "maxRemoved">;
  puppetdb: Source;
  file: MapFile;
  /** First those that are configured, then those found through DNS names, which come and go. */
  instances: HaproxyInstance[];
  names?: { dns: DnsNames; make: (endpoint: Endpoint) => HaproxyInstance } | undefined;
  state: State;
  /** The same object as `state`, if replicas share a database. */
  shared?: SharedState | undefined;
  newMasters?: NewMasters | undefined;
}

/** Makes all parts of a Sync from the configuration. */
export function assemble(config: Config): SyncParts {
  const journal = new Journal(config.stateFile);
  const shared = config.stateDatabase && new SharedState(journal, config.stateDatabase);
  const make = (endpoint: Endpoint) => new HaproxyInstance(endpoint, config);
  const { haproxyNames = [] } = config;
  return {
    config,
    puppetdb: sourceOf(config.puppetdb),
    file: new MapFile(config.mapFile, rulesOf(config)),
    instances: config.haproxy.map(make),
    names: haproxyNames.length > 0 ? { dns: new DnsNames(haproxyNames), make } : undefined,
    state: shared ?? journal,
    shared,
    newMasters: config.newMasters && new NewMasters(config.newMasters),
  };
}

/**
 * The settings that turn a submission into a route. If they have changed since the map file was written, its routes cannot be
 * compared with submissions by age.
 */
const rulesOf = ({ masterAliases, puppetdb, backend, pools }: Config): string =>
  JSON.stringify([
    masterAliases.pairs,
    puppetdb[0]?.[0]?.observations,
    backend,
    ...(pools ? ["backends"] : []),
  ]);

/** Called when a Sync does something. */
export interface SyncWatcher {
  /**
   * Which nodes changed in the map, each with its master before. Called when every target waits for it, before the next
   * change.
   */
  changed?(changes: Before, fleet: Fleet): Generator<void>;
  /** The report of each pass. Called before the callers of `request` get it. */
  passed?(report: SyncReport): void;
}

export class Sync {
  readonly fleet = new Fleet();
  lastReport: SyncReport | undefined;
  /**
   * A map is being served: read from PuppetDB or found as the last good one, and in an HAProxy. Once true it stays so:
   * HAProxy goes on with what it has, and one that is started again finds it in the file.
   */
  served = false;
  /** How many nodes the map had that an HAProxy last got. It changes only when a push is done. */
  servedNodes = 0;
  /** The step of the pass under way, for showing progress. */
  phase: Phase | undefined;
  /** When another sasori last wrote the map file or the state file (ms since the epoch). */
  #othersWroteAt = 0;
  /**
   * Why learned routes or registrations could not be saved, so that a restart would lose them. Undefined if all are saved.
   */
  unsaved: Failure | undefined;
  /** The wall-clock time at which the monotonic clock was 0 (ms since the epoch), see #lookAtClock. */
  #startedAt = Date.now() - performance.now();
  readonly #parts: SyncParts;
  readonly #watcher: SyncWatcher;
  readonly #file: TrackedTarget;
  #instances: readonly TrackedTarget[];
  /** How many of the instances are configured. Those found through DNS names come after them. */
  readonly #configured: number;
  readonly #queue = new PassQueue<SyncReport>((request, stop) => this.#pass(request, stop));
  /** Changes made outside of a pass, such as registrations, and the callers that wait until every target has them. */
  #submitted: { change: (fleet: Fleet) => void | Promise<void>; done: () => void }[] = [];
  #onSubmission = () => {};
  /**
   * The next pass must be a full one, because another sasori ended a registration, and only PuppetDB knows the route that
   * replaces it.
   */
  #mustReadAll = false;
  #origin: Contents["origin"];
  #serverNames = "";
  /** How many changes passes ran since the last full pass, and how many between the two full passes before. */
  #changesSinceFull = 0;
  #changesPerFull = FIRST_CHANGES_PER_FULL;

  constructor(parts: SyncParts, watcher: SyncWatcher = {}) {
    this.#parts = parts;
    this.#watcher = watcher;
    this.#file = new TrackedTarget(parts.file);
    this.#instances = parts.instances.map((instance) => new TrackedTarget(instance));
    this.#configured = parts.instances.length;
  }

  get busy(): boolean {
    return this.#queue.busy;
  }

  /** A pass is under way that asks PuppetDB. */
  get looking(): boolean {
    return this.#queue.looking;
  }

  /** When another sasori was last seen to write the map file or the state file (ISO 8601), if that was lately. */
  get secondSasori(): string | undefined {
    const isLately = Date.now() - this.#othersWroteAt < OTHERS_REMEMBERED_MS;
    return isLately ? new Date(this.#othersWroteAt).toISOString() : undefined;
  }

  /** The state of each target between passes, the file first. */
  targets(): TargetState[] {
    return this.#targets.map(({ state }) => state);
  }

  /** Like targets(), with the kind of each and its last push. */
  targetDetails(): TargetDetail[] {
    return this.#targets.map(({ detail }) => detail);
  }

  /** The servers of every instance, as last seen; undefined when there is no HAProxy to ask. */
  servers(): readonly Server[] | undefined {
    if (this.#instances.length === 0) return undefined;
    return this.#instances.flatMap(({ servers }) => servers ?? []);
  }

  /** HAProxy's servers are known, or there is no HAProxy to ask. */
  get knowsServers(): boolean {
    return this.#instances.length === 0 || this.#instances.some(({ servers }) => servers !== undefined);
  }

  /** Finds a producer's server among those that exist now. */
  resolver(): Resolve {
    return resolver(this.#parts.config.masterAliases, this.servers());
  }

  /**
   * Takes over what an earlier run has left; for a dry run without touching it. Throws `STATE_FILE` for what could not be
   * taken over; sasori can go on without it.
   */
  async restore({ dryRun = false }: Pick<SyncRequest, "dryRun"> = {}): Promise<void> {
    const { file, state, shared } = this.#parts;
    if (!dryRun) for (const one of [file, state]) await one.removeLeftovers();
    await inPieces(this.#take(await state.load(dryRun)));
    if (!dryRun) shared?.watch((rows) => this.#takeNews(rows));
    if (state.trouble !== undefined) throw state.trouble;
  }

  /** Takes what another replica shares, and pushes it at once, as if it had been registered here. */
  #takeNews(rows: readonly Row[]): void {
    // A failed pass says so in its report. During the shutdown of sasori a rejection does not matter.
    this.#submit(() => this.#takeMoves(rows)).catch(() => undefined);
    if (rows.some(({ kind }) => kind === "approval")) this.request({}).catch(() => undefined);
  }

  /**
   * Takes rows of another replica. Which nodes these moves displaced is in the rows. It is not decided here again, because our
   * HAProxy may see another state of a master.
   */
  async #takeMoves(rows: readonly Row[]): Promise<void> {
    await this.#remember("with homes"); // First what we found out before.
    await inPieces(this.#take(rows));
    await this.#remember();
  }

  /** Takes rows that an earlier run or another sasori has saved. */
  *#take(rows: readonly Row[]): Generator<void> {
    for (const kind of ORDER)
      yield* eachInPieces(rows, (row) => {
        if (row.kind === kind) this.#takeRow(row);
      });
  }

  #takeRow(row: Row): void {
    const { fleet } = this;
    switch (row.kind) {
      case "ended": {
        const since = Math.min(row.value.since, latestTime());
        // PuppetDB decides what takes its place.
        if (fleet.takeEnd(row.key, { ...row.value, at: row.at, since })) this.#mustReadAll = true;
        break;
      }
      case "removed":
        // Never in the future, so that a wrong row cannot keep away a node that runs again.
        if (row.value !== null && fleet.map.get(row.key) === undefined)
          fleet.tombstones.set(row.key, { ...row.value, at: Math.min(row.value.at, latestTime()) });
        break;
      case "route":
        if (row.value !== null) fleet.takeOwn({ certname: row.key, at: row.at, ...row.value }, latestTime());
        break;
      case "home":
        if (row.value === null) fleet.homes.delete(row.key);
        else fleet.homes.set(row.key, row.value.master);
        break;
      case "sizes": {
        const { sizes, forgottenAt } = row.value;
        // If the clock was set back since, these times are in the future. They count as now.
        const [startedAt, now] = [this.#startedAt, performance.now()];
        const then = (at: number) => Math.min(at - startedAt, now);
        const known = sizes.map(({ at, size }) => ({ at: then(at), size }));
        const guard = row.key === GUARD ? fleet.guard : fleet.guard.ofEstate(row.key);
        guard.take(known, forgottenAt === 0 ? Number.NEGATIVE_INFINITY : then(forgottenAt));
        break;
      }
      case "approval":
        fleet.takeApproval(row.key, Math.min(row.at, latestTime()));
        break;
    }
  }

  /** Runs a pass or joins the next one. A failed pass does not reject: its report says so. */
  request(request: SyncRequest): Promise<SyncReport> {
    return this.#queue.request(request);
  }

  /**
   * Takes observations made outside of a pass. An observation without a time gets one that is newer than all that is known at
   * that moment. Resolves when every reachable target has them.
   */
  submit(...observations: readonly (Omit<Observation, "at"> & { at?: number })[]): Promise<void> {
    return this.#submit((fleet) => {
      const now = timeOfNow(() => fleet.map.assignments());
      for (const { at, ...seen } of observations)
        fleet.observe({ ...seen, at: at ?? fleet.timeAfterKnown(seen.certname, now) });
    });
  }

  /** Ends this registration or learned route; `observation` is what PuppetDB has of the node instead. */
  withdraw(ended: Observation, observation: Observation | undefined): Promise<void> {
    return this.#submit((fleet) => {
      const now = timeOfNow(() => fleet.map.assignments());
      fleet.withdraw(ended, observation, now);
    });
  }

  async #submit(change: (fleet: Fleet) => void | Promise<void>): Promise<void> {
    const done = new Promise<void>((resolve) => {
      this.#submitted.push({ change, done: resolve });
    });
    this.#onSubmission();
    await Promise.race([done, this.request({ known: true })]);
  }

  /** Lets a pass under way finish for `graceMs`, then abandons it: no target is left half-written. */
  stop(graceMs: number): Promise<void> {
    return this.#queue.stop(graceMs);
  }

  /**
   * Notices that somebody has set the wall clock. If it was set back, PuppetDB may have something newer than what we had dated.
   */
  async #lookAtClock(): Promise<void> {
    const startedAt = Date.now() - performance.now();
    const backMs = Math.round(this.#startedAt - startedAt); // Saved times are whole milliseconds.
    if (Math.abs(backMs) <= CLOCK_SET_MS) return;
    this.#startedAt = startedAt;
    if (backMs > 0) await inPieces(this.fleet.setBack(backMs, latestTime()));
  }

  get #targets(): readonly TrackedTarget[] {
    return [this.#file, ...this.#instances];
  }

  async #pass(request: SyncRequest, stop: AbortSignal): Promise<SyncReport> {
    const clock = new Phases((phase) => {
      this.phase = phase;
    });
    try {
      clock.begin("look");
      await this.#lookAtClock();
      await this.#followNames(stop);
      await Promise.all([
        this.#each(LOOK_MS, stop, (target, signal) => target.look(request.full === true, signal)),
        request.dryRun === true || this.#takeOthers(stop),
      ]);
      const kind = this.#kindOf(request);

      clock.begin("fetch");
      const fetching = this.#fetch(kind, request, stop);
      await this.#settleKnown(request, kind, stop);
      const reading = await this.#whileFetching(fetching, stop);
      const source = sourceReport(reading);

      clock.begin("plan");
      const result = request.dryRun
        ? await this.#tryOut(reading)
        : await this.#carryOut(reading, request.approve, kind, clock, stop);
      clock.end();
      const learned = this.#instances.reduce((sum, { report }) => sum + report.learned, 0);
      const report = makeReport({
        ...result,
        request,
        kind,
        clock,
        source,
        targets: this.#targets,
        learned,
      });
      if (!request.dryRun) this.lastReport = report;
      this.#watcher.passed?.(report);
      return report;
    } finally {
      clock.end();
    }
  }

  /** Takes over what PuppetDB said and what was submitted, and brings it to every target. */
  async #carryOut(
    reading: Reading | Failure | undefined,
    approve: string | undefined,
    kind: SyncReport["kind"],
    clock: Phases,
    stop: AbortSignal,
  ) {
    // The approval counts as unmatched until a held plan with its id is found. PuppetDB may not have been read at all.
    let approvalUnmatched = approve !== undefined;
    if (isReading(reading)) {
      const lateMs = await this.#merge(this.fleet, reading, approve);
      this.#parts.puppetdb.took(lateMs);
      if (reading.kind === "full") this.#mustReadAll = false;
      if (reading.kind === "full") this.#serverNames = this.#namesOfServers();
      forget(reading);
      const { verdict } = this.fleet;
      // It may have been approved before, by another person or at another replica.
      const isApproved = approve !== undefined && this.fleet.guard.approvals.has(approve);
      approvalUnmatched &&= !(verdict.kind === "allowed" && isApproved);
    }
    const submitted = await this.#takeSubmitted();
    const masters = await this.#settleMasters(kind, stop);
    const journal = await this.#settle(stop, clock);
    for (const { done } of submitted) done();
    if (this.#isServed()) {
      this.served = true;
      this.servedNodes = this.fleet.map.size;
    }
    return { fleet: this.fleet, approvalUnmatched, masters, journal };
  }

  /** A dry run: does the same with a copy of the fleet, which is thrown away. */
  async #tryOut(reading: Reading | Failure | undefined) {
    const fleet = await inPieces(Fleet.copy(this.fleet));
    for (const { contents } of this.#targets)
      if (contents !== undefined) await inPieces(fleet.inherit(contents));
    this.#keepOthers(fleet);
    await this.#learn(fleet);
    if (isReading(reading)) {
      await this.#merge(fleet, reading);
      forget(reading);
    }
    const changes = fleet.map.takeChanges();
    for (const target of this.#targets) await inPieces(target.plan(fleet.map, changes));
    return { fleet, approvalUnmatched: false, masters: NO_MASTERS, journal: undefined };
  }

  /** Takes over what another sasori has written into the shared state file. */
  async #takeOthers(stop: AbortSignal): Promise<void> {
    const { state } = this.#parts;
    const { trouble } = state;
    const late = new SasoriError("FILE_READ", `gave up after ${LOOK_MS / 1000} s`);
    // If the file cannot be read, the next write reports why.
    const read = (signal: AbortSignal, again: () => void) => state.readOthers(signal, again);
    const others = await within(LOOK_MS, stop, late, read).catch(() => []);
    if (others.length === 0) return;
    const wasOurs = trouble !== undefined && state.trouble === undefined; // It could not be read at the start.
    if (!wasOurs) this.#othersWroteAt = Date.now();
    await inPieces(this.#take(others));
  }

  /** HAProxy instances behind DNS names come and go. */
  async #followNames(stop: AbortSignal): Promise<void> {
    const { names, instances } = this.#parts;
    if (names === undefined) return;
    const endpoints = await names.dns.endpoints(stop);
    const tracked = new Map(this.#instances.map((one) => [one.target.name, one]));
    const answers = ({ name }: HaproxyInstance) => tracked.get(name)?.reachable === true;
    const configured = new Set(instances.slice(0, this.#configured).map(({ name }) => name));
    const others = endpoints.filter(({ name }) => !configured.has(name));
    const followed = follow(instances.slice(this.#configured), others, answers, names.make);
    instances.splice(this.#configured, instances.length, ...followed);
    this.#instances = instances.map((one) => tracked.get(one.name) ?? new TrackedTarget(one));
  }

  #isServed(): boolean {
    const known = this.fleet.complete || this.fleet.map.size > 0;
    const live = this.#instances.length > 0 ? this.#instances : [this.#file];
    return known && live.some(({ settled }) => settled);
  }

  /** Runs a step for all targets in parallel. A target that fails reports that, and is left out for the rest of the pass. */
  async #each(
    ms: number,
    stop: AbortSignal,
    step: (target: TrackedTarget, signal: AbortSignal) => Promise<void>,
  ) {
    const late = new SasoriError("HAPROXY_TIMEOUT", `gave up after ${ms / 1000} s`);
    await Promise.all([
      this.#withFile(stop, step),
      within(ms, stop, late, (signal) => Promise.all(this.#instances.map((target) => step(target, signal)))),
    ]);
  }

  #withFile(stop: AbortSignal, step: (file: TrackedTarget, signal: AbortSignal) => Promise<void>) {
    const late = new SasoriError("FILE_READ", `gave up after ${FILE_MS / 1000} s`);
    return within(FILE_MS, stop, late, (signal) => step(this.#file, signal));
  }

  /**
   * A full reading is also needed in three cases. If HAProxy has other servers than before, because PuppetDB does not repeat
   * old submissions in a reading of changes. At the first contact with an HAProxy, because the guard must judge what it
   * holds. And for an approval, because only a full reading tells whether PuppetDB has been restored since the plan was held.
   */
  #kindOf(request: SyncRequest): SyncReport["kind"] {
    const otherServers = this.#namesOfServers() !== this.#serverNames;
    const firstContact = this.#instances.some(({ reachable, inherited }) => reachable && !inherited);
    const mustRead = request.full || request.approve !== undefined || firstContact;
    if (request.known && !mustRead) return "known";
    return mustRead || otherServers || this.#mustReadAll || !this.#parts.puppetdb.canGoOn
      ? "full"
      : "changes";
  }

  #namesOfServers(): string {
    const names = (this.servers() ?? []).flatMap(({ name, host, members = [{ name, host }] }) =>
      members.map((server) => `${name}=${server.name}=${server.host}`),
    );
    return names.sort().join();
  }

  /**
   * If everything cannot be read, what changed is read instead, so that news do not wait until everything can. An approval needs
   * all of it.
   */
  async #fetch(
    kind: SyncReport["kind"],
    { approve }: SyncRequest,
    stop: AbortSignal,
  ): Promise<Reading | Failure | undefined> {
    // Without the servers, every producer would look unroutable.
    if (kind === "known" || !this.knowsServers) return undefined;
    const resolve = this.resolver();
    const hasServer = (producer: string) => resolve(producer) !== undefined;
    const { puppetdb } = this.#parts;
    const read = (kind: Reading["kind"]) => puppetdb.read(kind, stop, { known: this.fleet.map, hasServer });
    try {
      return await read(kind);
    } catch (error) {
      const failure = toFailure(error);
      if (kind === "changes" || approve !== undefined || !puppetdb.canGoOn) return failure;
      return read("changes").then(
        (reading) => ({ ...reading, failures: [failure, ...(reading.failures ?? [])] }),
        () => failure,
      );
    }
  }

  /**
   * While PuppetDB is asked: pushes what is known already to targets that differ from it. A dry run only reads the targets.
   */
  async #settleKnown(request: SyncRequest, kind: SyncReport["kind"], stop: AbortSignal): Promise<void> {
    const { map } = this.fleet;
    // Somebody who wrote the file, such as another sasori, has probably written to HAProxy too. A changed value does not show
    // in HAProxy's fingerprint, so the live maps are read whole.
    const isFull = request.full === true || this.#file.touched;
    await this.#each(TARGET_MS, stop, (target, signal) => target.readIfChanged(isFull, map, signal));
    const isOfSasori = this.#file.contents?.origin === "sasori";
    if (this.#file.touched && isOfSasori) this.#othersWroteAt = Date.now();
    if (kind === "changes") await this.#sample(stop);
    if (request.full && this.#changesSinceFull > 0) this.#changesPerFull = this.#changesSinceFull;
    this.#changesSinceFull = request.full ? 0 : this.#changesSinceFull + 1;
    if (!request.dryRun) await this.#settle(stop);
  }

  /** Compares the next part of each live map, because a value that others set does not show in the fingerprint. */
  #sample(stop: AbortSignal): Promise<void> {
    const { map } = this.fleet;
    const share = Math.ceil(map.size / (this.#changesPerFull * SAMPLE_ALLOWANCE));
    const most = Math.ceil(MAX_SAMPLE / Math.max(1, this.#instances.length));
    const count = Math.min(Math.max(share, MIN_SAMPLE), most);
    return this.#each(TARGET_MS, stop, (target, signal) => target.sample(count, map, signal));
  }

  /**
   * Waits for PuppetDB's answer, which may take minutes. Meanwhile it serves registrations, and HAProxy instances that lack
   * something, also during a dry run.
   */
  async #whileFetching<T>(fetching: Promise<T>, stop: AbortSignal): Promise<T> {
    let fetched = false;
    const done = fetching.finally(() => {
      fetched = true;
      this.#onSubmission = () => {}; // Otherwise the last one would keep the whole reading in memory until the next pass.
    });
    while (!fetched) {
      const submission = new Promise<void>((resolve) => {
        this.#onSubmission = resolve;
        if (this.#submitted.length > 0) resolve();
      });
      const pause = new AbortController();
      const tick = sleep(LOOK_AGAIN_MS, undefined, { signal: pause.signal }).catch(() => undefined);
      await Promise.race([done, submission, tick]).finally(() => pause.abort());
      if (fetched) break;
      const submitted = await this.#takeSubmitted();
      if (submitted.length === 0) await this.#lookAgain(stop);
      await this.#settle(stop);
      for (const { done } of submitted) done();
    }
    return done;
  }

  async #lookAgain(stop: AbortSignal): Promise<void> {
    await this.#each(LOOK_MS, stop, (target, signal) => target.lookAgain(signal));
    await this.#each(TARGET_MS, stop, (target, signal) =>
      target.readIfChanged(false, this.fleet.map, signal),
    );
  }

  /** Takes what was submitted into the fleet, and tells the targets what changed by that and by the reading before. */
  async #takeSubmitted() {
    const submitted = this.#submitted.splice(0);
    for (const { change } of submitted) await change(this.fleet);
    await this.#remember("with homes");
    return submitted;
  }

  /** Until sasori has written to a target, and PuppetDB was read, the routes that the target holds are taken into the map. */
  async #inherit(target: TrackedTarget): Promise<void> {
    const { contents } = target;
    if (contents === undefined || (target.inherited && this.fleet.complete)) return;
    if (target === this.#file) this.#origin = contents.origin;
    const origin =
      target !== this.#file && this.#origin === "nobody" && contents.routes.size > 0
        ? "others"
        : contents.origin;
    await inPieces(this.fleet.inherit({ ...contents, ...(origin && { origin }) }));
    target.inherited = true;
    await this.#remember();
  }

  /** Returns how late a submission was, see Fleet.merge. */
  #merge(fleet: Fleet, reading: Reading, approved?: string): Promise<number> {
    const guard = { limit: this.#parts.config.maxRemoved, approved, now: performance.now() };
    return inPieces(fleet.merge(reading, this.resolver(), guard));
  }

  /** If somebody else made the map, the targets keep its entries until a person approves their removal. */
  #keepOthers({ foreign }: Fleet): void {
    for (const target of this.#targets) target.keepsOthers = foreign !== undefined;
  }

  /** Routes that a HAProxy learned since it was last in sync become observations for all others. */
  async #learn(fleet: Fleet): Promise<void> {
    const names = new Set(this.servers()?.map(({ name }) => name));
    // All are compared before anything is learned. Otherwise, once a route is learned from one HAProxy, the old route of
    // another one would look newer.
    const learned: Observation[][] = [];
    for (const target of this.#instances)
      learned.push(await target.learned(fleet.map, (name) => names.has(name)));
    for (const [index, { report }] of this.#instances.entries())
      report.learned += (learned[index] ?? []).filter((route) => fleet.learn(route)).length;
  }

  /** Tells every target what changed in the fleet, and notes in the fleet which nodes were displaced by that. */
  async #remember(homes?: "with homes"): Promise<void> {
    const changes = this.fleet.map.takeChanges();
    if (changes.size === 0) return;
    for (const target of this.#targets) await inPieces(target.expect(changes, this.fleet.map));
    if (homes !== undefined) await inPieces(this.fleet.noteMoves(changes, this.#states()));
    const told = this.#watcher.changed?.(changes, this.fleet);
    if (told !== undefined) await inPieces(told);
  }

  /** The masters' states now. Each master is looked up only once, however many nodes it has. */
  #states(): (master: Master) => Server["state"] {
    const states = new Map<Master, Server["state"]>();
    return (master) => {
      const state = states.get(master) ?? this.#stateOf(master);
      states.set(master, state);
      return state;
    };
  }

  /**
   * The best state that any HAProxy reports. If none has the master, it counts as up, because nothing says that it is down.
   */
  #stateOf(master: Master): Server["state"] {
    const states = (this.servers() ?? []).flatMap(({ name, state }) => (name === master ? [state] : []));
    if (states.length === 0) return "up";
    return (["up", "drained"] as const).find((state) => states.includes(state)) ?? "down";
  }

  /** Adds and removes servers. The next pass, a full one, merges what PuppetDB said about their nodes. */
  async #settleMasters(kind: SyncReport["kind"], stop: AbortSignal) {
    const { newMasters, instances } = this.#parts;
    if (newMasters === undefined) return NO_MASTERS;
    const told = this.#instances.flatMap(({ reachable, servers }) => (reachable && servers ? [servers] : []));
    const added = new Set(this.#instances.flatMap((instance) => [...instance.added.keys()]));
    const failures = await newMasters.consider(this.fleet, kind === "full", told, added, stop);
    const late = new SasoriError("HAPROXY_TIMEOUT", "gave up on changing servers");
    const settled = await within(LOOK_MS, stop, late, (signal) =>
      Promise.all(
        this.#instances.map(async ({ reachable, servers, added }, index) => {
          const host = instances[index];
          return reachable && host ? newMasters.settle(host, servers ?? [], added, signal) : [];
        }),
      ),
    );
    return { changes: settled.flat(), failures };
  }

  /**
   * Brings what is known to every target: takes over what a push would replace, saves it, and writes the file before any
   * HAProxy, because one that restarts in this moment must not load what was just replaced. Returns why the state file
   * could not be written.
   */
  async #settle(stop: AbortSignal, clock?: Phases): Promise<Failure | undefined> {
    const desired = this.fleet.map;
    if (this.fleet.complete && this.fleet.foreign === undefined) this.#parts.file.adopt();
    this.#keepOthers(this.fleet);
    await this.#each(TARGET_MS, stop, (target, signal) => target.readBeforeReplacing(desired, signal));
    for (const target of this.#targets) await this.#inherit(target);
    this.#keepOthers(this.fleet);
    await this.#learn(this.fleet);
    await this.#remember("with homes");
    const journal = await this.#saveState(stop);
    clock?.begin("file");
    const planOf = plansFromChanges(desired);
    await this.#withFile(stop, (file, signal) => file.settle(desired, planOf, signal));
    clock?.begin("push");
    const pushMs = TARGET_MS + Math.round(desired.size * PUSH_MS_PER_ENTRY);
    const late = new SasoriError("HAPROXY_TIMEOUT", `gave up on the push after ${pushMs / 1000} s`);
    await within(pushMs, stop, late, (signal) =>
      Promise.all(this.#instances.map((target) => target.settle(desired, planOf, signal))),
    );
    return journal;
  }

  async #saveState(stop: AbortSignal): Promise<Failure | undefined> {
    await this.#lookAtClock(); // The guard's sizes are saved with times of the wall clock.
    const changes = await inPieces(this.fleet.takeUnsaved());
    // The guard's sizes alone are no reason to write the file. They are saved together with other changes.
    const { guard } = this.fleet;
    if (changes.length > 0)
      changes.push(this.#sizes(GUARD, guard), ...[...guard.estates].map((one) => this.#sizes(...one)));
    try {
      const late = new SasoriError("FILE_WRITE", `gave up after ${LOOK_MS / 1000} s`);
      await within(LOOK_MS, stop, late, (signal, again) => this.#parts.state.save(changes, signal, again));
      this.unsaved = undefined;
    } catch (error) {
      this.unsaved = toFailure(error);
    }
    return this.unsaved;
  }

  #sizes(key: string, { sizes, forgottenAt }: Guard): Change {
    const time = (at: number) => Math.max(0, Math.round(at + this.#startedAt));
    const value = {
      forgottenAt: Number.isFinite(forgottenAt) ? time(forgottenAt) : 0,
      sizes: sizes.map(({ at, size }) => ({ at: time(at), size })),
    };
    return { kind: "sizes", key, value };
  }
}

/** Frees a reading that is used up, because the pass goes on for a while: with a million nodes it holds 170 MiB. */
function forget({ submissions, unroutable, inactive }: Reading): void {
  for (const map of [submissions, unroutable, inactive]) map?.clear();
}

const isReading = (reading: Reading | Failure | undefined): reading is Reading =>
  reading !== undefined && !("code" in reading);
