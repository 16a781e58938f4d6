// The map compared with a gateway that asks the real PuppetDB for each request. They run by turns, so that the rest of the
// machine disturbs both alike. The figures are medians of the rounds. In each round of the map sasori
// makes one pass, which is what the default schedule does in that time.

import { writeFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { freePort } from "../test/support/child.js";
import type { PuppetdbServer } from "../test/support/puppetdb-server.js";
import type { Bench, Row } from "./bench.js";
import { MASTERS, newestHaproxy, ROUNDS, round, startSasori, type Traffic, wrk } from "./daemon.js";
import { FLEET, NAMES, puppetdbCpuMs, withFleet } from "./fleet.js";
import { cpuMs, gatewayConfig, median, Stage } from "./stage.js";
import { mastersConfig } from "./throughput.js";

const ASKING = fileURLToPath(new URL("asking-gateway.js", import.meta.url));
const CONNECTIONS = [1, 20];
/** SASORI_SCHEDULE by default. */
const ROUND_SECONDS = 5;
/** PuppetDB's code and Node's are compiled as they run: without some thousand requests before, each costs far more. */
const WARM_UP_SECONDS = 30;

interface Variant {
  name: string;
  port: number;
  pid: number;
  /** What happens beside the requests. */
  beside: () => Promise<unknown>;
}

interface Round extends Traffic {
  perSecond: number;
  /** Processor time per request, in microseconds. */
  gatewayCpu: number;
  puppetdbCpu: number;
}

export const lookup: Bench = {
  what: "the map beside a gateway that asks PuppetDB for each request; CPU per 1,000 requests",
  run: ({ signal, progress, ran }) =>
    withFleet({ progress, ran }, (puppetdb) =>
      Stage.with(signal, async (stage) => {
        const variants = await start(stage, puppetdb);
        for (const variant of variants) {
          progress(`warming up: ${variant.name}`);
          await ask(puppetdb, variant, Math.max(...CONNECTIONS), WARM_UP_SECONDS, signal);
        }
        const rows: Row[] = [];
        for (const connections of CONNECTIONS) {
          const seen = variants.map(() => [] as Round[]);
          for (let turn = 1; turn <= ROUNDS; turn += 1) {
            for (const [index, variant] of variants.entries()) {
              progress(`${connections} connections, round ${turn} of ${ROUNDS}: ${variant.name}`);
              const once = await ask(puppetdb, variant, connections, ROUND_SECONDS, signal);
              seen[index]?.push(once);
            }
          }
          rows.push(...variants.map(({ name }, index) => toRow(name, connections, seen, index)));
        }
        return rows;
      }),
    ),
};

/** All gateways in front of the same masters. */
async function start(stage: Stage, puppetdb: PuppetdbServer): Promise<Variant[]> {
  const { bin } = newestHaproxy();
  const map = path.join(stage.folder, "sasori.map");
  await writeFile(map, "");
  const others = await Promise.all(MASTERS.slice(1).map(freePort));
  const { port: first } = await stage.haproxy("masters", bin, (port) => ({
    text: mastersConfig([port, ...others]),
  }));
  const masters = [first, ...others];
  // Every route is right, so sasori is never asked for one: it may listen elsewhere.
  const [statsPort, sasoriPort] = [await freePort(), await freePort()];
  const gateway = await stage.haproxy("gateway", bin, (port, socket) =>
    gatewayConfig(masters, { port, socket, map, statsPort, sasoriPort }, ["nbthread 1"]),
  );
  const sasori = await startSasori(stage, "sasori", {
    SASORI_PUPPETDB_URL: puppetdb.url,
    SASORI_HAPROXY: gateway.socket,
  });
  const variants: Variant[] = [{ ...gateway, name: "map (sasori)", beside: () => sasori.sync({}) }];
  for (const asked of ["facts", "facts,report"]) {
    const port = await freePort();
    const places = masters.map((at, index) => `${MASTERS[index]}=${at}`);
    const command = [process.execPath, ASKING, String(port), puppetdb.url, asked, ...places];
    const isReady = async () => (await fetch(`http://127.0.0.1:${port}/`)).status === 404;
    const pid = await stage.program(asked, command, { NODE_ENV: "production" }, isReady);
    variants.push({ name: `asks for ${asked}`, port, pid, beside: async () => {} });
  }
  return variants;
}

async function ask(
  puppetdb: PuppetdbServer,
  { port, pid, beside }: Variant,
  connections: number,
  seconds: number,
  signal: AbortSignal,
): Promise<Round> {
  const [gateway, source] = [cpuMs(pid), puppetdbCpuMs(puppetdb)];
  const options = { seconds, connections, nodes: FLEET, names: NAMES, first: 1 };
  const [traffic] = await Promise.all([wrk(port, options, signal), beside()]);
  const { requests } = traffic;
  return {
    ...traffic,
    perSecond: requests / seconds,
    gatewayCpu: ((cpuMs(pid) - gateway) * 1000) / requests,
    puppetdbCpu: ((puppetdbCpuMs(puppetdb) - source) * 1000) / requests,
  };
}

function toRow(name: string, connections: number, seen: readonly Round[][], index: number): Row {
  const rounds = seen[index] ?? [];
  const medianOf = (field: keyof Round) => median(rounds.map((one) => one[field]));
  // Each round beside its neighbour in time.
  const ratios = rounds.map((one, turn) => (seen[0]?.[turn]?.perSecond ?? Number.NaN) / one.perSecond);
  return {
    nodes: FLEET,
    connections,
    gateway: name,
    "requests/s": round(medianOf("perSecond")),
    "map is faster by": round(median(ratios), 1),
    "p50 ms": round(medianOf("p50") / 1000, 2),
    "p99 ms": round(medianOf("p99") / 1000, 2),
    // Microseconds for one are milliseconds for 1,000.
    "gateway CPU ms": round(medianOf("gatewayCpu"), 1),
    "PuppetDB + PostgreSQL CPU ms": round(medianOf("puppetdbCpu"), 1),
    failed: rounds.reduce((sum, { failed }) => sum + failed, 0),
  };
}
