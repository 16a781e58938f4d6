// What the doctor checks in each HAProxy: the socket and its level, the map, the servers, whether wrong routes can heal, and
// whether the servers match PuppetDB's producers. Nothing here changes anything in HAProxy.

import { readFile, stat } from "node:fs/promises";
import { dirname } from "node:path";
import type { Config, Endpoint } from "../config.js";
import { counted, number } from "../counts.js";
import { quote, reason, SasoriError, systemCode } from "../errors.js";
import { resolver } from "../fleet.js";
import { UNROUTABLE_REMEDY, weightRemedy } from "../http/troubles.js";
import { type Certname, isCertname } from "../node-map.js";
import { masterAsker } from "../probe.js";
import { isAtLeast } from "../releases.js";
import type { Reading, Submission } from "../source/reading.js";
import { keepNewer } from "../source/source.js";
import { BACKEND_REMEDY, field, findMap, type MapState, readServers } from "../target/haproxy.js";
import { MapFile } from "../target/map-file.js";
import { Routes } from "../target/routes.js";
import { dial, pemOf, RuntimeSession, unreachable } from "../target/runtime-api.js";
import type { Server } from "../target/target.js";
import { isMountPoint } from "../whole-file.js";
import { type Check, CheckError, type Problem, verdict } from "./check.js";
import { type MapFileCheck, whoAmI } from "./checks-host.js";
import type { NodesCheck } from "./checks-puppetdb.js";

const SOCKET_MS = 5_000;
/** Ends before SOCKET_MS, after which the doctor says that HAProxy accepts connections. */
const CONNECT_MS = 4_000;
/** A map of a million entries is read in a second. */
const READ_MAP_MS = 60_000;

/** Before HAProxy 2.9 a change by key scans all entries. From this many on that is noticeable. */
const BIG_MAP = 20_000;
const CLOCK_MS = 30_000;
const DAY_MS = 24 * 60 * 60_000;

/** How many names a message repeats. */
const MAX_NAMES = 5;

export interface HaproxyChecks {
  all: Check[];
  endpoint: Endpoint;
  socket: Check<string>;
  servers: Check<Server[]>;
}

/** `earlier`: those of the other endpoints that stand before this one. */
export function haproxyChecks(
  endpoint: Endpoint,
  config: Config,
  mapFile: MapFileCheck,
  earlier: readonly HaproxyChecks[] = [],
): HaproxyChecks {
  const socket = socketCheck(endpoint);
  const map = mapCheck(endpoint, config, socket);
  const liveMap = liveMapCheck(endpoint, map);
  const servers = serversCheck(endpoint, config, socket);
  const all = [
    socket,
    levelCheck(endpoint, config, socket),
    versionCheck(endpoint, socket, map, earlier),
    ...("host" in endpoint.connect ? [clockCheck(endpoint, socket)] : []),
    map,
    liveMap,
    agreementCheck(endpoint, config, mapFile, liveMap),
    ...(config.priorityFile === undefined ? [] : [priorityMapCheck(endpoint, config.priorityFile, socket)]),
    servers,
    healingCheck(endpoint, config, socket),
  ];
  return { all, endpoint, socket, servers };
}

const names = (all: readonly string[]): string =>
  all.length > MAX_NAMES
    ? `${all.slice(0, MAX_NAMES).join(", ")}, … (${number(all.length)})`
    : all.join(", ");

/**
 * Asks without `prompt`, because HAProxy's master process, or another program that listens there, answers that differently from
 * a worker. The value is the answer to `show info`.
 */
