import { spawnSync } from "node:child_process";
import { X509Certificate } from "node:crypto";
import { once } from "node:events";
import { copyFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import type { IncomingMessage } from "node:http";
import https from "node:https";
import type { Socket } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  AGENTS_CONFIG,
  type AgentsGateway,
  agentsVariables,
  type Certificate,
  commitCrl,
  establish,
  GATEWAY_NAME,
  LEG_NAME,
  type MasterCertificates,
  makeMasterCertificates,
  makePuppetCa,
  type PuppetCa,
  type Received,
  withAgentsGateway,
} from "./support/agents-gateway.js";
import { Child, freePort, run } from "./support/child.js";
import { blockWith } from "./support/documents.js";
import { runtimeCommand } from "./support/haproxy-server.js";
import { haproxyBinaries, pathOf } from "./support/parts.js";

const GATEWAY_CONFIG = fileURLToPath(new URL("../haproxy/haproxy.cfg", import.meta.url));

let ca: PuppetCa;
let certificates: MasterCertificates;
/** RSA, 4096 bits, as agents have them: X-Client-Cert is then as large as it gets. Its CN has upper case. */
let node1: Certificate;
let node2: Certificate;

beforeAll(async () => {
  ca = await makePuppetCa();
  certificates = await makeMasterCertificates(ca);
  node1 = await ca.issue("/CN=Node1.Example.com", { rsa: true });
  node2 = await ca.issue("/CN=node2.example.com");
});
afterAll(() => ca?.remove());

const MAP = [
  ["node1.example.com", "master2"],
  ["node2.example.com", "master3"],
] as const;

/** All values of the headers that tell a master who the client is. */
const identity = ({ headers }: Received) => headers.filter(([name]) => /client|ssl|tls|user|node/.test(name));

/** What haproxy.cfg needs in its environment beside agents.cfg. */
const besideVariables = ({ socketPath }: { socketPath: string }) => ({
  ...{ HAPROXY_SOCKET: socketPath, STATS_USER: "admin", STATS_PASSWORD: "secret" },
  ...{ MASTER1: "127.0.0.1:8141", MASTER2: "127.0.0.1:8142", MASTER3: "127.0.0.1:8143" },
});

/** What `haproxy -c` says of these files when some variables are missing, or there are more. */
function check(
  bin: string,
  files: string[],
  without: string[] = [],
  more: Record<string, string> = {},
): { status: number | null; text: string } {
  const folder = mkdtempSync(path.join(tmpdir(), "sasori-cfg-"));
  const at = {
    mapPath: path.join(folder, "x.map"),
    socketPath: path.join(folder, "s"),
    ports: { frontend: 8140 },
  };
  writeFileSync(at.mapPath, "");
  const all = {
    ...agentsVariables(ca, at, 8150, [8151, 8152, 8153]),
    ...(files.length > 1 ? besideVariables(at) : {}),
    ...more,
  };
  const env = Object.fromEntries(Object.entries(all).filter(([name]) => !without.includes(name)));
  const { status, stderr } = spawnSync(bin, ["-c", ...files.flatMap((file) => ["-f", file])], {
    encoding: "utf8",
    env,
  });
  rmSync(folder, { recursive: true });
  return { status, text: stderr };
}

