/**
 * The project's own haproxy.cfg on a real HAProxy, with small masters behind it, for tests of routing.
 */
import { readFileSync } from "node:fs";
import http from "node:http";
import type { AddressInfo } from "node:net";
import { freePort } from "./child.js";
import {
  type HaproxyOptions,
  type HaproxyPlaces,
  type HaproxyServer,
  startHaproxy,
} from "./haproxy-server.js";

/** A master that answers every request with its name, the node it was asked for, and the path. */
export interface TestMaster {
  name: string;
  port: number;
  /** Requests for nodes so far, without health checks. */
  requests: number;
  /** While set, requests wait for it: that is how a queue fills. */
  hold: Promise<void> | undefined;
  stop(): Promise<void>;
}

export async function startMaster(name: string, port = 0): Promise<TestMaster> {
  const master: TestMaster = { name, port, requests: 0, hold: undefined, stop: async () => undefined };
  const server = http.createServer(async (request, response) => {
    if (request.url === "/status/v1/simple") {
      response.end("running");
      return;
    }
    master.requests += 1;
    await master.hold;
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify({ master: name, node: request.headers["x-node-name"], path: request.url }));
  });
  await new Promise<void>((resolve) => server.listen(port, "127.0.0.1", resolve));
  master.port = (server.address() as AddressInfo).port;
  master.stop = async () => {
    server.closeAllConnections();
    if (server.listening) await new Promise((resolve) => server.close(resolve));
  };
  return master;
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
  options: Pick<HaproxyOptions, "bin" | "map" | "masterWorker">,
  use: (gateway: Gateway) => Promise<T>,
): Promise<T> {
  const masters = await Promise.all(["master1", "master2", "master3"].map((name) => startMaster(name)));
  const statsPort = await freePort();
  const haproxy = await startHaproxy({ ...options, config: (at) => gatewayConfig(at, masters, statsPort) });
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
    for (const master of masters) await master.stop();
  }
}

/** haproxy.cfg with the variables that it takes from the environment set in front of it. */
export function gatewayConfig(
  at: HaproxyPlaces,
  masters: readonly { port: number }[],
  statsPort: number,
): string {
  const variables = {
    NODE_MASTER_MAP: at.mapPath,
    HAPROXY_SOCKET: at.socketPath,
    STATS_USER: "admin",
    STATS_PASSWORD: "secret",
    GATEWAY_PORT: at.ports.frontend,
    STATS_PORT: statsPort,
    ...Object.fromEntries(masters.map(({ port }, index) => [`MASTER${index + 1}`, `127.0.0.1:${port}`])),
  };
  const lines = Object.entries(variables).map(([name, value]) => `  setenv ${name} "${value}"\n`);
  const config = readFileSync(new URL("../../haproxy/haproxy.cfg", import.meta.url), "utf8");
  return `global\n${lines.join("")}${config}`;
}
