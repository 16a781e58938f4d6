// What PuppetDb reads, on the real PuppetDB and on the demo's stand-in, which must not tell apart.
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { startPuppetdbStandIn } from "../../demo/puppetdb.js";
import { parseCertname } from "../../src/node-map.js";
import { PuppetDb } from "../../src/source/puppetdb.js";
import type { Reading, Submission } from "../../src/source/reading.js";
import { PuppetdbFront } from "../faults/fronts.js";
import { run } from "../support/child.js";
import { type PuppetdbRelease, partIfThere, puppetdbParts } from "../support/parts.js";
import { patient } from "../support/patience.js";
import {
  type PuppetdbClient,
  type PuppetdbServer,
  puppetdbClient,
  startPuppetdbs,
  usualRelease,
} from "../support/puppetdb-server.js";

/** Thrown away at the beginning of each test. */
type Backend = Pick<
  PuppetdbClient,
  "url" | "command" | "replaceFacts" | "replaceCatalog" | "storeReport" | "deactivateNode"
> & { close(): Promise<void> };

const SECOND_MS = 1_000;
const MINUTE_MS = 60 * SECOND_MS;
const NODE = "node1.example.com";
const soon = () => AbortSignal.timeout(patient(30_000));
/** A time so many milliseconds ago. */
const ago = (ms: number) => new Date(Date.now() - ms);

/** PuppetDB 7 and 8, the usual one first; Ubuntu's archive has only one. */
const OTHER: PuppetdbRelease = usualRelease === 7 ? 8 : 7;
const releases = [usualRelease, ...(partIfThere(OTHER === 8 ? "puppetdb8" : "puppetdb") ? [OTHER] : [])];
let servers: PuppetdbServer[] = [];
let real: PuppetdbServer;
beforeAll(async () => {
  servers = await startPuppetdbs(releases);
  real = servers[0] as PuppetdbServer;
});
afterAll(async () => {
  for (const server of servers) await server.stop();
});
const RELEASES = releases.map(
  (release, index) => [`PuppetDB ${release}`, () => servers[index] as PuppetdbServer] as const,
);

const emptied = (release: () => PuppetdbClient) => async (): Promise<Backend> => {
  const client = release();
  await client.reset();
  return { ...client, close: () => Promise.resolve() };
};

const BACKENDS: Record<string, () => Promise<Backend>> = {
  ...Object.fromEntries(RELEASES.map(([name, release]) => [name, emptied(release)])),
  "the demo's stand-in": async () => {
    const { url, close } = await startPuppetdbStandIn({ host: "127.0.0.1", port: 0 });
    return { ...puppetdbClient({ ...real, url }), close };
  },
};

/** Node and master of each submission, sorted. */
const routes = ({ submissions }: Pick<Reading, "submissions">): Record<string, string> =>
  Object.fromEntries([...submissions.values()].map(({ certname, producer }) => [certname, producer]).sort());

