// The command line as people use it: the built program in a process of its own, in a pipe and on a terminal, with a
// daemon and without one.

import { execFile } from "node:child_process";
import { once } from "node:events";
import { constants } from "node:fs";
import { chmod, copyFile, mkdir, mkdtemp, open, readFile, rm, writeFile } from "node:fs/promises";
import { createServer, type ServerResponse } from "node:http";
import { type AddressInfo, createServer as createSocketServer } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { askDaemon, parseEvents } from "../src/cli/daemon-client.js";
import { SHELLS, type Shell } from "../src/cli/manual.js";
import type { DisplacedNodes, Move, Nodes, Status, Story } from "../src/http/api-shapes.js";
import type { SyncReport } from "../src/sync-report.js";
import { PriorityMap } from "../src/target/priority.js";
import { Child, freePort } from "./support/child.js";
import { type FleetLab, withFleetLab } from "./support/fleet-lab.js";
import { withGateway } from "./support/gateway.js";
import { runtimeCommand } from "./support/haproxy-server.js";
import { haproxyBinaries, pathOf } from "./support/parts.js";
import { patient } from "./support/patience.js";
import { ON_DEMAND } from "./support/schedules.js";
import { EMPTY, SILENT, startScriptedPuppetdb } from "./support/scripted-puppetdb.js";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const CLI = path.join(ROOT, "dist/src/cli.js");
const HUNG_DISK = path.join(ROOT, "test/support/hung-disk.mjs");
const bin = haproxyBinaries().at(-1)?.bin ?? "";
const node = (index: number) => `node${index}.example.com`;

// Each run starts a process, which takes long on a busy machine.
vi.setConfig({ testTimeout: patient(120_000) });

/** Every command with valid arguments. Those that print something have --json. */
const COMMANDS = [
  "serve",
  "doctor",
  "sync",
  "diff",
  "lookup",
  "status",
  "nodes",
  "masters",
  "moves",
  "passes",
];
const MORE = [
  "healthy",
  "register",
  "drain",
  "rebalance",
  "priority",
  "config",
  "setup",
  "version",
  "completion",
  "man",
];

interface Done {
  code: number;
  stdout: string;
  stderr: string;
}

/** A folder with a program `sasori`, for shells. */
let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "sasori-cli-"));
  const program = path.join(folder, "sasori");
  await writeFile(program, `#!/bin/sh\nexec "${process.execPath}" "${CLI}" "$@"\n`);
  await chmod(program, 0o755);
});
afterAll(() => rm(folder, { recursive: true }));

const PLAIN = () => ({ PATH: `${folder}:${process.env.PATH}`, TERM: "xterm", LANG: "C.UTF-8" });

function run(program: string, args: string[], env: Record<string, string>): Promise<Done> {
  return new Promise((resolve) => {
    const options = { env: { ...PLAIN(), ...env }, maxBuffer: 64 * 1024 * 1024 };
    execFile(program, args, options, (error, stdout, stderr) =>
      resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr }),
    );
  });
}

interface Desk {
  lab: FleetLab;
  env: Record<string, string>;
  /** Runs `sasori ...`. */
  sasori(...args: string[]): Promise<Done>;
  /** Runs a line of bash. */
  bash(line: string): Promise<Done>;
  /** Runs `sasori ...` on a terminal; both outputs come together. */
  onTerminal(args: string, env?: Record<string, string>): Promise<string>;
  startDaemon(): Promise<Child>;
}

/** `count` nodes at three masters in PuppetDB, an HAProxy, and no daemon yet. */
async function withDesk(count: number, use: (desk: Desk) => Promise<void>): Promise<void> {
  await withFleetLab([{ bin }], async (lab) => {
    for (let index = 0; index < count; index += 1)
      await lab.run(node(index), `master${(index % 3) + 1}`, -60_000);
    const { puppetdb } = lab.config();
    const env = {
      SASORI_PUPPETDB_URL: puppetdb[0]?.[0]?.url ?? "",
      SASORI_HAPROXY: lab.haproxys[0]?.socketPath ?? "",
      SASORI_MAP_FILE: lab.mapFile,
      SASORI_LISTEN: `127.0.0.1:${await freePort()}`,
      ...ON_DEMAND,
    };
    const daemons: Child[] = [];
    try {
      await use({
        lab,
        env,
        sasori: (...args) => run("sasori", args, env),
        bash: (line) => run("bash", ["--norc", "-c", line], env),
        onTerminal: async (args, more = {}) => {
          const log = path.join(folder, "typescript");
          const { stdout } = await run("script", ["-qec", `sasori ${args}`, log], { ...env, ...more });
          return stdout;
        },
        async startDaemon() {
          const daemon = new Child(process.execPath, [CLI, "serve"], { env: { ...PLAIN(), ...env } });
          daemons.push(daemon);
          const ready = async () => (await fetch(`http://${env.SASORI_LISTEN}/readyz`)).ok;
          await daemon.untilReady(ready);
          return daemon;
        },
      });
    } finally {
      for (const daemon of daemons) await daemon.end();
    }
  });
}

