import { describe, expect, test } from "vitest";
import { PushCost } from "../src/target/push-cost.js";

const sets = (keyed: number, entries = 100_000) => ({ keyed, added: 0, entries });

describe("the way of a push", () => {
  // What HAProxy 2.6, 3.0 and 3.2 took for a map of 100,000: one `set map` 1.1 ms or 5 µs, a swap 250 to 300 ms.
  test.each([
    ["2.6.12", sets(200), "incremental"],
    ["2.6.12", sets(400), "swap"],
    ["2.6.12", sets(400, 10_000), "swap"],
    ["2.8.0", sets(400), "swap"],
    ["2.9.0", sets(400), "incremental"],
    ["3.0.11", sets(50_000), "incremental"],
    ["3.2.26", sets(70_000), "swap"],
    ["2.6.12", { keyed: 0, added: 50_000, entries: 100_000 }, "incremental"],
  ] as const)("is by a first guess for HAProxy %s, %o: %s", (version, push, way) => {
    expect(new PushCost(version).cheaper(push)).toBe(way);
  });

  test("follows what this HAProxy has shown, whatever its version", () => {
    const cost = new PushCost("2.6.12");
    for (let push = 0; push < 10; push += 1) cost.learn("incremental", sets(200), 1);
    expect(cost.cheaper(sets(2_000))).toBe("incremental");
    for (let push = 0; push < 20; push += 1) cost.learn("swap", sets(0), 0.5);
    expect(cost.cheaper(sets(2_000))).toBe("swap");
  });

  test("does not follow pushes of a few commands, which only show the round trip", () => {
    const cost = new PushCost("3.2.26");
    for (let push = 0; push < 100; push += 1) cost.learn("incremental", sets(1), 5);
    expect(cost.cheaper(sets(50_000))).toBe("incremental");
  });
});
