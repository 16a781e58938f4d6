// Many registrations at once: by the HTTP API and by `sasori register --file`. Real HAProxy instances, a real daemon, the real
// program.

import { spawn } from "node:child_process";
import { readFile, writeFile } from "node:fs/promises";
import path from "node:path";
import { pino } from "pino";
import { describe, expect, test } from "vitest";
import { startDaemon } from "../src/daemon.js";
import type { Moves, Nodes, Registrations, Story } from "../src/http/api-shapes.js";
import { MAX_REGISTRATIONS } from "../src/http/api-shapes.js";
import { toRegistrations } from "../src/http/registrations.js";
import type { Master } from "../src/node-map.js";
import { freePort } from "./support/child.js";
import { type FleetLab, withFleetLab } from "./support/fleet-lab.js";
import { haproxyBinaries } from "./support/parts.js";
import { ON_DEMAND } from "./support/schedules.js";

const bin = haproxyBinaries().at(-1)?.bin ?? "";
const CLI = path.resolve("dist/src/cli.js");
const node = (index: number) => `agent-${index}.site-one.example.com`;

interface Desk {
  /** A text is sent as it is, all else as JSON. */
  put(body: unknown, query?: string): Promise<{ status: number; body: Registrations & { detail: string } }>;
  get<T>(where: string): Promise<T>;
  /** `sasori` with these arguments and this standard input. */
  sasori(input: string, ...args: string[]): Promise<{ code: number; stdout: string; stderr: string }>;
}

async function withDesk(lab: FleetLab, use: (desk: Desk) => Promise<void>): Promise<void> {
  for (let index = 0; index < 3; index += 1) await lab.run(node(index), "master1", -60_000);
  const listen = `127.0.0.1:${await freePort()}`;
  const daemon = await startDaemon(
    lab.config({ SASORI_LISTEN: listen, ...ON_DEMAND }),
    pino({ level: "silent" }),
  );
  const get = async <T>(where: string) => (await (await fetch(`${daemon.url}${where}`)).json()) as T;
  try {
    await expect.poll(async () => (await get<Nodes>("/api/v1/nodes")).nodes.length).toBe(3);
    await use({
      get,
      async put(body, query = "") {
        const headers = { "content-type": "application/json" };
        const url = `${daemon.url}/api/v1/nodes${query}`;
        const text = typeof body === "string" ? body : JSON.stringify(body);
        const response = await fetch(url, { method: "PUT", headers, body: text });
        return {
          status: response.status,
          body: (await response.json()) as Registrations & { detail: string },
        };
      },
      async sasori(input, ...args) {
        const env = { PATH: process.env.PATH ?? "", SASORI_LISTEN: listen, SUDO_USER: "ana" };
        const child = spawn(process.execPath, [CLI, ...args], { env });
        const said = { stdout: "", stderr: "" };
        for (const stream of ["stdout", "stderr"] as const)
          child[stream].on("data", (chunk) => {
            said[stream] += chunk;
          });
        child.stdin.end(input);
        const code = await new Promise<number>((resolve) => child.once("close", resolve));
        return { code, ...said };
      },
    });
  } finally {
    await daemon.stop();
  }
}