describe.each(Object.entries(BACKENDS))("%s", (_, start) => {
  let backend: Backend;
  let source: PuppetDb;

  beforeEach(async () => {
    backend = await start();
    source = new PuppetDb({ url: backend.url });
  });
  afterEach(async () => {
    await source.close();
    await backend.close();
  });

  const all = () => source.readAll(soon());
  /** What PuppetDB received since then, its clock being ours here, in whole seconds. */
  const changesSince = (since: number, inactiveBefore = 0) =>
    source.readChanges(since, soon(), { inactiveBefore });
  const submissionOf = async (certname = NODE): Promise<Partial<Submission> | undefined> =>
    (await all()).submissions.get(parseCertname(certname));

  describe("a full reading", () => {
    test("of an empty PuppetDB is empty", async () => {
      const reading = await all();
      expect(reading).toMatchObject({ kind: "full", submissions: { size: 0 }, active: { size: 0 } });
      expect(reading).toMatchObject({ inactive: new Map(), refused: new Set(), withoutProducer: new Set() });
    });

    // minutes ago: facts of master1, report of master2, catalog of master3
    test.each([
      ["the facts, when they are newer than the report", { facts: 1, report: 2 }, "master1", "facts"],
      ["the report, when it is newer than the facts", { facts: 2, report: 1 }, "master2", "report"],
      ["the facts, where there is no report", { facts: 1 }, "master1", "facts"],
      ["the report, where there are no facts", { report: 1 }, "master2", "report"],
      ["the catalog, where there is neither", { catalog: 1 }, "master3", "catalog"],
      [
        "the facts, when an operator had a catalog made elsewhere",
        { facts: 2, catalog: 1 },
        "master1",
        "facts",
      ],
      [
        "the report, when an operator had a catalog made elsewhere",
        { report: 2, catalog: 1 },
        "master2",
        "report",
      ],
      [
        "the newer of both, whatever the catalog says",
        { facts: 3, report: 2, catalog: 1 },
        "master2",
        "report",
      ],
    ] as const)(
      "follows %s",
      async (_, minutes: { facts?: number; report?: number; catalog?: number }, producer, from) => {
        const at = (kind: keyof typeof minutes) => ago((minutes[kind] ?? 0) * MINUTE_MS);
        const times = { facts: at("facts"), report: at("report"), catalog: at("catalog") };
        if (minutes.facts)
          await backend.replaceFacts({ certname: NODE, producer: "master1", at: times.facts });
        if (minutes.report)
          await backend.storeReport({ certname: NODE, producer: "master2", at: times.report });
        if (minutes.catalog)
          await backend.replaceCatalog({ certname: NODE, producer: "master3", at: times.catalog });

        const expected = { certname: NODE, producer, source: from };
        expect(await submissionOf()).toMatchObject(expected);
        const seconds = from === "facts" ? times.facts : from === "report" ? times.report : times.catalog;
        expect((await submissionOf())?.at).toBe(seconds.getTime());
        expect(await source.readNode(parseCertname(NODE), soon())).toMatchObject({
          ...expected,
          at: seconds.getTime(),
        });
        expect(
          (await changesSince(Date.now() - MINUTE_MS)).submissions.get(parseCertname(NODE)),
        ).toMatchObject(expected);
      },
    );

    test("follows a node that moves, run by run, and takes no step back for what arrives late", async () => {
      const step = async (kind: "replaceFacts" | "storeReport", producer: string, seconds: number) => {
        await backend[kind]({ certname: NODE, producer, at: ago(seconds * SECOND_MS) });
        return (await submissionOf())?.producer;
      };
      expect(await step("replaceFacts", "master1", 60)).toBe("master1");
      expect(await step("storeReport", "master1", 55)).toBe("master1");
      expect(await step("replaceFacts", "master2", 30)).toBe("master2");
      expect(await step("storeReport", "master1", 50)).toBe("master2"); // The report of the run before.
      expect(await step("storeReport", "master2", 25)).toBe("master2");
      expect(await step("storeReport", "master3", 20)).toBe("master3"); // A run from the cached catalog.
      expect(await step("replaceFacts", "master1", 58)).toBe("master3");
    });

    test("names the node itself as the producer for `puppet apply`", async () => {
      await backend.replaceFacts({ certname: NODE, producer: NODE });
      expect(await submissionOf()).toMatchObject({ producer: NODE });
    });

    test("gives each node its own master, and all nodes as active", async () => {
      const nodes = Array.from({ length: 12 }, (_, n) => ({
        certname: `n${n}.example.com`,
        producer: `master${n % 3}`,
      }));
      for (const node of nodes) await backend.replaceFacts(node);
      const reading = await all();
      expect(routes(reading)).toEqual(
        Object.fromEntries(nodes.map(({ certname, producer }) => [certname, producer]).sort()),
      );
      expect(new Set(reading.active)).toEqual(new Set(reading.submissions.keys()));
    });

    test("lists a deactivated node as inactive since then, with no submission of any kind", async () => {
      const at = ago(SECOND_MS);
      for (const submit of ["replaceFacts", "storeReport", "replaceCatalog"] as const) {
        await backend[submit]({ certname: "gone.example.com", producer: "master1", at: ago(MINUTE_MS) });
        await backend[submit]({ certname: NODE, producer: "master1", at: ago(MINUTE_MS) });
      }
      await backend.replaceCatalog({
        certname: "gone2.example.com",
        producer: "master1",
        at: ago(MINUTE_MS),
      });
      await backend.deactivateNode("gone.example.com", at);
      await backend.deactivateNode("gone2.example.com", at);

      const reading = await all();
      expect(routes(reading)).toEqual({ [NODE]: "master1" });
      expect([...(reading.active ?? [])]).toEqual([NODE]);
      expect(Object.fromEntries(reading.inactive)).toEqual({
        "gone.example.com": at.getTime(),
        "gone2.example.com": at.getTime(),
      });
      expect(await source.readNode(parseCertname("gone.example.com"), soon())).toBeUndefined();
      expect(await source.readNode(parseCertname("gone2.example.com"), soon())).toBeUndefined();
    });

    test("lists a node as active again when it runs after its deactivation, and not for an older run", async () => {
      await backend.replaceFacts({ certname: NODE, producer: "master1", at: ago(5 * MINUTE_MS) });
      await backend.deactivateNode(NODE, ago(3 * MINUTE_MS));
      await backend.storeReport({ certname: NODE, producer: "master1", at: ago(4 * MINUTE_MS) });
      expect((await all()).inactive.has(parseCertname(NODE))).toBe(true);

      await backend.replaceFacts({ certname: NODE, producer: "master2", at: ago(MINUTE_MS) });
      const reading = await all();
      expect(routes(reading)).toEqual({ [NODE]: "master2" });
      expect(new Set(reading.active)).toEqual(new Set([NODE]));
      expect(reading.inactive).toEqual(new Map());
    });

    test.each([
      ["a command", "a;disable server puppet/master1"],
      ["a space", "x y"],
      ["a comment", "#c"],
      ["a payload", "<<"],
      ["300 characters", "x".repeat(300)],
      ["other letters than ASCII", "nöde.example.com"],
      ["a line break at its end", "node.example.com\n"],
      ["a line break inside", "node\nset map x"],
      ["upper case", "Node.example.com"],
      ["quotes and a backslash", '"a\\b"'],
      ["a dot in front", ".example.com"],
      ["a hyphen in front", "-x"],
    ])("refuses a certname with %s, and shows it as it came", async (_, certname) => {
      await backend.replaceFacts({ certname, producer: "master1" });
      await backend.storeReport({ certname, producer: "master1" });
      await backend.replaceFacts({ certname: NODE, producer: "master1" });
      for (const reading of [await all(), await changesSince(Date.now() - MINUTE_MS)]) {
        expect(routes(reading)).toEqual({ [NODE]: "master1" });
        expect(reading.refused).toEqual(new Set([certname]));
      }
      expect(new Set((await all()).active)).toEqual(new Set([NODE]));
    });

    test("counts a node whose producer is null, and lets it spoil nothing", async () => {
      await backend.replaceFacts({ certname: "old.example.com", producer: null });
      await backend.replaceFacts({ certname: "half.example.com", producer: null });
      await backend.storeReport({ certname: "half.example.com", producer: "master1" });
      await backend.replaceFacts({ certname: NODE, producer: "master1" });
      for (const reading of [await all(), await changesSince(Date.now() - MINUTE_MS)]) {
        expect(routes(reading)).toEqual({ "half.example.com": "master1", [NODE]: "master1" });
        expect(reading.withoutProducer).toEqual(new Set(["old.example.com"]));
      }
      expect((await all()).active?.size).toBe(3);
    });
  });

  describe("a reading of changes", () => {
    test("of a fleet without news is empty", async () => {
      await backend.replaceFacts({ certname: NODE, producer: "master1" });
      await backend.storeReport({ certname: NODE, producer: "master1" });
      await backend.replaceCatalog({ certname: "only.example.com", producer: "master1" });
      await all();
      const reading = await changesSince(Date.now() + SECOND_MS);
      expect(reading).toMatchObject({ kind: "changes", submissions: { size: 0 }, active: undefined });
      expect(reading).toMatchObject({ inactive: new Map(), refused: new Set(), withoutProducer: new Set() });
    });

    test.each(["replaceFacts", "storeReport", "replaceCatalog"] as const)(
      "has what %s brought after `since`, and nothing from before",
      async (submit) => {
        await backend[submit]({ certname: "before.example.com", producer: "master1" });
        await untilNextSecond();
        const since = Date.now() - 1; // What arrives within this very millisecond is after it, too.
        await backend[submit]({ certname: "after.example.com", producer: "master2" });
        const reading = await changesSince(since);
        expect(routes(reading)).toEqual({ "after.example.com": "master2" });
      },
    );

    // The clock that decides is PuppetDB's, at which the facts or the report arrived.
    const skews: [string, "replaceFacts" | "storeReport", number][] = [
      ["facts from a master whose clock is 10 minutes behind", "replaceFacts", -10],
      ["facts from a master whose clock is 10 minutes ahead", "replaceFacts", 10],
      ["a report from a master whose clock is 4 minutes behind", "storeReport", -4],
      ["a report from a master whose clock is 10 minutes ahead", "storeReport", 10],
    ];
    test.each(skews)("has %s, once", async (_, submit, minutes) => {
      const since = Date.now() - 1; // What arrives within this very millisecond is after it, too.
      await backend[submit]({ certname: NODE, producer: "master1", at: ago(-minutes * MINUTE_MS) });
      const { submissions } = await changesSince(since);
      const submission = submissions.get(parseCertname(NODE));
      expect(submission).toMatchObject({ producer: "master1" });
      expect(submission?.receivedAt).toBeGreaterThanOrEqual(since);
      expect(submission?.receivedAt).toBeLessThanOrEqual(Date.now());
      expect(routes(await changesSince(submission?.receivedAt ?? 0))).toEqual({});
    });

    test("leaves a report by a clock that is an hour behind to the full reading", async () => {
      await backend.storeReport({ certname: NODE, producer: "master1", at: ago(60 * MINUTE_MS) });
      expect(routes(await changesSince(Date.now() - MINUTE_MS))).toEqual({});
      expect(routes(await all())).toEqual({ [NODE]: "master1" });
    });

    test("leaves the first node with nothing but a catalog to the full reading, and has later ones", async () => {
      await all();
      const since = Date.now() - 1; // What arrives within this very millisecond is after it, too.
      await backend.replaceCatalog({ certname: "first.example.com", producer: "master1" });
      expect(routes(await changesSince(since))).toEqual({});
      expect(routes(await all())).toEqual({ "first.example.com": "master1" });
      await backend.replaceCatalog({ certname: "second.example.com", producer: "master2" });
      expect(routes(await changesSince(since))).toMatchObject({ "second.example.com": "master2" });
    });

    test("leaves out an operator's catalog for a node that has facts or a report", async () => {
      await backend.replaceFacts({ certname: "facts.example.com", producer: "master1" });
      await backend.storeReport({ certname: "report.example.com", producer: "master1" });
      await untilNextSecond();
      const since = Date.now() - 1; // What arrives within this very millisecond is after it, too.
      await backend.replaceCatalog({ certname: "facts.example.com", producer: "master2" });
      await backend.replaceCatalog({ certname: "report.example.com", producer: "master2" });
      expect(routes(await changesSince(since))).toEqual({});
    });

    test("has a node that was deactivated since the reading before, and when", async () => {
      await backend.replaceFacts({ certname: NODE, producer: "master1", at: ago(MINUTE_MS) });
      await all();
      const at = ago(0);
      await backend.deactivateNode(NODE, at);
      const reading = await changesSince(Date.now() + SECOND_MS);
      expect(Object.fromEntries(reading.inactive)).toEqual({ [NODE]: at.getTime() });
      expect(reading.inactiveCount).toBe(1);
      expect((await changesSince(Date.now() + SECOND_MS, 1)).inactive).toEqual(new Map()); // Told once.
    });

    test("has a node that came back, with its new master", async () => {
      await backend.replaceFacts({ certname: NODE, producer: "master1", at: ago(5 * MINUTE_MS) });
      await backend.deactivateNode(NODE, ago(3 * MINUTE_MS));
      await all();
      const since = Date.now() - 1; // What arrives within this very millisecond is after it, too.
      await backend.replaceFacts({ certname: NODE, producer: "master2" });
      const reading = await changesSince(since);
      expect(routes(reading)).toEqual({ [NODE]: "master2" });
      expect(reading.inactive).toEqual(new Map());
    });
  });

  test("a reading is dated by PuppetDB's own clock, which is ours here, not later than its beginning", async () => {
    const began = Date.now();
    const first = await all();
    expect(first.asOf).toBeGreaterThan(began - patient(SECOND_MS));
    expect(first.asOf).toBeLessThanOrEqual(Date.now());
    const later = Date.now();
    expect((await changesSince(began)).asOf).toBeGreaterThan(later - patient(SECOND_MS));
  });

  test("nothing is lost between a reading and the next one, dated by the first", async () => {
    const seen = new Map<string, string>();
    let { asOf } = await all();
    for (let n = 0; n < 10; n += 1) {
      await backend.replaceFacts({ certname: `n${n}.example.com`, producer: "master1" });
      const reading = await changesSince(asOf - 1);
      for (const [certname, producer] of Object.entries(routes(reading))) seen.set(certname, producer);
      asOf = reading.asOf;
    }
    expect(seen.size).toBe(10);
  });

  test("a node that PuppetDB does not know has no submission", async () => {
    expect(await source.readNode(parseCertname("nobody.example.com"), soon())).toBeUndefined();
  });
});

