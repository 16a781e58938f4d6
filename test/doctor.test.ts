// The doctor beside real HAProxy instances: everything well, and then one thing after the other broken. The doctor reports
// each with its remedy, and changes nothing.

import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync } from "node:fs";
import { chmod, mkdtemp, readdir, readFile, rm, unlink, writeFile } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { pino } from "pino";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { readConfig } from "../src/config.js";
import { startDaemon } from "../src/daemon.js";
import { type Check, runChecks, verdict } from "../src/doctor/check.js";
import { haproxyChecks, supportProblem } from "../src/doctor/checks-haproxy.js";
import { type Diagnosis, diagnose } from "../src/doctor/doctor.js";
import { MapFile } from "../src/target/map-file.js";
import { VERSION } from "../src/version.js";
import { keyWithPassphrase, makeTlsFiles } from "./support/certificates.js";
import { freePort } from "./support/child.js";
import { type FleetLab, MASTERS, withFleetLab } from "./support/fleet-lab.js";
import { withGateway } from "./support/gateway.js";
import { type HaproxyOptions, runtimeCommand } from "./support/haproxy-server.js";
import { haproxyBinaries, isFrom } from "./support/parts.js";
import { answer, EMPTY, type Script, startScriptedPuppetdb } from "./support/scripted-puppetdb.js";

const anyBin = haproxyBinaries().at(-1)?.bin ?? "";
const NODE = "node1.example.com";

interface Surgery {
  lab: FleetLab;
  env: Record<string, string>;
  /** Its map file is the one that sasori writes. */
  mapFile: string;
  /** `extra` replaces variables. */
  examine(extra?: Record<string, string>): Promise<Diagnosis>;
}

type Options = Omit<HaproxyOptions, "bin" | "servers"> & { bin?: string };

/** HAProxy instances that hold 30 nodes as the first one's map file does, and a PuppetDB that says the same. */
async function withPatient(
  options: readonly Options[],
  use: (surgery: Surgery) => Promise<void>,
): Promise<void> {
  const map = Array.from(
    { length: 30 },
    (_, index) => [`node${index}.example.com`, MASTERS[index % 3] ?? ""] as const,
  );
  await withFleetLab(
    options.map((one) => ({ bin: anyBin, map, ...one })),
    async (lab) => {
      for (const [certname, master] of map) await lab.run(certname, master, -60_000);
      const [first] = lab.haproxys;
      const { config } = lab;
      const env = {
        SASORI_PUPPETDB_URL: config().puppetdb[0]?.[0]?.url ?? "",
        SASORI_HAPROXY: lab.haproxys.map(({ socketPath }) => socketPath).join(",") || "none",
        SASORI_MAP_FILE: first?.mapPath ?? lab.mapFile,
        SASORI_LISTEN: `127.0.0.1:${await freePort()}`,
      };
      const examine = (extra = {}) => diagnose({ ...env, ...extra }, VERSION);
      await use({ lab, env, mapFile: env.SASORI_MAP_FILE, examine });
    },
  );
}

/** The one finding of this check, at `where` if given. */
function finding({ findings }: Diagnosis, check: string, where?: string) {
  const found = findings.filter((one) => one.check === check && (where === undefined || one.where === where));
  expect(found, `${check}: ${JSON.stringify(findings, null, 1)}`).toHaveLength(1);
  return found[0];
}

/** Every thread of it: they stop one after another. `4711 (haproxy) T ...` */
const isStopped = (pid: number) =>
  readdirSync(`/proc/${pid}/task`).every((task) =>
    readFileSync(`/proc/${pid}/task/${task}/stat`, "utf8").includes(") T "),
  );

const isRoot = process.getuid?.() === 0;
/** Tests may run as root, which the doctor warns of. */
const AS_ROOT = "the doctor runs as root, so it does not check permissions";

/** Tests may run on an HAProxy that gets no more fixes. */
const TOO_OLD = "has had no fixes";

/** The findings that are neither ok nor skipped. */
const broken = ({ findings }: Diagnosis) =>
  findings
    .filter(({ detail }) => !detail.includes(TOO_OLD))
    .filter(({ outcome }) => outcome === "failed" || outcome === "warning")
    .filter(({ detail }) => !isRoot || !detail.includes(AS_ROOT))
    .map(({ check }) => check);

/** As an ordinary user. If the tests do not run as root, that is the user who runs them. */
async function asNobody<T>(use: () => Promise<T>): Promise<T> {
  if (!isRoot) return use();
  process.setegid?.(65534);
  process.seteuid?.(65534);
  try {
    return await use();
  } finally {
    process.seteuid?.(0);
    process.setegid?.(0);
  }
}

