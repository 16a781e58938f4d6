// The state file as a journal, and the rules by which its rows are merged: a kill loses no registration,
// a registration costs one line, and all sasoris that know the same rows agree.

import { appendFile, mkdtemp, readdir, readFile, rm, stat, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import type { Certname, Master } from "../src/node-map.js";
import { Journal } from "../src/state/journal.js";
import { type Change, parseRow, type Row, Rows, toLine } from "../src/state/rows.js";
import { freeze, held, shiftInodes } from "./support/slow-disk.js";

vi.mock("node:fs/promises", async (original) =>
  (await import("./support/slow-disk.js")).slowDisk(await original()),
);

let folder = "";
let file = "";
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "sasori-state-"));
  file = path.join(folder, "state.json");
});
afterEach(() => rm(folder, { recursive: true, force: true }));

const node = (index: number) => `agent-${index}.site-one.example.com` as Certname;
const registered = (index: number, master: string, at = 1_000 + index, reason?: string): Change => ({
  kind: "route",
  key: node(index),
  at,
  value: { master: master as Master, source: "registration", reason },
});
const signal = () => AbortSignal.timeout(10_000);
const load = async () => {
  const journal = new Journal(file);
  const rows = await journal.load();
  return {
    journal,
    masters: new Map(rows.map((row) => [row.key, (row.value as { master?: string })?.master])),
  };
};

/** How often other work got its turn. */
async function turnsDuring(work: () => Promise<unknown>): Promise<number> {
  let [turns, isDone] = [0, false];
  const turn = () => {
    turns += 1;
    if (!isDone) setImmediate(turn);
  };
  setImmediate(turn);
  await work();
  isDone = true;
  return turns;
}

