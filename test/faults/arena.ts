// The whole of it under a stream of requests, to be hurt: the daemon as users start it, the real PuppetDB, one real
// HAProxy of each version with the project's own configuration, and three small masters that say who they are and
// answer 404 for nodes that they do not have. After each fault the file, every live map and PuppetDB are compared
// entry by entry, and every request that ran meanwhile is judged.

import { once } from "node:events";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { request as httpRequest } from "node:http";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import type { ErrorCode } from "../../src/errors.js";
import type { Status } from "../../src/http/api-shapes.js";
import type { SyncReport } from "../../src/sync-report.js";
import { Child, freePort } from "../support/child.js";
import { gatewayConfig, startMaster, type TestMaster } from "../support/gateway.js";
import { type HaproxyServer, runtimeCommand, showMap, startHaproxy } from "../support/haproxy-server.js";
import { haproxyBinaries } from "../support/parts.js";
import { patient } from "../support/patience.js";
import type { PuppetdbServer } from "../support/puppetdb-server.js";
import { EVERY_SECOND } from "../support/schedules.js";
import { PuppetdbFront, SocketFront } from "./fronts.js";
import { enter, enterCode } from "./ledger.js";

export const CLI = fileURLToPath(new URL("../../dist/src/cli.js", import.meta.url));
export const MASTERS = ["master1", "master2", "master3"] as const;

/** The long form of the suite: more tries, soak and fuzz. */
export const LONG = process.env.FAULTS_LONG === "yes";

const RECOVERY_MS = 30_000;
/** An answer that sasori has is passed on for as long: it is remembered for 3 s, and was asked for before that. */
const REMEMBERED_MS = 8_000;
/** Between two requests to one gateway. */
const REQUEST_PAUSE_MS = 15;

export interface Gateway {
  version: string;
  haproxy: HaproxyServer;
  front: SocketFront;
  /** It is down on purpose, or was at this time: what it does not answer is not held against sasori. */
  downUntil: number;
  /** Its map, as its configuration names it. */
  map: string;
  /** What sasori calls it: its socket. */
  target: string;
}

export interface ArenaOptions {
  puppetdb: PuppetdbServer;
  nodes?: number;
  masterWorker?: boolean;
  /** HAProxy loads a file of its own, which nobody updates. */
  ownFiles?: boolean;
  /** sasori talks to HAProxy itself, and not to the front before it. */
  direct?: boolean;
  /** Two moves of a node within this time, and the requests after them, are excused: see REMEMBERED_MS. */
  hastyMs?: number;
  /** Of sasori. */
  env?: Record<string, string>;
}

export interface SasoriOptions {
  /** Programs that start node: `["prlimit", "--nofile=40"]`. */
  prefix?: readonly string[];
  env?: Record<string, string>;
}

interface Judged {
  requests: number;
  misrouted: string[];
  failed: string[];
}

export class Arena {
  readonly dir: string;
  readonly mapFile: string;
  /** Where sasori's files are seen from here: another root while it has a file system of its own. */
  root = "";
  readonly puppetdb: PuppetdbServer;
  readonly front: PuppetdbFront;
  readonly masters: TestMaster[] = [];
  readonly gateways: Gateway[] = [];
  /** Which master has a node: the truth. */
  readonly owners = new Map<string, string>();
  port = 0;
  sasori: Child | undefined;
  env: Record<string, string> = {};
  readonly #options: ArenaOptions;
  /** Until when (ms) a node's route may be wrong, because it moved. */
  readonly #restless = new Map<string, number>();
  /** Not in the map yet: the gateway says 404, and is right. */
  readonly #unheardOf = new Set<string>();
  /** When (ms) it moved last, and before that. */
  readonly #moves = new Map<string, { last: number; before: number }>();
  #judged: Judged = { requests: 0, misrouted: [], failed: [] };
  #streaming = true;
  readonly #streams: Promise<void>[] = [];

