// What the gateway's own operators and neighbours may do: reloads that fail, processes that were to take over and could
// not, squatters on the gateway's names, drained masters, weights that somebody gave them, servers that DNS takes away.
// Meanwhile all requests are judged, and after each a wrong route must still heal.

import { once } from "node:events";
import { readFile, rename, rm, writeFile } from "node:fs/promises";
import { connect, createServer, type Server } from "node:net";
import path from "node:path";
import { describe, expect, test } from "vitest";
import { Child } from "../support/child.js";
import { startNameserver } from "../support/dns.js";
import { withFleetLab } from "../support/fleet-lab.js";
import { runtimeCommand } from "../support/haproxy-server.js";
import { haproxyBinaries } from "../support/parts.js";
import type { PuppetdbServer } from "../support/puppetdb-server.js";
import { Arena, type Gateway, MASTERS } from "./arena.js";
import { enterCases } from "./ledger.js";

const FEW = 0.02;
const NODES_HEALED = 3;

/** How long HAProxy waits for sasori's answer about a node: DEADLINE_SECONDS in heal.lua. */
const HEALER_WAITS_MS = 2_000;

const SASORI_DOWN = "Server sasori/sasori is DOWN";

/** What makes a configuration unusable. Each is found by another part of HAProxy, at another moment of its start. */
const MISTAKES = [
  // HAProxy has the running process let go of its ports for the two seconds in which the new one tries to bind.
  { what: "a port is taken", lines: "bind 127.0.0.1:TAKEN", says: /cannot bind socket/, pauses: true },
  {
    what: "a file is missing",
    lines: "bind unix@DIR/more.sock\n  use_backend %[path,map(DIR/no.map)]",
    says: /no\.map/,
    pauses: false,
  },
  {
    what: "a certificate is bad",
    lines: "bind unix@DIR/more.sock ssl crt DIR/bad.pem",
    says: /bad\.pem/,
    pauses: false,
  },
];

export function gatewayFaults(puppetdb: () => PuppetdbServer): void {
  const withArena = (masterWorker: boolean, use: (arena: Arena) => Promise<void>) =>
    Arena.with({ puppetdb: puppetdb(), masterWorker }, use);

  describe("The gateway", () => {
    test("goes on and heals after a reload that failed, and after the next one, which did not (-W)", () =>
      withArena(true, (arena) =>
        withMistakes(arena, "a reload", async (gateway, file, text, mistake) => {
          const good = await readFile(file, "utf8");
          await writeFile(file, `${good}\n${text}`);
          const before = gateway.haproxy.output().length;
          const isUp = mistake.pauses ? arena.down(gateway) : () => undefined;
          process.kill(gateway.haproxy.pid, "SIGUSR2");
          await arena.until("the reload has failed", () =>
            mistake.says.test(gateway.haproxy.output().slice(before)),
          );
          await arena.until("its master process answers", async () => {
            await runtimeCommand(gateway.haproxy.masterSocketPath, "show version");
            return true;
          });
          await listens(arena, gateway);
          isUp();
          await heals(arena, gateway);
          await writeFile(file, good);
          await gateway.haproxy.reload();
          await heals(arena, gateway);
        }),
      ));

    test("goes on and heals after a process that was to take over has failed (-sf)", () =>
      withArena(false, (arena) =>
        withMistakes(arena, "a new process (-sf)", async (gateway, file, text, mistake) => {
          const more = path.join(gateway.haproxy.dir, "more.cfg");
          await writeFile(
            more,
            `defaults own\n  mode http\n  timeout client 1s\n${text.replace("more", "more from own")}`,
          );
          const bin = haproxyBinaries().find(({ version }) => version === gateway.version)?.bin ?? "";
          const { pid, socketPath } = gateway.haproxy;
          const isUp = mistake.pauses ? arena.down(gateway) : () => undefined;
          const over = new Child(bin, ["-db", "-f", file, "-f", more, "-x", socketPath, "-sf", String(pid)]);
          expect([await over.code(), over.printed]).toEqual([1, expect.stringMatching(mistake.says)]);
          await listens(arena, gateway);
          isUp();
          await heals(arena, gateway);
        }),
      ));

    test("takes its names back from who has squatted on them, and hands him nothing", () =>
      withArena(true, async (arena) => {
        await onEach(arena, "gateway: somebody listens on every name that it uses", async (gateway) => {
          const { socketPath } = gateway.haproxy;
          const isUp = arena.down(gateway);
          await gateway.haproxy.kill();
          const files = ["", ".heal", ".sasori", ".heal.new", ".sasori.new"].map(
            (end) => `${socketPath}${end}`,
          );
          const abstract = [...files, "heal", "heal1", "sasori", "sasori-heal"].map((name) => `\0${name}`);
          const squatters = await Promise.all([...files, ...abstract].map(squat));
          try {
            await gateway.haproxy.restart();
            isUp();
            await heals(arena, gateway);
            // sasori itself asks at HAPROXY_SOCKET while nobody else is there.
            const visited = squatters.slice(1).map(({ visitors }) => visitors());
            expect(visited).toEqual(visited.map(() => 0));
          } finally {
            for (const { server } of squatters) server.close();
          }
        });
      }));

    test("serves the nodes of a drained master, and sasori says what a weight does", () =>
      withArena(true, async (arena) => {
        const set = ({ haproxy }: Gateway, what: string) =>
          runtimeCommand(haproxy.socketPath, `set server puppet/${MASTERS[0]} ${what}`);
        await onEach(arena, "gateway: a master is drained", async (gateway) => {
          await set(gateway, "state drain");
          await untilTold(arena, "drained");
          const before = arena.requests;
          await arena.moveShare(FEW);
          await heals(arena, gateway);
          await arena.until("more requests", () => arena.requests > before + 100);
          await set(gateway, "state ready");
        });
        await onEach(arena, "gateway: a master has got a weight", async (gateway) => {
          await set(gateway, "weight 100");
          await untilTold(arena, "weight");
          const before = arena.requests;
          await arena.until("more requests", () => arena.requests > before + 100);
          await set(gateway, "weight 0");
          await heals(arena, gateway);
        });
        await arena.until(
          "nothing is left to tell",
          async () => (await arena.status()).troubles.length === 0,
        );
      }));

    test("loses servers that DNS (SRV) names: their nodes go where they check in, and find them again when they are back", async () => {
      for (const { bin } of haproxyBinaries()) await losesServers(bin);
      enterCases("gateway: DNS takes servers (SRV) away, and gives them back", haproxyBinaries().length);
    });
  });
}