describe.each(haproxyBinaries())("agents through HAProxy $version", ({ bin }) => {
  const withGateway = <T>(
    use: (gateway: AgentsGateway) => Promise<T>,
    options: Partial<Parameters<typeof withAgentsGateway>[0]> = {},
  ): Promise<T> => withAgentsGateway({ bin, ca, certificates, map: MAP, ...options }, use);

  test.each([
    { how: "alone", files: [AGENTS_CONFIG], without: [] },
    { how: "behind haproxy.cfg", files: [GATEWAY_CONFIG, AGENTS_CONFIG], without: ["AGENTS_SOCKET"] },
    { how: "in front of haproxy.cfg", files: [AGENTS_CONFIG, GATEWAY_CONFIG], without: ["AGENTS_SOCKET"] },
  ])("have a configuration that HAProxy takes without a warning, $how", ({ files, without }) => {
    const { status, text } = check(bin, files, without);
    expect({ status, warnings: text.match(/.*(WARNING|ALERT).*/g) }).toEqual({ status: 0, warnings: null });
  });

  test("need no second set of addresses where haproxy.cfg has the same masters", () => {
    const own = ["AGENTS_SOCKET", "AGENTS_MASTER1", "AGENTS_MASTER2", "AGENTS_MASTER3"];
    const { status, text } = check(bin, [GATEWAY_CONFIG, AGENTS_CONFIG], own);
    expect({ status, warnings: text.match(/.*(WARNING|ALERT).*/g) }).toEqual({ status: 0, warnings: null });
  });

  test.each([
    ...["NODE_MASTER_MAP", "AGENTS_SOCKET", "AGENTS_CERT", "AGENTS_CRL", "AGENTS_LEG_CERT"],
    ...["CA_MASTER", "MASTER1_CERTNAME"],
  ])("do not start without %s, and HAProxy says so", (name) => {
    const { status, text } = check(bin, [AGENTS_CONFIG], [name]);
    expect(status).not.toBe(0);
    expect(text).toMatch(new RegExp(`${name}.* not set`));
  });

  test.each(["MASTER0", "MASTER33", "AGENTS_MASTER33"])(
    "do not start with %s, which no server line takes",
    (name) => {
      const { status, text } = check(bin, [AGENTS_CONFIG], [], { [name]: "puppet33.example.com:8140" });
      expect(status).not.toBe(0);
      expect(text).toMatch(/this file takes MASTER1 to MASTER32/);
    },
  );

  test("reach the master that the map has for the CN of their certificate, in any letter case", () =>
    withGateway(async ({ ask, haproxy }) => {
      for (const [certificate, master] of [
        [node1, "master2"],
        [node2, "master3"],
      ] as const) {
        const answer = await ask(certificate, { path: "/puppet/v3/node/x?environment=production" });
        expect(answer.headers).toMatchObject({ "x-served-by": master, "x-route": "mapped" });
        expect(answer.received()).toMatchObject({ master, path: "/puppet/v3/node/x?environment=production" });
      }
      await runtimeCommand(haproxy.socketPath, `set map ${haproxy.mapPath} node1.example.com master1`);
      expect((await ask(node1)).received().master).toBe("master1");
    }));

  test("share the live map with the gateway when both run in one process", () =>
    withGateway(async ({ ask, haproxy, masters, caMaster }) => {
      const [frontend, gateway, stats] = [await freePort(), await freePort(), await freePort()];
      const at = {
        mapPath: haproxy.mapPath,
        socketPath: path.join(haproxy.dir, "both.sock"),
        ports: { frontend },
      };
      const ports = masters.map(({ port }) => port);
      const { AGENTS_SOCKET: _, ...own } = agentsVariables(ca, at, caMaster.port, ports);
      const env = { ...own, ...besideVariables(at), GATEWAY_PORT: `${gateway}`, STATS_PORT: `${stats}` };
      const both = new Child(bin, ["-db", "-f", GATEWAY_CONFIG, "-f", AGENTS_CONFIG], { env });
      try {
        await both.untilReady(async () => (await ask(node1, { port: frontend })).status === 200);
        await runtimeCommand(at.socketPath, `set map ${at.mapPath} node1.example.com master1`);
        expect((await ask(node1, { port: frontend })).received().master).toBe("master1");
        const tool = await fetch(`http://127.0.0.1:${gateway}/`, { headers: { "x-node-name": "nobody" } });
        expect(await tool.json()).toMatchObject({ error: "node_unknown" });
        await expect.poll(() => both.printed.match(/node=node1.example.com mapped=master1/g)).toHaveLength(1);
      } finally {
        await both.end();
      }
    }));

  test("reach the CA master, and only that, before they have a certificate", () =>
    withGateway(async ({ ask, masters, caMaster }) => {
      for (const where of [
        "/puppet-ca/v1/certificate/ca",
        "/puppet/v3/catalog/node1.example.com",
        "/",
        "//",
      ]) {
        const answer = await ask(undefined, { path: where });
        expect(answer.headers["x-route"]).toBe("ca");
        expect(answer.received()).toMatchObject({ master: "ca", path: where });
        expect(identity(answer.received())).toEqual([["x-client-verify", "NONE"]]);
      }
      expect([caMaster.requests, ...masters.map(({ requests }) => requests)]).toEqual([4, 0, 0, 0]);
    }));

  test("reach the CA master with every request to the CA, whatever the map says", () =>
    withGateway(async ({ ask }) => {
      const answer = await ask(node1, { path: "/puppet-ca/v1/certificate_revocation_list/ca" });
      expect(answer.received().master).toBe("ca");
      expect(identity(answer.received())).toContainEqual(["x-client-dn", "CN=Node1.Example.com"]);
    }));

  test("are introduced to the master by what HAProxy has verified, not by headers of their own", () =>
    withGateway(async ({ ask }) => {
      const headers = [
        ...["X-Client-Verify", "SUCCESS", "x-cLiEnT-vErIfY", "SUCCESS", "X-CLIENT-DN", "CN=admin"],
        ...["X-Client-DN", "CN=other", "x-client-cert", "forged", "X-Client-Cert", "", "X-Client-Else", "1"],
        ...["X_Client_DN", "CN=admin", "x_client-verify", "SUCCESS", "X-SSL-Subject", "CN=admin"],
        ...["Client-Cert", "forged", "SSL-Client-Verify", "SUCCESS", "X-Forwarded-Client-Cert", "forged"],
        ...["Remote-User", "admin", "X-Amzn-Mtls-Clientcert", "forged", "X-TLS-Client-DN", "CN=admin"],
        ...["X_Node_Name", "admin", "X-Node_Name", "admin"],
      ];
      expect(identity((await ask(undefined, { headers })).received())).toEqual([["x-client-verify", "NONE"]]);

      const [verify, dn, cert, ...more] = identity((await ask(node1, { headers })).received());
      expect([verify, dn, more]).toEqual([
        ["x-client-verify", "SUCCESS"],
        ["x-client-dn", "CN=Node1.Example.com"],
        [],
      ]);
      // puppetserver decodes it and expects PEM; the base64 may be one long line.
      const pem = decodeURIComponent(cert?.[1] ?? "");
      expect(pem).toMatch(/^-----BEGIN CERTIFICATE-----\n\S+\n-----END CERTIFICATE-----\n$/);
      const sent = new X509Certificate(readFileSync(node1.cert));
      expect(new X509Certificate(pem).fingerprint256).toBe(sent.fingerprint256);
    }));

  test("reach a master by HTTP/1.1 alone: no other protocol gets past these rules", () =>
    withGateway(async ({ ask }) => {
      const headers = [
        "Connection",
        "Upgrade, HTTP2-Settings",
        "Upgrade",
        "h2c",
        "HTTP2-Settings",
        "AAMAAABk",
      ];
      const names = (await ask(node1, { headers })).received().headers.map(([name]) => name);
      expect(names).toContain("x-client-dn");
      expect(names.filter((name) => /upgrade|http2/.test(name))).toEqual([]);
    }));

  test("open no tunnel to a master", () =>
    withGateway(async ({ haproxy }) => {
      const asked = https.request({
        ...{ host: "127.0.0.1", port: haproxy.ports.frontend, servername: GATEWAY_NAME, agent: false },
        ...{ ca: readFileSync(ca.caBundle), cert: readFileSync(node1.cert), key: readFileSync(node1.key) },
        ...{ method: "CONNECT", path: "master2:8140" },
      });
      const answered = once(asked.end(), "connect");
      const [{ statusCode }, socket] = (await answered) as [IncomingMessage, Socket];
      socket.destroy();
      expect(statusCode).toBe(400);
    }));

  test("go by their own certificate alone, but an operator says which node his call is about, and stays himself", async () => {
    const operator = await ca.issue("/CN=Ops.example.com");
    const folder = mkdtempSync(path.join(tmpdir(), "sasori-operators-"));
    const AGENTS_OPERATORS = path.join(folder, "operators");
    writeFileSync(AGENTS_OPERATORS, "other.example.com\nops.example.com\n");
    const names = (...nodes: string[]) => ({
      path: "/x",
      headers: nodes.flatMap((node) => ["X-Node-Name", node]),
    });
    try {
      await withGateway(
        async ({ ask }) => {
          /** The status, or which master got which path from whom, and whether a node was named to it. */
          const reached = async (
            certificate: typeof operator,
            request: { path: string; headers?: string[] },
          ) => {
            const { status, received } = await ask(certificate, request);
            if (status !== 200) return status;
            const { master, path, headers } = received();
            const dn = headers.find(([name]) => name === "x-client-dn")?.[1];
            return [master, path, dn, headers.some(([name]) => name.startsWith("x-node"))];
          };
          const ops = "CN=Ops.example.com";
          expect(await reached(operator, names("NODE1.example.com"))).toEqual(["master2", "/x", ops, false]);
          const byPath = await reached(operator, { path: "/nodes/node2.example.com/x?y=1" });
          expect(byPath).toEqual(["master3", "/x?y=1", ops, false]);
          expect(await reached(operator, names("node1 example"))).toBe(400);
          expect(await reached(operator, names("node1.example.com", "node2.example.com"))).toBe(400);
          const own = "CN=node2.example.com";
          expect(await reached(node2, names("node1.example.com"))).toEqual(["master3", "/x", own, false]);
          const foreign = "/nodes/node1.example.com/x";
          expect(await reached(node2, { path: foreign })).toEqual(["master3", foreign, own, false]);
        },
        { variables: { AGENTS_OPERATORS } },
      );
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  test("an operator's call and the new revocation list work as docs/agents.md writes them", async () => {
    const folder = mkdtempSync(path.join(tmpdir(), "sasori-operators-"));
    const at = (name: string) => path.join(folder, name);
    const [gateway, operator] = await Promise.all([
      ca.issue("/CN=puppet.example.com", {
        extension: `subjectAltName=DNS:puppet.example.com,DNS:${GATEWAY_NAME}`,
      }),
      ca.issue("/CN=ops.example.com"),
    ]);
    writeFileSync(at("operators"), "ops.example.com\n");
    for (const [name, file] of [
      ["ca.pem", ca.caBundle],
      ["crl.pem", ca.emptyCrls],
      ["ops.pem", operator.cert],
      ["ops.key", operator.key],
    ] as const)
      copyFileSync(file, at(name));
    const variables = {
      AGENTS_OPERATORS: at("operators"),
      AGENTS_CERT: gateway.both,
      AGENTS_CRL: at("crl.pem"),
    };
    try {
      await withGateway(
        async ({ ask, caMaster, haproxy }) => {
          writeFileSync(
            at(".curlrc"),
            `connect-to = "puppet.example.com:8140:127.0.0.1:${haproxy.ports.frontend}"\n`,
          );
          const bash = (words: string) => {
            const text = blockWith("docs/agents.md", words)
              .text.replaceAll("/etc/haproxy/", `${folder}/`)
              .replaceAll("/run/haproxy/admin.sock", haproxy.socketPath);
            const PATH = `${path.dirname(pathOf("socat"))}:${process.env.PATH}`;
            return run("bash", ["-euo", "pipefail", "-c", text], {
              cwd: folder,
              env: { PATH, HOME: folder },
            });
          };
          const answer = JSON.parse(await bash("X-Node-Name: web1.example.com"));
          expect(answer).toMatchObject({ master: "master1", path: "/puppet-admin-api/v1/environment-cache" });
          expect((await ask(node1)).status).toBe(200);
          caMaster.answer = await ca.crlsWith([node1]);
          expect(await bash("commit ssl crl-file")).toMatch(/transaction created[\s\S]*Success!/);
          await expect(ask(node1)).rejects.toThrow(/certificate revoked/);
        },
        { variables, map: [...MAP, ["web1.example.com", "master1"]] },
      );
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  test("are refused in the handshake when another CA has signed their certificate", () =>
    withGateway(async ({ ask, masters, caMaster, haproxy }) => {
      const stranger = await ca.issue("/CN=node1.example.com", { by: "stranger" });
      await expect(ask(stranger)).rejects.toThrow(/unknown ca/);
      await expect(ask(stranger, { path: "/puppet-ca/v1/certificate/ca" })).rejects.toThrow(/unknown ca/);
      expect([caMaster, ...masters].map(({ requests }) => requests)).toEqual([0, 0, 0, 0]);
      expect(await logged(haproxy, /node=node1.example.com route=refused verify=2[01]/g, 2)).toHaveLength(2);
    }));

  test("are refused when their certificate is revoked", async () => {
    const crl = path.join(ca.dir, "node1-revoked.pem");
    writeFileSync(crl, await ca.crlsWith([node1]));
    await withGateway(
      async ({ ask, haproxy }) => {
        await expect(ask(node1)).rejects.toThrow(/certificate revoked/);
        expect((await ask(node2)).status).toBe(200);
        expect(await logged(haproxy, /node=Node1.Example.com route=refused verify=23/g)).toHaveLength(1);
      },
      { crl },
    );
  });

  test.each(["TLSv1.2", "TLSv1.3"] as const)(
    "are refused from the next connection on, resumed %s sessions too, when a new revocation list comes in",
    (version) =>
      withGateway(async ({ ask, haproxy }) => {
        const tls = { minVersion: version, maxVersion: version };
        const session = await establish(ca, { port: haproxy.ports.frontend, tls }, node1);
        expect((await ask(node1, { tls: { ...tls, ...session } })).status).toBe(200);
        const { pid } = haproxy;

        await commitCrl(haproxy, ca.emptyCrls, await ca.crlsWith([node1]));

        await expect(ask(node1, { tls })).rejects.toThrow(/certificate revoked/);
        await expect(ask(node1, { tls: { ...tls, ...session } })).rejects.toThrow(/certificate revoked/);
        expect((await ask(node2, { tls })).status).toBe(200);
        const info = await runtimeCommand(haproxy.socketPath, "show info");
        expect(info).toContain(`Pid: ${pid}\n`);
      }),
  );

  test.each([
    ...["/CN=two words", "/CN=a;disable server x", "/CN=.hidden", "/CN=-dash", "/CN=n\u00f6de", "/O=no name"],
    ...["/CN=node1.example.com\n", "/CN=node1.example.com\n127.0.0.1 forged line"],
  ])("get 400 node_invalid with a certificate for %j, wherever they go", async (subject) => {
    const odd = await ca.issue(subject);
    await withGateway(async ({ ask, masters, caMaster, haproxy }) => {
      for (const where of ["/puppet/v3/catalog/x", "/puppet-ca/v1/certificate/ca"]) {
        const answer = await ask(odd, { path: where });
        expect({ status: answer.status, ...JSON.parse(answer.text) }).toMatchObject({
          status: 400,
          error: "node_invalid",
        });
      }
      expect([caMaster, ...masters].map(({ requests }) => requests)).toEqual([0, 0, 0, 0]);
      // A line break in a name does not begin another line.
      expect(await logged(haproxy, /^127.0.0.1:.* status=400 /gm, 2)).toHaveLength(2);
      expect(haproxy.output()).not.toMatch(/^127.0.0.1 forged/m);
    });
  });

  test("go to another master, and stay at that one, while their own is dead; then back", () =>
    withGateway(
      async ({ ask, masters, haproxy }) => {
        // The worst case: the dead master is also the one that the balancer chooses for this name.
        const home = (await ask(node1)).received().master;
        await runtimeCommand(haproxy.socketPath, `add map ${haproxy.mapPath} node1.example.com ${home}`);
        const own = masters.find(({ name }) => name === home);
        await own?.stop();
        const stayed = new Set<string>();
        for (let request = 0; request < 5; request++) {
          const answer = await ask(node1, { body: Buffer.from("facts") });
          expect(answer.status).toBe(200);
          expect(answer.headers["x-route"]).toBe("redispatched");
          stayed.add(answer.received().master);
        }
        expect(stayed.size).toBe(1);
        expect(stayed).not.toContain(home);
        expect(await haproxy.showMap()).toEqual(new Map([["node1.example.com", home]]));
        await own?.start();
        const served = async () => (await ask(node1)).headers["x-served-by"];
        await expect.poll(served).toBe(home);
      },
      { map: [] },
    ));

  test("go to one and the same master while the map does not have them", () =>
    withGateway(
      async ({ ask }) => {
        const served = new Set<string>();
        for (let request = 0; request < 5; request++) {
          const answer = await ask(node1);
          expect(answer.headers["x-route"]).toBe("unmapped");
          served.add(answer.received().master);
        }
        expect(served.size).toBe(1);
      },
      { map: [] },
    ));

  test("get 503 no_master, each with another time to come back, while no master is there", () =>
    withGateway(async ({ ask, masters }) => {
      for (const master of masters) await master.stop();
      const waits = new Set<number>();
      for (const answer of await Promise.all(Array.from({ length: 10 }, () => ask(node2)))) {
        expect(answer.status).toBe(503);
        expect(JSON.parse(answer.text)).toEqual({ error: "no_master" });
        waits.add(Number(answer.headers["retry-after"]));
      }
      expect(waits.size).toBeGreaterThan(1);
      for (const wait of waits) expect(wait).toBeGreaterThanOrEqual(5);
      for (const wait of waits) expect(wait).toBeLessThan(30);
      expect((await ask(undefined, { path: "/puppet-ca/v1/certificate/ca" })).status).toBe(200);
    }));

  test("get 503 queue_full when their master is overloaded, and are not moved to another", () =>
    withGateway(async ({ ask, masters, haproxy }) => {
      const own = masters[2];
      let release = () => {};
      if (own !== undefined) {
        own.hold = new Promise((resolve) => {
          release = resolve;
        });
      }
      // maxconn 50, maxqueue 100. Not all at once: this process shakes hands for both sides, and health checks go on.
      const waiting: ReturnType<typeof ask>[] = [];
      while (waiting.length < 150) {
        waiting.push(...Array.from({ length: 10 }, () => ask(node2)));
        const arrived = () => requestsAt(haproxy.socketPath, "agents_masters", "master3");
        await expect.poll(arrived).toEqual([Math.min(waiting.length, 50), Math.max(waiting.length - 50, 0)]);
      }
      const refused = await ask(node2);
      expect({ status: refused.status, ...JSON.parse(refused.text) }).toEqual({
        status: 503,
        error: "queue_full",
      });
      expect(Number(refused.headers["retry-after"])).toBeGreaterThanOrEqual(5);
      expect((await ask(node1)).status).toBe(200);
      release();
      const served = new Set((await Promise.all(waiting)).map(({ headers }) => headers["x-served-by"]));
      expect(served).toEqual(new Set(["master3"]));
    }));

  test.each([50_000, 5_000_000])(
    "upload facts of %d bytes whole, with all that is added to the headers",
    (size) =>
      withGateway(async ({ ask }) => {
        const answer = await ask(node1, {
          body: Buffer.alloc(size, "x"),
          headers: ["X-Puppet-Version", "8.0.0"],
        });
        expect(answer.status).toBe(200);
        expect(answer.received().bytes).toBe(size);
        expect(identity(answer.received())).toHaveLength(3);
      }),
  );

  test("are brought to masters by HAProxy's own certificate, without a name in the handshake", () =>
    withGateway(async ({ ask }) => {
      for (const certificate of [undefined, node1]) {
        expect((await ask(certificate)).received()).toMatchObject({ shown: LEG_NAME, sni: false });
      }
    }));

  test("are not brought to a server that shows another certificate of the same CA", () =>
    withGateway(
      async ({ ask, masters }) => {
        const answer = await ask(node1);
        expect(answer.headers["x-route"]).toBe("redispatched");
        expect(masters[1]?.requests).toBe(0);
      },
      { certificates: { ...certificates, master2: node2 } },
    ));
});

/** Waits until HAProxy has logged so many matches, and returns them. */
async function logged(haproxy: { output(): string }, pattern: RegExp, count = 1): Promise<string[]> {
  const found = (): string[] => haproxy.output().match(pattern) ?? [];
  await expect.poll(() => found().length).toBeGreaterThanOrEqual(count);
  return found();
}

/** The queue of a server, from `show stat`. */
/** How many requests the server has, and how many wait for it. */
async function requestsAt(socketPath: string, backend: string, server: string): Promise<number[]> {
  const [header = "", ...rows] = (await runtimeCommand(socketPath, "show stat")).split("\n");
  const titles = header.split(",");
  const row = rows.map((line) => line.split(",")).find(([a, b]) => a === backend && b === server) ?? [];
  return ["scur", "qcur"].map((title) => Number(row[titles.indexOf(title)]));
}
