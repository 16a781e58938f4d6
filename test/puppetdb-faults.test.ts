import dns from "node:dns";
import { copyFile, mkdtemp, readFile, rm, unlink, writeFile } from "node:fs/promises";
import type { ServerResponse } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { gzipSync } from "node:zlib";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { SasoriError } from "../src/errors.js";
import { NodeMap, parseCertname } from "../src/node-map.js";
import { PuppetDb } from "../src/source/puppetdb.js";
import { checkAnswer } from "../src/source/puppetdb-connection.js";
import { Replica } from "../src/source/source.js";
import { keyWithPassphrase, makeTlsFiles } from "./support/certificates.js";
import { freePort, run } from "./support/child.js";
import { patient } from "./support/patience.js";
import {
  answer,
  EMPTY,
  type Script,
  type ScriptedPuppetdb,
  type Scripts,
  SILENT,
  startScriptedPuppetdb,
} from "./support/scripted-puppetdb.js";

const NODE = parseCertname("node1.example.com");
const ROW = JSON.stringify({
  certname: NODE,
  producer: "master1.example.com",
  producer_timestamp: "2026-01-01T00:00:00.000Z",
});
/** What all questions for nodes take: their number, and each one's state. */
const NODE_ROW = JSON.stringify({ certname: NODE, count: 1, deactivated: null, expired: null });
/** A fleet of one node. */
const ONE_NODE: Scripts = {
  factsets: answer(`[${ROW}]`),
  nodes: answer(`[${NODE_ROW}]`),
  other: EMPTY,
};
const HTML = "text/html;charset=iso-8859-1";
const TEXT = "text/plain";

/** The ways to ask, each with an entity that it asks first, side by side with others. */
const READINGS = {
  "everything is read": (source: PuppetDb, signal: AbortSignal) => source.readAll(signal),
  "changes are read": (source: PuppetDb, signal: AbortSignal) => source.readChanges(Date.now(), signal),
  "one node is read": (source: PuppetDb, signal: AbortSignal) => source.readNode(NODE, signal),
} as const;

/** Sends the pieces, then cuts the connection (`cut`) or ends the answer. */
function pieces(texts: string[], headers: Record<string, string> = {}, cut = false): Script {
  return (response) => {
    response.writeHead(200, { "content-type": "application/json", ...headers });
    for (const text of texts) response.write(text);
    // Wait until it was sent. An immediate cut would lose the beginning.
    if (cut) response.write(" ", () => response.socket?.destroy());
    else response.end();
  };
}

/** Sends the beginning, and then nothing. */
const stalledAfter = (text: string): Script => {
  return (response) => {
    response.writeHead(200, { "content-type": "application/json" });
    response.write(text);
  };
};

const soon = () => AbortSignal.timeout(patient(20_000));

/** The error of a reading that must fail. */
async function failure(reading: Promise<unknown>): Promise<SasoriError> {
  const outcome = await reading.then(
    (value) => new Error(`it succeeded: ${JSON.stringify(value)}`),
    (error: unknown) => error,
  );
  expect(outcome).toBeInstanceOf(SasoriError);
  return outcome as SasoriError;
}

