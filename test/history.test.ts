// What a running sasori remembers: bounds of the history and of the event stream, and the list of nodes in order.

import { once } from "node:events";
import { createServer, get as httpGet, type IncomingMessage } from "node:http";
import { type AddressInfo, connect } from "node:net";
import { setImmediate as breathe } from "node:timers/promises";
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Pass } from "../src/http/api-shapes.js";
import { EventStream } from "../src/http/event-stream.js";
import { History, MAX_MOVES, MAX_PASSES } from "../src/http/history.js";
import { NodeList } from "../src/http/node-list.js";
import { type Certname, type Master, NodeMap } from "../src/node-map.js";
import type { SyncReport } from "../src/sync-report.js";
import type { TargetReport } from "../src/target/tracked-target.js";
import { atOnce } from "./support/pieces.js";

const node = (index: number) => `node${index}.example.com` as Certname;
const AT = "2026-01-01T00:00:00.000Z";

const REPORT: SyncReport = {
  kind: "changes",
  dryRun: false,
  outcome: "done",
  startedAt: AT,
  durationMs: 1,
  phasesMs: { look: 0, fetch: 1, plan: 0, file: 0, push: 0 },
  source: { outcome: "done", submissions: 0 },
  nodes: 0,
  moved: 0,
  learned: 0,
  masters: { changes: [], failures: [] },
  displaced: 0,
  unroutable: { nodes: 0, producers: {} },
  refused: { count: 0, samples: [] },
  withoutProducer: { count: 0, samples: [] },
  clocksAhead: {},
  flapping: { count: 0, samples: [], between: [] },
  targets: [],
};

describe("the history", () => {
  test("keeps the last moves and no more, whatever the size of a burst", () => {
    const map = new NodeMap();
    const history = new History();
    atOnce(history.takeChanges(new Map(), map, true, AT));
    let told = 0;
    history.watch({
      moves: (_moves, all) => {
        told += all;
      },
      pass: () => {},
    });
    for (const [first, count] of [
      [0, 15_000],
      [15_000, 9_000],
      [24_000, 9_000],
    ] as const) {
      for (let index = first; index < first + count; index += 1)
        map.observe({ certname: node(index), master: "m1" as Master, at: 1, source: "facts" });
      atOnce(history.takeChanges(map.takeChanges(), map, true, AT));
    }
    expect(told).toBe(33_000);
    const met: string[] = [];
    let before: number | undefined;
    do {
      const page = history.moves({ limit: 1_000, before });
      met.push(...page.moves.map(({ certname }) => certname));
      before = page.next ?? undefined;
    } while (before !== undefined);
    expect(met).toEqual(Array.from({ length: MAX_MOVES }, (_, index) => node(32_999 - index)));
  });

  test("does not tell a move that was taken back at once", () => {
    const map = new NodeMap();
    const history = new History();
    atOnce(history.takeChanges(new Map(), map, true, AT));
    map.observe({ certname: node(1), master: "m1" as Master, at: 1, source: "facts" });
    map.remove(node(1));
    atOnce(history.takeChanges(map.takeChanges(), map, true, AT));
    expect(history.moves({ limit: 10 }).moves).toEqual([]);
  });

  test("tells the first node of an empty fleet, and a new one that is registered after a quiet start", () => {
    const observe = (map: NodeMap, index: number, source: "facts" | "registration" | "inherited", at = 1) => {
      map.observe({ certname: node(index), master: "m1" as Master, at, source });
      return map.takeChanges();
    };
    const told = (history: History) => history.moves({ limit: 10 }).moves.map(({ certname }) => certname);
    const empty = { map: new NodeMap(), history: new History() };
    empty.history.takePass({ ...REPORT, kind: "full" });
    atOnce(empty.history.takeChanges(observe(empty.map, 1, "facts"), empty.map, true, AT));
    expect(told(empty.history)).toEqual([node(1)]);

    const quiet = { map: new NodeMap(), history: new History() };
    atOnce(quiet.history.takeChanges(observe(quiet.map, 1, "inherited", 0.5), quiet.map, false, AT));
    quiet.history.takePass({ ...REPORT, kind: "full" });
    atOnce(quiet.history.takeChanges(observe(quiet.map, 2, "registration"), quiet.map, true, AT));
    expect(told(quiet.history)).toEqual([node(2)]);
  });

  test("keeps the last passes that did something, and since when PuppetDB fails", () => {
    const history = new History();
    for (let moved = 1; moved <= MAX_PASSES + 20; moved += 1) {
      history.takePass({ ...REPORT, moved });
      history.takePass(REPORT);
    }
    expect(history.passes).toHaveLength(MAX_PASSES);
    expect(history.passes[0]?.moved).toBe(MAX_PASSES + 20);
    const failure = { code: "PUPPETDB_TIMEOUT", message: "late" } as const;
    const failed = {
      ...REPORT,
      outcome: "failed",
      source: { outcome: "failed", submissions: 0, failure },
    } as const;
    history.takePass({ ...failed, startedAt: "2026-01-01T00:00:05.000Z" });
    history.takePass({ ...REPORT, kind: "known", source: { outcome: "not asked", submissions: 0 } });
    history.takePass({ ...failed, startedAt: "2026-01-01T00:00:10.000Z" });
    expect(history.puppetdb).toEqual({ failure, since: "2026-01-01T00:00:05.000Z" });
    expect(history.lastGoodPoll).toBe(AT);
    history.takePass({ ...REPORT, startedAt: "2026-01-01T00:00:15.000Z" });
    expect(history.puppetdb).toBeUndefined();
    expect(history.lastGoodPoll).toBe("2026-01-01T00:00:15.000Z");
  });

  test("remembers that PuppetDB cannot be read as a whole, although changes can, until it is; not after an outage", () => {
    const history = new History();
    const failure = { code: "PUPPETDB_TIMEOUT", message: "byte by byte" } as const;
    const pass = (kind: "full" | "changes", isGood: boolean, startedAt = AT) => {
      const source = isGood ? REPORT.source : ({ outcome: "failed", submissions: 0, failure } as const);
      history.takePass({ ...REPORT, kind, source, startedAt });
      return history.puppetdb;
    };
    for (let times = 0; times < 3; times += 1) {
      expect(pass("full", false)).toBeDefined();
      expect(pass("changes", false)).toBeDefined();
    }
    expect(pass("changes", true)).toBeUndefined();
    expect(pass("full", true)).toBeUndefined();

    const since = "2026-01-01T00:15:00.000Z";
    expect(pass("full", false, since)).toEqual({ failure, since });
    for (let times = 0; times < 3; times += 1) expect(pass("changes", true)).toBeUndefined();
    expect(pass("full", false)).toBeDefined();
    for (let times = 0; times < 3; times += 1) expect(pass("changes", true)).toEqual({ failure, since });
    expect(pass("full", true)).toBeUndefined();
    expect(pass("changes", true)).toBeUndefined();
  });
});

