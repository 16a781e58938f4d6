// One target through the passes: how it was left, what it still lacks, and how it is brought to the desired map.
// Promises: a target that failed or was disturbed is read again; routes that others wrote to it can be learned before they
// are overwritten; its failure does not stop other targets.

import { type Failure, SasoriError, toFailure } from "../errors.js";
import { LargeMap } from "../large-map.js";
import {
  type Assignment,
  type Before,
  type Certname,
  type Master,
  NodeMap,
  type Observation,
} from "../node-map.js";
import { copyInPieces, eachInPieces, inPieces } from "../pieces.js";
import {
  type Change,
  countOf,
  keepingOthers,
  learnedRoutes,
  type Plan,
  planFromChanges,
  planFromContents,
} from "../plan.js";
import {
  type Contents,
  type Fingerprint,
  isSame,
  type Server,
  type Sighting,
  type Target,
} from "./target.js";

/** How many changes a report lists one by one; it always counts all. */
const MAX_LISTED = 1_000;

/** A push that somebody disturbs (a reload, another writer) is planned again this often in one pass. */
const MAX_ROUNDS = 3;

/** How long a target that stalled is left alone by passes that only look for changes. */
const STALLED_PAUSE_MS = 60_000;

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
  /** Entries that differed from what sasori last wrote, for no known reason. */
  drift: number;
  /** Somebody else, such as another sasori or a person, changed entries since the last pass or during this one. */
  changedByOthers?: true;
  method?: string;
  durationMs: number;
  failure?: Failure;
}

/** The state of a target between passes. */
export interface TargetState {
  target: string;
  kind: Target["kind"];
  /** It held the desired map when it was last looked at. */
  inSync: boolean;
  /** Changes that it does not have yet. */
  pending: number;
  /** Every entry of the live map was compared with what is known since then (ISO 8601). */
  comparedAt?: string;
  version?: string;
  servers?: readonly Server[];
  failure?: Failure;
}

/** How a target was last written. */
export interface Push {
  /** ISO 8601: when it was done. */
  at: string;
  method: string;
  add: number;
  set: number;
  del: number;
  durationMs: number;
}

/** The state of a target, with what it is. */
export interface TargetDetail extends TargetState {
  /** As last seen; undefined while it cannot be reached. */
  fingerprint: Fingerprint | undefined;
  lastPush: Push | undefined;
}

export class TrackedTarget {
  readonly target: Target;
  /** In the pass under way, or in the last one. */
  report: TargetReport;
  /** Servers that sasori added to it at run time, and the process that has them. */
  readonly added = new Map<Master, string>();
  /** As last seen; undefined until then. */
  servers: readonly Server[] | undefined;
  /** The routes that it held before sasori first wrote to it have been taken over. */
  inherited = false;
  /** What was read in this pass and not yet acted upon. */
  contents: Contents | undefined;
  #keepsOthers = false;
  /** What it holds for nodes that are not known. If one becomes known, its entry is changed: HAProxy would add a second one. */
  #others: Before = new LargeMap();
  #capitals: ReadonlySet<Certname> = new Set();
  /** Which entries the next sample takes, and when (ms since the epoch) the first of them was taken. */
  #sampling: { next: Iterator<Assignment>; since: number } | undefined;
  /** When that reading began (ms since the epoch). */
  #readAt = 0;
  #sighting: Sighting | undefined;
  /** Its fingerprint after sasori's last write. Undefined if it must be read: it was never seen, failed, or was disturbed. */
  #left: Fingerprint | undefined;
  /** The process that was last in sync; `#comparedAt`: since when all entries have been compared (ms since the epoch). */
  #process: string | undefined;
  #comparedAt = 0;
  /** Entries came or went since it was left. */
  #touched = false;
  /** Nodes that changed and are not pushed yet, with what the target has. Targets that lack the same share one map. */
  #pending: Before = new LargeMap();
  #pendingIsShared = false;
  #failure: Failure | undefined;
  #lastPush: Push | undefined;
  /** A stalled target is left alone until then (`performance.now()`). */
  #retryAt = 0;

  constructor(target: Target) {
    this.target = target;
    this.report = this.#newReport();
  }

