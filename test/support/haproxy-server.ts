/**
 * A real HAProxy on loopback, for tests: started in a temporary folder, ready when the promise resolves, and
 * ended by its own process id.
 */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { connect, type NetConnectOpts } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Child, freePort } from "./child.js";
import { patient } from "./patience.js";

const ANSWER_DEADLINE_MS = 10_000;

/** What a test may ask for. Everything but `bin` has a default; all ports are on 127.0.0.1. */
export interface HaproxyOptions {
  /** The HAProxy program, from `haproxyBinaries()`. */
  bin: string;
  /** The servers of backend `puppet`. Nothing needs to listen there. Default: none. */
  servers?: readonly { name: string; port: number }[];
  /** What the map file holds at the start, node to server name. Default: empty. */
  map?: Iterable<readonly [string, string]>;
  /** Adds a second stats socket on a TCP port (`ports.stats`). */
  tcpStats?: boolean;
  /** Master-worker mode (`-W`), which `reload()` needs. The master CLI is then at `masterSocketPath`. */
  masterWorker?: boolean;
  /** Lines for the config's `global` section, such as "tune.bufsize 32768". */
  globalLines?: readonly string[];
  /** Lines for backend `puppet`, in place of `servers`. */
  backendLines?: readonly string[];
  /** Adds a section `resolvers dns` that asks this port and forgets within 200 ms. */
  nameserverPort?: number;
  /** Replaces the whole config. It must keep the map and the stats socket where `places` says. */
  config?: (places: HaproxyPlaces) => string;
}

/** Where a started HAProxy has its things. `ports.frontend` routes by the header X-Node-Name. */
export interface HaproxyPlaces {
  dir: string;
  mapPath: string;
  socketPath: string;
  masterSocketPath: string;
  ports: { frontend: number; stats: number };
}

/** A running HAProxy. */
export interface HaproxyServer extends HaproxyPlaces {
  /** Of the process that was started: with `masterWorker` that is the master. */
  readonly pid: number;
  /** Ends it (SIGTERM), waits until it is gone, and removes its folder. Safe to call twice. */
  stop(): Promise<void>;
  /** Ends it as a crash would (SIGKILL), workers too; its folder stays, so that `restart()` works. */
  kill(): Promise<void>;
  /** Ends it if it runs, then starts it anew with the same config, ports and map file. */
  restart(): Promise<void>;
  /** Reloads the config (SIGUSR2) and waits for the new worker to answer. Only with `masterWorker`. */
  reload(): Promise<void>;
  /** All that it has printed so far. */
  output(): string;
  /** The live map, read by `showMap`. */
  showMap(): Promise<Map<string, string>>;
}

/** Starts a HAProxy; rejects, with what it printed, when it does not answer in time. */
export async function startHaproxy(options: HaproxyOptions): Promise<HaproxyServer> {
  const dir = await mkdtemp(join(tmpdir(), "sasori-haproxy-"));
  const places: HaproxyPlaces = {
    dir,
    mapPath: join(dir, "nodes.map"),
    socketPath: join(dir, "admin.sock"),
    masterSocketPath: join(dir, "master.sock"),
    ports: { frontend: await freePort(), stats: await freePort() },
  };
  const configPath = join(dir, "haproxy.cfg");
  const entries = [...(options.map ?? [])].map(([node, server]) => `${node} ${server}\n`);
  await writeFile(places.mapPath, entries.join(""));
  await writeFile(configPath, (options.config ?? ((at) => defaultConfig(at, options)))(places));

  const mode = options.masterWorker ? ["-W", "-S", places.masterSocketPath] : ["-db"];
  const args = [...mode, "-f", configPath];
  let earlier = ""; // what the processes before the running one have printed
  let running: Child;

  const start = async (): Promise<void> => {
    // Not in its own folder: nothing in a configuration may depend on that.
    running = new Child(options.bin, args, { cwd: tmpdir() });
    await untilWorkerIsNot(0);
  };
  /** Waits for a worker with another process id, and for its master. */
  const untilWorkerIsNot = async (before: number): Promise<void> => {
    await running.untilReady(async () => {
      const pid = await workerPid(places.socketPath);
      if (options.masterWorker) await runtimeCommand(places.masterSocketPath, "show proc");
      return pid !== 0 && pid !== before;
    });
  };

  try {
    await start();
  } catch (error) {
    await rm(dir, { recursive: true, force: true });
    throw error;
  }

  return {
    ...places,
    get pid() {
      return running.pid;
    },
    async stop() {
      await running.end();
      await rm(dir, { recursive: true, force: true });
    },
    async kill() {
      await running.end("SIGKILL");
    },
    async restart() {
      await running.end();
      earlier += running.printed;
      await start();
    },
    async reload() {
      if (!options.masterWorker) throw new Error("reload() needs { masterWorker: true }");
      const before = await workerPid(places.socketPath);
      process.kill(running.pid, "SIGUSR2");
      await untilWorkerIsNot(before);
    },
    output: () => earlier + running.printed,
    showMap: () => showMap(places.socketPath, places.mapPath),
  };
}

