// The guard compares with the largest map of the last 30 days, so it notices a fleet that vanishes little by little.
// Real passes, with a clock that the test moves.

import { afterEach, expect, test, vi } from "vitest";
import type { SyncReport } from "../src/sync-report.js";
import { type FleetLab, MASTERS, withFleetLab } from "./support/fleet-lab.js";

const FLEET = 400;
const MINUTE = 60_000;
const name = (index: number) => `node${index}.example.com`;

afterEach(() => void vi.useRealTimers());

interface Vanishing {
  /** So many more nodes are deactivated, then a pass. Returns its outcome, and how many are left. */
  vanish(share: number): Promise<[SyncReport["outcome"], number]>;
  pass(approve?: string): Promise<SyncReport>;
  /** Another sasori continues, after this one or instead of it. */
  restart(): Promise<void>;
}

/** A fleet in which every node has run, with the default guard of 10 %. Without HAProxy: the file is enough. */
async function withVanishing(use: (fleet: Vanishing) => Promise<void>): Promise<void> {
  await withFleetLab([], async (lab: FleetLab) => {
    for (let index = 0; index < FLEET; index += 1)
      await lab.run(name(index), MASTERS[index % MASTERS.length] ?? "", -60 * MINUTE);
    vi.useFakeTimers({ toFake: ["Date", "performance", "hrtime"] });
    let sync = await lab.newSync();
    const pass = (approve?: string) => sync.request({ full: true, ...(approve && { approve }) });
    expect((await pass()).nodes).toBe(FLEET);
    let gone = 0;
    await use({
      pass,
      async restart() {
        sync = await lab.newSync();
      },
      async vanish(share) {
        for (const until = gone + FLEET * share; gone < until; gone += 1)
          await lab.puppetdb.deactivateNode(name(gone));
        const { outcome } = await pass();
        return [outcome, (await lab.file()).size];
      },
    });
  });
}

const DAY = 24 * 60 * MINUTE;

test("adds up: of passes that remove 4 % each those are held for which the month leaves no room", () =>
  withVanishing(async ({ vanish, pass }) => {
    expect(await vanish(0.04)).toEqual(["done", 384]);
    vi.advanceTimersByTime(DAY);
    expect(await vanish(0.04)).toEqual(["done", 368]);
    vi.advanceTimersByTime(DAY);
    expect(await vanish(0.04)).toEqual(["held", 368]);
    vi.advanceTimersByTime(29 * DAY); // The largest is forgotten.
    expect((await pass()).outcome).toBe("done");
  }));

test("compares with what was approved", () =>
  withVanishing(async ({ vanish, pass }) => {
    expect(await vanish(0.25)).toEqual(["held", 400]);
    const { held } = await pass();
    expect(held).toMatchObject({ count: 100 });
    expect((await pass(held?.id)).outcome).toBe("done");
    expect(await vanish(0.05)).toEqual(["done", 280]);
    expect(await vanish(0.05)).toEqual(["held", 280]);
  }));

test("remembers over a restart, whatever has been done to the clock", () =>
  withVanishing(async ({ vanish, restart }) => {
    expect(await vanish(0.04)).toEqual(["done", 384]);
    vi.advanceTimersByTime(DAY);
    expect(await vanish(0.04)).toEqual(["done", 368]);
    await restart();
    expect(await vanish(0.04)).toEqual(["held", 368]);
    vi.setSystemTime(Date.now() - 50 * DAY);
    await restart();
    expect(await vanish(0)).toEqual(["held", 368]); // All of it counts as of now.
  }));
