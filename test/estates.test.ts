// Several PuppetDBs, through passes over the map file: alternatives, of which one is asked, and estates, whose union is the map.
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { startPuppetdbStandIn } from "../demo/puppetdb.js";
import { within } from "../src/deadline.js";
import { SasoriError } from "../src/errors.js";
import { type Master, NodeMap, parseCertname } from "../src/node-map.js";
import { Resolver } from "../src/resolve.js";
import { Alternatives } from "../src/source/alternatives.js";
import { Estates } from "../src/source/estates.js";
import { Gathering } from "../src/source/reading.js";
import type { Replica, Source, Wanted } from "../src/source/source.js";
import { assemble, Sync, type SyncParts } from "../src/sync.js";
import { freePort } from "./support/child.js";
import { type FleetLab, withFleetLab } from "./support/fleet-lab.js";
import { patient } from "./support/patience.js";
import { type PuppetdbClient, standInClient } from "./support/puppetdb-server.js";

const MINUTE = 60_000;
const NODE = "web1.example.com";
const names = (count: number, what = "node") =>
  Array.from({ length: count }, (_, n) => `${what}${n}.example.com`);

interface Second {
  client: PuppetdbClient;
  stop(): Promise<void>;
  start(): Promise<void>;
  close(): Promise<void>;
}

/** A second PuppetDB beside that of the lab; started anew it is empty. */
async function startSecond(): Promise<Second> {
  const port = await freePort();
  const start = () => startPuppetdbStandIn({ host: "127.0.0.1", port });
  let running: Awaited<ReturnType<typeof start>> | undefined = await start();
  const stop = async () => {
    await running?.close();
    running = undefined;
  };
  return {
    client: standInClient(`http://127.0.0.1:${port}`),
    stop,
    async start() {
      running = await start();
    },
    close: stop,
  };
}

interface Pair {
  lab: FleetLab;
  second: Second;
  sync: Sync;
  parts: SyncParts;
  full(): ReturnType<Sync["request"]>;
  changes(): ReturnType<Sync["request"]>;
}

/** `separator`: "|" for alternatives, "," for estates. */
const withPair = (
  separator: "|" | ",",
  use: (pair: Pair) => Promise<void>,
  first?: (lab: FleetLab, second: Second) => Promise<void>,
) =>
  withFleetLab([], async (lab) => {
    const second = await startSecond();
    try {
      await first?.(lab, second);
      const url = [lab.puppetdb.url, second.client.url].join(separator);
      const parts = assemble(lab.config({ SASORI_PUPPETDB_URL: url, SASORI_MAX_REMOVED: "10%" }));
      const sync = new Sync(parts);
      await sync.restore();
      await use({
        lab,
        second,
        sync,
        parts,
        full: () => sync.request({ full: true }),
        changes: () => sync.request({}),
      });
      await parts.puppetdb.close();
    } finally {
      await second.close();
    }
  });

/** After a restart of the stand-in, fetch may use a dead connection. Then ask again. */
const runs = (client: PuppetdbClient, certname: string, producer: string, ago = 0) => {
  const run = { certname, producer, at: new Date(Date.now() - ago) };
  return client.replaceFacts(run).catch(() => client.replaceFacts(run));
};

beforeEach(() => {
  vi.useFakeTimers({ toFake: ["performance"] });
});
afterEach(() => vi.useRealTimers());

