// PuppetDB as the source: who is active, and which master submitted last for each node.
// Promises: an answer is believed only after its status, content type, wholeness and shape were checked; a
// reading is all or nothing; memory is bounded by one entry per node, whatever the size of the answers.
// The producer of a factset or report is the master that an agent spoke to in its own run. The producer of a
// catalog is not: an operator who asks another master for a node's catalog rewrites it. So the newest of
// factset and report decides, and the catalog only where a node has neither.

import { request } from "undici";
import { z } from "zod";
import type { Config } from "../config.js";
import { quote, SasoriError } from "../errors.js";
import { type Certname, isCertname, LATEST_TIME } from "../node-map.js";
import { JsonRows } from "./json-rows.js";
import { type Connection, Connector, checkAnswer, queryError, WRONG_URL } from "./puppetdb-connection.js";

/** Enough to see what is wrong; a flood of illegal names must not fill the memory. */
export const MAX_REFUSED = 1_000;
/** Enough to know it by; Puppet's own names are shorter. */
const MAX_NAME_CHARACTERS = 300;

const MINUTE_MS = 60_000;
/** The `Date` header has whole seconds, and an answer takes its time. */
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
 * A full reading asks for the reports of the last hour, if many nodes have none for those of the last day, then for
 * the few that are left by name. Only if they are many PuppetDB looks for the latest reports itself (`latest_report?`),
 * which scans the reports of all days. A window is grouped to the newest report of each node and producer: a row
 * costs PuppetDB 10 µs whatever it is, the grouping of a report costs PostgreSQL 1 µs.
 * Measured with 100,000 nodes and a million reports, alone on two cores: `latest_report?` 3.0 s (and it grows with the
 * reports that are kept, a usual fleet has 60 times as many), an hour's window 0.9 s, one of 20 hours with three
 * reports each 4.0 s, grouped 1.4 s. Names: 0.3 to 0.5 ms each in batches of up to 1,000; 5,000 at once take 6 s,
 * 20,000 three minutes.
 */
const RECENT_MS = 60 * MINUTE_MS;
const DAY_MS = 24 * 60 * MINUTE_MS;
const FEW_LEFT = 0.05;
const NAMES_AT_ONCE = 500;

/** Jetty takes 8 KB of request line and headers: a longer query goes into the body. */
const MAX_URL_CHARACTERS = 4_000;

/** The newest thing that a master submitted for a node. Times are milliseconds since the epoch. */
export interface Submission {
  certname: Certname;
  producer: string;
  /** `producer_timestamp`: the master's clock. */
  at: number;
  source: "facts" | "report" | "catalog";
  /** When PuppetDB received it, on its own clock; 0 in a full reading, which does not ask. */
  receivedAt: number;
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
  /** One entry per node, the newest; in a full reading of active nodes only. */
  submissions: Map<Certname, Submission>;
  /** In a full reading: every active node. */
  active: Names | undefined;
  /** Nodes deactivated or expired, and when; in a reading of changes only when their number changed. */
  inactive: Map<Certname, number>;
  /** How many PuppetDB has of them. */
  inactiveCount: number;
  /** Certnames that cannot be map keys, as they came, or their beginning. At most MAX_REFUSED of them. */
  refused: Set<string>;
  /** Nodes with nothing but rows that name no producer or no time that a clock may show. */
  withoutProducer: Set<Certname>;
}

const Timestamp = z.string().nullable();
const ProducerRow = z.object({
  certname: z.string(),
  producer: z.string().nullable(),
  producer_timestamp: Timestamp,
  timestamp: Timestamp.optional(),
  receive_time: Timestamp.optional(),
});
/** Of one node by one producer the newest. */
const NewestRow = z.object({ certname: z.string(), producer: z.string().nullable(), max: Timestamp });
const ActiveRow = z.object({ certname: z.string() });
const CountRow = z.object({ count: z.number() });
const VersionAnswer = z.object({ version: z.string() });
const InactiveRow = z.object({ certname: z.string(), deactivated: Timestamp, expired: Timestamp });

