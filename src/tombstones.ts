// What has ended, by node: nodes that were removed from the map, and registrations and learned routes that were ended. Without
// this record an HAProxy that comes back with its old map, or a second sasori that is a pass behind, would bring them back.
// Promises: the newest are kept. Only their number is bounded, so a wrong clock cannot end one.
// Pure state: no I/O, no clock.

import type { Certname } from "./node-map.js";

export interface Tombstone {
  /**
   * When the node was deactivated (ms, PuppetDB's clock). PuppetDB's observations count only if they are newer. 0: all count.
   */
  at: number;
  /** With several PuppetDBs: which one the route came from, and its time. From another one only newer observations count. */
  told?: { from: string; at: number } | undefined;
}

/** The end of a registration or learned route. */
export interface End {
  /** The place (see Observation) of the newest one that ended (ms). */
  at: number;
  /** When it was ended (ms). */
  since: number;
  /** The time of the PuppetDB observation that it had replaced; missing if there was none. */
  reported?: number | undefined;
}

const MAX_TOMBSTONES = 20_000;

export class Tombstones<Stone = Tombstone> {
  /** The oldest first. */
  readonly #stones: Map<Certname, Stone>;

  constructor(like?: Tombstones<Stone>) {
    this.#stones = new Map(like === undefined ? [] : like.#stones);
  }

  get size(): number {
    return this.#stones.size;
  }

  [Symbol.iterator](): IterableIterator<[Certname, Stone]> {
    return this.#stones.entries();
  }

  has(certname: Certname): boolean {
    return this.#stones.has(certname);
  }

  get(certname: Certname): Stone | undefined {
    return this.#stones.get(certname);
  }

  set(certname: Certname, stone: Stone): void {
    this.#stones.delete(certname); // Deleted first, so that it becomes the last one.
    this.#stones.set(certname, stone);
    const [oldest] = this.#stones.keys();
    if (oldest !== undefined && this.#stones.size > MAX_TOMBSTONES) this.#stones.delete(oldest);
  }

  delete(certname: Certname): boolean {
    return this.#stones.delete(certname);
  }
}