function socketCheck(endpoint: Endpoint): Check<string> {
  return {
    name: "stats socket",
    where: endpoint.name,
    deadlineMs: SOCKET_MS,
    ifLate: "HAProxy accepts connections but does not answer. It may be stopped or overloaded. Restart it",
    async look(signal) {
      const answer = await askOnce(endpoint, "show info", signal).catch(async (error: unknown) => {
        throw error instanceof CheckError ? error : await socketError(endpoint, error);
      });
      if (/^Name: HAProxy$/m.test(answer)) {
        return verdict(`HAProxy answers, process ${field(answer, "Pid")}`, [], answer);
      }
      if (/@master|show proc/.test(answer)) {
        const remedy =
          "set SASORI_HAPROXY to the path of a `stats socket` line, not to that of the option -S";
        throw new CheckError("this is the socket of HAProxy's master process, which has no maps", remedy);
      }
      const what = `something else answers there: ${quote(answer, 60)}`;
      throw new CheckError(what, "set SASORI_HAPROXY to HAProxy's `stats socket`");
    },
  };
}

async function askOnce(endpoint: Endpoint, line: string, signal: AbortSignal): Promise<string> {
  const socket = dial(endpoint, await pemOf(endpoint), { allowHalfOpen: true });
  return new Promise((resolve, reject) => {
    let answer = "";
    socket.once("connect", () => socket.end(`${line}\n`));
    socket.setTimeout(CONNECT_MS, () => {
      if (socket.connecting)
        socket.destroy(new CheckError(`no connection within ${CONNECT_MS / 1000} s`, reachable(endpoint)));
    });
    signal.addEventListener("abort", () => socket.destroy(), { once: true });
    socket.setEncoding("latin1");
    socket.on("data", (text: string) => {
      answer += text;
      if (answer.length > 64 * 1024) socket.destroy();
    });
    socket.on("close", () => resolve(answer));
    socket.on("error", reject);
  });
}

async function socketError(endpoint: Endpoint, error: unknown): Promise<CheckError> {
  const { connect } = endpoint;
  const code = systemCode(error);
  if (endpoint.tls !== undefined && error instanceof Error)
    return sessionError(endpoint, error instanceof SasoriError ? error : unreachable(endpoint, error));
  if ("host" in connect) {
    const place = `${connect.host}:${connect.port}`;
    const remedies: Record<string, string> = {
      ECONNREFUSED: `start HAProxy; its configuration needs: stats socket ipv4@${place} level admin`,
      ENOTFOUND: "correct the host name in SASORI_HAPROXY, or DNS on this machine",
      EAI_AGAIN: "check the host name in SASORI_HAPROXY, and DNS on this machine",
    };
    return new CheckError(reason(error), remedies[code] ?? reachable(endpoint));
  }
  const { path } = connect;
  if (code === "ENOENT") {
    const remedy = `start HAProxy, or set SASORI_HAPROXY to the path of its \`stats socket\` line`;
    return new CheckError("the socket does not exist", remedy);
  }
  if (code === "EACCES" || code === "EPERM") {
    const owner = await ownerOf(path);
    const remedy = `let ${whoAmI()} use it: \`user\`, \`group\` and \`mode\` of the \`stats socket\` line, or join its group`;
    return new CheckError(`permission denied${owner}`, remedy);
  }
  const isSocket = await stat(path).then(
    (found) => found.isSocket(),
    () => true,
  );
  if (!isSocket)
    return new CheckError("this is not a socket", "set SASORI_HAPROXY to HAProxy's `stats socket`");
  if (code === "ECONNREFUSED" && isMountPoint(path))
    return new CheckError(
      "nothing listens there, because the socket itself is mounted, and HAProxy makes a new one when it starts",
      `mount its folder ${dirname(path)}`,
    );
  if (code === "ECONNREFUSED") return new CheckError("nothing listens there", "start HAProxy");
  return new CheckError(reason(error), "set SASORI_HAPROXY to HAProxy's `stats socket`");
}

const reachable = ({ connect }: Endpoint): string =>
  "host" in connect
    ? `check that ${connect.host}:${connect.port} is right, and that no firewall blocks it`
    : "check HAProxy's load";

