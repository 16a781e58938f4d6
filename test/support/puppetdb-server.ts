/**
 * The real PuppetDB on a PostgreSQL of its own, on loopback, for tests. It is slow to start (about 8 s), so one
 * serves a whole file of tests, and each begins with `reset()`.
 */
import { randomUUID } from "node:crypto";
import { copyFile, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Child, freePort, run } from "./child.js";
import { type PuppetdbParts, type PuppetdbRelease, puppetdbParts } from "./parts.js";
import { patient } from "./patience.js";
import { type PostgresServer, startPostgres } from "./postgres-server.js";

const PUPPETDB_DEADLINE_MS = 120_000;
const COMMAND_SECONDS = 20;
const QUEUE_DEADLINE_MS = 60_000;

/** Beyond those of every PostgreSQL of the tests: nobody kills this one. */
const CARELESS = ["synchronous_commit=off", "full_page_writes=off"];

/** Where a PuppetDB is and how to reach it. */
export interface PuppetdbAddress {
  /** Plain HTTP, such as "http://127.0.0.1:34567". */
  url: string;
  /** The same with TLS, which demands the client certificate. The others are paths of PEM files. */
  tls: { url: string; ca: string; cert: string; key: string };
  /** Runs SQL in its database; resolves with the rows as psql prints them (columns by "|", rows by newline). */
  sql(text: string): Promise<string>;
}

/** Who ran Puppet for a node, and when by the master's clock (`producer_timestamp`). */
export interface Run {
  certname: string;
  /** The certname of the master; null as PuppetDB has it for very old data. */
  producer: string | null;
  /** Default: now. */
  at?: Date;
}

/** Talks to a PuppetDB as masters and operators do. Every command is done when its promise resolves. */
export interface PuppetdbClient extends PuppetdbAddress {
  /** Empties it: no nodes, producers, environments. About 0.1 s. */
  reset(): Promise<void>;
  /** GET /pdb/query/v4 with this AST query, e.g. ["from", "nodes"]; rejects unless it answers 200. */
  query(ast: readonly unknown[]): Promise<unknown>;
  /** Submits a command and waits until it has been processed; rejects when it was refused or failed. */
  command(
    name: string,
    version: number,
    payload: { certname: string } & Record<string, unknown>,
  ): Promise<void>;
  /** An agent's facts, as the first thing of its run (replace_facts v5). */
  replaceFacts(run: Run): Promise<void>;
  /** As `replaceFacts`, but PuppetDB has only received them when its promise resolves. */
  queueFacts(run: Run): Promise<void>;
  /** Its compiled catalog, without resources (replace_catalog v9). */
  replaceCatalog(run: Run): Promise<void>;
  /** Its report, as the last thing of its run (store_report v8). */
  storeReport(run: Run): Promise<void>;
  /** As `puppet node deactivate` does (deactivate_node v3). */
  deactivateNode(certname: string, at?: Date): Promise<void>;
  /**
   * Adds `count` nodes with a factset, a catalog and `reports` reports each (default: one), by SQL, because that takes
   * seconds where commands take hours: node-0000001.example ..., with `producers` taking turns. The nodes' last runs
   * are spread over the half hour before `minutesAgo` (default: now), as agents' are, older reports over the days before
   * that; they stand in the partition of their day, as PuppetDB puts them. Reset it first.
   */
  fill(count: number, producers: readonly string[], reports?: number, minutesAgo?: number): Promise<void>;
}

/** A PuppetDB that we run ourselves. */
export interface PuppetdbServer extends PuppetdbClient {
  /** The process ids of PuppetDB and of PostgreSQL's first process, the parent of all others. */
  pids(): { puppetdb: number; postgres: number };
  /** Ends only PuppetDB, as an outage; its data and its ports stay. */
  stopPuppetdb(): Promise<void>;
  /** Starts it again after `stopPuppetdb()`. */
  startPuppetdb(): Promise<void>;
  /** Ends all of it and removes its data. */
  stop(): Promise<void>;
}

/** The release that a test gets that does not ask for one: TEST_PUPPETDB=8 or 7. The fault suite's config sets it to 8. */
export const usualRelease: PuppetdbRelease = process.env.TEST_PUPPETDB === "8" ? 8 : 7;

/** Starts PostgreSQL and PuppetDB; rejects with what they printed when one of them does not become ready. */
export async function startPuppetdb(release = usualRelease): Promise<PuppetdbServer> {
  const [server] = await startPuppetdbs([release]);
  return server as PuppetdbServer;
}

