// PostgreSQL, where replicas agree. It has two tables, which are made and migrated here: one of the rows of rows.ts, and one
// of what each replica last said about itself (its word).
// Promises: a row that one replica writes is told to all others at once (NOTIFY); rows whose notification was missed are
// found by asking for newer ones, every few seconds and after each lost connection; no row is missed because a later one was
// committed before it; if the database is away or hangs, a caller waits for SEND_MS at most, and the next ones not at all.

import path from "node:path";
import type { Client, ClientConfig, QueryResultRow } from "pg";
import type { StateDatabase } from "../config.js";
import { counted } from "../counts.js";
import { Line, within } from "../deadline.js";
import { quote, reason, SasoriError } from "../errors.js";
import { pemProblem } from "../pem-files.js";
import { eachInPieces, inPieces } from "../pieces.js";
import { readSecretFile, SilentFile } from "../whole-file.js";
import { beats, MAX_PAST, parseRow, type Row, Rows } from "./rows.js";

/** Deadlines for a connection and for a query. */
const CONNECT_MS = 5_000;
const QUERY_MS = 10_000;
/** Deadline for exchanging all rows, enough for those of a million nodes. */
const EXCHANGE_MS = 60_000;
/** How long the start of sasori waits for the database. During that time sasori serves nothing. */
const START_MS = 8_000;
/** How long a registration waits for PostgreSQL. After one such wait no caller waits again until PostgreSQL is back. */
const SEND_MS = 2_000;
/** How often sasori looks for rows whose notification was missed, and how often each replica writes its word. */
const LOOK_MS = 5_000;
/** How often the oldest rows about what is over are deleted. That also happens at the begin of each connection. */
const FORGET_MS = 60 * 60_000;
const RETRY_MS = [200, 500, 1_000, 2_000, 5_000];

/** Rows in one statement. */
const MAX_SENT = 5_000;

/** A replica that was silent for this long is no longer shown. */
const FORGOTTEN = "1 day";

/** The number of an advisory lock: "sasori" as bytes, so that no other program uses the same by chance. */
const LOCK = Number.parseInt(Buffer.from("sasori").toString("hex"), 16);

const CHANNEL = "sasori_state";

/**
 * Each statement brings the schema to the next version. `xid` is the transaction that wrote a row. A row is newer than the last
 * reading if that transaction had not ended at the time of the reading: see PULL.
 */
const MIGRATIONS = [
  `CREATE TABLE sasori_state (
     kind text NOT NULL, key text NOT NULL, at timestamptz NOT NULL, value text,
     replica text NOT NULL, xid bigint NOT NULL, PRIMARY KEY (kind, key));
   CREATE INDEX sasori_state_xid ON sasori_state (xid);
   CREATE TABLE sasori_replicas (name text PRIMARY KEY, at timestamptz NOT NULL, word text NOT NULL)`,
] as const;

/** Writes rows. The newest wins; of two with the same time the one that `beats` (rows.ts) chooses. */
const SEND = `
  WITH written AS (
    INSERT INTO sasori_state AS known (kind, key, at, value, replica, xid)
    SELECT kind, key, at, value, $5, txid_current()
    FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::text[]) AS given (kind, key, at, value)
    ORDER BY kind, key
    ON CONFLICT (kind, key) DO UPDATE
      SET at = excluded.at, value = excluded.value, replica = excluded.replica, xid = excluded.xid
      WHERE (excluded.at, coalesce(excluded.value, '~') COLLATE "C") > (known.at, coalesce(known.value, '~') COLLATE "C")
    RETURNING 1)
  SELECT pg_notify('${CHANNEL}', '') FROM (SELECT count(*) FROM written) AS all_written (count) WHERE count > 0`;

/** All rows of transactions that had not ended when the last `next` was returned. 0: all rows. */
const PULL = `
  SELECT txid_snapshot_xmin(txid_current_snapshot())::text AS next, kind, key,
         round(extract(epoch FROM at) * 1000)::text AS at, value
  FROM (SELECT 1) AS always LEFT JOIN sasori_state ON xid >= $1::bigint`;

