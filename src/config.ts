// The configuration: environment variables, checked once, all problems reported together.
// This schema is the only place that knows a variable's name, meaning, default and form: docs/reference.md,
// `sasori config` and every message about a wrong value come from it. Nothing else reads a SASORI_ variable.

import { hostname } from "node:os";
import path from "node:path";
import { z } from "zod";
import { Aliases, compile, nameList, type Pattern } from "./aliases.js";
import { quote, reason, SasoriError } from "./errors.js";
import { isMaster } from "./node-map.js";
import { PemFiles, type PemPaths } from "./pem-files.js";
import { isCron } from "./schedule.js";
import { readSecretFileSync } from "./whole-file.js";

/** One Runtime API: a socket path, or an address. `name` is what logs, metrics and reports call it. */
export interface Endpoint {
  name: string;
  connect: { path: string } | { host: string; port: number };
  /** TLS, with a client certificate; `certname` is the name that HAProxy's certificate must have. */
  tls?: { certname: string; files: PemFiles };
}

/** HAProxys behind one DNS name: one for each of its addresses, which come and go. */
export interface EndpointName {
  /** As it is configured. */
  name: string;
  host: string;
  port: number;
  tls?: Endpoint["tls"];
}

/** How many removals a plan may hold without approval: a share of the map, or a number of entries. */
export type RemovalLimit = { percent: number } | { entries: number };

export interface ListenAddress {
  host: string;
  port: number;
}

/** One PuppetDB, and how to reach it. */
export interface PuppetdbServer {
  url: string;
  /** Where several are configured: what names it beside a node that it told. */
  from?: string | undefined;
  certFile?: string | undefined;
  keyFile?: string | undefined;
  caFile?: string | undefined;
  tokenFile?: string | undefined;
  observations?: readonly ObservationKind[] | undefined;
}

const readable = (file: string, context: z.RefinementCtx): string => {
  secretIn(file, context);
  return path.resolve(file);
};

const token = (file: string, context: z.RefinementCtx): string => {
  // What is in it must not stand in a message.
  if (!/^[\x21-\x7e]+$/.test(secretIn(file, context)?.trim() ?? "-"))
    context.addIssue({ code: "custom", message: "a file with one word of ASCII characters" });
  return path.resolve(file);
};

const tokenFile = z.string().transform(token);

/** One file for every estate, or one for each in their order; an empty one is none. */
const filesOfEstates = (read: typeof readable) =>
  z.string().transform((text, context) => {
    const files = text.split(",").map((part) => part.trim());
    return files.map((file) => (file === "" ? undefined : read(file, context)));
  });

function secretIn(file: string, context: z.RefinementCtx): string | undefined {
  try {
    return readSecretFileSync(file);
  } catch (error) {
    context.addIssue({ code: "custom", message: `a file that sasori can read (${reason(error)})` });
    return undefined;
  }
}

const fail = (context: z.RefinementCtx, expected: string): never => {
  context.addIssue({ code: "custom", message: expected });
  return z.NEVER;
};

/** Estates separated by commas, and in each the PuppetDBs that have the same nodes, separated by bars. */
const puppetdbUrls = z.string().transform((text, context): string[][] => {
  const estates = text
    .split(",")
    .map((estate) => estate.split("|").map((one) => puppetdbUrl(one.trim(), context)));
  const all = estates.flat();
  return new Set(all).size === all.length ? estates : fail(context, "each PuppetDB once");
});

function puppetdbUrl(text: string, context: z.RefinementCtx): string {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url?.protocol !== "http:" && url?.protocol !== "https:") return fail(context, "an http or https URL");
  if (url.username !== "" || url.password !== "") {
    return fail(context, "a URL without user and password (use SASORI_PUPPETDB_TOKEN_FILE)");
  }
  if (url.search !== "" || url.hash !== "") return fail(context, "a base URL without query or fragment");
  return url.href.replace(/\/+$/, "");
}

/** What a URL of PostgreSQL says, without files and defaults. */
interface StateUrl {
  host: string;
  port: number;
  user: string;
  database: string;
  sslmode: "disable" | "verify-full" | undefined;
}

const STATE_URL = "postgres://user@host:5432/database";

const stateUrl = z.string().transform((text, context): StateUrl => {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url?.protocol !== "postgres:" && url?.protocol !== "postgresql:") return fail(context, STATE_URL);
  if (url.password !== "")
    return fail(context, `${STATE_URL} without a password (use SASORI_STATE_PASSWORD_FILE)`);
  const { host: socket, sslmode, ...others } = Object.fromEntries(url.searchParams);
  const [other] = Object.keys(others);
  if (other !== undefined)
    return fail(context, `no other parameter than sslmode and host, not ${quote(other)}`);
  if (sslmode !== undefined && sslmode !== "disable" && sslmode !== "verify-full")
    return fail(context, "sslmode=verify-full or sslmode=disable");
  const [hostname, database, user] = [url.hostname, url.pathname.slice(1), url.username].map(decoded);
  const host = socket ?? hostname?.replace(/^\[|\]$/g, "");
  if (!host || !database || !user) return fail(context, STATE_URL);
  return { host, port: url.port === "" ? 5432 : Number(url.port), user, database, sslmode };
});