describe("the state file", () => {
  test("grows by what changes, and is written anew without the lines that are no longer true", async () => {
    const journal = new Journal(file);
    await journal.save(Array.from({ length: 3_000 }, (_, index) => registered(index, "master1")));
    const { size, ino } = await stat(file);
    await journal.save([registered(7, "master2", 5_000)]);
    const after = await stat(file);
    expect({ grown: after.size - size < 200, ino: after.ino }).toEqual({ grown: true, ino });
    let largest = 0;
    for (let round = 0; round < 40; round += 1) {
      await journal.save(
        Array.from({ length: 500 }, (_, index) => registered(index, "master3", 6_000 + round)),
      );
      largest = Math.max(largest, (await stat(file)).size);
    }
    expect(largest).toBeLessThan(size * 2.5);
    const { masters } = await load();
    expect([masters.size, masters.get(node(499)), masters.get(node(500))]).toEqual([
      3_000,
      "master3",
      "master1",
    ]);
  });

  test("does not grow for ever with nodes that come and go, and keeps what is in force", async () => {
    const { journal } = await load();
    await journal.save([registered(0, "master1", 1)]);
    const gone = (index: number): Change => ({
      kind: "removed",
      key: node(index),
      at: index,
      value: { at: index },
    });
    const count = 10_000;
    for (let from = 0; from < 6 * count; from += count)
      await journal.save(Array.from({ length: count }, (_, index) => gone(from + index)));
    expect(journal.rows.size).toBeLessThanOrEqual(40_001);
    const { journal: next, masters } = await load();
    expect([next.rows.size, masters.get(node(0))]).toEqual([journal.rows.size, "master1"]);
    expect(next.rows.get({ kind: "removed", key: node(6 * count - 1) })).toBeDefined();
  });

  test("is not written when nothing has changed", async () => {
    const { journal } = await load();
    await journal.save([]);
    expect(await readdir(folder)).toEqual([]);
    await journal.save([registered(1, "master1")]);
    const { mtimeNs } = await stat(file, { bigint: true });
    await journal.save([registered(1, "master1")]);
    expect((await stat(file, { bigint: true })).mtimeNs).toBe(mtimeNs);
  });

  test("loses nothing that was saved when its writer is killed at any byte of the next line", async () => {
    const { journal } = await load();
    await journal.save([registered(1, "master1")]);
    const { size } = await stat(file);
    await journal.save([registered(2, "master2")]);
    const whole = await readFile(file);
    for (let length = size; length < whole.length; length += 1) {
      await writeFile(file, whole);
      await truncate(file, length);
      const { journal: next, masters } = await load();
      expect([length, next.trouble, [...masters]]).toEqual([length, undefined, [[node(1), "master1"]]]);
      await next.save([registered(3, "master3")]);
      expect([...(await load()).masters.keys()].sort()).toEqual([node(1), node(3)]);
    }
  });

  test("loses a line that was damaged, and no other, and a copy of all is set aside", async () => {
    const { journal } = await load();
    await journal.save([1, 2, 3].map((index) => registered(index, "master1")));
    const text = await readFile(file, "utf8");
    const broken = text.replace(`${node(2)}","at":1002`, `${node(2)}","at":9002`);
    expect(broken).not.toBe(text);
    await writeFile(file, broken);
    const { journal: next, masters } = await load();
    expect([...masters.keys()]).toEqual([node(1), node(3)]);
    const { message = "" } = next.trouble ?? {};
    expect(message).toMatch(/^1 entry \(line 3: its checksum is wrong\) of the state file/);
    const aside = (await readdir(folder)).find((name) => name.includes(".broken-")) ?? "";
    expect(await readFile(path.join(folder, aside), "utf8")).toBe(broken);
    for (let start = 0; start < 3; start += 1) expect((await load()).journal.trouble?.message).toBe(message);
    expect((await readdir(folder)).filter((name) => name.includes(".broken-"))).toEqual([aside]);
    await next.save([]);
    expect(await readFile(file, "utf8")).not.toContain(node(2));
  });

  test("of any size is read as it was written, and whoever asks meanwhile is answered", async () => {
    const count = 60_000;
    const changes = Array.from({ length: count }, (_, index) =>
      registered(index, "master1", index, "é".repeat(200)),
    );
    const { journal } = await load();
    expect(await turnsDuring(() => journal.record(changes))).toBeGreaterThan(3);
    expect(await turnsDuring(() => journal.write())).toBeGreaterThan(3);
    const again = new Journal(file);
    expect(await turnsDuring(() => again.load())).toBeGreaterThan(3);
    expect([again.trouble, again.rows.size]).toEqual([undefined, count]);
    expect([...again.rows].map(toLine)).toEqual([...journal.rows].map(toLine));
  });

  test("with a line that never ends loses that line, and no other", async () => {
    const { journal } = await load();
    await journal.save([registered(1, "master1")]);
    await appendFile(file, `${"x".repeat(1_000_000)}\n${toLine(parseRow(registered(2, "master2")))}`);
    const { journal: next, masters } = await load();
    expect([...masters.keys()]).toEqual([node(1), node(2)]);
    expect(next.trouble?.message).toMatch(/^1 entry \(line 3: its checksum is wrong\)/);
  });

  test("never grows beyond what is read: it is written anew before", async () => {
    const { journal } = await load();
    await journal.save([registered(1, "master1")]);
    await truncate(file, 2 * 1024 ** 3); // No disk holds it: it is a hole.
    await journal.save([registered(2, "master2")]);
    expect((await stat(file)).size).toBeLessThan(1_000);
    expect([...(await load()).masters.keys()]).toEqual([node(1), node(2)]);
  });

  test("keeps what the guards of many replicas remember", async () => {
    const { journal } = await load();
    const sizes = Array.from({ length: 300 }, (_, day) => ({ at: 1_000 + day, size: 1_000 - day }));
    await journal.save([{ kind: "sizes", key: "guard", value: { forgottenAt: 0, sizes } }]);
    const [row] = await new Journal(file).load();
    expect(row).toMatchObject({ kind: "sizes", value: { sizes } });
  });

  test("of an earlier sasori is taken over", async () => {
    const at = new Date(Date.now() - 60_000).toISOString();
    const observations = [{ certname: node(1), master: "master1", at, source: "registration" }];
    const stones = [{ certname: node(3), at, since: at }];
    const sizes = [{ at, size: 100 }];
    const old = {
      version: 1,
      observations,
      homes: [[node(2), "master2"]],
      tombstones: stones,
      ended: stones,
      sizes,
    };
    await writeFile(file, JSON.stringify(old, null, 1));
    const { journal } = await load();
    await journal.save([registered(4, "master1")]);
    const rows = await new Journal(file).load();
    expect(rows.map(({ kind, key }) => `${kind} ${key}`).sort()).toEqual([
      `ended ${node(3)}`,
      `home ${node(2)}`,
      `removed ${node(3)}`,
      `route ${node(1)}`,
      `route ${node(4)}`,
      "sizes guard",
    ]);
  });

  test("that two write in the same moment is read by both", async () => {
    const journals = [new Journal(file), new Journal(file)] as const;
    for (let round = 0; round < 60; round += 1) {
      await Promise.all(journals.map((one, index) => one.save([registered(2 * round + index, "master1")])));
      // At first both write the file anew, and one overwrites the other's.
      for (const one of [...journals, ...journals, ...journals]) {
        await one.readOthers(signal());
        await one.save([]);
      }
      expect([round, ...journals.map(({ rows }) => rows.size)]).toEqual([
        round,
        2 * round + 2,
        2 * round + 2,
      ]);
    }
  });

  test("that somebody replaces by what cannot be understood is set aside, and only then written anew", async () => {
    const { journal } = await load();
    await journal.save([registered(1, "master1")]);
    const whole = await readFile(file, "utf8");
    const damaged = `${whole}${toLine(parseRow(registered(2, "master2"))).replace("master2", "master3")}`;
    const kept = ["sasori-state 3\nof a newer sasori\n", damaged];
    for (const text of kept) {
      await writeFile(file, text);
      await journal.readOthers(signal());
      await journal.save([]);
      expect(await readFile(file, "utf8")).toBe(whole);
      expect(journal.trouble?.code).toBe("STATE_FILE");
    }
    const aside = (await readdir(folder)).filter((name) => name.includes(".broken-"));
    const texts = await Promise.all(aside.map((name) => readFile(path.join(folder, name), "utf8")));
    expect(texts.sort()).toEqual(kept.sort());
  });

  test("that somebody damages stays in its place until the new one replaces it, also where there are no links", async () => {
    const { journal } = await load();
    await journal.save([registered(1, "master1")]);
    await appendFile(file, "no row\n");
    await journal.readOthers(signal());
    const thaw = freeze(path.join(folder, `.${path.basename(file)}.`), "writes");
    const saved = journal.save([]);
    let seen = "";
    for (let look = 0; look < 100; look += 1) seen = await readFile(file, "utf8").catch(() => "gone");
    thaw();
    await saved;
    expect(seen).toContain(node(1));
    expect(await readFile(file, "utf8")).not.toContain("no row");
  });

  test("is written anew with what another one has added, who may be killed before it can look", async () => {
    const [one, two] = [new Journal(file), new Journal(file)];
    await one.save([registered(1, "master1")]);
    await two.load();
    await two.save([registered(2, "master2")]);
    const { ino } = await stat(file);
    const many = Array.from({ length: 600 }, (_, index) => 10 + index);
    for (let at = 3_000; (await stat(file)).ino === ino; at += 1)
      await one.save(many.map((index) => registered(index, "master1", at)));
    expect((await load()).masters.get(node(2))).toBe("master2");
    expect(await one.readOthers(signal())).toMatchObject([{ key: node(2) }]);
  });

  test.each(["adds a line", "writes it anew, too"])(
    "is written anew, while another one %s, confirms that and is killed: nothing is lost",
    async (what) => {
      const [one, other] = [new Journal(file), new Journal(file)];
      const many = Array.from({ length: 600 }, (_, index) => 10 + index);
      const save = (journal: Journal, at: number) =>
        journal.save(many.map((index) => registered(index, "master1", at)));
      if (what === "adds a line") await other.save([registered(1, "master1")]);
      for (const at of [1, 2, 3]) await save(one, at); // The next one is the one too many.
      if (what !== "adds a line") await other.load();
      const thaw = freeze(path.join(folder, `.${path.basename(file)}.`), "writes");
      const saved = save(one, 4);
      await expect.poll(held).toBe(1);
      const { ino } = await stat(file);
      freeze("nothing", "writes"); // What is held stays held.
      if (what === "adds a line") await other.save([registered(2, "master2")]);
      else
        await other.save([
          registered(2, "master2"),
          ...many.map((index) => registered(index, "master3", 2_000_000)),
        ]);
      expect((await stat(file)).ino === ino).toBe(what === "adds a line");
      thaw();
      await saved;
      expect((await load()).masters.get(node(2))).toBe("master2");
      expect(await one.readOthers(signal())).toContainEqual(expect.objectContaining({ key: node(2) }));
      expect((await load()).masters.get(node(600))).toBe(what === "adds a line" ? "master1" : "master3");
    },
  );

  test("is written also where a file has another inode each time", async () => {
    const steady = shiftInodes();
    try {
      const { journal } = await load();
      for (const index of [1, 2, 3]) await journal.save([registered(index, "master1")]);
    } finally {
      steady();
    }
    expect([...(await load()).masters.keys()]).toEqual([1, 2, 3].map(node));
  });

  test("tells what another one has written also if that was read too late for who had asked", async () => {
    const [one, two] = [new Journal(file), new Journal(file)];
    await one.save([registered(1, "master1")]);
    await two.load();
    await one.save([registered(2, "master2")]);
    const thaw = freeze(file, "reads");
    const patience = new AbortController();
    const asked = two.readOthers(patience.signal);
    patience.abort(new Error("too late"));
    await expect(asked).rejects.toThrow("does not answer (too late)");
    thaw();
    const told = () => two.readOthers(signal()).catch(() => []);
    await expect.poll(told).toMatchObject([{ key: node(2) }]);
    expect(await told()).toEqual([]);
  });

  test("with a bad line does not keep sasori from starting when the file system hangs while it is copied", async () => {
    const { journal } = await load();
    await journal.save([registered(1, "master1")]);
    await appendFile(file, "no row\n");
    const thaw = freeze(path.join(folder, `.${path.basename(file)}.broken`), "writes");
    try {
      const { journal: next, masters } = await load();
      expect([...masters.keys()]).toEqual([node(1)]);
      expect(next.trouble?.message).toContain("its file system has not answered");
      thaw();
      await next.save([registered(2, "master2")]);
      expect(next.trouble?.message).toContain("A copy of the whole file was set aside");
    } finally {
      thaw();
    }
    expect([...(await load()).masters.keys()]).toEqual([node(1), node(2)]);
  });

  test("that could not be read at the start is taken over as soon as it can, and nothing of it is lost", async () => {
    const { journal } = await load();
    await journal.save([registered(1, "master1")]);
    const [before, thaw] = [held(), freeze(file, "reads")];
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    try {
      const loading = load();
      await expect.poll(held).toBeGreaterThan(before);
      vi.advanceTimersByTime(15_000);
      const { journal: next, masters } = await loading;
      expect([masters.size, next.trouble?.code]).toEqual([0, "STATE_FILE"]);
      vi.useRealTimers();
      thaw();
      expect(await next.readOthers(signal())).toMatchObject([{ key: node(1) }]);
      expect(next.trouble).toBeUndefined();
      await next.save([registered(2, "master2")]);
    } finally {
      vi.useRealTimers();
      thaw();
    }
    expect([...(await load()).masters.keys()]).toEqual([node(1), node(2)]);
  });

  test("that two share ends with what both were told, whoever wrote last or wrote it anew", async () => {
    const [one, two] = [new Journal(file), new Journal(file)];
    await one.save([registered(1, "master1")]);
    await two.load();
    await two.save([registered(2, "master2")]);
    await one.save([registered(3, "master3")]); // It has not seen what the other one wrote.
    expect(await one.readOthers(signal())).toMatchObject([{ key: node(2) }]);
    expect(await two.readOthers(signal())).toMatchObject([{ key: node(3) }]);
    await rm(file); // As if a third had written it anew without them.
    await appendFile(file, `sasori-state 2\n${toLine(parseRow(registered(4, "master1")))}`);
    for (const journal of [one, two, one]) {
      await journal.readOthers(signal());
      await journal.save([]);
    }
    const { mtimeNs } = await stat(file, { bigint: true });
    for (const journal of [one, two]) {
      await journal.readOthers(signal());
      await journal.save([]);
      expect(journal.rows.size).toBe(4);
    }
    expect([...(await load()).masters.keys()].sort()).toEqual([1, 2, 3, 4].map(node));
    expect((await stat(file, { bigint: true })).mtimeNs).toBe(mtimeNs);
  });
});

