// The one search in sorted lists. Pure.

/** The first of `length` positions that fulfils the condition. All positions behind it must fulfil it too. */
export function lowerBound(length: number, isSo: (at: number) => boolean): number {
  let [from, to] = [0, length];
  while (from < to) {
    const middle = (from + to) >> 1;
    if (isSo(middle)) to = middle;
    else from = middle + 1;
  }
  return from;
}
