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
      "base URL of PuppetDB, http or https; for several see docs/estates.md",
      "https://puppetdb.example.com:8081",
      "required",
    ),
  ),
  SASORI_PUPPETDB_CERT: filesOfEstates(readable)
    .optional()
    .meta(about("client certificate for PuppetDB, PEM", "/etc/puppetlabs/puppet/ssl/certs/sasori.pem")),
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
    .meta(about("file with an RBAC token for PuppetDB", "/etc/sasori/puppetdb.token")),
  SASORI_OBSERVATIONS: observations
    .prefault("facts,reports")
    .meta(
      about("which submissions show a node's master: `facts`, `reports` or both", "facts", "facts,reports"),
    ),
  SASORI_HAPROXY: endpoints.meta(
    about(
      "Runtime API endpoints, separated by commas: socket paths, `tls://host:port`, `tcp://host:port`; `none` to write only the map file",
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
        "CA that signed the certificates of the HAProxy instances at `tls://`, PEM",
        "/etc/puppetlabs/puppet/ssl/certs/ca.pem",
      ),
    ),
  SASORI_HAPROXY_CERT: z
    .string()
    .transform(readable)
    .optional()
    .meta(
      about(
        "client certificate for the HAProxy instances at `tls://`, PEM",
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
        "what the map's values name: `servers` of one backend, or `backends`, which are pools of servers",
        "backends",
      ),
    ),
  SASORI_BACKEND: backends
    .default("puppet")
    .meta(
      about(
        "HAProxy backend whose servers are the masters; for pools, the backends that are masters (docs/gateway.md)",
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
        "`certname=server` pairs for puppetservers that have another name in HAProxy; the certname may be a pattern (RE2)",
        "puppet1.corp=master1,puppet-fra[0-9]+\\.corp=fra",
      ),
    ),
  SASORI_NEW_MASTERS: pattern
    .optional()
    .meta(
      about(
        "pattern (RE2) for certnames of puppetservers that get an HAProxy server at run time",
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
        "options of the servers that are added at run time (docs/gateway.md)",
        "check maxconn 20 weight 0 ssl verify required ca-file /etc/ca.pem crt /etc/gw.pem",
      ),
    ),
  SASORI_PROBE_PATH: probePath
    .optional()
    .meta(
      about("path at which a master answers 200 for a node it has (docs/gateway.md)", "/nodes/{certname}"),
    ),
  SASORI_PROBE_CA: z
    .string()
    .transform(readable)
    .optional()
    .meta(
      about(
        "CA of the masters' certificates, PEM; with it, SASORI_PROBE_PATH is asked over TLS",
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
    .meta(about("when to read everything and compare every map: cron", "*/15 * * * *")),
  SASORI_MAX_REMOVED: removalLimit
    .prefault("10%")
    .meta(
      about(
        "removals beyond this wait for approval: a share of the map (at least 10 nodes), or a number of nodes",
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
        "file with the bearer token for calls that change something; required beyond loopback",
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
    .meta(about("address (UDP and TCP) for log lines of puppetservers (docs/hints.md)", "127.0.0.1:5514")),
  SASORI_REPORTS_LISTEN: listenAddress
    .optional()
    .meta(about("address (TLS) for reports of puppetservers (docs/hints.md)", "0.0.0.0:9181")),
  SASORI_REPORTS_CA: z
    .string()
    .transform(readable)
    .optional()
    .meta(
      about("CA of the puppetservers that may send reports, PEM", "/etc/puppetlabs/puppet/ssl/certs/ca.pem"),
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
        "PostgreSQL database that replicas of sasori share (docs/estates.md)",
        "postgres://sasori@pg.example.com/sasori",
      ),
    ),
  SASORI_STATE_PASSWORD_FILE: z
    .string()
    .transform(readable)
    .optional()
    .meta(
      about("file with the database's password", "/etc/sasori/state.password", "`~/.pgpass`, or PGPASSFILE"),
    ),
  SASORI_STATE_CA: z
    .string()
    .transform(readable)
    .optional()
    .meta(
      about(
        "CA that signed PostgreSQL's certificate, PEM",
        "/etc/sasori/postgres-ca.pem",
        "the CAs that Node.js trusts",
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

/** A URL may have a password, or a token as its user. It must not get into a log. */
const withoutPassword = (text: string) =>
  text.replace(/(:\/\/)[^/]*@/g, "$1…@").replace(/\b(\w*passw\w*=)[^&#,]*/gi, "$1…");

/** The value that counts when it is not set; empty when there is none. */
export function defaultOf(schema: z.ZodType): string {
  const isGiven = schema instanceof z.ZodDefault || schema instanceof z.ZodPrefault;
  return isGiven ? String(schema.def.defaultValue) : "";
}
