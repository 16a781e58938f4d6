// One master is overloaded four times over, the others are not: do their nodes notice? They are asked for through one
// gateway in three situations by turns: "idle"; "elsewhere", while the overload goes to the same masters through a
// second gateway of the same kind, which shows what sharing the machine does; and "here", through their own gateway.
// Here beside elsewhere is what the gateway itself does to them. Both gateways are on one core, all else on the other.
//
// master1 takes 100 ms for a request, so its maxconn 50 and maxqueue 100 are full of 150 clients; 600 ask, and those
// that are refused come back after a second, as Retry-After says, or ten times as often. Meanwhile a process of its own
// asks for nodes of the other masters at a steady rate, whatever the answers take.

import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { writeFile } from "node:fs/promises";
import path from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { freePort } from "../test/support/child.js";
import type { Bench, Row } from "./bench.js";
import {
  gatewayConfig,
  globalSection,
  type HaproxyBinary,
  haproxyBinaries,
  median,
  quantile,
  Stage,
} from "./stage.js";
import { ONE_CORE, OTHER_CORE } from "./throughput.js";

const program = (name: string) => fileURLToPath(new URL(name, import.meta.url));
const MASTER_MS = 100;
/** maxconn + maxqueue of haproxy.cfg, four times. */
const CLIENTS = 4 * (50 + 100);
const ROUNDS = 10;
/** With the rate: 2,000 requests in each situation of each round, so that 20 are slower than the 99th percentile. */
const ROUND_SECONDS = 4;
const PROBES_PER_SECOND = 500;

const SITUATIONS = ["idle", "elsewhere", "here"] as const;
type Situation = (typeof SITUATIONS)[number];

/** How long a refused client waits before it comes back, at least (and at most twice that): as it is told, or not. */
const PATIENCE = [
  { name: "1 s", ms: 1_000 },
  { name: "0.1 s", ms: 100 },
] as const;

interface Answer {
  status: number;
  ms: number;
}

/** What the others and the overload were answered in one situation, round by round. */
interface Seen {
  others: Answer[][];
  load: Answer[];
}

export const overload: Bench = {
  what: `nodes of the other masters while ${CLIENTS} clients ask one that has places for ${CLIENTS / 4}`,
  async run({ signal, progress }) {
    const rows: Row[] = [];
    for (const haproxy of haproxyBinaries()) {
      for (const patience of PATIENCE) {
        const say = (text: string) =>
          progress(`HAProxy ${haproxy.version}, come back ${patience.name}, ${text}`);
        const seen = await measured(haproxy, patience.ms, signal, say);
        rows.push({ haproxy: haproxy.version, "come back": patience.name, ...figures(seen) });
      }
    }
    return rows;
  },
};

function measured(
  { bin }: HaproxyBinary,
  patienceMs: number,
  signal: AbortSignal,
  say: (text: string) => void,
): Promise<Record<Situation, Seen>> {
  return Stage.with(signal, async (stage) => {
    const { here, elsewhere } = await gateways(stage, bin);
    const seen = Object.fromEntries(
      SITUATIONS.map((name) => [name, { others: [], load: [] }]),
    ) as unknown as Record<Situation, Seen>;
    for (let round = 0; round <= ROUNDS; round += 1) {
      // There and back, so that nobody always comes first.
      for (const situation of round % 2 === 0 ? SITUATIONS : SITUATIONS.toReversed()) {
        say(`${situation}, round ${round} of ${ROUNDS}`);
        const through = { idle: undefined, elsewhere, here }[situation];
        const { others, load } = await answers(here, through, patienceMs, signal);
        // The first round warms everything up, and does not count.
        if (round === 0) continue;
        seen[situation].others.push(others);
        seen[situation].load.push(...load);
      }
    }
    return seen;
  });
}

/** Two gateways of the same kind in front of the same masters: their ports. */
async function gateways(stage: Stage, bin: string): Promise<{ here: number; elsewhere: number }> {
  const map = path.join(stage.folder, "node-master.map");
  await writeFile(map, [1, 2, 3].map((index) => `node${index}.example.com master${index}\n`).join(""));
  const ports = [await freePort(), await freePort(), await freePort()];
  await stage.haproxy("masters", bin, (port) => ({ text: mastersConfig(port, ports) }));
  const start = async (name: string) => {
    const [statsPort, sasoriPort] = [await freePort(), await freePort()];
    const { port } = await stage.haproxy(name, bin, (port, socket) =>
      gatewayConfig(ports, { port, socket, map, statsPort, sasoriPort }, ONE_CORE),
    );
    return port;
  };
  return { here: await start("here"), elsewhere: await start("elsewhere") };
}