  /** It keeps the entries that somebody else made until a person approves their removal. Then it must be read again. */
  set keepsOthers(keeps: boolean) {
    if (this.#keepsOthers && !keeps) this.#left = undefined;
    this.#keepsOthers = keeps;
  }

  get reachable(): boolean {
    return this.#sighting !== undefined;
  }

  /** It holds all that is known. For some nodes PuppetDB may have to decide first. */
  get settled(): boolean {
    return this.#left !== undefined;
  }

  get state(): TargetState {
    const { name, kind } = this.target;
    return {
      target: name,
      kind,
      inSync: this.#left !== undefined && this.#pending.size === 0,
      pending: this.#pending.size,
      ...(kind === "haproxy" &&
        this.#comparedAt > 0 && { comparedAt: new Date(this.#comparedAt).toISOString() }),
      ...(kind === "haproxy" && { version: this.#sighting?.version ?? "", servers: this.servers ?? [] }),
      ...(this.#failure && { failure: this.#failure }),
    };
  }

  get detail(): TargetDetail {
    const fingerprint = this.#left ?? this.#sighting?.fingerprint;
    return { ...this.state, fingerprint, lastPush: this.#lastPush };
  }

  /** Begins a pass with a cheap look. A stalled target is only asked again after a pause, or if `insist`. */
  async look(insist: boolean, signal: AbortSignal): Promise<void> {
    this.report = this.#newReport();
    this.#sighting = this.contents = undefined;
    await this.#attempt(() => this.#see(insist, signal));
  }

  /**
   * As `look`, once more within a long pass. The report keeps what was done so far. A target that failed gets another
   * chance.
   */
  async lookAgain(signal: AbortSignal): Promise<void> {
    if (this.contents !== undefined) return;
    const { failure, ...report } = this.report;
    this.report = failure === undefined ? report : { ...report, outcome: "unchanged" };
    await this.#attempt(() => this.#see(false, signal));
  }

  async #see(insist: boolean, signal: AbortSignal): Promise<void> {
    const failure = this.#failure;
    // Otherwise every pass would take as long as this target's time-out, and delay all other targets.
    if (failure?.code === "HAPROXY_TIMEOUT" && performance.now() < this.#retryAt && !insist) {
      throw new SasoriError(failure.code, failure.message);
    }
    this.#sighting = await this.target.look(signal);
    this.servers = this.#sighting.servers;
    const { process, content } = this.#sighting.fingerprint;
    // Servers added at run time end with their process. In the next one a server of that name is from the configuration.
    for (const [name, of] of this.added) if (of !== process) this.added.delete(name);
    this.#touched = process === this.#left?.process && content !== this.#left.content;
  }

  /** Reads the target if it is not as it was left, or in any case. */
  readIfChanged(inAnyCase: boolean, desired: NodeMap, signal: AbortSignal): Promise<void> {
    const seen = this.#sighting?.fingerprint;
    if (!inAnyCase && seen !== undefined && this.#left !== undefined && isSame(seen, this.#left))
      return Promise.resolve();
    return this.#attempt(async () => {
      await this.#read(desired, signal);
    });
  }

  /**
   * Reads a target in two cases: the push will replace its whole map, and would lose what HAProxy has learned since; or its
   * state is unknown, because the pass has settled it before and was disturbed.
   */
  readBeforeReplacing(desired: NodeMap, signal: AbortSignal): Promise<void> {
    const replaces = (changes: number) => this.target.replaces(changes, desired);
    // An exact count costs as much as the plan. So it is made only if the rough count says that the map would be replaced.
    const willReplace = async () =>
      replaces(this.#pending.size) &&
      replaces(countOf(await inPieces(planFromChanges(desired, this.#pending))));
    return this.#attempt(async () => {
      if (this.contents !== undefined || (this.#left !== undefined && !(await willReplace()))) return;
      await this.#read(desired, signal);
    });
  }

  async #read(desired: NodeMap, signal: AbortSignal): Promise<Contents> {
    const began = Date.now();
    const contents = await this.target.read(signal, desired);
    this.#readAt = began;
    this.contents = contents;
    this.#capitals = contents.capitals ?? new Set();
    this.#sampling = undefined;
    return contents;
  }

  /**
   * Compares the next `count` entries of an HAProxy whose fingerprint has not changed, because a value that somebody else
   * replaced does not change the fingerprint. If one differs, the whole map is read.
   */
  sample(count: number, desired: NodeMap, signal: AbortSignal): Promise<void> {
    const { target } = this;
    if (target.holds === undefined || this.contents !== undefined || this.#left === undefined)
      return Promise.resolve();
    return this.#attempt(async () => {
      const sampling = this.#sampling ?? { next: desired.assignments(), since: Date.now() };
      const routes: Assignment[] = [];
      let isDone = false;
      while (routes.length < count && !isDone) {
        const { value, done } = sampling.next.next();
        isDone = done === true;
        if (value !== undefined && !this.#pending.has(value.certname) && !this.#capitals.has(value.certname))
          routes.push(value);
      }
      this.#sampling = isDone ? undefined : sampling;
      if (await target.holds?.(routes, signal)) {
        if (isDone) this.#comparedAt = Math.max(this.#comparedAt, sampling.since);
      } else {
        await this.#read(desired, signal);
      }
    });
  }

  /** It holds other entries than it was left with, in the same process. */
  get touched(): boolean {
    return this.#touched;
  }

  /** Remembers changes that this target does not have yet. A change back to what it has is forgotten again. */
  *expect(changes: Before, desired: NodeMap): Generator<void> {
    if (changes.size === 0) return;
    if (this.#pending.size + this.#others.size === 0) {
      this.#pending = changes;
      this.#pendingIsShared = true;
      return;
    }
    if (this.#pendingIsShared) this.#pending = yield* copyInPieces(this.#pending);
    this.#pendingIsShared = false;
    yield* eachInPieces(changes, ([certname, master]) => {
      if (!this.#pending.has(certname)) this.#pending.set(certname, master ?? this.#others.get(certname));
      else if (this.#pending.get(certname) === desired.get(certname)?.master) this.#pending.delete(certname);
    });
  }

  /**
   * The routes that HAProxy learned since it was last in sync. The exact time is unknown, so a learned route counts as old as
   * the last comparison. An observation of PuppetDB since then wins. If that is wrong, the route heals once more.
   */
  async learned(desired: NodeMap, isServer: (master: Master) => boolean): Promise<Observation[]> {
    const { contents } = this;
    if (contents === undefined || this.target.kind === "file") return [];
    if (contents.fingerprint.process !== this.#process) return [];
    return inPieces(learnedRoutes(desired, this.#pending, contents, isServer, this.#comparedAt));
  }

  /** Counts what would change if the fleet had changed by `changes`, and changes nothing. */
  *plan(desired: NodeMap, changes: Before): Generator<void> {
    const plan = this.contents
      ? yield* planFromContents(desired, this.contents)
      : yield* planFromChanges(desired, yield* this.#pendingWith(changes));
    const kept = yield* this.#kept(plan);
    if (kept.kind === "changes" && this.report.failure === undefined) this.#count(kept, "planned");
  }

  *#pendingWith(changes: Before): Generator<void, Before> {
    const all = yield* copyInPieces(this.#others);
    yield* eachInPieces(changes, ([certname, before]) => all.set(certname, before ?? all.get(certname)));
    yield* eachInPieces(this.#pending, ([certname, before]) => all.set(certname, before));
    return all;
  }

  *#kept(plan: Plan): Generator<void, Plan> {
    return this.#keepsOthers ? yield* keepingOthers(plan, this.#capitals) : plan;
  }

  /** Plans and applies until the target holds the desired map. `planOf` may be shared, see `plansFromChanges`. */
  settle(desired: NodeMap, planOf: (pending: Before) => Promise<Plan>, signal: AbortSignal): Promise<void> {
    return this.#attempt(async () => {
      const { contents } = this;
      let seen = contents?.fingerprint ?? this.#left;
      if (seen === undefined) return;
      const found = contents
        ? await inPieces(planFromContents(desired, contents))
        : await planOf(this.#pending);
      let plan = await inPieces(this.#kept(found));
      if (contents !== undefined && plan.kind === "changes") await inPieces(this.#countDrift(plan, contents));
      // If routes were learned, HAProxy itself may have added the new entries. Otherwise somebody else did.
      if (this.report.drift > 0 || (this.#touched && this.report.learned === 0))
        this.report.changedByOthers = true;
      let wanted = desired;
      for (let round = 1; plan.kind === "changes"; round += 1) {
        if (round > MAX_ROUNDS) throw this.#disturbed();
        this.#left = undefined; // If anything below fails, the target must be read again.
        const began = performance.now();
        // From the second round on, new entries are allowed: an HAProxy that keeps learning nodes would never look unchanged.
        const applied = await this.target.apply(plan, wanted, seen, signal, round > 1);
        if (applied.method !== undefined) this.#applied(plan, applied.method, performance.now() - began);
        if (!applied.disturbed) return this.#inSync(applied.fingerprint, plan, wanted === desired);
        const unpushed = applied.method === undefined ? countOf(plan) : 0;
        const { process } = seen;
        const now = await this.#read(desired, signal);
        seen = now.fingerprint;
        wanted = await this.#withNews(desired);
        plan = await inPieces(this.#kept(await inPieces(planFromContents(wanted, now))));
        if (process === seen.process && countOf(plan) > unpushed) this.report.changedByOthers = true;
      }
      this.#inSync(seen, plan, wanted === desired);
    });
  }

  #disturbed(): SasoriError {
    return new SasoriError(
      "HAPROXY_CHANGED",
      `${this.target.name}: it was reloaded or changed by another writer during each of ${MAX_ROUNDS} pushes; the next pass reads it again`,
    );
  }

  /**
   * The desired map, with the routes that this HAProxy learned during the push. They stay there, and the next pass learns
   * them.
   */
  async #withNews(desired: NodeMap): Promise<NodeMap> {
    const names = new Set(this.servers?.map(({ name }) => name));
    const news = await this.learned(desired, (name) => names.has(name));
    if (news.length === 0) return desired;
    const wanted = await inPieces(NodeMap.copy(desired));
    const taken = news.filter((route) => wanted.observe(route));
    return taken.length === 0 ? desired : wanted;
  }

  /**
   * Notes that the target is in sync. `complete`: it holds no route that must still be learned. Undecided nodes stay
   * pending.
   */
  #inSync(fingerprint: Fingerprint, { undecided, keepsOthers }: Plan, complete: boolean): void {
    this.#left = complete ? fingerprint : undefined;
    this.#process = fingerprint.process;
    if (this.contents !== undefined && complete) this.#comparedAt = this.#readAt;
    this.#pending = undecided;
    this.#pendingIsShared = true; // Shared with the targets that have the same plan.
    if (this.contents !== undefined) this.#others = new LargeMap();
    for (const [certname, held] of keepsOthers ?? []) this.#others.set(certname, held);
    this.contents = undefined;
  }

  #applied(plan: Plan, method: string, durationMs: number): void {
    this.#count(plan, "applied", method);
    this.#lastPush = {
      at: new Date().toISOString(),
      method,
      add: plan.add.length,
      set: plan.set.length,
      del: plan.del.length,
      durationMs: Math.round(durationMs),
    };
  }

  /** Counts entries that differ and do not wait to be pushed. If the process is the same, somebody else changed them. */
  *#countDrift({ add, set, del }: Plan, { fingerprint }: Contents): Generator<void> {
    if (fingerprint.process !== this.#process) return;
    for (const changes of [add, set, del])
      yield* eachInPieces(changes, ({ certname }) => {
        if (!this.#pending.has(certname)) this.report.drift += 1;
      });
  }

  #count(plan: Plan, outcome: "planned" | "applied", method?: string): void {
    const { report } = this;
    report.outcome = outcome;
    report.add += plan.add.length;
    report.set += plan.set.length;
    report.del += plan.del.length;
    for (const changes of [plan.set, plan.add, plan.del])
      report.changes.push(...changes.slice(0, MAX_LISTED - report.changes.length));
    if (method !== undefined) report.method = method;
  }

  /** Runs one step of a pass. After a failure the further steps are left out, and the next pass reads the target again. */
  async #attempt(step: () => Promise<void>): Promise<void> {
    if (this.report.failure !== undefined) return;
    const began = performance.now();
    try {
      await step();
      this.#failure = undefined;
    } catch (error) {
      this.report.outcome = "failed";
      this.report.failure = this.#failure = toFailure(error);
      // The pause begins at the first time-out, and is not extended while it lasts.
      if (this.#failure.code === "HAPROXY_TIMEOUT" && performance.now() >= this.#retryAt)
        this.#retryAt = performance.now() + STALLED_PAUSE_MS;
      this.#left = this.#sighting = this.contents = undefined;
    } finally {
      this.report.durationMs += Math.round(performance.now() - began);
    }
  }

  #newReport(): TargetReport {
    const { name, kind } = this.target;
    return {
      target: name,
      kind,
      outcome: "unchanged",
      add: 0,
      set: 0,
      del: 0,
      changes: [],
      learned: 0,
      drift: 0,
      durationMs: 0,
    };
  }
}
