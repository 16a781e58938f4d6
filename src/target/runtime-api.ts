// HAProxy's Runtime API over one connection: commands in, whole replies out.
// Promises: a reply is either complete or an error; a command is sent once and never repeated; every reply
// has a deadline and a bound; when the connection ends, every waiting command is rejected.
// The caller closes the connection soon: one opened before a reload keeps talking to the old process.
// Facts about the protocol were measured on HAProxy 2.6, 3.0 and 3.2; samples stand beside the code.

import net from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { checkServerIdentity, connect as connectTls } from "node:tls";
import type { Endpoint } from "../config.js";
import { counted } from "../counts.js";
import { quote, reason, SasoriError, systemCode } from "../errors.js";
import type { Pem } from "../pem-files.js";
import { letOthersIn } from "../pieces.js";
import { STRICT_TLS } from "../source/puppetdb-connection.js";
import { isMountPoint } from "../whole-file.js";

/** A longer reply is an error. Dumps of maps are read line by line, and have no such bound. */
const MAX_REPLY_BYTES = 4 * 1024 * 1024;
const MAX_LINE_BYTES = 64 * 1024;

/**
 * The connection is given up after this long without a byte. It closes an idle connection after as long (`stats timeout`, by
 * default 10 s).
 */
const STALL_MS = 10_000;

/** Commands that may wait for a reply at once: enough to hide the round trip, few enough to leave HAProxy time for others. */
const PIPELINE_DEPTH = 32;

/** "at once": HAProxy does all the work while requests wait. "gently": it serves requests between pieces of the work. */
export type Pace = "at once" | "gently";

/**
 * HAProxy runs commands on a thread that also serves requests, and these wait meanwhile. A gentle push sends bursts of about
 * this much work, each after the reply to the one before. Between two bursts HAProxy serves all requests that wait, because
 * its event loop comes back to our connection only once per turn. With many requests a turn takes longer, so the push slows
 * down by itself under load. It needs no timer, which in Node would take at least a millisecond.
 */
export const BURST_MS = 0.2;
/**
 * A single command that takes longer (`set map` on 2.6: 2 to 6 ms) makes requests wait. After it the push pauses for this many
 * times as long. The pauses of one push are bounded, one by one and in all, so that it ends.
 */
const PAUSE_COMMANDS = 6;
const MAX_PAUSE_MS = 40;
const MAX_PAUSED_MS = 40_000;
/**
 * A burst waits for the reply to the one before. But for each so many milliseconds of round trip, one more burst may be
 * under way.
 */
const FAR_MS = 5;

/**
 * Upper bounds of a command with its payload.
 * "gently": 1 kB is one burst. It takes 0.05 to 0.14 ms of HAProxy's time, and a request waits no longer than that. With 2 kB,
 * and one push after the other, the p99 of requests to 2.6 was 1.6 to 3.6 times that without pushes.
 * "at once": with 4 kB the fixed cost of each command hardly counts. It must be smaller than `tune.bufsize` (16384 by default,
 * at some sites 4096): 3.0 refuses a larger command, 2.6 closes the connection, and at exactly that size 2.6 never answers.
 */
export const COMMAND_BYTES: Record<Pace, number> = { "at once": 4 * 1024 - 1, gently: 1024 };

/**
 * Pause between pieces of a dump. A piece has 64 kB and takes 0.3 ms of HAProxy's time. HAProxy sends the next when we have
 * read one.
 */
const DUMP_PAUSE_MS = 1;

// In prompt mode an answer ends with an empty line and the prompt: "[3]: entry not found.\n\n> ". An answer
// without text is "\n> ". Each line of a payload is acknowledged by "+ " before that.
const END_OF_REPLY = "\n> ";
const PAYLOAD_PROMPTS = /^(?:\+ )+/;

