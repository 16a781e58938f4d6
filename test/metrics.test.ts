// What Prometheus is told, by a daemon beside real HAProxy instances.

import { spawnSync } from "node:child_process";
import { pino } from "pino";
import { Registry } from "prom-client";
import { expect, test, vi } from "vitest";
import { startDaemon } from "../src/daemon.js";
import type { Status } from "../src/http/api-shapes.js";
import { freePort } from "./support/child.js";
import { type FleetLab, MASTERS, withFleetLab } from "./support/fleet-lab.js";
import { runtimeCommand } from "./support/haproxy-server.js";
import { haproxyBinaries, pathOf } from "./support/parts.js";
import { ON_DEMAND } from "./support/schedules.js";

const bin = haproxyBinaries()[0]?.bin ?? "";
const node = (index: number) => `node${index}.example.com`;
const MINUTE = 60_000;

interface Scraped {
  /** A sample by its name with labels, as it is written. */
  (sample: string): number | undefined;
  text: string;
}

interface Running {
  url: string;
  scrape(): Promise<Scraped>;
  sync(wanted?: object): Promise<unknown>;
}

async function withDaemon(lab: FleetLab, use: (running: Running) => Promise<void>): Promise<void> {
  const config = lab.config({
    SASORI_LISTEN: `127.0.0.1:${await freePort()}`,
    ...ON_DEMAND,
  });
  const daemon = await startDaemon(config, pino({ level: "silent" }));
  const { url } = daemon;
  const scrape = async () => {
    const text = await (await fetch(`${url}/metrics`)).text();
    const samples = new Map(text.split("\n").map((line) => line.split(/ (?=\S+$)/) as [string, string]));
    const value = (sample: string) => (samples.has(sample) ? Number(samples.get(sample)) : undefined);
    return Object.assign(value, { text });
  };
  const headers = { "content-type": "application/json" };
  const sync = (wanted = {}) =>
    fetch(`${url}/api/v1/sync`, { method: "POST", headers, body: JSON.stringify(wanted) }).then((r) =>
      r.json(),
    );
  try {
    await expect
      .poll(async () => (await scrape())('sasori_passes_total{kind="full",outcome="done"}'))
      .toBe(1);
    await use({ url, scrape, sync });
  } finally {
    await daemon.stop();
  }
}

const checkIn = async (lab: FleetLab, count: number) => {
  for (let index = 0; index < count; index += 1)
    await lab.run(node(index), MASTERS[index % MASTERS.length] ?? "", -10 * MINUTE);
};

test("keep Prometheus' conventions, as promtool sees them", () =>
  withFleetLab([{ bin }], async (lab) => {
    await checkIn(lab, 3);
    await withDaemon(lab, async ({ scrape }) => {
      const { text } = await scrape();
      const { status, stdout, stderr } = spawnSync(pathOf("promtool"), ["check", "metrics"], {
        input: text,
        encoding: "utf8",
      });
      expect({ status, said: stdout + stderr }).toEqual({ status: 0, said: "" });
    });
  }));

