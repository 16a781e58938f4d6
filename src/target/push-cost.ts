// What a push costs one HAProxy: the choice between incremental commands and a versioned swap.
// The version gives the first guess; what this HAProxy's own pushes took replaces it.
// Pure: no I/O, no clock.

import { isAtLeast } from "../releases.js";

export type Method = "incremental" | "swap";

/** How much a push is to do. `keyed`: entries set or removed, `added`: new ones; `entries`: the whole map. */
export interface Push {
  keyed: number;
  added: number;
  entries: number;
}

/** The duration of a shorter push shows the round trips, not the commands. So it is not learned from. */
const TELLING_MS = 10;

export class PushCost {
  /** `set map` and `del map` look through the list of all entries. */
  readonly #scans: boolean;
  /** Milliseconds: for each keyed command (for each entry that it scans), each added line, each entry of a swap. */
  #keyed: number;
  #added: number;
  #swapped: number;

  /**
   * Measured with maps of 100,000: before 2.9 a keyed command scans the list, 1.1 ms, and 2 to 3 ms once swaps have
   * scattered it in memory; with the tree since then it takes 5 µs; a line added 2 µs; a swap (fill, commit) 3 µs for each
   * entry, half of that on 3.2.
   */
  constructor(version: string) {
    this.#scans = !isAtLeast(version, 2, 9);
    this.#keyed = this.#scans ? 11e-6 : 5e-3;
    this.#added = 2e-3;
    this.#swapped = 3e-3;
  }

  /** What one command on an entry of a map of this size takes (ms). */
  keyedMs(entries: number): number {
    return this.#scanned({ keyed: 1, added: 0, entries }) * this.#keyed;
  }

  cheaper(push: Push): Method {
    return this.#expected("incremental", push) <= this.#expected("swap", push) ? "incremental" : "swap";
  }

  /** Learns from a push how long it kept HAProxy at work. The newest push counts half, all earlier ones the other half. */
  learn(method: Method, push: Push, ms: number): void {
    const expected = this.#expected(method, push);
    if (expected < TELLING_MS) return;
    const ratio = (1 + ms / expected) / 2;
    if (method === "swap") this.#swapped *= ratio;
    else if (this.#scanned(push) * this.#keyed > expected / 2) this.#keyed *= ratio;
    else this.#added *= ratio;
  }

  #expected(method: Method, push: Push): number {
    if (method === "swap") return push.entries * this.#swapped;
    return this.#scanned(push) * this.#keyed + push.added * this.#added;
  }

  #scanned({ keyed, entries }: Push): number {
    return this.#scans ? keyed * entries : keyed;
  }
}
