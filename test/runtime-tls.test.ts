// HAProxy instances on other hosts: the Runtime API over TLS as haproxy/runtime-tls.cfg offers it, and HAProxy instances behind
// a DNS name.
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Endpoint } from "../src/config.js";
import { diagnose } from "../src/doctor/doctor.js";
import { PemFiles } from "../src/pem-files.js";
import { assemble, Sync } from "../src/sync.js";
import { DnsNames } from "../src/target/dns-names.js";
import { RuntimeSession } from "../src/target/runtime-api.js";
import { type Certificate, makePuppetCa, type PuppetCa } from "./support/agents-gateway.js";
import { freePort } from "./support/child.js";
import { MASTERS, withFleetLab } from "./support/fleet-lab.js";
import { DEFAULTS, type HaproxyServer, runtimeCommand, withHaproxy } from "./support/haproxy-server.js";
import { haproxyBinaries } from "./support/parts.js";

const at = (file: string) => path.resolve("haproxy", file);
const RUNTIME_TLS = readFileSync(at("runtime-tls.cfg"), "utf8");

let ca: PuppetCa;
let [ours, strangers, nodes, twice]: Certificate[] = [];
beforeAll(async () => {
  ca = await makePuppetCa();
  ours = await ca.issue("/CN=sasori.example.com");
  nodes = await ca.issue("/CN=node1.example.com");
  twice = await ca.issue("/CN=sasori.example.com/CN=node1.example.com");
  strangers = await ca.issue("/CN=sasori.example.com", { by: "stranger" });
});
afterAll(() => ca.remove());

/** An HAProxy with the file beside a plain configuration; its certificate says "localhost". */
async function withTls(
  bin: string,
  use: (haproxy: HaproxyServer, port: number) => Promise<void>,
  defaults = "",
) {
  const port = await freePort();
  const certificate = await ca.issue("/CN=gw1.example.com", { extension: "subjectAltName=DNS:localhost" });
  const config = ({ socketPath, mapPath }: { socketPath: string; mapPath: string }) => `global
  setenv HAPROXY_SOCKET ${socketPath}
  setenv RUNTIME_CERT ${certificate.both}
  setenv RUNTIME_CA ${ca.caBundle}
  setenv RUNTIME_CRL ${ca.emptyCrls}
  setenv RUNTIME_CLIENT sasori.example.com
  setenv RUNTIME_ADDRESS 127.0.0.1
  setenv RUNTIME_PORT ${port}
  stats socket ${socketPath} level admin
${DEFAULTS}${defaults}backend puppet
  http-request set-var(txn.master) req.hdr(X-Node-Name),lower,map_str(${mapPath})
${MASTERS.map((name, index) => `  server ${name} 127.0.0.1:${18141 + index}`).join("\n")}
${RUNTIME_TLS}`;
  await withHaproxy({ bin, config }, (haproxy) => use(haproxy, port));
}

const settings = (port: number, { cert, key }: Certificate = ours as Certificate) => ({
  SASORI_HAPROXY: `tls://localhost:${port}`,
  SASORI_HAPROXY_CA: ca.caBundle,
  SASORI_HAPROXY_CERT: cert,
  SASORI_HAPROXY_KEY: key,
});