// HAProxy's master process (option -S) has a command line of its own. Its prompt comes before an answer and not behind:
// "master> Unknown command, but maybe one of the following ...". Both sides would wait for each other, so this is detected.
const MASTER_PROMPT = /^\n?master> /;

/** A line, and for `add map` what follows it. */
export interface Command {
  command: string;
  payload?: string;
  /** For how long HAProxy is expected to work on it. */
  workMs: number;
}

interface Waiting {
  command: string;
  onLine: ((line: string) => void) | undefined;
  pace: Pace;
  resolve: (reply: string) => void;
  reject: (error: SasoriError) => void;
}

export class RuntimeSession {
  readonly #endpoint: Endpoint;
  readonly #socket: net.Socket;
  readonly #waiting: Waiting[] = [];
  #received = "";
  #ended: SasoriError | undefined;
  /**
   * The time that a command takes without any work: the way to HAProxy and back. It is the shortest that was seen, because both
   * ends may have been busy during the others.
   */
  #roundTripMs = Number.POSITIVE_INFINITY;

  private constructor(endpoint: Endpoint, socket: net.Socket) {
    this.#endpoint = endpoint;
    this.#socket = socket;
    // Names are ASCII; latin1 keeps every other byte as it is and never splits a character.
    socket.setEncoding("latin1");
    socket.setTimeout(STALL_MS);
    socket.on("data", (text: string) => {
      this.#take(text);
      const [current] = this.#waiting;
      if (current?.onLine !== undefined) this.#pauseReading(current.pace);
    });
    socket.on("timeout", () => this.#onSilence());
    socket.on("error", (error) =>
      this.#end(this.#isRefused(error) ? this.#closedEarly() : unreachable(endpoint, error)),
    );
    socket.on("close", () => this.#end(this.#closedEarly()));
  }

  /**
   * Connects, makes the connection persistent (`prompt`) and its failures readable (`severity-output`).
   * Throws `HAPROXY_UNREACHABLE`, `HAPROXY_PERMISSION`, `HAPROXY_TIMEOUT` or, when `signal` ends, its reason.
   */
  static async open(endpoint: Endpoint, signal: AbortSignal): Promise<RuntimeSession> {
    if (signal.aborted) throw abortError(endpoint, signal);
    const pem = endpoint.tls && (await pemOf(endpoint));
    if (signal.aborted) throw abortError(endpoint, signal);
    // Made before anything is awaited: if the system refuses the address, the error event comes at once and would be missed.
    const session = new RuntimeSession(endpoint, dial(endpoint, pem));
    const onAbort = () => session.#end(abortError(endpoint, signal));
    signal.addEventListener("abort", onAbort, { once: true });
    session.#socket.once("close", () => signal.removeEventListener("abort", onAbort));
    try {
      // Wait for the reply to "prompt" before the next command: without the prompt HAProxy runs only one line.
      await session.ask("prompt");
      await session.ask("set severity-output number");
    } catch (error) {
      session.close();
      throw error;
    }
    return session;
  }

  /** Opens a session, lends it to `use`, and closes it whatever happens. */
  static async with<T>(
    endpoint: Endpoint,
    signal: AbortSignal,
    use: (session: RuntimeSession) => Promise<T>,
  ) {
    const session = await RuntimeSession.open(endpoint, signal);
    try {
      return await use(session);
    } finally {
      session.close();
    }
  }

  /** The text of the reply, without its severity. Throws `HAPROXY_REPLY` when HAProxy refused the command. */
  async ask(command: string): Promise<string> {
    const began = performance.now();
    const reply = await this.#send(command);
    this.#roundTripMs = Math.min(this.#roundTripMs, performance.now() - began);
    return this.#checked(command, reply);
  }

  /** For commands whose success is silence (set, add, del, clear, commit): any text is a refusal. */
  async run(command: string, payload?: string): Promise<void> {
    const reply = this.#checked(command, await this.#send(command, payload));
    if (reply !== "") throw this.#refused(command, reply);
  }

  /**
   * Runs many commands in order. Stops at the first that is refused. Returns for how long HAProxy worked on them (ms), as
   * far as can be seen from here: without pauses and the way there and back.
   */
  async runAll(commands: Iterable<Command>, pace: Pace): Promise<number> {
    return pace === "at once" ? this.#runPipelined(commands) : this.#runInBursts(commands);
  }

  /** Several are under way at once. */
  async #runPipelined(commands: Iterable<Command>): Promise<number> {
    const began = performance.now();
    const underway: Promise<void>[] = [];
    try {
      for (const { command, payload } of commands) {
        if (underway.length >= PIPELINE_DEPTH) await underway.shift();
        const done = this.run(command, payload);
        done.catch(() => undefined); // It is awaited in its turn; until then a refusal is not "unhandled".
        underway.push(done);
      }
      while (underway.length > 0) await underway.shift();
      return Math.max(0, performance.now() - began - this.#roundTripMs);
    } finally {
      // HAProxy executes what was sent in any case. So wait for all replies before the connection is closed.
      await Promise.allSettled(underway);
    }
  }

  /** In bursts, between which HAProxy serves requests. */
  async #runInBursts(commands: Iterable<Command>): Promise<number> {
    const alone = Math.min(Math.floor(this.#roundTripMs / FAR_MS), PIPELINE_DEPTH);
    const underway: Promise<number>[] = [];
    let [worked, pause, paused] = [0, 0, 0];
    try {
      for (const burst of bursts(commands)) {
        if (pause > 0 && paused < MAX_PAUSED_MS) {
          const began = performance.now();
          await sleep(pause);
          paused += performance.now() - began;
        }
        const running = this.#runPipelined(burst);
        running.catch(() => undefined); // It is awaited in its turn; until then a refusal is not "unhandled".
        underway.push(running);
        const work: number = underway.length > alone ? ((await underway.shift()) ?? 0) : 0;
        worked += work;
        const isLong = burst.some(({ workMs }) => workMs > BURST_MS);
        pause = isLong ? Math.min(work * PAUSE_COMMANDS, MAX_PAUSE_MS) : 0;
      }
      for (const work of underway) worked += await work;
      return worked;
    } finally {
      await Promise.allSettled(underway);
    }
  }

  /**
   * Hands a reply to `onLine` line by line, so that a dump of any size needs no memory. Lines of a dump carry
   * no severity: one that does is a refusal, thrown when the reply is whole.
   */
  async lines(command: string, onLine: (line: string) => void, pace: Pace = "gently"): Promise<void> {
    let refusal: string | undefined;
    const onEach = (line: string) => {
      if (/^\[\d\]: /.test(line)) refusal ??= line;
      else if (refusal === undefined) onLine(line);
    };
    await this.#send(command, undefined, onEach, pace);
    if (refusal !== undefined) throw this.#refused(command, refusal.replace(/^\[\d\]: /, ""));
  }

  close(): void {
    this.#end(new SasoriError("HAPROXY_UNREACHABLE", `${this.#endpoint.name}: the connection was closed`));
  }

  #send(
    command: string,
    payload?: string,
    onLine?: (line: string) => void,
    pace: Pace = "at once",
  ): Promise<string> {
    if (this.#ended !== undefined) return Promise.reject(this.#ended);
    const text = payload === undefined ? `${command}\n` : `${command} <<\n${payload}\n`;
    if (text.length > COMMAND_BYTES["at once"])
      throw new Error(`command of ${text.length} bytes: ${command}`);
    return new Promise((resolve, reject) => {
      this.#waiting.push({ command, onLine, pace, resolve, reject });
      this.#socket.write(text, "latin1");
    });
  }

  /** Without pauses the dump of 100,000 entries would delay requests to HAProxy, and to sasori, by 30 ms. */
  async #pauseReading(pace: Pace): Promise<void> {
    this.#socket.pause();
    await (pace === "gently" ? sleep(DUMP_PAUSE_MS) : letOthersIn());
    this.#socket.resume();
  }

  #take(text: string): void {
    this.#received += text;
    if (this.#isOpening && MASTER_PROMPT.test(this.#received)) {
      const what = "this is the socket of HAProxy's master process, which has no maps";
      const remedy = "set SASORI_HAPROXY to the path of a `stats socket` line, not to that of the option -S";
      this.#end(this.#error("HAPROXY_REPLY", `${what}: ${remedy}`));
      return;
    }
    let from = 0;
    for (;;) {
      const end = this.#received.indexOf(END_OF_REPLY, from);
      if (end < 0) break;
      this.#finish(this.#received.slice(from, end));
      from = end + END_OF_REPLY.length;
    }
    this.#received = this.#received.slice(from);
    const current = this.#waiting[0];
    if (current?.onLine !== undefined) this.#received = eachLine(this.#received, current.onLine);
    if (this.#received.length > (current?.onLine === undefined ? MAX_REPLY_BYTES : MAX_LINE_BYTES)) {
      this.#end(this.#error("HAPROXY_REPLY", `the reply to ${quote(current?.command ?? "")} is too long`));
    }
  }

  #finish(text: string): void {
    const waiting = this.#waiting.shift();
    if (waiting === undefined) {
      this.#end(this.#error("HAPROXY_REPLY", `an unexpected reply: ${quote(text)}`));
    } else if (waiting.onLine === undefined) {
      waiting.resolve(text);
    } else {
      eachLine(`${text}\n`, waiting.onLine);
      waiting.resolve("");
    }
  }

