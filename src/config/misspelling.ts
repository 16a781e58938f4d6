// Which known name a misspelt name probably means.

/** `SASORI_MAX_REMOVALS` for `SASORI_MAX_REMOVED`. */
const MAX_EDITS = 3;

/** A missing last word counts as two letters. */
const WORDS_MISSING = 2;

/** The nearest name; undefined if none of them is similar. */
export function meantName(written: string, names: readonly string[]): string | undefined {
  const edits = (name: string) =>
    name.startsWith(`${written}_`) ? WORDS_MISSING : editsBetween(written, name);
  const [nearest] = names
    .map((name) => ({ name, edits: edits(name) }))
    .sort((one, other) => one.edits - other.edits);
  return nearest !== undefined && nearest.edits <= MAX_EDITS ? nearest.name : undefined;
}

/** How many letters are missing, added or changed (Levenshtein distance). */
function editsBetween(written: string, meant: string): number {
  let row = Array.from({ length: meant.length + 1 }, (_, length) => length);
  for (const [above, letter] of [...written].entries()) {
    const next = [above + 1];
    for (const [left, other] of [...meant].entries()) {
      const changed = (row[left] ?? 0) + (letter === other ? 0 : 1);
      next.push(Math.min(changed, (row[left + 1] ?? 0) + 1, (next[left] ?? 0) + 1));
    }
    row = next;
  }
  return row.at(-1) ?? 0;
}
