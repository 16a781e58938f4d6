// The whole of it: the daemon as users start it, a real PuppetDB, and requests through a real HAProxy with the
// project's own configuration.

import { execFile } from "node:child_process";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { fileURLToPath } from "node:url";
import { request } from "undici";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { Diagnosis } from "../../src/doctor/doctor.js";
import { Child, freePort } from "../support/child.js";
import { type Gateway, withGateway } from "../support/gateway.js";
import { haproxyBinaries } from "../support/parts.js";
import { patient } from "../support/patience.js";
import { type PuppetdbServer, startPuppetdb } from "../support/puppetdb-server.js";
import { EVERY_SECOND, ON_DEMAND } from "../support/schedules.js";

const CLI = fileURLToPath(new URL("../../dist/src/cli.js", import.meta.url));
const NODE = "node1.example.com";
const SECOND = 1_000;

let puppetdb: PuppetdbServer;
beforeAll(async () => {
  puppetdb = await startPuppetdb();
});
afterAll(() => puppetdb.stop());
beforeEach(() => puppetdb.reset());

interface Running {
  daemon: Child;
  url: string;
  env: Record<string, string>;
  /** Runs `sasori ...` as a user would, in the daemon's environment. */
  cli(...args: string[]): Promise<{ code: number; stdout: string; stderr: string }>;
  /** The daemon's log lines about passes. */
  passes(): Record<string, unknown>[];
}

async function withDaemon(
  gateway: Gateway,
  use: (running: Running) => Promise<void>,
  extra = {},
): Promise<void> {
  const port = await freePort();
  const env = {
    PATH: process.env.PATH ?? "",
    SASORI_PUPPETDB_URL: puppetdb.url,
    SASORI_HAPROXY: gateway.haproxy.socketPath,
    SASORI_MAP_FILE: gateway.haproxy.mapPath,
    SASORI_LISTEN: `127.0.0.1:${port}`,
    ...EVERY_SECOND,
    ...extra,
  };
  const url = `http://127.0.0.1:${port}`;
  const daemon = new Child(process.execPath, [CLI, "serve"], { env });
  try {
    await daemon.untilReady(async () => (await fetch(`${url}/healthz`)).ok);
    await use({
      daemon,
      url,
      env,
      cli: (...args) => cli(env, ...args),
      passes: () => logged(daemon).filter((line) => "kind" in line),
    });
  } finally {
    await daemon.end();
  }
}

async function endsInTime(daemon: Child): Promise<void> {
  process.kill(daemon.pid, "SIGTERM");
  await expect.poll(() => daemon.ended, { timeout: patient(3 * SECOND) }).toBe(true); // 9 s at least.
}

function cli(
  env: Record<string, string>,
  ...args: string[]
): Promise<{ code: number; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    execFile(process.execPath, [CLI, ...args], { env }, (error, stdout, stderr) =>
      resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr }),
    );
  });
}

const logged = (daemon: Child) =>
  daemon.printed
    .split("\n")
    .filter((line) => line.startsWith("{"))
    .map((line) => JSON.parse(line) as Record<string, unknown>);

const masterOf = async (gateway: Gateway, node: string) =>
  (await gateway.ask(node)).headers.get("x-served-by");
const routed = (gateway: Gateway, node: string) => expect.poll(() => masterOf(gateway, node));