/** Undefined for what is no text: a "%" without its two digits. */
function decoded(text: string): string | undefined {
  try {
    return decodeURIComponent(text);
  } catch {
    return undefined;
  }
}

const port = (text: string | undefined): number | undefined =>
  text !== undefined && /^\d{1,5}$/.test(text) && Number(text) <= 65535 ? Number(text) : undefined;

const ENDPOINT = /^(tcp|tls)(\+dns)?:\/\/(\[[^\]]+\]|[^:/]+):(\d+)$/;

const endpoints = z.string().transform((text, context): EndpointSetting[] => {
  if (text.trim() === "none") return [];
  const parts = text.split(",").map((part) => part.trim());
  if (new Set(parts).size !== parts.length) return fail(context, "each endpoint once");
  return parts.map((name) => {
    if (name.startsWith("/")) return { name, connect: { path: name } };
    const [, scheme, dns, host = "", digits] = ENDPOINT.exec(name) ?? [];
    const number = port(digits);
    if (scheme === undefined || number === undefined) {
      return fail(
        context,
        `absolute socket paths, tcp://host:port or tls://host:port, separated by commas, or "none" to write the file only (not ${quote(name)})`,
      );
    }
    const connect = { host: host.replace(/^\[|\]$/g, ""), port: number };
    return { name, connect, isTls: scheme === "tls", isFollowed: dns !== undefined };
  });
});

/** An endpoint as SASORI_HAPROXY writes it. */
interface EndpointSetting extends Pick<Endpoint, "name" | "connect"> {
  isTls?: boolean;
  /** All addresses of the name are HAProxys, now and later. */
  isFollowed?: boolean;
}

const aliases = z.string().transform((text, context): Aliases => {
  try {
    return Aliases.parse(text);
  } catch (error) {
    const what =
      "producer=master pairs separated by commas, each producer once, where a producer may be a pattern (RE2)";
    return fail(context, `${what}; ${reason(error)}`);
  }
});

const absolutePath = z.string().refine((text) => path.isAbsolute(text) && !text.endsWith("/"), {
  message: "the absolute path of a file",
});

const pattern = z.string().transform((text, context): Pattern => {
  try {
    return compile(text);
  } catch (error) {
    return fail(context, `a regular expression as RE2 takes it (${reason(error)})`);
  }
});

const backends = z.string().refine(
  (text) => {
    try {
      return nameList(text) !== undefined;
    } catch {
      return false;
    }
  },
  {
    message:
      "the name of an HAProxy backend, or with SASORI_ROUTE_TO=backends a list of names and patterns (RE2)",
  },
);

const probePath = z.string().refine((text) => /^\/[!-~]*$/.test(text) && text.includes("{certname}"), {
  message: "a path with {certname} in it",
});

const cron = z.string().refine(isCron, { message: "a cron expression of 5 or 6 fields, or @hourly, @daily" });

const OBSERVATIONS = ["facts", "reports"] as const;
type ObservationKind = (typeof OBSERVATIONS)[number];

const observations = z.string().transform((text, context): readonly ObservationKind[] => {
  const kinds = new Set(text.split(",").map((part) => part.trim()));
  const known = OBSERVATIONS.filter((kind) => kinds.has(kind));
  return known.length === kinds.size ? known : fail(context, '"facts", "reports", or "facts,reports"');
});

const removalLimit = z.string().transform((text, context): RemovalLimit => {
  const match = /^(\d{1,9})(%?)$/.exec(text);
  const number = Number(match?.[1]);
  if (match === null || (match[2] === "%" && number > 100)) {
    return fail(context, "a share from 0% to 100%, or a number of entries");
  }
  return match[2] === "%" ? { percent: number } : { entries: number };
});

const listenAddress = z.string().transform((text, context): ListenAddress => {
  const match = /^(\[[^\]]+\]|[^:]+):(\d+)$/.exec(text);
  const number = port(match?.[2]);
  if (match?.[1] === undefined || number === undefined) return fail(context, "host:port");
  return { host: match[1].replace(/^\[|\]$/g, ""), port: number };
});

const LOG_LEVELS = ["fatal", "error", "warn", "info", "debug", "trace", "silent"] as const;

const about = (meaning: string, example: string, shownDefault?: string) => ({
  description: meaning,
  example,
  shownDefault,
});

