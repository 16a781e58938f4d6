// What commands do by themselves where no daemon runs: a pass, a lookup, the nodes of the map file.

import type { Config } from "../config.js";
import { type ErrorCode, type Failure, toFailure } from "../errors.js";
import { resolver } from "../fleet.js";
import type { Desired, Lookup, Node, Nodes } from "../http/api-shapes.js";
import { LOOKUP_DEADLINE_MS, lookUp } from "../http/lookup.js";
import { shown } from "../http/troubles.js";
import { type Certname, isMaster } from "../node-map.js";
import type { SyncRequest } from "../pass-queue.js";
import type { Submission } from "../source/reading.js";
import { assemble, Sync, type SyncParts } from "../sync.js";
import type { Phase, SyncReport } from "../sync-report.js";
import { MapFile } from "../target/map-file.js";
import { progress } from "./command.js";
import { type Address, askDaemon } from "./daemon-client.js";

/** For one node. */
const PUPPETDB_DEADLINE_MS = 20_000;

/** Shorter work shows no progress. */
const PROGRESS_AFTER_MS = 1_000;

/** What a pass that runs here does, step by step. */
const DOING: Record<Phase, string> = {
  look: "looking at the map file and at HAProxy",
  fetch: "reading PuppetDB",
  plan: "comparing",
  file: "writing the map file",
  push: "pushing to HAProxy",
};

/**
 * One pass, by the daemon if it runs. Without it the pass runs here and is a full one, because nobody knows what has
 * changed. Only then is the configuration read.
 */
export async function runPass(
  address: Address,
  configure: () => Promise<Config>,
  wanted: SyncRequest,
): Promise<SyncReport> {
  const began = Date.now();
  let sync: Sync | undefined;
  const timer = setInterval(() => {
    const elapsed = Date.now() - began;
    if (elapsed < PROGRESS_AFTER_MS) return;
    const doing = sync === undefined ? "waiting for the daemon" : DOING[sync.phase ?? "look"];
    progress(`${doing} … ${Math.round(elapsed / 1000)} s`);
  }, 250);
  try {
    const byDaemon = await askDaemon<SyncReport>(address, "POST", "/api/v1/sync", wanted);
    if (byDaemon !== undefined) return byDaemon;
    const parts = assemble(await configure());
    sync = new Sync(parts);
    // A pass is useful even without what an earlier run has left.
    await sync
      .restore(wanted)
      .catch((error: unknown) => process.stderr.write(`sasori: ${toFailure(error).message}\n`));
    try {
      return await sync.request({ ...wanted, full: true });
    } finally {
      await parts.state.close();
      await parts.puppetdb.close();
    }
  } finally {
    clearInterval(timer);
    progress();
  }
}

export async function lookUpHere(config: Config, certname: Certname): Promise<Lookup> {
  const parts = assemble(config);
  try {
    const { names, instances } = parts;
    if (names !== undefined) instances.push(...(await names.dns.endpoints()).map(names.make));
    return await lookUp(certname, askPuppetdb(config, parts, certname), parts);
  } finally {
    await parts.puppetdb.close();
  }
}

async function askPuppetdb(
  config: Config,
  { puppetdb, instances }: SyncParts,
  certname: Certname,
): Promise<Desired> {
  try {
    const signal = AbortSignal.timeout(PUPPETDB_DEADLINE_MS);
    const submission = (await puppetdb.readNodes([certname], signal)).get(certname);
    if (submission === undefined) return {};
    const { producer, source, at, from } = submission;
    const soon = AbortSignal.timeout(LOOKUP_DEADLINE_MS);
    const sightings = await Promise.allSettled(instances.map((instance) => instance.look(soon)));
    const servers = sightings.flatMap((seen) => (seen.status === "fulfilled" ? seen.value.servers : []));
    const master = resolver(config.masterAliases, instances.length === 0 ? undefined : servers)(producer);
    if (master !== undefined)
      return { master, source, since: new Date(at).toISOString(), ...(from && { puppetdb: from }) };
    const silent = sightings.flatMap((seen) => (seen.status === "rejected" ? [toFailure(seen.reason)] : []));
    return silent[0] === undefined
      ? { unroutableProducer: producer }
      : { failure: unasked(submission, silent[0].code, silent.length, instances.length) };
  } catch (error) {
    return { failure: toFailure(error) };
  }
}

/** An HAProxy that could not be asked may have a server for this producer. */
function unasked({ producer, source }: Submission, code: ErrorCode, silent: number, all: number): Failure {
  const who =
    silent === all
      ? "no HAProxy could be asked which server that is"
      : `${silent} of ${all} HAProxy instances could not be asked which server that is, and the others have none`;
  const remedy = "the reason is below; until one is asked, the map file says where the node goes";
  return { code, message: `PuppetDB says ${shown(producer)} (${source}), but ${who}: ${remedy}` };
}

/** What the map file holds, sorted, as the daemon would list it: where each route comes from is not in the file. */
export async function nodesOfFile(
  mapFile: string,
  {
    q,
    master,
    limit,
    cursor = "",
  }: { q?: string | undefined; master?: string | undefined; limit: number; cursor?: string },
): Promise<Nodes> {
  const { routes } = await new MapFile(mapFile).read();
  const nodes: Node[] = [];
  const part = q?.toLowerCase() ?? ""; // Certnames are lower case; people type capitals.
  for (const [certname, to] of [...routes].sort(([a], [b]) => (a < b ? -1 : 1))) {
    const isWanted = certname.includes(part) && (master === undefined || to === master);
    if (!isWanted || certname <= cursor || !isMaster(to)) continue;
    if (nodes.length === limit) return { nodes, next: nodes.at(-1)?.certname ?? null };
    nodes.push({ certname, master: to, source: "inherited", since: null });
  }
  return { nodes, next: null };
}