/** Reads these rows again. */
const READ_AGAIN = `
  SELECT kind, key, round(extract(epoch FROM at) * 1000)::text AS at, value
  FROM sasori_state JOIN unnest($1::text[], $2::text[]) AS asked (kind, key) USING (kind, key)`;

/** A row that is being replaced at the same moment stays. */
const FORGET = `
  DELETE FROM sasori_state AS known USING (
    SELECT kind, key, at FROM sasori_state WHERE value IS NULL OR kind IN ('ended', 'removed', 'approval')
    ORDER BY at DESC OFFSET ${MAX_PAST}) AS old
  WHERE known.kind = old.kind AND known.key = old.key AND known.at = old.at`;

const SAY = `
  INSERT INTO sasori_replicas (name, at, word) VALUES ($1, clock_timestamp(), $2)
  ON CONFLICT (name) DO UPDATE SET at = excluded.at, word = excluded.word`;

const HEAR = `
  SELECT name, word, round(extract(epoch FROM clock_timestamp() - at) * 1000)::text AS silent,
         round(extract(epoch FROM clock_timestamp()) * 1000)::text AS now
  FROM sasori_replicas WHERE at > clock_timestamp() - interval '${FORGOTTEN}'`;

/** A replica's last word, which it said `silentMs` ago by PostgreSQL's clock. */
export interface Heard {
  name: string;
  word: string;
  silentMs: number;
}

export interface DatabaseOwner {
  /** All rows of this sasori. After each new connection they are compared with PostgreSQL's. */
  known(): Iterable<Row>;
  /** Takes rows that others have written. Some may be known already. */
  takeRows(rows: Iterable<Row>): Promise<void>;
  /** What this replica says about itself to the others. */
  word(): string | undefined;
}

/** A row as it is in the table: `at` in milliseconds, `value` as JSON. */
interface Found {
  kind: string;
  key: string;
  at: string;
  value: string | null;
}

/** The connection, once all rows were exchanged. */
interface Session {
  client: Client;
  /** One question at a time. */
  line: Line;
  /** The parameter of the next PULL: rows of earlier transactions were read. */
  next: string;
  /** Ends the connection with this reason. */
  end(error: unknown): void;
  /** `pulling`: a PULL is under way. `pullAgain`: a notification came meanwhile, so one more is needed. */
  pulling: boolean;
  pullAgain: boolean;
}

export class Database {
  readonly #options: StateDatabase;
  readonly #owner: DatabaseOwner;
  readonly #closing = new AbortController();
  #session: Session | undefined;
  #running: Promise<void> | undefined;
  #onFirst: (() => void) | undefined;
  #failure: SasoriError | undefined;
  /** Rows that cannot be used, by key. Another program must have written them. */
  #unusable = new Map<string, Pick<Found, "kind" | "key">>();
  /** When the oldest were last deleted (`performance.now()`). */
  #forgotAt = Number.NEGATIVE_INFINITY;
  #heard: Heard[] = [];
  #heardAt = 0;
  /** How far our clock is ahead of PostgreSQL's (ms), as last seen. */
  clockAheadMs = 0;

  constructor(options: StateDatabase, owner: DatabaseOwner) {
    this.#options = options;
    this.#owner = owner;
  }