describe.each(haproxyBinaries())("sasori beside HAProxy $version", ({ bin }) => {
  test("routes a node that moved at a puppetserver's hint, long before the next poll", () =>
    withGateway({ bin }, async (gateway) => {
      await puppetdb.replaceFacts({ certname: NODE, producer: "master1" });
      await puppetdb.replaceFacts({ certname: "other.example.com", producer: "master2" });
      const port = await freePort();
      const rarely = { ...ON_DEMAND, SASORI_SYSLOG_LISTEN: `127.0.0.1:${port}` };
      await withDaemon(
        gateway,
        async ({ url }) => {
          await routed(gateway, NODE).toBe("master1");
          await puppetdb.replaceFacts({ certname: NODE, producer: "master2" });
          const hint = createSocket("udp4");
          const text = `<174>Nov 30 04:13:02 m2 master2 Puppet 'replace_facts' command for ${NODE} submitted to PuppetDB`;
          hint.send(text, port, "127.0.0.1");
          await routed(gateway, NODE).toBe("master2");
          hint.close();
          const status = await request(`${url}/api/v1/status`);
          expect(await status.body.json()).toMatchObject({ hints: { masters: 1, of: 1 } });
          const metrics = async () => (await request(`${url}/metrics`)).body.text();
          await expect.poll(metrics).toContain('sasori_hints_total{kind="syslog"} 1');
        },
        rarely,
      );
    }));

  test("routes a node's requests to the master that it moved to, within seconds and without a reload", () =>
    withGateway({ bin }, async (gateway) => {
      await puppetdb.replaceFacts({ certname: NODE, producer: "master1" });
      await puppetdb.replaceFacts({ certname: "other.example.com", producer: "master1" });
      await withDaemon(gateway, async ({ url }) => {
        await routed(gateway, NODE).toBe("master1");
        const pid = gateway.haproxy.pid;
        await puppetdb.replaceFacts({ certname: NODE, producer: "master2" });
        await routed(gateway, NODE).toBe("master2");
        await puppetdb.storeReport({ certname: NODE, producer: "master3" });
        await routed(gateway, NODE).toBe("master3");
        await puppetdb.deactivateNode(NODE);
        await expect.poll(async () => (await gateway.ask(NODE)).status).toBe(404);
        expect(gateway.haproxy.pid).toBe(pid);
        const metrics = async () => (await fetch(`${url}/metrics`)).text();
        await expect.poll(metrics).toMatch(/^sasori_nodes 1$/m);
      });
    }));
});

const bin = haproxyBinaries()[0]?.bin ?? "";

describe("sasori serve", () => {
  test("is told by SIGHUP to read everything, and by SIGTERM to end, which takes less than 10 s", () =>
    withGateway({ bin }, async (gateway) => {
      await puppetdb.replaceFacts({ certname: NODE, producer: "master1" });
      await withDaemon(
        gateway,
        async ({ daemon, url, passes }) => {
          await expect.poll(async () => (await fetch(`${url}/readyz`)).status).toBe(200);
          process.kill(daemon.pid, "SIGHUP");
          await expect.poll(() => passes().filter(({ kind }) => kind === "full").length).toBe(2);
          await endsInTime(daemon);
          expect(logged(daemon).at(-1)).toMatchObject({ msg: "stopped" });
          expect(
            passes().every(({ outcome, durationMs }) => outcome === "done" && typeof durationMs === "number"),
          ).toBe(true);
        },
        ON_DEMAND,
      );
    }));

  test("ends within 10 s whatever connections are open", () =>
    withGateway({ bin }, (gateway) =>
      withDaemon(gateway, async ({ daemon, url }) => {
        const { hostname, port } = new URL(url);
        const idle = connect(Number(port), hostname);
        const half = connect(Number(port), hostname, () =>
          half.write("POST /api/v1/sync HTTP/1.1\r\nHost: localhost\r\n"),
        );
        await Promise.all([once(idle, "connect"), once(half, "connect")]);
        for (const socket of [idle, half]) socket.on("error", () => undefined);
        await endsInTime(daemon);
        expect(logged(daemon).at(-1)).toMatchObject({ msg: "stopped" });
      }),
    ));

  test(
    "serves the last good map from a start with PuppetDB down, through its stop, and until it is back empty",
    () =>
      withGateway({ bin }, async (gateway) => {
        await puppetdb.replaceFacts({ certname: NODE, producer: "master1" });
        await withDaemon(gateway, () => routed(gateway, NODE).toBe("master1"));
        await puppetdb.stopPuppetdb();
        await withDaemon(gateway, async ({ url, cli }) => {
          await expect.poll(async () => (await fetch(`${url}/readyz`)).status).toBe(200);
          expect(await masterOf(gateway, NODE)).toBe("master1");
          const status = await cli("status");
          expect(status).toMatchObject({ code: 1, stdout: expect.stringContaining("PUPPETDB_UNREACHABLE") });
          await gateway.haproxy.restart();
          await routed(gateway, NODE).toBe("master1");
          await puppetdb.startPuppetdb();
          await puppetdb.reset();
          await expect.poll(async () => (await cli("sync", "--full")).code).toBe(3);
          expect(await masterOf(gateway, NODE)).toBe("master1");
          const { held } = JSON.parse((await cli("sync", "--json")).stdout) as { held: { id: string } };
          expect(await cli("sync", "--approve", held.id)).toMatchObject({ code: 0 });
          expect((await gateway.ask(NODE)).status).toBe(404);
        });
      }),
    180 * SECOND,
  );
});

