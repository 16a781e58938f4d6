import { defineConfig } from "vitest/config";

// Three files side by side, each with a PuppetDB of its own: most of the time is spent waiting for deadlines.
export default defineConfig({
  test: {
    name: "faults",
    include: ["test/faults/*.test.ts"],
    globalSetup: ["test/faults/report.ts"],
    maxWorkers: 3,
    testTimeout: process.env.FAULTS_LONG === "yes" ? 3_600_000 : 180_000,
    hookTimeout: 180_000,
    disableConsoleIntercept: true,
  },
});