  /** `[3]: entry not found.`: 0 to 3 is an error, above is a notice. Some answers carry no severity. */
  #checked(command: string, reply: string): string {
    const [, severity, text] = /^\[(\d)\]: ?([\s\S]*)$/.exec(reply.replace(PAYLOAD_PROMPTS, "")) ?? [];
    if (severity === undefined) return reply.replace(PAYLOAD_PROMPTS, "").trimEnd();
    if (Number(severity) <= 3) throw this.#refused(command, text ?? "");
    return (text ?? "").trimEnd();
  }

  #refused(command: string, reply: string): SasoriError {
    const text = reply.trim();
    if (/permission denied/i.test(text)) {
      return this.#error(
        "HAPROXY_PERMISSION",
        `refused ${quote(command)}: the stats socket needs "level admin" in HAProxy's configuration`,
      );
    }
    return this.#error("HAPROXY_REPLY", `answered ${quote(command)} with ${quote(text, 200)}`);
  }

  /** Not even the first command has been answered, so what came is not an answer of HAProxy's Runtime API. */
  get #isOpening(): boolean {
    return this.#waiting[0]?.command === "prompt";
  }

  /** A TLS listener that rejects our certificate's name ends the connection, or resets it. */
  #isRefused(error: Error): boolean {
    return this.#isOpening && this.#endpoint.tls !== undefined && systemCode(error) === "ECONNRESET";
  }

  #noHaproxy(): SasoriError {
    const what = `something else answers there: ${quote(this.#received)}`;
    return this.#error("HAPROXY_REPLY", `${what}: set SASORI_HAPROXY to HAProxy's \`stats socket\``);
  }

  #onSilence(): void {
    const current = this.#waiting[0];
    if (current === undefined) return;
    const silent = this.#socket.connecting
      ? `no connection within ${STALL_MS / 1_000} s: check SASORI_HAPROXY, DNS, and that no firewall blocks it`
      : `no answer to ${quote(current.command)} for ${STALL_MS / 1_000} s`;
    const isStrange = this.#isOpening && this.#received !== "";
    this.#end(isStrange ? this.#noHaproxy() : this.#error("HAPROXY_TIMEOUT", silent));
  }

  #closedEarly(): SasoriError {
    if (this.#isOpening && this.#received !== "") return this.#noHaproxy();
    if (this.#isOpening && this.#endpoint.tls !== undefined)
      return this.#error(
        "HAPROXY_PERMISSION",
        "closed the connection before it answered: check that RUNTIME_CLIENT is the CN of sasori's certificate, and that HAProxy can reach its own Runtime API socket",
      );
    const current = this.#waiting[0];
    if (current === undefined)
      return this.#error("HAPROXY_UNREACHABLE", "closed the connection, as in a restart or reload");
    const missing = `${counted(this.#waiting.length, "reply", "replies")} missing, the first to ${quote(current.command)}`;
    return this.#error("HAPROXY_UNREACHABLE", `closed the connection, ${missing}`);
  }

  #error(
    code: "HAPROXY_UNREACHABLE" | "HAPROXY_TIMEOUT" | "HAPROXY_REPLY" | "HAPROXY_PERMISSION",
    what: string,
  ) {
    return new SasoriError(code, `${this.#endpoint.name}: ${what}`);
  }

  // Half a reply is a failure for everyone in the queue: a cut dump must never look like a short map.
  #end(error: SasoriError): void {
    if (this.#ended !== undefined) return;
    this.#ended = error;
    this.#received = "";
    this.#socket.destroy();
    for (const waiting of this.#waiting.splice(0)) waiting.reject(error);
  }
}

