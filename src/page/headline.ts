// The page's headline: what clients of HAProxy see now, in one line, and each trouble once.
// Pure. Without a connection the headline says so: what is shown is never older than it looks.

import type { ErrorCode } from "../errors.js";
import type { Status, Trouble } from "../http/api-shapes.js";
import type { TROUBLES } from "../http/troubles.js";
import { domainOf, mastersOf, nowOf, type State } from "./state.js";
import { clock, counted, minute, number, shortName } from "./words.js";

export type Tone = "good" | "bad" | "warn" | "busy" | "stale";

export interface Headline {
  tone: Tone;
  title: string;
  detail: string;
}

/** A trouble as the page shows it: what clients see, then the cause and what to do. */
export interface ExplainedTrouble extends Headline {
  trouble: Trouble;
  /** Undefined if the detail says it already. */
  cause: string | undefined;
}

const OLD_MAP =
  "Requests are served from the map of that time. Nodes that move now get their new route when PuppetDB is back.";
const OWN_MAP = "It serves the map that it has. Changes do not reach it until this is repaired.";
const OLD_FILE =
  "Requests are served: every running HAProxy has the map. One that restarts now would load an old map file.";

/** Codes that are never shown as a trouble, and those whose title is made below. */
type Otherwise =
  | ("CONFIG_INVALID" | "USAGE" | "BUSY" | "PROBE_TIMEOUT" | "DAEMON" | "STOPPED" | "INTERNAL")
  | ("held" | "unroutable" | keyof typeof OF_MASTER);
type Words = [title: string, detail?: string];

/** Titles, and what the trouble means for clients if its own words do not say that. Every code needs a title. */
const WORDS: Record<Exclude<ErrorCode | keyof typeof TROUBLES, Otherwise>, Words> = {
  PUPPETDB_UNREACHABLE: ["PuppetDB unreachable", OLD_MAP],
  PUPPETDB_TIMEOUT: ["PuppetDB does not answer", OLD_MAP],
  PUPPETDB_TLS: ["No TLS connection to PuppetDB", OLD_MAP],
  PUPPETDB_STATUS: ["PuppetDB answers with an error", OLD_MAP],
  PUPPETDB_BODY: ["PuppetDB's answer cannot be used", OLD_MAP],
  stalled: ["PuppetDB has not been read", OLD_MAP],
  HAPROXY_UNREACHABLE: [
    "HAProxy unreachable",
    "If it is running, it serves the map that it has. Changes reach it when it is back.",
  ],
  HAPROXY_TIMEOUT: ["HAProxy does not answer", OWN_MAP],
  HAPROXY_PERMISSION: ["HAProxy does not let sasori in", OWN_MAP],
  HAPROXY_REPLY: ["HAProxy's answer cannot be used", OWN_MAP],
  HAPROXY_MAP: ["HAProxy does not have the map", "Its clients are not routed by node."],
  HAPROXY_BACKEND: ["HAProxy does not have the backend", "Its clients are not routed by node."],
  HAPROXY_CHANGED: ["Another program keeps changing HAProxy", OWN_MAP],
  HAPROXY_SERVER: ["A master could not be added to HAProxy"],
  FILE_READ: ["The map file cannot be read", OLD_FILE],
  FILE_WRITE: ["The map file cannot be written", OLD_FILE],
  FILE_FULL: ["The map file's disk is full", OLD_FILE],
  FILE_READ_ONLY: ["The map file is read-only", OLD_FILE],
  FILE_MOUNTED: ["The map file cannot be replaced", OLD_FILE],
  STATE_FILE: ["The state file cannot be used", "Requests are served. Registrations may be lost."],
  STATE_DATABASE: [
    "The replicas' database cannot be used",
    "Requests are served. Each replica goes on from its own file, and they agree again when it is back.",
  ],
  standby: ["A standby PuppetDB is asked"],
  replica: ["A replica is silent", "The others go on without it."],
  queue: ["PuppetDB is behind: its queue is long"],
  clock: ["Clocks differ"],
  displaced: ["Nodes have not come back to their master"],
  refused: ["Names that cannot be in the map"],
  flapping: ["Nodes whose facts and reports come from different masters"],
  second_sasori: ["Another sasori writes the same files"],
};

/** The rest of a title that begins with the master. */
const OF_MASTER = {
  down: "is down",
  drained: "is drained",
  weight: "gets requests of other masters' nodes",
  clock_ahead: "has a clock that is ahead",
};

const at = <Value>(table: Record<string, Value>, code: string): Value | undefined =>
  Object.hasOwn(table, code) ? table[code] : undefined;

export function explain(trouble: Trouble, status: Status, domain: string, now: number): ExplainedTrouble {
  const { code, severity, where, what, since } = trouble;
  const tone = severity === "critical" ? "bad" : "warn";
  const held = code === "held" ? status.lastPass?.held : undefined;
  if (held !== undefined) {
    const title = held.count === 1 ? "One change waits" : `${number(held.count)} changes wait`;
    const detail = "The nodes keep their routes until somebody approves.";
    return { tone, title: `${title} for your approval`, detail, trouble, cause: held.reason };
  }
  const [words, detail] = at<Words>(WORDS, code) ?? [];
  const ofMaster = at<string>(OF_MASTER, code);
  const place = shortName(where, domain);
  const title =
    titleOf(trouble, status) ??
    words ??
    (ofMaster === undefined ? `${place}: ${code}` : `${place} ${ofMaster}`);
  const from = since === undefined ? "" : ` since ${minute(since, now)}`;
  const isSaid = ofMaster !== undefined && what.startsWith(where);
  const cause = what.replace(` (since ${since})`, "").slice(isSaid ? what.indexOf(": ") + 2 : 0);
  if (detail === undefined) return { tone, title: title + from, detail: cause, trouble, cause: undefined };
  const served = status.ready ? detail : "No map is being served yet.";
  const named = where === "puppetdb" || cause.includes(where) ? cause : `${where}: ${cause}`;
  return { tone, title: title + from, detail: served, trouble, cause: named };
}

/** Titles with a number. */
function titleOf({ code }: Trouble, { lastPass }: Status): string | undefined {
  const { unroutable } = lastPass ?? {};
  if (code !== "unroutable" || unroutable === undefined) return undefined;
  return `HAProxy has no server for the puppetserver of ${counted(unroutable.nodes, "node")}`;
}

/** The headline, and every trouble; the headline's own is the first of them. */
export function headlineOf(state: State): Headline & { troubles: ExplainedTrouble[] } {
  const { status, link } = state;
  const now = nowOf(state);
  const domain = domainOf(mastersOf(state));
  const troubles = status?.troubles.map((trouble) => explain(trouble, status, domain, now)) ?? [];
  if (link.kind === "lost") {
    const shown =
      status === undefined
        ? "It has not answered yet."
        : `What you see is how things were at ${clock(new Date(state.heardAt).toISOString(), now)}.`;
    const detail = `${shown} This page keeps trying.`;
    return { tone: "stale", title: "The connection to sasori is lost", detail, troubles };
  }
  if (status === undefined)
    return { tone: "busy", title: "Looking", detail: "Waiting for sasori's answer.", troubles };
  const [worst] = troubles;
  if (worst !== undefined) return { ...worst, troubles };
  const detail = status.summary;
  if (status.state === "in sync") return { tone: "good", title: "Everything is in sync", detail, troubles };
  if (status.state === "starting") return { tone: "busy", title: "sasori is starting", detail, troubles };
  return { tone: "busy", title: "Catching up", detail, troubles };
}
