// Hints of puppetservers: lines and reports as real ones send them (puppetserver 7.9), and what is asked because of them.

import { createSocket } from "node:dgram";
import { once } from "node:events";
import { copyFile, readFile } from "node:fs/promises";
import { request as httpsRequest } from "node:https";
import { type AddressInfo, connect, createServer } from "node:net";
import { connect as connectTls } from "node:tls";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { Hints } from "../src/hints/hints.js";
import { listenForHints } from "../src/hints/listeners.js";
import { hostIn, listenForReports } from "../src/hints/reports.js";
import { listenForLines, type SubmissionLine, submissionIn } from "../src/hints/syslog.js";
import { type Certname, type Master, NodeMap } from "../src/node-map.js";
import { type Certificate, makePuppetCa, type PuppetCa } from "./support/agents-gateway.js";

const UUID = "46307c4e-bacd-4055-970a-8d98835de9b8";
const line = (what: string, node = "web1.example.com") =>
  `<174>Nov 30 04:13:02 puppet1 puppet1.example.com Puppet '${what}' command for ${node} submitted to PuppetDB with UUID ${UUID}`;

describe("an address for hints that cannot be had", () => {
  const parts = {} as Parameters<typeof listenForHints>[1]; // Nothing is heard.
  const listenAt = (host: string, port: number) =>
    listenForHints({ syslogListen: { host, port }, reports: undefined }, parts).then(
      ({ stop } = { stop: () => {} } as never) => stop(),
      ({ code, message }) => `${code} ${message}`,
    );

  test("is told with its variable, and what to do: another program has it, or it is not of this host", async () => {
    const other = createServer().listen(0, "127.0.0.1");
    await once(other, "listening");
    const { port } = other.address() as AddressInfo;
    expect(await listenAt("127.0.0.1", port)).toMatch(
      new RegExp(
        `^DAEMON cannot listen on 127.0.0.1:${port} \\(SASORI_SYSLOG_LISTEN\\): .*EADDRINUSE.*: stop the other program, or choose another port$`,
      ),
    );
    other.close();
    expect(await listenAt("192.0.2.1", port)).toMatch(
      /^DAEMON cannot listen on 192\.0\.2\.1:\d+ \(SASORI_SYSLOG_LISTEN\): .*EADDRNOTAVAIL.*: correct SASORI_SYSLOG_LISTEN$/,
    );
  });
});

describe("a puppetserver's log line", () => {
  test.each([
    ["facts, RFC 3164", line("replace_facts")],
    ["a report", line("store_report")],
    [
      "facts, RFC 5424",
      `<174>1 2026-11-30T04:13:02.123Z puppet1.example.com puppetserver 812 - - Puppet 'replace_facts' command for web1.example.com submitted to PuppetDB with UUID ${UUID}`,
    ],
  ])("tells of a submission: %s", (_what, text) => {
    const found = submissionIn(text);
    expect(found?.certname).toBe("web1.example.com");
    expect(found?.producers).toContain("puppet1.example.com");
  });

  test.each([
    line("replace_catalog"),
    "<174>Nov 30 04:13:02 puppet1 puppet1.example.com Puppet Compiled catalog for web1.example.com in environment production in 0.05 seconds",
    `${"x".repeat(5_000)} ${line("replace_facts")}`,
    "",
  ])("that says something else is none: %s", (text) => {
    expect(submissionIn(text)).toBeUndefined();
  });

  test("is heard over UDP and over TCP, in pieces too", async () => {
    const heard: SubmissionLine[] = [];
    const { port, stop } = await listenForLines({ host: "127.0.0.1", port: 0 }, (one) => heard.push(one));
    try {
      const udp = createSocket("udp4");
      udp.send(line("replace_facts", "udp.example.com"), port, "127.0.0.1");
      const tcp = connect(port, "127.0.0.1");
      await once(tcp, "connect");
      const [before, after] = [
        line("replace_facts", "tcp1.example.com"),
        line("store_report", "tcp2.example.com"),
      ];
      tcp.write(`${before}\n${after.slice(0, 40)}`);
      tcp.write(`${after.slice(40)}\n`);
      await expect
        .poll(() => heard.map(({ certname }) => certname).sort())
        .toEqual(["tcp1.example.com", "tcp2.example.com", "udp.example.com"]);
      // As syslog-ng frames them: each with its length before it, and no line feed.
      const counted = (text: string) => `${text.length} ${text}`;
      const three = ["counted1.example.com", "counted2.example.com", "counted3.example.com"].map((name) =>
        counted(line("replace_facts", name)),
      );
      tcp.write(`${three[0]}${counted(line("replace_catalog"))}${three[1]}${three[2]?.slice(0, 60)}`);
      tcp.write(`${three[2]?.slice(60)}\n`);
      await expect.poll(() => heard.map(({ certname }) => certname)).toContain("counted3.example.com");
      const found = heard.splice(3);
      expect(found.map(({ certname }) => certname)).toEqual([1, 2, 3].map((n) => `counted${n}.example.com`));
      for (const { producers } of found) expect(producers).toContain("puppet1.example.com");
      // A line that is too long is dropped, and not the connection with what comes after it.
      for (let n = 0; n < 10; n += 1) tcp.write("y".repeat(3_000));
      tcp.write(`${before}\n${line("replace_facts", "tcp3.example.com")}\n`);
      await expect.poll(() => heard.map(({ certname }) => certname)).toContain("tcp3.example.com");
      expect(heard.length).toBe(4);
      udp.close();
      const endless = connect(port, "127.0.0.1");
      endless.on("error", () => undefined);
      endless.write("x".repeat(100_000));
      await new Promise((resolve) => endless.once("close", resolve));
      tcp.destroy();
    } finally {
      stop();
    }
  });
});