/** As `startPuppetdb`, for several with a database each of one PostgreSQL, which ends with the last of them. */
export async function startPuppetdbs(releases: readonly PuppetdbRelease[]): Promise<PuppetdbServer[]> {
  const dir = await mkdtemp(join(tmpdir(), "sasori-puppetdb-"));
  let postgres: PostgresServer | undefined;
  const running = new Map<number, Child>();
  const stop = async (index: number): Promise<void> => {
    await running.get(index)?.end();
    running.delete(index);
    if (running.size > 0) return;
    await postgres?.stop();
    await rm(dir, { recursive: true, force: true });
  };
  try {
    const tls = await makeCertificates(puppetdbParts().openssl, dir);
    const server = await startPostgres("puppetdb", CARELESS);
    postgres = server;
    const start = async (release: PuppetdbRelease, index: number): Promise<PuppetdbServer> => {
      const parts = puppetdbParts(release);
      const home = join(dir, `puppetdb${index}`);
      const database = `puppetdb${index}`;
      await server.sql("postgres", `CREATE DATABASE ${database}`);
      await server.sql(database, "CREATE EXTENSION pg_trgm");
      const address: PuppetdbAddress = {
        url: `http://127.0.0.1:${await freePort()}`,
        tls: { url: `https://127.0.0.1:${await freePort()}`, ...tls },
        sql: (text) => server.sql(database, text),
      };
      await configurePuppetdb(parts, home, address, { ...server, database });
      const run = async () => {
        running.set(index, await runPuppetdb(parts, home, address));
      };
      await run();
      return {
        ...puppetdbClient(address),
        stop: () => stop(index),
        pids: () => ({ puppetdb: running.get(index)?.pid ?? 0, postgres: server.pid }),
        async stopPuppetdb() {
          await running.get(index)?.end();
        },
        startPuppetdb: run,
      };
    };
    const started = await Promise.allSettled(releases.map(start));
    return started.map((one) => {
      if (one.status === "rejected") throw one.reason;
      return one.value;
    });
  } catch (error) {
    for (const [index] of releases.entries()) await stop(index);
    throw error;
  }
}

/** A client for the stand-in, which has neither TLS nor a database. */
export const standInClient = (url: string): PuppetdbClient =>
  puppetdbClient({
    url,
    tls: { url, ca: "", cert: "", key: "" },
    sql: () => Promise.reject(new Error("the stand-in has no database")),
  });

/** A client for a PuppetDB that somebody else has started. */
export function puppetdbClient(address: PuppetdbAddress): PuppetdbClient {
  const { url, sql } = address;
  const submit = (
    name: string,
    version: number,
    payload: { certname: string },
    more: Record<string, string> = {},
  ) => {
    const { certname } = payload;
    const parameters = new URLSearchParams({ command: name, version: String(version), certname, ...more });
    return fetch(`${url}/pdb/cmd/v1?${parameters}`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(payload),
    });
  };
  const command: PuppetdbClient["command"] = async (name, version, payload) => {
    const wait = { secondsToWaitForCompletion: String(COMMAND_SECONDS) };
    const answer = await submit(name, version, payload, wait);
    const text = await answer.text();
    const outcome: { processed?: boolean; error?: string } =
      answer.ok || text.startsWith("{") ? JSON.parse(text) : {};
    if (!answer.ok || outcome.processed !== true || outcome.error !== undefined) {
      const why = outcome.error ?? text; // without PuppetDB's stack trace
      throw new Error(`PuppetDB did not take ${name} for ${payload.certname}: ${answer.status} ${why}`);
    }
  };
  const common = ({ certname, producer, at = new Date() }: Run) => ({
    certname,
    producer,
    producer_timestamp: at.toISOString(),
    environment: "production",
  });
  const factsOf = (run: Run) => ({ ...common(run), values: { kernel: "Linux" } });
  const ids = () => ({
    transaction_uuid: randomUUID(),
    catalog_uuid: randomUUID(),
    code_id: null,
    job_id: null,
  });

  /** What a test has left there would come after the reset. */
  const untilQueueIsEmpty = async () => {
    const deadline = Date.now() + patient(QUEUE_DEADLINE_MS);
    for (;;) {
      const answer = await fetch(`${url}/status/v1/services/puppetdb-status?level=info`);
      const { status } = (await answer.json()) as { status: { queue_depth: number } };
      if (status.queue_depth === 0) return;
      if (Date.now() > deadline)
        throw new Error(`PuppetDB still has ${status.queue_depth} commands in its queue`);
      await sleep(50);
    }
  };

  return {
    ...address,
    command,
    async reset() {
      await untilQueueIsEmpty();
      // In PuppetDB 8 no key leads from reports to producers.
      await sql("TRUNCATE certnames, producers, environments, fact_paths, packages, reports CASCADE");
    },
    async query(ast) {
      const answer = await fetch(
        `${url}/pdb/query/v4?${new URLSearchParams({ query: JSON.stringify(ast) })}`,
      );
      const text = await answer.text();
      if (answer.status !== 200)
        throw new Error(`PuppetDB answers ${answer.status} to ${JSON.stringify(ast)}: ${text}`);
      return JSON.parse(text);
    },
    async replaceFacts(facts) {
      await command("replace_facts", 5, factsOf(facts));
    },
    async queueFacts(facts) {
      const answer = await submit("replace_facts", 5, factsOf(facts));
      if (!answer.ok) throw new Error(`PuppetDB answers ${answer.status}: ${await answer.text()}`);
      await answer.body?.cancel();
    },
    async replaceCatalog(catalog) {
      await command("replace_catalog", 9, {
        ...common(catalog),
        ...ids(),
        version: String(Date.now()),
        edges: [],
        resources: [],
      });
    },
    async storeReport(report) {
      const { producer_timestamp: time } = common(report);
      await command("store_report", 8, {
        ...common(report),
        ...ids(),
        puppet_version: "7.0.0",
        report_format: 12,
        configuration_version: "1",
        start_time: time,
        end_time: time,
        cached_catalog_status: "not_used",
        status: "unchanged",
        noop: false,
        noop_pending: false,
        corrective_change: false,
        type: "agent",
        resources: [],
        metrics: [],
        logs: [],
      });
    },
    async deactivateNode(certname, at = new Date()) {
      await command("deactivate_node", 3, { certname, producer_timestamp: at.toISOString() });
    },
    async fill(count, producers, reports = 1, minutesAgo = 0) {
      await sql(fillStatements(count, producers, reports, minutesAgo));
    },
  };
}

