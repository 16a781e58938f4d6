// PuppetDB as the source: who is active, and which master submitted last for each node.
// Promises: an answer is believed only after its status, content type, wholeness and shape were checked; a
// reading is all or nothing; memory is bounded by one entry per node, whatever the size of the answers.
// The producer of a factset or report is the master that an agent spoke to in its own run. The producer of a
// catalog is not: if an operator asks another master for a node's catalog, that master becomes its producer. So the newest of
// factset and report decides (or of those that SASORI_OBSERVATIONS names), and the catalog only where a node has neither.

import { z } from "zod";
import type { PuppetdbServer } from "../config.js";
import { within } from "../deadline.js";
import { quote, SasoriError } from "../errors.js";
import { LargeSet } from "../large-map.js";
import { type Certname, LATEST_TIME, type NodeMap } from "../node-map.js";
import { eachInPieces, inPieces, letOthersIn } from "../pieces.js";
import { isAtLeast } from "../releases.js";
import { JsonRows } from "./json-rows.js";
import {
  type Connection,
  Connector,
  checkAnswer,
  piecesOf,
  queryError,
  send,
  shortText,
  WRONG_URL,
} from "./puppetdb-connection.js";
import {
  Gathering,
  type HasServer,
  type Names,
  type Reading,
  type Submission,
  type Teller,
} from "./reading.js";

const MINUTE_MS = 60_000;
/** The `Date` header has whole seconds, and an answer takes some time. */
const CLOCK_MS = 5_000;

/**
 * `producer_timestamp` is the master's clock and has an index, PuppetDB's own `receive_time` has none. The
 * query for new reports uses both: the first, with this allowance for a master whose clock is behind, to
 * find few rows, the second to be exact. What a worse clock hides is found by the full read.
 * Measured with 5 million reports of 100,000 nodes: it touches one partition and costs PostgreSQL nothing,
 * without the bound it reads all partitions (1 s). Factsets have an index on neither time: their one row per
 * node is scanned (20 ms), and no bound or subquery beside it made that cheaper.
 */
const MASTER_CLOCK_ALLOWANCE_MS = 5 * MINUTE_MS;

/**
 * How a full reading finds the newest report of each node before PuppetDB 8.7:
 * 1. It asks for the reports of the last hour.
 * 2. If many nodes have none, it asks for those of the last day.
 * 3. It asks for the few nodes that are left by name. If many are left, it asks PuppetDB for all latest reports
 *    (`latest_report?`), which scans the reports of all days.
 * PuppetDB groups the reports of such a window to the newest of each node and producer, because a row of an answer costs
 * PuppetDB 10 µs, and grouping a report costs PostgreSQL 1 µs.
 * Measured with 100,000 nodes and a million reports, alone on two cores: `latest_report?` 3.0 s (and it grows with the
 * reports that are kept, a usual fleet has 60 times as many), an hour's window 0.9 s, one of 20 hours with three
 * reports each 4.0 s, grouped 1.4 s. Names: 0.3 to 0.5 ms each in batches of up to 1,000; 5,000 at once take 6 s,
 * 20,000 three minutes.
 */
const RECENT_MS = 60 * MINUTE_MS;
const DAY_MS = 24 * 60 * MINUTE_MS;
const FEW_LEFT = 0.05;
const NAMES_AT_ONCE = 500;

/** Up to this many nodes are asked about by name (0.2 s) whether they are inactive. */
const FEW_NAMES = 1_000;
/** With more nodes the latest deactivations are listed: this many at once, and back to this long ago. */
const INACTIVE_PAGE = 500;
const INACTIVE_LOOK_BACK_MS = 60 * MINUTE_MS;

/** Deadline for what is useful but not needed: PuppetDB's clock, version and queue. And how often the queue is asked for. */
const LOOK_MS = 2_000;
const LOOK_EVERY_MS = 60_000;

/** Jetty takes 8 KB of request line and headers: a longer query goes into the body. */
const MAX_URL_CHARACTERS = 4_000;