describe.each(haproxyBinaries())("the doctor beside HAProxy $version", ({ bin, version }) => {
  test("finds everything well, misses only the daemon, and has changed nothing", () =>
    withPatient([{ bin }], async ({ lab, mapFile, examine }) => {
      const listings = () => runtimeCommand(lab.haproxys[0]?.socketPath ?? "", "show map");
      const seen = async () => [
        await listings(),
        await readdir(path.dirname(mapFile)),
        await readFile(mapFile, "utf8"),
      ];
      const before = await seen();
      const diagnosis = await examine();
      expect(broken(diagnosis)).toEqual(["daemon"]);
      expect(diagnosis.outcome).toBe("warning");
      expect(finding(diagnosis, "HAProxy", lab.haproxys[0]?.socketPath)?.detail).toContain(version);
      expect(finding(diagnosis, "nodes")?.detail).toContain("30 active nodes of 3 producers");
      expect(finding(diagnosis, "daemon")).toMatchObject({
        outcome: "warning",
        remedy: "start it: sasori serve",
      });
      expect(await seen()).toEqual(before);
    }));

  test("tells the level of the socket, and when it is too low", async () => {
    const folder = await mkdtemp(path.join(tmpdir(), "sasori-levels-"));
    const sockets = ["user", "operator"].map((level) => [level, path.join(folder, level)] as const);
    const globalLines = sockets.map(([level, socket]) => `stats socket ${socket} level ${level}`);
    await withPatient([{ bin, globalLines }], async ({ examine }) => {
      for (const [level, socket] of sockets) {
        const low = await examine({ SASORI_HAPROXY: socket });
        const isTooLow = isFrom(version, 3, 4);
        expect(broken(low)).toEqual(isTooLow ? ["level", "map", "daemon"] : ["level", "daemon"]);
        expect(finding(low, "level")).toMatchObject({
          outcome: isTooLow ? "failed" : "warning",
          detail: expect.stringContaining(`level ${level}`),
          remedy: expect.stringContaining("`level admin`"),
        });
        const needed = await examine({ SASORI_HAPROXY: socket, SASORI_NEW_MASTERS: "puppet.*" });
        expect(finding(needed, "level")).toMatchObject({ outcome: "failed" });
      }
    });
    await rm(folder, { recursive: true });
  });

  test("knows the socket of the master process, which has no maps", () =>
    withPatient([{ bin, masterWorker: true }], async ({ lab, examine }) => {
      const diagnosis = await examine({ SASORI_HAPROXY: lab.haproxys[0]?.masterSocketPath ?? "" });
      expect(finding(diagnosis, "stats socket")).toMatchObject({
        outcome: "failed",
        detail: expect.stringContaining("master process"),
        remedy: expect.stringContaining("`stats socket`"),
      });
      expect(finding(diagnosis, "map")).toMatchObject({ outcome: "skipped" });
      expect(diagnosis.outcome).toBe("failed");
    }));

  test("finds duplicates, keys that are no certnames, and nodes that differ from the file", () =>
    withPatient([{ bin }], async ({ lab, mapFile, examine }) => {
      const socket = lab.haproxys[0]?.socketPath ?? "";
      await runtimeCommand(socket, `add map ${mapFile} ${NODE} master3`);
      await runtimeCommand(socket, `add map ${mapFile} Node1 master3`);
      await runtimeCommand(socket, `set map ${mapFile} node2.example.com master1`);
      await runtimeCommand(socket, `del map ${mapFile} node3.example.com`);
      const diagnosis = await examine();
      expect(finding(diagnosis, "live map")).toMatchObject({
        outcome: "warning",
        detail: expect.stringMatching(
          /nodes with more than one entry: node1\.example\.com; keys that are not certnames: "Node1"/,
        ),
        remedy: expect.stringContaining("sasori diff"),
      });
      const differs = finding(diagnosis, "file and live map");
      expect(differs?.detail).toContain("differ for 3 nodes"); // Node1 is node1.
      expect(differs?.detail).toContain("node2.example.com master3 → master1");
      expect(differs?.detail).toContain("node3.example.com master1 → (missing)");
    }));

  test("does not warn of a node that moved while the doctor looked", () =>
    withPatient([{ bin }], async ({ lab, env, mapFile }) => {
      const config = readConfig(env);
      const [endpoint] = config.haproxy;
      if (endpoint === undefined) throw new Error("no HAProxy is configured");
      const { routes } = await new MapFile(mapFile).read();
      const early = { name: "map file", look: () => verdict("read early", [], routes) };
      const socket = lab.haproxys[0]?.socketPath ?? "";
      await runtimeCommand(socket, `set map ${mapFile} ${NODE} master1`);
      await runtimeCommand(socket, `set map ${mapFile} node2.example.com master1`);
      await writeFile(
        mapFile,
        (await readFile(mapFile, "utf8")).replace(/^(node1\.example\.com) .*$/m, "$1 master1"),
      );
      const findings = await runChecks(
        [early, ...haproxyChecks(endpoint, config, early).all],
        () => undefined,
      );
      const differs = findings.find(({ check }) => check === "file and live map");
      expect(differs?.detail).toContain("differ for 1 node: node2.example.com master3 → master1");
    }));

  test("names a map and a backend that HAProxy does not have", () =>
    withPatient([{ bin }], async ({ mapFile, examine }) => {
      const diagnosis = await examine({ SASORI_MAP_NAME: "/nowhere/else.map", SASORI_BACKEND: "masters" });
      expect(finding(diagnosis, "map")).toMatchObject({
        outcome: "failed",
        detail: expect.stringContaining(mapFile),
        remedy: `set SASORI_MAP_NAME=${mapFile}, if that is the map of nodes`,
      });
      expect(finding(diagnosis, "servers")).toMatchObject({
        outcome: "failed",
        detail: 'HAProxy has no backend "masters"',
        remedy: expect.stringContaining("SASORI_BACKEND"),
      });
      expect(finding(diagnosis, "live map")?.outcome).toBe("skipped");
      expect(finding(diagnosis, "level")?.outcome).toBe("ok");
    }));

  test("examines the others while one HAProxy is down and another takes connections and says nothing", () =>
    withPatient([{ bin }, { bin }, { bin }], async ({ lab, examine }) => {
      const [well, dead, stalled] = lab.haproxys;
      await dead?.kill();
      process.kill(stalled?.pid ?? 0, "SIGSTOP");
      await expect.poll(() => isStopped(stalled?.pid ?? 0)).toBe(true);
      const diagnosis = await examine().finally(() => process.kill(stalled?.pid ?? 0, "SIGCONT"));
      expect(finding(diagnosis, "stats socket", well?.socketPath)?.outcome).toBe("ok");
      expect(finding(diagnosis, "file and live map", well?.socketPath)?.outcome).toBe("ok");
      expect(finding(diagnosis, "stats socket", dead?.socketPath)).toMatchObject({
        outcome: "failed",
        detail: "nothing listens there",
        remedy: "start HAProxy",
      });
      expect(finding(diagnosis, "stats socket", stalled?.socketPath)).toMatchObject({
        outcome: "failed",
        detail: "no answer within 5 s",
        remedy: expect.stringContaining("Restart"),
      });
      expect(finding(diagnosis, "live map", stalled?.socketPath)?.outcome).toBe("skipped");
      expect(finding(diagnosis, "masters")?.outcome).toBe("ok");
    }));

  test("says that two sockets lead to one HAProxy, and not that two HAProxy instances are one", () =>
    withPatient([{ bin, tcpStats: true }, { bin }], async ({ lab, examine }) => {
      const [first = "", second = ""] = lab.haproxys.map(({ socketPath }) => socketPath);
      const tcp = `tcp://127.0.0.1:${lab.haproxys[0]?.ports.stats}`;
      const diagnosis = await examine({ SASORI_HAPROXY: [first, second, tcp].join(",") });
      const isTwin = expect.stringContaining("this is the same HAProxy as at");
      for (const one of [first, second])
        expect(finding(diagnosis, "HAProxy", one)).not.toMatchObject({ detail: isTwin });
      expect(finding(diagnosis, "HAProxy", tcp)).toMatchObject({
        outcome: "warning",
        detail: expect.stringContaining(`this is the same HAProxy as at ${first}`),
        remedy: expect.stringContaining("name each HAProxy once in SASORI_HAPROXY"),
      });
    }));

  test("holds servers against producers: down, missing, misspelt, unequal", () =>
    withPatient([{ bin }, { bin, tcpStats: true }], async ({ lab, examine }) => {
      const [first, second] = lab.haproxys;
      await runtimeCommand(first?.socketPath ?? "", "set server puppet/master1 state maint");
      await runtimeCommand(second?.socketPath ?? "", "add server puppet/extra 127.0.0.1:18150");
      await lab.run("lost.example.com", "ghost.example.com");
      const tcp = `tcp://127.0.0.1:${second?.ports.stats}`;
      const diagnosis = await examine({
        SASORI_HAPROXY: `${first?.socketPath},${tcp}`,
        SASORI_MASTER_ALIASES: "old.example.com=master9",
      });
      expect(finding(diagnosis, "servers", first?.socketPath)).toMatchObject({
        outcome: "warning",
        detail: expect.stringContaining("down: master1"),
        remedy: expect.stringContaining("start these masters"),
      });
      const masters = finding(diagnosis, "masters");
      expect(masters?.outcome).toBe("failed");
      expect(masters?.detail).toContain("old.example.com=master9");
      expect(masters?.detail).toContain('"ghost.example.com" (1 node)');
      expect(masters?.detail).toContain(`${first?.socketPath} lacks extra`);
      expect(masters?.remedy).toContain(
        "SASORI_MASTER_ALIASES (puppet has: master1, master2, master3, extra)",
      );
      expect(finding(diagnosis, "clock", tcp)?.outcome).toBe("ok");
    }));

  test("is red when HAProxy has no server for any node's puppetserver, and says how many nodes that are", () =>
    withPatient([{ bin }], async ({ lab, examine }) => {
      for (const name of ["master1", "master2", "master3"])
        await runtimeCommand(lab.haproxys[0]?.socketPath ?? "", `set server puppet/${name} state maint`);
      for (const name of ["master1", "master2", "master3"])
        await runtimeCommand(lab.haproxys[0]?.socketPath ?? "", `del server puppet/${name}`);
      await runtimeCommand(lab.haproxys[0]?.socketPath ?? "", "add server puppet/other 127.0.0.1:18150");
      expect(finding(await examine(), "masters")).toMatchObject({
        outcome: "failed",
        detail: expect.stringContaining("30 of 30 nodes have no route"),
        remedy: expect.stringContaining("SASORI_MASTER_ALIASES"),
      });
    }));

  test("tells whether HAProxy reaches sasori for healing", async () => {
    const sasoriPort = await freePort();
    await withGateway({ bin, sasoriPort }, async ({ haproxy }) => {
      const env = {
        SASORI_PUPPETDB_URL: `http://127.0.0.1:${await freePort()}`,
        SASORI_HAPROXY: haproxy.socketPath,
        SASORI_MAP_FILE: haproxy.mapPath,
      };
      const checked = () => runtimeCommand(haproxy.socketPath, "show servers state sasori");
      await expect.poll(checked).toMatch(/ sasori 127\.0\.0\.1 0 /); // 0: it is down.
      const listen = `127.0.0.1:${sasoriPort}`;
      expect(finding(await diagnose({ ...env, SASORI_LISTEN: listen }, VERSION), "healing")).toMatchObject({
        outcome: "warning",
        detail: expect.stringContaining("cannot reach sasori"),
        remedy: expect.stringContaining("sasori serve"),
      });
      const daemon = await startDaemon(
        readConfig({ ...env, SASORI_LISTEN: listen }),
        pino({ level: "silent" }),
      );
      try {
        await expect.poll(checked).toMatch(/ sasori 127\.0\.0\.1 2 /);
        const diagnosis = await diagnose({ ...env, SASORI_LISTEN: listen }, VERSION);
        expect(finding(diagnosis, "healing")).toMatchObject({
          outcome: "ok",
          detail: "HAProxy reaches sasori",
        });
        const elsewhere = await diagnose({ ...env, SASORI_LISTEN: `127.0.0.1:${await freePort()}` }, VERSION);
        expect(finding(elsewhere, "healing")).toMatchObject({
          outcome: "warning",
          detail: expect.stringContaining(`HAProxy asks sasori on ${listen}`),
          remedy: expect.stringContaining("RESOLVER_ADDRESS"),
        });
      } finally {
        await daemon.stop();
      }
    });
  });

  test("tells a drained master from one that is down, and what a changed weight does", () =>
    withGateway({ bin }, async ({ haproxy }) => {
      const env = {
        SASORI_PUPPETDB_URL: `http://127.0.0.1:${await freePort()}`,
        SASORI_HAPROXY: haproxy.socketPath,
        SASORI_MAP_FILE: haproxy.mapPath,
      };
      const servers = async () => finding(await diagnose(env, VERSION), "servers");
      const states = () => runtimeCommand(haproxy.socketPath, "show servers state puppet");
      await expect.poll(states).toMatch(/ master1 127\.0\.0\.1 2 /);
      for (const command of ["state drain", "weight 1"])
        await runtimeCommand(haproxy.socketPath, `set server puppet/master1 ${command}`);
      const { outcome, detail, remedy } = (await servers()) ?? {};
      expect(outcome).toBe("warning");
      expect(detail).toMatch(/drained, still serving their nodes: master1; master1 has weight 1, so /);
      expect(detail).not.toContain("down: ");
      expect(remedy).toMatch(/sasori drain.*weight 0 again/);
      const healing = async () => finding(await diagnose(env, VERSION), "healing");
      expect((await healing())?.detail).not.toContain("heal1");
      await runtimeCommand(haproxy.socketPath, "set server puppet/heal1 weight 0");
      await runtimeCommand(haproxy.socketPath, "set server puppet/heal2 state drain");
      expect(await healing()).toMatchObject({
        outcome: "warning",
        detail: expect.stringMatching(/out of service: heal1 \(.*weight 0\), heal2 \(DRAIN/),
        remedy: expect.stringContaining("weight to 1"),
      });
    }));
});

describe("the doctor and masters that are asked for nodes", () => {
  test("says which of them does not answer, is not believed, or does not let sasori ask", async () => {
    const folder = await mkdtemp(path.join(tmpdir(), "sasori-asked-"));
    await makeTlsFiles(folder);
    await withGateway({ bin: anyBin }, async ({ haproxy, masters }) => {
      const env = {
        SASORI_PUPPETDB_URL: `http://127.0.0.1:${await freePort()}`,
        SASORI_HAPROXY: haproxy.socketPath,
        SASORI_MAP_FILE: haproxy.mapPath,
        SASORI_PROBE_PATH: "/probe/{certname}",
      };
      const probes = async (extra = {}) => finding(await diagnose({ ...env, ...extra }, VERSION), "probes");
      const states = () => runtimeCommand(haproxy.socketPath, "show servers state puppet");
      await expect.poll(states).toMatch(/ master3 127\.0\.0\.1 2 /);
      for (const master of masters) master.nodes = new Set();
      expect(await probes()).toMatchObject({ outcome: "ok", detail: "3 masters asked by plain HTTP" });
      const [first] = masters;
      if (first) first.notMine = 403;
      expect(await probes()).toMatchObject({
        outcome: "warning",
        detail: expect.stringMatching(/^master1 \(127\.0\.0\.1:\d+\) answers 403 \(3 masters/),
        remedy: expect.stringContaining("auth.conf"),
      });
      expect(await probes({ SASORI_PROBE_CA: path.join(folder, "ca.pem") })).toMatchObject({
        outcome: "warning",
        detail: expect.stringMatching(/master1 .*; master2 .*; master3 .*by TLS/s),
        remedy: expect.stringContaining("check SASORI_PROBE_CA"),
      });
    });
    await rm(folder, { recursive: true });
  });
});

describe("the doctor and releases of HAProxy", () => {
  const at = (day: string) => Date.parse(`${day}T12:00:00Z`);

  test.each([
    { version: "2.4.22", last: "2026-06-30", next: "2026-07-01" },
    { version: "2.6.12-1+deb12u3", last: "2027-06-30", next: "2027-07-01" },
    { version: "3.1.5", last: "2026-03-31", next: "2026-04-01" },
    { version: "3.4.7-1", last: "2031-06-30", next: "2031-07-01" },
  ])("warns when the makers no longer mend it ($version)", ({ version, last, next }) => {
    expect(supportProblem(version, at(last))).toBeUndefined();
    expect(supportProblem(version, at(next))).toMatchObject({
      outcome: "warning",
      what: expect.stringMatching(new RegExp(`^HAProxy \\d\\.\\d ${TOO_OLD} .*${last}$`)),
      remedy: expect.stringContaining("distribution"),
    });
  });

  test("says nothing of a release that is newer than itself", () => {
    for (const version of ["3.5.1", "3.5-dev5", "4.0.0", "master"])
      expect(supportProblem(version, at("2040-01-01"))).toBeUndefined();
  });

  test("knows from `haproxy -v` that its dates are right", () => {
    for (const { bin, version } of haproxyBinaries()) {
      // Status: long-term supported branch - will stop receiving fixes around Q2 2030.
      const said = execFileSync(bin, ["-v"], { encoding: "utf8" });
      const [, quarter, year] = /around Q([1-4]) (\d{4})\./.exec(said) ?? [];
      const end = Date.UTC(Number(year), Number(quarter) * 3);
      expect(supportProblem(version, end - 1), version).toBeUndefined();
      expect(supportProblem(version, end), version).toMatchObject({ outcome: "warning" });
    }
  });
});

describe("the doctor and this machine", () => {
  test("says that root is not the daemon's user, which fails nothing", async () => {
    const finds = async () => (await diagnose({}, VERSION)).findings.find(({ check }) => check === "Node.js");
    if (isRoot)
      expect(await finds()).toMatchObject({ outcome: "warning", detail: expect.stringContaining(AS_ROOT) });
    expect(await asNobody(finds)).toMatchObject({ outcome: "ok" });
  });

  test("names every problem of the configuration at once, and checks nothing else", async () => {
    const diagnosis = await diagnose({ SASORI_PUPPETDB_URL: "nonsense", SASORI_MAP: "x" }, VERSION);
    expect(diagnosis.outcome).toBe("misconfigured");
    const { detail } = finding(diagnosis, "configuration") ?? {};
    for (const name of ["SASORI_PUPPETDB_URL", "SASORI_HAPROXY", "SASORI_MAP_FILE", "SASORI_MAP is not"])
      expect(detail).toContain(name);
  });

  test("says who owns a socket that sasori may not use, or what else is in the way", () =>
    withPatient([{}], async ({ lab, mapFile, examine }) => {
      const { socketPath = "", dir = "" } = lab.haproxys[0] ?? {};
      await chmod(dir, 0o755);
      if (!isRoot) await chmod(socketPath, 0);
      const refused = await asNobody(() => examine());
      expect(finding(refused, "stats socket")).toMatchObject({
        outcome: "failed",
        detail: expect.stringMatching(/^permission denied: the socket belongs to \S+:\S+, mode (600|0)$/),
        remedy: expect.stringMatching(/^let (user|uid) \S+ use it: .*`stats socket`/),
      });
      const none = await examine({ SASORI_HAPROXY: `${socketPath}.other` });
      expect(finding(none, "stats socket")).toMatchObject({ detail: "the socket does not exist" });
      const file = await examine({ SASORI_HAPROXY: mapFile });
      expect(finding(file, "stats socket")).toMatchObject({ detail: "this is not a socket" });
    }));

  test("finds a folder that sasori cannot write, and one that is not there", () =>
    withPatient([{}], async ({ lab, mapFile, examine }) => {
      const folder = path.dirname(mapFile);
      await chmod(folder, 0o555);
      const diagnosis = await asNobody(() => examine());
      await chmod(folder, 0o755);
      expect(finding(diagnosis, "folder")).toMatchObject({
        outcome: "failed",
        detail: "sasori cannot write there",
        remedy: expect.stringMatching(/^let (user|uid) \S+ write the folder/),
      });
      const missing = path.join(folder, "missing");
      const none = await examine({ SASORI_STATE_FILE: path.join(missing, "state.json") });
      expect(finding(none, "folder", missing)).toMatchObject({
        detail: "it does not exist",
        remedy: `create it: mkdir -p ${missing}`,
      });
      expect(finding(none, "folder", folder)?.outcome).toBe("ok");
      expect(lab.haproxys).toHaveLength(1);
    }));

  test("finds a map file that is gone, one that HAProxy does not load, and one with stray lines", () =>
    withPatient([{}], async ({ lab, mapFile, examine }) => {
      await writeFile(lab.mapFile, `${NODE} master1\n${NODE} master2\nUPPER master1\n`);
      const other = await examine({ SASORI_MAP_FILE: lab.mapFile });
      expect(finding(other, "map")).toMatchObject({
        outcome: "warning",
        detail: expect.stringContaining(
          `HAProxy loads ${mapFile} when it starts, but sasori writes ${lab.mapFile}`,
        ),
      });
      expect(finding(other, "map file")).toMatchObject({
        outcome: "warning",
        remedy: expect.stringContaining("sasori diff"),
      });
      await unlink(mapFile);
      expect(finding(await examine(), "map file")).toMatchObject({
        outcome: "failed",
        detail: expect.stringContaining("HAProxy does not start without it"),
        remedy: expect.stringContaining(`touch ${mapFile}`),
      });
    }));

  test("finds secrets that every user may read, an empty token, and leaves a broken state file alone", () =>
    withPatient([], async ({ mapFile, examine }) => {
      const folder = path.dirname(mapFile);
      const [token, state] = [path.join(folder, "token"), path.join(folder, "state.json")];
      await writeFile(mapFile, "");
      await writeFile(token, "secret\n");
      await chmod(token, 0o644);
      await writeFile(state, '{"version": 2}');
      const diagnosis = await examine({ SASORI_API_TOKEN_FILE: token, SASORI_STATE_FILE: state });
      expect(finding(diagnosis, "API token")).toMatchObject({
        outcome: "failed",
        detail: expect.stringContaining("every user of this machine may read it"),
        remedy: `chmod o= ${token}`,
      });
      expect(finding(diagnosis, "state file")).toMatchObject({
        outcome: "failed",
        detail: expect.stringMatching(/cannot be used: .*version/),
        remedy: expect.stringContaining("set it aside"),
      });
      expect(await readFile(state, "utf8")).toBe('{"version": 2}');
      expect(JSON.stringify(diagnosis)).not.toContain("secret");

      await chmod(token, 0o640);
      expect(broken(await examine({ SASORI_API_TOKEN_FILE: token }))).toEqual(["daemon"]);
      await writeFile(token, "\n");
      expect(finding(await examine({ SASORI_API_TOKEN_FILE: token }), "configuration")).toMatchObject({
        outcome: "failed",
        detail: expect.stringContaining("one word of ASCII"),
      });
    }));

  test("looks at the priority map, in the file and in HAProxy", () =>
    withPatient([{}], async ({ mapFile, examine }) => {
      const file = path.join(path.dirname(mapFile), "priority.map");
      const missing = await examine({ SASORI_PRIORITY_FILE: file });
      expect(finding(missing, "priority file")).toMatchObject({
        outcome: "warning",
        remedy: `touch ${file}`,
      });
      expect(finding(missing, "priority map")).toMatchObject({
        outcome: "failed",
        remedy: expect.stringContaining("PRIORITY_MAP"),
      });
      await writeFile(file, `# comment\n${NODE} high\ndb1 -5\n`);
      expect(finding(await examine({ SASORI_PRIORITY_FILE: file }), "priority file")).toMatchObject({
        outcome: "failed",
        detail: expect.stringContaining(`line 2 of ${file} is "${NODE} high"`),
        remedy: expect.stringContaining("correct the file"),
      });
      await writeFile(file, `# comment\n${NODE} 5000\ndb1 -5\n`);
      expect(finding(await examine({ SASORI_PRIORITY_FILE: file }), "priority file")).toMatchObject({
        outcome: "warning",
        detail: expect.stringContaining(`classes outside -2047 to 2047: "${NODE}"`),
      });
    }));

  test("names the masters that send no hints, where sasori listens for hints", () =>
    withPatient([], async ({ env, mapFile, examine }) => {
      await writeFile(mapFile, "");
      const port = await freePort();
      const listening = { ...env, SASORI_SYSLOG_LISTEN: `127.0.0.1:${port}` };
      const daemon = await startDaemon(readConfig(listening), pino({ level: "silent" }));
      const tell = (master: string) => {
        const line = `<174>Nov 30 04:13:02 ${master} Puppet 'replace_facts' command for ${NODE} submitted to PuppetDB\n`;
        connect(port, "127.0.0.1").end(line);
      };
      try {
        await expect.poll(async () => (await fetch(`${daemon.url}/readyz`)).status).toBe(200);
        tell("master2");
        await expect
          .poll(async () => finding(await examine(), "daemon")?.detail)
          .toContain("1 of 3 masters send hints: none from master1, master3");
        for (const master of MASTERS) tell(master);
        await expect.poll(async () => finding(await examine(), "daemon")?.outcome).toBe("ok");
      } finally {
        await daemon.stop();
      }
    }));

  test("knows the daemon, an address that is taken, and one that this machine does not have", () =>
    withPatient([], async ({ env, mapFile, examine }) => {
      await writeFile(mapFile, "");
      const daemon = await startDaemon(readConfig(env), pino({ level: "silent" }));
      try {
        await expect.poll(async () => (await fetch(`${daemon.url}/readyz`)).status).toBe(200);
        expect(finding(await examine(), "daemon")).toMatchObject({
          outcome: "ok",
          detail: expect.stringContaining(`sasori ${VERSION} runs, in sync: 30 nodes, in the map file`),
        });
        const other = await diagnose(env, "9.9.9");
        expect(finding(other, "daemon")).toMatchObject({ outcome: "warning", remedy: "restart the daemon" });
      } finally {
        await daemon.stop();
      }
      const stranger = createServer((socket) => {
        socket.resume().end("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi");
      });
      const port = Number(env.SASORI_LISTEN?.split(":")[1]);
      await new Promise<void>((resolve) => stranger.listen(port, "127.0.0.1", resolve));
      expect(finding(await examine(), "daemon")).toMatchObject({
        outcome: "failed",
        detail: expect.stringContaining("not sasori"),
        remedy: expect.stringContaining("SASORI_LISTEN"),
      });
      await new Promise((resolve) => stranger.close(resolve));

      const busy = createServer((socket) => {
        const body = '{"type":"about:blank","status":503,"title":"BUSY","detail":"busy"}';
        const head = `HTTP/1.1 503 Busy\r\ncontent-type: application/problem+json\r\ncontent-length: ${body.length}`;
        socket.resume().end(`${head}\r\n\r\n${body}`);
      });
      await new Promise<void>((resolve) => busy.listen(port, "127.0.0.1", resolve));
      expect(finding(await examine(), "daemon")).toMatchObject({
        outcome: "failed",
        detail: expect.stringMatching(/^something listens there, but gives no usable answer: .*503: busy/),
        remedy: "check the daemon's log; restart it if it hangs",
      });
      await new Promise((resolve) => busy.close(resolve));

      const token = path.join(path.dirname(mapFile), "token");
      await writeFile(token, "secret", { mode: 0o600 });
      const nowhere = await examine({ SASORI_LISTEN: "192.0.2.1:9180", SASORI_API_TOKEN_FILE: token });
      expect(finding(nowhere, "daemon")).toMatchObject({
        outcome: "failed",
        detail: expect.stringContaining("EADDRNOTAVAIL"),
        remedy: expect.stringContaining("this machine has no such address"),
      });
    }));
});

describe("the doctor and PuppetDB", () => {
  let dir: string;
  const at = (name: string) => path.join(dir, name);
  beforeAll(async () => {
    dir = await mkdtemp(path.join(tmpdir(), "sasori-doctor-"));
    await makeTlsFiles(dir);
    for (const name of ["client.key", "renewed.key", "stranger.key"]) await chmod(at(name), 0o600);
    await writeFile(at("nodes.map"), "");
  });
  afterAll(() => rm(dir, { recursive: true }));

  const VERSION_ANSWER = answer('{"version":"8.4.1"}');

  /** Without HAProxy: the map file only. */
  const examine = async (url: string, extra: Record<string, string> = {}) =>
    diagnose(
      {
        SASORI_PUPPETDB_URL: url,
        SASORI_HAPROXY: "none",
        SASORI_MAP_FILE: at("nodes.map"),
        SASORI_LISTEN: `127.0.0.1:${await freePort()}`,
        ...extra,
      },
      VERSION,
    );

  const files = (client = "client", ca = "ca") => ({
    SASORI_PUPPETDB_CERT: at(`${client}.pem`),
    SASORI_PUPPETDB_KEY: at(`${client}.key`),
    SASORI_PUPPETDB_CA: at(`${ca}.pem`),
  });

  async function examineTls(server: string, extra: Record<string, string>): Promise<Diagnosis> {
    const [key, cert, ca] = await Promise.all(
      [`${server}.key`, `${server}.pem`, "ca.pem"].map((name) => readFile(at(name))),
    );
    const tls = { key, cert, ca, requestCert: true, rejectUnauthorized: true };
    const scripted = await startScriptedPuppetdb(
      { version: VERSION_ANSWER, nodes: countNodes(0), other: EMPTY },
      tls,
    );
    try {
      return await examine(scripted.url, extra);
    } finally {
      await scripted.close();
    }
  }
  /** `nodes` answers with the number of nodes, and with nodes that the other answers do not have. */
  const countNodes =
    (count: number): Script =>
    (response) => {
      const query = new URL(response.req.url ?? "", "http://localhost").searchParams.get("query") ?? "";
      (query.includes("count") ? answer(JSON.stringify([{ count }])) : EMPTY)(response);
    };

  test("takes certificates that are right, and says until when", async () => {
    const diagnosis = await examineTls("server", files());
    expect(broken(diagnosis)).toEqual(["nodes", "daemon"]); // It is empty, and that is said.
    expect(finding(diagnosis, "client certificate")?.detail).toMatch(/^sasori, valid to \d{4}-\d\d-\d\d$/);
    expect(finding(diagnosis, "PuppetDB")?.detail).toMatch(/^TLSv1\.3, certificate of puppetdb, valid to /);
    expect(finding(diagnosis, "PuppetDB's answers")?.detail).toContain("PuppetDB 8.4.1");
    expect(finding(diagnosis, "nodes")?.detail).toContain("no active node");
  });

  test.each([
    [
      "a server of another CA",
      "server",
      () => files("client", "other-ca"),
      /not trusted: /,
      /SASORI_PUPPETDB_CA/,
    ],
    [
      "an expired server",
      "expired",
      () => files(),
      /\(puppetdb\) expired on 2024-02-01/,
      /renew it on PuppetDB's host/,
    ],
    [
      "a server of another name",
      "elsewhere",
      () => files(),
      /not for "127\.0\.0\.1" but for DNS:puppetdb\.example\.com/,
      /SASORI_PUPPETDB_URL/,
    ],
    ["no CA", "server", () => ({}), /not trusted: /, /set SASORI_PUPPETDB_CA/],
  ])("%s is told before anything is asked", async (_, server, variables, detail, remedy) => {
    const found = finding(await examineTls(server, variables()), "PuppetDB");
    expect(found).toMatchObject({ outcome: "failed", detail: expect.stringMatching(detail) });
    expect(found?.remedy).toMatch(remedy);
  });

  test("a certificate that PuppetDB does not take fails the answers, not the connection", async () => {
    const diagnosis = await examineTls("server", files("stranger"));
    expect(finding(diagnosis, "PuppetDB")?.outcome).toBe("ok");
    const refused = finding(diagnosis, "PuppetDB's answers");
    expect(refused?.outcome).toBe("failed");
    expect(refused?.remedy).toContain("SASORI_PUPPETDB_CERT");
    expect(finding(diagnosis, "nodes")?.outcome).toBe("skipped");
  });

  test("warns of certificates that are about to expire, theirs and ours", async () => {
    const soon = /expires in 9 days, on \d{4}-\d\d-\d\d/;
    expect(finding(await examineTls("soon", files()), "PuppetDB")).toMatchObject({
      outcome: "warning",
      detail: expect.stringMatching(soon),
    });
    await chmod(at("soon.key"), 0o600);
    const ours = await examineTls("server", files("soon"));
    expect(finding(ours, "client certificate")).toMatchObject({
      outcome: "warning",
      detail: expect.stringMatching(soon),
    });
    await chmod(at("expired.key"), 0o600);
    expect(finding(await examineTls("server", files("expired")), "client certificate")).toMatchObject({
      outcome: "failed",
      detail: expect.stringContaining("it expired on 2024-02-01"),
      remedy: expect.stringContaining("renew it"),
    });
  });

  test("takes an old CA beside a good one for no more than a warning", async () => {
    const authorities = await Promise.all(
      ["ca", "expired"].map((name) => readFile(at(`${name}.pem`), "utf8")),
    );
    await writeFile(at("two-ca.pem"), authorities.join(""));
    const both = await examineTls("server", { ...files(), SASORI_PUPPETDB_CA: at("two-ca.pem") });
    expect(finding(both, "CA certificate")).toMatchObject({
      outcome: "warning",
      detail: expect.stringContaining("expired on 2024-02-01"),
    });
    expect(finding(both, "PuppetDB")?.outcome).toBe("ok");
    const none = await examineTls("server", { ...files(), SASORI_PUPPETDB_CA: at("expired.pem") });
    expect(finding(none, "CA certificate")?.outcome).toBe("failed");
  });

  test("finds a key of another certificate, one that every user may read, and files that hold none", async () => {
    const other = await examineTls("server", { ...files(), SASORI_PUPPETDB_KEY: at("renewed.key") });
    expect(finding(other, "client certificate")).toMatchObject({
      outcome: "failed",
      detail: expect.stringContaining("is not the key of this certificate"),
    });
    expect(finding(other, "PuppetDB")?.outcome).toBe("skipped");
    const none = await examineTls("server", {
      ...files(),
      SASORI_PUPPETDB_KEY: at("serial"),
      SASORI_PUPPETDB_CA: at("index"),
    });
    expect(finding(none, "client certificate")?.detail).toContain("holds no private key in PEM form");
    await writeFile(at("locked.key"), keyWithPassphrase());
    const locked = await examineTls("server", { ...files(), SASORI_PUPPETDB_KEY: at("locked.key") });
    expect(finding(locked, "client certificate")?.detail).toContain(
      "locked.key holds a key with a passphrase, which nobody can type here (`openssl pkey` removes it)",
    );
    expect(finding(none, "CA certificate")?.detail).toContain("holds no certificate");
    await chmod(at("renewed.key"), 0o644);
    expect(finding(await examineTls("server", files("renewed")), "private key")).toMatchObject({
      outcome: "failed",
      remedy: `chmod o= ${at("renewed.key")}`,
    });
  });

  test("names the other port when there is no TLS on this one, and says when nothing listens", async () => {
    const plain = await startScriptedPuppetdb({
      version: VERSION_ANSWER,
      nodes: countNodes(0),
      other: EMPTY,
    });
    const tls = await examine(plain.url.replace("http:", "https:"), files());
    expect(finding(tls, "PuppetDB")).toMatchObject({
      outcome: "failed",
      remedy: expect.stringContaining("8081"),
    });
    expect(broken(await examine(plain.url))).toEqual(["nodes", "daemon"]);
    await plain.close();
    const off = await examine(plain.url);
    expect(finding(off, "PuppetDB")).toMatchObject({
      outcome: "failed",
      detail: expect.stringContaining("ECONNREFUSED"),
      remedy: expect.stringContaining("start PuppetDB"),
    });
    expect(finding(off, "map file")?.outcome).toBe("ok");
  });

  test.each<[string, Script, RegExp, RegExp]>([
    ["a page of a proxy", answer("<html>", 200, "text/html"), /not application\/json/, /SASORI_PUPPETDB_URL/],
    ["maintenance", answer("no", 503, "text/plain"), /answered 503/, /starting or in maintenance/],
    ["a wrong token", answer("no", 401, "text/plain"), /answered 401/, /SASORI_PUPPETDB_TOKEN_FILE/],
    ["rows of another shape", answer('[{"name":1}]'), /no usable certname/, /SASORI_PUPPETDB_URL/],
  ])("%s instead of an answer is told with its remedy", async (_, script, detail, remedy) => {
    const scripted = await startScriptedPuppetdb({
      version: VERSION_ANSWER,
      nodes: countNodes(0),
      other: script,
    });
    const found = finding(await examine(scripted.url), "PuppetDB's answers");
    await scripted.close();
    expect(found).toMatchObject({ outcome: "failed", detail: expect.stringMatching(detail) });
    expect(found?.remedy).toMatch(remedy);
  });

  test.each([
    // A busy machine takes a moment to ask.
    [90, /^PuppetDB's clock is (8[5-9]|90) s ahead of/],
    [-90, /^PuppetDB's clock is (89|9[0-5]) s behind/],
  ])(
    "tells a clock that is %d s away, and masters that submit from the future",
    async (seconds, expected) => {
      const late = new Date(Date.now() + 600_000).toISOString();
      const row = JSON.stringify([{ certname: NODE, producer: "master1", producer_timestamp: late }]);
      const dated =
        (script: Script): Script =>
        (response) => {
          response.setHeader("date", new Date(Date.now() + seconds * 1_000).toUTCString());
          script(response);
        };
      const scripted = await startScriptedPuppetdb({
        version: VERSION_ANSWER,
        nodes: dated(countNodes(1)),
        factsets: dated(answer(row)),
        other: dated(EMPTY),
      });
      const diagnosis = await examine(scripted.url);
      await scripted.close();
      expect(finding(diagnosis, "clock", "PuppetDB")).toMatchObject({
        outcome: "warning",
        detail: expect.stringMatching(expected),
        remedy: expect.stringContaining("NTP"),
      });
      expect(finding(diagnosis, "clock", "masters")?.detail).toMatch(/"master1" by \d{3} s/);
    },
  );
});

describe("checks", () => {
  const ok = (name: string, more: Partial<Check> = {}): Check => ({
    name,
    look: () => verdict("fine", []),
    ...more,
  });

  test("one that hangs, and one that is our own mistake, stop no other; what needs them is skipped; all are told in order", async () => {
    const hanging = ok("hanging", { deadlineMs: 50, ifLate: "wake it", look: () => new Promise(() => {}) });
    const mistaken = ok("mistaken", {
      look: () => {
        throw new TypeError("undefined is not a function");
      },
    });
    const order: string[] = [];
    const findings = await runChecks(
      [
        hanging,
        mistaken,
        ok("needs", { needs: [hanging] }),
        ok("follows", { follows: [mistaken] }),
        ok("free"),
      ],
      ({ check }) => order.push(check),
    );
    expect(findings).toMatchObject([
      { check: "hanging", outcome: "failed", detail: "no answer within 0.05 s", remedy: "wake it" },
      {
        check: "mistaken",
        outcome: "failed",
        detail: "undefined is not a function",
        remedy: expect.stringContaining("report"),
      },
      { check: "needs", outcome: "skipped", detail: expect.stringContaining("hanging") },
      { check: "follows", outcome: "ok" },
      { check: "free", outcome: "ok" },
    ]);
    expect(order).toEqual(["hanging", "mistaken", "needs", "follows", "free"]);
  });

  test("hand on what they found, and are as bad as their worst problem", async () => {
    const first: Check<number> = { name: "first", look: () => verdict("good", [], 41) };
    const second = ok("second", {
      needs: [first],
      look: (_, known) =>
        verdict(`${known.of(first) + 1}`, [
          { outcome: "warning", what: "a", remedy: "do a" },
          { outcome: "failed", what: "b", remedy: "do b" },
        ]),
    });
    expect((await runChecks([first, second], () => {}))[1]).toMatchObject({
      outcome: "failed",
      detail: "a; b (42)",
      remedy: "do a; do b",
    });
  });
});
