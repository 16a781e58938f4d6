// Builds the whole demo on this machine: PuppetDB (or its stand-in), three masters, HAProxy, the nodes, sasori.
// All listen on loopback, each is a process of its own, and all files are in one folder that its owner removes.

import { execFile } from "node:child_process";
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import { createServer, type Server } from "node:net";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { reason } from "../src/errors.js";
import type { Certname } from "../src/node-map.js";
import { MapFile } from "../src/target/map-file.js";
import { ask, mustAsk } from "./http.js";
import type { Processes } from "./processes.js";
import type { Terminal } from "./terminal.js";

const HOST = "127.0.0.1";
const REPOSITORY = path.resolve(fileURLToPath(new URL("../..", import.meta.url)));

/** Who listens where, unless a flag or a variable says otherwise. */
export const STANDARD_PORTS = {
  gateway: 8080,
  stats: 8081,
  puppetdb: 8085,
  master1: 8141,
  master2: 8142,
  master3: 8143,
  sasori: 9180,
  hints: 5514,
  nodes: 9190,
};
export type PortName = keyof typeof STANDARD_PORTS;
export const PORT_NAMES = Object.keys(STANDARD_PORTS) as PortName[];

export const portFlag = (name: PortName): string => `--${name}-port`;
export const portVariable = (name: PortName): string => `DEMO_${name.toUpperCase()}_PORT`;

export const MASTERS = ["master1", "master2", "master3"] as const;

export interface StageOptions {
  /** Undefined: any free port. */
  ports: Readonly<Record<PortName, number | undefined>>;
  nodes: number;
  checkInSeconds: number;
  moveSeconds: number;
  /** A PuppetDB that is there already; undefined: the stand-in. */
  puppetdbUrl: string | undefined;
  /** sasori looks for changes this often. */
  scheduleSeconds: number;
  /** The masters send sasori their log lines (docs/hints.md). */
  hints: boolean;
}

export interface Stage {
  repository: string;
  urls: Readonly<Record<PortName, string>>;
  scheduleSeconds: number;
  /** What another sasori command needs to find this sasori. */
  sasoriEnv: Readonly<Record<string, string>>;
  /** What the map file says now. */
  readMap(): Promise<ReadonlyMap<Certname, string>>;
}

/** Where everything is, before any of it runs. */
interface Plan {
  options: StageOptions;
  ports: Readonly<Record<PortName, number>>;
  urls: Readonly<Record<PortName, string>>;
  puppetdbUrl: string;
  mapFile: string;
  /** HAProxy's Runtime API. */
  socket: string;
}

/** Starts everything and resolves when every node is in the map. Rejects with what a person can do about it. */
export async function setStage(
  options: StageOptions,
  folder: string,
  processes: Processes,
  terminal: Terminal,
  signal: AbortSignal,
): Promise<Stage> {
  const haproxy = await findHaproxy();
  const ports = await reservePorts(options);
  const urls = mapValues(ports, (port) => `http://${HOST}:${port}`);
  const puppetdbUrl = options.puppetdbUrl ?? urls.puppetdb;
  const mapFile = path.join(folder, "node-master.map");
  const plan: Plan = {
    options,
    ports,
    urls,
    puppetdbUrl,
    mapFile,
    socket: path.join(folder, "haproxy.sock"),
  };

  await writeFile(mapFile, ""); // HAProxy does not start without it.
  if (options.puppetdbUrl !== undefined) {
    await checkPuppetdb(options.puppetdbUrl);
    terminal.tell("use", "puppetdb", `${puppetdbUrl} (--puppetdb)`);
  } else if (process.env.SASORI_PUPPETDB_URL) {
    const remedy = "to use that PuppetDB, run npm run demo -- --puppetdb <url>";
    terminal.tell("ignore", "puppetdb", `SASORI_PUPPETDB_URL of your shell is not used; ${remedy}`);
  }
  const programs = [
    ...(options.puppetdbUrl === undefined
      ? [demoProgram(plan, "puppetdb", "puppetdb.js", "/status/v1/simple")]
      : []),
    ...MASTERS.map((name) =>
      demoProgram(plan, name, "master.js", "/status/v1/simple", masterFlags(plan, name)),
    ),
    haproxyProgram(plan, haproxy.command),
    demoProgram(plan, "nodes", "nodes.js", "/ready", fleetFlags(plan)),
    sasoriProgram(plan),
  ];
  for (const program of programs) {
    terminal.waiting(`starting ${program.name} …`);
    await processes.start(program, signal);
    terminal.tell(
      "start",
      program.name,
      program.name === "haproxy" ? `${urls.gateway} (HAProxy ${haproxy.version})` : urls[program.name],
    );
  }

  const readMap = () => routesIn(mapFile);
  terminal.tell("ready", "map", `${(await readMap()).size} nodes, each at the master it checked in with`);
  const { scheduleSeconds } = options;
  return { repository: REPOSITORY, urls, scheduleSeconds, sasoriEnv: sasoriEnv(plan), readMap };
}

