// One running HAProxy as a target: its process and servers, what its map holds, and how a plan is pushed to it.
// Promises: the live process is asked, never remembered; a version is committed only after it was read back
// entry by entry; an unfinished version is dropped; the map is never cleared and refilled. A route that HAProxy learns while
// a version is filled may get lost with the old version. But HAProxy learned it from sasori, which pushes it again next.

import path from "node:path";
import type { Pattern } from "../aliases.js";
import type { Endpoint } from "../config.js";
import { counted, number } from "../counts.js";
import { Line } from "../deadline.js";
import { quote, SasoriError } from "../errors.js";
import { type Assignment, type Certname, isMaster, type Master, type NodeMap } from "../node-map.js";
import { eachInPieces, inPieces } from "../pieces.js";
import type { Plan } from "../plan.js";
import { isAtLeast } from "../releases.js";
import { type Method, type Push, PushCost } from "./push-cost.js";
import { Routes } from "./routes.js";
import { BURST_MS, type Command, type Pace, payloads, RuntimeSession } from "./runtime-api.js";
import {
  type Applied,
  type Contents,
  type Fingerprint,
  isSame,
  type Member,
  type Server,
  type Sighting,
  type Target,
} from "./target.js";

/**
 * The map as `show map` lists it. `entries` also counts those of unfinished versions. HAProxy 2.4 does not tell the number.
 * With it, only a full pass, which reads the whole map, notices three things: that somebody else writes to the map, that
 * HAProxy learns new nodes, and that an unfinished version was left behind.
 */
export interface MapState {
  id: string;
  version: number;
  entries: number | undefined;
}

/** How many connections the queries of people and of the page may use. HAProxy allows 10 in all (`stats maxconn`). */
const QUESTIONS_AT_ONCE = 2;

/** More at once would fill HAProxy's buffers and make requests of clients wait. */
const LOOKUPS_AT_ONCE = 50;

interface Look extends Sighting {
  map: MapState;
}

/**
 * What was pushed, and the version and the number of entries that the map then has if nobody else wrote. `learned`: a new
 * version holds routes that HAProxy learned while it was filled.
 */
interface Pushed {
  method: Method;
  learned: boolean;
  version: number;
  entries: number;
}

/** Deadline for dropping an unfinished version. HAProxy does it in pieces: some tenths of a second for 100,000 entries. */
const DROP_MS = 5_000;

export interface HaproxyOptions {
  backend: string;
  /** If set, the masters are the backends that it matches, and `backend` is only its text, for messages. */
  pools?: Pattern | undefined;
  mapFile: string;
  mapName?: string | undefined;
}

export class HaproxyInstance implements Target {
  readonly kind = "haproxy";
  readonly name: string;
  readonly #endpoint: Endpoint;
  readonly #options: HaproxyOptions;
  readonly #questions = new Line(QUESTIONS_AT_ONCE);
  /** The map has no unfinished version, of sasori or of anybody else, that the next swap to a new version must drop. */
  #tidy = false;
  /** The map was empty when it was last looked at. */
  #isEmpty = false;
  /** The process in which a push in large commands failed. */
  #narrow: string | undefined;
  /** The push cost of the HAProxy version that was last seen. */
  #cost: { version: string; of: PushCost } | undefined;

  constructor(endpoint: Endpoint, options: HaproxyOptions) {
    this.name = endpoint.name;
    this.#endpoint = endpoint;
    this.#options = options;
  }

