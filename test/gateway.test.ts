import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { withGateway } from "./support/gateway.js";
import { runtimeCommand } from "./support/haproxy-server.js";
import { haproxyBinaries } from "./support/parts.js";

const CONFIG = fileURLToPath(new URL("../haproxy/haproxy.cfg", import.meta.url));

/** What `haproxy -c` says of the project's configuration, with these variables less than it needs. */
function check(bin: string, { without = [] as string[] } = {}): { status: number | null; text: string } {
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
  });
  const env = Object.fromEntries(variables.filter(([name]) => !without.includes(name)));
  const { status, stderr } = spawnSync(bin, ["-c", "-f", CONFIG], { encoding: "utf8", env });
  rmSync(folder, { recursive: true });
  return { status, text: stderr };
}

const NODE = "node1.example.com";

describe.each(haproxyBinaries())("the gateway on HAProxy $version", ({ bin }) => {
  test("has a configuration that HAProxy takes without a warning", () => {
    const { status, text } = check(bin);
    expect({ status, warnings: text.match(/WARNING|ALERT/g) }).toEqual({ status: 0, warnings: null });
  });

  test.each(["NODE_MASTER_MAP", "HAPROXY_SOCKET", "STATS_PASSWORD"])(
    "does not start without %s, and says so",
    (name) => {
      const { status, text } = check(bin, { without: [name] });
      expect(status).not.toBe(0);
      expect(text).toMatch(new RegExp(`${name}.* not set`));
    },
  );

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
    { says: "node_missing", status: 400, headers: {} },
    { says: "node_unknown", status: 404, headers: { "x-node-name": "other.example.com" } },
    { says: "node_invalid", status: 400, headers: { "x-node-name": "a;disable server puppet/master1" } },
    { says: "node_invalid", status: 400, headers: { "x-node-name": `${NODE}, node2.example.com` } },
    { says: "node_invalid", status: 400, headers: { "x-node-name": "x".repeat(254) } },
    { says: "node_invalid", status: 400, headers: { "x-node-name": "../etc" } },
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
        let release = () => {};
        const [overloaded] = masters;
        if (overloaded === undefined) throw new Error("no master");
        overloaded.hold = new Promise((resolve) => {
          release = resolve;
        });
        // maxconn 50 are served and maxqueue 100 wait; further ones have no place.
        const waiting = Array.from({ length: 150 }, () => ask(NODE));
        const queue = async () => Number((await servers(haproxy.socketPath)).get("master1"));
        await expect.poll(queue, { timeout: 10_000 }).toBe(100);
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

/** The queue of each server, from `show stat`. */
async function servers(socketPath: string): Promise<Map<string, string>> {
  const [header = "", ...rows] = (await runtimeCommand(socketPath, "show stat")).split("\n");
  const column = header.split(",").indexOf("qcur");
  return new Map(rows.map((row) => row.split(",")).map((cells) => [cells[1] ?? "", cells[column] ?? ""]));
}
