// Splits a JSON array of objects into rows while it arrives, so that an answer of any size needs the memory
// of one chunk. It only finds where rows end: JSON.parse reads them, so nothing is accepted here that is not
// JSON. An answer that stops early, or goes on after its end, is an error: PuppetDB reports a query that
// failed in mid-stream as HTTP 200 with a text message glued to half an array.

import { SasoriError } from "../errors.js";

/** PuppetDB's rows are about 120 bytes; anything of this size is not a row that was asked for. */
const MAX_ROW_CHARACTERS = 64 * 1024;

/** Not JavaScript's `\S`: for JSON a no-break space is text. */
const NOT_SPACE = /[^ \t\r\n]/;

const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const OPEN_BRACKET = 0x5b;
const CLOSE_BRACKET = 0x5d;
const OPEN_BRACE = 0x7b;
const CLOSE_BRACE = 0x7d;

export class JsonRows {
  readonly #url: string;
  readonly #onRows: (rows: unknown[]) => void;
  #text = "";
  #started = false;
  #complete = false;
  #first = true;
  // Where the scan of #text stands.
  #position = 0;
  #depth = 0;

  /** `url` is for the messages. */
  constructor(url: string, onRows: (rows: unknown[]) => void) {
    this.#url = url;
    this.#onRows = onRows;
  }

  /** Takes the next piece of text and passes on the rows that it completes. Throws `PUPPETDB_BODY`. */
  push(text: string): void {
    this.#text += text;
    if (!this.#started) this.#findStart();
    if (this.#started && !this.#complete) this.#takeRows();
    if (!this.#complete) return;
    if (NOT_SPACE.test(this.#text)) throw this.#broken("text after its end", this.#text);
    this.#text = "";
  }

  /** Throws `PUPPETDB_BODY` unless the array was complete. */
  end(): void {
    if (!this.#complete) throw this.#broken("no end", this.#text);
  }

  #findStart(): void {
    const start = this.#text.search(NOT_SPACE);
    if (start < 0) {
      this.#text = "";
      return;
    }
    if (this.#text.charCodeAt(start) !== OPEN_BRACKET) throw this.#broken("no array", this.#text);
    this.#started = true;
    this.#text = this.#text.slice(start + 1);
  }

  #takeRows(): void {
    const end = this.#scan();
    const last = this.#complete;
    // Each batch but the first begins with the comma before its first row: see #parse.
    if (end > 0) this.#parse(this.#text.slice(0, end));
    this.#text = this.#text.slice(last ? this.#position : end);
    this.#position = last ? 0 : this.#position - end;
    if (this.#text.length > MAX_ROW_CHARACTERS && !last) throw this.#broken("an endless row", this.#text);
  }

  /** Returns where the last complete row of the text ends. */
  #scan(): number {
    const text = this.#text;
    // Local variables: private fields, written for each character, made this six times as slow.
    let [position, depth, isLast] = [this.#position, this.#depth, false];
    let complete = 0;
    for (; position < text.length && !isLast; position += 1) {
      const character = text.charCodeAt(position);
      if (character === QUOTE) {
        const end = endOfString(text, position);
        if (end < 0) break; // It is scanned again when more has come.
        position = end;
      } else if (character === OPEN_BRACE || character === OPEN_BRACKET) depth += 1;
      else if (character === CLOSE_BRACE && depth > 0) {
        depth -= 1;
        if (depth === 0) complete = position + 1;
      } else if (character === CLOSE_BRACKET) {
        if (depth > 0) depth -= 1;
        else [isLast, complete] = [true, position];
      }
    }
    [this.#position, this.#depth, this.#complete] = [position, depth, isLast];
    return complete;
  }

  #parse(text: string): void {
    let rows: unknown[];
    try {
      rows = JSON.parse(this.#first ? `[${text}]` : `[null${text}]`) as unknown[];
    } catch (error) {
      throw this.#broken(error instanceof Error ? error.message : "not JSON", text);
    }
    if (!this.#first) rows.shift();
    if (rows.length > 0) this.#first = false;
    this.#onRows(rows);
  }

  #broken(what: string, text: string): SasoriError {
    const sample = JSON.stringify(text.trim().slice(-160));
    return new SasoriError(
      "PUPPETDB_BODY",
      `the answer of ${this.#url} is not a complete JSON array (${what}), it ends with ${sample}; if that does not say why, see PuppetDB's log`,
    );
  }
}

/**
 * Index of the closing quote of the string that begins at `start`, or -1. Three times as fast as a loop over the
 * characters.
 */
export function endOfString(text: string, start: number): number {
  let end = text.indexOf('"', start + 1);
  while (end > 0 && isEscaped(text, end)) end = text.indexOf('"', end + 1);
  return end;
}

function isEscaped(text: string, position: number): boolean {
  let first = position;
  while (text.charCodeAt(first - 1) === BACKSLASH) first -= 1;
  return (position - first) % 2 === 1;
}
