// When this machine's clock can be trusted. Without a battery it begins in 1970, or at the time when it was switched off, until
// it is set from the network. sasori may start before that.

/** sasori was written after this time, so a clock that shows an earlier one has not been set yet. */
const EARLIEST = Date.UTC(2026, 0);

const isSet = (now: number): boolean => now >= EARLIEST;

/** A later time comes from a clock that was ahead. While our own clock is not set, no time counts as too late. */
export const latestTime = (now = Date.now()): number => (isSet(now) ? now : Number.POSITIVE_INFINITY);

/** The time for something that happens now. If the clock is not set, it is at least the newest `known` time. */
export function timeOfNow(known: () => Iterable<{ at: number }>, now = Date.now()): number {
  if (isSet(now)) return now;
  let newest = now;
  for (const { at } of known()) newest = Math.max(newest, at);
  return newest;
}
