// How far sasori looks back: a PuppetDB that stores submissions late, and a pass every five seconds.

import { expect, test } from "vitest";
import { parseCertname } from "../src/node-map.js";
import type { Submission } from "../src/source/reading.js";
import { advance, type Watermark } from "../src/source/watermark.js";

const SECOND = 1_000;
const MINUTE = 60 * SECOND;
const STEP = 5 * SECOND;
const START = Date.parse("2026-01-01T00:00:00Z");

/** A submission, when it was received and when it can be read (ms). */
type Stored = Submission & { storedAt: number };

/** One submission each second; `lag` is how long one that is received then waits in PuppetDB's queue. */
function submissions(lag: (at: number) => number, minutes = 60): Stored[] {
  return Array.from({ length: minutes * 60 }, (_, index) => {
    const at = START - 10 * MINUTE + index * SECOND;
    const certname = parseCertname(`node${index}.example.com`);
    return {
      ...{ certname, producer: "master1", source: "facts" as const, at, receivedAt: at },
      storedAt: at + lag(at - START),
    };
  });
}

/** How long after it was stored each submission was seen, at worst (ms), and how many were read in the last pass. */
function follow(stored: readonly Stored[], until: number) {
  const seen = new Set<Stored>(stored.filter(({ storedAt }) => storedAt <= START));
  let mark: Watermark = advance(
    undefined,
    { kind: "full", asOf: START, submissions: new Map(), inactiveCount: 0 },
    0,
  );
  let [worst, read] = [0, 0];
  for (let now = START + STEP; now <= START + until; now += STEP) {
    const from = mark.asOf - mark.overlapMs;
    const answer = stored.filter(({ storedAt, receivedAt }) => storedAt <= now && receivedAt > from);
    let lateMs = 0;
    for (const one of answer.filter((one) => !seen.has(one))) {
      seen.add(one);
      lateMs = Math.max(lateMs, mark.asOf - one.receivedAt);
      worst = Math.max(worst, now - one.storedAt);
    }
    const byName = new Map(answer.map((one) => [one.certname, one]));
    mark = advance(mark, { kind: "changes", asOf: now, submissions: byName, inactiveCount: 0 }, lateMs);
    read = answer.length;
  }
  const missed = stored.filter((one) => one.storedAt <= START + until && !seen.has(one)).length;
  return { worst, missed, read };
}

test.each([
  ["at once", () => 0],
  ["always 25 s late", () => 25 * SECOND],
  ["always four minutes late", () => 4 * MINUTE],
  ["later and later", (at: number) => Math.max(0, at / 10)],
  ["after it stood still for two minutes", (at: number) => Math.max(0, at < 0 ? 0 : 2 * MINUTE - at)],
  ["after a jump of a minute", (at: number) => (at < 10 * MINUTE ? 0 : MINUTE)],
])("sees everything with the next pass that PuppetDB stores %s", (_, lag) => {
  expect(follow(submissions(lag), 20 * MINUTE)).toMatchObject({ missed: 0, worst: expect.toSatisfy(isSoon) });
});

const isSoon = (ms: number) => ms < 2 * STEP;

test("does not read much again and again, neither in a busy fleet nor in a quiet one", () => {
  expect(
    follow(
      submissions(() => 0),
      20 * MINUTE,
    ).read,
  ).toBeLessThanOrEqual(25);
  const quiet = submissions(() => 0, 15); // Nothing comes after the fifth minute.
  expect(follow(quiet, 14 * MINUTE)).toMatchObject({
    missed: 0,
    read: expect.toSatisfy((rows) => rows <= 2),
  });
});
