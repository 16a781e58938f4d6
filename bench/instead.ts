// What one would use instead of sasori: a script of curl, jq and socat, in three versions; the map as a file and a reload of
// HAProxy; nginx. Each brings the same moves from the same real PuppetDB to a gateway of its own, by turns,
// while clients ask that gateway at a steady rate. The clock runs from the moment it is started, with the moves in
// PuppetDB, until the last moved node is routed right.

import { readdirSync, readFileSync } from "node:fs";
import os from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { Pool } from "undici";
import type { PuppetdbServer } from "../test/support/puppetdb-server.js";
import type { Bench, Row } from "./bench.js";
import { MASTERS, ROUNDS, round } from "./daemon.js";
import { FLEET, masterOf, nameOf, puppetdbCpuMs, warmUp, withFleet } from "./fleet.js";
import { type Answer, Clients, now, type Outcome, type Route } from "./instead-clients.js";
import { type Effort, startAll, type Way } from "./instead-ways.js";
import { cpuMsOfTree, median, quantile, Stage } from "./stage.js";

/** One of so many nodes moves, all over the fleet. */
const STEP = Math.max(1, Math.floor(FLEET / 1_000));
const MOVED = Math.floor(FLEET / STEP);
const PER_SECOND = 1_000;
/** As `nice` counts: such a process gets a tenth where another wants the processor too. */
const BEHIND = 10;
const IDLE_MS = 1_500;
/** After the last route is right: connections that a reload has left behind break or go wrong now. */
const TAIL_MS = 500;
const WATCHED = 50;

interface Turn extends Effort {
  rightMs: number;
  /** More than it spends on the clients alone. */
  gatewayCpuMs: number;
  puppetdbCpuMs: number;
  idleP99: number;
  p99: number;
  longest: number;
  outcomes: Record<Outcome, number>;
}

export const instead: Bench = {
  what: `${MOVED} of ${FLEET} nodes move: sasori beside what one would pick instead; medians, counts in all rounds`,
  run: ({ signal, progress, ran }) =>
    withFleet({ progress, ran }, async (puppetdb) => {
      progress("warming up PuppetDB");
      await warmUp(puppetdb, signal);
      yieldToOthers(puppetdb);
      return Stage.with(signal, async (stage) => {
        progress("starting the gateways");
        const ways = await startAll(stage, puppetdb.url);
        const turns = ways.map(() => [] as Turn[]);
        // The first round warms everything up, and does not count.
        for (let moves = 0; moves <= ROUNDS; moves += 1) {
          for (const [index, way] of ways.entries()) {
            progress(`round ${moves} of ${ROUNDS}: ${way.gateway.name}, ${way.name}`);
            const turn = await takeTurn(puppetdb, way, moves, signal);
            if (moves > 0) turns[index]?.push(turn);
          }
          await putProducers(puppetdb, moves + 1, "an hour ago");
        }
        return ways.map((way, index) => toRow(way, turns[index] ?? []));
      });
    }),
};

/** PuppetDB is on another machine usually: here at least the gateway, its clients and the way come first. */
function yieldToOthers(puppetdb: PuppetdbServer): void {
  const pids = puppetdb.pids();
  const children = readFileSync(`/proc/${pids.postgres}/task/${pids.postgres}/children`, "utf8");
  for (const pid of [pids.puppetdb, pids.postgres, ...children.trim().split(" ")]) {
    for (const thread of readdirSync(`/proc/${pid}/task`)) {
      try {
        os.setPriority(Number(thread), BEHIND);
      } catch {
        // It has just ended.
      }
    }
  }
}

/** PuppetDB says that the nodes move, once more than so many times; afterwards it is as before, for the next way. */
async function takeTurn(
  puppetdb: PuppetdbServer,
  way: Way,
  moves: number,
  signal: AbortSignal,
): Promise<Turn> {
  const { moved, still } = routesAfter(moves);
  const mark = (): Mark => ({
    at: now(),
    gatewayCpuMs: cpuMsOfTree(way.gateway.pid),
    puppetdbCpuMs: puppetdbCpuMs(puppetdb),
  });
  await putProducers(puppetdb, moves + 1, "now");
  const watched = sample(moved, WATCHED);
  const clients = await Clients.start({
    port: way.gateway.port,
    perSecond: PER_SECOND,
    moved,
    still,
    watched,
  });
  try {
    const idle = mark();
    await sleep(IDLE_MS, undefined, { signal });
    const began = mark();
    const effort = await way.bringOut();
    const ended = now();
    const right = await clients.right;
    if (right === undefined) throw new Error(`${way.gateway.name}, ${way.name}: routes are still wrong`);
    await sleep(TAIL_MS, undefined, { signal });
    const done = mark();
    const answers = await clients.answers();
    await checkRoutes(way, [...moved, ...sample(still, MOVED)]);
    return toTurn(effort, { idle, began, done, right, over: Math.max(ended, right) }, answers);
  } finally {
    await clients.stop();
    await putProducers(puppetdb, moves, "an hour ago");
  }
}

interface Mark {
  at: number;
  gatewayCpuMs: number;
  puppetdbCpuMs: number;
}