async function ownerOf(path: string): Promise<string> {
  const found = await stat(path).catch(() => undefined);
  if (found === undefined) return ": its folder cannot be entered";
  const [user, group] = await Promise.all([
    nameOf("/etc/passwd", found.uid),
    nameOf("/etc/group", found.gid),
  ]);
  return `: the socket belongs to ${user}:${group}, mode ${(found.mode & 0o777).toString(8)}`;
}

/** `haproxy:x:106:113::/var/lib/haproxy:/usr/sbin/nologin` */
async function nameOf(file: string, id: number): Promise<string> {
  const lines = (await readFile(file, "utf8").catch(() => "")).split("\n").map((line) => line.split(":"));
  return lines.find((fields) => Number(fields[2]) === id && fields[2] !== "")?.[0] ?? String(id);
}

/** `show cli level` answers one word: admin, operator or user. Up to 3.3 maps may be changed at any of them. */
function levelCheck(endpoint: Endpoint, config: Config, socket: Check<string>): Check {
  return {
    name: "level",
    where: endpoint.name,
    needs: [socket],
    look: (signal, known) =>
      withSession(endpoint, signal, async (session) => {
        const level = await session.ask("show cli level");
        const version = field(known.of(socket), "Version");
        const isNeeded = isAtLeast(version, 3, 4) || config.newMasters !== undefined;
        const why = isAtLeast(version, 3, 4)
          ? `HAProxy ${version} refuses every map command below admin`
          : config.newMasters !== undefined
            ? "SASORI_NEW_MASTERS needs admin to add servers"
            : `HAProxy ${version} allows map changes at this level, but 3.4 and newer need admin`;
        return verdict(`level ${level}`, [
          level === "admin"
            ? undefined
            : {
                outcome: isNeeded ? "failed" : "warning",
                what: why,
                remedy: "add `level admin` to the `stats socket` line, and reload HAProxy",
              },
        ]);
      }),
  };
}

async function withSession<T>(
  endpoint: Endpoint,
  signal: AbortSignal,
  use: (session: RuntimeSession) => Promise<T>,
): Promise<T> {
  try {
    return await RuntimeSession.with(endpoint, signal, use);
  } catch (error) {
    throw error instanceof SasoriError ? sessionError(endpoint, error) : error;
  }
}

/** The messages of a session name the endpoint and end with what to do. */
function sessionError(endpoint: Endpoint, error: SasoriError): CheckError {
  const message = error.message.replace(`${endpoint.name}: `, "");
  const [, what, remedy] = /^(.*): (.*)$/s.exec(message) ?? [];
  return new CheckError(what ?? message, remedy ?? "HAProxy's log says why");
}

/** The last day on which the HAProxy project fixes a release, by the release's own `haproxy -v`: "around Q2 2027". */
const MENDED_UNTIL: Record<string, string> = {
  "2.4": "2026-06-30",
  "2.5": "2023-03-31",
  "2.6": "2027-06-30",
  "2.7": "2024-03-31",
  "2.8": "2028-06-30",
  "2.9": "2025-03-31",
  "3.0": "2029-06-30",
  "3.1": "2026-03-31",
  "3.2": "2030-06-30",
  "3.3": "2027-03-31",
  "3.4": "2031-06-30",
};

/** `now` in milliseconds since the epoch. A release that is not in the table is newer than this sasori. */
export function supportProblem(version: string, now: number): Problem | undefined {
  const [release = ""] = /^\d+\.\d+/.exec(version) ?? [];
  const until = MENDED_UNTIL[release];
  if (until === undefined || now < Date.parse(until) + DAY_MS) return undefined;
  return {
    outcome: "warning",
    what: `HAProxy ${release} has had no fixes from its developers since ${until}`,
    remedy: "upgrade to a release with long-term support, unless your distribution still fixes this one",
  };
}

/** Which process it is, of which host or container. */
const identityOf = (info: string) =>
  ["Pid", "Start_time_sec", "node"].map((name) => field(info, name)).join(" ");

