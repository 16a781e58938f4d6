// The one search in sorted lists. Pure.

/** The first of `length` positions for which this is so, if it is so for all behind it. */
export function lowerBound(length: number, isSo: (at: number) => boolean): number {
  let [from, to] = [0, length];
  while (from < to) {
    const middle = (from + to) >> 1;
    if (isSo(middle)) to = middle;
    else from = middle + 1;
  }
  return from;
}
