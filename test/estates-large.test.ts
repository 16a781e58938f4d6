// Estates with many nodes: sasori answers while it unites them. With the real clock.
import { expect, test } from "vitest";
import { NodeMap } from "../src/node-map.js";
import { Estates } from "../src/source/estates.js";
import { Gathering } from "../src/source/reading.js";
import type { Source } from "../src/source/source.js";

const MINUTE = 60_000;
const names = (what: string) => Array.from({ length: 100_000 }, (_, n) => `${what}${n}.example.com`);

test("estates are united in pieces, so that whoever asks meanwhile is answered", async () => {
  const estate = (name: string): Source => {
    const found = new Gathering("full", () => true);
    const at = new Date(Date.now() - MINUTE).toISOString();
    for (const certname of names(name)) found.take("facts", { certname, producer: "master1" }, at, at);
    const { submissions } = found;
    const whole = {
      asOf: 1,
      inactiveCount: 0,
      refused: new Set<string>(),
      withoutProducer: new Set<never>(),
    };
    const active = new Set(submissions.keys());
    const reading = { kind: "full" as const, ...whole, submissions, active, inactive: new Map() };
    const part = { ...reading, kind: "changes" as const, submissions: new Map(), active: undefined };
    return {
      ...{ canGoOn: true, states: () => [], took: () => undefined, close: async () => undefined },
      read: async (kind) => (kind === "full" ? reading : part),
      readNodes: async () => new Map(),
    };
  };
  const estates = new Estates([estate("eu"), estate("us")]);
  const read = async (kind: "full" | "changes") => {
    let answered = 0;
    let isReading = true;
    const ask = (): void => {
      answered += 1;
      if (isReading) setImmediate(ask);
    };
    setImmediate(ask);
    const wanted = { known: new NodeMap(), hasServer: () => true };
    const began = performance.now();
    const { active } = await estates.read(kind, new AbortController().signal, wanted);
    const ms = performance.now() - began;
    isReading = false;
    estates.took(0);
    return { answered, ms, size: active?.size };
  };
  const { answered, size, ms } = await read("full");
  expect(size).toBe(200_000);
  expect(answered).toBeGreaterThan(1);
  // It copies no names. The quickest of some: whatever else runs on this machine may be in the way of one.
  const quiet: number[] = [];
  for (let turn = 0; turn < 20; turn += 1) quiet.push((await read("changes")).ms);
  expect(Math.min(...quiet)).toBeLessThan(ms / 10);
});