function sameProblem(twin: HaproxyChecks | undefined): Problem | undefined {
  if (twin === undefined) return undefined;
  return {
    outcome: "warning",
    what: `this is the same HAProxy as at ${twin.endpoint.name}, so sasori changes its map twice, and meets its own changes`,
    remedy: "name each HAProxy once in SASORI_HAPROXY",
  };
}

function versionCheck(
  endpoint: Endpoint,
  socket: Check<string>,
  map: Check<MapState>,
  earlier: readonly HaproxyChecks[],
): Check {
  return {
    name: "HAProxy",
    where: endpoint.name,
    needs: [socket],
    follows: [map, ...earlier.map((one) => one.socket)],
    look(_, known) {
      const info = known.of(socket);
      const version = field(info, "Version");
      const entries = known.maybe(map)?.entries ?? 0;
      const isThis = (other: string | undefined) =>
        other !== undefined && identityOf(other) === identityOf(info);
      const problems = [sameProblem(earlier.find((one) => isThis(known.maybe(one.socket))))];
      if (!isAtLeast(version, 2, 4)) {
        const what = "sasori needs HAProxy 2.4 or newer";
        problems.push({ outcome: "failed", what, remedy: "upgrade HAProxy" });
      } else if (!isAtLeast(version, 2, 6)) {
        const what =
          "sasori is tested with HAProxy 2.6 and newer. 2.4 does not count a map's entries, so only full passes notice learned routes and changes by other programs";
        problems.push({
          outcome: "warning",
          what,
          remedy: "upgrade HAProxy, or set SASORI_FULL_SCHEDULE to run more often",
        });
      }
      if (!isAtLeast(version, 2, 9) && entries > BIG_MAP) {
        const what = `each change scans all ${number(entries)} entries, so sasori replaces the whole map for ${number(Math.ceil(entries * 0.002))} changes or more`;
        problems.push({
          outcome: "warning",
          what,
          remedy: "HAProxy 3.0 and newer change an entry 200 times faster",
        });
      }
      problems.push(supportProblem(version, Date.now()));
      const speed = isAtLeast(version, 2, 9)
        ? "changes an entry in microseconds"
        : "scans the map for each change";
      return verdict(`version ${version}, ${speed}`, problems);
    },
  };
}

/** HAProxy shows its clock only by its start time and its uptime. */
function clockCheck(endpoint: Endpoint, socket: Check<string>): Check {
  return {
    name: "clock",
    where: endpoint.name,
    needs: [socket],
    look(_, known) {
      const info = known.of(socket);
      const theirs = (Number(field(info, "Start_time_sec")) + Number(field(info, "Uptime_sec"))) * 1_000;
      const skewMs = theirs - Date.now();
      const seconds = Math.round(Math.abs(skewMs) / 1_000);
      return verdict("about the same time as here", [
        Math.abs(skewMs) < CLOCK_MS
          ? undefined
          : {
              outcome: "warning",
              what: `its host's clock seems to be ${seconds} s ${skewMs > 0 ? "ahead of" : "behind"} ours`,
              remedy:
                "synchronize both clocks with NTP. After a clock was set, this check is right again when HAProxy was restarted",
            },
      ]);
    },
  };
}

function mapCheck(endpoint: Endpoint, config: Config, socket: Check<string>): Check<MapState> {
  return {
    name: "map",
    where: endpoint.name,
    needs: [socket],
    look: (signal) =>
      withSession(endpoint, signal, async (session) => {
        const listing = await session.ask("show map");
        const state = findMap(listing, endpoint.name, config);
        const name = new RegExp(`^${state.id} \\((.*?)\\) `, "m").exec(listing)?.[1] ?? "";
        return verdict(`${name}${entriesOf(state)}`, [await otherFile(name, config.mapFile)], state);
      }),
  };
}

/** HAProxy 2.4 does not say how many. */
const entriesOf = ({ entries }: MapState) =>
  entries === undefined ? "" : `, ${counted(entries, "entry", "entries")}`;