  look(signal: AbortSignal): Promise<Sighting> {
    return RuntimeSession.with(this.#endpoint, signal, (session) => this.#look(session));
  }

  /** The whole map. Throws when the reply is not whole: a cut dump never looks like a short map. */
  read(signal: AbortSignal, desired?: NodeMap): Promise<Contents> {
    return RuntimeSession.with(this.#endpoint, signal, async (session) => {
      const { fingerprint: earlier, map: before } = await this.#look(session);
      const { all, capitals, strays, lines } = await readMap(session, `#${before.id}`, "gently", desired);
      const { fingerprint: later, map } = await this.#look(session);
      // What was added during the dump and is not in it must show as a change at the next look.
      const isMissed =
        map.version !== before.version || (map.entries ?? 0) > Math.max(before.entries ?? 0, lines);
      const fingerprint = isMissed ? earlier : later;
      // HAProxy also counts entries of versions that were never committed. sasori's next swap drops those that it finds at
      // first. Those that appear later belong to a version that somebody is just filling, and are left alone.
      const unfinished = Math.min(before.entries ?? lines, map.entries ?? lines) > lines;
      if (!unfinished) this.#tidy = true;
      const isPlain = strays.length + capitals.size === 0;
      const rebuild = !isPlain || (unfinished && !this.#tidy);
      return { fingerprint, routes: all, rebuild, capitals, strays };
    });
  }

  holds(routes: readonly Assignment[], signal: AbortSignal): Promise<boolean> {
    return RuntimeSession.with(this.#endpoint, signal, async (session) => {
      const { map } = await this.#look(session);
      for (let from = 0; from < routes.length; from += LOOKUPS_AT_ONCE) {
        const some = routes.slice(from, from + LOOKUPS_AT_ONCE);
        const found = await Promise.all(some.map(({ certname }) => lookUp(session, map, certname)));
        if (some.some(({ master }, index) => found[index] !== master)) return false;
      }
      return true;
    });
  }

