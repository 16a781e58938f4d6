// JSON with one key twice in an object: JSON.parse takes the last value without a word, and what was sent first is lost.

import { endOfString } from "../source/json-rows.js";

/** `text` is JSON, and `body` what it says. Outside of its strings JSON has one colon for each key. */
export function hasKeyTwice(text: string, body: unknown): boolean {
  let colons = 0;
  for (let at = 0; at < text.length; at += 1) {
    if (text[at] === '"') at = endOfString(text, at);
    else if (text[at] === ":") colons += 1;
  }
  return colons !== countKeys(body);
}

function countKeys(value: unknown): number {
  if (typeof value !== "object" || value === null) return 0;
  const own = Array.isArray(value) ? 0 : Object.keys(value).length;
  return Object.values(value).reduce((sum: number, one) => sum + countKeys(one), own);
}