/** Checks that HAProxy loads the same file when it starts. On another host or in another container the path says nothing. */
async function otherFile(name: string, mapFile: string): Promise<Problem | undefined> {
  const [theirs, ours] = await Promise.all([name, mapFile].map((file) => stat(file).catch(() => undefined)));
  if (theirs === undefined || (theirs.ino === ours?.ino && theirs.dev === ours.dev)) return undefined;
  return {
    outcome: "warning",
    what: `HAProxy loads ${name} when it starts, but sasori writes ${mapFile}`,
    remedy: "use one file for both. Otherwise HAProxy starts with an old map after every restart",
  };
}

/** The live map, and what is wrong in it. Lines are `0x55ff91de2470 node1.example.com master1`. */
function liveMapCheck(endpoint: Endpoint, map: Check<MapState>): Check<ReadonlyMap<Certname, string>> {
  return {
    name: "live map",
    where: endpoint.name,
    needs: [map],
    deadlineMs: READ_MAP_MS,
    look: (signal, known) =>
      withSession(endpoint, signal, async (session) => {
        const { id } = known.of(map);
        const found = new Routes(undefined);
        const strange: string[] = [];
        await session.lines(`show map #${id}`, (line) => {
          const [, key = "", value = ""] = line.split(" ");
          found.add(key, value);
          if (!isCertname(key)) strange.push(quote(key));
        });
        const { all: routes, strays } = found.end();
        const twice = strays.map((stray) => stray.split(" ")[0] ?? "").filter(isCertname);
        const remedy =
          "`sasori diff` shows what a pass would change. Find the other program that writes to this map";
        const problems: Problem[] = [];
        if (twice.length > 0)
          problems.push({
            outcome: "warning",
            what: `nodes with more than one entry: ${names(twice)}`,
            remedy,
          });
        if (strange.length > 0)
          problems.push({
            outcome: "warning",
            what: `keys that are not certnames: ${names(strange)}`,
            remedy,
          });
        return verdict(`${counted(routes.size, "node")}, each with one entry`, problems, routes);
      }),
  };
}

type Entries = ReadonlyMap<Certname, string>;

/** For each node that differs, how. */
function differences(file: Entries, live: Entries): Map<Certname, string> {
  const found = new Map<Certname, string>();
  for (const [certname, master] of file) {
    const there = live.get(certname);
    if (there !== master) found.set(certname, `${certname} ${master} → ${there ?? "(missing)"}`);
  }
  for (const certname of live.keys())
    if (!file.has(certname)) found.set(certname, `${certname} (not in the file)`);
  return found;
}

function agreementCheck(
  endpoint: Endpoint,
  config: Config,
  mapFile: MapFileCheck,
  liveMap: Check<Entries>,
): Check {
  return {
    name: "file and live map",
    where: endpoint.name,
    needs: [mapFile, liveMap],
    async look(_, known) {
      const live = known.of(liveMap);
      const before = differences(known.of(mapFile), live);
      if (before.size === 0) return verdict("they are equal", []);
      // Nodes that moved between the two readings do not count. sasori writes the file first, so by now it has what the live
      // map had.
      const now = differences((await new MapFile(config.mapFile).read()).routes, live);
      const differ = [...now].flatMap(([certname, how]) => (before.has(certname) ? [how] : []));
      if (differ.length === 0) return verdict("they are equal", []);
      const what = `the file and the live map differ for ${counted(differ.length, "node")}: ${names(differ)}`;
      const remedy =
        "`sasori diff` shows all of them. The daemon's next full pass corrects them, unless the guard holds changes";
      return verdict("", [{ outcome: "warning", what, remedy }]);
    },
  };
}

function priorityMapCheck(endpoint: Endpoint, priorityFile: string, socket: Check<string>): Check {
  return {
    name: "priority map",
    where: endpoint.name,
    needs: [socket],
    look: (signal) =>
      withSession(endpoint, signal, async (session) => {
        try {
          const listing = await session.ask("show map");
          const state = findMap(listing, endpoint.name, { mapFile: priorityFile });
          return verdict(`HAProxy has it${entriesOf(state)}`, []);
        } catch (error) {
          if (!(error instanceof SasoriError) || error.code !== "HAPROXY_MAP") throw error;
          const remedy = "set PRIORITY_MAP for haproxy.cfg, or unset SASORI_PRIORITY_FILE";
          throw new CheckError(`HAProxy has no map with the name of ${priorityFile}`, remedy);
        }
      }),
  };
}