const Timestamp = z.string().nullable();
const FactsRow = z.object({
  certname: z.string(),
  producer: z.string().nullable(),
  producer_timestamp: Timestamp,
  timestamp: Timestamp.optional(),
});
const ReportRow = FactsRow.omit({ timestamp: true }).extend({ receive_time: Timestamp.optional() });
const CatalogRow = FactsRow.omit({ timestamp: true });
/**
 * The newest submission for one node by one producer: when PuppetDB received it, and when it was made. The earlier of the two
 * counts. PuppetDB calls the second of two maxima `max_2`.
 */
const NewestRow = z.object({
  certname: z.string(),
  producer: z.string().nullable(),
  max: Timestamp,
  max_2: Timestamp.optional(),
});
const CatalogTimeRow = z.object({ certname: z.string(), catalog_timestamp: Timestamp.optional() });
const ActiveRow = z.object({ certname: z.string() });
const CountRow = z.object({ count: z.number() });
const VersionAnswer = z.object({ version: z.string() });
const StatusAnswer = z.object({ status: z.object({ queue_depth: z.number() }) });
const TimeAnswer = z.object({ server_time: z.string() });
const InactiveRow = z.object({ certname: z.string(), deactivated: Timestamp, expired: Timestamp });

const LATEST = ["=", "latest_report?", true];
const ACTIVE = ["=", "node_state", "active"];
const INACTIVE = ["=", "node_state", "inactive"];
/**
 * For queries about a few named nodes. With "any" PuppetDB finds them by its index: 15 ms, of which PostgreSQL takes 0.05 ms.
 * Without a `node_state`, or with "active", it scans all nodes: 18 ms with 100,000, 100 ms with a million.
 */
const IN_ANY_STATE = ["=", "node_state", "any"];
const inactiveNodes = (where: Query): Query => ["extract", ["certname", "deactivated", "expired"], where];
const INACTIVE_NODES = inactiveNodes(INACTIVE);
const ACTIVE_COUNT = ["extract", [["function", "count"]], ACTIVE];
const INACTIVE_COUNT = ["extract", [["function", "count"]], INACTIVE];
const NEITHER_FACTS_NOR_REPORT = [
  "and",
  ["null?", "facts_timestamp", true],
  ["null?", "report_timestamp", true],
];

export interface ChangesOptions {
  inactiveBefore?: number | undefined;
  known?: Pick<NodeMap, "size" | "certnames">;
  hasServer?: HasServer;
}

type Query = unknown[];
type Entity = "nodes" | "factsets" | "reports" | "catalogs";

export class PuppetDb {
  readonly #config: PuppetdbServer;
  readonly #connector: Connector;
  readonly #counts: ReadonlySet<"facts" | "reports">;
  /** How far the clock that dated the last reading is ahead of this machine's (ms). */
  clockAheadMs = 0;
  /**
   * PuppetDB did not tell its own clock, so that clock may be a proxy's. If the proxy's is ahead, PuppetDB dates what it
   * receives earlier than that. So a reading of changes looks back further by as much.
   */
  #isDoubtful = true;
  readonly #teller: Teller;
  /** The last full reading found nodes that have neither facts nor a report, so that only a catalog tells their master. */
  #hasLoneNodes = true;
  /** PuppetDB's version, as of the last full reading; undefined if PuppetDB did not tell. */
  #version: string | undefined;
  /** How many commands PuppetDB had received and not stored yet, when it last told; undefined when it does not tell. */
  queueDepth: number | undefined;
  #askedQueueAt = Number.NEGATIVE_INFINITY;

  readonly #untold: SasoriError;

