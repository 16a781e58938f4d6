// What the command line prints for people: short, aligned, saying what changed and what to do about it.
// Pure: values in, text out.

import { quote } from "./errors.js";
import type { Displaced, Status } from "./http-api.js";
import type { Lookup } from "./lookup.js";
import type { Change } from "./plan.js";
import type { SyncReport } from "./sync-report.js";
import type { TargetReport, TargetState } from "./tracked-target.js";

/** Lists longer than a screen are cut: `--json` has all that the report lists. */
const MAX_LINES = 25;

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

const number = (value: number) => value.toLocaleString("en-US");
/** A name from PuppetDB: as it is, unless it could do something to a terminal. */
const shown = (name: string) => (/^[!-~]+$/.test(name) ? name : quote(name));
const counted = (value: number, one: string, many = `${one}s`) =>
  `${number(value)} ${value === 1 ? one : many}`;
const seconds = (ms: number) => (ms < 1000 ? `${ms} ms` : `${(ms / 1000).toFixed(1)} s`);

/** Columns padded to their widest cell; the last one is left as it is. Cells are given unpainted widths. */
function table(rows: string[][]): string[] {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
  return rows.map((row) =>
    row
      .map((cell, column) => (column === row.length - 1 ? cell : cell.padEnd(widths[column] ?? 0)))
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
  if (failure) return [kind, target, `${style.bad("failed")}: ${failure.code}: ${failure.message}`];
  const how = method === undefined || method === "file" ? "" : ` (${method})`;
  const what = outcome === "unchanged" ? "in sync" : `${outcome}: ${countsOf(report) || "rewritten"}${how}`;
  const remarks = [
    ...(learned > 0 ? [`${counted(learned, "route")} learned`] : []),
    ...(report.changedByOthers ? ["changed by somebody else"] : []),
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
  const summary = `${verdict} in ${seconds(report.durationMs)}: ${counted(nodes, "node")}, ${number(moved)} changed`;
  lines.push(`${style.bold(`${kind} pass${dryRun ? " (dry run)" : ""}`)} ${summary}`);
  lines.push(...table(targets.map((target) => ["", ...targetLine(target, style)])));
  lines.push(...failures(report, style), ...remarks(report, style));
  if (report.approvalUnmatched)
    lines.push(`${style.warn("approval")}: no held plan has this id; nothing was let through`);
  return lines.join("\n");
}

function failures(
  { source, journal, masters }: Pick<SyncReport, "source" | "journal" | "masters">,
  style: Style,
): string[] {
  const lines = masters.changes.map(({ haproxy, master, change, failure }) => {
    const what = failure ? `not ${change}: ${failure.code}: ${failure.message}` : change;
    return `${failure ? style.bad("master") : "master"} ${master}: ${what} at run time in ${haproxy}`;
  });
  lines.push(...masters.failures.map(({ code, message }) => `${style.bad("master")}: ${code}: ${message}`));
  if (source.failure)
    lines.push(`${style.bad("PuppetDB")}: ${source.failure.code}: ${source.failure.message}`);
  if (journal) lines.push(`${style.bad("state file")}: ${journal.code}: ${journal.message}`);
  return lines;
}

function remarks(
  report: Pick<SyncReport, "held" | "displaced" | "unroutable" | "refused" | "withoutProducer">,
  style: Style,
): string[] {
  const { held, displaced, unroutable, refused, withoutProducer } = report;
  const lines: string[] = [];
  if (displaced > 0) {
    lines.push(`${style.warn("displaced")}: ${counted(displaced, "node")} left a master while it was down`);
    lines.push("  when it is up for good: sasori rebalance --dry-run");
  }
  if (held) {
    lines.push(`${style.warn("held")}: ${held.reason}; the old entries keep serving`);
    lines.push(`  if that is right: sasori sync --approve ${held.id}`);
  }
  if (unroutable.nodes > 0) {
    const names = Object.entries(unroutable.producers).map(
      ([producer, count]) => `${shown(producer)} ${number(count)}`,
    );
    lines.push(
      `${style.warn("unroutable")}: ${counted(unroutable.nodes, "node")} of producers without a server (${names.join(", ")})`,
    );
    lines.push("  give HAProxy a server of that name or host, or set SASORI_MASTER_ALIASES");
  }
  if (refused.count > 0) {
    const shown = refused.samples.map((name) => JSON.stringify(name)).join(", ");
    lines.push(
      `${style.warn("refused")}: ${counted(refused.count, "certname")} that cannot be map keys: ${shown}`,
    );
  }
  if (withoutProducer.count > 0) {
    lines.push(
      `${style.dim("no producer")}: ${counted(withoutProducer.count, "node")} without a known master: ${withoutProducer.samples.join(", ")}`,
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
  lines.push(...failures(report, style), ...remarks(report, style));
  return lines.join("\n");
}

export function renderDisplaced(nodes: readonly Displaced[]): string {
  if (nodes.length === 0) return "no displaced nodes";
  return table(nodes.map(({ certname, home, master }) => [certname, `at ${master}, at home ${home}`])).join(
    "\n",
  );
}

export function renderLookup({ certname, desired, file, live }: Lookup, style: Style): string {
  const since = desired.since ? ` since ${desired.since}` : "";
  const why = desired.failure
    ? `${style.bad("unknown")}: ${desired.failure.code}: ${desired.failure.message}`
    : desired.master === undefined
      ? "no master: PuppetDB has no submission of a routable producer for it"
      : `${style.bold(desired.master)}, from ${desired.source}${since}`;
  const rows: string[][] = [["", "desired", why]];
  rows.push([
    "",
    "file",
    "failure" in file ? `${file.failure.code}: ${file.failure.message}` : (file.master ?? "not in it"),
  ]);
  for (const { haproxy, master, failure } of live) {
    rows.push(["", haproxy, failure ? `${failure.code}: ${failure.message}` : (master ?? "not in it")]);
  }
  if (desired.unroutableProducer) {
    rows.push([
      "",
      "producer",
      `${shown(desired.unroutableProducer)} submitted last, and HAProxy has no such server`,
    ]);
  }
  if (desired.heldBy) {
    rows.push([
      "",
      "held",
      `PuppetDB no longer lists it; sasori sync --approve ${desired.heldBy} removes it`,
    ]);
  }
  return [style.bold(certname), ...table(rows)].join("\n");
}

export function renderStatus(status: Status, style: Style): string {
  const { lastPass } = status;
  const state = status.ready ? style.good("serving") : style.bad("not ready");
  const lines = [
    `${style.bold("sasori")} ${state}: ${counted(status.nodes, "node")}, up since ${status.startedAt}`,
  ];
  if (lastPass) {
    lines.push(
      `last pass: ${lastPass.kind}, ${lastPass.outcome}, ${lastPass.startedAt}, ${seconds(lastPass.durationMs)}`,
    );
  }
  lines.push(
    ...table(status.targets.map((target) => ["", target.kind, target.target, stateOf(target, style)])),
  );
  if (lastPass) lines.push(...failures(lastPass, style), ...remarks(lastPass, style));
  return lines.join("\n");
}

function stateOf({ inSync, pending, failure, version, servers }: TargetState, style: Style): string {
  if (failure) return `${style.bad("failed")}: ${failure.code}: ${failure.message}`;
  const down = servers?.filter(({ up }) => !up).map(({ name }) => name) ?? [];
  const about = [
    inSync ? style.good("in sync") : `${counted(pending, "change")} to come`,
    version ? `HAProxy ${version}` : "",
    down.length > 0 ? style.warn(`down: ${down.join(", ")}`) : "",
  ];
  return about.filter((text) => text !== "").join(", ");
}
