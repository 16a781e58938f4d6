// What the command line prints for people: short, aligned, saying what changed and what to do about it.
// Pure: values in, text out.

import { age, counted, duration, number } from "../counts.js";
import { quote } from "../errors.js";
import type { Lookup, Move, Pass, Status, Story, TargetRow, Trouble } from "../http/api-shapes.js";
import { lacking } from "../http/lacking.js";
import { shown, troublesOfReport, withoutPlace } from "../http/troubles.js";
import type { Change } from "../plan.js";
import type { SyncReport } from "../sync-report.js";
import type { TargetReport } from "../target/tracked-target.js";

/** Lists longer than a screen are cut: `--json` has all that the report lists. */
const MAX_LINES = 25;
/** Of one node's story; `sasori moves <certname>` has all. */
const MAX_MOVES = 5;

export interface Style {
  bold(text: string): string;
  dim(text: string): string;
  good(text: string): string;
  bad(text: string): string;
  warn(text: string): string;
}

/** Colours on a terminal that wants them (NO_COLOR is respected), plain text elsewhere. */
export function styleFor(
  stream: { isTTY?: boolean },
  env: Readonly<Record<string, string | undefined>>,
): Style {
  const colours = stream.isTTY === true && !env.NO_COLOR && env.TERM !== "dumb";
  const paint = (code: number) => (text: string) => (colours ? `\u001b[${code}m${text}\u001b[0m` : text);
  return { bold: paint(1), dim: paint(2), good: paint(32), bad: paint(31), warn: paint(33) };
}

const two = (value: number) => String(value).padStart(2, "0");

/** A time of the API, in the reader's time zone (TZ): `2026-05-01 14:00:00`. */
export function localTime(iso: string): string {
  const at = new Date(iso);
  const day = [at.getFullYear(), two(at.getMonth() + 1), two(at.getDate())].join("-");
  return `${day} ${[at.getHours(), at.getMinutes(), at.getSeconds()].map(two).join(":")}`;
}

/** Converts such times within a sentence. Times in file names have no colons, and stay as they are. */
export const prose = (text: string) => text.replaceAll(/\d{4}-\d\d-\d\dT\d\d:\d\d:[\d.]{2,6}Z/g, localTime);

