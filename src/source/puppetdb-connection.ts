// Connections to PuppetDB: certificates, token, and what failures mean.
// Promises: certificates are always checked, even if Node's variables say otherwise; files that are renewed in place are
// read again; an answer is used only after its status and content type were checked; every failure is a SasoriError with a
// remedy.

import dns from "node:dns";
import type { LookupFunction } from "node:net";
import { isDeepStrictEqual } from "node:util";
import { Agent, buildConnector, type Dispatcher, request } from "undici";
import { mayHaveToken } from "../config/contradictions.js";
import type { PuppetdbServer } from "../config.js";
import { quote, reason, SasoriError, systemCode } from "../errors.js";
import { type Pem, PemFiles, readNamed } from "../pem-files.js";

/**
 * An answer that does not begin for this long means that PuppetDB hangs. For the latest reports it first hashes all nodes: 5 s
 * with 100,000, and more than in proportion with a million. A reading of changes is ended earlier, by its signal.
 */
const SILENCE_MS = 5 * 60_000;
const CONNECT_MS = 5_000;
/**
 * A connection is used for this long at most. Otherwise a busy one would last for as long as the old PuppetDB answers, even
 * if the name leads to another one by now.
 */
const CONNECTION_MS = 60_000;

export class Connector {
  readonly #config: PuppetdbServer;
  readonly #files: PemFiles;
  #agent: TlsAgent | undefined;

  constructor(config: PuppetdbServer) {
    this.#config = config;
    this.#files = new PemFiles(config, "PUPPETDB");
  }

  /**
   * Called once per reading, so that all its queries use the same certificates and token. Throws `PUPPETDB_TLS`, or the
   * reason of `signal`. The files are read one after the other, so that one that hangs blocks only itself.
   */
  async open(signal?: AbortSignal): Promise<Connection> {
    const { tokenFile } = this.#config;
    const headers = tokenFile === undefined ? {} : { "x-authentication": await readToken(tokenFile, signal) };
    const agent = this.#agentFor(await this.#files.read(signal).catch(tlsError));
    agent.alert = undefined;
    return { agent, headers };
  }

  /** Puppet's certificates are renewed in place. When they have changed, a new agent is made. */
  #agentFor(pem: Pem): TlsAgent {
    const previous = this.#agent;
    if (previous !== undefined && isDeepStrictEqual(previous.pem, pem)) return previous;
    this.#agent = newAgent(pem);
    previous?.dispatcher.close().catch(() => undefined);
    return this.#agent;
  }

  async close(): Promise<void> {
    // Not `close()`, which waits for the answer of a PuppetDB that may be silent.
    await this.#agent?.dispatcher.destroy(new SasoriError("STOPPED", "sasori was told to stop"));
    this.#agent = undefined;
  }
}

/** Set explicitly, because variables of Node (`NODE_TLS_REJECT_UNAUTHORIZED`, `NODE_OPTIONS`) can weaken the defaults. */
export const STRICT_TLS = {
  rejectUnauthorized: true,
  minVersion: "TLSv1.2",
  timeout: CONNECT_MS,
  // Puppet's CA has two levels. A file with only the intermediate CA, without the root, is enough, as with curl.
  allowPartialTrustChain: true,
} as const;

/** The connections that were made with one state of the certificate files. */
interface TlsAgent {
  dispatcher: Agent;
  newDispatcher: () => Agent;
  pem: Pem;
  /** The error with which one of its connections last failed. */
  alert: Error | undefined;
  /** How many connections wait for the name lookup. */
  lookups: number;
}

/**
 * With TLS 1.3 a server refuses our certificate only after the connection looks ready. undici then reports "other side
 * closed", and drops the alert that came just before it, such as "certificate required". The alert is kept here.
 */
