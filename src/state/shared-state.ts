// The state file and PostgreSQL together. Each sasori can work with its own file alone; the database brings replicas together.
// Promises: a registration is in the file, and in the database unless that is down; registrations of others are passed on as
// they come, and are in the file too, so that they are known after a start without the database.

import type { StateDatabase } from "../config.js";
import type { SasoriError } from "../errors.js";
import { Database, type Heard } from "./database.js";
import type { Journal } from "./journal.js";
import type { Change, Row } from "./rows.js";
import type { State } from "./state.js";

export class SharedState implements State {
  readonly #journal: Journal;
  readonly #database: Database;
  #take: ((rows: Row[]) => void) | undefined;
  /** Rows that came before `watch` was called. */
  #untold: Row[] = [];
  #word: (() => string) | undefined;
  /** Why the file could not be written. The database has the rows that the file lacks. */
  #unwritten: SasoriError | undefined;

  constructor(journal: Journal, options: StateDatabase) {
    this.#journal = journal;
    this.#database = new Database(options, {
      known: () => journal.rows,
      takeRows: async (rows) => this.#tell(await journal.take(rows)),
      word: () => this.#word?.(),
    });
  }

  get trouble(): SasoriError | undefined {
    return this.#journal.trouble ?? this.#unwritten;
  }

  /** Why the database is not in use, or what is wrong in it. */
  get failure(): SasoriError | undefined {
    return this.#database.failure;
  }

  get clockAheadMs(): number {
    return this.#database.clockAheadMs;
  }

  /** The last word of each replica, including this one. */
  get heard(): readonly Heard[] {
    return this.#database.heard;
  }

  /** A dry run does not use the database, because exchanging rows would write ours there. */
  async load(untouched = false): Promise<Row[]> {
    await this.#journal.load(untouched);
    if (!untouched) await this.#database.open();
    this.#untold = [];
    return [...this.#journal.rows];
  }

  /** From now on `take` is called with what others have written, as it comes. */
  watch(take: (rows: Row[]) => void): void {
    this.#take = take;
    this.#tell(this.#untold.splice(0));
  }

  /** From now on all replicas learn what `word` says about this one. */
  describe(word: () => string): void {
    this.#word = word;
  }

  #tell(rows: Row[]): void {
    if (rows.length === 0) return;
    if (this.#take === undefined) this.#untold = this.#untold.concat(rows);
    else this.#take(rows);
  }

  async save(changes: readonly Change[], signal?: AbortSignal, again?: () => void): Promise<void> {
    const rows = await this.#journal.record(changes);
    const [failure, isSent] = await Promise.all([
      this.#journal.write(signal, again).then(
        () => undefined,
        (error: SasoriError) => error,
      ),
      this.#database.send(rows),
    ]);
    this.#unwritten = failure;
    if (failure !== undefined && !isSent) throw failure;
  }

  /** Only of the file, because another sasori on this machine may share it. */
  async readOthers(signal: AbortSignal, again?: () => void): Promise<Row[]> {
    const rows = await this.#journal.readOthers(signal, again);
    void this.#database.send(rows);
    return rows;
  }

  removeLeftovers(): Promise<void> {
    return this.#journal.removeLeftovers();
  }

  close(): Promise<void> {
    return this.#database.close();
  }
}
