// Recent history: the last moves, the last passes that changed something or failed, and since when PuppetDB fails.
// Promises: bounded; the first filling of the map does not count as moves, but changes while sasori was stopped do.
// Pure state: no I/O, no clock.

import type { Failure } from "../errors.js";
import { type Before, type Certname, type NodeMap, remarksOf, type Source } from "../node-map.js";
import { eachInPieces } from "../pieces.js";
import { changedAnything, type SyncReport } from "../sync-report.js";
import type { Move, Moves, MovesQuery, Pass } from "./api-shapes.js";

export const MAX_MOVES = 10_000;
export const MAX_PASSES = 100;

/** Sources of what was known before PuppetDB was asked: the state file, or the last good map. */
const KNOWN_BEFORE: readonly Source[] = ["inherited", "registration", "learned"];

export interface HistoryWatcher {
  /** In the order in which they happened. Of a burst only the last `MAX_MOVES`; `all` is the number of all. */
  moves(moves: readonly Move[], all: number): void;
  /** Called for every pass, including quiet ones. */
  pass(pass: Pass): void;
}

interface PuppetdbFailure {
  failure: Failure;
  since: string;
}

export class History {
  /** When PuppetDB was last read, ISO 8601. */
  lastGoodPoll: string | undefined;
  lastPass: Pass | undefined;
  /** PuppetDB's failure, while there is one, and when it began. */
  puppetdb: PuppetdbFailure | undefined;
  /** The last full reading has failed; `alone`: how many in a row have, although changes were read afterwards. */
  #full: (PuppetdbFailure & { alone: number; isLast: boolean }) | undefined;
  /** The oldest first. It is cut only when it is twice as long as allowed, because removing the first of an array is slow. */
  #moves: Move[] = [];
  readonly #passes: Pass[] = [];
  readonly #watchers = new Set<HistoryWatcher>();
  #lastId = 0;
  /** `#found`: a map was found at the start. `#filled`: PuppetDB was read at least once since. */
  #found = false;
  #filled = false;
  #lastSign = "";

  /** Returns a function that ends it. */
  watch(watcher: HistoryWatcher): () => void {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  }

  /**
   * Takes what changed in `map`, each node with what it had before; `complete` says that PuppetDB was read as a whole at
   * least once, `at` is the time in ISO 8601.
   */
  *takeChanges(changes: Before, map: Pick<NodeMap, "get">, complete: boolean, at: string): Generator<void> {
    const filling = !this.#filled;
    this.#filled ||= complete;
    const moves: Move[] = [];
    const before = this.#lastId;
    yield* eachInPieces(changes, ([certname, from]) => {
      if (from === undefined && filling && complete && !this.#found) return; // A new fleet, maybe a million nodes.
      const now = map.get(certname);
      if (now?.master === from) return;
      if (from === undefined && now?.source === "inherited") this.#found = true;
      const isFirst = from === undefined && now !== undefined && this.#isFirst(now.source, filling);
      if (isFirst) return;
      const [to, source] = now === undefined ? [null, null] : [now.master, now.source];
      this.#lastId += 1;
      const remarks = now === undefined ? {} : remarksOf(now);
      moves.push({ id: this.#lastId, at, certname, from: from ?? null, to, source, ...remarks });
      if (moves.length === 2 * MAX_MOVES) moves.splice(0, MAX_MOVES);
    });
    if (moves.length === 0) return;
    const kept = moves.slice(-MAX_MOVES);
    this.#moves.push(...kept);
    if (this.#moves.length > 2 * MAX_MOVES) this.#moves = this.#moves.slice(-MAX_MOVES);
    for (const watcher of this.#watchers) watcher.moves(kept, this.#lastId - before);
  }

  /**
   * Whether a node that is new in the map is no news: it was known before PuppetDB was asked, or the fleet is read for
   * the first time.
   */
  #isFirst(source: Source, filling: boolean): boolean {
    if (source === "inherited") return true;
    return filling && (!this.#found || KNOWN_BEFORE.includes(source));
  }

  takePass(report: SyncReport): void {
    const { source, startedAt, kind } = report;
    if (source.outcome === "done") {
      this.#filled ||= kind === "full" && !report.dryRun; // Even if there was nothing to fill.
      this.lastGoodPoll = startedAt;
      this.puppetdb = this.#fullAlone(kind);
    } else if (source.failure !== undefined) {
      const { failure } = source;
      this.puppetdb = { failure, since: this.puppetdb?.since ?? startedAt };
      if (kind === "full") {
        const { since, alone } = this.#full ?? { since: startedAt, alone: 0 };
        this.#full = { failure, since, alone, isLast: true };
      }
    }
    // A lasting failure is one event, not one for each pass.
    const sign = signOf(report);
    const pass = toPass(report, changedAnything(report) || sign !== this.#lastSign);
    this.#lastSign = sign;
    this.lastPass = pass;
    if (pass.listed) this.#passes.push(pass);
    if (this.#passes.length > MAX_PASSES) this.#passes.shift();
    for (const watcher of this.#watchers) watcher.pass(pass);
  }

  /**
   * After a good reading of changes: why everything cannot be read, if that failed twice. After an outage the next full
   * reading decides.
   */
  #fullAlone(kind: SyncReport["kind"]): PuppetdbFailure | undefined {
    if (kind === "full") this.#full = undefined;
    if (this.#full === undefined) return undefined;
    if (this.#full.isLast) this.#full.alone += 1;
    this.#full.isLast = false;
    const { failure, since, alone } = this.#full;
    return alone < 2 ? undefined : { failure, since };
  }

  /** The newest first. */
  get passes(): Pass[] {
    return this.#passes.toReversed();
  }

  /** A page of moves, the newest first. */
  moves({ certname, master, limit, before }: MovesQuery): Moves {
    const moves: Move[] = [];
    const oldest = Math.max(0, this.#moves.length - MAX_MOVES);
    for (let index = this.#moves.length - 1; index >= oldest; index -= 1) {
      const move = this.#moves[index];
      if (move === undefined || (before !== undefined && move.id >= before)) continue;
      if (certname !== undefined && move.certname !== certname) continue;
      if (master !== undefined && move.from !== master && move.to !== master) continue;
      if (moves.length === limit) return { moves, next: moves.at(-1)?.id ?? null, kept: MAX_MOVES };
      moves.push(move);
    }
    return { moves, next: null, kept: MAX_MOVES };
  }

  movesOf(certname: Certname): Move[] {
    return this.moves({ certname, limit: 100 }).moves;
  }
}

function toPass({ targets, ...report }: SyncReport, listed: boolean): Pass {
  const shown = targets.flatMap(({ target, outcome, add, set, del, failure }) =>
    outcome === "applied" || outcome === "failed"
      ? [{ target, outcome, add, set, del, ...(failure && { failure }) }]
      : [],
  );
  return { listed, ...report, targets: shown };
}

/** Identifies what went wrong in a pass. A further pass with the same text is not kept. */
function signOf({ outcome, held, source, journal, masters, targets }: SyncReport): string {
  const failures = [source, journal && { failure: journal }, ...targets, ...masters.changes];
  const codes = [...failures.map((one) => one?.failure), ...masters.failures].map((failure) => failure?.code);
  return [outcome, held?.id, ...codes.filter((code) => code !== undefined)].join();
}