function newAgent(pem: Pem): TlsAgent {
  const lookup: LookupFunction = (host, options, done) => {
    agent.lookups += 1;
    dns.lookup(host, options, (...found) => {
      agent.lookups -= 1;
      done(...found);
    });
  };
  const connectTls = buildConnector({ ...STRICT_TLS, ...pem, lookup } as buildConnector.BuildOptions);
  const connect: buildConnector.connector = (options, done) =>
    connectTls(options, (...[error, socket]) => {
      socket?.prependListener("error", (alert) => {
        if (TLS_CODES.test(systemCode(alert))) agent.alert = alert;
      });
      if (error === null) done(null, socket);
      else done(error, null);
    });
  const newDispatcher = () => new Agent({ connect, headersTimeout: SILENCE_MS, clientTtl: CONNECTION_MS });
  const agent: TlsAgent = { dispatcher: newDispatcher(), newDispatcher, pem, alert: undefined, lookups: 0 };
  return agent;
}

/**
 * As undici's `request`. The other side may close a kept connection just when it is used again. A query changes nothing, so
 * it is sent again, over a connection of its own, because more of the kept ones may be closed.
 */
export async function send(
  url: string,
  agent: TlsAgent,
  options: { headers: Record<string, string>; signal: AbortSignal; method?: "POST"; body?: string },
): Promise<Dispatcher.ResponseData> {
  try {
    return await request(url, { ...options, dispatcher: agent.dispatcher });
  } catch (error) {
    const isClosed = /^(UND_ERR_SOCKET|ECONNRESET|EPIPE)$/.test(systemCode(error));
    if (!isClosed || agent.alert !== undefined || options.signal.aborted) throw error;
  }
  const dispatcher = agent.newDispatcher();
  const answer = request(url, { ...options, dispatcher });
  dispatcher.close().catch(() => undefined); // It takes no other request, and ends after this one.
  return answer;
}

export interface Connection {
  agent: TlsAgent;
  headers: Record<string, string>;
}

const REMEDIES: Record<number, string> = {
  400: "this PuppetDB refuses sasori's query: use PuppetDB 7 or 8",
  401: "PuppetDB wants a valid token: put one into the file of SASORI_PUPPETDB_TOKEN_FILE",
  403: "sasori's certificate is not allowed to query: add its name to PuppetDB's certificate-allowlist",
  503: "PuppetDB is starting or in maintenance, so wait",
};
const NO_TOKEN =
  "sasori never sends a token over http to another machine: give this PuppetDB an https URL in SASORI_PUPPETDB_URL";
export const WRONG_URL = "check that SASORI_PUPPETDB_URL is the base URL of PuppetDB";
const SEE_LOG = "PuppetDB's log says why";

/** Throws `PUPPETDB_STATUS` or `PUPPETDB_BODY` for what is not JSON with status 200. */
export async function checkAnswer(url: string, response: Dispatcher.ResponseData): Promise<void> {
  const { statusCode, headers, body } = response;
  const type = String(headers["content-type"] ?? "");
  const encoding = String(headers["content-encoding"] ?? "identity");
  if (statusCode === 200 && encoding !== "identity") {
    body.on("error", () => undefined).destroy();
    const what = `${url} sent a compressed answer (${quote(encoding)}) that sasori did not ask for`;
    throw new SasoriError("PUPPETDB_BODY", `${what}: turn compression off in the proxy in front of PuppetDB`);
  }
  if (statusCode === 200 && /^application\/json\b/i.test(type)) return;
  const text = quote(await firstText(body), 200);
  if (statusCode === 200) {
    const what = `${url} answered with ${quote(type)}, not application/json: ${text}; ${WRONG_URL}`;
    throw new SasoriError("PUPPETDB_BODY", what);
  }
  const hasNoToken = statusCode === 401 && !mayHaveToken(url);
  const remedy = hasNoToken ? NO_TOKEN : (REMEDIES[statusCode] ?? (statusCode >= 500 ? SEE_LOG : WRONG_URL));
  throw new SasoriError("PUPPETDB_STATUS", `${url} answered ${statusCode}: ${text}; ${remedy}`);
}