function demoProgram(
  plan: Plan,
  name: PortName,
  file: string,
  readyPath: string,
  flags: readonly string[] = [],
) {
  const { ports, urls, puppetdbUrl } = plan;
  return {
    name,
    command: process.execPath,
    args: [fileURLToPath(new URL(file, import.meta.url)), ...flags, "--listen", `${HOST}:${ports[name]}`],
    env: { ...cleanEnv(), ...credentials(plan), SASORI_PUPPETDB_URL: puppetdbUrl },
    isReady: () => answers(`${urls[name]}${readyPath}`, 200),
  };
}

function masterFlags({ options, ports }: Plan, name: string): string[] {
  return ["--name", name, ...(options.hints ? ["--hints-to", `${HOST}:${ports.hints}`] : [])];
}

function fleetFlags({ options, urls }: Plan): string[] {
  const flags = {
    count: options.nodes,
    "check-in-seconds": options.checkInSeconds,
    "move-seconds": options.moveSeconds,
    masters: MASTERS.map((name) => `${name}=${urls[name]}`).join(","),
  };
  return Object.entries(flags).flatMap(([name, value]) => [`--${name}`, String(value)]);
}

function haproxyProgram({ ports, urls, mapFile, socket }: Plan, command: string) {
  return {
    name: "haproxy" as const,
    command,
    args: ["-db", "-f", path.join(REPOSITORY, "haproxy/haproxy.cfg")],
    env: {
      ...process.env,
      GATEWAY_ADDRESS: HOST,
      GATEWAY_PORT: String(ports.gateway),
      STATS_ADDRESS: HOST,
      STATS_PORT: String(ports.stats),
      STATS_USER: "admin",
      STATS_PASSWORD: "admin",
      HAPROXY_SOCKET: socket,
      RESOLVER_ADDRESS: `${HOST}:${ports.sasori}`,
      NODE_MASTER_MAP: mapFile,
      // The demo's masters check that a node is theirs before they act.
      GATEWAY_REPLAY: "all",
      ...Object.fromEntries(MASTERS.map((name) => [name.toUpperCase(), `${HOST}:${ports[name]}`])),
    },
    isReady: () => answers(urls.gateway, 400), // "name the node"
  };
}

function sasoriProgram(plan: Plan) {
  return {
    name: "sasori" as const,
    command: process.execPath,
    args: [path.join(REPOSITORY, "dist/src/cli.js"), "serve"],
    env: { ...cleanEnv(), ...sasoriEnv(plan) },
    isReady: async () =>
      (await answers(`${plan.urls.sasori}/readyz`, 200)) &&
      (await routesIn(plan.mapFile)).size >= plan.options.nodes,
  };
}

/** Whatever the shell has for another sasori must not get into the demo. */
function cleanEnv(): Record<string, string | undefined> {
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("SASORI_")));
}

