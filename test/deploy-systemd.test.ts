/** deploy/systemd, judged by systemd's own tools and by a real HAProxy beside which it is installed. */
import { cp, mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { describeVariables } from "../src/config.js";
import { run } from "./support/child.js";
import { haproxyBinaries, pathOf } from "./support/parts.js";

const DEPLOY = fileURLToPath(new URL("../deploy/systemd/", import.meta.url));
const HAPROXY = fileURLToPath(new URL("../haproxy/", import.meta.url));
const analyze = pathOf("systemd-analyze");

/** Debian's haproxy.service as far as our unit needs it: it starts first, with variables from files. */
const HAPROXY_SERVICE = `[Service]
Environment="CONFIG=/etc/haproxy/haproxy.cfg" "EXTRAOPTS=-S /run/haproxy-master.sock"
ExecStart=/usr/sbin/haproxy -Ws -f $CONFIG $EXTRAOPTS
`;

/** A configuration as a host may have it already: sections with the same names, its own socket and proxies. */
const EXISTING_CONFIG = (socket: string) => `global
  stats socket ${socket} mode 660 level admin
  stats timeout 30s
defaults
  mode http
  timeout connect 5000
  timeout client 50000
  timeout server 50000
frontend existing
  bind 127.0.0.1:65001
  http-request return status 200
`;

let root: string;

/** A host as far as systemd-analyze looks at it: Debian's units, ours as docs/debian.md installs them, the programs. */
beforeAll(async () => {
  root = await mkdtemp(path.join(tmpdir(), "sasori-systemd-"));
  const units = path.join(root, "etc/systemd/system");
  await cp(path.join(analyze, "../../lib/systemd/system"), path.join(root, "usr/lib/systemd/system"), {
    recursive: true,
    verbatimSymlinks: true,
  });
  await mkdir(path.join(units, "haproxy.service.d"), { recursive: true });
  await writeFile(path.join(units, "haproxy.service"), HAPROXY_SERVICE);
  await cp(path.join(DEPLOY, "sasori.service"), path.join(units, "sasori.service"));
  await cp(path.join(DEPLOY, "haproxy-sasori.conf"), path.join(units, "haproxy.service.d/sasori.conf"));
  for (const program of ["usr/bin/sasori", "usr/bin/kill", "usr/sbin/haproxy"]) {
    await mkdir(path.dirname(path.join(root, program)), { recursive: true });
    await writeFile(path.join(root, program), "#!/bin/sh\n", { mode: 0o755 });
  }
});

afterAll(() => rm(root, { recursive: true, force: true }));

/** All that it says, on stderr too: it warns of unknown settings without failing. */
const analyzed = (...args: string[]) => run("/bin/sh", ["-c", 'exec "$0" "$@" 2>&1', analyze, ...args]);

const verify = () => analyzed("verify", "--man=no", `--root=${root}`, "sasori.service", "haproxy.service");

/** An environment file as a shell reads it, which is also how docs/debian.md uses it. */
async function environmentOf(name: string): Promise<Record<string, string>> {
  const text = await run("env", ["-i", "/bin/sh", "-c", 'set -a; . "$0"; exec env', path.join(DEPLOY, name)]);
  const pairs = text
    .trim()
    .split("\n")
    .map((line) => [line.slice(0, line.indexOf("=")), line.slice(line.indexOf("=") + 1)] as const);
  return Object.fromEntries(pairs.filter(([key]) => key !== "PWD" && key !== "_"));
}

describe("systemd", () => {
  test("knows every setting of the unit, finds no fault with it, and would say so", async () => {
    expect(await verify()).toBe("");
    const unit = path.join(root, "etc/systemd/system/sasori.service");
    const text = await readFile(unit, "utf8");
    await writeFile(unit, text.replace("ProtectHome=", "ProtectHomes="));
    expect(await verify()).toContain("Unknown key 'ProtectHomes'");
    await writeFile(unit, text);
  });

  test("exposes as little as a network daemon can: below 1.5 of 10", async () => {
    const unit = path.join(DEPLOY, "sasori.service");
    const verdict = await run(analyze, ["security", "--offline=true", "--threshold=15", unit]);
    expect(verdict).toMatch(/Overall exposure level for sasori.service: [01]\.\d OK/);
  });

  test("starts HAProxy whether sasori runs or not, and sasori whether HAProxy runs or not", async () => {
    const files = ["sasori.service", "haproxy-sasori.conf"];
    for (const file of files) {
      const settings = (await readFile(path.join(DEPLOY, file), "utf8")).replace(/^#.*$/gm, "");
      expect(settings).not.toMatch(/^(Requires|Requisite|BindsTo|PartOf|Before|Conflicts|OnFailure)=/m);
    }
    const [first] = (await readFile(path.join(DEPLOY, "tmpfiles.conf"), "utf8")).match(/^f .*/m) ?? [];
    const { NODE_MASTER_MAP } = await environmentOf("gateway.env");
    const { SASORI_MAP_FILE } = await environmentOf("sasori.env");
    expect(first).toBe(`f ${NODE_MASTER_MAP} 0644 sasori sasori -`);
    expect(SASORI_MAP_FILE).toBe(NODE_MASTER_MAP);
  });

  test("makes the folder in HAProxy's chroot in which HAProxy talks to itself, for HAProxy alone", async () => {
    const { HAPROXY_CHROOT, HAPROXY_SOCKET = "" } = await environmentOf("gateway.env");
    const inside = `${HAPROXY_CHROOT}${path.dirname(HAPROXY_SOCKET)}`;
    const lines = (await readFile(path.join(DEPLOY, "tmpfiles.conf"), "utf8")).split("\n");
    expect(lines).toContain(`d ${inside} 2700 haproxy haproxy -`);
    expect(lines).toContain(`d ${path.dirname(inside)} 0755 root root -`);
  });

  test("the settings name variables that there are, in a form that systemd and a shell read alike", async () => {
    const known = describeVariables().map(({ name }) => name);
    const settings = await environmentOf("sasori.env");
    const text = await readFile(path.join(DEPLOY, "sasori.env"), "utf8");
    const offered = Array.from(text.matchAll(/^#(SASORI_\w+)=/gm), ([, name]) => name ?? "");
    expect(offered).toContain("SASORI_API_TOKEN_FILE");
    expect([...Object.keys(settings), ...offered].filter((name) => !known.includes(name))).toEqual([]);
    expect(settings).toMatchObject({ SASORI_HAPROXY: (await environmentOf("gateway.env")).HAPROXY_SOCKET });
    for (const name of ["sasori.env", "gateway.env"]) {
      const lines = (await readFile(path.join(DEPLOY, name), "utf8")).split("\n");
      expect(lines.filter((line) => !/^(#.*|\w+=("[^"$`\\]*"|[^\s"'$`\\]*)|)$/.test(line))).toEqual([]);
    }
  });

  test("the gateway's settings leave the password to the operator, and do not set an empty one", async () => {
    expect(await readFile(path.join(DEPLOY, "gateway.env"), "utf8")).toContain("\n#STATS_PASSWORD=\n");
    const empty = Object.entries(await environmentOf("gateway.env")).filter(([, value]) => value === "");
    expect(empty).toEqual([]);
  });

  test.each(haproxyBinaries())(
    "the gateway is a second file of a HAProxy $version that has one",
    async ({ bin }) => {
      const { EXTRAOPTS = "", ...settings } = await environmentOf("gateway.env");
      const config = path.join(root, "haproxy.cfg");
      await writeFile(config, EXISTING_CONFIG(path.join(root, "admin.sock")));
      await writeFile(path.join(root, "node-master.map"), "");
      const places = {
        NODE_MASTER_MAP: path.join(root, "node-master.map"),
        HAPROXY_SOCKET: path.join(root, "sasori.sock"),
        STATS_PASSWORD: "secret",
      };
      const options = EXTRAOPTS.replace("/etc/haproxy/sasori/", HAPROXY).split(" ");
      expect(options).toHaveLength(4);
      await run(bin, ["-Ws", "-c", "-f", config, ...options], { env: { ...settings, ...places } });
    },
  );
});
