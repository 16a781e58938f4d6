import { defineConfig } from "vitest/config";

// One host, one story: each test goes on where the one before it stopped.
export default defineConfig({
  test: {
    include: ["test/puppetserver/*.test.ts"],
    bail: 1,
    testTimeout: 600_000,
    hookTimeout: 900_000,
    expect: { poll: { timeout: 30_000, interval: 250 } },
  },
});
