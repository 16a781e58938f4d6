/** `sasori setup` in parts: what it finds on a host, and what it makes of that. test/packages runs the whole on real hosts. */
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { PassThrough, Readable } from "node:stream";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { startPuppetdbStandIn } from "../demo/puppetdb.js";
import { askProducers, isWanted } from "../src/cli/setup.js";
import { readConfig } from "../src/config.js";
import { lookAtHost, parseHaproxy, parseIni } from "../src/setup/host.js";
import { envFile, parseEnvFile, propose, withoutMoved } from "../src/setup/proposal.js";
import { putFile } from "../src/setup/put-file.js";
import { freePort, run } from "./support/child.js";
import { standInClient } from "./support/puppetdb-server.js";

let root: string;
beforeEach(async () => {
  root = await mkdtemp(path.join(tmpdir(), "sasori-setup-"));
});
afterEach(() => rm(root, { recursive: true }));

async function put(files: Readonly<Record<string, string>>): Promise<void> {
  for (const [name, text] of Object.entries(files)) {
    await mkdir(path.dirname(path.join(root, name)), { recursive: true });
    await writeFile(path.join(root, name), text);
  }
}

const SSL = "etc/puppetlabs/puppet/ssl";
const AGENT = {
  [`${SSL}/certs/ca.pem`]: "",
  [`${SSL}/certs/gateway.example.com.pem`]: "",
  [`${SSL}/private_keys/gateway.example.com.pem`]: "",
  "etc/puppetlabs/puppet/puppetdb.conf":
    "[main]\nserver_urls = https://puppetdb1.example.com:8081,https://b:8081/\n",
};
const DEBIAN_HAPROXY = {
  "etc/haproxy/haproxy.cfg": `global
  chroot /var/lib/haproxy
  stats socket /run/haproxy/admin.sock mode 660 level admin expose-fd listeners
  stats socket /run/haproxy/user.sock mode 660 level user
defaults
  mode http
`,
};
const OWN = `${DEBIAN_HAPROXY["etc/haproxy/haproxy.cfg"]}
frontend tools
  bind :8080
  http-request set-var(txn.master) req.hdr(x-node-name),lower,map_str(/etc/haproxy/maps/nodes.map)
  # use_backend old if { map(/etc/haproxy/maps/old.map) }
backend web
  server w1 10.0.0.1:80
backend puppetservers
  use-server %[var(txn.master)] if { var(txn.master) -m found }
  server puppet1 puppet1.example.com:8140 check
  server puppet2 puppet2.example.com:8140 check
`;

const named = (settings: readonly { name: string; value: string }[] | undefined) =>
  Object.fromEntries((settings ?? []).map(({ name, value }) => [name, value]));

