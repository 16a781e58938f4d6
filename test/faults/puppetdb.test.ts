import { hostileInput } from "./hostile.js";
import { ownPuppetdb } from "./ledger.js";
import { puppetdbFaults } from "./puppetdb.js";

const puppetdb = ownPuppetdb("2 PuppetDB");
puppetdbFaults(puppetdb);
hostileInput(puppetdb);