describe.each(haproxyBinaries())("the Runtime API of HAProxy $version over TLS", ({ bin }) => {
  test("takes a fleet and its moves from a sasori with the right certificate", () =>
    withTls(bin, (haproxy, port) =>
      withFleetLab([], async (lab) => {
        for (let index = 0; index < 2_000; index += 1)
          await lab.run(`node${index}.example.com`, MASTERS[index % 3] ?? "");
        const sync = await lab.newSync({ ...settings(port), SASORI_MAP_NAME: haproxy.mapPath });
        expect(await sync.request({})).toMatchObject({ outcome: "done", nodes: 2_000 });
        expect(await haproxy.showMap()).toEqual(await lab.file());
        await lab.run("node0.example.com", "master3");
        expect(await sync.request({})).toMatchObject({ outcome: "done", moved: 1 });
        expect((await haproxy.showMap()).get("node0.example.com")).toBe("master3");
      }),
    ));

  test("lets in nobody else, and each is told why", () =>
    withTls(bin, async (haproxy, port) => {
      const why = async (
        endpoint: Partial<Endpoint> & { certificate?: Certificate | undefined; caFile?: string | undefined },
      ) => {
        const { cert, key } = endpoint.certificate ?? (ours as Certificate);
        const files = new PemFiles(
          { caFile: endpoint.caFile ?? ca.caBundle, certFile: cert, keyFile: key },
          "HAPROXY",
        );
        const connect = { host: "127.0.0.1", port };
        const whole = { name: "gw1", connect, tls: { certname: "localhost", files }, ...endpoint };
        const open = RuntimeSession.open(whole, AbortSignal.timeout(10_000));
        return open.then(
          (session) => session.close(),
          ({ code, message }) => `${code} ${message}`,
        );
      };
      expect(await why({})).toBeUndefined();
      expect(await why({ certificate: strangers })).toMatch(
        /^HAPROXY_PERMISSION gw1: HAProxy refused our certificate .*SASORI_HAPROXY_CERT/,
      );
      for (const certificate of [nodes, twice])
        expect(await why({ certificate })).toMatch(/^HAPROXY_PERMISSION gw1: .*RUNTIME_CLIENT/);
      expect(await why({ caFile: strangers?.cert })).toMatch(/^HAPROXY_UNREACHABLE gw1: .*SASORI_HAPROXY_CA/);
      expect(await why({ caFile: ours?.key })).toMatch(
        /^HAPROXY_UNREACHABLE gw1: .*no certificate.* in SASORI_HAPROXY_CA$/,
      );
      const files = new PemFiles(
        { caFile: ca.caBundle, certFile: ours?.cert, keyFile: ours?.key },
        "HAPROXY",
      );
      expect(await why({ tls: { certname: "gw2.example.com", files } })).toMatch(
        /^HAPROXY_UNREACHABLE gw1: .*gw2\.example\.com.*use a name from HAProxy's certificate/,
      );
      expect(await why({ connect: { host: "127.0.0.1", port: haproxy.ports.frontend } })).toMatch(
        /^HAPROXY_UNREACHABLE gw1: nothing listens there/,
      );
    }));

  test("is a second file of haproxy.cfg, without a warning", () => {
    const { status, stderr } = spawnSync(bin, ["-c", "-f", at("haproxy.cfg"), "-f", at("runtime-tls.cfg")], {
      encoding: "utf8",
      env: {
        ...{ NODE_MASTER_MAP: "/dev/null", HAPROXY_SOCKET: "/tmp/none.sock", MASTER1: "127.0.0.1:1" },
        ...{ STATS_USER: "admin", STATS_PASSWORD: "secret", RUNTIME_CLIENT: "sasori.example.com" },
        ...{ RUNTIME_CERT: ca.gateway.both, RUNTIME_CA: ca.caBundle },
      },
    });
    expect({ status, warnings: stderr.match(/.*(WARNING|ALERT).*/g) }).toEqual({ status: 0, warnings: null });
  });

  test("is there whatever other files have as defaults for their servers", () =>
    withTls(
      bin,
      async (haproxy, port) => {
        const { cert, key } = ours as Certificate;
        const files = new PemFiles({ caFile: ca.caBundle, certFile: cert, keyFile: key }, "HAPROXY");
        const endpoint = {
          ...{ name: "gw1", connect: { host: "127.0.0.1", port } },
          tls: { certname: "localhost", files },
        };
        const info = RuntimeSession.with(endpoint, AbortSignal.timeout(10_000), (session) =>
          session.ask("show info"),
        );
        expect(await info).toContain(`Pid: ${haproxy.pid}\n`);
        // Running, weight 1, no TLS, and neither a check nor an agent that could take it down.
        const state = await runtimeCommand(haproxy.socketPath, "show servers state runtime-api");
        expect(state).toMatch(/ runtime-api - 2 0 1 1 \d+ \d+ \d+ \d+ 0 0 .* - 0 - (0|-1) 0 /);
      },
      `  option httpchk GET /status/v1/simple
  default-server weight 0 check agent-check agent-port 1 ssl verify none send-proxy
`,
    ));

  test("is what the doctor looks at", () =>
    withTls(bin, (haproxy, port) =>
      withFleetLab([], async (lab) => {
        const { puppetdb, mapFile } = lab.config();
        const environment = {
          SASORI_PUPPETDB_URL: puppetdb[0]?.[0]?.url ?? "",
          SASORI_MAP_FILE: mapFile,
          SASORI_MAP_NAME: haproxy.mapPath,
        };
        const socket = async (more: Record<string, string>) => {
          const { findings } = await diagnose({ ...environment, ...more }, "0.0.0");
          return findings.find(({ check }) => check === "stats socket");
        };
        expect(await socket(settings(port))).toMatchObject({
          outcome: "ok",
          where: `tls://localhost:${port}`,
        });
        expect(await socket(settings(port, strangers))).toMatchObject({
          outcome: "failed",
          remedy: expect.stringContaining("SASORI_HAPROXY_CERT"),
        });
      }),
    ));
});

test("a certificate without its key is told with the HAProxy that it is for", async () => {
  const files = new PemFiles({ caFile: ca.caBundle, certFile: ours?.cert, keyFile: nodes?.key }, "HAPROXY");
  const endpoint = {
    name: "tls://gw1.example.com:9999",
    connect: { host: "127.0.0.1", port: 9 },
    tls: { certname: "gw1.example.com", files },
  };
  await expect(RuntimeSession.open(endpoint, AbortSignal.timeout(5_000))).rejects.toMatchObject({
    code: "HAPROXY_UNREACHABLE",
    message: expect.stringMatching(
      /^tls:\/\/gw1.example.com:9999: .*key values mismatch.*SASORI_HAPROXY_CERT and _KEY/,
    ),
  });
});