describe("many registrations in one call", () => {
  test("are one change of every target, and say what they are for and who ordered them", () =>
    withFleetLab([{ bin }, { bin }], (lab) =>
      withDesk(lab, async ({ put, get }) => {
        const nodes = Object.fromEntries(
          Array.from({ length: 1_000 }, (_, index) => [node(index), "master2"]),
        );
        const answer = await put(nodes, "?reason=disk%20of%20master1&by=ana");
        expect(answer).toEqual({ status: 200, body: { registered: 1_000, lacking: [] } });
        for (const haproxy of lab.haproxys)
          expect(await haproxy.showMap()).toEqual(new Map(Object.entries(nodes)));
        expect(await lab.file()).toEqual(new Map(Object.entries(nodes)));
        const remarks = { reason: "disk of master1", by: "ana" };
        const story = await get<Story>(`/api/v1/nodes/${node(1)}`);
        expect(story).toMatchObject({ desired: { source: "registration", ...remarks }, moves: [remarks] });
        expect((await get<Moves>("/api/v1/moves?limit=1")).moves).toMatchObject([remarks]);
        expect((await get<Nodes>(`/api/v1/nodes?q=${node(7)}`)).nodes).toMatchObject([remarks]);
        // Each is a line of the state file with the same remarks, and is in force after a restart.
        expect(
          (await readFile(`${lab.mapFile}.state.json`, "utf8")).match(/"disk of master1"/g),
        ).toHaveLength(1_000);
        expect((await lab.newSync()).fleet.own.get(node(999) as never)).toMatchObject(remarks);
      }),
    ));

  test("may each have a remark of their own, and without one the caller's address is known", () =>
    withFleetLab([{ bin }], (lab) =>
      withDesk(lab, async ({ put, get }) => {
        const body = [
          { certname: node(0), master: "master2", reason: "moved to Bern", by: "eva" },
          { certname: node(1), master: "master3" },
        ];
        expect((await put(body, "?reason=all")).status).toBe(200);
        expect((await get<Story>(`/api/v1/nodes/${node(0)}`)).desired).toMatchObject({
          reason: "moved to Bern",
          by: "eva",
        });
        expect((await get<Story>(`/api/v1/nodes/${node(1)}`)).desired).toMatchObject({
          reason: "all",
          by: "127.0.0.1",
        });
      }),
    ));

  test("are all checked first: one that is wrong is named, and none counts", () =>
    withFleetLab([{ bin }], (lab) =>
      withDesk(lab, async ({ put, get }) => {
        const wrong = await put({ [node(0)]: "master2", "Node 9": "master2", [node(1)]: "master9" });
        expect(wrong).toMatchObject({
          status: 400,
          body: {
            title: "USAGE",
            detail: expect.stringMatching(
              /^nothing was registered, 2 nodes are wrong: "Node 9": .* cannot be a map key.*; "agent-1\.site-one\.example\.com": HAProxy has no master "master9" \(it has: master1, master2, master3\)$/,
            ),
          },
        });
        const twice = await put([1, 2].map((index) => ({ certname: node(0), master: `master${index}` })));
        expect(twice.body.detail).toMatch(/it is named twice, with master1 and "master2"$/);
        expect((await put({})).body.detail).toBe("name at least one node");
        const keyTwice = [
          `{"${node(0)}":"master2","${node(1)}":"a:\\"b\\\\","${node(0)}":"master3"}`,
          `[{"certname":"${node(0)}","master":"master2","\\u006daster":"master3"}]`,
        ];
        for (const text of keyTwice)
          expect(await put(text)).toMatchObject({
            status: 400,
            body: { detail: "a key occurs twice: use each node and each field only once" },
          });
        const misfits = [
          [{ [node(0)]: null }, `body/${node(0)}: Invalid input: expected string, received null`],
          [[{ certname: node(0) }], "body/0/master: Invalid input: expected string, received undefined"],
          [
            '"master2"',
            "body: Invalid input: expected record, received string, or Invalid input: expected array, received string",
          ],
        ] as const;
        for (const [body, detail] of misfits)
          expect(await put(body)).toMatchObject({ status: 400, body: { detail } });
        const numbers = Object.fromEntries(Array.from({ length: 5_000 }, (_, index) => [node(index), index]));
        expect((await put(numbers)).body.detail).toMatch(/received number; and 4,980 more$/);
        const brackets = 200_000;
        expect((await put("[".repeat(brackets) + "]".repeat(brackets))).status).toBe(400);
        const many = Array.from({ length: MAX_REGISTRATIONS + 1 }, (_, index) => [
          `n${index}.example.com`,
          "master1",
        ]);
        expect((await put(Object.fromEntries(many))).body.detail).toMatch(
          /at most 10,000 nodes; this one names 10,001/,
        );
        for (const reason of ["two\nlines", "  "])
          expect((await put({ [node(0)]: "master2" }, `?${new URLSearchParams({ reason })}`)).status).toBe(
            400,
          );
        const { nodes } = await get<Nodes>("/api/v1/nodes");
        expect(nodes.map(({ master, source }) => [master, source])).toEqual(
          Array(3).fill(["master1", "facts"]),
        );
      }),
    ));

  test("come from a file or a pipe by the command line, with who runs it", () =>
    withFleetLab([{ bin }], (lab) =>
      withDesk(lab, async ({ get, sasori }) => {
        const list = `# to Bern\n${node(0).toUpperCase()} master2\n\n  ${node(1)}\tmaster3 # the printer\r\n`;
        const file = path.join(path.dirname(lab.mapFile), "list.txt");
        await writeFile(file, list);
        const byFile = await sasori("", "register", "--file", file, "--reason", "to Bern");
        expect(byFile).toEqual({ code: 0, stdout: "registered 2 nodes\n", stderr: "" });
        expect(await lab.file()).toEqual(
          new Map([
            [node(0), "master2"],
            [node(1), "master3"],
            [node(2), "master1"],
          ]),
        );
        const { desired } = await get<Story>(`/api/v1/nodes/${node(1)}`);
        expect(desired).toMatchObject({ reason: "to Bern", by: expect.stringMatching(/^ana@./) });
        expect((await sasori("", "lookup", node(1))).stdout).toMatch(
          /from registration since .*, "to Bern" by ana@/,
        );
        expect((await sasori("", "moves")).stdout).toMatch(/ master3 +registration +ana@\S+ +"to Bern"/);
        const byPipe = await sasori(`${node(2)} master3\n`, "register", "--file", "-", "--json");
        expect(JSON.parse(byPipe.stdout)).toEqual({ registered: 1, lacking: [] });
        const wrong = await sasori(`${node(2)} master1\nprinter\n`, "register", "--file", "-");
        expect(wrong).toMatchObject({
          code: 2,
          stderr:
            'sasori: USAGE: nothing was registered: expected "certname master" on each line: line 2 is "printer"\n',
        });
        for (const args of [["--file", "-", node(1)], [node(1)], [], ["--file", "-", "--end"]])
          expect(await sasori("", "register", ...args)).toMatchObject({ code: 2 });
        expect((await sasori("", "register", node(1), "master1", "--reason", "back")).code).toBe(0);
        expect((await get<Story>(`/api/v1/nodes/${node(1)}`)).desired).toMatchObject({ reason: "back" });
      }),
    ));
});

test("a node that is named twice with one server, by its name and by its puppetserver's, is no contradiction", () => {
  const servers = {
    names: new Set(["master1", "master2"]),
    resolve: (producer: string) => (producer === "puppet1.example.com" ? ("master1" as Master) : undefined),
  };
  const twice = ["puppet1.example.com", "puppet1.example.com", "master1"];
  const body = twice.map((master) => ({ certname: "a.example.com", master }));
  expect(toRegistrations(body, {}, servers)).toMatchObject([
    { certname: "a.example.com", master: "master1" },
  ]);
});

test("ten thousand nodes with a master that is not one of many are refused in few words", () => {
  const names = new Set(Array.from({ length: 500 }, (_, index) => `puppet${index}.site-one.example.com`));
  const body = Array.from({ length: MAX_REGISTRATIONS }, (_, index) => ({
    certname: node(index),
    master: "nobody",
  }));
  let told = "";
  try {
    toRegistrations(body, {}, { names, resolve: () => undefined });
  } catch (error) {
    told = (error as Error).message;
  }
  expect(told).toMatch(
    /^nothing was registered, 10,000 nodes are wrong: .*, and 488 more\); and 9,980 more$/,
  );
  expect(told.length).toBeLessThan(20_000);
});
