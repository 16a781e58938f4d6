// The forms that values of variables take: text in, a parsed value or what was expected out.

import path from "node:path";
import { z } from "zod";
import { Aliases, compile, nameList, type Pattern } from "../aliases.js";
import type { Endpoint } from "../config.js";
import { quote, reason } from "../errors.js";
import { isCron } from "../schedule.js";
import { readSecretFileSync } from "../whole-file.js";

/** How many removals a plan may hold without approval: a share of the map, or a number of entries. */
export type RemovalLimit = { percent: number } | { entries: number };

export interface ListenAddress {
  host: string;
  port: number;
}

export const readable = (file: string, context: z.RefinementCtx): string => {
  secretIn(file, context);
  return path.resolve(file);
};

export const token = (file: string, context: z.RefinementCtx): string => {
  // Its content must not appear in a message.
  if (!/^[\x21-\x7e]+$/.test(secretIn(file, context)?.trim() ?? "-"))
    context.addIssue({ code: "custom", message: "a file with one word of ASCII characters" });
  return path.resolve(file);
};

export const tokenFile = z.string().transform(token);

/** One file for all estates, or one for each in their order; an empty name means none. */
export const filesOfEstates = (read: typeof readable) =>
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

export const fail = (context: z.RefinementCtx, expected: string): never => {
  context.addIssue({ code: "custom", message: expected });
  return z.NEVER;
};

/** Estates separated by commas, and in each the PuppetDBs that have the same nodes, separated by bars. */
export const puppetdbUrls = z.string().transform((text, context): string[][] => {
  const estates = text
    .split(",")
    .map((estate) => estate.split("|").map((one) => puppetdbUrl(one.trim(), context)));
  const all = estates.flat();
  return new Set(all).size === all.length ? estates : fail(context, "each PuppetDB once");
});

/** It is a key of the state database, whose index takes no more than 2,700 bytes. */
export const MAX_URL = 2_000;

function puppetdbUrl(text: string, context: z.RefinementCtx): string {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url?.protocol !== "http:" && url?.protocol !== "https:") return fail(context, "an http or https URL");
  if (url.username !== "" || url.password !== "") {
    return fail(context, "a URL without user and password (use SASORI_PUPPETDB_TOKEN_FILE)");
  }
  if (url.search !== "" || url.hash !== "") return fail(context, "a base URL without query or fragment");
  if (url.href.length > MAX_URL) return fail(context, `a URL of at most ${MAX_URL} characters`);
  return url.href.replace(/\/+$/, "");
}

/** What a URL of PostgreSQL says, without files and defaults. */
export interface StateUrl {
  host: string;
  port: number;
  user: string;
  database: string;
  sslmode: "disable" | "verify-full" | undefined;
}

const STATE_URL = "postgres://user@host:5432/database";

export const stateUrl = z.string().transform((text, context): StateUrl => {
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

/** Undefined if it cannot be decoded: a "%" without its two digits. */
function decoded(text: string): string | undefined {
  try {
    return decodeURIComponent(text);
  } catch {
    return undefined;
  }
}

export const port = (text: string | undefined): number | undefined =>
  text !== undefined && /^\d{1,5}$/.test(text) && Number(text) <= 65535 ? Number(text) : undefined;

const ENDPOINT = /^(tcp|tls)(\+dns)?:\/\/(\[[^\]]+\]|[^:/]+):(\d+)$/;

export const endpoints = z.string().transform((text, context): EndpointSetting[] => {
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
export interface EndpointSetting extends Pick<Endpoint, "name" | "connect"> {
  isTls?: boolean;
  /** All addresses of the name are HAProxy instances, now and later. */
  isFollowed?: boolean;
}

export const aliases = z.string().transform((text, context): Aliases => {
  try {
    return Aliases.parse(text);
  } catch (error) {
    const what =
      "producer=master pairs separated by commas, each producer once, where a producer may be a pattern (RE2)";
    return fail(context, `${what}; ${reason(error)}`);
  }
});

export const absolutePath = z.string().refine((text) => path.isAbsolute(text) && !text.endsWith("/"), {
  message: "the absolute path of a file",
});

export const pattern = z.string().transform((text, context): Pattern => {
  try {
    return compile(text);
  } catch (error) {
    return fail(context, `a regular expression as RE2 takes it (${reason(error)})`);
  }
});

export const backends = z.string().refine(
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

export const probePath = z.string().refine((text) => /^\/[!-~]*$/.test(text) && text.includes("{certname}"), {
  message: "a path with {certname} in it",
});

export const cron = z
  .string()
  .refine(isCron, { message: "a cron expression of 5 or 6 fields, or @hourly, @daily" });

const OBSERVATIONS = ["facts", "reports"] as const;
export type ObservationKind = (typeof OBSERVATIONS)[number];

export const observations = z.string().transform((text, context): readonly ObservationKind[] => {
  const kinds = new Set(text.split(",").map((part) => part.trim()));
  const known = OBSERVATIONS.filter((kind) => kinds.has(kind));
  return known.length === kinds.size ? known : fail(context, '"facts", "reports", or "facts,reports"');
});

export const removalLimit = z.string().transform((text, context): RemovalLimit => {
  const match = /^(\d{1,9})(%?)$/.exec(text);
  const number = Number(match?.[1]);
  if (match === null || (match[2] === "%" && number > 100)) {
    return fail(context, "a share from 0% to 100%, or a number of entries");
  }
  // 0% means that every removal waits. A share leaves a few removals free (see guard.ts).
  return match[2] === "%" && number > 0 ? { percent: number } : { entries: number };
});

export const listenAddress = z.string().transform((text, context): ListenAddress => {
  const match = /^(\[[^\]]+\]|[^:]+):(\d+)$/.exec(text);
  const number = port(match?.[2]);
  if (match?.[1] === undefined || number === undefined) return fail(context, "host:port");
  return { host: match[1].replace(/^\[|\]$/g, ""), port: number };
});

export const LOG_LEVELS = ["fatal", "error", "warn", "info", "debug", "trace", "silent"] as const;