describe("alternatives", () => {
  test("the next one is asked when the first fails, in the same pass, and the first again when it is well", () =>
    withPair("|", async ({ lab, second, sync, parts, full, changes }) => {
      for (const { client } of [{ client: lab.puppetdb }, second])
        await runs(client, NODE, "master1", MINUTE);
      expect(await full()).toMatchObject({ outcome: "done", nodes: 1 });
      expect(sync.fleet.map.get(parseCertname(NODE))?.from).toBe(lab.puppetdb.url);

      await lab.stopPuppetdb();
      await runs(second.client, NODE, "master2");
      expect(await changes()).toMatchObject({ outcome: "done", moved: 1 });
      expect(sync.fleet.map.get(parseCertname(NODE))).toMatchObject({
        master: "master2",
        from: second.client.url,
      });
      expect(parts.puppetdb.states()).toMatchObject([
        { url: lab.puppetdb.url, asked: false, failure: { code: "PUPPETDB_UNREACHABLE" } },
        { url: second.client.url, asked: true, insteadOf: lab.puppetdb.url },
      ]);

      await lab.startPuppetdb(); // It has nothing at first: what the other one told stays.
      await runs(lab.puppetdb, "new.example.com", "master3");
      vi.advanceTimersByTime(MINUTE);
      expect(await changes()).toMatchObject({ outcome: "done", nodes: 2 });
      expect(parts.puppetdb.states()).toMatchObject([{ asked: true }, { asked: false }]);
      expect(Object.fromEntries(await lab.file())).toEqual({
        [NODE]: "master2",
        "new.example.com": "master3",
      });
    }));

  test("a replica that is an hour behind moves no node back, brings none back and loses none, and its own news count", () =>
    withPair(
      "|",
      async ({ lab, second, sync, full, changes }) => {
        for (const name of names(20)) await runs(lab.puppetdb, name, "master1", 90 * MINUTE);
        await full();
        await runs(lab.puppetdb, "node0.example.com", "master2", 10 * MINUTE); // Moved since.
        await runs(lab.puppetdb, "fresh.example.com", "master3", 20 * MINUTE); // Enrolled since.
        await lab.puppetdb.deactivateNode("node1.example.com", new Date(Date.now() - 15 * MINUTE));
        expect(await full()).toMatchObject({ outcome: "done", nodes: 20 });
        const before = Object.fromEntries(await lab.file());

        await lab.stopPuppetdb();
        for (const pass of [changes, full, changes, full])
          expect(await pass()).toMatchObject({ outcome: "done" });
        expect(Object.fromEntries(await lab.file())).toEqual(before);

        await runs(second.client, "node2.example.com", "master3");
        expect(await changes()).toMatchObject({ outcome: "done", moved: 1 });
        expect(sync.fleet.map.get(parseCertname("node2.example.com"))?.master).toBe("master3");
      },
      async (_, second) => {
        for (const name of names(20)) await runs(second.client, name, "master1", 90 * MINUTE);
      },
    ));

  test("a node that one had lost without a word is not brought back by another one's old word, but by a new one", () =>
    withPair(
      "|",
      async ({ lab, second, sync, full }) => {
        for (const name of [...names(30), NODE]) await runs(lab.puppetdb, name, "master1", 90 * MINUTE);
        await full();
        await lab.stopPuppetdb();
        await lab.startPuppetdb(); // As after an admin's "delete" of one node.
        for (const name of names(30)) await runs(lab.puppetdb, name, "master1", 90 * MINUTE);
        expect(await full()).toMatchObject({ outcome: "done", nodes: 30 });

        await lab.stopPuppetdb();
        expect(await full()).toMatchObject({ outcome: "done", nodes: 30 });
        const url = `${lab.puppetdb.url}|${second.client.url}`;
        const restarted = await lab.newSync({ SASORI_PUPPETDB_URL: url });
        expect(await restarted.request({ full: true })).toMatchObject({ outcome: "done", nodes: 30 });
        await runs(second.client, NODE, "master2");
        expect(await full()).toMatchObject({ outcome: "done", nodes: 31 });
        expect(sync.fleet.map.get(parseCertname(NODE))?.master).toBe("master2");
      },
      async (_, second) => {
        for (const name of [...names(30), NODE]) await runs(second.client, name, "master1", 90 * MINUTE);
      },
    ));

  test("a map that somebody else made is guarded as such until the first PuppetDB has been read", () =>
    withPair(
      "|",
      async ({ lab, second, full }) => {
        await lab.stopPuppetdb();
        for (const name of names(20)) await runs(second.client, name, "master1", 60 * MINUTE);
        expect(await full()).toMatchObject({ outcome: "done", nodes: 21 });
        await lab.startPuppetdb();
        for (const name of names(20)) await runs(lab.puppetdb, name, "master1", 60 * MINUTE);
        vi.advanceTimersByTime(MINUTE);
        expect(await full()).toMatchObject({ outcome: "held", held: { count: 1 }, nodes: 21 });
      },
      (lab) => writeFile(lab.mapFile, "printer.example.com master2\n"),
    ));

  test("what a slow one is asked about is told by the next, but that it knows no node only if the slow one fails", async () => {
    vi.useRealTimers();
    const node = parseCertname(NODE);
    const told = new Map([
      [node, { certname: node, producer: "master1", at: 1, source: "facts" as const, receivedAt: 0 }],
    ]);
    const askedAfter = (ms: number, found: typeof told | Error, standby: typeof told, patiently = false) => {
      const answering = (after: number, answer: typeof told | Error) =>
        ({
          async readNodes(_names: unknown, signal: AbortSignal) {
            await sleep(after, undefined, { signal });
            if (answer instanceof Error) throw answer;
            return answer;
          },
        }) as unknown as Replica;
      const both = new Alternatives([answering(ms, found), answering(0, standby)]);
      return both.readNodes([node], new AbortController().signal, undefined, patiently);
    };
    const none: typeof told = new Map();
    expect(await askedAfter(60_000, none, told)).toEqual(told);
    expect(await askedAfter(1_000, told, none)).toEqual(told);
    expect(await askedAfter(1_000, new Error("down"), none)).toEqual(none);
    expect(await askedAfter(0, none, told)).toEqual(none);
    // A caller that can wait gets the answer of the first one, or hears that it did not answer.
    expect(await askedAfter(1_000, none, told, true)).toEqual(none);
    await expect(askedAfter(0, new SasoriError("PUPPETDB_STATUS", "down"), told, true)).rejects.toMatchObject(
      {
        ...{ code: "PUPPETDB_STATUS", found: told },
      },
    );
  });

  test("a first one that is silent when it is tried again keeps nobody waiting", async () => {
    vi.useRealTimers();
    vi.useFakeTimers({ toFake: ["performance", "setTimeout", "clearTimeout"] });
    let tried = 0;
    const replica = (isFirst: boolean) =>
      ({
        isWell: (signal: AbortSignal) =>
          new Promise<boolean>((resolve) => {
            tried += 1;
            signal.addEventListener("abort", () => resolve(false));
          }),
        async read() {
          if (isFirst) throw new SasoriError("PUPPETDB_TIMEOUT", "silent");
          return {};
        },
      }) as unknown as Replica;
    const both = new Alternatives([replica(true), replica(false)]);
    const read = () =>
      both.read("full", new AbortController().signal, {} as Parameters<Alternatives["read"]>[2]);
    await read();
    vi.advanceTimersByTime(MINUTE);
    let answered: unknown;
    const reading = read().then((found) => {
      answered = found;
    });
    await vi.advanceTimersByTimeAsync(3_000);
    expect(answered).toMatchObject({ isStandby: true });
    expect(tried).toBe(1);
    await reading;
  });

  test("a first one that never ends a full reading is tried half as often each time, and as before once it has", async () => {
    const full = new AbortController().signal;
    let [fails, tried] = [true, 0];
    const replica = (isFirst: boolean) =>
      ({
        isWell: async () => true,
        async read() {
          if (isFirst) tried += 1;
          if (isFirst && fails) throw new SasoriError("PUPPETDB_TIMEOUT", "it has not ended");
          return {};
        },
        took() {},
      }) as unknown as Replica;
    const both = new Alternatives([replica(true), replica(false)]);
    const wanted = {} as Parameters<Alternatives["read"]>[2];
    /** How often the first was asked within so long, with a pass every 5 s. */
    const triesWithin = async (ms: number) => {
      const before = tried;
      for (let spent = 0; spent < ms; spent += 5_000) {
        vi.advanceTimersByTime(5_000);
        await both.read("changes", full, wanted);
        both.took(0);
      }
      return tried - before;
    };
    await both.read("full", full, wanted);
    expect(await triesWithin(30 * MINUTE)).toBe(5); // After half a minute, then after 1, 2, 4 and 8 more.
    expect(await triesWithin(10 * 60 * MINUTE)).toBeLessThanOrEqual(21);
    fails = false;
    await triesWithin(30 * MINUTE);
    fails = true;
    await both.read("changes", full, wanted);
    expect(await triesWithin(MINUTE)).toBe(1);
  });

  test("with both down nothing changes, and the failure of the first is told", () =>
    withPair("|", async ({ lab, second, full, changes }) => {
      await runs(lab.puppetdb, NODE, "master1");
      await full();
      await lab.stopPuppetdb();
      await second.stop();
      const report = await changes();
      expect(report).toMatchObject({
        outcome: "failed",
        source: { failure: { code: "PUPPETDB_UNREACHABLE" } },
      });
      expect(report.source.failure?.message).toContain(lab.puppetdb.url);
      expect(Object.fromEntries(await lab.file())).toEqual({ [NODE]: "master1" });
    }));

  test("the word of one whose clock is behind is not older for that", () => {
    const hourBehind = { from: "https://pdb2:8081", behindMs: 60 * MINUTE };
    const found = new Gathering("changes", () => true, hourBehind);
    const now = Date.now();
    const [dated, received] = [now, now - 60 * MINUTE].map((at) => new Date(at).toISOString());
    found.take("facts", { certname: NODE, producer: "master1" }, dated, received);
    expect(found.submissions.get(parseCertname(NODE))).toMatchObject({
      at: now,
      receivedAt: now - 60 * MINUTE,
    });
    expect(found.ahead.size).toBe(0);
  });
});

