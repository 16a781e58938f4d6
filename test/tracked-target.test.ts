// One target through several passes, with exact timing: a scripted HAProxy changes at a given moment.

import { afterEach, describe, expect, test, vi } from "vitest";
import { SasoriError } from "../src/errors.js";
import { type Certname, type Master, NodeMap, type Source } from "../src/node-map.js";
import { plansFromChanges } from "../src/plan.js";
import type { Applied, Contents, Fingerprint, Sighting, Target } from "../src/target/target.js";
import { TrackedTarget } from "../src/target/tracked-target.js";
import { atOnce } from "./support/pieces.js";

const { signal } = new AbortController();
const MINUTE = 60_000;

/** Every push replaces the whole map, unless the map was changed since it was read. */
class ScriptedHaproxy implements Target {
  readonly kind = "haproxy";
  readonly name = "haproxy";
  readonly routes: Map<string, string>;
  readonly calls: string[] = [];
  /** What happens before the next push. */
  beforePush = () => {};
  #changes = 0;

  constructor(routes: Map<string, string>) {
    this.routes = routes;
  }

  get #fingerprint(): Fingerprint {
    return { process: "1@1", content: `${this.#changes}:${this.routes.size}` };
  }

  async look(): Promise<Sighting> {
    this.calls.push("look");
    const servers = ["m1", "m2", "m3"].map((name) => ({
      name: name as Master,
      host: name,
      address: name,
      state: "up" as const,
      up: true,
    }));
    return { fingerprint: this.#fingerprint, servers, version: "3.2" };
  }

  async read(): Promise<Contents> {
    this.calls.push("read");
    const routes = new Map(this.routes) as Map<Certname, string>;
    return { fingerprint: this.#fingerprint, routes, rebuild: false };
  }

  replaces = (changes: number) => changes > 0;

  async apply(_plan: unknown, desired: NodeMap, seen: Fingerprint): Promise<Applied> {
    this.calls.push("push");
    const before = this.beforePush;
    this.beforePush = () => {};
    before();
    if (seen.content !== this.#fingerprint.content)
      return { method: undefined, fingerprint: this.#fingerprint, disturbed: true };
    this.routes.clear();
    for (const { certname, master } of desired.assignments()) this.routes.set(certname, master);
    this.#changes += 1;
    return { method: "swap", fingerprint: this.#fingerprint, disturbed: false };
  }
}

/** One pass, without what it learns. */
async function pass(target: TrackedTarget, desired: NodeMap, full = false) {
  atOnce(target.expect(desired.takeChanges(), desired));
  await target.look(full, signal);
  await target.readIfChanged(full, desired, signal);
  await target.readBeforeReplacing(desired, signal);
  const learned = target.learned(desired, () => true);
  await target.settle(desired, plansFromChanges(desired), signal);
  return learned;
}

function observe(map: NodeMap, certname: string, master: string, at: number, source: Source = "facts") {
  map.observe({ certname: certname as Certname, master: master as Master, at, source });
}

/** In sync with two nodes. */
async function tracked() {
  const desired = new NodeMap();
  observe(desired, "a", "m1", 1);
  observe(desired, "b", "m1", 1);
  const haproxy = new ScriptedHaproxy(new Map());
  const target = new TrackedTarget(haproxy);
  await pass(target, desired);
  expect(target.state).toMatchObject({ inSync: true });
  return { desired, haproxy, target };
}

afterEach(() => {
  vi.useRealTimers();
  vi.restoreAllMocks();
});

describe("a target", () => {
  test("keeps what HAProxy learned between the reading and a push that replaces all, for the next pass to learn", async () => {
    const { desired, haproxy, target } = await tracked();
    observe(desired, "a", "m2", 2);
    haproxy.beforePush = () => haproxy.routes.set("c", "m3").set("b", "m2");
    await pass(target, desired);
    expect(haproxy.routes).toEqual(new Map(Object.entries({ a: "m2", b: "m2", c: "m3" })));
    expect(target.state).toMatchObject({ inSync: false });
    expect(await pass(target, desired)).toMatchObject([
      { certname: "b", master: "m2", source: "learned" },
      { certname: "c", master: "m3", source: "learned" },
    ]);
  });

  test("believes an observation that was made during a long push rather than a route learned since", async () => {
    vi.useFakeTimers({ toFake: ["Date"] });
    const { desired, haproxy, target } = await tracked();
    const read = Date.now();
    observe(desired, "a", "m2", 2);
    haproxy.beforePush = () => vi.setSystemTime(read + MINUTE);
    await pass(target, desired, true);
    haproxy.routes.set("b", "m3");
    expect(await pass(target, desired, true)).toMatchObject([{ certname: "b", at: read }]);
  });

  test("is left alone for a minute also when the push that timed out took longer", async () => {
    const { desired, haproxy, target } = await tracked();
    observe(desired, "a", "m2", 2);
    const now = performance.now();
    haproxy.beforePush = () => {
      vi.spyOn(performance, "now").mockReturnValue(now + 2 * MINUTE);
      throw new SasoriError("HAPROXY_TIMEOUT", "no answer");
    };
    await pass(target, desired);
    haproxy.calls.length = 0;
    for (const since of [1_000, MINUTE - 1_000]) {
      vi.spyOn(performance, "now").mockReturnValue(now + 2 * MINUTE + since);
      await pass(target, desired);
      expect(haproxy.calls).toEqual([]);
    }
    vi.spyOn(performance, "now").mockReturnValue(now + 3 * MINUTE + 1);
    await pass(target, desired);
    expect(haproxy.routes.get("a")).toBe("m2");
  });

  test("is not read again and again while only PuppetDB can decide on a node, and gets it then", async () => {
    const desired = new NodeMap();
    observe(desired, "a", "m1", 0, "inherited");
    observe(desired, "b", "m1", 1);
    const haproxy = new ScriptedHaproxy(new Map(Object.entries({ a: "m2", b: "m1" })));
    const target = new TrackedTarget(haproxy);
    await pass(target, desired);
    expect(target).toMatchObject({ settled: true, state: { inSync: false, pending: 1 } });
    haproxy.calls.length = 0;
    await pass(target, desired);
    expect(haproxy.calls).toEqual(["look"]);
    observe(desired, "a", "m1", 1); // The same master: nothing has changed in the map.
    await pass(target, desired);
    expect(haproxy.routes.get("a")).toBe("m1");
    expect(target.state).toMatchObject({ inSync: true, pending: 0 });
  });

  test("shares its plan with one that lacks the same, and nothing else: news for the one do not wait for the other", async () => {
    const desired = new NodeMap();
    observe(desired, "a", "m1", 0, "inherited");
    const held = () => new TrackedTarget(new ScriptedHaproxy(new Map([["a", "m1"]])));
    const [one, other] = [held(), held()];
    for (const target of [one, other]) await pass(target, desired);
    const undecided = new Map([["a" as Certname, "m2" as Master]]);
    const planOf = plansFromChanges(desired);
    for (const target of [one, other]) {
      atOnce(target.expect(undecided, desired));
      await target.settle(desired, planOf, signal);
    }
    atOnce(one.expect(new Map([["b" as Certname, undefined]]), desired));
    expect([one.state.pending, other.state.pending]).toEqual([2, 1]);
  });
});