describe("what PuppetDB may answer instead of rows", () => {
  let server: ScriptedPuppetdb;
  let source: PuppetDb;

  beforeEach(async () => {
    server = await startScriptedPuppetdb({ other: SILENT });
    source = new PuppetDb({ url: server.url });
  });
  afterEach(() => server.close());

  // All other queries hang: the reading has to end them when this one fails.
  const faults: [string, Script, SasoriError["code"], string[]][] = [
    [
      "500",
      answer("PSQLException: too many", 500, TEXT),
      "PUPPETDB_STATUS",
      ["500", "too many", "log says why"],
    ],
    ["502 by a proxy", answer("<h1>Bad Gateway</h1>", 502, HTML), "PUPPETDB_STATUS", ["502", "Bad Gateway"]],
    [
      "503 in maintenance",
      answer("PuppetDB is currently down. Try again later.", 503, TEXT),
      "PUPPETDB_STATUS",
      ["503", "currently down", "starting or in maintenance"],
    ],
    ["503 without a word", answer("", 503, TEXT), "PUPPETDB_STATUS", ["503", "starting or in maintenance"]],
    [
      "403 to a name that is not on its list",
      answer("The client certificate name sasori doesn't appear in the certificate whitelist.", 403, TEXT),
      "PUPPETDB_STATUS",
      ["403", "doesn't appear", "certificate-allowlist"],
    ],
    ["401", answer("no", 401, TEXT), "PUPPETDB_STATUS", ["401", "SASORI_PUPPETDB_TOKEN_FILE"]],
    [
      "400",
      answer("'x' is not a queryable object", 400, TEXT),
      "PUPPETDB_STATUS",
      ["400", "queryable", "PuppetDB 7"],
    ],
    ["404", answer("not found", 404, TEXT), "PUPPETDB_STATUS", ["404", "SASORI_PUPPETDB_URL"]],
    [
      "302",
      (response) => response.writeHead(302, { location: "/pdb/dashboard/index.html" }).end(),
      "PUPPETDB_STATUS",
      ["302", "SASORI_PUPPETDB_URL"],
    ],
    [
      "500 and breaks off",
      (response) => {
        response.writeHead(500, { "content-length": "1000" });
        response.write("half", () => response.socket?.destroy());
      },
      "PUPPETDB_STATUS",
      ["500", "log says why"],
    ],
    [
      "a web page with status 200",
      answer("<html><title>Sign in</title></html>", 200, HTML),
      "PUPPETDB_BODY",
      ["text/html", "Sign in", "SASORI_PUPPETDB_URL"],
    ],
    [
      "rows as text/plain",
      answer("[]", 200, TEXT),
      "PUPPETDB_BODY",
      ["text/plain", "[]", "SASORI_PUPPETDB_URL"],
    ],
    [
      "no content type",
      (response) => response.writeHead(200).end("[]"),
      "PUPPETDB_BODY",
      ['""', "SASORI_PUPPETDB_URL"],
    ],
    ["nothing, as JSON", answer(""), "PUPPETDB_BODY", ["no end", "PuppetDB's log"]],
    ["an object", answer('{"error":"busy"}'), "PUPPETDB_BODY", ["no array", "busy"]],
    ["half an array", pieces([`[${ROW},`, ROW]), "PUPPETDB_BODY", ["no end", "PuppetDB's log"]],
    [
      "half an array, by a server that then closes",
      pieces([`[${ROW},`, ROW], { connection: "close", "transfer-encoding": "identity" }),
      "PUPPETDB_BODY",
      ["no end", "PuppetDB's log"],
    ],
    [
      "half an array and an error text",
      pieces([`[${ROW},`, ROW, "ERROR: canceling statement due to statement timeout"]),
      "PUPPETDB_BODY",
      ["no end", "canceling statement due to statement timeout"],
    ],
    ["text after the array", pieces([`[${ROW}]`, "Error"]), "PUPPETDB_BODY", ["after its end", "Error"]],
    [
      "less than Content-Length says",
      pieces([`[${ROW},`], { "content-length": "5000" }, true),
      "PUPPETDB_UNREACHABLE",
      ["check that PuppetDB is running"],
    ],
    [
      "half of the chunks",
      pieces([`[${ROW},`], {}, true),
      "PUPPETDB_UNREACHABLE",
      ["check that PuppetDB is running"],
    ],
    [
      "nothing, and hangs up",
      (response) => response.socket?.destroy(),
      "PUPPETDB_UNREACHABLE",
      ["check that PuppetDB is running"],
    ],
    [
      "what is no HTTP",
      (response) => response.socket?.end("220 smtp.example.com ESMTP\r\n"),
      "PUPPETDB_UNREACHABLE",
      ["check that PuppetDB is running"],
    ],
    [
      "a row without a certname",
      answer('[{"x":1}]'),
      "PUPPETDB_BODY",
      ["certname", '\\"x\\":1', "SASORI_PUPPETDB_URL"],
    ],
    ["numbers", answer("[1,2]"), "PUPPETDB_BODY", ["object", "1"]],
    ["null for a row", answer("[null]"), "PUPPETDB_BODY", ["object", "null"]],
    ["a list for a row", answer("[[]]"), "PUPPETDB_BODY", ["object", "[]"]],
    [
      "a number for a producer",
      answer(`[${ROW},${ROW.replace('"master1.example.com"', "7")}]`),
      "PUPPETDB_BODY",
      ["producer", ":7,", "SASORI_PUPPETDB_URL"],
    ],
    [
      "rows that something before it has packed, though nobody asked for that",
      (response) => {
        const packed = gzipSync("[]");
        const headers = { "content-type": "application/json", "content-encoding": "gzip" };
        response.writeHead(200, { ...headers, "content-length": packed.length }).end(packed);
      },
      "PUPPETDB_BODY",
      ["gzip", "turn compression off in the proxy in front of PuppetDB"],
    ],
    [
      "bytes that are not UTF-8",
      answer(Buffer.from('[{"certname":"caf\xe9"}]', "latin1")),
      "PUPPETDB_BODY",
      ["not UTF-8", "SASORI_PUPPETDB_URL"],
    ],
  ];

  describe.each(Object.entries(READINGS))("when %s", (_, read) => {
    test.each(faults)(
      "%s fails the reading, is named, and ends all queries",
      async (_, script, code, texts) => {
        server.scripts = { factsets: script, other: SILENT };
        const error = await failure(read(source, soon()));
        expect(error.code).toBe(code);
        const url = `${server.url}/pdb/query/v4/factsets`;
        for (const text of [url, ...texts]) expect(error.message).toContain(text);
        expect(error.message).not.toMatch(/[\n\r]/);
        await source.close();
        await server.untilAlone();
      },
    );

    test.each([
      ["never begins", SILENT],
      ["stalls in its middle", stalledAfter(`[${ROW},{"cert`)],
      ["stalls before its end", stalledAfter(`[${ROW}`)],
    ])("an answer that %s ends by the deadline, with PUPPETDB_TIMEOUT", async (_, script) => {
      server.scripts = { factsets: script, other: EMPTY };
      const deadline = new AbortController();
      const reading = failure(read(source, deadline.signal));
      await server.untilAsked("factsets");
      deadline.abort(new DOMException("The operation was aborted due to timeout", "TimeoutError"));
      const error = await reading;
      expect(error.code).toBe("PUPPETDB_TIMEOUT");
      expect(error.message).toContain(`${server.url}/pdb/query/v4/`);
      expect(error.message).toMatch(/due to timeout.*too slow or hangs/);
      await source.close();
      await server.untilAlone();
    });

    test("a stop of sasori is told as that", async () => {
      const stop = new AbortController();
      const reading = failure(read(source, stop.signal));
      await server.untilAsked("factsets");
      stop.abort(new SasoriError("STOPPED", "sasori was told to stop"));
      expect((await reading).code).toBe("STOPPED");
      await source.close();
      await server.untilAlone();
    });

    test("a deadline that has passed already asks nothing", async () => {
      const error = await failure(read(source, AbortSignal.abort(new DOMException("late", "TimeoutError"))));
      expect(error.code).toBe("PUPPETDB_TIMEOUT");
      expect(server.asked).toEqual([]);
    });

    test("a port where nobody listens is PUPPETDB_UNREACHABLE, with the port", async () => {
      const url = `http://127.0.0.1:${await freePort()}`;
      const error = await failure(read(new PuppetDb({ url }), soon()));
      expect(error.code).toBe("PUPPETDB_UNREACHABLE");
      expect(error.message).toContain(`${url}/pdb/query/v4/`);
      expect(error.message).toMatch(/ECONNREFUSED.*check that PuppetDB is running and reachable/);
    });
  });

  test("an answer that has almost stopped is given up after a minute, and one that goes on is not", async () => {
    vi.useFakeTimers({ toFake: ["setInterval", "clearInterval"] });
    try {
      const sent: ServerResponse[] = [];
      const begun: Script = (response) => {
        stalledAfter(`[${ROW}`)(response);
        sent.push(response);
      };
      server.scripts = { ...ONE_NODE, factsets: begun };
      let rows = 0;
      const read = () =>
        source.readAll(soon(), () => {
          rows += 1;
          return true;
        });
      const dripping = failure(read());
      await expect.poll(() => rows).toBe(1);
      vi.advanceTimersByTime(60_000);
      expect(await dripping).toMatchObject({
        code: "PUPPETDB_TIMEOUT",
        message: expect.stringMatching(/factsets sends its answer byte by byte .*PuppetDB's log/),
      });

      const long = read();
      await expect.poll(() => rows).toBe(2);
      sent.at(-1)?.write(`,${ROW}`.repeat(1_000));
      await expect.poll(() => rows).toBe(1_002);
      vi.advanceTimersByTime(60_000);
      sent.at(-1)?.end("]");
      expect((await long).submissions.size).toBe(1);
    } finally {
      vi.useRealTimers();
    }
    await source.close();
    await server.untilAlone();
  });

  test("readings side by side share their connections", async () => {
    server.scripts = ONE_NODE;
    const readings = Array.from({ length: 5 }, () => source.readAll(soon()));
    for (const { submissions } of await Promise.all(readings)) expect(submissions.size).toBe(1);
    await source.close();
    await server.untilAlone();
  });

  test("asks anew after a failure, with nothing left of it", async () => {
    server.scripts = { factsets: answer("no", 500, TEXT), other: SILENT };
    await failure(source.readAll(soon()));
    server.scripts = ONE_NODE;
    const { submissions } = await source.readAll(soon());
    expect([...submissions.keys()]).toEqual([NODE]);
    await source.close();
    await server.untilAlone();
  });

  test("an empty fleet is an answer, not an error: the guard judges it", async () => {
    server.scripts = { other: EMPTY };
    const reading = await source.readAll(soon());
    expect(reading).toMatchObject({ kind: "full", submissions: { size: 0 }, active: { size: 0 } });
    await source.close();
    await server.untilAlone();
  });

  const dated = (date: string | undefined): Script => {
    return (response) => {
      response.sendDate = false;
      if (date !== undefined) response.setHeader("date", date);
      EMPTY(response);
    };
  };

  test("a reading is dated by PuppetDB's clock when its first query began", async () => {
    const later = dated("Thu, 01 Jan 2026 00:01:00 GMT");
    server.scripts = { factsets: later, other: dated("Thu, 01 Jan 2026 00:00:00 GMT") };
    expect((await source.readAll(soon())).asOf).toBe(Date.UTC(2026, 0, 1));
    await source.close();
  });

  test("a reading is dated by our clock before it began when something dropped PuppetDB's", async () => {
    const began = Date.now();
    let arrived = 0;
    server.scripts = {
      other: (response) => {
        arrived ||= Date.now();
        while (Date.now() === arrived); // So that the end of the reading is another time.
        dated(undefined)(response);
      },
    };
    const { asOf } = await source.readAll(soon());
    expect(asOf).toBeGreaterThanOrEqual(began);
    expect(asOf).toBeLessThanOrEqual(arrived);
    await source.close();
  });

  test("rows of a name that cannot be a map key are refused, a thousand of them kept", async () => {
    const names = [NODE, ...Array.from({ length: 1_500 }, (_, n) => `a b ${n}`)];
    const rows = names.map((certname) => ({
      certname,
      deactivated: null,
      expired: null,
      count: names.length,
    }));
    server.scripts = { nodes: answer(JSON.stringify(rows)), other: EMPTY };
    const reading = await source.readAll(soon());
    expect(reading.refused.size).toBe(1_000);
    expect(new Set(reading.active)).toEqual(new Set([NODE]));
    await source.close();
  });

  test("a submission of a time that no clock shows is one without a time", async () => {
    for (const time of ["9999-12-31T23:59:59.999Z", "yesterday"]) {
      server.scripts = {
        ...ONE_NODE,
        factsets: answer(`[${ROW.replace("2026-01-01T00:00:00.000Z", time)}]`),
      };
      const { submissions, withoutProducer } = await source.readAll(soon());
      expect([...submissions]).toEqual([]);
      expect(withoutProducer).toEqual(new Set([NODE]));
    }
    await source.close();
  });

  test("a submission from before 1970 is the oldest, and not one of a clock that is ahead", async () => {
    server.scripts = {
      ...ONE_NODE,
      factsets: answer(`[${ROW.replace("2026-01-01T00:00:00.000Z", "1969-07-20T20:17:40.000Z")}]`),
    };
    const { submissions, ahead } = await source.readAll(soon());
    expect([submissions.get(NODE)?.at, ahead?.size]).toEqual([0, 0]);
    await source.close();
  });

  test("names as long as a row may be are kept by their beginning", async () => {
    const long = "X".repeat(60_000);
    const producer_timestamp = "2026-01-01T00:00:00.000Z";
    const rows = [
      { certname: long, producer: "master1", producer_timestamp },
      { certname: NODE, producer: long, producer_timestamp },
    ];
    const nodes = [{ certname: NODE, deactivated: null, expired: null, count: 2 }];
    server.scripts = {
      factsets: answer(JSON.stringify(rows)),
      nodes: answer(JSON.stringify(nodes)),
      other: EMPTY,
    };
    const reading = await source.readAll(soon());
    const beginning = `${"X".repeat(300)}…`;
    expect(reading.refused).toEqual(new Set([beginning]));
    expect(reading.submissions.get(NODE)).toMatchObject({ producer: beginning });
    await source.close();
  });
});

test("a clock in front of PuppetDB that is ahead hides nothing: changes are asked for as much further back", async () => {
  const server = await startScriptedPuppetdb({ other: EMPTY });
  const source = new PuppetDb({ url: server.url });
  const since = Date.UTC(2026, 0, 1, 12);
  for (const [aheadMs, lookedBackMs] of [
    [0, 0],
    [-6 * 60_000, 0],
    [6 * 60_000, 6 * 60_000],
  ] as const) {
    const dated =
      (script: Script): Script =>
      (response) => {
        response.setHeader("date", new Date(Date.now() + aheadMs).toUTCString());
        script(response);
      };
    const none = '[{"count":0,"certname":"a.example.com"}]'; // Whatever is asked of nodes.
    server.scripts = { nodes: dated(answer(none)), other: dated(EMPTY) };
    await source.readChanges(since, soon(), { inactiveBefore: 0 });
    expect(Math.abs(source.clockAheadMs - aheadMs)).toBeLessThan(patient(1_000));
    await source.readChanges(since, soon(), { inactiveBefore: 0 });
    const query = server.asked.findLast(({ entity }) => entity === "factsets")?.query ?? "";
    const [, from = ""] = /"timestamp","([^"]+)"/.exec(query) ?? [];
    expect(Math.abs(since - lookedBackMs - Date.parse(from))).toBeLessThan(patient(1_000));
    // PuppetDB tells its own clock, so the clock of a proxy in front of it does not matter.
    const time = JSON.stringify({ server_time: new Date().toISOString() });
    server.scripts = { ...server.scripts, "server-time": dated(answer(time)) };
    const reading = await source.readChanges(since, soon(), { inactiveBefore: 0 });
    expect(Math.abs(reading.asOf - Date.now())).toBeLessThan(patient(1_000));
    expect(source.clockAheadMs).toBe(0);
    await source.readChanges(since, soon(), { inactiveBefore: 0 });
    const exact = server.asked.findLast(({ entity }) => entity === "factsets")?.query ?? "";
    expect(exact).toContain(`"timestamp","${new Date(since).toISOString()}"`);
  }
  await source.close();
  await server.close();
});

