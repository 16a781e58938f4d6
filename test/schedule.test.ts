import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { isCron, matcherOf, Schedule } from "../src/schedule.js";

const SECOND = 1_000;
const HOUR = 3_600 * SECOND;
const NOON = Date.parse("2026-03-01T12:00:00.500Z");

let ran: string[];
let jumps: number[];
let schedule: Schedule;
beforeEach(() => {
  vi.useFakeTimers({ now: NOON });
  ran = [];
  jumps = [];
  const job = (name: string, cron: string) => ({ cron, run: () => ran.push(name) });
  schedule = new Schedule([job("changes", "*/5 * * * * *"), job("full", "*/15 * * * *")], (seconds) =>
    jumps.push(seconds),
  );
});
afterEach(() => {
  schedule.stop();
  vi.useRealTimers();
});

test("each second that matches is acted on once", () => {
  vi.advanceTimersByTime(60 * SECOND);
  expect(ran).toEqual(Array(12).fill("changes"));
  vi.advanceTimersByTime(14 * 60 * SECOND);
  expect(ran.filter((name) => name === "full")).toHaveLength(1);
  expect(jumps).toEqual([]);
});

test("a process that was held up acts on what it missed, once, however late", () => {
  vi.setSystemTime(NOON + 13 * SECOND);
  vi.advanceTimersByTime(SECOND);
  expect(ran).toEqual(["changes"]);
  vi.setSystemTime(Date.parse("2026-03-01T12:14:40.500Z"));
  vi.advanceTimersByTime(SECOND);
  ran = [];
  // The full pass of a quarter past twelve, 20 s late.
  vi.setSystemTime(Date.parse("2026-03-01T12:15:20.500Z"));
  vi.advanceTimersByTime(SECOND);
  expect(ran).toEqual(["changes", "full"]);
});

test.each([
  ["an hour back", -HOUR],
  ["a year on", 365 * 24 * HOUR],
])("a clock that is set %s is told, everything is done once, and the schedule goes on", (_, jump) => {
  vi.setSystemTime(NOON + jump);
  vi.advanceTimersByTime(SECOND);
  expect(jumps).toEqual([jump / SECOND]);
  expect(ran).toEqual(["changes", "full"]);
  vi.advanceTimersByTime(20 * SECOND);
  expect(ran.slice(2)).toEqual(Array(4).fill("changes"));
});

test.each([
  ["Europe/Berlin", "2027-03-28T00:59:50Z", "30 2 * * *"], // 02:30 does not come on this day.
  ["America/New_York", "2027-03-14T06:59:50Z", "30 2 * * *"],
  ["Europe/Berlin", "2027-10-31T00:59:50Z", "30 1 * * *"],
])("in %s everything is done once when summer time begins or ends (%s)", (zone, at, cron) => {
  const before = process.env.TZ;
  process.env.TZ = zone;
  try {
    vi.setSystemTime(Date.parse(at));
    schedule.stop();
    schedule = new Schedule([{ cron, run: () => ran.push("full") }], (seconds) => jumps.push(seconds));
    vi.advanceTimersByTime(5 * SECOND);
    expect(ran).toEqual([]);
    vi.advanceTimersByTime(20 * 60 * SECOND);
    expect(ran).toEqual(["full"]);
    expect(jumps).toEqual([]);
  } finally {
    if (before === undefined) delete process.env.TZ;
    else process.env.TZ = before;
  }
});

test("nothing is done any more when it was stopped", () => {
  schedule.stop();
  vi.advanceTimersByTime(HOUR);
  expect(ran).toEqual([]);
});

/** The days of March 2026 on which the schedule fires, and the hours. */
function marchOf(cron: string): string[] {
  const matches = matcherOf(cron);
  const hours = Array.from({ length: 31 * 24 }, (_, hour) => new Date(2026, 2, 1, hour));
  return hours.filter((at) => matches(at.getTime() / 1000)).map((at) => `${at.getDate()}:${at.getHours()}`);
}

test.each([
  // 1 March 2026 is a Sunday.
  ["0 3 1 * 1", ["1:3", "2:3", "9:3", "16:3", "23:3", "30:3"]],
  ["0 0 3 1,15 * FRI", ["1:3", "6:3", "13:3", "15:3", "20:3", "27:3"]],
  ["0 3 1 * *", ["1:3"]],
  ["0 3 ? * 1", ["2:3", "9:3", "16:3", "23:3", "30:3"]],
  ["0 3 */10 * 1", []],
  ["0 3 30 2,3 2", ["3:3", "10:3", "17:3", "24:3", "30:3", "31:3"]],
  ["0 3 31 4 1", []], // Mondays in April
  ["@weekly", ["1:0", "8:0", "15:0", "22:0", "29:0"]],
  ["@monthly", ["1:0"]],
])("%s is when cron says", (cron, times) => {
  expect(isCron(cron)).toBe(true);
  expect(marchOf(cron)).toEqual(times);
});

test("@hourly is each full hour, and what is none is refused", () => {
  expect(marchOf("@hourly").length).toBeGreaterThanOrEqual(31 * 24 - 1); // An hour is left out in spring.
  for (const wrong of [
    "",
    "@often",
    "@reboot",
    "toString",
    "__proto__",
    "* * *",
    "61 * * * *",
    "0 3 1 * 9",
    "0 3 31 4 *",
    "0 3 32 4 1",
    "0 3 31 13 1",
    "H/15 * * * *",
  ])
    expect(isCron(wrong), wrong).toBe(false);
});