test("the list of passes and those that are told live agree on which is worth a line, a push alone is", () => {
  const history = new History();
  const told: Pass[] = [];
  history.watch({ moves: () => {}, pass: (pass) => told.push(pass) });
  const target = (name: string, outcome: "applied" | "unchanged", add: number): TargetReport => {
    const about = { kind: "haproxy", learned: 0, drift: 0, durationMs: 1 } as const;
    return { ...about, target: name, outcome, changes: [], add, set: 0, del: 0 };
  };
  const pushed = target("/a.sock", "applied", 3);
  const quiet = target("/b.sock", "unchanged", 0);
  history.takePass(REPORT);
  history.takePass({ ...REPORT, targets: [pushed, quiet] });
  history.takePass({ ...REPORT, targets: [quiet] });
  expect(told.filter(({ listed }) => listed).toReversed()).toEqual(history.passes);
  expect(history.passes[0]?.targets).toEqual([
    { target: "/a.sock", outcome: "applied", add: 3, set: 0, del: 0 },
  ]);
  expect(told.at(-1)?.listed).toBe(false);
});

describe("the list of nodes", () => {
  const MASTERS = ["m1", "m2", "m3"] as Master[];

  /** Every page, to the end. */
  async function walk(list: NodeList, limit: number): Promise<string[]> {
    const names: string[] = [];
    let cursor: string | undefined;
    do {
      const page = await list.page({ limit, cursor });
      names.push(...page.nodes.map(({ certname }) => certname));
      cursor = page.next ?? undefined;
    } while (cursor !== undefined);
    return names;
  }

  test("is what the map holds, in order, and counts what each master has, whatever came and went", () =>
    fc.assert(
      fc.asyncProperty(
        fc.array(fc.array(fc.record({ index: fc.nat(30), master: fc.option(fc.constantFrom(...MASTERS)) }))),
        fc.integer({ min: 1, max: 7 }),
        async (batches, limit) => {
          const map = new NodeMap();
          const list = new NodeList(map);
          let at = 0;
          for (const batch of batches) {
            for (const { index, master } of batch) {
              at += 1;
              if (master === null) map.remove(node(index));
              else map.observe({ certname: node(index), master, at, source: "facts" });
            }
            atOnce(list.takeChanges(map.takeChanges()));
            const all = [...map.assignments()];
            expect(await walk(list, limit)).toEqual(all.map(({ certname }) => certname).sort());
            const counts = new Map<Master, number>();
            for (const { master } of all) counts.set(master, (counts.get(master) ?? 0) + 1);
            expect(list.counts).toEqual(counts);
          }
        },
      ),
      { numRuns: 200 },
    ));

  test("stays right while it is put in order for the first time, and when very much changes between two looks", async () => {
    const map = new NodeMap();
    const list = new NodeList(map);
    const observe = (certname: Certname, at = 1) =>
      map.observe({ certname, master: "m1" as Master, at, source: "facts" });
    const tell = () => atOnce(list.takeChanges(map.takeChanges()));
    for (let index = 0; index < 150_000; index += 1) observe(node((index * 7_919) % 150_000));
    tell();
    const first = list.page({ limit: 1 });
    const again = list.page({ limit: 1 });
    for (let round = 0; round < 5; round += 1) {
      await breathe();
      map.remove(node(round)); // And back: it is met twice by whoever is counting just now.
      tell();
      observe(node(round));
      observe(`a${round}.example.com` as Certname);
      map.remove(node(1_000 + round));
      tell();
    }
    await Promise.all([first, again]);
    const expected = () => Array.from(map.assignments(), ({ certname }) => certname).sort();
    expect(await walk(list, 1_000)).toEqual(expected());
    for (let index = 0; index < 120_000; index += 1) map.remove(node(index));
    tell();
    expect(await walk(list, 1_000)).toEqual(expected());
    expect([...list.counts]).toEqual([["m1", map.size]]);
  });
});

