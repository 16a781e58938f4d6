// What is wrong, and what to do about it, in words: the page, the command line, the log and `GET /api/v1/status` say
// the same of the same trouble. Promises: every error code has a remedy; the worst comes first.
// Pure: values in, values out.

import { counted, number } from "../counts.js";
import { type ErrorCode, type Failure, quote } from "../errors.js";
import type { PuppetdbState } from "../source/source.js";
import type { SyncReport } from "../sync-report.js";
import type { Server } from "../target/target.js";
import type { TargetState } from "../target/tracked-target.js";
import type { Status, Trouble } from "./api-shapes.js";
import { SILENT_MS } from "./lacking.js";

const KEEPS_MAP = "Meanwhile HAProxy keeps its map";
const CHECK_PUPPETDB = "check PuppetDB and its log";
const CHECK_HAPROXY = "check HAProxy's log, its load, and its `stats socket` line";

/** Each error code: what it means, and what to do about it. docs/reference.md lists them. */
export const ERRORS: Record<ErrorCode, { meaning: string; remedy: string }> = {
  CONFIG_INVALID: {
    meaning: "the configuration is not valid",
    remedy: "correct the variables that the message names; `sasori config --help` explains each one",
  },
  USAGE: {
    meaning: "a wrong argument, request or token",
    remedy: "correct the request as the message says",
  },
  PUPPETDB_UNREACHABLE: {
    meaning: "PuppetDB accepts no connection",
    remedy: `start PuppetDB, or correct SASORI_PUPPETDB_URL. ${KEEPS_MAP}`,
  },
  PUPPETDB_TLS: {
    meaning:
      "the TLS connection to PuppetDB failed: a certificate is not valid, not trusted, or has another name",
    remedy: `follow the message; \`sasori doctor\` checks each certificate. ${KEEPS_MAP}`,
  },
  PUPPETDB_TIMEOUT: {
    meaning: "PuppetDB did not answer in time",
    remedy: `${CHECK_PUPPETDB}. ${KEEPS_MAP}`,
  },
  PUPPETDB_STATUS: {
    meaning: "PuppetDB answered with an HTTP error",
    remedy:
      "the message quotes PuppetDB's answer. After a 403, add sasori's certificate to PuppetDB's allowlist",
  },
  PUPPETDB_BODY: {
    meaning: "the answer was not what PuppetDB sends",
    remedy: `check that SASORI_PUPPETDB_URL leads to PuppetDB and not to a proxy; ${CHECK_PUPPETDB}. ${KEEPS_MAP}`,
  },
  FILE_READ: {
    meaning: "the map file cannot be read",
    remedy: "let sasori's user read the map file. If it is on a network file system, check that file system",
  },
  FILE_WRITE: {
    meaning: "the map file cannot be written",
    remedy:
      "let sasori's user write to the file's folder. If it is on a network file system, check that file system",
  },
  FILE_FULL: {
    meaning: "the disk is full",
    remedy: "free space on that disk. Every running HAProxy still gets the map",
  },
  FILE_READ_ONLY: {
    meaning: "the folder or its file system is read-only",
    remedy:
      "let sasori's user write to the folder, or make its file system writable. Every running HAProxy still gets the map",
  },
  FILE_MOUNTED: {
    meaning: "the map file itself is a mount point, so it cannot be replaced",
    remedy: "mount the folder of the file, not the file: sasori replaces the file by renaming a new one",
  },
  STATE_FILE: {
    meaning: "the state file cannot be read or written, or has broken entries",
    remedy:
      "sasori goes on with a new state file. Look at the file that was set aside, register its routes again, then remove it",
  },
  STATE_DATABASE: {
    meaning:
      "the PostgreSQL database that replicas share is down, refuses sasori, or has rows that cannot be used",
    remedy:
      "start PostgreSQL, or correct SASORI_STATE_URL. Meanwhile every replica uses its own file; they agree again when it is back",
  },
  HAPROXY_UNREACHABLE: {
    meaning: "nothing answers at an HAProxy's Runtime API",
    remedy:
      "start that HAProxy, or correct SASORI_HAPROXY or its `stats socket` line. If it is running, it keeps its map",
  },
  HAPROXY_TIMEOUT: {
    meaning: "an HAProxy did not answer in time",
    remedy: `${CHECK_HAPROXY}. sasori tries again every minute`,
  },
  HAPROXY_PERMISSION: {
    meaning: "sasori may not use the Runtime API socket, or its level is too low",
    remedy: "set `level admin`, and a user or group that includes sasori, in HAProxy's `stats socket` line",
  },
  HAPROXY_REPLY: {
    meaning: "HAProxy answered something that sasori does not understand",
    remedy: `check that SASORI_HAPROXY leads to HAProxy; ${CHECK_HAPROXY}`,
  },
  HAPROXY_MAP: {
    meaning: "HAProxy does not have the map",
    remedy: "use the map in HAProxy's configuration, or set SASORI_MAP_NAME to the name it has there",
  },
  HAPROXY_BACKEND: {
    meaning: "HAProxy does not have the backend",
    remedy: "set SASORI_BACKEND to the backend of the masters, or to the backends that are masters",
  },
  HAPROXY_CHANGED: {
    meaning: "another program changed or reloaded HAProxy during each of three pushes",
    remedy:
      "find the program that writes to this map or reloads this HAProxy. If `sasori doctor` says that SASORI_HAPROXY names it twice, name it once. sasori keeps trying",
  },
  HAPROXY_SERVER: {
    meaning: "a server cannot be added or used at run time",
    remedy:
      "follow the message, which quotes HAProxy's answer, or add the server line to HAProxy's configuration",
  },
  BUSY: { meaning: "too many requests at once", remedy: "try again in a moment" },
  PROBE_TIMEOUT: {
    meaning: "a master did not say in time, at SASORI_PROBE_PATH, whether it has a node",
    remedy: "check the masters: at least one is too slow, does not answer, or does not let sasori ask",
  },
  DAEMON: {
    meaning: "the daemon does not run, cannot listen, or does not answer",
    remedy: "start it with `sasori serve`, or correct SASORI_LISTEN",
  },
  STOPPED: {
    meaning: "a pass was cut short by a shutdown",
    remedy: "start sasori again; its first pass does the rest",
  },
  INTERNAL: {
    meaning: "a bug in sasori",
    remedy: "please report it, with the log. The next pass tries again",
  },
};