  /** Why the database is not in use, or which rows in it cannot be used. */
  get failure(): SasoriError | undefined {
    if (this.#session === undefined || this.#unusable.size === 0) return this.#failure;
    const some = [...this.#unusable.values()]
      .slice(0, 3)
      .map(({ kind, key }) => `${quote(kind)} ${quote(key)}`);
    const what = `${counted(this.#unusable.size, "row")} of sasori_state cannot be used (${some.join("; ")})`;
    return new SasoriError(
      "STATE_DATABASE",
      `${this.#options.where}: ${what}: delete them, and find the program that wrote them`,
    );
  }

  /** What each replica said last, also while the database is away. */
  get heard(): Heard[] {
    const since = performance.now() - this.#heardAt;
    return this.#heard.map(({ silentMs, ...said }) => ({ ...said, silentMs: Math.round(silentMs + since) }));
  }

  /**
   * Connects, and connects again after each failure, until `close`. Resolves after the first exchange of rows or the first
   * failure.
   */
  open(): Promise<void> {
    const first = new Promise<void>((resolve) => {
      this.#onFirst = resolve;
    });
    this.#running = this.#run();
    return Promise.race([first, pause(START_MS, this.#closing.signal)]);
  }

  /** Sends rows. False if PostgreSQL did not take them: then they are sent when it is back. */
  async send(rows: readonly Row[]): Promise<boolean> {
    const session = this.#session;
    if (session === undefined) return false;
    if (rows.length === 0) return true;
    const late = new Error(`it has not answered within ${SEND_MS / 1_000} s`);
    try {
      await within(SEND_MS, undefined, late, (signal) =>
        Promise.race([this.#write(session, rows), rejection(signal)]),
      );
      return true;
    } catch (error) {
      session.end(error);
      return false;
    }
  }

  /** Disconnects, and deletes this replica's word, so that the others do not report a stopped replica as lost. */
  async close(): Promise<void> {
    const session = this.#session;
    if (session !== undefined) {
      const gone = this.#query(session, "DELETE FROM sasori_replicas WHERE name = $1", [
        this.#options.replica,
      ]);
      await Promise.race([gone.catch(() => undefined), pause(SEND_MS, this.#closing.signal)]);
    }
    this.#closing.abort();
    session?.end(new Error("sasori was told to stop"));
    await this.#running;
  }

  async #run(): Promise<void> {
    for (let failures = 0; !this.#closing.signal.aborted; ) {
      try {
        await this.#connected(() => {
          failures = 0;
        });
      } catch (error) {
        this.#failure = this.#toError(error);
      }
      this.#onFirst?.();
      await pause(RETRY_MS[Math.min(failures, RETRY_MS.length - 1)] ?? 0, this.#closing.signal);
      failures += 1;
    }
  }

  /** One connection, from its begin to its end. Rejects with why it ended. */
  async #connected(isUp: () => void): Promise<void> {
    const client = await newClient(this.#options);
    let end: Session["end"] = () => undefined;
    const ended = new Promise<never>((_, reject) => {
      end = reject;
    });
    ended.catch(() => undefined);
    const session: Session = { client, line: new Line(1), next: "0", end, pulling: false, pullAgain: false };
    client.on("error", end);
    client.on("end", () => end(new Error("the connection was closed")));
    const onClose = () => end(new Error("sasori was told to stop"));
    this.#closing.signal.addEventListener("abort", onClose, { once: true });
    try {
      const late = new Error(`it has not answered within ${EXCHANGE_MS / 1_000} s`);
      await within(EXCHANGE_MS, this.#closing.signal, late, (signal) =>
        Promise.race([this.#begin(session), ended, rejection(signal)]),
      );
      this.#session = session;
      this.#onFirst?.();
      for (;;) {
        this.#pull(session);
        await Promise.race([this.#look(session), ended]);
        // Reset only now. Otherwise a role that may read but not write would connect, exchange all rows and fail several
        // times a second.
        this.#failure = undefined;
        isUp();
        await Promise.race([pause(LOOK_MS, this.#closing.signal), ended]);
      }
    } finally {
      this.#session = undefined;
      this.#closing.signal.removeEventListener("abort", onClose);
      // If a query is under way, the connection is cut without a goodbye.
      client.end().catch(() => undefined);
    }
  }

  async #begin(session: Session): Promise<void> {
    const { client } = session;
    await client.connect();
    await migrate(client);
    client.on("notification", () => this.#pull(session));
    await client.query(`LISTEN ${CHANNEL}`);
    await this.#forget(session);
    await this.#exchange(session);
  }

  /** Compares all rows, because either side may have been away, or restored from a backup. */
  async #exchange(session: Session): Promise<void> {
    this.#unusable.clear();
    const theirs = new Rows();
    const found = await this.#read(session, EXCHANGE_MS);
    await inPieces(eachInPieces(found, (row) => theirs.take(row)));
    const ours: Row[] = [];
    await inPieces(
      eachInPieces(this.#owner.known(), (row) => {
        const known = theirs.get(row);
        if (known === undefined || beats(row, known)) ours.push(row);
      }),
    );
    await this.#owner.takeRows(theirs);
    await this.#write(session, ours);
  }

  async #forget(session: Session): Promise<void> {
    await this.#query(session, FORGET, [], EXCHANGE_MS);
    this.#forgotAt = performance.now();
  }

  async #write(session: Session, rows: readonly Row[]): Promise<void> {
    for (let from = 0; from < rows.length; from += MAX_SENT) {
      const some = rows.slice(from, from + MAX_SENT);
      await this.#query(session, SEND, [
        some.map(({ kind }) => kind),
        some.map(({ key }) => key),
        some.map(({ at }) => new Date(at).toISOString()),
        some.map(({ value }) => (value === null ? null : JSON.stringify(value))),
        this.#options.replica,
      ]);
    }
  }

  /** Reads newer rows: now, or once more after the reading that is under way, which may have begun too early to see them. */
  #pull(session: Session): void {
    if (session !== this.#session) return;
    session.pullAgain = session.pulling;
    if (session.pulling) return;
    session.pulling = true;
    this.#read(session, QUERY_MS)
      .then((rows) => this.#owner.takeRows(rows))
      .catch((error: unknown) => session.end(error))
      .finally(() => {
        session.pulling = false;
        if (session.pullAgain) this.#pull(session);
      });
  }

  async #read(session: Session, ms: number): Promise<Row[]> {
    const found = await this.#query<{ next: string } & (Found | { kind: null })>(
      session,
      PULL,
      [session.next],
      ms,
    );
    session.next = found[0]?.next ?? session.next;
    const rows: Row[] = [];
    await inPieces(
      eachInPieces(found, (row) => {
        if (row.kind !== null) rows.push(...this.#parse(row));
      }),
    );
    return rows;
  }

  #parse({ kind, key, at, value }: Found): Row[] {
    const name = JSON.stringify([kind, key]);
    try {
      const row = parseRow({ kind, key, at: Number(at), value: value === null ? null : JSON.parse(value) });
      this.#unusable.delete(name);
      return [row];
    } catch {
      this.#unusable.set(name, { kind, key });
      return [];
    }
  }

  /** Reads unusable rows again, because PULL may not show that somebody has deleted or corrected them. */
  async #lookAgain(session: Session): Promise<void> {
    const asked = [...this.#unusable.values()].slice(0, MAX_SENT);
    if (asked.length === 0) return;
    const columns = [asked.map(({ kind }) => kind), asked.map(({ key }) => key)];
    const found = await this.#query<Found>(session, READ_AGAIN, columns);
    for (const { kind, key } of asked) this.#unusable.delete(JSON.stringify([kind, key]));
    await this.#owner.takeRows(found.flatMap((row) => this.#parse(row)));
  }

  /** Writes this replica's word, and reads those of all replicas. */
  async #look(session: Session): Promise<void> {
    await this.#lookAgain(session);
    if (performance.now() - this.#forgotAt > FORGET_MS) await this.#forget(session);
    const word = this.#owner.word();
    if (word !== undefined) await this.#query(session, SAY, [this.#options.replica, word]);
    const began = Date.now();
    const heard = await this.#query<{ name: string; word: string; silent: string; now: string }>(
      session,
      HEAR,
      [],
    );
    this.#heardAt = performance.now();
    this.#heard = heard.map(({ name, word, silent }) => ({
      name,
      word,
      silentMs: Math.max(0, Number(silent)),
    }));
    const [{ now } = { now: undefined }] = heard;
    if (now !== undefined) this.clockAheadMs = Math.round((began + Date.now()) / 2) - Number(now);
  }

  async #query<Found extends QueryResultRow>(
    { client, line }: Session,
    text: string,
    values: unknown[],
    ms = QUERY_MS,
  ): Promise<Found[]> {
    const late = new Error(`it has not answered within ${ms / 1_000} s`);
    return within(ms, this.#closing.signal, late, (signal) => {
      const asked = line.join(signal, async () => {
        signal.throwIfAborted();
        return (await client.query<Found>(text, values)).rows;
      });
      return Promise.race([asked, rejection(signal)]);
    });
  }

