import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type Before, type Certname, type Master, NodeMap, type Source } from "../src/node-map.js";
import { judgeRemovals, learnedRoutes, planFromChanges, planFromContents } from "../src/plan.js";
import type { Contents } from "../src/target/target.js";

type Routes = Record<string, string>;

function desired(routes: Routes, source: Source = "facts"): NodeMap {
  const map = new NodeMap();
  for (const [name, to] of Object.entries(routes)) {
    map.observe({ certname: name as Certname, master: to as Master, at: 1, source });
  }
  map.takeChanges();
  return map;
}

function holds(routes: Routes, rebuild = false): Contents {
  const entries = Object.entries(routes) as [Certname, string][];
  return { routes: new Map(entries), rebuild, fingerprint: { process: "1@1", content: "0:0" } };
}

const names = (count: number) => Array.from({ length: count }, (_, index) => `node${index}` as Certname);

describe("the plan of a target", () => {
  test.each([
    {
      rule: "holds the desired map: nothing to do",
      wanted: { a: "m1" },
      has: { a: "m1" },
      plan: { kind: "unchanged" },
    },
    { rule: "both empty: nothing to do", wanted: {}, has: {}, plan: { kind: "unchanged" } },
    {
      rule: "lacks a node: it is added",
      wanted: { a: "m1" },
      has: {},
      plan: { add: [{ certname: "a", to: "m1" }] },
    },
    {
      rule: "has a node elsewhere: it is set",
      wanted: { a: "m2" },
      has: { a: "m1" },
      plan: { set: [{ certname: "a", from: "m1", to: "m2" }] },
    },
    {
      rule: "has a node that is not wanted: it is removed",
      wanted: { a: "m1" },
      has: { a: "m1", b: "m1" },
      plan: { del: [{ certname: "b", from: "m1" }] },
    },
    {
      rule: "holds a value that is no server name: it is set like any other",
      wanted: { a: "m1" },
      has: { a: "m1 extra;" },
      plan: { set: [{ certname: "a", from: "m1 extra;", to: "m1" }] },
    },
    {
      rule: "holds lines that no command may name: it is rebuilt",
      wanted: { a: "m1" },
      has: { a: "m1" },
      rebuild: true,
      plan: { kind: "changes", rebuild: true, add: [], set: [], del: [] },
    },
  ])("$rule", ({ wanted, has, rebuild, plan }) => {
    expect(planFromContents(desired(wanted as Routes), holds(has as Routes, rebuild))).toMatchObject(plan);
  });

  test("never overrules a live route with one that was only inherited", () => {
    const plan = planFromContents(desired({ a: "m1", b: "m1" }, "inherited"), holds({ a: "m2" }));
    expect(plan).toMatchObject({ add: [{ certname: "b", to: "m1" }], set: [], del: [] });
  });

  const routes = fc.dictionary(fc.constantFrom("a", "b", "c", "d", "e"), fc.constantFrom("m1", "m2", "m3"));

  test("turns what a target has into what is desired, for any two maps", () => {
    fc.assert(
      fc.property(routes, routes, (wanted, has) => {
        const plan = planFromContents(desired(wanted), holds(has));
        const result = new Map<string, string>(Object.entries(has));
        if (plan.kind === "changes") {
          for (const { certname, to } of [...plan.add, ...plan.set]) result.set(certname, to ?? "");
          for (const { certname } of plan.del) result.delete(certname);
        }
        expect(Object.fromEntries(result)).toEqual({ ...wanted });
      }),
    );
  });

  test("is the same whether it is made from the changes alone or from the whole contents", () => {
    fc.assert(
      fc.property(routes, routes, (before, after) => {
        const map = desired(before);
        for (const name of Object.keys(before)) if (!(name in after)) map.remove(name as Certname);
        for (const [name, to] of Object.entries(after)) {
          map.observe({ certname: name as Certname, master: to as Master, at: 2, source: "report" });
        }
        const sorted = (plan: ReturnType<typeof planFromChanges>) =>
          plan.kind === "unchanged"
            ? plan
            : [plan.add, plan.set, plan.del].map((list) =>
                [...list].sort((a, b) => (a.certname < b.certname ? -1 : 1)),
              );
        expect(sorted(planFromChanges(map, map.takeChanges()))).toEqual(
          sorted(planFromContents(map, holds(before))),
        );
      }),
    );
  });
});

