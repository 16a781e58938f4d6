// What sasori and the gateway do in the end, whatever happens on the way: a model that knows only "the newest observation
// wins" beside the real programs. A fixed seed, and one that nobody has chosen; the long form is in test/faults/.
// MODEL_SEED and MODEL_STEPS play a history again that a failure has printed: see model/run.ts.

import { describe, expect, test } from "vitest";
import { chosen, playSeed, randomSeed } from "./model/run.js";

const STEPS = 150;

describe("The file and both live maps are what the newest evidence says, and requests are executed where they may be", () => {
  test.each(chosen.seeds ?? [1, randomSeed()])("seed %i", { timeout: 600_000 }, async (seed) => {
    const { compared } = await playSeed(seed, chosen.steps ?? STEPS);
    expect(compared).toBeGreaterThan(1);
  });
});