test("a connection that PuppetDB closes in the moment when it is used again is no failure", async () => {
  const used = new WeakSet<object>();
  const once =
    (script: Script): Script =>
    (response) => {
      const { socket } = response;
      if (socket === null || used.has(socket)) socket?.destroy();
      else script(response);
      if (socket !== null) used.add(socket);
    };
  const scripts = Object.entries(ONE_NODE).map(([entity, script]) => [entity, once(script)]);
  const server = await startScriptedPuppetdb(Object.fromEntries(scripts) as Scripts);
  const source = new PuppetDb({ url: server.url });
  for (let reading = 0; reading < 5; reading += 1) {
    expect((await source.readAll(soon())).submissions.size).toBe(1);
    expect((await source.readNodes([NODE], soon())).size).toBe(1);
  }
  await source.close();
  await server.close();
});

/** Never ends, and counts what it has sent. */
function endless(): { script: Script; sent: () => number } {
  let sent = 0;
  const piece = Buffer.alloc(64 * 1024, " ");
  const script: Script = (response) => {
    response.writeHead(200, { "content-type": "application/json" });
    const go = () => {
      for (let isFree = true; isFree && !response.destroyed; sent += piece.length)
        isFree = response.write(piece);
    };
    response.on("drain", go);
    go();
  };
  return { script, sent: () => sent };
}

