// One pass: look at the targets, read PuppetDB, merge, plan each target, write the file, then push to every
// HAProxy in parallel. Its result is one SyncReport.
// Promises: while PuppetDB takes its time, what is known goes to targets that lack it; one target's failure never
// stops another; what was learned is in the state file before it is anywhere else.

import { setTimeout as sleep } from "node:timers/promises";
import type { Config } from "./config.js";
import { within } from "./deadline.js";
import { type Failure, SasoriError, toFailure } from "./errors.js";
import { Fleet, type Resolve, resolver } from "./fleet.js";
import { Journal } from "./journal.js";
import { NewMasters } from "./masters.js";
import type { Before, Certname, Master, Observation } from "./node-map.js";
import { PassQueue, type SyncRequest } from "./pass-queue.js";
import { plansFromChanges } from "./plan.js";
import { PuppetDb, type Reading } from "./source/puppetdb.js";
import { advance, type Watermark } from "./source/watermark.js";
import { makeReport, type Phase, Phases, type SyncReport } from "./sync-report.js";
import { HaproxyInstance } from "./target/haproxy.js";
import { MapFile } from "./target/map-file.js";
import type { Server } from "./target/target.js";
import { type TargetDetail, type TargetState, TrackedTarget } from "./target/tracked-target.js";

/** A look, or what the state file holds, is a handful of lines: HAProxy or the disk answers in milliseconds or not at all. */
const LOOK_MS = 15_000;
/** PuppetDB answers what changed in a fraction of a second; a full reading of a million nodes takes a minute. */
const FETCH_CHANGES_MS = 15_000;
const FETCH_ALL_MS = 10 * 60_000;
/** Meanwhile the targets are looked at this often: an HAProxy that is restarted does not wait for PuppetDB. */
const LOOK_AGAIN_MS = 5_000;
/** A million entries are read within seconds. To push them takes longer where HAProxy is far away. */
const TARGET_MS = 2 * 60_000;
const PUSH_MS_PER_ENTRY = 0.2;
/** The file is read or written within two seconds at most, or its file system hangs; and every HAProxy waits for it. */
const FILE_MS = 15_000;

/** No revision: what there is must be saved. */
const UNSAVED = -1;

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

/** Who wants to know what a Sync does, as it does it. */
export interface SyncWatcher {
  /** What changed in the map, each node with what it had before; told before anything else changes, and by then every target is to get it. */
  changed?(changes: Before, fleet: Fleet): void;
  /** The report of each pass, before those get it who asked for the pass. */
  passed?(report: SyncReport): void;
}

export class Sync {
  readonly fleet = new Fleet();
  lastReport: SyncReport | undefined;
  /**
   * A map is being served: read from PuppetDB or found as the last good one, and in an HAProxy. Once true it stays so:
   * HAProxy goes on with what it has, and one that starts anew finds it in the file.
   */
  served = false;
  /** The step of the pass under way, for whoever shows progress. */
  phase: Phase | undefined;
  /** Why what was learned or ordered is not in the state file, while it is not: a restart would lose it. */
  unsaved: Failure | undefined;
  readonly #parts: SyncParts;
  readonly #watcher: SyncWatcher;
  readonly #file: TrackedTarget;
  readonly #instances: readonly TrackedTarget[];
  readonly #queue = new PassQueue<SyncReport>((request, stop) => this.#pass(request, stop));
  /** What was found out or ordered outside of a pass, and who waits for it to be in every target. */
  #submitted: { change: (fleet: Fleet) => void; done: () => void }[] = [];
  #onSubmission = () => {};
  #watermark: Watermark | undefined;
  #serverNames = "";
  #savedRevision = 0;

  constructor(parts: SyncParts, watcher: SyncWatcher = {}) {
    this.#parts = parts;
    this.#watcher = watcher;
    this.#file = new TrackedTarget(parts.file);
    this.#instances = parts.instances.map((instance) => new TrackedTarget(instance));
  }

  get busy(): boolean {
    return this.#queue.busy;
  }

  /** A pass is under way that asks PuppetDB. */
  get looking(): boolean {
    return this.#queue.looking;
  }

