/** The fenced blocks of the documents, for tests that run what they say. */
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";

/** Every document of the repository. */
export const documents = execFileSync("git", ["ls-files", "*.md"], { encoding: "utf8" }).trim().split("\n");

export interface Block {
  document: string;
  /** Where its first line is in the document, counted from 1. */
  line: number;
  /** "sh", "yaml", "" and so on. */
  language: string;
  text: string;
}

/** All fenced blocks of a document, in their order. */
export function blocksOf(document: string): Block[] {
  const text = readFileSync(document, "utf8");
  return Array.from(text.matchAll(/^```(\w*)\n([\s\S]*?)^```/gm), (found) => ({
    document,
    line: text.slice(0, found.index).split("\n").length + 1,
    language: found[1] ?? "",
    text: found[2] ?? "",
  }));
}

/** The one block of a document that has `words`. Throws when there is none, or more than one. */
export function blockWith(document: string, words: string): Block {
  const found = blocksOf(document).filter(({ text }) => text.includes(words));
  const [block] = found;
  if (block === undefined || found.length > 1)
    throw new Error(`${document}: ${found.length} blocks have ${JSON.stringify(words)}, expected one`);
  return block;
}

/** The commands of a block: a line that ends in a backslash goes on in the next one. */
export const commandsOf = ({ text }: Block): string[] =>
  text
    .replaceAll("\\\n", "\\\0")
    .trimEnd()
    .split("\n")
    .map((line) => line.replaceAll("\0", "\n"));
