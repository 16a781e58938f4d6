// What a push costs, and what requests notice of it. For each HAProxy and size of map: incremental commands, a versioned
// swap, and what sasori does, once it knows this HAProxy; then wrk's p99 while each of three ways pushes again and
// again: to another HAProxy ("elsewhere"), which shows what sharing the machine does, and to the one that is asked
// ("here"), beside an idle round of the same length. The plot shows the last. The HAProxy that is asked has a core of its
// own, and wrk comes before the pushes: otherwise wrk waits for its core, and calls that HAProxy's time.

import { writeFile } from "node:fs/promises";
import net from "node:net";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { type Certname, type Master, NodeMap } from "../src/node-map.js";
import { inPieces } from "../src/pieces.js";
import { type Plan, planFromChanges } from "../src/plan.js";
import { HaproxyInstance } from "../src/target/haproxy.js";
import { payloads } from "../src/target/runtime-api.js";
import type { Bench, Row } from "./bench.js";
import { ALL_CORES, bind, FIRST_CORE, first, OTHER_CORES } from "./cores.js";
import { lookupConfig, MASTERS, ROUNDS, round, SIZES, wrk } from "./daemon.js";
import { type Haproxy, type HaproxyBinary, haproxyBinaries, median, Stage } from "./stage.js";

const PLOT = fileURLToPath(new URL("../../bench/push.svg", import.meta.url));
const SHARES = [0.0001, 0.001, 0.01, 0.1, 1];
/**
 * How long wrk asks in a round, and how long nothing runs before it. After a second the kernel takes the core from a program that
 * comes first, for 50 ms, and gives it to those that wait.
 */
const TRAFFIC_SECONDS = 0.75;
const REST_MS = 500;
const TRAFFIC_MAP = 100_000;
const TRAFFIC_MOVED = 1_000;

const nameOf = (node: number) => `node${node}.example.com` as Certname;

/** A map on a HAProxy, and its next state with some nodes moved. */
class Fleet {
  readonly map = new NodeMap();
  readonly size: number;
  #at = 1;

  constructor(size: number) {
    this.size = size;
    for (let node = 0; node < size; node += 1) this.#see(node, MASTERS[node % MASTERS.length] ?? "");
    this.map.takeChanges();
  }

  /** So many nodes, spread over the map, are at another master. */
  async move(count: number): Promise<Plan> {
    this.#at += 1;
    const step = Math.max(1, Math.floor(this.size / count));
    for (let moved = 0; moved < count; moved += 1) {
      const node = (moved * step) % this.size;
      const now = MASTERS.indexOf(this.map.get(nameOf(node))?.master ?? "");
      this.#see(node, MASTERS[(now + 1) % MASTERS.length] ?? "");
    }
    return inPieces(planFromChanges(this.map, this.map.takeChanges()));
  }

  text(): string {
    return Array.from(this.map.assignments(), ({ certname, master }) => `${certname} ${master}\n`).join("");
  }