  /** Where a certname leads right now, or undefined. One lookup, not a dump. */
  lookUp(certname: Certname, signal: AbortSignal): Promise<string | undefined> {
    return this.#ask(signal, async (session) => {
      const { map } = await this.#look(session);
      return lookUp(session, map, certname);
    });
  }

  replaces(changes: number, desired: NodeMap): boolean {
    // If entries came into the empty map since then, the look before the push notices that.
    if (changes === 0 || this.#isEmpty) return false;
    const entries = desired.size;
    // How many of the changes are additions is not known yet. The cost lies between these two extremes.
    const pushes = [
      { keyed: changes, added: 0, entries },
      { keyed: 0, added: changes, entries },
    ];
    return pushes.some((push) => this.#cost?.of.cheaper(push) !== "incremental");
  }

  async apply(
    plan: Plan,
    desired: NodeMap,
    seen: Fingerprint,
    signal: AbortSignal,
    insist = false,
  ): Promise<Applied> {
    const pushed = await RuntimeSession.with(this.#endpoint, signal, async (session) => {
      const look = await this.#look(session);
      const { fingerprint, map } = look;
      const isAsSeen = isSame(fingerprint, seen);
      const mayPush = isAsSeen || (insist && hasGrown(seen, fingerprint));
      if (plan.kind === "unchanged" || !mayPush) return undefined;
      const { method, learned, version, entries } = await this.#push(session, look, plan, desired);
      const content = contentOf(version, map.entries === undefined ? undefined : entries);
      return { method, disturbed: !isAsSeen || learned, process: fingerprint.process, content };
    });
    // The session above may have talked to a process that a reload has replaced since: ask on a new one.
    const { fingerprint } = await this.look(signal);
    const asExpected = pushed !== undefined && !pushed.disturbed && isSame(fingerprint, pushed);
    return { method: pushed?.method, fingerprint, disturbed: !asExpected };
  }

  async #push(session: RuntimeSession, look: Look, plan: Plan, desired: NodeMap): Promise<Pushed> {
    const { map } = look;
    const cost = this.#costOf(look.version);
    const push: Push = {
      keyed: plan.set.length + plan.del.length,
      added: plan.add.length,
      entries: desired.size,
    };
    const method = plan.rebuild ? "swap" : plan.keepsOthers ? "incremental" : cost.cheaper(push);
    // While the map is mostly empty, most requests find no route. Then it is filled as fast as possible.
    const isUrgent =
      (map.entries ?? desired.size) < desired.size / 2 && this.#narrow !== look.fingerprint.process;
    const pace = isUrgent ? "at once" : "gently";
    try {
      return await this.#pushBy(method, push, pace, session, look, plan, desired);
    } catch (error) {
      // Its buffers may be too small for large commands. Then HAProxy refuses, closes the connection or never answers.
      if (isUrgent) this.#narrow = look.fingerprint.process;
      throw error;
    }
  }

  async #pushBy(
    method: Method,
    push: Push,
    pace: Pace,
    session: RuntimeSession,
    look: Look,
    plan: Plan,
    desired: NodeMap,
  ): Promise<Pushed> {
    const { map } = look;
    const cost = this.#costOf(look.version);
    if (method === "swap") {
      const { workedMs, ...swapped } = await this.#swap(session, pace, look, plan, desired);
      cost.learn(method, push, workedMs);
      return { method, ...swapped };
    }
    cost.learn(method, push, await session.runAll(changeCommands(map, plan, desired, cost, pace), pace));
    const entries = (map.entries ?? 0) + plan.add.length - plan.del.length;
    return { method, learned: false, version: map.version, entries };
  }

  async #swap(session: RuntimeSession, pace: Pace, look: Look, plan: Plan, desired: NodeMap) {
    const { map, fingerprint } = look;
    this.#tidy = false; // Until it is committed, its version may be left behind.
    const version = await prepareVersion(session, map);
    try {
      const done = await fillVersion(session, pace, look, version, plan, desired);
      this.#tidy = true;
      return done;
    } catch (error) {
      await this.#dropVersion(version, map, fingerprint.process);
      throw error;
    }
  }

  /**
   * Drops an unfinished version, which would otherwise stay in HAProxy's memory. This takes a connection of its own, because
   * that of the swap may have ended. HAProxy 3.4 drops nothing while the map has an older version. The next pass then sees
   * too many entries, and swaps to a new version.
   */
  async #dropVersion(version: number, { id }: MapState, process: string): Promise<void> {
    await RuntimeSession.with(this.#endpoint, AbortSignal.timeout(DROP_MS), async (session) => {
      if (processOf(await session.ask("show info")) === process)
        await session.run(`clear map @${version} #${id}`);
    }).catch(() => undefined); // The error of the swap counts.
  }

  #costOf(version: string): PushCost {
    if (this.#cost?.version !== version) this.#cost = { version, of: new PushCost(version) };
    return this.#cost.of;
  }

  /** The masters' state and load, from HAProxy's statistics. */
  loads(signal: AbortSignal): Promise<ServerLoad[]> {
    return this.#ask(signal, async (session) => {
      const { backend, pools } = this.#options;
      const [servers, stats] = await Promise.all([
        this.#servers(session),
        // Not by the backend's name: a frontend may have the same one, and HAProxy would find that.
        session.ask(`show stat -1 ${pools ? 6 : 4} -1`), // 2: backends; 4: servers; -1: all
      ]);
      return pools ? poolLoads(stats, servers) : parseLoads(stats, servers, backend);
    });
  }

  /** Adds a server to the masters' backend; HAProxy forgets it with the next reload. Returns the process that has it. */
  addServer(name: Master, address: string, options: string, signal: AbortSignal): Promise<string> {
    const server = `${this.#options.backend}/${name}`;
    return RuntimeSession.with(this.#endpoint, signal, async (session) => {
      const version = field(await session.ask("show info"), "Version");
      const all = [options, ...tlsOptions(name, options.split(/ +/), version)].join(" ");
      const reply = await askExperimental(session, `add server ${server} ${address} ${all}`);
      // 2.6 says "New server registered." as a notice; anything else is the reason why not.
      if (!/^New server registered/.test(reply)) {
        throw new SasoriError(
          "HAPROXY_SERVER",
          `${this.name}: cannot add server ${server}: ${quote(reply, 200)}`,
        );
      }
      return enable(session, server, options);
    });
  }

  /** Finishes an `addServer` that was cut off. */
  enableServer(name: Master, options: string, signal: AbortSignal): Promise<string> {
    const server = `${this.#options.backend}/${name}`;
    return RuntimeSession.with(this.#endpoint, signal, (session) => enable(session, server, options));
  }

  /** Gives a server that was added to this process another address. `process`: see `#changeServer`. */
  readdressServer(name: Master, address: string, process: string, signal: AbortSignal): Promise<void> {
    return this.#changeServer(name, process, signal, async (session, server) => {
      const [, host = "", port = ""] = /^\[?(.*?)\]?:(\d+)$/.exec(address) ?? [];
      const reply = await session.ask(`set server ${server} addr ${host} port ${port}`);
      // "IP changed from '192.0.2.1' to '192.0.2.2', no need to change the port, by 'stats socket command'"
      if (!/^(IP changed|no need to change)/.test(reply))
        throw new SasoriError(
          "HAPROXY_SERVER",
          `${this.name}: ${server} keeps its address: ${quote(reply, 200)}`,
        );
    });
  }

  /** Removes a server that was added to this process. HAProxy refuses while the server has connections. */
  removeServer(name: Master, process: string, signal: AbortSignal): Promise<void> {
    return this.#changeServer(name, process, signal, async (session, server) => {
      await session.run(`disable server ${server}`); // Without that it is never removed.
      await askExperimental(session, `del server ${server}`).catch(async (error: unknown) => {
        await session.run(`enable server ${server}`);
        throw error;
      });
    });
  }

  /**
   * `process` must still run: in another process a server of this name is one of the configuration, and HAProxy (2.6, 3.0, 3.2)
   * would change it too.
   */
  #changeServer(
    name: Master,
    process: string,
    signal: AbortSignal,
    change: (session: RuntimeSession, server: string) => Promise<void>,
  ): Promise<void> {
    const server = `${this.#options.backend}/${name}`;
    return RuntimeSession.with(this.#endpoint, signal, async (session) => {
      if (processOf(await session.ask("show info")) !== process)
        throw new SasoriError("HAPROXY_CHANGED", `${this.name}: it was reloaded: ${server} is not changed`);
      await change(session, server);
    });
  }

  /** These queries wait for each other. A pass does not, so it always finds a free connection. */
  #ask<T>(signal: AbortSignal, question: (session: RuntimeSession) => Promise<T>): Promise<T> {
    return this.#questions.join(signal, () => RuntimeSession.with(this.#endpoint, signal, question));
  }

  async #look(session: RuntimeSession): Promise<Look> {
    const [info, maps, servers] = await Promise.all([
      session.ask("show info"),
      session.ask("show map"),
      this.#servers(session),
    ]);
    const map = findMap(maps, this.name, this.#options);
    const version = field(info, "Version");
    this.#costOf(version);
    this.#isEmpty = map.entries === 0;
    return {
      fingerprint: { process: processOf(info), content: contentOf(map.version, map.entries) },
      servers,
      version,
      map,
    };
  }

  async #servers(session: RuntimeSession): Promise<Server[]> {
    try {
      return await readServers(session, this.#options);
    } catch (error) {
      if (!(error instanceof SasoriError) || error.code !== "HAPROXY_BACKEND") throw error;
      throw new SasoriError(error.code, `${this.name}: ${error.message}: ${BACKEND_REMEDY}`);
    }
  }
}

