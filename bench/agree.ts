// Replicas that share a PostgreSQL: from a registration at one of them until every replica's live map has it. And what one
// registration costs, alone, after thousands of others, and with 999 more in one call, also by the command line. PuppetDB is
// down: nothing is asked.

import { execFile } from "node:child_process";
import { writeFile } from "node:fs/promises";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { HEADER } from "../src/target/map-file.js";
import { runtimeCommand } from "../test/support/haproxy-server.js";
import { type PostgresServer, startPostgres } from "../test/support/postgres-server.js";
import type { Bench, Row } from "./bench.js";
import { CLI, type Daemon, lookupConfig, newestHaproxy, ROUNDS, round, startSasori } from "./daemon.js";
import { FLEET, masterOf, nameOf } from "./fleet.js";
import { type Haproxy, median, preciseCpuMs, quantile, Stage } from "./stage.js";

const REPLICAS = 3;
const REGISTRATIONS = 300;
/** Between two registrations: 20 a second. */
const EVERY_MS = 50;
const LOOK_MS = 2;
const LOST_MS = 5_000;

const MANY = 1_000;
const BEFORE = 3_000;

const NOBODY = "http://127.0.0.1:1";

interface Replica {
  daemon: Daemon;
  haproxy: Haproxy;
  map: string;
}

/** One sasori with its HAProxy, which both have the fleet in their file. */
async function startReplica(stage: Stage, name: string, env: Record<string, string> = {}): Promise<Replica> {
  const map = path.join(stage.folder, `${name}.map`);
  const entries = Array.from(
    { length: FLEET },
    (_, index) => `${nameOf(index + 1)} ${masterOf(index + 1)}\n`,
  );
  await writeFile(map, `${HEADER}${entries.join("")}`);
  const haproxy = await stage.haproxy(`${name}-haproxy`, newestHaproxy().bin, (port, socket) =>
    lookupConfig(map, port, socket),
  );
  const daemon = await startSasori(stage, name, {
    ...{ SASORI_PUPPETDB_URL: NOBODY, SASORI_HAPROXY: haproxy.socket, SASORI_MAP_FILE: map },
    ...{ SASORI_REPLICA: name, ...env },
  });
  return { daemon, haproxy, map };
}

const has = async ({ haproxy, map }: Replica, certname: string, master: string): Promise<boolean> =>
  (await runtimeCommand(haproxy.socket, `get map ${map} ${certname}`)).includes(`value="${master}"`);

export const agree: Bench = {
  what: `${REPLICAS} replicas on one PostgreSQL: from a registration at one until all live maps have it, 20 registrations a second`,
  run: ({ signal, progress, ran }) =>
    withPostgres(({ port, passwordFile, sql }) =>
      Stage.with(signal, async (stage) => {
        ran({ postgresql: await sql("postgres", "SHOW server_version") });
        await sql("postgres", "CREATE DATABASE sasori");
        const replicas: Replica[] = [];
        for (let index = 1; index <= REPLICAS; index += 1) {
          progress(`starting replica ${index}`);
          const url = `postgres://sasori@127.0.0.1:${port}/sasori`;
          const env = { SASORI_STATE_URL: url, SASORI_STATE_PASSWORD_FILE: passwordFile };
          replicas.push(await startReplica(stage, `replica${index}`, env));
        }
        const times = { here: [] as number[], everywhere: [] as number[] };
        for (let number = 1; number <= REGISTRATIONS; number += 1) {
          progress(`registration ${number} of ${REGISTRATIONS}`);
          const { here, everywhere } = await timeRegistration(replicas, number, signal);
          times.here.push(here);
          times.everywhere.push(everywhere);
        }
        return [
          {
            ...{ nodes: FLEET, replicas: REPLICAS, registrations: REGISTRATIONS },
            ...percentiles("that replica's map", times.here),
            ...percentiles("every map", times.everywhere),
          },
        ];
      }),
    ),
};