/** Certificates or a token, for a PuppetDB that was named on the command line. */
function credentials({ options }: Plan): Record<string, string> {
  if (options.puppetdbUrl === undefined) return {};
  const entries = Object.entries(process.env).filter(([name]) => name.startsWith("SASORI_PUPPETDB_"));
  return Object.fromEntries(entries) as Record<string, string>;
}

function sasoriEnv(plan: Plan): Record<string, string> {
  const { options, ports, puppetdbUrl, mapFile, socket } = plan;
  return {
    ...credentials(plan),
    SASORI_PUPPETDB_URL: puppetdbUrl,
    SASORI_HAPROXY: socket,
    SASORI_MAP_FILE: mapFile,
    SASORI_LISTEN: `${HOST}:${ports.sasori}`,
    SASORI_SCHEDULE: `*/${options.scheduleSeconds} * * * * *`,
    SASORI_PROBE_PATH: "/nodes/{certname}",
    ...(options.hints && { SASORI_SYSLOG_LISTEN: `${HOST}:${ports.hints}` }),
  };
}

async function routesIn(mapFile: string): Promise<ReadonlyMap<Certname, string>> {
  return (await new MapFile(mapFile).read()).routes;
}

async function answers(url: string, status: number): Promise<boolean> {
  return (await ask("GET", url)).status === status;
}

async function findHaproxy(): Promise<{ command: string; version: string }> {
  const command = process.env.HAPROXY_BIN || "haproxy";
  try {
    const { stdout } = await promisify(execFile)(command, ["-v"]);
    return { command, version: /version (\d[\d.]*\d)/.exec(stdout)?.[1] ?? "of an unknown version" };
  } catch (error) {
    throw new Error(`cannot run HAProxy as "${command}" (${reason(error)}). Set HAPROXY_BIN to your HAProxy`);
  }
}

async function checkPuppetdb(url: string): Promise<void> {
  if (!url.startsWith("http:")) return; // The certificates are the masters' and sasori's affair.
  await mustAsk("GET", `${url}/pdb/meta/v1/version`).catch((error) => {
    throw new Error(`no PuppetDB answers at ${url} (--puppetdb): ${reason(error)}`);
  });
}

/** Finds out before anything starts whether all ports are free. All are held until the last one was tried. */
async function reservePorts({ ports, puppetdbUrl, hints }: StageOptions): Promise<Record<PortName, number>> {
  const spared = [...(puppetdbUrl === undefined ? [] : ["puppetdb"]), ...(hints ? [] : ["hints"])];
  const needed = PORT_NAMES.filter((name) => !spared.includes(name));
  const held: Server[] = [];
  const busy: string[] = [];
  const reserved = mapValues(STANDARD_PORTS, () => 0);
  for (const name of needed) {
    try {
      const [server, port] = await holdPort(ports[name]);
      held.push(server);
      reserved[name] = port;
    } catch (error) {
      busy.push(
        `  ${name}: ${reason(error)}; choose another port with ${portFlag(name)} or ${portVariable(name)}`,
      );
    }
  }
  await Promise.all(held.map((server) => once(server.close(), "close")));
  if (busy.length > 0)
    throw new Error(`these ports cannot be used, so nothing was started:\n${busy.join("\n")}`);
  return reserved;
}

/**
 * Listens on the port, or on any that is free. Not on one that the kernel offers (32768 and above): before the program
 * that it is for has started, the kernel may have given that to somebody's outgoing connection.
 */
async function holdPort(wanted: number | undefined): Promise<[Server, number]> {
  for (let tries = 0; ; tries += 1) {
    const port = wanted ?? 10_000 + Math.floor(Math.random() * 10_000);
    const server = createServer().listen({ host: HOST, port });
    try {
      await once(server, "listening");
      return [server, port];
    } catch (error) {
      if (wanted !== undefined || tries === 100) throw error;
    }
  }
}

function mapValues<Key extends string, From, To>(record: Record<Key, From>, change: (value: From) => To) {
  const entries = Object.entries(record) as [Key, From][];
  return Object.fromEntries(entries.map(([key, value]) => [key, change(value)])) as Record<Key, To>;
}