// biome-ignore lint/suspicious/noControlCharactersInRegex: what `styleFor` puts in
const PAINT = /\u001b\[\d+m/g;
export const width = (cell = "") => cell.replaceAll(PAINT, "").length;

/** Columns padded to their widest cell, painted or not; the last one is left as it is. */
export function table(rows: readonly string[][]): string[] {
  const widths: number[] = [];
  for (const row of rows)
    for (const [column, cell] of row.slice(0, -1).entries())
      widths[column] = Math.max(widths[column] ?? 0, width(cell));
  const padded = (cell: string, column: number) => cell + " ".repeat((widths[column] ?? 0) - width(cell));
  return rows.map((row) =>
    row
      .map((cell, column) => (column === row.length - 1 ? cell : padded(cell, column)))
      .join("  ")
      .trimEnd(),
  );
}

function changeLines(changes: readonly Change[], total: number): string[] {
  const lines = table(
    changes
      .slice(0, MAX_LINES)
      .map(({ certname, from, to }) => [certname, `${from ?? "(new)"} → ${to ?? "(removed)"}`]),
  );
  if (total > lines.length) lines.push(`… and ${number(total - lines.length)} more`);
  return lines;
}

function countsOf({ add, set, del }: TargetReport): string {
  const parts = [
    [set, "changed"],
    [add, "added"],
    [del, "removed"],
  ] as const;
  return parts
    .filter(([count]) => count > 0)
    .map(([count, what]) => `${number(count)} ${what}`)
    .join(", ");
}

function targetLine(report: TargetReport, style: Style): [string, string, string] {
  const { target, kind, failure, outcome, method, learned } = report;
  if (failure) return [kind, target, `${style.bad("failed")}: ${failure.code}`];
  const how = method === undefined || method === "file" ? "" : ` (${method})`;
  const what = outcome === "unchanged" ? "in sync" : `${outcome}: ${countsOf(report) || "rewritten"}${how}`;
  const remarks = [
    ...(learned > 0 ? [`${counted(learned, "route")} learned`] : []),
    ...(report.changedByOthers ? ["changed by another program"] : []),
  ];
  return [kind, target, [what, ...remarks].join(", ")];
}

/** The result of `sync`: what changed in the map, then each target. */
export function renderReport(report: SyncReport, style: Style): string {
  const { kind, nodes, moved, dryRun, targets } = report;
  const verdict = { done: style.good("done"), failed: style.bad("failed"), held: style.warn("held") }[
    report.outcome
  ];
  const lines = changeLines(targets[0]?.changes ?? [], moved);
  if (lines.length > 0) lines.push("");
  const summary = `${verdict} in ${duration(report.durationMs)}: ${counted(nodes, "node")}, ${number(moved)} changed`;
  lines.push(`${style.bold(`${kind} pass${dryRun ? " (dry run)" : ""}`)} ${summary}`);
  lines.push(...table(targets.map((target) => ["", ...targetLine(target, style)])));
  lines.push(...troubleLines(troublesOfReport(report), style), ...remarks(report, style));
  if (report.approvalUnmatched) lines.push(`${style.warn("approval")}: ${UNMATCHED}`);
  return lines.join("\n");
}

function troubleLines(troubles: readonly Trouble[], style: Style): string[] {
  return troubles.flatMap(({ severity, code, where, what, remedy }) => {
    const paint = severity === "critical" ? style.bad : style.warn;
    const place = severity === "critical" ? ` ${where}` : "";
    return [`${paint(code)}${place}: ${prose(what)}`, `  → ${prose(remedy)}`];
  });
}

/** Remarks: no troubles, but worth knowing. */
function remarks(
  { masters, withoutProducer }: Pick<Pass, "masters" | "withoutProducer">,
  style: Style,
): string[] {
  const lines = masters.changes.flatMap(({ haproxy, master, change, failure }) =>
    failure === undefined ? [`master ${master}: ${change} at run time in ${haproxy}`] : [],
  );
  if (withoutProducer.count > 0) {
    const names = withoutProducer.samples.join(", ");
    lines.push(
      `${style.dim("no producer")}: PuppetDB names no producer for ${counted(withoutProducer.count, "node")}: ${names}`,
    );
  }
  return lines;
}

/** The result of `diff`: what each target would change. */
export function renderDiff(report: SyncReport, style: Style): string {
  const lines: string[] = [];
  for (const target of report.targets) {
    const [kind, name, what] = targetLine(target, style);
    lines.push(`${style.bold(kind)} ${name}: ${what}`);
    lines.push(
      ...changeLines(target.changes, target.add + target.set + target.del).map((line) => `  ${line}`),
    );
  }
  lines.push(...troubleLines(troublesOfReport(report), style), ...remarks(report, style));
  return lines.join("\n");
}

/** For an approval that matched no held plan. */
const UNMATCHED = "nothing was approved: no held plan has this id, or PuppetDB could not be read";

/** What is still missing after a change was accepted: `1 target could not be written yet ...`. Empty if nothing is. */
export function lacksInWords(story: Story): string {
  const untold = lacking(story);
  const targets = `${counted(untold, "target")} could not be written yet; the next pass writes the change`;
  return [untold > 0 ? targets : "", story.unsaved?.message ?? ""].filter((text) => text !== "").join("; ");
}

/** `, "disk of master1" by ana@host`: the reason of a registration and who made it, if known. */
const remarksInWords = ({ reason, by }: Pick<Move, "reason" | "by">): string =>
  `${reason === undefined ? "" : `, ${quote(reason, reason.length)}`}${by === undefined ? "" : ` by ${shown(by)}`}`;

const NOT_IN_IT = "does not have it";

/** A lookup; from the daemon it is the node's whole story. */
export function renderLookup(found: Lookup & Partial<Story>, style: Style): string {
  const { certname, desired, file, live, health = [], home, moves } = found;
  const since = desired.since ? ` since ${localTime(desired.since)}` : "";
  const failed = ({ code, message }: { code: string; message: string }, where = "") =>
    `${style.bad("failed")}: ${code}: ${withoutPlace(message, where)}`;
  const known = moves !== undefined; // Only a lookup without the daemon asks PuppetDB.
  const why = desired.failure
    ? failed(desired.failure)
    : desired.master === undefined
      ? `none: ${known ? "the map does not have this node" : "PuppetDB has no submission for it from a known master"}`
      : `${style.bold(desired.master)}, from ${desired.source}${desired.puppetdb ? ` of ${desired.puppetdb}` : ""}${since}${remarksInWords(desired)}`;
  const rows: [string, string][] = [["desired", why]];
  rows.push(["file", "failure" in file ? failed(file.failure) : (file.master ?? NOT_IN_IT)]);
  for (const { haproxy, master, failure } of live) {
    const state = health.find((seen) => seen.haproxy === haproxy)?.state ?? "up";
    const where = `${master ?? NOT_IN_IT}${state === "up" ? "" : `, which is ${style.warn(state)} there`}`;
    rows.push([haproxy, failure ? failed(failure, haproxy) : where]);
  }
  if (desired.unroutableProducer) {
    const producer = shown(desired.unroutableProducer);
    rows.push(["producer", `${producer} submitted last, but HAProxy has no server for it`]);
  }
  if (desired.heldBy) {
    const remedy = `\`sasori sync --approve ${desired.heldBy}\` removes it`;
    rows.push(["held", `PuppetDB no longer lists this node; ${remedy}`]);
  }
  if (home)
    rows.push([
      "home",
      `${home}; the node left it while it was down or drained. \`sasori rebalance\` moves it back`,
    ]);
  for (const { at, from, to } of moves?.slice(0, MAX_MOVES) ?? []) {
    rows.push([style.dim(localTime(at)), `${from ?? "(new)"} → ${to ?? "(removed)"}`]);
  }
  if (!desired.failure && !desired.master && live.every((one) => !one.failure && !one.master))
    rows.push(["requests", "the gateway answers 404 node_unknown"]);
  return [style.bold(certname), ...table(rows.map((row) => ["", ...row]))].join("\n");
}

const STATE_COLOURS = {
  starting: "warn",
  "in sync": "good",
  "catching up": "warn",
  attention: "warn",
  failing: "bad",
} as const;

/** The state in one sentence, each target, and every trouble with what to do about it. */
export function renderStatus(status: Status, style: Style): string {
  const { lastPass, state, summary, version, startedAt, lastGoodPoll, targets, troubles } = status;
  const lines = [`${style[STATE_COLOURS[state]](state)}: ${prose(summary)}`];
  const about = targets.map((target) => ["", target.kind, target.target, stateOf(target, style)]);
  about.push(["", "sasori", `${version}, up since ${localTime(startedAt)}`]);
  about.push([
    "",
    "PuppetDB",
    lastGoodPoll === null ? "not read yet" : `last read ${age(lastGoodPoll, Date.now())}`,
  ]);
  if (lastPass) {
    const { kind, outcome, startedAt: at, durationMs } = lastPass;
    about.push(["", "last pass", `${kind}, ${outcome}, ${age(at, Date.now())}, ${duration(durationMs)}`]);
  }
  lines.push(...table(about));
  if (troubles.length > 0) lines.push("", ...troubleLines(troubles, style));
  if (lastPass) lines.push(...remarks(lastPass, style));
  return lines.join("\n");
}

function stateOf(target: TargetRow, style: Style): string {
  const { inSync, pending, failure, version, servers, comparedAt } = target;
  if (failure) return `${style.bad("failed")}: ${failure.code}`;
  const those = (which: "down" | "drained") => {
    const found = servers?.filter(({ state }) => state === which).map(({ name }) => name) ?? [];
    return found.length > 0 ? style.warn(`${which}: ${found.join(", ")}`) : "";
  };
  const about = [
    inSync ? style.good("in sync") : `${counted(pending, "change")} pending`,
    version ? `HAProxy ${version}` : "",
    comparedAt ? `all entries compared ${age(comparedAt, Date.now())}` : "",
    those("down"),
    those("drained"),
  ];
  return about.filter((text) => text !== "").join(", ");
}