function figures({ idle, elsewhere, here }: Record<Situation, Seen>): Row {
  const answers = here.load;
  const share = (status: number) =>
    round((100 * answers.filter((answer) => answer.status === status).length) / answers.length, 1);
  const took = (status: number) => times(answers.filter((answer) => answer.status === status));
  const failed = [idle, elsewhere, here].flatMap(({ others }) => others.flat());
  return {
    ...compared("p50", 0.5, idle, elsewhere, here),
    ...compared("p99", 0.99, idle, elsewhere, here),
    "others failed": failed.filter(({ status }) => status !== 200).length,
    "asked/s": Math.round(answers.length / (ROUNDS * ROUND_SECONDS)),
    "200 %": share(200),
    "503 %": share(503),
    "200 p99 ms": round(quantile(took(200), 0.99), 0),
    "503 p50 ms": round(quantile(took(503), 0.5), 2),
    "503 p99 ms": round(quantile(took(503), 0.99), 2),
  };
}

/** This quantile of the others' times in the three situations; "here / elsewhere" is of neighbours in time. */
function compared(name: string, share: number, idle: Seen, elsewhere: Seen, here: Seen): Row {
  const [quiet, control, own] = [idle, elsewhere, here].map(({ others }) =>
    others.map((answers) => quantile(times(answers), share)),
  ) as [number[], number[], number[]];
  return {
    [`${name} ms idle`]: round(median(quiet), 2),
    [`${name} elsewhere`]: round(median(control), 2),
    [`${name} here`]: round(median(own), 2),
    [`${name} here / elsewhere`]: round(
      median(own.map((ms, index) => ms / (control[index] ?? Number.NaN))),
      2,
    ),
  };
}

const round = (value: number, digits: number): number => Number(value.toFixed(digits));
const times = (answers: readonly Answer[]) => answers.map(({ ms }) => ms);

/** master1 is slow, without using the processor; the others answer at once. */
function mastersConfig(port: number, ports: readonly number[]): string {
  return `${globalSection(["nbthread 1", `cpu-map 1/1 ${OTHER_CORE}`, "maxconn 2000"])}
defaults
  mode http
  timeout connect 2s
  timeout client 60s
  timeout server 60s
  timeout tarpit ${MASTER_MS}ms
  http-error status 200 content-type text/plain string done
frontend masters
  bind 127.0.0.1:${port}
${ports.map((port) => `  bind 127.0.0.1:${port}\n`).join("")}  http-request return status 200 content-type text/plain string running if { path /status/v1/simple }
  http-request tarpit deny_status 200 if { dst_port ${ports[0]} }
  http-request return status 200 content-type text/plain string done
`;
}

/** What the others are answered, and meanwhile the overload, if there is one. Processes of their own, off the gateways' core. */
async function answers(
  port: number,
  overloadPort: number | undefined,
  patienceMs: number,
  signal: AbortSignal,
): Promise<{ others: Answer[]; load: Answer[] }> {
  const others = async () => {
    const args = [port, PROBES_PER_SECOND, ROUND_SECONDS].map(String);
    const command = ["-c", OTHER_CORE, process.execPath, program("probe.js"), ...args];
    const { stdout } = await promisify(execFile)("taskset", command, {
      signal,
      timeout: 30_000,
      maxBuffer: 2 ** 24,
    });
    return JSON.parse(stdout) as Answer[];
  };
  if (overloadPort === undefined) return { others: await others(), load: [] };
  const args = [overloadPort, CLIENTS, patienceMs].map(String);
  const command = ["-c", OTHER_CORE, process.execPath, program("load.js"), ...args];
  const load = spawn("taskset", command, { stdio: ["pipe", "pipe", "inherit"] });
  try {
    const lines = createInterface(load.stdout);
    await once(lines, "line", { signal });
    const seen = await others();
    load.stdin.end();
    const [line] = await once(lines, "line", { signal });
    return { others: seen, load: JSON.parse(line) };
  } finally {
    load.kill();
  }
}