export const BACKEND_REMEDY =
  "set SASORI_BACKEND to the backend of the masters, or to the backends that are masters";

/** The masters that it has. Throws `HAPROXY_BACKEND` when it has no such backend. */
export async function readServers(
  session: RuntimeSession,
  { backend, pools }: Pick<HaproxyOptions, "backend" | "pools">,
): Promise<Server[]> {
  if (pools !== undefined) {
    const found = parsePools(await session.ask("show servers state"), pools);
    if (found.length > 0) return found;
    throw new SasoriError("HAPROXY_BACKEND", `HAProxy has no backend with servers that is ${quote(backend)}`);
  }
  try {
    return parseServers(await session.ask(`show servers state ${backend}`));
  } catch (error) {
    if (!(error instanceof SasoriError) || !/can't find backend/i.test(error.message)) throw error;
    throw new SasoriError("HAPROXY_BACKEND", `HAProxy has no backend ${quote(backend)}`);
  }
}

/** `type=str, case=sensitive, found=yes, idx=tree, key="node1", value="master1", type="str"` */
async function lookUp(session: RuntimeSession, map: MapState, certname: Certname) {
  return /\bvalue="([^"]*)"/.exec(await session.ask(`get map #${map.id} ${certname}`))?.[1];
}

/**
 * More options for a server with TLS, unless the operator has set them: a health check over TLS, and the name that its
 * certificate must have, which for a Puppet master is the producer's. HAProxy 3.3 and newer would otherwise send the client's
 * Host header as SNI, and expect that name in the certificate.
 */
