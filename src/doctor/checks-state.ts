// The doctor's look at the PostgreSQL where replicas agree: it is reachable and writable, has a schema that this sasori
// knows, and delivers notifications at once.

import type { Client } from "pg";
import type { Config, StateDatabase } from "../config.js";
import { reason, SasoriError, systemCode } from "../errors.js";
import { newClient, schemaVersion } from "../state/database.js";
import { type Check, CheckError, type Problem, type Verdict, verdict } from "./check.js";

/** A notification takes milliseconds. */
const NEWS_MS = 2_000;
const CLOCK_MS = 5_000;
const CHANNEL = "sasori_doctor";

export function stateDatabaseChecks({ stateDatabase }: Pick<Config, "stateDatabase">): Check[] {
  if (stateDatabase === undefined) return [];
  return [{ name: "state database", where: stateDatabase.where, look: () => look(stateDatabase) }];
}

async function look(options: StateDatabase): Promise<Verdict> {
  const client = await newClient(options);
  client.on("error", () => undefined); // The callers that wait are told.
  try {
    await client.connect();
    return await examine(client, options);
  } catch (error) {
    if (error instanceof SasoriError || error instanceof CheckError) throw error;
    throw new CheckError(reason(error), remedyOf(systemCode(error), options));
  } finally {
    client.end().catch(() => undefined);
  }
}

interface Server {
  version: string;
  standby: boolean;
  schema: string | null;
  creates: boolean | null;
  now: string;
}

async function examine(client: Client, options: StateDatabase): Promise<Verdict> {
  const { rows } = await client.query<Server>(
    `SELECT current_setting('server_version') AS version, pg_is_in_recovery() AS standby, current_schema() AS schema,
            has_schema_privilege(current_schema(), 'CREATE') AS creates,
            round(extract(epoch FROM clock_timestamp()) * 1000)::text AS now`,
  );
  const [server] = rows;
  if (server === undefined) throw new CheckError("it does not answer", "check what listens there");
  const aheadMs = Date.now() - Number(server.now);
  const version = await schemaVersion(client);
  const found = version === 0 ? "no tables yet: the first sasori makes them" : await contentsOf(client);
  const problems = [
    ...(await rightsOf(client, version, server, options)),
    await newsProblem(client),
    Math.abs(aheadMs) < CLOCK_MS
      ? undefined
      : {
          outcome: "warning" as const,
          what: `its clock and this machine's are ${Math.round(Math.abs(aheadMs) / 1_000)} s apart`,
          remedy: "synchronize the clocks of all replicas and of PostgreSQL with NTP",
        },
  ];
  return verdict(`PostgreSQL ${server.version}, ${options.tls ? "TLS" : "no TLS"}, ${found}`, problems);
}

async function contentsOf(client: Client): Promise<string> {
  const { rows } = await client.query<{ routes: string; replicas: string }>(
    `SELECT (SELECT count(*) FROM sasori_state WHERE kind = 'route' AND value IS NOT NULL)::text AS routes,
            (SELECT count(*) FROM sasori_replicas WHERE at > clock_timestamp() - interval '1 minute')::text AS replicas`,
  );
  return `${rows[0]?.routes} registrations and learned routes, ${rows[0]?.replicas} replicas`;
}

async function rightsOf(
  client: Client,
  version: number,
  { standby, schema, creates }: Server,
  { user }: StateDatabase,
): Promise<Problem[]> {
  if (standby)
    return [
      {
        outcome: "failed",
        what: "it is a standby: nobody can write there",
        remedy: "name the primary in SASORI_STATE_URL",
      },
    ];
  if (version === 0) {
    const remedy = `as its owner: GRANT CREATE, USAGE ON SCHEMA ${schema ?? "public"} TO "${user}"`;
    return creates ? [] : [{ outcome: "failed", what: `${user} may not create tables`, remedy }];
  }
  const { rows } = await client.query<{ may: boolean }>(
    `SELECT bool_and(has_table_privilege(name, privilege)) AS may
     FROM unnest('{sasori_state,sasori_replicas}'::text[]) AS name, unnest('{SELECT,INSERT,UPDATE,DELETE}'::text[]) AS privilege`,
  );
  const remedy = `as their owner: GRANT SELECT, INSERT, UPDATE, DELETE ON sasori_state, sasori_replicas TO "${user}"`;
  return rows[0]?.may ? [] : [{ outcome: "failed", what: `${user} may not write sasori's tables`, remedy }];
}

/** A pooler that gives each transaction another connection hears no notification. */
async function newsProblem(client: Client): Promise<Problem | undefined> {
  let timer: NodeJS.Timeout | undefined;
  const isHeard = new Promise<boolean>((resolve) => {
    client.on("notification", () => resolve(true));
    timer = setTimeout(() => resolve(false), NEWS_MS);
  });
  await client.query(`LISTEN ${CHANNEL}`);
  await client.query("SELECT pg_notify($1, '')", [CHANNEL]);
  const heard = await isHeard;
  clearTimeout(timer);
  if (heard) return undefined;
  return {
    outcome: "warning",
    what: "notifications do not arrive, so replicas learn of each other's changes only every few seconds",
    remedy: "connect to PostgreSQL itself, or set the pooler's mode to session",
  };
}

function remedyOf(code: string, { user, database, tls }: StateDatabase): string {
  const remedies: Record<string, string> = {
    "28P01": `correct the password of ${user} in SASORI_STATE_PASSWORD_FILE or ~/.pgpass`,
    "28000": `add a line to pg_hba.conf that lets ${user} in from this host, with${tls ? "" : "out"} TLS`,
    "3D000": `create it: CREATE DATABASE "${database}" OWNER "${user}"`,
    ECONNREFUSED: "start PostgreSQL, let it listen there (listen_addresses), or correct SASORI_STATE_URL",
    ENOTFOUND: "correct the host of SASORI_STATE_URL",
  };
  const tlsRemedy =
    "if that is its certificate: set SASORI_STATE_CA to the CA that signed it, and name the host as the certificate does";
  return (
    remedies[code] ??
    (tls
      ? `${tlsRemedy}; if it speaks no TLS: ?sslmode=disable, on a network of your own`
      : "correct SASORI_STATE_URL")
  );
}