const LATEST = ["=", "latest_report?", true];
const ACTIVE = ["=", "node_state", "active"];
const INACTIVE = ["=", "node_state", "inactive"];
/**
 * Said outright for a few named nodes: where nothing or "active" is said, PuppetDB looks for these among all nodes (18 ms
 * with 100,000, 100 ms with a million), otherwise in the index (0.05 ms, 15 ms with its own work).
 */
const IN_ANY_STATE = ["=", "node_state", "any"];
const INACTIVE_NODES = ["extract", ["certname", "deactivated", "expired"], INACTIVE];
const ACTIVE_COUNT = ["extract", [["function", "count"]], ACTIVE];
const INACTIVE_COUNT = ["extract", [["function", "count"]], INACTIVE];
const NEITHER_FACTS_NOR_REPORT = [
  "and",
  ["null?", "facts_timestamp", true],
  ["null?", "report_timestamp", true],
];

type Query = unknown[];
type Entity = "nodes" | "factsets" | "reports" | "catalogs";

export class PuppetDb {
  readonly #config: Config["puppetdb"];
  readonly #connector: Connector;
  /**
   * How far the clock in the last answer, PuppetDB's or that of a proxy before it, is ahead of this machine's (ms). If it is
   * a proxy's, what PuppetDB receives meanwhile is dated earlier, so a reading of changes looks back as much further.
   */
  clockAheadMs = 0;
  /** The last full reading has found nodes for which only a catalog can tell. */
  #hasLoneNodes = true;

  constructor(config: Config["puppetdb"]) {
    this.#config = config;
    this.#connector = new Connector(config);
  }

  /** Where it is asked, for messages. */
  get url(): string {
    return this.#config.url;
  }