  constructor(config: PuppetdbServer) {
    this.#config = config;
    this.#untold = new SasoriError(
      "PUPPETDB_TIMEOUT",
      `${config.url} did not answer questions about itself in time`,
    );
    this.#connector = new Connector(config);
    this.#teller = { from: config.from, behindMs: 0 };
    this.#counts = new Set(config.observations ?? ["facts", "reports"]);
  }

  /** Its URL, for messages. */
  get url(): string {
    return this.#config.url;
  }

  /** Everything: all active nodes and their newest submissions. Throws `PUPPETDB_...`. */
  async readAll(signal: AbortSignal, hasServer: HasServer = anyProducer): Promise<Reading> {
    const found = new Gathering("full", hasServer, this.#teller);
    const now = Date.now();
    const findsLatest = hasTableOfLatest(this.#version);
    const clock = this.#readClock(signal);
    const reports = findsLatest ? LATEST : after(now - RECENT_MS);
    await this.#readTogether(found, signal, (ask) => [
      ...this.#askFacts(ask, found, ACTIVE),
      ...this.#askNewestReports(ask, found, ["and", reports, ACTIVE], now),
    ]);
    this.#date(found, await clock, now);
    let activeCount = -1;
    // Asked after the submissions: a node that was deactivated in between is in both answers, and then counts as inactive.
    await this.#readTogether(found, signal, (ask) => [
      ask("nodes", INACTIVE_NODES, InactiveRow, (row) => {
        found.inactiveCount += 1;
        found.takeInactive(row);
      }),
      ask("nodes", ACTIVE_COUNT, CountRow, ({ count }) => {
        activeCount = count;
      }),
    ]);
    // In most fleets each node has facts or a report, so all names are known already. If their number is that of the active
    // nodes, the list of all nodes, which is a third of all rows, need not be read.
    await inPieces(found.dropInactive());
    const told = await inPieces(found.told());
    const isComplete = told.size + found.refused.size === activeCount;
    const active = isComplete ? told : await this.#readActive(found, signal);
    await this.#readOlderReports(found, active, now, findsLatest, signal);
    this.#hasLoneNodes = !isComplete && (await this.#readLoneCatalogs(found, active, signal));
    await this.#lookAtPuppetdb(signal);
    return inPieces(found.reading(active));
  }

  #askFacts(ask: Ask, found: Gathering, where: Query): Promise<number>[] {
    if (!this.#counts.has("facts")) return [];
    return [
      ask("factsets", producers(where, "timestamp"), FactsRow, (row) =>
        found.take("facts", row, row.producer_timestamp, row.timestamp),
      ),
    ];
  }

  /**
   * The newest report of each node and producer. Reports that are dated after `now`, by a clock that is ahead, are not grouped:
   * the maximum of a group would be the most wrong time. They come one by one, with the time when PuppetDB received them.
   */
  #askNewestReports(ask: Ask, found: Gathering, where: Query, now: number): Promise<number>[] {
    if (!this.#counts.has("reports")) return [];
    const [past, future] = [["not", after(now)], after(now)];
    return [
      ask("reports", newestOf(["and", where, past]), NewestRow, (row) =>
        found.take("report", row, row.max, row.max_2),
      ),
      ...this.#askReports(ask, found, ["and", where, future]),
    ];
  }

  #askReports(ask: Ask, found: Gathering, where: Query): Promise<number>[] {
    if (!this.#counts.has("reports")) return [];
    return [
      ask("reports", producers(where, "receive_time"), ReportRow, (row) =>
        found.take("report", row, row.producer_timestamp, row.receive_time),
      ),
    ];
  }

  /** The names of all active nodes. */
  async #readActive(found: Gathering, signal: AbortSignal): Promise<Names> {
    const active = new LargeSet<Certname>();
    await this.#readTogether(found, signal, (ask) => [
      ask("nodes", ["extract", ["certname"], ACTIVE], ActiveRow, (row) => {
        found.name(row.certname, (certname) => active.add(certname));
      }),
    ]);
    return active;
  }

  /** PuppetDB's version and queue. They are useful but not needed: PuppetDB may refuse to tell, or not know them. */
  async #lookAtPuppetdb(signal: AbortSignal): Promise<void> {
    const [version, queueDepth] = await within(LOOK_MS, signal, this.#untold, (soon) =>
      Promise.allSettled([this.readVersion(soon), this.readQueueDepth(soon)]),
    );
    this.#version = version.status === "fulfilled" ? version.value : undefined;
    this.queueDepth = queueDepth.status === "fulfilled" ? queueDepth.value : undefined;
    this.#askedQueueAt = performance.now();
  }

  /**
   * The newest reports of nodes that have submitted nothing within the last hour. For all others the newest one is known.
   * `haveLatest`: the latest report of each node was read already.
   */
  async #readOlderReports(
    found: Gathering,
    active: Names,
    now: number,
    haveLatest: boolean,
    signal: AbortSignal,
  ): Promise<void> {
    const few = active.size * FEW_LEFT;
    const silentFor = (ms: number) => inPieces(found.silentSince(active, now - ms));
    const read = (where: Query) =>
      this.#readTogether(found, signal, (ask) =>
        this.#askNewestReports(ask, found, ["and", where, ACTIVE], now),
      );
    let silent = haveLatest ? [] : await silentFor(RECENT_MS);
    if (silent.length > few) {
      await read(["and", after(now - DAY_MS), ["not", after(now - RECENT_MS)]]);
      silent = await silentFor(DAY_MS);
    }
    if (silent.length > few) await read(LATEST);
    // `latest_report?` gives one report per node. If that is of a producer without a server, or of a clock that is ahead, it
    // hides the one that counts.
    const isHidden = (name: Certname) => found.unroutable.has(name) || found.ahead.has(name);
    if (haveLatest) silent = await inPieces(filter(active, isHidden));
    const names = silent.length > few ? silent.filter(isHidden) : silent;
    if (names.length > Math.max(few, NAMES_AT_ONCE)) return;
    for (let from = 0; from < names.length; from += NAMES_AT_ONCE) {
      await read(certnameAmong(names.slice(from, from + NAMES_AT_ONCE)));
    }
  }

  /** The catalogs of nodes that have neither a factset nor a report. Most fleets have no such node: false. */
  async #readLoneCatalogs(found: Gathering, active: Names, signal: AbortSignal): Promise<boolean> {
    const { submissions, unroutable, withoutProducer } = found;
    const isTold = (certname: Certname) =>
      submissions.has(certname) || unroutable.has(certname) || withoutProducer.has(certname);
    const untold = await inPieces(filter(active, (certname) => !isTold(certname)));
    if (untold.length === 0) return false;
    await this.#readCatalogs(found, ["and", ACTIVE, NEITHER_FACTS_NOR_REPORT], signal);
    return true;
  }

  /** `nodes`: a query for nodes, which know when PuppetDB received their catalog; the catalog itself does not. */
  async #readCatalogs(found: Gathering, nodes: Query, signal: AbortSignal): Promise<void> {
    const received = new Map<string, string | null | undefined>();
    await this.#readTogether(found, signal, (ask) => [
      ask("nodes", ["extract", ["certname", "catalog_timestamp"], nodes], CatalogTimeRow, (row) =>
        received.set(row.certname, row.catalog_timestamp),
      ),
    ]);
    if (received.size === 0) return;
    await this.#readTogether(found, signal, (ask) => [
      ask("catalogs", producers(["and", IN_ANY_STATE, certnameIn(nodes)]), CatalogRow, (row) => {
        if (received.has(row.certname))
          found.take("catalog", row, row.producer_timestamp, received.get(row.certname));
      }),
    ]);
  }

  /**
   * What PuppetDB received after `since` (milliseconds, on its clock). `inactiveBefore` is the `inactiveCount` of the
   * reading that this one goes on from, and `known` the nodes whose deactivation is of interest. Throws `PUPPETDB_...`.
   */
  async readChanges(
    since: number,
    signal: AbortSignal,
    { inactiveBefore, known, hasServer = anyProducer }: ChangesOptions = {},
  ): Promise<Reading> {
    const found = new Gathering("changes", hasServer, this.#teller);
    const now = Date.now();
    const aheadMs = this.#isDoubtful ? Math.max(0, this.clockAheadMs) : 0;
    const from = iso(since - Math.min(aheadMs, DAY_MS));
    const clock = this.#readClock(signal);
    const recent = after(Date.parse(from) - MASTER_CLOCK_ALLOWANCE_MS);
    await this.#readTogether(found, signal, (ask) => [
      ...this.#askFacts(ask, found, ["and", [">", "timestamp", from], ACTIVE]),
      ...this.#askReports(ask, found, ["and", recent, [">", "receive_time", from], ACTIVE]),
      ask("nodes", INACTIVE_COUNT, CountRow, ({ count }) => {
        found.inactiveCount = count;
      }),
    ]);
    this.#date(found, await clock, now);
    // This is the slowest query (0.25 s with a million nodes), and most fleets have no such node. If one appears, the next
    // full reading finds it.
    if (this.#hasLoneNodes) {
      const newCatalogs = ["and", ACTIVE, [">", "catalog_timestamp", from], NEITHER_FACTS_NOR_REPORT];
      await this.#readCatalogs(found, newCatalogs, signal);
    }
    if (performance.now() - this.#askedQueueAt > LOOK_EVERY_MS) await this.#lookAtPuppetdb(signal);
    // If one node was deactivated and another one came back, the number is the same. The next full reading finds that.
    if (found.inactiveCount === inactiveBefore) return inPieces(found.reading());
    if (known !== undefined && known.size <= FEW_NAMES)
      await this.#readInactiveAmong(found, [...known.certnames()], signal);
    else await this.#readLatestInactive(found, since, signal);
    return inPieces(found.reading());
  }

  async #readInactiveAmong(found: Gathering, names: Certname[], signal: AbortSignal): Promise<void> {
    const where = ["and", INACTIVE, certnameAmong(names)];
    await this.#readTogether(found, signal, (ask) => [
      ask("nodes", inactiveNodes(where), InactiveRow, (row) => found.takeInactive(row)),
    ]);
  }

  /**
   * PuppetDB cannot compare `deactivated` with a time, but it can sort by it. So only the latest ones are read: in a fleet of
   * short-lived nodes the list of all is long.
   */
  async #readLatestInactive(found: Gathering, since: number, signal: AbortSignal): Promise<void> {
    for (const field of ["deactivated", "expired"] as const) {
      const where = ["and", INACTIVE, ["null?", field, false]];
      const isNew = (time: string | null) => Date.parse(time ?? "") > since - INACTIVE_LOOK_BACK_MS;
      for (let offset = 0, isMore = true; isMore; offset += INACTIVE_PAGE) {
        let rows = 0;
        let oldest: string | null = null;
        const page: Page = {
          order_by: [{ field, order: "desc" }, { field: "certname" }],
          limit: INACTIVE_PAGE,
          offset,
        };
        await this.#readTogether(found, signal, (ask) => [
          ask("nodes", inactiveNodes(where), InactiveRow, takeRow, page),
        ]);
        function takeRow(row: z.output<typeof InactiveRow>) {
          rows += 1;
          oldest = row[field];
          found.takeInactive(row);
        }
        isMore = rows === INACTIVE_PAGE && isNew(oldest);
      }
    }
  }

  /** The newest submission for one node, or undefined. Throws `PUPPETDB_...`. */
  async readNode(certname: Certname, signal: AbortSignal): Promise<Submission | undefined> {
    return (await this.readNodes([certname], signal)).get(certname);
  }

  /** The newest submissions for a few nodes. Throws `PUPPETDB_...`. */
  async readNodes(
    certnames: readonly Certname[],
    signal: AbortSignal,
    hasServer: HasServer = anyProducer,
  ): Promise<Reading["submissions"]> {
    const found = new Gathering("changes", hasServer, this.#teller);
    const among = (names: readonly Certname[]) => ["and", certnameAmong(names), IN_ANY_STATE];
    const nodes = among(certnames);
    await this.#readTogether(found, signal, (ask) => [
      ...this.#askFacts(ask, found, nodes),
      ...this.#askNewestReports(ask, found, nodes, Date.now()),
      ask("nodes", inactiveNodes(nodes), InactiveRow, (row) => found.takeInactive(row)),
    ]);
    await inPieces(found.dropInactive());
    const told = await inPieces(found.told());
    const others = certnames.filter((certname) => !told.has(certname) && !found.inactive.has(certname));
    if (others.length > 0) await this.#readCatalogs(found, among(others), signal);
    return found.submissions;
  }

  /** PuppetDB's own version, such as "7.12.1". Throws `PUPPETDB_...`. */
  async readVersion(signal: AbortSignal): Promise<string> {
    return (await this.#ask("/pdb/meta/v1/version", VersionAnswer, signal)).version;
  }

  /**
   * How many commands PuppetDB has received and not stored yet. Throws `PUPPETDB_...`, also where its auth.conf does not let
   * us ask.
   */
  async readQueueDepth(signal: AbortSignal): Promise<number> {
    const path = "/status/v1/services/puppetdb-status";
    return (await this.#ask(path, StatusAnswer, signal)).status.queue_depth;
  }

  /**
   * PuppetDB's own clock (ms), even behind a proxy; not later than the moment when it was asked. Undefined if PuppetDB does not
   * tell: if something is wrong, the queries fail and say what.
   */
  async #readClock(signal: AbortSignal): Promise<number | undefined> {
    const began = performance.now();
    const answer = await within(LOOK_MS, signal, this.#untold, (soon) =>
      this.#ask("/pdb/meta/v1/server-time", TimeAnswer, soon),
    ).catch(() => undefined);
    const time = Date.parse(answer?.server_time ?? "");
    return time < LATEST_TIME ? Math.floor(time - (performance.now() - began)) : undefined;
  }

  #date(found: Gathering, own: number | undefined, began: number): void {
    found.asOf = own ?? found.asOf;
    this.#isDoubtful = own === undefined;
    this.#compare(found.asOf, began);
  }

  #compare(clock: number, ours: number): void {
    this.clockAheadMs = Math.abs(clock - ours) < CLOCK_MS ? 0 : clock - ours;
    if (this.#teller.from !== undefined) this.#teller.behindMs = Math.max(0, -this.clockAheadMs);
  }

  async #ask<Answer>(path: string, shape: z.ZodType<Answer>, signal: AbortSignal): Promise<Answer> {
    const url = `${this.#config.url}${path}`;
    const { agent, headers } = await this.#connector.open(signal);
    try {
      const response = await send(url, agent, { headers, signal });
      await checkAnswer(url, response);
      const answer = shape.safeParse(JSON.parse(await shortText(url, response.body)));
      if (answer.success) return answer.data;
      throw new SasoriError("PUPPETDB_BODY", `${url} sent an unexpected answer; ${WRONG_URL}`);
    } catch (error) {
      throw queryError(url, error, signal, agent);
    }
  }

  close(): Promise<void> {
    return this.#connector.close();
  }

  // The queries run side by side. When one fails, the others are told to stop and their errors are dropped.
  async #readTogether(
    found: Gathering,
    signal: AbortSignal,
    queries: (ask: Ask) => Promise<number>[],
  ): Promise<void> {
    const stop = new AbortController();
    const onAbort = () => stop.abort(signal.reason);
    signal.addEventListener("abort", onAbort, { once: true });
    if (signal.aborted) onAbort();
    const connection = await this.#connector.open(signal);
    const underway = queries((...asked) => this.#query(connection, stop.signal, ...asked));
    try {
      const clocks = await Promise.all(underway);
      found.asOf ||= Math.min(...clocks);
    } catch (error) {
      stop.abort(error);
      await Promise.allSettled(underway);
      throw error;
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }

  /** Runs one query and hands over its rows as they arrive. Returns PuppetDB's clock at its beginning. */
  async #query<Row>(
    connection: Connection,
    signal: AbortSignal,
    entity: Entity,
    query: Query,
    shape: z.ZodType<Row>,
    onRow: (row: Row) => void,
    page?: Page,
  ): Promise<number> {
    const url = `${this.#config.url}/pdb/query/v4/${entity}`;
    const began = Date.now();
    const text = JSON.stringify(query);
    const isLong = text.length > MAX_URL_CHARACTERS;
    const rowsShape = z.array(shape);
    const rows = new JsonRows(url, (batch) => {
      const parsed = rowsShape.safeParse(batch);
      if (!parsed.success) throw unexpectedShape(url, batch, parsed.error);
      for (const row of parsed.data) onRow(row);
    });
    try {
      const headers = { accept: "application/json", ...connection.headers };
      const { agent } = connection;
      const response = isLong
        ? await send(url, agent, {
            method: "POST",
            headers: { ...headers, "content-type": "application/json" },
            body: JSON.stringify({ query, origin: "sasori", ...page }),
            signal,
          })
        : await send(`${url}?query=${encodeURIComponent(text)}&origin=sasori${parameters(page)}`, agent, {
            headers,
            signal,
          });
      await checkAnswer(url, response);
      // Jetty takes the date when the request arrives. Something in front of it may drop the header, or write its own.
      const clock = Date.parse(String(response.headers.date)) || began;
      if (this.#isDoubtful) this.#compare(clock, began);
      const decoder = new TextDecoder("utf-8", { fatal: true });
      for await (const piece of piecesOf(url, response.body)) {
        await letOthersIn(); // If PuppetDB is fast, the next piece is there already, and no other work would get a turn.
        rows.push(decoder.decode(piece, { stream: true }));
      }
      rows.push(decoder.decode());
      rows.end();
      return clock;
    } catch (error) {
      throw queryError(url, error, signal, connection.agent);
    }
  }
}

/**
 * PuppetDB 8.7 and newer have a table of the latest reports. Asking for all of them takes 1.9 s with 100,000 nodes and 5
 * reports each, as long as asking for an hour's reports. Before 8.7 it took 6.2 s.
 */
function hasTableOfLatest(version: string | undefined): boolean {
  return version !== undefined && isAtLeast(version, 8, 7);
}

type Ask = <Row>(
  entity: Entity,
  query: Query,
  shape: z.ZodType<Row>,
  onRow: (row: Row) => void,
  page?: Page,
) => Promise<number>;

/** One page of a sorted answer. */
interface Page {
  order_by: { field: string; order?: "desc" }[];
  limit: number;
  offset: number;
}

const parameters = (page: Page | undefined) =>
  page === undefined
    ? ""
    : `&order_by=${encodeURIComponent(JSON.stringify(page.order_by))}&limit=${page.limit}&offset=${page.offset}`;

const anyProducer: HasServer = () => true;

const iso = (at: number) => new Date(at).toISOString();

// Without "extract" the answer would include the resources of every catalog and report.
const producers = (where: Query, ...more: string[]): Query => [
  "extract",
  ["certname", "producer", "producer_timestamp", ...more],
  where,
];

/** The newest report of each node and producer. */
const newestOf = (where: Query): Query => [
  "extract",
  ["certname", "producer", ["function", "max", "receive_time"], ["function", "max", "producer_timestamp"]],
  where,
  ["group_by", "certname", "producer"],
];

const after = (at: number): Query => [">", "producer_timestamp", iso(at)];

const certnameAmong = (names: readonly Certname[]): Query => ["in", "certname", ["array", names]];

const certnameIn = (where: Query): Query => [
  "in",
  "certname",
  ["from", "nodes", ["extract", "certname", where]],
];

function* filter(names: Names, isWanted: (certname: Certname) => boolean): Generator<void, Certname[]> {
  const wanted: Certname[] = [];
  yield* eachInPieces(names, (certname) => {
    if (isWanted(certname)) wanted.push(certname);
  });
  return wanted;
}

function unexpectedShape(url: string, batch: unknown[], error: z.ZodError): SasoriError {
  const issue = error.issues[0];
  const row = batch[Number(issue?.path[0] ?? 0)];
  const where = issue?.path.slice(1).join(".") ?? "";
  const text = `a row of ${url} has no usable ${where || "object"} (${issue?.message}): ${quote(JSON.stringify(row), 200)}; ${WRONG_URL}`;
  return new SasoriError("PUPPETDB_BODY", text);
}
