/**
 * A sasori with a fleet of any size behind its page: the daemon as users start it, real HAProxy instances with as many servers
 * as wanted, and the stand-in for PuppetDB, which knows the nodes at once.
 */
import { fileURLToPath } from "node:url";
import { Storage, startPuppetdbStandIn } from "../../demo/puppetdb.js";
import { Child, freePort } from "./child.js";
import { DEFAULTS, type HaproxyPlaces, type HaproxyServer, startHaproxy } from "./haproxy-server.js";
import { haproxyBinaries } from "./parts.js";
import { patient } from "./patience.js";
import { type PuppetdbClient, standInClient } from "./puppetdb-server.js";
import { EVERY_SECOND } from "./schedules.js";

const CLI = fileURLToPath(new URL("../../dist/src/cli.js", import.meta.url));
const START_DEADLINE_MS = 30_000;

export interface FleetOptions {
  /**
   * The names of HAProxy's servers; or of its backends, each with its servers. Nothing listens there, and HAProxy does not
   * check.
   */
  masters: readonly string[] | Record<string, readonly string[]>;
  /** Each node and its producer. */
  nodes: Iterable<readonly [certname: string, producer: string]>;
  haproxys: number;
  /** More variables of sasori. */
  env?: Record<string, string>;
}

export interface FleetSite {
  url: string;
  haproxys: HaproxyServer[];
  puppetdb: PuppetdbClient;
  storage: Storage;
  stopPuppetdb(): Promise<void>;
  stopSasori(): Promise<void>;
}

export async function withFleetSite(
  options: FleetOptions,
  use: (site: FleetSite) => Promise<void>,
): Promise<void> {
  const { masters, nodes, haproxys: many, env = {} } = options;
  const storage = new Storage();
  const at = new Date(Date.now() - 60_000).toISOString();
  for (const [certname, producer] of nodes) {
    const run = { certname, producer, environment: "production", producer_timestamp: at };
    storage.submit("replace facts", 5, { ...run, values: {} });
  }
  const port = await freePort();
  const standIn = await startPuppetdbStandIn({ host: "127.0.0.1", port }, storage);
  const haproxys: HaproxyServer[] = [];
  let daemon: Child | undefined;
  try {
    const bin = haproxyBinaries().at(-1)?.bin ?? "";
    const what = Array.isArray(masters)
      ? { servers: masters.map((name, index) => ({ name, port: 20_000 + index })) }
      : { config: (at: HaproxyPlaces) => configOfPools(at, Object.entries(masters)) };
    for (let index = 0; index < many; index += 1) haproxys.push(await startHaproxy({ bin, ...what }));
    const listen = `127.0.0.1:${await freePort()}`;
    daemon = new Child(process.execPath, [CLI, "serve"], {
      env: {
        PATH: process.env.PATH ?? "",
        SASORI_PUPPETDB_URL: `http://127.0.0.1:${port}`,
        SASORI_HAPROXY: haproxys.map(({ socketPath }) => socketPath).join(","),
        SASORI_MAP_FILE: haproxys[0]?.mapPath ?? "",
        SASORI_LISTEN: listen,
        ...EVERY_SECOND,
        ...env,
      },
    });
    const url = `http://${listen}`;
    await daemon.untilReady(async () => (await fetch(`${url}/readyz`)).ok, patient(START_DEADLINE_MS));
    await use({
      url,
      haproxys,
      storage,
      puppetdb: standInClient(`http://127.0.0.1:${port}`),
      stopPuppetdb: () => standIn.close(),
      stopSasori: async () => daemon?.end(),
    });
  } finally {
    await daemon?.end();
    for (const haproxy of haproxys) await haproxy.stop();
    await standIn.close();
  }
}

const configOfPools = (
  { socketPath, mapPath, ports }: HaproxyPlaces,
  pools: [string, readonly string[]][],
) => `
global
  stats socket ${socketPath} level admin
${DEFAULTS}frontend nodes
  bind 127.0.0.1:${ports.frontend}
  use_backend %[req.hdr(X-Node-Name),lower,map_str(${mapPath})]
${pools.map(([pool, servers]) => `backend ${pool}\n${servers.map((name) => `  server ${name} 127.0.0.1:9\n`).join("")}`).join("")}`;
