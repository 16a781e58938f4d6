import { defineConfig } from "vitest/config";

// One stack, one story: each test goes on where the one before it stopped.
export default defineConfig({
  test: { include: ["test/compose/*.test.ts"], bail: 1, testTimeout: 420_000, hookTimeout: 120_000 },
});