  #see(node: number, master: string): void {
    this.map.observe({ certname: nameOf(node), master: master as Master, at: this.#at, source: "facts" });
  }
}

/** Sends commands as fast as HAProxy takes them, as a script would, 32 under way; resolves with all its replies. */
async function rawCommands(socketPath: string, commands: Iterable<string>): Promise<string> {
  const socket = net.connect(socketPath);
  let [replies, waiting] = ["", 0];
  let wake = () => {};
  socket.on("data", (text: Buffer) => {
    replies += text.toString("latin1");
    waiting -= text.toString("latin1").split(">").length - 1;
    wake();
  });
  const until = async (most: number) => {
    while (waiting > most) {
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
  };
  const send = async (command: string, most = 31) => {
    waiting += 1;
    socket.write(command);
    await until(most);
  };
  await send("prompt\n", 0);
  for (const command of commands) await send(command);
  await until(0);
  socket.destroy();
  return replies;
}

/** A running HAProxy with a map, and sasori's part that pushes to it. */
interface Gateway {
  haproxy: Haproxy;
  map: string;
  fleet: Fleet;
  instance: HaproxyInstance;
}

const rawSets = ({ haproxy, map }: Gateway, plan: Plan) =>
  rawCommands(
    haproxy.socket,
    plan.set.map(({ certname, to }) => `set map ${map} ${certname} ${to}\n`),
  );

/** The whole map as it is now. */
async function rawSwap({ haproxy, map, fleet }: Gateway): Promise<void> {
  const reply = await rawCommands(haproxy.socket, [`prepare map ${map}\n`]);
  const version = /New version created: (\d+)/.exec(reply)?.[1];
  const command = `add map @${version} ${map}`;
  const lines = Array.from(fleet.map.assignments(), ({ certname, master }) => `${certname} ${master}`);
  const pieces = Array.from(
    payloads(lines, command.length, "at once"),
    (payload) => `${command} <<\n${payload}\n`,
  );
  await rawCommands(haproxy.socket, pieces);
  await rawCommands(haproxy.socket, [`commit map @${version} ${map}\n`]);
}

async function startGateway(stage: Stage, name: string, bin: string, size: number): Promise<Gateway> {
  const map = path.join(stage.folder, `${name}.map`);
  const fleet = new Fleet(size);
  await writeFile(map, fleet.text());
  const haproxy = await stage.haproxy(name, bin, (port, socket) =>
    lookupConfig(map, port, socket, ["nbthread 1"]),
  );
  const endpoint = { name: haproxy.socket, connect: { path: haproxy.socket } };
  return {
    haproxy,
    map,
    fleet,
    instance: new HaproxyInstance(endpoint, { backend: "puppet", mapFile: map }),
  };
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const began = performance.now();
  await work();
  return performance.now() - began;
}

/** As sasori pushes, without the read that goes before it. Returns the method. */
async function push({ instance, fleet }: Gateway, plan: Plan, signal: AbortSignal) {
  const { fingerprint } = await instance.look(signal);
  const { method, disturbed } = await instance.apply(plan, fleet.map, fingerprint, signal);
  if (disturbed) throw new Error("somebody else pushes to this HAProxy");
  return method ?? "nothing";
}

export const pushes: Bench = {
  what: "one push into a map: raw commands, a raw swap, and sasori's push; ms, medians",
  async run({ signal, progress }) {
    const rows: Row[] = [];
    for (const haproxy of haproxyBinaries()) {
      for (const size of SIZES) {
        const say = (text: string) => progress(`HAProxy ${haproxy.version}, ${size} entries, ${text}`);
        rows.push(...(await pushRows(haproxy, size, signal, say)));
      }
    }
    return rows;
  },
};

async function pushRows(
  { version, bin }: HaproxyBinary,
  size: number,
  signal: AbortSignal,
  say: (text: string) => void,
): Promise<Row[]> {
  return Stage.with(signal, async (stage) => {
    const gateway = await startGateway(stage, "haproxy", bin, size);
    const { fleet } = gateway;
    const rows: Row[] = [];
    const rounds = size > 100_000 ? 3 : ROUNDS;
    for (const share of SHARES) {
      const moved = Math.max(1, Math.round(size * share));
      // Before 2.9 a command scans the map: these would take minutes and show nothing new.
      const isSlow = version < "2.9" && moved * size > 5e8;
      const seen = { sets: [] as number[], swap: [] as number[], sasori: [] as number[] };
      let method = "";
      for (let turn = 0; turn <= rounds; turn += 1) {
        say(`${moved} moved, round ${turn} of ${rounds}`);
        const first = await fleet.move(moved);
        const sets = isSlow ? Number.NaN : await timed(() => rawSets(gateway, first));
        await fleet.move(moved);
        const swap = await timed(() => rawSwap(gateway));
        const plan = await fleet.move(moved);
        const sasori = await timed(async () => {
          method = await push(gateway, plan, signal);
        });
        if (turn === 0) continue;
        seen.sets.push(sets);
        seen.swap.push(swap);
        seen.sasori.push(sasori);
      }
      const better = Math.min(...[median(seen.sets), median(seen.swap)].filter((ms) => !Number.isNaN(ms)));
      rows.push({
        haproxy: version,
        entries: size,
        moved,
        "set map ms": isSlow ? "-" : round(median(seen.sets), 1),
        "swap ms": round(median(seen.swap), 1),
        "sasori chose": method,
        "it is of the better": round((method === "swap" ? median(seen.swap) : median(seen.sets)) / better, 2),
        "sasori ms": round(median(seen.sasori), 1),
      });
    }
    return rows;
  });
}

interface Way {
  name: string;
  push: (gateway: Gateway, signal: AbortSignal) => Promise<unknown>;
}

const WAYS: readonly Way[] = [
  { name: "set map", push: async (gateway) => rawSets(gateway, await gateway.fleet.move(TRAFFIC_MOVED)) },
  {
    name: "swap",
    push: async (gateway) => {
      await gateway.fleet.move(TRAFFIC_MOVED);
      return rawSwap(gateway);
    },
  },
  {
    name: "sasori",
    push: async (gateway, signal) => push(gateway, await gateway.fleet.move(TRAFFIC_MOVED), signal),
  },
];

const SITUATIONS = ["idle", "elsewhere", "here"] as const;
type Seen = Record<(typeof SITUATIONS)[number], { p99: number; failed: number; pushMs: number[] }[]>;

export const traffic: Bench = {
  what: `p99 of requests while ${TRAFFIC_MOVED} of ${TRAFFIC_MAP} nodes move, again and again, beside idle`,
  async run({ signal, progress }) {
    const rows: Row[] = [];
    for (const haproxy of haproxyBinaries()) rows.push(...(await trafficRows(haproxy, signal, progress)));
    await writeFile(PLOT, plot(rows));
    return rows;
  },
};

function trafficRows(
  { version, bin }: HaproxyBinary,
  signal: AbortSignal,
  progress: (text: string) => void,
): Promise<Row[]> {
  return Stage.with(signal, async (stage) => {
    const here = await startGateway(stage, "here", bin, TRAFFIC_MAP);
    const elsewhere = await startGateway(stage, "elsewhere", bin, TRAFFIC_MAP);
    await bind(FIRST_CORE, here.haproxy.pid);
    await bind(OTHER_CORES, elsewhere.haproxy.pid);
    await bind(OTHER_CORES, process.pid);
    try {
      const rows: Row[] = [];
      for (const way of WAYS) {
        const say = (text: string) => progress(`HAProxy ${version}, ${way.name}, ${text}`);
        const seen = await felt(way, { idle: undefined, elsewhere, here }, here.haproxy.port, signal, say);
        rows.push({ haproxy: version, way: way.name, ...trafficFigures(seen) });
      }
      return rows;
    } finally {
      await bind(ALL_CORES, process.pid);
    }
  });
}

/** What requests to this port feel of pushes to nobody, to another HAProxy, and to their own. */
async function felt(
  way: Way,
  pushedTo: Record<keyof Seen, Gateway | undefined>,
  port: number,
  signal: AbortSignal,
  say: (text: string) => void,
): Promise<Seen> {
  const seen: Seen = { idle: [], elsewhere: [], here: [] };
  // The first push teaches sasori this HAProxy, and does not count.
  for (const gateway of Object.values(pushedTo)) if (gateway) await way.push(gateway, signal);
  for (let turn = 1; turn <= ROUNDS; turn += 1) {
    // There and back, so that nobody always comes first.
    for (const situation of turn % 2 === 0 ? SITUATIONS : SITUATIONS.toReversed()) {
      say(`${situation}, round ${turn} of ${ROUNDS}`);
      let over = false;
      const pushMs: number[] = [];
      await sleep(REST_MS, undefined, { signal });
      const asking = wrk(port, { seconds: 2, through: first(TRAFFIC_SECONDS) }, signal).finally(() => {
        over = true;
      });
      asking.catch(() => undefined);
      for (const gateway = pushedTo[situation]; gateway && !over; )
        pushMs.push(await timed(() => way.push(gateway, signal)));
      const { p99, failed } = await asking;
      seen[situation].push({ p99, failed, pushMs });
    }
  }
  return seen;
}

function trafficFigures({ idle, elsewhere, here }: Seen): Row {
  const middle = (rounds: Seen["idle"]) => round(median(rounds.map(({ p99 }) => p99)));
  /** Of rounds that are neighbours in time. */
  const ratio = (rounds: Seen["idle"], to: Seen["idle"]) =>
    round(median(rounds.map(({ p99 }, index) => p99 / (to[index]?.p99 ?? Number.NaN))), 2);
  return {
    "p99 idle µs": middle(idle),
    "elsewhere µs": middle(elsewhere),
    "here µs": middle(here),
    "here of idle": ratio(here, idle),
    "here of elsewhere": ratio(here, elsewhere),
    "push here ms": round(median(here.flatMap(({ pushMs }) => pushMs))),
    failed: [...idle, ...elsewhere, ...here].reduce((sum, { failed }) => sum + failed, 0),
  };
}

/** Bars on a logarithmic scale, one group for each HAProxy: how many times the idle p99. */
function plot(rows: readonly Row[]): string {
  const colours: Record<string, string> = { "set map": "#c0392b", swap: "#d99a1c", sasori: "#1f7a4d" };
  const [left, bottom, height, width, gap] = [60, 230, 180, 50, 40];
  const most = Math.max(10, ...rows.map((row) => Number(row["here of idle"])));
  const y = (ratio: number) =>
    round(bottom - (height * Math.log10(Math.max(1, ratio))) / Math.log10(most), 1);
  const bars = rows.map((row, index) => {
    const x = left + 20 + index * width + Math.floor(index / WAYS.length) * gap;
    const ratio = Number(row["here of idle"]);
    const label =
      index % WAYS.length === 1
        ? `<text x="${x + width / 2}" y="${bottom + 34}">HAProxy ${row.haproxy}</text>`
        : "";
    return `<rect x="${x}" y="${y(ratio) - 1}" width="${width - 6}" height="${round(bottom - y(ratio) + 1, 1)}" fill="${colours[row.way ?? ""]}"/>
<text x="${x + width / 2 - 3}" y="${y(ratio) - 6}">${ratio}</text><text x="${x + width / 2 - 3}" y="${bottom + 16}">${row.way}</text>${label}`;
  });
  const lines = [1, 1.5, 10, 100]
    .filter((ratio) => ratio <= most)
    .map(
      (
        ratio,
      ) => `<line x1="${left}" x2="${left + 20 + rows.length * width + 3 * gap}" y1="${y(ratio)}" y2="${y(ratio)}" stroke="#bbb"/>
<text x="${left - 20}" y="${y(ratio) + 4}">${ratio}</text>`,
    );
  const total = left + 40 + rows.length * width + 3 * gap;
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${total} 280" font-family="sans-serif" font-size="11" text-anchor="middle">
<title>p99 of requests during a push, three ways</title>
<rect width="${total}" height="280" fill="#fff"/>
<text x="${total / 2}" y="20" font-size="14">p99 of requests while 1,000 of 100,000 nodes move, again and again: times the idle p99</text>
${lines.join("\n")}
${bars.join("\n")}
</svg>
`;
}
