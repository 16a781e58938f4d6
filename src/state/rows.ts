// The state that neither PuppetDB nor the map file can give back, as rows: registrations, learned routes and their ends, removed
// nodes, homes, the guard's memory, approvals. The rules for merging are here, for the state file and for PostgreSQL: of two
// rows with the same key the newest wins; a deletion is a row too; of two with the same time all sasoris choose the same one.
// Pure: no I/O, no clock. Rows from outside are parsed here.

import { crc32 } from "node:zlib";
import { z } from "zod";
import { MAX_URL } from "../config/forms.js";
import { PLAN_ID } from "../guard.js";
import { LargeMap } from "../large-map.js";
import {
  type Certname,
  isCertname,
  isMaster,
  isRemark,
  LATEST_TIME,
  MAX_REMARK,
  type Master,
} from "../node-map.js";

/** A sasori has one for each day of a month, and takes those of its replicas. */
const MAX_SIZES = 1_000;

const Time = z
  .int()
  .nonnegative()
  .max(LATEST_TIME + 1_000_000_000);
const CertnameShape = z.custom<Certname>((value) => typeof value === "string" && isCertname(value));
const MasterShape = z.custom<Master>((value) => typeof value === "string" && isMaster(value));
const Remark = z.string().min(1).max(MAX_REMARK).refine(isRemark, "expected one line of text");

const Route = z.strictObject({
  master: MasterShape,
  source: z.enum(["registration", "learned"]),
  reported: Time.optional(),
  reason: Remark.optional(),
  by: Remark.optional(),
});
const Removed = z.object({
  at: Time,
  told: z.strictObject({ from: z.string().max(MAX_URL), at: Time }).optional(),
});
const Home = z.strictObject({ master: MasterShape });
const Sizes = z.strictObject({
  forgottenAt: Time,
  sizes: z.array(z.strictObject({ at: Time, size: z.int().nonnegative() })).max(MAX_SIZES),
});

const row = <Kind extends string, Key extends z.ZodType<string>, Value extends z.ZodType>(
  kind: Kind,
  key: Key,
  value: Value,
) => z.strictObject({ kind: z.literal(kind), key, at: Time, value });

export const GUARD = "guard";

/**
 * The kinds of rows:
 * - `route`: a registration or learned route, whose place is `at`; null: it no longer counts.
 * - `ended`: a person ended the registrations and learned routes whose place is not behind `at`, see End.
 * - `removed`: the node was removed, see Tombstone; null: it is back.
 * - `home`: the master that a displaced node left; null: it is no longer displaced.
 * - `sizes`: the guard's memory of the whole map (GUARD), or of the estate whose first PuppetDB has this URL.
 * - `approval`: the plan `key` was approved.
 */
const RowShape = z.discriminatedUnion("kind", [
  row("route", CertnameShape, Route.nullable()),
  row("ended", CertnameShape, z.strictObject({ since: Time, reported: Time.optional() })),
  row("removed", CertnameShape, Removed.nullable()),
  row("home", CertnameShape, Home.nullable()),
  row("sizes", z.string().min(1).max(MAX_URL), Sizes),
  row("approval", z.string().regex(PLAN_ID), z.strictObject({})),
]);

export type Row = z.output<typeof RowShape>;
export type Kind = Row["kind"];

/**
 * A row that will be saved. If it has no time, it gets one that is newer than the known row's. The keys of its value are in the
 * order of the shape, as parseRow returns them.
 */
export type Change = Row extends infer One
  ? One extends Row
    ? Omit<One, "at"> & { at?: number }
    : never
  : never;

/** What a row is about. */
export type Key = Pick<Row, "kind" | "key">;

/** Throws a ZodError. The keys of its value are in the order of the shape, so equal values have one text. */
export const parseRow = (found: unknown): Row => RowShape.parse(found);