describe("HAProxy instances behind a DNS name", () => {
  const [{ bin } = { bin: "" }] = haproxyBinaries();
  const address = (index: number) => `127.0.0.${index + 2}`;

  test("come and go with its addresses, and one that has left DNS is fed until it no longer answers", async () => {
    const port = await freePort();
    const listening = [0, 1, 2].map((index) => ({
      bin,
      globalLines: [`stats socket ipv4@${address(index)}:${port} level admin`],
    }));
    await withFleetLab(listening, async (lab) => {
      let answer: () => string[] = () => [];
      const lookUp = async () => answer().map((one) => ({ address: one, family: 4 }));
      const config = lab.config({ SASORI_HAPROXY: `tcp+dns://gateways.example.com:${port}` });
      const { names, ...parts } = assemble(config);
      const dns = new DnsNames(config.haproxyNames ?? [], lookUp);
      const sync = new Sync({ ...parts, names: names && { ...names, dns } });
      const targets = () =>
        sync.targets().flatMap(({ kind, target }) => (kind === "haproxy" ? [target] : []));
      const url = (index: number) => `tcp://${address(index)}:${port}`;

      // No address yet: it says so, and still writes the file.
      await lab.run("node1.example.com", "master1");
      expect((await sync.request({})).targets).toMatchObject([
        {},
        { target: `tcp+dns://gateways.example.com:${port}`, failure: { code: "HAPROXY_UNREACHABLE" } },
      ]);

      answer = () => [address(0), address(1)];
      expect(await sync.request({ full: true })).toMatchObject({ outcome: "done" });
      expect(targets()).toEqual([url(0), url(1)]);
      answer = () => [address(1), address(2)];
      await lab.run("node1.example.com", "master2");
      expect(await sync.request({})).toMatchObject({ outcome: "done" });
      expect(targets()).toEqual([url(0), url(1), url(2)]);
      const routes = new Map([["node1.example.com", "master2"]]);
      for (const haproxy of lab.haproxys) expect(await haproxy.showMap()).toEqual(routes);

      // The first has left DNS and ends: the pass that sees it end still counts it, the next one does not.
      await lab.haproxys[0]?.kill();
      await sync.request({});
      expect(await sync.request({})).toMatchObject({ outcome: "done" });
      expect(targets()).toEqual([url(1), url(2)]);

      // DNS is down: no HAProxy is lost.
      answer = () => {
        throw Object.assign(new Error("queryA ETIMEOUT"), { code: "ETIMEOUT" });
      };
      expect(await sync.request({})).toMatchObject({ outcome: "done" });
      expect(targets()).toEqual([url(1), url(2)]);
      await sync.stop(0);
    });
  });

  test("are one target each, however many names lead there, and no address that means this host is believed", async () => {
    const port = await freePort();
    const listening = [{ bin, globalLines: [`stats socket ipv4@127.0.0.2:${port} level admin`] }];
    await withFleetLab(listening, async (lab) => {
      const lookUp = async () =>
        ["127.0.0.2", "0.0.0.0", "::"].map((address) => ({ address, family: address === "::" ? 6 : 4 }));
      for (const configured of [`tcp://127.0.0.2:${port}`, `tcp+dns://c.example.com:${port}`]) {
        const config = lab.config({
          SASORI_HAPROXY: `${configured},tcp+dns://a.example.com:${port},tcp+dns://b.example.com:${port}`,
        });
        const { names, ...parts } = assemble(config);
        const dns = new DnsNames(config.haproxyNames ?? [], lookUp);
        const sync = new Sync({ ...parts, names: names && { ...names, dns } });
        for (let pass = 0; pass < 2; pass += 1) {
          await sync.request({});
          const targets = sync.targets().filter(({ kind }) => kind === "haproxy");
          expect(targets.map(({ target }) => target)).toEqual([`tcp://127.0.0.2:${port}`]);
        }
        await sync.stop(0);
      }
    });
  });

  test("are no more than 256 behind one name", async () => {
    const lookUp = async () =>
      Array.from({ length: 1_000 }, (_, index) => ({
        address: `10.0.${index >> 8}.${index & 255}`,
        family: 4,
      }));
    const dns = new DnsNames([{ name: "tcp+dns://many:9999", host: "many", port: 9999 }], lookUp);
    expect(await dns.endpoints()).toHaveLength(256);
  });

  test("are found as the machine finds names, IPv6 too", async () => {
    const [endpoint] = await new DnsNames([
      { name: "tcp+dns://localhost:9999", host: "localhost", port: 9999 },
    ]).endpoints();
    expect(endpoint?.name).toMatch(/^tcp:\/\/(127\.0\.0\.1|\[::1\]):9999$/);
  });
});
