// Where readings come from: one PuppetDB, several with the same nodes, or several estates. All have the same interface.
// Promises: each PuppetDB has its own watermark and its own deadline; a reading counts for the next one only after it was
// taken over (`took`).

import type { Config, PuppetdbServer } from "../config.js";
import { within } from "../deadline.js";
import { type Failure, SasoriError, toFailure } from "../errors.js";
import type { Certname, NodeMap } from "../node-map.js";
import { Alternatives } from "./alternatives.js";
import { Estates } from "./estates.js";
import { PuppetDb } from "./puppetdb.js";
import type { HasServer, Reading, Submission } from "./reading.js";
import { advance, type Watermark } from "./watermark.js";

/** PuppetDB answers what changed in a fraction of a second; a full reading of a million nodes takes a minute. */
const FETCH_CHANGES_MS = 15_000;
const FETCH_ALL_MS = 10 * 60_000;

export interface Wanted {
  /** The nodes whose deactivation matters. */
  known: NodeMap;
  hasServer: HasServer;
}

/** One PuppetDB, as it was last seen. */
export interface PuppetdbState {
  url: string;
  /** It is the one that is asked; of an estate one is. */
  asked: boolean;
  /** It is asked because this other one failed; its newest submission is older by this much. */
  insteadOf?: string;
  behindMs?: number;
  /** When it was last read (ISO 8601). */
  readAt?: string;
  /** The date of its newest submission (ms), of those that were read. */
  newestAt: number;
  failure?: Failure;
  queueDepth?: number | undefined;
  clockAheadMs: number;
}

export interface Source {
  /** Everything was read at least once, so changes can be asked for. */
  readonly canGoOn: boolean;
  /**
   * Everything, or what came since the last reading that was taken over. Everything too if the changes cannot be found out.
   * Throws `PUPPETDB_...`, or the reason of `signal`.
   */
  read(kind: Reading["kind"], signal: AbortSignal, wanted: Wanted): Promise<Reading>;
  /** The last reading was taken over. `lateMs`: see Fleet.merge. */
  took(lateMs: number): void;
  /**
   * The newest submissions for a few nodes. Throws `PUPPETDB_...`, or `PartlyRead` if one that did not answer may know more.
   * The caller cannot wait long, so it gets what the first one knows. With `patiently`, each that may know more is asked.
   */
  readNodes(
    certnames: readonly Certname[],
    signal: AbortSignal,
    hasServer?: HasServer,
    patiently?: boolean,
  ): Promise<Reading["submissions"]>;
  /** In the order of the configuration. */
  states(): PuppetdbState[];
  close(): Promise<void>;
}

/** The source for this configuration. */
export function sourceOf(estates: Config["puppetdb"]): Source {
  const parts = estates.map((servers) => {
    const replicas = servers.map((server) => new Replica(server));
    const [only] = replicas;
    return replicas.length === 1 && only ? only : new Alternatives(replicas);
  });
  const [only] = parts;
  return parts.length === 1 && only ? only : new Estates(parts);
}

/** One PuppetDB. */
export class Replica implements Source {
  readonly #puppetdb: PuppetDb;
  readonly #from: string | undefined;
  #mark: Watermark | undefined;
  #last: Reading | undefined;
  /** One of several PuppetDBs could not be read in the last full reading. So it is read whole when it is back. */
  #owesAll = false;
  #state: Pick<PuppetdbState, "readAt" | "newestAt" | "failure"> = { newestAt: 0 };

  constructor(server: PuppetdbServer) {
    this.#puppetdb = new PuppetDb(server);
    this.#from = server.from;
  }

  get url(): string {
    return this.#puppetdb.url;
  }

  get canGoOn(): boolean {
    return this.#mark !== undefined;
  }

  async read(kind: Reading["kind"], signal: AbortSignal, { known, hasServer }: Wanted): Promise<Reading> {
    const mark = kind === "changes" && !this.#owesAll ? this.#mark : undefined;
    let isBack = false;
    const ms = mark === undefined ? FETCH_ALL_MS : FETCH_CHANGES_MS;
    try {
      // Otherwise the others would wait for minutes while one that hangs is read as a whole.
      if (mark === undefined && this.#from !== undefined)
        await this.#within(FETCH_CHANGES_MS, signal, (inTime) => this.#askLittle(inTime));
      isBack = true;
      const reading = await this.#within(ms, signal, (inTime) =>
        mark === undefined
          ? this.#puppetdb.readAll(inTime, hasServer)
          : this.#puppetdb.readChanges(mark.asOf - mark.overlapMs, inTime, {
              inactiveBefore: mark.inactiveCount,
              known,
              hasServer,
            }),
      );
      if (mark !== undefined)
        for (const submission of reading.submissions.values())
          submission.lateMs = Math.max(0, mark.asOf - submission.receivedAt);
      if (this.#from !== undefined) reading.told = new Set([this.#from]);
      this.#last = reading;
      this.#state = { readAt: new Date().toISOString(), newestAt: this.#newest(reading) };
      return reading;
    } catch (error) {
      if (!signal.aborted) this.#state = { ...this.#state, failure: toFailure(error) };
      // If it is back, and only reading it whole fails, its changes must not wait for that.
      if (this.#from !== undefined && mark === undefined) this.#owesAll = kind === "full" || !isBack;
      throw error;
    }
  }

  #within<T>(ms: number, signal: AbortSignal, ask: (inTime: AbortSignal) => Promise<T>): Promise<T> {
    const what = `${this.url}: PuppetDB has not answered within ${ms / 1000} s`;
    return within(ms, signal, new SasoriError("PUPPETDB_TIMEOUT", what), ask);
  }

  /** The most frequent question. */
  #askLittle(signal: AbortSignal): Promise<Reading> {
    return this.#puppetdb.readChanges(Date.now(), signal);
  }

  /** Dates lie at most as far ahead as the receipt, so one clock that is wrong makes this no later than now. */
  #newest({ kind, submissions }: Reading): number {
    let newest = kind === "full" ? 0 : this.#state.newestAt;
    for (const { at } of submissions.values()) newest = Math.max(newest, at);
    return newest;
  }

  took(lateMs: number): void {
    if (this.#last !== undefined) this.#mark = advance(this.#mark, this.#last, lateMs);
    if (this.#last?.kind === "full") this.#owesAll = false;
    this.#last = undefined;
  }

  async isWell(signal: AbortSignal): Promise<boolean> {
    return this.#askLittle(signal).then(
      () => true,
      () => false,
    );
  }

  readNodes(certnames: readonly Certname[], signal: AbortSignal, hasServer?: HasServer) {
    return this.#puppetdb.readNodes(certnames, signal, hasServer);
  }

  states(): PuppetdbState[] {
    const { url, queueDepth, clockAheadMs } = this.#puppetdb;
    return [{ url, asked: true, ...this.#state, queueDepth, clockAheadMs }];
  }

  close(): Promise<void> {
    return this.#puppetdb.close();
  }
}

/** The newer submission of each node wins. If both have the same time, the one that is there stays. */
export function keepNewer(into: Map<Certname, Submission>, submission: Submission): void {
  const known = into.get(submission.certname);
  if (known === undefined || known.at < submission.at) into.set(submission.certname, submission);
}

/** Some of several PuppetDBs could not be asked about nodes. `found` is what the others know. */
export class PartlyRead extends SasoriError {
  readonly found: Reading["submissions"];

  constructor(why: unknown, found: Reading["submissions"]) {
    const { code, message } = toFailure(why);
    super(code, message, { cause: why });
    this.found = found;
  }
}
