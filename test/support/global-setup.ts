/**
 * Vitest's global setup: one PuppetDB for the whole test run. A test gets it by
 * `const address = inject("puppetdb")`, then `puppetdbClient(address)`; null means that it has not been fetched,
 * which is only allowed outside of CI.
 */
import type {} from "vitest";
import type { TestProject } from "vitest/node";
import { puppetdbParts } from "./parts.js";
import { type PuppetdbAddress, type PuppetdbServer, startPuppetdb } from "./puppetdb-server.js";

declare module "vitest" {
  interface ProvidedContext {
    puppetdb: PuppetdbAddress | null;
  }
}

let server: PuppetdbServer | undefined;

/** Starts PuppetDB if it is there. Throws when it does not start, and with CI=true when it is not there. */
export async function setup(project: TestProject): Promise<void> {
  try {
    puppetdbParts();
  } catch (error) {
    if (process.env.CI === "true") throw error;
    console.warn(`Tests that need PuppetDB are skipped: ${error instanceof Error ? error.message : error}`);
    project.provide("puppetdb", null);
    return;
  }
  server = await startPuppetdb();
  const { url, tls, postgres } = server;
  project.provide("puppetdb", { url, tls, postgres });
}

/** Ends it and removes its data. */
export async function teardown(): Promise<void> {
  await server?.stop();
}