  /** The state of each target between passes, the file first. */
  targets(): TargetState[] {
    return this.#targets.map(({ state }) => state);
  }

  /** As targets(), with what each is and how it was last written. */
  targetDetails(): TargetDetail[] {
    return this.#targets.map(({ detail }) => detail);
  }

  /** The servers of every instance, as last seen; undefined when there is no HAProxy to ask. */
  servers(): readonly Server[] | undefined {
    if (this.#instances.length === 0) return undefined;
    return this.#instances.flatMap(({ servers }) => servers ?? []);
  }

  /** Finds the server of a producer, by the servers that are there now. */
  resolver(): Resolve {
    return resolver(this.#parts.config.masterAliases, this.servers());
  }

  /**
   * Takes over what an earlier run has left; for a dry run without touching it. Throws `STATE_FILE` for what could not be
   * taken over; sasori can go on without.
   */
  async restore({ dryRun = false }: Pick<SyncRequest, "dryRun"> = {}): Promise<void> {
    const { file, journal } = this.#parts;
    if (!dryRun) for (const one of [file, journal]) await one.removeLeftovers();
    const { observations, homes, removals } = await journal.load(dryRun);
    for (const observation of observations) this.fleet.observe(observation);
    for (const [certname, home] of homes) this.fleet.homes.set(certname, home);
    // A clock that was set back since made these times future ones: they count as now.
    const now = monotonic(Date.now());
    this.fleet.removals.push(
      ...removals.map(({ at, count }) => ({ at: Math.min(monotonic(at), now), count })),
    );
    this.fleet.removals.sort((a, b) => a.at - b.at);
    this.#savedRevision = this.fleet.revision;
    if (journal.trouble === undefined) return;
    this.#savedRevision = UNSAVED; // The next pass writes what is usable.
    throw journal.trouble;
  }

  /** Runs a pass or joins the next one. A failed pass does not reject: its report says so. */
  request(request: SyncRequest): Promise<SyncReport> {
    return this.#queue.request(request);
  }

  /**
   * Takes an observation made outside of a pass; one without a time is newer than all that is known when it is taken.
   * Resolves when every reachable target has it.
   */
  submit({ at, ...seen }: Omit<Observation, "at"> & { at?: number }): Promise<void> {
    return this.#submit((fleet) => {
      const now = Date.now();
      const time = at ?? fleet.map.timeAfterKnown(seen.certname, now);
      fleet.observe({ ...seen, at: time, ...(time > now && { made: now }) });
    });
  }

  /** Ends a registration or learned route; `observation` is what PuppetDB has of the node instead. */
  withdraw(certname: Certname, observation: Observation | undefined): Promise<void> {
    return this.#submit((fleet) => fleet.withdraw(certname, observation));
  }

  async #submit(change: (fleet: Fleet) => void): Promise<void> {
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

  get #targets(): readonly TrackedTarget[] {
    return [this.#file, ...this.#instances];
  }

