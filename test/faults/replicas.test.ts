import { keepLedger } from "./ledger.js";
import { replicaFaults } from "./replicas.js";

keepLedger("4 replicas");
replicaFaults();