function tlsOptions(name: Master, options: readonly string[], version: string): string[] {
  const says = (pattern: RegExp) => options.some((word) => pattern.test(word));
  if (!says(/^ssl$/)) return [];
  const more: string[] = [];
  if (says(/^check$/) && !says(/^(no-)?check-ssl$/)) more.push("check-ssl");
  if (!says(/^verifyhost$/) && !says(/^none$/)) more.push(`verifyhost ${name}`);
  if (!isAtLeast(version, 3, 3)) return more;
  if (!says(/^(no-)?sni(-auto)?$/)) more.push("no-sni-auto");
  if (!says(/^(no-)?check-sni(-auto)?$/)) more.push("no-check-sni-auto");
  return more;
}

/** Before 2.6 servers are added and removed in a mode of its own, which lasts as long as the connection. */
async function askExperimental(session: RuntimeSession, command: string): Promise<string> {
  try {
    return await session.ask(command);
  } catch (error) {
    if (!(error instanceof SasoriError) || !/experimental mode/.test(error.message)) throw error;
    await session.run("experimental-mode on");
    return session.ask(command);
  }
}

async function enable(session: RuntimeSession, server: string, options: string): Promise<string> {
  // HAProxy leaves both off for a server that is added at run time.
  const words = options.split(" ");
  if (words.includes("check")) await session.run(`enable health ${server}`);
  if (words.includes("agent-check")) await session.run(`enable agent ${server}`);
  await session.run(`enable server ${server}`);
  return processOf(await session.ask("show info"));
}

const contentOf = (version: number, entries: number | undefined) => `${version}:${entries ?? "unknown"}`;

const processOf = (info: string) => `${field(info, "Pid")}@${field(info, "Start_time_sec")}`;

const MAP_REMEDIES = {
  none: "use the map file in HAProxy's configuration",
  another: (name: string | undefined) =>
    name === undefined
      ? "set SASORI_MAP_NAME to the name of the map there"
      : `set SASORI_MAP_NAME=${name}, if that is the map of nodes`,
  several: "set SASORI_MAP_NAME to one of them",
};

/**
 * A map by its name in HAProxy's configuration, or by the base name of the file. Throws `HAPROXY_MAP` with one of the
 * remedies when there is none or more than one; `where` names the HAProxy in the message.
 */
export function findMap(
  listing: string,
  where: string,
  { mapFile, mapName }: Pick<HaproxyOptions, "mapFile" | "mapName">,
  remedies = MAP_REMEDIES,
): MapState {
  const maps = parseMaps(listing);
  const matches = maps.filter(({ name }) =>
    mapName === undefined ? path.basename(name) === path.basename(mapFile) : name === mapName,
  );
  const [match] = matches;
  if (match !== undefined && matches.length === 1) return match.state;
  const names = maps.map(({ name }) => quote(name)).join(", ") || "none";
  throw new SasoriError(
    "HAPROXY_MAP",
    match === undefined
      ? `${where}: HAProxy has no map ${quote(mapName ?? path.basename(mapFile))} (it has: ${names}): ${maps.length > 0 ? remedies.another(maps.length === 1 ? maps[0]?.name : undefined) : remedies.none}`
      : `${where}: HAProxy has several maps with that name (${names}): ${remedies.several}`,
  );
}

/** A line of `show info`. */
export function field(info: string, name: string): string {
  const value = new RegExp(`^${name}: (.*)$`, "m").exec(info)?.[1];
  if (value === undefined) {
    const what = `"show info" has no line ${quote(name)}`;
    throw new SasoriError("HAPROXY_REPLY", `${what}: a \`tune.bufsize\` below 2048 would cut it short`);
  }
  return value;
}

/**
 * `# id (file) description`
 * `0 (/etc/haproxy/node-master.map) pattern loaded from file '...' used by map at file '...' line 9. curr_ver=1 next_ver=1 entry_cnt=2`
 * 2.4 ends with `next_ver=1`.
 */
function parseMaps(listing: string): { name: string; state: MapState }[] {
  const maps = [];
  for (const line of listing.split("\n")) {
    const match = /^(-?\d+) \((.*?)\) .*curr_ver=(\d+) next_ver=\d+(?: entry_cnt=(\d+))?/.exec(line);
    if (match === null) continue;
    const [, id = "", name = "", version, entries] = match;
    const state = {
      id,
      version: Number(version),
      entries: entries === undefined ? entries : Number(entries),
    };
    maps.push({ name, state });
  }
  return maps;
}

