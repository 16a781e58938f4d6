// What a stale route costs: every node has moved and the map is wrong about all of them. Each node is asked for once: how
// many get their answer, how many requests reach the wrong and the right master for it, and how long it takes. Two seconds
// later each is asked for again: how many get it now. The masters are one HAProxy that answers 404 for nodes they do not have
// and counts; sasori is a process of its own and learns of the moves only by asking PuppetDB.

import { writeFile } from "node:fs/promises";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { Pool } from "undici";
import { until } from "../demo/processes.js";
import { freePort } from "../test/support/child.js";
import { runtimeCommand } from "../test/support/haproxy-server.js";
import { ON_DEMAND } from "../test/support/schedules.js";
import type { Bench, Row } from "./bench.js";
import { startPuppetdb } from "./puppetdb.js";
import { gatewayConfig, globalSection, type HaproxyBinary, haproxyBinaries, median, Stage } from "./stage.js";

const CLI = fileURLToPath(new URL("../src/cli.js", import.meta.url));
/** GATEWAY_REPLAY: "all" for masters that check that a node is theirs, as these do. */
const SETTINGS = [
  ...[2, 4, 8, 16].map((masters) => ({ replay: "all", masters })),
  { replay: "safe", masters: 16 },
] as const;
/** One client alone needs seconds for that many, and is as exact with a quarter. */
const STALE = { one: 500, many: 2_000 };
/** When a client that got a 404 comes back. */
const AGAIN_MS = 2_000;
const REQUEST_DEADLINE_MS = 15_000;
/** For sasori's health check at the gateway, and for its first pass. */
const READY_DEADLINE_MS = 20_000;

interface Run {
  sasori: "up" | "down";
  clients: number;
  method: "GET" | "POST";
}

/** Those with sasori use up their nodes: the map is right afterwards. Without it nothing is learned. */
const RUNS: readonly Run[] = [
  { sasori: "up", clients: 1, method: "GET" },
  { sasori: "up", clients: 1, method: "POST" },
  { sasori: "up", clients: 50, method: "GET" },
  { sasori: "up", clients: 50, method: "POST" },
  { sasori: "down", clients: 1, method: "GET" },
  { sasori: "down", clients: 50, method: "GET" },
];

const BODY = "x".repeat(1_000);

const node = (index: number) => `node${index}.example.com`;

export const healing: Bench = {
  what: `stale routes, each asked for once: ${STALE.many}, by one client ${STALE.one}`,
  async run({ signal, progress }) {
    const rows: Row[] = [];
    for (const haproxy of haproxyBinaries()) {
      for (const { replay, masters } of SETTINGS) {
        const say = (text: string) =>
          progress(`HAProxy ${haproxy.version}, ${masters} masters, replay ${replay}, ${text}`);
        rows.push(...(await heal(haproxy, masters, replay, signal, say)));
      }
    }
    return rows;
  },
};