/** What a TLS endpoint needs. Throws `HAPROXY_UNREACHABLE` for files that cannot be used. */
export async function pemOf({ name, tls }: Endpoint): Promise<Pem | undefined> {
  return tls?.files.current().catch((error: unknown) => {
    throw new SasoriError("HAPROXY_UNREACHABLE", `${name}: ${reason(error)}`, { cause: error });
  });
}

/**
 * Begins a connection. The caller must listen to its events at once. Throws `HAPROXY_UNREACHABLE` for a key of another
 * certificate.
 */
export function dial(
  endpoint: Endpoint,
  pem: Pem | undefined,
  options: { allowHalfOpen?: boolean } = {},
): net.Socket {
  const { connect, tls } = endpoint;
  const how = { ...connect, ...options, noDelay: true };
  if (tls === undefined) return net.connect(how);
  const { rejectUnauthorized, minVersion, allowPartialTrustChain } = STRICT_TLS;
  try {
    return connectTls({
      ...{ ...how, ...pem, rejectUnauthorized, minVersion, allowPartialTrustChain },
      // The name in the certificate is the one that was configured, also where DNS led to an address.
      servername: net.isIP(tls.certname) === 0 ? tls.certname : "",
      checkServerIdentity: (_, certificate) => checkServerIdentity(tls.certname, certificate),
    });
  } catch (error) {
    const what = `${reason(error)}: set SASORI_HAPROXY_CERT and _KEY to a certificate and its own key`;
    throw new SasoriError("HAPROXY_UNREACHABLE", `${endpoint.name}: ${what}`, { cause: error });
  }
}

