// Where a command gets its answers: from the running daemon, or from the map file if none runs. And which node or master a
// name stands for.

import { Argument, InvalidArgumentError } from "commander";
import type { Config } from "../config.js";
import { reason, SasoriError } from "../errors.js";
import type { Masters, Nodes } from "../http/api-shapes.js";
import { type Certname, parseCertname } from "../node-map.js";
import { note } from "./command.js";
import type { Address, Method } from "./daemon-client.js";
import type { NodesWith } from "./names.js";

export const configure = async (): Promise<Config> => (await import("../config.js")).readConfig(process.env);
export const address = async (): Promise<Address> => (await import("../config.js")).readAddress(process.env);

/**
 * The configuration, for a command that found no daemon and does the work itself. Often only the daemon's address is wrong, so the
 * error names that too.
 */
export async function configureAlone(): Promise<Config> {
  try {
    return await configure();
  } catch (error) {
    if (!(error instanceof SasoriError)) throw error;
    const [{ daemonUrl }, { listen }] = await Promise.all([import("./daemon-client.js"), address()]);
    const nobody = `no daemon runs on ${daemonUrl(listen)} (SASORI_LISTEN), and without one`;
    throw new SasoriError(error.code, `${nobody} ${error.message}`, { cause: error });
  }
}

/** What only a running daemon knows. */
export async function ask<T>(method: Method, path: string, body?: object): Promise<T> {
  const { mustAskDaemon } = await import("./daemon-client.js");
  return mustAskDaemon<T>(await address(), method, path, body);
}

/** In lower case, as Puppet and the gateway write certnames. People type capitals. */
const certnameOf = (text: string) => parseCertname(text.toLowerCase());

export function certnameArgument(name = "<certname>", description?: string): Argument {
  return new Argument(name, description).argParser((text) => {
    try {
      return certnameOf(text);
    } catch (error) {
      throw new InvalidArgumentError(reason(error));
    }
  });
}

/** Nodes that the daemon lists; undefined if none runs. */
export async function nodesOfDaemon(
  wanted: Parameters<NodesWith>[0] | { q: string; limit: number },
  deadlineMs?: number,
): Promise<Nodes | undefined> {
  const [{ askDaemon }, { query }] = await Promise.all([
    import("./daemon-client.js"),
    import("./listing.js"),
  ]);
  return askDaemon<Nodes>(await address(), "GET", `/api/v1/nodes?${query(wanted)}`, undefined, deadlineMs);
}

/** The certname that a short name stands for. Without a daemon, `elsewhere` knows the nodes; by default there are none. */
export async function whole(
  typed: Certname,
  elsewhere: NodesWith = async () => ({ nodes: [], next: null }),
): Promise<Certname> {
  const { wholeCertname } = await import("./names.js");
  return wholeCertname(typed, async (near) => (await nodesOfDaemon(near)) ?? elsewhere(near), note);
}

const daemonMasters = async (): Promise<string[]> =>
  (await ask<Masters>("GET", "/api/v1/masters")).masters.map(({ master }) => master);

/** The master that a name or short name stands for; a name that no master has stays as it is. */
export async function maybeMaster(typed: string | undefined): Promise<string | undefined> {
  if (typed === undefined) return undefined;
  const { wholeMaster } = await import("./names.js");
  return wholeMaster(typed, await daemonMasters(), note) ?? typed;
}

/** The same, but throws `USAGE`, with the names there are, when no master has this one. */
export async function mustBeMaster(
  typed: string,
  names: () => Promise<string[]> = daemonMasters,
): Promise<string> {
  const { noSuchMaster, wholeMaster } = await import("./names.js");
  const masters = await names();
  const found = wholeMaster(typed, masters, note);
  if (found === undefined) throw noSuchMaster(typed, masters);
  return found;
}

/** From the daemon, or else from the map file. */
export async function knownMasters(deadlineMs?: number): Promise<string[]> {
  const { askDaemon } = await import("./daemon-client.js");
  const answer = await askDaemon<Masters>(await address(), "GET", "/api/v1/masters", undefined, deadlineMs);
  if (answer !== undefined) return answer.masters.map(({ master }) => master);
  const { nodes } = await nodesOfFile({ limit: Number.POSITIVE_INFINITY });
  return [...new Set(nodes.map(({ master }) => master))].sort();
}

export async function nodesOfFile(wanted: { q?: string; cursor?: string; limit: number }): Promise<Nodes> {
  const standalone = await import("./standalone.js");
  return standalone.nodesOfFile((await configureAlone()).mapFile, wanted);
}