  #toError(error: unknown): SasoriError {
    const { where } = this.#options;
    const why = reason(error);
    return new SasoriError("STATE_DATABASE", why.startsWith(where) ? why : `${where}: ${why}`, {
      cause: error,
    });
  }
}

/** Makes a client that is not connected yet. Throws `STATE_DATABASE` if one of its files cannot be read. */
export async function newClient(options: StateDatabase): Promise<Client> {
  const { host, port, user, database, tls, where, replica } = options;
  const read = async (file: string | undefined, isNeeded = true) => {
    if (file === undefined) return undefined;
    try {
      return await readSecretFile(file);
    } catch (error) {
      if (!isNeeded && !(error instanceof SilentFile)) return undefined;
      throw new SasoriError("STATE_DATABASE", `${where}: cannot read ${file}: ${reason(error)}`, {
        cause: error,
      });
    }
  };
  // One after the other, so that a file that hangs is the only one that blocks a thread.
  const password = await read(options.passwordFile);
  // The client would read this by itself, and wait forever if it hangs.
  if (password === undefined && process.env.PGPASSWORD === undefined) await read(passwordsOfLibpq(), false);
  const ca = await read(options.caFile);
  const cert = await read(options.certFile);
  const key = await read(options.keyFile);
  const problem = key && pemProblem(key, "PRIVATE KEY");
  if (problem) throw new SasoriError("STATE_DATABASE", `${where}: ${options.keyFile} ${problem}`);
  const config: ClientConfig = {
    ...{ host, port, user, database },
    // Without one the client looks where libpq does: PGPASSWORD, PGPASSFILE, ~/.pgpass.
    ...(password !== undefined && { password: password.replace(/\r?\n$/, "") }),
    ssl: tls ? { rejectUnauthorized: true, minVersion: "TLSv1.2", ...defined({ ca, cert, key }) } : false,
    application_name: `sasori ${replica}`.slice(0, 63),
    connectionTimeoutMillis: CONNECT_MS,
    keepAlive: true,
    keepAliveInitialDelayMillis: LOOK_MS,
    statement_timeout: EXCHANGE_MS,
    lock_timeout: QUERY_MS,
    idle_in_transaction_session_timeout: QUERY_MS,
  };
  const { default: pg } = await import("pg"); // Loaded here, because few sites need it.
  return new pg.Client(config);
}