/** The variables, in the order of docs/reference.md. Descriptions and examples are shown to people. */
export const Env = z.object({
  SASORI_PUPPETDB_URL: puppetdbUrls.meta(
    about(
      "base URL of PuppetDB, http or https; several as in docs/estates.md: `,` between estates, a bar between PuppetDBs with the same nodes",
      "https://puppetdb.example.com:8081",
      "required",
    ),
  ),
  SASORI_PUPPETDB_CERT: filesOfEstates(readable)
    .optional()
    .meta(
      about(
        "client certificate for PuppetDB, PEM; read again after a renewal. Of several estates: one file for all, or one for each",
        "/etc/puppetlabs/puppet/ssl/certs/sasori.pem",
      ),
    ),
  SASORI_PUPPETDB_KEY: filesOfEstates(readable)
    .optional()
    .meta(
      about("private key of that certificate, PEM", "/etc/puppetlabs/puppet/ssl/private_keys/sasori.pem"),
    ),
  SASORI_PUPPETDB_CA: filesOfEstates(readable)
    .optional()
    .meta(about("CA that signed PuppetDB's certificate, PEM", "/etc/puppetlabs/puppet/ssl/certs/ca.pem")),
  SASORI_PUPPETDB_TOKEN_FILE: filesOfEstates(token)
    .optional()
    .meta(
      about("file with an RBAC token for PuppetDB, sent as `X-Authentication`", "/etc/sasori/puppetdb.token"),
    ),
  SASORI_OBSERVATIONS: observations
    .prefault("facts,reports")
    .meta(
      about(
        "which submissions show a node's master: `facts`, `reports` or both. Set `facts` if `report_server` is another machine",
        "facts",
        "facts,reports",
      ),
    ),
  SASORI_HAPROXY: endpoints.meta(
    about(
      "Runtime API endpoints, separated by commas: socket paths, `tls://host:port`, `tcp://host:port`. `tls+dns://` and `tcp+dns://` mean every address of a name. `none`: write the map file only",
      "/run/haproxy/admin.sock",
      "required",
    ),
  ),
  SASORI_HAPROXY_CA: z
    .string()
    .transform(readable)
    .optional()
    .meta(
      about(
        "CA that signed the certificates of the HAProxys at `tls://`, PEM",
        "/etc/puppetlabs/puppet/ssl/certs/ca.pem",
      ),
    ),
  SASORI_HAPROXY_CERT: z
    .string()
    .transform(readable)
    .optional()
    .meta(
      about(
        "client certificate for the HAProxys at `tls://`, PEM",
        "/etc/puppetlabs/puppet/ssl/certs/sasori.pem",
      ),
    ),
  SASORI_HAPROXY_KEY: z
    .string()
    .transform(readable)
    .optional()
    .meta(
      about("private key of that certificate, PEM", "/etc/puppetlabs/puppet/ssl/private_keys/sasori.pem"),
    ),
  SASORI_ROUTE_TO: z
    .enum(["servers", "backends"], { error: "servers or backends" })
    .default("servers")
    .meta(
      about(
        "what the map's values name: servers of one backend, or `backends`, where each master is a pool of servers",
        "backends",
      ),
    ),
  SASORI_BACKEND: backends
    .default("puppet")
    .meta(
      about(
        "HAProxy backend whose servers are the masters. With `SASORI_ROUTE_TO=backends`: names and patterns (RE2) of the backends that are masters; by default those in `SASORI_MASTER_ALIASES`",
        "fra,lon,puppet-[a-z]+",
      ),
    ),
  SASORI_MAP_FILE: absolutePath.meta(
    about("path of the map file, as sasori sees it", "/var/lib/sasori/node-master.map", "required"),
  ),
  SASORI_MAP_NAME: z
    .string()
    .refine((text) => text !== "", { message: "a file name as HAProxy's configuration writes it" })
    .optional()
    .meta(
      about(
        "the map's name in HAProxy's configuration",
        "/etc/haproxy/maps/node-master.map",
        "the map with the same base name as the map file",
      ),
    ),
  SASORI_MASTER_ALIASES: aliases
    .optional()
    .meta(
      about(
        "puppetservers whose server or backend in HAProxy has another name. Other text than a plain name is a pattern for the whole name (RE2); plain names come first",
        "puppet1.corp=master1,puppet-fra[0-9]+\\.corp=fra",
      ),
    ),
  SASORI_NEW_MASTERS: pattern
    .optional()
    .meta(
      about(
        "regular expression (RE2) for whole certnames. A matching puppetserver without an HAProxy server gets one at run time",
        "puppet[0-9]+\\.corp",
      ),
    ),
  SASORI_NEW_MASTER_PORT: z
    .string()
    .transform((text, context) => port(text) ?? fail(context, "a port"))
    .prefault("8140")
    .meta(about("port of the servers that are added at run time", "8140")),
  SASORI_NEW_MASTER_LIMIT: z
    .string()
    .transform((text, context) =>
      /^\d{1,3}$/.test(text) ? Number(text) : fail(context, "a number up to 999"),
    )
    .prefault("16")
    .meta(about("maximum number of servers that are added at run time", "16")),
  SASORI_NEW_MASTER_OPTIONS: z
    .string()
    .refine((text) => /^[A-Za-z0-9 ._:/@-]*$/.test(text), {
      message: "words of HAProxy's `add server` command",
    })
    .default("check inter 2s downinter 2s fall 2 rise 1 maxconn 50 maxqueue 100 weight 0")
    .meta(
      about(
        "options of `add server`, because `default-server` does not apply at run time. With `ssl`, a server line of the configuration must use the same `ca-file`",
        "check maxconn 20 weight 0 ssl verify required ca-file /etc/ca.pem",
      ),
    ),
  SASORI_PROBE_PATH: probePath
    .optional()
    .meta(
      about(
        "path at which a master answers 200 for a node it has. Used when a route was wrong and PuppetDB has nothing newer. Plain HTTP without SASORI_PROBE_CA",
        "/nodes/{certname}",
      ),
    ),
  SASORI_PROBE_CA: z
    .string()
    .transform(readable)
    .optional()
    .meta(
      about(
        "CA of the masters' certificates, PEM. Masters are then asked by TLS; their certificate must have their host, server name or alias",
        "/etc/puppetlabs/puppet/ssl/certs/ca.pem",
      ),
    ),
  SASORI_PROBE_CERT: z
    .string()
    .transform(readable)
    .optional()
    .meta(about("client certificate for the masters, PEM", "/etc/puppetlabs/puppet/ssl/certs/sasori.pem")),
  SASORI_PROBE_KEY: z
    .string()
    .transform(readable)
    .optional()
    .meta(
      about("private key of that certificate, PEM", "/etc/puppetlabs/puppet/ssl/private_keys/sasori.pem"),
    ),
  SASORI_SCHEDULE: cron
    .default("*/5 * * * * *")
    .meta(about("when to look for changes: cron, in local time (`TZ`)", "*/5 * * * * *")),
  SASORI_FULL_SCHEDULE: cron
    .default("*/15 * * * *")
    .meta(
      about("when to read everything, and compare it with the file and every live map: cron", "*/15 * * * *"),
    ),
  SASORI_MAX_REMOVED: removalLimit
    .prefault("10%")
    .meta(
      about(
        "the guard: more removals than this wait for approval. A share of the map (10 entries always pass), or a number",
        "10%",
        "10%",
      ),
    ),
  SASORI_PRIORITY_FILE: absolutePath
    .optional()
    .meta(about("the gateway's second map, for `sasori priority`", "/var/lib/sasori/priority.map")),
  SASORI_LISTEN: listenAddress
    .prefault("127.0.0.1:9180")
    .meta(about("address of the page, the HTTP API and the metrics", "127.0.0.1:9180", "127.0.0.1:9180")),
  SASORI_API_TOKEN_FILE: tokenFile
    .optional()
    .meta(
      about(
        "file with the bearer token for calls that change something. Required unless SASORI_LISTEN is a loopback address",
        "/etc/sasori/api.token",
      ),
    ),
  SASORI_STATE_FILE: absolutePath
    .optional()
    .meta(
      about(
        "file with registrations and learned routes",
        "/var/lib/sasori/state.json",
        "name of the map file, plus .state.json",
      ),
    ),
  SASORI_SYSLOG_LISTEN: listenAddress
    .optional()
    .meta(
      about(
        "address, UDP and TCP, for log lines of puppetservers: a node that moved is then found at once",
        "127.0.0.1:5514",
      ),
    ),
  SASORI_REPORTS_LISTEN: listenAddress
    .optional()
    .meta(
      about(
        "address, TLS, for reports of puppetservers (report processor `http`): the same at the end of a run",
        "0.0.0.0:9181",
      ),
    ),
  SASORI_REPORTS_CA: z
    .string()
    .transform(readable)
    .optional()
    .meta(
      about(
        "the CA of the puppetservers that may send reports, PEM",
        "/etc/puppetlabs/puppet/ssl/certs/ca.pem",
      ),
    ),
  SASORI_REPORTS_CERT: z
    .string()
    .transform(readable)
    .optional()
    .meta(about("the certificate that they see, PEM", "/etc/puppetlabs/puppet/ssl/certs/sasori.pem")),
  SASORI_REPORTS_KEY: z
    .string()
    .transform(readable)
    .optional()
    .meta(
      about("the private key of that certificate, PEM", "/etc/puppetlabs/puppet/ssl/private_keys/sasori.pem"),
    ),
  SASORI_STATE_URL: stateUrl
    .optional()
    .meta(
      about(
        "a PostgreSQL database where replicas of sasori agree on registrations, homes, removals and approvals; the state file stays beside it; TLS beyond this host, unless `?sslmode=disable`",
        "postgres://sasori@pg.example.com/sasori",
      ),
    ),
  SASORI_STATE_PASSWORD_FILE: z
    .string()
    .transform(readable)
    .optional()
    .meta(
      about(
        "file with its password; without it `~/.pgpass` and PGPASSFILE are looked at",
        "/etc/sasori/state.password",
      ),
    ),
  SASORI_STATE_CA: z
    .string()
    .transform(readable)
    .optional()
    .meta(
      about(
        "the CA of PostgreSQL's certificate, PEM; without it those of Node",
        "/etc/sasori/postgres-ca.pem",
      ),
    ),
  SASORI_STATE_CERT: z
    .string()
    .transform(readable)
    .optional()
    .meta(about("client certificate for PostgreSQL, PEM", "/etc/puppetlabs/puppet/ssl/certs/sasori.pem")),
  SASORI_STATE_KEY: z
    .string()
    .transform(readable)
    .optional()
    .meta(
      about("the private key of that certificate, PEM", "/etc/puppetlabs/puppet/ssl/private_keys/sasori.pem"),
    ),
  SASORI_REPLICA: z
    .string()
    .refine((text) => /^[!-~]{1,128}$/.test(text), {
      message: "a name of up to 128 characters without blanks",
    })
    .optional()
    .meta(
      about(
        "the name of this replica, for all replicas to see",
        "gw1.example.com",
        "this host's name and the port of SASORI_LISTEN",
      ),
    ),
  SASORI_LOG_LEVEL: z
    .enum(LOG_LEVELS, { error: `one of ${LOG_LEVELS.join(", ")}` })
    .default("info")
    .meta(about(`log level: ${LOG_LEVELS.join(", ")}`, "info")),
});