/**
 * `1`
 * `# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state ... srv_fqdn srv_port ...`
 * `4 puppet 1 master1 127.0.0.1 2 0 1 1 56 6 3 4 6 0 0 0 - 8141 - 0 0 - - 0`
 */
function parseServers(state: string): Server[] {
  const rows = stateRows(state);
  const heals = rows.some(({ srv_name = "" }) => /^heal\d+$/.test(srv_name));
  return rows.flatMap((row): Server[] => {
    const server = serverOf(row);
    if (server === undefined) return [];
    const weight = Number(row.srv_uweight);
    // 1 and nothing else: "disabled" in the configuration sets another bit. A server that once was out of maintenance
    // has 8 in srv_check_state: its checks are paused. Without checks (0) nobody can tell whether somebody wants it so.
    const halfAdded = row.srv_admin_state === "1" && ["2", "6"].includes(row.srv_check_state ?? "");
    return [
      {
        ...server,
        up: server.state !== "down",
        ...(heals && weight > 0 && { strayWeight: weight }),
        ...(halfAdded && { halfAdded }),
      },
    ];
  });
}

/** The same for pools: each backend that `pools` matches is a master, with those of its servers that have an address. */
function parsePools(state: string, pools: Pattern): Server[] {
  const found = new Map<string, Member[]>();
  for (const row of stateRows(state)) {
    const { be_name: pool = "", srv_uweight } = row;
    const server = isMaster(pool) && pools.test(pool) ? serverOf(row) : undefined;
    if (server === undefined) continue;
    // HAProxy's balancer gives one without a weight nothing, as it does one that is drained.
    const isDrained = server.state === "up" && srv_uweight === "0";
    const member: Member = isDrained ? { ...server, state: "drained" } : server;
    found.set(pool, [...(found.get(pool) ?? []), member]);
  }
  return Array.from(found, ([name, members]) => {
    const best = (["up", "drained"] as const)
      .map((state) => members.find((member) => member.state === state))
      .find((member) => member !== undefined);
    const { host, address } = best ?? (members[0] as Member);
    const state = best?.state ?? "down";
    return { name: name as Master, host, address, state, up: state !== "down", members };
  });
}

type StateRow = Partial<Record<string, string>>;

function stateRows(state: string): StateRow[] {
  const lines = state.split("\n");
  const header = lines.find((line) => line.startsWith("# ")) ?? "";
  const columns = header.slice(2).split(" ");
  return lines
    .filter((line) => line.includes(" ") && !line.startsWith("#"))
    .map((line) => Object.fromEntries(line.split(" ").map((word, index) => [columns[index] ?? "", word])));
}

/** The servers by which the gateway reaches itself: the healers of haproxy.cfg, and `pools` of pools.cfg. */
const OWN = /^(heal\d+|pools)$/;

/** Undefined for the gateway's own servers, and for one of a `server-template` that no SRV record fills. */
function serverOf(row: StateRow): Member | undefined {
  const { srv_name: name = "", srv_fqdn: fqdn = "-", srv_addr: ip = "-", srv_port: port = "" } = row;
  if (!isMaster(name)) return undefined;
  const state = stateOf(row.srv_op_state ?? "", Number(row.srv_admin_state));
  if (ip === "-" && fqdn === "-") {
    if (OWN.test(name) || row.srvrecord !== "-") return undefined;
    return { name, host: name, address: "", state };
  }
  const host = fqdn === "-" ? ip : fqdn;
  const address = `${host.includes(":") ? `[${host}]` : host}:${port}`;
  return { name, host, address, state };
}

/**
 * `srv_op_state` is what HAProxy itself asks before it sends a server a request: 0 stopped, 1 starting, 2 running, 3 leaving
 * (`http-check disable-on-404`), which gets only requests that name it. In maintenance of any kind it is 0. The bits of
 * `srv_admin_state` only say what led there: 1, 2 and 32 are maintenance, 8 and 16 drain, but 4 ("disabled" in the
 * configuration) and 64 (its name came by DNS or from the socket) stay for good, also while it serves
 * (include/haproxy/server-t.h, the same from 2.4 to 3.5).
 */