describe("the event stream", () => {
  type News = Parameters<EventStream["publishStatus"]>[0];
  const inSync: News = { state: "in sync", summary: "3 nodes in sync", troubles: [] };
  const behind: News = { state: "catching up", summary: "1 change pending", troubles: [] };
  let status = inSync;

  async function withStream(use: (events: EventStream, port: number) => Promise<void>): Promise<void> {
    const events = new EventStream();
    const server = createServer(({ headers }, response) =>
      events.attach(response, "127.0.0.1", headers["last-event-id"] as string | undefined, status),
    );
    await once(server.listen(0, "127.0.0.1"), "listening");
    try {
      await use(events, (server.address() as AddressInfo).port);
    } finally {
      events.close();
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    }
  }

  /** Listens; `text` is what has come so far. */
  async function listen(port: number, lastId?: string) {
    const asked = httpGet({ port, host: "127.0.0.1", headers: lastId ? { "last-event-id": lastId } : {} });
    const [response] = (await once(asked, "response")) as [IncomingMessage];
    const listener = { text: "", close: () => asked.destroy() };
    response.setEncoding("utf8").on("data", (chunk: string) => {
      listener.text += chunk;
    });
    response.on("error", () => undefined);
    asked.on("error", () => undefined);
    return listener;
  }
  const idsOf = (text: string) => [...text.matchAll(/^id: \w+-(\d+)$/gm)].map(([, seq]) => Number(seq));

  test("drops who does not read, keeps who does, and its own memory bounded", () =>
    withStream(async (events, port) => {
      const slow = connect({ port, host: "127.0.0.1" });
      slow.on("error", () => undefined);
      slow.pause().write("GET / HTTP/1.1\r\nhost: localhost\r\n\r\n");
      const quick = await listen(port);
      await expect.poll(() => events.clients).toBe(2);
      const much = "x".repeat(64 * 1024);
      let sent = 0;
      while (events.clients === 2 && sent < 1_000) {
        events.publish("pass", much);
        sent += 1;
        // Wait for the quick one, so that it is not slow because of this loop.
        await expect.poll(() => idsOf(quick.text).at(-1), { interval: 1 }).toBe(sent);
      }
      expect(events.clients).toBe(1);
      expect(sent).toBeLessThan(1_000);
      events.publish("pass", "still here");
      await expect.poll(() => idsOf(quick.text).at(-1)).toBe(sent + 1);
      quick.close();
      slow.destroy();
    }));

  test("tells a client that came in the middle of a pass that the pass is over", () =>
    withStream(async (events, port) => {
      events.publishStatus(inSync);
      const early = await listen(port);
      await expect.poll(() => early.text).toContain(inSync.summary);
      status = behind; // For some milliseconds: nobody is told.
      const late = await listen(port);
      await expect.poll(() => late.text).toContain(behind.summary);
      status = inSync;
      events.publishStatus(inSync);
      await expect.poll(() => late.text).toContain(inSync.summary);
      const told = idsOf(late.text).length;
      events.publishStatus(inSync);
      events.publish("pass", "the last");
      await expect.poll(() => late.text).toContain("the last");
      expect(idsOf(late.text)).toHaveLength(told + 1);
      for (const listener of [early, late]) listener.close();
    }));

  test("replays what is kept, and says so when it is not enough", () =>
    withStream(async (events, port) => {
      for (let index = 0; index < 1_500; index += 1) events.publish("pass", index);
      const first = await listen(port);
      await expect.poll(() => first.text).toMatch(/event: status/);
      const [, start = ""] = /^id: (\w+)-/m.exec(first.text) ?? [];
      const late = await listen(port, `${start}-1490`);
      await expect
        .poll(() => idsOf(late.text))
        .toEqual([...Array.from({ length: 10 }, (_, index) => 1_491 + index), 1_500]);
      const edge = await listen(port, `${start}-500`);
      await expect.poll(() => idsOf(edge.text).length).toBe(1_001);
      const tooLate = await listen(port, `${start}-499`);
      await expect
        .poll(() => [...tooLate.text.matchAll(/^event: (\w+)$/gm)].map(([, name]) => name))
        .toEqual(["reset", "status"]);
      for (const listener of [first, late, edge, tooLate]) listener.close();
      await expect.poll(() => events.clients).toBe(0);
    }));
});
