// Notices if PuppetDB is no longer being read. A pass that never ends reports nothing. So this looks only at the schedules and a
// clock, and not at the passes.
// Promises: no state but a few numbers; it never stops or starts anything.

import type { SyncReport } from "./sync-report.js";

/** PuppetDB counts as not read if the schedules came due this many times without a good pass, */
const MISSED_TICKS = 3;
/** and if that has lasted for this long plus twice the length of a full pass, because no other pass can run meanwhile. */
const PATIENCE_MS = 60_000;
/** For the first pass, whose length is unknown. This is longer than the deadline of a full reading. */
const FIRST_MS = 11 * 60_000;

export class Watchdog {
  readonly #now: () => number;
  #ticks = 0;
  #goodAt: number;
  #allowedMs = FIRST_MS;

  /** `now`: a monotonic clock, in milliseconds. */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
    this.#goodAt = now();
  }

  /** A schedule is due: PuppetDB should be read now. */
  tick(): void {
    this.#ticks += 1;
  }

  takePass({
    source,
    kind,
    durationMs,
    dryRun,
  }: Pick<SyncReport, "source" | "kind" | "durationMs" | "dryRun">) {
    if (source.outcome !== "done" || dryRun) return;
    this.#ticks = 0;
    this.#goodAt = this.#now();
    if (kind === "full") this.#allowedMs = PATIENCE_MS + 2 * durationMs;
  }

  /** The last good reading of PuppetDB is too old. */
  get isLate(): boolean {
    return this.#ticks >= MISSED_TICKS && this.#now() - this.#goodAt > this.#allowedMs;
  }
}
