// Masters that die, freeze or vanish in the middle of a request: which other nodes notice, and what happens to the requests.

import { readdirSync, readFileSync } from "node:fs";
import { connect } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { Child, freePort } from "./support/child.js";
import { type Gateway, hold, withGateway } from "./support/gateway.js";
import { runtimeCommand } from "./support/haproxy-server.js";
import { haproxyBinaries } from "./support/parts.js";
import { patient } from "./support/patience.js";

const PROGRAM = fileURLToPath(new URL("support/mortal-master.mjs", import.meta.url));
const PER_SECOND = 200;
/** Deadline for finding a moment at which everything that was sent has reached the master. */
const LATEST_KILL = 10 * PER_SECOND;
const MASTERS = 3;
/** The kernel's word for the timer of a connection that it will ask about when nothing has come for a while. */
const KEEPALIVE = "02";
const NODE = "node0.example.com";

/** The nodes of master1, master2 and master3, which are asked for by turns. */
const nodeOf = (request: number) => `node${request % MASTERS}.example.com`;
const isMortals = (request: number) => request % MASTERS === 0;
const map = [0, 1, 2].map((index): [string, string] => [nodeOf(index), `master${index + 1}`]);

describe.each(haproxyBinaries())("a dead master on HAProxy $version", ({ bin }) => {
  test("fails no request but those in flight on it, when it is killed under 200 requests per second", () =>
    withMortal({ answerMs: 100 }, (mortal) =>
      withGateway({ bin, map, variables: { MASTER1: mortal.address } }, async (gateway) => {
        const answers: Promise<Answer>[] = [];
        let killedAt = Number.POSITIVE_INFINITY;
        for await (const request of arrivals()) {
          if (request > killedAt + 2 * PER_SECOND) break;
          // All that was sent for it has reached it, and nothing else is sent before HAProxy knows that its sockets are
          // closed. So its own log tells exactly which requests are in flight.
          const isTime = () =>
            mortal.begun().size === Math.ceil(request / MASTERS) && mortal.inFlight().size > 0;
          if (request >= PER_SECOND && request < killedAt && isTime()) {
            mortal.kill();
            killedAt = request;
          }
          if (killedAt > request && request > LATEST_KILL) {
            const log = gateway.haproxy.output();
            throw new Error(
              `after ${request} requests ${mortal.begun().size} have reached the master:\n${log}`,
            );
          }
          answers.push(answerTo(gateway, request));
        }
        const all = await Promise.all(answers);
        await mortal.gone();
        const inFlight = mortal.inFlight();
        const failed = all.filter(({ status }) => status !== 200);
        expect(failed.filter(({ request }) => !inFlight.has(request))).toEqual([]);
        // HAProxy closes the client's connection instead, where the one to the master had served before.
        expect(failed.filter(({ status }) => ![502, "closed"].includes(status))).toEqual([]);
        const since = all.filter(({ request }) => isMortals(request) && request >= killedAt);
        expect(new Set(since.map(({ route }) => route))).toEqual(new Set(["redispatched"]));
      }),
    ));

  test("is taken down by ten connections in a row that were not made, without a check, and nobody fails", () =>
    withMortal({ backlog: 1 }, (mortal) =>
      withGateway({ bin, map, variables: { MASTER1: mortal.address } }, async (gateway) => {
        await runtimeCommand(gateway.haproxy.socketPath, "disable health puppet/master1");
        await mortal.vanish();
        // More than it has places for: the last ones wait in its queue.
        const answers = await Promise.all(Array.from({ length: 60 }, () => gateway.ask(NODE)));
        expect(new Set(answers.map(({ status }) => status))).toEqual(new Set([200]));
        await expect
          .poll(() => gateway.haproxy.output())
          .toMatch(/puppet\/master1 is DOWN, reason: Health analyze/);
      }),
    ));

  test("keeps the requests that it has when it is marked down, and answers them", () =>
    withGateway({ bin, map }, async ({ ask, masters, haproxy }) => {
      const [master] = masters;
      const release = hold(master);
      const long = ask(NODE);
      await expect.poll(() => master?.requests).toBe(1);
      await runtimeCommand(haproxy.socketPath, "disable health puppet/master1");
      await runtimeCommand(haproxy.socketPath, "set server puppet/master1 health down");
      expect((await ask(NODE)).headers.get("x-route")).toBe("redispatched");
      release();
      expect((await long).headers.get("x-served-by")).toBe("master1");
    }));

  test("has its host asked, while it works on a request, whether it is still there", () =>
    withGateway({ bin, map }, async ({ ask, masters }) => {
      const [master] = masters;
      const release = hold(master);
      const long = ask(NODE);
      await expect.poll(() => master?.requests).toBe(1);
      const timers = () => sockets({ to: master?.port ?? 0 }).map(({ timer }) => timer);
      await expect.poll(timers).toContain(KEEPALIVE);
      release();
      expect((await long).status).toBe(200);
    }));
});

