// One master is overloaded four times over, the others are not: do their nodes notice? By turns idle and overloaded,
// in one run. master1 takes 100 ms for a request, so its maxconn 50 and maxqueue 100 are full of 150 clients; 600 ask,
// and those that are refused come back after a second, as Retry-After says, or ten times as often. Meanwhile a process of its
// own asks for nodes of the other masters at a steady rate, whatever the answers take.

import { execFile } from "node:child_process";
import { writeFile } from "node:fs/promises";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { Pool } from "undici";
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

const PROBE = fileURLToPath(new URL("probe.js", import.meta.url));
const MASTER_MS = 100;
/** maxconn + maxqueue of haproxy.cfg, four times. */
const CLIENTS = 4 * (50 + 100);
const ROUNDS = 5;
const ROUND_SECONDS = 3;
const PROBES_PER_SECOND = 250;

/** How long a refused client waits before it comes back, at least (and at most twice that): as it is told, or not. */
const PATIENCE = [
  { name: "1 s", ms: 1_000 },
  { name: "0.1 s", ms: 100 },
] as const;

interface Answer {
  status: number;
  ms: number;
}

export const overload: Bench = {
  what: `nodes of the other masters while ${CLIENTS} clients ask one that has places for ${CLIENTS / 4}`,
  async run({ signal, progress }) {
    const rows: Row[] = [];
    for (const haproxy of haproxyBinaries()) {
      for (const patience of PATIENCE) {
        const say = (text: string) =>
          progress(`HAProxy ${haproxy.version}, come back ${patience.name}, ${text}`);
        rows.push(await overloaded(haproxy, patience, signal, say));
      }
    }
    return rows;
  },
};

async function overloaded(
  { version, bin }: HaproxyBinary,
  patience: (typeof PATIENCE)[number],
  signal: AbortSignal,
  say: (text: string) => void,
): Promise<Row> {
  return Stage.with(signal, async (stage) => {
    const map = path.join(stage.folder, "node-master.map");
    await writeFile(map, [1, 2, 3].map((index) => `node${index}.example.com master${index}\n`).join(""));
    const ports = [await freePort(), await freePort(), await freePort()];
    await stage.haproxy("masters", bin, (port) => ({ text: mastersConfig(port, ports) }));
    const [statsPort, sasoriPort] = [await freePort(), await freePort()];
    const { port } = await stage.haproxy("gateway", bin, (port, socket) =>
      gatewayConfig(ports, { port, socket, map, statsPort, sasoriPort }),
    );
    const idle: Answer[][] = [];
    const busy: Answer[][] = [];
    const loads: Answer[][] = [];
    for (let round = 0; round <= ROUNDS; round += 1) {
      say(`round ${round} of ${ROUNDS}`);
      const quiet = await probe(port, signal);
      const load = new Load(port, patience.ms);
      await load.begun();
      const seen = await probe(port, signal);
      const loaded = await load.end();
      // The first round warms everything up, and does not count.
      if (round === 0) continue;
      idle.push(quiet);
      busy.push(seen);
      loads.push(loaded);
    }
    const answers = loads.flat();
    const share = (status: number) =>
      round((100 * answers.filter((answer) => answer.status === status).length) / answers.length, 1);
    const refusals = answers.filter(({ status }) => status === 503).map(({ ms }) => ms);
    const served = answers.filter(({ status }) => status === 200).map(({ ms }) => ms);
    // Each round beside its neighbour in time, then the median of the rounds.
    const ratio = (share: number) =>
      median(
        idle.map((answers, index) => quantile(times(busy[index]), share) / quantile(times(answers), share)),
      );
    const typical = (rounds: readonly Answer[][], share: number) =>
      round(median(rounds.map((answers) => quantile(times(answers), share))), 2);
    return {
      haproxy: version,
      "come back": patience.name,
      "others idle p50 ms": typical(idle, 0.5),
      "overload p50 ms": typical(busy, 0.5),
      "p50 ratio": round(ratio(0.5), 2),
      "others idle p99 ms": typical(idle, 0.99),
      "overload p99 ms": typical(busy, 0.99),
      "p99 ratio": round(ratio(0.99), 2),
      "others failed": [...idle, ...busy].flat().filter(({ status }) => status !== 200).length,
      "asked/s": Math.round(answers.length / (ROUNDS * ROUND_SECONDS)),
      "200 %": share(200),
      "503 %": share(503),
      "200 p99 ms": round(quantile(served, 0.99), 0),
      "503 p50 ms": round(quantile(refusals, 0.5), 2),
      "503 p99 ms": round(quantile(refusals, 0.99), 2),
    };
  });
}

const round = (value: number, digits: number): number => Number(value.toFixed(digits));
const times = (answers: readonly Answer[] = []) => answers.map(({ ms }) => ms);

/** master1 is slow, without using the processor; the others answer at once. */
function mastersConfig(port: number, ports: readonly number[]): string {
  return `${globalSection(["nbthread 1", "maxconn 2000"])}
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

/** Asks for nodes of master2 and master3 for some seconds, from another process: this one is busy with the load. */
async function probe(port: number, signal: AbortSignal): Promise<Answer[]> {
  const args = [PROBE, String(port), String(PROBES_PER_SECOND), String(ROUND_SECONDS)];
  const options = { signal, timeout: 30_000, maxBuffer: 2 ** 24 };
  const { stdout } = await promisify(execFile)(process.execPath, args, options);
  return JSON.parse(stdout) as Answer[];
}

/** Clients of master1's node: each asks again when it is answered, and a refused one after `patienceMs`. */
class Load {
  readonly #pool: Pool;
  readonly #clients: Promise<void>[];
  #answers: Answer[] = [];
  #running = true;

  constructor(port: number, patienceMs: number) {
    this.#pool = new Pool(`http://127.0.0.1:${port}`, { connections: CLIENTS, pipelining: 1 });
    this.#clients = Array.from({ length: CLIENTS }, () => this.#client(patienceMs));
  }

  async #client(patienceMs: number): Promise<void> {
    while (this.#running) {
      const began = performance.now();
      const status = await this.#pool
        .request({ method: "GET", path: "/", headers: { "x-node-name": "node1.example.com" } })
        .then(async ({ statusCode, body }) => {
          await body.dump();
          return statusCode;
        })
        .catch(() => 0);
      this.#answers.push({ status, ms: performance.now() - began });
      // Not all in the same moment: this process is to measure the gateway, not itself.
      if (status !== 200) await sleep(patienceMs * (1 + Math.random()));
    }
  }

  /** Every client has been refused or served once, and from here on it counts. */
  async begun(): Promise<void> {
    while (this.#answers.length < CLIENTS) await sleep(10);
    this.#answers = [];
  }

  async end(): Promise<Answer[]> {
    const answers = this.#answers.slice();
    this.#running = false;
    await Promise.all(this.#clients);
    await this.#pool.close();
    return answers;
  }
}
