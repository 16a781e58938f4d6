// How the command line asks the running daemon: one call, one answer; or the stream of its events.
// Promises: every call has a deadline; the token goes only with calls that change something; if no daemon listens, the answer
// is `undefined` and not an error, so that a command can do the work itself.

import http from "node:http";
import { text as textOf } from "node:stream/consumers";
import { setTimeout as sleep } from "node:timers/promises";
import type { Config } from "../config.js";
import { type ErrorCode, quote, reason, SasoriError, systemCode } from "../errors.js";
import { isErrorCode } from "../http/troubles.js";
import { readSecretFile } from "../whole-file.js";

/** A full pass over a big fleet takes long; the daemon has a deadline of its own. */
const SYNC_DEADLINE_MS = 15 * 60_000;
const ANSWER_DEADLINE_MS = 30_000;

/** Pause before it connects again to the events. */
const RECONNECT_MS = 1_000;

const NO_DAEMON = "start it with `sasori serve`, or set SASORI_LISTEN to the address where it listens";

export type Method = "GET" | "POST" | "PUT" | "DELETE";
export type Address = Pick<Config, "listen" | "apiTokenFile">;

/** The URL for asking the daemon. If it listens on all addresses, loopback is used. */
export function daemonUrl({ host, port }: Config["listen"]): string {
  const reached = host === "0.0.0.0" ? "127.0.0.1" : host === "::" ? "::1" : host;
  return `http://${reached.includes(":") ? `[${reached}]` : reached}:${port}`;
}

interface Request {
  method?: Method;
  headers?: http.OutgoingHttpHeaders;
  body?: string | undefined;
  /** Aborts the call with the signal's reason. If the head of the answer has come already, its body breaks off. */
  signal?: AbortSignal;
  /** Maximum time without a byte. */
  silenceMs?: number;
}

/**
 * Uses Node's own client, because loading undici takes longer than most commands. Each call has a connection of its own: the
 * other end may have closed one that was kept, and Node does not try again.
 */
function send(url: string, { body, silenceMs = 0, ...request }: Request): Promise<http.IncomingMessage> {
  return new Promise((resolve, reject) => {
    const sent = http.request(url, { ...request, agent: false }, resolve);
    sent.on("error", (error) => reject(request.signal?.aborted ? request.signal.reason : error));
    sent.setTimeout(silenceMs, () => sent.destroy(new Error(`nothing came for ${silenceMs / 1_000} s`)));
    sent.end(body);
  });
}

/** Short, because a health check is repeated every few seconds. */
const READY_DEADLINE_MS = 3_000;

/** Whether the daemon serves a map. Throws `DAEMON` if no daemon runs, or if it does not answer. */
export async function isReady({ listen }: Pick<Config, "listen">): Promise<boolean> {
  const url = `${daemonUrl(listen)}/readyz`;
  try {
    const response = await send(url, { signal: AbortSignal.timeout(READY_DEADLINE_MS) });
    response.resume();
    return response.statusCode === 200;
  } catch (error) {
    throw new SasoriError("DAEMON", `${url}: ${reason(error)}: ${NO_DAEMON}`, { cause: error });
  }
}

/** Undefined if no daemon listens. Throws the error that the daemon's problem+json names, and `DAEMON` if it names none. */
export async function askDaemon<T>(
  address: Address,
  method: Method,
  path: string,
  body?: object,
  deadlineMs = path === "/api/v1/sync" ? SYNC_DEADLINE_MS : ANSWER_DEADLINE_MS,
): Promise<T | undefined> {
  const url = daemonUrl(address.listen);
  const headers: Record<string, string> = {};
  if (body !== undefined) headers["content-type"] = "application/json";
  if (address.apiTokenFile !== undefined && method !== "GET") {
    headers.authorization = `Bearer ${await readToken(address.apiTokenFile)}`;
  }
  const signal = AbortSignal.timeout(deadlineMs);
  try {
    const response = await send(`${url}${path}`, { method, headers, body: JSON.stringify(body), signal });
    return (await answerOf(url, response)) as T;
  } catch (error) {
    if (error instanceof SasoriError) throw error;
    if (systemCode(error) === "ECONNREFUSED") return undefined;
    const what = signal.aborted ? late(method, deadlineMs) : `gave no usable answer: ${reason(error)}`;
    throw new SasoriError("DAEMON", `the daemon on ${url} ${what}`, { cause: error });
  }
}