test.each([
  ["does not answer", () => ({ script: SILENT, sent: () => 0 })],
  ["never ends its answer", endless],
])("a PuppetDB that %s when it is asked about itself is read all the same", async (_, begin) => {
  const { script, sent } = begin();
  const itself = { "server-time": script, version: script, "puppetdb-status": script };
  const server = await startScriptedPuppetdb({ ...ONE_NODE, ...itself });
  const source = new PuppetDb({ url: server.url });
  expect((await source.readAll(soon())).submissions.size).toBe(1);
  expect((await source.readChanges(Date.now(), soon())).submissions.size).toBe(1);
  expect(source.queueDepth).toBeUndefined();
  expect(sent()).toBeLessThan(100 * 1024 * 1024); // As much as the system takes for connections that nobody reads.
  await source.close();
  await server.close();
});

test("a name that DNS does not know is told as that", async () => {
  const source = new PuppetDb({ url: "http://puppetdb.invalid:8080" });
  expect(await failure(source.readAll(soon()))).toMatchObject({
    code: "PUPPETDB_UNREACHABLE",
    message: expect.stringMatching(/the name puppetdb\.invalid cannot be looked up \(.*DNS/),
  });
  await source.close();
});

test("a name that DNS gives no answer about is told as that", async () => {
  const lookup = vi
    .spyOn(dns, "lookup")
    .mockImplementation((() => undefined) as unknown as typeof dns.lookup);
  const source = new PuppetDb({ url: "http://puppetdb.example.com:8080" });
  expect(await failure(source.readAll(soon()))).toMatchObject({
    code: "PUPPETDB_UNREACHABLE",
    message: expect.stringMatching(/the name puppetdb\.example\.com cannot be looked up .*DNS/),
  });
  await source.close();
  lookup.mockRestore();
});

test("a name that leads to another PuppetDB is followed within a minute, even if the old one still answers", async () => {
  const old = await startScriptedPuppetdb(ONE_NODE);
  const where = { host: "127.0.0.2", port: Number(new URL(old.url).port) };
  const other = await startScriptedPuppetdb(ONE_NODE, undefined, where);
  let address = "127.0.0.1";
  const look = (_: string, __: unknown, done: (error: null, found: dns.LookupAddress[]) => void) =>
    done(null, [{ address, family: 4 }]);
  const lookup = vi.spyOn(dns, "lookup").mockImplementation(look as unknown as typeof dns.lookup);
  vi.useFakeTimers({ toFake: ["Date"] });
  const source = new PuppetDb({ url: `http://puppetdb.example.com:${where.port}` });
  try {
    await source.readAll(soon());
    expect([old.asked.length > 0, other.asked.length]).toEqual([true, 0]);
    address = where.host;
    vi.setSystemTime(Date.now() + 61_000);
    const before = old.asked.length;
    await source.readAll(soon());
    expect([old.asked.length - before, other.asked.length > 0]).toEqual([0, true]);
  } finally {
    vi.useRealTimers();
    lookup.mockRestore();
    await source.close();
    await old.close();
    await other.close();
  }
});

describe("credentials", () => {
  let dir: string;
  const at = (name: string) => join(dir, name);

  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), "sasori-faults-"));
    await makeTlsFiles(dir);
  });
  afterAll(() => rm(dir, { recursive: true, force: true }));

  /** `chain`: what the server sends besides its own certificate. */
  async function withTls(
    name: string,
    use: (server: ScriptedPuppetdb) => Promise<void>,
    chain?: string,
  ): Promise<void> {
    const [key, own, ca] = await Promise.all(
      [`${name}.key`, `${name}.pem`, "ca.pem"].map((file) => readFile(at(file), "utf8")),
    );
    const cert = chain === undefined ? own : own + (await readFile(at(`${chain}.pem`), "utf8"));
    const server = await startScriptedPuppetdb(ONE_NODE, {
      key,
      cert,
      ca,
      requestCert: true,
      rejectUnauthorized: true,
    });
    try {
      await use(server);
    } finally {
      await server.close();
    }
  }
  const certificates = (client = "client", ca = "ca") => ({
    certFile: at(`${client}.pem`),
    keyFile: at(`${client}.key`),
    caFile: at(`${ca}.pem`),
  });

  test("a certificate of the CA is taken on both sides", () =>
    withTls("server", async (server) => {
      const source = new PuppetDb({ url: server.url, ...certificates() });
      expect((await source.readAll(soon())).submissions.size).toBe(1);
      expect(new Set(server.asked.map(({ client }) => client))).toEqual(new Set(["sasori"]));
      await source.close();
      await server.untilAlone();
    }));

  test.each([
    [
      "a server of another CA",
      "server",
      () => certificates("client", "other-ca"),
      /certificate.*set SASORI_PUPPETDB_CA/,
    ],
    [
      "a server that is not trusted, without SASORI_PUPPETDB_CA",
      "server",
      () => ({}),
      /certificate.*set SASORI_PUPPETDB_CA/,
    ],
    [
      "an expired server certificate",
      "expired",
      () => certificates(),
      /expired: renew PuppetDB's certificate/,
    ],
    [
      "a server of another name",
      "elsewhere",
      () => certificates(),
      /not in the cert.*: use a name from .*SASORI_PUPPETDB_URL/,
    ],
    [
      "no certificate of our own",
      "server",
      () => ({ caFile: at("ca.pem") }),
      /certificate required: set .*_CERT and _KEY/,
    ],
    [
      "a certificate without its key",
      "server",
      () => ({ ...certificates(), keyFile: at("renewed.key") }),
      /set SASORI_PUPPETDB_CERT and _KEY to a certificate and its own key/,
    ],
  ])("%s is PUPPETDB_TLS and says what to check", (_, name, files, found) =>
    withTls(name, async (server) => {
      const source = new PuppetDb({ url: server.url, ...files() });
      const error = await failure(source.readAll(soon()));
      expect(error.code).toBe("PUPPETDB_TLS");
      expect(error.message).toContain(`${server.url}/pdb/query/v4/`);
      expect(error.message).toMatch(found);
      expect(error.message).not.toMatch(/[\n\r]/);
      expect(server.asked).toEqual([]);
      await source.close();
      await server.untilAlone();
    }),
  );

  test.each(["ca", "intermediate"])("a server below an intermediate CA is believed by the CA file %s", (ca) =>
    withTls(
      "below",
      async (server) => {
        const source = new PuppetDb({ url: server.url, ...certificates("client", ca) });
        expect((await source.readAll(soon())).submissions.size).toBe(1);
        await source.close();
      },
      "intermediate",
    ),
  );

  test.each([
    ["empty", () => "", /holds no certificate/],
    ["cut in its second certificate", (pem: string) => pem + pem.slice(0, 400), /ends in the middle/],
    [
      "of a certificate that is cut and closed",
      (pem: string) => pem.replace(/^M[\s\S]*?\n(?=-)/m, "MIIC\n"),
      /is not a certificate/,
    ],
    ["a key and no certificate", () => readFile(at("ca.key"), "utf8"), /holds no certificate/],
    ["a web page", () => "<html>", /holds no certificate/],
  ])("a CA file that is %s trusts nobody, and is used again when it is whole", async (_, make, found) => {
    await withTls("server", async (server) => {
      const pem = await readFile(at("ca.pem"), "utf8");
      await writeFile(at("written.pem"), await make(pem));
      await writeFile(at("token"), "secret\n");
      const source = new PuppetDb({
        url: server.url,
        ...certificates("client", "written"),
        tokenFile: at("token"),
      });
      const error = await failure(source.readAll(soon()));
      expect(error.code).toBe("PUPPETDB_TLS");
      expect(error.message).toMatch(found);
      expect(error.message).toContain(`${at("written.pem")} `);
      expect(error.message).toContain("SASORI_PUPPETDB_CA");
      expect(server.asked).toEqual([]);
      await writeFile(at("written.pem"), pem);
      await source.readAll(soon());
      await source.close();
    });
  });

  test.each([
    ["certFile", "CERT", "certificate"],
    ["keyFile", "KEY", "private key"],
  ])("a %s that holds none is refused: sasori never comes without", (option, variable, what) =>
    withTls("server", async (server) => {
      for (const content of ["", "01\n"]) {
        await writeFile(at("none"), content);
        const source = new PuppetDb({ url: server.url, ...certificates(), [option]: at("none") });
        const error = await failure(source.readAll(soon()));
        expect(error).toMatchObject({ code: "PUPPETDB_TLS" });
        expect(error.message).toContain(`${at("none")} holds no ${what}`);
        expect(error.message).toContain(`SASORI_PUPPETDB_${variable}`);
      }
      expect(server.asked).toEqual([]);
    }),
  );

  test("a key with a passphrase is refused: nobody is there to be asked for it", async () => {
    await writeFile(at("locked"), keyWithPassphrase());
    const source = new PuppetDb({ url: "https://127.0.0.1:1", ...certificates(), keyFile: at("locked") });
    const error = await failure(source.readAll(soon()));
    expect(error).toMatchObject({
      code: "PUPPETDB_TLS",
      message: expect.stringContaining(
        "a key with a passphrase, which nobody can type here (`openssl pkey` removes it): repair it, or name another file in SASORI_PUPPETDB_KEY",
      ),
    });
  });

  test.each([
    ["a pipe", "mkfifo"],
    ["a folder", "mkdir"],
  ])(
    "a token file that has become %s fails the reading, and is used again when it is a file",
    async (what, make) => {
      const server = await startScriptedPuppetdb(ONE_NODE);
      const file = at(make);
      await run(make, [file]);
      const source = new PuppetDb({ url: server.url, tokenFile: file });
      const error = await failure(source.readAll(soon()));
      expect(error.code).toBe("PUPPETDB_TLS");
      expect(error.message).toContain(`cannot read ${file}: it is ${what}`);
      expect(server.asked).toEqual([]);
      await rm(file, { recursive: true });
      await writeFile(file, "secret\n");
      expect((await source.readAll(soon())).submissions.size).toBe(1);
      await source.close();
      await server.close();
    },
  );

  test("a server that hangs up on our certificate makes sasori ask for it", () =>
    withTls("server", async (server) => {
      const error = await failure(
        new PuppetDb({ url: server.url, ...certificates("stranger") }).readAll(soon()),
      );
      expect(error.code).toBe("PUPPETDB_UNREACHABLE");
      expect(error.message).toContain("that it accepts the certificate of SASORI_PUPPETDB_CERT");
    }));

  test("TLS to a port without it is PUPPETDB_TLS", async () => {
    const server = await startScriptedPuppetdb({ other: EMPTY });
    const url = server.url.replace("http:", "https:");
    expect((await failure(new PuppetDb({ url }).readAll(soon()))).code).toBe("PUPPETDB_TLS");
    await server.close();
  });

  test("certificates renewed in place are used for the next reading, without a restart", () =>
    withTls("server", async (server) => {
      for (const end of ["pem", "key"]) await copyFile(at(`client.${end}`), at(`current.${end}`));
      await copyFile(at("other-ca.pem"), at("current-ca.pem"));
      const source = new PuppetDb({ url: server.url, ...certificates("current", "current-ca") });
      expect((await failure(source.readAll(soon()))).code).toBe("PUPPETDB_TLS");

      await copyFile(at("ca.pem"), at("current-ca.pem"));
      await source.readAll(soon());
      expect(server.asked.at(-1)?.client).toBe("sasori");

      for (const end of ["pem", "key"]) await copyFile(at(`renewed.${end}`), at(`current.${end}`));
      await source.readAll(soon());
      expect(server.asked.at(-1)?.client).toBe("sasori renewed");
      await source.close();
      await server.untilAlone();
    }));

  test.each([
    ["certFile", "SASORI_PUPPETDB_CERT"],
    ["keyFile", "SASORI_PUPPETDB_KEY"],
    ["caFile", "SASORI_PUPPETDB_CA"],
    ["tokenFile", "SASORI_PUPPETDB_TOKEN_FILE"],
  ] as const)(
    "a %s that disappears fails the reading, and is used again when it is back",
    (option, variable) =>
      withTls("server", async (server) => {
        await writeFile(at("token"), "secret\n");
        const files = { ...certificates(), tokenFile: at("token") };
        const content = await readFile(files[option]);
        await writeFile(at("moving"), content);
        const source = new PuppetDb({ url: server.url, ...files, [option]: at("moving") });
        await source.readAll(soon());

        await unlink(at("moving"));
        const error = await failure(source.readAll(soon()));
        expect(error.code).toBe("PUPPETDB_TLS");
        for (const text of [at("moving"), "ENOENT", variable]) expect(error.message).toContain(text);

        await writeFile(at("moving"), content);
        await source.readAll(soon());
        await source.close();
        await server.untilAlone();
      }),
  );

  test("the token is sent as X-Authentication, read anew each time, and never told", async () => {
    const server = await startScriptedPuppetdb({ other: EMPTY });
    await writeFile(at("token"), "first-secret\n");
    const source = new PuppetDb({ url: server.url, tokenFile: at("token") });
    await source.readAll(soon());
    expect(new Set(server.asked.map(({ headers }) => headers["x-authentication"]))).toEqual(
      new Set(["first-secret"]),
    );

    await writeFile(at("token"), "second-secret");
    server.scripts = { other: answer("invalid token", 401, TEXT) };
    const error = await failure(source.readAll(soon()));
    expect(server.asked.at(-1)?.headers["x-authentication"]).toBe("second-secret");
    expect(`${error.stack} ${JSON.stringify(error)} ${JSON.stringify(error.cause)}`).not.toContain("secret");
    await server.close();
  });

  test.each([
    ["is empty", ""],
    ["has two lines", "secret-one\nsecret-two\n"],
    ["is no ASCII text", "sécret"],
  ])("a token file that %s is refused without telling it", async (_, content) => {
    await writeFile(at("token"), content);
    const source = new PuppetDb({ url: `http://127.0.0.1:${await freePort()}`, tokenFile: at("token") });
    const error = await failure(source.readAll(soon()));
    expect(error.code).toBe("PUPPETDB_TLS");
    expect(error.message).toContain(`${at("token")} holds no token`);
    expect(error.message).not.toMatch(/s.cret/);
  });
});

