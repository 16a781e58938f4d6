import { once } from "node:events";
import { mkdir, readdir, readFile, rename, rm, utimes, writeFile } from "node:fs/promises";
import { createServer as createHttpServer, type ServerResponse } from "node:http";
import { type AddressInfo, createServer } from "node:net";
import path from "node:path";
import { describe, expect, test, vi } from "vitest";
import { NewMasters } from "../src/masters.js";
import type { Certname, Master, Observation } from "../src/node-map.js";
import type { SyncRequest } from "../src/pass-queue.js";
import { Journal } from "../src/state/journal.js";
import { assemble, Sync } from "../src/sync.js";
import type { SyncReport } from "../src/sync-report.js";
import { type FleetLab, MASTERS, withFleetLab } from "./support/fleet-lab.js";
import { startMaster } from "./support/gateway.js";
import { runtimeCommand } from "./support/haproxy-server.js";
import { haproxyBinaries } from "./support/parts.js";
import { patient } from "./support/patience.js";
import { answer, EMPTY, type Script, startScriptedPuppetdb } from "./support/scripted-puppetdb.js";
import { freeze } from "./support/slow-disk.js";

vi.mock("node:fs/promises", async (original) =>
  (await import("./support/slow-disk.js")).slowDisk(await original()),
);

const name = (index: number) => `node${index}.example.com`;
const MINUTE = 60_000;

/** `count` nodes, spread over the masters. */
async function checkIn(lab: FleetLab, count: number, at = -10 * MINUTE): Promise<Map<string, string>> {
  const routes = new Map<string, string>();
  for (let index = 0; index < count; index += 1) {
    const master = MASTERS[index % MASTERS.length] ?? "";
    await lab.run(name(index), master, at);
    routes.set(name(index), master);
  }
  return routes;
}

/** The file and every HAProxy hold exactly these routes. */
async function expectEverywhere(lab: FleetLab, routes: ReadonlyMap<string, string>): Promise<void> {
  expect(await lab.file()).toEqual(new Map([...routes].sort()));
  for (const haproxy of lab.haproxys) expect(await haproxy.showMap()).toEqual(routes);
}

const outcomes = (report: SyncReport) => report.targets.map(({ outcome }) => outcome);
const full = (sync: Sync) => sync.request({ full: true });
const registration = (certname: string, master: string, at = Date.now()): Observation => ({
  certname: certname as Certname,
  master: master as Master,
  at,
  source: "registration",
});

const fail = (): never => {
  throw new Error("broken");
};

/** A pass that waits for PuppetDB, which never answers. */
async function passThatHangs(lab: FleetLab, sync: Sync, request: SyncRequest = { full: true }) {
  await lab.stopPuppetdb();
  const hanging = createServer().listen(Number(new URL(lab.puppetdb.url).port), "127.0.0.1");
  await once(hanging, "listening");
  const pass = sync.request(request);
  await expect.poll(() => sync.phase).toBe("fetch");
  return {
    async end() {
      await sync.stop(0);
      hanging.close();
      return await pass;
    },
  };
}

const setLive = (lab: FleetLab, index: number, certname: string, master: string) => {
  const haproxy = lab.haproxys[index];
  if (haproxy === undefined) throw new Error(`no HAProxy ${index}`);
  return runtimeCommand(haproxy.socketPath, `set map ${haproxy.mapPath} ${certname} ${master}`);
};

describe.each(haproxyBinaries())("a pass with HAProxy $version", ({ bin }) => {
  test("brings a fleet and each of its moves into the file and into every HAProxy", () =>
    withFleetLab([{ bin }, { bin, tcpStats: true }], async (lab) => {
      const routes = await checkIn(lab, 30);
      const sync = await lab.newSync();
      expect(await sync.request({})).toMatchObject({ kind: "full", outcome: "done", nodes: 30, moved: 30 });
      await expectEverywhere(lab, routes);

      await lab.run(name(0), "master2");
      await lab.run("new.example.com", "master3");
      const report = await sync.request({});
      expect(report).toMatchObject({
        kind: "changes",
        outcome: "done",
        moved: 2,
      });
      expect(report.targets[0]?.changes).toContainEqual({
        certname: name(0),
        from: "master1",
        to: "master2",
      });
      expect(report.targets[0]).toMatchObject({ outcome: "applied", set: 1, add: 1, del: 0 });
      await expectEverywhere(lab, routes.set(name(0), "master2").set("new.example.com", "master3"));

      expect(outcomes(await sync.request({}))).toEqual(["unchanged", "unchanged", "unchanged"]);
      expect(outcomes(await full(sync))).toEqual(["unchanged", "unchanged", "unchanged"]);
    }));

  test("goes on for the others when one HAProxy is down, and brings that one up to date when it is back", () =>
    withFleetLab([{ bin }, { bin }], async (lab) => {
      const routes = await checkIn(lab, 10);
      const sync = await lab.newSync();
      await lab.haproxys[0]?.kill();
      const report = await sync.request({});
      expect(outcomes(report)).toEqual(["applied", "failed", "applied"]);
      expect(report).toMatchObject({
        outcome: "failed",
        targets: [{}, { failure: { code: "HAPROXY_UNREACHABLE" } }, {}],
      });
      await lab.haproxys[0]?.restart();
      expect(outcomes(await sync.request({}))).toEqual(["unchanged", "applied", "unchanged"]);
      await expectEverywhere(lab, routes);
    }));

  test("pushes what is missing to an HAProxy that was restarted with an old file", () =>
    withFleetLab(
      [
        {
          bin,
          map: [
            [name(0), "master3"],
            ["old.example.com", "master1"],
          ],
        },
      ],
      async (lab) => {
        const routes = await checkIn(lab, 10);
        const sync = await lab.newSync();
        const { held } = await sync.request({}); // Without a file nobody knows whose map that is.
        await sync.request({ approve: held?.id });
        await lab.haproxys[0]?.restart();
        expect(await lab.haproxys[0]?.showMap()).toEqual(
          new Map([
            [name(0), "master3"],
            ["old.example.com", "master1"],
          ]),
        );
        expect(await sync.request({})).toMatchObject({ outcome: "done", learned: 0 });
        await expectEverywhere(lab, routes);
      },
    ));

  test("takes a route that one HAProxy learned to the file, the others and over a restart, until PuppetDB knows better", () =>
    withFleetLab([{ bin }, { bin }], async (lab) => {
      const routes = await checkIn(lab, 10);
      const sync = await lab.newSync();
      await sync.request({});
      await setLive(lab, 1, name(4), "master3");
      expect(await full(sync)).toMatchObject({ outcome: "done", learned: 1 });
      await expectEverywhere(lab, routes.set(name(4), "master3"));

      const restarted = await lab.newSync();
      expect(await restarted.request({})).toMatchObject({ outcome: "done", moved: 0 });
      await expectEverywhere(lab, routes);

      await lab.run(name(4), "master1", 1_000);
      await restarted.request({});
      await expectEverywhere(lab, routes.set(name(4), "master1"));
    }));

  test("corrects what somebody broke by hand: a name that is no server, a deleted entry", () =>
    withFleetLab([{ bin }], async (lab) => {
      const routes = await checkIn(lab, 10);
      const sync = await lab.newSync();
      await sync.request({});
      await setLive(lab, 0, name(1), "nonsense");
      await runtimeCommand(
        lab.haproxys[0]?.socketPath ?? "",
        `del map ${lab.haproxys[0]?.mapPath} ${name(2)}`,
      );
      expect(await full(sync)).toMatchObject({ outcome: "done", learned: 0 });
      await expectEverywhere(lab, routes);
    }));

  test("gives a server that it added the address to which its name leads now", () =>
    withFleetLab([{ bin }], async (lab) => {
      const master = "puppet9.example.com";
      await lab.run(name(0), master);
      const config = lab.config({ SASORI_NEW_MASTERS: master, SASORI_NEW_MASTER_PORT: "18149" });
      const parts = assemble(config);
      let found = { address: "127.0.0.2", family: 4 };
      if (config.newMasters) parts.newMasters = new NewMasters(config.newMasters, async () => [found]);
      const sync = new Sync(parts);
      const changes = async () => (await full(sync)).masters.changes;
      const haproxy = lab.haproxys[0]?.socketPath ?? "";
      expect(await changes()).toEqual([{ haproxy, master, change: "added" }]);
      for (const next of [
        { address: "127.0.0.3", family: 4 },
        { address: "::1", family: 6 },
      ]) {
        expect(await changes()).toEqual([]);
        found = next;
        expect(await changes()).toEqual([{ haproxy, master, change: "readdressed" }]);
        const state = await runtimeCommand(haproxy, "show servers state puppet");
        expect(state).toContain(` ${master} ${next.address} `);
        expect(state.split("\n").find((line) => line.includes(master))).toContain(" 18149 ");
      }
      expect(await changes()).toEqual([]);
      await runtimeCommand(haproxy, `set server puppet/${master} addr 127.0.0.9 port 18149`);
      found = { address: "127.0.0.4", family: 4 };
      expect(await changes()).toEqual([]); // Whoever did that knows why.
      await parts.puppetdb.close();
    }));

  test("ends with the right map when HAProxy is reloaded during the push", () =>
    withFleetLab([{ bin, masterWorker: true }], async (lab) => {
      const routes = await checkIn(lab, 60);
      const sync = await lab.newSync();
      for (let round = 0; round < 5; round += 1) {
        for (let index = 0; index < 60; index += 1) {
          const master = MASTERS[(index + round + 1) % 3] ?? "";
          routes.set(name(index), master);
          await lab.run(name(index), master, round);
        }
        await Promise.all([sync.request({}), lab.haproxys[0]?.reload()]);
      }
      expect(await sync.request({})).toMatchObject({ outcome: "done" });
      await expectEverywhere(lab, routes);
    }));
});

