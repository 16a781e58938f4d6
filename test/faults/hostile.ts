// Hostile input, end to end and at each edge. A name never becomes a second command, a cut answer never a short map,
// a request without the token changes nothing, and nothing but a SasoriError is ever thrown.

import { createHash } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { connect, createServer, type Server } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { readConfig } from "../../src/config.js";
import { SasoriError } from "../../src/errors.js";
import { isCertname, isMaster } from "../../src/node-map.js";
import { JsonRows } from "../../src/source/json-rows.js";
import { HaproxyInstance } from "../../src/target/haproxy.js";
import { MapFile } from "../../src/target/map-file.js";
import { randomSeed } from "../model/run.js";
import { runtimeCommand, withHaproxy } from "../support/haproxy-server.js";
import { haproxyBinaries } from "../support/parts.js";
import { patient } from "../support/patience.js";
import type { PuppetdbServer } from "../support/puppetdb-server.js";
import { Arena, LONG } from "./arena.js";
import { enterCases } from "./ledger.js";

/** Per property: the short form is part of CI, the long one has more than 100,000 in all. */
const CASES = LONG
  ? { pure: 60_000, replies: 20_000, http: 20_000, names: 3_000 }
  : { pure: 3_000, replies: 600, http: 600, names: 300 };

/** On a busy machine too nothing takes as long, so silence is a fault. */
const ANSWER_DEADLINE_MS = 10_000;

/** For names that are not made within a property, which would print its own. */
const SEED = Number(process.env.HOSTILE_SEED ?? randomSeed());
const BY_SEED = `HOSTILE_SEED=${SEED}`;

/** What means something to the Runtime API, the map file, a shell, SQL, JSON or a terminal. */
const SHARP = [
  ";",
  " ",
  "\t",
  "\n",
  "\r\n",
  "\\",
  "<<",
  "#",
  "@1",
  "$(x)",
  "`x`",
  "'",
  '"',
  "\u001b[2J",
  "%0a",
  "..",
  "/",
  "\u00e9",
  "\u{1f980}",
  "\ufeff",
  "A",
];
const COMMANDS = [
  "disable server puppet/master1",
  "clear map #0",
  "set map #0 node1 master2",
  "shutdown sessions server puppet/master1",
  "add map #0 <<\nx master1\n",
  "prompt",
];

const legal = fc.stringMatching(/^[a-z0-9_][a-z0-9._-]{0,30}$/);
const sharp = fc.constantFrom(...SHARP);
/** A name with something in it that should not be there. */
const hostileName = fc.oneof(
  fc.tuple(legal, sharp, fc.constantFrom(...COMMANDS)).map((parts) => parts.join("")),
  fc.tuple(legal, sharp, legal).map((parts) => parts.join("")),
  fc.tuple(sharp, legal).map((parts) => parts.join("")),
  fc.tuple(legal, sharp).map((parts) => parts.join("")),
  fc.string({ unit: "binary", minLength: 1, maxLength: 40 }),
  fc.constant("a".repeat(300)),
);
/** Cuts, changes and puts in: what a broken or hostile peer makes of a good answer. */
const mutation = fc.record({
  at: fc.double({ min: 0, max: 1, noNaN: true }),
  drop: fc.nat(12),
  put: fc.oneof(
    fc.constant(""),
    sharp,
    fc.constantFrom("{", "}", "[", "]", ",", "null", "\n> ", "\n\n> ", "[3]: x", "entry_cnt=0"),
  ),
});
const mutate = (text: string, mutations: { at: number; drop: number; put: string }[]) =>
  mutations.reduce((result, { at, drop, put }) => {
    const start = Math.floor(at * result.length);
    return result.slice(0, start) + put + result.slice(start + drop);
  }, text);

