// The HTTP API of a daemon beside real HAProxy instances: every call, every error, the events, and openapi.json held against
// what is really answered.

import { once } from "node:events";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { get, type IncomingMessage } from "node:http";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { pino } from "pino";
import { request } from "undici";
import { describe, expect, test } from "vitest";
import { z } from "zod";
import { readConfig } from "../src/config.js";
import { startDaemon } from "../src/daemon.js";
import type { Failure } from "../src/errors.js";
import type {
  HeldPlan,
  Instances,
  Masters,
  Moves,
  Nodes,
  Pass,
  Status,
  Story,
} from "../src/http/api-shapes.js";
import { MAX_AHEAD, MAX_CONNECTIONS } from "../src/http/connections.js";
import { MAX_CLIENTS, MAX_CLIENTS_OF_ONE } from "../src/http/event-stream.js";
import { summarize, troublesOf } from "../src/http/troubles.js";
import type { SyncReport } from "../src/sync-report.js";
import { freePort } from "./support/child.js";
import { type FleetLab, MASTERS, withFleetLab } from "./support/fleet-lab.js";
import { withGateway } from "./support/gateway.js";
import { runtimeCommand } from "./support/haproxy-server.js";
import { haproxyBinaries } from "./support/parts.js";
import { patient } from "./support/patience.js";
import { ON_DEMAND } from "./support/schedules.js";

const bin = haproxyBinaries()[0]?.bin ?? "";
const node = (index: number) => `node${index}.example.com`;
const MINUTE = 60_000;

interface Api {
  url: string;
  /** The body of a 200. */
  get<T>(path: string): Promise<T>;
  /** With a JSON body. */
  send(method: string, path: string, body?: unknown, headers?: Record<string, string>): Promise<Response>;
  /** One pass, which only happens on request here. */
  sync(wanted?: object): Promise<SyncReport>;
}

/** A daemon that looks for changes only when it is told to, but for the first pass. */
async function withDaemon(
  lab: Pick<FleetLab, "config">,
  use: (api: Api) => Promise<void>,
  extra: Record<string, string> = {},
  log = pino({ level: "silent" }),
): Promise<void> {
  const config = lab.config({
    SASORI_LISTEN: `127.0.0.1:${await freePort()}`,
    ...ON_DEMAND,
    ...extra,
  });
  const daemon = await startDaemon(config, log);
  const { url } = daemon;
  const send: Api["send"] = (method, where, body, headers = {}) =>
    fetch(`${url}${where}`, {
      method,
      headers: { ...(body !== undefined && { "content-type": "application/json" }), ...headers },
      ...(body !== undefined && { body: JSON.stringify(body) }),
    });
  const get = async <T>(where: string) => {
    const response = await fetch(`${url}${where}`);
    const body = await response.json();
    expect({ status: response.status, body }).toMatchObject({ status: 200 });
    return body as T;
  };
  const sync = async (wanted = {}) =>
    (await (await send("POST", "/api/v1/sync", wanted)).json()) as SyncReport;
  try {
    await expect.poll(async () => (await get<Status>("/api/v1/status")).lastPass).toBeDefined();
    await use({ url, get, send, sync });
  } finally {
    await daemon.stop();
  }
}

const checkIn = async (lab: FleetLab, count: number) => {
  for (let index = 0; index < count; index += 1)
    await lab.run(node(index), MASTERS[index % MASTERS.length] ?? "", -10 * MINUTE);
};

/** The status and body of an error, which must be problem+json. */
async function problemOf(response: Response) {
  const body = (await response.json()) as { status: number; title: string; detail: string };
  expect(response.headers.get("content-type")).toMatch(/^application\/problem\+json/);
  expect(body.status).toBe(response.status);
  return body;
}

describe("openapi.json", () => {
  interface Operation {
    summary?: string;
    parameters?: { name: string; in: string; required?: boolean }[];
    security?: object[];
    responses: Record<string, { description: string; content?: Record<string, { schema: object }> }>;
  }
  interface Document {
    openapi: string;
    paths: Record<string, Record<string, Operation>>;
    components: { schemas: Record<string, object>; securitySchemes: Record<string, object> };
  }

  /** The document's own schema of an answer, as a zod schema. */
  function shapeOf({ components }: Document, schema: object) {
    const text = JSON.stringify({ ...schema, $defs: components.schemas });
    return z.fromJSONSchema(JSON.parse(text.replaceAll("#/components/schemas/", "#/$defs/")));
  }

  test("describes every call as it really answers", () =>
    withFleetLab([{ bin }], async (lab) => {
      await checkIn(lab, 5);
      await withDaemon(lab, async ({ url, get, send }) => {
        await send("PUT", `/api/v1/nodes/${node(0)}`, { master: "master2" });
        const document = await get<Document>("/openapi.json");
        expect(document.openapi).toMatch(/^3\.1\./);
        const values: Record<string, string> = { certname: node(0) };
        const bodies: Record<string, object> = {
          "put /api/v1/nodes": { [node(1)]: "master3" },
          "put /api/v1/nodes/{certname}": { master: "master3", reason: "disk of master2", by: "ana" },
          "post /api/v1/sync": { full: true },
        };
        const calls = Object.entries(document.paths).flatMap(([where, methods]) =>
          Object.entries(methods).map(([method, operation]) => ({ where, method, operation })),
        );
        expect(calls.length).toBeGreaterThanOrEqual(16);
        for (const { where, method, operation } of calls) {
          const call = `${method} ${where}`;
          expect(operation.summary, call).toBeTruthy();
          expect(operation.responses.default?.content, call).toHaveProperty("application/problem+json");
          expect(operation.security !== undefined, call).toBe(method !== "get");
          const asked = where.replace(/\{(\w+)\}/g, (_, name: string) => values[name] ?? "");
          const response = await send(method.toUpperCase(), asked, bodies[call]);
          const described = operation.responses[response.status]?.content;
          expect(described, `${call} answered ${response.status}`).toBeDefined();
          const type = (response.headers.get("content-type") ?? "").replace(/;.*/, "");
          expect(Object.keys(described ?? {}), call).toEqual([type]);
          if (type === "text/event-stream") {
            await response.body?.cancel();
            continue;
          }
          const answered = type.endsWith("json") ? await response.json() : await response.text();
          const shape = shapeOf(document, described?.[type]?.schema ?? {});
          const checked = shape.safeParse(answered);
          expect(checked.error?.issues, call).toBeUndefined();
        }
        // A shape that anything would fit proves nothing.
        const strict = shapeOf(document, { $ref: "#/components/schemas/Status" });
        expect(strict.safeParse({ ...(await get<Status>("/api/v1/status")), more: 1 }).success).toBe(false);
        const problem = await (await fetch(`${url}/api/v1/nodes/a;b`)).json();
        expect(shapeOf(document, { $ref: "#/components/schemas/Problem" }).safeParse(problem).success).toBe(
          true,
        );
      });
    }));

  test("refers only to what is in it", () =>
    withFleetLab([], (lab) =>
      withDaemon(lab, async ({ get }) => {
        const document = await get<Document>("/openapi.json");
        const text = JSON.stringify(document);
        const names = [...text.matchAll(/"#\/components\/schemas\/(\w+)"/g)].map(([, name]) => name);
        expect(new Set(names)).toEqual(new Set(Object.keys(document.components.schemas)));
        expect(document.components.securitySchemes).toHaveProperty(
          "token",
          expect.objectContaining({ scheme: "bearer" }),
        );
      }),
    ));
});

