// A Map and a Set for a million entries. V8 keeps the entries of a Map in one table, and copies that table whenever it must
// grow. With half a million entries this stops everything for 30 to 110 ms. A LargeMap has several tables, so each copy takes
// a few milliseconds (bench/README.md, "stalls").
// Pure.

/** Up to this many entries one table is enough: it grows within a millisecond. */
const FEW = 1 << 15;

/** A power of two. */
const TABLES = 16;

/** The table of a key. Eight characters or so are enough to spread the names of a fleet, and reading all would take longer. */
export function tableOf(key: string): number {
  const step = 1 + (key.length >> 3);
  let hash = 0;
  for (let at = 0; at < key.length; at += step) hash = (Math.imul(hash, 31) + key.charCodeAt(at)) | 0;
  return hash & (TABLES - 1);
}

/** Works as a Map, but if there are many entries, they are in no particular order. */
export class LargeMap<Key extends string, Value> implements Map<Key, Value> {
  #tables = [new Map<Key, Value>()];
  readonly [Symbol.toStringTag] = "LargeMap";

  get size(): number {
    return this.#tables.reduce((size, table) => size + table.size, 0);
  }

  get(key: Key): Value | undefined {
    return this.#tableOf(key).get(key);
  }

  has(key: Key): boolean {
    return this.#tableOf(key).has(key);
  }

  set(key: Key, value: Value): this {
    this.#tableOf(key).set(key, value);
    const [first] = this.#tables as [Map<Key, Value>];
    if (this.#tables.length === 1 && first.size > FEW) this.#spread(first);
    return this;
  }

  delete(key: Key): boolean {
    return this.#tableOf(key).delete(key);
  }

  clear(): void {
    this.#tables = [new Map()];
  }

  forEach(use: (value: Value, key: Key, map: Map<Key, Value>) => void): void {
    for (const [key, value] of this) use(value, key, this);
  }

  *entries(): MapIterator<[Key, Value]> {
    for (const table of this.#tables) yield* table;
  }

  *keys(): MapIterator<Key> {
    for (const table of this.#tables) yield* table.keys();
  }

  *values(): MapIterator<Value> {
    for (const table of this.#tables) yield* table.values();
  }

  [Symbol.iterator](): MapIterator<[Key, Value]> {
    return this.entries();
  }

  #tableOf(key: Key): Map<Key, Value> {
    return this.#tables[this.#tables.length === 1 ? 0 : tableOf(key)] as Map<Key, Value>;
  }

  /** This takes a few milliseconds. */
  #spread(entries: Map<Key, Value>): void {
    this.#tables = Array.from({ length: TABLES }, () => new Map<Key, Value>());
    for (const [key, value] of entries) this.#tableOf(key).set(key, value);
  }
}

/** Works as a Set, but if there are many keys, they are in no particular order. */
export class LargeSet<Key extends string> implements Iterable<Key> {
  readonly #keys = new LargeMap<Key, true>();

  get size(): number {
    return this.#keys.size;
  }

  has(key: Key): boolean {
    return this.#keys.has(key);
  }

  add(key: Key): this {
    this.#keys.set(key, true);
    return this;
  }

  delete(key: Key): boolean {
    return this.#keys.delete(key);
  }

  [Symbol.iterator](): MapIterator<Key> {
    return this.#keys.keys();
  }
}