describe("what is found on a host", () => {
  test("nothing, without an error", async () => {
    expect(await lookAtHost(root)).toEqual({ puppet: undefined, puppetdbUrl: undefined, haproxy: undefined });
  });

  test("an agent's certificate, PuppetDB's addresses, HAProxy's sockets that may change a map", async () => {
    await put({ ...AGENT, ...DEBIAN_HAPROXY });
    const host = await lookAtHost(root);
    expect(host.puppet).toMatchObject({
      certname: "gateway.example.com",
      caFile: path.join(root, SSL, "certs/ca.pem"),
    });
    expect(host.puppetdbUrl).toBe("https://puppetdb1.example.com:8081|https://b:8081");
    expect(host.haproxy).toMatchObject({ sockets: ["/run/haproxy/admin.sock"], chroot: "/var/lib/haproxy" });
  });

  test("on a CA the host's own certificate, which puppet.conf names", async () => {
    await put({
      ...AGENT,
      [`${SSL}/certs/other.example.com.pem`]: "",
      [`${SSL}/private_keys/other.example.com.pem`]: "",
    });
    expect((await lookAtHost(root)).puppet).toBeUndefined(); // One of two is a guess.
    await put({
      "etc/puppetlabs/puppet/puppet.conf": "[main]\ncertname = a\n[agent]\ncertname = Gateway.example.com\n",
    });
    expect((await lookAtHost(root)).puppet?.certname).toBe("gateway.example.com");
  });

  test("Debian's own agent, and PuppetDB's older settings", async () => {
    await put({
      "etc/puppet/puppetdb.conf": "[main]\nserver = puppetdb.example.com\nport = 8082\n",
      "var/lib/puppet/ssl/certs/ca.pem": "",
      "var/lib/puppet/ssl/certs/a.example.com.pem": "",
      "var/lib/puppet/ssl/private_keys/a.example.com.pem": "",
    });
    expect(await lookAtHost(root)).toMatchObject({
      puppet: { certname: "a.example.com" },
      puppetdbUrl: "https://puppetdb.example.com:8082",
    });
  });

  test("RHEL's HAProxy takes more arguments by another variable", async () => {
    await put({
      ...DEBIAN_HAPROXY,
      "usr/lib/systemd/system/haproxy.service": "ExecStart=haproxy -f $CONFIG $OPTIONS\n",
    });
    expect((await lookAtHost(root)).haproxy?.options).toBe("OPTIONS");
  });

  test("maps and backends, but not those in comments", () => {
    expect(parseHaproxy(OWN)).toMatchObject({
      maps: ["/etc/haproxy/maps/nodes.map"],
      backends: [
        { name: "web", servers: ["w1"], isRouted: false },
        { name: "puppetservers", servers: ["puppet1", "puppet2"], isRouted: true },
      ],
    });
  });

  test("what a configuration says in quotes, by prefixes, in CRLF lines, and in sections that have servers of another kind", () => {
    const lines = [
      ...["global", '  chroot "/var/lib/haproxy"', '  stats socket "/run/haproxy/a.sock" level admin'],
      ...["  stats socket unix@/run/haproxy/b.sock mode 660 level admin", "backend puppet # the masters"],
      ...[
        '  use-server "%[var(txn.master)]" if { var(txn.master) -m found }',
        "  server puppet1 10.0.0.1:8140",
      ],
      ...["  server-template puppet 2 _x-puppet._tcp.example.com", "ring logs", "  server logs 10.0.0.9:514"],
    ];
    expect(parseHaproxy(lines.join("\r\n"))).toMatchObject({
      sockets: ["/run/haproxy/a.sock", "/run/haproxy/b.sock"],
      chroot: "/var/lib/haproxy",
      backends: [
        {
          name: "puppet",
          servers: ["puppet1", "puppet"],
          hosts: ["10.0.0.1", "_x-puppet._tcp.example.com"],
          isRouted: true,
        },
      ],
    });
  });

  test("INI files as people write them", () => {
    expect(parseIni('a=1\n# b = 2\n[main]\nc = "d e"\n[agent]\nc=f')).toEqual({
      main: { a: "1", c: "d e" },
      agent: { c: "f" },
    });
    expect(Object.keys(parseIni("[__proto__]\na=1\n[constructor]\nb=2"))).toEqual([
      "__proto__",
      "constructor",
    ]);
    expect({}).not.toHaveProperty("a");
    expect(Object).not.toHaveProperty("b");
  });
});

test.each([
  { typed: "yes\n", answer: true },
  { typed: "Y \n", answer: true },
  { typed: "\n", answer: false },
  { typed: "yesterday\n", answer: false },
  { typed: "yes", answer: true },
  { typed: "", answer: false },
])("what is typed ($typed) is a yes or not, also when the input ends there", async ({ typed, answer }) => {
  expect(await isWanted(Readable.from(typed === "" ? [] : [typed]), new PassThrough())).toBe(answer);
});