export const UNROUTABLE_REMEDY =
  "add an HAProxy server with that name or host, or map the producer to a server in SASORI_MASTER_ALIASES";

/**
 * From this many commands in PuppetDB's queue on it is a trouble. With fewer the map is only seconds late, because busy
 * masters submit hundreds a second.
 */
export const LONG_QUEUE = 1_000;
export const longQueue = (depth: number) =>
  `PuppetDB has ${counted(depth, "command")} in its queue: moves reach the map only when it has stored them`;
export const LONG_QUEUE_REMEDY =
  "check the load of PuppetDB and PostgreSQL. More command-processing threads, a vacuum or faster disks help. After a restart or an outage the queue shrinks by itself";

/** What to do about an error. */
export function remedyFor(code: ErrorCode): string {
  return ERRORS[code].remedy;
}

export const isErrorCode = (text: unknown): text is ErrorCode =>
  typeof text === "string" && Object.hasOwn(ERRORS, text);

/** Each trouble that is no error: what it means. docs/reference.md lists them. */
export const TROUBLES = {
  stalled: "no pass has finished reading PuppetDB for too long",
  held: "the guard holds removals or steps back until they are approved",
  queue: "PuppetDB has many commands in its queue that it has not stored yet",
  standby: "the first of several PuppetDBs with the same nodes does not answer, so another one is asked",
  clock:
    "PuppetDB's clock and this machine's differ by more than a minute, or PostgreSQL's by more than 5 seconds",
  down: "HAProxy's health check sees a master down",
  drained: "a master is drained in HAProxy",
  weight: "a master has a weight other than 0, so HAProxy also sends it requests for other masters' nodes",
  displaced: "nodes left their master while it was down or drained, and have not come back",
  unroutable: "nodes check in at a puppetserver for which HAProxy has no server",
  refused: "certnames that cannot be map keys",
  clock_ahead: "a puppetserver's clock is ahead of PuppetDB's",
  flapping: "facts and reports of the same nodes come from different masters",
  second_sasori: "another sasori writes the same files",
  replica: "another replica has reported nothing for more than a minute",
} as const;

