// Nodes that were removed from the map, and the time up to which evidence of them does not count. Without this record an
// HAProxy that comes back with its old map, or a second sasori that is a pass behind, would bring them back for good.
// Promises: bounded, and kept for longer than PuppetDB keeps deactivated nodes by default (14 days).
// Pure state: no I/O, no clock.

import type { Certname } from "./node-map.js";

export interface Tombstone {
  /**
   * PuppetDB's observations count only if they are newer than this: when the node was deactivated (ms, PuppetDB's clock).
   * 0: all count.
   */
  at: number;
  /** When the node was removed (ms). */
  since: number;
  /** With several PuppetDBs: which one the route came from, and its time. From another one only newer observations count. */
  told?: { from: string; at: number } | undefined;
}

const MAX_TOMBSTONES = 20_000;
const KEPT_MS = 30 * 24 * 60 * 60_000;

export class Tombstones {
  /** The oldest first. */
  readonly #stones: Map<Certname, Tombstone>;

  constructor(like?: Tombstones) {
    this.#stones = new Map(like === undefined ? [] : like.#stones);
  }

  get size(): number {
    return this.#stones.size;
  }

  [Symbol.iterator](): IterableIterator<[Certname, Tombstone]> {
    return this.#stones.entries();
  }

  has(certname: Certname): boolean {
    return this.#stones.has(certname);
  }

  get(certname: Certname): Tombstone | undefined {
    return this.#stones.get(certname);
  }

  set(certname: Certname, stone: Tombstone): void {
    this.#stones.delete(certname); // To be the last.
    this.#stones.set(certname, stone);
    for (const [oldest, { since }] of this.#stones) {
      if (this.#stones.size <= MAX_TOMBSTONES && since > stone.since - KEPT_MS) break;
      this.#stones.delete(oldest);
    }
  }

  delete(certname: Certname): boolean {
    return this.#stones.delete(certname);
  }
}