describe("nodes", () => {
  test("are listed by name, page by page, by part of their name, by master and by source", () =>
    withFleetLab([{ bin }], async (lab) => {
      await checkIn(lab, 9);
      await withDaemon(lab, async ({ get, send }) => {
        await send("PUT", `/api/v1/nodes/${node(4)}`, { master: "master1" });
        const names = ({ nodes }: Nodes) => nodes.map(({ certname }) => certname);
        const first = await get<Nodes>("/api/v1/nodes?limit=4");
        expect(names(first)).toEqual([0, 1, 2, 3].map(node));
        expect(first.next).toBe(node(3));
        expect(first.nodes[1]).toMatchObject({
          master: "master2",
          source: "facts",
          since: expect.any(String),
        });
        const last = await get<Nodes>(`/api/v1/nodes?limit=5&cursor=${first.next}`);
        expect(names(last)).toEqual([4, 5, 6, 7, 8].map(node));
        expect(last.next).toBeNull();
        expect(names(await get<Nodes>("/api/v1/nodes?q=ode7"))).toEqual([node(7)]);
        expect(names(await get<Nodes>("/api/v1/nodes?q=NODE7"))).toEqual([node(7)]);
        expect(names(await get<Nodes>("/api/v1/nodes?master=master1"))).toEqual([0, 3, 4, 6].map(node));
        expect(names(await get<Nodes>("/api/v1/nodes?source=registration"))).toEqual([node(4)]);
        expect(names(await get<Nodes>("/api/v1/nodes?q=nothing"))).toEqual([]);
      });
    }));

  test("are all met once by a walk over 100,000 while others come and move", async () =>
    withFleetLab([], async (lab) => {
      await lab.stopPuppetdb(); // What stands in the file is the map then.
      const all = Array.from({ length: 100_000 }, (_, index) => node((index * 7_919) % 100_000));
      await writeFile(lab.mapFile, all.map((name) => `${name} master1\n`).join(""));
      await withDaemon(
        lab,
        async ({ get, send }) => {
          const met: string[] = [];
          let cursor: string | null = "";
          for (let page = 0; cursor !== null; page += 1) {
            const answer: Nodes = await get(`/api/v1/nodes?limit=1000&cursor=${cursor}`);
            met.push(...answer.nodes.map(({ certname }) => certname));
            cursor = answer.next;
            if (page % 40 !== 0) continue;
            const put = (name: string) => send("PUT", `/api/v1/nodes/${name}`, { master: "master2" });
            const statuses = await Promise.all([
              put(`a${page}.example.com`),
              put(`z${page}.example.com`),
              put(node(page)),
            ]);
            expect(statuses.map(({ status }) => status)).toEqual([200, 200, 200]);
          }
          expect(met).toEqual(met.toSorted());
          expect(new Set(met).size).toBe(met.length);
          expect(met.filter((name) => name.startsWith("node"))).toEqual(all.toSorted());
          // Those that came behind the place where the walk was.
          expect(met.filter((name) => name.startsWith("z"))).toHaveLength(3);
        },
        { SASORI_MAX_REMOVED: "0" },
      );
    }));

  test("tell their story: where each target sends them, whether their master is up, and their moves", () =>
    withFleetLab([{ bin }, { bin }], async (lab) => {
      await checkIn(lab, 3);
      await withDaemon(lab, async ({ get, send, sync }) => {
        const [first, second] = lab.haproxys.map(({ socketPath }) => socketPath);
        await lab.run(node(0), "master2", -MINUTE);
        await sync();
        const put = await send("PUT", `/api/v1/nodes/${node(0)}`, { master: "master3" });
        expect(put.status).toBe(200);
        expect(await put.json()).toEqual(await get(`/api/v1/nodes/${node(0)}`));
        const story = await get<Story>(`/api/v1/nodes/${node(0)}`);
        expect(story).toMatchObject({
          desired: { master: "master3", source: "registration" },
          file: { master: "master3" },
          live: [
            { haproxy: first, master: "master3" },
            { haproxy: second, master: "master3" },
          ],
          health: [
            { haproxy: first, state: "up", up: true },
            { haproxy: second, state: "up", up: true },
          ],
          moves: [
            { from: "master2", to: "master3", source: "registration" },
            { from: "master1", to: "master2", source: "facts" },
          ],
        });
        expect(await get(`/api/v1/nodes/nobody.example.com`)).toMatchObject({
          desired: {},
          file: { master: null },
          moves: [],
        });
        expect((await send("DELETE", `/api/v1/nodes/${node(0)}`)).status).toBe(200);
        expect(await get(`/api/v1/nodes/${node(0)}`)).toMatchObject({
          desired: { master: "master2", source: "facts" },
        });
        expect(await problemOf(await send("DELETE", `/api/v1/nodes/${node(0)}`))).toMatchObject({
          status: 404,
        });
      });
    }));

  test("keep their route when their registration ends and their producer has no server", () =>
    withFleetLab([{ bin }], async (lab) => {
      await checkIn(lab, 3);
      await withDaemon(lab, async ({ get, send, sync }) => {
        await send("PUT", `/api/v1/nodes/${node(0)}`, { master: "master3" });
        await lab.run(node(0), "puppet9.elsewhere", -MINUTE);
        expect((await send("DELETE", `/api/v1/nodes/${node(0)}`)).status).toBe(200);
        const route = { desired: { master: "master3", source: "facts" }, live: [{ master: "master3" }] };
        expect(await get(`/api/v1/nodes/${node(0)}`)).toMatchObject(route);
        expect(await sync({ full: true })).toMatchObject({ unroutable: { nodes: 1 }, moved: 0 });
        expect(await get(`/api/v1/nodes/${node(0)}`)).toMatchObject(route);
      });
    }));

  test("that are registered while an HAProxy is away are told so: 502, and it is told later", () =>
    withFleetLab([{ bin }, { bin }], async (lab) => {
      await checkIn(lab, 3);
      await withDaemon(lab, async ({ send, sync }) => {
        await lab.haproxys[1]?.kill();
        const put = await send("PUT", `/api/v1/nodes/${node(0)}`, { master: "master3" });
        expect(put.status).toBe(502);
        expect(await put.json()).toMatchObject({
          file: { master: "master3" },
          live: [{ master: "master3" }, { failure: { code: "HAPROXY_UNREACHABLE" } }],
        });
        await lab.haproxys[1]?.restart();
        await sync();
        expect((await lab.haproxys[1]?.showMap())?.get(node(0))).toBe("master3");
      });
    }));

  test("that are registered while the file can be read but not written are told so: 502", () =>
    withFleetLab([], async (lab) => {
      await lab.run(node(0), "master1", -MINUTE);
      // The temporary file beside it would have a longer name than a file may have.
      const mapFile = path.join(path.dirname(lab.mapFile), "m".repeat(250));
      await writeFile(mapFile, `${node(0)} master1\n`);
      await withDaemon(
        lab,
        async ({ send }) => {
          const put = await send("PUT", `/api/v1/nodes/${node(0)}`, { master: "master3" });
          expect(await put.json()).toMatchObject({
            desired: { master: "master3" },
            file: { master: "master1" },
          });
          expect(put.status).toBe(502);
          expect((await send("DELETE", `/api/v1/nodes/${node(0)}`)).status).toBe(200);
        },
        { SASORI_MAP_FILE: mapFile, SASORI_STATE_FILE: `${lab.mapFile}.state.json` },
      );
    }));

  test("that are registered while the state file cannot be written are told so: 502, until it can be", () =>
    withFleetLab([{ bin }], async (lab) => {
      await checkIn(lab, 3);
      const folder = path.join(path.dirname(lab.mapFile), "state");
      await withDaemon(
        lab,
        async ({ get, send, sync }) => {
          const unsaved = {
            code: "FILE_WRITE",
            message: expect.stringMatching(
              /^it is not in the state file, so a restart .* lose it: .*\/state does not exist: create it/,
            ),
          };
          const change = async (...call: Parameters<typeof send>) => {
            const response = await send(...call);
            return { status: response.status, ...((await response.json()) as Story) };
          };
          const where = `/api/v1/nodes/${node(0)}`;
          const put = await change("PUT", where, { master: "master3" });
          expect(put).toMatchObject({ status: 502, live: [{ master: "master3" }], unsaved });
          expect(await change("DELETE", where)).toMatchObject({ status: 502, unsaved }); // That it ended, neither.
          await change("PUT", where, { master: "master2" });
          await mkdir(folder);
          expect(await sync()).toMatchObject({ outcome: "done" }); // It tries again by itself.
          expect(await readFile(path.join(folder, "state.json"), "utf8")).toContain("master2");
          const late = await change("PUT", where, { master: "master1" });
          expect({ status: late.status, unsaved: late.unsaved }).toEqual({ status: 200, unsaved: undefined });
          expect(await get<Story>(where)).not.toHaveProperty("unsaved");
        },
        { SASORI_STATE_FILE: path.join(folder, "state.json") },
      );
    }));

  test("cannot be registered before an HAProxy has told its servers, and that is not the caller's mistake", () =>
    withFleetLab([{ bin }], async (lab) => {
      await lab.haproxys[0]?.kill();
      await withDaemon(lab, async ({ send }) =>
        expect(
          await problemOf(await send("PUT", `/api/v1/nodes/${node(0)}`, { master: "master2" })),
        ).toMatchObject({
          status: 503,
          title: "HAPROXY_UNREACHABLE",
          detail: "no HAProxy has been reached yet, so its servers are unknown: try again when one is up",
        }),
      );
    }));

  test("go where the last of two registrations says, also those whose master's clock is ahead", () =>
    withFleetLab([{ bin }], async (lab) => {
      await lab.run(node(0), "master1", 5 * MINUTE);
      await withDaemon(lab, async ({ url, get }) => {
        const { hostname, port } = new URL(url);
        const put = (master: string) => {
          const body = JSON.stringify({ master });
          return `PUT /api/v1/nodes/${node(0)} HTTP/1.1\r\nhost: ${hostname}\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n`;
        };
        // On one connection they come in this order, and the second before the first is done.
        const socket = connect(Number(port), hostname);
        socket.write(`${put("master2")}\r\n{"master":"master2"}`);
        socket.write(`${put("master3")}connection: close\r\n\r\n{"master":"master3"}`);
        let answers = "";
        for await (const chunk of socket) answers += chunk;
        expect(answers.match(/HTTP\/1.1 200 OK/g)).toHaveLength(2);
        expect(await get(`/api/v1/nodes/${node(0)}`)).toMatchObject({ desired: { master: "master3" } });
      });
    }));
});