type TroubleCode = keyof typeof TROUBLES;

/** A name from PuppetDB or HAProxy, quoted if it has characters that could affect a terminal. */
export const shown = (name: string) => (/^[!-~]+$/.test(name) ? name : quote(name));

/** A failure's message without its place in front, such as `/run/haproxy.sock: `, where the place is shown already. */
export const withoutPlace = (message: string, where: string) =>
  message.startsWith(`${where}: `) ? message.slice(where.length + 2) : message;

/** What troubles are found in: the report of a pass, and what a daemon knows besides. */
export interface Situation {
  pass: Omit<SyncReport, "targets"> | undefined;
  targets: readonly Pick<TargetState, "target" | "failure" | "servers">[];
  /** PuppetDB's failure, while there is one, since then (ISO 8601). */
  puppetdb?: { failure: Failure; since?: string } | undefined;
  /** When another sasori was last seen to write the map file or the state file (ISO 8601). */
  secondSasori?: string | undefined;
  /** PuppetDB has not been looked at for too long, since then (ISO 8601). */
  notLookedSince?: string | undefined;
  /** What is known about each PuppetDB. */
  puppetdbs?: readonly PuppetdbState[] | undefined;
  /** What could not be taken over from an earlier run. */
  stateFile?: Failure | undefined;
  /**
   * The database where replicas agree: what is wrong with it, how far its clock is behind ours, and each replica's last
   * word.
   */
  shared?:
    | {
        failure: Failure | undefined;
        clockAheadMs: number;
        heard: readonly { name: string; silentMs: number }[];
      }
    | undefined;
  /** The master of each displaced node that it left. */
  homes?: Iterable<string> | undefined;
}

/** The worst first. */
export function troublesOf(situation: Situation): Trouble[] {
  const {
    pass,
    targets,
    puppetdb,
    secondSasori,
    notLookedSince,
    puppetdbs = [],
    stateFile,
    shared,
    homes = [],
  } = situation;
  const troubles: Trouble[] = [];
  const failed = (where: string, failure: Failure | undefined, since?: string) => {
    if (failure === undefined) return;
    const { code } = failure;
    const message = withoutPlace(failure.message, where);
    const what = since === undefined ? message : `${message} (since ${since})`;
    troubles.push({
      severity: "critical",
      code,
      where,
      what,
      ...(since !== undefined && { since }),
      remedy: remedyFor(code),
    });
  };
  failed("puppetdb", puppetdb?.failure, puppetdb?.since);
  for (const { target, failure } of targets) failed(target, failure);
  // Another failure is the reason, and is shown instead. Without one, only the time is known.
  if (notLookedSince !== undefined && troubles.length === 0) troubles.push(stalled(notLookedSince));
  failed("state file", pass?.journal ?? stateFile);
  failed("state database", shared?.failure);
  for (const { haproxy, master, change, failure } of pass?.masters.changes ?? []) {
    if (failure === undefined) continue;
    const what = `master ${shown(master)} could not be ${change} at run time: ${failure.message}`;
    failed(haproxy, { ...failure, message: what });
  }
  for (const failure of pass?.masters.failures ?? []) failed("masters", failure);
  if (pass !== undefined) troubles.push(...heldTroubles(pass));
  for (const one of puppetdbs.filter(({ asked }) => asked))
    troubles.push(...puppetdbTroubles(one, puppetdbs.length > 1 ? one.url : "puppetdb"));
  troubles.push(...downTroubles(targets), ...drainedTroubles(targets), ...weightTroubles(targets));
  if (pass !== undefined) troubles.push(...fleetTroubles(pass, homes), ...evidenceTroubles(pass));
  if (shared !== undefined) troubles.push(...replicaTroubles(shared));
  if (secondSasori !== undefined) {
    const what = `another sasori writes the same map file or state file; last seen at ${secondSasori}`;
    const remedy = "two sasoris work together without conflict. If only one should run, stop the other one";
    troubles.push(warning("second_sasori", "file", what, remedy));
  }
  return troubles;
}

