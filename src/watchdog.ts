// Whether PuppetDB is still being looked at. A pass that never ends, whatever holds it, tells nobody anything: so this is
// judged by the schedules and a clock alone, beside the passes and without asking them.
// Promises: no state but a few numbers; it never stops or starts anything.

import type { SyncReport } from "./sync-report.js";

/** So often the schedules may have asked in vain, */
const MISSED_TICKS = 3;
/** and so long, beside twice what a full pass takes: while it runs the other schedule asks in vain. */
const PATIENCE_MS = 60_000;
/** How long the first pass takes nobody knows: longer than a full reading may. */
const FIRST_MS = 11 * 60_000;

export class Watchdog {
  readonly #now: () => number;
  #ticks = 0;
  #goodAt: number;
  #allowedMs = FIRST_MS;

  /** `now`: a clock that nobody sets, in milliseconds. */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
    this.#goodAt = now();
  }

  /** It is time for a look at PuppetDB. */
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

  /** The last good look at PuppetDB is older than a few schedules. */
  get isLate(): boolean {
    return this.#ticks >= MISSED_TICKS && this.#now() - this.#goodAt > this.#allowedMs;
  }
}