describe("what happened", () => {
  test("is told as moves, newest first, page by page, by node and by master; a first fill is none", () =>
    withFleetLab([{ bin }], async (lab) => {
      await checkIn(lab, 6);
      await withDaemon(lab, async ({ get, sync }) => {
        expect(await get("/api/v1/moves")).toEqual({ moves: [], next: null, kept: 10_000 });
        for (const [index, master] of [
          [0, "master2"],
          [1, "master3"],
          [0, "master3"],
        ] as const) {
          await lab.run(node(index), master, -MINUTE + 1_000 * Number(master.slice(-1)));
          await sync();
        }
        await lab.run("new.example.com", "master1");
        await lab.puppetdb.deactivateNode(node(5));
        await sync();
        const { moves } = await get<Moves>("/api/v1/moves");
        expect(moves.slice(2).map(({ certname, from, to }) => [certname, from, to])).toEqual([
          [node(0), "master2", "master3"],
          [node(1), "master2", "master3"],
          [node(0), "master1", "master2"],
        ]);
        expect(moves.slice(0, 2)).toContainEqual(
          expect.objectContaining({
            certname: "new.example.com",
            from: null,
            to: "master1",
            source: "facts",
          }),
        );
        expect(moves.slice(0, 2)).toContainEqual(
          expect.objectContaining({ certname: node(5), from: "master3", to: null, source: null }),
        );
        const first = await get<Moves>("/api/v1/moves?limit=2");
        expect(first.moves).toEqual(moves.slice(0, 2));
        expect((await get<Moves>(`/api/v1/moves?limit=9&before=${first.next}`)).moves).toEqual(
          moves.slice(2),
        );
        const of = async (query: string) => (await get<Moves>(`/api/v1/moves?${query}`)).moves;
        expect(await of(`certname=${node(0)}`)).toHaveLength(2);
        expect(await of("master=master1")).toHaveLength(2);
        const { passes } = await get<{ passes: Pass[] }>("/api/v1/passes");
        expect(passes.map(({ moved }) => moved)).toEqual([2, 1, 1, 1, 6]);
      });
    }));

  test("while sasori was away is told after its start; what stands as before is not", () =>
    withFleetLab([{ bin }], async (lab) => {
      await checkIn(lab, 6);
      await withDaemon(lab, async ({ send }) => {
        await send("PUT", `/api/v1/nodes/${node(1)}`, { master: "master1" });
      });
      await lab.run(node(0), "master3");
      await lab.run("new.example.com", "master1");
      await withDaemon(lab, async ({ get }) => {
        const { moves } = await get<Moves>("/api/v1/moves");
        expect(moves.map(({ certname, from, to }) => [certname, from, to]).sort()).toEqual([
          ["new.example.com", null, "master1"],
          [node(0), "master1", "master3"],
        ]);
        expect(await get(`/api/v1/nodes/${node(1)}`)).toMatchObject({ desired: { source: "registration" } });
      });
    }));

  test("again and again is kept once: a failure that lasts does not push the others out", () =>
    withFleetLab([{ bin }], async (lab) => {
      await checkIn(lab, 3);
      await withDaemon(lab, async ({ get, sync }) => {
        await lab.stopPuppetdb();
        for (let index = 0; index < 5; index += 1) await sync();
        const { passes } = await get<{ passes: Pass[] }>("/api/v1/passes");
        expect(passes.map(({ outcome }) => outcome)).toEqual(["failed", "done"]);
      });
    }));
});

