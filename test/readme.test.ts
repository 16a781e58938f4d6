// The README is held to the code: every error code and metric is in it, it names none that is not there, and every
// dependency has its reason. So are the gateway's variables, which docs/gateway.md lists.

import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { chapter, codesIn, readme } from "./support/readme.js";

const read = (name: string) => readFileSync(new URL(`../${name}`, import.meta.url), "utf8");

const unique = (names: Iterable<string>) => [...new Set(names)].sort();

describe("the README", () => {
  test('names every error code under "When things break", and no other', () => {
    const declared = /export type ErrorCode =([^;]*);/.exec(read("src/errors.ts"))?.[1] ?? "";
    const codes = unique(Array.from(declared.matchAll(/"([A-Z_]+)"/g), ([, code]) => code ?? ""));
    expect(codesIn(chapter("When things break"))).toEqual(codes);
  });

  test("names every metric of sasori's own, and no other", () => {
    const declared = unique(
      Array.from(read("src/http/metrics.ts").matchAll(/"(sasori_[a-z_]+)"/g), ([, name]) => name ?? ""),
    );
    const listed = unique(
      Array.from(chapter("Metrics").matchAll(/`(sasori_[a-z_]+)/g), ([, name]) => name ?? ""),
    );
    expect(listed).toEqual(declared);
    for (const [, name = ""] of readme.matchAll(/`(sasori_[a-z_]+)/g)) expect(declared).toContain(name);
  });

  test("gives every runtime dependency its reason, and the lock file pins all that they bring", () => {
    const { dependencies } = JSON.parse(read("package.json")) as { dependencies: Record<string, string> };
    for (const name of Object.keys(dependencies)) {
      // fastify's plugins go by their last names.
      const word = name.replace(/^@?fastify[/-](type-provider-)?/, "");
      expect(chapter("Working on it")).toMatch(new RegExp(`\\b${word}\\b`));
    }
    const { packages } = JSON.parse(read("package-lock.json")) as {
      packages: Record<
        string,
        { version?: string; integrity?: string; hasInstallScript?: boolean; dev?: boolean }
      >;
    };
    for (const [place, { integrity, hasInstallScript, dev }] of Object.entries(packages)) {
      if (place === "") continue;
      expect([place, integrity]).toEqual([place, expect.stringMatching(/^sha512-/)]);
      // Nothing that runs in production runs anything when it is installed.
      if (!dev) expect([place, hasInstallScript]).toEqual([place, undefined]);
    }
  });
});

describe("docs/gateway.md", () => {
  test("names every variable of haproxy.cfg with its default, and no other", () => {
    const config = read("haproxy/haproxy.cfg").replace(/^ *#.*$/gm, "");
    const used = [
      ...config.matchAll(/\$\{(\w+)(?:-([^}]*))?\}|(?:defined\(|presetenv )(\w+)/g),
      ...read("haproxy/heal.lua").matchAll(/getenv\("(\w+)"\)/g),
    ];
    const any = (text: string) => text.replace(/^(MASTER|master)\d+/, "$1<n>");
    const table = read("docs/gateway.md").split("## Variables\n")[1]?.split("## ")[0] ?? "";
    const words = (cell = "") => Array.from(cell.matchAll(/`([^`]+)`|none|required/g), ([, word]) => word);
    const rows = Array.from(table.matchAll(/^\| (`[^|]+) \| ([^|]+) \|/gm)).flatMap(([, names, defaults]) =>
      words(names).map((name, index) => [name, words(defaults)[index]] as const),
    );
    expect(unique(rows.map(([name = ""]) => name))).toEqual(
      unique(used.map(([, name, , asked]) => any(name ?? asked ?? ""))),
    );
    const fallbacks = used.flatMap(([, name, value]) =>
      value && value !== "none" ? [`${any(name ?? "")}=${any(value)}`] : [],
    );
    expect(rows.map(([name, value]) => `${name}=${value}`)).toEqual(
      expect.arrayContaining(unique(fallbacks)),
    );
  });
});