/** How PostgreSQL is reached; `where` is what logs and messages call it. */
export interface StateDatabase {
  where: string;
  host: string;
  port: number;
  user: string;
  database: string;
  tls: boolean;
  passwordFile?: string | undefined;
  caFile?: string | undefined;
  certFile?: string | undefined;
  keyFile?: string | undefined;
  replica: string;
}

export interface Config {
  /** The estates, and in each the PuppetDBs that have the same nodes: one is asked, the next one when it fails. */
  puppetdb: readonly (readonly PuppetdbServer[])[];
  haproxy: readonly Endpoint[];
  /** More HAProxys, as DNS names them. */
  haproxyNames?: readonly EndpointName[] | undefined;
  /** Whose servers are the masters. With pools it is only what people wrote of those. */
  backend: string;
  /** The map's values name backends, each a pool of servers: those that it matches. */
  pools?: Pattern | undefined;
  mapFile: string;
  mapName?: string | undefined;
  masterAliases: Aliases;
  newMasters?: { pattern: Pattern; port: number; limit: number; options: string } | undefined;
  probePath?: string | undefined;
  /** With it masters are asked by TLS. */
  probeTls?: PemPaths | undefined;
  schedule: string;
  fullSchedule: string;
  maxRemoved: RemovalLimit;
  priorityFile?: string | undefined;
  listen: ListenAddress;
  apiTokenFile?: string | undefined;
  /** Where hints are taken that a node may have moved. */
  syslogListen?: ListenAddress | undefined;
  reports?: (ListenAddress & { tls: PemPaths }) | undefined;
  stateFile: string;
  /** Where replicas agree. */
  stateDatabase?: StateDatabase | undefined;
  /** What other replicas call this one. */
  replica: string;
  logLevel: (typeof LOG_LEVELS)[number];
}

