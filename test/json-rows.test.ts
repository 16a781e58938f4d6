import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { JsonRows } from "../src/source/json-rows.js";

const URL = "http://puppetdb.example/pdb/query/v4/factsets";

/** Takes the pieces one after the other and ends; returns all rows that were passed on. */
function readRows(...pieces: string[]): unknown[] {
  const rows: unknown[] = [];
  const reader = new JsonRows(URL, (batch) => rows.push(...batch));
  for (const piece of pieces) reader.push(piece);
  reader.end();
  return rows;
}

const incomplete = (what: string | RegExp = "") =>
  expect.objectContaining({
    code: "PUPPETDB_BODY",
    message: expect.stringMatching(typeof what === "string" ? escaped(what) : what),
  });
const escaped = (text: string) => new RegExp(text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));

// Texts that look like the end of a row, a string or the array, and others.
const text = fc.oneof(
  fc.string({
    unit: fc.constantFrom('"', "\\", "{", "}", "[", "]", ",", ":", " ", "\n", "\u2028", "😀", "é"),
  }),
  fc.string({ unit: "binary" }),
  fc.string(),
);
const { value } = fc.letrec((tie) => ({
  value: fc.oneof(
    { depthSize: "small" },
    text,
    fc.integer(),
    fc.boolean(),
    fc.constant(null),
    fc.array(tie("value"), { maxLength: 3 }),
    fc.dictionary(text, tie("value"), { maxKeys: 3 }),
  ),
}));
const rows = fc.array(fc.dictionary(text, value, { maxKeys: 4 }), { maxLength: 12 });
const space = fc.string({ unit: fc.constantFrom(" ", "\t", "\n", "\r"), maxLength: 3 });

/** JSON text of the rows, with its own white space at every place where JSON allows some. */
const answer = fc.tuple(rows, fc.array(space, { minLength: 1, maxLength: 7 })).map(([list, spaces]) => {
  let turn = 0;
  const gap = () => spaces[turn++ % spaces.length];
  const write = (item: unknown): string => {
    if (Array.isArray(item)) return `[${gap()}${item.map(write).join(`${gap()},${gap()}`)}${gap()}]`;
    if (item === null || typeof item !== "object") return JSON.stringify(item);
    const members = Object.entries(item).map(([key, member]) => {
      return `${JSON.stringify(key)}${gap()}:${gap()}${write(member)}`;
    });
    return `{${gap()}${members.join(`${gap()},${gap()}`)}${gap()}}`;
  };
  return { text: write(list), around: [gap(), gap()] as const };
});

/** The text in as many pieces as there are cuts, and one more. */
function cutAt(whole: string, cuts: readonly number[]): string[] {
  const places = [...new Set(cuts.map((cut) => cut % (whole.length + 1)))].sort((a, b) => a - b);
  return [0, ...places].map((place, index) => whole.slice(place, places[index] ?? whole.length));
}

