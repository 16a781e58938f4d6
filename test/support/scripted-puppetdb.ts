/**
 * A server that answers sasori's queries as no real PuppetDB would on request: with errors, in pieces, never.
 * It tells who has asked and whether connections were left open.
 */
import { EventEmitter, once } from "node:events";
import { createServer as createHttpServer, type IncomingMessage, type ServerResponse } from "node:http";
import { createServer as createHttpsServer, type ServerOptions } from "node:https";
import type { AddressInfo, Socket } from "node:net";
import type { TLSSocket } from "node:tls";

/** Writes an answer, or part of one, or nothing. */
export type Script = (response: ServerResponse) => void;

/** What each entity ("nodes", "factsets", ...) answers; `other` for those that are not named. */
export type Scripts = Readonly<Record<string, Script>> & { readonly other: Script };

/** A query that arrived. */
export interface Asked {
  entity: string;
  query: string;
  headers: IncomingMessage["headers"];
  /** The name in the client's certificate. */
  client: string | undefined;
}

export interface ScriptedPuppetdb {
  url: string;
  /** May be replaced while it runs. */
  scripts: Scripts;
  /** All queries so far. */
  asked: Asked[];
  /** Resolves when a query to this entity has arrived, which may have been long ago. */
  untilAsked(entity: string): Promise<void>;
  /** Resolves when no client is connected any more. Nothing is closed by the server itself. */
  untilAlone(): Promise<void>;
  close(): Promise<void>;
}

/** `text` with a status and a content type, as a whole. */
export function answer(text: string | Buffer, status = 200, type = "application/json;charset=utf-8"): Script {
  return (response) => {
    response.writeHead(status, { "content-type": type, "content-length": Buffer.byteLength(text) }).end(text);
  };
}

/** No row, as for an entity that is empty. */
export const EMPTY = answer("[]");

/** Takes the request and says nothing. */
export const SILENT: Script = () => undefined;

/** Starts it on a free port of loopback, or at this address, with TLS when there are options for it. */
export async function startScriptedPuppetdb(
  scripts: Scripts,
  tls?: ServerOptions,
  where = { host: "127.0.0.1", port: 0 },
): Promise<ScriptedPuppetdb> {
  const connections = new Set<Socket>();
  const changes = new EventEmitter();
  const until = async (isSo: () => boolean) => {
    while (!isSo()) await once(changes, "change");
  };
  const server = tls === undefined ? createHttpServer() : createHttpsServer(tls);
  // As an idle PuppetDB: the client has to be the one that closes.
  server.keepAliveTimeout = 0;
  server.on("connection", (socket: Socket) => {
    connections.add(socket);
    socket.on("error", () => undefined);
    socket.on("close", () => {
      connections.delete(socket);
      changes.emit("change");
    });
  });
  server.on("request", (request: IncomingMessage, response: ServerResponse) => {
    const { pathname, searchParams } = new URL(request.url ?? "", "http://localhost");
    const entity = pathname.split("/").at(-1) ?? "";
    const client = tls && (request.socket as TLSSocket).getPeerCertificate().subject?.CN;
    scripted.asked.push({
      entity,
      query: searchParams.get("query") ?? "",
      headers: request.headers,
      client: typeof client === "string" ? client : undefined,
    });
    changes.emit("change");
    (scripted.scripts[entity] ?? scripted.scripts.other)(response);
  });
  await new Promise<void>((resolve) => server.listen(where.port, where.host, resolve));
  const { port } = server.address() as AddressInfo;
  const scripted: ScriptedPuppetdb = {
    url: `${tls === undefined ? "http" : "https"}://${where.host}:${port}`,
    scripts,
    asked: [],
    untilAsked: (entity) => until(() => scripted.asked.some((query) => query.entity === entity)),
    untilAlone: () => until(() => connections.size === 0),
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        for (const socket of connections) socket.destroy();
      }),
  };
  return scripted;
}
