import { defineConfig } from "vitest/config";
import { patient } from "../support/patience.js";

// One host, one story: each test goes on where the one before it stopped.
export default defineConfig({
  test: {
    include: ["test/puppetserver/*.test.ts"],
    bail: 1,
    testTimeout: patient(200_000),
    hookTimeout: patient(300_000),
    expect: { poll: { timeout: patient(10_000), interval: 250 } },
  },
});