describe("the guard", () => {
  test.each([
    { rule: "nothing goes", gone: 0, size: 100, limit: { percent: 10 }, kind: "allowed" },
    { rule: "exactly the share", gone: 20, size: 200, limit: { percent: 10 }, kind: "allowed" },
    { rule: "more than the share", gone: 21, size: 200, limit: { percent: 10 }, kind: "held" },
    { rule: "few entries of a small map", gone: 10, size: 20, limit: { percent: 10 }, kind: "allowed" },
    { rule: "more than few of a small map", gone: 11, size: 20, limit: { percent: 10 }, kind: "held" },
    {
      rule: "a map would become empty, however small",
      gone: 3,
      size: 3,
      limit: { percent: 100 },
      kind: "held",
    },
    { rule: "within a number of entries", gone: 500, size: 600, limit: { entries: 500 }, kind: "allowed" },
    { rule: "above a number of entries", gone: 501, size: 600, limit: { entries: 500 }, kind: "held" },
    { rule: "no removal without approval", gone: 1, size: 1000, limit: { entries: 0 }, kind: "held" },
  ])("$rule: $kind", ({ gone, size, limit, kind }) => {
    expect(judgeRemovals(names(gone), size, limit).kind).toBe(kind);
  });

  test("holds a fleet that vanishes little by little", () => {
    expect(judgeRemovals(names(5), 95, { percent: 10 }, { lately: 5 }).kind).toBe("allowed");
    expect(judgeRemovals(names(5), 90, { percent: 10 }, { lately: 10 })).toMatchObject({
      kind: "held",
      reason: expect.stringContaining("after 10 within the hour"),
    });
  });

  test("lets exactly the approved set of nodes through, in any order, and no other", () => {
    const gone = names(50);
    const held = judgeRemovals(gone, 100, { percent: 10 });
    if (held.kind !== "held") throw new Error("expected to be held");
    expect(held.reason).toContain("50 of 100 entries would go");
    expect(judgeRemovals([...gone].reverse(), 100, { percent: 10 }, { approved: held.id }).kind).toBe(
      "allowed",
    );
    expect(judgeRemovals(names(51), 100, { percent: 10 }, { approved: held.id }).kind).toBe("held");
    expect(judgeRemovals(names(49), 100, { percent: 10 }, { approved: held.id }).kind).toBe("held");
  });
});

describe("a value that sasori did not put there", () => {
  const isServer = (name: string) => name.startsWith("m");
  const learned = (wanted: Routes, pending: Before, live: Routes) =>
    learnedRoutes(desired(wanted), pending, holds(live), isServer, 1000);

  test("is a learned route, with the time at which it was seen", () => {
    expect(learned({ a: "m1" }, new Map(), { a: "m2" })).toEqual([
      { certname: "a", master: "m2", at: 1000, source: "learned" },
    ]);
  });

  test("is a learned route for a node that nobody knew", () => {
    expect(learned({}, new Map(), { a: "m2" })).toMatchObject([{ certname: "a", master: "m2" }]);
  });

  test("is no learned route when PuppetDB moved the node meanwhile: that is pushed", () => {
    expect(learned({ a: "m3" }, new Map([["a" as Certname, "m1" as Master]]), { a: "m2" })).toEqual([]);
  });

  test("is no learned route when it names no server", () => {
    expect(learned({ a: "m1" }, new Map(), { a: "x1" })).toEqual([]);
    expect(learned({ a: "m1" }, new Map(), { a: "m 1" })).toEqual([]);
  });
});