/** Once PuppetDB has begun to answer, it sends megabytes a second. An answer that brings less than this has almost stopped. */
const SLOW_BYTES = 64 * 1024;
const SLOW_MS = 60_000;

/**
 * The pieces of an answer of any size. Throws `PUPPETDB_TIMEOUT` for one that comes byte by byte. It would hold up the pass
 * until the deadline of a full reading.
 */
export async function* piecesOf(url: string, body: Dispatcher.ResponseData["body"]): AsyncGenerator<Buffer> {
  let bytes = 0;
  const watching = setInterval(() => {
    const what = `${url} sends its answer byte by byte (${bytes} in ${SLOW_MS / 1_000} s)`;
    if (bytes < SLOW_BYTES) body.destroy(new SasoriError("PUPPETDB_TIMEOUT", `${what}; ${SEE_LOG}`));
    bytes = 0;
  }, SLOW_MS);
  try {
    for await (const piece of body as AsyncIterable<Buffer>) {
      bytes += piece.length;
      yield piece;
    }
  } finally {
    clearInterval(watching);
  }
}

/** PuppetDB's answers about itself have about a kilobyte. */
const MAX_SHORT_BYTES = 64 * 1024;

/** A body that must be short. Throws `PUPPETDB_BODY` if it is not. */
export async function shortText(url: string, body: Dispatcher.ResponseData["body"]): Promise<string> {
  const pieces: Buffer[] = [];
  let length = 0;
  for await (const piece of body as AsyncIterable<Buffer>) {
    length += piece.length;
    if (length > MAX_SHORT_BYTES)
      throw new SasoriError("PUPPETDB_BODY", `${url} sent an endless answer; ${WRONG_URL}`);
    pieces.push(piece);
  }
  return Buffer.concat(pieces).toString();
}

/** The beginning of a body, for a message; the rest is not read. If reading it fails, the message has only the status. */
async function firstText(body: Dispatcher.ResponseData["body"]): Promise<string> {
  try {
    for await (const chunk of body) return String(chunk).slice(0, 400); // Leaving the loop ends the connection.
  } catch {}
  return "";
}

const TLS_CODES =
  /^(CERT_|ERR_TLS|ERR_SSL|ERR_OSSL|SELF_SIGNED|DEPTH_ZERO|UNABLE_TO|HOSTNAME_MISMATCH|EPROTO)/;