function late(method: Method, deadlineMs: number): string {
  const still = method === "GET" ? "" : ", and may still carry out the request";
  return `did not answer within ${deadlineMs / 1_000} s. It hangs or is busy${still}: see its log and \`sasori status\``;
}

async function readToken(file: string): Promise<string> {
  try {
    return (await readSecretFile(file)).trim();
  } catch (error) {
    const what = `cannot read the token of SASORI_API_TOKEN_FILE: ${reason(error)}`;
    const remedy =
      systemCode(error) === "EACCES" ? "run this as a user who can read it" : "correct SASORI_API_TOKEN_FILE";
    throw new SasoriError("USAGE", `${what}: ${remedy}`, { cause: error });
  }
}

/** The daemon understood the question and refused it. It may accept another one. */
export const isRefused = (error: unknown): error is SasoriError =>
  error instanceof SasoriError && (error as { statusCode?: unknown }).statusCode === 400;

/** Each of sasori's answers has one of these keys. Another program may also answer with JSON. */
const KEYS_OF_CHANGES = ["certname", "registered"];
const KEYS = [
  ...KEYS_OF_CHANGES,
  ...["troubles", "outcome", "nodes", "masters", "instances", "replicas", "moves", "passes", "changes"],
];

const hasKey = (answer: unknown, keys: readonly string[]): boolean =>
  typeof answer === "object" && answer !== null && keys.some((key) => Object.hasOwn(answer, key));

/**
 * The JSON of a 200, or of a 502 for a change that was accepted and is not in every target yet: that has the node's story, or
 * how many nodes were registered. Throws for every other answer: what it says, with its `statusCode`, or `DAEMON` if it is
 * not sasori's.
 */
async function answerOf(url: string, response: http.IncomingMessage): Promise<unknown> {
  const { statusCode = 0, headers } = response;
  const text = await textOf(response);
  const isJson = /\bjson\b/.test(String(headers["content-type"]));
  const answer = isJson ? (JSON.parse(text) as { title?: unknown; detail?: unknown }) : undefined;
  const isAccepted = hasKey(answer, statusCode === 502 ? KEYS_OF_CHANGES : KEYS);
  if ((statusCode === 200 || statusCode === 502) && isAccepted) return answer;
  if (typeof answer?.detail !== "string") throw noSasori(url, `${statusCode} ${quote(text)}`);
  if (statusCode === 404 && answer.detail.startsWith("no such resource")) {
    const remedy = "restart it, because it may be of another version";
    throw new SasoriError("DAEMON", `the daemon on ${url} does not know this call: ${remedy}`);
  }
  const hint = "set SASORI_API_TOKEN_FILE here to a file with the daemon's token";
  const why = statusCode === 401 ? `${answer.detail}: ${hint}` : answer.detail;
  // A message about the request is clear by itself. A message about the daemon or the token gets the URL in front.
  const isAboutRequest = statusCode === 400 || statusCode === 404;
  const message = isAboutRequest ? why : `the daemon on ${url} answered ${statusCode}: ${why}`;
  throw Object.assign(new SasoriError(codeOf(statusCode, answer.title), message), { statusCode });
}

/** The daemon's own code. A USAGE with a status of 500 or above is about the daemon's side, not about this command. */
function codeOf(statusCode: number, title: unknown): ErrorCode {
  return isErrorCode(title) && (statusCode < 500 || title !== "USAGE") ? title : "DAEMON";
}

/** Another program listens there. This is not the same as a sasori that hangs or is busy. */
export class NoSasori extends SasoriError {}

function noSasori(url: string, answered: string): NoSasori {
  const remedy = "correct SASORI_LISTEN, or stop that program and start `sasori serve`";
  return new NoSasori(
    "DAEMON",
    `a program other than sasori listens on ${url}. It answered ${answered}: ${remedy}`,
  );
}