/** The troubles of one pass by itself: all that a command without a daemon knows. */
export function troublesOfReport(report: SyncReport): Trouble[] {
  const { failure } = report.source;
  return troublesOf({ pass: report, targets: report.targets, puppetdb: failure && { failure } });
}

const stalled = (since: string): Trouble => ({
  severity: "critical",
  code: "stalled" satisfies TroubleCode,
  where: "sasori",
  what: `sasori has not finished reading PuppetDB (since ${since})`,
  remedy: `restart sasori, and please report this with its log and the output of \`sasori doctor\`. ${KEEPS_MAP}`,
});

const warning = (code: TroubleCode, where: string, what: string, remedy: string): Trouble => ({
  severity: "warning",
  code,
  where,
  what,
  remedy,
});

const MINUTE_MS = 60_000;

function puppetdbTroubles(
  { url, insteadOf, behindMs = 0, clockAheadMs, queueDepth = 0 }: PuppetdbState,
  where: string,
): Trouble[] {
  const troubles: Trouble[] = [];
  if (insteadOf !== undefined) {
    const minutes = Math.round(behindMs / MINUTE_MS);
    const late =
      minutes > 0
        ? `; its newest submission is ${counted(minutes, "minute")} older than the newest of ${insteadOf}`
        : "";
    const what = `${url} is asked in place of ${insteadOf}, which does not answer${late}`;
    const remedy = `bring ${insteadOf} back. sasori tries it every 30 s or less often, and uses it when it answers. Meanwhile no node goes back to an older master`;
    troubles.push(warning("standby", where, what, remedy));
  }
  if (Math.abs(clockAheadMs) >= MINUTE_MS) troubles.push(wrongClock(clockAheadMs, where));
  if (queueDepth >= LONG_QUEUE)
    troubles.push(warning("queue", where, longQueue(queueDepth), LONG_QUEUE_REMEDY));
  return troubles;
}

function wrongClock(aheadMs: number, place: string): Trouble {
  const minutes = counted(Math.round(Math.abs(aheadMs) / MINUTE_MS), "minute");
  const where = aheadMs > 0 ? "ahead of" : "behind";
  return warning(
    "clock",
    place,
    `its answers are dated ${minutes} ${where} this machine's clock`,
    "correct the wrong clock: that of PuppetDB's host, of a proxy in front of it, or of this machine",
  );
}

/** If the clocks differ by more, the earlier of two registrations at two replicas may count as the later one. */
const REPLICAS_CLOCK_MS = 5_000;

function replicaTroubles({ failure, clockAheadMs, heard }: NonNullable<Situation["shared"]>): Trouble[] {
  const troubles: Trouble[] = [];
  if (Math.abs(clockAheadMs) >= REPLICAS_CLOCK_MS) {
    const apart = `${counted(Math.round(Math.abs(clockAheadMs) / 1_000), "second")} ${clockAheadMs > 0 ? "ahead of" : "behind"}`;
    const what = `this machine's clock is ${apart} PostgreSQL's: if two replicas change the same node, the earlier change may win`;
    troubles.push(
      warning(
        "clock",
        "state database",
        what,
        "synchronize the clocks of all replicas and of PostgreSQL with NTP",
      ),
    );
  }
  if (failure !== undefined) return troubles; // Without the database, nothing is known about the other replicas.
  for (const { name, silentMs } of heard) {
    if (silentMs < SILENT_MS) continue;
    const what = `it has reported nothing for ${counted(Math.round(silentMs / MINUTE_MS), "minute")}`;
    const remedy =
      "start it again, or find out why it cannot reach PostgreSQL. If it is gone for good, it leaves the list after a day";
    troubles.push(warning("replica", shown(name), what, remedy));
  }
  return troubles;
}

