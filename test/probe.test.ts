// Masters that speak TLS: which of them sasori trusts when it asks whether they have a node.

import { readFileSync } from "node:fs";
import { copyFile, mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer, type Server as HttpsServer } from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { readConfig } from "../src/config.js";
import type { Master } from "../src/node-map.js";
import { hasNode, masterAsker } from "../src/probe.js";
import { HaproxyInstance } from "../src/target/haproxy.js";
import type { Server } from "../src/target/target.js";
import { makeTlsFiles } from "./support/certificates.js";
import { type HaproxyServer, withHaproxy } from "./support/haproxy-server.js";
import { haproxyBinaries } from "./support/parts.js";
import { patient } from "./support/patience.js";

/** Of the certificate `elsewhere`. */
const CERTNAME = "puppetdb.example.com";
const signal = () => AbortSignal.timeout(patient(10_000));

let folder: string;
const at = (name: string) => path.join(folder, name);
beforeAll(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "sasori-probe-"));
  await makeTlsFiles(folder);
  await writeFile(at("empty.pem"), "");
});
afterAll(() => rm(folder, { recursive: true }));

let master: HttpsServer | undefined;
let asked: string[];
beforeEach(() => {
  asked = [];
});
afterEach(() => {
  vi.unstubAllEnvs();
  master?.closeAllConnections();
  master?.close();
});

/** A master that has node1 only, with this certificate; it wants one of a client of our CA if `mutual`. */
async function startTlsMaster(certificate: string, mutual = false): Promise<number> {
  const pem = (name: string) => readFileSync(at(name));
  const tls = { cert: pem(`${certificate}.pem`), key: pem(`${certificate}.key`), ca: pem("ca.pem") };
  master = createServer({ ...tls, requestCert: mutual, rejectUnauthorized: mutual }, (request, response) => {
    asked.push(request.url ?? "");
    response.writeHead(request.url === "/nodes/node1" || request.url === "/status/v1/simple" ? 200 : 404);
    response.end("running");
  });
  await new Promise<void>((resolve) => master?.listen(0, "127.0.0.1", resolve));
  return (master.address() as AddressInfo).port;
}

/** Whether it says that it has the node, by these variables. */
function isThere(port: number, variables: Record<string, string>, node = "node1", name = "m1") {
  const config = readConfig({
    SASORI_PUPPETDB_URL: "http://127.0.0.1:1",
    SASORI_HAPROXY: "none",
    SASORI_MAP_FILE: at("nodes.map"),
    SASORI_PROBE_PATH: "/nodes/{certname}",
    ...variables,
  });
  const address = `127.0.0.1:${port}`;
  const server: Server = { name: name as Master, host: "127.0.0.1", address, state: "up", up: true };
  return hasNode(masterAsker(config))(server, `/nodes/${node}`, signal());
}