export function hostileInput(puppetdb: () => PuppetdbServer): void {
  describe("Hostile input", () => {
    test("in PuppetDB never becomes a command: HAProxy holds the legal names, and its servers are as they were", () =>
      Arena.with({ puppetdb: puppetdb(), nodes: 100 }, async (arena) => {
        const names = [
          ...new Set(fc.sample(hostileName, { numRuns: CASES.names, seed: SEED }).map(wellFormed)),
        ].filter((name) => !name.includes("\0") && name.trim() !== "");
        const before = await states(arena);
        await arena.suffer(`hostile names in PuppetDB: ${names.length}, ${BY_SEED}`, async () => {
          // As certnames of nodes, and as producers of a node with a good name.
          await insert(
            arena,
            names.map((name) => ({ name, producer: "master1" })),
          );
          await insert(
            arena,
            names.slice(0, 200).map((producer, index) => ({ name: `victim${index}.example`, producer })),
          );
          for (const name of names) if (isCertname(name)) arena.place(name, "master1");
          const report = await arena.sync({ full: true });
          expect(report, BY_SEED).toMatchObject({ outcome: "done" });
          expect(report.refused.count, BY_SEED).toBe(
            Math.min(1_000, names.filter((name) => !isCertname(name)).length),
          );
          expect(report.unroutable.nodes, BY_SEED).toBe(Math.min(200, names.length));
        });
        expect(await states(arena), BY_SEED).toEqual(before);
        // Nor by the other ways in: the gateway's header and path, the resolver, the API.
        for (const name of names.slice(0, 200)) {
          await fetch(
            `${arena.url}/api/v1/resolve/${encodeURIComponent(name)}?not=${encodeURIComponent(name)}`,
          );
          await fetch(`${arena.url}/api/v1/nodes/${encodeURIComponent(name)}`, {
            method: "PUT",
            headers: { "content-type": "application/json" },
            body: JSON.stringify({ master: name }),
          });
          const port = arena.gateways[0]?.haproxy.ports.frontend;
          await fetch(`http://127.0.0.1:${port}/nodes/${encodeURIComponent(name)}/`);
        }
        expect(await states(arena), BY_SEED).toEqual(before);
        expect(await arena.differences()).toEqual([]);
      }));

    test("makes no certname or master that is more than one word of one command", () => {
      counted("hostile names, parsed", CASES.pure, () =>
        fc.assert(
          fc.property(fc.oneof(hostileName, legal), (name) => {
            if (isCertname(name)) expect(name).toMatch(/^[a-z0-9_.-]{1,253}$/);
            if (isMaster(name)) expect(name).toMatch(/^[A-Za-z0-9_:.-]{1,128}$/);
          }),
          { numRuns: CASES.pure },
        ),
      );
    });

    test("in PuppetDB's answers: taken exactly when it is JSON, whatever the pieces in which it comes", () => {
      const row = fc.record({
        certname: fc.oneof(legal, hostileName),
        producer: fc.option(legal),
        deep: fc.jsonValue({ maxDepth: 2 }),
      });
      counted("answers of PuppetDB, mutated", CASES.pure, () =>
        fc.assert(
          fc.property(
            fc.array(row, { maxLength: 6 }),
            fc.array(mutation, { maxLength: 3 }),
            fc.array(fc.nat(200), { maxLength: 5 }),
            (rows, mutations, cuts) => {
              const text = mutate(JSON.stringify(rows), mutations);
              expect(readRows(text, cuts)).toEqual(parsedArray(text));
            },
          ),
          { numRuns: CASES.pure },
        ),
      );
    });

    test("in HAProxy's replies: a cut one is never a short map, a changed one never an illegal name, and it ends", async () => {
      const [newest] = haproxyBinaries().slice(-1);
      const entries = Array.from(
        { length: 60 },
        (_, index) => [`node${index}.example`, `master${(index % 3) + 1}`] as const,
      );
      const servers = [1, 2, 3].map((number) => ({ name: `master${number}`, port: 18140 + number }));
      await withHaproxy({ bin: newest?.bin ?? "", servers, map: entries }, async (haproxy) => {
        const replies = new Map<string, string>([
          ["prompt", ""],
          ["set severity-output number", ""],
        ]);
        for (const command of ["show info", "show map", "show servers state puppet"]) {
          replies.set(command, (await runtimeCommand(haproxy.socketPath, command)).replace(/\n+$/, "\n"));
        }
        const id = /^(-?\d+) \(/m.exec(replies.get("show map") ?? "")?.[1];
        replies.set(
          `show map #${id}`,
          (await runtimeCommand(haproxy.socketPath, `show map #${id}`)).replace(/\n+$/, "\n"),
        );
        const peer = await startLiar(path.join(haproxy.dir, "liar.sock"), replies);
        const instance = new HaproxyInstance(
          { name: "liar", connect: { path: peer.path } },
          { backend: "puppet", mapFile: haproxy.mapPath },
        );
        expect((await instance.read(AbortSignal.timeout(patient(5_000)))).routes.size).toBe(60);
        const property = fc.asyncProperty(
          fc.constantFrom(...replies.keys()),
          fc.array(mutation, { minLength: 1, maxLength: 3 }),
          fc.boolean(),
          async (command, mutations, cut) => {
            const whole = peer.whole(command);
            const at = Math.floor((mutations[0]?.at ?? 0) * whole.length);
            peer.lie = { command, text: cut ? whole.slice(0, at) : mutate(whole, mutations) };
            const result = await instance
              .read(AbortSignal.timeout(patient(5_000)))
              .catch((error: unknown) => error);
            if (result instanceof Error) {
              expect(result).toBeInstanceOf(SasoriError);
              expect((result as SasoriError).code).toMatch(/^HAPROXY_/);
              return;
            }
            const { routes } = result as { routes: Map<string, string> };
            expect([...routes.keys()].every(isCertname)).toBe(true);
            // Only what a person sees as whole is taken: a cut reply has no end.
            expect(cut).toBe(false);
          },
        );
        await countedAsync("replies of HAProxy, cut and mutated", CASES.replies, () =>
          fc.assert(property, { numRuns: CASES.replies }),
        );
        await peer.close();
      });
    });

    test("in the map file: sasori reads of it what HAProxy does", async () => {
      const line = fc.oneof(
        fc
          .tuple(legal, fc.constantFrom(" ", "\t", "  ", " \t "), fc.constantFrom("master1", "master2"))
          .map((parts) => parts.join("")),
        fc
          .tuple(
            fc.constantFrom("", " ", "#", "\t"),
            hostileName,
            fc.constantFrom(" ", "\t", ""),
            fc.constantFrom("master1", "x y", ""),
          )
          .map((parts) => parts.join("")),
      );
      const folder = await mkdtemp(path.join(tmpdir(), "sasori-hostile-"));
      for (const { bin, version } of haproxyBinaries()) {
        const lines = fc
          .sample(line, { numRuns: CASES.names * 3, seed: SEED })
          .map((text) => text.replaceAll(/[\0\n\r]/g, ""));
        // HAProxy does not start with a key that has no value.
        const usable = lines.filter(
          (text) => text.startsWith("#") || text.trim() === "" || /^[ \t]*[^ \t]+[ \t]+[^ \t]/.test(text),
        );
        const file = path.join(folder, `${version}.map`);
        await writeFile(file, `${usable.join("\n")}\n`);
        await withHaproxy(
          { bin, config: (at) => configWithMap(at.socketPath, at.ports.frontend, file) },
          async (haproxy) => {
            const seen = new Map<string, string>();
            const inSmallLetters = new Set<string>(); // Keys that differ in letter case only are the same node.
            for (const text of (await runtimeCommand(haproxy.socketPath, `show map ${file}`)).split("\n")) {
              const [, key, value] = /^0x[0-9a-f]+ (\S+) (.*)$/.exec(text) ?? [];
              if (key !== undefined && isCertname(key) && !seen.has(key)) seen.set(key, value ?? "");
              inSmallLetters.add(key?.toLowerCase() ?? "");
            }
            const { routes } = await new MapFile(file).read();
            const usableBySasori = [...seen].filter(([, value]) => isMaster(value));
            for (const [key, value] of usableBySasori)
              expect([key, routes.get(key as never)], BY_SEED).toEqual([key, value]);
            expect(
              [...routes.keys()].filter((key) => !inSmallLetters.has(key)),
              BY_SEED,
            ).toEqual([]);
          },
        );
      }
      enterCases(`lines of a map file, as HAProxy reads them, ${BY_SEED}`, CASES.names * 9);
      await rm(folder, { recursive: true, force: true });
    });

    test("in the HTTP API: without the token nothing changes, and every answer is an answer", async () => {
      const folder = await mkdtemp(path.join(tmpdir(), "sasori-hostile-"));
      const token = path.join(folder, "token");
      await writeFile(token, "the-right-token\n");
      await Arena.with(
        { puppetdb: puppetdb(), nodes: 60, env: { SASORI_API_TOKEN_FILE: token } },
        async (arena) => {
          const text = fc.oneof(hostileName, legal);
          const target = fc.oneof(
            fc.constantFrom(
              "/api/v1/sync",
              "/api/v1/status",
              "/healthz",
              "/metrics",
              "/",
              "*",
              "//",
              "/api/v1/nodes/",
              "/api/v1/displaced",
              "/api/v1/events",
              "/api/v1/moves",
              "/api/v1/masters",
              "/api/v1/instances",
              "/openapi.json",
            ),
            text.map((name) => `/api/v1/nodes/${encodeURIComponent(wellFormed(name))}`),
            text.map(
              (name) =>
                `/api/v1/resolve/${encodeURIComponent(wellFormed(name))}?not=${encodeURIComponent(wellFormed(name))}`,
            ),
            text.map((name) => {
              const value = encodeURIComponent(wellFormed(name));
              return `/api/v1/nodes?q=${value}&master=${value}&limit=${value}&cursor=${value}`;
            }),
            text.map((name) => `/api/v1/nodes/${name.replaceAll(/[\s\0]/g, "")}`),
          );
          const message = fc.record({
            method: fc.constantFrom("GET", "PUT", "POST", "DELETE", "PATCH", "OPTIONS", "TRACE", "get", "X"),
            target,
            headers: fc.array(
              fc.oneof(
                fc.constantFrom(
                  "Content-Type: application/json",
                  "Content-Length: -1",
                  "Transfer-Encoding: chunked",
                  "Authorization: Bearer",
                  "Authorization: Bearer the-wrong-token",
                  "Authorization: Basic eDp5",
                  "Host: x",
                  "Expect: 100-continue",
                  "Content-Length: 99999999999",
                ),
                fc.tuple(legal, text).map(([name, value]) => `${name}: ${value.replaceAll(/[\r\n\0]/g, "")}`),
              ),
              { maxLength: 5 },
            ),
            body: fc.oneof(
              fc.constantFrom(
                "",
                "{}",
                '{"full":true}',
                '{"master":"master3"}',
                "[",
                "null",
                '{"approve":"../x"}',
                '{"__proto__":{"full":true}}',
              ),
              text,
            ),
          });
          const property = fc.asyncProperty(message, async ({ method, target, headers, body }) => {
            const length = `Content-Length: ${Buffer.byteLength(body)}`;
            const head = [
              `${method} ${target} HTTP/1.1`,
              "Host: localhost",
              "Connection: close",
              ...headers,
              length,
            ];
            const answer = await exchange(arena.port, `${head.join("\r\n")}\r\n\r\n${body}`);
            const status = Number(/^HTTP\/1\.1 (\d{3}) /.exec(answer)?.[1] ?? 0);
            // None is hung up on, nor left without an answer: that would be 0.
            expect([
              200, 400, 401, 403, 404, 405, 406, 408, 411, 413, 414, 415, 417, 429, 431, 501, 502, 503, 504,
            ]).toContain(status);
            if (status === 200 && method !== "OPTIONS") expect(method).toBe("GET");
          });
          await arena.suffer(`hostile requests to the API: ${CASES.http}`, async () => {
            await fc.assert(property, { numRuns: CASES.http });
            expect((await fetch(`${arena.url}/healthz`)).status).toBe(200);
            expect((await arena.status()).nodes).toBe(60);
          });
          expect(arena.sasori?.printed).not.toContain('"code":"INTERNAL"');
        },
      );
      await rm(folder, { recursive: true, force: true });
    });

    test("in the environment: taken whole, or refused with every problem named", () => {
      const names = ["URL", "CERT", "KEY", "TOKEN_FILE"].map((name) => `SASORI_PUPPETDB_${name}`);
      const more = [
        "HAPROXY",
        "BACKEND",
        "MAP_FILE",
        "MAP_NAME",
        "MASTER_ALIASES",
        "NEW_MASTERS",
        "NEW_MASTER_PORT",
        "NEW_MASTER_LIMIT",
        "NEW_MASTER_OPTIONS",
        "PROBE_PATH",
        "SCHEDULE",
        "MAX_REMOVED",
        "LISTEN",
        "STATE_FILE",
        "LOG_LEVEL",
        "TYPO",
      ].map((name) => `SASORI_${name}`);
      const value = fc.oneof(
        fc.constantFrom(
          "http://x",
          "https://u:p@x",
          "/a.sock",
          "tcp://h:1",
          "none",
          "0.0.0.0:1",
          "127.0.0.1:0",
          "10%",
          "a=b",
          "* * * * *",
          "8140",
          "check weight 0; shutdown",
          "check\ncommit",
          "/x/{certname}",
          "toString",
          "__proto__",
        ),
        hostileName,
      );
      counted("environments", CASES.pure, () =>
        fc.assert(
          fc.property(
            fc.dictionary(fc.constantFrom(...names, ...more), value, { noNullPrototype: true }),
            (values) => {
              const env = {
                SASORI_PUPPETDB_URL: "http://x",
                SASORI_HAPROXY: "none",
                SASORI_MAP_FILE: "/m",
                ...values,
              };
              try {
                const config = readConfig(env);
                expect(config.puppetdb[0]?.[0]?.url).toMatch(/^https?:\/\/[^@\s]+$/);
                expect(isMaster(config.backend)).toBe(true);
                expect(config.newMasters?.options ?? "").not.toMatch(/[;\n\\<]/);
                expect(config.probePath ?? "/").toMatch(/^\/[!-~]*$/);
                for (const [, master] of config.masterAliases.pairs) expect(isMaster(master)).toBe(true);
              } catch (error) {
                if (!(error instanceof SasoriError)) throw error;
                expect(error.code).toBe("CONFIG_INVALID");
              }
            },
          ),
          { numRuns: CASES.pure },
        ),
      );
    });
  });
}

/** Half a surrogate pair has no UTF-8. */
const wellFormed = (text: string) => Buffer.from(text).toString();

function counted(fault: string, tries: number, run: () => void): void {
  const began = performance.now();
  run();
  enterCases(fault, tries, (performance.now() - began) / 1000);
}

async function countedAsync(fault: string, tries: number, run: () => Promise<void>): Promise<void> {
  const began = performance.now();
  await run();
  enterCases(fault, tries, (performance.now() - began) / 1000);
}

/** Of every HAProxy: its maps' names, its servers with their states, its limits. */
async function states(arena: Arena): Promise<string[]> {
  const all = arena.gateways.map(async ({ haproxy }) => {
    const servers = (await runtimeCommand(haproxy.socketPath, "show servers state")).split("\n");
    const maps = (await runtimeCommand(haproxy.socketPath, "show map")).replaceAll(
      /(curr|next)_ver=\d+|entry_cnt=\d+/g,
      "",
    );
    const info = await runtimeCommand(haproxy.socketPath, "show info");
    // Names, addresses and administrative states; not the times and the counts of checks.
    const words = servers.map((line) =>
      [0, 1, 2, 3, 4, 6].map((column) => line.split(" ")[column]).join(" "),
    );
    return [...words, maps, /^Maxconn: .*$/m.exec(info)?.[0], /^Pid: .*$/m.exec(info)?.[0]].join("\n");
  });
  return Promise.all(all);
}

/** Nodes with a factset each, as PuppetDB would have stored them. */
async function insert(arena: Arena, nodes: { name: string; producer: string }[]): Promise<void> {
  const text = (value: string) => `'${value.replaceAll("'", "''")}'`;
  const hash = (value: string) => `'\\x${createHash("sha1").update(value).digest("hex")}'::bytea`;
  const rows = nodes
    .map(({ name, producer }) => `(${text(name)}, ${text(producer)}, ${hash(name)})`)
    .join(",\n");
  await arena.puppetdb.sql(`
    CREATE TEMPORARY TABLE hostile (name text, producer text, hash bytea);
    INSERT INTO hostile VALUES ${rows};
    INSERT INTO producers (name) SELECT DISTINCT producer FROM hostile ON CONFLICT DO NOTHING;
    INSERT INTO certnames (certname) SELECT name FROM hostile ON CONFLICT DO NOTHING;
    INSERT INTO factsets (certname, timestamp, producer_timestamp, environment_id, producer_id, hash, stable, stable_hash, volatile, paths_hash)
      SELECT hostile.name, now(), now(), one.environment_id, producers.id, hostile.hash, one.stable, hostile.hash, one.volatile, hostile.hash
      FROM hostile JOIN producers ON producers.name = hostile.producer, (SELECT * FROM factsets LIMIT 1) AS one;`);
}

function readRows(text: string, cuts: number[]): unknown[] | undefined {
  const rows: unknown[] = [];
  const reader = new JsonRows("test", (batch) => rows.push(...batch));
  try {
    let from = 0;
    for (const cut of [...cuts].sort((a, b) => a - b)) {
      reader.push(text.slice(from, cut));
      from = Math.max(from, cut);
    }
    reader.push(text.slice(from));
    reader.end();
    return rows;
  } catch (error) {
    if (error instanceof SasoriError && error.code === "PUPPETDB_BODY") return undefined;
    throw error;
  }
}

function parsedArray(text: string): unknown[] | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return Array.isArray(value) ? value : undefined;
  } catch {
    return undefined;
  }
}