/** Any failure of a question as a SasoriError. */
export function queryError(url: string, thrown: unknown, signal: AbortSignal, agent: TlsAgent): SasoriError {
  const error = (systemCode(thrown) === "UND_ERR_SOCKET" && agent.alert) || thrown;
  if (error instanceof SasoriError) return error;
  const isSilent = /CONNECT_TIMEOUT/.test(systemCode(error)) || signal.aborted;
  if (/^(ENOTFOUND|EAI_)/.test(systemCode(error)) || (isSilent && agent.lookups > 0)) {
    const { hostname } = new URL(url);
    const what = `${url}: the name ${hostname} cannot be looked up (${systemCode(error) || "no answer"})`;
    const remedy = "correct it in SASORI_PUPPETDB_URL, or DNS on this machine";
    return new SasoriError("PUPPETDB_UNREACHABLE", `${what}: ${remedy}`, { cause: error });
  }
  if (signal.aborted && signal.reason instanceof SasoriError) return signal.reason;
  const cause = { cause: error };
  const code = systemCode(error);
  const found = `${url}: ${reason(error)}`;
  if (!signal.aborted && /CONNECT_TIMEOUT|ETIMEDOUT|UNREACH/.test(code)) {
    const what =
      code === "UND_ERR_CONNECT_TIMEOUT" ? `${url}: no connection within ${CONNECT_MS / 1000} s` : found;
    const remedy = "check the address in SASORI_PUPPETDB_URL, and that no firewall blocks it";
    return new SasoriError("PUPPETDB_UNREACHABLE", `${what}: ${remedy}`, cause);
  }
  if (signal.aborted || /TIMEOUT/.test(code)) {
    const what =
      code === "UND_ERR_HEADERS_TIMEOUT" ? `${url}: no answer within ${SILENCE_MS / 1000} s` : found;
    return new SasoriError("PUPPETDB_TIMEOUT", `${what}: PuppetDB is too slow or hangs; ${SEE_LOG}`, cause);
  }
  if (TLS_CODES.test(code) || (code === "" && /\b(tls|ssl|certificate)\b/i.test(reason(error)))) {
    // OpenSSL's own message has the source line of OpenSSL and a line break; `reason` is what it means.
    const { reason: meaning } = error as { reason?: unknown };
    const what = (typeof meaning === "string" ? meaning : reason(error)).replace(/[:\s]+$/, "");
    return new SasoriError("PUPPETDB_TLS", `${url}: ${what}: ${tlsRemedy(code, what)}`, cause);
  }
  if (code === "ERR_ENCODING_INVALID_ENCODED_DATA") {
    return new SasoriError("PUPPETDB_BODY", `the answer of ${url} is not UTF-8; ${WRONG_URL}`, cause);
  }
  // Some servers refuse our certificate without a word.
  const isHttps = url.startsWith("https:");
  const isClosed = /closed|ECONNRESET|EPIPE/i.test(`${code} ${reason(error)}`);
  const plain = isClosed ? ", and whether SASORI_PUPPETDB_URL must begin with https" : "";
  const refused = isHttps ? ", and that it accepts the certificate of SASORI_PUPPETDB_CERT" : plain;
  return new SasoriError(
    "PUPPETDB_UNREACHABLE",
    `${found}: check that PuppetDB is running and reachable${refused}`,
    cause,
  );
}

/**
 * The remedy: for a PuppetDB certificate that we do not trust, for one of ours that PuppetDB refuses, or if there is no
 * TLS.
 */
function tlsRemedy(code: string, what: string): string {
  if (/SELF_SIGNED|DEPTH_ZERO|UNABLE_TO/.test(code))
    return "set SASORI_PUPPETDB_CA to the CA that signed PuppetDB's certificate";
  if (code === "CERT_HAS_EXPIRED")
    return "renew PuppetDB's certificate, or correct the clock of this machine";
  if (code === "CERT_NOT_YET_VALID") return "correct the clock of this machine, or that of PuppetDB's CA";
  if (/ALTNAME|HOSTNAME/.test(code)) return "use a name from PuppetDB's certificate in SASORI_PUPPETDB_URL";
  if (/wrong version number|packet length/.test(what))
    return "no TLS on this port: use PuppetDB's TLS port (usually 8081), or http, in SASORI_PUPPETDB_URL";
  if (/protocol version/.test(what))
    return "let PuppetDB use TLS 1.2 or 1.3, because sasori takes no older version";
  if (/certificate required/.test(what))
    return "set SASORI_PUPPETDB_CERT and _KEY to a certificate of Puppet's CA and its key";
  if (/key values mismatch/.test(what))
    return "set SASORI_PUPPETDB_CERT and _KEY to a certificate and its own key";
  return "check SASORI_PUPPETDB_CERT, _KEY and _CA, and when these certificates expire";
}

async function readToken(file: string, signal: AbortSignal | undefined): Promise<string> {
  const token = (await readNamed(file, "SASORI_PUPPETDB_TOKEN_FILE", signal).catch(tlsError)).trim();
  if (/^[\x21-\x7e]+$/.test(token)) return token;
  throw new SasoriError("PUPPETDB_TLS", `${file} holds no token: expected one word of ASCII characters`);
}

/** A problem with one of our files. A SasoriError means that sasori was told to stop, or that the time is up. */
function tlsError(error: unknown): never {
  if (error instanceof SasoriError) throw error;
  throw new SasoriError("PUPPETDB_TLS", reason(error), { cause: error });
}