interface Answer {
  request: number;
  status: number | "closed";
  route: string | null;
}

function answerTo({ ask }: Gateway, request: number): Promise<Answer> {
  return ask(nodeOf(request), { headers: { "x-request": String(request) } }).then(
    async (response) => {
      await response.text();
      return { request, status: response.status, route: response.headers.get("x-route") };
    },
    () => ({ request, status: "closed", route: null }),
  );
}

/** Requests with numbers from 0 on, each at its time, whether or not the earlier ones are answered. */
async function* arrivals(): AsyncGenerator<number> {
  const began = performance.now();
  for (let request = 0; ; request += 1) {
    await sleep(began + (request * 1_000) / PER_SECOND - performance.now());
    yield request;
  }
}

interface Mortal {
  address: string;
  /** The requests that have reached it, as far as its log has been read. */
  begun(): Set<number>;
  /** Those of them that it has not answered. */
  inFlight(): Set<number>;
  /** Returns when HAProxy has closed its connections to it; nothing else happens in this process meanwhile. */
  kill(): void;
  /** No connection to it is made any more, and none is refused. */
  vanish(): Promise<void>;
  /** Its log has been read to the end. */
  gone(): Promise<unknown>;
}

/** Gives `use` a master of a process of its own. */
async function withMortal(
  { answerMs = 0, backlog = 511 },
  use: (mortal: Mortal) => Promise<void>,
): Promise<void> {
  const port = await freePort();
  const child = new Child(process.execPath, [PROGRAM, port, answerMs, backlog].map(String));
  const begun = new Set<number>();
  const inFlight = new Set<number>();
  let read = 0;
  /** Takes over the lines that are new in its log. */
  const readOn = () => {
    const end = child.printed.lastIndexOf("\n") + 1;
    for (const line of child.printed.slice(read, end).split("\n")) {
      const request = Number(line.slice(2));
      if (line.startsWith("+ ")) {
        begun.add(request);
        inFlight.add(request);
      }
      if (line.startsWith("- ")) inFlight.delete(request);
    }
    read = end;
  };
  try {
    const asked = `http://127.0.0.1:${port}/status/v1/simple`;
    await child.untilReady(async () => (await fetch(asked, { headers: { connection: "close" } })).ok);
    await use({
      address: `127.0.0.1:${port}`,
      begun: () => {
        readOn();
        return begun;
      },
      inFlight: () => {
        readOn();
        return inFlight;
      },
      kill: () => {
        process.kill(child.pid, "SIGKILL");
        while (!isDead(child.pid));
        // Else HAProxy may send the next request on a connection that it has kept. On a busy machine that takes a while.
        const deadline = performance.now() + patient(10_000);
        while (sockets({ to: port }).some(({ state }) => OPEN.has(state)))
          if (performance.now() > deadline) throw new Error("HAProxy keeps its connections to a dead master");
      },
      async vanish() {
        process.kill(child.pid, "SIGSTOP");
        await expect.poll(() => stateOf(child.pid)).toBe("T");
        // The kernel takes one more than the backlog, and drops what comes after.
        for (let made = 0; made <= backlog; made += 1)
          connect(port, "127.0.0.1").on("error", () => undefined);
        // The kernel lists the socket that listens first.
        const queue = () => Number.parseInt(sockets({ from: port })[0]?.received ?? "", 16);
        await expect.poll(queue).toBe(backlog + 1);
      },
      gone: () => child.code(),
    });
  } finally {
    await child.end("SIGKILL");
  }
}

const stateOf = (pid: number) =>
  readFileSync(`/proc/${pid}/stat`, "utf8")
    .replace(/^.*\) /, "")
    .charAt(0);

/** A zombie without threads: its last thread has closed all files and sockets. */
const isDead = (pid: number) => stateOf(pid) === "Z" && readdirSync(`/proc/${pid}/task`).length === 1;

interface Socket {
  state: string;
  received: string;
  timer: string;
}

/** ESTABLISHED, and CLOSE_WAIT: the other side has closed, and this one has not yet. */
const OPEN = new Set(["01", "08"]);

/** The kernel's sockets that are bound to a port of 127.0.0.1, or connected to one. All values are hexadecimal. */
function sockets({ from, to }: { from?: number; to?: number }): Socket[] {
  const at = (port?: number) =>
    port ? `0100007F:${port.toString(16).toUpperCase().padStart(4, "0")}` : "\\S+";
  // "   0: 0100007F:4E20 00000000:0000 0A 00000000:00000000 00:00000000 ...": from, to, state, sent:received, timer:when
  const line = new RegExp(`^ *\\d+: ${at(from)} ${at(to)} (\\S+) \\S+:(\\S+) (\\S+):`, "gm");
  const matches = readFileSync("/proc/net/tcp", "utf8").matchAll(line);
  return [...matches].map(([, state = "", received = "", timer = ""]) => ({ state, received, timer }));
}