/** Timestamps have milliseconds but the Date header has seconds: waits for the next one. */
async function untilNextSecond(): Promise<void> {
  const second = Math.floor(Date.now() / SECOND_MS);
  while (Math.floor(Date.now() / SECOND_MS) === second)
    await new Promise((resolve) => setTimeout(resolve, 5));
}

describe("the real PuppetDB over TLS", () => {
  let dir: string;
  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), "sasori-source-"));
    await writeFile(join(dir, "openssl.cnf"), "[req]\ndistinguished_name = name\n[name]\n");
    const subject = ["-subj", "/CN=stranger", "-days", "30"];
    const files = ["-keyout", join(dir, "key.pem"), "-out", join(dir, "cert.pem")];
    const request = ["req", "-x509", "-config", join(dir, "openssl.cnf"), "-newkey", "rsa:2048", "-nodes"];
    await run(puppetdbParts().openssl, [...request, ...subject, ...files]);
  });
  afterAll(() => rm(dir, { recursive: true, force: true }));

  test("is read with the client certificate", async () => {
    const client = real;
    await client.reset();
    await client.replaceFacts({ certname: NODE, producer: "master1" });
    const { url, cert: certFile, key: keyFile, ca: caFile } = client.tls;
    const source = new PuppetDb({ url, certFile, keyFile, caFile });
    expect(routes(await source.readAll(soon()))).toEqual({ [NODE]: "master1" });
    expect(routes(await source.readChanges(Date.now() - MINUTE_MS, soon()))).toEqual({ [NODE]: "master1" });
    await source.close();
  });

  test.each([
    ["without a certificate", () => ({})],
    [
      "with a certificate of another CA",
      () => ({ certFile: join(dir, "cert.pem"), keyFile: join(dir, "key.pem") }),
    ],
  ])("refuses sasori %s, and sasori says PUPPETDB_TLS", async (_, files) => {
    const { url, ca: caFile } = real.tls;
    const source = new PuppetDb({ url, caFile, ...files() });
    await expect(source.readAll(soon())).rejects.toMatchObject({
      code: "PUPPETDB_TLS",
      message: expect.stringMatching(/certificate.*(set|check) SASORI_PUPPETDB_CERT/),
    });
  });

  test("is not trusted without its CA", async () => {
    const { url, cert: certFile, key: keyFile } = real.tls;
    await expect(new PuppetDb({ url, certFile, keyFile }).readAll(soon())).rejects.toMatchObject({
      code: "PUPPETDB_TLS",
    });
  });
});

