import { execFile, execFileSync, spawnSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import http2 from "node:http2";
import { type AddressInfo, connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { Agent, request } from "undici";
import { describe, expect, test } from "vitest";
import { PriorityMap } from "../src/target/priority.js";
import { ask as askWith, commitCrl, establish, makePuppetCa } from "./support/agents-gateway.js";
import { type Gateway, hold, startMaster, withGateway } from "./support/gateway.js";
import { runtimeCommand, withHaproxy } from "./support/haproxy-server.js";
import { haproxyBinariesAndNext, isFrom, puppetdbParts } from "./support/parts.js";

const CONFIG = fileURLToPath(new URL("../haproxy/haproxy.cfg", import.meta.url));

/** What `haproxy -c` says of the project's configuration when these variables are missing. */
function check(
  bin: string,
  { without = [] as string[], more = {} as Record<string, string> } = {},
): { status: number | null; text: string } {
  const folder = mkdtempSync(path.join(tmpdir(), "sasori-cfg-"));
  writeFileSync(path.join(folder, "node-master.map"), "");
  const variables = Object.entries({
    NODE_MASTER_MAP: path.join(folder, "node-master.map"),
    HAPROXY_SOCKET: path.join(folder, "admin.sock"),
    STATS_USER: "admin",
    STATS_PASSWORD: "secret",
    MASTER1: "127.0.0.1:8141",
    MASTER2: "127.0.0.1:8142",
    MASTER3: "127.0.0.1:8143",
    ...more,
  });
  const env = Object.fromEntries(variables.filter(([name]) => !without.includes(name)));
  const { status, stderr } = spawnSync(bin, ["-c", "-f", CONFIG], { encoding: "utf8", env });
  rmSync(folder, { recursive: true });
  return { status, text: stderr };
}

/** But not those about the machine: one without a network names no nameserver, or one that it cannot reach. */
const warningsOf = (text: string) =>
  text.split("\n").filter((line) => /WARNING|ALERT/.test(line) && !/resolvers 'dns'.* nameserver/.test(line));

const NODE = "node1.example.com";
const WEBSOCKET_KEY = "Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==";

describe.each(haproxyBinariesAndNext())("the gateway on HAProxy $version", ({ bin, version }) => {
  test.each([
    ["names looked up once", {}],
    ["names looked up again and again", { GATEWAY_DNS: "on", MASTER1: "localhost:1" }],
  ])("has a configuration that HAProxy takes without a warning: %s", (_case, more) => {
    const { status, text } = check(bin, { more });
    expect({ status, warnings: warningsOf(text) }).toEqual({ status: 0, warnings: [] });
  });

  test.each(["NODE_MASTER_MAP", "HAPROXY_SOCKET", "STATS_PASSWORD", "MASTER1"])(
    "does not start without %s, and says so",
    (name) => {
      const { status, text } = check(bin, { without: [name] });
      expect(status).not.toBe(0);
      expect(text).toMatch(new RegExp(`${name}.* not set`));
    },
  );

  test("does not start with an empty password of the stats page", () => {
    expect(check(bin, { more: { STATS_PASSWORD: "" } }).status).not.toBe(0);
    // HAProxy's conditions would take these for their own syntax.
    for (const STATS_PASSWORD of ['a,b"c)', "it's", "\\", "a b"])
      expect(check(bin, { more: { STATS_PASSWORD } })).toEqual({ status: 0, text: expect.anything() });
  });

  test("takes the variables of docs/containers.md, and is reached from beyond its container", () => {
    const yaml = readFileSync(new URL("../docs/containers.md", import.meta.url), "utf8");
    const [, environment = ""] =
      /\n {2}haproxy:\n[\s\S]*?\n {4}environment:\n((?: {6}.*\n)+)/.exec(yaml) ?? [];
    const given = Object.fromEntries(
      Array.from(environment.matchAll(/^ +(\w+): "?([^"\n]*)/gm), ([, name, value]) => [
        name ?? "",
        value ?? "",
      ]),
    );
    expect(given).toMatchObject({
      GATEWAY_ADDRESS: "0.0.0.0",
      RESOLVER_ADDRESS: "sasori:9180",
      GATEWAY_DNS: "on",
    });
    const { NODE_MASTER_MAP, HAPROXY_SOCKET, ...more } = given;
    expect([NODE_MASTER_MAP, HAPROXY_SOCKET]).toEqual([
      yaml.match(/SASORI_MAP_FILE: (.*)/)?.[1],
      yaml.match(/SASORI_HAPROXY: (.*)/)?.[1],
    ]);
    expect(Object.keys(more)).toEqual(
      expect.arrayContaining(["STATS_USER", "STATS_PASSWORD", "MASTER1", "MASTER2", "MASTER3"]),
    );
    // Names of the example's hosts are nobody's here.
    const here = Object.entries(more).map(([name, value]) => [
      name,
      value.replace(/^[a-z][\w.]+:/, "localhost:"),
    ]);
    const { status, text } = check(bin, { more: Object.fromEntries(here) });
    expect({ status, warnings: warningsOf(text) }).toEqual({ status: 0, warnings: [] });
  });

  test.each([
    { name: "GATEWAY_REPLAY", value: "on", says: /GATEWAY_REPLAY must be safe or all/ },
    { name: "GATEWAY_FALLBACK", value: "no", says: /GATEWAY_FALLBACK must be on or off/ },
    { name: "GATEWAY_DISCOVERY", value: "no", says: /GATEWAY_DISCOVERY must be on or off/ },
    { name: "GATEWAY_DNS", value: "true", says: /GATEWAY_DNS must be on or off/ },
    { name: "NOT_MINE_STATUS", value: "403", says: /NOT_MINE_STATUS must be 404 or 421/ },
    { name: "GATEWAY_ADDRESS", value: "", says: /GATEWAY_ADDRESS or STATS_ADDRESS is empty/ },
    { name: "STATS_ADDRESS", value: "", says: /GATEWAY_ADDRESS or STATS_ADDRESS is empty/ },
    ...["MASTER0", "MASTER33"].map((name) => ({
      ...{ name, value: "puppet33.example.com:8140" },
      says: /this file takes MASTER1 to MASTER32/,
    })),
  ])("does not start with $name=$value, which it would take for something else", ({ name, value, says }) => {
    const { status, text } = check(bin, { more: { [name]: value } });
    expect(status).not.toBe(0);
    expect(text).toMatch(says);
  });

  test("takes no client certificates where it speaks no TLS", () => {
    const { status, text } = check(bin, { more: { GATEWAY_CLIENT_CA: "/etc/ca.pem" } });
    expect(status).not.toBe(0);
    expect(text).toMatch(/GATEWAY_CERT is not set/);
  });

  test("sends each node's requests to its master, by header in any letter case or by path", () =>
    withGateway(
      {
        bin,
        map: [
          [NODE, "master2"],
          ["node2.example.com", "master3"],
        ],
      },
      async ({ ask, url }) => {
        const response = await ask("NODE1.Example.com", { path: "/run?x=1" });
        expect(response.headers.get("x-served-by")).toBe("master2");
        expect(response.headers.get("x-route")).toBe("mapped");
        expect(await response.json()).toEqual({ master: "master2", node: NODE, path: "/run?x=1" });
        const byPath = await fetch(`${url}/nodes/node2.example.com/facts/os?x=1`);
        expect(await byPath.json()).toEqual({
          master: "master3",
          node: "node2.example.com",
          path: "/facts/os?x=1",
        });
        expect(await (await fetch(`${url}/nodes/node2.example.com`)).json()).toMatchObject({ path: "/" });
      },
    ));

  test("follows the live map from the next request on", () =>
    withGateway({ bin, map: [[NODE, "master1"]] }, async ({ ask, haproxy }) => {
      expect(await (await ask(NODE)).json()).toMatchObject({ master: "master1" });
      await runtimeCommand(haproxy.socketPath, `set map ${haproxy.mapPath} ${NODE} master3`);
      expect(await (await ask(NODE)).json()).toMatchObject({ master: "master3" });
    }));

  test.each([
    { path: "/nodes/node1.example.com", reaches: "/" },
    { path: "/nodes/NODE1.example.com/a/../b?c=/nodes/x/", reaches: "/a/../b?c=/nodes/x/" },
    { path: "/nodes/node1.example.com//a", reaches: "//a" },
    { path: "/nodes/node1.example.com/nodes/node2.example.com/", reaches: "/nodes/node2.example.com/" },
    { path: "http://gateway/nodes/node1.example.com/a", reaches: "/a" },
    { path: "/nodes/", says: "node_invalid" },
    { path: "/nodes//a", says: "node_invalid" },
    { path: "/nodes/node1.example.com%2fb/", says: "node_invalid" },
    { path: "/nodes/node1.example.com%00/", says: "node_invalid" },
    { path: "/nodes/../node1.example.com/", says: "node_invalid" },
    { path: "//nodes/node1.example.com/", says: "node_missing" },
    { path: "/%6eodes/node1.example.com/", says: "node_missing" },
    { path: "/a/nodes/node1.example.com/", says: "node_missing" },
    { path: "*", says: "node_missing" },
  ])(
    "takes the node from the path $path as it is written, or says what is wrong",
    ({ path, reaches, says }) =>
      withGateway({ bin, map: [[NODE, "master1"]] }, async ({ haproxy }) => {
        const text = `OPTIONS ${path} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n`;
        const answer = await send(haproxy.ports.frontend, text);
        const body = JSON.parse(/\{.*\}/.exec(answer)?.[0] ?? "");
        if (says) expect(body).toMatchObject({ error: says });
        else
          expect({ ...body, path: body.path.replace("http://gateway", "") }).toEqual({
            master: "master1",
            node: NODE,
            path: reaches,
          });
      }),
  );

  test.each([
    { shape: "two lengths", headers: "Content-Length: 4\r\nContent-Length: 40" },
    { shape: "a list of lengths", headers: "Content-Length: 4, 40" },
    { shape: "a length with a sign", headers: "Content-Length: +4" },
    { shape: "a length before chunks", headers: "Content-Length: 4\r\nTransfer-Encoding: chunked" },
    { shape: "chunks before a length", headers: "Transfer-Encoding: chunked\r\nContent-Length: 4" },
    { shape: "a blank before the colon", headers: "Transfer-Encoding : chunked\r\nContent-Length: 4" },
    { shape: "an unknown encoding", headers: "Transfer-Encoding: xchunked\r\nContent-Length: 4" },
    { shape: "two encodings", headers: "Transfer-Encoding: identity, chunked" },
    { shape: "an encoding in two lines", headers: "Transfer-Encoding:\r\n chunked\r\nContent-Length: 4" },
    { shape: "a line that ends early", headers: "X-A: b\rTransfer-Encoding: chunked\r\nContent-Length: 4" },
  ])("hands no second request in the body of a first to a master: $shape", ({ headers }) =>
    withGateway({ bin, map: [[NODE, "master1"]] }, async ({ haproxy, masters }) => {
      const hidden = "GET /hidden HTTP/1.1\r\nHost: gateway\r\nX-Node-Name: hidden.example.com\r\n\r\n";
      const body = `0\r\n\r\n${hidden}`;
      const text = `POST / HTTP/1.1\r\nHost: gateway\r\nX-Node-Name: ${NODE}\r\n${headers}\r\n\r\n${body}`;
      // The gateway may read it as two requests; then it looks at the second one too, and knows no such node.
      const answer = await send(haproxy.ports.frontend, text, (seen) => /node_unknown| 400 /.test(seen));
      // Nothing at all: the connection is reset while the rest of the body is on its way.
      expect(answer).toMatch(/^$|^HTTP\/1\.1 (200|400|422) /);
      expect(masters.flatMap(({ nodesAsked }) => nodesAsked).filter((node) => node !== NODE)).toEqual([]);
      expect(masters[0]?.requests).toBeLessThanOrEqual(1);
    }),
  );

  test("says itself who has served whom, whatever clients and masters say", () =>
    withGateway({ bin, map: [[NODE, "master1"]] }, async ({ ask, masters }) => {
      const headers = { X_Node_Name: "x", "X-Node_Name": "x", x_node_name: "x", "X-Sasori-Final": "x" };
      for (const master of masters) {
        master.says = { "X-Route": "learned", "X-Served-By": "me", "X-Sasori-Final": "yes" };
      }
      for (const route of ["mapped", "redispatched"]) {
        const response = await ask(NODE, { headers });
        expect(response.headers.get("x-route")).toBe(route);
        expect(response.headers.get("x-served-by")).toMatch(
          route === "mapped" ? /^master1$/ : /^master[23]$/,
        );
        expect(response.headers.get("x-sasori-final")).toBeNull();
        await masters[0]?.stop();
      }
      const names = masters.flatMap((master) => Object.keys(master.headers));
      expect(names.filter((name) => /node|final/.test(name))).toEqual(["x-node-name", "x-node-name"]);
    }));

  test("writes into its log nothing that a client could make up as a field of it", () =>
    withGateway({ bin }, async ({ ask, haproxy }) => {
      expect((await ask("x master=master1")).status).toBe(400);
      await expect.poll(haproxy.output).toMatch(/ node=x%20master%3Dmaster1 mapped=- .* status=400 /i);
    }));

  test("passes on headers that fit its buffer, and refuses larger ones", () =>
    withGateway({ bin, map: [[NODE, "master1"]] }, async ({ ask, masters }) => {
      expect((await ask(NODE, { headers: { "x-large": "x".repeat(14_000) } })).status).toBe(200);
      const refused = await ask(NODE, { headers: { "x-large": "x".repeat(16_000) } });
      expect([400, 431]).toContain(refused.status); // 431 from HAProxy 3.2 on.
      expect(masters[0]?.requests).toBe(1);
    }));

  test("passes on a WebSocket that a client and a master agree upon", () =>
    withGateway({ bin, map: [[NODE, "master1"]] }, async ({ haproxy, masters }) => {
      const head = `GET / HTTP/1.1\r\nHost: gateway\r\nX-Node-Name: ${NODE}\r\n`;
      const text = `${head}Connection: Upgrade\r\nUpgrade: WebSocket\r\n${WEBSOCKET_KEY}\r\n\r\n`;
      for (const route of ["mapped", "redispatched"]) {
        const talk = await send(haproxy.ports.frontend, text, (seen) => {
          if (seen.endsWith("\r\n\r\n")) return "are you there";
          return seen.endsWith("are you there");
        });
        expect(talk).toMatch(/^HTTP\/1\.1 101 /);
        expect(talk.toLowerCase()).toContain(`x-route: ${route}\r\n`);
        await masters[0]?.stop();
      }
    }));

  test.each([
    { says: "node_missing", status: 400, headers: {} },
    { says: "node_unknown", status: 404, headers: { "x-node-name": "other.example.com" } },
    { says: "node_invalid", status: 400, headers: { "x-node-name": "a;disable server puppet/master1" } },
    { says: "node_invalid", status: 400, headers: { "x-node-name": `${NODE}, node2.example.com` } },
    { says: "node_invalid", status: 400, headers: { "x-node-name": "x".repeat(254) } },
    { says: "node_invalid", status: 400, headers: { "x-node-name": "../etc" } },
    { says: "node_invalid", status: 400, headers: { "x-node-name": "" } },
  ])("answers $status $says as JSON, and asks no master", ({ says, status, headers }) =>
    withGateway({ bin, map: [[NODE, "master1"]] }, async ({ url, masters }) => {
      const response = await fetch(url, { headers: headers as Record<string, string> });
      expect(response.status).toBe(status);
      expect(response.headers.get("content-type")).toBe("application/json");
      expect(await response.json()).toMatchObject({ error: says });
      expect(masters.map(({ requests }) => requests)).toEqual([0, 0, 0]);
    }),
  );

  test("asks another master when the node's own refuses the connection", () =>
    withGateway({ bin, map: [[NODE, "master1"]] }, async ({ ask, masters }) => {
      await masters[0]?.stop();
      const response = await ask(NODE);
      expect(response.status).toBe(200);
      expect(response.headers.get("x-route")).toBe("redispatched");
      expect(response.headers.get("x-served-by")).toMatch(/^master[23]$/);
    }));

  test("says 503 no_master, and when to come back, while no master is there", () =>
    withGateway({ bin, map: [[NODE, "master1"]] }, async ({ ask, masters }) => {
      for (const master of masters) await master.stop();
      const response = await ask(NODE);
      expect(response.status).toBe(503);
      expect(response.headers.get("retry-after")).toBe("5");
      expect(await response.json()).toMatchObject({ error: "no_master" });
    }));

  test("says 503 queue_full at once when a master is overloaded, and leaves the others alone", () =>
    withGateway(
      {
        bin,
        map: [
          [NODE, "master1"],
          ["node2.example.com", "master2"],
        ],
      },
      async ({ ask, masters, haproxy }) => {
        await disableChecks(haproxy.socketPath);
        const release = hold(masters[0]);
        // maxconn 50 are served and maxqueue 100 wait; further ones have no place.
        const waiting = await fill({ ask, masters, haproxy });
        const refused = await ask(NODE);
        expect(refused.status).toBe(503);
        expect(refused.headers.get("retry-after")).toBe("1");
        expect(await refused.json()).toEqual({ error: "queue_full" });
        expect((await ask("node2.example.com")).status).toBe(200);
        release();
        const served = await Promise.all(waiting);
        expect(new Set(served.map((response) => response.headers.get("x-served-by")))).toEqual(
          new Set(["master1"]),
        );
      },
    ));

  test("says 503 queue_full to a request that has waited in the queue for too long", () =>
    withGateway(
      { bin, map: [[NODE, "master1"]], variables: { QUEUE_TIMEOUT: "300ms" } },
      async ({ ask, masters }) => {
        const release = hold(masters[0]);
        const served = Array.from({ length: 50 }, () => ask(NODE));
        await expect.poll(() => masters[0]?.requests).toBe(50);
        const [late] = await Promise.all([ask(NODE), ask(NODE)]);
        expect(late.status).toBe(503);
        expect(await late.json()).toEqual({ error: "queue_full" });
        release();
        expect((await Promise.all(served)).every(({ status }) => status === 200)).toBe(true);
      },
    ));

  test("serves the nodes of other masters as before while one is overloaded four times over", () =>
    withGateway(
      {
        bin,
        map: [
          [NODE, "master1"],
          ["node2.example.com", "master2"],
        ],
        variables: { QUEUE_TIMEOUT: "1m" },
      },
      async ({ ask, masters, haproxy }) => {
        await disableChecks(haproxy.socketPath);
        const release = hold(masters[0]);
        const waiting = await fill({ ask, masters, haproxy });
        let refused = 0;
        const burst = Array.from({ length: 450 }, async () => {
          const answer = await ask(NODE);
          if (answer.status === 503) refused += 1;
          return answer;
        });
        for (let count = 0; count < 50; count += 1) {
          expect((await ask("node2.example.com")).headers.get("x-served-by")).toBe("master2");
        }
        // 50 are at the master, 100 wait, and it is decided that there is no room for the others.
        await expect.poll(() => refused).toBe(450);
        release();
        expect((await Promise.all(waiting)).filter(({ status }) => status === 200)).toHaveLength(150);
        for (const answer of await Promise.all(burst)) expect(answer.headers.get("retry-after")).toBe("1");
        expect(masters[1]?.requests).toBe(50);
        expect(masters[2]?.requests).toBe(0);
      },
    ));

  test("knows a node or client by its class however its name was typed", () =>
    withHaproxy(
      {
        bin,
        config: ({ mapPath, socketPath, ports }) => `global
  stats socket ${socketPath} level admin
defaults
  mode http
  timeout client 5s
frontend classes
  bind 127.0.0.1:${ports.frontend}
  http-request set-src req.fhdr(x-client)
  http-request return status 200 hdr x-node %[req.fhdr(x-node-name),lower,map_str_int(${mapPath},0)] hdr x-client %[src,map_str_int(${mapPath},0)]
`,
      },
      async ({ mapPath, socketPath, ports }) => {
        const priority = new PriorityMap(mapPath, [{ name: "h", connect: { path: socketPath } }]);
        expect(await priority.change("DB1.Example.com", -5)).toMatchObject({ key: "db1.example.com" });
        await priority.change("2001:DB8:0:0:0:0:0:A1", -6);
        await priority.change("::FFFF:192.0.2.1", -7);
        await priority.change("192.0.2.1", -8);
        const classes = async (client: string) => {
          const headers = { "x-node-name": "db1.example.com", "x-client": client };
          const answer = await fetch(`http://127.0.0.1:${ports.frontend}/`, { headers });
          return [answer.headers.get("x-node"), answer.headers.get("x-client")];
        };
        expect(await classes("2001:db8::a1")).toEqual(["-5", "-6"]);
        expect(await classes("::ffff:192.0.2.1")).toEqual(["-5", "-7"]);
        expect(await classes("192.0.2.1")).toEqual(["-5", "-8"]);
        await priority.change("2001:db8::00a1", undefined);
        expect(await classes("2001:db8::a1")).toEqual(["-5", "0"]);
      },
    ));

  test("serves important nodes and clients first, by classes that change at run time", () => {
    const map = ["first", "second", "third"].map((name): [string, string] => [
      `${name}.example.com`,
      "master1",
    ]);
    return withPriorityMap((file) =>
      withGateway({ bin, map, variables: { PRIORITY_MAP: file } }, async ({ ask, masters, haproxy }) => {
        const [master] = masters;
        const priority = new PriorityMap(file, [{ name: "h", connect: { path: haproxy.socketPath } }]);
        await priority.change("third.example.com", -100);
        await priority.change("first.example.com", 100);
        await priority.change("third.example.com", -200);
        expect(await priority.change("second.example.com", 5)).toEqual({
          key: "second.example.com",
          class: 5,
          haproxy: [{ haproxy: "h" }],
        });
        await priority.change("second.example.com", undefined);
        expect([...(await priority.list())]).toEqual([
          ["first.example.com", 100],
          ["third.example.com", -200],
        ]);
        await runtimeCommand(haproxy.socketPath, "set maxconn server puppet/master1 1");
        const release = hold(master);
        const waiting = [ask("first.example.com")];
        await expect.poll(() => master?.requests).toBe(1);
        for (const [index, [name]] of map.entries()) {
          waiting.push(ask(name));
          const queued = async () => Number((await servers(haproxy.socketPath)).get("master1"));
          await expect.poll(queued).toBe(index + 1);
        }
        release();
        await Promise.all(waiting);
        expect(master?.nodesAsked).toEqual(
          ["first", "third", "second", "first"].map((name) => `${name}.example.com`),
        );
      }),
    );
  });

  test("lets a master say 'not mine' by 421 where HAProxy can retry on it", () =>
    withGateway(
      {
        bin,
        map: [[NODE, "master1"]],
        variables: { GATEWAY_REPLAY: "all", ...(version >= "3.2" && { NOT_MINE_STATUS: "421" }) },
      },
      async ({ ask, masters }) => {
        for (const master of masters) {
          master.nodes = new Set(master.name === "master1" ? [] : [NODE]);
          if (version >= "3.2") master.notMine = 421;
        }
        expect((await ask(NODE)).status).toBe(200); // sasori is silent: another master is asked.
      },
    ));

  test("speaks TLS, and takes the node from the client's certificate where it is told to", () =>
    withCertificates(({ ca, server, client }) =>
      withGateway(
        {
          bin,
          map: [
            ["client.example.com", "master2"],
            [NODE, "master1"],
          ],
          variables: { GATEWAY_CERT: server, GATEWAY_CLIENT_CA: ca },
        },
        async ({ url }) => {
          const secure = url.replace("http:", "https:");
          const dispatcher = new Agent({
            connect: { ca: readFileSync(ca), cert: readFileSync(client), key: readFileSync(client) },
          });
          const response = await request(secure, { dispatcher, headers: { "x-node-name": NODE } });
          expect(await response.body.json()).toMatchObject({ master: "master2", node: "client.example.com" });
          const nobody = new Agent({ connect: { ca: readFileSync(ca) } });
          await expect(request(secure, { dispatcher: nobody })).rejects.toThrow();
          await Promise.all([dispatcher.close(), nobody.close()]);
        },
      ),
    ));

  test("asks masters by TLS, whose certificates must have their names, also to check and to heal", () =>
    withCertificates(async ({ ca, client, puppet1, puppet2 }) => {
      const pem = (file: string) => ({
        ca: readFileSync(ca),
        key: readFileSync(file),
        cert: readFileSync(file),
      });
      const [first, second, forged] = await Promise.all([
        startMaster("puppet1.example.com", { ...pem(puppet1), rejectUnauthorized: true }),
        startMaster("puppet2.example.com", { ...pem(puppet2), rejectUnauthorized: true }),
        startMaster("puppet3", pem(puppet2)),
      ]);
      const masters = [first, second, forged];
      const variables = {
        MASTERS_CA: ca,
        MASTERS_CERT: client,
        MASTER1_NAME: first.name,
        MASTER2_NAME: "two",
        MASTER2_CERTNAME: second.name,
        MASTER3_NAME: forged.name,
        GATEWAY_REPLAY: "all",
      };
      const map: [string, string][] = [
        [NODE, first.name],
        ["node2.example.com", "two"],
        ["node3.example.com", forged.name],
      ];
      try {
        await withGateway({ bin, map, masters, variables }, async ({ ask, haproxy }) => {
          expect(routeOf(await ask(NODE))).toEqual({ status: 200, route: "mapped", master: first.name });
          expect(first.client).toEqual({ name: "Client.example.com", sni: false });
          expect(routeOf(await ask("node2.example.com"))).toMatchObject({ status: 200, master: "two" });
          first.nodes = new Set();
          const moved = routeOf(await ask(NODE, { method: "POST", body: "x" }));
          expect(moved).toEqual({ status: 200, route: "redispatched", master: "two" });
          const { status, route } = routeOf(await ask("node3.example.com"));
          expect({ status, route }).toEqual({ status: 200, route: "redispatched" });
          await expect.poll(haproxy.output).toMatch(/puppet\/puppet3 is DOWN/);
          expect(haproxy.output()).not.toMatch(/puppet\/(two|puppet1\S*) is DOWN/);
          expect(forged.requests).toBe(0);
        });
      } finally {
        for (const master of masters) await master.stop();
      }
    }));

  test("has as many masters as there are, by their own names", async () => {
    const long = `${"p".repeat(40)}.${"x".repeat(7)}.example.com`; // 60 characters
    const names = [long, "heal3", "UPPER.example.com", "puppet-4", "master5"];
    const masters = await Promise.all(names.map((name) => startMaster(name)));
    const variables = Object.fromEntries(
      names.flatMap((name, index) => (name === "master5" ? [] : [[`MASTER${index + 1}_NAME`, name]])),
    );
    const map = names.map((name, index): [string, string] => [`node${index}.example.com`, name]);
    try {
      await withGateway(
        { bin, map, masters, variables: { ...variables, GATEWAY_REPLAY: "all" } },
        async ({ ask }) => {
          for (const [node, master] of map)
            expect(routeOf(await ask(node))).toEqual({ status: 200, route: "mapped", master });
          // The only one that has the node is found, whatever its name is.
          for (const master of masters)
            master.nodes = new Set(master.name === "heal3" ? ["node0.example.com"] : []);
          for (const master of masters.slice(2)) await master.stop();
          await expect
            .poll(async () => routeOf(await ask("node0.example.com")))
            .toMatchObject({ status: 200, master: "heal3" });
        },
      );
    } finally {
      for (const master of masters) await master.stop();
    }
  });

  test("takes 32 masters, and one alone", () => {
    const all = Array.from({ length: 32 }, (_, index) => [
      [`MASTER${index + 1}`, `127.0.0.1:${index + 1}`],
      [`MASTER${index + 1}_NAME`, `puppet${index + 1}.example.com`],
    ]);
    const many = check(bin, { more: Object.fromEntries(all.flat()) });
    const one = check(bin, { without: ["MASTER2", "MASTER3"] });
    for (const { status, text } of [many, one])
      expect({ status, warnings: warningsOf(text) }).toEqual({ status: 0, warnings: [] });
  });

  test("does not start with MASTERS_CA when no name is said that the first master's certificate has", () => {
    const { status, text } = check(bin, { more: { MASTERS_CA: "/etc/ca.pem" } });
    expect(status).not.toBe(0);
    expect(text).toMatch(/MASTER1_CERTNAME is not set/);
  });

  test("heals also what comes by HTTP/2, from a client with a certificate", () =>
    withCertificates(({ ca, server, client }) =>
      withGateway(
        {
          bin,
          map: [["client.example.com", "master2"]],
          variables: { GATEWAY_CERT: server, GATEWAY_CLIENT_CA: ca },
        },
        async ({ url, masters }) => {
          const pem = readFileSync(client);
          const session = http2.connect(url.replace("http:", "https:"), {
            ca: readFileSync(ca),
            cert: pem,
            key: pem,
          });
          for (const route of ["mapped", "redispatched"]) {
            const stream = session.request({ ":method": "POST", ":path": "/", "x-node-name": NODE });
            stream.end("a body");
            const [headers] = await once(stream, "response");
            expect(headers).toMatchObject({ ":status": 200, "x-route": route });
            expect(JSON.parse(await text(stream))).toMatchObject({ node: "client.example.com" });
            await masters[1]?.stop();
          }
          expect(masters.map(({ body }) => body).filter((body) => body === "a body")).toHaveLength(2);
          session.close();
        },
      ),
    ));

  test.each(["TLSv1.2", "TLSv1.3"] as const)(
    "refuses a revoked certificate from the next connection on, resumed %s sessions too",
    async (tlsVersion) => {
      const ca = await makePuppetCa();
      const node1 = await ca.issue("/CN=node1.example.com");
      const node2 = await ca.issue("/CN=node2.example.com");
      const variables = {
        GATEWAY_CERT: ca.gateway.both,
        GATEWAY_CLIENT_CA: ca.caBundle,
        GATEWAY_CLIENT_CRL: ca.emptyCrls,
      };
      const map: [string, string][] = [
        ["node1.example.com", "master1"],
        ["node2.example.com", "master1"],
      ];
      try {
        await withGateway({ bin, map, variables }, async ({ haproxy }) => {
          const at = {
            port: haproxy.ports.frontend,
            tls: { minVersion: tlsVersion, maxVersion: tlsVersion },
          };
          const session = await establish(ca, at, node1);
          const resumed = { ...at, tls: { ...at.tls, ...session } };
          expect((await askWith(ca, resumed, node1)).status).toBe(200);
          await commitCrl(haproxy, ca.emptyCrls, await ca.crlsWith([node1]));
          for (const request of [at, resumed])
            await expect(askWith(ca, request, node1)).rejects.toThrow(/certificate revoked/);
          expect((await askWith(ca, at, node2)).status).toBe(200);
        });
      } finally {
        await ca.remove();
      }
    },
  );

  test("does not start with a revocation list that would revoke nothing", () => {
    const { status, text } = check(bin, { more: { GATEWAY_CLIENT_CRL: "/etc/crl.pem" } });
    expect(status).not.toBe(0);
    expect(text).toMatch(/GATEWAY_CLIENT_CA is not set/);
  });

  test("takes a certificate for nobody when its name is not exactly a certname", () =>
    withCertificates(({ ca, server, broken, blanks, twice }) =>
      withGateway(
        {
          bin,
          map: [["client.example.com", "master1"]],
          variables: { GATEWAY_CERT: server, GATEWAY_CLIENT_CA: ca, GATEWAY_DISCOVERY: "on" },
        },
        async ({ url, masters }) => {
          for (const file of [broken, blanks, twice]) {
            const pem = readFileSync(file);
            const dispatcher = new Agent({ connect: { ca: readFileSync(ca), cert: pem, key: pem } });
            const response = await request(url.replace("http:", "https:"), { dispatcher });
            expect({ file, ...((await response.body.json()) as object) }).toMatchObject({
              file,
              error: "node_invalid",
            });
            await dispatcher.close();
          }
          expect(masters.map(({ requests }) => requests)).toEqual([0, 0, 0]);
        },
      ),
    ));

  test.each(["h2c", "echo", "h2c, websocket"])(
    "lets nothing past its rules as another protocol: %s",
    (protocol) =>
      withGateway({ bin, map: [[NODE, "master1"]] }, async ({ haproxy, masters }) => {
        const head = `GET / HTTP/1.1\r\nHost: gateway\r\nX-Node-Name: ${NODE}\r\nHTTP2-Settings: AAMAAABk\r\n`;
        const upgrade = `Connection: Upgrade, HTTP2-Settings\r\nUpgrade: ${protocol}\r\n${WEBSOCKET_KEY}\r\n\r\n`;
        const isWebsocket = protocol.includes("websocket");
        const answer = await send(haproxy.ports.frontend, head + upgrade, (seen) =>
          seen.includes(isWebsocket ? "\r\n\r\n" : "}"),
        );
        expect(answer).toMatch(isWebsocket ? /^HTTP\/1\.1 101 / : /^HTTP\/1\.1 200 /);
        expect(masters[0]?.headers.upgrade).toBe(isWebsocket ? "websocket" : undefined);
        expect(masters[0]?.headers["http2-settings"]).toBeUndefined();
      }),
  );

  test("opens no tunnel to a master", () =>
    withGateway({ bin, map: [[NODE, "master1"]] }, async ({ haproxy }) => {
      const head = `CONNECT master1:8140 HTTP/1.1\r\nHost: master1:8140\r\nX-Node-Name: ${NODE}\r\n\r\n`;
      const answer = await send(haproxy.ports.frontend, head, (seen) => seen.includes("}"));
      expect(answer).toMatch(/^HTTP\/1\.1 400 .*\{"error":"bad_request"\}$/s);
    }));

  test.each([
    "X-Client-Verify",
    "x-client-dn",
    "X_CLIENT_DN",
    "X-Client_Cert",
    "X_Client-Verify",
    "X.Client.DN",
    "X-Client",
    "X-SSL-Subject",
    "Client-Cert",
    "SSL_Client-Verify",
    "X-Forwarded-Client-Cert",
    "X-Forwarded_Tls-Client-Cert",
    "X-Amzn-Mtls-Clientcert",
    "X-Amzn_Mtls-Clientcert_Subject",
    "X-ARR-ClientCert",
    "Cf-Client-Cert-Sha256",
    "X-TLS-Client-DN",
    "X--Client--DN",
    "True-Client-IP",
    "Remote-User",
    "X_Remote_User",
    "X-Forwarded-User",
    "X-Auth-Request-User",
    "X_Sasori_Tried",
    "X_Node_Name",
    "X-Node_Name",
    "X_Node-Name",
  ])("lets no client tell a master who it is: %s", (name) =>
    withGateway({ bin, map: [[NODE, "master1"]] }, async ({ ask, masters }) => {
      const others = {
        ...{ authorization: "Bearer x", "user-agent": "tool", "x-authentication": "x" },
        ...{ "x-puppet-version": "8.10.0", "x-forwarded-for": "192.0.2.1", "x-mine": "mine" },
      };
      expect((await ask(NODE, { headers: { [name]: "SUCCESS", ...others } })).status).toBe(200);
      const headers = masters[0]?.headers ?? {};
      expect(headers).toMatchObject({ "x-node-name": NODE, ...others });
      expect(Object.values(headers).filter((value) => value === "SUCCESS")).toEqual([]);
    }),
  );

  test("sends a request again whose client waits to be told to go on (Expect)", () =>
    withGateway(
      { bin, map: [[NODE, "master1"]], variables: { GATEWAY_REPLAY: "all" } },
      async ({ haproxy, masters }) => {
        if (masters[0]) masters[0].nodes = new Set();
        const head = `POST / HTTP/1.1\r\nHost: gateway\r\nX-Node-Name: ${NODE}\r\nConnection: close\r\n`;
        const text = `${head}Expect: 100-continue\r\nContent-Length: 4\r\n\r\n`;
        const answer = await send(haproxy.ports.frontend, text, (seen) =>
          / 100 .*\r\n\r\n$/.test(seen) ? "body" : false,
        );
        expect(answer).toMatch(/HTTP\/1\.1 200 /);
        expect(masters.map(({ body }) => body).filter((body) => body === "body")).toHaveLength(2);
      },
    ));

  test("lets no client have the node's name dropped on the way, as a header of this connection only", () =>
    withGateway({ bin, map: [[NODE, "master1"]] }, async ({ haproxy, masters }) => {
      const text = `GET / HTTP/1.1\r\nHost: gateway\r\nX-Node-Name: ${NODE}\r\nConnection: close, X-Node-Name\r\n\r\n`;
      expect(await send(haproxy.ports.frontend, text)).toMatch(/^HTTP\/1\.1 200 /);
      expect(masters[0]?.headers["x-node-name"]).toBe(NODE);
      expect(masters[0]?.headers.connection ?? "").not.toMatch(/x-node/i);
    }));

  test("leaves out what a client sends behind its body, where HAProxy can", () =>
    withGateway({ bin, map: [[NODE, "master1"]] }, async ({ haproxy, masters }) => {
      const head = `POST / HTTP/1.1\r\nHost: gateway\r\nX-Node-Name: ${NODE}\r\nConnection: close\r\n`;
      const body = "Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nX-Client-Verify: SUCCESS\r\n\r\n";
      expect(await send(haproxy.ports.frontend, head + body)).toMatch(/^HTTP\/1\.1 200 /);
      const older = { "x-client-verify": "SUCCESS" };
      expect(masters[0]).toMatchObject({ body: "body", trailers: isFrom(version, 3, 2) ? {} : older });
      if (isFrom(version, 3, 2)) expect(masters[0]?.trailers).toEqual({});
    }));

  test.each(["X-Node-Name: node1.example.com\0", "X-Other: a\0b"])(
    "refuses a header with a zero in it: %j",
    (line) =>
      withGateway({ bin, map: [[NODE, "master1"]] }, async ({ haproxy, masters }) => {
        const own = line.startsWith("X-Node") ? "" : `X-Node-Name: ${NODE}\r\n`;
        const text = `GET / HTTP/1.1\r\nHost: gateway\r\n${own}${line}\r\n\r\n`;
        expect(await send(haproxy.ports.frontend, text, (seen) => seen.includes("\r\n\r\n"))).toMatch(
          /^HTTP\/1\.1 400 /,
        );
        expect(masters[0]?.requests).toBe(0);
      }),
  );

  test("has its internal sockets where only those reach them who may command HAProxy", () =>
    withGateway({ bin }, async ({ haproxy }) => {
      const mode = (name: string) => statSync(`${haproxy.socketPath}${name}`).mode & 0o777;
      for (const name of ["", ".heal", ".sasori"]) await expect.poll(() => mode(name)).toBe(0o660);
      const abstract = readFileSync("/proc/net/unix", "utf8").match(/ @.*$/gm) ?? [];
      expect(abstract.filter((name) => name.includes(haproxy.dir))).toEqual([]);
    }));

  describe("heals", () => {
    const map: [string, string][] = [
      [NODE, "master1"],
      ["node2.example.com", "master2"],
    ];
    const heals = async ({ ask, masters }: Gateway) => {
      // HAProxy lets go of its ports for a new process, and takes them again when that has failed.
      await expect.poll(() => ask(NODE).then(({ status }) => status, String)).toBe(200);
      await masters[0]?.stop();
      expect(routeOf(await ask(NODE))).toMatchObject({ status: 200, route: "redispatched" });
      expect(routeOf(await ask("node2.example.com"))).toMatchObject({ status: 200, route: "mapped" });
    };
    const TAKEN = /cannot bind socket/;

    test("after a reload that failed because a port is taken, and after the next one, which did not", () =>
      withTakenPort((taken) =>
        withGateway({ bin, map, masterWorker: true }, async (gateway) => {
          const file = path.join(gateway.haproxy.dir, "haproxy.cfg");
          const good = readFileSync(file, "utf8");
          writeFileSync(file, `${good}\nfrontend more\n  bind 127.0.0.1:${taken}\n`);
          process.kill(gateway.haproxy.pid, "SIGUSR2");
          await expect.poll(gateway.haproxy.output).toMatch(TAKEN);
          await expect
            .poll(() => runtimeCommand(gateway.haproxy.masterSocketPath, "show version").catch(() => "away"))
            .not.toBe("away");
          await heals(gateway);
          writeFileSync(file, good);
          await gateway.haproxy.reload();
          await heals(gateway);
        }),
      ));

    test("after a new process that was to take over (-sf) has failed", () =>
      withTakenPort((taken) =>
        withGateway({ bin, map }, async (gateway) => {
          const file = path.join(gateway.haproxy.dir, "more.cfg");
          const lines = "mode http\n timeout client 1s\n timeout connect 1s\n timeout server 1s\n";
          writeFileSync(file, `defaults own\n ${lines}frontend more from own\n bind 127.0.0.1:${taken}\n`);
          const own = path.join(gateway.haproxy.dir, "haproxy.cfg");
          const over = ["-db", "-f", own, "-f", file, "-sf", String(gateway.haproxy.pid)];
          // Not spawnSync: the masters are in this process, and must answer HAProxy's checks.
          const { code, stderr } = await promisify(execFile)(bin, over).catch((error) => error);
          expect(code).not.toBe(0);
          expect(stderr).toMatch(TAKEN);
          await heals(gateway);
        }),
      ));

    test("with what another process has left behind that was killed", () =>
      withGateway({ bin, map }, async (gateway) => {
        await gateway.haproxy.kill();
        expect(statSync(`${gateway.haproxy.socketPath}.heal`).isSocket()).toBe(true);
        await gateway.haproxy.restart();
        await heals(gateway);
      }));

    test("the requests of a process that is ending, by the one that came after it", () =>
      withGateway(
        { bin, map, masterWorker: true, variables: { GATEWAY_REPLAY: "all" } },
        async ({ ask, haproxy, masters }) => {
          const [first] = masters;
          if (first) first.nodes = new Set();
          const release = hold(first);
          const waiting = ask(NODE, { method: "POST", body: "still here" });
          await expect.poll(() => first?.requests).toBe(1);
          await haproxy.reload();
          release();
          const response = await waiting;
          expect(routeOf(response)).toMatchObject({ status: 200, route: "redispatched" });
        },
      ));

    test("in the class that the client's address has, from the queue of another master", () =>
      withPriorityMap((file) =>
        withGateway(
          {
            ...{ bin, variables: { PRIORITY_MAP: file, MASTER3: "127.0.0.1:1" } },
            map: [...map, ["node3.example.com", "master2"]],
          },
          async ({ ask, haproxy, masters, url }) => {
            const command = (line: string) => runtimeCommand(haproxy.socketPath, line);
            await command(`add map ${file} 127.0.0.2 -100`);
            await masters[0]?.stop();
            const down = async () =>
              (await command("show stat")).match(/^puppet,master[13],.*,DOWN,/gm)?.length;
            await expect.poll(down).toBe(2);
            await command("set maxconn server puppet/master2 1");
            const [, master] = masters;
            const release = hold(master);
            const queued = async () => Number((await servers(haproxy.socketPath)).get("master2"));
            const waiting = [ask("node2.example.com")];
            await expect.poll(() => master?.requests).toBe(1);
            waiting.push(ask("node3.example.com"));
            await expect.poll(queued).toBe(1);
            const important = new Agent({ localAddress: "127.0.0.2" });
            const healed = request(url, { dispatcher: important, headers: { "x-node-name": NODE } });
            await expect.poll(queued).toBe(2);
            release();
            await Promise.all(waiting);
            expect((await healed).headers["x-route"]).toBe("redispatched");
            expect(master?.nodesAsked).toEqual(["node2.example.com", NODE, "node3.example.com"]);
            await important.destroy();
          },
        ),
      ));

    test("locked into a folder (chroot) that HAPROXY_CHROOT names", () =>
      withWrapper(bin, (wrapped) =>
        withGateway({ bin: wrapped, map, chroot: true, masterWorker: true }, heals),
      ));

    test("not where it is locked into one that is not named, and says so when it starts", () =>
      withWrapper(bin, (wrapped) =>
        withGateway(
          { bin: wrapped, map, chroot: true, variables: { HAPROXY_CHROOT: "/" } },
          async ({ haproxy }) => {
            await expect.poll(haproxy.output).toMatch(/no wrong route will heal.*HAPROXY_CHROOT/);
          },
        ),
      ));
  });

  test("refuses a body that is too large, and lets no slow client hold a connection", () =>
    withGateway(
      { bin, map: [[NODE, "master1"]], variables: { MAX_BODY_BYTES: "1000", REQUEST_TIMEOUT: "1s" } },
      async ({ ask, haproxy }) => {
        expect((await ask(NODE, { method: "POST", body: "x".repeat(1_000) })).status).toBe(200);
        const refused = await ask(NODE, { method: "POST", body: "x".repeat(1_001) });
        expect(refused.status).toBe(413);
        expect(await refused.json()).toMatchObject({ error: "body_too_large" });
        const body = `POST / HTTP/1.1\r\nHost: gateway\r\nX-Node-Name: ${NODE}\r\nContent-Length: 900\r\n\r\nsome`;
        for (const beginning of ["GET / HTTP/1.1\r\n", body]) {
          const answer = await send(haproxy.ports.frontend, beginning, (text) => text.includes("\r\n\r\n"));
          expect(answer).toMatch(/^HTTP\/1\.1 408 /);
        }
      },
    ));

  test("shows stats and metrics only with the password", () =>
    withGateway({ bin }, async ({ statsUrl }) => {
      const authorization = `Basic ${Buffer.from("admin:secret").toString("base64")}`;
      for (const [page, text] of [
        ["/stats", "master1"],
        ["/metrics", "haproxy_server_status"],
      ] as const) {
        expect((await fetch(`${statsUrl}${page}`)).status).toBe(401);
        const response = await fetch(`${statsUrl}${page}`, { headers: { authorization } });
        expect(response.status).toBe(200);
        expect(await response.text()).toContain(text);
      }
    }));
});

