// Masters that are pools: haproxy/pools.cfg on a real HAProxy, with sasori beside it. Producers are found by the servers of
// the pools and by patterns, wrong routes heal from pool to pool, and a pool's state is what HAProxy does with it.

import { spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import type https from "node:https";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { pino } from "pino";
import { describe, expect, test } from "vitest";
import { startPuppetdbStandIn } from "../demo/puppetdb.js";
import { masterRows } from "../src/cli/list-text.js";
import { drain } from "../src/cli/rebalance.js";
import { styleFor } from "../src/cli/report-text.js";
import { readConfig } from "../src/config.js";
import { type Daemon, startDaemon } from "../src/daemon.js";
import { diagnose } from "../src/doctor/doctor.js";
import { makePuppetCa } from "./support/agents-gateway.js";
import { freePort } from "./support/child.js";
import { hold, shippedConfig, startMaster, type TestMaster } from "./support/gateway.js";
import { type HaproxyServer, runtimeCommand, withHaproxy } from "./support/haproxy-server.js";
import { haproxyBinaries, isFrom } from "./support/parts.js";
import { type PuppetdbClient, standInClient } from "./support/puppetdb-server.js";
import { ON_DEMAND } from "./support/schedules.js";

const NODE = "node1.example.com";
const POOLS = {
  fra: ["puppet-fra1.example.com", "puppet-fra2.example.com"],
  lon: ["puppet-lon1.example.com", "puppet-lon2.example.com"],
};
type Pool = keyof typeof POOLS;
const ALIASES = "old-fra[0-9]{1,2}\\.example\\.com=fra,old-fra7.example.com=lon,.*\\.lon\\.example\\.com=lon";

interface Lab {
  haproxy: HaproxyServer;
  daemon: Daemon;
  env: Record<string, string>;
  puppetdb: PuppetdbClient;
  master(name: string): TestMaster;
  /** The node is in this pool now, and in no other; PuppetDB is not told. */
  move(certname: string, pool: Pool): void;
  run(certname: string, producer: string): Promise<void>;
  sync(): Promise<void>;
  ask(
    node: string,
    init?: RequestInit,
  ): Promise<{ status: number; by: string | null; route: string | null; body: string }>;
  get(path: string): Promise<unknown>;
  /** At HAProxy's Runtime API, with each server of the pool for `SERVER`. */
  each(pool: Pool, command: string): Promise<void>;
}

const poolLines = (masters: readonly TestMaster[], options = "") =>
  Object.entries(POOLS)
    .map(([pool, names]) => {
      const servers = masters.filter(({ name }) => names.includes(name));
      const lines = servers.map(
        ({ name, port }) => `  server ${name} 127.0.0.1:${port} ${options.replace("NAME", name)}\n`,
      );
      return `\nbackend ${pool}\n  use-server %[var(txn.server)] if { var(txn.server) -m found }\n${lines.join("")}`;
    })
    .join("");

interface Options {
  bin: string;
  map?: readonly (readonly [string, Pool])[];
  variables?: Record<string, string>;
  sasori?: Record<string, string>;
  /** The certificate of each server, which speaks TLS then. */
  tls?: (name: string) => https.ServerOptions;
}

async function withPools(options: Options, use: (lab: Lab) => Promise<void>): Promise<void> {
  const masters = await Promise.all(
    Object.values(POOLS)
      .flat()
      .map((name) => startMaster(name, options.tls?.(name))),
  );
  const master = (name: string) => {
    const found = masters.find((one) => one.name === name);
    if (found === undefined) throw new Error(`no master ${name}`);
    return found;
  };
  for (const one of masters) one.nodes = new Set();
  const move = (certname: string, to: Pool) => {
    for (const [pool, names] of Object.entries(POOLS))
      for (const name of names)
        if (pool === to) master(name).nodes?.add(certname);
        else master(name).nodes?.delete(certname);
  };
  const [puppetdbPort, sasoriPort, statsPort] = [await freePort(), await freePort(), await freePort()];
  const standIn = await startPuppetdbStandIn({ host: "127.0.0.1", port: puppetdbPort });
  const url = `http://127.0.0.1:${puppetdbPort}`;
  const puppetdb = standInClient(url);
  for (const [certname, pool] of options.map ?? []) {
    await puppetdb.replaceFacts({
      certname,
      producer: POOLS[pool][0] ?? "",
      at: new Date(Date.now() - 60_000),
    });
    move(certname, pool);
  }
  const variables = {
    ...{ STATS_USER: "admin", STATS_PASSWORD: "secret", STATS_PORT: statsPort },
    ...{ POOLS: Object.keys(POOLS).join(" "), RESOLVER_ADDRESS: `127.0.0.1:${sasoriPort}` },
    ...options.variables,
  };
  const config = (at: HaproxyServer) =>
    shippedConfig("pools.cfg", at, {
      ...{ NODE_MASTER_MAP: at.mapPath, HAPROXY_SOCKET: at.socketPath, GATEWAY_PORT: at.ports.frontend },
      ...variables,
    }) + poolLines(masters, options.tls && "verifyhost NAME");
  const started = { bin: options.bin, map: options.map ?? [], config: config as (at: object) => string };
  try {
    await withHaproxy(started, async (haproxy) => {
      const env = {
        SASORI_PUPPETDB_URL: url,
        SASORI_HAPROXY: haproxy.socketPath,
        SASORI_MAP_FILE: haproxy.mapPath,
        SASORI_LISTEN: `127.0.0.1:${sasoriPort}`,
        ...ON_DEMAND,
        ...{ SASORI_ROUTE_TO: "backends", SASORI_BACKEND: variables.POOLS },
        ...options.sasori,
      };
      const daemon = await startDaemon(readConfig(env), pino({ level: "silent" }));
      const get = async (path: string) => (await fetch(`${daemon.url}${path}`)).json();
      const command = (line: string) => runtimeCommand(haproxy.socketPath, line);
      try {
        await expect.poll(async () => (await fetch(`${daemon.url}/readyz`)).status).toBe(200);
        await expect.poll(() => command("show servers state sasori")).toMatch(/ sasori 127\.0\.0\.1 2 /);
        await use({
          ...{ haproxy, daemon, env, puppetdb, master, move, get },
          run: (certname, producer) => puppetdb.replaceFacts({ certname, producer, at: new Date() }),
          async sync() {
            const asked = await fetch(`${daemon.url}/api/v1/sync`, {
              method: "POST",
              body: "{}",
              headers: { "content-type": "application/json" },
            });
            expect(await asked.json()).toMatchObject({ outcome: "done" });
          },
          async ask(node, init = {}) {
            const gateway = `http://127.0.0.1:${haproxy.ports.frontend}/`;
            const answer = await fetch(gateway, {
              ...init,
              headers: { "x-node-name": node, ...init.headers },
            });
            const { status, headers } = answer;
            return {
              status,
              by: headers.get("x-served-by"),
              route: headers.get("x-route"),
              body: await answer.text(),
            };
          },
          async each(pool, what) {
            for (const name of POOLS[pool]) await command(what.replace("SERVER", `${pool}/${name}`));
          },
        });
      } finally {
        await daemon.stop();
      }
    });
  } finally {
    await standIn.close();
    for (const one of masters) await one.stop();
  }
}

test("pools.cfg is haproxy.cfg where the two do the same", () => {
  const sections = (file: string) => {
    const text = readFileSync(new URL(`../haproxy/${file}`, import.meta.url), "utf8");
    const all = text.split(/^(?=(?:frontend|backend|listen|userlist|defaults|resolvers|global)\b)/m);
    return new Map(all.map((section) => [section.split("\n")[0], section.replace(/\n(#.*|\s)*$/, "")]));
  };
  const [servers, pools] = [sections("haproxy.cfg"), sections("pools.cfg")];
  for (const name of ["frontend gateway", "listen sasori", "userlist operators"])
    expect(pools.get(name)).toBe(servers.get(name));
  // There the master is known by its server.
  expect(pools.get("frontend heal")?.replaceAll("names the pool;", "names the server;")).toBe(
    servers.get("frontend heal")?.replaceAll("%[srv_name] if", "%[var(txn.master)] if"),
  );
});

/**
 * Sends a request to each server of the pool, which does not answer it yet. One after the other, because two at once, on two
 * threads of HAProxy, could both find the first server free.
 */
async function occupy<T>(ask: (index: number) => T, master: Lab["master"]): Promise<T[]> {
  const asked: T[] = [];
  for (const index of POOLS.fra.keys()) {
    asked.push(ask(index));
    const busy = () => POOLS.fra.filter((name) => master(name).requests === 1).length;
    await expect.poll(busy).toBe(index + 1);
  }
  return asked;
}

describe.each(haproxyBinaries())("pools on HAProxy $version", ({ bin, version }) => {
  test("sasori finds the pool of a producer by its servers, by patterns, and by plain names before those", () =>
    withPools(
      { bin, sasori: { SASORI_MASTER_ALIASES: ALIASES } },
      async ({ haproxy, run, sync, ask, get }) => {
        const nodes = {
          "by-server.example.com": ["puppet-fra2.example.com", "fra"],
          "by-capitals.example.com": ["Puppet-LON1.example.com", "lon"],
          "by-pattern.example.com": ["old-fra12.example.com", "fra"],
          "by-plain-name.example.com": ["old-fra7.example.com", "lon"],
          "by-pool.example.com": ["fra", "fra"],
        } as const;
        for (const [certname, [producer]] of Object.entries(nodes)) await run(certname, producer);
        await run("lost.example.com", "old-fra123.example.com");
        await run("evil.example.com", "puppet");
        await sync();
        const wanted = Object.entries(nodes).map(([certname, [, pool]]) => [certname, pool]);
        expect(Object.fromEntries(await haproxy.showMap())).toEqual(Object.fromEntries(wanted));
        expect(await ask("lost.example.com")).toMatchObject({
          status: 404,
          body: expect.stringContaining("node_unknown"),
        });
        expect(await get("/api/v1/status")).toMatchObject({
          troubles: [{ code: "unroutable", what: expect.stringContaining("old-fra123.example.com (1)") }],
        });
      },
    ));

  test("shares the requests of a node out in its pool, and goes round a server that is gone", () =>
    withPools({ bin, map: [[NODE, "fra"]] }, async ({ ask, master, get }) => {
      const served = async (count: number) => {
        const answers = [];
        for (let index = 0; index < count; index += 1) answers.push(await ask(NODE));
        for (const answer of answers) expect(answer).toMatchObject({ status: 200, route: "mapped" });
        return new Set(answers.map(({ by }) => by));
      };
      const [first = "", second = ""] = POOLS.fra;
      // A kept connection that ends at the moment of a request would end the request too.
      for (const name of POOLS.fra) master(name).says = { connection: "close" };
      await expect.poll(() => served(4)).toEqual(new Set([`fra/${first}`, `fra/${second}`]));
      await master(first).stop();
      // Before any check has failed: no request is lost, POSTs neither.
      expect(await served(4)).toEqual(new Set([`fra/${second}`]));
      expect(await ask(NODE, { method: "POST", body: "x" })).toMatchObject({ status: 200 });
      const masters = async () => await get("/api/v1/masters");
      await expect.poll(masters).toMatchObject({
        masters: [
          { master: "fra", kind: "pool", nodes: 1, servers: [{ state: "up", status: "1 of 2 servers up" }] },
          { master: "lon", kind: "pool", nodes: 0, servers: [{ state: "up", status: "2 of 2 servers up" }] },
        ],
      });
      const rows = masterRows((await masters()) as Parameters<typeof masterRows>[0], false, styleFor({}, {}));
      expect(rows.find(([name]) => name === "fra")?.[3]).toMatch(
        /^1 of 2 servers up, puppet-fra1\.example\.com DOWN/,
      );
    }));

  test("takes the headers of nobody but its own", () =>
    withPools({ bin, map: [[NODE, "fra"]] }, async ({ ask, master }) => {
      for (const name of Object.values(POOLS).flat())
        master(name).says = {
          "x-sasori-final": "yes",
          "x-sasori-failed": "yes",
          "x-served-by": "me",
          "x-route": "mine",
        };
      const forged = {
        "x-sasori-pool": "lon",
        "x-sasori-server": "puppet-fra1.example.com",
        "x-client-verify": "SUCCESS",
      };
      const answers = [await ask(NODE, { headers: forged }), await ask(NODE, { headers: forged })];
      expect(answers).toMatchObject([
        { status: 200, route: "mapped" },
        { status: 200, route: "mapped" },
      ]);
      for (const { by } of answers) expect(by).toMatch(/^fra\/puppet-fra[12]/);
      const seen = POOLS.fra.flatMap((name) => Object.keys(master(name).headers));
      expect(seen.filter((name) => /^x-(sasori|client)/.test(name))).toEqual([]);
      expect(seen).toContain("x-node-name");
    }));

  test("heals a wrong route from pool to pool, and the map is right from then on", () =>
    withPools({ bin, map: [[NODE, "fra"]] }, async ({ ask, haproxy, move, run, master }) => {
      move(NODE, "lon");
      await run(NODE, POOLS.lon[1] ?? "");
      const before = POOLS.fra.map((name) => master(name).requests);
      expect(await ask(NODE)).toMatchObject({
        status: 200,
        route: "learned",
        by: expect.stringMatching(/^lon\//),
      });
      expect(POOLS.fra.map((name) => master(name).requests).reduce((a, b) => a + b)).toBe(
        1 + (before[0] ?? 0) + (before[1] ?? 0),
      );
      expect((await haproxy.showMap()).get(NODE)).toBe("lon");
      expect(await ask(NODE)).toMatchObject({
        status: 200,
        route: "mapped",
        by: expect.stringMatching(/^lon\//),
      });
    }));

  test("a 404 of the right pool is its answer, for a body that may have acted too", () =>
    withPools({ bin, map: [[NODE, "fra"]] }, async ({ ask, haproxy, master, move, run }) => {
      for (const name of POOLS.fra) master(name).nodes?.delete(NODE);
      expect(await ask(NODE)).toMatchObject({
        status: 404,
        route: "mapped",
        by: expect.stringMatching(/^fra\//),
      });
      move(NODE, "lon");
      await run(NODE, POOLS.lon[0] ?? "");
      const asked = POOLS.lon.map((name) => master(name).requests);
      expect(await ask(NODE, { method: "POST", body: "x" })).toMatchObject({ status: 404, route: "mapped" });
      expect(POOLS.lon.map((name) => master(name).requests)).toEqual(asked);
      // sasori finds out in the meantime.
      await expect.poll(async () => (await haproxy.showMap()).get(NODE)).toBe("lon");
      expect(await ask(NODE, { method: "POST", body: "x" })).toMatchObject({ status: 200, route: "mapped" });
    }));

  test.each([
    { fallback: "off", wanted: { status: 503, body: expect.stringContaining("no_master") } },
    { fallback: "on", wanted: { status: 200, route: "redispatched", by: expect.stringMatching(/^lon\//) } },
  ])("a pool that is down, with GATEWAY_FALLBACK=$fallback", ({ fallback, wanted }) =>
    withPools({ bin, map: [[NODE, "fra"]], variables: { GATEWAY_FALLBACK: fallback } }, async (lab) => {
      const { ask, master, move, run, sync, get, daemon } = lab;
      for (const name of POOLS.lon) master(name).nodes = undefined; // They take any node.
      for (const name of POOLS.fra) await master(name).stop();
      // At once, before a check has failed, and afterwards.
      for (const method of ["POST", "GET"]) expect(await ask(NODE, { method })).toMatchObject(wanted);
      const state = async () => {
        await sync();
        return get("/api/v1/status");
      };
      await expect.poll(state).toMatchObject({
        troubles: [{ code: "down", where: "fra", what: expect.stringContaining("fra is down") }],
      });
      for (const method of ["POST", "GET"]) expect(await ask(NODE, { method })).toMatchObject(wanted);
      move(NODE, "lon");
      await run(NODE, POOLS.lon[0] ?? "");
      await sync();
      const displaced = await fetch(`${daemon.url}/api/v1/displaced`);
      expect(await displaced.json()).toEqual({
        nodes: [{ certname: NODE, home: "fra", master: "lon" }],
        next: null,
      });
      expect(await ask(NODE)).toMatchObject({
        status: 200,
        route: "mapped",
        by: expect.stringMatching(/^lon\//),
      });
    }),
  );

  test("a drained pool serves its nodes until `sasori drain` has moved them, and they count as displaced", () =>
    withPools(
      { bin, map: [[NODE, "fra"]] },
      async ({ ask, each, sync, get, daemon, env, haproxy, master }) => {
        await each("fra", "set server SERVER state drain");
        await sync();
        expect(await get("/api/v1/status")).toMatchObject({
          troubles: [{ code: "drained", where: "fra", what: expect.stringContaining("all servers of fra") }],
        });
        for (const method of ["GET", "POST"])
          expect(await ask(NODE, { method })).toMatchObject({
            status: 200,
            route: "mapped",
            by: expect.stringMatching(/^fra\//),
          });
        const found = await diagnose(env, "0.0.0");
        expect(found.findings.map(({ detail }) => detail).join("\n")).toMatch(/every server drained.*: fra/);
        for (const name of POOLS.lon) master(name).nodes = undefined;
        const told: string[] = [];
        const { isDone } = await drain(readConfig(env), "fra", 60, (line) => told.push(line));
        expect([isDone, told.join("\n")]).toEqual([true, expect.not.stringContaining("fra is not drained")]);
        expect((await haproxy.showMap()).get(NODE)).toBe("lon");
        expect(await (await fetch(`${daemon.url}/api/v1/displaced`)).json()).toMatchObject({
          nodes: [{ certname: NODE, home: "fra", master: "lon" }],
        });
        await each("fra", "set server SERVER state ready");
        await each("fra", "set server SERVER weight 0"); // HAProxy's balancer makes no difference.
        await sync();
        expect(await get("/api/v1/status")).toMatchObject({
          troubles: [{ code: "drained" }, { code: "displaced" }],
        });
      },
    ));

  test("a queue that is full says so, and sends nobody to another pool", () =>
    withPools(
      { bin, map: [[NODE, "fra"]], variables: { QUEUE_TIMEOUT: "300ms" } },
      async ({ ask, master, each }) => {
        await each("fra", "set maxconn server SERVER 1");
        const releases = POOLS.fra.map((name) => hold(master(name)));
        const held = await occupy(() => ask(NODE), master);
        expect(await ask(NODE)).toMatchObject({ status: 503, body: expect.stringContaining("queue_full") });
        for (const release of releases) release();
        expect(await Promise.all(held)).toMatchObject([{ status: 200 }, { status: 200 }]);
      },
    ));

  test("asks the servers by TLS, and believes none whose certificate has another name", async () => {
    const ca = await makePuppetCa();
    const [first = "", second = ""] = POOLS.fra;
    const issue = (name: string) => ca.issue(`/CN=${name}`, { extension: `subjectAltName=DNS:${name}` });
    try {
      const [own, client] = [await issue(first), await issue("gateway.example.com")];
      // The second one of the pool, and all of the other, show the first one's.
      const tls = () => ({
        ca: readFileSync(ca.caBundle),
        cert: readFileSync(own.cert),
        key: readFileSync(own.key),
        rejectUnauthorized: true,
      });
      const variables = { MASTERS_CA: ca.caBundle, MASTERS_CERT: client.both };
      await withPools({ bin, map: [[NODE, "fra"]], variables, tls }, async ({ ask, master, haproxy }) => {
        for (let index = 0; index < 4; index += 1)
          expect(await ask(NODE)).toMatchObject({ status: 200, route: "mapped", by: `fra/${first}` });
        expect(master(first).client).toEqual({ name: "gateway.example.com", sni: false });
        expect(master(second).requests).toBe(0);
        await expect.poll(haproxy.output).toMatch(`fra/${second} is DOWN`);
        expect(haproxy.output()).not.toContain(`fra/${first} is DOWN`);
      });
    } finally {
      await ca.remove();
    }
  });

  test("says 503, and not 404, for a body too large to be sent again when no server could be reached", () =>
    withPools({ bin, map: [[NODE, "fra"]] }, async ({ ask, master }) => {
      for (const name of POOLS.fra) await master(name).stop();
      const asked = ask(NODE, { method: "POST", body: "x".repeat(100_000) });
      // HAProxy 2.6 may hand out the inner answer as it is while the body still comes. Once in some hundred times it closes
      // the connection instead (its log says "SD"): it was sending the body on when the answer came.
      const closed = (error: Error) => {
        if (isFrom(version, 3, 0) || !/other side closed|ECONNRESET|EPIPE/.test(String(error.cause)))
          throw error;
        return { status: 503, body: "no_master" };
      };
      expect(await asked.catch(closed)).toMatchObject({
        status: 503,
        body: expect.stringMatching(/no_master|queue_full/),
      });
    }));

  test("serves from the queue of a pool by classes", async () => {
    const folder = mkdtempSync(path.join(tmpdir(), "sasori-pools-"));
    const file = path.join(folder, "priority.map");
    writeFileSync(file, "node4.example.com -100\n");
    const map = [1, 2, 3, 4].map((index) => [`node${index}.example.com`, "fra"] as const);
    try {
      await withPools({ bin, map, variables: { PRIORITY_MAP: file } }, async ({ ask, each, master, get }) => {
        await each("fra", "set maxconn server SERVER 1");
        const releases = POOLS.fra.map((name) => hold(master(name)));
        const asked = await occupy((index) => ask(`node${index + 1}.example.com`), master);
        for (const [index, name] of ["node3.example.com", "node4.example.com"].entries()) {
          asked.push(ask(name));
          const queued = { masters: [{ master: "fra", servers: [{ queue: index + 1, sessions: 2 }] }, {}] };
          await expect.poll(() => get("/api/v1/masters")).toMatchObject(queued);
        }
        releases[0]?.();
        const [first = ""] = POOLS.fra;
        await expect
          .poll(() => master(first).nodesAsked.slice(1))
          .toEqual(["node4.example.com", "node3.example.com"]);
        releases[1]?.();
        await Promise.all(asked);
      });
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  test("passes on a WebSocket, and lets no other protocol through", () =>
    withPools({ bin, map: [[NODE, "fra"]] }, async ({ haproxy }) => {
      const talk = (protocol: string) =>
        new Promise<string>((resolve, reject) => {
          let seen = "";
          const client = connect(haproxy.ports.frontend, "127.0.0.1", () => client.write(text));
          const key = "Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\nSec-WebSocket-Version: 13";
          const text = `GET / HTTP/1.1\r\nHost: g\r\nX-Node-Name: ${NODE}\r\nConnection: Upgrade\r\nUpgrade: ${protocol}\r\n${key}\r\n\r\n`;
          client.on("data", (chunk) => {
            seen += String(chunk);
            if (/^HTTP\/1\.1 101 .*\r\n\r\n$/s.test(seen)) client.write("are you there");
            else if (seen.includes("are you there") || !seen.startsWith("HTTP/1.1 101")) client.destroy();
          });
          client.on("close", () => resolve(seen));
          client.on("error", reject);
        });
      expect(await talk("websocket")).toMatch(/^HTTP\/1\.1 101 .*are you there$/s);
      expect(await talk("h2c")).toMatch(/^HTTP\/1\.1 200 /);
    }));

  test("does not start without the pools' names, and haproxy.cfg not with them", () => {
    const env = {
      NODE_MASTER_MAP: "/dev/null",
      HAPROXY_SOCKET: "/tmp/none.sock",
      STATS_USER: "a",
      STATS_PASSWORD: "b",
    };
    const check = (file: string, more: Record<string, string>) =>
      spawnSync(bin, ["-c", "-f", fileURLToPath(new URL(`../haproxy/${file}`, import.meta.url))], {
        encoding: "utf8",
        env: { ...env, ...more },
      });
    expect(check("pools.cfg", { POOLS: "fra" })).toMatchObject({
      status: 0,
      stderr: expect.not.stringMatching(/WARNING|ALERT/),
    });
    for (const none of [{}, { POOLS: "" }])
      expect(check("pools.cfg", none).stderr).toMatch(/POOLS is not set/);
    expect(check("haproxy.cfg", { MASTER1: "127.0.0.1:1", POOLS: "fra" }).stderr).toMatch(/use pools\.cfg/);
  });
});
