// The states of HAProxy's servers: each way to make a server serve or not, and whether it then does. And servers that get
// their names from DNS.

import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import http from "node:http";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { troublesOf } from "../src/http/troubles.js";
import { HaproxyInstance } from "../src/target/haproxy.js";
import type { Server } from "../src/target/target.js";
import { freePort } from "./support/child.js";
import { startNameserver } from "./support/dns.js";
import { withFleetLab } from "./support/fleet-lab.js";
import { startMaster, type TestMaster, withGateway } from "./support/gateway.js";
import { DEFAULTS, type HaproxyServer, runtimeCommand, withHaproxy } from "./support/haproxy-server.js";
import { haproxyBinaries, isFrom } from "./support/parts.js";
import { patient } from "./support/patience.js";

const signal = () => AbortSignal.timeout(patient(20_000));
const NODE = "node1.example.com";

interface Way {
  /** How the server got there. */
  way: string;
  /** Of `server it <address>`. */
  options?: string;
  /** More lines of the backend, before and behind that one. */
  before?: string;
  behind?: string;
  /** Commands at the socket. */
  commands?: string[];
  /** What its agent says. */
  agent?: string;
  /** It is stopped before the end. */
  dies?: true;
  /** Its check is answered with 404. */
  leaves?: true;
  state: Server["state"];
  /** HAProxy's own word for it, where the state alone does not show that it got there. */
  status?: RegExp;
}

const CHECK = "check inter 100ms fall 1 rise 1";
const TRACK = "track puppet/other";
const STATE = (state: string, server = "it") => `set server puppet/${server} state ${state}`;
const ALIVE = "option httpchk GET /status/v1/simple";

const WAYS: Way[] = [
  { way: "nothing was done to it", state: "up" },
  { way: "it is checked", options: CHECK, before: ALIVE, state: "up" },
  { way: "its check fails", options: CHECK, before: ALIVE, dies: true, state: "down" },
  { way: "it is disabled in the configuration", options: "disabled", state: "down" },
  {
    way: "it was disabled in the configuration, and enabled",
    options: "disabled",
    commands: ["enable server puppet/it"],
    state: "up",
  },
  { way: "it is in maintenance", commands: [STATE("maint")], state: "down" },
  { way: "its maintenance is over", commands: [STATE("maint"), STATE("ready")], state: "up" },
  { way: "it is drained", commands: [STATE("drain")], state: "drained" },
  {
    way: "it is drained and checked",
    options: CHECK,
    before: ALIVE,
    commands: [STATE("drain")],
    state: "drained",
  },
  {
    way: "it is drained and its check fails",
    options: CHECK,
    before: ALIVE,
    commands: [STATE("drain")],
    dies: true,
    state: "down",
  },
  { way: "it was drained", commands: [STATE("drain"), STATE("ready")], state: "up" },
  { way: "it is drained in maintenance", commands: [STATE("drain"), STATE("maint")], state: "down" },
  { way: "what it follows is up", options: TRACK, state: "up" },
  {
    way: "what it follows is in maintenance",
    options: TRACK,
    commands: [STATE("maint", "other")],
    state: "down",
  },
  {
    way: "what it follows is drained",
    options: TRACK,
    commands: [STATE("drain", "other")],
    state: "drained",
  },
  { way: "its agent says drain", options: "AGENT", agent: "drain", state: "drained" },
  { way: "its agent says maint", options: "AGENT", agent: "maint", state: "down" },
  { way: "its agent says stopped", options: "AGENT", agent: "stopped", state: "down" },
  { way: "its agent says ready", options: "AGENT", agent: "up ready", state: "up" },
  { way: "it has weight 0", options: "weight 0", state: "up" },
  {
    way: "it is about to stop, as it says by a 404",
    // On a busy machine a check may time out. A server that is down stays so with a 404.
    options: `${CHECK} fall 1000`,
    before: "option httpchk GET /leaving\n  http-check disable-on-404",
    leaves: true,
    state: "drained",
    status: /^NOLB/,
  },
  {
    way: "it starts slowly",
    options: `${CHECK} slowstart 60s`,
    before: ALIVE,
    commands: [STATE("maint"), STATE("ready")],
    state: "up",
  },
];

const backendOf = (
  it: TestMaster,
  other: TestMaster,
  agentPort: number,
  { options = "", before, behind }: Way,
) => [
  ...(before ? [before] : []),
  `server it 127.0.0.1:${it.port} ${options.replace("AGENT", `agent-check agent-port ${agentPort} agent-inter 100ms`)}`,
  `server other 127.0.0.1:${other.port} check inter 100ms`,
  `server rest 127.0.0.1:${other.port}`,
  ...(behind ? [behind] : []),
];

const FOUND_BY_DNS = [
  "option httpchk GET /status/v1/simple",
  "server-template m 1-3 _puppet._tcp.example.com resolvers dns resolve-opts allow-dup-ip init-addr none check inter 200ms",
];

