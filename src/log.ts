// The log: lines of JSON on standard output. Promises: a reader that stopped, or a disk that is full, costs lines of the log
// and nothing else; how many were lost is in the log as soon as it can be written again.
// pino's own output keeps every line until it is written, and tries forever when the process ends.

import { write } from "node:fs";
import { type Logger, pino } from "pino";

/** How many characters wait for a slow reader. Later lines are lost. */
const MAX_WAITING = 1024 * 1024;
/** A pipe that is full and does not block is tried again after this time. */
const AGAIN_MS = 100;

export function newLog(level: string, descriptor: number = process.stdout.fd): Logger {
  const options = {
    level,
    base: null,
    timestamp: pino.stdTimeFunctions.isoTime,
    formatters: { level: (label: string) => ({ level: label }) },
  };
  return pino(options, new Output(descriptor));
}

class Output {
  readonly #descriptor: number;
  #waiting = "";
  #lost = 0;
  #isWriting = false;

  constructor(descriptor: number) {
    this.#descriptor = descriptor;
  }

  write(line: string): void {
    if (this.#waiting.length + line.length > MAX_WAITING) this.#lost += 1;
    else this.#waiting += line;
    if (!this.#isWriting) this.#next();
  }

  #next(): void {
    this.#isWriting = this.#waiting !== "";
    if (!this.#isWriting) return;
    const bytes = Buffer.from(this.#waiting);
    this.#waiting = "";
    this.#put(bytes);
  }

  #put(bytes: Buffer): void {
    write(this.#descriptor, bytes, 0, bytes.length, null, (error, written) => {
      if (error?.code === "EAGAIN") setTimeout(() => this.#put(bytes), AGAIN_MS);
      else if (error !== null) this.#lose(bytes);
      else if (written < bytes.length) this.#put(bytes.subarray(written));
      else this.#written();
    });
  }

  /**
   * The next line of the log tries again. It starts on a line of its own, because what was written may end in the middle of
   * one.
   */
  #lose(bytes: Buffer): void {
    const lines = `${bytes.toString("latin1")}${this.#waiting}`.split("\n");
    this.#lost += lines.filter((line) => line !== "").length;
    this.#waiting = "\n";
    this.#isWriting = false;
  }

  #written(): void {
    if (this.#lost > 0) {
      const told = { level: "warn", time: new Date().toISOString(), lost: this.#lost };
      this.#waiting = `${JSON.stringify({ ...told, msg: "lines of this log were lost" })}\n${this.#waiting}`;
      this.#lost = 0;
    }
    this.#next();
  }
}
