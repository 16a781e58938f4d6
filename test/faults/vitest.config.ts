import { defineConfig } from "vitest/config";
import { patient } from "../support/patience.js";

// Three files side by side, each with a PuppetDB of its own: most of the time is spent waiting for deadlines.
export default defineConfig({
  test: {
    name: "faults",
    include: ["test/faults/*.test.ts"],
    globalSetup: ["test/faults/report.ts"],
    maxWorkers: 3,
    testTimeout: process.env.FAULTS_LONG === "yes" ? 3_600_000 : patient(180_000),
    hookTimeout: patient(180_000),
    expect: { poll: { timeout: patient(30_000) } },
    disableConsoleIntercept: true,
  },
});