describe("a connection for log lines", () => {
  test("of which nothing is heard makes room for the next one", async () => {
    const heard: string[] = [];
    const { port, stop } = await listenForLines({ host: "127.0.0.1", port: 0 }, (one) => {
      heard.push(one.certname);
    });
    const open = async (name: string) => {
      const socket = connect(port, "127.0.0.1");
      socket.on("error", () => undefined);
      await once(socket, "connect");
      socket.write(`${line("replace_facts", name)}\n`);
      await expect.poll(() => heard).toContain(name);
      return socket;
    };
    try {
      const talks = await open("talks1.example.com");
      for (let n = 0; n < 63; n += 1) await open(`silent${n}.example.com`);
      talks.write(`${line("replace_facts", "talks2.example.com")}\n`);
      await expect.poll(() => heard).toContain("talks2.example.com");
      for (let n = 0; n < 3; n += 1) await open(`next${n}.example.com`);
      talks.write(`${line("replace_facts", "talks3.example.com")}\n`);
      await expect.poll(() => heard).toContain("talks3.example.com");
    } finally {
      stop();
    }
  });
});

describe("a puppetserver's report", () => {
  test("a certificate that is renewed before its key harms nobody, and both are taken when both are there", async () => {
    vi.useFakeTimers({ toFake: ["setInterval", "clearInterval", "performance"] });
    const unhandled: unknown[] = [];
    const onUnhandled = (error: unknown) => void unhandled.push(error);
    process.on("unhandledRejection", onUnhandled);
    const [certFile, keyFile] = [`${ca.caBundle}.renewed-cert`, `${ca.caBundle}.renewed-key`];
    const [old, renewed] = [server as Certificate, await ca.issue("/CN=renewed.example.com")];
    await copyFile(old.cert, certFile);
    await copyFile(old.key, keyFile);
    const tls = { caFile: ca.caBundle, certFile, keyFile };
    const { port, stop } = await listenForReports({ host: "127.0.0.1", port: 0, tls }, () => undefined);
    const shown = async () => {
      const socket = connectTls({ host: "127.0.0.1", port, rejectUnauthorized: false });
      socket.on("error", () => undefined);
      await once(socket, "secureConnect");
      const { CN } = socket.getPeerCertificate().subject;
      socket.destroy();
      return CN;
    };
    try {
      await copyFile(renewed.cert, certFile);
      vi.advanceTimersByTime(60_000);
      for (let turn = 0; turn < 20; turn += 1) expect(await shown()).toBe("sasori.example.com");
      expect(unhandled).toEqual([]);
      await copyFile(renewed.key, keyFile);
      vi.advanceTimersByTime(60_000);
      await expect.poll(shown).toBe("renewed.example.com");
    } finally {
      stop();
      process.off("unhandledRejection", onUnhandled);
      vi.useRealTimers();
    }
  });

  let ca: PuppetCa;
  let [server, master, stranger]: Certificate[] = [];
  beforeAll(async () => {
    ca = await makePuppetCa();
    server = await ca.issue("/CN=sasori.example.com", { extension: "subjectAltName=DNS:localhost" });
    master = await ca.issue("/CN=puppet2.example.com");
    stranger = await ca.issue("/CN=puppet2.example.com", { by: "stranger" });
  });
  afterAll(() => ca.remove());

  const REPORT =
    "--- !ruby/object:Puppet::Transaction::Report\nhost: web1.example.com\ntime: '2026-11-30T04:05:46.04+00:00'\n";

  async function send(port: number, body: string, client: Certificate | undefined): Promise<number> {
    const identity = client && { cert: await readFile(client.cert), key: await readFile(client.key) };
    const tls = { ca: await readFile(ca.caBundle), servername: "localhost", ...identity };
    const headers = { "content-type": "application/x-yaml; charset=UTF-8" };
    return new Promise((resolve, reject) => {
      const sending = httpsRequest(
        { host: "127.0.0.1", port, path: "/reports/upload", method: "POST", headers, ...tls },
        (response) => resolve(response.resume().statusCode ?? 0),
      );
      sending.on("error", reject);
      sending.end(body);
    });
  }

  test("is heard from a puppetserver with a certificate of Puppet's CA, and from nobody else", async () => {
    const heard: string[][] = [];
    const tls = { caFile: ca.caBundle, certFile: server?.cert, keyFile: server?.key };
    const { port, stop } = await listenForReports({ host: "127.0.0.1", port: 0, tls }, (...one) =>
      heard.push(one),
    );
    try {
      expect(await send(port, `${REPORT}logs:\n${"- level: info\n".repeat(100_000)}`, master)).toBe(200);
      expect(heard).toEqual([["web1.example.com", "puppet2.example.com"]]);
      expect(await send(port, "logs: []\n", master)).toBe(400);
      await expect(send(port, REPORT, stranger)).rejects.toThrow();
      await expect(send(port, REPORT, undefined)).rejects.toThrow();
      expect(heard).toHaveLength(1);
    } finally {
      stop();
    }
  });

  test.each([
    [REPORT, "web1.example.com"],
    ["--- !ruby/object:Puppet::Transaction::Report\nhost: '1.example.com'\n", "1.example.com"],
    ["metrics:\n  host: web1.example.com\n", undefined],
  ])("names its node: %j", (text, name) => {
    expect(hostIn(text)).toBe(name);
  });
});