  /** Everything: all active nodes and their newest submissions. Throws `PUPPETDB_...`. */
  async readAll(signal: AbortSignal): Promise<Reading> {
    const reading = emptyReading("full");
    const now = Date.now();
    let activeCount = -1;
    await this.#readTogether(reading, signal, (ask) => [
      ask("nodes", ACTIVE_COUNT, CountRow, ({ count }) => {
        activeCount = count;
      }),
      ask("factsets", producers(ACTIVE), ProducerRow, (row) => takeProducer(row, "facts", reading)),
      ask("reports", newestReports(after(now - RECENT_MS)), NewestRow, (row) => takeNewest(row, reading)),
      ask("nodes", INACTIVE_NODES, InactiveRow, (row) => {
        reading.inactiveCount += 1;
        takeInactive(row, reading);
      }),
    ]);
    const { asOf, submissions, withoutProducer, refused } = reading;
    // In most fleets each node has facts or a report, and so has been told already: if as many were as there are, the
    // list of all, a third of all rows, is left out.
    const told = eitherOf(submissions, withoutProducer);
    const active = told.size + refused.size === activeCount ? told : await this.#readActive(reading, signal);
    await this.#readOlderReports(reading, active, now, signal);
    this.#hasLoneNodes = active !== told && (await this.#readLoneCatalogs(reading, active, signal));
    // One may have been deactivated between two answers.
    if (active !== told)
      for (const certname of submissions.keys()) if (!active.has(certname)) submissions.delete(certname);
    return { ...reading, asOf, active };
  }

  /** The names of all active nodes. */
  async #readActive(reading: Reading, signal: AbortSignal): Promise<Names> {
    const active = new Set<Certname>();
    await this.#readTogether(reading, signal, (ask) => [
      ask("nodes", ["extract", ["certname"], ACTIVE], ActiveRow, (row) => {
        take(row.certname, reading, (certname) => active.add(certname));
      }),
    ]);
    return active;
  }

  /** The newest reports of nodes that have submitted nothing within the last hour: others have no older news. */
  async #readOlderReports(reading: Reading, active: Names, now: number, signal: AbortSignal): Promise<void> {
    const few = active.size * FEW_LEFT;
    const { submissions } = reading;
    const silentFor = (ms: number) =>
      Array.from(filter(active, (certname) => (submissions.get(certname)?.at ?? 0) <= now - ms));
    const read = (query: Query) =>
      this.#readTogether(reading, signal, (ask) => [
        ask("reports", query, NewestRow, (row) => takeNewest(row, reading)),
      ]);
    let silent = silentFor(RECENT_MS);
    if (silent.length > few) {
      await read(newestReports(["and", after(now - DAY_MS), ["not", after(now - RECENT_MS)]]));
      silent = silentFor(DAY_MS);
    }
    if (silent.length > few) {
      await read(newestReports(LATEST));
      return;
    }
    for (let from = 0; from < silent.length; from += NAMES_AT_ONCE) {
      await read(newestReports(certnameAmong(silent.slice(from, from + NAMES_AT_ONCE))));
    }
  }

  /** The catalogs of nodes that have neither a factset nor a report. Most fleets have no such node: false. */
  async #readLoneCatalogs(reading: Reading, active: Names, signal: AbortSignal): Promise<boolean> {
    const { submissions, withoutProducer } = reading;
    const isLone = (certname: Certname) => !submissions.has(certname) && !withoutProducer.has(certname);
    if (filter(active, isLone).next().done === true) return false;
    const query = producers(["and", ACTIVE, certnameIn(NEITHER_FACTS_NOR_REPORT)]);
    await this.#readTogether(reading, signal, (ask) => [
      ask("catalogs", query, ProducerRow, (row) => takeProducer(row, "catalog", reading)),
    ]);
    return true;
  }

  /**
   * What PuppetDB received after `since` (milliseconds, on its clock). `inactiveBefore` is the `inactiveCount` of the
   * reading that this one goes on from. Throws `PUPPETDB_...`.
   */
  async readChanges(since: number, signal: AbortSignal, inactiveBefore?: number): Promise<Reading> {
    const reading = emptyReading("changes");
    const from = iso(since - Math.min(Math.max(0, this.clockAheadMs), DAY_MS));
    const newFacts = ["and", [">", "timestamp", from], ACTIVE];
    const recent = after(Date.parse(from) - MASTER_CLOCK_ALLOWANCE_MS);
    const newReports = ["and", recent, [">", "receive_time", from], ACTIVE];
    const newCatalogs = ["and", [">", "catalog_timestamp", from], NEITHER_FACTS_NOR_REPORT];
    const withoutOther = ["and", ACTIVE, certnameIn(newCatalogs)];
    await this.#readTogether(reading, signal, (ask) => [
      ask("factsets", producers(newFacts, "timestamp"), ProducerRow, (row) =>
        takeProducer(row, "facts", reading),
      ),
      ask("reports", producers(newReports, "receive_time"), ProducerRow, (row) =>
        takeProducer(row, "report", reading),
      ),
      // The slowest of all (0.25 s in a million nodes), and most fleets have no such node. The first one is found by the
      // next full reading.
      ...(this.#hasLoneNodes
        ? [
            ask("catalogs", producers(withoutOther), ProducerRow, (row) =>
              takeProducer(row, "catalog", reading),
            ),
          ]
        : []),
      ask("nodes", INACTIVE_COUNT, CountRow, ({ count }) => {
        reading.inactiveCount = count;
      }),
    ]);
    // PuppetDB cannot compare `deactivated` with a time, so the nodes are listed when their number changed.
    // What two changes at once hide is found by the full read.
    if (reading.inactiveCount !== inactiveBefore) {
      const { asOf } = reading;
      await this.#readTogether(reading, signal, (ask) => [
        ask("nodes", INACTIVE_NODES, InactiveRow, (row) => takeInactive(row, reading)),
      ]);
      reading.asOf = asOf;
    }
    return reading;
  }

  /** The newest submission for one node, or undefined. Throws `PUPPETDB_...`. */
  async readNode(certname: Certname, signal: AbortSignal): Promise<Submission | undefined> {
    return (await this.readNodes([certname], signal)).get(certname);
  }

  /** The newest submissions for a few nodes. Throws `PUPPETDB_...`. */
  async readNodes(certnames: readonly Certname[], signal: AbortSignal): Promise<Reading["submissions"]> {
    const reading = emptyReading("changes");
    const among = (names: readonly Certname[]) => ["and", certnameAmong(names), IN_ANY_STATE];
    const nodes = among(certnames);
    await this.#readTogether(reading, signal, (ask) => [
      ask("factsets", producers(nodes), ProducerRow, (row) => takeProducer(row, "facts", reading)),
      ask("reports", producers(["and", LATEST, nodes]), ProducerRow, (row) =>
        takeProducer(row, "report", reading),
      ),
      ask("nodes", ["extract", ["certname", "deactivated", "expired"], nodes], InactiveRow, (row) => {
        if (row.deactivated !== null || row.expired !== null) takeInactive(row, reading);
      }),
    ]);
    const { submissions, inactive } = reading;
    const others = certnames.filter((certname) => !submissions.has(certname) && !inactive.has(certname));
    if (others.length > 0) {
      await this.#readTogether(reading, signal, (ask) => [
        ask("catalogs", producers(among(others)), ProducerRow, (row) =>
          takeProducer(row, "catalog", reading),
        ),
      ]);
    }
    for (const certname of inactive.keys()) submissions.delete(certname);
    return submissions;
  }

  /** PuppetDB's own version, such as "7.12.1". Throws `PUPPETDB_...`. */
  async readVersion(signal: AbortSignal): Promise<string> {
    const url = `${this.#config.url}/pdb/meta/v1/version`;
    const { agent, headers } = await this.#connector.open(signal);
    try {
      const response = await request(url, { dispatcher: agent.dispatcher, headers, signal });
      await checkAnswer(url, response);
      const answer = VersionAnswer.safeParse(await response.body.json());
      if (answer.success) return answer.data.version;
      throw new SasoriError("PUPPETDB_BODY", `${url} tells no version; ${WRONG_URL}`);
    } catch (error) {
      throw queryError(url, error, signal, agent);
    }
  }

  close(): Promise<void> {
    return this.#connector.close();
  }

  // The queries run side by side. When one fails, the others are told to stop and their errors are dropped.
  async #readTogether(
    reading: Reading,
    signal: AbortSignal,
    queries: (ask: Ask) => Promise<number>[],
  ): Promise<Reading> {
    const stop = new AbortController();
    const onAbort = () => stop.abort(signal.reason);
    signal.addEventListener("abort", onAbort, { once: true });
    if (signal.aborted) onAbort();
    const connection = await this.#connector.open(signal);
    const underway = queries((entity, query, shape, onRow) =>
      this.#query(connection, stop.signal, entity, query, shape, onRow),
    );
    try {
      const clocks = await Promise.all(underway);
      return Object.assign(reading, { asOf: Math.min(...clocks) });
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
      const options = { dispatcher: connection.agent.dispatcher, signal };
      const response = isLong
        ? await request(url, {
            ...options,
            method: "POST",
            headers: { ...headers, "content-type": "application/json" },
            body: JSON.stringify({ query, origin: "sasori" }),
          })
        : await request(`${url}?query=${encodeURIComponent(text)}&origin=sasori`, { ...options, headers });
      await checkAnswer(url, response);
      const decoder = new TextDecoder("utf-8", { fatal: true });
      for await (const chunk of response.body) rows.push(decoder.decode(chunk as Buffer, { stream: true }));
      rows.push(decoder.decode());
      rows.end();
      // Jetty takes the date when the request arrives. Something in front of it may drop the header.
      const clock = Date.parse(String(response.headers.date)) || began;
      this.clockAheadMs = Math.abs(clock - began) < CLOCK_MS ? 0 : clock - began;
      return clock;
    } catch (error) {
      throw queryError(url, error, signal, connection.agent);
    }
  }
}