async function heal(
  { version, bin }: HaproxyBinary,
  masterCount: number,
  replay: string,
  signal: AbortSignal,
  say: (text: string) => void,
): Promise<Row[]> {
  const nodes = Array.from({ length: STALE.many * RUNS.length }, (_, index) => node(index));
  const master = (index: number) => `master${(index % masterCount) + 1}`;
  const before = new Map(nodes.map((certname, index) => [certname, master(index)]));
  const after = new Map(nodes.map((certname, index) => [certname, master(index + 1)]));
  const puppetdb = await startPuppetdb(before);
  try {
    return await Stage.with(signal, async (stage) => {
      say("starting");
      const [map, owners] = [
        path.join(stage.folder, "node-master.map"),
        path.join(stage.folder, "owners.map"),
      ];
      await writeFile(map, mapText(before));
      await writeFile(owners, mapText(after));
      const ports: number[] = [];
      for (let count = 1; count < masterCount; count += 1) ports.push(await freePort());
      const masters = await stage.haproxy("masters", bin, (first, socket) => {
        ports.unshift(first);
        return { text: mastersConfig(ports, owners, socket) };
      });
      const [statsPort, sasoriPort] = [await freePort(), await freePort()];
      const gateway = await stage.haproxy("gateway", bin, (port, socket) => {
        const { text, env } = gatewayConfig(ports, { port, socket, map, statsPort, sasoriPort });
        return { text, env: { ...env, GATEWAY_REPLAY: replay } };
      });
      const sasori = {
        SASORI_PUPPETDB_URL: puppetdb.url,
        SASORI_HAPROXY: gateway.socket,
        SASORI_MAP_FILE: map,
        SASORI_LISTEN: `127.0.0.1:${sasoriPort}`,
        // It never looks for changes by itself, so only healing can help.
        ...ON_DEMAND,
      };
      await stage.program("sasori", [process.execPath, CLI, "serve"], sasori, async () => {
        const status = (await (await fetch(`http://127.0.0.1:${sasoriPort}/api/v1/status`)).json()) as {
          lastPass?: { outcome: string };
        };
        if (status.lastPass === undefined || status.lastPass.outcome === "done")
          return status.lastPass !== undefined;
        throw new Error(JSON.stringify(status));
      });
      const isUp = async () =>
        / sasori 127\.0\.0\.1 2 /.test(await runtimeCommand(gateway.socket, "show servers state sasori"));
      await until("the gateway sees that sasori is up", isUp, { deadlineMs: READY_DEADLINE_MS, signal });
      puppetdb.facts = after;

      const rows: Row[] = [];
      for (const [index, run] of RUNS.entries()) {
        // To the gateway it looks stopped.
        if (run.sasori === "down") await runtimeCommand(gateway.socket, "disable server sasori/sasori");
        say(`${run.clients} clients, ${run.method}, sasori ${run.sasori}`);
        const counted = await counts(masters.socket);
        const first = index * STALE.many;
        const stale = nodes.slice(first, first + (run.clients === 1 ? STALE.one : STALE.many));
        const began = performance.now();
        const seen = await askAll(gateway.port, stale, run);
        const seconds = (performance.now() - began) / 1000;
        const { wrong, right } = await counts(masters.socket);
        await sleep(AGAIN_MS);
        const again = await askAll(gateway.port, stale, run);
        const times = seen.map(({ ms }) => ms).sort((a, b) => a - b);
        rows.push({
          haproxy: version,
          masters: masterCount,
          replay,
          clients: run.clients,
          method: run.method,
          sasori: run.sasori,
          "first try %": shareRight(seen),
          "2 s later %": shareRight(again),
          "wrong/request": round((wrong - counted.wrong) / stale.length, 3),
          "right/request": round((right - counted.right) / stale.length, 3),
          "p50 ms": round(median(times), 2),
          "p99 ms": round(times[Math.floor(times.length * 0.99)] ?? Number.NaN, 2),
          "requests/s": Math.round(stale.length / seconds),
        });
      }
      return rows;
    });
  } finally {
    await puppetdb.close();
  }
}

const mapText = (map: ReadonlyMap<string, string>): string =>
  Array.from(map, ([certname, name]) => `${certname} ${name}\n`).join("");

const shareRight = (seen: readonly Seen[]): number =>
  round((100 * seen.filter(({ status }) => status === 200).length) / seen.length, 2);

const round = (value: number, digits: number): number => Number(value.toFixed(digits));

/** One port for each master; a request for one of its nodes counts in backend "right", another in "wrong". */
function mastersConfig(ports: readonly number[], owners: string, socket: string): string {
  const frontends = ports.map(
    (port, index) => `frontend master${index + 1}
  bind 127.0.0.1:${port}
  http-request return status 200 content-type text/plain string running if { path /status/v1/simple }
  use_backend right if { req.fhdr(x-node-name),map_str("${owners}") -m str master${index + 1} }
  default_backend wrong
`,
  );
  return `${globalSection(["nbthread 1", `stats socket "${socket}" level admin`])}
defaults
  mode http
  timeout connect 2s
  timeout client 60s
  timeout server 60s
  option http-buffer-request
${frontends.join("")}backend right
  http-request return status 200 content-type text/plain string right
backend wrong
  http-request return status 404 content-type text/plain string wrong
`;
}

/** Requests so far that masters got for nodes that they have, and for others. */
async function counts(socket: string): Promise<{ right: number; wrong: number }> {
  const [head = "", ...lines] = (await runtimeCommand(socket, "show stat")).replace(/^# /, "").split("\n");
  const column = head.split(",").indexOf("stot");
  const of = (backend: string) =>
    Number(lines.find((line) => line.startsWith(`${backend},BACKEND,`))?.split(",")[column]);
  return { right: of("right"), wrong: of("wrong") };
}

interface Seen {
  /** 0 when there was no answer. */
  status: number;
  ms: number;
}

/** Asks for each node once, by so many clients at a time, each on a connection of its own. */
async function askAll(port: number, stale: readonly string[], { clients, method }: Run): Promise<Seen[]> {
  const pool = new Pool(`http://127.0.0.1:${port}`, { connections: clients, pipelining: 1 });
  const waiting = stale.values();
  const seen: Seen[] = [];
  const client = async () => {
    for (const certname of waiting) {
      const began = performance.now();
      const status = await pool
        .request({
          method,
          path: "/",
          headers: { "x-node-name": certname },
          ...(method === "POST" && { body: BODY }),
          signal: AbortSignal.timeout(REQUEST_DEADLINE_MS),
        })
        .then(async ({ statusCode, body }) => {
          await body.dump();
          return statusCode;
        })
        .catch(() => 0);
      seen.push({ status, ms: performance.now() - began });
    }
  };
  await Promise.all(Array.from({ length: clients }, client));
  await pool.close();
  return seen;
}
