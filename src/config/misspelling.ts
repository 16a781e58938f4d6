// Whether somebody meant a name and wrote another one.

/** `SASORI_MAX_REMOVALS` for `SASORI_MAX_REMOVED`. Names that are both meant differ by more. */
const MAX_EDITS = 3;

/** Words are missing at the end, or few letters were left out, added or changed. */
export function isMisspelling(written: string, meant: string): boolean {
  if (meant.startsWith(`${written}_`)) return true;
  let row = Array.from({ length: meant.length + 1 }, (_, length) => length);
  for (const [above, letter] of [...written].entries()) {
    const next = [above + 1];
    for (const [left, other] of [...meant].entries()) {
      const changed = (row[left] ?? 0) + (letter === other ? 0 : 1);
      next.push(Math.min(changed, (row[left + 1] ?? 0) + 1, (next[left] ?? 0) + 1));
    }
    row = next;
  }
  return (row.at(-1) ?? 0) <= MAX_EDITS;
}
