// The configuration: environment variables, checked once, all problems reported together. Nothing else reads a SASORI_
// variable. config/ has the variables, the forms of their values, and contradictions between them.

import { hostname } from "node:os";
import { z } from "zod";
import { Aliases, nameList, type Pattern } from "./aliases.js";
import { contradictions, type Environment, isLoopback, mayHaveToken } from "./config/contradictions.js";
import type { ListenAddress, LOG_LEVELS, ObservationKind, RemovalLimit } from "./config/forms.js";
import { meantName } from "./config/misspelling.js";
import { defaultOf, Env, problem } from "./config/variables.js";
import { SasoriError } from "./errors.js";
import { PemFiles, type PemPaths } from "./pem-files.js";

export type { ListenAddress, RemovalLimit } from "./config/forms.js";
export { describeVariables, type Variable } from "./config/variables.js";

/** One Runtime API: a socket path, or an address. `name` is its name in logs, metrics and reports. */
export interface Endpoint {
  name: string;
  connect: { path: string } | { host: string; port: number };
  /** For TLS with a client certificate. HAProxy's certificate must have the name `certname`. */
  tls?: { certname: string; files: PemFiles };
}

/** A DNS name for several HAProxy instances: one for each of its addresses, which may change. */
export interface EndpointName {
  /** As the configuration writes it. */
  name: string;
  host: string;
  port: number;
  tls?: Endpoint["tls"];
}

/** One PuppetDB, and how to reach it. */
export interface PuppetdbServer {
  url: string;
  /** If several PuppetDBs are configured: the name that marks nodes from this one. */
  from?: string | undefined;
  certFile?: string | undefined;
  keyFile?: string | undefined;
  caFile?: string | undefined;
  tokenFile?: string | undefined;
  observations?: readonly ObservationKind[] | undefined;
}

/** How PostgreSQL is reached; `where` is its name in logs and messages. */
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
  /** The estates, and in each the PuppetDBs that have the same nodes: one is asked, and if it fails the next one. */
  puppetdb: readonly (readonly PuppetdbServer[])[];
  haproxy: readonly Endpoint[];
  /** Names of further HAProxy instances that DNS knows. */
  haproxyNames?: readonly EndpointName[] | undefined;
  /** The backend whose servers are the masters. With `pools` it is only their text, for messages. */
  backend: string;
  /** If set, the map's values are backends, each a pool of servers: the backends that this pattern matches. */
  pools?: Pattern | undefined;
  mapFile: string;
  mapName?: string | undefined;
  masterAliases: Aliases;
  newMasters?: { pattern: Pattern; port: number; limit: number; options: string } | undefined;
  probePath?: string | undefined;
  /** If set, masters are asked over TLS. */
  probeTls?: PemPaths | undefined;
  schedule: string;
  fullSchedule: string;
  maxRemoved: RemovalLimit;
  priorityFile?: string | undefined;
  listen: ListenAddress;
  apiTokenFile?: string | undefined;
  /** Addresses for hints that a node may have moved. */
  syslogListen?: ListenAddress | undefined;
  reports?: (ListenAddress & { tls: PemPaths }) | undefined;
  stateFile: string;
  /** The database that replicas share. */
  stateDatabase?: StateDatabase | undefined;
  /** The name of this replica for the others. */
  replica: string;
  logLevel: (typeof LOG_LEVELS)[number];
  /** Variables that begin with SASORI_ and are not sasori's: Kubernetes and scripts make such names. */
  foreignNames?: readonly string[] | undefined;
}

/** Throws `CONFIG_INVALID` naming every wrong, missing, contradictory or misspelt variable at once. */
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
 * Reads only what is needed to ask the running daemon. An operator's shell often has no other variable. Throws
 * `CONFIG_INVALID` for a wrong SASORI_LISTEN and for misspelt names. Then it also names all other problems, except missing
 * variables if none of the others is set.
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
    foreignNames: foreignNames(given),
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
  const files = caFile === undefined ? undefined : new PemFiles({ caFile, certFile, keyFile }, "HAPROXY");
  const [haproxy, haproxyNames]: [Endpoint[], EndpointName[]] = [[], []];
  for (const { name, connect, isTls, isFollowed } of env.SASORI_HAPROXY) {
    const tls = isTls && files && "host" in connect ? { tls: { certname: connect.host, files } } : {};
    if (isFollowed && "host" in connect) haproxyNames.push({ name, ...connect, ...tls });
    else haproxy.push({ name, connect, ...tls });
  }
  return { haproxy, haproxyNames };
}

