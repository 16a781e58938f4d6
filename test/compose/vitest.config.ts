import { defineConfig } from "vitest/config";
import { patient } from "../support/patience.js";

// One stack, one story: each test goes on where the one before it stopped.
export default defineConfig({
  test: {
    include: ["test/compose/*.test.ts"],
    bail: 1,
    testTimeout: patient(420_000),
    hookTimeout: patient(120_000),
  },
});