/** What PuppetDB itself would have written, as far as its queries look at it. */
function fillStatements(
  count: number,
  producers: readonly string[],
  reports: number,
  minutesAgo: number,
): string {
  const names = producers.map((name) => `'${name.replaceAll("'", "''")}'`).join(", ");
  const environment = "(SELECT id FROM environments WHERE environment = 'production')";
  const status = "(SELECT id FROM report_statuses WHERE status = 'unchanged')";
  // At its start PuppetDB makes the partitions of four days before today.
  return `
    BEGIN;
    INSERT INTO environments (environment) VALUES ('production') ON CONFLICT DO NOTHING;
    INSERT INTO report_statuses (status) VALUES ('unchanged') ON CONFLICT DO NOTHING;
    INSERT INTO producers (name) SELECT unnest(ARRAY[${names}]) ON CONFLICT DO NOTHING;
    CREATE TEMPORARY TABLE filler ON COMMIT DROP AS
      SELECT n, 'node-' || lpad(n::text, 7, '0') || '.example' AS certname, producers.id AS producer,
             substring(sha224(('node ' || n)::bytea) FOR 20) AS hash, gen_random_uuid() AS run,
             now() - interval '1 minute' * (${minutesAgo} + 30 * random()) AS at
      FROM generate_series(1, ${count}) AS n
      JOIN producers ON producers.name = (ARRAY[${names}])[1 + n % ${producers.length}];
    INSERT INTO certnames (certname) SELECT certname FROM filler;
    INSERT INTO factsets (certname, timestamp, producer_timestamp, environment_id, producer_id, hash, stable,
                          stable_hash, volatile, paths_hash)
      SELECT certname, at, at, ${environment}, producer, hash, '{"kernel": "Linux"}', hash, '{}', hash
      FROM filler;
    INSERT INTO catalogs (certname, timestamp, producer_timestamp, environment_id, producer_id, hash, api_version,
                          catalog_version, transaction_uuid, catalog_uuid)
      SELECT certname, at, at, ${environment}, producer, hash, 1, '1', run, run FROM filler;
    CREATE TEMPORARY TABLE past ON COMMIT DROP AS
      SELECT filler.*, filler.at - age * interval '95 hours' / ${reports} AS ended,
             substring(sha224((n || ' report ' || age)::bytea) FOR 20) AS report
      FROM filler, generate_series(0, ${reports - 1}) AS age;
    DO $do$
      DECLARE day text;
      BEGIN
        FOR day IN SELECT DISTINCT to_char(ended AT TIME ZONE 'UTC', 'YYYYMMDD') FROM past LOOP
          EXECUTE format($insert$
            INSERT INTO %I (certname, producer_timestamp, start_time, end_time, receive_time, environment_id, status_id,
                            producer_id, hash, puppet_version, report_format, configuration_version, noop,
                            noop_pending, corrective_change, metrics, logs, resources, transaction_uuid)
              SELECT certname, ended, ended, ended, ended, ${environment}, ${status},
                     producer, report, '7.0.0', 12, '1', false,
                     false, false, '[]', '[]', '[]', run
              FROM past WHERE to_char(ended AT TIME ZONE 'UTC', 'YYYYMMDD') = %L$insert$,
            'reports_' || day || 'z', day);
        END LOOP;
      END $do$;
    UPDATE certnames SET latest_report_id = newest.id, latest_report_timestamp = newest.end_time
      FROM (SELECT DISTINCT ON (certname) certname, id, end_time FROM reports ORDER BY certname, end_time DESC) newest
      WHERE newest.certname = certnames.certname;
    COMMIT;
    ANALYZE;`;
}