function stateOf(operational: string, admin: number): Server["state"] {
  if (operational === "0") return "down";
  return operational === "3" || (admin & (8 | 16)) !== 0 ? "drained" : "up";
}

/** One master of one HAProxy, as its statistics say. A limit that is not set is null. */
export interface ServerLoad {
  name: Master;
  /** HAProxy's own word: `UP`, `UP 1/3`, `DOWN`, `MAINT`, `DRAIN`, `NOLB`, `no check`; of a pool how many are up. */
  status: string;
  state: Server["state"];
  up: boolean;
  sessions: number;
  maxconn: number | null;
  queue: number;
  maxqueue: number | null;
  requests: number;
  /** The servers of a pool. */
  members?: (Pick<Member, "name" | "state"> & { status: string })[];
}

const LOADS = ["pxname", "svname", "status", "scur", "slim", "qcur", "qlimit", "stot"];

/**
 * `# pxname,svname,qcur,qmax,scur,smax,slim,stot,...,status,weight,...,downtime,qlimit,pid,...`
 * `puppet,master1,0,0,0,0,5,0,...,no check,1,...,,7,1,...`
 * The columns behind may hold quoted text with commas; those that are read here never do.
 */
function loadRows(stats: string) {
  const [header = "", ...lines] = stats.split("\n");
  const titles = header.replace(/^# /, "").split(",");
  const columns = LOADS.map((title): number => {
    const index = titles.indexOf(title);
    if (index >= 0) return index;
    throw new SasoriError("HAPROXY_REPLY", `"show stat" has no column ${quote(title)}`);
  });
  const limit = (text: string) => (text === "" ? null : Number(text));
  return lines.map((line) => {
    const cells = line.split(",");
    const [pxname = "", svname = "", status = "", scur, slim = "", qcur, qlimit = "", stot] = columns.map(
      (index) => cells[index],
    );
    const load = {
      status,
      sessions: Number(scur),
      maxconn: limit(slim),
      queue: Number(qcur),
      maxqueue: limit(qlimit),
      requests: Number(stot),
    };
    return { pxname, svname, load };
  });
}

function parseLoads(stats: string, servers: readonly Server[], backend: string): ServerLoad[] {
  const known = new Map(servers.map((server) => [server.name as string, server]));
  return loadRows(stats).flatMap(({ pxname, svname, load: { status, ...numbers } }) => {
    const server = pxname === backend ? known.get(svname) : undefined;
    if (server === undefined) return []; // The healer, for one.
    const { name, state, up } = server;
    return { name, status, state, up, ...numbers };
  });
}

/** A request that waits for any server of a pool is in the queue of the backend, not of a server. */
function poolLoads(stats: string, pools: readonly Server[]): ServerLoad[] {
  const rows = loadRows(stats);
  return pools.map(({ name, state, up, members = [] }) => {
    const own = rows.filter(({ pxname }) => pxname === name);
    const found = members.flatMap((member) => {
      const load = own.find(({ svname }) => svname === member.name)?.load;
      return load === undefined ? [] : [{ member, load }];
    });
    const loads = found.map(({ load }) => load);
    const waiting = own.find(({ svname }) => svname === "BACKEND")?.load.queue ?? 0;
    const sum = (of: "sessions" | "queue" | "requests") => loads.reduce((total, load) => total + load[of], 0);
    const limit = (of: "maxconn" | "maxqueue") =>
      loads.reduce<number | null>(
        (total, { [of]: one }) => (one === null || total === null ? null : total + one),
        0,
      );
    const isUp = members.filter((member) => member.state === "up").length;
    return {
      ...{ name, status: `${isUp} of ${members.length} servers up`, state, up },
      ...{ sessions: sum("sessions"), maxconn: limit("maxconn") },
      ...{ queue: waiting + sum("queue"), maxqueue: limit("maxqueue"), requests: sum("requests") },
      members: found.map(({ member, load }) => ({
        name: member.name,
        state: member.state,
        status: load.status,
      })),
    };
  });
}

/** Lines of `show map`: `0x55ff91de2470 node1.example.com master1`. Lookups use the first of duplicates. */
async function readMap(session: RuntimeSession, which: string, pace: Pace, desired: NodeMap | undefined) {
  const routes = new Routes(desired);
  let lines = 0;
  const onLine = (line: string) => {
    lines += 1;
    const keyAt = line.indexOf(" ") + 1;
    const valueAt = line.indexOf(" ", keyAt) + 1;
    if (keyAt === 0 || valueAt === 0) return;
    routes.add(line.slice(keyAt, valueAt - 1), line.slice(valueAt));
  };
  await session.lines(`show map ${which}`, onLine, pace);
  const { all, capitals, strays } = routes.end();
  return { all, capitals, strays, lines };
}

function* changeCommands(
  map: MapState,
  plan: Plan,
  { size }: NodeMap,
  cost: PushCost,
  pace: Pace,
): Generator<Command> {
  const workMs = cost.keyedMs(size);
  for (const { certname, to } of plan.set) yield { command: `set map #${map.id} ${certname} ${to}`, workMs };
  for (const { certname } of plan.del) yield { command: `del map #${map.id} ${certname}`, workMs };
  const lines = function* () {
    for (const { certname, to } of plan.add) yield `${certname} ${to}`;
  };
  yield* additions(`add map #${map.id}`, lines(), pace);
}

/** `add map` commands for these lines, each at most as large as one burst may be. */
function* additions(command: string, lines: Iterable<string>, pace: Pace): Generator<Command> {
  for (const payload of payloads(lines, command.length, pace)) yield { command, payload, workMs: BURST_MS };
}

async function prepareVersion(session: RuntimeSession, map: MapState): Promise<number> {
  // New version created: 7
  const prepared = await session.ask(`prepare map #${map.id}`);
  const version = Number(/^New version created: (\d+)$/.exec(prepared)?.[1]);
  if (Number.isInteger(version)) return version;
  throw new SasoriError("HAPROXY_REPLY", `"prepare map" answered ${quote(prepared)}`);
}

/**
 * Fills a version, reads it back and commits it. Returns for how long HAProxy worked on it (ms), without the reading back,
 * because HAProxy serves requests meanwhile. Up to 3.0 HAProxy writes a route that it learns into all versions, so this one
 * may have it too (`learned`).
 */
async function fillVersion(
  session: RuntimeSession,
  pace: Pace,
  { map, servers }: Look,
  version: number,
  { undecided }: Plan,
  desired: NodeMap,
): Promise<Omit<Pushed, "method"> & { workedMs: number }> {
  const names = new Set<string>(servers.map(({ name }) => name));
  const wanted = ({ certname, master }: Assignment) => undecided.get(certname) ?? master;
  function* lines() {
    for (const assignment of desired.assignments()) yield `${assignment.certname} ${wanted(assignment)}`;
  }
  const filledMs = await session.runAll(additions(`add map @${version} #${map.id}`, lines(), pace), pace);
  const { all: routes, lines: count } = await readMap(session, `@${version} #${map.id}`, pace, desired);
  let right = count === desired.size && routes.size === desired.size;
  let learned = false;
  const check = (assignment: Assignment) => {
    const master = routes.get(assignment.certname);
    if (master === wanted(assignment)) return;
    if (master !== undefined && names.has(master)) learned = true;
    else right = false;
  };
  await inPieces(eachInPieces(desired.assignments(), check));
  if (!right) throw notAsSent(version, count, desired.size);
  const began = performance.now();
  await session.run(`commit map @${version} #${map.id}`);
  return { workedMs: filledMs + performance.now() - began, learned, version, entries: count };
}

const notAsSent = (version: number, entries: number, sent: number) =>
  new SasoriError(
    "HAPROXY_CHANGED",
    `version ${version} of the map has ${counted(entries, "entry", "entries")}, not the ${number(sent)} that were sent, so it is not committed: find the program that also writes to this map`,
  );

/** The map has more entries than before, and nothing else in its fingerprint changed. */
function hasGrown(before: Fingerprint, now: Fingerprint): boolean {
  const [version, entries] = before.content.split(":");
  const [versionNow, entriesNow] = now.content.split(":");
  return before.process === now.process && version === versionNow && Number(entriesNow) > Number(entries);
}