type Environment = Readonly<Record<string, string | undefined>>;

/** Throws `CONFIG_INVALID` naming every wrong, missing, contradictory or unknown variable at once. */
export function readConfig(environment: Environment): Config {
  const { env, problems } = tidy(environment);
  const parsed = Env.safeParse(env);
  problems.push(...problemsOf(parsed.error, env), ...contradictions(env));
  if (problems.length > 0 || !parsed.success) {
    throw invalid(problems);
  }
  return toConfig(parsed.data, env);
}

const problemsOf = (
  error: z.ZodError | undefined,
  env: Readonly<Record<string, string | undefined>>,
): string[] => error?.issues.map(({ path, message }) => problem(String(path[0]), message, env)) ?? [];

const invalid = (problems: readonly string[]): SasoriError =>
  new SasoriError(
    "CONFIG_INVALID",
    `the configuration is not valid:\n${problems.map((line) => `  ${line}\n`).join("")}`.trimEnd(),
  );

const REQUIRED = ["SASORI_PUPPETDB_URL", "SASORI_HAPROXY", "SASORI_MAP_FILE"];

/**
 * What it takes to ask the running daemon. The rest concerns the daemon only: an operator's shell often has none of it.
 * Throws `CONFIG_INVALID` for a wrong SASORI_LISTEN and for unknown names. Then it names all other problems too, but not
 * what is missing where nothing of it is set.
 */
export function readAddress(
  environment: Readonly<Record<string, string | undefined>>,
): Pick<Config, "listen" | "apiTokenFile"> {
  const { env, problems } = tidy(environment);
  const parsed = Env.shape.SASORI_LISTEN.safeParse(env.SASORI_LISTEN);
  if (problems.length > 0 || !parsed.success) {
    const isSet = REQUIRED.some((name) => env[name] !== undefined);
    const { error } = Env.safeParse(env);
    const issues = error?.issues.filter(({ path }) => isSet || !REQUIRED.includes(String(path[0])));
    throw invalid([
      ...problems,
      ...problemsOf(issues && new z.ZodError(issues), env),
      ...contradictions(env),
    ]);
  }
  return { listen: parsed.data, apiTokenFile: env.SASORI_API_TOKEN_FILE };
}