describe("an answer of PuppetDB, row by row", () => {
  test("gives the rows that JSON.parse gives, in their order, wherever the network cuts it", () => {
    fc.assert(
      fc.property(answer, fc.array(fc.nat(), { maxLength: 20 }), ({ text, around }, cuts) => {
        const whole = around[0] + text + around[1];
        expect(readRows(...cutAt(whole, cuts))).toEqual(JSON.parse(whole));
      }),
      { numRuns: 1_000 },
    );
  });

  test("gives the same rows when every character comes alone", () => {
    fc.assert(
      fc.property(answer, ({ text }) => {
        expect(readRows(...text)).toEqual(JSON.parse(text));
      }),
    );
  });

  test("is refused wherever it stops early", () => {
    fc.assert(
      fc.property(answer, fc.nat(), fc.array(fc.nat(), { maxLength: 5 }), ({ text }, end, cuts) => {
        const prefix = text.slice(0, end % text.length);
        expect(() => readRows(...cutAt(prefix, cuts))).toThrow(incomplete());
      }),
      { numRuns: 1_000 },
    );
  });

  test("is refused when text is glued to its end, whether in the same piece or the next", () => {
    const glued = fc.string({ minLength: 1 }).filter((more) => /[^ \t\r\n]/.test(more));
    fc.assert(
      fc.property(answer, glued, fc.array(fc.nat(), { maxLength: 5 }), ({ text }, more, cuts) => {
        expect(() => readRows(...cutAt(text + more, cuts))).toThrow(incomplete("text after its end"));
      }),
    );
  });

  test("passes rows on while the answer arrives, and keeps none of them", () => {
    const batches: unknown[][] = [];
    const reader = new JsonRows(URL, (batch) => batches.push(batch));
    for (const piece of ['[{"a":1},{"a"', ":2}", ',{"a":3},{"a":4}', "]"]) reader.push(piece);
    reader.end();
    expect(batches.filter((batch) => batch.length > 0)).toEqual([
      [{ a: 1 }],
      [{ a: 2 }],
      [{ a: 3 }, { a: 4 }],
    ]);
  });

  test.each([
    ["nothing", "", "no end"],
    ["only white space", " \n\t", "no end"],
    ["an object", '{"error":"no"}', "no array"],
    ["a number", "1", "no array"],
    ["null", "null", "no array"],
    ["text", "Error: database is down", "no array"],
    ["HTML", "<html><body>503</body></html>", "no array"],
    ["a no-break space in front", "\u00a0[]", "no array"],
    ["two arrays", "[][]", "text after its end"],
    ["a no-break space after the end", "[]\u00a0", "text after its end"],
    ["a missing comma", '[{"a":1}{"a":2}]', ""],
    ["a double comma", '[{"a":1},,{"a":2}]', ""],
    ["a comma in front", '[,{"a":1}]', ""],
    ["a comma at the end", '[{"a":1},]', ""],
    ["only a comma", "[,]", ""],
    ["a colon between rows", '[{"a":1}:{"a":2}]', ""],
    ["brackets of the wrong kind", '[{"a":1]}', ""],
    ["a closing brace too many", '[{"a":1}}]', ""],
    ["an open string", '[{"a":"b]', "no end"],
    ["an open row", '[{"a":1', "no end"],
    ["an unquoted name", "[{a:1}]", ""],
    ["a comment", '[{"a":1}/* more */]', ""],
    ["a line break in a string", '[{"a":"\n"}]', ""],
    ["a number that is none", '[{"a":01}]', ""],
    ["half an array and PuppetDB's error text", '[{"a":1},{"a":2}org.postgresql: canceled', "no end"],
    ["half a row and an error that is JSON", '[{"a":1},{"a{"error":"canceled"}', "no end"],
  ])("refuses %s, in one piece or in many", (_, whole, what) => {
    expect(() => readRows(whole)).toThrow(incomplete(what));
    expect(() => readRows(...whole)).toThrow(incomplete(what));
  });

  test("says where it came from and how it ended, which is where PuppetDB puts its error", () => {
    const rows = JSON.stringify(Array.from({ length: 1_000 }, (_, n) => ({ certname: `node${n}` })));
    const cut = `${rows.slice(0, -9)}ERROR: canceling statement due to statement timeout`;
    expect(() => readRows(cut)).toThrow(incomplete(URL));
    expect(() => readRows(cut)).toThrow(incomplete("canceling statement due to statement timeout"));
  });

  test.each([
    ["a row without an end", '[{"a":"', "x".repeat(1_000), "an endless row"],
    ["a list of numbers without an end", "[", "1,".repeat(500), "an endless row"],
    ["white space between rows without an end", '[{"a":1}', " ".repeat(1_000), "an endless row"],
  ])("gives up on %s before it fills the memory", (_, start, more, what) => {
    const reader = new JsonRows(URL, () => undefined);
    reader.push(start);
    const flood = () => {
      for (let pieces = 0; pieces < 1_000; pieces += 1) reader.push(more);
    };
    expect(flood).toThrow(incomplete(what));
  });

  // Kept and searched again with every piece, this would take longer than a test may.
  test.each([
    ["in front of the array", "", "[]"],
    ["after it", "[]", ""],
  ])("is not held up by megabytes of white space %s", (_, before, after) => {
    const reader = new JsonRows(URL, () => undefined);
    reader.push(before);
    for (let pieces = 0; pieces < 200_000; pieces += 1) reader.push(" ".repeat(50));
    reader.push(after);
    reader.end();
  });
});
