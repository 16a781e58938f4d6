import { availableParallelism } from "node:os";
import { defineConfig } from "vitest/config";
import { patient } from "./test/support/patience.js";

export default defineConfig({
  test: {
    include: ["test/*.test.ts", "test/puppetdb/*.test.ts"],
    // A good part of a test is waiting (health checks, schedules), so that a CPU has time for more than one file.
    maxWorkers: Math.min(8, availableParallelism() + 1),
    testTimeout: patient(60_000),
    hookTimeout: patient(150_000),
    // A condition is waited for, not the clock: on a busy machine a second is not much.
    expect: { poll: { timeout: patient(15_000) } },
    reporters: ["./test/support/reporter.ts"],
  },
});
