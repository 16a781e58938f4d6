// How long a moved node is routed wrong: from the moment when PuppetDB has processed its facts, or a registration is sent,
// until the first request reaches the new master. Nodes move one by one at random times, and each is asked for every
// few milliseconds. And what each way costs PuppetDB, in a minute in which nothing moves.

import { createSocket } from "node:dgram";
import { setMaxListeners } from "node:events";
import { writeFile } from "node:fs/promises";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Pool } from "undici";
import { freePort } from "../test/support/child.js";
import type { PuppetdbServer } from "../test/support/puppetdb-server.js";
import type { Bench, Row } from "./bench.js";
import { lookupConfig, newestHaproxy, round, startSasori } from "./daemon.js";
import { FLEET, loadPerMinute, masterOf, nameOf, warmUp, withFleet } from "./fleet.js";
import { cpuMs, median, quantile, Stage } from "./stage.js";

const MOVES = 60;
const MOVES_SECONDS = 45;
const LOAD_SECONDS = 30;
const ASK_EVERY_MS = 2;
const DEADLINE_MS = 30_000;

interface Way {
  name: string;
  schedule: string;
  /** By PUT /api/v1/nodes/<certname>, instead of by PuppetDB. */
  isRegistered?: boolean;
  /** The master's log line comes with its submission. */
  isHinted?: boolean;
}

const WAYS: readonly Way[] = [
  { name: "no sasori", schedule: "" },
  { name: "default", schedule: "*/5 * * * * *" },
  { name: "every second", schedule: "* * * * * *" },
  { name: "hint", schedule: "0 * * * * *", isHinted: true },
  { name: "registration", schedule: "*/5 * * * * *", isRegistered: true },
];

export const freshness: Bench = {
  what: "from PuppetDB's word, or a registration, to the first request routed right; load on PuppetDB",
  run: ({ signal, progress, ran }) =>
    withFleet({ progress, ran }, async (puppetdb) => {
      progress("warming up PuppetDB");
      await warmUp(puppetdb, signal);
      const rows: Row[] = [];
      let idle = 0;
      for (const [index, way] of WAYS.entries()) {
        if (way.schedule === "") {
          progress(`PuppetDB alone for ${LOAD_SECONDS} s`);
          idle = await loadPerMinute(puppetdb, LOAD_SECONDS, signal);
          continue;
        }
        rows.push(await measure(puppetdb, way, index, idle, signal, progress));
      }
      return rows;
    }),
};

function measure(
  puppetdb: PuppetdbServer,
  { name, schedule, isRegistered = false, isHinted = false }: Way,
  moves: number,
  idle: number,
  signal: AbortSignal,
  progress: (text: string) => void,
): Promise<Row> {
  return Stage.with(signal, async (stage) => {
    const map = path.join(stage.folder, "sasori.map");
    await writeFile(map, "");
    const haproxy = await stage.haproxy("haproxy", newestHaproxy().bin, (port, socket) =>
      lookupConfig(map, port, socket),
    );
    const hints = createSocket("udp4");
    const hintPort = await freePort();
    const sasori = await startSasori(stage, "sasori", {
      SASORI_PUPPETDB_URL: puppetdb.url,
      SASORI_HAPROXY: haproxy.socket,
      SASORI_SCHEDULE: schedule,
      ...(isHinted && { SASORI_SYSLOG_LISTEN: `127.0.0.1:${hintPort}` }),
    });
    const pool = new Pool(`http://127.0.0.1:${haproxy.port}`, { connections: 100, pipelining: 1 });
    const move = async (certname: string, master: string) => {
      if (!isRegistered) {
        const processed = puppetdb.replaceFacts({ certname, producer: master });
        const line = `<174>Nov 30 04:13:02 ${master} Puppet 'replace_facts' command for ${certname} submitted to PuppetDB`;
        if (isHinted) hints.send(line, hintPort, "127.0.0.1");
        await processed;
        return timeUntil(pool, certname, master, performance.now());
      }
      const routed = timeUntil(pool, certname, master, performance.now());
      await sasori.call("PUT", `/api/v1/nodes/${certname}`, { master });
      return routed;
    };
    try {
      progress(`${name}: the load of ${LOAD_SECONDS} s in which nothing moves`);
      const own = cpuMs(sasori.pid);
      let load = await loadPerMinute(puppetdb, LOAD_SECONDS, signal);
      const used = cpuMs(sasori.pid) - own;
      progress(`${name}: ${MOVES} nodes move within ${MOVES_SECONDS} s`);
      let times: number[] = [];
      // All of them wait on one signal.
      setMaxListeners(2 * MOVES, signal);
      // Each way moves its own nodes, so that none is at the wanted master by chance.
      const moveAll = async () => {
        times = await Promise.all(
          Array.from({ length: MOVES }, async (_, index) => {
            const node = 1 + (((index * WAYS.length + moves) * 7919) % FLEET);
            await sleep(Math.random() * MOVES_SECONDS * 1_000, undefined, { signal });
            return move(nameOf(node), masterOf(node, 1));
          }),
        );
      };
      // Registrations do not go through PuppetDB: what it spends meanwhile is their load.
      const during = await loadPerMinute(puppetdb, moveAll, signal);
      if (isRegistered) load = during;
      return {
        nodes: FLEET,
        by: name,
        schedule,
        "median ms": round(median(times)),
        "p90 ms": round(quantile(times, 0.9)),
        "max ms": round(Math.max(...times)),
        "PuppetDB + PostgreSQL CPU ms/min": round(load - idle),
        "idle CPU ms/min": idle,
        "sasori CPU ms/min": round((used * 60) / LOAD_SECONDS),
      };
    } finally {
      hints.close();
      await pool.destroy();
    }
  });
}

/** Asks the gateway for the node until it knows the master; milliseconds since `began`. */
async function timeUntil(pool: Pool, certname: string, master: string, began: number): Promise<number> {
  while (performance.now() - began < DEADLINE_MS) {
    const headers = { "x-node-name": certname };
    const { body } = await pool.request({ method: "GET", path: "/", headers });
    if ((await body.text()) === master) return performance.now() - began;
    await sleep(ASK_EVERY_MS);
  }
  throw new Error(`${certname} is not at ${master} after ${DEADLINE_MS / 1_000} s`);
}
