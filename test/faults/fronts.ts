// What stands between sasori and the real programs while they misbehave: a socket in front of HAProxy's Runtime API,
// and a server in front of PuppetDB. Both pass on what comes until a tap says otherwise. Nothing in src/ knows them.

import { once } from "node:events";
import { rm } from "node:fs/promises";
import { createServer as createHttpServer, type IncomingMessage, type ServerResponse } from "node:http";
import { connect, createServer, type Server, type Socket } from "node:net";
import { request } from "undici";
import { freePort } from "../support/child.js";

/** One connection of sasori to HAProxy. */
export interface Link {
  client: Socket;
  haproxy: Socket;
}

/** Looks at what passes. "stall": from here on nothing of this connection is passed on, and nobody hangs up. */
export interface SocketTap {
  /** Each line that sasori sends, before HAProxy has it. A promise holds it, and what comes after it, back. */
  line?(line: string, link: Link): "stall" | Promise<unknown> | undefined;
  /** Each piece of a reply, before sasori has it. A Buffer takes its place. */
  reply?(chunk: Buffer, link: Link): Buffer | "stall" | undefined;
}

/** A socket path that leads to another one. */
export class SocketFront {
  readonly path: string;
  tap: SocketTap = {};
  readonly #upstream: () => string;
  readonly #links = new Set<Link>();
  #server: Server | undefined;

  constructor(path: string, upstream: () => string) {
    this.path = path;
    this.#upstream = upstream;
  }

  async open(): Promise<void> {
    this.#server = createServer((client) => this.#pass(client)).listen(this.path);
    await once(this.#server, "listening");
  }

  /** As if HAProxy and its socket were gone. */
  async close(): Promise<void> {
    const server = this.#server;
    this.#server = undefined;
    this.hangUp();
    if (server !== undefined) await new Promise((resolve) => server.close(resolve));
    await rm(this.path, { force: true });
  }

  hangUp(): void {
    for (const { client, haproxy } of this.#links) for (const socket of [client, haproxy]) socket.destroy();
  }

  #pass(client: Socket): void {
    const haproxy = connect(this.#upstream());
    const link = { client, haproxy };
    this.#links.add(link);
    let stalled = false;
    let held = false;
    let unfinished = "";
    const waiting: string[] = [];
    const pump = () => {
      while (waiting.length > 0 && !stalled && !held) {
        const line = waiting.shift() ?? "";
        const verdict = this.tap.line?.(line, link);
        if (verdict === "stall") stalled = true;
        else if (verdict === undefined) haproxy.write(`${line}\n`, "latin1");
        else {
          held = true;
          const goOn = () => {
            held = false;
            haproxy.write(`${line}\n`, "latin1");
            pump();
          };
          verdict.then(goOn, goOn);
        }
      }
    };
    client.on("data", (chunk: Buffer) => {
      const lines = (unfinished + chunk.toString("latin1")).split("\n");
      unfinished = lines.pop() ?? "";
      waiting.push(...lines);
      pump();
    });
    haproxy.on("data", (chunk: Buffer) => {
      if (stalled) return;
      const instead = this.tap.reply?.(chunk, link);
      if (instead === "stall") stalled = true;
      else if (!client.destroyed) client.write(instead ?? chunk);
    });
    const end = () => {
      this.#links.delete(link);
      for (const socket of [client, haproxy]) socket.destroy();
    };
    for (const socket of [client, haproxy]) socket.on("error", end).on("close", () => stalled || end());
    client.on("close", end);
  }
}

/** Rows as PuppetDB answered them. */
export type Rows = Record<string, unknown>[];

export interface HttpTap {
  /** When a query has come, before PuppetDB gets it. */
  asked?(entity: string, query: string): void | Promise<void>;
  /** Answers in PuppetDB's place. */
  answer?(response: ServerResponse, entity: string): void;
  /** Changes the rows of an answer. */
  rows?(rows: Rows, entity: string): Rows;
  /** Gets the whole text of an answer and sends what it likes. */
  text?(response: ServerResponse, text: string, entity: string): void;
}

/** An address that leads to PuppetDB. */
export class PuppetdbFront {
  tap: HttpTap = {};
  /** Which PuppetDB. May be changed at any time. */
  upstream: (entity: string) => string;
  /** Queries that PuppetDB has not answered yet: for messages. */
  readonly underway = new Set<string>();
  readonly #sockets = new Set<Socket>();
  #server: ReturnType<typeof createHttpServer> | undefined;
  #port = 0;

  constructor(upstream: string) {
    this.upstream = () => upstream;
  }

  get url(): string {
    return `http://127.0.0.1:${this.#port}`;
  }

  /** Opens the port; after `close()` the same one again. */
  async open(): Promise<void> {
    const server = createHttpServer((incoming, response) => {
      this.#pass(incoming, response).catch(() => response.destroy());
    });
    // As PuppetDB, which keeps a connection longer than sasori does.
    server.keepAliveTimeout = 0;
    server.on("connection", (socket: Socket) => {
      this.#sockets.add(socket);
      socket.on("close", () => this.#sockets.delete(socket)).on("error", () => undefined);
    });
    if (this.#port === 0) this.#port = await freePort();
    server.listen(this.#port, "127.0.0.1");
    await once(server, "listening");
    this.#server = server;
  }

  /** As an outage: the port is closed, and so are all connections. */
  async close(): Promise<void> {
    const server = this.#server;
    this.#server = undefined;
    for (const socket of this.#sockets) socket.destroy();
    if (server !== undefined) await new Promise((resolve) => server.close(resolve));
  }

  async #pass(incoming: IncomingMessage, response: ServerResponse): Promise<void> {
    const path = incoming.url ?? "";
    let body = ""; // A long query.
    for await (const chunk of incoming) body += String(chunk);
    const { pathname, searchParams } = new URL(path, "http://localhost");
    const entity = pathname.split("/").at(-1) ?? "";
    await this.tap.asked?.(entity, searchParams.get("query") ?? "");
    if (this.tap.answer !== undefined) {
      this.tap.answer(response, entity);
      return;
    }
    const question = `${entity} since ${new Date().toISOString()}`;
    this.underway.add(question);
    const answer = await ask(`${this.upstream(entity)}${path}`, body).finally(() =>
      this.underway.delete(question),
    );
    const { statusCode, headers } = answer;
    let { text } = answer;
    const { rows, text: send } = this.tap;
    if (rows !== undefined && statusCode === 200)
      text = JSON.stringify(rows(JSON.parse(text) as Rows, entity));
    response.writeHead(statusCode, {
      "content-type": String(headers["content-type"]),
      date: String(headers.date),
    });
    if (send === undefined) response.end(text);
    else send(response, text, entity);
  }
}

async function ask(url: string, query: string) {
  const post = { method: "POST", headers: { "content-type": "application/json" }, body: query } as const;
  const { statusCode, headers, body } = await request(url, query === "" ? undefined : post);
  return { statusCode, headers, text: await body.text() };
}
