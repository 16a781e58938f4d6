// The real programs that the model is compared with: sasori as users start it, once or twice on the same file, two real
// HAProxy instances with the project's own configuration, masters that check whether a node is theirs and write down what they
// execute, and the stand-in for PuppetDB. Whatever can be late, cut or down is so until it is told otherwise.

import { once } from "node:events";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import http from "node:http";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { RunningServer } from "../../demo/http.js";
import { Storage, startPuppetdbStandIn } from "../../demo/puppetdb.js";
import type { SyncReport } from "../../src/sync-report.js";
import { CLI, parseMap } from "../faults/arena.js";
import { PuppetdbFront, SocketFront } from "../faults/fronts.js";
import { Child, freePort } from "../support/child.js";
import { gatewayConfig } from "../support/gateway.js";
import { type HaproxyServer, runtimeCommand, showMap, startHaproxy } from "../support/haproxy-server.js";
import { haproxyBinaries } from "../support/parts.js";
import { patient } from "../support/patience.js";
import { ON_DEMAND } from "../support/schedules.js";
import { type Command, type Log, MASTERS } from "./model.js";

const CONDITION_MS = 15_000;
const REQUEST_ID = "x-model-request";

/** A path that no node has anywhere: its 404 is the node's own. */
export const NOWHERE = "/none";

export type Who = "A" | "B";
export type Side = 0 | 1;

/** What a master did for one request. */
export interface Execution {
  master: string;
  /** It answered 200. */
  acted: boolean;
}

export interface Answer {
  status: number;
  servedBy: string;
  route: string;
  executions: Execution[];
}

interface Gateway {
  version: string;
  haproxy: HaproxyServer;
  /** What sasori has for its socket. */
  front: SocketFront;
  isCut: boolean;
}

interface Sasori {
  child: Child | undefined;
  port: number;
  /** Its way to PuppetDB. */
  front: PuppetdbFront;
}

export class World {
  readonly #dir: string;
  readonly mapFile: string;
  readonly gateways: Gateway[] = [];
  readonly sasoris: Record<Who, Sasori>;
  /** The master that has a node, whatever the maps say. */
  readonly homes = new Map<string, string>();
  isPuppetdbUp = true;
  readonly #masters: http.Server[] = [];
  readonly #executed = new Map<string, Execution[]>();
  #requests = 0;
  #storage = new Storage();
  #puppetdb: RunningServer | undefined;
  readonly #env: Record<string, string>;

  private constructor(dir: string, env: Record<string, string>) {
    this.#dir = dir;
    this.#env = env;
    this.mapFile = path.join(dir, "maps", "nodes.map");
    const sasori = () => ({ child: undefined, port: 0, front: new PuppetdbFront("") });
    this.sasoris = { A: sasori(), B: sasori() };
  }

  /** Gives `use` a world in which nothing has happened yet: sasori A runs, B does not. */
  static async with<T>(
    options: { haproxys: [number, number]; variables: Record<string, string>; env: Record<string, string> },
    use: (world: World) => Promise<T>,
  ): Promise<T> {
    const world = new World(await mkdtemp(path.join(tmpdir(), "sasori-model-")), options.env);
    try {
      await world.#start(options.haproxys, options.variables);
      return await use(world);
    } finally {
      await world.#stop();
    }
  }