test("count nodes by master as they come, move and go, and changes by kind", () =>
  withFleetLab([{ bin }], async (lab) => {
    await checkIn(lab, 9);
    await withDaemon(lab, async ({ scrape, sync, url }) => {
      const byMaster = async () => {
        const value = await scrape();
        return [...MASTERS, "other"].map((master) => value(`sasori_assignments{master="${master}"}`));
      };
      expect(await byMaster()).toEqual([3, 3, 3, undefined]);
      await lab.run(node(0), "master2", -MINUTE);
      await lab.run(node(3), "master2", -MINUTE);
      await lab.run("new.example.com", "master3", -MINUTE);
      await lab.puppetdb.deactivateNode(node(8));
      await sync();
      expect(await byMaster()).toEqual([1, 5, 3, undefined]);
      await fetch(`${url}/api/v1/nodes/${node(0)}`, {
        method: "PUT",
        headers: { "content-type": "application/json" },
        body: '{"master":"master1"}',
      });
      expect(await byMaster()).toEqual([2, 4, 3, undefined]);
      const value = await scrape();
      expect(value("sasori_nodes")).toBe(9);
      expect(value('sasori_own_routes{source="registration"}')).toBe(1);
      const haproxy = lab.haproxys[0]?.socketPath;
      expect(value(`sasori_changes_total{target="${haproxy}",change="set"}`)).toBe(3);
      expect(value(`sasori_changes_total{target="${haproxy}",change="del"}`)).toBe(1);
      expect(value(`sasori_changes_total{target="${lab.mapFile}",change="add"}`)).toBe(10);
      const oldest = value("sasori_oldest_observation_timestamp_seconds") ?? 0;
      expect(Math.abs(oldest - (Date.now() - 10 * MINUTE) / 1000)).toBeLessThan(30);
    });
  }));

test("count what HAProxy was told about wrong routes, and for how long it waited", () =>
  withFleetLab([{ bin }], async (lab) => {
    await checkIn(lab, 3);
    await withDaemon(lab, async ({ scrape, sync, url }) => {
      const ask = async (certname: string) =>
        (await fetch(`${url}/api/v1/resolve/${certname}?not=master1`)).status;
      await lab.run(node(0), "master2");
      expect(await ask(node(0))).toBe(200);
      expect(await ask("nobody.example.com")).toBe(404);
      await lab.stopPuppetdb();
      expect(await ask("somebody.example.com")).toBe(502);
      await sync(); // Otherwise the metrics may be half a second old.
      const value = await scrape();
      for (const answer of ["found", "unknown", "PUPPETDB_UNREACHABLE"])
        expect([answer, value(`sasori_resolve_duration_seconds_count{answer="${answer}"}`)]).toEqual([
          answer,
          1,
        ]);
      expect(value('sasori_resolve_duration_seconds_bucket{le="5",answer="found"}')).toBe(1);
    });
  }));

test("put masters without a server together, so that a producer that comes and goes makes no new series", () =>
  withFleetLab(
    [
      {
        bin,
        map: [
          ["old.example.com", "gone1"],
          ["older.example.com", "gone2"],
        ],
      },
    ],
    async (lab) => {
      await checkIn(lab, 3);
      await lab.puppetdb.replaceFacts({ certname: "old.example.com", producer: "gone1" });
      await lab.puppetdb.replaceFacts({ certname: "older.example.com", producer: "gone2" });
      await withDaemon(lab, async ({ scrape }) => {
        const value = await scrape();
        expect(value('sasori_assignments{master="other"}')).toBe(2);
        expect(value("sasori_unroutable_nodes")).toBe(2);
        expect(value.text).not.toContain("gone1");
      });
    },
  ));

test("tell failures by where and what, targets that lack something, drift, and how long the steps take", () =>
  withFleetLab([{ bin }, { bin }], async (lab) => {
    await checkIn(lab, 15);
    await withDaemon(lab, async ({ scrape, sync }) => {
      const [first, second] = lab.haproxys.map(({ socketPath }) => socketPath);
      const good = await scrape();
      const lastGood = good("sasori_last_good_poll_timestamp_seconds") ?? 0;
      expect(Math.abs(lastGood - Date.now() / 1000)).toBeLessThan(30);
      await lab.haproxys[1]?.kill();
      await lab.run(node(0), "master3", -MINUTE);
      await sync();
      await lab.stopPuppetdb();
      await runtimeCommand(first ?? "", `set map ${lab.haproxys[0]?.mapPath} ${node(1)} nonsense`);
      await sync({ full: true });
      const bad = await scrape();
      expect(bad(`sasori_errors_total{target="${second}",code="HAPROXY_UNREACHABLE"}`)).toBe(2);
      expect(bad('sasori_errors_total{target="puppetdb",code="PUPPETDB_UNREACHABLE"}')).toBe(1);
      expect(bad(`sasori_drift_total{target="${first}"}`)).toBe(1);
      const states = (target: string | undefined) =>
        ["in_sync", "up", "pending_changes"].map((what) => bad(`sasori_target_${what}{target="${target}"}`));
      expect(states(first)).toEqual([1, 1, 0]);
      expect(states(second)).toEqual([0, 0, 1]);
      const after = bad("sasori_last_good_poll_timestamp_seconds") ?? 0;
      expect(after).toBeGreaterThanOrEqual(lastGood);
      for (const phase of ["look", "fetch", "plan", "file", "push"])
        expect(bad(`sasori_pass_phase_duration_seconds_count{phase="${phase}"}`)).toBe(3);

      await lab.startPuppetdb(); // Empty: the guard holds what is gone.
      await lab.run(node(0), "master3");
      await lab.run(node(1), "master2");
      await sync({ full: true });
      expect((await scrape())("sasori_held_removals")).toBe(13);
    });
  }));

