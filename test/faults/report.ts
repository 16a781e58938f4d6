// Vitest's global setup of the fault suite: at the end one table of what all files found, printed and as JSON. A whole
// run must have seen every error code that docs/reference.md lists for PuppetDB, HAProxy and files.

import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { ERRORS } from "../../src/http/troubles.js";
import { haproxyBinaries } from "../support/parts.js";
import { type Ledger, RESULTS, type Row } from "./ledger.js";

export function setup(): void {
  rmSync(RESULTS, { recursive: true, force: true });
  mkdirSync(RESULTS, { recursive: true });
}

export function teardown(): void {
  const parts = readdirSync(RESULTS)
    .sort()
    .map((name) => JSON.parse(readFileSync(path.join(RESULTS, name), "utf8")) as Ledger);
  const rows = parts.flatMap((part) => part.rows);
  const codes = Object.assign({}, ...parts.map((part) => part.codes)) as Ledger["codes"];
  if (rows.length > 0) {
    console.log(`\n${table(rows)}\n`);
    const about = {
      form: process.env.FAULTS_LONG === "yes" ? "long" : "short",
      haproxy: haproxyBinaries().map(({ version }) => version),
    };
    const whole = JSON.stringify({ ...about, rows, codes }, null, 1);
    writeFileSync(path.join(RESULTS, "faults.json"), `${whole}\n`);
  }
  if (process.env.FAULTS_WHOLE !== "yes") return;
  const missing = testFiles() - parts.length;
  if (missing > 0) fail(`${missing} of ${testFiles()} test files have told nothing`);
  const unseen = promisedCodes().filter((code) => !(code in codes));
  if (unseen.length > 0) fail(`docs/reference.md lists codes that no fault has shown: ${unseen.join(", ")}`);
}

/** Vitest only logs what a teardown throws, and the run would be a good one. */
function fail(why: string): void {
  console.error(`FAIL  the fault suite: ${why}`);
  process.exitCode = 1;
}

const testFiles = () =>
  readdirSync(path.resolve("test/faults")).filter((name) => name.endsWith(".test.ts")).length;

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

/** What something outside of sasori causes. The others are codes of answers, which have tests of their own. */
const promisedCodes = () =>
  Object.keys(ERRORS).filter((code) => /^(PUPPETDB|HAPROXY|FILE|STATE)_/.test(code));
