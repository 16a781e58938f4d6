// The one error class. A code is a promise: it is the metric label, a row of docs/reference.md, and what `--json` prints.
// A message says where, what happened, what was expected and what to do; the cause keeps the original error.

import { MAX_OPEN_FILES } from "./open-files.js";

export type ErrorCode =
  | "CONFIG_INVALID"
  | "USAGE"
  | "PUPPETDB_UNREACHABLE"
  | "PUPPETDB_TLS"
  | "PUPPETDB_TIMEOUT"
  | "PUPPETDB_STATUS"
  | "PUPPETDB_BODY"
  | "FILE_READ"
  | "FILE_WRITE"
  | "FILE_FULL"
  | "FILE_READ_ONLY"
  | "FILE_MOUNTED"
  | "STATE_FILE"
  | "STATE_DATABASE"
  | "HAPROXY_UNREACHABLE"
  | "HAPROXY_TIMEOUT"
  | "HAPROXY_PERMISSION"
  | "HAPROXY_REPLY"
  | "HAPROXY_MAP"
  | "HAPROXY_BACKEND"
  | "HAPROXY_CHANGED"
  | "HAPROXY_SERVER"
  | "BUSY"
  | "PROBE_TIMEOUT"
  | "DAEMON"
  | "STOPPED"
  | "INTERNAL";

export class SasoriError extends Error {
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "SasoriError";
    this.code = code;
  }
}

/**
 * A failure in a report. The message contains the reason, so no cause is added to it. It is one line, except for
 * `CONFIG_INVALID`: that has one line for each problem.
 */
export interface Failure {
  code: ErrorCode;
  message: string;
}

/** Any thrown value as a Failure. Any other error than a SasoriError is a bug of ours: code `INTERNAL`. */
export function toFailure(thrown: unknown): Failure {
  if (thrown instanceof SasoriError) return { code: thrown.code, message: thrown.message };
  return { code: "INTERNAL", message: reason(thrown) };
}

/** The reason inside a thrown value, for the end of a message: "connect ECONNREFUSED 127.0.0.1:8080". */
export function reason(thrown: unknown): string {
  if (systemCode(thrown) === "EMFILE")
    return `EMFILE, too many open files: sasori may have ${MAX_OPEN_FILES} open, including connections: raise that limit (\`ulimit -n\`, or LimitNOFILE= of its unit)`;
  // Node reports a host with several addresses as an AggregateError whose own message is empty.
  if (thrown instanceof AggregateError && thrown.errors.length > 0) return reason(thrown.errors[0]);
  return thrown instanceof Error ? thrown.message || thrown.name : String(thrown);
}

/** The system's code of a thrown value, such as `ENOENT`, or an empty string. */
export function systemCode(thrown: unknown): string {
  if (thrown instanceof AggregateError && thrown.errors.length > 0) return systemCode(thrown.errors[0]);
  const code = (thrown as { code?: unknown } | null)?.code;
  return typeof code === "string" ? code : "";
}

/** Hostile text for a message: quoted, escaped, and cut so that a log line stays a line. */
export function quote(text: string, limit = 80): string {
  return JSON.stringify(text.length > limit ? `${text.slice(0, limit)}…` : text);
}

/** Throws `DAEMON`, because sasori cannot listen on the address. `ifInUse`: what to do if another program uses it. */
export const cannotListen =
  (variable: string, { host, port }: { host: string; port: number }, ifInUse: string) =>
  (error: unknown): never => {
    const remedy = systemCode(error) === "EADDRINUSE" ? ifInUse : `correct ${variable}`;
    const text = `cannot listen on ${host}:${port} (${variable}): ${reason(error)}: ${remedy}`;
    throw new SasoriError("DAEMON", text, { cause: error });
  };
