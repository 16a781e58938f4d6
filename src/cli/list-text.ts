// What the command line prints of lists, for people: nodes, masters, moves, passes, and what the doctor found.
// Pure: values in, text out.

import { age, counted, duration, number, percent } from "../counts.js";
import type { Finding } from "../doctor/check.js";
import type { Diagnosis } from "../doctor/doctor.js";
import { quote } from "../errors.js";
import type { Masters, Move, Node, Pass, Replica, Replicas, ServerLoad } from "../http/api-shapes.js";
import { SILENT_MS } from "../http/lacking.js";
import { remedyFor, shown, UNROUTABLE_REMEDY, withoutPlace } from "../http/troubles.js";
import { localTime, prose, type Style, table } from "./report-text.js";
import type { Column } from "./table.js";

export const NODE_COLUMNS = ["NODE", "MASTER", "SOURCE", "SINCE"];

/** The age of an inherited route is that of the file, which says nothing about its source. */
export const nodeRow = ({ certname, master, source, since }: Node): string[] => [
  certname,
  master,
  source === "inherited" ? "" : source,
  since === null ? "" : localTime(since),
];

const LOAD_COLUMNS: Column[] = [
  { head: "SESSIONS", isNumber: true },
  { head: "QUEUE", isNumber: true },
  { head: "REQUESTS", isNumber: true },
];
const MASTER_COLUMNS: (Column | string)[] = [
  "MASTER",
  { head: "NODES", isNumber: true },
  { head: "SHARE", isNumber: true },
  "STATE",
];

/** One row for each master, with the sums of all HAProxy instances. `wide`: one for each of its servers, in each HAProxy. */
export function masterColumns(isWide: boolean): (Column | string)[] {
  return isWide ? [...MASTER_COLUMNS, "HAPROXY", ...LOAD_COLUMNS] : [...MASTER_COLUMNS, ...LOAD_COLUMNS];
}

export function masterRows({ masters, failures }: Masters, isWide: boolean, style: Style): string[][] {
  // With SASORI_HAPROXY=none there is no HAProxy to have a server.
  const isAsked = failures.length > 0 || masters.some(({ servers }) => servers.length > 0);
  return masters.flatMap(({ master, nodes, share, servers }) => {
    const about = [style.bold(master), number(nodes), percent(share)];
    if (servers.length === 0) return [[...about, isAsked ? style.bad("no server in any HAProxy") : ""]];
    if (!isWide) return [[...about, stateOf(servers, style), ...load(servers)]];
    return servers.map((server) => [...about, stateOf([server], style), server.haproxy, ...load([server])]);
  });
}

const HEALTH_COLOURS = { up: "good", drained: "warn", down: "bad" } as const;

/** `UP`, or how many HAProxy instances say what, `UP 2, DOWN 1`; then the servers of a pool that get no requests. */
function stateOf(servers: readonly ServerLoad[], style: Style): string {
  const counts = new Map<string, { state: ServerLoad["state"]; count: number }>();
  for (const { status, state } of servers)
    counts.set(status, { state, count: (counts.get(status)?.count ?? 0) + 1 });
  const parts = Array.from(counts, ([status, { state, count }]) =>
    style[HEALTH_COLOURS[state]](counts.size === 1 ? status : `${status} ${count}`),
  );
  const away = new Set(servers.flatMap((server) => awayOf(server, style)));
  return [...parts, ...away].join(", ");
}

/** `3/50`: of a limit, where every server has one. */
function load(servers: readonly ServerLoad[]): string[] {
  const sum = (of: (server: ServerLoad) => number | null) =>
    servers.reduce<number | null>((total, server) => {
      const value = of(server);
      return total === null || value === null ? null : total + value;
    }, 0);
  const of = (value: number | null, limit: number | null) =>
    `${number(value ?? 0)}${limit === null ? "" : `/${number(limit)}`}`;
  return [
    of(
      sum(({ sessions }) => sessions),
      sum(({ maxconn }) => maxconn),
    ),
    of(
      sum(({ queue }) => queue),
      sum(({ maxqueue }) => maxqueue),
    ),
    of(
      sum(({ requests }) => requests),
      null,
    ),
  ];
}

/** What the table of masters cannot show: producers without a server, and HAProxy instances that did not answer. */
export function masterTroubles({ unroutable, failures }: Masters, style: Style): string[] {
  const lines = unroutable.map(
    ({ producer, nodes }) => `${style.warn("no server")}: ${shown(producer)}, ${counted(nodes, "node")}`,
  );
  if (unroutable.length > 0) lines.push(`  → ${UNROUTABLE_REMEDY}`);
  for (const { haproxy, failure } of failures) {
    lines.push(
      `${style.bad("failed")}: ${haproxy}: ${failure.code}: ${withoutPlace(failure.message, haproxy)}`,
    );
  }
  return lines;
}

/** BY and REASON: who registered the node, and why, if that is known. */
export const MOVE_COLUMNS = ["TIME", "NODE", "FROM", "TO", "SOURCE", "BY", "REASON"];

export const moveRow = ({ at, certname, from, to, source, by, reason }: Move, style: Style): string[] => [
  style.dim(localTime(at)),
  certname,
  from ?? style.dim("(new)"),
  to ?? style.warn("(removed)"),
  source ?? "",
  by === undefined ? "" : shown(by),
  reason === undefined ? "" : quote(reason, reason.length),
];