  async #pass(request: SyncRequest, stop: AbortSignal): Promise<SyncReport> {
    const clock = new Phases((phase) => {
      this.phase = phase;
    });
    try {
      clock.begin("look");
      await this.#each(LOOK_MS, stop, (target, signal) => target.look(request.full === true, signal));
      const kind = this.#kindOf(request);

      clock.begin("fetch");
      const fetching = this.#fetch(kind, stop);
      await this.#settleKnown(request, stop);
      const reading = await this.#whileFetching(fetching, stop);

      clock.begin("plan");
      const result = request.dryRun
        ? this.#tryOut(reading)
        : await this.#carryOut(reading, request.approve, kind, clock, stop);
      clock.end();
      const learned = this.#instances.reduce((sum, { report }) => sum + report.learned, 0);
      const report = makeReport({
        ...result,
        request,
        kind,
        clock,
        reading,
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
    // As far as can be told: PuppetDB may not have been read.
    let approvalUnmatched = approve !== undefined;
    if (isReading(reading)) {
      const lateMs = this.#merge(this.fleet, reading, approve);
      this.#watermark = advance(this.#watermark, reading, lateMs);
      if (reading.kind === "full") this.#serverNames = this.#namesOfServers();
      const { verdict } = this.fleet;
      approvalUnmatched &&= !(verdict.kind === "allowed" && verdict.byApproval);
    }
    const submitted = this.#takeSubmitted();
    const masters = await this.#settleMasters(kind, stop);
    const journal = await this.#settle(stop, clock, kind === "full");
    for (const { done } of submitted) done();
    this.served ||= this.#isServed();
    return { fleet: this.fleet, approvalUnmatched, masters, journal };
  }

  /** Plans the same with a copy of the fleet, of which nothing stays: a dry run. */
  #tryOut(reading: Reading | Failure | undefined) {
    const fleet = new Fleet(this.fleet);
    for (const { contents } of this.#targets) if (contents !== undefined) fleet.inherit(contents);
    this.#learn(fleet);
    if (isReading(reading)) this.#merge(fleet, reading);
    const changes = fleet.map.takeChanges();
    for (const target of this.#targets) target.plan(fleet.map, changes);
    return { fleet, approvalUnmatched: false, masters: NO_MASTERS, journal: undefined };
  }

  #isServed(): boolean {
    const known = this.fleet.complete || this.fleet.map.size > 0;
    const live = this.#instances.length > 0 ? this.#instances : [this.#file];
    return known && live.some(({ settled }) => settled);
  }

  /** The same step for every target at once; one that fails reports it and drops out of the pass. */
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
   * A full reading is also needed when HAProxy has other servers than before, because submissions are not sent
   * twice, and at the first contact with an HAProxy, because the guard must judge what it holds. And for an approval:
   * what is held is remembered, and only a full reading says whether PuppetDB has been restored since.
   */
  #kindOf(request: SyncRequest): SyncReport["kind"] {
    const otherServers = this.#namesOfServers() !== this.#serverNames;
    const firstContact = this.#instances.some(({ reachable, inherited }) => reachable && !inherited);
    const mustRead = request.full || request.approve !== undefined || firstContact;
    if (request.known && !mustRead) return "known";
    return mustRead || otherServers || this.#watermark === undefined ? "full" : "changes";
  }

  #namesOfServers(): string {
    const names = (this.servers() ?? []).map(({ name, host }) => `${name}=${host}`);
    return names.sort().join();
  }

