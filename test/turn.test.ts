// The lock beside a file that several processes change: one at a time, and nobody waits for a process that has died.

import { mkdtemp, readdir, readFile, rm, symlink, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, expect, test } from "vitest";
import { takeTurn } from "../src/target/turn.js";
import { run } from "./support/child.js";
import { patient } from "./support/patience.js";

let folder: string;
let file: string;
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "sasori-turn-"));
  file = path.join(folder, "priority.map");
});
afterEach(() => rm(folder, { recursive: true }));

/** The lock of another process, with other content. */
async function lockWith(changes: object): Promise<void> {
  const turn = await takeTurn(file, 0);
  const holder = JSON.parse(await readFile(`${file}.lock`, "utf8"));
  await turn.end();
  await writeFile(`${file}.lock`, JSON.stringify({ ...holder, ...changes }));
}

test("gives each its turn, one after the other, and leaves nothing behind", async () => {
  let holders = 0;
  let most = 0;
  const one = async () => {
    const turn = await takeTurn(file, patient(20_000));
    holders += 1;
    most = Math.max(most, holders);
    await sleep(1); // Others look meanwhile.
    holders -= 1;
    await turn.end();
  };
  await lockWith({ pid: 2 ** 30 }); // All find that of a process which is gone, and take it away, at once.
  await Promise.all(Array.from({ length: 40 }, one));
  expect(most).toBe(1);
  expect(await readdir(folder)).toEqual([]);
});

test("leaves no lock behind on a full disk, which would keep everybody waiting when there is space again", async () => {
  const script = path.join(folder, "take.mjs");
  const built = new URL("../dist/src/target/turn.js", import.meta.url).href;
  await writeFile(
    script,
    `import { readdirSync, unlinkSync } from "node:fs";
     import { takeTurn } from "${built}";
     const [, , disk] = process.argv;
     const failure = await takeTurn(disk + "/priority.map", 0).catch((error) => error);
     const left = readdirSync(disk);
     unlinkSync(disk + "/filler");
     await (await takeTurn(disk + "/priority.map", 0)).end();
     console.log(JSON.stringify({ code: failure.code, left }));`,
  );
  const disk = path.join(folder, "disk");
  const inside = `mkdir ${disk}; mount -t tmpfs -o size=64k none ${disk}; head -c 1M /dev/zero > ${disk}/filler 2>${disk}.log || true; exec ${process.execPath} ${script} ${disk}`;
  const flags = process.getuid?.() === 0 ? "-m" : "-Urm";
  const said = await run("unshare", [flags, "sh", "-ec", inside]);
  expect(JSON.parse(said)).toEqual({ code: "FILE_FULL", left: ["filler"] });
});

test("takes a link for the file that it leads to", async () => {
  await writeFile(file, "");
  const linked = path.join(folder, "link.map");
  await symlink(file, linked);
  const turn = await takeTurn(linked, 0);
  await expect(takeTurn(file, 0)).rejects.toMatchObject({ code: "BUSY" });
  await turn.end();
  await (await takeTurn(file, 0)).end();
});

test.each([
  { what: "a process that is gone", changes: { pid: 2 ** 30 } },
  { what: "an earlier process of the same number", changes: { started: "1" } },
])("goes on at once behind $what", async ({ changes }) => {
  await lockWith(changes);
  await (await takeTurn(file, patient(1_000))).end();
});

test.each([
  { what: "a process that runs", changes: {}, who: `process ${process.pid}` },
  { what: "a process elsewhere", changes: { place: "another machine", pid: 2 ** 30 }, who: "process" },
  { what: "nobody knows whom", content: "", who: "another process" },
])("waits for $what as long as it may, and says for whom", async ({ changes, content, who }) => {
  await lockWith(changes ?? {});
  if (content !== undefined) await writeFile(`${file}.lock`, content);
  const refused = await takeTurn(file, 100).catch((error: unknown) => error);
  expect(refused).toMatchObject({ code: "BUSY", message: expect.stringContaining(`${file}.lock`) });
  expect(String(refused)).toContain(who);
});

test.each([
  { place: "another machine", pid: process.pid },
  { place: "", pid: 0 },
])("forgets a lock that is too old, where nobody can ask for its holder", async (changes) => {
  await lockWith(changes);
  const old = new Date(Date.now() - 61_000);
  await utimes(`${file}.lock`, old, old);
  await (await takeTurn(file, patient(1_000))).end();
  expect(await readdir(folder)).toEqual([]);
});

test("waits no longer where somebody has put something else in the place of the lock", async () => {
  await run("mkfifo", [`${file}.lock`]);
  await expect(takeTurn(file, 100)).rejects.toMatchObject({
    code: "BUSY",
    message: expect.stringContaining("priority.map.lock"),
  });
  await rm(`${file}.lock`);
  await symlink("/dev/zero", `${file}.lock`);
  await expect(takeTurn(file, 100)).rejects.toMatchObject({ code: "BUSY" });
});

test("says why no lock can be made", async () => {
  await expect(takeTurn(path.join(folder, "away", "x.map"), 0)).rejects.toMatchObject({
    code: "FILE_WRITE",
    message: expect.stringContaining("does not exist: create it"),
  });
});