type Mistake = (typeof MISTAKES)[number];

/** Each mistake for each HAProxy: one row for all of a mistake. */
async function withMistakes(
  arena: Arena,
  what: string,
  act: (gateway: Gateway, file: string, text: string, mistake: Mistake) => Promise<void>,
): Promise<void> {
  const taken = createServer().listen(0, "127.0.0.1");
  await once(taken, "listening");
  const { port } = taken.address() as { port: number };
  try {
    for (const mistake of MISTAKES) {
      await onEach(arena, `gateway: ${what} fails, ${mistake.what}`, async (gateway) => {
        const { dir } = gateway.haproxy;
        await writeFile(
          path.join(dir, "bad.pem"),
          "-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n",
        );
        const lines = mistake.lines.replaceAll("TAKEN", String(port)).replaceAll("DIR", dir);
        await act(gateway, path.join(dir, "haproxy.cfg"), `frontend more\n  ${lines}\n`, mistake);
      });
    }
  } finally {
    taken.close();
  }
}

/** The fault for each HAProxy in its turn, as tries of one row. */
function onEach(arena: Arena, fault: string, act: (gateway: Gateway) => Promise<void>): Promise<void> {
  const each = async (index: number) => {
    const gateway = arena.gateways[index];
    if (gateway !== undefined) await act(gateway);
  };
  return arena.suffer(fault, each, arena.gateways.length);
}

/** It may have let go of its ports for a process that was to take over. It takes them back a moment after that has failed. */
function listens(arena: Arena, { haproxy }: Gateway): Promise<void> {
  return arena.until("it listens again", async () => {
    const socket = connect(haproxy.ports.frontend, "127.0.0.1");
    await once(socket, "connect").finally(() => socket.destroy());
    return true;
  });
}