type Ask = <Row>(
  entity: Entity,
  query: Query,
  shape: z.ZodType<Row>,
  onRow: (row: Row) => void,
) => Promise<number>;

const iso = (at: number) => new Date(at).toISOString();

// Without "extract" the resources of every catalog and report come along.
const producers = (where: Query, ...more: string[]): Query => [
  "extract",
  ["certname", "producer", "producer_timestamp", ...more],
  where,
];

/** The newest report of each node and producer, as `max`. */
const newestReports = (where: Query): Query => [
  "extract",
  ["certname", "producer", ["function", "max", "producer_timestamp"]],
  ["and", where, ACTIVE],
  ["group_by", "certname", "producer"],
];

const after = (at: number): Query => [">", "producer_timestamp", iso(at)];

const certnameAmong = (names: readonly Certname[]): Query => ["in", "certname", ["array", names]];

const certnameIn = (where: Query): Query => [
  "in",
  "certname",
  ["from", "nodes", ["extract", "certname", where]],
];

/** The names of both, which have none in common; not copied, because there may be a million. */
const eitherOf = (a: ReadonlyMap<Certname, unknown>, b: ReadonlySet<Certname>): Names => ({
  size: a.size + b.size,
  has: (certname) => a.has(certname) || b.has(certname),
  *[Symbol.iterator]() {
    yield* a.keys();
    yield* b;
  },
});

