import { defineConfig } from "vitest/config";
import { patient } from "../support/patience.js";

// One host, one story: each test goes on where the one before it stopped. Two hosts at once are enough for two cores.
export default defineConfig({
  test: {
    include: ["test/packages/*.test.ts"],
    bail: 1,
    maxWorkers: 2,
    testTimeout: patient(240_000),
    hookTimeout: patient(240_000),
  },
});
