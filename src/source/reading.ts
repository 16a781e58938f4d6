// A reading of PuppetDB, collected row by row: for each node the newest submission that counts.
// Promises: a time is never later than PuppetDB's receipt of it, so a master whose clock is ahead cannot keep a node;
// the newest submission of a producer with an HAProxy server decides, and a newer one of a producer without a server does
// not hide it; memory is bounded by one entry per node.
// Pure: no I/O, no clock.

import type { Failure } from "../errors.js";
import { LargeMap } from "../large-map.js";
import { type Certname, isCertname, LATEST_TIME } from "../node-map.js";
import { eachInPieces } from "../pieces.js";

/** How many refused names are kept: enough to see what is wrong. A flood of illegal names must not fill the memory. */
export const MAX_REFUSED = 1_000;
/** A longer name is cut: this is enough to recognise it. Puppet's own names are shorter. */
const MAX_NAME_CHARACTERS = 300;

/** How many producers' names are shared between rows. With `puppet apply` each node is a producer, so there is a bound. */
const MAX_PRODUCERS = 1_000;

/** Clocks may differ by seconds. A time that is this much later than its receipt comes from a wrong clock. */
const AHEAD_MS = 5 * 60_000;

/** A time from such a clock counts as this long before its receipt, so that a submission of about the same time wins. */
const DOUBT_MS = 1_000;

/** The newest thing that a master submitted for a node. Times are milliseconds since the epoch. */
export interface Submission {
  certname: Certname;
  producer: string;
  /** `producer_timestamp`, the master's clock, but never later than PuppetDB's receipt. */
  at: number;
  source: "facts" | "report" | "catalog";
  /** When PuppetDB received it, on its own clock; 0 in a full reading. */
  receivedAt: number;
  /** Which PuppetDB told it, where several are configured. */
  from?: string;
  /** In a reading of changes: how long before the previous reading PuppetDB had received it (ms). */
  lateMs?: number;
  /**
   * The newest submission of the other kind (facts or report). In a full reading only if it is of another producer, because all
   * of them would take too much memory.
   */
  rival?: Rival;
}

export interface Rival {
  producer: string;
  at: number;
}

/** A submission that is dated long after PuppetDB received it. */
export interface Ahead {
  producer: string;
  /** Its date (ms). PuppetDB refuses facts that are older than those it has. */
  until: number;
}

/** A set of nodes, however their names are stored. */
export interface Names extends Iterable<Certname> {
  readonly size: number;
  has(certname: Certname): boolean;
}

export interface Reading {
  kind: "full" | "changes";
  /** PuppetDB's clock before the first query ran. */
  asOf: number;
  /** The newest submissions of producers with an HAProxy server; in a full reading only those of active nodes. */
  submissions: Map<Certname, Submission>;
  /**
   * The newest submission of a producer without a server, if it is newer than that in `submissions`, or there is none
   * there.
   */
  unroutable?: Map<Certname, Submission>;
  /** Nodes with a submission from a clock that was ahead. */
  ahead?: Map<Certname, Ahead>;
  /** In a full reading: every active node. */
  active: Names | undefined;
  /** Nodes deactivated or expired, and when; in a reading of changes only the latest, when their number changed. */
  inactive: Map<Certname, number>;
  /** How many inactive nodes PuppetDB has. */
  inactiveCount: number;
  /** Certnames of active nodes that cannot be map keys, unchanged but cut if long. At most MAX_REFUSED of them. */
  refused: Set<string>;
  /** Nodes of which every row lacks a producer or has an impossible time. */
  withoutProducer: Set<Certname>;
  /** With several PuppetDBs: those that this reading comes from. In a full reading only those that were read as a whole. */
  told?: ReadonlySet<string>;
  /** A PuppetDB was asked in place of the first one with the same nodes. */
  isStandby?: boolean;
  /** With several estates: the PuppetDBs of each, and how many active nodes it has. */
  estates?: readonly { puppetdbs: readonly string[]; size: number }[];
  /** Why estates could not be read: they keep the nodes that they had. */
  failures?: readonly Failure[];
}

