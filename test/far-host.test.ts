// A PuppetDB, or an HAProxy, that is far away, and whose name has a second address (IPv6, most often) that leads nowhere.
// By default Node tries each address of a name for 250 ms.

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { run } from "./support/child.js";
import { withHaproxy } from "./support/haproxy-server.js";
import { haproxyBinaries } from "./support/parts.js";
import { patient } from "./support/patience.js";
import { answer, EMPTY, startScriptedPuppetdb } from "./support/scripted-puppetdb.js";

const CLI = fileURLToPath(new URL("../dist/src/cli.js", import.meta.url));
const FAR_HOST = pathToFileURL(fileURLToPath(new URL("support/far-host.mjs", import.meta.url))).href;
const ROW = JSON.stringify({
  certname: "node1.example.com",
  producer: "master1",
  producer_timestamp: "2026-01-01T00:00:00.000Z",
});

vi.setConfig({ testTimeout: patient(60_000) });

let folder = "";
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "sasori-far-"));
});
afterEach(() => rm(folder, { recursive: true }));

/** What a command prints, with packets to `port` of `name` that take 700 ms. */
const sasori = (command: string, name: string, port: number, env: Record<string, string>) =>
  run(process.execPath, ["--import", FAR_HOST, CLI, command], {
    env: {
      PATH: process.env.PATH,
      SASORI_MAP_FILE: path.join(folder, "node-master.map"),
      FAR_NAME: name,
      FAR_PORT: String(port),
      FAR_MS: "700",
      ...env,
    },
  });

async function withPuppetdb(use: (port: number) => Promise<void>): Promise<void> {
  const nodes = answer(
    JSON.stringify([{ certname: "node1.example.com", count: 1, deactivated: null, expired: null }]),
  );
  const puppetdb = await startScriptedPuppetdb({ factsets: answer(`[${ROW}]`), nodes, other: EMPTY });
  try {
    await use(Number(new URL(puppetdb.url).port));
  } finally {
    await puppetdb.close();
  }
}

test("a PuppetDB that is 700 ms away is read, though its name has an address that leads nowhere", () =>
  withPuppetdb(async (port) => {
    const url = `http://puppetdb.example.com:${port}`;
    const printed = await sasori("diff", "puppetdb.example.com", port, {
      SASORI_PUPPETDB_URL: url,
      SASORI_HAPROXY: "none",
    });
    expect(printed).toMatch(/node1\.example\.com +\(new\) → master1/);
  }));

test.each(haproxyBinaries())("a HAProxy $version that is 700 ms away likewise", ({ bin }) =>
  withPuppetdb((puppetdb) =>
    withHaproxy(
      { bin, tcpStats: true, servers: [{ name: "master1", port: 8140 }] },
      async ({ mapPath, ports }) => {
        const printed = await sasori("diff", "gateway2.example.com", ports.stats, {
          SASORI_PUPPETDB_URL: `http://127.0.0.1:${puppetdb}`,
          SASORI_HAPROXY: `tcp://gateway2.example.com:${ports.stats}`,
          SASORI_MAP_NAME: mapPath,
        });
        expect(printed).toMatch(
          new RegExp(`haproxy tcp://gateway2\\.example\\.com:${ports.stats}: planned: 1 added`),
        );
      },
    ),
  ),
);

test("an address to which no packet comes through is told as one", async () => {
  const failed = (command: string, haproxy: string) =>
    sasori(command, "unused.example.com", 9, {
      SASORI_PUPPETDB_URL: "http://127.0.0.1:9",
      SASORI_HAPROXY: haproxy,
      FAR_MS: "300000",
    }).then(
      () => "it did not fail",
      ({ message }: Error) => message,
    );
  const [puppetdb, haproxy, doctor] = await Promise.all([
    failed("diff", "none"),
    failed("diff", "tcp://127.0.0.1:9"),
    failed("doctor", "tcp://127.0.0.1:9"),
  ]);
  expect(puppetdb).toMatch(
    /PUPPETDB_UNREACHABLE .*no connection within 5 s: .*SASORI_PUPPETDB_URL.*firewall/,
  );
  expect(haproxy).toMatch(/HAPROXY_TIMEOUT .*no connection within 10 s: .*SASORI_HAPROXY.*firewall/);
  for (const found of [/PuppetDB .*no connection within 5 s/, /stats socket .*no connection within 4 s/])
    expect(doctor).toMatch(
      new RegExp(`failed +${found.source}\\n.*check that 127\\.0\\.0\\.1:9 is right.*firewall`),
    );
});
