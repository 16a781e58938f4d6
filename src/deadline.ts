// Deadlines. `AbortSignal.any([stop, AbortSignal.timeout(ms)])` is no reliable deadline on Node 20: a timeout that only `any`
// refers to may be garbage-collected and then never fires, and a long-lived `stop` collects a listener for each. Here a timer
// holds the controller, and both are removed when the work is done.

import { setMaxListeners } from "node:events";
import { reason, type SasoriError } from "./errors.js";

/**
 * Runs `use` with a signal that aborts after `ms` with `late`, or together with `stop`. When `use` is done, the signal aborts too,
 * so that nothing is left running. Long work calls `again` after each step, which restarts `ms`.
 */
export async function within<T>(
  ms: number,
  stop: AbortSignal | undefined,
  late: Error,
  use: (signal: AbortSignal, again: () => void) => Promise<T>,
): Promise<T> {
  const controller = new AbortController();
  // There is one listener for each connection, and the number of HAProxy instances has no bound.
  setMaxListeners(0, controller.signal);
  const timer = setTimeout(() => controller.abort(late), ms);
  const onStop = () => controller.abort(stop?.reason);
  if (stop?.aborted) onStop();
  stop?.addEventListener("abort", onStop, { once: true });
  try {
    return await use(controller.signal, () => void timer.refresh());
  } finally {
    clearTimeout(timer);
    stop?.removeEventListener("abort", onStop);
    controller.abort();
  }
}

/**
 * For work that takes no signal and may never end, such as that on a network file system. When the signal aborts, the caller stops
 * waiting. No further work begins until the hanging one ends, because each would block one more thread of Node.
 */
export class Patience {
  #isLost = false;

  /** Rejects with the error that `silent` makes of the reason. */
  async wait<T>(
    signal: AbortSignal | undefined,
    silent: (why: string) => SasoriError,
    work: () => Promise<T>,
  ): Promise<T> {
    if (this.#isLost) throw silent("still nothing");
    if (signal === undefined) return work();
    if (signal.aborted) throw silent(reason(signal.reason));
    return new Promise((resolve, reject) => {
      const giveUp = () => {
        this.#isLost = true;
        reject(silent(reason(signal.reason)));
      };
      const ended = () => {
        this.#isLost = false;
        signal.removeEventListener("abort", giveUp);
      };
      signal.addEventListener("abort", giveUp, { once: true });
      work().then(resolve, reject).finally(ended);
    });
  }
}

/** Lets a number of tasks run at once. Others wait in line, in the order in which they came. */
export class Line {
  #free: number;
  readonly #waiting: (() => void)[] = [];

  constructor(places: number) {
    this.#free = places;
  }

  /**
   * Begins `work` when there is a place for it. If the signal aborts before that, it begins at once, and fails by that
   * signal.
   */
  async join<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    const hasPlace = await this.#place(signal);
    try {
      return await work();
    } finally {
      if (hasPlace) this.#leave();
    }
  }

  async #place(signal: AbortSignal): Promise<boolean> {
    if (this.#free > 0) {
      this.#free -= 1;
      return true;
    }
    if (signal.aborted) return false;
    return new Promise((resolve) => {
      const go = () => {
        signal.removeEventListener("abort", giveUp);
        resolve(true);
      };
      const giveUp = () => {
        this.#waiting.splice(this.#waiting.indexOf(go), 1);
        resolve(false);
      };
      signal.addEventListener("abort", giveUp, { once: true });
      this.#waiting.push(go);
    });
  }

  /** Gives the place to the next in line, and not to one that comes later. */
  #leave(): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#free += 1;
    else next();
  }
}

/** One run at a time, shared by all who asked before it began. Those who ask during it share the next one. */
export class Shared<T> {
  readonly #work: () => Promise<T>;
  #running: Promise<T> | undefined;
  #next: Promise<T> | undefined;

  constructor(work: () => Promise<T>) {
    this.#work = work;
  }

  get(): Promise<T> {
    if (this.#running === undefined) return this.#run();
    const again = () => {
      this.#next = undefined;
      return this.get();
    };
    this.#next ??= this.#running.then(again, again);
    return this.#next;
  }

  #run(): Promise<T> {
    const done = () => {
      this.#running = undefined;
    };
    this.#running = this.#work();
    this.#running.then(done, done);
    return this.#running;
  }
}