describe("the producers", () => {
  test("are those of the first PuppetDB that answers, and of each estate, the one with the most nodes first", async () => {
    const nodes = { "node1.example.com": "b", "node2.example.com": "b", "node3.example.com": "a" };
    const standIns = await Promise.all([freePort(), freePort()]);
    const urls = standIns.map((port) => `http://127.0.0.1:${port}`);
    const running = await Promise.all(
      standIns.map((port) => startPuppetdbStandIn({ host: "127.0.0.1", port })),
    );
    try {
      for (const [certname, producer] of Object.entries(nodes))
        await standInClient(urls[0] ?? "").replaceFacts({ certname, producer, at: new Date() });
      // It applies its own catalogs.
      await standInClient(urls[1] ?? "").replaceFacts({ certname: "c", producer: "c", at: new Date() });
      const from = (value: string) =>
        askProducers([{ name: "SASORI_PUPPETDB_URL", value, why: "" }], undefined);
      const closed = `http://127.0.0.1:${await freePort()}`;
      expect(await from(`${closed}|${urls[0]},${urls[1]}`)).toEqual(["b", "a"]);
      await expect(from(`${urls[0]},${closed}`)).rejects.toMatchObject({ code: "PUPPETDB_UNREACHABLE" });
      await expect(from("puppetdb:8081")).rejects.toThrow("expected an http or https URL");
    } finally {
      await Promise.all(running.map((one) => one.close()));
    }
  });
});

