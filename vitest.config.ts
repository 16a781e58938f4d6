import { defineConfig } from "vitest/config";

// Files run side by side, but for those in test/puppetdb: they share one PuppetDB and begin by emptying it.
export default defineConfig({
  test: {
    testTimeout: 30_000,
    hookTimeout: 60_000,
    // A condition is waited for, not the clock: on a busy machine a second is not much.
    expect: { poll: { timeout: 10_000 } },
    projects: [
      { extends: true, test: { name: "sasori", include: ["test/*.test.ts"], sequence: { groupOrder: 0 } } },
      {
        extends: true,
        test: {
          name: "puppetdb",
          include: ["test/puppetdb/*.test.ts"],
          globalSetup: ["test/support/global-setup.ts"],
          fileParallelism: false,
          testTimeout: 60_000,
          sequence: { groupOrder: 1 },
        },
      },
    ],
  },
});