/**
 * Sends a text to a port and resolves with all that was answered when the connection ends, or when `next` says true to
 * what has come so far. A text that it returns is sent too.
 */
function send(
  port: number,
  text: string,
  next: (seen: string) => string | boolean = () => false,
): Promise<string> {
  return new Promise((resolve, reject) => {
    let seen = "";
    const client = connect(port, "127.0.0.1", () => client.write(text));
    client.on("data", (chunk) => {
      seen += String(chunk);
      const more = next(seen);
      if (typeof more === "string") client.write(more);
      else if (more) client.destroy();
    });
    client.on("close", () => resolve(seen));
    client.on("error", (error: NodeJS.ErrnoException) => {
      if (error.code !== "ECONNRESET") reject(error); // It was closed while something was on its way.
    });
  });
}

const routeOf = (response: Response) => ({
  status: response.status,
  route: response.headers.get("x-route"),
  master: response.headers.get("x-served-by"),
});

/** Gives `use` a port that a program of this test has. */
async function withTakenPort(use: (port: number) => Promise<void>): Promise<void> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  try {
    await use((server.address() as AddressInfo).port);
  } finally {
    server.close();
  }
}

/** Gives `use` this HAProxy as one that may call chroot: as root, or in a namespace where it is that. */
async function withWrapper(bin: string, use: (bin: string) => Promise<void>): Promise<void> {
  if (process.getuid?.() === 0) return use(bin);
  const folder = mkdtempSync(path.join(tmpdir(), "sasori-chroot-"));
  try {
    const file = path.join(folder, "haproxy");
    writeFileSync(file, `#!/bin/sh\nexec unshare -Ur "${bin}" "$@"\n`, { mode: 0o755 });
    await use(file);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

describe("the priority map", () => {
  test.each(["node", "node x", "node 5 x", "  # note", "node 0x10"])(
    "names a line of the priority map that is no entry (%j), and leaves the file alone",
    (line) =>
      withPriorityMap(async (file) => {
        const text = `# by hand\n\n  first.example.com \t5 \n${line}\n`;
        writeFileSync(file, text);
        const priority = new PriorityMap(file, []);
        const failure = { code: "FILE_READ", message: expect.stringContaining(`line 4 of ${file}`) };
        await expect(priority.list()).rejects.toMatchObject(failure);
        await expect(priority.change("other.example.com", 1)).rejects.toMatchObject(failure);
        expect(readFileSync(file, "utf8")).toBe(text);
        writeFileSync(file, text.replace(line, "second.example.com +7"));
        expect([...(await priority.list())]).toEqual([
          ["first.example.com", 5],
          ["second.example.com", 7],
        ]);
      }),
  );
});

async function withPriorityMap(use: (file: string) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(path.join(tmpdir(), "sasori-priority-"));
  try {
    writeFileSync(path.join(folder, "priority.map"), "");
    await use(path.join(folder, "priority.map"));
  } finally {
    rmSync(folder, { recursive: true });
  }
}

async function withCertificates(use: (files: Certificates) => Promise<void>): Promise<void> {
  const folder = mkdtempSync(path.join(tmpdir(), "sasori-tls-"));
  try {
    await use(makeCertificates(folder));
  } finally {
    rmSync(folder, { recursive: true });
  }
}

/** PEM files: a CA, and certificates of it with their keys for the gateway, for `client.example.com`, for those whose name
 * is nearly that: with a line break at its end, blanks around it, or another name beside it; and for two masters. */
type Certificates = Record<
  "ca" | "server" | "client" | "broken" | "blanks" | "twice" | "puppet1" | "puppet2",
  string
>;

function makeCertificates(folder: string): Certificates {
  const openssl = (...args: string[]) =>
    execFileSync(puppetdbParts().openssl, args, { cwd: folder, stdio: "pipe" });
  openssl(
    "req",
    "-x509",
    "-newkey",
    "rsa:2048",
    "-nodes",
    "-keyout",
    "ca.key",
    "-out",
    "ca.pem",
    "-subj",
    "/CN=Test CA",
    "-days",
    "2",
  );
  for (const [name, subject] of [
    ["server", "127.0.0.1"],
    ["client", "Client.example.com"],
    ["broken", "client.example.com\n"],
    ["blanks", " client.example.com "],
    ["twice", "client.example.com/CN=other.example.com"],
    ["puppet1", "puppet1.example.com"],
    ["puppet2", "puppet2.example.com"],
  ] as const) {
    const alternative = name.startsWith("puppet") ? `DNS:${subject}` : "IP:127.0.0.1";
    writeFileSync(path.join(folder, `${name}.ext`), `subjectAltName=${alternative}`);
    openssl(
      "req",
      "-newkey",
      "rsa:2048",
      "-nodes",
      "-keyout",
      `${name}.key`,
      "-out",
      `${name}.csr`,
      "-subj",
      `/CN=${subject}`,
    );
    openssl(
      "x509",
      "-req",
      "-in",
      `${name}.csr`,
      "-CA",
      "ca.pem",
      "-CAkey",
      "ca.key",
      "-CAcreateserial",
      "-out",
      `${name}.crt`,
      "-days",
      "2",
      "-extfile",
      `${name}.ext`,
    );
    const pem = ["crt", "key"].map((end) => readFileSync(path.join(folder, `${name}.${end}`), "utf8"));
    writeFileSync(path.join(folder, `${name}.pem`), pem.join(""));
  }
  const file = (name: string) => path.join(folder, `${name}.pem`);
  const names = ["ca", "server", "client", "broken", "blanks", "twice", "puppet1", "puppet2"] as const;
  return Object.fromEntries(names.map((name) => [name, file(name)])) as Certificates;
}

/** The masters live in this process, which a burst keeps too busy to answer HAProxy's checks in time. */
async function disableChecks(socketPath: string): Promise<void> {
  for (const name of ["master1", "master2", "master3"])
    await runtimeCommand(socketPath, `disable health puppet/${name}`);
}

/**
 * As many requests at the first master as it may have (maxconn), and in its queue (maxqueue). One after the other: two that come
 * at once, on two threads of HAProxy, may both find the last place free.
 */
async function fill({
  ask,
  masters,
  haproxy,
}: Pick<Gateway, "ask" | "masters" | "haproxy">): Promise<Promise<Response>[]> {
  const waiting = Array.from({ length: 50 }, () => ask(NODE));
  await expect.poll(() => masters[0]?.requests).toBe(50);
  waiting.push(...Array.from({ length: 100 }, () => ask(NODE)));
  const queue = async () => Number((await servers(haproxy.socketPath)).get("master1"));
  await expect.poll(queue).toBe(100);
  return waiting;
}

/** The queue of each server, from `show stat`. */
async function servers(socketPath: string): Promise<Map<string, string>> {
  const [header = "", ...rows] = (await runtimeCommand(socketPath, "show stat")).split("\n");
  const column = header.split(",").indexOf("qcur");
  return new Map(rows.map((row) => row.split(",")).map((cells) => [cells[1] ?? "", cells[column] ?? ""]));
}