describe("what is proposed", () => {
  test("the gateway with PuppetDB's producers, where HAProxy routes by no map", async () => {
    await put({ ...AGENT, ...DEBIAN_HAPROXY });
    const { daemon, gateway, certificates, missing } = propose(
      await lookAtHost(root),
      ["puppet2", "puppet1"],
      {},
    );
    expect(missing).toEqual([]);
    expect(named(daemon)).toMatchObject({
      SASORI_PUPPETDB_URL: "https://puppetdb1.example.com:8081|https://b:8081",
      SASORI_HAPROXY: "/run/haproxy/sasori.sock",
      SASORI_PUPPETDB_KEY: "/etc/sasori/ssl/key.pem",
    });
    expect(named(gateway)).toMatchObject({
      EXTRAOPTS: "-S /run/haproxy-master.sock -f /etc/haproxy/sasori/haproxy.cfg",
      HAPROXY_CHROOT: "/var/lib/haproxy",
      MASTER1: "puppet2:8140",
      MASTER2_NAME: "puppet1",
      MASTERS_CERT: "/etc/sasori/ssl/gateway.pem",
    });
    expect(certificates.map(({ file, reader }) => `${file} ${reader}`)).toEqual([
      "/etc/sasori/ssl/cert.pem sasori",
      "/etc/sasori/ssl/key.pem sasori",
      "/etc/sasori/ssl/ca.pem sasori",
      "/etc/sasori/ssl/gateway.pem root",
    ]);
  });

  test("the gateway's file behind those that HAProxy's unit is told to read already", async () => {
    await put({
      ...{ ...AGENT, ...DEBIAN_HAPROXY },
      "etc/default/haproxy": '#EXTRAOPTS="-de"\nEXTRAOPTS="-f /etc/haproxy/conf.d -m 512"\n',
    });
    const { gateway } = propose(await lookAtHost(root), ["puppet1"], {});
    expect(named(gateway).EXTRAOPTS).toBe("-f /etc/haproxy/conf.d -m 512 -f /etc/haproxy/sasori/haproxy.cfg");
  });

  test("as many puppetservers as the gateway takes, and how many others there are, with what to do", () => {
    const producers = Array.from({ length: 34 }, (_, index) => `puppet${index + 1}.example.com`);
    const host = { puppet: undefined, puppetdbUrl: "http://127.0.0.1:8080", haproxy: undefined };
    const { gateway, remarks } = propose(host, producers, {});
    expect(named(gateway)).toMatchObject({ MASTER32: "puppet32.example.com:8140" });
    expect(named(gateway).MASTER33).toBeUndefined();
    expect(remarks).toEqual([
      expect.stringMatching(
        /32 puppetservers.* 2 others: puppet33\.example\.com, puppet34\.example\.com\. .*server line.*SASORI_NEW_MASTERS/,
      ),
    ]);
    const kept = { daemon: {}, gateway: named(gateway) };
    expect(propose(host, producers, {}, kept).remarks).toEqual(remarks);
    expect(propose(host, producers.slice(0, 32), {}).remarks).toEqual([]);
  });

  test("no gateway where HAProxy's own configuration routes by a map", async () => {
    await put({ ...AGENT, "etc/haproxy/haproxy.cfg": OWN });
    const { daemon, gateway, missing } = propose(await lookAtHost(root), [], {});
    expect({ gateway, missing }).toEqual({ gateway: undefined, missing: [] });
    expect(named(daemon)).toMatchObject({
      SASORI_HAPROXY: "/run/haproxy/admin.sock",
      SASORI_BACKEND: "puppetservers",
      SASORI_MAP_FILE: "/etc/haproxy/maps/nodes.map",
      SASORI_STATE_FILE: "/etc/haproxy/maps/state.json",
    });
  });

  test("pools: the backends that have puppetservers, where haproxy.cfg chooses the backend by a map", async () => {
    await put({
      ...AGENT,
      "etc/haproxy/haproxy.cfg": `${DEBIAN_HAPROXY["etc/haproxy/haproxy.cfg"]}
frontend tools
  use_backend %[req.hdr(x-node-name),lower,map(/var/lib/sasori/node-master.map)]
backend web
  server w1 10.0.0.1:80
backend fra
  server puppet-fra1.example.com 192.0.2.11:8140
backend lon
  server a puppet-lon1.example.com:8140
`,
    });
    const host = await lookAtHost(root);
    const producers = ["puppet-lon1.example.com", "puppet-fra1.example.com"];
    const { daemon, gateway, missing } = propose(host, producers, {});
    expect({ gateway, missing }).toEqual({ gateway: undefined, missing: [] });
    expect(named(daemon)).toMatchObject({
      SASORI_ROUTE_TO: "backends",
      SASORI_BACKEND: "fra,lon",
      SASORI_HAPROXY: "/run/haproxy/admin.sock",
    });
    expect(propose(host, ["other.example.com"], {}).missing.join()).toMatch(
      /set SASORI_BACKEND, for example/,
    );
    expect(propose(host, [], { SASORI_BACKEND: "fra" }).missing).toEqual([]);
  });

  test("a variable that is set counts more than what was found", async () => {
    await put({ ...AGENT, ...DEBIAN_HAPROXY });
    const given = { SASORI_PUPPETDB_URL: "http://127.0.0.1:8080", SASORI_LOG_LEVEL: "debug", PATH: "/bin" };
    const { daemon } = propose(await lookAtHost(root), ["puppet1"], given);
    expect(named(daemon)).toMatchObject({
      SASORI_PUPPETDB_URL: "http://127.0.0.1:8080",
      SASORI_LOG_LEVEL: "debug",
    });
    expect(daemon.map(({ name }) => name)).not.toContain("PATH");
    expect(named(daemon).SASORI_PUPPETDB_CERT).toBeUndefined(); // Plain HTTP shows none.
  });

  test("what is missing, each with what to do", async () => {
    const { missing } = propose(await lookAtHost(root), undefined, {});
    expect(missing.join("\n")).toMatch(/puppetdb\.conf.*\n.*apt install haproxy.*\n.*could not be asked/);
  });

  test.each(["2.4.14-1ubuntu1", "2.5.9"])(
    "HAProxy %s is too old for the gateway, and for nothing else",
    async (version) => {
      const says = {
        "usr/sbin/haproxy": `#!/bin/sh\necho "HAProxy version ${version} 2022/02/28 - https://haproxy.org/"\n`,
      };
      await put({ ...AGENT, ...DEBIAN_HAPROXY, ...says });
      await chmod(path.join(root, "usr/sbin/haproxy"), 0o755);
      expect(propose(await lookAtHost(root), ["puppet1"], {}).missing).toEqual([
        expect.stringMatching(`HAProxy 2\\.6 or newer for the gateway; this is ${version}: upgrade it, or`),
      ]);
      await put({ "etc/haproxy/haproxy.cfg": OWN });
      expect(propose(await lookAtHost(root), ["puppet1"], {}).missing).toEqual([]);
    },
  );

  test("settings that sasori takes, whatever is in them", async () => {
    const { daemon } = propose(
      { puppet: undefined, puppetdbUrl: "http://127.0.0.1:8080", haproxy: undefined },
      ["puppet1"],
      {
        SASORI_MASTER_ALIASES: "puppet1.corp=master1, puppet2.corp=master2",
        SASORI_NEW_MASTERS: '$(reboot)"`\\.',
      },
    );
    const file = path.join(root, "sasori.env");
    await writeFile(file, envFile("sasori", daemon));
    const printed = await run("sh", ["-c", `set -a; . ${file}; env`], { env: {} });
    const read = Object.fromEntries(
      printed
        .split("\n")
        .map((line) => [line.slice(0, line.indexOf("=")), line.slice(line.indexOf("=") + 1)]),
    );
    expect(read).toMatchObject({ SASORI_NEW_MASTERS: '$(reboot)"`\\.' });
    expect(() =>
      readConfig({
        SASORI_MAP_FILE: read.SASORI_MAP_FILE,
        SASORI_HAPROXY: read.SASORI_HAPROXY,
        SASORI_PUPPETDB_URL: read.SASORI_PUPPETDB_URL,
        SASORI_MASTER_ALIASES: read.SASORI_MASTER_ALIASES,
      }),
    ).not.toThrow();
  });
});

