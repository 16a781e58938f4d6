// Names in the configuration: lists of plain names and regular expressions, and the aliases of producers. A text with only
// characters of names is a plain name. Every other text is a regular expression for the whole name. RE2 matches it, because
// its running time is bounded, and that of JavaScript's own engine is not.

import { RE2JS } from "re2js";
import { isMaster, type Master } from "./node-map.js";

/** Tells whether a whole text matches. */
export interface Pattern {
  test(text: string): boolean;
}

/** There are few producers, except where each node compiles its own catalog: then there are as many as nodes. */
const MAX_REMEMBERED = 1_000;

/** For comparing names as DNS does: letter case and a dot at the end make no difference. */
export const dnsName = (name: string) => name.toLowerCase().replace(/\.$/, "");

const isPlain = (text: string) => /^[A-Za-z0-9_.-]+$/.test(text);

/** Splits at commas, but not at those inside `{1,3}` or `[a,b]`. */
const parts = (list: string) => list.split(/,(?![^{}[\]]*[}\]])/).map((part) => part.trim());
const words = (list: string) => list.trim().split(/(?:\s*,\s*|\s+)(?![^{}[\]]*[}\]])/);

/** A regular expression for a whole name. Throws what is wrong with it. */
export function compile(text: string, { dns = false } = {}): Pattern {
  const compiled = RE2JS.compile(text, dns ? RE2JS.CASE_INSENSITIVE : 0);
  return { test: (name) => compiled.testExact(name) };
}

/** Names and regular expressions, separated by commas or blanks. Throws what is wrong with one of them. */
export function nameList(text: string): Pattern {
  const plain = new Set<string>();
  const patterns: Pattern[] = [];
  for (const part of words(text)) {
    if (part === "") throw new Error("an empty name");
    if (isMaster(part)) plain.add(part);
    else patterns.push(compile(part));
  }
  return { test: (name) => plain.has(name) || patterns.some((pattern) => pattern.test(name)) };
}

/** Producers whose master has another name in HAProxy. */
export class Aliases {
  /** The pairs as they are written. */
  readonly pairs: readonly (readonly [producer: string, master: Master])[];
  readonly #exact = new Map<string, Master>();
  readonly #patterns: { pattern: Pattern; master: Master }[] = [];
  /** What the patterns gave for a producer, remembered because every submission needs it. */
  readonly #found = new Map<string, Master | undefined>();

  constructor(pairs: readonly (readonly [producer: string, master: Master])[] = []) {
    this.pairs = pairs;
    for (const [producer, master] of pairs) {
      this.#exact.set(dnsName(producer), master);
      if (!isPlain(producer)) this.#patterns.push({ pattern: compile(producer, { dns: true }), master });
    }
  }

  /** `producer=master` pairs, separated by commas. Throws what is wrong with one of them. */
  static parse(text: string): Aliases {
    const seen = new Set<string>();
    const pairs = parts(text).map((pair): [string, Master] => {
      const at = pair.lastIndexOf("=");
      const [producer, master] = [pair.slice(0, Math.max(at, 0)).trim(), pair.slice(at + 1).trim()];
      const name = isPlain(producer) ? dnsName(producer) : producer;
      if (producer === "" || !isMaster(master) || seen.has(name)) throw new Error(`not ${pair}`);
      seen.add(name);
      return [producer, master];
    });
    return new Aliases(pairs);
  }

  /**
   * The master that this producer stands for. A plain name wins over a pattern, and of several patterns the first one wins.
   */
  of(producer: string): Master | undefined {
    const name = dnsName(producer);
    return this.#exact.get(name) ?? (this.#patterns.length > 0 ? this.#ofPattern(name) : undefined);
  }

  #ofPattern(name: string): Master | undefined {
    if (this.#found.has(name)) return this.#found.get(name);
    const master = this.#patterns.find(({ pattern }) => pattern.test(name))?.master;
    if (this.#found.size >= MAX_REMEMBERED) this.#found.clear();
    this.#found.set(name, master);
    return master;
  }
}
