// Measures for how long sasori answered no request. It runs on one thread, and HAProxy waits only two seconds for an answer.

import { type IntervalHistogram, monitorEventLoopDelay } from "node:perf_hooks";

const RESOLUTION_MS = 10;
/** Longer than the usual scrape interval of Prometheus. */
const KEPT_S = 60;

export class LoopDelay {
  readonly #delays: IntervalHistogram = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
  readonly #timer: NodeJS.Timeout;
  /** The longest of each second, in ms, the newest last. */
  readonly #longest: number[] = [];

  constructor() {
    this.#delays.enable();
    // This runs after the histogram's own timer, which is late as well. A reset before that would lose the delay that just
    // ended.
    this.#timer = setInterval(() => setImmediate(() => this.#note()), 1_000).unref();
  }

  /** The longest within the last minute. */
  get longestMs(): number {
    return Math.round(Math.max(this.#current, ...this.#longest));
  }

  stop(): void {
    clearInterval(this.#timer);
    this.#delays.disable();
  }

  #note(): void {
    this.#longest.push(this.#current);
    this.#delays.reset();
    if (this.#longest.length > KEPT_S) this.#longest.shift();
  }

  /** The histogram measures the time between two of its own timers. */
  get #current(): number {
    return Math.max(0, this.#delays.max / 1e6 - RESOLUTION_MS);
  }
}
