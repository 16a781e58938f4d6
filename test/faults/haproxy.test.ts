import { gatewayFaults } from "./gateway.js";
import { haproxyFaults } from "./haproxy.js";
import { ownPuppetdb } from "./ledger.js";
import { machineFaults } from "./machine.js";
import { outsiders } from "./outside.js";
import { secrets } from "./secrets.js";

const puppetdb = ownPuppetdb("3 HAProxy");
haproxyFaults(puppetdb);
gatewayFaults(puppetdb);
machineFaults(puppetdb);
outsiders(puppetdb);
secrets(puppetdb);
