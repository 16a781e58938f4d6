// Several PuppetDBs with the same nodes. One is asked. If it fails, the next one is asked, until the first answers again.
// Promises: after a change from one to another everything is read. From a PuppetDB that is behind the other one, only newer
// observations count: Fleet learns from `from` which one said what, and from `isStandby` that the first was not asked.

import { setTimeout as sleep } from "node:timers/promises";
import { within } from "../deadline.js";
import { SasoriError } from "../errors.js";
import type { Certname } from "../node-map.js";
import type { HasServer, Reading } from "./reading.js";
import {
  keepNewer,
  PartlyRead,
  type PuppetdbState,
  type Replica,
  type Source,
  type Wanted,
} from "./source.js";

/**
 * While a standby is asked, the first PuppetDB is tried this often, and must answer a small question within this time. If it
 * answers that, but cannot be read as a whole, the pass waits for minutes. So each such failure doubles the interval.
 */
const TRY_FIRST_EVERY_MS = 30_000;
const MAX_TRY_FIRST_EVERY_MS = 30 * 60_000;
const TRY_FIRST_MS = 3_000;

export class Alternatives implements Source {
  readonly #replicas: readonly Replica[];
  /** Index of the PuppetDB that is asked, and of the one whose reading was last taken over. */
  #asked = 0;
  #taken: number | undefined;
  /** Index of the one whose reading may be taken over next. */
  #read = 0;
  #triedFirstAt = Number.NEGATIVE_INFINITY;
  #tryFirstEveryMs = TRY_FIRST_EVERY_MS;

  constructor(replicas: readonly Replica[]) {
    this.#replicas = replicas;
  }

  get canGoOn(): boolean {
    return this.#taken !== undefined;
  }

  async read(kind: Reading["kind"], signal: AbortSignal, wanted: Wanted): Promise<Reading> {
    const isBack = await this.#isFirstWell(signal);
    if (isBack) this.#asked = 0;
    const failures: SasoriError[] = [];
    for (const index of this.#order()) {
      try {
        const isOther = index !== this.#taken;
        const reading = await this.#at(index).read(isOther ? "full" : kind, signal, wanted);
        this.#read = index;
        if (index !== this.#asked) this.#triedFirstAt = performance.now();
        if (index === 0) this.#tryFirstEveryMs = TRY_FIRST_EVERY_MS;
        else if (isBack) this.#tryFirstEveryMs = Math.min(2 * this.#tryFirstEveryMs, MAX_TRY_FIRST_EVERY_MS);
        this.#asked = index;
        return { ...reading, isStandby: index > 0 };
      } catch (error) {
        if (signal.aborted) throw error;
        failures.push(error as SasoriError);
      }
    }
    throw failures[0];
  }

  /** The one that is asked, then the others in their order. */
  #order(): number[] {
    const others = [...this.#replicas.keys()].filter((index) => index !== this.#asked);
    return [this.#asked, ...others];
  }

  #at(index: number): Replica {
    return this.#replicas[index] as Replica;
  }

  async #isFirstWell(signal: AbortSignal): Promise<boolean> {
    if (this.#asked === 0 || performance.now() - this.#triedFirstAt < this.#tryFirstEveryMs) return false;
    this.#triedFirstAt = performance.now();
    return within(TRY_FIRST_MS, signal, SILENT, (inTime) => this.#at(0).isWell(inTime));
  }

  took(lateMs: number): void {
    this.#taken = this.#read;
    this.#at(this.#read).took(lateMs);
  }

  /**
   * The caller cannot wait long. So if one does not answer soon, the next one is asked too. What that one knows counts as
   * evidence. If it does not know a node, that counts only when those before it have failed, because it may be behind them.
   * Throws `PartlyRead` if they do not answer.
   */
  async readNodes(
    certnames: readonly Certname[],
    signal: AbortSignal,
    hasServer?: HasServer,
    patiently = false,
  ) {
    if (patiently) return this.#readNodesOfFirst(certnames, signal, hasServer);
    const stop = new AbortController();
    const both = AbortSignal.any([signal, stop.signal]);
    let waiting: NodeJS.Timeout | undefined;
    const tries: Promise<Reading["submissions"]>[] = [];
    const ask = async (index: number, before: typeof tries) => {
      if (before.length > 0) await sleep(before.length * NEXT_AFTER_MS, undefined, { signal: both });
      const found = await this.#at(index).readNodes(certnames, both, hasServer);
      if (before.length === 0 || found.size >= certnames.length) return found;
      if (found.size > 0) waiting ??= setTimeout(() => stop.abort(SILENT), NEXT_AFTER_MS);
      await Promise.any(before).catch(() => undefined);
      if (both.aborted) throw new PartlyRead(both.reason, found);
      return found;
    };
    for (const index of this.#order()) tries.push(ask(index, [...tries]));
    try {
      return await Promise.any(tries);
    } catch (error) {
      if (!(error instanceof AggregateError)) throw error;
      throw error.errors.find((one) => one instanceof PartlyRead) ?? error.errors[0];
    } finally {
      clearTimeout(waiting);
      stop.abort();
    }
  }

  /** Only the first can say that nobody knows anything newer. Throws `PartlyRead` with what the others know. */
  async #readNodesOfFirst(certnames: readonly Certname[], signal: AbortSignal, hasServer?: HasServer) {
    const ask = (replica: Replica) =>
      within(FIRST_MS, signal, SILENT, (inTime) => replica.readNodes(certnames, inTime, hasServer));
    const others = Promise.allSettled(this.#replicas.slice(1).map(ask));
    try {
      return await ask(this.#at(0));
    } catch (error) {
      const found: Reading["submissions"] = new Map();
      for (const answer of await others)
        if (answer.status === "fulfilled")
          for (const submission of answer.value.values()) keepNewer(found, submission);
      throw new PartlyRead(error, found);
    }
  }

  states(): PuppetdbState[] {
    const states = this.#replicas.flatMap((replica) => replica.states());
    const [first] = states;
    return states.map((state, index) => {
      if (index !== this.#asked || index === 0 || first === undefined)
        return { ...state, asked: index === this.#asked };
      const behindMs = state.readAt === undefined ? 0 : Math.max(0, first.newestAt - state.newestAt);
      return { ...state, asked: true, insteadOf: first.url, ...(behindMs > 0 && { behindMs }) };
    });
  }

  async close(): Promise<void> {
    await Promise.all(this.#replicas.map((replica) => replica.close()));
  }
}

/** After this long without an answer about a few nodes, which takes milliseconds, the next PuppetDB is asked too. */
const NEXT_AFTER_MS = 300;
/** How long a patient caller waits for each PuppetDB. */
const FIRST_MS = 5_000;

const SILENT = new SasoriError(
  "PUPPETDB_TIMEOUT",
  "the PuppetDB that is asked first does not say whether it has the node",
);
