// Vitest's global setup of the fault suite: at the end one table of what all files found, printed and as JSON. A whole
// run must have seen every error code that the README's "When things break" promises.

import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { haproxyBinaries } from "../support/parts.js";
import { type Ledger, RESULTS, type Row } from "./ledger.js";

export function setup(): void {
  rmSync(RESULTS, { recursive: true, force: true });
  mkdirSync(RESULTS, { recursive: true });
}

export function teardown(): void {
  if (!existsSync(RESULTS)) return;
  const parts = readdirSync(RESULTS)
    .sort()
    .map((name) => JSON.parse(readFileSync(path.join(RESULTS, name), "utf8")) as Ledger);
  const rows = parts.flatMap((part) => part.rows);
  const codes = Object.assign({}, ...parts.map((part) => part.codes)) as Ledger["codes"];
  if (rows.length === 0) return;
  console.log(`\n${table(rows)}\n`);
  const about = {
    form: process.env.FAULTS_LONG === "yes" ? "long" : "short",
    haproxy: haproxyBinaries().map(({ version }) => version),
  };
  writeFileSync(path.join(RESULTS, "faults.json"), `${JSON.stringify({ ...about, rows, codes }, null, 1)}\n`);
  if (process.env.FAULTS_WHOLE !== "yes") return;
  const unseen = promisedCodes().filter((code) => !(code in codes));
  if (unseen.length > 0)
    throw new Error(`the README promises codes that no fault has shown: ${unseen.join(", ")}`);
}

function table(rows: readonly Row[]): string {
  const columns = ["fault", "tries", "lost", "misrouted", "failed", "requests", "seconds"] as const;
  const show = (value: string | number) =>
    typeof value === "string" ? value : Number.isInteger(value) ? String(value) : value.toFixed(1);
  const total = columns.map((column) => {
    if (column === "fault") return "all";
    return column === "seconds" ? "" : String(rows.reduce((sum, row) => sum + row[column], 0));
  });
  const lines = [[...columns], ...rows.map((row) => columns.map((column) => show(row[column]))), total];
  const width = (index: number) => Math.max(...lines.map((line) => (line[index] ?? "").length));
  return lines
    .map((line) =>
      line
        .map((text, index) => (index === 0 ? text.padEnd(width(0)) : text.padStart(width(index))))
        .join("  "),
    )
    .join("\n");
}

/** Those of the table; below it stand codes of answers, which have tests of their own. */
function promisedCodes(): string[] {
  const readme = readFileSync(new URL("../../README.md", import.meta.url), "utf8");
  const chapter = readme.split(/^## /m).find((text) => text.startsWith("When things break")) ?? "";
  const rows = chapter.split("\n").filter((line) => line.startsWith("| "));
  return Array.from(
    rows.join("\n").matchAll(/`((?:PUPPETDB|HAPROXY|FILE|STATE)_[A-Z_]+)`/g),
    ([, code = ""]) => code,
  );
}
