import { heldAwaits } from "./held.js";
import { killFaults } from "./kill.js";
import { ownPuppetdb } from "./ledger.js";
import { soak } from "./soak.js";
import { twoSasoris } from "./two.js";

const puppetdb = ownPuppetdb("1 sasori");
heldAwaits();
killFaults(puppetdb);
twoSasoris(puppetdb);
soak(puppetdb);
