// Hints that a node may have moved: a puppetserver's log line or report.
// Promises: a hint is never an observation, so nobody can move a node with a false hint; PuppetDB is asked only where
// the hint comes from another master than the map's, and no more often than the bounds below; if a hint is lost or
// refused, the next poll finds the move.

import { setTimeout as sleep } from "node:timers/promises";
import type { Resolve } from "../fleet.js";
import { type Certname, isCertname, type Master, type NodeMap } from "../node-map.js";
import type { Resolver } from "../resolve.js";

/** How a hint came. */
export type HintKind = "syslog" | "report";

/**
 * How long after a hint PuppetDB is asked (ms). The hint comes together with the submission, which waits in PuppetDB's queue
 * for 10 ms to a second. The first question opens the connections, and often finds the submission already. The intervals
 * between further questions grow. If PuppetDB has not stored it after the last one, the next poll finds it.
 */
const ASK_AFTER_MS = [0, 20, 50, 100, 170, 260, 400, 600, 900, 1_300, 2_000, 3_000];

/** At most this many nodes are asked about at the same time. Further hints are dropped. */
const MAX_PENDING = 500;

/** Upper bound for what hints cost PuppetDB, because anybody may have sent them (nodes per second). */
const NODES_PER_SECOND = 100;

/**
 * Upper bound for what they cost sasori (hints per second). It is twenty times what 100,000 nodes need that run every half
 * hour and cause three lines each.
 */
const HINTS_PER_SECOND = 3_000;

/** Agents run every half hour by default: a master that has nodes and sent nothing for this long sends no hints. */
const HEARD_MS = 2 * 60 * 60_000;
/** How many of the masters that send no hints are named. */
const SILENT_NAMED = 5;

export interface HintsParts {
  map: NodeMap;
  resolver: Pick<Resolver, "look">;
  /** Producer to server, by the servers that HAProxy has now. */
  resolve: () => Resolve;
  /** How many nodes each master has. */
  counts: ReadonlyMap<string, number>;
  /** Called for every hint that could be read. */
  onHint?: (kind: HintKind) => void;
}

export class Hints {
  readonly #parts: HintsParts;
  readonly #pending = new Set<Certname>();
  /** When each master that has nodes last sent a hint (ms since the epoch). */
  readonly #heardAt = new Map<Master, number>();
  readonly #hints = new Allowance(HINTS_PER_SECOND);
  readonly #nodes = new Allowance(NODES_PER_SECOND);

  constructor(parts: HintsParts) {
    this.#parts = parts;
  }

  /**
   * A node has submitted at a master with one of these names. If none of them is a known master, PuppetDB is asked. Resolves
   * when the hint is dealt with; callers need not wait for that.
   */
  async take(kind: HintKind, certname: string, producers: readonly string[]): Promise<void> {
    if (!this.#hints.take() || !isCertname(certname)) return;
    this.#parts.onHint?.(kind);
    const masters = this.#mastersOf(producers);
    for (const master of masters) if (this.#parts.counts.has(master)) this.#heardAt.set(master, Date.now());
    if (this.#isKnown(certname, masters)) return;
    if (this.#pending.has(certname) || this.#pending.size >= MAX_PENDING || !this.#nodes.take()) return;
    this.#pending.add(certname);
    try {
      await this.#ask(certname, masters);
    } finally {
      this.#pending.delete(certname);
    }
  }

  /** How many of the masters that have nodes send hints, and the first few of those that send none. */
  get coverage(): { masters: number; of: number; silent: string[] } {
    const { counts } = this.#parts;
    for (const master of this.#heardAt.keys()) if (!counts.has(master)) this.#heardAt.delete(master);
    const isSilent = (master: string) => Date.now() - (this.#heardAt.get(master as Master) ?? 0) >= HEARD_MS;
    const silent = [...counts.keys()].filter(isSilent).sort();
    return { masters: counts.size - silent.length, of: counts.size, silent: silent.slice(0, SILENT_NAMED) };
  }

  #mastersOf(producers: readonly string[]): Master[] {
    const resolve = this.#parts.resolve();
    return producers.flatMap((producer) => resolve(producer) ?? []);
  }

  /** The node has not moved. If a line names two masters, it is unclear which one it means, so PuppetDB is asked. */
  #isKnown(certname: Certname, masters: readonly Master[]): boolean {
    const known = this.#parts.map.get(certname)?.master;
    return masters.length > 0 && masters.every((master) => master === known);
  }

  async #ask(certname: Certname, masters: readonly Master[]): Promise<void> {
    let waited = 0;
    for (const after of ASK_AFTER_MS) {
      await sleep(after - waited, undefined, { ref: false });
      waited = after;
      if (this.#isKnown(certname, masters)) return; // A poll or a query from HAProxy was faster.
      // If PuppetDB cannot be asked, the passes report that.
      if (await this.#parts.resolver.look(certname).catch(() => false)) return;
    }
  }
}

/** Allows a number of things per second. What was not used in the last second may be used at once. */
class Allowance {
  readonly #perSecond: number;
  #left: number;
  /** (`performance.now()`) */
  #filledAt = performance.now();

  constructor(perSecond: number) {
    this.#perSecond = perSecond;
    this.#left = perSecond;
  }

  /** Whether one more is allowed; it is then taken. */
  take(): boolean {
    const now = performance.now();
    const more = ((now - this.#filledAt) / 1_000) * this.#perSecond;
    this.#left = Math.min(this.#left + more, this.#perSecond);
    this.#filledAt = now;
    if (this.#left < 1) return false;
    this.#left -= 1;
    return true;
  }
}