function serversCheck(endpoint: Endpoint, config: Config, socket: Check<string>): Check<Server[]> {
  return {
    name: "servers",
    where: endpoint.name,
    needs: [socket],
    look: (signal) =>
      withSession(endpoint, signal, async (session) => {
        const { backend, pools } = config;
        const servers = await readServers(session, config).catch((error: unknown) => {
          if (!(error instanceof SasoriError) || error.code !== "HAPROXY_BACKEND") throw error;
          throw new CheckError(error.message, BACKEND_REMEDY);
        });
        const down = servers.filter(({ up }) => !up).map(({ name }) => name);
        const problems: Problem[] = [];
        if (servers.length === 0) {
          const remedy = "add a server line for each master, or correct SASORI_BACKEND";
          problems.push({ outcome: "failed", what: `the backend ${quote(backend)} has no server`, remedy });
        }
        for (const { name, members = [], up } of servers) {
          const away = members.filter(({ state }) => state === "down").map((server) => server.name);
          if (!up || away.length === 0) continue;
          const what = `${name}: ${away.length} of ${members.length} servers are down: ${names(away)}`;
          problems.push({
            outcome: "warning",
            what,
            remedy: "see in HAProxy's log why their health checks fail",
          });
        }
        if (down.length > 0) {
          const remedy = "start these masters. HAProxy's log says why their health checks fail";
          problems.push({ outcome: "warning", what: `down: ${names(down)}`, remedy });
        }
        const drained = servers.filter(({ state }) => state === "drained").map(({ name }) => name);
        if (drained.length > 0) {
          const remedy = "move their nodes away with `sasori drain`, or set their state to ready in HAProxy";
          const what = pools
            ? `every server drained, so only pools.cfg still serves their nodes: ${names(drained)}`
            : `drained, still serving their nodes: ${names(drained)}`;
          problems.push({ outcome: "warning", what, remedy });
        }
        for (const { name, strayWeight } of servers) {
          if (strayWeight === undefined) continue;
          const what = `${name} has weight ${strayWeight}, so HAProxy also sends it requests for other masters' nodes, and wrong routes do not heal`;
          problems.push({ outcome: "warning", what, remedy: weightRemedy(name) });
        }
        const found = pools
          ? `${counted(servers.length, "pool")}: ${names(servers.map(({ name, members = [] }) => `${name} (${members.length})`))}`
          : `${servers.length} in the backend ${quote(backend)}`;
        return verdict(found, problems, servers);
      }),
  };
}

const START = "start the daemon: sasori serve";