describe("a hint", () => {
  const NODE = "web1.example.com" as Certname;
  const masterOf: Record<string, Master> = {
    "puppet1.example.com": "master1" as Master,
    "puppet2.example.com": "master2" as Master,
  };

  /** `moved` says whether PuppetDB knows of a move, each time that it is asked. */
  function hintsFor(moved: () => boolean) {
    const map = new NodeMap();
    map.observe({ certname: NODE, master: "master1" as Master, at: 1, source: "facts" });
    const asked: string[] = [];
    const look = async (certname: Certname) => {
      asked.push(certname);
      return moved();
    };
    const counts = new Map([
      ["master1", 1],
      ["master2", 1],
    ]);
    const read: string[] = [];
    const hints = new Hints({
      ...{ map, resolver: { look }, resolve: () => (name) => masterOf[name], counts },
      onHint: (kind) => read.push(kind),
    });
    return { hints, asked, read, map };
  }

  test("of the node's own master asks nobody anything", async () => {
    const { hints, asked } = hintsFor(() => false);
    await hints.take("syslog", NODE, ["Nov", "30", "puppet1", "puppet1.example.com", "Puppet"]);
    expect(asked).toEqual([]);
    expect(hints.coverage).toEqual({ masters: 1, of: 2, silent: ["master2"] });
  });

  test("whose line has another word that is a master's name asks as well: the node's own may be called puppet", async () => {
    const found = submissionIn(line("replace_facts"));
    expect(found?.producers).not.toContain("Puppet");
    const { hints, asked } = hintsFor(() => true);
    await hints.take("syslog", NODE, ["puppet1.example.com", "puppet2.example.com"]);
    expect(asked).toEqual([NODE]);
  });

  test("of another master asks until PuppetDB has taken the submission", async () => {
    let times = 0;
    const { hints, asked } = hintsFor(() => {
      times += 1;
      return times === 3;
    });
    await hints.take("report", NODE, ["puppet2.example.com"]);
    expect(asked).toEqual([NODE, NODE, NODE]);
  });

  test("asks no more once a poll has brought the move into the map", async () => {
    const { hints, asked, map } = hintsFor(() => {
      if (asked.length === 2)
        map.observe({ certname: NODE, master: "master2" as Master, at: 2, source: "facts" });
      return false;
    });
    await hints.take("report", NODE, ["puppet2.example.com"]);
    expect(asked).toEqual([NODE, NODE]);
  });

  test("that comes again while the node is asked about is the same hint, and a flood is bounded", async () => {
    const { hints, asked, read } = hintsFor(() => true);
    const began = performance.now();
    const all = Array.from({ length: 50_000 }, (_, index) =>
      hints.take("syslog", `node${index % 2_500}.example.com`, ["puppet2.example.com"]),
    );
    await Promise.all(all);
    expect(new Set(asked).size).toBe(asked.length);
    const seconds = (performance.now() - began) / 1_000;
    expect(asked.length).toBeLessThanOrEqual(100 * (1 + seconds)); // Of 2,500 nodes.
    expect(read.length).toBeLessThanOrEqual(3_000 * (1 + seconds)); // Of 50,000 hints.
  });

  test("with a name that is none is dropped", async () => {
    const { hints, asked } = hintsFor(() => true);
    await hints.take("syslog", "../../etc", ["puppet2.example.com"]);
    expect(asked).toEqual([]);
  });
});