describe.each(RELEASES)("%s with an old database", (_, release) => {
  test("rows that lost their producer, or expired, are read for what they are", async () => {
    const client = release();
    await client.reset();
    for (const certname of ["old.example.com", "expired.example.com", NODE]) {
      await client.replaceFacts({ certname, producer: "master1" });
      await client.storeReport({ certname, producer: "master1" });
    }
    await client.sql("UPDATE factsets SET producer_id = NULL WHERE certname = 'old.example.com'");
    await client.sql("UPDATE reports SET producer_id = NULL WHERE certname = 'old.example.com'");
    const expired = ago(MINUTE_MS);
    await client.sql(
      `UPDATE certnames SET expired = '${expired.toISOString()}' WHERE certname = 'expired.example.com'`,
    );
    const source = new PuppetDb({ url: client.url });
    const reading = await source.readAll(soon());
    expect(routes(reading)).toEqual({ [NODE]: "master1" });
    expect(reading.withoutProducer).toEqual(new Set(["old.example.com"]));
    expect(new Set(reading.active)).toEqual(new Set(["old.example.com", NODE]));
    expect(Object.fromEntries(reading.inactive)).toEqual({ "expired.example.com": expired.getTime() });
    await source.close();
  });

  test("how much waits in its queue is told with a reading", async () => {
    const client = release();
    const source = new PuppetDb({ url: client.url });
    expect(source.queueDepth).toBeUndefined();
    await source.readAll(soon());
    expect(source.queueDepth).toBe(0);
    await source.close();
  });

  test("a thousand nodes are all read, each with the master that it has", async () => {
    const client = release();
    await client.reset();
    await client.fill(1_000, ["master1", "master2", "master3"]);
    const source = new PuppetDb({ url: client.url });
    const { submissions, active } = await source.readAll(soon());
    expect([submissions.size, active?.size]).toEqual([1_000, 1_000]);
    const count = (master: string) =>
      [...submissions.values()].filter(({ producer }) => producer === master).length;
    expect(["master1", "master2", "master3"].map(count)).toEqual([333, 334, 333]);
    await source.close();
  });
});