function toTurn(
  effort: Effort,
  marks: { idle: Mark; began: Mark; done: Mark; right: number; over: number },
  answers: readonly Answer[],
): Turn {
  const { idle, began, done, right, over } = marks;
  const timesOf = (from: number, to: number) =>
    answers.filter(({ at }) => at >= from && at < to).map(({ ms }) => ms);
  const during = timesOf(began.at, over);
  // What the gateway spends on the clients' requests alone.
  const idleRate = (began.gatewayCpuMs - idle.gatewayCpuMs) / (began.at - idle.at);
  const outcomes = { right: 0, stale: 0, lost: 0, failed: 0 };
  for (const { at, outcome } of answers) if (at >= began.at) outcomes[outcome] += 1;
  return {
    ...effort,
    rightMs: right - began.at,
    gatewayCpuMs: done.gatewayCpuMs - began.gatewayCpuMs - idleRate * (done.at - began.at),
    puppetdbCpuMs: done.puppetdbCpuMs - began.puppetdbCpuMs,
    idleP99: quantile(timesOf(idle.at, began.at), 0.99),
    p99: quantile(during, 0.99),
    longest: Math.max(...during),
    outcomes,
  };
}

/** Where all nodes are once the moving ones have moved once more than so many times. */
function routesAfter(moves: number): { moved: Route[]; still: Route[] } {
  const moved: Route[] = [];
  const still: Route[] = [];
  for (let node = 1; node <= FLEET; node += 1) {
    if (node % STEP !== 0) still.push({ node: nameOf(node), master: masterOf(node) });
    else moved.push({ node: nameOf(node), master: masterOf(node, moves + 1), was: masterOf(node, moves) });
  }
  return { moved, still };
}

/** So many of them, from the first to the last. */
const sample = (routes: readonly Route[], size: number): Route[] =>
  Array.from({ length: size }, (_, index) => {
    const route = routes[Math.round((index * (routes.length - 1)) / (size - 1))];
    if (route === undefined) throw new Error("no routes");
    return route;
  });

/** Who asks for changes gets only what PuppetDB has received now. */
function putProducers(puppetdb: PuppetdbServer, moves: number, when: "now" | "an hour ago"): Promise<string> {
  const number = "substring(c.certname FROM 6 FOR 7)::int";
  const names = MASTERS.map((name) => `'${name}'`).join(", ");
  const producedAt = when === "now" ? "clock_timestamp()" : "f.producer_timestamp";
  const received = when === "now" ? "clock_timestamp()" : "clock_timestamp() - interval '1 hour'";
  return puppetdb.sql(`
    UPDATE factsets f SET timestamp = ${received}, producer_timestamp = ${producedAt}, producer_id = p.id
    FROM certnames c, producers p
    WHERE f.certname = c.certname AND ${number} % ${STEP} = 0
      AND p.name = (ARRAY[${names}])[1 + (${number} + ${moves}) % ${MASTERS.length}]`);
}

/** Throws if a route is wrong: a way that is fast because it leaves something out does not count. */
async function checkRoutes({ name, gateway }: Way, routes: readonly Route[]): Promise<void> {
  const pool = new Pool(`http://127.0.0.1:${gateway.port}`, { connections: 20, pipelining: 1 });
  try {
    await Promise.all(
      routes.map(async ({ node, master }) => {
        const headers = { "x-node-name": node };
        const { body } = await pool.request({ method: "GET", path: "/", headers });
        const answer = await body.text();
        if (answer !== master)
          throw new Error(`${gateway.name}, ${name}: ${node} is at ${answer}, not ${master}`);
      }),
    );
  } finally {
    await pool.destroy();
  }
}

function toRow({ gateway, name }: Way, turns: readonly Turn[]): Row {
  const typical = (value: (turn: Turn) => number, digits = 0) => round(median(turns.map(value)), digits);
  const range = (value: (turn: Turn) => number) =>
    `${round(Math.min(...turns.map(value)), 1)}-${round(Math.max(...turns.map(value)), 1)}`;
  const all = (value: (turn: Turn) => number) => turns.reduce((sum, turn) => sum + value(turn), 0);
  return {
    gateway: gateway.name,
    way: name,
    "all right ms": typical(({ rightMs }) => rightMs),
    "of it PuppetDB": typical(({ puppetdbMs }) => puppetdbMs),
    "way's CPU ms": typical(({ ownCpuMs }) => ownCpuMs),
    "gateway's CPU ms": typical(({ gatewayCpuMs }) => gatewayCpuMs),
    "PuppetDB's CPU ms": typical(({ puppetdbCpuMs }) => puppetdbCpuMs),
    "p99 idle ms": typical(({ idleP99 }) => idleP99, 1),
    "p99 ms": typical(({ p99 }) => p99, 1),
    "p99 from-to": range(({ p99 }) => p99),
    "longest ms": typical(({ longest }) => longest, 1),
    failed: all(({ outcomes }) => outcomes.failed),
    lost: all(({ outcomes }) => outcomes.lost),
    stale: all(({ outcomes }) => outcomes.stale),
  };
}