describe("rows of all sasoris", () => {
  const anyRow: fc.Arbitrary<Row> = fc
    .record({
      kind: fc.constantFrom("route" as const, "home" as const),
      index: fc.nat(2),
      at: fc.nat(3),
      master: fc.option(fc.constantFrom("master1", "master2", "master3")),
    })
    .map(({ kind, index, at, master }) => {
      const source = kind === "route" ? { source: "registration" } : {};
      return parseRow({ kind, key: node(index), at, value: master === null ? null : { master, ...source } });
    });
  const stateOf = (rows: readonly Row[]) => {
    const known = new Rows();
    for (const row of rows) known.take(row);
    return new Map([...known].map((row) => [`${row.kind} ${row.key}`, row]));
  };

  test("say the same in whatever order, and however often, they come", () => {
    fc.assert(
      fc.property(fc.array(anyRow, { maxLength: 12 }), fc.func(fc.nat()), (rows, rank) => {
        const shuffled = [...rows, ...rows].sort(
          (a, b) => rank(a, rows.indexOf(a)) - rank(b, rows.indexOf(b)),
        );
        expect(stateOf(shuffled)).toEqual(stateOf(rows));
      }),
    );
  });

  test("keep an order that was given elsewhere while an older one ended here", () => {
    const here = new Rows();
    const first = parseRow(registered(1, "master1", 1_000));
    here.take(first);
    const over = here.toRow({ kind: "route", key: node(1), value: null }, 9_000);
    if (over === undefined) throw new Error("it is over");
    expect(over.at).toBe(1_000);
    const given = parseRow(registered(1, "master2", 2_000));
    for (const rows of [
      [first, over, given],
      [first, given, over],
    ])
      expect([...stateOf(rows).values()]).toEqual([given]);
    expect([...stateOf([over, first]).values()]).toEqual([over]);
  });

  test("forget the oldest of what is over once there is too much of it, and keep what is in force", () => {
    const rows = new Rows();
    const over = 20_003;
    rows.take(parseRow(registered(0, "master1", 1)));
    for (let index = 0; index < over; index += 1)
      rows.take(parseRow({ kind: "home", key: node(index), at: 1 + index, value: null }));
    rows.prune();
    const [first, second] = rows;
    expect([rows.size, first?.kind, second?.key]).toEqual([20_001, "route", node(3)]);
  });
});
