// Routes that turned out wrong: a real gateway, masters that say 404 for nodes they do not have, and sasori's API.

import http from "node:http";
import { isDeepStrictEqual } from "node:util";
import { pino } from "pino";
import { afterEach, describe, expect, test, vi } from "vitest";
import { startPuppetdbStandIn } from "../demo/puppetdb.js";
import { readConfig } from "../src/config.js";
import { type Daemon, startDaemon } from "../src/daemon.js";
import { freePort } from "./support/child.js";
import { type Gateway, hold, startMaster, withGateway } from "./support/gateway.js";
import { runtimeCommand } from "./support/haproxy-server.js";
import { haproxyBinaries } from "./support/parts.js";
import { patient } from "./support/patience.js";
import { type PuppetdbClient, standInClient } from "./support/puppetdb-server.js";
import { EVERY_SECOND, ON_DEMAND } from "./support/schedules.js";

const node = (index: number) => `node${index}.example.com`;
const NODE = node(1);

/** A gateway with sasori beside it. */
interface Pair extends Gateway {
  daemon: Daemon;
}

interface Lab extends Pair {
  puppetdb: PuppetdbClient;
  puppetdbUrl: string;
  stopPuppetdb(): Promise<void>;
  /** The node is at this master now, and at no other; PuppetDB is not told. */
  move(certname: string, master: string): void;
}

afterEach(() => void vi.restoreAllMocks());

type GatewayOptions = Parameters<typeof withGateway>[0];
interface HealingOptions extends Pick<GatewayOptions, "bin" | "map" | "masterWorker" | "variables"> {
  probe?: boolean;
  sasori?: Record<string, string>;
}

/** Masters that know their nodes, a PuppetDB that knows where they are, and a gateway with sasori. */
async function withHealing(options: HealingOptions, use: (lab: Lab) => Promise<void>): Promise<void> {
  const port = await freePort();
  const standIn = await startPuppetdbStandIn({ host: "127.0.0.1", port });
  const url = `http://127.0.0.1:${port}`;
  const puppetdb = standInClient(url);
  const masters = await Promise.all(["master1", "master2", "master3"].map((name) => startMaster(name)));
  for (const master of masters) master.nodes = new Set();
  const move = (certname: string, to: string) => {
    for (const { name, nodes } of masters) {
      if (name === to) nodes?.add(certname);
      else nodes?.delete(certname);
    }
  };
  try {
    for (const [certname, master] of options.map ?? []) {
      await puppetdb.replaceFacts({ certname, producer: master, at: new Date(Date.now() - 60_000) });
      move(certname, master);
    }
    await withPair({ ...options, masters, puppetdbUrl: url }, (pair) =>
      use({ ...pair, puppetdb, puppetdbUrl: url, stopPuppetdb: () => standIn.close(), move }),
    );
  } finally {
    await standIn.close();
    for (const master of masters) await master.stop();
  }
}

/** sasori looks for changes never by itself, so that only healing can help. */
async function withPair(
  options: HealingOptions & Required<Pick<GatewayOptions, "masters">> & { puppetdbUrl: string },
  use: (pair: Pair) => Promise<void>,
): Promise<void> {
  const sasoriPort = await freePort();
  await withGateway({ ...options, sasoriPort }, async (gateway) => {
    const config = readConfig({
      SASORI_PUPPETDB_URL: options.puppetdbUrl,
      SASORI_HAPROXY: gateway.haproxy.socketPath,
      SASORI_MAP_FILE: gateway.haproxy.mapPath,
      SASORI_LISTEN: `127.0.0.1:${sasoriPort}`,
      ...ON_DEMAND,
      SASORI_PROBE_PATH: options.probe ? "/probe/{certname}" : "",
      ...options.sasori,
    });
    const daemon = await startDaemon(config, pino({ level: "silent" }));
    try {
      await expect.poll(async () => (await fetch(`${daemon.url}/readyz`)).status).toBe(200);
      const checked = () => runtimeCommand(gateway.haproxy.socketPath, "show servers state sasori");
      await expect.poll(checked).toMatch(/ sasori 127\.0\.0\.1 2 /); // 2: it is up.
      await use({ ...gateway, daemon });
    } finally {
      await daemon.stop();
    }
  });
}

