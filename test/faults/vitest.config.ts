import { defineConfig } from "vitest/config";
import { partIfThere } from "../support/parts.js";
import { patient } from "../support/patience.js";

/** `npm test` runs on PuppetDB 7, this suite on 8 where it is there: TEST_PUPPETDB=7 for the other one. */
const puppetdb = process.env.TEST_PUPPETDB ?? (partIfThere("puppetdb8") === undefined ? "7" : "8");

// Three files side by side, each with a PuppetDB of its own: most of the time is spent waiting for deadlines.
export default defineConfig({
  test: {
    name: "faults",
    // The daemon's tests too, because npm test runs them on PuppetDB 7 only.
    include: ["test/faults/*.test.ts", "test/puppetdb/daemon.test.ts"],
    env: { TEST_PUPPETDB: puppetdb },
    globalSetup: ["test/faults/report.ts"],
    maxWorkers: 3,
    testTimeout: process.env.FAULTS_LONG === "yes" ? 3_600_000 : patient(180_000),
    hookTimeout: patient(180_000),
    expect: { poll: { timeout: patient(30_000) } },
    disableConsoleIntercept: true,
  },
});