/** Starts a HAProxy, gives it to `use`, and stops it in any case. */
export async function withHaproxy<T>(
  options: HaproxyOptions,
  use: (haproxy: HaproxyServer) => Promise<T>,
): Promise<T> {
  const haproxy = await startHaproxy(options);
  try {
    return await use(haproxy);
  } finally {
    await haproxy.stop();
  }
}

/**
 * Sends one line to a stats socket (a path, or a port on 127.0.0.1) and resolves with the whole answer. As plain
 * as can be: it is what our own client is checked against. Rejects on a refused or reset connection and
 * after 10 s of silence, with patience.
 */
export function runtimeCommand(socket: string | number, line: string): Promise<string> {
  const where: NetConnectOpts =
    typeof socket === "number" ? { host: "127.0.0.1", port: socket } : { path: socket };
  return new Promise((resolve, reject) => {
    let answer = "";
    // The half-close is for the master CLI, which would wait for another command.
    const connection = connect({ ...where, allowHalfOpen: true }, () => connection.end(`${line}\n`));
    connection.setEncoding("utf8");
    connection.setTimeout(patient(ANSWER_DEADLINE_MS), () => connection.destroy(new Error("no answer")));
    connection.on("data", (chunk: string) => {
      answer += chunk;
    });
    connection.on("end", () => resolve(answer));
    connection.on("error", (error) => reject(new Error(`${line} to ${socket}: ${error.message}`)));
  });
}

/** The live map as HAProxy holds it. Throws on a duplicate key, which a Map could not show. */
export async function showMap(socket: string | number, mapPath: string): Promise<Map<string, string>> {
  const answer = await runtimeCommand(socket, `show map ${mapPath}`);
  const entries = new Map<string, string>();
  for (const line of answer.split("\n").filter((text) => text !== "")) {
    const [, key, value] = /^0x[0-9a-f]+ (\S+) (.*)$/.exec(line) ?? [];
    if (key === undefined || value === undefined) throw new Error(`show map answered: ${line}`);
    if (entries.has(key)) throw new Error(`the live map has ${key} twice`);
    entries.set(key, value);
  }
  return entries;
}

/** The section `defaults` of every test's own configuration. */
export const DEFAULTS = `defaults
  mode http
  timeout connect 1s
  timeout client 5s
  timeout server 5s
  # Otherwise a check must be answered within its interval, and the masters are in the test's own process.
  timeout check 20s
`;

function defaultConfig(at: HaproxyPlaces, options: HaproxyOptions): string {
  const tcpStats = `stats socket ipv4@127.0.0.1:${at.ports.stats} level admin`;
  const global = [
    "log stdout format raw local0 notice",
    `stats socket ${at.socketPath} level admin mode 600`,
    ...(options.tcpStats ? [tcpStats] : []),
    ...(options.globalLines ?? []),
  ];
  const servers = (options.servers ?? []).map(({ name, port }) => `server ${name} 127.0.0.1:${port}`);
  const { backendLines = servers, nameserverPort } = options;
  const short = ["hold valid", "hold nx", "hold obsolete", "timeout resolve"].map((what) => `${what} 200ms`);
  const resolvers = ["resolvers dns", `nameserver it 127.0.0.1:${nameserverPort}`, ...short];
  return `global
  ${global.join("\n  ")}

${nameserverPort === undefined ? "" : resolvers.join("\n  ")}

${DEFAULTS}
frontend nodes
  bind 127.0.0.1:${at.ports.frontend}
  http-request set-var(txn.master) req.hdr(X-Node-Name),lower,map_str(${at.mapPath})
  default_backend puppet

backend puppet
  http-response set-header X-Server %s
  use-server %[var(txn.master)] if { var(txn.master) -m found }
  ${backendLines.join("\n  ")}
`;
}

/** The process that answers on the socket; 0 while it says nothing. Rejects while nobody listens. */
async function workerPid(socketPath: string): Promise<number> {
  const info = await runtimeCommand(socketPath, "show info");
  return Number(/^Pid: (\d+)$/m.exec(info)?.[1] ?? 0);
}
