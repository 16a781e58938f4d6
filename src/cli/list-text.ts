// What the command line prints of lists, for people: nodes, masters, moves, passes, and what the doctor found.
// Pure: values in, text out.

import type { Finding } from "../doctor/check.js";
import type { Diagnosis } from "../doctor/doctor.js";
import type { Masters, Move, Node, Pass, Replica, Replicas, ServerLoad } from "../http/api-shapes.js";
import { counted, number, remedyFor, shown, UNROUTABLE_REMEDY, withoutPlace } from "../http/troubles.js";
import { ago, localTime, prose, remarksInWords, type Style, seconds, table } from "./report-text.js";

export function renderNodes(nodes: readonly Node[], style: Style): string[] {
  return table(
    nodes.map(({ certname, master, source, since }) => [
      certname,
      master,
      style.dim(source === "inherited" ? "" : `${source}${since === null ? "" : ` ${localTime(since)}`}`),
    ]),
  );
}

export function renderMasters({ masters, unroutable, failures }: Masters, style: Style): string {
  // With SASORI_HAPROXY=none there is no HAProxy to have one.
  const isAsked = failures.length > 0 || masters.some(({ servers }) => servers.length > 0);
  const rows = masters.flatMap(({ master, nodes, share, servers }) => {
    const about = [style.bold(master), counted(nodes, "node"), `${(share * 100).toFixed(1)} %`];
    if (servers.length === 0) return [isAsked ? [...about, style.bad("no server in any HAProxy")] : about];
    return servers.map((server, index) => [
      ...(index === 0 ? about : ["", "", ""]),
      `${loadOf(server, style)}${awayOf(server, style)}`,
      style.dim(server.haproxy),
    ]);
  });
  const lines = table(rows);
  for (const { producer, nodes } of unroutable) {
    lines.push(`${style.warn("no server")}: ${shown(producer)}, ${counted(nodes, "node")}`);
  }
  if (unroutable.length > 0) {
    lines.push(`  → ${UNROUTABLE_REMEDY}`);
  }
  for (const { haproxy, failure } of failures) {
    lines.push(
      `${style.bad("failed")}: ${haproxy}: ${failure.code}: ${withoutPlace(failure.message, haproxy)}`,
    );
  }
  return lines.length === 0 ? "no masters" : lines.join("\n");
}

const HEALTH_COLOURS = { up: "good", drained: "warn", down: "bad" } as const;

function loadOf(
  { status, state, sessions, maxconn, queue, maxqueue, requests }: ServerLoad,
  style: Style,
): string {
  const of = (value: number, limit: number | null) =>
    limit === null ? number(value) : `${number(value)}/${number(limit)}`;
  const health = style[HEALTH_COLOURS[state]](status);
  return `${health}, ${of(sessions, maxconn)} sessions, queue ${of(queue, maxqueue)}, ${counted(requests, "request")}`;
}

/** The servers of a pool that get no requests. */
function awayOf({ members = [] }: ServerLoad, style: Style): string {
  const away = members.filter(({ state }) => state !== "up");
  return away
    .map(({ name, state, status }) => `, ${style[HEALTH_COLOURS[state]](`${name} ${status}`)}`)
    .join("");
}

/** A replica that is silent for longer is in trouble, whatever it said. */
const SILENT_MS = 60_000;

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
      `${haproxys.length - lacking.length} of ${counted(haproxys.length, "HAProxy", "HAProxys")} in sync`,
      lastPass === null
        ? "no pass yet"
        : `last pass ${lastPass.outcome}, ${ago(lastPass.startedAt, Date.now())}`,
      `sasori ${version}`,
    ];
    if (silentMs >= SILENT_MS) about.push(style.bad(`silent for ${seconds(silentMs)}`));
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

export function renderMove({ at, certname, from, to, source, ...remarks }: Move, style: Style): string {
  const why = source === null ? "" : style.dim(`  ${source}${remarksInWords(remarks)}`);
  return `${style.dim(localTime(at))}  ${certname}  ${from ?? "(new)"} → ${to ?? style.warn("(removed)")}${why}`;
}

export function renderPass(
  { startedAt, kind, dryRun, outcome, durationMs, ...pass }: Pass,
  style: Style,
): string {
  const verdict = { done: style.good("done"), failed: style.bad("failed"), held: style.warn("held") }[
    outcome
  ];
  const written = pass.targets.filter((target) => target.outcome === "applied").map(({ target }) => target);
  const about = [
    `${counted(pass.nodes, "node")}`,
    pass.moved > 0 ? `${number(pass.moved)} changed` : "",
    pass.moved === 0 && written.length > 0 ? `pushed to ${written.join(", ")}` : "",
    pass.learned > 0 ? `${number(pass.learned)} learned` : "",
    pass.held ? `held: ${pass.held.id}, ${counted(pass.held.count, "node")}` : "",
    pass.source.failure ? `PuppetDB: ${pass.source.failure.code}` : "",
    ...pass.targets.map(({ target, failure }) => (failure ? `${target}: ${failure.code}` : "")),
    ...[...pass.masters.failures, pass.journal].map((failure) => failure?.code ?? ""),
  ];
  const what = about.filter((text) => text !== "").join(", ");
  return `${style.dim(localTime(startedAt))}  ${kind}${dryRun ? " (dry run)" : ""}  ${verdict}  ${seconds(durationMs)}  ${what}`;
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
    ok: style.good("all is well"),
    warning: style.warn("sasori can work; look at the warnings"),
    failed: style.bad("something is in sasori's way"),
    misconfigured: style.bad("the configuration comes first; the rest is checked when it is valid"),
  }[outcome];
  return `\n${sum.join(", ")}: ${verdict}`;
}
