// Finds JSON in which an object has one key twice. JSON.parse silently takes the last value, and the first is lost.

import { endOfString } from "../source/json-rows.js";

/** `text` is JSON, and `body` what it says. Outside strings, JSON has one colon for each key. */
export function hasKeyTwice(text: string, body: unknown): boolean {
  let colons = 0;
  for (let at = 0; at < text.length; at += 1) {
    if (text[at] === '"') at = endOfString(text, at);
    else if (text[at] === ":") colons += 1;
  }
  return colons !== countKeys(body);
}

/** Without recursion, because ten thousand nested brackets would overflow the stack. */
function countKeys(body: unknown): number {
  let keys = 0;
  const values = [body];
  for (let value = values.pop(); value !== undefined; value = values.pop()) {
    if (typeof value !== "object" || value === null) continue;
    const inner: unknown[] = Object.values(value);
    if (!Array.isArray(value)) keys += inner.length;
    for (const one of inner) values.push(one);
  }
  return keys;
}