const bin = haproxyBinaries()[0]?.bin ?? "";

/** Masters whose health is checked quickly. */
const checked = (ports: readonly number[]) => [
  "option httpchk GET /status/v1/simple",
  "default-server check inter 100ms fall 1 rise 1",
  ...ports.map((port, index) => `server master${index + 1} 127.0.0.1:${port}`),
];

describe("a pass", () => {
  test("reads what changed where it cannot read everything, and approves nothing by that", () =>
    withFleetLab([], async (lab) => {
      let [producer, canReadAll, at] = ["master1", true, Date.now() - 10 * MINUTE];
      const factsets: Script = (response) => {
        const isAll = !decodeURIComponent(response.req.url ?? "").includes('[">","timestamp"');
        if (isAll && !canReadAll)
          return answer("canceling statement due to timeout", 500, "text/plain")(response);
        at += 1_000;
        const time = new Date(at).toISOString();
        const row = { certname: name(0), producer, producer_timestamp: time, timestamp: time };
        answer(JSON.stringify([row]))(response);
      };
      const nodes = answer(
        JSON.stringify([{ certname: name(0), count: 1, deactivated: null, expired: null }]),
      );
      const server = await startScriptedPuppetdb({ factsets, nodes, other: EMPTY });
      try {
        const sync = await lab.newSync({ SASORI_PUPPETDB_URL: server.url });
        expect(await full(sync)).toMatchObject({ outcome: "done", nodes: 1 });
        [producer, canReadAll] = ["master2", false];
        const source = { outcome: "failed", failure: { code: "PUPPETDB_STATUS" } };
        expect(await full(sync)).toMatchObject({ kind: "full", outcome: "failed", moved: 1, source });
        expect(await lab.file()).toEqual(new Map([[name(0), "master2"]]));
        producer = "master3";
        const wrong = await sync.request({ approve: "0123456789ab" });
        expect(wrong).toMatchObject({ outcome: "failed", moved: 0, source, approvalUnmatched: true });
      } finally {
        await server.close();
      }
    }));

  test("keeps everything when PuppetDB is down, and says so", () =>
    withFleetLab([{ bin }], async (lab) => {
      const routes = await checkIn(lab, 10);
      const sync = await lab.newSync();
      await sync.request({});
      await lab.stopPuppetdb();
      for (const request of [{}, { full: true }]) {
        const report = await sync.request(request);
        expect(report).toMatchObject({
          outcome: "failed",
          source: { failure: { code: "PUPPETDB_UNREACHABLE" } },
          moved: 0,
        });
        await expectEverywhere(lab, routes);
      }
    }));

  test("repairs a restarted HAProxy even while PuppetDB is down", () =>
    withFleetLab([{ bin }], async (lab) => {
      const routes = await checkIn(lab, 10);
      const sync = await lab.newSync();
      await sync.request({});
      await lab.stopPuppetdb();
      await lab.haproxys[0]?.restart();
      await sync.request({});
      await expectEverywhere(lab, routes);
    }));

  test("holds the removal when PuppetDB comes back empty, until exactly that plan is approved", () =>
    withFleetLab([{ bin }], async (lab) => {
      const routes = await checkIn(lab, 10);
      const sync = await lab.newSync();
      await sync.request({});
      await lab.stopPuppetdb();
      expect(await sync.request({ approve: "000000000000" })).toMatchObject({
        outcome: "failed",
        approvalUnmatched: true,
      });
      await lab.startPuppetdb();
      const held = await full(sync);
      expect(held).toMatchObject({
        outcome: "held",
        held: { count: 10, reason: expect.stringContaining("empty the map") },
      });
      await expectEverywhere(lab, routes);
      expect(await sync.request({ full: true, approve: "000000000000" })).toMatchObject({ outcome: "held" });
      await expectEverywhere(lab, routes);
      expect(await sync.request({ full: true, approve: held.held?.id })).toMatchObject({
        outcome: "done",
        nodes: 0,
      });
      await expectEverywhere(lab, new Map());
    }));

  test("lets moves and new nodes through while removals are held, also for a sasori that has just started", () =>
    withFleetLab([{ bin }], async (lab) => {
      const routes = await checkIn(lab, 30);
      await (await lab.newSync()).request({});
      for (let index = 0; index < 15; index += 1) await lab.puppetdb.deactivateNode(name(index));
      await lab.run(name(20), "master1");
      await lab.run("new.example.com", "master2");
      const sync = await lab.newSync();
      const report = await sync.request({});
      expect(report).toMatchObject({ outcome: "held", held: { count: 15 } });
      await expectEverywhere(lab, routes.set(name(20), "master1").set("new.example.com", "master2"));
      // A held node that comes back changes the plan: an approval of the old one lets nothing through.
      await lab.run(name(3), "master3", 1_000);
      routes.set(name(3), "master3");
      const changed = await sync.request({ approve: report.held?.id });
      expect(changed).toMatchObject({ outcome: "held", held: { count: 14 } });
      await expectEverywhere(lab, routes);
      expect(await sync.request({ approve: changed.held?.id })).toMatchObject({ outcome: "done" });
      for (let index = 0; index < 15; index += 1) if (index !== 3) routes.delete(name(index));
      await expectEverywhere(lab, routes);
    }));

  test("holds another plan when a held node is registered, and an approval of the old one lets nothing through", () =>
    withFleetLab([{ bin }], async (lab) => {
      const routes = await checkIn(lab, 30);
      const sync = await lab.newSync();
      await sync.request({});
      for (let index = 0; index < 15; index += 1) await lab.puppetdb.deactivateNode(name(index));
      const { held: old } = await sync.request({});
      expect(old).toMatchObject({ count: 15 });
      await sync.submit(registration(name(3), "master3"));
      expect(sync.fleet.isHeld(name(3) as Certname)).toBe(false);
      routes.set(name(3), "master3");
      const changed = await sync.request({ approve: old?.id });
      expect(changed).toMatchObject({ outcome: "held", approvalUnmatched: true, held: { count: 14 } });
      await expectEverywhere(lab, routes);
      expect(await sync.request({ approve: changed.held?.id })).toMatchObject({ outcome: "done" });
      for (let index = 0; index < 15; index += 1) if (index !== 3) routes.delete(name(index));
      await expectEverywhere(lab, routes);
    }));

  test("asks PuppetDB before an approval removes anything: it may have been restored since", () =>
    withFleetLab([{ bin }], async (lab) => {
      const routes = await checkIn(lab, 30, -60 * MINUTE);
      const sync = await lab.newSync();
      await sync.request({});
      await lab.stopPuppetdb();
      await lab.startPuppetdb();
      // The first request may still meet a connection that ended with the old process.
      await lab.run(name(0), "master1", -60 * MINUTE).catch(() => undefined);
      const { held } = await full(sync);
      expect(held).toBeDefined();
      vi.useFakeTimers({ toFake: ["Date"], now: Date.now() - 60 * MINUTE });
      await checkIn(lab, 30, 0); // The rows of a backup: a look for changes does not see that they are back.
      vi.useRealTimers();
      expect((await sync.request({})).held?.id).toBe(held?.id);
      const report = await sync.request({ approve: held?.id });
      expect(report).toMatchObject({ kind: "full", approvalUnmatched: true, moved: 0 });
      expect(report.held).toBeUndefined();
      await expectEverywhere(lab, routes);
    }));

  test("removes a few deactivated nodes with the next look for changes", () =>
    withFleetLab([{ bin }], async (lab) => {
      const routes = await checkIn(lab, 10);
      const sync = await lab.newSync();
      await sync.request({});
      await lab.puppetdb.deactivateNode(name(3));
      expect(await sync.request({})).toMatchObject({ kind: "changes", outcome: "done", moved: 1 });
      routes.delete(name(3));
      await expectEverywhere(lab, routes);
    }));

  test("keeps a node that ran minutes ago although PuppetDB does not list it: it may lag, or be an old backup", () =>
    withFleetLab([{ bin }], async (lab) => {
      const routes = await checkIn(lab, 20);
      await lab.run("long-ago.example.com", "master1", -60 * MINUTE);
      await lab.run("just-now.example.com", "master1");
      await lab.run("wrong-clock.example.com", "master1", 24 * 60 * MINUTE);
      const sync = await lab.newSync();
      await sync.request({});
      await lab.stopPuppetdb();
      await lab.startPuppetdb();
      // The first request may still meet a connection that ended with the old process.
      await lab.run(name(0), "master1").catch(() => undefined);
      await checkIn(lab, 20);
      expect(await full(sync)).toMatchObject({ outcome: "done" });
      await expectEverywhere(
        lab,
        routes.set("just-now.example.com", "master1").set("wrong-clock.example.com", "master1"),
      );
    }));

  test("judges what a HAProxy holds that it meets later: a sasori without a file empties none", () =>
    withFleetLab(
      [{ bin }, { bin, map: Array.from({ length: 50 }, (_, i): [string, string] => [name(i), "master1"]) }],
      async (lab) => {
        await lab.run(name(0), "master1");
        const socket = lab.haproxys[1]?.socketPath ?? "";
        await rename(socket, `${socket}.away`);
        const sync = await lab.newSync();
        expect(await sync.request({})).toMatchObject({ nodes: 1, targets: [{}, {}, { outcome: "failed" }] });
        await rename(`${socket}.away`, socket);
        expect(await sync.request({})).toMatchObject({ kind: "full", outcome: "held", held: { count: 49 } });
        expect((await lab.haproxys[1]?.showMap())?.size).toBe(50);
        expect((await lab.file()).size).toBe(50);
      },
    ));

  test("keeps what HAProxy learned unseen when a push replaces the whole map", () =>
    withFleetLab([{ bin }], async (lab) => {
      const routes = await checkIn(lab, 601);
      const sync = await lab.newSync();
      await sync.request({});
      await setLive(lab, 0, name(600), "master2");
      for (let index = 0; index < 600; index += 1) {
        await lab.run(name(index), "master3", index);
        routes.set(name(index), "master3");
      }
      expect(await sync.request({})).toMatchObject({
        kind: "changes",
        learned: 1,
        targets: [{}, { method: "swap" }],
      });
      await expectEverywhere(lab, routes.set(name(600), "master2"));
    }));

  test("believes PuppetDB rather than a route that was learned at some time before or after", () =>
    withFleetLab([{ bin }, { bin }], async (lab) => {
      const routes = await checkIn(lab, 3);
      const sync = await lab.newSync();
      await sync.request({});
      await setLive(lab, 0, name(0), "master3");
      await lab.run(name(0), "master1", 1_000);
      await sync.request({});
      expect(await full(sync)).toMatchObject({ learned: 0 });
      await expectEverywhere(lab, routes);
    }));

  test("keeps no node at a master whose clock is ahead: what it dated later than PuppetDB received it counts from then", () =>
    withFleetLab([{ bin }], async (lab) => {
      const year = 365 * 24 * 60 * MINUTE;
      for (const index of [0, 1, 2]) await lab.run(name(index), "master1", index === 0 ? 0 : year);
      const sync = await lab.newSync();
      const { clocksAhead } = await sync.request({});
      expect(clocksAhead).toEqual({ master1: { nodes: 2, until: expect.stringMatching(/^20\d\d-/) } });
      // PuppetDB refuses the facts of what follows, which are older, and takes the reports.
      for (const index of [0, 1])
        await lab.puppetdb.storeReport({ certname: name(index), producer: "master2" });
      await sync.submit(registration(name(2), "master3"));
      const routes = new Map([
        [name(0), "master2"],
        [name(1), "master2"],
        [name(2), "master3"],
      ]);
      for (const request of [{}, { full: true }]) {
        await sync.request(request);
        await expectEverywhere(lab, routes);
      }
      // Like a sasori that does not know it.
      const anew = await lab.newSync({ SASORI_STATE_FILE: `${lab.mapFile}.other` });
      await full(anew);
      await expectEverywhere(lab, routes.set(name(2), "master1"));
      await lab.puppetdb.storeReport({ certname: name(2), producer: "master2" });
      await full(sync);
      await expectEverywhere(lab, routes.set(name(2), "master2"));
    }));

  test("lets nothing through on a dry run, whatever is approved or asked at the same time", () =>
    withFleetLab([{ bin }], async (lab) => {
      const routes = await checkIn(lab, 12);
      const sync = await lab.newSync();
      await sync.request({});
      await lab.stopPuppetdb();
      await lab.startPuppetdb();
      const [, dry, real] = await Promise.all([
        sync.request({}),
        sync.request({ dryRun: true, full: true }),
        full(sync),
      ]);
      expect(dry).toMatchObject({ dryRun: true, outcome: "held" });
      expect(real).toMatchObject({ dryRun: false, outcome: "held" });
      const wrong = await sync.request({ approve: "0123456789ab" });
      expect(wrong).toMatchObject({ outcome: "held", approvalUnmatched: true });
      await expectEverywhere(lab, routes);
    }));

  test("believes the HAProxy that learned a route rather than one that was compared later and has the old one", () =>
    withFleetLab([{ bin }, { bin }], async (lab) => {
      const routes = await checkIn(lab, 3);
      const sync = await lab.newSync();
      await sync.request({});
      const socket = lab.haproxys[0]?.socketPath ?? "";
      await rename(socket, `${socket}.away`);
      await full(sync);
      await rename(`${socket}.away`, socket);
      await setLive(lab, 0, name(0), "master3");
      expect(await full(sync)).toMatchObject({ learned: 1 });
      await expectEverywhere(lab, routes.set(name(0), "master3"));
    }));

  test("follows server lines that were renamed or removed in HAProxy", () =>
    withFleetLab(
      [
        {
          bin,
          masterWorker: true,
          servers: [
            { name: "old", port: 18141 },
            { name: "gone", port: 18142 },
          ],
        },
      ],
      async (lab) => {
        await lab.run(name(0), "old");
        await lab.run(name(1), "gone");
        const sync = await lab.newSync({ SASORI_MASTER_ALIASES: "puppet1=new" });
        await sync.request({});
        const haproxy = lab.haproxys[0];
        const config = path.join(haproxy?.dir ?? "", "haproxy.cfg");
        const text = await readFile(config, "utf8");
        await writeFile(config, text.replace(/server gone .*/, ""));
        await haproxy?.reload();
        expect(await sync.request({})).toMatchObject({
          kind: "full",
          unroutable: { nodes: 1, producers: { gone: 1 } },
        });
        expect((await haproxy?.showMap())?.get(name(1))).toBe("gone"); // Never worse: the gateway heals it.
      },
    ));

  test("has learned routes in the state file before they are anywhere else", () =>
    withFleetLab([{ bin }, { bin }], async (lab) => {
      await checkIn(lab, 3);
      const folder = `${path.dirname(lab.mapFile)}-state`;
      const state = path.join(folder, "state.json");
      await mkdir(folder);
      const sync = await lab.newSync({ SASORI_STATE_FILE: state });
      await sync.request({});
      await setLive(lab, 0, name(0), "master3");
      await rm(folder, { recursive: true }); // The journal cannot be written; the pass says so and goes on.
      expect(await full(sync)).toMatchObject({
        outcome: "failed",
        journal: { code: "FILE_WRITE" },
        learned: 1,
      });
      await mkdir(folder);
      expect(await sync.request({})).toMatchObject({ outcome: "done" });
      expect(await readFile(state, "utf8")).toContain('"learned"');
    }));

  test("repairs a restarted HAProxy while PuppetDB hangs", () =>
    withFleetLab([{ bin }], async (lab) => {
      const routes = await checkIn(lab, 10);
      const sync = await lab.newSync();
      await sync.request({});
      await lab.stopPuppetdb();
      const hanging = createServer().listen(Number(new URL(lab.puppetdb.url).port), "127.0.0.1");
      await once(hanging, "listening");
      await lab.haproxys[0]?.restart();
      const pass = sync.request({});
      await expect.poll(() => lab.haproxys[0]?.showMap()).toEqual(routes);
      expect(sync.busy).toBe(true); // PuppetDB still has not answered.
      await sync.stop(0);
      await expect(pass).resolves.toMatchObject({ source: { outcome: "failed" } });
      hanging.close();
    }));

  test("brings a registration to every target while PuppetDB still has not answered", () =>
    withFleetLab([{ bin }, { bin }], async (lab) => {
      const routes = await checkIn(lab, 3);
      const sync = await lab.newSync();
      await sync.request({});
      const pass = await passThatHangs(lab, sync);
      await sync.submit(registration(name(0), "master3"));
      expect(sync.phase).toBe("fetch");
      await expectEverywhere(lab, routes.set(name(0), "master3"));
      await pass.end();
    }));

  test("keeps what HAProxy learned unseen when many registrations come while PuppetDB has not answered", () =>
    withFleetLab([{ bin }], async (lab) => {
      const routes = await checkIn(lab, 601);
      const sync = await lab.newSync();
      await sync.request({});
      const pass = await passThatHangs(lab, sync);
      await setLive(lab, 0, name(600), "master2");
      const many = Array.from({ length: 600 }, (_, index) => name(index));
      await Promise.all(many.map((certname) => sync.submit(registration(certname, "master3"))));
      for (const certname of many) routes.set(certname, "master3");
      await expectEverywhere(lab, routes.set(name(600), "master2"));
      await pass.end();
    }));

  test("brings a registration also to an HAProxy of which only PuppetDB could tell whether it is right", () =>
    withFleetLab([{ bin, map: [[name(0), "master1"]] }], async (lab) => {
      await writeFile(lab.mapFile, `${name(0)} master2\n`);
      const sync = await lab.newSync();
      const pass = await passThatHangs(lab, sync);
      await sync.submit(registration(name(0), "master3"));
      await expectEverywhere(lab, new Map([[name(0), "master3"]]));
      await pass.end();
    }));

  test("routes the nodes of a server that appeared while PuppetDB was down", () =>
    withFleetLab([{ bin, servers: [{ name: "master1", port: 18141 }] }], async (lab) => {
      await lab.run(name(0), "master1");
      await lab.run(name(1), "master2");
      const sync = await lab.newSync();
      await sync.request({});
      const socket = lab.haproxys[0]?.socketPath ?? "";
      await lab.stopPuppetdb();
      await runtimeCommand(socket, "add server puppet/master2 127.0.0.1:18142");
      expect(await sync.request({})).toMatchObject({ kind: "full", outcome: "failed" });
      await lab.startPuppetdb();
      await lab.run(name(0), "master1");
      await lab.run(name(1), "master2", -MINUTE);
      expect(await sync.request({})).toMatchObject({ kind: "full", outcome: "done" });
      await expectEverywhere(
        lab,
        new Map([
          [name(0), "master1"],
          [name(1), "master2"],
        ]),
      );
    }));

  test("remembers where the nodes of a dead master were at home, until they are back or it is their choice", async () => {
    const masters = await Promise.all(["master1", "master2"].map((name) => startMaster(name)));
    await withFleetLab([{ bin, backendLines: checked(masters.map(({ port }) => port)) }], async (lab) => {
      const sync = await lab.newSync();
      const up = async () => (await sync.request({})) && sync.servers()?.map((server) => server.up);
      await expect.poll(up).toEqual([true, true]);
      await lab.run(name(0), "master1", -MINUTE);
      await lab.run(name(1), "master2", -MINUTE);
      expect(await sync.request({})).toMatchObject({ displaced: 0, nodes: 2 });
      await masters[0]?.stop();
      await expect.poll(up).toEqual([false, true]);
      await lab.run(name(0), "master2");
      expect(await sync.request({})).toMatchObject({ displaced: 1 });
      expect([...sync.fleet.homes]).toEqual([[name(0), "master1"]]);
      expect([...(await lab.newSync()).fleet.homes]).toEqual([[name(0), "master1"]]);
      await masters[0]?.start();
      await expect.poll(up).toEqual([true, true]);
      await sync.submit(registration(name(0), "master1", Date.now() + 1));
      expect(sync.lastReport).toMatchObject({ displaced: 0 });
      expect((await lab.haproxys[0]?.showMap())?.get(name(0))).toBe("master1");

      // Also when HAProxy has learned it, or a person has set it there.
      await masters[0]?.stop();
      await expect.poll(up).toEqual([false, true]);
      await full(sync); // What differs from now on is newer than the registration.
      await setLive(lab, 0, name(0), "master2");
      expect(await full(sync)).toMatchObject({ learned: 1, displaced: 1 });
      await masters[0]?.start();
      await expect.poll(up).toEqual([true, true]);
      await setLive(lab, 0, name(0), "master1");
      expect(await full(sync)).toMatchObject({ learned: 1, displaced: 0 });
    });
    for (const master of masters) await master.stop();
  });

  test("remembers such a node's home, also where map and HAProxy have lost all, and forgets that of a node which is gone", () =>
    withFleetLab([{ bin }], async (lab) => {
      await lab.run(name(0), "master2", -MINUTE);
      const rows = ["master1", "master2"].map((master, index) => {
        const value = { master: master as Master };
        return { kind: "home" as const, key: name(index) as Certname, value };
      });
      await new Journal(`${lab.mapFile}.state.json`).save(rows);
      const sync = await lab.newSync();
      expect(await full(sync)).toMatchObject({ displaced: 1 });
      expect([...sync.fleet.homes]).toEqual([[name(0), "master1"]]);
      expect([...(await lab.newSync()).fleet.homes]).toEqual([[name(0), "master1"]]);
    }));

  test("takes a node whose home HAProxy no longer has for at home where it has run since, and no other", () =>
    withFleetLab([{ bin, masterWorker: true }], async (lab) => {
      const moved = [0, 1, 2].map(name);
      for (const certname of moved) await lab.run(certname, "master2", -MINUTE);
      const rows = moved.map((key, index) => {
        const value = { master: (index === 2 ? "master3" : "master1") as Master };
        return { kind: "home" as const, key: key as Certname, value };
      });
      await new Journal(`${lab.mapFile}.state.json`).save(rows);
      const sync = await lab.newSync();
      expect(await full(sync)).toMatchObject({ displaced: 3 });
      const socket = lab.haproxys[0]?.socketPath ?? "";
      await runtimeCommand(socket, "set server puppet/master1 state maint");
      await runtimeCommand(socket, "del server puppet/master1");
      expect(await full(sync)).toMatchObject({ displaced: 3 });

      await lab.haproxys[0]?.reload(); // The server is there again: it was missing for a moment.
      expect(await full(sync)).toMatchObject({ displaced: 3 });
      await lab.run(name(0), "master2");
      expect(await full(sync)).toMatchObject({ displaced: 3 });

      await runtimeCommand(socket, "set server puppet/master1 state maint");
      await runtimeCommand(socket, "del server puppet/master1");
      expect(await full(sync)).toMatchObject({ displaced: 3 });
      await lab.run(name(0), "master2", 1);
      await lab.run(name(2), "master2", 1);
      expect(await full(sync)).toMatchObject({ displaced: 2 });
      const homes = [
        [name(1), "master1"],
        [name(2), "master3"],
      ];
      expect([...sync.fleet.homes]).toEqual(homes);
      expect([...(await lab.newSync()).fleet.homes]).toEqual(homes);
    }));

  test("starts from the last good map when PuppetDB is down, and gives it to an empty HAProxy", () =>
    withFleetLab([{ bin }], async (lab) => {
      await lab.stopPuppetdb();
      await writeFile(lab.mapFile, `${name(0)} master1\n${name(1)} master2\n`);
      const sync = await lab.newSync();
      await sync.request({});
      expect(sync.fleet.map.size).toBe(2);
      await expectEverywhere(
        lab,
        new Map([
          [name(0), "master1"],
          [name(1), "master2"],
        ]),
      );
    }));

  test("does not put the file's old route over a live one while PuppetDB is down", () =>
    withFleetLab([{ bin, map: [[name(0), "master3"]] }], async (lab) => {
      await lab.stopPuppetdb();
      await writeFile(lab.mapFile, `${name(0)} master1\n`);
      await (await lab.newSync()).request({});
      expect(await lab.haproxys[0]?.showMap()).toEqual(new Map([[name(0), "master3"]]));
    }));

  test("brings a HAProxy up to date that a killed sasori has left behind the file", () =>
    withFleetLab([{ bin, map: [[name(0), "master1"]] }, { bin }], async (lab) => {
      await writeFile(lab.mapFile, `${name(0)} master2\n`);
      await lab.stopPuppetdb();
      const sync = await lab.newSync();
      await sync.request({});
      expect(await lab.haproxys[0]?.showMap()).toEqual(new Map([[name(0), "master1"]])); // Nobody knows better.
      expect(sync.targets().map(({ inSync }) => inSync)).toEqual([true, false, true]);
      await lab.startPuppetdb();
      await lab.run(name(0), "master2", -MINUTE);
      expect(await sync.request({})).toMatchObject({ outcome: "done" });
      await expectEverywhere(lab, new Map([[name(0), "master2"]]));
      expect(await (await lab.newSync()).request({})).toMatchObject({ outcome: "done", moved: 0 });
    }));

  test("serves, and learns, while only PuppetDB can decide on a node that file and HAProxy disagree on", () => {
    const map: [string, string][] = [
      [name(0), "master1"],
      [name(1), "master1"],
    ];
    return withFleetLab([{ bin, map }], async (lab) => {
      await writeFile(lab.mapFile, `${name(0)} master2\n${name(1)} master1\n`);
      await lab.stopPuppetdb();
      const sync = await lab.newSync();
      await sync.request({});
      expect(sync.served).toBe(true);
      await setLive(lab, 0, name(1), "master3");
      expect(await full(sync)).toMatchObject({ learned: 1 });
      await setLive(lab, 0, name(0), "master3");
      expect(await full(sync)).toMatchObject({ learned: 1 });
      await expectEverywhere(
        lab,
        new Map([
          [name(0), "master3"],
          [name(1), "master3"],
        ]),
      );
    });
  });

  test("does not remove live routes that only a lost file does not hold", () =>
    withFleetLab([{ bin, map: [[name(0), "master3"]] }], async (lab) => {
      await lab.stopPuppetdb();
      await (await lab.newSync()).request({});
      await expectEverywhere(lab, new Map([[name(0), "master3"]]));
    }));

  test("routes a producer's nodes as soon as HAProxy has a server for it", () =>
    withFleetLab([{ bin, servers: [{ name: "master1", port: 18141 }] }], async (lab) => {
      await lab.run(name(0), "master1");
      await lab.run(name(1), "puppet9.corp");
      const sync = await lab.newSync();
      expect(await sync.request({})).toMatchObject({
        unroutable: { nodes: 1, producers: { "puppet9.corp": 1 } },
      });
      await expectEverywhere(lab, new Map([[name(0), "master1"]]));
      const add = "add server puppet/puppet9.corp 127.0.0.1:18149";
      expect(await runtimeCommand(lab.haproxys[0]?.socketPath ?? "", add)).toContain("New server registered");
      expect(await sync.request({})).toMatchObject({ kind: "full", unroutable: { nodes: 0 } });
      await expectEverywhere(
        lab,
        new Map([
          [name(0), "master1"],
          [name(1), "puppet9.corp"],
        ]),
      );
    }));

  test("gives a new producer a server where the pattern allows it, again after a reload, and takes it away when unused", () =>
    withFleetLab([{ bin, masterWorker: true }, { bin }], async (lab) => {
      await lab.run(name(0), "master1");
      await lab.run(name(1), "localhost"); // A name that has an address on every machine.
      await lab.run(name(2), "puppet9.elsewhere");
      const sync = await lab.newSync({
        SASORI_NEW_MASTERS: "localhost|puppet9",
        SASORI_NEW_MASTER_PORT: "18149",
      });
      const added = lab.haproxys.map(({ socketPath }) => ({
        haproxy: socketPath,
        master: "localhost",
        change: "added",
      }));
      expect(await sync.request({})).toMatchObject({
        outcome: "done",
        masters: { changes: added, failures: [] },
      });
      const routes = new Map([
        [name(0), "master1"],
        [name(1), "localhost"],
      ]);
      expect(await sync.request({})).toMatchObject({
        kind: "full",
        unroutable: { nodes: 1 },
        masters: { changes: [] },
      });
      await expectEverywhere(lab, routes);
      await lab.haproxys[0]?.reload();
      expect(await sync.request({})).toMatchObject({ outcome: "done", masters: { changes: [added[0]] } });
      await lab.run(name(1), "master2", 1_000);
      const reports = [await sync.request({}), await full(sync)];
      const removed = added.map((change) => ({ ...change, change: "removed" }));
      expect(reports.flatMap(({ masters }) => masters.changes)).toEqual(removed);
      const state = await runtimeCommand(lab.haproxys[1]?.socketPath ?? "", "show servers state puppet");
      expect(state).not.toContain("localhost");
      expect((await full(sync)).masters.changes).toEqual([]);
    }));

  test("lets nodes come back to a master whose server could not be taken away while it served a request", () =>
    withFleetLab([{ bin }], async (lab) => {
      const socket = lab.haproxys[0]?.socketPath ?? "";
      const port = lab.haproxys[0]?.ports.frontend;
      const held: ServerResponse[] = [];
      const master = createHttpServer((_, response) => held.push(response)).listen(0, "127.0.0.1");
      await once(master, "listening");
      await lab.run(name(0), "master1");
      await lab.run(name(1), "localhost");
      const sync = await lab.newSync({
        SASORI_NEW_MASTERS: "localhost",
        SASORI_NEW_MASTER_PORT: `${(master.address() as AddressInfo).port}`,
      });
      await sync.request({});
      await sync.request({});
      const answer = fetch(`http://127.0.0.1:${port}/`, { headers: { "x-node-name": name(1) } });
      await expect.poll(() => held.length).toBe(1);
      await lab.run(name(1), "master1", 1_000);
      expect((await full(sync)).masters.changes).toMatchObject([
        { change: "removed", failure: { message: expect.stringContaining("connections") } },
      ]);
      await lab.run(name(0), "localhost", 1_000);
      const reports = [await sync.request({}), await full(sync), await full(sync)];
      held[0]?.end("done");
      expect((await answer).status).toBe(200);
      reports.push(await full(sync));
      expect(reports.flatMap(({ masters }) => masters.changes)).toEqual([]);
      const state = await runtimeCommand(socket, "show servers state puppet");
      expect(/ localhost \S+ [0-3] (\d+) /.exec(state)?.[1]).toBe("0"); // In no maintenance.
      master.closeAllConnections();
      master.close();
    }));

  test("leaves a server alone that it once added and that the operator has put into the configuration since", () =>
    withFleetLab([{ bin, masterWorker: true }], async (lab) => {
      const [haproxy] = lab.haproxys;
      if (haproxy === undefined) throw new Error("no HAProxy");
      await lab.run(name(0), "localhost");
      const sync = await lab.newSync({ SASORI_NEW_MASTERS: "localhost" });
      expect((await sync.request({})).masters.changes).toMatchObject([{ change: "added" }]);
      const config = path.join(haproxy.dir, "haproxy.cfg");
      const lines = (await readFile(config, "utf8")).replace(
        /^( *server )master1 /m,
        "$1localhost 127.0.0.1:1\n$&",
      );
      await writeFile(config, lines);
      await haproxy.reload();
      await lab.run(name(0), "master1", 1_000);
      const reports = [await full(sync), await full(sync)];
      expect(reports.flatMap(({ masters }) => masters.changes)).toEqual([]);
      const state = await runtimeCommand(haproxy.socketPath, "show servers state puppet");
      expect(/ localhost \S+ [0-3] (\d+) /.exec(state)?.[1]).toBe("0"); // In no maintenance.
    }));

  test("keeps the server that it added for a master while nodes that left it dead are at home there", () =>
    withFleetLab([{ bin, masterWorker: true }], async (lab) => {
      const [haproxy] = lab.haproxys;
      await lab.run(name(0), "localhost", -MINUTE);
      const sync = await lab.newSync({
        SASORI_NEW_MASTERS: "localhost",
        SASORI_NEW_MASTER_OPTIONS: "check inter 50ms fall 1",
      });
      await sync.request({});
      await sync.request({});
      const servers = async () => runtimeCommand(haproxy?.socketPath ?? "", "show servers state puppet");
      await expect.poll(servers).toMatch(/ localhost \S+ 0 /); // Nobody listens there: it is down.
      await lab.run(name(0), "master1");
      const reports = [await sync.request({}), await full(sync), await full(sync)];
      expect(reports.at(-1)).toMatchObject({ displaced: 1 });
      expect(reports.flatMap(({ masters }) => masters.changes)).toEqual([]);
      expect(await servers()).toContain(" localhost ");
      await haproxy?.reload();
      expect((await full(sync)).masters.changes).toMatchObject([{ change: "added", master: "localhost" }]);
    }));

  test("gives a reloaded HAProxy its servers back also when sasori has been restarted meanwhile", () =>
    withFleetLab([{ bin, masterWorker: true }, { bin }], async (lab) => {
      await lab.run(name(0), "localhost");
      const options = { SASORI_NEW_MASTERS: "localhost" };
      const before = await lab.newSync(options);
      await before.request({});
      await before.request({});
      await lab.haproxys[0]?.reload();
      const sync = await lab.newSync(options);
      expect(await sync.request({})).toMatchObject({
        masters: {
          changes: [{ haproxy: lab.haproxys[0]?.socketPath, master: "localhost", change: "added" }],
        },
      });
    }));

  test("finishes a server that was added but not enabled, and leaves alone what the operator has disabled", () =>
    withFleetLab([{ bin, servers: [{ name: "master1", port: 1 }] }], async (lab) => {
      const [haproxy] = lab.haproxys;
      const say = (line: string) => runtimeCommand(haproxy?.socketPath ?? "", line);
      await lab.run(name(0), "localhost");
      const options = {
        SASORI_NEW_MASTERS: "localhost|master1",
        SASORI_NEW_MASTER_OPTIONS: "check inter 50ms rise 1 maxconn 50",
      };
      const maintenance = async () =>
        / localhost \S+ [0-3] (\d+) /.exec(await say("show servers state puppet"))?.[1];
      const added = { haproxy: haproxy?.socketPath, master: "localhost", change: "added" };
      // Like after a session that was cut off, for a sasori that was restarted, and later.
      await say("add server puppet/localhost 127.0.0.1:1 check inter 50ms");
      const sync = await lab.newSync(options);
      expect((await sync.request({})).masters.changes).toEqual([added]);
      expect(await maintenance()).toBe("0");
      await say("disable server puppet/localhost");
      expect((await sync.request({ full: true })).masters.changes).toEqual([]);
      expect(await maintenance()).toBe("1");
      await say("del server puppet/localhost");
      await say("add server puppet/localhost 127.0.0.1:1 check inter 50ms");
      await say("enable health puppet/localhost");
      expect((await sync.request({})).masters.changes).toEqual([added]);
      expect(await maintenance()).toBe("0");
    }));

  test("adds no more servers than the limit, and says which producer gets none and why", () =>
    withFleetLab([{ bin }], async (lab) => {
      await lab.run(name(0), "localhost");
      await lab.run(name(1), "nowhere.invalid");
      const sync = await lab.newSync({ SASORI_NEW_MASTERS: ".*", SASORI_NEW_MASTER_LIMIT: "1" });
      expect(await sync.request({})).toMatchObject({
        outcome: "failed",
        masters: { failures: [{ code: "HAPROXY_SERVER" }] },
      });
      await lab.run(name(2), "ip6-localhost");
      const report = await sync.request({});
      expect(report.masters.failures.map(({ message }) => message)).toContainEqual(
        expect.stringContaining("1 were added already (SASORI_NEW_MASTER_LIMIT)"),
      );
    }));

  test("finds a producer's server by alias and by host", () =>
    withFleetLab([{ bin }], async (lab) => {
      await lab.run(name(0), "puppet2.corp");
      await lab.run(name(1), "127.0.0.1"); // The host of all three servers: the first has it.
      const sync = await lab.newSync({ SASORI_MASTER_ALIASES: "puppet2.corp=master2,other=nowhere" });
      await sync.request({});
      await expectEverywhere(
        lab,
        new Map([
          [name(0), "master2"],
          [name(1), "master1"],
        ]),
      );
    }));

  test("writes the file for an HAProxy that is not there yet", () =>
    withFleetLab([{ bin }], async (lab) => {
      await lab.haproxys[0]?.kill();
      await checkIn(lab, 3);
      const sync = await lab.newSync();
      expect(outcomes(await sync.request({}))).toEqual(["applied", "failed"]);
      expect(await lab.file()).toEqual(new Map());
      await lab.haproxys[0]?.restart();
      expect(await sync.request({})).toMatchObject({ kind: "full", outcome: "done", nodes: 3 });
    }));

  test("writes only the file when there is no HAProxy to ask", () =>
    withFleetLab([], async (lab) => {
      const routes = await checkIn(lab, 3);
      expect(await (await lab.newSync()).request({})).toMatchObject({ outcome: "done", nodes: 3 });
      await expectEverywhere(lab, routes);
    }));

  test("plans and changes nothing on a dry run", () =>
    withFleetLab([{ bin }], async (lab) => {
      await checkIn(lab, 3);
      const sync = await lab.newSync();
      const report = await sync.request({ dryRun: true });
      expect(outcomes(report)).toEqual(["planned", "planned"]);
      expect(report.targets[1]).toMatchObject({ add: 3 });
      expect(await lab.haproxys[0]?.showMap()).toEqual(new Map());
      await expect(lab.file()).rejects.toThrow("ENOENT");
      expect(outcomes(await sync.request({}))).toEqual(["applied", "applied"]);
    }));

  test("changes nothing later either: the next look after a dry run finds what it would have found without", () =>
    withFleetLab([{ bin }, { bin }], async (lab) => {
      const routes = await checkIn(lab, 20, -20 * MINUTE);
      const sync = await lab.newSync();
      await sync.request({});
      await lab.stopPuppetdb();
      await lab.startPuppetdb(); // Without node0, as after a purge: only a full reading sees that it is gone.
      // The first request may still meet a connection that ended with the old process.
      await lab.run(name(1), "master1").catch(() => undefined);
      for (let index = 2; index < 20; index += 1)
        await lab.run(name(index), MASTERS[index % 3] ?? "", -10 * MINUTE);
      await lab.run(name(1), "master1");
      await setLive(lab, 0, name(2), "master1");
      const dry = { dryRun: true, full: true, learned: 1, nodes: 19, moved: 3 };
      const { dryRun, full, ...seen } = dry;
      expect(await sync.request({ dryRun, full })).toMatchObject(seen);
      expect(await sync.request({ known: true })).toMatchObject({ moved: 0, learned: 0, nodes: 20 });
      await expectEverywhere({ ...lab, haproxys: lab.haproxys.slice(1) }, routes);
      expect(await sync.request({ dryRun, full })).toMatchObject(seen);
      // What the dry run read, and what was set on HAProxy, which the sample of each pass finds.
      expect(await sync.request({})).toMatchObject({ kind: "changes", moved: 2, learned: 1 });
      expect(await sync.request({ full })).toMatchObject({ moved: 1, learned: 0 });
      routes.delete(name(0));
      await expectEverywhere(lab, routes.set(name(1), "master1").set(name(2), "master1"));
    }));

  test("leaves it to the next look to find a node that was deactivated", () =>
    withFleetLab([{ bin }], async (lab) => {
      const routes = await checkIn(lab, 3);
      const sync = await lab.newSync();
      await sync.request({});
      await lab.puppetdb.deactivateNode(name(0));
      expect(await sync.request({ dryRun: true })).toMatchObject({ moved: 1 });
      expect(await sync.request({})).toMatchObject({ kind: "changes", moved: 1 });
      routes.delete(name(0));
      await expectEverywhere(lab, routes);
    }));

  test("brings a registration to every target while a dry run waits for PuppetDB, with what HAProxy learned", () =>
    withFleetLab([{ bin }, { bin }], async (lab) => {
      const routes = await checkIn(lab, 3);
      const sync = await lab.newSync();
      await sync.request({});
      await setLive(lab, 1, name(1), "master1");
      const pass = await passThatHangs(lab, sync, { dryRun: true, full: true });
      await sync.submit(registration(name(0), "master3"));
      expect(sync.phase).toBe("fetch");
      await expectEverywhere(lab, routes.set(name(0), "master3").set(name(1), "master1"));
      await pass.end();
    }));

  test("gives a HAProxy that is restarted its map while PuppetDB keeps a pass waiting", () =>
    withFleetLab([{ bin }, { bin }], async (lab) => {
      const routes = await checkIn(lab, 3);
      const sync = await lab.newSync();
      await sync.request({});
      const pass = await passThatHangs(lab, sync, { full: true });
      await lab.haproxys[1]?.restart(); // It reads a file of its own, which is empty.
      expect(await lab.haproxys[1]?.showMap()).toEqual(new Map());
      await expect.poll(() => lab.haproxys[1]?.showMap()).toEqual(routes);
      expect(sync.phase).toBe("fetch");
      await pass.end();
    }));

  test("forgets for no target what changed when the one who is told of it fails", () =>
    withFleetLab([{ bin }], async (lab) => {
      const routes = await checkIn(lab, 3);
      let isBroken = false;
      const sync = await lab.newSync(
        {},
        {
          *changed() {
            yield;
            if (isBroken) fail();
          },
        },
      );
      await sync.request({});
      isBroken = true;
      await expect(sync.submit(registration(name(0), "master3"))).rejects.toThrow("broken");
      isBroken = false;
      await sync.request({});
      await expectEverywhere(lab, routes.set(name(0), "master3"));
    }));

  test("asked for during a pass is one further pass for all who ask", () =>
    withFleetLab([{ bin }], async (lab) => {
      await checkIn(lab, 3);
      const sync = await lab.newSync();
      const first = sync.request({});
      const joined = [sync.request({}), sync.request({ full: true }), sync.request({})];
      const reports = await Promise.all([first, ...joined]);
      expect(new Set(reports).size).toBe(2);
      expect(reports[1]).toMatchObject({ kind: "full" });
    }));

  test("ends in time when the map file does not answer", () =>
    withFleetLab([{ bin }], async (lab) => {
      await checkIn(lab, 3);
      const sync = await lab.newSync();
      await writeFile(lab.mapFile, "");
      const thaw = freeze(lab.mapFile, "reads");
      const pass = sync.request({});
      await expect.poll(() => sync.phase).toBe("fetch");
      await sync.stop(0);
      expect(await pass).toMatchObject({ targets: [{ failure: { code: "FILE_READ" } }, {}] });
      thaw();
    }));

  test("lets no HAProxy wait long for a file whose file system hangs, and asks it no more until it answers", () =>
    withFleetLab([{ bin }], async (lab) => {
      const routes = await checkIn(lab, 3);
      const sync = await lab.newSync();
      await sync.request({});
      await lab.run(name(0), "master2");
      const thaw = freeze(path.dirname(lab.mapFile), "writes");
      const { setTimeout } = globalThis;
      vi.spyOn(globalThis, "setTimeout").mockImplementation(((work: () => void, ms = 0, ...args: []) => {
        const isLong = ms >= 15_000 && ms <= 120_000;
        return setTimeout(work, isLong ? patient(ms / 50) : ms, ...args);
      }) as typeof setTimeout);
      const failure = { code: "FILE_WRITE", message: expect.stringContaining("gave up after 15 s") };
      expect(await sync.request({})).toMatchObject({ targets: [{ failure }, { outcome: "applied" }] });
      vi.restoreAllMocks();
      expect(await lab.haproxys[0]?.showMap()).toEqual(routes.set(name(0), "master2"));

      await lab.run(name(1), "master3");
      const began = performance.now();
      expect(await sync.request({})).toMatchObject({
        targets: [{ outcome: "failed" }, { outcome: "applied" }],
      });
      expect(performance.now() - began).toBeLessThan(patient(3_000));
      thaw();
      await expect.poll(async () => (await sync.request({})).outcome).toBe("done");
      await expectEverywhere(lab, routes.set(name(1), "master3"));
    }));

  test("brings back a map file that somebody deleted or edited", () =>
    withFleetLab([{ bin }], async (lab) => {
      const routes = await checkIn(lab, 3);
      const sync = await lab.newSync();
      await sync.request({});
      await writeFile(lab.mapFile, `${name(0)} master3\n#\nx y z\n`);
      await sync.request({});
      await expectEverywhere(lab, routes);
    }));

  test("sets aside a state file that it cannot read, and goes on", () =>
    withFleetLab([{ bin }], async (lab) => {
      await writeFile(`${lab.mapFile}.state.json`, "{ broken");
      await expect(lab.newSync()).rejects.toMatchObject({
        code: "STATE_FILE",
        message: expect.stringContaining("set aside as"),
      });
      expect(await (await lab.newSync()).request({})).toMatchObject({ outcome: "done" });
    }));

  test("loses only the entry of a state file that it cannot use, tells of it, and keeps a copy", () =>
    withFleetLab([], async (lab) => {
      const state = `${lab.mapFile}.state.json`;
      const entry = (index: number, at: string) => ({
        certname: name(index),
        master: "master1",
        at,
        source: "registration",
      });
      const at = "2026-01-01T00:00:00.000Z";
      const observations = [entry(0, at), entry(1, "+010000-01-01T00:00:00.000Z"), entry(2, at)];
      const text = JSON.stringify({ version: 1, observations, homes: [[name(0), "a b"]] });
      await writeFile(state, text);
      const parts = assemble(lab.config());
      const sync = new Sync(parts);
      const told = expect.stringMatching(
        /^2 entries \(observations\[1\]\.at: .*; homes\[0\].*\).* set aside as /,
      );
      await expect(sync.restore()).rejects.toMatchObject({ code: "STATE_FILE", message: told });
      expect(parts.state.trouble).toMatchObject({ message: told });
      const aside = /set aside as (\S+)/.exec(parts.state.trouble?.message ?? "")?.[1] ?? "";
      expect(await readFile(aside, "utf8")).toBe(text);
      await sync.request({});
      expect([...sync.fleet.own.keys()]).toEqual([name(0), name(2)]);
      const restarted = await lab.newSync(); // It finds nothing wrong any more.
      expect([...restarted.fleet.own.keys()]).toEqual([name(0), name(2)]);
      await parts.puppetdb.close();
    }));

  test("writes a state file again that somebody deleted or changed, with the next full pass; none for nothing", () =>
    withFleetLab([], async (lab) => {
      await checkIn(lab, 3);
      const state = `${lab.mapFile}.state.json`;
      const sync = await lab.newSync();
      await full(sync);
      await full(sync);
      await expect(readFile(state)).rejects.toThrow("ENOENT");
      await sync.submit(registration(name(0), "master3"));
      const text = await readFile(state, "utf8");
      await rm(state);
      expect(await full(sync)).toMatchObject({ outcome: "done" });
      expect(await readFile(state, "utf8")).toBe(text);
      await writeFile(state, "{ broken");
      expect(await full(sync)).toMatchObject({ outcome: "done" });
      expect(await readFile(state, "utf8")).toBe(text);
      expect((await lab.newSync()).fleet.own.size).toBe(1);
    }));

  test("an order given before the machine's clock was set counts as newer than all that is known", () =>
    withFleetLab([], async (lab) => {
      await lab.run(name(0), "master1", -MINUTE);
      const before = await lab.newSync();
      await full(before);
      await before.submit(registration(name(1), "master2"));
      const orderedAt = before.fleet.own.get(name(1) as Certname)?.at ?? 0;
      vi.useFakeTimers({ toFake: ["Date"], now: 10 * MINUTE }); // In 1970.
      const sync = await lab.newSync();
      expect(sync.fleet.own.get(name(1) as Certname)?.at).toBe(orderedAt);
      const seen = { certname: name(0) as Certname, master: "master3" as Master };
      await sync.submit({ ...seen, source: "registration" });
      vi.useRealTimers();
      expect(sync.fleet.own.get(name(0) as Certname)?.at).toBeGreaterThanOrEqual(orderedAt);
      const restarted = await lab.newSync();
      await full(restarted); // What PuppetDB knows is older.
      expect(await lab.file()).toEqual(
        new Map([
          [name(0), "master3"],
          [name(1), "master2"],
        ]),
      );
      await lab.run(name(0), "master1");
      await full(restarted);
      expect((await lab.file()).get(name(0))).toBe("master1");
    }));

  test("the guard's memory is saved with right times also if the machine's clock is set during a pass", () =>
    withFleetLab([], async (lab) => {
      for (const index of [0, 1, 2]) await lab.run(name(index), "master1", -MINUTE);
      const [since, state] = [Date.now(), new Journal(`${lab.mapFile}.state.json`)];
      vi.useFakeTimers({ toFake: ["Date"], now: 10 * MINUTE }); // In 1970.
      const sync = await lab.newSync();
      await full(sync);
      const pass = await passThatHangs(lab, sync);
      vi.useRealTimers();
      await sync.submit(registration(name(0), "master2"));
      const sizes = (await state.load()).flatMap((row) => (row.kind === "sizes" ? row.value.sizes : []));
      await pass.end();
      expect(sizes.map(({ size, at }) => [size, at >= since - MINUTE && at <= Date.now()])).toEqual([
        [3, true],
      ]);
    }));

  test("writes no state that it could not read again, whatever a master's clock says", () =>
    withFleetLab([], async (lab) => {
      for (const [index, time] of ["9999-12-31T23:59:59.999Z", "8999-12-31T23:59:59.999Z"].entries())
        await lab.puppetdb.replaceFacts({ certname: name(index), producer: "master1", at: new Date(time) });
      const sync = await lab.newSync();
      expect(await sync.request({})).toMatchObject({ nodes: 2, withoutProducer: { count: 0 } });
      for (const index of [0, 1]) {
        const seen = { certname: name(index) as Certname, master: "master2" as Master };
        await sync.submit({ ...seen, source: "registration" });
      }
      expect((await lab.newSync()).fleet.own.size).toBe(2);
    }));

  test("touches no file when it starts for a dry run", () =>
    withFleetLab([{ bin }], async (lab) => {
      const parts = assemble(lab.config());
      const state = `${lab.mapFile}.state.json`;
      const leftover = path.join(path.dirname(lab.mapFile), ".nodes.map.killed.tmp");
      for (const file of [state, leftover]) await writeFile(file, "{ broken");
      await utimes(leftover, 0, 0);
      const restored = new Sync(parts).restore({ dryRun: true });
      await expect(restored).rejects.toMatchObject({ code: "STATE_FILE" });
      await expect(restored).rejects.not.toThrow("set aside as");
      for (const file of [state, leftover]) expect(await readFile(file, "utf8")).toBe("{ broken");
      await parts.puppetdb.close();
    }));

  test("removes what a killed sasori has left of the state file, wherever that is", () =>
    withFleetLab([{ bin }], async (lab) => {
      const folder = path.join(path.dirname(lab.mapFile), "state");
      await mkdir(folder);
      const leftover = path.join(folder, ".sasori.json.killed.tmp");
      await writeFile(leftover, "half");
      await utimes(leftover, 0, 0);
      await lab.newSync({ SASORI_STATE_FILE: path.join(folder, "sasori.json") });
      expect(await readdir(folder)).toEqual([]);
    }));
});

test("compares at most 10,000 entries of all HAProxy instances in a changes pass, and goes on from there in the next one", () => {
  const bin = haproxyBinaries().at(-1)?.bin ?? "";
  return withFleetLab([{ bin }, { bin }], async (lab) => {
    const sync = await lab.newSync();
    const nodes = Array.from({ length: 12_000 }, (_, index) => registration(name(index), "master1"));
    await sync.submit(...nodes);
    // All entries are to be compared between two full passes, and between these two is only one other pass.
    for (const isFull of [true, false, true]) await sync.request({ full: isFull });
    const comparedAt = () => sync.targetDetails().flatMap(({ comparedAt }) => comparedAt ?? []);
    const before = comparedAt();
    expect(before).toHaveLength(2);
    const isNews: boolean[][] = [];
    for (let pass = 0; pass < 3; pass += 1) {
      expect(await sync.request({})).toMatchObject({ kind: "changes", outcome: "done" });
      isNews.push(comparedAt().map((at, index) => at > (before[index] ?? at)));
    }
    expect(isNews).toEqual([
      [false, false],
      [false, false],
      [true, true],
    ]);
  });
});