/** Without SASORI_BACKEND, pools are the backends that the aliases name. */
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
      // Some of several PuppetDBs may be reached over TLS, and others not.
      ...(url.startsWith("https:") && {
        certFile: fileOf(env.SASORI_PUPPETDB_CERT),
        keyFile: fileOf(env.SASORI_PUPPETDB_KEY),
        caFile: fileOf(env.SASORI_PUPPETDB_CA),
      }),
      ...(mayHaveToken(url) && { tokenFile: fileOf(env.SASORI_PUPPETDB_TOKEN_FILE) }),
      observations: env.SASORI_OBSERVATIONS,
    }));
  });
}

/** The variables that are set, and problems with their names and characters. Their values are not parsed yet. */
function tidy(environment: Readonly<Record<string, string | undefined>>) {
  // Compose and systemd pass an unset variable as an empty one.
  const env: Record<string, string | undefined> = {};
  const problems: string[] = [];
  for (const [name, value = ""] of Object.entries(environment).filter(([, value]) => value !== "")) {
    const { meant, problem } = Object.hasOwn(Env.shape, name) ? unwrap(value) : { meant: value };
    if (meant !== "") env[name] = meant;
    if (problem !== undefined) problems.push(`${name} ${problem}`);
  }
  problems.unshift(...misspeltNames(env));
  return { env, problems };
}

/**
 * A value without the quotes and comments of a file of variables. Not every reader of such files removes them, and none of
 * our values has any.
 */
function unwrap(value: string): { meant: string; problem?: string } {
  const text = value.trim();
  const isUnix = !value.endsWith("\r");
  const [, , quoted] = /^(["'])(.*)\1$/s.exec(text) ?? [];
  const [, before] = /^(.*?)\s+#/s.exec(text) ?? [];
  const file = "the file that sets it has";
  if (!isUnix)
    return {
      meant: text,
      problem: `ends in a carriage return, because ${file} Windows line ends: save it with Unix line ends`,
    };
  if (quoted !== undefined)
    return { meant: quoted, problem: `is in quotes, which count as part of the value: remove them` };
  if (before !== undefined)
    return {
      meant: before,
      problem: `has a comment, which counts as part of the value: put it on its own line`,
    };
  return { meant: text };
}

const foreignNames = (env: Environment): string[] =>
  Object.keys(env).filter((name) => name.startsWith("SASORI_") && !(name in Env.shape));

/**
 * What Kubernetes sets for a Service such as `sasori-haproxy`. The other names that Kubernetes makes are not similar to ours.
 */
const isOfKubernetes = (name: string, value = ""): boolean =>
  name.endsWith("_PORT") && /^(tcp|udp|sctp):\/\/\S+:\d+$/.test(value);

// A misspelt variable would silently leave its default in force, so it is refused. Names that are not similar to ours are ignored.
function misspeltNames(env: Environment): string[] {
  return foreignNames(env).flatMap((name) => {
    if (isOfKubernetes(name, env[name])) return [];
    const meant = meantName(name, Object.keys(Env.shape));
    return meant === undefined ? [] : [`${name} is not a variable of sasori: did you mean ${meant}?`];
  });
}

/**
 * The effective values for `sasori config`. No variable holds a secret, only the name of a file with one. Throws
 * as `readConfig` does.
 */
export function showConfig(
  environment: Readonly<Record<string, string | undefined>>,
): Record<string, string> {
  const { stateFile, backend } = readConfig(environment);
  const { env } = tidy(environment);
  const values = Object.entries(Env.shape).map(([name, schema]) => [name, env[name] ?? defaultOf(schema)]);
  return { ...Object.fromEntries(values), SASORI_BACKEND: backend, SASORI_STATE_FILE: stateFile };
}
