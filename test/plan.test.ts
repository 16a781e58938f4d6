import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Guard, type GuardRules, type Losses } from "../src/guard.js";
import { type Before, type Certname, type Master, NodeMap, type Source } from "../src/node-map.js";
import { keepingOthers, learnedRoutes, type Plan, planFromChanges, planFromContents } from "../src/plan.js";
import type { Contents } from "../src/target/target.js";
import { atOnce } from "./support/pieces.js";

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
    expect(atOnce(planFromContents(desired(wanted as Routes), holds(has as Routes, rebuild)))).toMatchObject(
      plan,
    );
  });

  test("never overrules a live route with one that was only inherited", () => {
    const plan = atOnce(planFromContents(desired({ a: "m1", b: "m1" }, "inherited"), holds({ a: "m2" })));
    expect(plan).toMatchObject({ add: [{ certname: "b", to: "m1" }], set: [], del: [] });
  });

  const routes = fc.dictionary(fc.constantFrom("a", "b", "c", "d", "e"), fc.constantFrom("m1", "m2", "m3"));

  test("turns what a target has into what is desired, for any two maps", () => {
    fc.assert(
      fc.property(routes, routes, (wanted, has) => {
        const plan = atOnce(planFromContents(desired(wanted), holds(has)));
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
        const sorted = (plan: Plan) =>
          plan.kind === "unchanged"
            ? plan
            : [plan.add, plan.set, plan.del].map((list) =>
                [...list].sort((a, b) => (a.certname < b.certname ? -1 : 1)),
              );
        expect(sorted(atOnce(planFromChanges(map, map.takeChanges())))).toEqual(
          sorted(atOnce(planFromContents(map, holds(before)))),
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
    expect(judge({ gone: names(gone) }, size, { limit }).kind).toBe(kind);
  });

  const limit = { percent: 10 };
  const HOUR = 60 * 60_000;

  test("holds a fleet that vanishes little by little, however slowly", () => {
    const guard = new Guard();
    let size = 10_000;
    const passes = Array.from({ length: 48 }, (_, hour) => {
      const gone = names(Math.floor(size * 0.09));
      const { verdict, mayRemove } = atOnce(guard.judge(losses({ gone }), size, { limit, now: hour * HOUR }));
      if (mayRemove) size -= gone.length;
      return verdict.kind;
    });
    expect(size).toBe(9_100);
    expect(passes.filter((kind) => kind === "held")).toHaveLength(47);
  });

  test("lets a fleet of short-lived nodes come and go: what counts is how large the map was", () => {
    const guard = new Guard();
    for (let hour = 0; hour < 48; hour += 1) {
      const { verdict } = atOnce(
        guard.judge(losses({ gone: names(90) }), 1_000, { limit, now: hour * HOUR }),
      );
      expect(verdict.kind).toBe("allowed");
    }
  });

  test("compares with the smaller map after an approval, and with last month's no more", () => {
    const guard = new Guard();
    const ask = (gone: number, size: number, rules: Partial<GuardRules> = {}) =>
      atOnce(guard.judge(losses({ gone: names(gone) }), size, { limit, now: 0, ...rules })).verdict;
    const held = ask(500, 1_000);
    if (held.kind !== "held") throw new Error("expected to be held");
    expect(ask(500, 1_000, { approved: held.id })).toEqual({ kind: "allowed", byApproval: held.id });
    expect(ask(40, 500, { now: HOUR }).kind).toBe("allowed");
    expect(ask(40, 460, { now: 2 * HOUR }).kind).toBe("held");
    expect(ask(40, 460, { now: 31 * 24 * HOUR }).kind).toBe("allowed");
  });

  test("lets exactly the approved set of nodes through, in any order, and no other", () => {
    const gone = names(50);
    const held = judge({ gone }, 100, { limit });
    if (held.kind !== "held") throw new Error("expected to be held");
    expect(held.reason).toContain("50 of 100 entries would be removed");
    const approved = { limit, approved: held.id };
    expect(judge({ gone: [...gone].reverse() }, 100, approved).kind).toBe("allowed");
    expect(judge({ gone: names(51) }, 100, approved).kind).toBe("held");
    expect(judge({ gone: names(49) }, 100, approved).kind).toBe("held");
  });

  test("holds whatever would go from a map that somebody else made", () => {
    expect(judge({ gone: names(1), foreign: ["Printer one"] }, 1_000, { limit })).toMatchObject({
      kind: "held",
      reason: "2 of 1,001 entries would be removed from a map that sasori did not make",
      certnames: ["node0", "Printer one"],
    });
    expect(judge({ foreign: [] }, 1_000, { limit }).kind).toBe("allowed");
  });

  test("holds moves back behind what was known, and nothing else with them", () => {
    const observation = {
      certname: "a" as Certname,
      master: "m1" as Master,
      at: 1_000,
      source: "facts",
    } as const;
    const all = losses({
      gone: names(1),
      stepsBack: [{ certname: observation.certname, observation, at: 1_000, from: 5_000 }],
      newestAt: 5_000,
    });
    const { verdict, mayRemove } = atOnce(new Guard().judge(all, 100, { limit, now: 0 }));
    expect(mayRemove).toBe(true);
    expect(verdict).toMatchObject({
      reason:
        "PuppetDB went back from 1970-01-01T00:00:05.000Z to 1970-01-01T00:00:01.000Z: 1 node would move or be removed",
      certnames: ["a"],
    });
  });

  const losses = (some: Partial<Losses>): Losses => ({
    gone: [],
    foreign: undefined,
    stepsBack: [],
    newestAt: 5_000,
    ...some,
  });
  const judge = (some: Partial<Losses>, size: number, rules: Omit<GuardRules, "now">) =>
    atOnce(new Guard().judge(losses(some), size, { now: 0, ...rules })).verdict;
});

test("a plan that keeps somebody else's entries loses none, and changes one whose key has capitals by one beside it", () => {
  const plan = atOnce(
    planFromContents(desired({ a: "m1", b: "m2" }), holds({ a: "m2", b: "m1", c: "x" }, true)),
  );
  expect(atOnce(keepingOthers(plan, new Set(["a" as Certname])))).toMatchObject({
    kind: "changes",
    add: [{ certname: "a", to: "m1" }],
    set: [{ certname: "b", from: "m1", to: "m2" }],
    del: [],
    rebuild: false,
    keepsOthers: new Map([["c", "x"]]),
  });
});

describe("a value that sasori did not put there", () => {
  const isServer = (name: string) => name.startsWith("m");
  const learned = (wanted: Routes, pending: Before, live: Routes) =>
    atOnce(learnedRoutes(desired(wanted), pending, holds(live), isServer, 1000));

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
