// When sasori may no longer say "in sync". The test moves the clock.

import { expect, test } from "vitest";
import type { SyncReport } from "../src/sync-report.js";
import { Watchdog } from "../src/watchdog.js";

const SECOND = 1_000;
const MINUTE = 60 * SECOND;

type Look = Parameters<Watchdog["takePass"]>[0];
const good: Look = { kind: "full", dryRun: false, durationMs: 2 * SECOND, source: done("done") };

function done(outcome: SyncReport["source"]["outcome"]): SyncReport["source"] {
  return { outcome, submissions: 0 };
}

function watch() {
  let now = 0;
  const watchdog = new Watchdog(() => now);
  return {
    watchdog,
    /** Time passes, and the schedule asks. */
    pass(ms: number, everyMs = 5 * SECOND) {
      for (let left = ms; left > 0; left -= everyMs) {
        now += Math.min(everyMs, left);
        watchdog.tick();
      }
    },
  };
}

test("a look that is a minute and a few schedules old is late, until the next good one", () => {
  const { watchdog, pass } = watch();
  watchdog.takePass(good);
  pass(MINUTE);
  expect(watchdog.isLate).toBe(false);
  pass(10 * SECOND);
  expect(watchdog.isLate).toBe(true);
  watchdog.takePass({ ...good, kind: "changes" });
  expect(watchdog.isLate).toBe(false);
});

test.each<[string, Partial<Look>]>([
  ["that failed", { source: done("failed") }],
  ["that did not ask PuppetDB", { source: done("not asked"), kind: "known" }],
  ["that was only tried out", { dryRun: true }],
])("a pass %s is no look", (_, other) => {
  const { watchdog, pass } = watch();
  watchdog.takePass(good);
  pass(40 * SECOND);
  watchdog.takePass({ ...good, ...other });
  pass(40 * SECOND);
  expect(watchdog.isLate).toBe(true);
});

test("a schedule that asks every hour is late after three hours", () => {
  const { watchdog, pass } = watch();
  watchdog.takePass(good);
  pass(119 * MINUTE, 60 * MINUTE);
  expect(watchdog.isLate).toBe(false);
  pass(60 * MINUTE, 60 * MINUTE);
  expect(watchdog.isLate).toBe(true);
});

test("a full pass that takes as long as the one before it is not late", () => {
  const { watchdog, pass } = watch();
  watchdog.takePass({ ...good, durationMs: 2 * MINUTE });
  pass(4 * MINUTE);
  expect(watchdog.isLate).toBe(false);
  pass(2 * MINUTE);
  expect(watchdog.isLate).toBe(true);
});

test("the first pass may take as long as a full reading may", () => {
  const { watchdog, pass } = watch();
  pass(10 * MINUTE);
  expect(watchdog.isLate).toBe(false);
  pass(2 * MINUTE);
  expect(watchdog.isLate).toBe(true);
});
