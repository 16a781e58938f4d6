// The rules of docs/evidence.md: what moves a route, and what never does. Real HAProxy instances, the PuppetDB stand-in, real
// passes.

import { readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { afterEach, describe, expect, test, vi } from "vitest";
import { Flapping } from "../src/flapping.js";
import { Fleet } from "../src/fleet.js";
import type { Certname, Master, Observation } from "../src/node-map.js";
import type { Sync } from "../src/sync.js";
import { type FleetLab, withFleetLab } from "./support/fleet-lab.js";
import { runtimeCommand } from "./support/haproxy-server.js";
import { haproxyBinaries } from "./support/parts.js";

const MINUTE = 60_000;
const name = (index: number) => `agent-${index}.site-one.example.com`;
const NODE = name(0);
const full = (sync: Sync) => sync.request({ full: true });
const newestBin = haproxyBinaries().at(-1)?.bin ?? "";

const registration = (certname: string, master: string) => ({
  certname: certname as Certname,
  master: master as Master,
  source: "registration" as const,
});

async function everywhere(lab: FleetLab, expected: Record<string, string>): Promise<void> {
  const routes = new Map(Object.entries(expected));
  expect(await lab.file()).toEqual(routes);
  for (const haproxy of lab.haproxys) expect(await haproxy.showMap()).toEqual(routes);
}

const setLive = (lab: FleetLab, certname: string, master: string) => {
  const [haproxy] = lab.haproxys;
  return runtimeCommand(haproxy?.socketPath ?? "", `set map ${haproxy?.mapPath} ${certname} ${master}`);
};

/** PuppetDB with other contents, as after a restore. */
async function restoredPuppetdb(lab: FleetLab): Promise<void> {
  await lab.stopPuppetdb();
  await lab.startPuppetdb();
  // The first request may still meet a connection that ended with the old process.
  await lab.run("first.example.com", "master1").catch(() => undefined);
}

describe("a submission of a producer without a server", () => {
  test("hides nothing: a sasori that has just started has the same map", () =>
    withFleetLab([{ bin: newestBin }], async (lab) => {
      const old = { producer: "master1", at: new Date(Date.now() - 3 * 60 * MINUTE) };
      for (const index of [0, 1]) {
        await lab.puppetdb.replaceFacts({ certname: name(index), ...old });
        await lab.puppetdb.storeReport({ certname: name(index), ...old });
      }
      const sync = await lab.newSync();
      await full(sync);
      const routes = { [name(0)]: "master1", [name(1)]: "master1" };
      await lab.run(name(0), "bolt.example.com");
      await lab.puppetdb.storeReport({ certname: name(1), producer: name(1) }); // puppet apply
      for (const request of [{}, { full: true }]) {
        expect(await sync.request(request)).toMatchObject({
          nodes: 2,
          unroutable: { nodes: 2, producers: { "bolt.example.com": 1, [name(1)]: 1 } },
        });
        await everywhere(lab, routes);
      }
      await rm(lab.mapFile);
      const [haproxy] = lab.haproxys;
      await runtimeCommand(haproxy?.socketPath ?? "", `clear map ${haproxy?.mapPath}`);
      const anew = await lab.newSync({ SASORI_STATE_FILE: `${lab.mapFile}.other` });
      expect(await full(anew)).toMatchObject({ nodes: 2, unroutable: { nodes: 2 } });
      await everywhere(lab, routes);
    }));
});

test("a producer without a server is told also of nodes whose route was only found in the map file", () =>
  withFleetLab([{ bin: newestBin, servers: [{ name: "master2", port: 18142 }] }], async (lab) => {
    await lab.run(NODE, "master1", -60 * MINUTE);
    await full(await lab.newSync({ SASORI_HAPROXY: "none" }));
    expect(await full(await lab.newSync())).toMatchObject({ nodes: 1, unroutable: { nodes: 1 } });
    await everywhere(lab, { [NODE]: "master1" });
  }));

describe("a node whose reports go to another machine than its facts", () => {
  const run = async (lab: FleetLab, sync: Sync) => {
    await lab.run(NODE, "master1");
    await sync.request({});
    await lab.puppetdb.storeReport({ certname: NODE, producer: "master3" });
    return sync.request({});
  };

  test("is told as flapping after two runs, and stays where its facts come from once only these count", () =>
    withFleetLab([{ bin: newestBin }], async (lab) => {
      const sync = await lab.newSync();
      expect((await run(lab, sync)).flapping).toMatchObject({ count: 0 });
      expect((await run(lab, sync)).flapping).toEqual({
        count: 1,
        samples: [NODE],
        between: [["master1", "master3"]],
      });
      await everywhere(lab, { [NODE]: "master3" });
      const facts = await lab.newSync({ SASORI_OBSERVATIONS: "facts" });
      expect(await full(facts)).toMatchObject({ outcome: "done", flapping: { count: 0 } });
      await everywhere(lab, { [NODE]: "master1" });
      expect(await run(lab, facts)).toMatchObject({ moved: 0 });
    }));

  test("is no longer told once both come from one master, though it is read when both are there", () =>
    withFleetLab([], async (lab) => {
      const sync = await lab.newSync();
      for (const count of [0, 1]) expect((await run(lab, sync)).flapping.count).toBe(count);
      await lab.run(NODE, "master3");
      await lab.puppetdb.storeReport({ certname: NODE, producer: "master3" });
      expect((await sync.request({})).flapping.count).toBe(0);
    }));

  test("is not told of a node that moves, once or again and again", () =>
    withFleetLab([], async (lab) => {
      const sync = await lab.newSync();
      for (const master of ["master1", "master2", "master1", "master2"]) {
        await lab.run(NODE, master);
        await sync.request({});
        await lab.puppetdb.storeReport({ certname: NODE, producer: master });
        expect((await sync.request({})).flapping.count).toBe(0);
      }
    }));

  test("is one of 10,000 at most that are remembered, which is enough to see that it is most of a fleet", () => {
    const [flapping, nodes] = [new Flapping(), 12_000];
    const seen = (source: "facts" | "report", master: string) => ({ source, master: master as Master });
    for (let index = 0; index < nodes; index += 1)
      flapping.note(name(index) as Certname, seen("report", "master3"), seen("facts", "master1"));
    expect(flapping.nodes(nodes).size).toBe(10_000);
    flapping.delete(NODE as Certname);
    flapping.note(name(nodes) as Certname, seen("report", "master3"), seen("facts", "master1"));
    expect(flapping.nodes(nodes).has(name(nodes) as Certname)).toBe(true);
  });
});

describe("an old backup of PuppetDB", () => {
  /** Twelve nodes that have moved since the backup was made. */
  async function withOldBackup(use: (lab: FleetLab, sync: Sync) => Promise<void>): Promise<void> {
    await withFleetLab([{ bin: newestBin }], async (lab) => {
      const nodes = Array.from({ length: 12 }, (_, index) => name(index));
      for (const certname of nodes) await lab.run(certname, "master2", -20 * MINUTE);
      await full(await lab.newSync());
      await restoredPuppetdb(lab);
      for (const certname of nodes) await lab.run(certname, "master1", -30 * 60 * MINUTE);
      await use(lab, await lab.newSync());
    });
  }
  const count = async (lab: FleetLab, master: string) =>
    [...(await lab.file()).values()].filter((one) => one === master).length;

  test("takes no node back, also for a sasori that has just started, until the node runs again", () =>
    withOldBackup(async (lab, sync) => {
      const report = await full(sync);
      expect(report).toMatchObject({
        outcome: "held",
        held: { count: 12, reason: expect.stringMatching(/^PuppetDB went back from 20.* to 20.*: 12 nodes/) },
      });
      expect(await count(lab, "master2")).toBe(12);
      await lab.run(NODE, "master1");
      expect(await sync.request({})).toMatchObject({ outcome: "held", moved: 1 });
      expect(await full(sync)).toMatchObject({ outcome: "held", held: { count: 11 } });
      expect(await count(lab, "master2")).toBe(11);
    }));

  test("leaves no HAProxy with another route than the file while it is held", () =>
    withOldBackup(async (lab, sync) => {
      await setLive(lab, NODE, "master3");
      for (let passes = 0; passes < 3; passes += 1) expect((await full(sync)).outcome).toBe("held");
      expect(await lab.haproxys[0]?.showMap()).toEqual(await lab.file());
      expect(sync.targets().map(({ inSync }) => inSync)).toEqual([true, true]);
    }));

  test("is believed when a person approves it", () =>
    withOldBackup(async (lab, sync) => {
      const { held } = await full(sync);
      expect(await sync.request({ approve: held?.id })).toMatchObject({ outcome: "done", moved: 12 });
      expect(await count(lab, "master1")).toBeGreaterThanOrEqual(12);
      expect((await full(sync)).outcome).toBe("done");
    }));

  test("is not suspected of a map file that somebody else has edited", () =>
    withOldBackup(async (lab) => {
      const text = await readFile(lab.mapFile, "utf8");
      await writeFile(lab.mapFile, text.replace("master2", "master3"));
      expect(await full(await lab.newSync())).toMatchObject({ outcome: "done" });
      expect(await count(lab, "master1")).toBeGreaterThanOrEqual(12);
    }));
});

describe("a removed node", () => {
  test("is not brought back by an HAProxy that was away, over a restart of sasori, and comes back when it runs", () =>
    withFleetLab([{ bin: newestBin }, { bin: newestBin }], async (lab) => {
      for (const index of [0, 1, 2]) await lab.run(name(index), "master1", -60 * MINUTE);
      await full(await lab.newSync());
      const away = lab.haproxys[1]?.socketPath ?? "";
      await rename(away, `${away}.away`);
      await lab.puppetdb.deactivateNode(NODE);
      expect(await full(await lab.newSync())).toMatchObject({ nodes: 2 });
      await rename(`${away}.away`, away);
      const sync = await lab.newSync();
      for (const request of [{ full: true }, {}, { full: true }])
        expect(await sync.request(request)).toMatchObject({ nodes: 2, learned: 0 });
      await everywhere(lab, { [name(1)]: "master1", [name(2)]: "master1" });
      await lab.run(NODE, "master2");
      await sync.request({});
      await everywhere(lab, { [NODE]: "master2", [name(1)]: "master1", [name(2)]: "master1" });
    }));

  test("takes its learned route along, and a registration of a node that PuppetDB does not know stays", () =>
    withFleetLab([{ bin: newestBin }], async (lab) => {
      for (const index of [0, 1, 2]) await lab.run(name(index), "master1", -60 * MINUTE);
      const sync = await lab.newSync();
      await full(sync);
      await sync.submit(registration("new.example.com", "master3"));
      await setLive(lab, NODE, "master2");
      expect(await full(sync)).toMatchObject({ learned: 1 });
      await restoredPuppetdb(lab);
      for (const index of [1, 2]) await lab.run(name(index), "master1", -60 * MINUTE);
      expect(await full(await lab.newSync())).toMatchObject({ outcome: "done" });
      const routes = await lab.file();
      expect(routes.get(NODE)).toBeUndefined();
      expect(routes.get("new.example.com")).toBe("master3");
    }));

  test("with a name that cannot be a map key hides no active node", () =>
    withFleetLab([], async (lab) => {
      await lab.run(NODE, "master1", -60 * MINUTE);
      await lab.puppetdb.replaceCatalog({
        certname: "lone.example.com",
        producer: "master2",
        at: new Date(Date.now() - 60 * MINUTE),
      });
      const sync = await lab.newSync();
      expect(await full(sync)).toMatchObject({ nodes: 2 });
      await lab.run("Old_Printer", "master1", -50 * MINUTE);
      await lab.puppetdb.deactivateNode("Old_Printer");
      expect(await full(sync)).toMatchObject({ nodes: 2, refused: { count: 0 } });
    }));
});

describe("a map that somebody else made", () => {
  const map = [
    [NODE, "master1"],
    ...Array.from({ length: 3 }, (_, index) => [`Appliance${index}.Corp`, "master2"]),
    ["device.corp", "puppet/master2"],
  ] as [string, string][];
  const text = map.map(([key, value]) => `${key} ${value}\n`).join("");

  test.each(haproxyBinaries())("keeps all of it until what would go is approved: $version", ({ bin }) =>
    withFleetLab([{ bin, map }], async (lab) => {
      await writeFile(lab.mapFile, text);
      await lab.run(NODE, "master1", -60 * MINUTE);
      const sync = await lab.newSync();
      const { outcome, held } = await full(sync);
      expect({ outcome, held }).toMatchObject({
        outcome: "held",
        held: { count: 4, reason: "4 of 5 entries would be removed from a map that sasori did not make" },
      });
      expect(held?.samples.toSorted()).toEqual([
        "appliance0.corp",
        "appliance1.corp",
        "appliance2.corp",
        "device.corp puppet/master2",
      ]);
      expect(await readFile(lab.mapFile, "utf8")).toBe(text);
      // Nothing that happens in the meantime loses an entry, a restart neither.
      for (const one of [sync, await lab.newSync()]) {
        await lab.run(NODE, one === sync ? "master3" : "master2");
        expect(await full(one)).toMatchObject({ outcome: "held", held: { count: 4 } });
        expect((await lab.haproxys[0]?.showMap())?.size).toBe(5);
        expect(await readFile(lab.mapFile, "utf8")).toContain("device.corp puppet/master2\n");
      }
      await sync.request({ approve: (await full(sync)).held?.id });
      await everywhere(lab, { [NODE]: "master2" });
    }),
  );

  test.each(haproxyBinaries())(
    "gets no second entry of a node whose value is no server: $version",
    ({ bin }) =>
      withFleetLab([{ bin, map }], async (lab) => {
        await writeFile(lab.mapFile, text);
        await lab.run(NODE, "master1", -60 * MINUTE);
        const sync = await lab.newSync();
        for (const master of ["master3", "master1"]) {
          await lab.run("device.corp", master);
          expect(await sync.request({})).toMatchObject({ outcome: "held", held: { count: 3 } });
          expect((await lab.haproxys[0]?.showMap())?.get("device.corp")).toBe(master);
          expect(await readFile(lab.mapFile, "utf8")).toMatch(RegExp(`^device.corp ${master}$`, "m"));
        }
        expect((await lab.haproxys[0]?.showMap())?.size).toBe(5);
      }),
  );

  test("goes over to sasori at once where nothing would be lost", () =>
    withFleetLab([{ bin: newestBin, map: map.slice(0, 1) }], async (lab) => {
      await writeFile(lab.mapFile, `${NODE.toUpperCase()} master1\n`);
      await lab.run(NODE, "master1", -60 * MINUTE);
      expect(await full(await lab.newSync())).toMatchObject({ outcome: "done" });
      expect(await readFile(lab.mapFile, "utf8")).toMatch(/^# .*Written by sasori/);
      await everywhere(lab, { [NODE]: "master1" });
    }));
});

describe("an order that was answered", () => {
  test("stands: the end of an earlier one, which waited for PuppetDB, does not undo it", () => {
    const fleet = new Fleet();
    const order = (master: string, at: number) =>
      fleet.observe({ ...registration(NODE, master), at } satisfies Observation);
    order("master1", 10);
    const ended = fleet.own.get(NODE as Certname);
    order("master2", 20);
    if (ended !== undefined) fleet.withdraw(ended, undefined, 30);
    expect(fleet.map.get(NODE as Certname)?.master).toBe("master2");
  });
});

describe("an order after the end of another one", () => {
  test("counts, though that one was dated by a clock that was ahead", () =>
    withFleetLab([], async (lab) => {
      await lab.run(NODE, "master1", -60 * MINUTE);
      const sync = await lab.newSync();
      await full(sync);
      await sync.submit({ ...registration(NODE, "master2"), at: Date.now() + 60 * MINUTE });
      const ended = sync.fleet.own.get(NODE as Certname);
      const submitted = { certname: NODE as Certname, master: "master1" as Master, source: "facts" as const };
      if (ended !== undefined) await sync.withdraw(ended, { ...submitted, at: Date.now() - 60 * MINUTE });
      await everywhere(lab, { [NODE]: "master1" });
      await sync.submit(registration(NODE, "master3"));
      await everywhere(lab, { [NODE]: "master3" });
      const again = await lab.newSync();
      expect(again.fleet.own.get(NODE as Certname)).toMatchObject({ master: "master3" });
    }));
});

describe("when the clock was ahead and has been set right", () => {
  afterEach(() => void vi.useRealTimers());
  const AHEAD = 400 * 24 * 60 * MINUTE;
  const own = (sync: Sync, certname = NODE) => sync.fleet.own.get(certname as Certname);

  /** `use` runs more than a year ahead. */
  async function ahead<T>(use: () => Promise<T>): Promise<T> {
    vi.useFakeTimers({ toFake: ["Date"], now: Date.now() + AHEAD });
    try {
      return await use();
    } finally {
      vi.useRealTimers();
    }
  }

  async function withOrderOfThen(use: (lab: FleetLab, sync: Sync) => Promise<void>): Promise<void> {
    await withFleetLab([], async (lab) => {
      for (const index of [0, 1]) await lab.run(name(index), "master1", -60 * MINUTE);
      const sync = await lab.newSync();
      await full(sync);
      await ahead(() => sync.submit(registration(NODE, "master2")));
      await use(lab, sync);
    });
  }

  test("an order of then gives way to what PuppetDB receives now, and until then it stands", () =>
    withOrderOfThen(async (lab, sync) => {
      for (const request of [{}, { full: true }]) await sync.request(request);
      await everywhere(lab, { [NODE]: "master2", [name(1)]: "master1" });
      await lab.run(NODE, "master3", 1_000);
      await sync.request({});
      await everywhere(lab, { [NODE]: "master3", [name(1)]: "master1" });
      expect((await lab.newSync()).fleet.own.size).toBe(0);
    }));

  test("so it does after a restart, and a later order is behind it for every sasori", () =>
    withOrderOfThen(async (lab, before) => {
      const sync = await lab.newSync();
      await full(sync);
      await everywhere(lab, { [NODE]: "master2", [name(1)]: "master1" });
      await sync.submit(registration(NODE, "master3"));
      await before.request({});
      expect([own(before)?.master, own(await lab.newSync())?.master]).toEqual(["master3", "master3"]);
      await lab.run(NODE, "master1", 1_000);
      await sync.request({});
      await everywhere(lab, { [NODE]: "master1", [name(1)]: "master1" });
    }));

  test("the end of such an order counts for every sasori that knows the order", () =>
    withOrderOfThen(async (lab, sync) => {
      const other = await lab.newSync();
      await full(other);
      const ended = own(sync);
      const submitted = { certname: NODE as Certname, master: "master1" as Master, source: "facts" as const };
      if (ended !== undefined) await sync.withdraw(ended, { ...submitted, at: Date.now() - 60 * MINUTE });
      for (const one of [other, sync]) await one.request({});
      expect([own(sync), own(other), own(await lab.newSync())]).toEqual([undefined, undefined, undefined]);
      await everywhere(lab, { [NODE]: "master1", [name(1)]: "master1" });
    }));

  test("a node whose order was ended then is back with its next run", () =>
    withOrderOfThen(async (lab, sync) => {
      const NEW = "new.example.com";
      await sync.submit(registration(NEW, "master2"));
      await ahead(async () => {
        await sync.submit(registration(NEW, "master3"));
        const ended = own(sync, NEW);
        if (ended !== undefined) await sync.withdraw(ended, undefined);
      });
      expect((await lab.file()).has(NEW)).toBe(false);
      await lab.run(NEW, "master1", 1_000);
      await sync.request({});
      expect((await lab.file()).get(NEW)).toBe("master1");
    }));

  test("what was removed before stays removed, also after a restart", () =>
    withOrderOfThen(async (lab, sync) => {
      await lab.puppetdb.deactivateNode(name(1));
      await full(sync);
      await ahead(async () => {
        const ended = own(sync);
        if (ended !== undefined) await sync.withdraw(ended, undefined);
        await writeFile(`${lab.mapFile}.state.json`, ""); // So it is written anew.
        await sync.submit(registration("new.example.com", "master2"));
      });
      for (const one of [sync, await lab.newSync()])
        expect(one.fleet.tombstones.has(name(1) as Certname)).toBe(true);
    }));
});

test("an order that was saved stays newer than what PuppetDB had said by then, though our clock is behind now", () => {
  const fleet = new Fleet();
  const [now, reported, at] = [MINUTE, 60 * MINUTE, 61 * MINUTE];
  fleet.takeEnd(name(1) as Certname, { at, since: now, reported });
  for (const certname of [NODE, name(1)])
    fleet.takeOwn({ ...registration(certname, "master2"), at, reported }, now);
  expect([...fleet.own.values()]).toMatchObject([{ certname: NODE, at: reported + 1 }]);
  fleet.observe({ ...registration(NODE, "master1"), source: "facts", at: reported });
  expect(fleet.map.get(NODE as Certname)?.master).toBe("master2");
});

test("an order of a replica whose clock is a little ahead of ours is not overruled by what PuppetDB received just before", () => {
  const fleet = new Fleet();
  const now = 60 * MINUTE;
  fleet.takeOwn({ ...registration(NODE, "master2"), at: now + 2_000 }, now);
  fleet.observe({ ...registration(NODE, "master1"), source: "facts", at: now + 1_000 });
  expect(fleet.map.get(NODE as Certname)?.master).toBe("master2");
});

describe("the end of a registration that another sasori was told", () => {
  test("leaves the route to what PuppetDB has, also if PuppetDB comes back only after a restart", () =>
    withFleetLab([], async (lab) => {
      const run = async () => {
        await lab.run(NODE, "master1", -60 * MINUTE);
        await lab.run(name(1), "master1", -MINUTE);
      };
      await run();
      const sync = await lab.newSync();
      await full(sync);
      await sync.submit(registration(NODE, "master2"));
      const files = {
        SASORI_MAP_FILE: `${lab.mapFile}.other`,
        SASORI_STATE_FILE: `${lab.mapFile}.state.json`,
      };
      const other = await lab.newSync(files);
      await lab.stopPuppetdb();
      const ended = other.fleet.own.get(NODE as Certname);
      const submitted = { certname: NODE as Certname, master: "master1" as Master, source: "facts" as const };
      if (ended !== undefined) await other.withdraw(ended, { ...submitted, at: Date.now() - 60 * MINUTE });
      await sync.request({}); // It cannot know yet what PuppetDB has.
      await everywhere(lab, { [NODE]: "master2", [name(1)]: "master1" });
      const again = await lab.newSync();
      await lab.startPuppetdb();
      await run().catch(run);
      expect(await full(again)).toMatchObject({ outcome: "done" });
      await everywhere(lab, { [NODE]: "master1", [name(1)]: "master1" });
    }));
});

describe("what another sasori was told", () => {
  const taken = (master: string, at: number) => {
    const fleet = new Fleet();
    fleet.observe({ ...registration(NODE, "master2"), at: 20 });
    fleet.takeOwn({ ...registration(NODE, master), at }, Date.now());
    return { live: fleet.map.get(NODE as Certname)?.master, own: fleet.own.get(NODE as Certname)?.master };
  };

  test("does not undo a later order that was not saved yet when it came", () => {
    expect(taken("master3", 10)).toEqual({ live: "master2", own: "master2" });
    expect(taken("master3", 30)).toEqual({ live: "master3", own: "master3" });
  });

  test("of two orders of the same millisecond the one counts that wins where rows are merged", () => {
    expect(taken("master3", 20)).toEqual({ live: "master3", own: "master3" });
    expect(taken("master1", 20)).toEqual({ live: "master2", own: "master2" });
  });
});

describe("a value that somebody set on HAProxy", () => {
  test.each(haproxyBinaries())("is found by the next look for changes, and kept: $version", ({ bin }) =>
    withFleetLab([{ bin }, { bin }], async (lab) => {
      for (let index = 0; index < 20; index += 1) await lab.run(name(index), "master1", -60 * MINUTE);
      const sync = await lab.newSync();
      await full(sync);
      await setLive(lab, name(7), "master2");
      expect(await sync.request({})).toMatchObject({ kind: "changes", learned: 1 });
      for (const haproxy of lab.haproxys) expect((await haproxy.showMap()).get(name(7))).toBe("master2");
      const { comparedAt = "" } = sync.targets()[1] ?? {};
      expect(Date.now() - Date.parse(comparedAt)).toBeLessThan(MINUTE);
    }),
  );

  test("is found in a large map within a few looks, each of which compares a part", () =>
    withFleetLab([{ bin: newestBin }], async (lab) => {
      const sync = await lab.newSync();
      for (let index = 0; index < 500; index += 1)
        sync.fleet.observe({ ...registration(name(index), "master1"), at: 1 });
      await lab.run("one.example.com", "master1");
      await full(sync);
      await setLive(lab, name(450), "master2");
      let looks = 0;
      while ((await sync.request({})).learned === 0) looks += 1;
      expect(looks).toBeGreaterThan(0);
      expect(looks).toBeLessThanOrEqual(6);
    }));
});

describe("two sasoris on one file and one HAProxy", () => {
  const pair = async (lab: FleetLab, own = false) => {
    const other = own ? { SASORI_STATE_FILE: `${lab.mapFile}.other` } : {};
    const both = [await lab.newSync(), await lab.newSync(other)] as const;
    for (const one of both) await full(one);
    return both;
  };

  test.each([{ states: "share their state file" }, { states: "have a state file each" }])(
    "agree at once on what one of them was told, when they $states",
    ({ states }) =>
      withFleetLab([{ bin: newestBin }], async (lab) => {
        for (const index of [0, 1]) await lab.run(name(index), "master1", -60 * MINUTE);
        const [one, other] = await pair(lab, states.includes("each"));
        await one.submit(registration(NODE, "master3"));
        for (let round = 0; round < 3; round += 1) {
          for (const sync of [other, one]) {
            await sync.request({ full: round === 2 });
            await everywhere(lab, { [NODE]: "master3", [name(1)]: "master1" });
          }
        }
        expect(other.secondSasori).toBeDefined();
      }),
  );

  test("do not write the state file for each other's sake when nothing happens", () =>
    withFleetLab([{ bin: newestBin }], async (lab) => {
      for (const index of [0, 1]) await lab.run(name(index), "master1", -60 * MINUTE);
      const both = await pair(lab);
      for (const [index, sync] of both.entries()) await sync.submit(registration(name(index), "master3"));
      for (let round = 0; round < 2; round += 1) for (const sync of both) await sync.request({});
      const { mtimeNs } = await stat(`${lab.mapFile}.state.json`, { bigint: true });
      for (const full of [false, true]) for (const sync of both) await sync.request({ full });
      expect((await stat(`${lab.mapFile}.state.json`, { bigint: true })).mtimeNs).toBe(mtimeNs);
    }));

  test("agree on the end of a registration", () =>
    withFleetLab([{ bin: newestBin }], async (lab) => {
      await lab.run(NODE, "master1", -60 * MINUTE);
      const [one, other] = await pair(lab);
      await one.submit(registration(NODE, "master3"));
      await other.request({});
      const own = one.fleet.own.get(NODE as Certname);
      const submitted = {
        certname: NODE as Certname,
        master: "master1" as Master,
        at: Date.now() - 60 * MINUTE,
      };
      if (own !== undefined) await one.withdraw(own, { ...submitted, source: "facts" });
      for (const sync of [other, one, other, one]) await sync.request({});
      await everywhere(lab, { [NODE]: "master1" });
      expect([one.fleet.own.size, other.fleet.own.size]).toEqual([0, 0]);
    }));

  test("bring no deactivated node back: one that is a pass behind adds it again, and nobody learns it", () =>
    withFleetLab([{ bin: newestBin }], async (lab) => {
      for (const index of [0, 1, 2]) await lab.run(name(index), "master1", -60 * MINUTE);
      const [one, other] = await pair(lab);
      await lab.puppetdb.deactivateNode(NODE);
      await full(one);
      await other.request({ known: true }); // Before it has looked at PuppetDB.
      for (const sync of [one, other, one, other]) await full(sync);
      await everywhere(lab, { [name(1)]: "master1", [name(2)]: "master1" });
      expect([one.fleet.own.size, other.fleet.own.size]).toEqual([0, 0]);
    }));
});

test("what an absent HAProxy lacks does not grow with nodes that come and go", () =>
  withFleetLab([{ bin: newestBin }], async (lab) => {
    for (let index = 0; index < 20; index += 1) await lab.run(name(index), "master1", -60 * MINUTE);
    const sync = await lab.newSync({ SASORI_HAPROXY: `${lab.haproxys[0]?.socketPath},/nowhere/admin.sock` });
    await full(sync);
    for (let day = 0; day < 3; day += 1) {
      const guests = Array.from({ length: 5 }, (_, index) => `guest-${day}-${index}.example.com`);
      for (const certname of guests) await lab.run(certname, "master2");
      await sync.request({});
      expect(sync.targets().map(({ pending }) => pending)).toEqual([0, 0, 25]);
      for (const certname of guests) await lab.puppetdb.deactivateNode(certname);
      await sync.request({});
      expect(sync.targets().map(({ pending }) => pending)).toEqual([0, 0, 20]);
    }
  }));