/** Where several PuppetDBs are configured: the name of this one, and how far its clock is behind ours (ms). */
export interface Teller {
  from: string | undefined;
  behindMs: number;
}

const ONLY_ONE: Teller = { from: undefined, behindMs: 0 };

/** Whether HAProxy has a server for this producer. */
export type HasServer = (producer: string) => boolean;

/** A row that names a producer. */
export interface ProducerRow {
  certname: string;
  producer: string | null;
}

/** ISO 8601; undefined where it was not asked. */
type Time = string | null | undefined;

/** A reading under way. */
export class Gathering {
  readonly kind: Reading["kind"];
  asOf = 0;
  readonly submissions = new LargeMap<Certname, Submission>();
  readonly unroutable = new LargeMap<Certname, Submission>();
  readonly ahead = new Map<Certname, Ahead>();
  readonly inactive = new Map<Certname, number>();
  inactiveCount = 0;
  readonly refused = new Set<string>();
  readonly withoutProducer = new Set<Certname>();
  readonly #hasServer: HasServer;
  readonly #producers = new Map<string, string>();
  #told: Names | undefined;
  /** Those of them that have no submission. */
  #others: ReadonlySet<Certname> = new Set();
  readonly #teller: Teller;

  constructor(kind: Reading["kind"], hasServer: HasServer, teller: Teller = ONLY_ONE) {
    this.kind = kind;
    this.#hasServer = hasServer;
    this.#teller = teller;
  }

  /** `active`: every active node, where it is known. Nodes that are no longer active lose their submission. */
  *reading(active?: Names): Generator<void, Reading> {
    const { kind, asOf, submissions, ahead, inactive, inactiveCount, refused, withoutProducer } = this;
    const unroutable = yield* this.#newerUnroutable();
    if (active !== undefined && active !== this.#told)
      for (const map of [submissions, unroutable])
        yield* eachInPieces(map.keys(), (certname) => {
          if (!active.has(certname)) map.delete(certname);
        });
    return {
      kind,
      asOf,
      submissions,
      unroutable,
      ahead,
      active,
      inactive,
      inactiveCount,
      refused,
      withoutProducer,
    };
  }

  *#newerUnroutable(): Generator<void, Map<Certname, Submission>> {
    yield* eachInPieces(this.unroutable, ([certname, { at }]) => {
      if ((this.submissions.get(certname)?.at ?? 0) >= at) this.unroutable.delete(certname);
    });
    return this.unroutable;
  }

  /** Drops nodes that were deactivated between two answers: they have submissions and are inactive. */
  *dropInactive(): Generator<void> {
    yield* eachInPieces(this.inactive.keys(), (certname) => {
      this.submissions.delete(certname);
      this.unroutable.delete(certname);
      this.withoutProducer.delete(certname);
    });
  }

