// The log, where whoever reads it stops, or the disk is full.

import { closeSync, constants as fs, openSync, readSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { expect, test } from "vitest";
import { newLog } from "../src/log.js";
import { run } from "./support/child.js";

async function inFolder(use: (folder: string) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(path.join(tmpdir(), "sasori-log-"));
  await use(folder).finally(() => rm(folder, { recursive: true }));
}

const parsed = (text: string) =>
  text
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as Record<string, unknown>);

test("writes each line once, in their order", () =>
  inFolder(async (folder) => {
    const file = path.join(folder, "log");
    const descriptor = openSync(file, "w");
    const log = newLog("info", descriptor);
    for (let index = 0; index < 1_000; index += 1) log.info({ index }, "a line");
    log.debug("not of this level");
    await expect.poll(async () => parsed(await readFile(file, "utf8")).length).toBe(1_000);
    const lines = parsed(await readFile(file, "utf8"));
    expect(lines.map(({ index }) => index)).toEqual(Array.from(lines.keys()));
    expect(lines[0]).toMatchObject({ level: "info", msg: "a line" });
    closeSync(descriptor);
  }));

/** A pipe with its descriptors. */
async function withPipe(flags: number, use: (pipe: Pipe) => Promise<void>): Promise<void> {
  await inFolder(async (folder) => {
    const file = path.join(folder, "pipe");
    await run("mkfifo", [file]);
    const openReader = () => openSync(file, fs.O_RDONLY | fs.O_NONBLOCK);
    const reader = openReader();
    const descriptor = openSync(file, fs.O_WRONLY | flags);
    await use({ reader, descriptor, openReader }).finally(() => closeSync(descriptor));
  });
}

interface Pipe {
  reader: number;
  descriptor: number;
  openReader(): number;
}

/** Returns a function that reads what is there, and returns all that was read so far. */
function readerOf(descriptor: number): () => string {
  const buffer = Buffer.alloc(65_536);
  let text = "";
  return () => {
    try {
      text += buffer.toString("latin1", 0, readSync(descriptor, buffer));
    } catch {} // EAGAIN: nothing is there yet.
    return text;
  };
}

test.each([
  ["does not block", fs.O_NONBLOCK],
  ["blocks", 0],
])("a reader that stops costs lines, and nothing else: a pipe that %s", (_, flags) =>
  withPipe(flags, async ({ reader, descriptor }) => {
    const log = newLog("info", descriptor);
    const LINES = 2_000;
    for (let index = 0; index < LINES; index += 1) log.info({ index, text: "x".repeat(1_000) });
    const read = readerOf(reader);
    await expect.poll(() => read().includes('"lost"'), { interval: 1 }).toBe(true);
    const lost = Number(/"lost":(\d+)/.exec(read())?.[1]);
    expect(lost).toBeGreaterThan(0);
    const count = () => read().split("\n").length - 1;
    await expect.poll(count, { interval: 1 }).toBe(LINES - lost + 1);
    expect(parsed(read()).length).toBe(LINES - lost + 1);
    closeSync(reader);
  }),
);

test("a reader that goes and comes back gets the next lines, and how many it has missed", () =>
  withPipe(0, async ({ reader, descriptor, openReader }) => {
    const log = newLog("info", descriptor);
    let [current, read] = [reader, readerOf(reader)];
    let all = "";
    const goAndComeBack = async () => {
      closeSync(current);
      log.info("nobody reads this");
      await readFile("/dev/null"); // It takes its turn behind the write, or beside it: then the next time shows it.
      current = openReader();
      read = readerOf(current);
      const logAgain = () => {
        log.info("after");
        return read();
      };
      await expect.poll(logAgain).toContain("after");
      all += read();
      return all;
    };
    await expect.poll(goAndComeBack).toMatch(/"lost":[1-9]/);
    expect(all).toMatch(/^\n?\{.*after/m);
    closeSync(current);
  }));
