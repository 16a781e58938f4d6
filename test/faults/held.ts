// Held awaits: whatever a pass waits for, one thing after the other, never comes, and knows no deadline and no signal. Then
// "in sync" is no longer said, and SIGTERM's way out still ends within 10 s. Which things those are is looked up in the
// parts themselves, so that a new one is held as well.

import { AsyncLocalStorage } from "node:async_hooks";
import { setTimeout as sleep } from "node:timers/promises";
import { pino } from "pino";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { startDaemon } from "../../src/daemon.js";
import type { Status } from "../../src/http/api-shapes.js";
import { PuppetDb } from "../../src/source/puppetdb.js";
import { Connector } from "../../src/source/puppetdb-connection.js";
import { Journal } from "../../src/state/journal.js";
import { HaproxyInstance } from "../../src/target/haproxy.js";
import { MapFile } from "../../src/target/map-file.js";
import { RuntimeSession } from "../../src/target/runtime-api.js";
import { TrackedTarget } from "../../src/target/tracked-target.js";
import { freePort } from "../support/child.js";
import { withFleetLab } from "../support/fleet-lab.js";
import { haproxyBinaries } from "../support/parts.js";
import { patient } from "../support/patience.js";
import { EVERY_SECOND } from "../support/schedules.js";
import { enterCases } from "./ledger.js";

const PARTS = { PuppetDb, Connector, MapFile, HaproxyInstance, RuntimeSession, TrackedTarget, Journal };
/** Asked outside of passes, or at the start and the end. */
const ELSEWHERE = /\.(lookUp|loads|removeLeftovers|load|close|readNode|readNodes|readVersion)$/;
const METHODS = Object.entries(PARTS).flatMap(([part, { prototype }]) =>
  Object.entries(Object.getOwnPropertyDescriptors(prototype)).flatMap(([name, { value }]) =>
    typeof value === "function" && name !== "constructor" && !ELSEWHERE.test(`.${name}`)
      ? [`${part}.${name}`]
      : [],
  ),
);

interface Hold {
  method: string;
  armed: boolean;
  times: number;
}

/** What is held in the daemon that runs this code. */
const holds = new AsyncLocalStorage<Hold>();

const bin = haproxyBinaries().at(-1)?.bin ?? "";
const MINUTE = 60_000;
/** With the least patience 13.5 s: sasori takes 7 s, and a pass's own deadlines, which must not count, are 15 s and more. */
const STOP_DEADLINE_MS = 4_500;

export function heldAwaits(): void {
  describe("Held awaits", () => {
    /** How far the clock that nobody sets has been set on: the watchdog is patient for a minute and more. */
    let aheadMs = 0;

    beforeAll(() => {
      process.setMaxListeners(0); // A HAProxy for each case.
      for (const method of METHODS) holdable(method);
      const now = performance.now.bind(performance);
      vi.spyOn(performance, "now").mockImplementation(() => now() + aheadMs);
    });
    afterAll(() => void vi.restoreAllMocks());

    test("are told, each of them, and sasori ends in time", async () => {
      const began = Date.now();
      const cases = METHODS.map((method) =>
        holdOne(method, () => {
          aheadMs += 10 * MINUTE;
        }),
      );
      const held = (await Promise.all(cases)).filter(({ times }) => times > 0);
      // What was never waited for has shown nothing; but of each part something was.
      expect([...new Set(held.map(({ method }) => method.split(".")[0]))].sort()).toEqual(
        Object.keys(PARTS).sort(),
      );
      expect(held.length).toBeGreaterThan(12);
      enterCases("held await: each of a pass, for ever", held.length, (Date.now() - began) / 1_000);
    });
  });
}

/** From now on it can be held. */
function holdable(method: string): void {
  const [part = "", name = ""] = method.split(".");
  const owner = PARTS[part as keyof typeof PARTS].prototype as unknown as Record<string, Method>;
  const real = owner[name] as Method;
  vi.spyOn(owner, name).mockImplementation(function (this: unknown, ...args) {
    const result = real.apply(this, args);
    const hold = holds.getStore();
    if (!hold?.armed || hold.method !== method || !(result instanceof Promise)) return result;
    hold.times += 1;
    result.catch(() => undefined);
    return new Promise(() => {});
  });
}

type Method = (...args: unknown[]) => unknown;

/** Runs a daemon, holds this in it, and ends it. `aTimePasses` while it is held. */
function holdOne(method: string, aTimePasses: () => void): Promise<Hold> {
  const hold: Hold = { method, armed: false, times: 0 };
  return holds.run(hold, () =>
    withFleetLab([{ bin }], async (lab) => {
      await lab.run("node1.example.com", "master1", -MINUTE);
      const listen = `127.0.0.1:${await freePort()}`;
      const config = lab.config({ SASORI_LISTEN: listen, ...EVERY_SECOND });
      const daemon = await startDaemon(config, pino({ level: "silent" }));
      const status = async () => (await (await fetch(`${daemon.url}/api/v1/status`)).json()) as Status;
      try {
        await expect.poll(async () => (await status()).state).toBe("in sync");
        hold.armed = true;
        // A move, a registration and a full pass: something of all that a pass may do.
        await lab.run("node1.example.com", "master2");
        const headers = { "content-type": "application/json" };
        const send = (method: string, path: string, body: object) =>
          fetch(`${daemon.url}/api/v1/${path}`, { method, headers, body: JSON.stringify(body) });
        let isOver = false;
        const goOn = async () => {
          await Promise.all([
            send("POST", "sync", { full: true }),
            send("PUT", "nodes/node1.example.com", { master: "master3" }),
          ]);
          await send("POST", "sync", {});
          isOver = true;
        };
        goOn().catch(() => undefined); // The daemon has ended.
        // What is not called by then is not called by a pass.
        await expect.poll(() => isOver || hold.times > 0).toBe(true);
        if (hold.times === 0) return hold;
        const told = async () => {
          // Again and again: a full pass that saw this happen counts as a long one, and the next may take as long.
          aTimePasses();
          const { state, troubles } = await status();
          return { method, state, critical: troubles.some(({ severity }) => severity === "critical") };
        };
        await expect.poll(told).toEqual({ method, state: "failing", critical: true });
        return hold;
      } finally {
        const late = sleep(patient(STOP_DEADLINE_MS), "late", { ref: false });
        expect(await Promise.race([daemon.stop(), late]), method).not.toBe("late");
      }
    }),
  );
}