function toConfig(env: z.output<typeof Env>, given: Environment): Config {
  return {
    puppetdb: toPuppetdbs(env),
    ...toEndpoints(env),
    ...backendOf(env, given),
    mapFile: env.SASORI_MAP_FILE,
    mapName: env.SASORI_MAP_NAME,
    masterAliases: env.SASORI_MASTER_ALIASES ?? new Aliases(),
    newMasters: env.SASORI_NEW_MASTERS && {
      pattern: env.SASORI_NEW_MASTERS,
      port: env.SASORI_NEW_MASTER_PORT,
      limit: env.SASORI_NEW_MASTER_LIMIT,
      options: env.SASORI_NEW_MASTER_OPTIONS,
    },
    probePath: env.SASORI_PROBE_PATH,
    probeTls:
      env.SASORI_PROBE_CA === undefined
        ? undefined
        : { caFile: env.SASORI_PROBE_CA, certFile: env.SASORI_PROBE_CERT, keyFile: env.SASORI_PROBE_KEY },
    schedule: env.SASORI_SCHEDULE,
    fullSchedule: env.SASORI_FULL_SCHEDULE,
    maxRemoved: env.SASORI_MAX_REMOVED,
    priorityFile: env.SASORI_PRIORITY_FILE,
    listen: env.SASORI_LISTEN,
    apiTokenFile: env.SASORI_API_TOKEN_FILE,
    syslogListen: env.SASORI_SYSLOG_LISTEN,
    reports: toReports(env),
    stateFile: env.SASORI_STATE_FILE ?? `${env.SASORI_MAP_FILE}.state.json`,
    stateDatabase: toStateDatabase(env),
    replica: replicaOf(env),
    logLevel: env.SASORI_LOG_LEVEL,
  };
}

function toReports(env: z.output<typeof Env>): Config["reports"] {
  const { SASORI_REPORTS_LISTEN: listen, SASORI_REPORTS_CA: caFile } = env;
  if (listen === undefined || caFile === undefined) return undefined;
  const { SASORI_REPORTS_CERT: certFile, SASORI_REPORTS_KEY: keyFile } = env;
  return { ...listen, tls: { caFile, certFile, keyFile } };
}

const replicaOf = (env: z.output<typeof Env>): string =>
  env.SASORI_REPLICA ?? `${hostname()}:${env.SASORI_LISTEN.port}`;

function toStateDatabase(env: z.output<typeof Env>): StateDatabase | undefined {
  if (env.SASORI_STATE_URL === undefined) return undefined;
  const { sslmode, ...place } = env.SASORI_STATE_URL;
  const { host, port, user, database } = place;
  const isHere = isLoopback(host) || host.startsWith("/");
  const isTold = sslmode === "verify-full" || env.SASORI_STATE_CA !== undefined;
  return {
    ...place,
    where: `postgres://${user}@${host.includes(":") ? `[${host}]` : host}:${port}/${database}`,
    tls: sslmode !== "disable" && (isTold || !isHere),
    passwordFile: env.SASORI_STATE_PASSWORD_FILE,
    caFile: env.SASORI_STATE_CA,
    certFile: env.SASORI_STATE_CERT,
    keyFile: env.SASORI_STATE_KEY,
    replica: replicaOf(env),
  };
}

function toEndpoints(env: z.output<typeof Env>): Pick<Config, "haproxy" | "haproxyNames"> {
  const { SASORI_HAPROXY_CA: caFile, SASORI_HAPROXY_CERT: certFile, SASORI_HAPROXY_KEY: keyFile } = env;
  const files = caFile === undefined ? undefined : new PemFiles({ caFile, certFile, keyFile });
  const [haproxy, haproxyNames]: [Endpoint[], EndpointName[]] = [[], []];
  for (const { name, connect, isTls, isFollowed } of env.SASORI_HAPROXY) {
    const tls = isTls && files && "host" in connect ? { tls: { certname: connect.host, files } } : {};
    if (isFollowed && "host" in connect) haproxyNames.push({ name, ...connect, ...tls });
    else haproxy.push({ name, connect, ...tls });
  }
  return { haproxy, haproxyNames };
}

/** Who writes aliases to backends need not name those again. */
function backendOf(env: z.output<typeof Env>, given: Environment): Pick<Config, "backend" | "pools"> {
  if (env.SASORI_ROUTE_TO === "servers") return { backend: env.SASORI_BACKEND };
  const named = env.SASORI_MASTER_ALIASES?.pairs.map(([, backend]) => backend) ?? [];
  const backend = given.SASORI_BACKEND ?? [...new Set(named)].join(",");
  return { backend, pools: nameList(backend) };
}

function toPuppetdbs(env: z.output<typeof Env>): Config["puppetdb"] {
  const isOneOfSeveral = env.SASORI_PUPPETDB_URL.flat().length > 1;
  return env.SASORI_PUPPETDB_URL.map((urls, estate) => {
    const fileOf = (files: (string | undefined)[] = []) => (files.length > 1 ? files[estate] : files[0]);
    return urls.map((url) => ({
      url,
      ...(isOneOfSeveral && { from: url }),
      // Beside one that is reached by TLS there may be one that is not.
      ...(url.startsWith("https:") && {
        certFile: fileOf(env.SASORI_PUPPETDB_CERT),
        keyFile: fileOf(env.SASORI_PUPPETDB_KEY),
        caFile: fileOf(env.SASORI_PUPPETDB_CA),
      }),
      tokenFile: fileOf(env.SASORI_PUPPETDB_TOKEN_FILE),
      observations: env.SASORI_OBSERVATIONS,
    }));
  });
}

