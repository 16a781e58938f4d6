// How far a reading of changes looks back before the previous reading. PuppetDB notes the time when it receives a submission,
// but stores it only when its queue gets there. So a submission that is stored now may have been received a while ago.
// Pure: no I/O, no clock.

import type { Reading } from "./reading.js";

/**
 * What the last good reading has seen, and how far before it the next one looks back. Times are in ms on PuppetDB's clock.
 */
export interface Watermark {
  asOf: number;
  overlapMs: number;
  /** When it had received the newest submission that was seen; 0 until a reading of changes has seen one. */
  newestAt: number;
  inactiveCount: number;
}

const MIN_OVERLAP_MS = 15_000;
const MAX_OVERLAP_MS = 15 * 60_000;
/**
 * How far the first reading of changes looks back. A full reading does not ask how late PuppetDB is, so that is unknown then.
 */
const FIRST_OVERLAP_MS = 5 * 60_000;
/** PuppetDB works on several submissions at once: those of about the same time are stored in any order. */
const DISORDER_MS = 2_000;

/** `lateMs`: how long before `previous.asOf` a submission was received that is new in this reading, see Fleet.merge. */
export function advance(
  previous: Watermark | undefined,
  {
    kind,
    asOf,
    submissions,
    inactiveCount,
  }: Pick<Reading, "kind" | "asOf" | "submissions" | "inactiveCount">,
  lateMs: number,
): Watermark {
  let newestAt = previous?.newestAt ?? 0;
  // A full reading does not tell it.
  for (const { receivedAt } of kind === "full" ? [] : submissions.values())
    newestAt = Math.max(newestAt, receivedAt);
  // While the queue stands still, nothing is stored, and everything since the newest submission may still come. Otherwise the
  // lateness grows and shrinks gradually, so twice the worst one of this reading covers the next reading.
  const silentMs = newestAt === 0 ? FIRST_OVERLAP_MS : asOf - newestAt + DISORDER_MS;
  const decayedMs = previous?.newestAt ? previous.overlapMs * 0.9 : 0;
  const overlapMs = Math.min(Math.max(MIN_OVERLAP_MS, silentMs, 2 * lateMs, decayedMs), MAX_OVERLAP_MS);
  return { asOf, overlapMs, newestAt, inactiveCount };
}
