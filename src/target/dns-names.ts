// HAProxy instances behind DNS names: a headless Service, a scale set. Each address of a name is one. Promises: while DNS does
// not answer, those that are known stay; one that has left DNS stays a target until it no longer answers, because it may
// still serve.

import { promises as dns, type LookupAddress } from "node:dns";
import { isIPv6 } from "node:net";
import type { Endpoint, EndpointName } from "../config.js";
import { within } from "../deadline.js";
import { systemCode } from "../errors.js";

/** A nameserver answers in milliseconds; Node asks each three times, five seconds apart. */
const LOOKUP_MS = 5_000;

/** Each is a target. More than this behind one name is a mistake. */
const MAX_ADDRESSES = 256;

/** Whether a host can have it. For a name that they block, nameservers answer with one that the system takes for this host. */
export const isUsable = ({ address }: Pick<LookupAddress, "address">): boolean =>
  address !== "0.0.0.0" && address !== "::";

/** All addresses of a host. Rejects with ENOTFOUND where it has none, or as Node's `dns.lookup` does. */
export type LookUp = (host: string) => Promise<LookupAddress[]>;

/** As the system does it, with /etc/hosts and search domains. */
const lookUpHere: LookUp = (host) => dns.lookup(host, { all: true });

export class DnsNames {
  readonly #names: readonly EndpointName[];
  readonly #lookUp: LookUp;
  /** The last known answer, by name. */
  readonly #known = new Map<EndpointName, Endpoint[]>();
  /** A question that is not answered is not asked again: it holds one of Node's four threads. */
  readonly #asking = new Map<EndpointName, Promise<void>>();

  constructor(names: readonly EndpointName[], lookUp: LookUp = lookUpHere) {
    this.#names = names;
    this.#lookUp = lookUp;
  }

  /**
   * The endpoints of all names now, or the last known ones. A name without addresses is an endpoint itself, and fails with
   * that reason when it is used.
   */
  async endpoints(stop?: AbortSignal): Promise<Endpoint[]> {
    const late = new Error("DNS does not answer");
    const asked = this.#names.map((name) =>
      within(LOOKUP_MS, stop, late, () => this.#ask(name)).catch(() => undefined),
    );
    await Promise.all(asked);
    const found = this.#names.flatMap((name) => {
      const known = this.#known.get(name) ?? [];
      return known.length > 0 ? known : [endpointAt(name, name.name, name.host)];
    });
    // Two names may lead to the same HAProxy.
    return [...new Map(found.map((endpoint) => [endpoint.name, endpoint])).values()];
  }

  #ask(name: EndpointName): Promise<void> {
    const asking =
      this.#asking.get(name) ??
      this.#lookUp(name.host)
        .catch((error: unknown) => {
          if (systemCode(error) === "ENOTFOUND") return [];
          throw error;
        })
        .then((addresses) => {
          const all = new Set(addresses.filter(isUsable).map(({ address }) => address));
          const hosts = [...all].sort().slice(0, MAX_ADDRESSES);
          const scheme = name.name.replace(/\+dns:.*$/, "");
          const place = (host: string) => (isIPv6(host) ? `[${host}]` : host);
          this.#known.set(
            name,
            hosts.map((host) => endpointAt(name, `${scheme}://${place(host)}:${name.port}`, host)),
          );
        })
        .finally(() => this.#asking.delete(name));
    this.#asking.set(name, asking);
    return asking;
  }
}

const endpointAt = ({ port, tls }: EndpointName, name: string, host: string): Endpoint => ({
  name,
  connect: { host, port },
  ...(tls && { tls }),
});

/**
 * The targets from now on: those whose endpoint is still there, those that answer although it is gone, and new ones, made by
 * `make`.
 */
export function follow<Instance extends { name: string }>(
  current: readonly Instance[],
  endpoints: readonly Endpoint[],
  answers: (instance: Instance) => boolean,
  make: (endpoint: Endpoint) => Instance,
): Instance[] {
  const named = new Set(endpoints.map(({ name }) => name));
  const staying = current.filter((instance) => named.has(instance.name) || answers(instance));
  const known = new Set(staying.map(({ name }) => name));
  return [...staying, ...endpoints.filter(({ name }) => !known.has(name)).map(make)];
}