export interface Variable {
  name: string;
  meaning: string;
  example: string;
  /** The value when it is not set, or words that say what happens then. */
  default: string;
}

/** The variables in their order, for help texts and messages. */
export function describeVariables(): Variable[] {
  return Object.entries(Env.shape).map(([name, schema]) => {
    const { description, example, shownDefault } = schema.meta() as ReturnType<typeof about>;
    return { name, default: shownDefault ?? (defaultOf(schema) || "none"), meaning: description, example };
  });
}

function problem(name: string, expected: string, env: Readonly<Record<string, string | undefined>>): string {
  const value = env[name];
  const example = describeVariables().find((variable) => variable.name === name)?.example ?? "";
  const found = value === undefined ? "is not set" : `is ${quote(withoutPassword(value), 200)}`;
  const wanted = value === undefined ? "it is required" : `expected ${expected}`;
  return `${name} ${found}: ${wanted}, for example ${name}=${quote(example)}`;
}

/** Whoever puts a password, or a token as a user, into a URL does not want it in a log. */
const withoutPassword = (text: string) =>
  text.replace(/(:\/\/)[^/]*@/g, "$1…@").replace(/\b(\w*passw\w*=)[^&#,]*/gi, "$1…");

/** What is wrong between variables, as far as each of them says something. */
function contradictions(env: Environment): string[] {
  const problems = [...poolProblems(env), ...puppetdbContradictions(env)];
  const { SASORI_HAPROXY_CA: haproxyCa, SASORI_HAPROXY_CERT: haproxyCert } = env;
  const isTls = /(^|,)\s*tls(\+dns)?:/.test(env.SASORI_HAPROXY ?? "");
  if ((haproxyCert === undefined) !== (env.SASORI_HAPROXY_KEY === undefined)) {
    problems.push("SASORI_HAPROXY_CERT and SASORI_HAPROXY_KEY belong together: set both or neither");
  }
  if (isTls && haproxyCa === undefined) {
    problems.push(
      "SASORI_HAPROXY has a tls:// endpoint: set SASORI_HAPROXY_CA, by which its certificate is checked",
    );
  }
  if (!isTls && haproxyCa !== undefined) {
    problems.push("SASORI_HAPROXY_CA is set, but SASORI_HAPROXY has no tls:// endpoint");
  }
  const { SASORI_PROBE_CA: probeCa, SASORI_PROBE_CERT: probeCert, SASORI_PROBE_KEY: probeKey } = env;
  if ((probeCert === undefined) !== (probeKey === undefined)) {
    problems.push("SASORI_PROBE_CERT and SASORI_PROBE_KEY belong together: set both or neither");
  }
  if (probeCert !== undefined && probeCa === undefined) {
    problems.push("SASORI_PROBE_CERT needs SASORI_PROBE_CA: without that, masters are asked by plain HTTP");
  }
  if (probeCa !== undefined && env.SASORI_PROBE_PATH === undefined) {
    problems.push("SASORI_PROBE_CA needs SASORI_PROBE_PATH: without that, no master is asked");
  }
  const reports = ["LISTEN", "CA", "CERT", "KEY"].map((part) => `SASORI_REPORTS_${part}`);
  const missing = reports.filter((name) => env[name] === undefined);
  if (missing.length > 0 && missing.length < reports.length) {
    problems.push(`${reports.join(", ")} belong together: set ${missing.join(" and ")} too, or none of them`);
  }
  const { SASORI_STATE_URL: state, SASORI_STATE_CERT: stateCert, SASORI_STATE_KEY: stateKey } = env;
  if ((stateCert === undefined) !== (stateKey === undefined)) {
    problems.push("SASORI_STATE_CERT and SASORI_STATE_KEY belong together: set both or neither");
  }
  for (const name of ["SASORI_STATE_PASSWORD_FILE", "SASORI_STATE_CA", "SASORI_STATE_CERT"])
    if (env[name] !== undefined && state === undefined) problems.push(`${name} needs SASORI_STATE_URL`);
  if (env.SASORI_STATE_CA !== undefined && state?.includes("sslmode=disable")) {
    problems.push("SASORI_STATE_CA is set, and SASORI_STATE_URL says sslmode=disable: leave one of them out");
  }
  const listen = listenAddress.safeParse(env.SASORI_LISTEN ?? "127.0.0.1:0").data;
  if (listen !== undefined && !isLoopback(listen.host) && env.SASORI_API_TOKEN_FILE === undefined) {
    problems.push(
      `SASORI_LISTEN is beyond loopback (${quote(listen.host)}): set SASORI_API_TOKEN_FILE, or listen on 127.0.0.1`,
    );
  }
  const files = [env.SASORI_MAP_FILE, env.SASORI_STATE_FILE, env.SASORI_PRIORITY_FILE].filter((file) => file);
  if (new Set(files.map((file) => path.normalize(file ?? ""))).size !== files.length) {
    problems.push("SASORI_MAP_FILE, SASORI_STATE_FILE and SASORI_PRIORITY_FILE must be different files");
  }
  const name = env.SASORI_MAP_NAME ?? env.SASORI_MAP_FILE;
  const { SASORI_PRIORITY_FILE: priority, SASORI_MAP_FILE: map } = env;
  // HAProxy is asked for the priority map by its base name: nodes' masters and classes would get into one map.
  if (name && priority && map !== priority && path.basename(name) === path.basename(priority)) {
    const which = env.SASORI_MAP_NAME === undefined ? "SASORI_MAP_FILE" : "SASORI_MAP_NAME";
    problems.push(
      `${which} and SASORI_PRIORITY_FILE have the same base name (${quote(path.basename(name))}): they must be different maps`,
    );
  }
  return problems;
}

function poolProblems(env: Environment): string[] {
  const { SASORI_BACKEND: backend, SASORI_MASTER_ALIASES: aliases } = env;
  const problems: string[] = [];
  if (env.SASORI_ROUTE_TO !== "backends") {
    if (backend !== undefined && !isMaster(backend) && Env.shape.SASORI_BACKEND.safeParse(backend).success)
      problems.push(
        `SASORI_BACKEND is ${quote(backend)}: expected the name of one HAProxy backend; where the masters are backends, set SASORI_ROUTE_TO=backends`,
      );
    return problems;
  }
  if (backend === undefined && aliases === undefined)
    problems.push(
      "SASORI_ROUTE_TO=backends needs SASORI_BACKEND, the names of the backends that are masters, or SASORI_MASTER_ALIASES that name them",
    );
  if (env.SASORI_NEW_MASTERS !== undefined)
    problems.push(
      "SASORI_NEW_MASTERS does not go with SASORI_ROUTE_TO=backends: it adds servers to one backend, and HAProxy cannot add a backend at run time",
    );
  return problems;
}

function puppetdbContradictions(env: Environment): string[] {
  const problems: string[] = [];
  const url = env.SASORI_PUPPETDB_URL ?? "";
  const estates = url.split(",").length;
  const listOf = (name: string) => (env[name] ?? "").split(",").map((file) => file.trim());
  const [certs, keys] = [listOf("SASORI_PUPPETDB_CERT"), listOf("SASORI_PUPPETDB_KEY")];
  if (certs.length !== keys.length || certs.some((file, estate) => (file === "") !== (keys[estate] === "")))
    problems.push("SASORI_PUPPETDB_CERT and SASORI_PUPPETDB_KEY belong together: set both or neither");
  for (const part of ["CERT", "KEY", "CA", "TOKEN_FILE"]) {
    const count = listOf(`SASORI_PUPPETDB_${part}`).length;
    if (url !== "" && count > 1 && count !== estates)
      problems.push(
        `SASORI_PUPPETDB_${part} names ${count} files and SASORI_PUPPETDB_URL ${estates === 1 ? "one estate" : `${estates} estates`}: name one file for all, or one for each (see docs/estates.md)`,
      );
  }
  const isSet = ["CERT", "KEY", "CA"].some((part) => env[`SASORI_PUPPETDB_${part}`] !== undefined);
  if (isSet && url !== "" && !/(^|[,|])\s*(?!http:)/.test(url))
    problems.push(`SASORI_PUPPETDB_URL is ${quote(url)}: certificates need an https URL`);
  return problems;
}

function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || /^127(\.\d{1,3}){3}$/.test(host);
}

/** What is set, and what is wrong with it before it is looked at. */
function tidy(environment: Readonly<Record<string, string | undefined>>) {
  // Compose and systemd pass an unset variable as an empty one.
  const set = Object.entries(environment).filter(([, value]) => value !== "");
  const env = Object.fromEntries(set.map(([name, value]) => [name, value?.replace(/\r$/, "")]));
  const problems = unknownNames(env);
  for (const [name, value] of set)
    if (name.startsWith("SASORI_") && value?.endsWith("\r"))
      problems.push(
        `${name} ends in a carriage return: the file that sets it has Windows line ends, save it with Unix ones`,
      );
  return { env, problems };
}

// A misspelt variable would silently leave its default in force, so a name that is not ours is refused.
function unknownNames(env: Readonly<Record<string, string | undefined>>): string[] {
  return Object.keys(env)
    .filter((name) => name.startsWith("SASORI_") && !(name in Env.shape))
    .map((name) => `${name} is not a variable of sasori: \`sasori config --help\` lists them`);
}

/**
 * The effective values for `sasori config`. No variable holds a secret, only the name of a file with one. Throws
 * as `readConfig` does.
 */
export function showConfig(
  environment: Readonly<Record<string, string | undefined>>,
): Record<string, string> {
  const { stateFile, backend } = readConfig(environment);
  const values = Object.entries(Env.shape).map(([name, schema]) => [
    name,
    environment[name] || defaultOf(schema),
  ]);
  return { ...Object.fromEntries(values), SASORI_BACKEND: backend, SASORI_STATE_FILE: stateFile };
}

function defaultOf(schema: z.ZodType): string {
  const isGiven = schema instanceof z.ZodDefault || schema instanceof z.ZodPrefault;
  return isGiven ? String(schema.def.defaultValue) : "";
}
