// `sasori doctor`: every precondition, checked one by one, each with what to do about it.
// Promises: it changes nothing, except for a file of its own beside the map, which it removes at once. This file lists
// the checks; what they look at is in checks-host, checks-puppetdb, checks-haproxy and checks-state.

import { type Config, readConfig } from "../config.js";
import { DnsNames } from "../target/dns-names.js";
import { type Check, type Finding, runChecks } from "./check.js";
import { type HaproxyChecks, haproxyChecks, mastersCheck, probeCheck } from "./checks-haproxy.js";
import { daemonCheck, fileChecks, nodeCheck } from "./checks-host.js";
import { puppetdbChecks } from "./checks-puppetdb.js";
import { stateDatabaseChecks } from "./checks-state.js";

export interface Diagnosis {
  outcome: "ok" | "warning" | "failed" | "misconfigured";
  findings: Finding[];
}

/** All checks, in the order in which they are listed. */
function checksFor(config: Config, version: string): Check[] {
  const files = fileChecks(config);
  const puppetdb = puppetdbChecks(config);
  const haproxys: HaproxyChecks[] = [];
  for (const endpoint of config.haproxy)
    haproxys.push(haproxyChecks(endpoint, config, files.mapFile, [...haproxys]));
  return [
    ...puppetdb.all,
    ...files.all,
    ...stateDatabaseChecks(config),
    ...haproxys.flatMap(({ all }) => all),
    ...(haproxys.length > 0 ? [mastersCheck(config, puppetdb.nodes, haproxys)] : []),
    ...(config.probePath === undefined ? [] : [probeCheck(config, haproxys)]),
    daemonCheck(config, version),
  ];
}

/** Checks everything, and reports each finding in the order of the checks. Never rejects. `version` is sasori's own. */
export async function diagnose(
  environment: Readonly<Record<string, string | undefined>>,
  version: string,
  onFinding: (finding: Finding, left: readonly Check[]) => void = () => {},
): Promise<Diagnosis> {
  let config: Config | undefined;
  const configuration: Check = {
    name: "configuration",
    look() {
      config = readConfig(environment);
      const { foreignNames = [] } = config;
      const set = Object.keys(environment).filter((name) => name.startsWith("SASORI_"));
      const own = `valid, ${set.length - foreignNames.length} variables set`;
      const foreign = `; not variables of sasori: ${foreignNames.join(", ")}`;
      return { outcome: "ok", detail: foreignNames.length === 0 ? own : `${own}${foreign}` };
    },
  };
  const first = await runChecks([nodeCheck(), configuration], onFinding);
  if (config === undefined) return { outcome: "misconfigured", findings: first };
  const named = await new DnsNames(config.haproxyNames ?? []).endpoints();
  const all = { ...config, haproxy: [...config.haproxy, ...named] };
  const findings = [...first, ...(await runChecks(checksFor(all, version), onFinding))];
  const worst = (["failed", "warning"] as const).find((outcome) =>
    findings.some((finding) => finding.outcome === outcome),
  );
  return { outcome: worst ?? "ok", findings };
}