function heldTroubles({ held }: Pick<SyncReport, "held">): Trouble[] {
  if (held === undefined) return [];
  const what = `${held.reason}; the old entries stay`;
  const remedy = `see every change: \`sasori diff --held\`. If PuppetDB is wrong, restore it. If it is right: \`sasori sync --approve ${held.id}\``;
  return [warning("held", "puppetdb", what, remedy)];
}

function downTroubles(targets: Situation["targets"]): Trouble[] {
  const seen = targets.filter(({ servers }) => servers !== undefined && servers.length > 0);
  const where = new Map<string, string[]>();
  for (const { target, servers = [] } of seen) {
    for (const { name, up } of servers) if (!up) where.set(name, [...(where.get(name) ?? []), target]);
  }
  const isLeft = seen.some(({ servers = [] }) => servers.some(({ state }) => state === "up"));
  return Array.from(where, ([master, haproxys]) => {
    const everywhere = haproxys.length === seen.length;
    const instead = isLeft
      ? "go to another master, or get 503 with GATEWAY_FALLBACK=off"
      : "get 503, because no master is up";
    const what = everywhere
      ? `${master} is down: requests for its nodes ${instead}`
      : `${master} is down for ${haproxys.join(", ")}, and up for the others`;
    const remedy = everywhere
      ? "start the master; HAProxy's log says why the health check fails. If it stays down, the map follows its nodes to the masters where they check in"
      : "check the network between that HAProxy and the master; HAProxy's log says why the health check fails";
    return warning("down", master, what, remedy);
  });
}

/** Each server for which this is true, with the HAProxy instances where it is. */
function serversThat(
  targets: Situation["targets"],
  isSo: (server: Server) => boolean,
): Map<Server["name"], { target: string; server: Server }[]> {
  const found = new Map<Server["name"], { target: string; server: Server }[]>();
  for (const { target, servers = [] } of targets)
    for (const server of servers.filter(isSo))
      found.set(server.name, [...(found.get(server.name) ?? []), { target, server }]);
  return found;
}

function drainedTroubles(targets: Situation["targets"]): Trouble[] {
  const drained = serversThat(targets, ({ state }) => state === "drained");
  return Array.from(drained, ([master, found]) => {
    const where = found.map(({ target }) => target).join(", ");
    const what = found.some(({ server }) => server.members)
      ? `all servers of ${master} are drained (${where}): only pools.cfg still serves its nodes, and it gets no others`
      : `${master} is drained (${where}): it still serves its own nodes, but gets no others`;
    const remedy = `to move its nodes away: \`sasori drain ${master}\`. To end the drain, set the state to ready in HAProxy`;
    return warning("drained", master, what, remedy);
  });
}

function weightTroubles(targets: Situation["targets"]): Trouble[] {
  const changed = serversThat(targets, ({ strayWeight }) => strayWeight !== undefined);
  return Array.from(changed, ([master, found]) => {
    const where = found.map(({ target, server }) => `${server.strayWeight} in ${target}`).join(", ");
    const what = `${master} has a weight (${where}), so HAProxy also sends it requests for other masters' nodes, and wrong routes do not heal`;
    return warning("weight", master, what, weightRemedy(master));
  });
}

/** `weight 0` makes a master blue on HAProxy's stats page, as a drained one is. */
export const weightRemedy = (master: string) =>
  `give ${master} weight 0 again, on HAProxy's stats page or with "set server". Only the healers have a weight. The stats page then shows the master as soft-stopped, which is right here`;