/** In haproxy.cfg healing needs three servers: `sasori` in the proxy of that name, and `heal1` and `heal2`. */
function healingCheck(endpoint: Endpoint, { listen, backend, pools }: Config, socket: Check<string>): Check {
  return {
    name: "healing",
    where: endpoint.name,
    needs: [socket],
    look: (signal) =>
      withSession(endpoint, signal, async (session) => {
        const rows = parseStat(await session.ask("show stat"));
        const way = rows.find((row) => row.pxname === "sasori" && row.svname === "sasori");
        if (way === undefined) {
          return verdict("not configured: a wrong route waits for the next pass (docs/gateway.md)", []);
        }
        const isUp = way.status?.startsWith("UP") === true || way.status === "no check";
        const otherPort = way.addr !== undefined && way.addr !== "" && !way.addr.endsWith(`:${listen.port}`);
        const remedy = `set RESOLVER_ADDRESS for haproxy.cfg to the address of SASORI_LISTEN, port ${listen.port}`;
        const problems: Problem[] = [];
        if (otherPort)
          problems.push({ outcome: "warning", what: `HAProxy asks sasori on ${way.addr}`, remedy });
        if (!isUp) {
          const what = `HAProxy cannot reach sasori (${way.status}), so wrong routes do not heal`;
          problems.push({ outcome: "warning", what, remedy: otherPort ? START : `${START}; ${remedy}` });
        }
        const idle = rows
          .filter(({ pxname, svname = "" }) => (pools || pxname === backend) && /^heal\d+$/.test(svname))
          .filter(({ status = "", weight }) => weight === "0" || !/^(UP|no check)/.test(status))
          .map(({ svname = "", status, weight }) => `${svname} (${status}, weight ${weight})`);
        if (idle.length > 0) {
          const what = `out of service: ${idle.join(", ")}. Wrong routes do not heal there`;
          const healers = "in HAProxy, set the state of these servers to ready, and their weight to 1";
          problems.push({ outcome: "warning", what, remedy: healers });
        }
        return verdict(isUp ? "HAProxy reaches sasori" : "", problems);
      }),
  };
}

