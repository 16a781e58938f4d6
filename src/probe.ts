// Asks a master "Do you have this node?". Promises: with SASORI_PROBE_CA only over TLS, and the master's certificate and its
// name are always checked, even if Node's variables say otherwise; certificates that are renewed in place are read again.

import { checkServerIdentity, type PeerCertificate } from "node:tls";
import { isDeepStrictEqual } from "node:util";
import { Agent, type Dispatcher, request } from "undici";
import type { Config } from "./config.js";
import type { Master } from "./node-map.js";
import { type Pem, PemFiles, type PemPaths } from "./pem-files.js";
import { STRICT_TLS } from "./source/puppetdb-connection.js";
import type { Server } from "./target/target.js";

/** The status of a master's answer to this path. Rejects if there is no answer, or if the certificate is not trusted. */
export type AskMaster = (server: Server, path: string, signal: AbortSignal) => Promise<number>;

export function masterAsker({
  probeTls,
  masterAliases,
}: Pick<Config, "probeTls" | "masterAliases">): AskMaster {
  const agents = probeTls && new TlsAgents(probeTls, masterAliases);
  return async (server, path, signal) => {
    if (server.address === "")
      throw new Error("HAProxy reaches it by a socket file, so sasori cannot ask it");
    const dispatcher = await agents?.of(server);
    const address = server.address.replace(/\.(?=:\d+$)/, ""); // No name in a certificate ends with a dot.
    const url = `${agents === undefined ? "http" : "https"}://${address}${path}`;
    const { statusCode, body } = await request(url, { signal, ...(dispatcher && { dispatcher }) });
    await body.dump();
    return statusCode;
  };
}

/** The master if it has the node, undefined if it says that it does not. Rejects if it does not say. */
export type HasNode = (server: Server, path: string, signal: AbortSignal) => Promise<Master | undefined>;

/** These, as all from 500 on, say nothing about the node. They say that the master is busy, or does not let sasori ask. */
const SAYS_NOTHING = new Set([401, 403, 407, 408, 429]);

export const hasNode =
  (ask: AskMaster): HasNode =>
  async (server, path, signal) => {
    const status = await ask(server, path, signal);
    if (status === 200) return server.name;
    if (status >= 500 || SAYS_NOTHING.has(status)) throw new Error(`${server.name} answered ${status}`);
    return undefined;
  };

/** Connections to masters over TLS. */
class TlsAgents {
  readonly #files: PemFiles;
  readonly #aliases: Config["masterAliases"];
  /** One for each server name, all made with `pem`. */
  #agents: { pem: Pem; of: Map<string, Agent> } | undefined;

  constructor(paths: PemPaths, aliases: Config["masterAliases"]) {
    this.#files = new PemFiles(paths, "PROBE");
    this.#aliases = aliases;
  }

  async of(server: Server): Promise<Dispatcher> {
    const pem = await this.#files.current();
    if (!isDeepStrictEqual(this.#agents?.pem, pem)) {
      for (const old of this.#agents?.of.values() ?? []) old.close().catch(() => undefined); // Closed when its requests are answered.
      this.#agents = { pem, of: new Map() };
    }
    const agents = this.#agents?.of ?? new Map<string, Agent>();
    const which = `${server.address} ${server.name}`;
    const agent = agents.get(which) ?? newAgent(pem, namesOf(server, this.#aliases));
    agents.set(which, agent);
    return agent;
  }
}

const newAgent = (pem: Pem, names: readonly string[]) =>
  new Agent({
    connect: {
      ...STRICT_TLS,
      ...pem,
      checkServerIdentity: (_, certificate) => wrongName(names, certificate),
    },
  });

/** A Puppet master's certificate has its certname. That is its host, its server's name, or the producer of an alias. */
function namesOf({ name, host, address, members = [] }: Server, aliases: Config["masterAliases"]): string[] {
  const producers = aliases.pairs.flatMap(([producer, server]) => (server === name ? [producer] : []));
  const asked = members.flatMap((server) => (server.address === address ? [server.name] : []));
  return [...new Set([host, name, ...asked, ...producers])];
}

/** Undefined if the certificate has one of the names; otherwise what is wrong. */
function wrongName(names: readonly string[], certificate: PeerCertificate): Error | undefined {
  const errors = names.map((name) => checkServerIdentity(name, certificate));
  if (errors.includes(undefined)) return undefined;
  const has = certificate.subjectaltname ?? certificate.subject?.CN ?? "no name";
  return new Error(`its certificate is that of ${has}, and not of ${names.join(" or ")}`);
}