test("tell displaced nodes, names that cannot be map keys, learned routes, and how long passes take", () =>
  withFleetLab([{ bin }], async (lab) => {
    await checkIn(lab, 3);
    await lab.run("no;pe", "master1", -MINUTE);
    await withDaemon(lab, async ({ scrape, sync }) => {
      const [haproxy] = lab.haproxys;
      const before = await scrape();
      expect(before("sasori_refused_names")).toBe(1);
      expect(before("sasori_displaced_nodes")).toBe(0);
      expect(before("sasori_learned_routes_total")).toBe(0);
      await runtimeCommand(haproxy?.socketPath ?? "", `set map ${haproxy?.mapPath} ${node(1)} master3`);
      await runtimeCommand(haproxy?.socketPath ?? "", "set server puppet/master1 state maint");
      await sync({ full: true });
      await lab.run(node(0), "master2");
      await sync();
      const after = await scrape();
      expect(after("sasori_learned_routes_total")).toBe(1);
      expect(after("sasori_displaced_nodes")).toBe(1);
      expect(after('sasori_pass_duration_seconds_count{kind="full"}')).toBe(2);
      expect(after('sasori_pass_duration_seconds_count{kind="changes"}')).toBe(1);
    });
  }));

test("metrics are made twice a second however often they are asked for, and anew with each pass", () =>
  withFleetLab([{ bin }], async (lab) => {
    await checkIn(lab, 3);
    await withDaemon(lab, async ({ scrape, sync }) => {
      const made = vi.spyOn(Registry.prototype, "metrics");
      const began = performance.now();
      for (let times = 0; times < 100; times += 1) await scrape();
      expect(made.mock.calls.length).toBeLessThanOrEqual(1 + (performance.now() - began) / 500);
      made.mockRestore();
      const before = (await scrape())('sasori_passes_total{kind="changes",outcome="done"}') ?? 0;
      await sync();
      expect((await scrape())('sasori_passes_total{kind="changes",outcome="done"}')).toBe(before + 1);
    });
  }));

test("that sasori answered nobody is told for a minute", () =>
  withFleetLab([{ bin }], (lab) =>
    withDaemon(lab, async ({ url, scrape, sync }) => {
      const until = performance.now() + 700;
      while (performance.now() < until); // As a mistake of ours would.
      await sync();
      expect((await scrape())("sasori_event_loop_delay_seconds")).toBeGreaterThan(0.6);
      // On a busy machine there may be a longer one between the two questions.
      const difference = async () => {
        const told = (await scrape())("sasori_event_loop_delay_seconds") ?? 0;
        const { longestDelayMs } = (await (await fetch(`${url}/api/v1/status`)).json()) as Status;
        return longestDelayMs / 1_000 - told;
      };
      await expect.poll(difference).toBeCloseTo(0, 1);
    }),
  ));
