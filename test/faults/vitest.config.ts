import { defineConfig } from "vitest/config";

// One file, because all of it shares one PuppetDB: `npm run test:faults -- -t "two sasoris"` runs a part.
export default defineConfig({
  test: {
    name: "faults",
    include: ["test/faults/faults.test.ts"],
    testTimeout: 120_000,
    hookTimeout: 120_000,
    disableConsoleIntercept: true,
  },
});