  async #fetch(kind: SyncReport["kind"], stop: AbortSignal): Promise<Reading | Failure | undefined> {
    // Before any HAProxy has told its servers, every producer would look like a stranger.
    const isTold =
      this.#instances.length === 0 || this.#instances.some(({ servers }) => servers !== undefined);
    if (kind === "known" || !isTold) return undefined;
    const ms = kind === "full" ? FETCH_ALL_MS : FETCH_CHANGES_MS;
    const { puppetdb } = this.#parts;
    const late = new SasoriError(
      "PUPPETDB_TIMEOUT",
      `${puppetdb.url}: PuppetDB has not answered within ${ms / 1000} s`,
    );
    const mark = kind === "changes" ? this.#watermark : undefined;
    try {
      return await within(ms, stop, late, (signal) =>
        mark === undefined
          ? puppetdb.readAll(signal)
          : puppetdb.readChanges(mark.asOf - mark.overlapMs, signal, mark.inactiveCount),
      );
    } catch (error) {
      return toFailure(error);
    }
  }

  /** Repairs what differs from what is known, while PuppetDB is asked. A dry run only reads it. */
  async #settleKnown(request: SyncRequest, stop: AbortSignal): Promise<void> {
    await this.#each(TARGET_MS, stop, (target, signal) =>
      target.readIfChanged(request.full === true, this.fleet.map, signal),
    );
    if (!request.dryRun) await this.#settle(stop);
  }

  /**
   * Neither a registration nor an HAProxy that lacks something waits for PuppetDB's answer, which may take minutes, not even
   * for that of a dry run.
   */
  async #whileFetching<T>(fetching: Promise<T>, stop: AbortSignal): Promise<T> {
    let fetched = false;
    const done = fetching.finally(() => {
      fetched = true;
      this.#onSubmission = () => {}; // The last one would keep the whole reading in memory until the next pass.
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
      const submitted = this.#takeSubmitted();
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

  /** Takes what was submitted into the fleet, and remembers what changed by that and by the reading before. */
  #takeSubmitted() {
    const submitted = this.#submitted.splice(0);
    for (const { change } of submitted) change(this.fleet);
    this.#remember((master) => this.#stateOf(master));
    return submitted;
  }

  /** What a target held before sasori first wrote to it, and until PuppetDB was read, is part of the map. */
  #inherit(target: TrackedTarget): void {
    const { contents } = target;
    if (contents === undefined || (target.inherited && this.fleet.complete)) return;
    this.fleet.inherit(contents);
    target.inherited = true;
    this.#remember();
  }

  /** Returns how late a submission was, see Fleet.merge. */
  #merge(fleet: Fleet, reading: Reading, approved?: string): number {
    const guard = { limit: this.#parts.config.maxRemoved, approved, now: performance.now() };
    return fleet.merge(reading, this.resolver(), guard, this.#watermark?.asOf ?? 0);
  }

  /** Routes that a HAProxy learned since it was last in sync become observations for all others. */
  #learn(fleet: Fleet): void {
    const names = new Set(this.servers()?.map(({ name }) => name));
    // All are asked first: beside what one learned, the old route of another would look like news.
    const learned = this.#instances.map((target) => target.learned(fleet.map, (name) => names.has(name)));
    for (const [index, { report }] of this.#instances.entries())
      report.learned += (learned[index] ?? []).filter((route) => fleet.observe(route)).length;
  }

  /** Tells every target what changed in the fleet, and the fleet which nodes lost their home by it. */
  #remember(stateOf?: (master: Master) => Server["state"]): void {
    const changes = this.fleet.map.takeChanges();
    for (const target of this.#targets) target.expect(changes);
    if (stateOf !== undefined) this.fleet.noteMoves(changes, stateOf);
    if (changes.size > 0) this.#watcher.changed?.(changes, this.fleet);
  }

  /** As the HAProxy sees it that sees it best. With none to ask, nobody can say that it is down. */
  #stateOf(master: Master): Server["state"] {
    const states = (this.servers() ?? []).flatMap(({ name, state }) => (name === master ? [state] : []));
    if (states.length === 0) return "up";
    return (["up", "drained"] as const).find((state) => states.includes(state)) ?? "down";
  }

  /** Adds and removes servers; what PuppetDB said of their nodes is merged by the next pass, a full one. */
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
   * could not be written; `checked`: it is also written when somebody else has deleted or changed it.
   */
  async #settle(stop: AbortSignal, clock?: Phases, checked = false): Promise<Failure | undefined> {
    const desired = this.fleet.map;
    await this.#each(TARGET_MS, stop, (target, signal) => target.readBeforeReplacing(desired, signal));
    for (const target of this.#targets) this.#inherit(target);
    this.#learn(this.fleet);
    this.#remember((master) => this.#stateOf(master));
    const journal = await this.#saveJournal(stop, checked);
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

  async #saveJournal(stop: AbortSignal, checked: boolean): Promise<Failure | undefined> {
    const { own, homes, revision } = this.fleet;
    const removals = this.fleet.removals.map(({ at, count }) => ({ at: at - monotonic(0), count }));
    const { journal } = this.#parts;
    if (revision === this.#savedRevision && !checked) return undefined;
    try {
      const late = new SasoriError("FILE_WRITE", `gave up after ${LOOK_MS / 1000} s`);
      await within(LOOK_MS, stop, late, async (signal) => {
        if (checked && !(await journal.isAsLeft(signal))) this.#savedRevision = UNSAVED;
        if (revision === this.#savedRevision) return;
        await journal.save({ observations: own.values(), homes, removals }, signal);
      });
      this.#savedRevision = revision;
      this.unsaved = undefined;
    } catch (error) {
      this.unsaved = toFailure(error);
    }
    return this.unsaved;
  }
}

/** A time (ms since the epoch) on the clock that nobody sets, which knows only this run. */
const monotonic = (at: number): number => performance.now() - (Date.now() - at);

const isReading = (reading: Reading | Failure | undefined): reading is Reading =>
  reading !== undefined && !("code" in reading);
