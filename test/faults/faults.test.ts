// `npm run test:faults`: nothing lost, proven by faults. One file, because all parts share one PuppetDB. At the end a
// table is printed: fault, tries, entries lost, requests misrouted and failed, seconds to recover.

import { afterAll, beforeAll } from "vitest";
import { haproxyBinaries } from "../support/parts.js";
import { type PuppetdbServer, startPuppetdb } from "../support/puppetdb-server.js";
import { LONG } from "./arena.js";
import { haproxyFaults } from "./haproxy.js";
import { hostileInput } from "./hostile.js";
import { killFaults } from "./kill.js";
import { printLedger } from "./ledger.js";
import { machineFaults } from "./machine.js";
import { puppetdbFaults } from "./puppetdb.js";
import { secrets } from "./secrets.js";
import { soak } from "./soak.js";
import { twoSasoris } from "./two.js";

let server: PuppetdbServer | undefined;
beforeAll(async () => {
  server = await startPuppetdb();
});
afterAll(async () => {
  await server?.stop();
  printLedger({ haproxy: haproxyBinaries().map(({ version }) => version), form: LONG ? "long" : "short" });
});

const puppetdb = (): PuppetdbServer => {
  if (server === undefined) throw new Error("PuppetDB has not been started");
  return server;
};

killFaults(puppetdb);
puppetdbFaults(puppetdb);
haproxyFaults(puppetdb);
machineFaults(puppetdb);
twoSasoris(puppetdb);
hostileInput(puppetdb);
secrets(puppetdb);
soak(puppetdb);