/** A socket that answers as HAProxy did, but for one reply; after that it hangs up. */
async function startLiar(socketPath: string, replies: ReadonlyMap<string, string>) {
  const end = (command: string) => (command === "prompt" ? "\n> " : `${replies.get(command)}\n> `);
  const peer = {
    path: socketPath,
    lie: undefined as { command: string; text: string } | undefined,
    whole: end,
    close: () => new Promise((resolve) => server.close(resolve)),
  };
  const server: Server = createServer((socket) => {
    let unfinished = "";
    socket.on("error", () => undefined);
    socket.on("data", (chunk: Buffer) => {
      const lines = (unfinished + chunk.toString("latin1")).split("\n");
      unfinished = lines.pop() ?? "";
      for (const line of lines) {
        if (socket.writableEnded) return;
        if (line === peer.lie?.command) socket.end(peer.lie.text, "latin1");
        else socket.write(end(line), "latin1");
      }
    });
  });
  await new Promise<void>((resolve) => server.listen(socketPath, resolve));
  return peer;
}

const configWithMap = (socket: string, port: number, map: string) => `global
  stats socket ${socket} level admin
defaults
  mode http
  timeout connect 1s
  timeout client 1s
  timeout server 1s
frontend nodes
  bind 127.0.0.1:${port}
  http-request set-var(txn.master) req.hdr(X-Node-Name),lower,map_str(${map})
`;

/** Sends bytes to the API and resolves with all that comes back: nothing when nobody answers in time. */
function exchange(port: number, bytes: string): Promise<string> {
  return new Promise((resolve) => {
    let answer = "";
    const socket = connect(port, "127.0.0.1", () => socket.write(bytes));
    socket.setTimeout(patient(ANSWER_DEADLINE_MS), () => socket.destroy());
    socket.on("data", (chunk: Buffer) => {
      answer = (answer + chunk.toString("latin1")).replace(/^HTTP\/1\.1 100 [\s\S]*?\r\n\r\n/, "");
      // It may wait for the rest of a body that was announced and never comes.
      if (/\r\n\r\n/.test(answer)) socket.end();
    });
    socket.on("error", () => undefined);
    socket.on("close", () => resolve(answer));
  });
}
