// The variables. This schema is the only place that knows a variable's name, meaning, default and form: docs/reference.md,
// `sasori config` and every message about a wrong value come from it.

import { z } from "zod";
import { quote } from "../errors.js";
import {
  absolutePath,
  aliases,
  backends,
  cron,
  endpoints,
  fail,
  filesOfEstates,
  LOG_LEVELS,
  listenAddress,
  observations,
  pattern,
  port,
  probePath,
  puppetdbUrls,
  readable,
  removalLimit,
  stateUrl,
  token,
  tokenFile,
} from "./forms.js";

const about = (meaning: string, example: string, shownDefault?: string) => ({
  description: meaning,
  example,
  shownDefault,
});

/** The variables, in the order of docs/reference.md. Descriptions and examples are shown to people. */
export const Env = z.object({
  SASORI_PUPPETDB_URL: puppetdbUrls.meta(
    about(
      "base URL of PuppetDB, http or https. Several (docs/estates.md): a comma separates PuppetDBs with different nodes, a bar those with the same nodes",
      "https://puppetdb.example.com:8081",
      "required",
    ),
  ),
  SASORI_PUPPETDB_CERT: filesOfEstates(readable)
    .optional()
    .meta(
      about(
        "client certificate for PuppetDB, PEM. sasori notices a renewal by itself. For several estates: one file for all, or one for each",
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
      about(
        "file with an RBAC token for PuppetDB, sent as `X-Authentication`; over https, or to this machine",
        "/etc/sasori/puppetdb.token",
      ),
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
        "`certname=server` pairs, for puppetservers whose HAProxy server or backend has another name. The certname may be a pattern (RE2) for whole names; plain names are tried first",
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
        "CA of the masters' certificates, PEM. Masters are then asked over TLS. A master's certificate must name its host, its HAProxy server, or its certname in SASORI_MASTER_ALIASES",
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
        "address, UDP and TCP, where sasori takes log lines of puppetservers, to find moves at once (docs/hints.md)",
        "127.0.0.1:5514",
      ),
    ),
  SASORI_REPORTS_LISTEN: listenAddress
    .optional()
    .meta(
      about(
        "address, TLS, where sasori takes reports of puppetservers, to find moves at the end of a run (docs/hints.md)",
        "0.0.0.0:9181",
      ),
    ),
  SASORI_REPORTS_CA: z
    .string()
    .transform(readable)
    .optional()
    .meta(
      about(
        "CA that signed the certificates of the puppetservers that may send reports, PEM",
        "/etc/puppetlabs/puppet/ssl/certs/ca.pem",
      ),
    ),
  SASORI_REPORTS_CERT: z
    .string()
    .transform(readable)
    .optional()
    .meta(
      about("sasori's server certificate for reports, PEM", "/etc/puppetlabs/puppet/ssl/certs/sasori.pem"),
    ),
  SASORI_REPORTS_KEY: z
    .string()
    .transform(readable)
    .optional()
    .meta(
      about("private key of that certificate, PEM", "/etc/puppetlabs/puppet/ssl/private_keys/sasori.pem"),
    ),
  SASORI_STATE_URL: stateUrl
    .optional()
    .meta(
      about(
        "PostgreSQL database through which replicas of sasori share registrations, learned routes, removals and approvals (docs/estates.md). The connection uses TLS, except on this host or with `?sslmode=disable`",
        "postgres://sasori@pg.example.com/sasori",
      ),
    ),
  SASORI_STATE_PASSWORD_FILE: z
    .string()
    .transform(readable)
    .optional()
    .meta(
      about(
        "file with the database's password. Without it sasori uses `~/.pgpass` or PGPASSFILE",
        "/etc/sasori/state.password",
      ),
    ),
  SASORI_STATE_CA: z
    .string()
    .transform(readable)
    .optional()
    .meta(
      about(
        "CA that signed PostgreSQL's certificate, PEM. Without it, the CAs that Node.js trusts",
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
      about("private key of that certificate, PEM", "/etc/puppetlabs/puppet/ssl/private_keys/sasori.pem"),
    ),
  SASORI_REPLICA: z
    .string()
    .refine((text) => /^[!-~]{1,128}$/.test(text), {
      message: "a name of up to 128 characters without blanks",
    })
    .optional()
    .meta(
      about(
        "name of this replica, as `sasori status --replicas` shows it",
        "gw1.example.com",
        "this host's name and the port of SASORI_LISTEN",
      ),
    ),
  SASORI_LOG_LEVEL: z
    .enum(LOG_LEVELS, { error: `one of ${LOG_LEVELS.join(", ")}` })
    .default("info")
    .meta(about(`log level: ${LOG_LEVELS.join(", ")}`, "info")),
});

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

/** What is wrong with a value, what was expected, and an example. */
export function problem(
  name: string,
  expected: string,
  env: Readonly<Record<string, string | undefined>>,
): string {
  const value = env[name];
  const example = describeVariables().find((variable) => variable.name === name)?.example ?? "";
  const found = value === undefined ? "is not set" : `is ${quote(withoutPassword(value), 200)}`;
  const wanted = value === undefined ? "it is required" : `expected ${expected}`;
  return `${name} ${found}: ${wanted}, for example ${name}=${quote(example)}`;
}

/** Whoever puts a password, or a token as a user, into a URL does not want it in a log. */
const withoutPassword = (text: string) =>
  text.replace(/(:\/\/)[^/]*@/g, "$1…@").replace(/\b(\w*passw\w*=)[^&#,]*/gi, "$1…");

/** The value that counts when it is not set; empty when there is none. */
export function defaultOf(schema: z.ZodType): string {
  const isGiven = schema instanceof z.ZodDefault || schema instanceof z.ZodPrefault;
  return isGiven ? String(schema.def.defaultValue) : "";
}
