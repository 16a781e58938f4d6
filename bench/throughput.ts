// How many requests per second a gateway passes on, compared with others on the same masters. Short rounds by turns
// (A B C A B C ...), so that the rest of the machine disturbs all alike. The figures are medians of the rounds.
// wrk asks, an HAProxy that answers by itself stands for the masters. Gateway on one core, both on the other.

import { execFile } from "node:child_process";
import { writeFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { freePort } from "../test/support/child.js";
import type { Bench, Row } from "./bench.js";
import {
  type Config,
  cpuMs,
  gatewayConfig,
  globalSection,
  type HaproxyBinary,
  haproxyBinaries,
  median,
  Stage,
  wrkBinary,
} from "./stage.js";

const SCRIPT = fileURLToPath(new URL("../../bench/nodes.lua", import.meta.url));
const NODES = 10_000;
const MASTERS = 3;
const CONNECTIONS = [20, 100];
const ROUND_SECONDS = 1;
const ROUNDS = 7;

const GATEWAY_CORE = "cpu-map 1/1 0";
export const ONE_CORE = ["nbthread 1", GATEWAY_CORE];
export const OTHER_CORE = "1";

interface Places {
  port: number;
  socket: string;
  map: string;
  statsPort: number;
  sasoriPort: number;
}

interface Variant {
  name: string;
  config: (masters: readonly number[], places: Places) => Config;
}

const FULL: Variant = { name: "full", config: (masters, places) => gatewayConfig(masters, places, ONE_CORE) };

const small = (global: readonly string[], lookup: string, masters: readonly number[], places: Places) => ({
  text: `${globalSection([...global, "log stdout format raw daemon info"])}
defaults
  mode http
  log global
  option httplog
  timeout connect 2s
  timeout client 30s
  timeout server 120s
frontend gateway
  bind 127.0.0.1:${places.port}
${lookup && `  http-request set-var(txn.master) req.fhdr(x-node-name),map_str("${places.map}")\n`}  default_backend puppet
backend puppet
${lookup}${masters.map((port, index) => `  server master${index + 1} 127.0.0.1:${port}\n`).join("")}`,
});
const USE_SERVER = "  use-server %[var(txn.master)] if { var(txn.master) -m found }\n";

/** Nothing but the lookup. */
const BARE: Variant = {
  name: "bare",
  config: (masters, places) => small(ONE_CORE, USE_SERVER, masters, places),
};
/** The lookup, and what healing needs of HAProxy itself: a request is kept so that it can be sent again after a 404. */
const RETRY =
  "  option http-buffer-request\n  retries 1\n  retry-on conn-failure 404\n  option redispatch 1\n";
const BARE_RETRY: Variant = {
  name: "bare, can retry",
  config: (masters, places) => small(ONE_CORE, RETRY + USE_SERVER, masters, places),
};
/** Without a lookup. */
const PLAIN: Variant = { name: "plain", config: (masters, places) => small(ONE_CORE, "", masters, places) };

interface Round {
  perSecond: number;
  p50: number;
  p99: number;
  /** Processor time of the gateway, per request, in microseconds. */
  cpu: number;
  /** Share of one core that the gateway used. */
  busy: number;
  failed: number;
}

/** Runs the variants by turns; one entry per variant and number of connections, in their order. */
async function compare(
  { version, bin }: HaproxyBinary,
  variants: readonly Variant[],
  rounds: number,
  { signal, progress }: Pick<Parameters<Bench["run"]>[0], "signal" | "progress">,
): Promise<{ variant: string; connections: number; rounds: Round[] }[]> {
  return Stage.with(signal, async (stage) => {
    const map = path.join(stage.folder, "nodes.map");
    const entry = (index: number) => `node${index}.example.com master${(index % MASTERS) + 1}\n`;
    await writeFile(map, Array.from({ length: NODES }, (_, index) => entry(index)).join(""));
    const ports = await Promise.all(Array.from({ length: MASTERS - 1 }, freePort));
    const { port } = await stage.haproxy("masters", bin, (first) => ({
      text: mastersConfig([first, ...ports]),
    }));
    const masters = [port, ...ports];
    const [statsPort, sasoriPort] = [await freePort(), await freePort()];
    const gateways = [];
    for (const [index, { name, config }] of variants.entries()) {
      const places = { map, statsPort: index === 0 ? statsPort : await freePort(), sasoriPort };
      const at = (port: number, socket: string) => config(masters, { ...places, port, socket });
      gateways.push({ name, ...(await stage.haproxy(`gateway-${index}`, bin, at)) });
    }
    const wrk = wrkBinary();
    const results = [];
    for (const connections of CONNECTIONS) {
      const seen = gateways.map(({ name }) => ({ variant: name, connections, rounds: [] as Round[] }));
      // The first turn fills connections and caches, and does not count.
      for (let turn = 0; turn <= rounds; turn += 1) {
        for (const [index, { port, pid, name }] of gateways.entries()) {
          progress(`HAProxy ${version}, ${connections} connections, round ${turn} of ${rounds}: ${name}`);
          const round = await ask(wrk, port, pid, connections, signal);
          if (turn > 0) seen[index]?.rounds.push(round);
        }
      }
      results.push(...seen);
    }
    return results;
  });
}

/** One HAProxy stands for all masters, and answers by itself, on one core. */
export function mastersConfig(ports: readonly number[]): string {
  return `${globalSection(["nbthread 1", `cpu-map 1/1 ${OTHER_CORE}`])}
defaults
  mode http
  timeout connect 2s
  timeout client 60s
  timeout server 60s
frontend masters
${ports.map((port) => `  bind 127.0.0.1:${port}\n`).join("")}  http-request return status 200 content-type text/plain string running
`;
}

async function ask(
  wrk: string,
  port: number,
  pid: number,
  connections: number,
  signal: AbortSignal,
): Promise<Round> {
  const before = cpuMs(pid);
  const command = [wrk, "-t1", `-c${connections}`, `-d${ROUND_SECONDS}s`, "-s", SCRIPT];
  const args = ["-c", OTHER_CORE, ...command, `http://127.0.0.1:${port}/`, "--", String(NODES)];
  const { stdout } = await promisify(execFile)("taskset", args, { signal, timeout: 30_000 });
  const used = cpuMs(pid) - before;
  const { requests, microseconds, p50, p99, failed } = JSON.parse(/^\{.*\}$/m.exec(stdout)?.[0] ?? "{}");
  return {
    perSecond: (requests / microseconds) * 1e6,
    p50,
    p99,
    cpu: (used * 1000) / requests,
    busy: (used * 1000) / microseconds,
    failed,
  };
}

/** The medians as a row, with ratios to the row of the same number of connections that is named `base`. */
function toRows(version: string, results: Awaited<ReturnType<typeof compare>>, base: string): Row[] {
  const medianOf = (rounds: readonly Round[], field: keyof Round) =>
    median(rounds.map((round) => round[field]));
  return results.map(({ variant, connections, rounds }) => {
    const other = results.find((row) => row.variant === base && row.connections === connections);
    // By turns: each round is compared with its neighbour in time, not with another minute's.
    const ratioOf = (field: "perSecond" | "cpu") =>
      median(rounds.map((round, index) => round[field] / (other?.rounds[index]?.[field] ?? Number.NaN)));
    return {
      haproxy: version,
      connections,
      config: variant,
      "requests/s": Math.round(medianOf(rounds, "perSecond")),
      [`of ${base}`]: Number(ratioOf("perSecond").toFixed(2)),
      "p50 µs": medianOf(rounds, "p50"),
      "p99 µs": medianOf(rounds, "p99"),
      "gateway CPU µs/request": Number(medianOf(rounds, "cpu").toFixed(1)),
      [`per CPU, of ${base}`]: Number((1 / ratioOf("cpu")).toFixed(2)),
      "gateway cores used": Number(medianOf(rounds, "busy").toFixed(2)),
      failed: rounds.reduce((sum, { failed }) => sum + failed, 0),
    };
  });
}

export const gateway: Bench = {
  what: "the whole haproxy.cfg beside a bare map lookup and a plain proxy",
  async run(context) {
    const rows: Row[] = [];
    for (const haproxy of haproxyBinaries()) {
      rows.push(
        ...toRows(
          haproxy.version,
          await compare(haproxy, [FULL, BARE, BARE_RETRY, PLAIN], ROUNDS, context),
          "bare",
        ),
      );
    }
    return rows;
  },
};

const threaded = (count: number): Variant => ({
  name: `nbthread ${count}`,
  config: (masters, places) => gatewayConfig(masters, places, [`nbthread ${count}`]),
});

export const threads: Bench = {
  what: "the whole haproxy.cfg with one and two threads, which share two cores with wrk and the masters",
  async run(context) {
    const rows: Row[] = [];
    for (const haproxy of haproxyBinaries()) {
      const results = await compare(haproxy, [threaded(1), threaded(2)], ROUNDS, context);
      rows.push(...toRows(haproxy.version, results, "nbthread 1"));
    }
    return rows;
  },
};

/** What one part of haproxy.cfg costs: the configuration without it. */
const without = (name: string, part: RegExp, instead = ""): Variant => ({
  name: `without ${name}`,
  config: (masters, places) => {
    const { text, env } = gatewayConfig(masters, places, ONE_CORE);
    if (!part.test(text)) throw new Error(`haproxy.cfg has no ${name} any more: ${part}`);
    return { text: text.replace(part, instead), ...(env && { env }) };
  },
});

const PARTS: readonly Variant[] = [
  without("log line", / {2}log-format .*\n/),
  without("body limit", / {2}http-request return status 413 .*\n/),
  without("del-header", / {2}http-request del-header .*\n/),
  without("regex", / or !\{ var\(txn\.master\) -m found \} !\{ var\(txn\.node\) -m reg .*? \}/),
  without("replace-path", / {2}http-request replace-path .*\n/),
  without("set-header X-Node-Name", / {2}http-request set-header X-Node-Name %\[var.*\n/),
  without(
    "add-header X-Sasori-Tried",
    / {2}http-request add-header X-Sasori-Tried %\[var\(txn.master\)\] .*\n/,
  ),
  without("queue_full rule", / {2}http-request return status 503 .*srv_queue ge .*\n/),
  without("disable-l7-retry", / {2}http-request disable-l7-retry .*\n/),
  without("http-buffer-request", / {2}option http-buffer-request\n/),
  without("retry-on", / {2}retry-on .*\n/),
  without("response rules", /( {2}http-response .*\n)+/),
  without("maxconn", /maxconn 50 maxqueue 100 /),
];

export const rules: Bench = {
  what: "what each part of haproxy.cfg costs: the whole without it",
  async run(context) {
    const haproxy = haproxyBinaries().at(-1);
    if (haproxy === undefined) throw new Error("no HAProxy: run setup/parts.sh test");
    const results = await compare(haproxy, [FULL, BARE, ...PARTS], 3, context);
    return toRows(haproxy.version, results, "full");
  },
};
