// Thousands of steps of the model test (test/model.test.ts has a hundred), and in the short form of this suite some hundred.

import { describe, expect, test } from "vitest";
import { chosen, playSeed, randomSeed } from "../model/run.js";
import { LONG } from "./arena.js";
import { enter, keepLedger } from "./ledger.js";

/** The short form plays the same history each time. */
const SEEDS = LONG ? Array.from({ length: 6 }, randomSeed) : [3];
const STEPS = LONG ? 1_500 : 300;

keepLedger("4 model");

describe("Model", () => {
  const seeds = chosen.seeds ?? SEEDS;
  test.each(seeds)(
    "a random history leaves nothing otherwise than the newest evidence says: seed %i",
    async (seed) => {
      const began = performance.now();
      const { compared, requests } = await playSeed(seed, chosen.steps ?? STEPS);
      expect(compared).toBeGreaterThan(1);
      const seconds = (performance.now() - began) / 1000;
      const nothing = { lost: 0, misrouted: 0, failed: 0 };
      enter({
        fault: `a random history, MODEL_SEED=${seed}`,
        tries: compared,
        ...nothing,
        requests,
        seconds,
      });
    },
  );
});
