// What must survive a restart, and what replicas agree about. One interface, implemented by a file and by PostgreSQL.

import type { SasoriError } from "../errors.js";
import type { Change, Row } from "./rows.js";

export interface State {
  /** Why saved state, or a part of it, is not in force. */
  readonly trouble: SasoriError | undefined;
  /** All rows. Unusable ones are left out, and `trouble` reports them. `untouched`: for a dry run, which changes nothing. */
  load(untouched?: boolean): Promise<Row[]>;
  /**
   * Saves these changes, and all that could not be saved before. Throws if some could not be saved, so that a restart would lose
   * them; they wait for the next call. `again`: see `within`.
   */
  save(changes: readonly Change[], signal?: AbortSignal, again?: () => void): Promise<void>;
  /** Newer rows that somebody else has written since. */
  readOthers(signal: AbortSignal, again?: () => void): Promise<Row[]>;
  removeLeftovers(): Promise<void>;
  close(): Promise<void>;
}
