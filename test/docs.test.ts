// What the documents promise about each other and about the program: links lead somewhere, commands and options exist.
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, test } from "vitest";

const documents = execFileSync("git", ["ls-files", "*.md"], { encoding: "utf8" }).trim().split("\n");
const read = (name: string) => readFileSync(name, "utf8");

/** The anchor that GitHub gives a heading. */
const anchorOf = (heading: string) =>
  heading
    .toLowerCase()
    .replace(/[`*[\]]|\([^)]*\)/g, "")
    .replace(/[^\p{L}\p{N}\s_-]/gu, "")
    .trim()
    .replace(/\s/g, "-");

const anchors = (text: string) => [
  ...Array.from(text.matchAll(/^#+ (.+)$/gm), ([, heading = ""]) => anchorOf(heading)),
  ...Array.from(text.matchAll(/<a name="([^"]+)">/g), ([, name = ""]) => name), // puppet-strings writes these
];

describe.each(documents)("%s", (name) => {
  const text = read(name);
  test("links to what is there", () => {
    for (const [, target = ""] of text.matchAll(/\]\(([^)\s]+)\)/g)) {
      if (/^[a-z]+:/.test(target)) continue;
      const [file = "", anchor] = target.split("#");
      const place = file === "" ? name : join(dirname(name), file);
      expect(existsSync(place), `${target} in ${name}`).toBe(true);
      if (anchor !== undefined) expect(anchors(read(place)), `${target} in ${name}`).toContain(anchor);
    }
  });
});

describe("every command line of sasori in a document", () => {
  // The man page is made of the program's own definitions.
  const man = execFileSync(process.execPath, ["dist/src/cli.js", "man"], { encoding: "utf8" }).replaceAll(
    "\\-",
    "-",
  );
  const sections = new Map(
    man
      .split(/^\.SS "sasori /m)
      .slice(1)
      .map((section) => [/^[a-z]+/.exec(section)?.[0] ?? "", section]),
  );
  const global = ["--help", "--version"];

  test.each(documents)("in %s is one that it takes", (name) => {
    const text = read(name);
    const blocks = Array.from(text.matchAll(/^```sh\n([\s\S]*?)^```/gm), ([, block = ""]) =>
      block.split("\n"),
    ).flat();
    const spans = Array.from(
      text.replace(/^```[\s\S]*?^```/gm, "").matchAll(/`([^`]+)`/g),
      ([, span = ""]) => span,
    );
    for (const line of [...blocks, ...spans]) {
      const call = /^(?:\.\/|npm run |docker compose exec sasori )?sasori (?:-- )?([a-z]+)\b([^#|>;]*)/.exec(
        line.trim(),
      );
      if (call === null) continue;
      const [, command = "", rest = ""] = call;
      expect([...sections.keys()], line).toContain(command);
      for (const [option] of rest.matchAll(/--[a-z-]+/g))
        if (!global.includes(option)) expect(sections.get(command), line).toContain(option);
    }
  });
});

test("the README fits two screens", () => {
  expect(read("README.md").split("\n").length).toBeLessThanOrEqual(151);
});