describe("a master asked by TLS", () => {
  test("is believed by its host, and says what it has and what not", async () => {
    const port = await startTlsMaster("server");
    expect(await isThere(port, { SASORI_PROBE_CA: at("ca.pem") })).toBe("m1");
    expect(await isThere(port, { SASORI_PROBE_CA: at("ca.pem") }, "node2")).toBeUndefined();
    expect(asked).toEqual(["/nodes/node1", "/nodes/node2"]);
  });

  test.each([
    { what: "the name of its server", name: CERTNAME, aliases: {} },
    { what: "an alias", name: "m1", aliases: { SASORI_MASTER_ALIASES: `${CERTNAME}=m1,other=m2` } },
  ])("is believed by $what", async ({ name, aliases }) => {
    const port = await startTlsMaster("elsewhere");
    const variables = { SASORI_PROBE_CA: at("ca.pem"), ...aliases };
    expect(await isThere(port, variables, "node1", name)).toBe(name);
  });

  test.each([
    {
      what: "has another's name",
      certificate: "elsewhere",
      ca: "ca",
      why: /puppetdb\.example\.com, and not of 127/,
    },
    { what: "is of another CA", certificate: "server", ca: "other-ca", why: /unable to verify|self.signed/i },
    {
      what: "is of any CA, while ours is empty",
      certificate: "server",
      ca: "empty",
      why: /no certificate in PEM.*another file in SASORI_PROBE_CA$/,
    },
    { what: "has expired", certificate: "expired", ca: "ca", why: /expired/ },
  ])("is not asked when its certificate $what, whatever Node was told", async ({ certificate, ca, why }) => {
    vi.stubEnv("NODE_TLS_REJECT_UNAUTHORIZED", "0");
    const port = await startTlsMaster(certificate);
    await expect(isThere(port, { SASORI_PROBE_CA: at(`${ca}.pem`) })).rejects.toThrow(why);
    expect(asked).toEqual([]);
  });

  test("gets our certificate, and another one as soon as the files are renewed", async () => {
    const port = await startTlsMaster("server", true);
    const files = {
      SASORI_PROBE_CA: at("ca.pem"),
      SASORI_PROBE_CERT: at("own.pem"),
      SASORI_PROBE_KEY: at("own.key"),
    };
    const install = async (client: string) => {
      for (const kind of ["pem", "key"]) await copyFile(at(`${client}.${kind}`), at(`own.${kind}`));
    };
    await install("stranger");
    const address = `127.0.0.1:${port}`;
    const server: Server = { name: "m1" as Master, host: "127.0.0.1", address, state: "up", up: true };
    const config = readConfig({
      SASORI_PUPPETDB_URL: "http://127.0.0.1:1",
      SASORI_HAPROXY: "none",
      SASORI_MAP_FILE: at("nodes.map"),
      SASORI_PROBE_PATH: "/nodes/{certname}",
      ...files,
    });
    const ask = hasNode(masterAsker(config)); // One and the same, as in the daemon.
    await expect(ask(server, "/nodes/node1", signal())).rejects.toThrow();
    expect(asked).toEqual([]);
    await install("client");
    const answer = () => ask(server, "/nodes/node1", signal()).catch(() => "refused");
    await expect.poll(answer).toBe("m1"); // Files are looked at once a second.
    await expect(isThere(port, { SASORI_PROBE_CA: at("ca.pem") })).rejects.toThrow();
  });
});

test("variables that make no sense together are refused", () => {
  const problemsOf = (variables: Record<string, string>) => () => isThere(1, variables);
  expect(problemsOf({ SASORI_PROBE_CA: at("ca.pem"), SASORI_PROBE_CERT: at("client.pem") })).toThrow(
    /both or neither/,
  );
  const pair = { SASORI_PROBE_CERT: at("client.pem"), SASORI_PROBE_KEY: at("client.key") };
  expect(problemsOf(pair)).toThrow(/needs SASORI_PROBE_CA/);
  expect(problemsOf({ SASORI_PROBE_CA: at("ca.pem"), SASORI_PROBE_PATH: "" })).toThrow(
    /needs SASORI_PROBE_PATH/,
  );
});

describe.each(haproxyBinaries())("a master that HAProxy $version gets at run time, with TLS", ({ bin }) => {
  /** HAProxy takes a CA file at run time only if its configuration has loaded it. */
  const backendLines = () => [
    "option httpchk GET /status/v1/simple",
    `server static 127.0.0.1:1 weight 0 check ssl verify required ca-file ${at("ca.pem")}`,
  ];
  const OPTIONS = () => `check inter 200ms weight 0 ssl verify required ca-file ${at("ca.pem")}`;

  const askThrough = async ({ ports }: HaproxyServer) => {
    // The gateway's name. No master has it.
    const headers = { "x-node-name": "node1", host: "gateway.example.com" };
    const response = await fetch(`http://127.0.0.1:${ports.frontend}/nodes/node1`, { headers });
    await response.arrayBuffer();
    return response.status;
  };

  test.each([
    { what: "is up and serves, by the certificate of its name", name: CERTNAME, state: "up", status: 200 },
    {
      what: "stays down with another's certificate",
      name: "puppet2.example.com",
      state: "down",
      status: 503,
    },
  ])("$what", async ({ name, state, status }) => {
    const port = await startTlsMaster("elsewhere");
    await withHaproxy({ bin, backendLines: backendLines(), map: [["node1", name]] }, async (haproxy) => {
      const endpoint = { name: "it", connect: { path: haproxy.socketPath } };
      const instance = new HaproxyInstance(endpoint, { backend: "puppet", mapFile: haproxy.mapPath });
      await instance.addServer(name as Master, `127.0.0.1:${port}`, OPTIONS(), signal());
      const found = async () =>
        (await instance.look(signal())).servers.find((server) => server.name === name)?.state;
      await expect.poll(found).toBe(state);
      expect(await askThrough(haproxy)).toBe(status);
    });
  });
});