/** Nodes move, this HAProxy is not told, and a request for each of them finds its master all the same. */
async function heals(arena: Arena, gateway: Gateway): Promise<void> {
  let release = () => {};
  const held = new Promise<void>((resolve) => {
    release = resolve;
  });
  // Its health check of sasori may have failed, or a new process has not made one yet.
  await arena.until("HAProxy finds sasori up", async () =>
    / sasori 127\.0\.0\.1 2 /.test(
      await runtimeCommand(gateway.haproxy.socketPath, "show servers state sasori"),
    ),
  );
  const said = gateway.haproxy.output().length;
  gateway.front.tap = { line: (text) => (/^(set|add|prepare|commit) map/.test(text) ? held : undefined) };
  try {
    // One that moved a moment ago may be known at its master in between.
    const nodes = arena.rested().filter((node) => arena.owners.get(node) !== MASTERS[2]);
    const moved = Array.from(
      { length: NODES_HEALED },
      () => nodes[Math.floor(Math.random() * nodes.length)] ?? "",
    );
    await arena.move([...new Set(moved)]);
    for (const node of new Set(moved)) {
      const url = `http://127.0.0.1:${gateway.haproxy.ports.frontend}/`;
      const [unanswered, began] = [await unansweredBy(arena), performance.now()];
      const answer = await fetch(url, { headers: { "x-node-name": node, connection: "close" } });
      const { master } = (await answer.json()) as { master?: string };
      const took = performance.now() - began;
      expect([node, answer.status, master]).toEqual([node, 200, arena.owners.get(node)]);
      const route = answer.headers.get("x-route");
      if (route === "learned" || route === "mapped") continue;
      // HAProxy may ask the masters only if sasori was too slow, could not say, or missed a health check meanwhile.
      expect(route).toBe("redispatched");
      if (took >= HEALER_WAITS_MS || gateway.haproxy.output().includes(SASORI_DOWN, said)) continue;
      await arena.until(
        `sasori counts why it did not know where ${node} is`,
        async () => (await unansweredBy(arena)) > unanswered,
        undefined,
        () => `${route} after ${took} ms`,
      );
    }
  } finally {
    release();
    gateway.front.tap = {};
  }
}

/** How often sasori could not tell HAProxy where a node is. */
async function unansweredBy(arena: Arena): Promise<number> {
  const counts = /^sasori_resolve_duration_seconds_count\{answer="[A-Z_]+"\} (\d+)$/gm;
  return [...(await arena.metrics()).matchAll(counts)].reduce((sum, [, count]) => sum + Number(count), 0);
}

const untilTold = (arena: Arena, code: string) =>
  arena.until(`the status tells of ${code}`, async () =>
    (await arena.status()).troubles.some((trouble) => trouble.code === code),
  );

/** Listens there as another program would, and counts who comes. */
async function squat(name: string): Promise<{ server: Server; visitors(): number }> {
  let count = 0;
  const server = createServer((socket) => {
    count += 1;
    socket.destroy();
  });
  if (!name.startsWith("\0")) await rm(name, { force: true });
  server.listen(name.startsWith("\0") ? { path: name } : `${name}.squat`);
  await once(server, "listening");
  // Not by its own name, which Node would remove when it closes.
  if (!name.startsWith("\0")) await rename(`${name}.squat`, name);
  return { server, visitors: () => count };
}

async function losesServers(bin: string): Promise<void> {
  const names = ["puppet1.example.com", "puppet2.example.com"];
  const services = names.map((name, index) => ({ name, port: 18141 + index }));
  const nameserver = await startNameserver({
    addresses: Object.fromEntries(names.map((name) => [name, "127.0.0.1"])),
    services: { "_puppet._tcp.example.com": services },
  });
  const template = "server-template m 1-2 _puppet._tcp.example.com";
  const backendLines = [`${template} resolvers dns resolve-opts allow-dup-ip init-addr none`];
  try {
    await withFleetLab([{ bin, nameserverPort: nameserver.port, backendLines }], async (lab) => {
      const sync = await lab.newSync();
      const states = async () => {
        await sync.request({});
        return sync
          .servers()
          ?.map(({ host, state }) => `${host} ${state}`)
          .sort();
      };
      const up = names.map((name) => `${name} up`);
      await expect.poll(states).toEqual(up);
      await lab.run("node1.example.com", names[0] ?? "", -1_000);
      await lab.run("node2.example.com", names[1] ?? "", -1_000);
      await sync.request({});
      expect(sync.lastReport).toMatchObject({ nodes: 2, displaced: 0, unroutable: { nodes: 0 } });
      nameserver.services["_puppet._tcp.example.com"] = services.slice(1);
      await expect.poll(states).toEqual(up.slice(1));
      await lab.run("node1.example.com", names[1] ?? "");
      expect(await sync.request({})).toMatchObject({ moved: 1, unroutable: { nodes: 0 } });
      nameserver.services["_puppet._tcp.example.com"] = services;
      await expect.poll(states).toEqual(up);
      await lab.run("node1.example.com", names[0] ?? "", 1_000);
      expect(await sync.request({})).toMatchObject({ moved: 1, displaced: 0, unroutable: { nodes: 0 } });
    });
  } finally {
    await nameserver.stop();
  }
}