function fleetTroubles(
  { displaced, unroutable, refused }: Omit<SyncReport, "targets">,
  homes: Iterable<string>,
): Trouble[] {
  const troubles: Trouble[] = [];
  if (displaced > 0) {
    const names = [...new Set(homes)].sort().join(", ");
    const what = `${counted(displaced, "node")} left ${names || "a master"} while it was down or drained`;
    const remedy =
      "when the master is stable again, move them back: `sasori rebalance`. If you removed it from HAProxy for good, they stop counting after their next run";
    troubles.push(warning("displaced", "masters", what, remedy));
  }
  if (unroutable.nodes > 0) {
    const producers = Object.entries(unroutable.producers).map(
      ([name, count]) => `${shown(name)} (${number(count)})`,
    );
    const what = `${counted(unroutable.nodes, "node")} checked in at puppetservers for which HAProxy has no server: ${producers.join(", ")}`;
    troubles.push(warning("unroutable", "haproxy", what, UNROUTABLE_REMEDY));
  }
  if (refused.count > 0) {
    const names = refused.samples.map((name) => quote(name)).join(", ");
    const what = `${counted(refused.count, "certname")} cannot be in the map: ${names}`;
    const remedy = "find the machine with this certificate, and deactivate the node in PuppetDB";
    troubles.push(warning("refused", "puppetdb", what, remedy));
  }
  return troubles;
}

/** Troubles with PuppetDB's data: clocks that are ahead, and facts and reports that name different masters. */
function evidenceTroubles({ clocksAhead, flapping }: Omit<SyncReport, "targets">): Trouble[] {
  const troubles = Object.entries(clocksAhead).map(([producer, { nodes, until }]) => {
    const what = `the clock of ${shown(producer)} was ahead: submissions of ${counted(nodes, "node")} are dated up to ${until}. sasori uses the time at which PuppetDB received them`;
    const remedy = `correct that clock. Until the wrong date has passed, PuppetDB refuses newer facts of these nodes. To end that now, delete the nodes from PuppetDB (admin command "delete"); their next Puppet run brings them back`;
    return warning("clock_ahead", shown(producer), what, remedy);
  });
  if (flapping.count > 0) {
    const pairs = flapping.between.map(([facts, report]) => `facts from ${facts}, reports from ${report}`);
    const what = `facts and reports of ${counted(flapping.count, "node")} come from different masters in every run: ${pairs.join("; ")}`;
    const remedy = "if your agents' report_server differs from their server, set SASORI_OBSERVATIONS=facts";
    troubles.push(warning("flapping", "puppetdb", what, remedy));
  }
  return troubles;
}

/** The state of everything, in one word and in one sentence. */
export function summarize(
  { pass, targets }: { pass: Situation["pass"]; targets: readonly Pick<TargetState, "inSync" | "pending">[] },
  troubles: readonly Trouble[],
): Pick<Status, "state" | "summary"> {
  const [worst] = troubles;
  if (pass === undefined && worst?.code !== "stalled")
    return { state: "starting", summary: "The first pass is still running." };
  if (worst !== undefined) {
    const more = troubles.length > 1 ? ` And ${counted(troubles.length - 1, "more trouble")}.` : "";
    const state = worst.severity === "critical" ? "failing" : "attention";
    return { state, summary: `${headline(worst)}${more}` };
  }
  const nodes = counted(pass?.nodes ?? 0, "node");
  const behind = targets.filter(({ inSync }) => !inSync);
  if (behind.length > 0) {
    const pending = Math.max(...targets.map((target) => target.pending));
    const changes = pending > 0 ? `, ${counted(pending, "change")} pending` : "";
    return {
      state: "catching up",
      summary: `${nodes}; ${counted(behind.length, "target")} behind${changes}.`,
    };
  }
  const haproxys = targets.length - 1;
  const where =
    haproxys === 0 ? "in the map file" : `in the map file and in ${counted(haproxys, "HAProxy instance")}`;
  return { state: "in sync", summary: `${nodes}, ${where}.` };
}

function headline({ where, what, severity }: Trouble): string {
  // A long message is cut, between two words if possible. The time after it is kept whole.
  const [, message = what, since = ""] = /^(.*?)( \(since [^()]*\))?$/s.exec(what) ?? [];
  const cut = message.slice(0, 200).replace(/\s+\S{0,40}$/, "");
  const text = (message.length > 200 ? `${cut}…` : message) + since;
  const place = severity === "critical" && !text.includes(where) ? `${where}: ` : "";
  return `${place}${text}${/[.?!…]$/.test(text) ? "" : "."}`;
}
