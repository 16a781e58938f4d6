// What this machine's clock may be believed. One without a battery begins in 1970, or where it was switched off, until it is
// set from the network; and sasori may be there first.

/** sasori was made after this: a clock that shows less has not been set yet. */
const EARLIEST = Date.UTC(2026, 0);

const isSet = (now: number): boolean => now >= EARLIEST;

/** What is dated later than this is of a clock that was ahead. A clock that is not set says nothing of that. */
export const latestTime = (now = Date.now()): number => (isSet(now) ? now : Number.POSITIVE_INFINITY);

/** When something happens that happens now: by a clock that is not set, not before the newest that is `known`. */
export function timeOfNow(known: () => Iterable<{ at: number }>, now = Date.now()): number {
  if (isSet(now)) return now;
  let newest = now;
  for (const { at } of known()) newest = Math.max(newest, at);
  return newest;
}