/** As askDaemon, for what only a running daemon knows. */
export async function mustAskDaemon<T>(...question: Parameters<typeof askDaemon>): Promise<T> {
  const answer = await askDaemon<T>(...question);
  if (answer !== undefined) return answer;
  throw new SasoriError(
    "DAEMON",
    `the daemon is not running on ${daemonUrl(question[0].listen)} (SASORI_LISTEN): ${NO_DAEMON}`,
  );
}

/** One page after the other. `ask` is given the `next` of the page before. Without it, as from a daemon of another version, it ends. */
export async function* pagesOf<Page extends { next: string | null }>(
  ask: (cursor: string | undefined) => Promise<Page>,
): AsyncGenerator<Page> {
  let cursor: string | undefined;
  do {
    const page = await ask(cursor);
    yield page;
    cursor = page.next ?? undefined;
  } while (cursor !== undefined);
}

/** One Server-Sent Event; `id` is what a later connection names to get what came after it. */
export interface DaemonEvent {
  event: string;
  data: string;
  id: string | undefined;
}

/**
 * The daemon's events, without end: a lost connection is made again, and continues after the last event. `onGap` is called
 * whenever it is lost, and when it is back. Throws `DAEMON` only if the first connection is refused.
 */
export async function* daemonEvents(
  address: Address,
  onGap: (lost: boolean) => void,
): AsyncGenerator<DaemonEvent> {
  let lastId: string | undefined;
  let lost = false;
  for (let wasThere = false; ; ) {
    try {
      const url = `${daemonUrl(address.listen)}/api/v1/events`;
      const headers = {
        accept: "text/event-stream",
        ...(lastId !== undefined && { "last-event-id": lastId }),
      };
      // The daemon sends a comment line now and then. Without any byte for a minute the connection is dead.
      const response = await send(url, { headers, silenceMs: 60_000 });
      if (response.statusCode !== 200) await answerOf(daemonUrl(address.listen), response);
      const type = String(response.headers["content-type"]);
      if (!type.startsWith("text/event-stream")) {
        response.on("error", () => undefined).destroy(); // Its error only says that it was aborted.
        throw noSasori(daemonUrl(address.listen), `with ${quote(type)} where events were expected`);
      }
      if (lost) onGap(false);
      lost = false;
      wasThere = true;
      for await (const event of parseEvents(response)) {
        lastId = event.id ?? lastId;
        yield event;
      }
    } catch (error) {
      if (!wasThere) throw firstFailure(address, error);
    }
    if (!lost) onGap(true);
    lost = true;
    await sleep(RECONNECT_MS);
  }
}

function firstFailure(address: Address, error: unknown): SasoriError {
  if (error instanceof SasoriError) return error;
  const why = systemCode(error) === "ECONNREFUSED" ? "the daemon is not running" : reason(error);
  return new SasoriError("DAEMON", `${daemonUrl(address.listen)}: ${why} (SASORI_LISTEN): ${NO_DAEMON}`, {
    cause: error,
  });
}

/** `event: moves` / `id: 17` / `data: [...]` / an empty line. A line that begins with ":" is a sign of life. */
export async function* parseEvents(body: AsyncIterable<Buffer | string>): AsyncGenerator<DaemonEvent> {
  const decoder = new TextDecoder();
  let rest = "";
  let event: DaemonEvent & { lines: string[] } = { event: "message", data: "", id: undefined, lines: [] };
  for await (const chunk of body) {
    rest += typeof chunk === "string" ? chunk : decoder.decode(chunk, { stream: true });
    const lines = rest.split(/\r?\n/);
    rest = lines.pop() ?? "";
    for (const line of lines) {
      const [, field, value = ""] = /^([^:]+)(?:: ?(.*))?$/.exec(line) ?? [];
      if (field === "event") event.event = value;
      else if (field === "id") event.id = value;
      else if (field === "data") event.lines.push(value);
      if (line !== "") continue;
      if (event.lines.length > 0) yield { event: event.event, id: event.id, data: event.lines.join("\n") };
      event = { event: "message", data: "", id: undefined, lines: [] };
    }
  }
}
