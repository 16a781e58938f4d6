/**
 * The project's own haproxy.cfg on a real HAProxy, with small masters behind it, for tests of routing.
 */
import { createHash } from "node:crypto";
import { copyFileSync, mkdirSync, readFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";
import { join } from "node:path";
import { TLSSocket } from "node:tls";
import { freePort } from "./child.js";
import {
  type HaproxyOptions,
  type HaproxyPlaces,
  type HaproxyServer,
  startHaproxy,
} from "./haproxy-server.js";

/**
 * A master that answers every request with its name, the node it was asked for, and the path. With `nodes` set it
 * says 404 to all others.
 */
export interface TestMaster {
  name: string;
  port: number;
  nodes: Set<string> | undefined;
  /** The status that says "not mine". */
  notMine: number;
  /** Says "please wait" (102) before each answer. */
  interim: boolean;
  /** More headers of its answers. */
  says: Record<string, string>;
  /** The headers and the body of the last request, and what came behind that. */
  headers: http.IncomingHttpHeaders;
  body: string;
  trailers: NodeJS.Dict<string>;
  /** With TLS: whose certificate was shown with it, and which name was asked for in the handshake (SNI). */
  client: { name: unknown; sni: unknown } | undefined;
  /** Whom the requests were for, in their order. */
  nodesAsked: string[];
  /** Requests for nodes so far, without health checks. */
  requests: number;
  /** While set, requests wait for it: that is how a queue fills. */
  hold: Promise<void> | undefined;
  stop(): Promise<void>;
  /** Again, on the same port. */
  start(): Promise<void>;
}

/** With `tls` it speaks that, and takes who it asks for a certificate. */
export async function startMaster(name: string, tls?: https.ServerOptions): Promise<TestMaster> {
  const port = await freePort();
  const master: TestMaster = {
    name,
    port,
    nodes: undefined,
    notMine: 404,
    interim: false,
    says: {},
    headers: {},
    client: undefined,
    body: "",
    trailers: {},
    nodesAsked: [],
    requests: 0,
    hold: undefined,
    stop: async () => undefined,
    start: () => new Promise((resolve) => server.listen(master.port, "127.0.0.1", resolve)),
  };
  const listener: http.RequestListener = async (request, response) => {
    if (request.url === "/status/v1/simple") {
      response.end("running");
      return;
    }
    const probed = /^\/probe\/(.*)$/.exec(request.url ?? "")?.[1];
    const node = probed ?? String(request.headers["x-node-name"]);
    if (probed === undefined) {
      master.requests += 1;
      master.nodesAsked.push(node);
    }
    master.headers = request.headers;
    if (request.socket instanceof TLSSocket)
      master.client = {
        name: request.socket.getPeerCertificate().subject?.CN,
        sni: request.socket.servername,
      };
    master.body = "";
    for await (const chunk of request) master.body += String(chunk);
    master.trailers = request.trailers;
    if (master.interim) response.writeProcessing();
    await master.hold;
    const mine = master.nodes?.has(node) ?? true;
    response.writeHead(mine ? 200 : master.notMine, { "content-type": "application/json", ...master.says });
    response.end(JSON.stringify({ master: name, node, path: request.url }));
  };
  const server = tls
    ? https.createServer({ requestCert: true, ...tls }, listener)
    : http.createServer(listener);
  // As a puppetserver within a test: whoever keeps a connection closes it. Of itself Node closes one after 5 s, which may be
  // when HAProxy sends the next request on it; then HAProxy closes the client's connection, too.
  server.keepAliveTimeout = 0;
  // Another protocol, whatever its name: says everything back.
  server.on("upgrade", (request, socket) => {
    master.headers = request.headers;
    const { upgrade, "sec-websocket-key": key } = request.headers;
    const accept = createHash("sha1").update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");
    const head = `Connection: Upgrade\r\nUpgrade: ${upgrade}\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`;
    socket.write(`HTTP/1.1 101 Switching Protocols\r\n${head}`);
    socket.pipe(socket);
  });
  await new Promise<void>((resolve) => server.listen(port, "127.0.0.1", resolve));
  master.stop = async () => {
    server.closeAllConnections();
    if (server.listening) await new Promise((resolve) => server.close(resolve));
  };
  return master;
}

/** Lets the master's requests wait until the returned function is called. */
export function hold(master: TestMaster | undefined): () => void {
  let release = () => {};
  if (master === undefined) throw new Error("no master");
  master.hold = new Promise((resolve) => {
    release = resolve;
  });
  return release;
}

export interface Gateway {
  haproxy: HaproxyServer;
  masters: TestMaster[];
  url: string;
  statsUrl: string;
  /** A request through the gateway, for a node. */
  ask(node: string, init?: RequestInit & { path?: string }): Promise<Response>;
}

/** Gives `use` three masters (master1 to master3) behind haproxy/haproxy.cfg. */
export async function withGateway<T>(
  options: Pick<HaproxyOptions, "bin" | "map" | "masterWorker"> & {
    /** Of sasori's HTTP API. Default: a port where nobody listens. */
    sasoriPort?: number;
    /** Another gateway's. Default: three of its own. */
    masters?: TestMaster[];
    /** More variables of haproxy.cfg. */
    variables?: Record<string, string>;
    /** Another file of this HAProxy locks it into a folder. */
    chroot?: boolean;
  },
  use: (gateway: Gateway) => Promise<T>,
): Promise<T> {
  const names = ["master1", "master2", "master3"];
  const masters = options.masters ?? (await Promise.all(names.map((name) => startMaster(name))));
  const statsPort = await freePort();
  const sasori = options.sasoriPort ?? (await freePort());
  const variables = { RESOLVER_ADDRESS: `127.0.0.1:${sasori}`, ...options.variables };
  const config = (at: HaproxyPlaces) => {
    if (!options.chroot) return gatewayConfig(at, masters, statsPort, variables);
    const jail = join(at.dir, "jail");
    mkdirSync(join(jail, at.dir), { recursive: true });
    const inside = { HAPROXY_CHROOT: jail, ...variables };
    return `global\n  chroot ${jail}\n${gatewayConfig(at, masters, statsPort, inside)}`;
  };
  const haproxy = await startHaproxy({ ...options, config });
  const url = `http://127.0.0.1:${haproxy.ports.frontend}`;
  try {
    return await use({
      haproxy,
      masters,
      url,
      statsUrl: `http://127.0.0.1:${statsPort}`,
      ask: (node, { path = "/", ...init } = {}) =>
        fetch(`${url}${path}`, { ...init, headers: { "x-node-name": node, ...init.headers } }),
    });
  } finally {
    await haproxy.stop();
    if (options.masters === undefined) for (const master of masters) await master.stop();
  }
}

/** haproxy.cfg with the variables that it takes from the environment set in front of it. */
export function gatewayConfig(
  at: HaproxyPlaces,
  masters: readonly { port: number }[],
  statsPort: number,
  more: Record<string, string>,
): string {
  const variables = {
    NODE_MASTER_MAP: at.mapPath,
    HAPROXY_SOCKET: at.socketPath,
    STATS_USER: "admin",
    STATS_PASSWORD: "secret",
    GATEWAY_PORT: at.ports.frontend,
    STATS_PORT: statsPort,
    ...Object.fromEntries(masters.map(({ port }, index) => [`MASTER${index + 1}`, `127.0.0.1:${port}`])),
    ...more,
  };
  return shippedConfig("haproxy.cfg", at, variables);
}

/** A file of haproxy/ with the variables that it takes from the environment set in front of it. */
export function shippedConfig(
  file: "haproxy.cfg" | "pools.cfg",
  at: HaproxyPlaces,
  variables: Record<string, string | number>,
): string {
  const lines = Object.entries(variables).map(([name, value]) => `  setenv ${name} "${value}"\n`);
  const source = (name: string) => new URL(`../../haproxy/${name}`, import.meta.url);
  copyFileSync(source("heal.lua"), join(at.dir, "heal.lua"));
  return `global\n${lines.join("")}${readFileSync(source(file), "utf8")}`;
}