function* filter(names: Names, isWanted: (certname: Certname) => boolean): Generator<Certname> {
  for (const certname of names) if (isWanted(certname)) yield certname;
}

function emptyReading(kind: Reading["kind"]): Reading {
  return {
    kind,
    asOf: 0,
    submissions: new Map(),
    active: undefined,
    inactive: new Map(),
    inactiveCount: 0,
    refused: new Set(),
    withoutProducer: new Set(),
  };
}

function take(name: string, reading: Reading, use: (certname: Certname) => void): void {
  if (isCertname(name)) use(name);
  else if (reading.refused.size < MAX_REFUSED) reading.refused.add(cut(name));
}

/** A slice would keep all of the text in memory: this is a copy. */
function cut(text: string): string {
  if (text.length <= MAX_NAME_CHARACTERS) return text;
  return Buffer.from(`${text.slice(0, MAX_NAME_CHARACTERS)}…`).toString();
}

function takeProducer(
  row: z.output<typeof ProducerRow>,
  source: Submission["source"],
  reading: Reading,
): void {
  const received = row.timestamp ?? row.receive_time;
  takeSubmission(row, row.producer_timestamp, source, received ? Date.parse(received) || 0 : 0, reading);
}

function takeNewest(row: z.output<typeof NewestRow>, reading: Reading): void {
  takeSubmission(row, row.max, "report", 0, reading);
}

function takeSubmission(
  { certname: name, producer }: { certname: string; producer: string | null },
  time: string | null,
  source: Submission["source"],
  receivedAt: number,
  reading: Reading,
): void {
  take(name, reading, (certname) => {
    const at = Date.parse(time ?? "");
    const known = reading.submissions.get(certname);
    if (producer === null || !(at < LATEST_TIME)) {
      if (known === undefined) reading.withoutProducer.add(certname);
      return;
    }
    if (known === undefined) {
      reading.withoutProducer.delete(certname);
      reading.submissions.set(certname, { certname, producer: cut(producer), at, source, receivedAt });
    } else if (known.at < at) {
      Object.assign(known, { producer: cut(producer), at, source, receivedAt });
    }
  });
}

function takeInactive(row: z.output<typeof InactiveRow>, reading: Reading): void {
  take(row.certname, reading, (certname) => {
    const at = Math.max(Date.parse(row.deactivated ?? "") || 0, Date.parse(row.expired ?? "") || 0);
    reading.inactive.set(certname, at);
  });
}

function unexpectedShape(url: string, batch: unknown[], error: z.ZodError): SasoriError {
  const issue = error.issues[0];
  const row = batch[Number(issue?.path[0] ?? 0)];
  const where = issue?.path.slice(1).join(".") ?? "";
  const text = `a row of ${url} has no usable ${where || "object"} (${issue?.message}): ${quote(JSON.stringify(row), 200)}; ${WRONG_URL}`;
  return new SasoriError("PUPPETDB_BODY", text);
}
