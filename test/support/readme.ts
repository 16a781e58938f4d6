/** The README as the tests hold it to the code. */
import { readFileSync } from "node:fs";

export const readme = readFileSync(new URL("../../README.md", import.meta.url), "utf8");

/** What stands between two headings of the second level. */
export const chapter = (heading: string) =>
  readme.split(/^## /m).find((text) => text.startsWith(`${heading}\n`)) ?? "";

/** The error codes in a text. `PUPPETDB_UNREACHABLE`, `_TIMEOUT`: the second has the first word of the one before. */
export function codesIn(text: string): string[] {
  let family = "";
  const named = Array.from(text.matchAll(/`(_?[A-Z][A-Z_]+)`/g), ([, name = ""]) => {
    if (!name.startsWith("_")) family = name.split("_")[0] ?? "";
    return name.startsWith("_") ? family + name : name;
  });
  return [...new Set(named)].filter((name) => !/^SASORI_/.test(name)).sort();
}