/** Registers a node at one of them: when its own live map had it, and when the last one had. */
async function timeRegistration(replicas: readonly Replica[], number: number, signal: AbortSignal) {
  const pause = sleep(EVERY_MS, undefined, { signal });
  const certname = nameOf(((number * 7_919) % FLEET) + 1);
  const master = masterOf(((number * 7_919) % FLEET) + 1, 1);
  const told = replicas[number % replicas.length];
  const began = performance.now();
  const answered = told?.daemon.call("PUT", `/api/v1/nodes/${certname}`, { master });
  const seen = await Promise.all(
    replicas.map(async (replica) => {
      while (!(await has(replica, certname, master))) {
        if (performance.now() - began > LOST_MS)
          throw new Error(`registration ${number} is not in every map`);
        await sleep(LOOK_MS);
      }
      return { replica, ms: performance.now() - began };
    }),
  );
  await Promise.all([answered, pause]);
  const here = seen.find(({ replica }) => replica === told)?.ms ?? Number.NaN;
  return { here, everywhere: Math.max(...seen.map(({ ms }) => ms)) };
}

export const registrations: Bench = {
  what: `one registration, alone, after ${BEFORE} others, and ${MANY} in one call; medians of ${ROUNDS}`,
  run: ({ signal, progress }) =>
    Stage.with(signal, async (stage) => {
      progress("starting sasori");
      const { daemon } = await startReplica(stage, "sasori");
      let next = 0;
      /** Each to another master than it has. */
      const nodes = (count: number) =>
        Array.from({ length: count }, () => {
          next += 1;
          const node = (next % FLEET) + 1;
          return [nameOf(node), masterOf(node, Math.ceil((next + 1) / FLEET))] as const;
        });
      const one = () => {
        const [[certname, master] = ["", ""]] = nodes(1);
        return daemon.call("PUT", `/api/v1/nodes/${certname}`, { master });
      };
      const many = () => daemon.call("PUT", "/api/v1/nodes", Object.fromEntries(nodes(MANY)));
      const list = path.join(stage.folder, "nodes.txt");
      const register = (...args: string[]) =>
        promisify(execFile)(process.execPath, [CLI, "register", ...args], {
          signal,
          env: { PATH: process.env.PATH, SASORI_LISTEN: new URL(daemon.url).host },
        });
      const typeOne = () => register(...(nodes(1)[0] ?? []));
      const writeList = () =>
        writeFile(
          list,
          nodes(MANY)
            .map((node) => `${node.join(" ")}\n`)
            .join(""),
        );
      const typeMany = () => register("--file", list);
      const timed = async (what: string, work: () => Promise<unknown>, before?: () => Promise<unknown>) => {
        const times: number[] = [];
        const cpu: number[] = [];
        for (let turn = 1; turn <= ROUNDS; turn += 1) {
          progress(`${what}, round ${turn} of ${ROUNDS}`);
          await before?.();
          const [began, spent] = [performance.now(), preciseCpuMs(daemon.pid)];
          await work();
          times.push(performance.now() - began);
          cpu.push(preciseCpuMs(daemon.pid) - spent);
        }
        return { ms: round(median(times), 1), cpu: round(median(cpu), 1) };
      };
      await timed("warming up", one);
      const alone = await timed("one", one);
      const thousand = await timed(`${MANY} in one call`, many);
      for (let done = ROUNDS * MANY; done < BEFORE; done += MANY) await many();
      const before = next;
      const after = await timed(`one after ${before}`, one);
      const typed = await timed("one, by the command line", typeOne);
      const file = await timed(`${MANY}, by the command line`, typeMany, writeList);
      const row = (what: string, { ms, cpu }: typeof alone, one = alone): Row => ({
        nodes: FLEET,
        registered: what,
        "answered after ms": ms,
        "of one": round(ms / one.ms, 2),
        "sasori CPU ms": cpu,
      });
      return [
        row("one", alone),
        row(`one, after ${before} others`, after),
        row(`${MANY} in one call`, thousand),
        row("one: sasori register", typed, typed),
        row(`${MANY}: sasori register --file`, file, typed),
      ];
    }),
};

async function withPostgres<T>(use: (postgres: PostgresServer) => Promise<T>): Promise<T> {
  const postgres = await startPostgres("sasori", ["fsync=on"]); // As people run it.
  try {
    return await use(postgres);
  } finally {
    await postgres.stop();
  }
}

const percentiles = (what: string, times: readonly number[]): Row => ({
  [`${what} p50 ms`]: round(quantile(times, 0.5), 1),
  [`p99 ms (${what})`]: round(quantile(times, 0.99), 1),
});
