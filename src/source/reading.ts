// What PuppetDB said, taken in row by row: per node the newest submission that counts.
// Promises: a time is never later than PuppetDB's receipt of it, so a master whose clock is ahead cannot keep a node;
// the newest submission of a producer that HAProxy has a server for decides, and a newer one of another producer hides
// nothing; memory is bounded by one entry per node.
// Pure: no I/O, no clock.

import type { Failure } from "../errors.js";
import { type Certname, isCertname, LATEST_TIME } from "../node-map.js";
import { eachInPieces } from "../pieces.js";

/** Enough to see what is wrong; a flood of illegal names must not fill the memory. */
export const MAX_REFUSED = 1_000;
/** Enough to know it by; Puppet's own names are shorter. */
const MAX_NAME_CHARACTERS = 300;

/** With `puppet apply` each node is one. */
const MAX_PRODUCERS = 1_000;

/** Clocks differ by seconds. A time that lies further ahead of its receipt is that of a wrong clock. */
const AHEAD_MS = 5 * 60_000;

/** Of a time from such a clock only this is known: it was before its receipt. What is of about that time is believed rather. */
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
  /** In a reading of changes: how long before the reading that it goes on from PuppetDB had received it (ms). */
  lateMs?: number;
  /** The newest of the other kind (facts or report), where another producer submitted it. */
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

/** A set of nodes, wherever their names are kept. */
export interface Names extends Iterable<Certname> {
  readonly size: number;
  has(certname: Certname): boolean;
}

export interface Reading {
  kind: "full" | "changes";
  /** PuppetDB's clock before the first query ran. */
  asOf: number;
  /** The newest of a producer that HAProxy has a server for; in a full reading of active nodes only. */
  submissions: Map<Certname, Submission>;
  /** The newest of another producer, where that is newer still, or the only one. */
  unroutable?: Map<Certname, Submission>;
  /** Nodes with a submission from a clock that was ahead. */
  ahead?: Map<Certname, Ahead>;
  /** In a full reading: every active node. */
  active: Names | undefined;
  /** Nodes deactivated or expired, and when; in a reading of changes only the latest, when their number changed. */
  inactive: Map<Certname, number>;
  /** How many PuppetDB has of them. */
  inactiveCount: number;
  /** Certnames of active nodes that cannot be map keys, as they came, or their beginning. At most MAX_REFUSED of them. */
  refused: Set<string>;
  /** Nodes with nothing but rows that name no producer or no time that a clock may show. */
  withoutProducer: Set<Certname>;
  /** Of several PuppetDBs: those that told this. In a full reading only those that were read as a whole. */
  told?: ReadonlySet<string>;
  /** A PuppetDB was asked in place of the first one with the same nodes. */
  isStandby?: boolean;
  /** Of several estates: the PuppetDBs of each, and how many active nodes it has. */
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
  readonly submissions = new Map<Certname, Submission>();
  readonly unroutable = new Map<Certname, Submission>();
  readonly ahead = new Map<Certname, Ahead>();
  readonly inactive = new Map<Certname, number>();
  inactiveCount = 0;
  readonly refused = new Set<string>();
  readonly withoutProducer = new Set<Certname>();
  readonly #hasServer: HasServer;
  readonly #producers = new Map<string, string>();
  #told: Names | undefined;
  /** Of these those without a submission. */
  #others: ReadonlySet<Certname> = new Set();
  readonly #teller: Teller;

  constructor(kind: Reading["kind"], hasServer: HasServer, teller: Teller = ONLY_ONE) {
    this.kind = kind;
    this.#hasServer = hasServer;
    this.#teller = teller;
  }

  /** `active`: every active node, where it is known. What is no longer active has no submission then. */
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

  /** Who was deactivated between two answers is in the one and not in the other. */
  *dropInactive(): Generator<void> {
    yield* eachInPieces(this.inactive.keys(), (certname) => {
      this.submissions.delete(certname);
      this.unroutable.delete(certname);
      this.withoutProducer.delete(certname);
    });
  }

  /** The nodes of which anything was told. Their names are not copied: there may be a million. */
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

  /** Those of the active nodes that have submitted nothing since (ms), as far as was told. */
  *silentSince(active: Names, since: number): Generator<void, Certname[]> {
    const silent: Certname[] = [];
    const isTold = active === this.#told;
    // Looking each name up takes four times as long as to go through what there is.
    yield* eachInPieces(this.submissions.values(), ({ certname, at }) => {
      if (at <= since && (isTold || active.has(certname))) silent.push(certname);
    });
    yield* eachInPieces(isTold ? this.#others : active, (certname) => {
      if (!this.submissions.has(certname)) silent.push(certname);
    });
    return silent;
  }

  /** Hands over the name if it can be a map key. */
  name(name: string, use: (certname: Certname) => void): void {
    if (isCertname(name)) use(name);
    else if (this.refused.size < MAX_REFUSED) this.refused.add(cut(name));
  }

  /** `dated`: its `producer_timestamp`; `received`: when PuppetDB got it. */
  take(source: Submission["source"], row: ProducerRow, dated: Time, received: Time): void {
    this.name(row.certname, (certname) => {
      const { producer } = row;
      const receipt = this.#receipt(received);
      // Both have one form, so that their order is that of their texts.
      const isAhead = dated != null && receipt != null && receipt < dated;
      const at = Date.parse((isAhead ? receipt : dated) ?? "");
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
      if (this.#hasServer(producer)) keepNewest(this.submissions, submission);
      else keepNewest(this.unroutable, submission);
    });
  }

  /** The same few producers again and again: one text of each is kept. */
  #sole(producer: string): string {
    const known = this.#producers.get(producer);
    if (known !== undefined) return known;
    const sole = cut(producer);
    if (this.#producers.size < MAX_PRODUCERS) this.#producers.set(sole, sole);
    return sole;
  }

  /** On our clock: beside a PuppetDB whose clock is right the word of one that is behind would look old. */
  #receipt(received: string | null | undefined): string | null | undefined {
    const { behindMs } = this.#teller;
    const at = Date.parse(received ?? "");
    return behindMs === 0 || Number.isNaN(at) ? received : new Date(at + behindMs).toISOString();
  }

  /** Takes the row of a node that is inactive. Names that cannot be map keys are of no interest here: no map has them. */
  takeInactive(row: { certname: string; deactivated: string | null; expired: string | null }): void {
    const at = Math.max(Date.parse(row.deactivated ?? "") || 0, Date.parse(row.expired ?? "") || 0);
    if (at > 0 && isCertname(row.certname)) this.inactive.set(row.certname, at + this.#teller.behindMs);
  }
}

function keepNewest(map: Map<Certname, Submission>, found: Submission): void {
  const known = map.get(found.certname);
  const [newer, older] = known !== undefined && known.at >= found.at ? [known, found] : [found, known];
  const rival = rivalOf(newer, older);
  if (rival !== undefined) newer.rival = rival;
  if (newer === found) map.set(found.certname, found);
}

/** What the older of two leaves beside the newer one. */
function rivalOf(newer: Submission, older: Submission | undefined): Rival | undefined {
  if (older === undefined) return newer.rival;
  if (older.source === newer.source) return newer.rival ?? older.rival;
  if (older.producer === newer.producer) return undefined;
  const { producer, at } = older;
  return newer.rival !== undefined && newer.rival.at >= at ? newer.rival : { producer, at };
}

/** A slice would keep all of the text in memory: this is a copy. */
function cut(text: string): string {
  if (text.length <= MAX_NAME_CHARACTERS) return text;
  return Buffer.from(`${text.slice(0, MAX_NAME_CHARACTERS)}…`).toString();
}