  /** All nodes for which PuppetDB gave a row. The names are not copied, because there may be a million. */
  *told(): Generator<void, Names> {
    const { submissions, withoutProducer, unroutable } = this;
    const others = new Set(withoutProducer);
    yield* eachInPieces(unroutable.keys(), (certname) => {
      if (!submissions.has(certname)) others.add(certname);
    });
    this.#others = others;
    this.#told = {
      size: submissions.size + others.size,
      has: (certname) => submissions.has(certname) || others.has(certname),
      *[Symbol.iterator]() {
        yield* submissions.keys();
        yield* others;
      },
    };
    return this.#told;
  }

  /** The active nodes without a known submission since then (ms). */
  *silentSince(active: Names, since: number): Generator<void, Certname[]> {
    const silent: Certname[] = [];
    const isTold = active === this.#told;
    // Going through all submissions is four times as fast as looking up each name.
    yield* eachInPieces(this.submissions.values(), ({ certname, at }) => {
      if (at <= since && (isTold || active.has(certname))) silent.push(certname);
    });
    yield* eachInPieces(isTold ? this.#others : active, (certname) => {
      if (!this.submissions.has(certname)) silent.push(certname);
    });
    return silent;
  }

  /** Calls `use` with the name if it can be a map key. */
  name(name: string, use: (certname: Certname) => void): void {
    if (isCertname(name)) use(name);
    else if (this.refused.size < MAX_REFUSED) this.refused.add(cut(name));
  }

  /** `dated`: its `producer_timestamp`; `received`: when PuppetDB got it. */
  take(source: Submission["source"], row: ProducerRow, dated: Time, received: Time): void {
    this.name(row.certname, (certname) => {
      const { producer } = row;
      const receipt = this.#receipt(received);
      // Both texts have the same form, so they can be compared as texts.
      const isAhead = dated != null && receipt != null && receipt < dated;
      const at = Math.max(0, Date.parse((isAhead ? receipt : dated) ?? "")); // Nothing is older than 1970.
      if (producer === null || !(at < LATEST_TIME)) {
        if (!this.submissions.has(certname) && !this.unroutable.has(certname))
          this.withoutProducer.add(certname);
        return;
      }
      this.withoutProducer.delete(certname);
      const until = isAhead ? Date.parse(dated) : 0;
      const isWrong = until > at + AHEAD_MS;
      if (isWrong) this.ahead.set(certname, { producer: cut(producer), until });
      const submission = {
        certname,
        producer: this.#sole(producer),
        at: isWrong ? at - DOUBT_MS : at,
        source,
        receivedAt: this.kind === "full" ? 0 : Date.parse(received ?? "") || 0,
        ...(this.#teller.from !== undefined && { from: this.#teller.from }),
      };
      keepNewest(this.#hasServer(producer) ? this.submissions : this.unroutable, submission, this.kind);
    });
  }

  /** A few producers come again and again. All rows share one text for each. */
  #sole(producer: string): string {
    const known = this.#producers.get(producer);
    if (known !== undefined) return known;
    const sole = cut(producer);
    if (this.#producers.size < MAX_PRODUCERS) this.#producers.set(sole, sole);
    return sole;
  }

  /**
   * Converts a time to our clock. Otherwise submissions from a PuppetDB whose clock is behind would look older than others.
   */
  #receipt(received: string | null | undefined): string | null | undefined {
    const { behindMs } = this.#teller;
    if (behindMs === 0) return received;
    const at = Date.parse(received ?? "");
    return Number.isNaN(at) ? received : new Date(at + behindMs).toISOString();
  }

  /** Takes the row of an inactive node. Names that cannot be map keys do not matter here, because no map has them. */
  takeInactive(row: { certname: string; deactivated: string | null; expired: string | null }): void {
    const at = Math.max(Date.parse(row.deactivated ?? "") || 0, Date.parse(row.expired ?? "") || 0);
    if (at > 0 && isCertname(row.certname)) this.inactive.set(row.certname, at + this.#teller.behindMs);
  }
}

function keepNewest(map: Map<Certname, Submission>, found: Submission, kind: Reading["kind"]): void {
  const known = map.get(found.certname);
  const [newer, older] = known !== undefined && known.at >= found.at ? [known, found] : [found, known];
  const rival = rivalOf(newer, older, kind);
  if (rival !== undefined) newer.rival = rival;
  if (newer === found) map.set(found.certname, found);
}

/** The rival to keep with the newer of two submissions. */
function rivalOf(newer: Submission, older: Submission | undefined, kind: Reading["kind"]): Rival | undefined {
  if (older === undefined) return newer.rival;
  if (older.source === newer.source) return newer.rival ?? older.rival;
  if (kind === "full" && older.producer === newer.producer) return undefined;
  const { producer, at } = older;
  return newer.rival !== undefined && newer.rival.at >= at ? newer.rival : { producer, at };
}

/** A slice would keep all of the text in memory: this is a copy. */
function cut(text: string): string {
  if (text.length <= MAX_NAME_CHARACTERS) return text;
  return Buffer.from(`${text.slice(0, MAX_NAME_CHARACTERS)}…`).toString();
}