/** sasori as HAProxy sees it: healthy, and with an answer to no question. */
async function withSilentSasori(
  use: (sasori: { port: number; asked: string[] }) => Promise<void>,
): Promise<void> {
  const asked: string[] = [];
  const server = http.createServer((request, response) => {
    if (request.url === "/healthz") response.end();
    else asked.push(request.url ?? "");
  });
  const port = await freePort();
  server.listen(port, "127.0.0.1");
  try {
    await use({ port, asked });
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

const routeOf = (response: Response) => ({
  status: response.status,
  route: response.headers.get("x-route"),
  master: response.headers.get("x-served-by"),
});
/** What HAProxy has logged about requests. */
const requestLines = ({ haproxy }: Pair) =>
  haproxy
    .output()
    .split("\n")
    .filter((line) => /connect (from|to)| status=/i.test(line));
const requests = (lab: Lab) => lab.masters.map((master) => master.requests);

/** How many questions of HAProxy sasori has not answered in time, as HAProxy counts them. */
async function unanswered({ haproxy }: Pair): Promise<number> {
  const [titles = [], ...rows] = (await runtimeCommand(haproxy.socketPath, "show stat"))
    .split("\n")
    .map((line) => line.split(","));
  const row = rows.find(([proxy, name]) => proxy === "sasori" && name === "BACKEND") ?? [];
  return ["hrsp_5xx", "cli_abrt"].reduce((sum, title) => sum + Number(row[titles.indexOf(title)]), 0);
}

describe.each(haproxyBinaries())("a wrong route on HAProxy $version", ({ bin, version }) => {
  const map: [string, string][] = [
    [NODE, "master1"],
    [node(2), "master2"],
  ];

  test.each([
    { method: "GET", replay: "safe" },
    { method: "OPTIONS", replay: "safe" },
    { method: "POST", body: "x".repeat(4_000), replay: "all" },
  ])(
    "heals on the first $method that meets it (GATEWAY_REPLAY=$replay): one wrong and one right request, and the map is right from then on",
    ({ replay, ...init }) =>
      withHealing({ bin, map, variables: { GATEWAY_REPLAY: replay } }, async (lab) => {
        lab.move(NODE, "master3");
        await lab.puppetdb.replaceFacts({ certname: NODE, producer: "master3" });
        expect(routeOf(await lab.ask(NODE, init))).toEqual({
          status: 200,
          route: "learned",
          master: "master3",
        });
        expect(lab.masters[2]?.body).toBe(init.body ?? "");
        expect(requests(lab)).toEqual([1, 0, 1]);
        expect(routeOf(await lab.ask(NODE, init))).toEqual({
          status: 200,
          route: "mapped",
          master: "master3",
        });
        expect(requests(lab)).toEqual([1, 0, 2]);
        await expect.poll(async () => (await lab.haproxy.showMap()).get(NODE)).toBe("master3");
      }),
  );

  test("heals to a drained master, which has its nodes, and takes it for no dead one's stand-in", () =>
    withHealing({ bin, map }, async (lab) => {
      await runtimeCommand(lab.haproxy.socketPath, "set server puppet/master3 state drain");
      lab.move(NODE, "master3");
      await lab.puppetdb.replaceFacts({ certname: NODE, producer: "master3" });
      expect(routeOf(await lab.ask(NODE))).toEqual({ status: 200, route: "learned", master: "master3" });
      await lab.masters[1]?.stop();
      for (let request = 0; request < 10; request += 1)
        expect((await lab.ask(node(2))).headers.get("x-served-by")).not.toBe("master3");
    }));

  test.each([
    { what: "a POST", init: { method: "POST", body: "x" }, replay: "safe" },
    { what: "a DELETE", init: { method: "DELETE" }, replay: "safe" },
    { what: "a body beyond the buffer", init: { method: "POST", body: "x".repeat(40_000) }, replay: "all" },
  ])(
    "gives $what that met it (GATEWAY_REPLAY=$replay) to no second master, and the next one is right",
    ({ init, replay }) =>
      withHealing({ bin, map, variables: { GATEWAY_REPLAY: replay } }, async (lab) => {
        lab.move(NODE, "master3");
        await lab.puppetdb.replaceFacts({ certname: NODE, producer: "master3" });
        expect(routeOf(await lab.ask(NODE, init))).toEqual({
          status: 404,
          route: "mapped",
          master: "master1",
        });
        await expect.poll(async () => (await lab.haproxy.showMap()).get(NODE)).toBe("master3");
        expect(requests(lab)).toEqual([1, 0, 0]);
        expect(routeOf(await lab.ask(NODE, init))).toMatchObject({ status: 200, master: "master3" });
      }),
  );

  test("heals also where a master has sent an interim answer before its 404, but not on HAProxy 2.6", () =>
    withHealing({ bin, map }, async (lab) => {
      if (lab.masters[0]) lab.masters[0].interim = true;
      lab.move(NODE, "master3");
      await lab.puppetdb.replaceFacts({ certname: NODE, producer: "master3" });
      const { status } = routeOf(await lab.ask(NODE));
      if (version.startsWith("2.6"))
        expect([500, 503]).toContain(status); // As docs/gateway.md says.
      else expect(status).toBe(200);
      expect(lab.masters[0]?.requests).toBe(1);
    }));

  test("does not make a client wait for what sasori finds out after a POST", () =>
    withSilentSasori(async (sasori) =>
      withGateway({ bin, map, sasoriPort: sasori.port }, async (gateway) => {
        const checked = () => runtimeCommand(gateway.haproxy.socketPath, "show servers state sasori");
        await expect.poll(checked).toMatch(/ sasori 127\.0\.0\.1 2 /);
        for (const master of gateway.masters) master.nodes = new Set();
        const post = (certname: string) => gateway.ask(certname, { method: "POST", body: "x" });
        expect((await post(NODE)).status).toBe(404);
        await expect.poll(() => sasori.asked).toEqual([`/api/v1/resolve/${NODE}?not=master1`]);
        // While one question about a node waits there is no second one.
        expect((await post(NODE)).status).toBe(404);
        expect((await post(node(2))).status).toBe(404);
        await expect.poll(() => sasori.asked).toHaveLength(2);
        expect(sasori.asked[1]).toBe(`/api/v1/resolve/${node(2)}?not=master2`);
      }),
    ));

  test("stays where a registration put it when a request meets a 404 there and the master before would answer", () =>
    withHealing({ bin, map }, async (lab) => {
      const url = `${lab.daemon.url}/api/v1/nodes/${NODE}`;
      const headers = { "content-type": "application/json" };
      const put = await fetch(url, { method: "PUT", headers, body: JSON.stringify({ master: "master3" }) });
      expect(put.status).toBe(200); // The node itself is still at master1, as far as that one says.
      for (const method of ["GET", "POST"]) {
        const answer = { status: 404, route: "mapped", master: "master3" };
        expect(routeOf(await lab.ask(NODE, { method }))).toEqual(answer);
      }
      expect(requests(lab).slice(0, 2)).toEqual([0, 0]);
      await fetch(`${lab.daemon.url}/api/v1/sync`, { method: "POST", headers, body: '{"full":true}' });
      expect((await lab.haproxy.showMap()).get(NODE)).toBe("master3");
    }));

  test("is healed by the first request after a legitimate 404, also if that was a moment ago", () =>
    withHealing({ bin, map }, async (lab) => {
      lab.move(NODE, "nowhere");
      expect(routeOf(await lab.ask(NODE)).status).toBe(404);
      lab.move(NODE, "master2");
      await lab.puppetdb.replaceFacts({ certname: NODE, producer: "master2" });
      expect(routeOf(await lab.ask(NODE))).toEqual({ status: 200, route: "learned", master: "master2" });
    }));

  test(
    "heals a burst of 500 moved nodes from 50 clients without one failure, each at one wrong and one right request",
    () => {
      const many = Array.from({ length: 500 }, (_, index): [string, string] => [node(index), "master1"]);
      return withHealing({ bin, map: many }, async (lab) => {
        for (const [certname] of many) {
          lab.move(certname, "master2");
          await lab.puppetdb.replaceFacts({ certname, producer: "master2" });
        }
        const waiting = [...many];
        const seen = new Map<string, ReturnType<typeof routeOf>>();
        const client = async () => {
          for (let next = waiting.pop(); next; next = waiting.pop())
            seen.set(next[0], routeOf(await lab.ask(next[0])));
        };
        await Promise.all(Array.from({ length: 50 }, client));
        expect(seen.size).toBe(500);
        const failed = [...seen].filter(([, { status, master }]) => status !== 200 || master !== "master2");
        // On a busy machine sasori, whose event loop is that of the masters and of all clients here, may say nothing in
        // time. Then the client gets the master's 404, and the map learns from the next request.
        const silences = await unanswered(lab);
        if (failed.length > silences) expect({ silences, failed }).toEqual({ silences, failed: [] });
        const [wrong = 0, right] = requests(lab);
        // A client that comes after another one's answer has brought news to the map meets no wrong master at all.
        expect(wrong).toBeLessThanOrEqual(500 + failed.length);
        expect(right).toBe(500 - failed.length);
        const stale = async () =>
          [...(await lab.haproxy.showMap())].flatMap(([name, master]) =>
            master === "master2" ? [] : [name],
          );
        const unlearned = async () => (await stale()).filter((name) => seen.get(name)?.status === 200);
        await expect.poll(unlearned).toEqual([]);
        await expect
          .poll(async () => {
            for (const name of await stale()) await lab.ask(name);
            return stale();
          })
          .toEqual([]);
      });
    },
    patient(90_000),
  );

  test("fails no client while 100 nodes move and PuppetDB hears of it later", () => {
    const many = Array.from({ length: 100 }, (_, index): [string, string] => [node(index), "master1"]);
    return withHealing({ bin, map: many, probe: true }, async (lab) => {
      let moving = true;
      const wrong: unknown[] = [];
      const aborts = vi.spyOn(AbortController.prototype, "abort");
      const client = async (index: number) => {
        for (let next = index; moving; next += 7) {
          const route = routeOf(await lab.ask(node(next % 100)));
          if (route.status !== 200) wrong.push(route);
        }
      };
      const clients = Array.from({ length: 10 }, (_, index) => client(index * 10));
      for (const [index, [certname]] of many.entries()) {
        const master = `master${(index % 2) + 2}`;
        lab.move(certname, master);
        await lab.puppetdb.replaceFacts({ certname, producer: master });
      }
      moving = false;
      await Promise.all(clients);
      // See above. And while a master does not say in time whether it has the node, PuppetDB's older word counts.
      const lateProbes = aborts.mock.calls.filter(
        ([why]) => (why as Error & { code?: string })?.code === "PROBE_TIMEOUT",
      );
      const silences = (await unanswered(lab)) + lateProbes.length;
      if (wrong.length > silences) expect({ silences, wrong }).toEqual({ silences, wrong: [] });
    });
  });

  test("asks the masters where PuppetDB does not know yet, and keeps what it learned for file and restart", () =>
    withHealing({ bin, map, probe: true }, async (lab) => {
      lab.move(NODE, "master2");
      expect(routeOf(await lab.ask(NODE))).toEqual({ status: 200, route: "learned", master: "master2" });
      expect(requests(lab)).toEqual([1, 1, 0]);
      const lookup = async () => (await fetch(`${lab.daemon.url}/api/v1/nodes/${NODE}`)).json();
      await expect.poll(lookup).toMatchObject({
        desired: { master: "master2", source: "learned" },
        file: { master: "master2" },
        live: [{ master: "master2" }],
      });
    }));

  test("heals also when the node moves on before PuppetDB has heard of its first move", () =>
    withHealing({ bin, map, probe: true }, async (lab) => {
      lab.move(NODE, "master2");
      expect(routeOf(await lab.ask(NODE))).toEqual({ status: 200, route: "learned", master: "master2" });
      const lookup = async () => (await fetch(`${lab.daemon.url}/api/v1/nodes/${NODE}`)).json();
      await expect.poll(lookup).toMatchObject({ desired: { master: "master2", source: "learned" } });
      lab.move(NODE, "master3");
      expect(routeOf(await lab.ask(NODE))).toEqual({ status: 200, route: "learned", master: "master3" });
    }));

  test("is not called unknown, and stands where the map confirms it, while a master does not say whether it has the node", () =>
    withHealing({ bin, map, probe: true }, async (lab) => {
      const release = hold(lab.masters[1]); // Its health check is answered.
      const resolve = (certname: string) => fetch(`${lab.daemon.url}/api/v1/resolve/${certname}?not=master1`);
      lab.move(NODE, "nowhere");
      const [known, unknown] = await Promise.all([resolve(NODE), resolve("other.example.com")]);
      expect(known.status).toBe(404);
      expect(unknown.status).toBe(504);
      expect(await unknown.json()).toMatchObject({ title: "PROBE_TIMEOUT" });
      release();
      expect((await resolve("other.example.com")).status).toBe(404);
    }));

  test("is its own master's 404 also while that one is drained, and no other is asked", () =>
    withHealing({ bin, map }, async (lab) => {
      await runtimeCommand(lab.haproxy.socketPath, "set server puppet/master1 state drain");
      expect(routeOf(await lab.ask(NODE))).toEqual({ status: 200, route: "mapped", master: "master1" });
      lab.masters[0]?.nodes?.delete(NODE);
      expect(routeOf(await lab.ask(NODE))).toEqual({ status: 404, route: "mapped", master: "master1" });
      expect(requests(lab)).toEqual([3, 0, 0]);
    }));

  test.each(["GET", "POST"])(
    "is 503 no_master, and not a stranger's 404, when the stand-in for a dead master does not have the node: %s",
    (method) =>
      withHealing({ bin, map }, async (lab) => {
        await lab.masters[0]?.stop();
        const response = await lab.ask(NODE, { method });
        expect(response.status).toBe(503);
        expect(response.headers.get("retry-after")).toBe("5");
        expect(await response.json()).toMatchObject({ error: "no_master" });
        expect(response.headers.get("x-sasori-final")).toBeNull();
        // On a busy machine sasori may say nothing in time: then a GET, and nothing else, asks both.
        const asked = requests(lab).reduce((sum, count) => sum + count);
        expect(asked).toBeGreaterThan(0);
        expect(asked).toBeLessThanOrEqual(method === "GET" ? 2 : 1);
      }),
  );

  test.each(["sasori is stopped", "PuppetDB is down"])(
    "is asked for at no other master while %s: the master's 404 is the answer",
    (what) =>
      withHealing({ bin, map }, async (lab) => {
        await (what.startsWith("sasori") ? lab.daemon.stop() : lab.stopPuppetdb());
        for (const { nodes } of lab.masters.slice(1)) nodes?.add(NODE); // They would answer, and act.
        lab.masters[0]?.nodes?.delete(NODE);
        const answer = { status: 404, route: "mapped", master: "master1" };
        expect(routeOf(await lab.ask(NODE, { method: "POST", body: "act" }))).toEqual(answer);
        expect(requests(lab)).toEqual([1, 0, 0]);
        expect(routeOf(await lab.ask(NODE))).toEqual(answer);
        expect(requests(lab).slice(1)).toEqual([0, 0]);
        expect((await lab.ask(node(2))).status).toBe(200);
      }),
  );

  test("never looks among the masters for a node that the map does not hold, also while sasori is silent", () =>
    withHealing({ bin, map, variables: { GATEWAY_DISCOVERY: "on" } }, async (lab) => {
      await lab.daemon.stop();
      for (let index = 0; index < 20; index += 1) {
        expect((await lab.ask(`bogus${index}.example.com`)).status).toBe(404);
      }
      expect(requests(lab)).toEqual([0, 0, 0]);
    }));

  test("is the master's own 404 when everybody agrees that the node is there", () =>
    withHealing({ bin, map }, async (lab) => {
      lab.masters[0]?.nodes?.delete(NODE); // It has lost it, and nobody else has it.
      expect(routeOf(await lab.ask(NODE))).toEqual({ status: 404, route: "mapped", master: "master1" });
      expect(requests(lab)).toEqual([2, 0, 0]);
      expect((await lab.ask(node(2))).status).toBe(200);
      await expect.poll(lab.haproxy.output).toContain(`node=${node(2)} `);
      expect(requestLines(lab)).toEqual(
        [NODE, node(2)].map((name) => expect.stringContaining(`node=${name} `)),
      );
    }));

  test("goes to another master while the node's own is down, without teaching the map, and back when it is up", () =>
    withHealing({ bin, map }, async (lab) => {
      const [first, ...others] = lab.masters;
      for (const { nodes } of others) nodes?.add(NODE);
      await first?.stop();
      for (let count = 0; count < 3; count += 1) {
        const { status, route, master } = routeOf(await lab.ask(NODE));
        expect({ status, route }).toEqual({ status: 200, route: "redispatched" });
        expect(master).toMatch(/^master[23]$/);
      }
      expect((await lab.haproxy.showMap()).get(NODE)).toBe("master1");
      await first?.start();
      await expect
        .poll(async () => routeOf(await lab.ask(NODE)))
        .toEqual({
          status: 200,
          route: "mapped",
          master: "master1",
        });
    }));

  test("is 503 no_master for a dead master's nodes where the operator wants no fallback", () =>
    withHealing({ bin, map, variables: { GATEWAY_FALLBACK: "off" } }, async (lab) => {
      await lab.masters[0]?.stop();
      const response = await lab.ask(NODE);
      expect(response.status).toBe(503);
      expect(response.headers.get("retry-after")).toBe("5");
      expect(await response.json()).toMatchObject({ error: "no_master" });
      expect((await lab.ask(node(2))).status).toBe(200);
    }));

  test.each(["sasori is stopped", "PuppetDB is down"])(
    "is looked for among masters that check, a bounded number of them, while %s",
    (what) =>
      withHealing({ bin, map, variables: { GATEWAY_REPLAY: "all" } }, async (lab) => {
        await (what.startsWith("sasori") ? lab.daemon.stop() : lab.stopPuppetdb());
        lab.move(NODE, "master3");
        const found = { status: 200, route: "redispatched", master: "master3" };
        expect(routeOf(await lab.ask(NODE, { method: "POST", body: "x" }))).toEqual(found);
        expect((await lab.haproxy.showMap()).get(NODE)).toBe("master1");
        expect(routeOf(await lab.ask(node(2)))).toEqual({ status: 200, route: "mapped", master: "master2" });
        expect(requests(lab).reduce((sum, count) => sum + count)).toBeLessThanOrEqual(4);
        lab.move(NODE, "nowhere");
        const before = requests(lab);
        expect(routeOf(await lab.ask(NODE))).toEqual({ status: 404, route: "mapped", master: "master1" });
        expect(requests(lab).map((count, index) => count - (before[index] ?? 0))).toEqual([2, 1, 1]);
      }),
  );

  test("finds a node that the map does not hold only where discovery is switched on", () =>
    withHealing({ bin, map, variables: { GATEWAY_DISCOVERY: "on" } }, async (lab) => {
      lab.move("new.example.com", "master2");
      await lab.puppetdb.replaceFacts({ certname: "new.example.com", producer: "master2" });
      expect(routeOf(await lab.ask("new.example.com"))).toEqual({
        status: 200,
        route: "learned",
        master: "master2",
      });
      expect(routeOf(await lab.ask("new.example.com"))).toMatchObject({ route: "mapped" });
      const before = requests(lab);
      const bogus = await lab.ask("bogus.example.com");
      expect(bogus.status).toBe(404);
      expect(await bogus.json()).toMatchObject({ error: "node_unknown" });
      expect(requests(lab)).toEqual(before);
      await expect.poll(lab.haproxy.output).toContain("node=bogus.example.com ");
      expect(requestLines(lab)).toHaveLength(3);
    }));

  test("does not look for unknown nodes where discovery is off", () =>
    withHealing({ bin, map, variables: { GATEWAY_DISCOVERY: "off" } }, async (lab) => {
      lab.move("new.example.com", "master2");
      await lab.puppetdb.replaceFacts({ certname: "new.example.com", producer: "master2" });
      expect((await lab.ask("new.example.com")).status).toBe(404);
    }));

  test("reaches a master that appeared in PuppetDB, as a server that sasori added, also after a reload", async () => {
    const fourth = await startMaster("localhost"); // A name that has an address on every machine.
    const sasori = {
      SASORI_NEW_MASTERS: "localhost",
      SASORI_NEW_MASTER_PORT: String(fourth.port),
      ...EVERY_SECOND,
    };
    await withHealing({ bin, map, masterWorker: true, sasori }, async (lab) => {
      await lab.puppetdb.replaceFacts({ certname: NODE, producer: "localhost" });
      const mapped = { status: 200, route: "mapped", master: "localhost" };
      await expect.poll(async () => routeOf(await lab.ask(NODE))).toEqual(mapped);
      await lab.haproxy.reload();
      await expect.poll(async () => routeOf(await lab.ask(NODE))).toEqual(mapped);
    });
    await fourth.stop();
  });

  test("is each pair's own matter where two of HAProxy and sasori share nothing but PuppetDB", () =>
    withHealing({ bin, map, probe: true }, (lab) =>
      withPair({ bin, masters: lab.masters, puppetdbUrl: lab.puppetdbUrl, probe: true }, async (other) => {
        const maps = () => Promise.all([lab, other].map(({ haproxy }) => haproxy.showMap()));
        const everybody = (master: string) => async () => {
          const answers = await Promise.all([lab, other].map(async ({ ask }) => routeOf(await ask(NODE))));
          return answers.every((answer) => answer.status === 200 && answer.master === master);
        };
        // The other one began with an empty map, and has the same by now.
        expect(await maps()).toEqual([new Map(map), new Map(map)]);
        expect(await everybody("master1")()).toBe(true);

        // What one of them heals is its own, and is in nobody's way: the other is asked without a break meanwhile.
        let healing = true;
        const undisturbed = async () => {
          const seen: unknown[] = [];
          while (healing || seen.length === 0) seen.push(routeOf(await other.ask(node(2))));
          return seen.filter(
            (route) => !isDeepStrictEqual(route, { status: 200, route: "mapped", master: "master2" }),
          );
        };
        const watching = undisturbed().catch((error: unknown) => [error]);
        lab.move(NODE, "master3");
        expect(routeOf(await lab.ask(NODE))).toEqual({ status: 200, route: "learned", master: "master3" });
        await expect.poll(async () => (await lab.haproxy.showMap()).get(NODE)).toBe("master3");
        expect((await other.haproxy.showMap()).get(NODE)).toBe("master1");
        expect(routeOf(await other.ask(NODE))).toEqual({ status: 200, route: "learned", master: "master3" });

        // What PuppetDB says is everybody's.
        lab.move(NODE, "master2");
        await lab.puppetdb.replaceFacts({
          certname: NODE,
          producer: "master2",
        });
        await lab.puppetdb.replaceFacts({ certname: node(3), producer: "master3" });
        for (const { daemon } of [lab, other]) {
          const pass = await fetch(`${daemon.url}/api/v1/sync`, { method: "POST" });
          expect(await pass.json()).toMatchObject({ outcome: "done" });
        }
        const all = new Map([...map, [NODE, "master2"], [node(3), "master3"]] as [string, string][]);
        expect(await maps()).toEqual([all, all]);
        expect(await everybody("master2")()).toBe(true);

        // The end of one is not the other's.
        await lab.daemon.stop();
        await lab.haproxy.kill();
        lab.move(NODE, "master1");
        await expect
          .poll(async () => routeOf(await other.ask(NODE)))
          .toMatchObject({ status: 200, master: "master1" });
        healing = false;
        expect(await watching).toEqual([]);
      }),
    ));

  test("lets no client speak the gateway's own headers", () =>
    withHealing({ bin, map }, async (lab) => {
      const headers = {
        "X-Sasori-Tried": "master1,master1",
        "x-sasori-tried": "master2",
        "X-Route": "learned",
      };
      expect(routeOf(await lab.ask(NODE, { headers }))).toEqual({
        status: 200,
        route: "mapped",
        master: "master1",
      });
    }));
});
