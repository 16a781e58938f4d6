// Lists as tables: headers, aligned columns. Pages of one list share their widths.

import { type Style, width } from "./report-text.js";

/** How a list is printed. `name`: only the names, one a line; `wide`: with more columns. */
export type Format = "table" | "wide" | "name" | "json";

export interface Column {
  head: string;
  /** Numbers are aligned to the right. */
  isNumber?: boolean;
}

export class Table {
  readonly #columns: readonly Column[];
  readonly #widths: number[];
  readonly #style: Style;
  #needsHead: boolean;

  constructor(columns: readonly (Column | string)[], { style, headers }: { style: Style; headers: boolean }) {
    this.#columns = columns.map((column) => (typeof column === "string" ? { head: column } : column));
    this.#widths = this.#columns.map(({ head }) => (headers ? head.length : 0));
    this.#style = style;
    this.#needsHead = headers;
  }

  /** The lines of these rows, below the headers if they are the first. No rows are no lines. */
  lines(rows: readonly (readonly string[])[]): string[] {
    for (const row of rows)
      for (const [index, cell] of row.entries())
        this.#widths[index] = Math.max(this.#widths[index] ?? 0, width(cell));
    const head = this.#needsHead && rows.length > 0 ? [this.#columns.map(({ head }) => head)] : [];
    if (head.length > 0) this.#needsHead = false;
    return [...head.map((row) => this.#style.dim(this.#line(row))), ...rows.map((row) => this.#line(row))];
  }

  #line(row: readonly string[]): string {
    return row
      .map((cell, index) => {
        const space = " ".repeat(Math.max(0, (this.#widths[index] ?? 0) - width(cell)));
        return this.#columns[index]?.isNumber ? space + cell : cell + space;
      })
      .join("  ")
      .trimEnd();
  }
}