/** Whether `row` replaces `known`. Every sasori must decide this in the same way, and so must the SQL in database.ts. */
export function beats(row: Pick<Row, "at" | "value">, known: Pick<Row, "at" | "value">): boolean {
  return row.at > known.at || (row.at === known.at && Buffer.compare(rank(row), rank(known)) > 0);
}

/** With the same time a deletion ranks above a value. */
const rank = ({ value }: Pick<Row, "value">): Buffer =>
  Buffer.from(value === null ? "~" : JSON.stringify(value));

/** How many rows about what is over are kept: as many as tombstones (see tombstones.ts). */
export const MAX_PAST = 20_000;

/** Whether the row only says that something ended, so that it may be forgotten one day. The SQL in database.ts says the same. */
const isPast = ({ kind, value }: Row): boolean =>
  value === null || kind === "ended" || kind === "removed" || kind === "approval";

/** The newest row of each key. */
export class Rows {
  /**
   * One map per kind, so that the key is the certname itself: a million texts made of kind and certname would take 60 MiB.
   */
  readonly #rows = new Map<Kind, LargeMap<string, Row>>();
  /** Rows about what is over, the oldest first. */
  readonly #past = new Set<Row>();

  /** It is time to `prune`. */
  get isCrowded(): boolean {
    return this.#past.size > 2 * MAX_PAST;
  }

  get size(): number {
    let size = 0;
    for (const rows of this.#rows.values()) size += rows.size;
    return size;
  }

  /** Rows about what is over come last, the newest of them at the end. */
  *[Symbol.iterator](): IterableIterator<Row> {
    for (const rows of this.#rows.values()) for (const row of rows.values()) if (!isPast(row)) yield row;
    yield* this.#past;
  }

  get({ kind, key }: Key): Row | undefined {
    return this.#rows.get(kind)?.get(key);
  }

  /** Takes the row if it beats the known one. True if it does. */
  take(row: Row): boolean {
    const known = this.get(row);
    if (known !== undefined && !beats(row, known)) return false;
    const rows = this.#rows.get(row.kind) ?? new LargeMap<string, Row>();
    this.#rows.set(row.kind, rows.set(row.key, row));
    if (known !== undefined) this.#past.delete(known);
    if (isPast(row)) this.#past.add(row);
    return true;
  }

  /** Forgets the row, unless another one has replaced it. */
  delete(row: Row): void {
    if (this.get(row) !== row) return;
    this.#rows.get(row.kind)?.delete(row.key);
    this.#past.delete(row);
  }

  /**
   * The change as a row, or undefined if it changes nothing. The end of a route gets that route's own time, so that it does not
   * beat a registration that was made elsewhere in the meantime.
   */
  toRow({ at, ...change }: Change, now: number): Row | undefined {
    const known = this.get(change);
    if (known === undefined && change.value === null) return undefined;
    const isSame = known !== undefined && JSON.stringify(known.value) === JSON.stringify(change.value);
    if (isSame && (at === undefined || at <= known.at)) return undefined;
    const over = change.kind === "route" && change.value === null ? known?.at : undefined;
    const time = at ?? over ?? Math.max(now, (known?.at ?? 0) + 1);
    const { kind, key, value } = change;
    return { kind, key, at: time, value } as Row;
  }

  /** Forgets the oldest rows of things that ended, if there are too many. */
  prune(): void {
    for (const row of this.#past) {
      if (this.#past.size <= MAX_PAST) return;
      this.delete(row);
    }
  }
}

// ---- a line of the state file: a checksum, then the row that it is of

export function toLine(row: Row): string {
  const text = JSON.stringify(row);
  return `${checksum(text)} ${text}\n`;
}

/** Throws an Error that says what is wrong with the line. */
export function parseLine(line: string): Row {
  const text = line.slice(9);
  if (line[8] !== " " || checksum(text) !== line.slice(0, 8)) throw new Error("its checksum is wrong");
  return parseRow(JSON.parse(text));
}

/** `before`: of what is before the text. */
export const checksum = (text: string, before = 0) => crc32(text, before).toString(16).padStart(8, "0");
