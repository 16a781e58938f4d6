// What the demo says: one short aligned line for each thing that happens, and tables.
// Colours and the line that shows what is waited for appear on a terminal only.

import { type Style, styleFor } from "../src/cli/report-text.js";

export class Terminal {
  readonly style: Style = styleFor(process.stdout, process.env);
  readonly #isTerminal = process.stdout.isTTY === true;

  /** "12:00:03 move     node17.example.com   master1 → master3" */
  tell(what: string, subject: string, text: string, tone: keyof Style = "good"): void {
    const time = new Date().toLocaleTimeString("en-GB");
    const head = this.style[tone](what.padEnd(8));
    this.print(`${this.style.dim(time)} ${head} ${subject.padEnd(20)} ${text}`.trimEnd());
  }

  print(text: string): void {
    this.waiting("");
    process.stdout.write(`${text}\n`);
  }

  /** Says on the last line what is waited for; the next line that is printed replaces it. */
  waiting(text: string): void {
    if (!this.#isTerminal) return;
    const fits = text.slice(0, process.stdout.columns - 1); // A line that wraps could not be replaced.
    process.stdout.write(`\r\u001b[K${this.style.dim(fits)}`);
  }
}

/** Rows of cells as lines, every column as wide as its widest cell. */
export function formatTable(rows: readonly (readonly string[])[]): string[] {
  const width = (column: number) => Math.max(...rows.map((row) => row[column]?.length ?? 0));
  return rows.map((row) =>
    row
      .map((cell, column) => cell.padEnd(width(column)))
      .join("  ")
      .trimEnd(),
  );
}