describe("the command line", () => {
  test("does a pass by itself where no daemon runs, and asks the daemon where one does", () =>
    withGateway({ bin }, async (gateway) => {
      await puppetdb.replaceFacts({ certname: NODE, producer: "master1" });
      await puppetdb.replaceFacts({ certname: "lost.example.com", producer: "puppet9.corp" });
      await withDaemon(
        gateway,
        async ({ daemon, cli, passes }) => {
          await expect.poll(() => passes().length).toBeGreaterThan(0);
          await puppetdb.replaceFacts({ certname: NODE, producer: "master2" });
          const diff = await cli("diff");
          expect(diff.stdout).toMatch(/node1\.example\.com +master1 → master2/);
          const sync = await cli("sync");
          expect(sync).toMatchObject({ code: 0 });
          expect(sync.stdout).toMatch(/^node1\.example\.com +master1 → master2$/m);
          expect(sync.stdout).toContain("puppet9.corp (1)");
          expect(await masterOf(gateway, NODE)).toBe("master2");
          const lookup = await cli("lookup", NODE);
          expect(lookup.stdout).toMatch(/desired +master2, from facts since 20/);
          expect((await cli("lookup", "lost.example.com")).stdout).toContain("puppet9.corp submitted last");
          const status = await cli("status", "--json");
          expect(JSON.parse(status.stdout)).toMatchObject({
            ready: true,
            nodes: 1,
            targets: [{ inSync: true }, { inSync: true }],
          });

          const doctor = JSON.parse((await cli("doctor", "--json")).stdout) as Diagnosis;
          const outcomes = Object.fromEntries(doctor.findings.map(({ check, outcome }) => [check, outcome]));
          expect(outcomes).toMatchObject({ "PuppetDB's answers": "ok", nodes: "ok", "live map": "ok" });
          expect(JSON.stringify(doctor.findings)).toMatch(/PuppetDB [78]\.\S+ answered sasori's queries/);

          await daemon.end();
          expect(await cli("status")).toMatchObject({
            code: 1,
            stderr: expect.stringContaining("the daemon is not running"),
          });
          await puppetdb.storeReport({ certname: NODE, producer: "master3" });
          const alone = await cli("sync");
          expect(alone.stdout).toMatch(/node1\.example\.com +master2 → master3/);
          expect(await masterOf(gateway, NODE)).toBe("master3");
          expect((await cli("lookup", NODE)).stdout).toMatch(/desired +master3, from report/);
          expect(JSON.parse((await cli("sync", "--dry-run", "--json")).stdout)).toMatchObject({
            outcome: "done",
            dryRun: true,
            moved: 0,
          });
        },
        ON_DEMAND,
      );
    }));

  test.each([
    { args: ["lookup", "a;disable server puppet/master1"], code: 2, says: "cannot be a map key" },
    { args: ["nonsense"], code: 2, says: "unknown command" },
    { args: ["sync", "--fast"], code: 2, says: "unknown option" },
    { args: ["config"], code: 2, says: "SASORI_MAP_FILE is not set" },
    { args: ["--help"], code: 0, says: "Examples:" },
    { args: ["config", "--help"], code: 0, says: "SASORI_MAX_REMOVED" },
  ])("sasori $args: exit code $code", async ({ args, code, says }) => {
    const result = await cli({ PATH: process.env.PATH ?? "" }, ...args);
    expect(result.code).toBe(code);
    expect(result.stdout + result.stderr).toContain(says);
  });
});

describe("moving nodes by hand", () => {
  const env = ON_DEMAND;

  test("sasori register moves a node at once, over a restart, until PuppetDB knows better or it is ended", () =>
    withGateway({ bin }, async (gateway) => {
      await puppetdb.replaceFacts({
        certname: NODE,
        producer: "master1",
        at: new Date(Date.now() - 60 * SECOND),
      });
      await withDaemon(
        gateway,
        async ({ cli }) => {
          await routed(gateway, NODE).toBe("master1");
          expect(await cli("register", NODE, "master9")).toMatchObject({
            code: 2,
            stderr: expect.stringContaining("no master"),
          });
          const registered = await cli("register", NODE, "master3");
          expect(registered.stdout).toMatch(/desired +master3, from registration/);
          expect(await masterOf(gateway, NODE)).toBe("master3");
          expect((await cli("register", "new.example.com", "master2")).code).toBe(0);
          expect(await masterOf(gateway, "new.example.com")).toBe("master2");
        },
        env,
      );
      await withDaemon(
        gateway,
        async ({ cli }) => {
          expect((await cli("sync", "--full")).code).toBe(0);
          expect(await masterOf(gateway, NODE)).toBe("master3");
          expect((await cli("lookup", NODE)).stdout).toContain("from registration");
          expect(await cli("register", NODE, "--end")).toMatchObject({ code: 0 });
          expect(await masterOf(gateway, NODE)).toBe("master1");
          expect((await cli("register", NODE, "--end")).stderr).toContain("has no registration");
          await puppetdb.storeReport({
            certname: "new.example.com",
            producer: "master1",
            at: new Date(Date.now() + SECOND),
          });
          await cli("sync");
          expect(await masterOf(gateway, "new.example.com")).toBe("master1");
        },
        env,
      );
    }));

  test("sasori rebalance brings the nodes home that left a master while it was down", () =>
    withGateway({ bin }, async (gateway) => {
      const [first] = gateway.masters;
      await puppetdb.replaceFacts({
        certname: NODE,
        producer: "master1",
        at: new Date(Date.now() - 60 * SECOND),
      });
      await withDaemon(
        gateway,
        async ({ cli }) => {
          await routed(gateway, NODE).toBe("master1");
          await first?.stop();
          await expect.poll(async () => (await cli("status")).stdout).toContain("down: master1");
          await puppetdb.replaceFacts({ certname: NODE, producer: "master2" });
          expect((await cli("sync")).stdout).toContain("displaced: 1 node");
          expect((await cli("rebalance", "--dry-run")).stdout).toMatch(
            /node1\.example\.com +master2 +master1$/m,
          );
          expect(await masterOf(gateway, NODE)).toBe("master2");
          await first?.start();
          await expect.poll(async () => (await cli("status")).stdout).not.toContain("down: master1");
          expect(await cli("rebalance")).toMatchObject({
            code: 0,
            stdout: expect.stringContaining("1 node moved back"),
          });
          await routed(gateway, NODE).toBe("master1");
          expect((await cli("rebalance", "--dry-run")).stderr).toBe("no displaced nodes\n");
        },
        {},
      );
    }));
});

describe("the HTTP API", () => {
  test("answers only this machine itself where there is no token: no web page that leads here by its name", () =>
    withGateway({ bin }, (gateway) =>
      withDaemon(gateway, async ({ url }) => {
        const ask = async (headers: Record<string, string>) => {
          const { statusCode, body } = await request(`${url}/api/v1/sync`, { method: "POST", headers });
          await body.dump();
          return statusCode;
        };
        expect(await ask({})).toBe(200);
        expect(await ask({ host: "evil.example" })).toBe(403);
        expect(await ask({ origin: "http://evil.example" })).toBe(403);
        expect((await fetch(`${url}/api/v1/nodes/${"x".repeat(250)}`)).status).toBe(200);
        expect((await fetch(`${url}/api/v1/nodes/%zz`)).headers.get("content-type")).toMatch(
          /^application\/problem\+json/,
        );
      }),
    ));

  test("answers what is wrong with a request as problem+json, and wants its token where one is set", () =>
    withGateway({ bin }, async (gateway) => {
      const token = `${gateway.haproxy.dir}/token`;
      await writeFile(token, "s3cret\n");
      await withDaemon(
        gateway,
        async ({ url, cli, daemon }) => {
          const sync = (body: string, headers: Record<string, string> = {}) =>
            fetch(`${url}/api/v1/sync`, {
              method: "POST",
              body,
              headers: { "content-type": "application/json", ...headers },
            });
          const problem = async (response: Response, status: number) => {
            expect(response.status).toBe(status);
            expect(response.headers.get("content-type")).toMatch(/^application\/problem\+json/);
            return response.json();
          };
          await problem(await sync("{}"), 401);
          await problem(await sync("{}", { authorization: "Bearer wrong!" }), 401);
          const allowed = { authorization: "Bearer s3cret" };
          expect(await problem(await sync('{"approve":"x; y"}', allowed), 400)).toMatchObject({
            detail: expect.stringContaining("plan id"),
          });
          await problem(await sync('{"fast":true}', allowed), 400);
          await problem(await sync("{", allowed), 400);
          await problem(await sync(`{"approve":"${"0".repeat(20_000)}"}`, allowed), 413);
          await problem(await fetch(`${url}/api/v1/nodes/a;b`), 400);
          await problem(await fetch(`${url}/nowhere`), 404);
          expect((await sync('{"full":true}', allowed)).status).toBe(200);
          expect((await cli("sync")).code).toBe(0);
          expect(daemon.printed).not.toContain("s3cret");
        },
        { SASORI_API_TOKEN_FILE: token },
      );
    }));
});
