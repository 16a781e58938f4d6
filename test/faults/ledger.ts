// What the faults did: one row each, printed as a table at the end of the run and written as JSON.

import { mkdirSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const FILE = fileURLToPath(new URL("../../dist/faults.json", import.meta.url));

export interface Row {
  fault: string;
  tries: number;
  /** Entries of the file, a live map or PuppetDB that did not agree in the end, of all tries. */
  lost: number;
  /** Requests whose route was wrong although their node had not moved since all agreed. */
  misrouted: number;
  /** Requests without an answer of their node's master, which was there. */
  failed: number;
  requests: number;
  /** From the end of the fault to full agreement: the slowest try. */
  seconds: number;
}

const rows: Row[] = [];

/** The error codes that a fault made sasori show, each with one of its messages. */
export const seenCodes = new Map<string, string>();

export function enter(row: Row): void {
  rows.push(row);
}

/** Prints the table and writes the JSON; `about` says what it was run on. */
export function printLedger(about: Record<string, unknown>): void {
  if (rows.length === 0) return;
  const columns = ["fault", "tries", "lost", "misrouted", "failed", "requests", "seconds"] as const;
  const texts = rows.map((row) => columns.map((column) => show(row[column])));
  const total = columns.map((column) =>
    column === "fault"
      ? "all"
      : column === "seconds"
        ? ""
        : String(rows.reduce((sum, row) => sum + row[column], 0)),
  );
  const table = [[...columns], ...texts, total];
  const widths = columns.map((_, index) => Math.max(...table.map((row) => (row[index] ?? "").length)));
  const lines = table.map((row) =>
    row
      .map((text, index) => (index === 0 ? text.padEnd(widths[0] ?? 0) : text.padStart(widths[index] ?? 0)))
      .join("  "),
  );
  console.log(`\n${lines.join("\n")}\n`);
  mkdirSync(new URL(".", `file://${FILE}`), { recursive: true });
  writeFileSync(
    FILE,
    `${JSON.stringify({ ...about, rows, codes: Object.fromEntries(seenCodes) }, null, 1)}\n`,
  );
}

const show = (value: string | number) =>
  typeof value === "string" ? value : Number.isInteger(value) ? String(value) : value.toFixed(1);