describe("setup once more", () => {
  const HOST = { puppet: undefined, puppetdbUrl: "http://127.0.0.1:8080", haproxy: undefined };

  test("keeps what a person has changed since, and adds a new puppetserver behind the others", () => {
    const first = propose(HOST, ["puppet1", "puppet2"], {});
    const daemon = `${envFile("sasori", first.daemon)}SASORI_API_TOKEN_FILE=/etc/sasori/api.token\nSASORI_NEW_MASTERS='^new-'\n`;
    const gateway = envFile("The gateway", [
      ...(first.gateway ?? []),
      { name: "STATS_PASSWORD", value: "what-i-have", why: "" },
    ])
      .replace("GATEWAY_ADDRESS=127.0.0.1", "GATEWAY_ADDRESS=0.0.0.0")
      .replace("MASTER2=puppet2:8140", "MASTER2=10.0.0.2:9140");
    const kept = { daemon: parseEnvFile(daemon), gateway: parseEnvFile(gateway) };
    expect(kept.gateway.STATS_PASSWORD).toBe("what-i-have");
    const second = propose(HOST, ["puppet3", "puppet2", "puppet1"], {}, kept);
    expect(named(second.daemon)).toEqual(kept.daemon);
    expect(named(second.gateway)).toEqual({
      ...named(first.gateway),
      GATEWAY_ADDRESS: "0.0.0.0",
      MASTER2: "10.0.0.2:9140",
      MASTER3: "puppet3:8140",
      MASTER3_NAME: "puppet3",
    });
    expect(second.gateway?.map(({ name }) => name)).not.toContain("STATS_PASSWORD"); // It is shown to nobody.
    const https = { daemon: { SASORI_PUPPETDB_KEY: "/etc/sasori/ssl/key.pem" }, gateway: {} };
    expect(named(propose(HOST, [], {}, https).daemon).SASORI_PUPPETDB_KEY).toBeUndefined(); // Plain HTTP shows none.
    expect(named(propose(HOST, [], { SASORI_API_TOKEN_FILE: "/t" }, kept).daemon).SASORI_API_TOKEN_FILE).toBe(
      "/t",
    );
  });

  test("follows a PuppetDB that has moved: the kept one does not answer, and puppetdb.conf names another", () => {
    const kept = { daemon: named(propose(HOST, [], {}).daemon), gateway: {} };
    expect(withoutMoved(HOST, kept)).toBeUndefined();
    const host = { ...HOST, puppetdbUrl: "http://127.0.0.2:8080" };
    const moved = withoutMoved(host, kept) ?? kept;
    expect(named(propose(host, [], {}, kept).daemon).SASORI_PUPPETDB_URL).toBe(HOST.puppetdbUrl);
    expect(named(propose(host, [], {}, moved).daemon)).toEqual({
      ...kept.daemon,
      SASORI_PUPPETDB_URL: host.puppetdbUrl,
    });
  });

  test("takes nothing from a file that it has not written", () =>
    expect(
      parseEnvFile("# /etc/sasori/sasori.env\nSASORI_PUPPETDB_URL=https://puppetdb.example.com:8081\n"),
    ).toEqual({}));

  test("reads what it has written, whatever is in it", () => {
    const values = { A: "a=b", B: 'x "y" \\ $(z) `w`', C: "two\nD=lines", E: "" };
    const settings = Object.entries(values).map(([name, value]) => ({ name, value, why: "because" }));
    expect(parseEnvFile(envFile("sasori", settings))).toEqual(values);
  });
});