/** Calls `onLine` for every complete line and returns the rest. */
function eachLine(text: string, onLine: (line: string) => void): string {
  let from = 0;
  for (let end = text.indexOf("\n"); end >= 0; end = text.indexOf("\n", from)) {
    // A reply's last line is followed by an empty one, which belongs to the prompt.
    if (end > from) onLine(text.slice(from, end));
    from = end + 1;
  }
  // The rest keeps the line break before it: it may be the first byte of the end of the reply.
  return from === 0 ? text : text.slice(from - 1);
}

const UNKNOWN_NAME = "the name cannot be looked up: correct it in SASORI_HAPROXY, or DNS on this machine";

function abortError(endpoint: Endpoint, signal: AbortSignal): SasoriError {
  const { reason: why } = signal;
  const code = why instanceof SasoriError ? why.code : "HAPROXY_TIMEOUT";
  return new SasoriError(code, `${endpoint.name}: ${reason(why)}`);
}

/** Why a connection failed, and what to do. */
export function unreachable(endpoint: Endpoint, error: Error): SasoriError {
  const code = systemCode(error);
  const { connect } = endpoint;
  const isMounted = code === "ECONNREFUSED" && "path" in connect && isMountPoint(connect.path);
  const remedies: Record<string, string> = {
    // A local socket does not let a client wait; over TCP it waits, and times out.
    EAGAIN:
      "all connections of this socket are in use: end some (of an exporter, a script or another sasori), or raise `stats maxconn` (10 by default)",
    ENOENT: "no such socket: start HAProxy, or set SASORI_HAPROXY to the path of its `stats socket` line",
    ECONNREFUSED: isMounted
      ? "nothing listens there, because the socket itself is mounted, and HAProxy makes a new one when it starts: mount its folder"
      : "nothing listens there: start HAProxy",
    ENOTFOUND: UNKNOWN_NAME,
    EAI_AGAIN: UNKNOWN_NAME,
    EACCES:
      "permission denied: let sasori's user or group use the socket (`user`, `group`, `mode` of `stats socket`)",
  };
  const [refused, remedy] = endpoint.tls === undefined ? [] : tlsFailure(code, error);
  return new SasoriError(
    code === "EACCES" || refused ? "HAPROXY_PERMISSION" : "HAPROXY_UNREACHABLE",
    `${endpoint.name}: ${remedy ?? remedies[code] ?? `${reason(error)}: check that HAProxy is running`}`,
    { cause: error },
  );
}