// On the usual release only: TEST_PUPPETDB=8 for the other one.
describe("the real PuppetDB with a history of reports", () => {
  const NODES = 12_000;
  let client: PuppetdbClient;

  // Each node at random masters, its last run within the last half hour, others 19, 38, 57 and 76 hours before.
  beforeAll(async () => {
    client = real;
    await client.reset();
    await client.fill(NODES, ["master1", "master2", "master3"], 5);
    await client.sql(
      "UPDATE reports SET producer_id = (SELECT min(id) FROM producers) + (hashtext(encode(hash, 'hex')) & 1)",
    );
    await client.sql("UPDATE factsets SET producer_timestamp = producer_timestamp - interval '40 hours'");
  });

  /** The nodes of this share have reported nothing since. */
  const silence = (percent: number, since: string) =>
    client.sql(`
      DELETE FROM reports USING certnames WHERE certnames.certname = reports.certname
        AND certnames.id % 1000 < ${percent * 10} AND producer_timestamp > now() - interval '${since}';
      UPDATE certnames SET latest_report_id = newest.id, latest_report_timestamp = newest.end_time
        FROM (SELECT DISTINCT ON (certname) certname, id, end_time FROM reports ORDER BY certname, end_time DESC) newest
        WHERE newest.certname = certnames.certname`);

  /** The newest of factset and latest report, as PuppetDB itself tells them. */
  async function truth(): Promise<Map<string, string>> {
    const rows = async (entity: string, ...where: unknown[][]) =>
      (await client.query([
        "from",
        entity,
        ["extract", ["certname", "producer", "producer_timestamp"], ...where],
      ])) as { certname: string; producer: string; producer_timestamp: string }[];
    const newest = new Map<string, { producer: string; producer_timestamp: string }>();
    for (const row of [
      ...(await rows("factsets")),
      ...(await rows("reports", ["=", "latest_report?", true])),
    ]) {
      const known = newest.get(row.certname)?.producer_timestamp ?? "";
      if (row.producer_timestamp > known) newest.set(row.certname, row);
    }
    return new Map(
      Array.from(newest, ([certname, { producer, producer_timestamp: at }]) => [
        certname,
        `${producer} ${at}`,
      ]),
    );
  }

  // In this order: each step silences more.
  test.each([
    ["all of the last hour", 0, "1 hour"],
    ["for 4.5 % of the nodes older ones, asked for by name", 4.5, "1 hour"],
    ["for a third of the nodes one of the last day", 33, "1 hour"],
    ["for a half of the nodes one that is older than a day", 50, "37 hours"],
    ["for a half of the nodes none", 50, "100 hours"],
  ])("a full reading has the same newest reports as PuppetDB's latest: %s", async (_, percent, since) => {
    await silence(percent, since);
    await expectTruth(client.url);
  });

  test("so it has by one question for the latest reports, from PuppetDB 8.7 on", async () => {
    const front = new PuppetdbFront(client.url);
    const asked: string[] = [];
    front.tap = {
      asked: (entity, query) => void (entity === "reports" && asked.push(query)),
      text: (response, text, entity) => response.end(entity === "version" ? '{"version":"8.7.0"}' : text),
    };
    await front.open();
    await expectTruth(front.url, 2);
    await front.close();
    expect(asked.filter((query) => query.includes("latest_report?")).length).toBeGreaterThan(0);
    expect(asked.at(-1)).toContain("latest_report?");
  });

  /** The last one of so many readings. */
  async function expectTruth(url: string, readings = 1): Promise<void> {
    const source = new PuppetDb({ url });
    let { submissions } = await source.readAll(soon());
    for (let n = 1; n < readings; n += 1) submissions = (await source.readAll(soon())).submissions;
    await source.close();
    const read = Array.from(
      submissions.values(),
      ({ certname, producer, at }) => [certname, `${producer} ${new Date(at).toISOString()}`] as const,
    );
    expect(read.length).toBe(NODES);
    // Compared as text: a failed comparison of two big maps would take the reporter minutes.
    const text = (rows: Iterable<readonly [string, string]>) => [...rows].sort().join("\n");
    expect(text(read) === text(await truth())).toBe(true);
  }
});