  private constructor(dir: string, options: ArenaOptions) {
    this.dir = dir;
    this.mapFile = path.join(dir, "maps", "nodes.map");
    this.puppetdb = options.puppetdb;
    this.front = new PuppetdbFront(options.puppetdb.url);
    this.#options = options;
  }

  /** Gives `use` an arena in which all agree, and takes it down whatever happens. */
  static async with(options: ArenaOptions, use: (arena: Arena) => Promise<void>): Promise<void> {
    const arena = new Arena(await mkdtemp(path.join(tmpdir(), "sasori-faults-")), options);
    try {
      await arena.#start();
      await use(arena);
    } finally {
      await arena.#stop();
    }
  }

  async #start(): Promise<void> {
    const { puppetdb, nodes = 600, masterWorker = false, ownFiles = false, direct = false } = this.#options;
    await mkdir(path.dirname(this.mapFile));
    await writeFile(this.mapFile, "");
    await puppetdb.reset();
    // All ran half an hour ago: what comes is newer, even by a clock that is behind.
    await puppetdb.fill(nodes, MASTERS, 1, 30);
    for (const name of MASTERS)
      this.masters.push(Object.assign(await startMaster(name), { nodes: new Set() }));
    for (const [node, master] of await this.puppetdbSays()) this.#place(node, master);
    this.port = await freePort();
    for (const [index, { bin, version }] of haproxyBinaries().entries()) {
      const statsPort = await freePort();
      const haproxy = await startHaproxy({
        bin,
        masterWorker,
        config: (at) =>
          gatewayConfig({ ...at, mapPath: ownFiles ? at.mapPath : this.mapFile }, this.masters, statsPort, {
            RESOLVER_ADDRESS: `127.0.0.1:${this.port}`,
            GATEWAY_REPLAY: "all",
          }),
      });
      const front = new SocketFront(path.join(this.dir, `haproxy${index}.sock`), () => haproxy.socketPath);
      await front.open();
      const map = ownFiles ? haproxy.mapPath : this.mapFile;
      const target = direct ? haproxy.socketPath : front.path;
      this.gateways.push({ version, haproxy, front, downUntil: 0, map, target });
    }
    await this.front.open();
    this.env = {
      PATH: process.env.PATH ?? "",
      SASORI_PUPPETDB_URL: this.front.url,
      SASORI_HAPROXY: this.gateways.map(({ target }) => target).join(","),
      SASORI_MAP_FILE: this.mapFile,
      SASORI_LISTEN: `127.0.0.1:${this.port}`,
      ...EVERY_SECOND,
      SASORI_PROBE_PATH: "/probe/{certname}",
      ...this.#options.env,
    };
    await this.startSasori();
    await this.untilAgreed();
    for (const gateway of this.gateways) this.#streams.push(this.#stream(gateway));
  }

  async #stop(): Promise<void> {
    this.#streaming = false;
    await Promise.all(this.#streams);
    await this.sasori?.end("SIGKILL");
    await this.front.close();
    for (const { front, haproxy } of this.gateways) {
      await front.close();
      await haproxy.stop();
    }
    for (const master of this.masters) await master.stop();
    await rm(this.dir, { recursive: true, force: true });
  }

  // --- sasori -----------------------------------------------------------------------------------------------

  /** Starts the daemon and waits until it answers. */
  async startSasori(options: SasoriOptions = {}): Promise<Child> {
    const child = this.spawnSasori(options);
    await child.untilReady(async () => (await fetch(`${this.url}/healthz`)).ok);
    return child;
  }

  /** Starts the daemon and waits for nothing. */
  spawnSasori({ prefix = [], env = {} }: SasoriOptions = {}): Child {
    const [command = "", ...args] = [...prefix, process.execPath, CLI, "serve"];
    this.sasori = new Child(command, args, { env: { ...this.env, ...env } });
    return this.sasori;
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  get pid(): number {
    return this.sasori?.pid ?? 0;
  }

  /** A pass, by the API. */
  async sync(body: object = {}): Promise<SyncReport> {
    const response = await fetch(`${this.url}/api/v1/sync`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
    });
    return (await response.json()) as SyncReport;
  }

  async status(): Promise<Status> {
    return (await (await fetch(`${this.url}/api/v1/status`)).json()) as Status;
  }

  async metrics(): Promise<string> {
    return (await fetch(`${this.url}/metrics`)).text();
  }

  /** The value of one sample; throws when there is none. */
  async metric(name: string, labels = ""): Promise<number> {
    const value = await this.#sample(`${name}${labels}`);
    if (value === undefined) throw new Error(`no sample ${name}${labels} in /metrics`);
    return value;
  }

  /** As `metric`, for a counter that is not there until it has counted something: then 0. */
  async metricOr0(name: string, labels = ""): Promise<number> {
    return (await this.#sample(`${name}${labels}`)) ?? 0;
  }

  async #sample(name: string): Promise<number | undefined> {
    const line = (await this.metrics()).split("\n").find((text) => text.startsWith(`${name} `));
    return line === undefined ? undefined : Number(line.split(" ").at(-1));
  }

  /** Runs `sasori ...` as a person would. */
  async cli(...args: string[]): Promise<{ code: number; text: string }> {
    const child = new Child(process.execPath, [CLI, ...args], { env: this.env });
    const code = await child.code();
    return { code, text: child.printed };
  }

  /**
   * Waits until sasori shows `code` where an operator looks: as a metric for `target`, and with a message that says
   * what to do. Fails with what it showed instead.
   */
  async untilShown(code: ErrorCode, target: string, remedy: RegExp, withinMs = 25_000): Promise<void> {
    const shown = `sasori_errors_total{target="${target}",code="${code}"} `;
    let message = "";
    await this.until(
      `${code} of ${target}`,
      async () => {
        message = this.#messageOf(code) ?? message;
        return (await this.metrics()).includes(shown) && remedy.test(message);
      },
      withinMs,
      () => message,
    );
    enterCode(code, message);
  }

  /** Waits until the daemon has logged this code, with a message that says what to do. */
  async untilLogged(code: ErrorCode, remedy: RegExp): Promise<void> {
    const message = () => this.#messageOf(code) ?? "";
    await this.until(`${code} in the log`, () => remedy.test(message()), undefined, message);
    enterCode(code, message());
  }

  /** The newest message of a code in the daemon's log. */
  #messageOf(code: string): string | undefined {
    const at = this.sasori?.printed.lastIndexOf(`"code":"${code}","message":`) ?? -1;
    if (at < 0) return undefined;
    const line = this.sasori?.printed.slice(at).split("\n")[0] ?? "";
    const text = /"message":("(?:[^"\\]|\\.)*")/.exec(line)?.[1];
    return text === undefined ? undefined : (JSON.parse(text) as string);
  }

  // --- The truth --------------------------------------------------------------------------------------------

  #place(node: string, master: string): void {
    for (const { name, nodes } of this.masters) {
      if (name === master) nodes?.add(node);
      else nodes?.delete(node);
    }
    this.owners.set(node, master);
  }

  /** A share of the fleet moves, each node to the next master, and PuppetDB hears of it. */
  async moveShare(share: number, clockMs = 0): Promise<string[]> {
    const nodes = [...this.owners.keys()].filter(() => Math.random() < share);
    await this.move(nodes, clockMs);
    return nodes;
  }

  /**
   * These nodes move to the next master, as agents do: they run there, PuppetDB hears of it, and the old master lets go
   * of them. `clockMs`: how far the clock of the new one is ahead.
   */
  async move(nodes: readonly string[], clockMs = 0): Promise<void> {
    for (const node of nodes) {
      const before = this.#moves.get(node)?.last ?? 0;
      this.#moves.set(node, { last: Number.POSITIVE_INFINITY, before });
      this.#restless.set(node, Number.POSITIVE_INFINITY);
      const next = MASTERS[(MASTERS.indexOf(this.owners.get(node) as "master1") + 1) % MASTERS.length];
      this.masters.find(({ name }) => name === next)?.nodes?.add(node);
      this.owners.set(node, next ?? "");
    }
    await this.tell(nodes, clockMs);
    for (const node of nodes) {
      this.#place(node, this.owners.get(node) ?? "");
      this.#moves.set(node, { last: Date.now(), before: this.#moves.get(node)?.before ?? 0 });
    }
  }

  /** The nodes that have not moved for so long that sasori remembers no answer about them. */
  rested(): string[] {
    const now = Date.now();
    return [...this.owners.keys()].filter((node) => now - (this.#moves.get(node)?.last ?? 0) > REMEMBERED_MS);
  }

  /** What the masters submit for these nodes: a run of each, now. */
  async tell(nodes: readonly string[], clockMs = 0): Promise<void> {
    if (nodes.length === 0) return;
    const rows = nodes.map((node) => `('${node}', '${this.owners.get(node)}')`).join(",");
    const at = `clock_timestamp() + interval '${clockMs} ms'`;
    await this.puppetdb.sql(`
      UPDATE factsets SET producer_id = producers.id, producer_timestamp = ${at}, timestamp = clock_timestamp()
      FROM (VALUES ${rows}) AS run (node, master) JOIN producers ON producers.name = run.master
      WHERE factsets.certname = run.node AND factsets.producer_timestamp < ${at};`);
  }

  /** These nodes' routes may be wrong from now on, because the fault itself makes them so. */
  excuse(nodes: Iterable<string> = this.owners.keys()): void {
    for (const node of nodes) this.#restless.set(node, Number.POSITIVE_INFINITY);
  }

  /** The node is gone, for masters and for us. */
  forget(nodes: Iterable<string>): void {
    for (const node of nodes) {
      this.#place(node, "");
      this.owners.delete(node);
    }
  }

  /** A node that was not there before. */
  place(node: string, master: string): void {
    this.#unheardOf.add(node);
    this.#restless.set(node, Number.POSITIVE_INFINITY);
    this.#place(node, master);
  }

  /**
   * Node to master by the newest of factset and report, asked in SQL: another way than sasori's. Only nodes with a name
   * that can be a map key, at masters that there are.
   */
  async puppetdbSays(): Promise<Map<string, string>> {
    const text = await this.puppetdb.sql(`
      SELECT DISTINCT ON (certname) certname, producers.name FROM (
        SELECT certname, producer_id, producer_timestamp FROM factsets
        UNION ALL
        SELECT reports.certname, producer_id, producer_timestamp FROM reports
          JOIN certnames ON certnames.latest_report_id = reports.id
      ) AS runs JOIN producers ON producers.id = producer_id JOIN certnames USING (certname)
      WHERE deactivated IS NULL AND expired IS NULL AND certname ~ '^[a-z0-9_][a-z0-9._-]{0,252}$'
        AND producers.name IN ('${[...MASTERS, "localhost"].join("', '")}')
      ORDER BY certname, producer_timestamp DESC`);
    return new Map(text.split("\n").map((line) => line.split("|") as [string, string]));
  }

  // --- Comparing --------------------------------------------------------------------------------------------

  /** Every entry in which the file or a live map is not the truth. */
  async differences(): Promise<string[]> {
    const found = differences("the file", this.owners, parseMap(await this.fileText()));
    for (const gateway of this.gateways) found.push(...(await this.#differencesOf(gateway)));
    return found;
  }

  async #differencesOf({ version, haproxy, map }: Gateway): Promise<string[]> {
    const where = `HAProxy ${version}`;
    try {
      const found = differences(where, this.owners, await showMap(haproxy.socketPath, map));
      const listing = await runtimeCommand(haproxy.socketPath, "show map");
      const line = listing.split("\n").find((text) => text.includes(`(${map})`)) ?? "";
      const entries = Number(/entry_cnt=(\d+)/.exec(line)?.[1]);
      if (entries !== this.owners.size)
        found.push(`${where} counts ${entries} entries: an unfinished version`);
      return found;
    } catch (error) {
      return [`${where}: ${error instanceof Error ? error.message : error}`];
    }
  }

  fileText(): Promise<string> {
    return readFile(this.root + this.mapFile, "utf8");
  }

  /** What writers that were killed have left beside the file. */
  async leftovers(): Promise<string[]> {
    return (await readdir(this.root + path.dirname(this.mapFile))).filter((name) => name.endsWith(".tmp"));
  }

  /** Waits until the file, every live map, the masters and PuppetDB agree. Returns what still differs. */
  async agreement(withinMs = RECOVERY_MS): Promise<string[]> {
    const waitMs = patient(withinMs);
    const deadline = Date.now() + waitMs;
    let found = await this.differences();
    while (found.length > 0 && Date.now() < deadline) {
      await sleep(50);
      found = await this.differences();
    }
    const now = Date.now();
    if (found.length === 0) found = differences("PuppetDB", this.owners, await this.puppetdbSays());
    if (found.length === 0) {
      this.#unheardOf.clear();
      for (const [node, until] of this.#restless) if (until > now) this.#restless.set(node, now);
    }
    return found;
  }

  async untilAgreed(): Promise<void> {
    const found = await this.agreement();
    if (found.length > 0) throw new Error(`no agreement: ${sample(found)}\n${this.#lastLog()}`);
  }

  /** Waits for a condition. Fails after `withinMs`, with the daemon's last lines. */
  async until(
    what: string,
    condition: () => boolean | Promise<boolean>,
    withinMs = 15_000,
    saw = () => "",
  ): Promise<void> {
    const waitMs = patient(withinMs);
    const deadline = Date.now() + waitMs;
    let last: unknown;
    while (Date.now() < deadline) {
      try {
        if (await condition()) return;
        last = undefined;
      } catch (error) {
        last = error;
      }
      await sleep(20);
    }
    throw new Error(`not within ${waitMs} ms: ${what}; saw ${saw()} ${last ?? ""}\n${this.#lastLog()}`);
  }

  #lastLog(): string {
    const asked = [...this.front.underway].map((query) => `PuppetDB has not answered ${query}\n`).join("");
    const haproxys = this.gateways
      .map(({ haproxy }) => `HAProxy: ${haproxy.output().slice(-1_000)}\n`)
      .join("");
    return asked + haproxys + (this.sasori?.printed ?? "").split("\n").slice(-6).join("\n").slice(-4_000);
  }

  // --- Faults -----------------------------------------------------------------------------------------------

  /**
   * Lets the arena suffer a fault, several times if need be. `act` brings the fault and takes it away again; then all
   * must agree within 30 s. What was lost, misrouted or failed meanwhile goes into the ledger, and fails the test.
   */
  async suffer(fault: string, act: (index: number) => Promise<void>, tries = 1): Promise<void> {
    this.#judged = { requests: 0, misrouted: [], failed: [] };
    const lost: string[] = [];
    let seconds = 0;
    for (let index = 0; index < tries && lost.length === 0; index += 1) {
      await act(index);
      const ended = performance.now();
      lost.push(...(await this.agreement()));
      seconds = Math.max(seconds, (performance.now() - ended) / 1000);
    }
    const { requests, misrouted, failed } = this.#judged;
    const counts = { lost: lost.length, misrouted: misrouted.length, failed: failed.length };
    enter({ fault, tries, ...counts, requests, seconds });
    if (lost.length + misrouted.length + failed.length > 0) {
      throw new Error(`${fault}: ${sample([...lost, ...misrouted, ...failed])}\n${this.#lastLog()}`);
    }
  }

  /** A HAProxy that is down on purpose from now on; call the result when it is up again. */
  down(gateway: Gateway): () => void {
    gateway.downUntil = Number.POSITIVE_INFINITY;
    return () => {
      gateway.downUntil = Date.now();
    };
  }

  /** A request for a node through every gateway, judged as all others. */
  async ask(node: string): Promise<void> {
    for (const gateway of this.gateways) {
      const began = Date.now();
      this.#judge(gateway, node, began, await ask(gateway.haproxy.ports.frontend, node));
    }
  }

  /** What each HAProxy holds. */
  liveMaps(): Promise<Map<string, string>[]> {
    return Promise.all(this.gateways.map(({ haproxy, map }) => showMap(haproxy.socketPath, map)));
  }

  /** How many requests have been judged so far: for "some more ran". */
  get requests(): number {
    return this.#judged.requests;
  }

  async #stream(gateway: Gateway): Promise<void> {
    const nodes = [...this.owners.keys()];
    while (this.#streaming) {
      const node = nodes[Math.floor(Math.random() * nodes.length)] ?? "";
      const began = Date.now();
      const answer = await ask(gateway.haproxy.ports.frontend, node);
      this.#judge(gateway, node, began, answer);
      await sleep(REQUEST_PAUSE_MS);
    }
  }

  #judge(gateway: Gateway, node: string, began: number, { status, servedBy, route, said }: Answer): void {
    if (status !== 200 && began <= gateway.downUntil) return;
    if (!this.owners.has(node) || this.#unheardOf.has(node)) return;
    const judged = this.#judged;
    judged.requests += 1;
    const { last, before } = this.#moves.get(node) ?? { last: 0, before: 0 };
    // While it was asked for; or it had moved on within the seconds for which sasori remembers an answer.
    const hasty = this.#options.hastyMs ?? REMEMBERED_MS;
    const moved = last >= began || (began - last < hasty && last - before < hasty);
    const what = `${node} through ${gateway.version}: ${status} ${servedBy} ${route} ${said}`;
    if (status !== 200) {
      if (!moved) judged.failed.push(what);
      return;
    }
    const master = (JSON.parse(said) as { master: string }).master;
    const right = master === this.owners.get(node) || moved;
    const isRestless = (this.#restless.get(node) ?? 0) >= began;
    if (!right || (route !== "mapped" && !isRestless)) judged.misrouted.push(what);
  }
}

interface Answer {
  /** 0: none. */
  status: number;
  servedBy: string;
  route: string;
  said: string;
}

/** One request on a connection of its own: what a reload does to idle ones is no matter of sasori's. */
async function ask(port: number, node: string): Promise<Answer> {
  try {
    const request = httpRequest({ host: "127.0.0.1", port, agent: false, timeout: patient(10_000) });
    request.setHeader("x-node-name", node);
    request.on("timeout", () => request.destroy(new Error("no answer for 10 s")));
    request.end();
    const [response] = await once(request, "response");
    let said = "";
    for await (const chunk of response) said += String(chunk);
    const header = (name: string) => String(response.headers[name] ?? "-");
    return { status: response.statusCode, servedBy: header("x-served-by"), route: header("x-route"), said };
  } catch (error) {
    return { status: 0, servedBy: "-", route: "-", said: String(error) };
  }
}

/** The map file, every line of it: throws when a line is no entry, or an entry comes twice. */
export function parseMap(text: string): Map<string, string> {
  if (text !== "" && !text.endsWith("\n")) throw new Error(`the file ends in mid-line: ${text.slice(-60)}`);
  const entries = new Map<string, string>();
  for (const line of text.split("\n")) {
    if (line === "" || line.startsWith("#")) continue;
    const [, node, master] = /^(\S+) (\S+)$/.exec(line) ?? [];
    if (node === undefined || master === undefined || entries.has(node))
      throw new Error(`the file has ${line}`);
    entries.set(node, master);
  }
  return entries;
}

export function differences(
  where: string,
  wanted: ReadonlyMap<string, string>,
  found: ReadonlyMap<string, string>,
): string[] {
  const list: string[] = [];
  for (const [node, master] of wanted) {
    if (found.get(node) !== master) list.push(`${where} has ${node} at ${found.get(node)}, not ${master}`);
  }
  for (const node of found.keys()) if (!wanted.has(node)) list.push(`${where} has ${node}, which is gone`);
  return list;
}

const sample = (list: readonly string[]) =>
  `${list.length}: ${list.slice(0, 5).join("; ")}${list.length > 5 ? "; …" : ""}`;

export { sleep };