  async #start(haproxys: [number, number], variables: Record<string, string>): Promise<void> {
    await mkdir(path.dirname(this.mapFile));
    await writeFile(this.mapFile, "");
    await this.rebuildPuppetdb([]);
    const ports: { port: number }[] = [];
    for (const name of MASTERS) ports.push({ port: await this.#startMaster(name) });
    this.sasoris.A.port = await freePort();
    for (const { front } of Object.values(this.sasoris)) await front.open();
    const binaries = haproxyBinaries();
    for (const [index, chosen] of haproxys.entries()) {
      const { bin, version } = binaries[chosen % binaries.length] ?? { bin: "", version: "" };
      const statsPort = await freePort();
      const haproxy = await startHaproxy({
        bin,
        masterWorker: true,
        config: (at) =>
          gatewayConfig({ ...at, mapPath: this.mapFile }, ports, statsPort, {
            RESOLVER_ADDRESS: `127.0.0.1:${this.sasoris.A.port}`,
            ...variables,
          }),
      });
      const front = new SocketFront(
        path.join(this.#dir, `haproxy${index + 1}.sock`),
        () => haproxy.socketPath,
      );
      await front.open();
      this.gateways.push({ version, haproxy, front, isCut: false });
    }
    await this.startSasori("A");
  }

  async #stop(): Promise<void> {
    for (const { child, front } of Object.values(this.sasoris)) {
      await child?.end("SIGKILL");
      await front.close();
    }
    for (const { front, haproxy } of this.gateways) {
      await front.close();
      await haproxy.stop();
    }
    for (const server of this.#masters) {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    }
    await this.#puppetdb?.close();
    await rm(this.#dir, { recursive: true, force: true });
  }

  // ---- masters

  async #startMaster(name: string): Promise<number> {
    const server = http.createServer((request, response) => {
      if (request.url === "/status/v1/simple") {
        response.end("running");
        return;
      }
      request.resume();
      request.on("end", () => {
        const isMine = this.homes.get(String(request.headers["x-node-name"])) === name;
        const acted = isMine && request.url !== NOWHERE;
        this.#executed.get(String(request.headers[REQUEST_ID]))?.push({ master: name, acted });
        response.writeHead(acted ? 200 : 404).end(name);
      });
    });
    server.keepAliveTimeout = 0; // See startMaster of test/support/gateway.ts.
    const port = await freePort();
    server.listen(port, "127.0.0.1");
    await once(server, "listening");
    this.#masters.push(server);
    return port;
  }

  /** A request through a gateway, on a connection of its own. Status 0: no answer. */
  async ask(side: Side, method: "GET" | "POST", node: string, where: string): Promise<Answer> {
    this.#requests += 1;
    const id = String(this.#requests);
    const executions: Execution[] = [];
    this.#executed.set(id, executions);
    const headers = { "x-node-name": node, [REQUEST_ID]: id };
    const port = this.gateways[side]?.haproxy.ports.frontend;
    const request = http.request({ host: "127.0.0.1", port, path: where, method, headers, agent: false });
    request.setTimeout(patient(CONDITION_MS), () => request.destroy(new Error("no answer")));
    request.end(method === "POST" ? "order=1" : undefined);
    try {
      const [response] = (await once(request, "response")) as [http.IncomingMessage];
      response.resume();
      await once(response, "end");
      const header = (name: string) => String(response.headers[name] ?? "-");
      const status = response.statusCode ?? 0;
      return { status, servedBy: header("x-served-by"), route: header("x-route"), executions };
    } catch (error) {
      return { status: 0, servedBy: String(error), route: "-", executions };
    } finally {
      this.#executed.delete(id);
    }
  }

  // ---- PuppetDB

  /** A command reaches it. */
  store({ node, kind, producer, at, received }: Command): void {
    const time = new Date(at).toISOString();
    const common = { certname: node, environment: "production", producer, producer_timestamp: time };
    const [command, version, payload] = {
      facts: ["replace facts", 5, { values: {} }] as const,
      catalog: ["replace catalog", 9, { version: "1", edges: [], resources: [] }] as const,
      report: ["store report", 8, { start_time: time, end_time: time, status: "unchanged" }] as const,
      deactivate: ["deactivate node", 3, {}] as const,
    }[kind];
    this.#storage.submit(command, version, { ...common, ...payload }, new Date(received).toISOString());
  }

  /** It has just what these commands have left, as after a restore. */
  async rebuildPuppetdb(log: Log): Promise<void> {
    await this.#puppetdb?.close();
    this.#storage = new Storage();
    for (const command of log) this.store(command);
    this.#puppetdb = await startPuppetdbStandIn({ host: "127.0.0.1", port: 0 }, this.#storage);
    const { url } = this.#puppetdb;
    for (const { front } of Object.values(this.sasoris)) front.upstream = () => url;
  }

  async setPuppetdb(isUp: boolean): Promise<void> {
    if (isUp === this.isPuppetdbUp) return;
    this.isPuppetdbUp = isUp;
    for (const { front } of Object.values(this.sasoris)) await (isUp ? front.open() : front.close());
  }

  /**
   * From now on one sasori's questions wait, or, `stale`, the answers that they have got by then. `asked` resolves when one
   * waits.
   */
  holdPuppetdb(who: Who, stale: boolean): { asked: Promise<void>; release: () => void } {
    let [wasAsked, release] = [() => {}, () => {}];
    const asked = new Promise<void>((resolve) => {
      wasAsked = resolve;
    });
    const released = new Promise<void>((resolve) => {
      release = resolve;
    });
    const { front } = this.sasoris[who];
    const wait = () => {
      wasAsked();
      return released;
    };
    front.tap = stale
      ? { text: (response, text) => void wait().then(() => response.end(text)) }
      : { asked: wait };
    return {
      asked,
      release: () => {
        front.tap = {};
        release();
      },
    };
  }

  // ---- sasori

  runs(who: Who): boolean {
    return this.sasoris[who].child !== undefined;
  }

  get running(): Who[] {
    return (["A", "B"] as const).filter((who) => this.runs(who));
  }

  url(who: Who): string {
    return `http://127.0.0.1:${this.sasoris[who].port}`;
  }

  async startSasori(who: Who): Promise<void> {
    const sasori = this.sasoris[who];
    // That of A is in HAProxy's configuration.
    if (who === "B") sasori.port = await freePort();
    sasori.child = new Child(process.execPath, [CLI, "serve"], {
      env: {
        PATH: process.env.PATH ?? "",
        SASORI_PUPPETDB_URL: sasori.front.url,
        SASORI_HAPROXY: this.gateways.map(({ front }) => front.path).join(","),
        SASORI_MAP_FILE: this.mapFile,
        SASORI_LISTEN: `127.0.0.1:${sasori.port}`,
        ...ON_DEMAND,
        ...this.#env,
      },
    });
    await sasori.child.untilReady(async () => (await fetch(`${this.url(who)}/healthz`)).ok);
    // Its first pass is over when the next one is.
    await this.sync(who, {});
  }

  async endSasori(who: Who, signal: NodeJS.Signals): Promise<void> {
    const { child } = this.sasoris[who];
    this.sasoris[who].child = undefined;
    await child?.end(signal);
  }

  /** The last lines of its log. */
  log(who: Who): string {
    return (this.sasoris[who].child?.printed ?? "").split("\n").slice(-4).join("\n");
  }

  async sync(who: Who, body: { full?: boolean; approve?: string }): Promise<SyncReport> {
    const answer = await this.call(who, "POST", "/api/v1/sync", body);
    if (answer.status === 200) return answer.body as SyncReport;
    throw new Error(`sync of ${who} answered ${answer.status}: ${JSON.stringify(answer.body)}`);
  }

  async call(
    who: Who,
    method: string,
    where: string,
    body?: object,
  ): Promise<{ status: number; body: unknown }> {
    const response = await fetch(`${this.url(who)}${where}`, {
      method,
      ...(body && { headers: { "content-type": "application/json" }, body: JSON.stringify(body) }),
    });
    const text = await response.text();
    return { status: response.status, body: text === "" ? undefined : JSON.parse(text) };
  }

  // ---- HAProxy

  async cut(side: Side, isCut: boolean): Promise<void> {
    const gateway = this.#gateway(side);
    if (gateway.isCut === isCut) return;
    gateway.isCut = isCut;
    await (isCut ? gateway.front.close() : gateway.front.open());
  }

  async disturb(side: Side, how: "restart" | "reload" | "crash"): Promise<void> {
    const { haproxy } = this.#gateway(side);
    if (how === "reload") await haproxy.reload();
    else {
      if (how === "crash") await haproxy.kill();
      await haproxy.restart();
    }
  }

  /** As a person at the Runtime API. */
  async hand(side: Side, node: string, master: string | undefined, isThere: boolean): Promise<void> {
    const { haproxy } = this.#gateway(side);
    const line =
      master === undefined
        ? `del map ${this.mapFile} ${node}`
        : `${isThere ? "set" : "add"} map ${this.mapFile} ${node} ${master}`;
    const said = (await runtimeCommand(haproxy.socketPath, line)).trim();
    if (said !== "") throw new Error(`${line}: ${said}`);
  }

  /** Until both gateways have noticed that sasori A is up. */
  async untilHeard(): Promise<void> {
    for (const { haproxy } of this.gateways)
      await until("HAProxy sees sasori", async () =>
        / sasori 127\.0\.0\.1 2 /.test(await runtimeCommand(haproxy.socketPath, "show servers state sasori")),
      );
  }

  /** Throws where an entry is there twice or is none. */
  live(side: Side): Promise<Map<string, string>> {
    const { haproxy } = this.#gateway(side);
    return showMap(haproxy.socketPath, this.mapFile);
  }

  async file(): Promise<Map<string, string>> {
    return parseMap(await readFile(this.mapFile, "utf8"));
  }

  #gateway(side: Side): Gateway {
    const gateway = this.gateways[side];
    if (gateway === undefined) throw new Error(`there is no gateway ${side}`);
    return gateway;
  }
}

/** Waits for a condition; rejects when it does not come about. */
export async function until(
  what: string,
  condition: () => Promise<boolean>,
  ms = CONDITION_MS,
): Promise<void> {
  const waitMs = patient(ms);
  const deadline = performance.now() + waitMs;
  while (!(await condition())) {
    if (performance.now() > deadline) throw new Error(`not within ${waitMs / 1000} s: ${what}`);
    await sleep(10);
  }
}