/** Whether HAProxy refused us, and what to do. Empty if the failure has nothing to do with TLS. */
function tlsFailure(code: string, error: Error): [isRefused?: boolean, remedy?: string] {
  if (code === "ERR_TLS_CERT_ALTNAME_INVALID")
    return [false, `${reason(error)}: use a name from HAProxy's certificate in SASORI_HAPROXY`];
  if (/ALERT/.test(code)) {
    const [, why = "TLS alert"] = /alert ([a-z ]+)/.exec(error.message) ?? [];
    return [true, `HAProxy refused our certificate (${why}): check SASORI_HAPROXY_CERT`];
  }
  if (/CERT|ISSUER|CHAIN/.test(code))
    return [false, `${reason(error)}: set SASORI_HAPROXY_CA to the CA that signed HAProxy's certificate`];
  if (code.startsWith("ERR_SSL_"))
    return [
      false,
      `no TLS on this port (${reason(error)}): use tcp://, or the port of HAProxy's TLS listener`,
    ];
  return [];
}

/** Groups commands into bursts of BURST_MS of work, with at most PIPELINE_DEPTH commands. */
function* bursts(commands: Iterable<Command>): Generator<Command[]> {
  let burst: Command[] = [];
  let workMs = 0;
  for (const command of commands) {
    if (burst.length === PIPELINE_DEPTH || (burst.length > 0 && workMs + command.workMs > BURST_MS)) {
      yield burst;
      [burst, workMs] = [[], 0];
    }
    burst.push(command);
    workMs += command.workMs;
  }
  if (burst.length > 0) yield burst;
}

/**
 * Cuts lines into payloads for `add map`, as large as the pace allows: each with its final empty line and the command
 * itself stays within COMMAND_BYTES. Every line must be shorter than that.
 */
export function* payloads(lines: Iterable<string>, commandBytes: number, pace: Pace): Generator<string> {
  // "<command> <<\n" + payload + "\n"
  const room = COMMAND_BYTES[pace] - commandBytes - " <<\n\n".length;
  let payload = "";
  for (const line of lines) {
    if (payload.length + line.length + 1 > room) {
      yield payload;
      payload = "";
    }
    payload += `${line}\n`;
  }
  if (payload !== "") yield payload;
}