describe("the status", () => {
  test("says what is wrong, since when, and what to do, worst first, and that it is over", () =>
    withFleetLab([{ bin }], async (lab) => {
      await checkIn(lab, 15);
      await withDaemon(lab, async ({ get, send, sync }) => {
        const status = () => get<Status>("/api/v1/status");
        expect(await status()).toMatchObject({
          state: "in sync",
          summary: "15 nodes, in the map file and in 1 HAProxy instance.",
          troubles: [],
          version: expect.stringMatching(/^\d+\.\d+\.\d+/),
          lastGoodPoll: expect.any(String),
        });
        await lab.run("lost.example.com", "puppet9");
        await sync();
        expect(await status()).toMatchObject({
          state: "attention",
          troubles: [
            { severity: "warning", code: "unroutable", what: expect.stringContaining("puppet9 (1)") },
          ],
        });
        expect(await get("/api/v1/nodes?q=LOST.")).toEqual({
          nodes: [],
          next: null,
          unroutable: [{ certname: "lost.example.com", producer: "puppet9" }],
        });
        await lab.stopPuppetdb();
        await lab.haproxys[0]?.kill();
        const began = Date.now();
        await sync();
        const failed = Date.now();
        await sync();
        const failing = await status();
        expect(failing).toMatchObject({
          state: "failing",
          troubles: [
            {
              severity: "critical",
              code: "PUPPETDB_UNREACHABLE",
              where: "puppetdb",
              remedy: expect.stringContaining("SASORI_PUPPETDB_URL"),
            },
            { severity: "critical", code: "HAPROXY_UNREACHABLE", where: lab.haproxys[0]?.socketPath },
            { code: "unroutable" },
          ],
        });
        expect(failing.summary).toContain("And 2 more troubles");
        const [, since = ""] = /\(since (.*)\)/.exec(failing.troubles[0]?.what ?? "") ?? [];
        expect(Date.parse(since)).toBeGreaterThanOrEqual(began);
        expect(Date.parse(since)).toBeLessThanOrEqual(failed);
        await lab.haproxys[0]?.restart();
        await lab.startPuppetdb();
        for (const [index, master] of MASTERS.entries()) await lab.run(node(index), master);
        await sync({ full: true });
        const held = await status();
        expect(held).toMatchObject({ state: "attention", nodes: 15 });
        const [, plan] = /`sasori sync --approve ([0-9a-f]{12})`$/.exec(held.troubles[0]?.remedy ?? "") ?? [];
        expect(held.troubles.map(({ code }) => code)).toEqual(["held"]);
        // Three names have come back; twelve are held, and can be read one by one.
        const page = await get<HeldPlan>("/api/v1/plan?limit=7");
        expect(page).toMatchObject({ id: plan, count: 12, next: page.changes[6]?.certname });
        expect(page.masters.reduce((sum, { removed }) => sum + removed, 0)).toBe(12);
        const rest = await get<HeldPlan>(`/api/v1/plan?limit=7&cursor=${page.next}`);
        expect(rest.next).toBeNull();
        const names = [...page.changes, ...rest.changes].map(({ certname }) => certname);
        expect(names).toEqual([...new Set(names)].sort());
        expect(names).toHaveLength(12);
        const [first] = page.changes;
        const ofOne = await get<HeldPlan>(`/api/v1/plan?master=${first?.from}`);
        expect(new Set(ofOne.changes.map(({ from }) => from))).toEqual(new Set([first?.from]));
        const text = await (await send("GET", "/api/v1/plan.txt")).text();
        expect(text.split("\n")).toContain(`${first?.certname}\t${first?.from}\t-`);
        expect(text.match(/^[^#]/gm)).toHaveLength(12);
        expect(await sync({ approve: plan })).toMatchObject({ outcome: "done", nodes: 3 });
        expect(await status()).toMatchObject({ state: "in sync", nodes: 3, troubles: [] });
        expect((await send("GET", "/api/v1/plan")).status).toBe(404);
      });
    }));

  test("has one sentence that cuts a long message, and no time, however long the message is", () => {
    const since = "2026-05-01T14:00:00.000Z";
    for (let length = 150; length < 240; length += 1) {
      const failure: Failure = {
        code: "PUPPETDB_STATUS",
        message: `${"x".repeat(length)} not before ${since}`,
      };
      const troubles = troublesOf({ pass: undefined, targets: [], puppetdb: { failure, since } });
      const pass = {} as NonNullable<Parameters<typeof summarize>[0]["pass"]>;
      const { summary } = summarize({ pass, targets: [] }, troubles);
      expect(summary).toMatch(/^puppetdb: x+.* \(since 2026-05-01T14:00:00\.000Z\)\.$/);
      expect(summary.replaceAll(since, "")).not.toMatch(/\d/);
    }
  });

  test("tells of a clock that is wrong by minutes, and not of one that is by seconds", () => {
    const clock = (clockAheadMs: number) => {
      const puppetdbs = [{ url: "http://127.0.0.1:8080", asked: true, newestAt: 0, clockAheadMs }];
      return troublesOf({ pass: undefined, targets: [], puppetdbs });
    };
    expect(clock(50_000)).toEqual([]);
    expect(clock(6.2 * MINUTE)).toMatchObject([
      {
        severity: "warning",
        code: "clock",
        what: "its answers are dated 6 minutes ahead of this machine's clock",
      },
    ]);
    expect(clock(-MINUTE)[0]?.what).toBe("its answers are dated 1 minute behind this machine's clock");
  });

  test("is what the log says: each trouble once when it comes, with its remedy, and once when it is over", () =>
    withFleetLab([{ bin }], async (lab) => {
      await checkIn(lab, 3);
      const lines: Record<string, unknown>[] = [];
      const log = pino({ base: null }, { write: (line: string) => void lines.push(JSON.parse(line)) });
      const about = () => lines.filter(({ msg }) => /^trouble/.test(String(msg)));
      await withDaemon(
        lab,
        async ({ sync, get }) => {
          await lab.haproxys[0]?.kill();
          for (let index = 0; index < 3; index += 1) await sync();
          const [trouble] = (await get<Status>("/api/v1/status")).troubles;
          expect(about()).toMatchObject([
            { level: 50, code: "HAPROXY_UNREACHABLE", what: trouble?.what, remedy: trouble?.remedy },
          ]);
          await lab.haproxys[0]?.restart();
          await sync();
          await sync();
          expect(about()[1]).toMatchObject({
            level: 30,
            msg: "trouble is over",
            code: "HAPROXY_UNREACHABLE",
          });
          expect(about()).toHaveLength(2);
        },
        {},
        log,
      );
    }));

  test("keeps saying that the state file was broken", () =>
    withFleetLab([], async (lab) => {
      await writeFile(path.join(path.dirname(lab.mapFile), "state.json"), "{");
      await withDaemon(
        lab,
        async ({ get }) =>
          expect(await get<Status>("/api/v1/status")).toMatchObject({
            state: "failing",
            troubles: [{ code: "STATE_FILE", where: "state file" }],
          }),
        { SASORI_STATE_FILE: path.join(path.dirname(lab.mapFile), "state.json") },
      );
    }));
});

describe.each(haproxyBinaries())("the masters of HAProxy $version", ({ bin }) => {
  test("are told with their nodes and their load; an HAProxy that is away is told as a failure", () =>
    withGateway(
      { bin, map: [0, 1, 2].map((index) => [node(index), index < 2 ? "master1" : "master2"] as const) },
      async ({ haproxy, masters, ask }) => {
        const folder = await mkdtemp(path.join(tmpdir(), "sasori-masters-"));
        const away = path.join(folder, "away.sock");
        const config = (extra: Record<string, string> = {}) =>
          readConfig({
            SASORI_PUPPETDB_URL: "http://127.0.0.1:9",
            SASORI_HAPROXY: `${haproxy.socketPath},${away}`,
            SASORI_MAP_FILE: haproxy.mapPath,
            ...extra,
          });
        try {
          await withDaemon({ config }, async ({ get, sync }) => {
            const [first] = masters;
            let release = () => {};
            if (first)
              first.hold = new Promise((resolve) => {
                release = resolve;
              });
            const answers = Array.from({ length: 50 }, () => ask(node(0)));
            await expect.poll(() => first?.requests).toBe(50);
            answers.push(...Array.from({ length: 3 }, () => ask(node(0))));
            const load = async () => (await get<Masters>("/api/v1/masters")).masters[0]?.servers[0];
            await expect.poll(async () => (await load())?.queue).toBe(3);
            const answer = await get<Masters>("/api/v1/masters");
            expect(answer.masters.map(({ master, nodes }) => [master, nodes])).toEqual([
              ["master1", 2],
              ["master2", 1],
              ["master3", 0],
            ]);
            expect(answer.masters[0]).toMatchObject({
              share: 2 / 3,
              servers: [
                {
                  haproxy: haproxy.socketPath,
                  status: expect.stringMatching(/^UP/),
                  state: "up",
                  up: true,
                  sessions: 50,
                  maxconn: 50,
                  queue: 3,
                  maxqueue: 100,
                  requests: expect.any(Number),
                },
              ],
            });
            expect(answer.failures).toMatchObject([
              { haproxy: away, failure: { code: "HAPROXY_UNREACHABLE" } },
            ]);
            release();
            for (const { status } of await Promise.all(answers)) expect(status).toBe(200);
            await expect.poll(load).toMatchObject({ sessions: 0, queue: 0, requests: 53 });
            await first?.stop();
            await expect.poll(load).toMatchObject({ status: expect.stringMatching(/^DOWN/), up: false });
            await sync();
            expect((await get<Status>("/api/v1/status")).troubles).toContainEqual({
              severity: "warning",
              code: "down",
              where: "master1",
              what: expect.stringContaining("master1 is down"),
              remedy: expect.stringContaining("start the master"),
            });
          });
        } finally {
          await rm(folder, { recursive: true });
        }
      },
    ));
});

test("instances tell their process, their map and how they were last written", () =>
  withFleetLab([{ bin, masterWorker: true }], async (lab) => {
    await checkIn(lab, 6);
    await withDaemon(lab, async ({ get, sync }) => {
      await lab.run(node(0), "master2");
      await sync();
      const before = await get<Instances>("/api/v1/instances");
      expect(before.file).toMatchObject({
        target: lab.mapFile,
        inSync: true,
        lastPush: { method: "file", set: 1 },
      });
      expect(before.instances).toMatchObject([
        {
          inSync: true,
          pending: 0,
          map: "version 0, 6 entries",
          lastPush: { method: "incremental", add: 0, set: 1, del: 0 },
        },
      ]);
      await lab.haproxys[0]?.reload();
      await sync();
      const after = await get<Instances>("/api/v1/instances");
      expect(after.instances[0]?.process).toMatch(/^\d+@\d+$/);
      expect(after.instances[0]?.process).not.toBe(before.instances[0]?.process);
      await lab.haproxys[0]?.kill();
      await sync();
      expect((await get<Instances>("/api/v1/instances")).instances).toMatchObject([
        { inSync: false, process: null, map: null, failure: { code: "HAPROXY_UNREACHABLE" } },
      ]);
    });
  }));

/** Sends this as it is written, and reads until the connection is closed. */
async function sayTo(url: string, text: string): Promise<string> {
  const socket = connect({ host: "127.0.0.1", port: Number(new URL(url).port) });
  socket.setEncoding("utf8").write(text);
  let answered = "";
  socket.on("data", (chunk: string) => {
    answered += chunk;
  });
  await once(socket, "close");
  return answered;
}

describe("a request that is wrong", () => {
  test("is answered with problem+json, a code, and what was expected", () =>
    withFleetLab([{ bin }], async (lab) => {
      await checkIn(lab, 3);
      await withDaemon(lab, async ({ url, send }) => {
        const json = { "content-type": "application/json" };
        const raw = (method: string, where: string, body: string, headers: Record<string, string> = json) =>
          fetch(`${url}${where}`, { method, body, headers });
        const wrong: [number, string, () => Promise<Response>][] = [
          [400, 'Unrecognized key: "masster"', () => fetch(`${url}/api/v1/nodes?masster=master1`)],
          [400, "query/q", () => fetch(`${url}/api/v1/nodes?q=a&q=b`)],
          [400, "query/limit", () => fetch(`${url}/api/v1/nodes?limit=1001`)],
          [400, "query/limit", () => fetch(`${url}/api/v1/moves?limit=x`)],
          [400, "query/source", () => fetch(`${url}/api/v1/nodes?source=hearsay`)],
          [400, "Unrecognized key", () => fetch(`${url}/api/v1/status?full`)],
          [400, "cannot be a map key", () => fetch(`${url}/api/v1/nodes/a;b`)],
          [400, "cannot be a map key", () => fetch(`${url}/api/v1/nodes/${encodeURIComponent("a\n<<")}`)],
          [400, "", () => fetch(`${url}/api/v1/nodes/%zz`)],
          [
            400,
            "cannot be an HAProxy server",
            () => send("PUT", `/api/v1/nodes/${node(0)}`, { master: "a b" }),
          ],
          [
            400,
            "it has: master1, master2, master3)",
            () => send("PUT", `/api/v1/nodes/${node(0)}`, { master: "master9" }),
          ],
          [400, "body/master", () => send("PUT", `/api/v1/nodes/${node(0)}`, {})],
          [400, 'Unrecognized key: "fast"', () => send("POST", "/api/v1/sync", { fast: true })],
          [400, "plan id", () => send("POST", "/api/v1/sync", { approve: "x; y" })],
          [
            400,
            "exclude each other",
            () => send("POST", "/api/v1/sync", { approve: "0".repeat(12), dryRun: true }),
          ],
          [400, "JSON", () => raw("POST", "/api/v1/sync", "{")],
          [400, "not valid JSON", () => raw("POST", "/api/v1/sync", '{"__proto__":{"full":true}}')],
          [
            400,
            "Unrecognized key",
            () => raw("POST", "/api/v1/sync", '{"constructor":{"not valid JSON":{"full":true}}}'),
          ],
          [404, "no such resource", () => fetch(`${url}/nowhere`)],
          [404, "no such resource", () => fetch(`${url}/api/v1/nodes/a/b`)],
          [405, "POST", () => send("GET", "/api/v1/sync")],
          [405, "PUT, DELETE", () => send("POST", `/api/v1/nodes/${node(0)}`, {})],
          [413, "", () => send("POST", "/api/v1/sync", { approve: "0".repeat(20_000) })],
          [414, "", () => fetch(`${url}/api/v1/nodes/${"x".repeat(300)}`)],
          [
            415,
            "content-type: application/json",
            () => raw("POST", "/api/v1/sync", "full", { "content-type": "text/plain" }),
          ],
          [
            415,
            "",
            () =>
              raw("POST", "/api/v1/sync", "full=1", { "content-type": "application/x-www-form-urlencoded" }),
          ],
          [
            415,
            "without content-encoding",
            () => raw("POST", "/api/v1/sync", "{}", { ...json, "content-encoding": "gzip" }),
          ],
          [400, "expected object", () => raw("PUT", `/api/v1/nodes/${node(0)}`, "")],
          [
            403,
            "SASORI_API_TOKEN_FILE",
            () => send("POST", "/api/v1/sync", {}, { origin: "http://evil.example" }),
          ],
        ];
        for (const [status, detail, response] of wrong) {
          const answered = await problemOf(await response());
          expect(answered).toMatchObject({ status, title: "USAGE", detail: expect.stringContaining(detail) });
          expect(answered.detail).not.toBe("");
        }
        const refused = await send("PATCH", "/api/v1/sync");
        expect(refused.headers.get("allow")).toBe("POST");
        expect((await problemOf(refused)).status).toBe(405);
      });
    }));

  test("by a web page is refused, unless it is sasori's own; a link is followed", () =>
    withFleetLab([], (lab) =>
      withDaemon(lab, async ({ url }) => {
        const { host, port } = new URL(url);
        const ask = async (method: "GET" | "POST", where: string, headers: Record<string, string>) => {
          const { statusCode, body } = await request(`${url}${where}`, { method, headers });
          await body.dump();
          return statusCode;
        };
        const image = { "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image" };
        for (const page of [
          { host: "sasori" },
          { host: `sasori:${port}` },
          { host: "rebound.example.com" },
          { origin: "http://evil.example" },
          { origin: "null" },
          // Another program's, on another port of this machine.
          { origin: "http://localhost:3000" },
          { origin: `http://127.0.0.2:${port}` },
          { ...image, "sec-fetch-site": "cross-site" },
          { ...image, "sec-fetch-site": "same-site" },
        ]) {
          expect(await ask("POST", "/api/v1/sync", page), JSON.stringify(page)).toBe(403);
          expect(await ask("GET", `/api/v1/resolve/${node(0)}`, page), JSON.stringify(page)).toBe(403);
        }
        for (const own of [
          {},
          { host: `localhost:${port}`, origin: `http://localhost:${port}`, "sec-fetch-site": "same-origin" },
          { host, origin: `http://${host}` },
          { "sec-fetch-site": "none", "sec-fetch-mode": "navigate" },
        ])
          expect(await ask("POST", "/api/v1/sync", own), JSON.stringify(own)).toBe(200);
        const link = { "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate" };
        expect(await ask("GET", "/", link)).toBe(200);
        expect(await ask("POST", "/api/v1/sync", link)).toBe(403);
      }),
    ));

  test("with a flood of headers, or that is no HTTP, is told before it is a request", () =>
    withFleetLab([], (lab) =>
      withDaemon(lab, async ({ url }) => {
        const say = (text: string) => sayTo(url, text);
        const flood = Array.from({ length: 400 }, (_, index) => `x-${index}: ${"y".repeat(60)}\r\n`).join("");
        expect(await say(`GET /healthz HTTP/1.1\r\nhost: localhost\r\n${flood}\r\n`)).toMatch(
          /^HTTP\/1\.1 431 [\s\S]*application\/problem\+json[\s\S]*"status":431/,
        );
        expect(await say("hello\r\n\r\n")).toMatch(/^HTTP\/1\.1 400 [\s\S]*application\/problem\+json/);
        for (const hosts of ["", "host: localhost\r\nhost: localhost\r\n"])
          expect(await say(`GET /healthz HTTP/1.1\r\nconnection: close\r\n${hosts}\r\n`)).toMatch(
            /^HTTP\/1\.1 400 [\s\S]*application\/problem\+json[\s\S]*one Host header/,
          );
      }),
    ));

  test("is not one without a Host in HTTP/1.0, one with an unknown expectation, or one that names the type of no body", () =>
    withFleetLab([{ bin }], (lab) =>
      withDaemon(lab, async ({ url }) => {
        const say = (text: string) => sayTo(url, text);
        expect(await say("GET /healthz HTTP/1.0\r\n\r\n")).toMatch(/^HTTP\/1\.1 200 /);
        const head = "HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
        expect(await say(`GET /healthz ${head}expect: more\r\n\r\n`)).toMatch(/^HTTP\/1\.1 200 /);
        const empty = `${head}content-type: application/json\r\ncontent-length: 0\r\n\r\n`;
        expect(await say(`POST /api/v1/sync ${empty}`)).toMatch(/^HTTP\/1\.1 200 /);
        expect(await say(`DELETE /api/v1/nodes/${node(0)} ${empty}`)).toMatch(/has no registration/);
      }),
    ));

  test("without the token changes nothing, and needs none to look", () =>
    withFleetLab([{ bin }], async (lab) => {
      await checkIn(lab, 3);
      const token = path.join(path.dirname(lab.mapFile), "token");
      await writeFile(token, "s3cret\n");
      await withDaemon(
        lab,
        async ({ send, url }) => {
          const calls = [
            ["PUT", `/api/v1/nodes/${node(0)}`, { master: "master3" }],
            ["DELETE", `/api/v1/nodes/${node(0)}`, undefined],
            ["POST", "/api/v1/sync", {}],
          ] as const;
          for (const [method, where, body] of calls) {
            for (const authorization of [
              "",
              "Bearer wrong",
              "Bearer s3cre",
              "Basic s3cret",
              "Bearer s3cret2",
            ]) {
              const refused = await send(method, where, body, { authorization });
              expect((await problemOf(refused)).status).toBe(401);
              expect(refused.headers.get("www-authenticate")).toBe("Bearer");
            }
          }
          const allowed = { authorization: "Bearer s3cret" };
          expect((await send("PUT", `/api/v1/nodes/${node(0)}`, { master: "master3" }, allowed)).status).toBe(
            200,
          );
          expect(
            (await fetch(`${url}/api/v1/nodes`, { headers: { origin: "http://evil.example" } })).status,
          ).toBe(200);
          await writeFile(token, "");
          expect((await problemOf(await send("POST", "/api/v1/sync", {}, allowed))).status).toBe(503);
        },
        { SASORI_API_TOKEN_FILE: token },
      );
    }));

  test("comes too often: it is told when to come back, but HAProxy, Prometheus and supervisors are always answered", () =>
    withFleetLab([], (lab) =>
      withDaemon(lab, async ({ url }) => {
        const statuses = new Set<number>();
        for (let round = 0; round < 60 && !statuses.has(429); round += 1) {
          const answers = await Promise.all(
            Array.from({ length: 50 }, async () => {
              const { statusCode, body } = await request(`${url}/api/v1/moves?limit=1`);
              await body.dump();
              return statusCode;
            }),
          );
          for (const status of answers) statuses.add(status);
        }
        expect(statuses).toEqual(new Set([200, 429]));
        const refused = await fetch(`${url}/nowhere`);
        expect(refused.headers.get("retry-after")).toMatch(/^\d+$/);
        expect(await problemOf(refused)).toMatchObject({ status: 429, title: "BUSY" });
        const registered = await fetch(`${url}/api/v1/nodes/${node(0)}`, {
          method: "PUT",
          headers: { "content-type": "application/json" },
          body: JSON.stringify({ master: "master1" }),
        });
        expect(registered.status, "those who read keep nobody from writing").not.toBe(429);
        for (const where of ["/healthz", "/readyz", "/metrics", `/api/v1/resolve/${node(0)}`])
          expect((await fetch(`${url}${where}`)).status, where).not.toBe(429);
      }),
    ));
});

describe("who is connected", () => {
  const question = (path: string) => `GET ${path} HTTP/1.1\r\nhost: localhost\r\n\r\n`;

  /** How long a question of somebody else waits, at worst, until `done`. */
  async function worstWait(url: string, done: Promise<unknown>): Promise<number> {
    let isDone = false;
    void done.finally(() => {
      isDone = true;
    });
    let worst = 0;
    do {
      const began = performance.now();
      expect((await fetch(`${url}/healthz`)).status).toBe(200);
      worst = Math.max(worst, performance.now() - began);
    } while (!isDone);
    return worst;
  }

  test.each(["/metrics", "/api/v1/nodes?limit=1000", "/healthz", "/nowhere"])(
    "and sends ten thousand questions for %s at once holds up nobody else, and is sent away",
    (where) =>
      withFleetLab([], (lab) =>
        withDaemon(lab, async ({ url }) => {
          const socket = connect({ host: "127.0.0.1", port: Number(new URL(url).port) });
          let answers = "";
          socket.on("data", (text) => {
            answers += text;
          });
          socket.on("error", () => undefined);
          const ended = new Promise((resolve) => socket.once("close", resolve));
          socket.write(question(where).repeat(10_000));
          expect(await worstWait(url, ended)).toBeLessThan(patient(1_000));
          expect(answers.match(/^HTTP\/1\.1 /gm)?.length ?? 0).toBeLessThanOrEqual(MAX_AHEAD);
        }),
      ),
  );

  test("and asks a few questions ahead is answered, one after the other", () =>
    withFleetLab([], (lab) =>
      withDaemon(lab, async ({ url }) => {
        const socket = connect({ host: "127.0.0.1", port: Number(new URL(url).port) });
        const paths = Array.from({ length: MAX_AHEAD - 1 }, (_, index) => `/nowhere${index}`);
        socket.write(paths.map(question).join(""));
        socket.end(question("/healthz").replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n"));
        let answers = "";
        for await (const text of socket) answers += text;
        expect(answers.match(/nowhere\d+/g)).toEqual(paths.map((text) => text.slice(1)));
        expect(answers).toMatch(/200 OK[\s\S]*\{"status":"ok"\}$/);
      }),
    ));

  test("and never asks, asks half, or does not read the answer gives way to those who do", () =>
    withFleetLab([{ bin }], async (lab) => {
      await checkIn(lab, 300);
      await withDaemon(lab, async ({ url, send }) => {
        const port = Number(new URL(url).port);
        let givenWay = 0;
        const idle = ["", "GET /healthz HTTP/1.1\r\nhos", question("/api/v1/nodes?limit=1000").repeat(8)];
        const body =
          "PUT /api/v1/nodes/a HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 20\r\n\r\n{";
        const sockets = Array.from({ length: MAX_CONNECTIONS + 200 }, (_, index) => {
          const socket = connect({ host: "127.0.0.1", port });
          socket.on("error", () => undefined);
          // On a slow machine some are closed later by a time-out, which sends 408 before.
          socket.on("close", () => {
            if (socket.bytesRead === 0) givenWay += 1;
          });
          socket.write([...idle, body][index % 4] ?? "");
          if (index % 4 !== 2) socket.resume(); // Those that do not read do not see that they are closed.
          return socket;
        });
        try {
          await expect.poll(() => givenWay).toBeGreaterThanOrEqual(150);
          expect((await fetch(`${url}/readyz`)).status).toBe(200);
          const registered = await send("PUT", `/api/v1/nodes/${node(0)}`, { master: "master3" });
          expect(registered.status).toBe(200);
          expect(givenWay).toBeLessThan(300);
        } finally {
          for (const socket of sockets) socket.destroy();
        }
      });
    }));

  test("and sends a body byte by byte is sent away after ten seconds", () =>
    withFleetLab([], (lab) =>
      withDaemon(lab, async ({ url }) => {
        const socket = connect({ host: "127.0.0.1", port: Number(new URL(url).port) });
        let answer = "";
        socket.on("data", (text) => {
          answer += text;
        });
        socket.on("error", () => undefined);
        const head = "content-type: application/json\r\ncontent-length: 1000\r\n\r\n{";
        socket.write(`POST /api/v1/sync HTTP/1.1\r\nhost: localhost\r\n${head}`);
        const drip = setInterval(() => socket.write(" "), 200);
        const began = performance.now();
        await new Promise((resolve) => socket.once("close", resolve));
        clearInterval(drip);
        expect(performance.now() - began).toBeLessThan(patient(13_000));
        expect(answer).toMatch(/^HTTP\/1\.1 408 /);
      }),
    ));
});

/** Reads Server-Sent Events as a browser would. */
async function listen(url: string, lastEventId?: string) {
  const abort = new AbortController();
  const response = await fetch(`${url}/api/v1/events`, {
    signal: abort.signal,
    headers: lastEventId === undefined ? {} : { "last-event-id": lastEventId },
  });
  const events: { id: string; event: string; data: unknown }[] = [];
  let ended = false;
  const read = async () => {
    let text = "";
    for await (const chunk of response.body?.pipeThrough(new TextDecoderStream()) ?? []) {
      text += chunk;
      const blocks = text.split("\n\n");
      text = blocks.pop() ?? "";
      for (const block of blocks) {
        const [, id = "", event = "", data = ""] = /^id: (.*)\nevent: (.*)\ndata: (.*)$/.exec(block) ?? [];
        if (id !== "") events.push({ id, event, data: JSON.parse(data) });
      }
    }
  };
  const done = read()
    .catch(() => undefined)
    .finally(() => {
      ended = true;
    });
  return {
    response,
    events,
    names: () => events.map(({ event }) => event),
    ended: () => ended,
    async close() {
      abort.abort();
      await done;
    },
  };
}

describe("events", () => {
  test("tell moves, passes and the state as they happen; who comes back gets what was missed, in order", () =>
    withFleetLab([{ bin }], async (lab) => {
      await checkIn(lab, 6);
      await withDaemon(lab, async ({ url, send, sync }) => {
        const first = await listen(url);
        expect(first.response.headers.get("content-type")).toBe("text/event-stream");
        await expect.poll(first.names).toEqual(["status"]);
        expect(first.events[0]?.data).toMatchObject({ state: "in sync", nodes: 6 });
        await send("PUT", `/api/v1/nodes/${node(0)}`, { master: "master3" });
        await expect.poll(first.names).toEqual(["status", "moves", "pass"]);
        expect(first.events[1]?.data).toMatchObject([{ certname: node(0), from: "master1", to: "master3" }]);
        const lastSeen = first.events[2]?.id;
        await first.close();

        await lab.run(node(1), "master1");
        await sync();
        await lab.stopPuppetdb();
        await sync();
        const second = await listen(url, lastSeen);
        await expect.poll(second.names).toEqual(["moves", "pass", "pass", "status", "status"]);
        expect(second.events[0]?.data).toMatchObject([{ certname: node(1), to: "master1" }]);
        expect(second.events[2]?.data).toMatchObject({ outcome: "failed" });
        expect(second.events[3]?.data).toMatchObject({ state: "failing" });
        const sequence = second.events.map(({ id }) => Number(id.split("-")[1]));
        expect(sequence).toEqual(sequence.toSorted((a, b) => a - b));
        await second.close();

        for (const id of ["0-1", `${lastSeen?.split("-")[0]}-99999`, "nonsense", `${lastSeen} x`]) {
          const lost = await listen(url, id);
          await expect.poll(lost.names).toEqual(["reset", "status"]);
          await lost.close();
        }
      });
    }));

  test("tell the state also when only its sentence has changed", () =>
    withFleetLab([{ bin }], async (lab) => {
      await checkIn(lab, 3);
      await withDaemon(lab, async ({ url, sync }) => {
        const listener = await listen(url);
        await expect.poll(listener.names).toEqual(["status"]);
        await lab.run("new.example.com", "master1");
        await sync();
        await expect.poll(() => listener.names().filter((name) => name === "status")).toHaveLength(2);
        expect(listener.events.at(-1)?.data).toMatchObject({
          state: "in sync",
          summary: expect.stringMatching(/^4 nodes/),
        });
        await listener.close();
      });
    }));

  test("of a burst are one reset, not a list without end", () =>
    withFleetLab([], async (lab) => {
      await lab.stopPuppetdb();
      await writeFile(lab.mapFile, "");
      await withDaemon(lab, async ({ url, sync }) => {
        const listener = await listen(url);
        await expect.poll(listener.names).toEqual(["status"]);
        await mkdir(path.dirname(lab.mapFile), { recursive: true });
        await lab.startPuppetdb();
        await lab.run(node(0), "master1", -MINUTE);
        await sync({ full: true });
        const names = Array.from({ length: 1_200 }, (_, index) => `burst${index}.example.com`);
        // Not all at once: a server lets only so many connections wait.
        while (names.length > 0)
          await Promise.all(names.splice(0, 100).map((name) => lab.run(name, "master1")));
        await sync({ full: true });
        await expect.poll(listener.names).toContain("reset");
        expect(listener.events.find(({ event }) => event === "moves")).toBeUndefined();
        await listener.close();
      });
    }));

  test("have a bounded number of listeners, and end when sasori does", () =>
    withFleetLab([], async (lab) => {
      const listeners: Awaited<ReturnType<typeof listen>>[] = [];
      await withDaemon(lab, async ({ url }) => {
        for (let index = 0; index < MAX_CLIENTS_OF_ONE; index += 1) listeners.push(await listen(url));
        const refused = await fetch(`${url}/api/v1/events`);
        expect(refused.headers.get("retry-after")).toBe("10");
        expect(await problemOf(refused)).toMatchObject({ status: 503, title: "BUSY" });
        // There is room for other addresses.
        const from = async (localAddress: string) => {
          const asking = get(`${url}/api/v1/events`, { localAddress, agent: false });
          const [response] = (await once(asking, "response")) as [IncomingMessage];
          response.on("error", () => undefined).resume();
          return response.statusCode;
        };
        for (let index = MAX_CLIENTS_OF_ONE; index < MAX_CLIENTS; index += 1)
          expect(await from("127.0.0.2")).toBe(200);
        expect(await from("127.0.0.3")).toBe(503);
        const metrics = async () => (await fetch(`${url}/metrics`)).text();
        await expect.poll(metrics).toMatch(/^sasori_event_clients 100$/m);
        await listeners.pop()?.close();
        await expect
          .poll(async () => {
            const again = await listen(url);
            await again.close();
            return again.response.status;
          })
          .toBe(200);
      });
      for (const listener of listeners) await expect.poll(listener.ended).toBe(true);
    }));
});

test("drift is counted where somebody changed a live map to what no server is", () =>
  withFleetLab([{ bin }], async (lab) => {
    await checkIn(lab, 6);
    await withDaemon(lab, async ({ url, sync }) => {
      const [haproxy] = lab.haproxys;
      await runtimeCommand(haproxy?.socketPath ?? "", `set map ${haproxy?.mapPath} ${node(0)} nonsense`);
      expect((await sync({ full: true })).targets[1]).toMatchObject({ drift: 1, set: 1 });
      expect((await sync({ full: true })).targets[1]).toMatchObject({ drift: 0, outcome: "unchanged" });
      const metrics = await (await fetch(`${url}/metrics`)).text();
      expect(metrics).toContain(`sasori_drift_total{target="${haproxy?.socketPath}"} 1`);
    });
  }));