async function configurePuppetdb(
  parts: PuppetdbParts,
  dir: string,
  { url, tls }: PuppetdbAddress,
  postgres: { port: number; user: string; password: string; database: string },
): Promise<void> {
  const conf = join(dir, "conf.d");
  await mkdir(conf, { recursive: true });
  await mkdir(join(dir, "var"));
  await copyFile(join(parts.configDir, "conf.d/auth.conf"), join(conf, "auth.conf"));
  await writeFile(
    join(dir, "logback.xml"),
    `<configuration>
      <appender name="STDOUT" class="ch.qos.logback.core.ConsoleAppender">
        <encoder><pattern>%d %-5p [%c{2}] %m%n</pattern></encoder>
      </appender>
      <root level="warn"><appender-ref ref="STDOUT"/></root>
    </configuration>`,
  );
  // The pools would take 50 of PostgreSQL's 100 connections.
  await writeFile(
    join(conf, "puppetdb.ini"),
    `[global]
vardir = ${join(dir, "var")}
logging-config = ${join(dir, "logback.xml")}
[database]
subname = //127.0.0.1:${postgres.port}/${postgres.database}
username = ${postgres.user}
password = ${postgres.password}
maximum-pool-size = 10
[command-processing]
threads = 2
[puppetdb]
disable-update-checking = true
[jetty]
host = 127.0.0.1
port = ${new URL(url).port}
ssl-host = 127.0.0.1
ssl-port = ${new URL(tls.url).port}
ssl-ca-cert = ${tls.ca}
ssl-cert = ${join(dirname(tls.ca), "server.pem")}
ssl-key = ${join(dirname(tls.ca), "server.key")}
client-auth = need
`,
  );
}

async function runPuppetdb(parts: PuppetdbParts, dir: string, address: PuppetdbAddress): Promise<Child> {
  // Not -XX:TieredStopAtLevel=1: it saves 1 s here, but large answers would take twice as long as in production.
  const jvm = ["-Xmx512m", "-XX:+UseSerialGC", "-cp", parts.classpath];
  const main = ["clojure.main", "-m", "puppetlabs.puppetdb.core", "services"];
  const config = [
    "--config",
    join(dir, "conf.d"),
    "--bootstrap-config",
    join(parts.configDir, "bootstrap.cfg"),
  ];
  const puppetdb = new Child(parts.java, [...jvm, ...main, ...config], { cwd: dir });
  await puppetdb.untilReady(
    async () => {
      const answer = await fetch(`${address.url}/status/v1/simple`);
      return (await answer.text()) === "running";
    },
    PUPPETDB_DEADLINE_MS,
    100,
  );
  return puppetdb;
}

/** A CA with a certificate for the server (127.0.0.1, localhost) and one for a client, in `<dir>/tls`. */
async function makeCertificates(
  openssl: string,
  parent: string,
): Promise<{ ca: string; cert: string; key: string }> {
  const dir = join(parent, "tls");
  await mkdir(dir);
  // A config of its own, because the machine may have none.
  const config = join(dir, "openssl.cnf");
  await writeFile(config, "[req]\ndistinguished_name = name\n[name]\n");
  const make = async (name: string, subject: string, extension: string, signer: string[]): Promise<void> => {
    const files = ["-keyout", join(dir, `${name}.key`), "-out", join(dir, `${name}.pem`)];
    const about = ["-subj", `/CN=${subject}`, "-addext", extension, "-days", "30"];
    const request = ["req", "-x509", "-config", config, "-newkey", "rsa:2048", "-nodes"];
    await run(openssl, [...request, ...files, ...about, ...signer]);
  };
  const ca = join(dir, "ca.pem");
  const byCa = ["-CA", ca, "-CAkey", join(dir, "ca.key")];
  await make("ca", "sasori test CA", "basicConstraints=critical,CA:TRUE", []);
  await make("server", "puppetdb", "subjectAltName=IP:127.0.0.1,DNS:localhost", byCa);
  await make("client", "sasori", "extendedKeyUsage=clientAuth", byCa);
  return { ca, cert: join(dir, "client.pem"), key: join(dir, "client.key") };
}