/** `# pxname,svname,qcur,...,status,...` and a line for each; no cell that is read here has a comma in it. */
function parseStat(text: string): Record<string, string>[] {
  const [header = "", ...lines] = text.split("\n");
  const titles = header.replace(/^# /, "").split(",");
  // `agent_desc`, `check_desc` and the like are quoted and may hold commas; `addr` stands behind some of them.
  const cells = (line: string) =>
    line.match(/("(?:[^"]|"")*"|[^,]*)(?:,|$)/g)?.map((cell) => cell.replace(/,$/, "")) ?? [];
  return lines.map((line) =>
    Object.fromEntries(cells(line).map((cell, index) => [titles[index] ?? "", cell])),
  );
}

/** Compares servers with producers: which have no counterpart, and which aliases are wrong. */
export function mastersCheck(
  config: Config,
  nodes: readonly NodesCheck[],
  haproxys: readonly HaproxyChecks[],
): Check {
  return {
    name: "masters",
    where: "PuppetDB and HAProxy",
    // With several PuppetDBs one may be down, so this check does not need all of them.
    ...(nodes.length === 1 && { needs: nodes }),
    follows: [...nodes, ...haproxys.map(({ servers }) => servers)],
    look(_, known) {
      const seen = haproxys.flatMap(({ endpoint, servers }) => {
        const list = known.maybe(servers);
        return list === undefined ? [] : [{ where: endpoint.name, list }];
      });
      if (seen.length === 0)
        throw new CheckError("no HAProxy could be asked for its servers", "see what failed above");
      const all = seen.flatMap(({ list }) => list);
      const submissions: Reading["submissions"] = new Map();
      for (const read of nodes)
        for (const submission of known.maybe(read)?.submissions.values() ?? [])
          keepNewer(submissions, submission);
      const counts = countProducers(submissions.values());
      const resolve = resolver(config.masterAliases, all);
      const served = new Set([...counts.keys()].map(resolve).filter((name) => name !== undefined));
      const idle = [...new Set(all.map(({ name }) => name))].filter((name) => !served.has(name));
      return verdict(
        `${counted(counts.size, "producer")}, ${counted(served.size, config.pools ? "pool" : "server")} with nodes${idle.length > 0 ? `, without: ${names(idle)}` : ""}`,
        [
          aliasProblem(config, all),
          unroutableProblem(config, counts, (producer) => resolve(producer) !== undefined),
          ...unequalServers(seen),
        ],
      );
    },
  };
}

/** The name of a node that no master has. */
const NO_NODE = "sasori-doctor.invalid";
const PROBE_MS = 5_000;

/** Asks each master that is up about a node, as for a wrong route: does it answer, and is its certificate valid? */
export function probeCheck(config: Config, haproxys: readonly HaproxyChecks[]): Check {
  const { probePath = "", probeTls } = config;
  const ask = masterAsker(config);
  const problemOf = async (server: Server, signal: AbortSignal): Promise<Problem | undefined> => {
    const where = `${server.name} (${server.address})`;
    const path = probePath.replaceAll("{certname}", NO_NODE);
    try {
      const status = await ask(server, path, AbortSignal.any([signal, AbortSignal.timeout(PROBE_MS)]));
      if (status !== 401 && status !== 403) return undefined;
      const remedy =
        "allow sasori to ask for this path: set SASORI_PROBE_CERT, and add a rule to the masters' auth.conf";
      return { outcome: "warning", what: `${where} answers ${status}`, remedy };
    } catch (error) {
      const remedy =
        probeTls === undefined
          ? "if the masters speak TLS, set SASORI_PROBE_CA"
          : "check SASORI_PROBE_CA, _CERT and _KEY. If a certificate has another name than the server, add it to SASORI_MASTER_ALIASES";
      return { outcome: "warning", what: `${where}: ${reason(error)}`, remedy };
    }
  };
  return {
    name: "probes",
    where: "masters",
    follows: haproxys.map(({ servers }) => servers),
    async look(signal, known) {
      const all = haproxys.flatMap(({ servers }) => known.maybe(servers) ?? []).filter(({ up }) => up);
      const servers = [...new Map(all.map((server) => [server.address, server])).values()];
      const problems = await Promise.all(servers.map((server) => problemOf(server, signal)));
      const how = probeTls === undefined ? "plain HTTP" : "TLS";
      return verdict(`${counted(servers.length, "master")} asked by ${how}`, problems);
    },
  };
}

function countProducers(submissions: Iterable<Submission>): Map<string, number> {
  const counts = new Map<string, number>();
  for (const { producer } of submissions) counts.set(producer, (counts.get(producer) ?? 0) + 1);
  return counts;
}

function aliasProblem(
  { masterAliases, backend, pools }: Config,
  servers: readonly Server[],
): Problem | undefined {
  const known = new Set(servers.map(({ name }) => name));
  const wrong = masterAliases.pairs.filter(([, server]) => !known.has(server)).map((pair) => pair.join("="));
  if (wrong.length === 0) return undefined;
  return {
    outcome: "failed",
    what: `aliases for ${pools ? "backends that do not exist or are not masters" : "servers that do not exist"}: ${names(wrong)}`,
    remedy: `correct SASORI_MASTER_ALIASES (${pools ? "SASORI_BACKEND" : backend} has: ${names([...known])})`,
  };
}

function unroutableProblem(
  { newMasters, pools }: Config,
  counts: ReadonlyMap<string, number>,
  isRoutable: (producer: string) => boolean,
): Problem | undefined {
  const lost = [...counts].filter(
    ([producer]) => !isRoutable(producer) && !newMasters?.pattern.test(producer),
  );
  if (lost.length === 0) return undefined;
  const nodes = lost.reduce((sum, [, count]) => sum + count, 0);
  const all = [...counts.values()].reduce((sum, count) => sum + count, 0);
  const who = names(lost.map(([producer, count]) => `${quote(producer)} (${counted(count, "node")})`));
  return {
    // Then the map cannot have a single route.
    outcome: nodes === all ? "failed" : "warning",
    what: `${nodes} of ${counted(all, "node")} have no route, because HAProxy has no ${pools ? "pool" : "server"} for their puppetservers: ${who}`,
    remedy: UNROUTABLE_REMEDY,
  };
}

function* unequalServers(seen: readonly { where: string; list: readonly Server[] }[]): Generator<Problem> {
  const all = new Set(seen.flatMap(({ list }) => list.map(({ name }) => name)));
  for (const { where, list } of seen) {
    const lacking = [...all].filter((name) => !list.some((server) => server.name === name));
    if (lacking.length === 0) continue;
    const what = `${where} lacks ${names(lacking)}, which another HAProxy has`;
    yield { outcome: "warning", what, remedy: "use the same masters in all HAProxy instances" };
  }
}
