import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { LargeMap, tableOf } from "../src/large-map.js";

// That it never stops everything is measured: see `stalls` in bench/README.md.

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
  test("holds what a Map holds after the same calls", () => {
    fc.assert(
      fc.property(fc.array(step, { maxLength: 200 }), (steps) => {
        const [large, map] = [
          new LargeMap<string, number | undefined>(),
          new Map<string, number | undefined>(),
        ];
        for (const one of steps) expect(take(large, one)).toEqual(take(map, one));
        expect(sorted(large)).toEqual(sorted(map));
        expect(large.size).toBe(map.size);
        for (const [key, value] of map) expect([large.has(key), large.get(key)]).toEqual([true, value]);
        expect([...large.keys()].sort()).toEqual([...map.keys()].sort());
        expect([...large.values()].sort()).toEqual([...map.values()].sort());
        const told: unknown[] = [];
        large.forEach((value, key, of) => {
          told.push([key, value, of === large]);
        });
        expect(told).toEqual([...large].map(([key, value]) => [key, value, true]));
      }),
    );
  });

  test("goes on through its entries while entries are deleted, as a Map does", () => {
    const large = new LargeMap<string, number>();
    for (let at = 0; at < 1_000; at += 1) large.set(`node-${at}`, at);
    for (const [key, value] of large) if (value % 2 === 0) large.delete(key);
    expect(large.size).toBe(500);
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
