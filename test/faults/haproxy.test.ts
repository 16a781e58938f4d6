import { haproxyFaults } from "./haproxy.js";
import { ownPuppetdb } from "./ledger.js";
import { machineFaults } from "./machine.js";
import { secrets } from "./secrets.js";

const puppetdb = ownPuppetdb("3 HAProxy");
haproxyFaults(puppetdb);
machineFaults(puppetdb);
secrets(puppetdb);
