// Short names on the command line: no command may move another node than the one that is meant.

import { describe, expect, test } from "vitest";
import { type NodesWith, wholeCertname } from "../src/cli/names.js";
import { type Certname, isCertname, type Master } from "../src/node-map.js";

/** As the daemon lists them: in order, behind the cursor. */
const listOf =
  (names: readonly string[]): NodesWith =>
  async ({ q, cursor, limit }) => {
    const found = [...names].sort().filter((name) => name.includes(q) && name > cursor);
    const nodes = found.slice(0, limit).map((name) => ({
      certname: name as Certname,
      master: "master1" as Master,
      source: "facts" as const,
      since: null,
    }));
    return { nodes, next: found.length > limit ? (nodes.at(-1)?.certname ?? null) : null };
  };
const whole = (typed: string, names: readonly string[]) =>
  wholeCertname(typed as Certname, listOf(names), () => undefined);
const many = (make: (index: string) => string) =>
  Array.from({ length: 150 }, (_, index) => make(String(index).padStart(3, "0")));

describe("a short name", () => {
  test("that is a certname itself stands for itself, however many others hold it", async () => {
    const names = [...many((index) => `d${index}-db.example.com`), "db", "db.example.com"];
    expect(names.every(isCertname)).toBe(true);
    expect(await whole("db", names)).toBe("db");
  });

  test("of several is refused, however many others stand between", async () => {
    const others = many((index) => `web-${index}.web.example.com`).slice(0, 99);
    await expect(whole("web", [...others, "web.a.example.com", "web.b.example.com"])).rejects.toThrow(
      '"web" is short for 2 nodes: web.a.example.com, web.b.example.com',
    );
  });

  test("of one is found behind many that only look like it", async () => {
    const others = many((index) => `web-${index}.web.example.com`);
    expect(await whole("web", [...others, "web.example.com", "web2.example.com"])).toBe("web.example.com");
  });
});
