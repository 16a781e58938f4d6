import { availableParallelism } from "node:os";
import { defineConfig } from "vitest/config";
import { isQuick } from "./test/support/parts.js";
import { patient } from "./test/support/patience.js";

/** What `npm run test:quick` leaves out: a browser, a database, many processes, packages, waits of many seconds. */
const SLOW = [
  "agents",
  "agree",
  "cli",
  "dead-master",
  "deploy-*",
  "fleet",
  "gateway",
  "healing",
  "http-api",
  "model",
  "page*",
  "pools",
  "sync",
];

export default defineConfig({
  test: {
    include: ["test/*.test.ts", ...(isQuick ? [] : ["test/puppetdb/*.test.ts"])],
    exclude: isQuick ? SLOW.map((name) => `test/${name}.test.ts`) : [],
    // A good part of a test is waiting (health checks, schedules), so that a CPU has time for more than one file.
    maxWorkers: Math.min(8, availableParallelism() + 1),
    testTimeout: patient(60_000),
    hookTimeout: patient(150_000),
    // A condition is waited for, not the clock: on a busy machine a second is not much.
    expect: { poll: { timeout: patient(15_000) } },
    reporters: ["./test/support/reporter.ts"],
  },
});
