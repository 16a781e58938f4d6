import fc from "fast-check";
import { describe, expect, test } from "vitest";
import {
  type Certname,
  isCertname,
  isMaster,
  type Master,
  NodeMap,
  parseCertname,
  parseMaster,
} from "../src/node-map.js";

const certname = (text: string) => text as Certname;
const master = (text: string) => text as Master;
const seen = (name: string, at: number, at_master = "master1") => ({
  certname: certname(name),
  master: master(at_master),
  at,
  source: "facts" as const,
});

describe("names", () => {
  test.each(["node1.example.com", "_service", "a", "0-1.b_c", "x".repeat(253)])(
    "takes %j as a certname",
    (name) => {
      expect(parseCertname(name)).toBe(name);
    },
  );

  test.each([
    "",
    "a;disable server puppet/master1",
    "x y",
    "#c",
    "<<",
    "a\n",
    "\na",
    "a\\",
    "A.example.com",
    ".hidden",
    "-flag",
    "ü.example.com",
    "x".repeat(254),
    "a\u0000b",
  ])("refuses %j as a certname, whole", (name) => {
    expect(isCertname(name)).toBe(false);
    expect(() => parseCertname(name)).toThrow(/cannot be a map key/);
  });

  test("refuses server names with anything that ends or extends a command", () => {
    for (const name of ["", "a b", "a;b", "a\n", "<<", "a/b", "x".repeat(129)]) {
      expect(isMaster(name)).toBe(false);
      expect(() => parseMaster(name)).toThrow(/cannot be an HAProxy server name/);
    }
    expect(parseMaster("Master_1:8140")).toBe("Master_1:8140");
  });

  test("lets nothing through that HAProxy would read as more than one word", () => {
    const hostile = fc.constantFrom(..." \t\n\r\0;\\#<>\"'/@%$`ü");
    const character = fc.oneof({ weight: 9, arbitrary: fc.constantFrom(..."az09._-:AZ") }, hostile);
    fc.assert(
      fc.property(fc.string({ unit: character, minLength: 1 }), (text) => {
        if (!isCertname(text) && !isMaster(text)) return;
        expect(text).toMatch(/^[A-Za-z0-9_:.-]+$/);
      }),
    );
  });
});

describe("NodeMap", () => {
  test("takes only what is newer than it knows: equal or older never replaces", () => {
    const map = new NodeMap();
    expect(map.observe(seen("a", 10, "master1"))).toBe(true);
    expect(map.observe(seen("a", 10, "master2"))).toBe(false);
    expect(map.observe(seen("a", 9, "master2"))).toBe(false);
    expect(map.get(certname("a"))?.master).toBe("master1");
    expect(map.observe(seen("a", 11, "master2"))).toBe(true);
    expect(map.get(certname("a"))?.master).toBe("master2");
  });

  test("ends with the newest observation whatever the order in which they came", () => {
    const observations = fc.array(
      fc.record({ name: fc.constantFrom("a", "b", "c"), at: fc.nat(50), to: fc.nat(5) }),
    );
    fc.assert(
      fc.property(observations, (given) => {
        const map = new NodeMap();
        for (const { name, at, to } of given) map.observe(seen(name, at, `m${to}`));
        for (const { certname, at } of map.assignments()) {
          expect(at).toBe(Math.max(...given.filter(({ name }) => name === certname).map((one) => one.at)));
        }
        expect(map.size).toBe(new Set(given.map(({ name }) => name)).size);
      }),
    );
  });

  test("remembers each change once, with what the node had before, until it is asked", () => {
    const map = new NodeMap();
    map.observe(seen("a", 1, "master1"));
    map.observe(seen("b", 1, "master1"));
    map.takeChanges();
    map.observe(seen("a", 2, "master2"));
    map.observe(seen("a", 3, "master3"));
    map.observe(seen("b", 2, "master1")); // Seen again at the same master: no change.
    map.observe(seen("c", 1, "master1"));
    map.remove(certname("b"));
    expect([...map.takeChanges()]).toEqual([
      ["a", "master1"],
      ["c", undefined],
      ["b", "master1"],
    ]);
    expect(map.takeChanges().size).toBe(0);
  });
});