describe("a PuppetDB whose clock is behind", () => {
  const HOUR = 60 * MINUTE;
  const now = Date.now();
  const itsTime = new Date(now - HOUR).toISOString();
  const gathering = () => new Gathering("changes", () => true, { from: "https://pdb2:8081", behindMs: HOUR });

  test("has its deactivations dated as its submissions are", () => {
    const found = gathering();
    found.takeInactive({ certname: NODE, deactivated: itsTime, expired: null });
    expect(found.inactive.get(parseCertname(NODE))).toBe(now);
  });

  test("may tell a receipt that is no time", () => {
    const found = gathering();
    found.take("facts", { certname: NODE, producer: "master1" }, new Date(now).toISOString(), "soon");
    expect(found.submissions.get(parseCertname(NODE))).toMatchObject({ at: now, receivedAt: 0 });
  });
});

describe("estates", () => {
  test("are one map, and of a node that two have the newest observation counts", () =>
    withPair(",", async ({ lab, second, sync, full, changes }) => {
      await runs(lab.puppetdb, "a.example.com", "master1", MINUTE);
      await runs(second.client, "b.example.com", "master2", MINUTE);
      await runs(lab.puppetdb, NODE, "master1", 2 * MINUTE);
      await runs(second.client, NODE, "master2", MINUTE);
      expect(await full()).toMatchObject({ outcome: "done", nodes: 3 });
      expect(Object.fromEntries(await lab.file())).toEqual({
        "a.example.com": "master1",
        "b.example.com": "master2",
        [NODE]: "master2",
      });
      await runs(lab.puppetdb, NODE, "master3");
      expect(await changes()).toMatchObject({ outcome: "done", moved: 1 });
      expect(sync.fleet.map.get(parseCertname(NODE))).toMatchObject({
        master: "master3",
        from: lab.puppetdb.url,
      });
    }));

  test("of two observations of the same time the one that is there stays, also while its estate is down", () =>
    withPair(",", async ({ lab, second, sync, full, changes }) => {
      const at = new Date(Date.now() - MINUTE);
      await lab.puppetdb.replaceFacts({ certname: NODE, producer: "master1", at });
      await second.client.replaceFacts({ certname: NODE, producer: "master2", at });
      await full();
      expect(sync.fleet.map.get(parseCertname(NODE))?.master).toBe("master1");
      await lab.stopPuppetdb();
      for (const pass of [full, changes]) expect(await pass()).toMatchObject({ moved: 0 });
      expect(sync.fleet.map.get(parseCertname(NODE))).toMatchObject({ master: "master1" });
    }));

  test("one that hangs keeps nobody from the news of the others", () =>
    withFleetLab([], async (lab) => {
      const silent = createServer(() => undefined).listen(0, "127.0.0.1");
      await once(silent, "listening");
      const { port } = silent.address() as AddressInfo;
      const url = `${lab.puppetdb.url},http://127.0.0.1:${port}`;
      const { puppetdb } = assemble(lab.config({ SASORI_PUPPETDB_URL: url }));
      try {
        await runs(lab.puppetdb, NODE, "master1", MINUTE);
        const ask = (...certnames: string[]) =>
          within(patient(900), undefined, new Error("late"), (signal) =>
            puppetdb.readNodes(certnames.map(parseCertname), signal),
          );
        expect([...(await ask(NODE)).keys()]).toEqual([NODE]);
        const partly = await ask(NODE, "unknown.example.com").catch((error: unknown) => error);
        expect(partly).toMatchObject({ code: "PUPPETDB_TIMEOUT", found: expect.any(Map) });
        // It is noticed within the deadline of a changes pass, however long other readings take.
        vi.useRealTimers();
        const began = performance.now();
        const reading = await puppetdb.read("full", new AbortController().signal, {
          known: new NodeMap(),
          hasServer: () => true,
        });
        expect(reading).toMatchObject({ active: undefined, failures: [{ code: "PUPPETDB_TIMEOUT" }] });
        expect([...reading.submissions.keys()]).toEqual([NODE]);
        expect(performance.now() - began).toBeLessThan(patient(7_000)); // 21 s at least.
      } finally {
        await puppetdb.close();
        silent.close();
        silent.closeAllConnections();
      }
    }));

  test("one that hangs is left alone for half a minute by changes passes, and asked by each full one", async () => {
    let asked = 0;
    const reading = { kind: "full", asOf: 1, inactiveCount: 0, submissions: new Map(), inactive: new Map() };
    const states = () => [{ url: "http://puppetdb.example.com:8080" }];
    const well = {
      states,
      read: async () => ({ ...reading, refused: new Set(), withoutProducer: new Set() }),
    };
    const hanging = {
      states,
      async read() {
        asked += 1;
        throw new SasoriError("PUPPETDB_TIMEOUT", "silent");
      },
    };
    const estates = new Estates([well, hanging] as unknown as Source[]);
    const read = async (kind: "full" | "changes") => {
      const { failures } = await estates.read(kind, new AbortController().signal, {} as Wanted);
      return [asked, failures?.[0]?.code];
    };
    expect(await read("full")).toEqual([1, "PUPPETDB_TIMEOUT"]);
    expect(await read("changes")).toEqual([1, "PUPPETDB_TIMEOUT"]);
    vi.advanceTimersByTime(29_000);
    expect(await read("changes")).toEqual([1, "PUPPETDB_TIMEOUT"]);
    expect(await read("full")).toEqual([2, "PUPPETDB_TIMEOUT"]);
    vi.advanceTimersByTime(29_000);
    expect(await read("changes")).toEqual([2, "PUPPETDB_TIMEOUT"]);
    vi.advanceTimersByTime(1_000);
    expect(await read("changes")).toEqual([3, "PUPPETDB_TIMEOUT"]);
  });

  test("a node goes only when each that had it says so", () =>
    withPair(",", async ({ lab, second, sync, full, changes }) => {
      for (const name of names(20)) await runs(lab.puppetdb, name, "master1", 60 * MINUTE);
      for (const name of names(20, "other")) await runs(second.client, name, "master2", 60 * MINUTE);
      for (const client of [lab.puppetdb, second.client]) await runs(client, NODE, "master1", 60 * MINUTE);
      await full();
      await lab.puppetdb.deactivateNode(NODE);
      for (const pass of [changes, full]) expect(await pass()).toMatchObject({ outcome: "done", nodes: 41 });
      await second.client.deactivateNode(NODE);
      expect(await changes()).toMatchObject({ outcome: "done", nodes: 40 });
      expect(sync.fleet.map.get(parseCertname(NODE))).toBeUndefined();
    }));

  test("one that was down in a full pass is read whole when it is back, and a node of it does not wait for the next one", () =>
    withPair(",", async ({ lab, second, sync, full, changes }) => {
      // Too long ago for a reading of changes.
      const ranLongAgo = async () => {
        vi.useFakeTimers({ toFake: ["Date", "performance"], now: Date.now() - 60 * MINUTE });
        await runs(second.client, NODE, "master2");
        vi.useFakeTimers({ toFake: ["performance"] });
      };
      await runs(lab.puppetdb, "lone.example.com", "master1", 5 * MINUTE);
      await ranLongAgo();
      await full();
      const certname = parseCertname(NODE);
      await sync.submit({ certname, master: "master3" as Master, source: "registration" });
      const { at = 0, reported } = sync.fleet.own.get(certname) ?? {};
      await second.stop();
      sync.fleet.takeEnd(certname, { at, since: at, reported });
      expect(await full()).toMatchObject({ outcome: "failed" });
      await second.start();
      await ranLongAgo();
      expect(await changes()).toMatchObject({ outcome: "done", kind: "changes" });
      expect((await lab.file()).get(NODE)).toBe("master2");
    }));

  test("one that is down keeps its nodes, and the others go on", () =>
    withPair(",", async ({ lab, second, sync, full, changes }) => {
      for (const name of names(20)) await runs(lab.puppetdb, name, "master1", 60 * MINUTE);
      for (const name of names(20, "other")) await runs(second.client, name, "master2", 60 * MINUTE);
      await full();
      await second.stop();
      await runs(lab.puppetdb, "node0.example.com", "master3");
      await lab.puppetdb.deactivateNode("node1.example.com");
      const report = await changes();
      expect(report).toMatchObject({ outcome: "failed", moved: 2, nodes: 39 });
      expect(report.source.failure?.message).toContain(second.client.url);
      expect(await full()).toMatchObject({ outcome: "failed", nodes: 39 });
      expect(sync.fleet.map.get(parseCertname("other7.example.com"))?.master).toBe("master2");
    }));

  test("one that is down at the start loses nothing of what the map had, and is read when it is back", () =>
    withPair(",", async ({ lab, second, full }) => {
      for (const name of names(20)) await runs(lab.puppetdb, name, "master1", 60 * MINUTE);
      for (const name of names(5, "other")) await runs(second.client, name, "master2", 60 * MINUTE);
      await full();
      await second.stop();
      await lab.puppetdb.deactivateNode("node1.example.com");

      const url = `${lab.puppetdb.url},${second.client.url}`;
      const sync = await lab.newSync({ SASORI_PUPPETDB_URL: url });
      expect(await sync.request({ full: true })).toMatchObject({ outcome: "failed", nodes: 25 });
      await runs(lab.puppetdb, "node2.example.com", "master3");
      expect(await sync.request({})).toMatchObject({ kind: "changes", outcome: "failed", moved: 1 });
      await second.start();
      for (const name of names(5, "other")) await runs(second.client, name, "master2", 60 * MINUTE);
      expect(await sync.request({})).toMatchObject({ outcome: "done", nodes: 24 });
    }));

  test.each([
    ["is down at the start", ",", "failed"],
    ["is down at the start, and its standby is behind", "|", "done"],
  ] as const)(
    "one that %s moves no node back, and a node that has run since follows",
    (_, separator, asked) =>
      withPair(separator, async ({ lab, second, full }) => {
        const [moved, justMoved] = names(2, "moved") as [string, string];
        for (const name of names(20)) await runs(lab.puppetdb, name, "master1", 60 * MINUTE);
        for (const [name, before, after] of [
          [moved, 60, 20],
          [justMoved, 3, 1],
        ] as const) {
          await runs(second.client, name, "master2", before * MINUTE);
          await runs(lab.puppetdb, name, "master1", after * MINUTE);
        }
        await full();
        await lab.stopPuppetdb();
        const sync = await lab.newSync({
          SASORI_PUPPETDB_URL: [lab.puppetdb.url, second.client.url].join(separator),
        });
        const masters = async () => {
          const file = await lab.file();
          return [moved, justMoved].map((name) => file.get(name));
        };
        const { outcome, held } = await sync.request({ full: true });
        expect([outcome, held, await masters()]).toEqual([asked, undefined, ["master1", "master1"]]);
        await runs(second.client, justMoved, "master2");
        await sync.request({});
        expect(await masters()).toEqual(["master1", "master2"]);
      }),
  );

  test("one that is empty is held by itself, however small it is, and the others lose what they lost", () =>
    withPair(",", async ({ lab, second, sync, full }) => {
      for (const name of names(200)) await runs(lab.puppetdb, name, "master1", 60 * MINUTE);
      for (const name of names(5, "other")) await runs(second.client, name, "master2", 60 * MINUTE);
      await full();
      await second.stop();
      await second.start(); // Empty: 5 of 205 entries, which a guard of all would let go.
      await lab.puppetdb.deactivateNode("node1.example.com");
      const report = await full();
      expect(report).toMatchObject({ outcome: "held", held: { count: 5 }, nodes: 204 });
      expect(report.held?.reason).toMatch(
        /^http:\S+: 5 of 5 entries would be removed: that would leave it empty$/,
      );
      expect(await sync.request({})).toMatchObject({ outcome: "held", nodes: 204 });
      expect(await sync.request({ approve: report.held?.id })).toMatchObject({ outcome: "done", nodes: 199 });
    }));

  test("what was approved of one does not make the guard forget how large the others were", () =>
    withPair(",", async ({ lab, second, full, sync }) => {
      for (const name of names(200)) await runs(lab.puppetdb, name, "master1", 60 * MINUTE);
      for (const name of names(5, "other")) await runs(second.client, name, "master2", 60 * MINUTE);
      await full();
      const go = async (from: number, to: number) => {
        for (const name of names(to).slice(from)) await lab.puppetdb.deactivateNode(name);
      };
      await go(0, 15);
      expect(await full()).toMatchObject({ outcome: "done", nodes: 190 });
      await second.stop();
      await second.start();
      await go(15, 16);
      const { held } = await full();
      await go(16, 17);
      expect(await sync.request({ approve: held?.id })).toMatchObject({ outcome: "done", nodes: 183 });
      await go(17, 27); // 27 of 200 within a month.
      expect(await full()).toMatchObject({ outcome: "held", held: { count: 10 }, nodes: 183 });
    }));

  test("so it is after a restart, when nobody knows whose the nodes were", () =>
    withPair(",", async ({ lab, second, full }) => {
      for (const name of names(200)) await runs(lab.puppetdb, name, "master1", 60 * MINUTE);
      for (const name of names(5, "other")) await runs(second.client, name, "master2", 60 * MINUTE);
      await full();
      await second.stop();
      await second.start();
      const sync = await lab.newSync({ SASORI_PUPPETDB_URL: `${lab.puppetdb.url},${second.client.url}` });
      expect(await sync.request({ full: true })).toMatchObject({
        outcome: "held",
        held: { count: 5 },
        nodes: 205,
      });
    }));

  test("one that loses its nodes little by little is held by what it had, also over a restart", () =>
    withPair(",", async ({ lab, second, full }) => {
      const url = `${lab.puppetdb.url},${second.client.url}`;
      for (const name of names(200)) await runs(lab.puppetdb, name, "master1", 60 * MINUTE);
      for (const name of names(30, "other")) await runs(second.client, name, "master2", 60 * MINUTE);
      await full();
      const go = async (from: number, to: number) => {
        for (const name of names(to, "other").slice(from)) await second.client.deactivateNode(name);
      };
      await go(0, 6);
      expect(await full()).toMatchObject({ outcome: "done", nodes: 224 });
      const sync = await lab.newSync({ SASORI_PUPPETDB_URL: url, SASORI_MAX_REMOVED: "10%" });
      await go(6, 11); // 11 of 230 in all, and 11 of the 30 that it had.
      const { outcome, nodes, held } = await sync.request({ full: true });
      expect({ outcome, nodes, count: held?.count }).toEqual({ outcome: "held", nodes: 224, count: 5 });
      expect(held?.reason).toMatch(/5 of 24 entries would be removed, after 6 in the last 30 days/);
      expect(held?.reason).toContain(second.client.url);
    }));

  /** Two estates have the node, the second one since later; then it is registered with a third master. */
  const withRegistration = (use: (pair: Pair & { end(): Promise<Sync> }) => Promise<void>) =>
    withPair(",", async (pair) => {
      const { lab, second, sync, parts, full } = pair;
      await runs(lab.puppetdb, NODE, "master1", 60 * MINUTE);
      await runs(lab.puppetdb, "a.example.com", "master1", 60 * MINUTE);
      await second.client.replaceFacts({ certname: NODE, producer: "master2", at: LATER });
      await full();
      const certname = parseCertname(NODE);
      await sync.submit({ certname, master: "master3" as Master, source: "registration" });
      const resolver = new Resolver({
        fleet: sync.fleet,
        puppetdb: parts.puppetdb,
        resolve: () => sync.resolver(),
        knowsServers: () => sync.knowsServers,
        servers: () => [],
        probePath: undefined,
        hasNode: () => Promise.reject(new Error("no master has it")),
        onObservation: () => undefined,
      });
      const end = async () => {
        const own = sync.fleet.own.get(certname);
        if (own === undefined) throw new Error("it is not registered");
        await sync.withdraw(own, await resolver.withoutRegistration(own));
        return sync;
      };
      await use({ ...pair, end });
    });
  const LATER = new Date(Date.now() - 50 * MINUTE);

  test("while one is down that told the node's route, a registration does not end for the older word of another one", () =>
    withRegistration(async ({ lab, second, end }) => {
      await second.stop();
      await expect(end()).rejects.toMatchObject({ code: "PUPPETDB_UNREACHABLE" });
      expect((await lab.file()).get(NODE)).toBe("master3");
      await second.start();
      await runs(second.client, NODE, "master2", Date.now() - LATER.getTime());
      const { fleet } = await end();
      expect(fleet.map.get(parseCertname(NODE))?.master).toBe("master2");
      expect((await lab.file()).get(NODE)).toBe("master2");
    }));

  test("while another one is down a registration ends as ever", () =>
    withRegistration(async ({ lab, second, end }) => {
      await runs(second.client, NODE, "master2", Date.now() - LATER.getTime());
      await lab.stopPuppetdb();
      expect((await end()).fleet.map.get(parseCertname(NODE))?.master).toBe("master2");
    }));

  test("an end that another replica was told leaves the route until the estate that told it is back", () =>
    withRegistration(async ({ lab, second, sync, full }) => {
      const certname = parseCertname(NODE);
      const { at = 0, reported } = sync.fleet.own.get(certname) ?? {};
      await second.stop();
      sync.fleet.takeEnd(certname, { at, since: at, reported });
      expect(await full()).toMatchObject({ outcome: "failed", held: { count: 1 } });
      expect((await lab.file()).get(NODE)).toBe("master3");
      await second.start();
      await second.client.replaceFacts({ certname: NODE, producer: "master2", at: LATER });
      expect(await full()).toMatchObject({ outcome: "done" });
      expect((await lab.file()).get(NODE)).toBe("master2");
    }));
});

test("the end of a registration that another replica was told counts also while a standby is asked", () =>
  withPair("|", async ({ lab, second, sync, full }) => {
    const certname = parseCertname(NODE);
    const at = new Date(Date.now() - 60 * MINUTE);
    for (const client of [lab.puppetdb, second.client])
      await client.replaceFacts({ certname: NODE, producer: "master1", at });
    await full();
    await sync.submit({ certname, master: "master3" as Master, source: "registration" });
    const own = sync.fleet.own.get(certname);
    await lab.stopPuppetdb();
    sync.fleet.takeEnd(certname, { at: own?.at ?? 0, since: own?.at ?? 0, reported: own?.reported });
    expect(await full()).toMatchObject({ outcome: "done", moved: 1 });
    expect((await lab.file()).get(NODE)).toBe("master1");
  }));