const passwordsOfLibpq = () => process.env.PGPASSFILE ?? path.join(process.env.HOME ?? ".", ".pgpass");

/** Makes the tables, or migrates them to this version. If several replicas start at once, only one does it. */
async function migrate(client: Client): Promise<void> {
  if ((await schemaVersion(client)) === MIGRATIONS.length) return;
  await client.query("BEGIN");
  await client.query("SELECT pg_advisory_xact_lock($1)", [LOCK]);
  await client.query(
    "CREATE TABLE IF NOT EXISTS sasori_schema (version integer PRIMARY KEY, at timestamptz NOT NULL)",
  );
  const version = await schemaVersion(client);
  for (const [index, statements] of MIGRATIONS.entries()) {
    if (index < version) continue;
    await client.query(statements);
    await client.query("INSERT INTO sasori_schema VALUES ($1, now())", [index + 1]);
  }
  await client.query("COMMIT");
}

/** The schema's version; 0: there is none. Throws `STATE_DATABASE` for a version that this sasori does not know. */
export async function schemaVersion(client: Client): Promise<number> {
  const { rows: tables } = await client.query<{ there: boolean }>(
    "SELECT to_regclass('sasori_schema') IS NOT NULL AS there",
  );
  if (!tables[0]?.there) return 0;
  const { rows } = await client.query<{ version: number | null }>(
    "SELECT max(version) AS version FROM sasori_schema",
  );
  const version = rows[0]?.version ?? 0;
  if (version <= MIGRATIONS.length) return version;
  const what = `its schema has version ${version}, of a newer sasori, and this one knows versions up to ${MIGRATIONS.length}`;
  throw new SasoriError("STATE_DATABASE", `${what}: update this sasori`);
}

/** Resolves early when `signal` ends. */
const pause = (ms: number, signal: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    if (signal.aborted) done();
    else signal.addEventListener("abort", done, { once: true });
  });

/** Never resolves. */
const rejection = (signal: AbortSignal): Promise<never> =>
  new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason), { once: true }));

const defined = (options: Record<string, string | undefined>) =>
  Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined));