test("a PuppetDB at http that wants a token is told as one that gets none, with what to do", async () => {
  const refused = () => ({ statusCode: 401, headers: {}, body: Readable.from(["no token"]) });
  const told = (url: string) => checkAnswer(url, refused() as never);
  const what = /never sends a token over http to another machine: give this PuppetDB an https URL/;
  await expect(told("http://pdb2.example.com:8080")).rejects.toThrow(what);
  for (const url of ["https://pdb1.example.com:8081", "http://127.0.0.1:8080"])
    await expect(told(url)).rejects.toThrow(/put one into the file of SASORI_PUPPETDB_TOKEN_FILE/);
});

test("one of several PuppetDBs that was down in a full pass is read whole once it is back, and its changes wait for that only once", async () => {
  const server = await startScriptedPuppetdb(ONE_NODE);
  const replica = new Replica({ url: server.url, from: server.url, observations: ["facts", "reports"] });
  const read = async (kind: "full" | "changes") => {
    const wanted = { known: new NodeMap(), hasServer: () => true };
    const reading = await replica
      .read(kind, AbortSignal.timeout(patient(10_000)), wanted)
      .catch(() => undefined);
    if (reading !== undefined) replica.took(0);
    return reading?.kind ?? "failed";
  };
  const down = { other: answer("starting", 503, TEXT) };
  // Only what is asked by time is answered.
  const halfWell: Scripts = {
    ...ONE_NODE,
    factsets: (response) => (isByTime(response) ? EMPTY : down.other)(response),
  };
  const kinds: string[] = [];
  try {
    for (const [scripts, kind] of [
      [ONE_NODE, "full"],
      [down, "full"],
      [down, "changes"],
      [ONE_NODE, "changes"],
      [ONE_NODE, "changes"],
      [down, "full"],
      [halfWell, "changes"],
      [halfWell, "changes"],
    ] as const) {
      server.scripts = scripts;
      kinds.push(await read(kind));
    }
  } finally {
    await replica.close();
    await server.close();
  }
  expect(kinds).toEqual(["full", "failed", "failed", "full", "changes", "failed", "failed", "changes"]);
});

const isByTime = ({ req }: Parameters<Script>[0]) => decodeURIComponent(req.url ?? "").includes('">"');
