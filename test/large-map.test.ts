import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { LargeMap, tableOf } from "../src/large-map.js";

// That it never stops everything is measured: see `stalls` in bench/README.md.

/** More than one table has. */
const MANY = 40_000;

const name = fc.oneof(
  fc.nat(30).map((at) => `node-${at}.department.example.com`),
  fc.constantFrom("", "a", "x".repeat(253)),
);
type Step = { key: string; value: number | undefined } | { key: string; deleted: true } | "clear";
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 10, arbitrary: fc.record({ key: name, value: fc.option(fc.nat(), { nil: undefined }) }) },
  { weight: 5, arbitrary: fc.record({ key: name, deleted: fc.constant(true as const) }) },
  { weight: 1, arbitrary: fc.constant("clear" as const) },
);

function take(map: Map<string, number | undefined>, one: Step): unknown {
  if (one === "clear") return map.clear();
  if ("deleted" in one) return map.delete(one.key);
  const had = map.has(one.key);
  return [had, map.set(one.key, one.value) === map];
}

const sorted = <Key, Value>(map: Map<Key, Value>) =>
  new Map([...map].sort(([a], [b]) => (String(a) < String(b) ? -1 : 1)));

describe("a large map", () => {
  test.each([
    ["few entries", 0, 200],
    ["many entries", MANY, 10],
  ])("holds what a Map holds after the same calls: %s", (_, before, numRuns) => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
        const large = new LargeMap<string, number | undefined>();
        const map = new Map<string, number | undefined>();
        for (const all of [large, map]) for (let at = 0; at < before; at += 1) all.set(`node-${at}`, at);
        for (const one of steps) expect(take(large, one)).toEqual(take(map, one));
        expect(sorted(large)).toEqual(sorted(map));
        expect(large.size).toBe(map.size);
        expect([...map].filter(([key, value]) => !large.has(key) || large.get(key) !== value)).toEqual([]);
        expect([...large.keys()].sort()).toEqual([...map.keys()].sort());
        expect([...large.values()].sort()).toEqual([...map.values()].sort());
        const told: unknown[] = [];
        large.forEach((value, key, of) => {
          told.push([key, value, of === large]);
        });
        expect(told).toEqual([...large].map(([key, value]) => [key, value, true]));
      }),
      { numRuns },
    );
  });

  test("goes on through its entries while entries are deleted, as a Map does", () => {
    const large = new LargeMap<string, number>();
    for (let at = 0; at < MANY; at += 1) large.set(`node-${at}`, at);
    for (const [key, value] of large) if (value % 2 === 0) large.delete(key);
    expect(large.size).toBe(MANY / 2);
  });

  test("keeps few entries in the order in which they came", () => {
    const large = new LargeMap<string, number>();
    for (const name of ["c", "a", "b"]) large.set(name, 1);
    expect([...large.keys()]).toEqual(["c", "a", "b"]);
  });

  test.each<[string, (at: number) => string]>([
    ["numbers at the end of the first label", (at) => `node-${String(at).padStart(7, "0")}.example.com`],
    ["numbers without leading zeros", (at) => `web${at}.dc1.corp.example.com`],
    ["addresses", (at) => `ip-10-${at >> 16}-${(at >> 8) & 255}-${at & 255}.eu-west-1.compute.internal`],
    ["a number at the very end", (at) => `rack${at % 40}-node${at}`],
  ])("spreads names over its tables: %s", (_, nameOf) => {
    const sizes = new Map<number, number>();
    for (let at = 0; at < 200_000; at += 1) {
      const table = tableOf(nameOf(at));
      sizes.set(table, (sizes.get(table) ?? 0) + 1);
    }
    expect(Math.max(...sizes.values())).toBeLessThan(200_000 / 4);
  });
});
