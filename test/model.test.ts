// What sasori and the gateway end up with, compared with a model that knows only "the newest observation wins".
// Two histories, always the same; random ones are played by the long form in test/faults/.
// MODEL_SEED and MODEL_STEPS play a history again that a failure has printed: see model/run.ts.

import { describe, expect, test } from "vitest";
import { chosen, playSeed } from "./model/run.js";
import { patient } from "./support/patience.js";

const STEPS = 150;

describe("The file and both live maps are what the newest evidence says, and requests are executed where they may be", () => {
  test.each(chosen.seeds ?? [1, 2])("seed %i", { timeout: patient(600_000) }, async (seed) => {
    const { compared } = await playSeed(seed, chosen.steps ?? STEPS);
    expect(compared).toBeGreaterThan(1);
  });
});