const instanceOf = ({ socketPath, mapPath }: HaproxyServer) =>
  new HaproxyInstance({ name: "it", connect: { path: socketPath } }, { backend: "puppet", mapFile: mapPath });

const stateOf = async (haproxy: HaproxyServer, which = "it") =>
  (await instanceOf(haproxy).look(signal())).servers.find(({ name }) => name === which)?.state;

/** The server that HAProxy sends a node's request to. */
async function servedBy(haproxy: HaproxyServer, node = NODE): Promise<string | null> {
  const response = await fetch(`http://127.0.0.1:${haproxy.ports.frontend}/`, {
    headers: { "x-node-name": node },
  });
  await response.arrayBuffer();
  return response.headers.get("x-server");
}

describe.each(haproxyBinaries())("HAProxy $version", ({ bin, version }) => {
  test.each(WAYS)("says $state where $way", async (way) => {
    const [it, other] = await Promise.all(["it", "other"].map((one) => startMaster(one)));
    if (it === undefined || other === undefined) throw new Error("no masters");
    const agent = net
      .createServer((socket) => socket.on("error", () => undefined).end(`${way.agent}\n`))
      .listen(0, "127.0.0.1");
    await once(agent, "listening");
    const { port } = agent.address() as net.AddressInfo;
    try {
      await withHaproxy(
        { bin, map: [[NODE, "it"]], backendLines: backendOf(it, other, port, way) },
        async (haproxy) => {
          const statusOf = async () => (await instanceOf(haproxy).loads(signal()))[0]?.status;
          for (const command of way.commands ?? []) await runtimeCommand(haproxy.socketPath, command);
          if (way.dies) await it.stop();
          if (way.leaves) {
            await expect.poll(statusOf).toMatch(/^UP/);
            it.nodes = new Set();
          }
          if (way.status) await expect.poll(statusOf).toMatch(way.status);
          const said = async () => {
            const state = await stateOf(haproxy);
            // The state is right if HAProxy behaves like that.
            const serves = (await servedBy(haproxy)) === "it";
            const [load] = await instanceOf(haproxy).loads(signal());
            return { state, serves, load };
          };
          const { state } = way;
          const serves = state !== "down";
          const load = { name: "it", state, up: serves };
          await expect.poll(said).toMatchObject({ state, serves, load });
          if (state === "up") return;
          for (let others = 0; others < 6; others += 1)
            expect(await servedBy(haproxy, "other.example.com")).toMatch(/^(other|rest)$/);
        },
      );
    } finally {
      agent.close();
      for (const master of [it, other]) await master.stop();
    }
  });

  test("takes servers that DNS has found (SRV) for what they are: up, with their nodes at home", async () => {
    const names = [1, 2].map((index) => `puppet${index}.example.com`);
    const masters = await Promise.all(names.map((one) => startMaster(one)));
    const nameserver = await startNameserver({
      addresses: Object.fromEntries(names.map((name) => [name, "127.0.0.1"])),
      services: { "_puppet._tcp.example.com": masters.map(({ name, port }) => ({ name, port })) },
    });
    try {
      const byDns = { bin, nameserverPort: nameserver.port, backendLines: FOUND_BY_DNS };
      await withFleetLab([byDns], async (lab) => {
        const sync = await lab.newSync();
        const states = async () => (await sync.request({})) && sync.servers()?.map(({ state }) => state);
        await expect.poll(states).toEqual(["up", "up"]);
        await lab.run(NODE, "puppet1.example.com", -1_000);
        await sync.request({});
        const [haproxy] = lab.haproxys;
        if (haproxy === undefined) throw new Error("no HAProxy");
        expect(await runtimeCommand(haproxy.socketPath, "show servers state puppet")).toMatch(/ 2 64 /);
        const home = (await haproxy.showMap()).get(NODE);
        expect(await servedBy(haproxy)).toBe(home);
        await lab.run(NODE, "puppet2.example.com");
        expect(await sync.request({})).toMatchObject({ moved: 1, displaced: 0 });
        expect(troublesOf({ pass: sync.lastReport, targets: sync.targets() })).toEqual([]);
        nameserver.services["_puppet._tcp.example.com"] = [];
        await expect.poll(states).not.toContain("up");
      });
    } finally {
      await nameserver.stop();
      for (const master of masters) await master.stop();
    }
  });

  test("finds a producer's server however its line writes the name: capitals, a dot at the end", async () => {
    const names = [1, 2, 3].map((index) => `puppet${index}.example.com`);
    const nameserver = await startNameserver({
      addresses: Object.fromEntries(names.map((name) => [name, "127.0.0.1"])),
      services: {},
    });
    const written = ["puppet1.example.com.", "Puppet2.Example.COM", "puppet3.example.com"];
    const backendLines = written.map(
      (host, index) => `server m${index + 1} ${host}:8140 resolvers dns init-addr none`,
    );
    try {
      await withFleetLab([{ bin, nameserverPort: nameserver.port, backendLines }], async (lab) => {
        const sync = await lab.newSync({ SASORI_MASTER_ALIASES: "Puppet9.example.com.=m3" });
        const states = async () => (await sync.request({})) && sync.servers()?.map(({ state }) => state);
        await expect.poll(states).toEqual(["up", "up", "up"]);
        await lab.run("node1.example.com", "puppet1.example.com");
        await lab.run("node2.example.com", "puppet2.example.com");
        await lab.run("node3.example.com", "PUPPET3.example.com");
        await lab.run("node9.example.com", "puppet9.example.com");
        expect(await sync.request({})).toMatchObject({ nodes: 4, unroutable: { nodes: 0 } });
        expect(Object.fromEntries((await lab.haproxys[0]?.showMap()) ?? [])).toEqual({
          ...{ "node1.example.com": "m1", "node2.example.com": "m2" },
          ...{ "node3.example.com": "m3", "node9.example.com": "m3" },
        });
      });
    } finally {
      await nameserver.stop();
    }
  });

  test("takes a server that is a socket file for a master, but not the gateway's ways to itself", async () => {
    const folder = mkdtempSync(join(tmpdir(), "sasori-socket-"));
    const socket = join(folder, "it.sock");
    const server = http.createServer((_, response) => response.end()).listen(socket);
    await once(server, "listening");
    const backendLines = ["heal1", "pools", "it"].map((name) => `server ${name} unix@${socket}`);
    backendLines.push("server-template slot 2 _puppet._tcp.example.com resolvers dns init-addr none");
    const nameserverPort = await freePort(); // Nobody answers there.
    try {
      await withHaproxy({ bin, map: [[NODE, "it"]], backendLines, nameserverPort }, async (haproxy) => {
        const servers = async () => (await instanceOf(haproxy).look(signal())).servers;
        const it = { name: "it", host: "it", address: "" };
        expect(await servers()).toMatchObject([{ ...it, state: "up", up: true }]);
        expect(await servedBy(haproxy)).toBe("it");
        await runtimeCommand(haproxy.socketPath, STATE("drain"));
        expect(await servers()).toMatchObject([{ ...it, state: "drained", up: true }]);
        expect(await instanceOf(haproxy).loads(signal())).toMatchObject([{ name: "it", state: "drained" }]);
      });
    } finally {
      server.close();
      rmSync(folder, { recursive: true });
    }
  });

  // HAProxy 3.3 and newer refuse such names.
  test.skipIf(isFrom(version, 3, 3))("tells the load of a backend that has the name of a frontend", () =>
    withHaproxy(
      {
        bin,
        config: ({ socketPath, mapPath, ports }) => `global
  stats socket ${socketPath} level admin
${DEFAULTS}frontend puppet
  bind 127.0.0.1:${ports.frontend}
  http-request set-var(txn.master) req.hdr(X-Node-Name),map_str(${mapPath})
  default_backend puppet
backend puppet
  server it 127.0.0.1:1
backend other
  server it 127.0.0.1:1
`,
      },
      async (haproxy) => {
        const loads = await instanceOf(haproxy).loads(signal());
        expect(loads.map(({ name, status }) => [name, status])).toEqual([["it", "no check"]]);
      },
    ),
  );

  test("tells of a drained master by its own word, and of a weight what it does", () =>
    withGateway({ bin, map: [[NODE, "master1"]] }, async ({ haproxy, ask }) => {
      const told = async () => {
        const { servers } = await instanceOf(haproxy).look(signal());
        return troublesOf({ pass: undefined, targets: [{ target: "it", servers }] });
      };
      const states = async () => (await instanceOf(haproxy).look(signal())).servers.map(({ state }) => state);
      await expect.poll(states).toEqual(["up", "up", "up"]);
      expect(await told()).toEqual([]);
      const command = (text: string) =>
        runtimeCommand(haproxy.socketPath, `set server puppet/master1 ${text}`);
      await command("state drain");
      expect((await ask(NODE)).headers.get("x-served-by")).toBe("master1");
      expect(await told()).toEqual([
        {
          severity: "warning",
          code: "drained",
          where: "master1",
          what: "master1 is drained (it): it still serves its own nodes, but gets no others",
          remedy: expect.stringContaining("sasori drain master1"),
        },
      ]);
      await command("state ready");
      expect(await told()).toEqual([]);
      await command("weight 7");
      expect(await told()).toMatchObject([
        { code: "weight", where: "master1", what: expect.stringMatching(/7 in it.*other masters' nodes/) },
      ]);
      await command("weight 0");
      expect(await told()).toEqual([]);
    }));
});
