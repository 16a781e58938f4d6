// The demo's HTTP: one way to serve, one way to ask, one way to be a program of its own.
// Nothing here knows what is served. Every request has a deadline.

import { realpathSync } from "node:fs";
import { InvalidArgumentError, Option } from "commander";
import { type FastifyInstance, fastify } from "fastify";
import { Agent, request } from "undici";
import type { ListenAddress } from "../src/config.js";
import { reason } from "../src/errors.js";

export interface RunningServer {
  url: string;
  close(): Promise<void>;
}

export interface Answer {
  status: number;
  headers: Record<string, string | string[] | undefined>;
  body: unknown;
}

const ASK_DEADLINE_MS = 10_000;

/**
 * A server for people with curl: a body is JSON whatever its content type says (`curl -d` says "form"), and an
 * answer ends with a line break. An error is `{"error": code, "message": text}`.
 */
export function newServer(): FastifyInstance {
  // Streams and idle connections do not keep a server from closing.
  const app = fastify({ forceCloseConnections: true });
  app.removeAllContentTypeParsers();
  app.addContentTypeParser("*", { parseAs: "string" }, (_request, text, done) => {
    try {
      done(null, text === "" ? undefined : JSON.parse(String(text)));
    } catch (error) {
      done(new HttpError(400, "not_json", reason(error)));
    }
  });
  app.setReplySerializer((payload) => `${JSON.stringify(payload)}\n`);
  app.setErrorHandler((error: Error & { statusCode?: number }, _request, reply) => {
    const code = error instanceof HttpError ? error.error : "failed";
    return reply.code(error.statusCode ?? 500).send({ error: code, message: error.message });
  });
  app.setNotFoundHandler((request) => {
    throw new HttpError(404, "not_found", `there is no ${request.method} ${request.url}`);
  });
  return app;
}

/** Throw it in a route to answer with that status. */
export class HttpError extends Error {
  readonly statusCode: number;
  readonly error: string;

  constructor(statusCode: number, error: string, message: string) {
    super(message);
    this.statusCode = statusCode;
    this.error = error;
  }
}

/** Port 0 is any free port. Rejects when the address is taken. */
export async function listen(app: FastifyInstance, address: ListenAddress): Promise<RunningServer> {
  const url = await app.listen(address);
  return { url, close: () => app.close() };
}

// A reused connection may be closed by its server just as a request is sent, and masters come and go here.
const client = new Agent({ keepAliveTimeout: 1_000, connect: { timeout: 2_000 } });

/** Sends JSON, takes JSON or text. Rejects only when there is no answer. */
export async function ask(
  method: "GET" | "POST" | "PUT" | "DELETE",
  url: string,
  body?: unknown,
  options: { headers?: Record<string, string>; dispatcher?: Agent; signal?: AbortSignal } = {},
): Promise<Answer> {
  const deadline = AbortSignal.timeout(ASK_DEADLINE_MS);
  const response = await request(url, {
    method,
    dispatcher: options.dispatcher ?? client,
    signal: options.signal ? AbortSignal.any([options.signal, deadline]) : deadline,
    headers: { ...(body !== undefined && { "content-type": "application/json" }), ...options.headers },
    ...(body !== undefined && { body: JSON.stringify(body) }),
  });
  const text = await response.body.text();
  const isJson = String(response.headers["content-type"]).startsWith("application/json");
  return { status: response.statusCode, headers: response.headers, body: isJson ? JSON.parse(text) : text };
}

/** As `ask`; an answer that is no success is an error too, and says what was answered. */
export async function mustAsk(...parameters: Parameters<typeof ask>): Promise<Answer> {
  const [method, url] = parameters;
  const answer = await ask(...parameters);
  if (answer.status >= 200 && answer.status < 300) return answer;
  throw new Error(`${method} ${url} answered ${answer.status}: ${JSON.stringify(answer.body)}`);
}

/** The flag that every program of the demo has. */
export function listenOption(standard: string): Option {
  return new Option("--listen <host:port>", "address to serve on")
    .env("DEMO_LISTEN")
    .argParser(parseListen)
    .default(parseListen(standard), standard);
}

/** For commander's options: host:port. */
export function parseListen(text: string): ListenAddress {
  const match = /^(\[[^\]]+\]|[^:]+):(\d{1,5})$/.exec(text);
  if (match?.[1] === undefined || Number(match[2]) > 65535)
    throw new InvalidArgumentError("It must be host:port.");
  return { host: match[1].replace(/^\[|\]$/g, ""), port: Number(match[2]) };
}

/** For commander's options: an http or https URL, without a slash at its end. */
export function parseUrl(text: string): string {
  if (!URL.canParse(text) || !/^https?:$/.test(new URL(text).protocol))
    throw new InvalidArgumentError("It must be a http(s) URL.");
  return text.replace(/\/+$/, "");
}

/** For commander's options: a TCP port. */
export function parsePort(text: string): number {
  if (/^\d{1,5}$/.test(text) && Number(text) > 0 && Number(text) <= 65535) return Number(text);
  throw new InvalidArgumentError("It must be a port from 1 to 65535.");
}

/** For commander's options: a number of at least `least`. */
export function atLeast(least: number, isFine = Number.isFinite): (text: string) => number {
  return (text) => {
    const number = text.trim() === "" ? Number.NaN : Number(text);
    if (isFine(number) && number >= least) return number;
    throw new InvalidArgumentError(
      `It must be ${isFine === Number.isInteger ? "a whole" : "a"} number of at least ${least}.`,
    );
  };
}

/** Whether the module is the program that node was started with, and not imported by another. */
export function isProgram(module: ImportMeta): boolean {
  return process.argv[1] !== undefined && realpathSync(process.argv[1]) === module.filename;
}

/** Serves until SIGINT or SIGTERM, then closes. A start that fails ends the program with 1. */
export async function serveUntilSignal(what: string, start: () => Promise<RunningServer>): Promise<void> {
  try {
    const server = await start();
    console.log(`${what} listens on ${server.url}`);
    for (const signal of ["SIGINT", "SIGTERM"] as const) {
      process.once(signal, () => void server.close().then(() => process.exit(0)));
    }
  } catch (error) {
    console.error(`${what} cannot start: ${reason(error)}`);
    process.exitCode = 1;
  }
}