describe("a purge of the package", () => {
  /** The package's script, for this folder. Something is mounted on both of its own. */
  const purge = async (haproxyConfig: string) => {
    const text = await readFile("setup/packaging/deb/postrm", "utf8");
    await put({
      postrm: text
        .replaceAll(/ \/(etc|var)\//g, ` ${root}/$1/`)
        .replaceAll(/=\/(etc|var)\//g, `=${root}/$1/`),
      "etc/haproxy/haproxy.cfg": haproxyConfig,
      "etc/sasori/sasori.env": "",
      "var/lib/sasori/node-master.map": "",
    });
    const inside = `mount -t tmpfs none ${root}/etc/sasori; mount -t tmpfs none ${root}/var/lib/sasori
      touch ${root}/etc/sasori/new ${root}/var/lib/sasori/{state.json,node-master.map}
      sh ${root}/postrm purge 2>&1; ls -A ${root}/etc/sasori ${root}/var/lib/sasori`;
    const flags = process.getuid?.() === 0 ? "-m" : "-Urm";
    return run("unshare", [flags, "bash", "-ec", inside]);
  };

  test("empties a folder that is a mount point, says that the folder stays, and does not fail", async () => {
    const printed = await purge("");
    expect(printed).toContain(`${root}/etc/sasori stays, because something is mounted there\n`);
    expect(printed).toContain(`${root}/var/lib/sasori stays, because something is mounted there\n`);
    expect(printed).not.toMatch(/new|state\.json|node-master/);
  });

  test("leaves the map that HAProxy's configuration names, there too", async () => {
    const printed = await purge(`map_str(${root}/var/lib/sasori/node-master.map)`);
    expect(printed).toMatch(/^node-master\.map$/m);
    expect(printed).not.toContain("state.json");
  });
});

describe("a file that setup puts", () => {
  const owner = { uid: process.getuid?.() ?? 0, gid: process.getgid?.() ?? 0, mode: 0o600 };
  const putText = (file: string, text: string) => putFile(file, Buffer.from(text), owner);
  const modeOf = async (file: string) => (await stat(file)).mode & 0o777;

  test("leaves each that was there before beside it", async () => {
    const file = path.join(root, "key.pem");
    await writeFile(file, "the operator's");
    for (const text of ["first", "second", "second"]) await putText(file, text);
    expect(await readFile(`${file}.before-setup`, "utf8")).toBe("the operator's");
    expect(await readFile(`${file}.before-setup-2`, "utf8")).toBe("first");
    expect((await readdir(root)).length).toBe(3);
  });

  test("is no more readable than it should be, though the old one was", async () => {
    const file = path.join(root, "key.pem");
    for (const old of ["another", "key"]) {
      await writeFile(file, old);
      await chmod(file, 0o644);
      await putText(file, "key");
      expect(await modeOf(file)).toBe(0o600);
    }
  });

  test("takes the place of a link, and leaves what that leads to alone", async () => {
    const [file, elsewhere] = [path.join(root, "ca.pem"), path.join(root, "company.pem")];
    await writeFile(elsewhere, "company's");
    await chmod(elsewhere, 0o644);
    await symlink(elsewhere, file);
    for (const text of ["company's", "puppet's"]) await putText(file, text);
    expect([await readFile(elsewhere, "utf8"), await modeOf(elsewhere)]).toEqual(["company's", 0o644]);
    expect(await readFile(file, "utf8")).toBe("puppet's");
  });
});