/** The servers of a pool that get no requests. */
function awayOf({ members = [] }: ServerLoad, style: Style): string[] {
  const away = members.filter(({ state }) => state !== "up");
  return away.map(({ name, state, status }) => style[HEALTH_COLOURS[state]](`${name} ${status}`));
}

const isWell = ({ state, silentMs }: Replica) =>
  silentMs < SILENT_MS && (state === "in sync" || state === "catching up");

export const isAllWell = ({ failure, replicas }: Replicas): boolean =>
  failure === undefined && replicas.every(isWell);

/** Each replica with its last word. */
export function renderReplicas({ shared, failure, replicas }: Replicas, style: Style): string {
  const rows = replicas.map((replica) => {
    const { name, self, nodes, version, lastPass, haproxys, state, summary, silentMs } = replica;
    const lacking = haproxys.filter(({ inSync }) => !inSync).map(({ target }) => shown(target));
    const about = [
      counted(nodes, "node"),
      `${haproxys.length - lacking.length} of ${counted(haproxys.length, "HAProxy instance")} in sync`,
      lastPass === null
        ? "no pass yet"
        : `last pass ${lastPass.outcome}, ${age(lastPass.startedAt, Date.now())}`,
      `sasori ${version}`,
    ];
    if (silentMs >= SILENT_MS) about.push(style.bad(`silent for ${duration(silentMs)}`));
    const why = isWell(replica) ? "" : prose(summary);
    return [
      `${style.bold(shown(name))}${self ? " (this one)" : ""}`,
      isWell(replica) ? style.good(state) : style.warn(state),
      about.join(", "),
      [why, ...lacking].filter((text) => text !== "").join("; "),
    ];
  });
  const lines = table(rows);
  if (failure)
    lines.push(`${style.bad(failure.code)}: ${failure.message}`, `  → ${remedyFor("STATE_DATABASE")}`);
  if (!shared) lines.push("SASORI_STATE_URL is not set: this sasori shares nothing with others");
  return lines.join("\n");
}

export const PASS_COLUMNS: (Column | string)[] = [
  "TIME",
  "KIND",
  "OUTCOME",
  { head: "DURATION", isNumber: true },
  { head: "NODES", isNumber: true },
  { head: "CHANGED", isNumber: true },
  "DETAILS",
];

export function passRow(
  { startedAt, kind, dryRun, outcome, durationMs, ...pass }: Pass,
  style: Style,
): string[] {
  const written = pass.targets.filter((target) => target.outcome === "applied").map(({ target }) => target);
  const details = [
    dryRun ? "dry run" : "",
    pass.moved === 0 && written.length > 0 ? `pushed to ${written.join(", ")}` : "",
    pass.learned > 0 ? `${number(pass.learned)} learned` : "",
    pass.held ? `held: ${pass.held.id}, ${counted(pass.held.count, "node")}` : "",
    pass.source.failure ? `PuppetDB: ${pass.source.failure.code}` : "",
    ...pass.targets.map(({ target, failure }) => (failure ? `${target}: ${failure.code}` : "")),
    ...[...pass.masters.failures, pass.journal].map((failure) => failure?.code ?? ""),
  ];
  const verdict = { done: style.good, failed: style.bad, held: style.warn }[outcome];
  return [
    style.dim(localTime(startedAt)),
    kind,
    verdict(outcome),
    duration(durationMs),
    number(pass.nodes),
    number(pass.moved),
    details.filter((text) => text !== "").join(", "),
  ];
}

const MARKS = { ok: "good", warning: "warn", failed: "bad", skipped: "dim" } as const;

/** One finding: a line, and below it what to do. */
export function renderFinding({ check, where, outcome, detail, remedy }: Finding, style: Style): string {
  const mark = style[MARKS[outcome]](outcome.padEnd(7));
  const subject = where === undefined ? style.bold(check) : `${style.bold(check)} ${where}`;
  // The detail may have several lines, such as all problems of the configuration.
  const [first, ...more] = prose(detail).split("\n");
  const lines = [`${mark}  ${subject}: ${first}`, ...more.map((line) => `         ${line.trim()}`)];
  if (remedy !== undefined) lines.push(`         → ${remedy}`);
  return lines.join("\n");
}

/** The last line: how many of each, and what that means. */
export function renderDiagnosis({ outcome, findings }: Diagnosis, style: Style): string {
  const count = (wanted: Finding["outcome"]) =>
    findings.filter((finding) => finding.outcome === wanted).length;
  const counts = [
    [count("failed"), "failed"],
    [count("warning"), count("warning") === 1 ? "warning" : "warnings"],
    [count("skipped"), "skipped"],
    [count("ok"), "ok"],
  ] as const;
  const sum = counts.filter(([number]) => number > 0).map(([number, word]) => `${number} ${word}`);
  const verdict = {
    ok: style.good("everything is in order"),
    warning: style.warn("sasori can work; see the warnings"),
    failed: style.bad("sasori cannot do all of its work; see what failed"),
    misconfigured: style.bad("correct the configuration first; the other checks need it"),
  }[outcome];
  return `\n${sum.join(", ")}: ${verdict}`;
}