const lines = (text: string) => text.split("\n").filter((line) => line !== "");
// biome-ignore lint/suspicious/noControlCharactersInRegex: that is what is looked for
const COLOUR = /\u001b\[\d+m/;

describe("help", () => {
  test("names every command, and each command has an example; docs/cli.md lists them all", async () => {
    const { stdout } = await run("sasori", ["--help"], {});
    const document = await readFile(path.join(ROOT, "docs/cli.md"), "utf8");
    const listed = [...stdout.matchAll(/^ {2}([a-z]+)\b.* {2}\S/gm)].map(([, name]) => name);
    expect(listed.filter((name) => name !== "sasori" && name !== "help").sort()).toEqual(
      [...COMMANDS, ...MORE].sort(),
    );
    for (const name of [...COMMANDS, ...MORE]) {
      const help = await run("sasori", [name, "--help"], {});
      expect(help.code).toBe(0);
      expect(help.stdout, name).toMatch(new RegExp(`\\nExamples:\\n.*sasori.* ?${name}`));
      expect(new RegExp(`^\\| .*\`${name}\\b`, "m").test(document), `docs/cli.md: ${name}`).toBe(true);
    }
  });

  test("the man page has every command, option, variable and exit code, and nothing that roff would take for its own", async () => {
    const { stdout } = await run("sasori", ["man"], {});
    const text = stdout.replaceAll("\\-", "-");
    for (const name of [...COMMANDS, ...MORE])
      expect(text).toMatch(new RegExp(`^\\.SS "sasori ${name}\\b`, "m"));
    for (const words of [
      "--approve <plan-id>",
      "SASORI_MASTER_ALIASES",
      "default: 100",
      "the guard holds changes",
    ])
      expect(text).toContain(words);
    const requests = new Set(lines(stdout).flatMap((line) => /^[.'](\w*)/.exec(line)?.[1] ?? []));
    expect([...requests].sort()).toEqual([
      "B",
      "BR",
      "I",
      "PP",
      "RE",
      "RS",
      "SH",
      "SS",
      "TH",
      "TP",
      "fi",
      "nf",
    ]);
  });

  test("a mistake in the command line is exit code 2 and says what was expected", async () => {
    for (const args of [
      ["foo"],
      ["nodes", "--limit", "0"],
      ["lookup"],
      ["lookup", "NO;PE"],
      ["nodes", "--source", "rumour"],
    ]) {
      const { code, stderr, stdout } = await run("sasori", args, {});
      expect({ args, code, stdout }).toEqual({ args, code: 2, stdout: "" });
      expect(stderr).not.toBe("");
    }
    const { code, stderr } = await run("sasori", ["config"], { SASORI_LISTEN: "nonsense" });
    expect(code).toBe(2);
    for (const name of ["SASORI_LISTEN", "SASORI_PUPPETDB_URL", "SASORI_MAP_FILE"])
      expect(stderr).toContain(name);
    for (const env of [{ SASORI_LISTEN: "nonsense" }, { SASORI_LISTN: "127.0.0.1:9180" }]) {
      const asked = await run("sasori", ["status"], env as Record<string, string>);
      expect(asked.code).toBe(2);
      expect(asked.stderr).toContain(Object.keys(env)[0]);
    }
  });
});

describe("without a daemon", () => {
  test("nodes come from the map file, and what only a daemon knows says so", () =>
    withDesk(6, async ({ sasori }) => {
      expect((await sasori("sync")).code).toBe(0);
      const { code, stdout, stderr } = await sasori("nodes", "--master", "master2");
      const head = `${"NODE".padEnd(node(1).length)}  MASTER   SOURCE  SINCE`;
      expect({ code, lines: lines(stdout) }).toEqual({
        code: 0,
        lines: [head, `${node(1)}  master2`, `${node(4)}  master2`],
      });
      expect(stderr).toContain("no daemon is running: these are the nodes of");
      expect(lines((await sasori("nodes", "--limit", "2", "--no-headers")).stdout)).toHaveLength(2);
      expect((await sasori("nodes", node(1).toUpperCase())).stdout).toContain(node(1));
      for (const command of [
        ["status"],
        ["masters"],
        ["moves"],
        ["moves", "--follow"],
        ["passes"],
        ["nodes", "--source", "learned"],
      ]) {
        const asked = await sasori(...command);
        expect({ command, code: asked.code, stdout: asked.stdout }).toEqual({ command, code: 1, stdout: "" });
        expect(asked.stderr).toMatch(/^sasori: DAEMON: .*`sasori serve`.*\n$/);
      }
    }));

  test("sync onto a read-only file system is exit code 1, says what to do, and tells every HAProxy all the same", () =>
    withDesk(3, async ({ lab, env }) => {
      const maps = path.dirname(lab.mapFile);
      // In a namespace of its own, as test/map-file.test.ts does.
      const flags = process.getuid?.() === 0 ? "-m" : "-Urm";
      const inside = `mount --bind ${maps} ${maps}; mount -o remount,bind,ro ${maps}; exec sasori sync`;
      const { code, stdout } = await run("unshare", [flags, "sh", "-ec", inside], env);
      expect(code).toBe(1);
      expect(stdout).toMatch(
        new RegExp(
          `^FILE_READ_ONLY ${lab.mapFile}: .*\n  → let sasori's user write to the folder, or make its file system writable`,
          "m",
        ),
      );
      expect((await lab.haproxys[0]?.showMap())?.size).toBe(3);
    }));

  test("lookup does not call a master unknown that no HAProxy could be asked about", () =>
    withDesk(3, async ({ lab, env, sasori }) => {
      await sasori("sync");
      await lab.haproxys[0]?.kill();
      const { code, stdout } = await sasori("lookup", node(0));
      expect(code).toBe(1);
      const [, desired = "", file, live] = lines(stdout);
      expect(desired).toMatch(
        /^ {2}desired +failed: HAPROXY_UNREACHABLE: PuppetDB says master1 \(facts\), but no HAProxy /,
      );
      expect(desired).toContain("until one is asked, the map file says where the node goes");
      expect(file).toMatch(/^ {2}file +master1$/);
      expect(live).toMatch(/ failed: HAPROXY_UNREACHABLE: nothing listens there/);
      expect(stdout).not.toContain("no such server");
      // One HAProxy does not answer. If the other has the server, that is enough. If not, the silent one may have it.
      await lab.haproxys[0]?.restart();
      env.SASORI_HAPROXY = `${env.SASORI_HAPROXY},${env.SASORI_HAPROXY}.away`;
      await lab.run(node(1), "stranger");
      expect((await sasori("lookup", node(0))).stdout).toMatch(/desired +master1, from facts/);
      expect((await sasori("lookup", node(1))).stdout).toMatch(
        /desired +failed: HAPROXY_UNREACHABLE: PuppetDB says stranger .*1 of 2 HAProxy instances could not be asked .*the others have none/,
      );
    }));

  test("doctor exits with 0, 1 or 2, and prints findings in their order, or JSON", () =>
    withDesk(3, async ({ lab, sasori, env }) => {
      await sasori("sync");
      const well = await sasori("doctor");
      expect(well.code).toBe(0);
      expect(well.stdout).not.toMatch(COLOUR);
      expect(well.stdout).toMatch(
        /^(ok {7}Node\.js: |warning {2}Node\.js: the doctor runs as root)[\s\S]*\nwarning {2}daemon http.*\n {9}→ start it: sasori serve\n\n/m,
      );
      await lab.haproxys[0]?.kill();
      const ill = await sasori("doctor", "--json");
      expect(ill.code).toBe(1);
      expect(JSON.parse(ill.stdout)).toMatchObject({ outcome: "failed", findings: expect.any(Array) });
      const wrong = await run("sasori", ["doctor"], { ...env, SASORI_MAP_FILE: "relative" });
      expect(wrong.code).toBe(2);
      expect(wrong.stdout).toContain("SASORI_MAP_FILE");
    }));
});

describe("with a daemon", () => {
  test("status says the state, what is wrong and what to do; its exit code says it too", () =>
    withDesk(6, async ({ lab, sasori, startDaemon }) => {
      await startDaemon();
      const well = await sasori("status");
      expect(well.code).toBe(0);
      expect(lines(well.stdout)[0]).toMatch(
        /^in sync: 6 nodes, in the map file and in 1 HAProxy instance\.$/,
      );
      await lab.haproxys[0]?.kill();
      expect((await sasori("sync")).code).toBe(1);
      const ill = await sasori("status");
      expect(ill.code).toBe(1);
      expect(ill.stdout).toMatch(/^failing: /);
      expect(ill.stdout).toMatch(/^HAPROXY_UNREACHABLE .*\n {2}→ start that HAProxy/m);
      await lab.haproxys[0]?.restart();
      expect((JSON.parse((await sasori("status", "--json")).stdout) as Status).state).toBe("failing");
    }));

  test("held removals are exit code 3, and status names the approval", () =>
    withDesk(15, async ({ lab, sasori, startDaemon }) => {
      await startDaemon();
      await lab.stopPuppetdb();
      await lab.startPuppetdb();
      expect((await sasori("sync", "--full")).code).toBe(3);
      const held = await sasori("status");
      expect(held.code).toBe(3);
      const id = /sasori sync --approve ([0-9a-f]{12})/.exec(held.stdout)?.[1] ?? "";
      expect(await sasori("sync", "--approve", "000000000000")).toMatchObject({
        code: 1,
        stdout: expect.stringContaining("nothing was approved"),
      });
      expect((await sasori("sync", "--approve", id)).code).toBe(0);
      expect((await sasori("nodes")).stderr).toBe("no nodes found\n");
    }));

  test("register tells that a target lacks it, and that it is in force", () =>
    withDesk(3, async ({ lab, env, sasori, startDaemon }) => {
      env.SASORI_HAPROXY = `${lab.haproxys[0]?.socketPath},${lab.haproxys[0]?.socketPath}.away`;
      await startDaemon();
      const told = await sasori("register", node(0), "master2");
      expect(told).toMatchObject({
        code: 1,
        stdout: expect.stringMatching(/desired +master2[\s\S]*\.away +failed: HAPROXY_UNREACHABLE/),
        stderr:
          "the registration is in force; 1 target could not be written yet; the next pass writes the change\n",
      });
      const ended = await sasori("register", node(0), "--end", "--json");
      expect({ code: ended.code, desired: (JSON.parse(ended.stdout) as Story).desired }).toMatchObject({
        code: 1,
        desired: { master: "master1" },
      });
    }));

  test("what the daemon refuses comes out with its code: USAGE is exit code 2, a daemon in trouble 1", () =>
    withDesk(3, async ({ env, sasori, startDaemon }) => {
      const tokenFile = path.join(folder, "cli.token");
      await writeFile(tokenFile, "s3cret");
      env.SASORI_API_TOKEN_FILE = tokenFile;
      await startDaemon();
      const refused = async (args: string[], code: number, stderr: RegExp) =>
        expect(await sasori(...args)).toMatchObject({
          code,
          stdout: "",
          stderr: expect.stringMatching(stderr),
        });
      await refused(
        ["register", node(0), "master9"],
        2,
        /^sasori: USAGE: HAProxy has no master "master9" \(it/,
      );
      await refused(["register", node(0), "--end"], 2, /^sasori: USAGE: node0\S+ has no registration\n$/);
      env.SASORI_API_TOKEN_FILE = "";
      const untold =
        /^sasori: USAGE: the daemon on http:\S+ answered 401: .*: set SASORI_API_TOKEN_FILE here to a file with the daemon's token\n$/;
      await refused(["register", node(0), "master2"], 2, untold);
      env.SASORI_API_TOKEN_FILE = `${tokenFile}s`;
      await refused(["sync"], 2, /^sasori: USAGE: .*ENOENT.*: correct SASORI_API_TOKEN_FILE\n$/);
      env.SASORI_API_TOKEN_FILE = "";
      await writeFile(tokenFile, "");
      await refused(["sync"], 1, /^sasori: DAEMON: .* answered 503: SASORI_API_TOKEN_FILE cannot be read/);
    }));

  test("register and rebalance tell that the state file lacks it, and that it is in force", () =>
    withDesk(3, async ({ lab, env, sasori, startDaemon }) => {
      env.SASORI_STATE_FILE = path.join(path.dirname(lab.mapFile), "away", "state.json");
      await startDaemon();
      const lacks = /it is not in the state file, so a restart .* lose it: .*away does not exist: create it/;
      expect(await sasori("register", node(0), "master2")).toMatchObject({
        code: 1,
        stdout: expect.stringMatching(/desired +master2[\s\S]* master2\n/),
        stderr: expect.stringMatching(new RegExp(`^the registration is in force; ${lacks.source}.*\n$`)),
      });
      const server = (state: string) =>
        runtimeCommand(lab.haproxys[0]?.socketPath ?? "", `set server puppet/master2 state ${state}`);
      await server("maint");
      await sasori("sync");
      await lab.run(node(1), "master3");
      await sasori("sync");
      await server("ready");
      const { code, stdout } = await sasori("rebalance");
      expect({ code, lines: lines(stdout) }).toEqual({
        code: 1,
        lines: [
          expect.stringMatching(new RegExp(`^1/1  ${node(1)} → master2; ${lacks.source}`)),
          "1 node moved back",
          "1 of them are not in the state file, see above",
        ],
      });
    }));

  test("rebalance brings home all that it can: none to a master that is down, and one that lacks it stops no other", () =>
    withDesk(6, async ({ lab, env, sasori, startDaemon }) => {
      const socket = lab.haproxys[0]?.socketPath ?? "";
      env.SASORI_HAPROXY = `${socket},${socket}.away`;
      await startDaemon();
      const server = (name: string, state: string) =>
        runtimeCommand(socket, `set server puppet/${name} state ${state}`);
      for (const master of ["master1", "master2"]) await server(master, "maint");
      await sasori("sync");
      for (const index of [0, 1, 3, 4]) await lab.run(node(index), "master3");
      await sasori("sync");
      expect((await sasori("status")).stdout).toContain("4 nodes left master1, master2 while it was down");
      await server("master1", "ready");
      const { code, stdout } = await sasori("rebalance", "--per-minute", "6000");
      expect({ code, lines: lines(stdout) }).toEqual({
        code: 1,
        lines: [
          ...[1, 3].map(
            (place) =>
              `${place}/4  ${node(place === 1 ? 0 : 3)} → master1; 1 target could not be written yet; the next pass writes the change`,
          ),
          "2 nodes moved back",
          "2 of them are not in every target yet; the next pass writes them",
          "2 nodes skipped: no HAProxy sees master2 up",
        ],
      });
      expect(lines((await sasori("rebalance", "--dry-run", "-o", "name")).stdout)).toHaveLength(2);
      await server("master2", "ready");
      expect((await sasori("rebalance", "--per-minute", "6000")).stdout).toContain("2 nodes moved back\n");
    }));

  test("every command that prints something prints JSON too", () =>
    withDesk(6, async ({ env, sasori, startDaemon }) => {
      await startDaemon();
      await sasori("register", node(0), "master2");
      const commands = [
        ["doctor"],
        ["sync"],
        ["diff"],
        ["lookup", node(0)],
        ["status"],
        ["nodes"],
        ["nodes", "--all"],
        ["masters"],
        ["moves"],
        ["moves", "--limit", "5000"],
        ["passes"],
        ["register", node(0), "--end"],
        ["drain", "master1", "--dry-run"],
        ["rebalance", "--dry-run"],
        ["config"],
      ];
      for (const command of commands) {
        const { code, stdout } = await sasori(...command, "--json");
        expect({ command, code }).toEqual({ command, code: 0 });
        expect(() => JSON.parse(stdout), command.join(" ")).not.toThrow();
        const plain = await run("sasori", command, env);
        expect(plain.stdout, command.join(" ")).not.toMatch(/undefined|NaN|\[object/);
      }
    }));

  test("an operator's shell needs to know where it listens, and nothing else", () =>
    withDesk(3, async ({ lab, env, startDaemon }) => {
      await startDaemon();
      const bare = { SASORI_LISTEN: env.SASORI_LISTEN ?? "", TZ: "Asia/Kolkata" };
      for (const args of [["status"], ["masters"], ["moves"], ["passes"], ["nodes"], ["sync"], ["diff"]]) {
        const { code, stderr } = await run("sasori", args, bare);
        const said = args[0] === "moves" ? "no moves\n" : "";
        expect({ args, code, stderr }).toEqual({ args, code: 0, stderr: said });
      }
      const found = await run("sasori", ["lookup", node(0).toUpperCase()], bare);
      expect(found.stdout).toMatch(new RegExp(`^${node(0)}\n  desired +master1`));
      // Times are the reader's, in sentences too; JSON keeps them as they are.
      await lab.stopPuppetdb();
      await run("sasori", ["sync"], bare);
      const inWords = (await run("sasori", ["status"], bare)).stdout;
      expect(inWords).toContain("PUPPETDB_UNREACHABLE");
      expect(inWords).not.toMatch(/\dT\d\d:.*Z/);
      const { troubles } = JSON.parse((await run("sasori", ["status", "--json"], bare)).stdout) as Status;
      const since = /since (\S+Z)\)/.exec(troubles[0]?.what ?? "")?.[1] ?? "";
      const there = new Date(Date.parse(since) + 5.5 * 3_600_000).toISOString();
      expect(inWords).toContain(`(since ${there.slice(0, 19).replace("T", " ")})`);
    }));

  test("a daemon whose log cannot be written because the disk is full serves, and ends when it is told to", () =>
    withDesk(3, async ({ env }) => {
      const line = `exec "${process.execPath}" "${CLI}" serve > /dev/full`;
      const daemon = new Child("sh", ["-c", line], { env: { ...PLAIN(), ...env } });
      try {
        await daemon.untilReady(async () => (await fetch(`http://${env.SASORI_LISTEN}/readyz`)).ok);
        expect((await run("sasori", ["sync"], env)).code).toBe(0);
      } finally {
        await daemon.end();
      }
      expect(await daemon.code()).toBe(0);
    }));

  test("a daemon that goes in the middle of a list is a failure, and no half JSON where none has come", async () => {
    let pages = 0;
    const daemon = createServer((_request, response) => {
      if (pages === 0) return void response.destroy();
      pages -= 1;
      response.setHeader("content-type", "application/json").setHeader("connection", "close");
      if (pages === 0) daemon.close(); // Before the answer: whoever asks for the next page then finds nobody.
      response.end(JSON.stringify({ nodes: [], next: "node1" }));
    });
    await new Promise<void>((resolve) => daemon.listen(0, "127.0.0.1", resolve));
    const env = { SASORI_LISTEN: `127.0.0.1:${(daemon.address() as AddressInfo).port}` };
    expect(await run("sasori", ["nodes", "--json"], env)).toMatchObject({ code: 1, stdout: "" });
    pages = 1;
    expect(await run("sasori", ["nodes", "--all"], env)).toMatchObject({
      code: 1,
      stdout: "",
      stderr: expect.stringMatching(/^sasori: DAEMON: the daemon is not running/),
    });
  });

  test("a daemon that hangs is given up: for a pass after 15 minutes, for all else after 30 s", async () => {
    const hanging = createServer(() => undefined);
    await new Promise<void>((resolve) => hanging.listen(0, "127.0.0.1", resolve));
    const { port } = hanging.address() as AddressInfo;
    const address = { listen: { host: "127.0.0.1", port }, apiTokenFile: undefined };
    const waits: (number | undefined)[] = [];
    vi.spyOn(AbortSignal, "timeout").mockImplementation((ms) => {
      waits.push(ms);
      return AbortSignal.abort(new DOMException("The operation was aborted due to timeout", "TimeoutError"));
    });
    try {
      const ask = (method: "GET" | "PUT" | "DELETE" | "POST", where: string) =>
        expect(askDaemon(address, method, where)).rejects.toMatchObject({ code: "DAEMON" });
      await ask("GET", "/api/v1/status");
      await ask("DELETE", `/api/v1/nodes/${node(0)}`);
      await ask("POST", "/api/v1/sync");
      await expect(
        askDaemon(address, "PUT", `/api/v1/nodes/${node(0)}`, { master: "master1" }),
      ).rejects.toMatchObject({
        message: `the daemon on http://127.0.0.1:${port} did not answer within 30 s. It hangs or is busy, and may still carry out the request: see its log and \`sasori status\``,
      });
      expect(waits).toEqual([30_000, 30_000, 900_000, 30_000]);
    } finally {
      vi.restoreAllMocks();
      hanging.closeAllConnections();
      await new Promise((resolve) => hanging.close(resolve));
    }
  });

  test("SIGHUP while it starts does not end it", () =>
    withDesk(3, async ({ env }) => {
      const daemon = new Child(process.execPath, [CLI, "serve"], { env: { ...PLAIN(), ...env } });
      // SigCgt: the signals that it catches, as bits; SIGHUP is the first.
      const caught = async () =>
        /^SigCgt:\s*\w*(\w)$/m.exec(await readFile(`/proc/${daemon.pid}/status`, "utf8"))?.[1];
      try {
        await expect
          .poll(async () => Number.parseInt((await caught()) ?? "", 16) & 1, { interval: 1 })
          .toBe(1);
        process.kill(daemon.pid, "SIGHUP");
        const ready = async () => (await fetch(`http://${env.SASORI_LISTEN}/readyz`)).ok;
        await daemon.untilReady(ready);
      } finally {
        await daemon.end();
      }
    }));

  test("SIGHUP while it stops neither ends it early nor keeps it: the pass under way is finished", async () => {
    const held: ServerResponse[] = [];
    const puppetdb = await startScriptedPuppetdb({ other: (response) => void held.push(response) });
    const env = {
      SASORI_PUPPETDB_URL: puppetdb.url,
      SASORI_HAPROXY: "none",
      SASORI_MAP_FILE: path.join(folder, "stopped.map"),
      SASORI_LISTEN: `127.0.0.1:${await freePort()}`,
      ...ON_DEMAND,
    };
    const daemon = new Child(process.execPath, [CLI, "serve"], { env: { ...PLAIN(), ...env } });
    try {
      await puppetdb.untilAsked("factsets"); // The pass under way.
      process.kill(daemon.pid, "SIGTERM");
      await expect.poll(() => daemon.printed).toContain('"msg":"stopping"');
      process.kill(daemon.pid, "SIGHUP");
      await expect.poll(() => daemon.printed).toContain("STOPPED");
      puppetdb.scripts = { other: EMPTY };
      for (const response of held) EMPTY(response);
      expect(await daemon.code()).toBe(0);
      expect(daemon.printed).toMatch(/"msg":"pass done"[\s\S]*"msg":"stopped"/);
    } finally {
      await daemon.end();
      await puppetdb.close();
    }
  });

  test.each([
    { hangs: "PuppetDB, asked for the end of a registration", code: 0 },
    { hangs: "whoever reads its log", code: -1 },
    { hangs: "the file system of the map", code: -1 },
  ])("SIGTERM ends it within 10 s although there hangs $hangs", async ({ hangs, code }) => {
    const puppetdb = await startScriptedPuppetdb({ other: EMPTY });
    const place = await mkdtemp(path.join(folder, "stop-"));
    const [mapFile, log] = [path.join(place, "nodes.map"), path.join(place, "log")];
    const env = {
      ...PLAIN(),
      SASORI_PUPPETDB_URL: puppetdb.url,
      SASORI_HAPROXY: "none",
      SASORI_MAP_FILE: mapFile,
      SASORI_LISTEN: `127.0.0.1:${await freePort()}`,
      ...ON_DEMAND,
    };
    // 64 KiB are what a pipe holds; its other end stays open and is not read.
    const full = `mkfifo ${log}; exec 3<>${log}; head -c 65536 /dev/zero >&3; exec "$@" >&3`;
    const shell = hangs.includes("log") ? ["-ec", full, "sh"] : ["-ec", 'exec "$@"', "sh"];
    const loaded = hangs.includes("file system") ? ["--import", HUNG_DISK] : [];
    const daemon = new Child("sh", [...shell, process.execPath, ...loaded, CLI, "serve"], { env });
    const url = `http://${env.SASORI_LISTEN}`;
    const story = `${url}/api/v1/nodes/${node(1)}`;
    const body = JSON.stringify({ master: "master1" });
    try {
      await daemon.untilReady(async () => (await fetch(`${url}/readyz`)).ok);
      const headers = { "content-type": "application/json" };
      expect((await fetch(story, { method: "PUT", headers, body })).status).toBe(200);
      let asked: Promise<unknown> = Promise.resolve();
      if (hangs.includes("PuppetDB")) {
        puppetdb.scripts = { other: SILENT };
        const before = puppetdb.asked.length;
        asked = fetch(story, { method: "DELETE" }).catch(() => undefined);
        await expect.poll(() => puppetdb.asked.length).toBeGreaterThan(before);
      }
      if (hangs.includes("file system")) {
        await rm(mapFile);
        await run("mkfifo", [mapFile], {});
        const failure = { code: "FILE_READ", message: expect.stringContaining("does not answer") };
        expect(await (await fetch(story)).json()).toMatchObject({ file: { failure } });
      }
      process.kill(daemon.pid, "SIGTERM");
      // 13.5 s at least: it takes 7 s, and starting and ending take longer on a busy machine.
      await expect.poll(() => daemon.ended, { timeout: patient(4_500) }).toBe(true);
      expect(await daemon.code()).toBe(code);
      if (!hangs.includes("log")) expect(daemon.printed).toMatch(/"msg":"stopped"\}\n$/);
      await asked;
    } finally {
      await daemon.end("SIGKILL");
      await puppetdb.close();
    }
  });

  test("a file system that hangs under PuppetDB's token costs passes and no more, until it answers again", async () => {
    const puppetdb = await startScriptedPuppetdb({ other: EMPTY });
    const place = await mkdtemp(path.join(folder, "token-"));
    const token = path.join(place, "token");
    await writeFile(token, "secret\n");
    const env = {
      ...PLAIN(),
      SASORI_PUPPETDB_URL: puppetdb.url,
      SASORI_PUPPETDB_TOKEN_FILE: token,
      SASORI_HAPROXY: "none",
      SASORI_MAP_FILE: path.join(place, "nodes.map"),
      SASORI_LISTEN: `127.0.0.1:${await freePort()}`,
      ...ON_DEMAND,
    };
    const daemon = new Child(process.execPath, ["--import", HUNG_DISK, CLI, "serve"], { env });
    const url = `http://${env.SASORI_LISTEN}`;
    const sync = async () =>
      (await (await fetch(`${url}/api/v1/sync`, { method: "POST" })).json()) as SyncReport;
    try {
      await daemon.untilReady(async () => (await fetch(`${url}/readyz`)).ok);
      await rm(token);
      await run("mkfifo", [token], {});
      const silent = {
        code: "PUPPETDB_TLS",
        message: expect.stringContaining(`cannot read ${token}: its file system has not`),
      };
      for (let pass = 0; pass < 2; pass += 1)
        expect((await sync()).source).toMatchObject({ failure: silent });
      const moved = await fetch(`${url}/api/v1/nodes/${node(1)}`, {
        method: "PUT",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ master: "master1" }),
      });
      expect(moved.status).toBe(200);
      // Now it answers, and the token is there again.
      const answers = await open(token, constants.O_RDWR | constants.O_NONBLOCK);
      await rm(token);
      await writeFile(token, "another\n");
      await expect.poll(async () => (await sync()).source.outcome).toBe("done");
      expect(puppetdb.asked.at(-1)?.headers["x-authentication"]).toBe("another");
      await answers.close();
    } finally {
      await daemon.end();
      await puppetdb.close();
    }
    expect(await daemon.code()).toBe(0);
  });

  test.each(["127.0.0.1", "127.0.0.2", "[::1]", "localhost", "0.0.0.0", "[::]"])(
    "healthy finds the daemon that listens on %s, and is what the image's HEALTHCHECK runs",
    (host) =>
      withDesk(3, async ({ lab, env }) => {
        const dockerfile = await readFile(path.join(ROOT, "Dockerfile"), "utf8");
        expect(dockerfile).toMatch(/^HEALTHCHECK .*\\\n +CMD \["sasori", "healthy"\]$/m);
        const token = path.join(path.dirname(lab.mapFile), "token");
        await writeFile(token, "secret\n");
        const mine = {
          ...PLAIN(),
          ...env,
          SASORI_LISTEN: `${host}:${await freePort()}`,
          SASORI_API_TOKEN_FILE: token,
        };
        const healthy = async () => {
          const child = new Child(process.execPath, [CLI, "healthy"], { env: mine });
          return { code: await child.code(), printed: child.printed };
        };
        expect(await healthy()).toMatchObject({ code: 1, printed: expect.stringContaining("DAEMON") });
        const daemon = new Child(process.execPath, [CLI, "serve"], { env: mine });
        try {
          await expect.poll(healthy, { interval: 200 }).toEqual({ code: 0, printed: "" });
        } finally {
          await daemon.end();
        }
      }),
  );

  test("a socket that is mounted itself is told as that: HAProxy makes a new one when it starts", () =>
    withDesk(3, async ({ lab, env }) => {
      const [haproxy] = lab.haproxys;
      await haproxy?.kill();
      const mounted = path.join(path.dirname(lab.mapFile), "haproxy.sock");
      const flags = process.getuid?.() === 0 ? "-m" : "-Urm";
      for (const command of ["diff", "doctor"]) {
        const inside = `touch ${mounted}; mount --bind ${haproxy?.socketPath} ${mounted}; exec sasori ${command}`;
        const mine = { ...env, SASORI_HAPROXY: mounted };
        const { code, stdout } = await run("unshare", [flags, "sh", "-ec", inside], mine);
        expect({ command, code, stdout }).toEqual({
          command,
          code: 1,
          stdout: expect.stringMatching(
            /nothing listens there, because the socket itself is mounted[\s\S]*mount its folder/,
          ),
        });
      }
    }));

  test("SIGUSR1 opens no debugger", async () => {
    const place = await mkdtemp(path.join(folder, "debugger-"));
    const env = {
      ...PLAIN(),
      SASORI_PUPPETDB_URL: "http://127.0.0.1:1",
      SASORI_HAPROXY: "none",
      SASORI_MAP_FILE: path.join(place, "nodes.map"),
      SASORI_LISTEN: `127.0.0.1:${await freePort()}`,
    };
    const daemon = new Child(process.execPath, [CLI, "serve"], { env });
    try {
      await daemon.untilReady(async () => (await fetch(`http://${env.SASORI_LISTEN}/healthz`)).ok);
      process.kill(daemon.pid, "SIGUSR1");
      await expect.poll(() => daemon.printed).toContain(`"level":"warn","time"`);
      expect(daemon.printed).not.toContain("Debugger");
    } finally {
      await daemon.end();
    }
  });

  test("lookup says what it knows: the daemon's answer is not PuppetDB's; a file that cannot be read is exit code 1", () =>
    withDesk(3, async ({ lab, sasori, startDaemon }) => {
      expect(await sasori("lookup", "nobody")).toMatchObject({
        code: 1,
        stdout: expect.stringMatching(/desired +none: PuppetDB has no[\s\S]* 404 node_unknown\n$/),
      });
      await startDaemon();
      expect(await sasori("lookup", "nobody")).toMatchObject({
        code: 1,
        stdout: expect.stringMatching(/desired +none: the map does not have[\s\S]* 404 node_unknown\n$/),
      });
      await rm(lab.mapFile);
      await mkdir(lab.mapFile);
      expect(await sasori("lookup", node(0))).toMatchObject({
        code: 1,
        stdout: expect.stringMatching(/file +failed: FILE_READ/),
      });
    }));

  test.each([
    ["text/html", "<html>hello</html>"],
    ["application/json", '{"status":"ok"}'],
    ["application/json", "null"],
  ])("whatever else listens there is named as what it is, and not followed: %s %s", async (type, text) => {
    const other = createServer((_request, response) => {
      response.setHeader("content-type", type).end(text);
    });
    await new Promise<void>((resolve) => other.listen(0, "127.0.0.1", resolve));
    const { port } = other.address() as AddressInfo;
    try {
      for (const args of [["status"], ["moves", "--follow"], ["lookup", node(0)], ["sync"]]) {
        const { code, stderr } = await run("sasori", args, { SASORI_LISTEN: `127.0.0.1:${port}` });
        expect({ args, code }).toEqual({ args, code: 1 });
        expect(stderr).toMatch(
          /^sasori: DAEMON: a program other than sasori listens on .*\. It answered .*: correct SASORI_LISTEN.*\n$/,
        );
      }
    } finally {
      await new Promise((resolve) => other.close(resolve));
    }
  });

  test("a daemon of another version ends no command in an endless loop, and is told to be restarted", async () => {
    const answers: Record<string, object> = {
      "/api/v1/nodes": { nodes: [] },
      "/api/v1/displaced": { nodes: [] },
      "/api/v1/plan": { id: "3f2a9c01d4e5", reason: "many", count: 0, masters: [], changes: [] },
      "/api/v1/masters": { masters: [{ master: "master1", nodes: 1 }] },
    };
    const other = createServer(({ url = "" }, response) => {
      const answer = answers[url.replace(/\?.*/, "")];
      const problem = { status: 404, title: "USAGE", detail: `no such resource: "${url}"` };
      response.statusCode = answer ? 200 : 404;
      response.setHeader("content-type", "application/json").end(JSON.stringify(answer ?? problem));
    });
    await new Promise<void>((resolve) => other.listen(0, "127.0.0.1", resolve));
    const { port } = other.address() as AddressInfo;
    const ask = (...args: string[]) => run("sasori", args, { SASORI_LISTEN: `127.0.0.1:${port}` });
    try {
      for (const list of [["nodes"], ["rebalance", "--dry-run"]])
        expect(await ask(...list)).toMatchObject({ code: 0, stdout: "" });
      expect(await ask("diff", "--held", "--json")).toMatchObject({
        stdout: expect.stringContaining("3f2a9c01d4e5"),
      });
      expect(await ask("passes")).toMatchObject({
        code: 1,
        stderr: expect.stringMatching(/^sasori: DAEMON: .* does not know this call: restart it/),
      });
      expect(await ask("masters")).toMatchObject({
        code: 1,
        stderr: expect.stringContaining("If the daemon was not restarted after an upgrade, restart it."),
      });
    } finally {
      other.close();
    }
  });

  test("nodes are listed page by page, whatever their number, and a closed pipe ends it quietly", () =>
    withDesk(3, async ({ lab, sasori, bash, startDaemon }) => {
      const many = Array.from(
        { length: 2_500 },
        (_, index) => `many${String(index).padStart(4, "0")} master1\n`,
      );
      await writeFile(lab.mapFile, many.join(""));
      await lab.stopPuppetdb(); // So that the file is all there is.
      await startDaemon();
      const { nodes, next } = JSON.parse((await sasori("nodes", "--all", "--json")).stdout) as Nodes;
      expect(nodes.map(({ certname }) => `${certname} master1\n`)).toEqual(many);
      expect(next).toBeNull();
      expect(lines((await sasori("nodes", "--limit", "1200", "--no-headers")).stdout)).toHaveLength(1_200);
      const some = await sasori("nodes", "many000", "--limit", "3", "-o", "name");
      expect(lines(some.stdout)).toHaveLength(3);
      expect(some.stderr).toContain("there are more than 3");
      const cut = await bash("sasori nodes --all | head -n 2 | tail -n 1; exit $PIPESTATUS");
      expect(cut).toEqual({ code: 0, stdout: expect.stringMatching(/^many0000 {2}master1\b/), stderr: "" });
    }));

  test("moves --follow shows each move once, over a restart of the daemon too", () =>
    withDesk(6, async ({ env, sasori, startDaemon }) => {
      const daemon = await startDaemon();
      await sasori("register", node(0), "master2");
      const follow = new Child(process.execPath, [CLI, "moves", "--follow", "--json"], {
        env: { ...PLAIN(), ...env },
      });
      const seen = () =>
        lines(follow.printed)
          .filter((line) => line.startsWith("{"))
          .map((line) => JSON.parse(line) as Move)
          .map(({ certname, from, to }) => `${certname} ${from} ${to}`);
      const expected = [`${node(0)} master1 master2`];
      const poll = () => expect.poll(seen);
      try {
        await poll().toEqual(expected);
        await sasori("register", node(1), "master3");
        expected.push(`${node(1)} master2 master3`);
        await poll().toEqual(expected);
        await daemon.end();
        await expect.poll(() => follow.printed).toContain("lost the connection to the daemon");
        await startDaemon();
        await sasori("register", node(2), "master1");
        expected.push(`${node(2)} master3 master1`);
        await poll().toEqual(expected);
        await expect.poll(() => follow.printed).toContain("the daemon is back"); // On stderr.
        const wanted = await sasori("moves", node(2), "--no-headers");
        expect(wanted.stdout).toMatch(
          new RegExp(`^\\S+ \\S+  ${node(2)}  master3  master1  registration  \\S+@\\S+\\n$`),
        );
      } finally {
        await follow.end("SIGINT");
      }
    }));

  test("colours and progress are for terminals that want them", () =>
    withDesk(3, async ({ sasori, onTerminal, startDaemon }) => {
      await startDaemon();
      for (const command of ["status", "doctor", "masters"]) {
        const { stdout, stderr } = await sasori(command);
        expect(stdout + stderr).not.toContain("\u001b");
        expect(await onTerminal(command)).toMatch(COLOUR);
        expect(await onTerminal(command, { NO_COLOR: "1" })).not.toMatch(COLOUR);
        expect(await onTerminal(command, { TERM: "dumb" })).not.toContain("\u001b");
      }
    }));
});

describe("names and exit codes", () => {
  test("a short name stands for the one node or master that has it; several are a mistake, and stderr says what was meant", () =>
    withDesk(3, async ({ lab, sasori, startDaemon }) => {
      await lab.run("db1.one.example.com", "master1");
      await lab.run("db1.two.example.com", "master2");
      await lab.run("db2", "master1");
      await lab.run("db2.example.com", "master2");
      await sasori("sync");
      const check = async () => {
        expect(await sasori("lookup", "node1")).toEqual({
          code: 0,
          stdout: expect.stringMatching(new RegExp(`^${node(1)}\n`)),
          stderr: `node1 is short for ${node(1)}\n`,
        });
        expect(await sasori("lookup", "db2")).toMatchObject({
          code: 0,
          stdout: expect.stringMatching(/^db2\n/),
          stderr: "",
        });
        const several = 'USAGE: "db1" is short for 2 nodes: db1.one.example.com, db1.two.example.com.';
        expect(await sasori("lookup", "db1")).toMatchObject({
          code: 2,
          stdout: "",
          stderr: expect.stringContaining(several),
        });
        expect((await sasori("lookup", "node")).code).toBe(1);
        expect(await sasori("nodes", "--master", "nope")).toEqual({
          code: 2,
          stdout: "",
          stderr: expect.stringContaining('no master "nope". The masters are: master1, master2, master3'),
        });
      };
      await check();
      await startDaemon();
      await check();
    }));

  test("register takes a puppetserver's certname as master, by alias or by host", () =>
    withDesk(3, async ({ lab, env, sasori, startDaemon }) => {
      env.SASORI_MASTER_ALIASES = "puppet2.example.com=master2";
      await startDaemon();
      const named = await sasori("register", "node0", "puppet2.example.com");
      expect(named).toMatchObject({ code: 0, stdout: expect.stringMatching(/desired +master2, from reg/) });
      expect((await lab.haproxys[0]?.showMap())?.get(node(0))).toBe("master2");
      expect(await sasori("register", "node0", "puppet9.example.com")).toMatchObject({
        code: 2,
        stderr: expect.stringContaining(
          'no master "puppet9.example.com" (it has: master1, master2, master3)',
        ),
      });
    }));

  test("diff --exit-code is 1 while anything differs, and 0 in sync; diff --held lists a held plan whole", () =>
    withDesk(30, async ({ lab, sasori, startDaemon }) => {
      expect((await sasori("diff", "--exit-code")).code).toBe(1);
      expect((await sasori("diff")).code).toBe(0);
      await sasori("sync");
      expect((await sasori("diff", "--exit-code")).code).toBe(0);
      await startDaemon();
      expect(await sasori("diff", "--held")).toEqual({ code: 0, stdout: "nothing is held\n", stderr: "" });
      await lab.stopPuppetdb();
      await lab.startPuppetdb();
      await sasori("sync", "--full");
      const { code, stdout } = await sasori("diff", "--held");
      expect(code).toBe(3);
      const rows = lines(stdout);
      expect(rows[0]).toMatch(/^held plan [0-9a-f]{12}, 30 changes: /);
      expect(rows).toContain("  master1: 10 removed");
      const names = Array.from({ length: 30 }, (_, index) => node(index)).sort();
      expect(rows.slice(rows.findIndex((row) => /^NODE +FROM +TO$/.test(row)) + 1)).toEqual(
        names.map((name) => expect.stringMatching(new RegExp(`^${name} +master\\d +\\(removed\\)$`))),
      );
      const { changes } = JSON.parse((await sasori("diff", "--held", "--json")).stdout);
      expect(changes).toHaveLength(30);
    }));

  test("a list is a table with headers, names only, or JSON", () =>
    withDesk(3, async ({ sasori, startDaemon }) => {
      await startDaemon();
      const heads = async (...args: string[]) => lines((await sasori(...args)).stdout)[0]?.split(/ {2,}/);
      expect(await heads("masters")).toEqual([
        ...["MASTER", "NODES", "SHARE", "STATE", "SESSIONS", "QUEUE", "REQUESTS"],
      ]);
      expect(await heads("masters", "-o", "wide")).toContain("HAPROXY");
      expect(await heads("passes")).toContain("OUTCOME");
      expect((await sasori("nodes", "-o", "name")).stdout).toBe(
        [0, 1, 2].map((i) => `${node(i)}\n`).join(""),
      );
      const json = (await sasori("nodes", "-o", "json")).stdout;
      expect(json).toBe((await sasori("nodes", "--json")).stdout);
      expect((await sasori("nodes", "--json", "-o", "name")).code).toBe(2);
      const rows = lines((await sasori("masters", "--no-headers")).stdout);
      expect(rows).toHaveLength(3);
      expect(new Set(rows.map((row) => row.indexOf(" UP"))).size).toBe(1);
    }));

  test("a wrong argument points to the help of its command; all wrong variables are named at once", async () => {
    for (const args of [
      ["nodes", "--limit", "0"],
      ["register", node(1)],
      ["lookup", "NO;PE"],
      ["drain", "--x"],
    ])
      expect((await run("sasori", args, {})).stderr).toMatch(
        new RegExp(`\nRun sasori ${args[0]} --help for examples.\n$`),
      );
    const wrong = { SASORI_LISTEN: "nonsense", SASORI_LOG_LEVEL: "loud", SASORI_LISTN: "127.0.0.1:1" };
    const { code, stderr } = await run("sasori", ["status"], wrong);
    expect(code).toBe(2);
    for (const name of Object.keys(wrong)) expect(stderr).toContain(name);
    expect(stderr).not.toContain("SASORI_MAP_FILE"); // An operator's shell has none of it.
    expect((await run("sasori", ["status"], { ...wrong, SASORI_HAPROXY: "none" })).stderr).toContain(
      "SASORI_MAP_FILE is not set",
    );
  });

  test("a command that finds no daemon and no configuration names both", async () => {
    const SASORI_LISTEN = `127.0.0.1:${await freePort()}`;
    for (const args of [["sync"], ["diff"], ["nodes"], ["lookup", "node1.example.com"]]) {
      const { code, stderr } = await run("sasori", args, { SASORI_LISTEN });
      expect({ args, code }).toEqual({ args, code: 2 });
      expect(stderr).toContain(`no daemon runs on http://${SASORI_LISTEN} (SASORI_LISTEN), and without one`);
      expect(stderr).toContain("SASORI_PUPPETDB_URL is not set");
    }
  });

  test("version says sasori's own and that of Node.js; ./sasori of a clone is the same program", async () => {
    const { stdout } = await run("sasori", ["version"], {});
    expect(stdout).toMatch(/^sasori \d+\.\d+\.\d+ \(Node\.js v\d+\.\d+\.\d+, linux-\w+\)\n$/);
    expect(await run(path.join(ROOT, "sasori"), ["version"], {})).toEqual({ code: 0, stdout, stderr: "" });
    const copy = path.join(folder, "clone");
    await mkdir(copy);
    await copyFile(path.join(ROOT, "sasori"), path.join(copy, "sasori"));
    expect(await run(path.join(copy, "sasori"), ["version"], {})).toMatchObject({
      code: 1,
      stderr: expect.stringContaining(`Run: ${copy}/setup/build.sh`),
    });
  });
});

describe("rebalance", () => {
  test("goes node by node, only to the master that was named, and Ctrl-C leaves the others where they are", () =>
    withDesk(9, async ({ lab, env, sasori, startDaemon }) => {
      await startDaemon();
      const server = (name: string, state: string) =>
        runtimeCommand(lab.haproxys[0]?.socketPath ?? "", `set server puppet/${name} state ${state}`);
      for (const master of ["master1", "master2"]) await server(master, "maint");
      await sasori("sync");
      for (const index of [0, 1, 3, 4, 6]) await lab.run(node(index), "master3");
      await sasori("sync");
      for (const master of ["master1", "master2"]) await server(master, "ready");
      await sasori("sync");
      const displaced = async () => lines((await sasori("rebalance", "--dry-run", "-o", "name")).stdout);
      expect(await displaced()).toEqual([0, 1, 3, 4, 6].map(node));
      const pages: string[][] = [];
      for (let next: string | null = ""; next !== null; ) {
        const path = `/api/v1/displaced?home=master1&limit=2&cursor=${next}`;
        const page = (await (await fetch(`http://${env.SASORI_LISTEN}${path}`)).json()) as DisplacedNodes;
        pages.push(page.nodes.map(({ certname }) => certname));
        next = page.next;
      }
      expect(pages).toEqual([[node(0), node(3)], [node(6)]]);
      // The next one would be moved back in a minute.
      const args = [CLI, "rebalance", "--master", "master1", "--per-minute", "1"];
      const slow = new Child(process.execPath, args, { env: { ...PLAIN(), ...env } });
      try {
        await expect.poll(() => slow.printed).toBe(`1/3  ${node(0)} → master1\n`);
      } finally {
        await slow.end("SIGINT");
      }
      expect(slow.printed).not.toContain("moved back");
      expect(await displaced()).toEqual([1, 3, 4, 6].map(node));
      const rest = await sasori("rebalance", "--master", "master1", "--per-minute", "60000");
      expect({ code: rest.code, lines: lines(rest.stdout) }).toEqual({
        code: 0,
        lines: [`1/2  ${node(3)} → master1`, `2/2  ${node(6)} → master1`, "2 nodes moved back"],
      });
      expect(await displaced()).toEqual([1, 4].map(node));
      expect((await sasori("rebalance", "--per-minute", "0")).code).toBe(2);
    }));
});

describe("drain", () => {
  const withServers = (count: number, use: (desk: Desk & Servers) => Promise<void>) =>
    withDesk(count, async (desk) => {
      await desk.startDaemon();
      const socket = desk.lab.haproxys[0]?.socketPath ?? "";
      await use({
        ...desk,
        async server(name, state) {
          await runtimeCommand(socket, `set server puppet/${name} state ${state}`);
          await desk.sasori("sync");
        },
        async nodesOf(master) {
          const { stdout } = await desk.sasori("nodes", "--master", master, "--json");
          return JSON.parse(stdout).nodes.map(({ certname }: { certname: string }) => certname);
        },
      });
    });
  interface Servers {
    server(name: string, state: string): Promise<void>;
    nodesOf(master: string): Promise<string[]>;
  }

  test("moves a drained master's nodes to the others evenly; it gets none until it is ready, then they move back", () =>
    withServers(12, async ({ sasori, server, nodesOf, lab }) => {
      for (const index of [1, 4]) await lab.run(node(index), "master3"); // Now master3 has 6, master2 has 2.
      await server("master1", "drain");
      const expected = ["master2", "master2", "master2", "master2"].map((to, index) => ({
        certname: node([0, 3, 6, 9][index] ?? 0),
        from: "master1",
        to,
      }));
      expect(JSON.parse((await sasori("drain", "master1", "--dry-run", "--json")).stdout)).toEqual(expected);
      expect(await nodesOf("master1")).toHaveLength(4);
      const drained = await sasori("drain", "master1", "--per-minute", "6000", "--json");
      expect(drained).toMatchObject({
        code: 0,
        stderr: expect.stringContaining(`1/4  ${node(0)} → master2\n`),
      });
      expect(drained.stderr).toMatch(/4 nodes moved away from master1\n$/);
      expect(JSON.parse(drained.stdout)).toEqual(expected);
      expect(await nodesOf("master1")).toEqual([]);
      expect(await nodesOf("master2")).toHaveLength(6);
      // The next one is not sent to it either.
      await server("master2", "drain");
      const { stdout } = await sasori("drain", "master2", "--dry-run", "--no-headers");
      expect(new Set(lines(stdout).map((line) => line.split(/ +/)[2]))).toEqual(new Set(["master3"]));
      await server("master2", "ready");
      const early = await sasori("rebalance", "--per-minute", "6000");
      expect(early).toMatchObject({
        code: 1,
        stdout: expect.stringContaining("4 nodes skipped: no HAProxy sees master1 up"),
      });
      await server("master1", "ready");
      expect((await sasori("status")).stdout).toContain("4 nodes left master1 while it was down or drained");
      expect(await sasori("rebalance", "--per-minute", "6000")).toMatchObject({ code: 0 });
      expect(await nodesOf("master1")).toEqual([0, 3, 6, 9].map(node));
    }));

  test("goes at its pace, and lets a node be that has left meanwhile by itself", () =>
    withServers(9, async ({ env, lab, sasori, server, nodesOf }) => {
      await server("master1", "drain");
      const args = [CLI, "drain", "master1", "--per-minute", "10"];
      const slow = new Child(process.execPath, args, { env: { ...PLAIN(), ...env } });
      try {
        await expect.poll(() => slow.printed).toBe(`1/3  ${node(0)} → master2\n`);
        process.kill(slow.pid, "SIGSTOP"); // The next one would be moved 6 s later.
        await lab.run(node(3), "master3");
        expect((await sasori("sync")).code).toBe(0);
        process.kill(slow.pid, "SIGCONT");
        await expect.poll(() => slow.ended).toBe(true);
      } finally {
        await slow.end();
      }
      expect(lines(slow.printed).slice(1)).toEqual([
        `2/3  ${node(6)} → master2`,
        "2 nodes moved away from master1",
      ]);
      expect(await nodesOf("master3")).toContain(node(3));
    }));

  test("does not say that it is done when whoever reads what it says goes away in the middle", () =>
    withServers(12, async ({ env, sasori, server, nodesOf }) => {
      const piped = (command: string) => {
        const script = `${process.execPath} ${CLI} ${command} --per-minute 60 | head -1`;
        return new Child("bash", ["-o", "pipefail", "-c", script], { env: { ...PLAIN(), ...env } }).code();
      };
      await server("master1", "drain");
      expect(await piped("drain master1")).toBe(1);
      expect((await nodesOf("master1")).length).toBeGreaterThan(0);
      expect((await sasori("drain", "master1", "--per-minute", "6000")).code).toBe(0);
      await server("master1", "ready");
      expect(await piped("rebalance")).toBe(1);
    }));

  test("says that HAProxy has not drained it, and moves nothing where no other is up", () =>
    withServers(3, async ({ sasori, server, nodesOf }) => {
      expect(await sasori("drain", "master9")).toMatchObject({
        code: 2,
        stderr: expect.stringContaining('no master "master9". The masters are: master'),
      });
      await server("master2", "maint");
      await server("master3", "drain");
      for (const words of [["--dry-run"], []]) {
        const { code, stdout, stderr } = await sasori("drain", "master1", ...words);
        expect({ code, said: `${stdout}${stderr}` }).toEqual({
          code: 1,
          said: expect.stringContaining("no HAProxy sees a master other than master1 up"),
        });
        expect(await nodesOf("master1")).toEqual([node(0)]);
      }
      await server("master3", "ready");
      expect(await sasori("drain", "master1")).toMatchObject({
        code: 0,
        stdout: expect.stringMatching(/^master1 is not drained in HAProxy.*state drain\n1\/1 /),
      });
      expect((await sasori("drain", "master1", "--per-minute", "x")).code).toBe(2);
    }));
});

describe("priority", () => {
  test("set, list and unset: the file and every live map agree, also with one that could not be told", async () => {
    const file = path.join(folder, "priority.map");
    await writeFile(file, "");
    const variables = { PRIORITY_MAP: file };
    await withGateway({ bin, variables }, ({ haproxy: first }) =>
      withGateway({ bin, variables }, async ({ haproxy: second }) => {
        const env = {
          SASORI_PUPPETDB_URL: "http://127.0.0.1:1",
          SASORI_HAPROXY: `${first.socketPath},${second.socketPath}`,
          SASORI_MAP_FILE: first.mapPath,
          SASORI_PRIORITY_FILE: file,
        };
        const priority = (...args: string[]) => run("sasori", ["priority", ...args], env);
        /** As HAProxy and the file list them: key and class. */
        const entries = (text: string) =>
          lines(text)
            .filter((line) => !line.startsWith("#"))
            .map((line) => line.replace(/^0x\S+ /, ""))
            .sort();
        const places = async () => [
          entries(await readFile(file, "utf8")),
          ...(await Promise.all(
            [first, second].map(async ({ socketPath }) =>
              entries(await runtimeCommand(socketPath, `show map ${file}`)),
            ),
          )),
        ];
        const everywhere = async (...expected: string[]) =>
          expect(await places()).toEqual([expected, expected, expected]);

        expect(await priority("list", "--json")).toMatchObject({ code: 0, stdout: "{}\n" });
        expect(await priority("set", "db1.example.com", "-100")).toEqual({
          code: 0,
          stdout: `db1.example.com  -100\n  ${first.socketPath}  updated\n  ${second.socketPath}  updated\n`,
          stderr: "",
        });
        await everywhere("db1.example.com -100");

        await second.kill();
        const half = await priority("set", "192.0.2.7", "5");
        expect(half.code).toBe(1);
        expect(lines(half.stdout)).toEqual([
          "192.0.2.7  5",
          `  ${first.socketPath}  updated`,
          expect.stringContaining(`  ${second.socketPath}  failed: HAPROXY_UNREACHABLE: `),
        ]);
        await second.restart();
        await everywhere("192.0.2.7 5", "db1.example.com -100");
        expect(lines((await priority("list")).stdout)).toEqual([
          "NODE OR ADDRESS  CLASS",
          "db1.example.com   -100",
          "192.0.2.7            5",
        ]);

        for (const wrong of [
          ["set", "no;pe", "1"],
          ["set", "db1.example.com", "2048"],
          ["set", "db1.example.com", "first"],
          ["set", "db1.example.com"],
        ])
          expect({ wrong, code: (await priority(...wrong)).code }).toEqual({ wrong, code: 2 });
        expect((await priority("set", "db1.example.com", "first")).stderr).toContain(
          "Expected a whole number from -2047",
        );
        const another = { ...env, SASORI_PRIORITY_FILE: path.join(folder, "prio.map") };
        const unknown = await run("sasori", ["priority", "set", "db1.example.com", "-1"], another);
        expect(unknown.code).toBe(1);
        expect(unknown.stdout).toContain("set SASORI_PRIORITY_FILE to the file that PRIORITY_MAP names");
        expect(unknown.stdout).not.toContain("SASORI_MAP_NAME");
        const nowhere = { ...env, SASORI_PRIORITY_FILE: "" };
        expect(await run("sasori", ["priority", "list"], nowhere)).toMatchObject({
          code: 2,
          stderr: expect.stringContaining("SASORI_PRIORITY_FILE"),
        });
        await everywhere("192.0.2.7 5", "db1.example.com -100");

        expect((await priority("unset", "db1.example.com")).code).toBe(0);
        await everywhere("192.0.2.7 5");
      }),
    );
  });
});

describe("priority, changed by many at once,", () => {
  test("loses nothing, and the file and HAProxy agree", async () => {
    const file = path.join(folder, "busy.map");
    await writeFile(file, "");
    await withGateway({ bin, variables: { PRIORITY_MAP: file } }, async ({ haproxy }) => {
      const env = {
        SASORI_PUPPETDB_URL: "http://127.0.0.1:1",
        SASORI_HAPROXY: haproxy.socketPath,
        SASORI_MAP_FILE: haproxy.mapPath,
        SASORI_PRIORITY_FILE: file,
      };
      const keys = [...Array.from({ length: 8 }, (_, index) => node(index)), "same", "same", "same", "same"];
      const done = await Promise.all(
        keys.map((key, index) => run("sasori", ["priority", "set", key, `-${index + 1}`], env)),
      );
      expect(done.map(({ code }) => code)).toEqual(keys.map(() => 0));
      const inFile = lines(await readFile(file, "utf8")).filter((line) => !line.startsWith("#"));
      expect(inFile.map((line) => line.split(" ")[0])).toEqual([...new Set(keys)].sort());
      const live = lines(await runtimeCommand(haproxy.socketPath, `show map ${file}`));
      expect(live.map((line) => line.replace(/^0x\S+ /, "")).sort()).toEqual(inFile);
    });
  });

  test("waits for whoever is at it, says so when that takes too long, and goes on when that was killed", async () => {
    const silent = createSocketServer((socket) => void socket.on("error", () => undefined));
    const socketPath = path.join(folder, "silent.sock");
    await new Promise<void>((resolve) => silent.listen(socketPath, resolve));
    const file = path.join(folder, "turn.map");
    const env = {
      ...PLAIN(),
      SASORI_PUPPETDB_URL: "http://127.0.0.1:1",
      SASORI_HAPROXY: socketPath,
      SASORI_MAP_FILE: path.join(folder, "turn-nodes.map"),
      SASORI_PRIORITY_FILE: file,
    };
    const slow = new Child(process.execPath, [CLI, "priority", "set", "slow.example.com", "1"], { env });
    const priority = new PriorityMap(file, []);
    try {
      await once(silent, "connection"); // It has written the file and has its turn for 10 s more.
      const began = performance.now();
      let now = began;
      const clock = vi.spyOn(performance, "now").mockImplementation(() => {
        now += 8_000; // Whoever looks at it: the second look after the first is too late.
        return now;
      });
      const late = priority.change("late.example.com", 2);
      await expect(late).rejects.toMatchObject({ code: "BUSY", message: expect.stringContaining(file) });
      clock.mockRestore();
      const next = priority.change("next.example.com", 3);
      await slow.end("SIGKILL");
      await next;
      expect(performance.now() - began).toBeLessThan(9_000); // Nobody waited for the end of that turn.
      expect([...(await priority.list())]).toEqual([
        ["next.example.com", 3],
        ["slow.example.com", 1],
      ]);
    } finally {
      vi.restoreAllMocks();
      await slow.end("SIGKILL");
      silent.close();
    }
  });
});

/** What a shell offers in place of the last word, one a line: the command line for that, in bash. */
const completedBy: Record<Shell, (words: string[]) => string> = {
  bash: (words) =>
    `source <(sasori completion bash); COMP_WORDS=(sasori ${quoted(words)}); COMP_CWORD=${words.length}
     _sasori; printf '%s\\n' "\${COMPREPLY[@]}"`,
  // zsh's completion needs a terminal. This sets and calls what it would.
  zsh: (words) =>
    `${pathOf("zsh")} -f -c 'compdef() { :; }; _describe() { printf "%s\\n" "\${(@)\${(P)2}%%:*}"; }
     source <(sasori completion zsh); words=(sasori "$@"); CURRENT=$#words; _sasori' zsh ${quoted(words)}`,
  fish: (words) =>
    `sasori completion fish | ${pathOf("fish")} --no-config -c 'source; complete -C "sasori '"${words.join(" ")}"'"'`,
};

const quoted = (words: readonly string[]): string => words.map((word) => `"${word}"`).join(" ");

describe("completion", () => {
  test("commands, options, masters and certnames, of the daemon or of the map file", () =>
    withDesk(6, async ({ sasori, bash, startDaemon }) => {
      await sasori("sync");
      const complete = async (...words: string[]) =>
        lines((await bash(completedBy.bash(words))).stdout).sort();
      // A shell does not wait long for names: on a busy machine there may be none at the first try.
      const names = async () => {
        await expect.poll(() => complete("lookup", "node1")).toEqual([node(1)]);
        await expect.poll(() => complete("register", node(1), "")).toHaveLength(3);
        await expect.poll(() => complete("moves", "--master", "master2")).toEqual(["master2"]);
      };
      expect(await complete("st")).toEqual(["status"]);
      expect(await complete("nodes", "--source", "re")).toEqual(["registration", "report"]);
      expect(await complete("status", "")).toEqual([]);
      await names();
      await startDaemon();
      await names();
      expect((await sasori("completion", "tcsh")).code).toBe(2);
    }));

  test.each(SHELLS)("in %s", (shell) =>
    withDesk(1, async ({ bash }) => {
      const complete = async (...words: string[]) => {
        const { stdout } = await bash(completedBy[shell](words));
        return lines(stdout)
          .map((line) => line.split("\t")[0])
          .sort();
      };
      expect(await complete("st")).toEqual(["status"]);
      expect(await complete("sync", "--")).toEqual(["--approve", "--dry-run", "--full", "--json"]);
      expect(await complete("priority", "")).toEqual(["list", "set", "unset"]);
      expect(await complete("completion", "")).toEqual(["bash", "fish", "zsh"]);
      expect(await complete("status", "")).toEqual([]);
      expect(await complete("")).toContain("lookup");
    }),
  );
});

describe("events", () => {
  test("are whole however they arrive", async () => {
    const text =
      ': still here\n\nid: a-1\nevent: moves\ndata: [{"to":"mü"}]\n\nretry: 2000\n\ndata: one\ndata: two\n\nevent: cut\ndata: no';
    for (const size of [1, 7, 1_000]) {
      const bytes = Buffer.from(text);
      const pieces = async function* () {
        for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
      };
      const events = [];
      for await (const event of parseEvents(pieces())) events.push(event);
      expect(events).toEqual([
        { event: "moves", id: "a-1", data: '[{"to":"mü"}]' },
        { event: "message", id: undefined, data: "one\ntwo" },
      ]);
    }
  });
});
