// Masters that come and go: a producer that appears in PuppetDB gets an HAProxy server at run time, where the
// operator's pattern allows it, again after each reload, and loses it when no node is left there.
// Promises: only names that the pattern matches, and no more servers than the limit; servers of HAProxy's own
// configuration are never touched; one HAProxy's failure never stops another.

import { lookup } from "node:dns/promises";
import { setTimeout as sleep } from "node:timers/promises";
import type { Config } from "./config.js";
import { type Failure, reason, SasoriError, toFailure } from "./errors.js";
import type { Fleet } from "./fleet.js";
import { isMaster, type Master } from "./node-map.js";

import type { Server } from "./target/target.js";

const LOOKUP_MS = 2_000;

/** An HAProxy whose servers can be changed at run time. */
export interface ServerHost {
  readonly name: string;
  /** Returns the process that has it now. Throws `HAPROXY_...`. */
  addServer(name: Master, address: string, options: string, signal: AbortSignal): Promise<string>;
  enableServer(name: Master, options: string, signal: AbortSignal): Promise<string>;
  /** Throws `HAPROXY_REPLY` while it still serves requests, `HAPROXY_CHANGED` when another process answers. */
  removeServer(name: Master, process: string, signal: AbortSignal): Promise<void>;
}

export interface MasterChange {
  haproxy: string;
  master: string;
  change: "added" | "removed";
  failure?: Failure;
}

export class NewMasters {
  readonly #options: NonNullable<Config["newMasters"]>;
  /** The servers that are to exist beside those of the configuration, with their addresses. */
  readonly #wanted = new Map<Master, string>();

  constructor(options: NonNullable<Config["newMasters"]>) {
    this.#options = options;
  }

  /**
   * Decides which producers should have servers, by what PuppetDB said. Whether one is still needed is only asked
   * after a full reading, because that looks at the whole fleet. Returns why a producer gets none.
   */
  async consider(
    fleet: Pick<Fleet, "map" | "unroutable">,
    full: boolean,
    servers: readonly (readonly Server[])[],
  ): Promise<Failure[]> {
    const producers = new Set(Array.from(fleet.unroutable.values(), ({ producer }) => producer));
    const masters = new Set<Master>();
    if (full) for (const { master } of fleet.map.assignments()) masters.add(master);
    if (full) this.#forgetUnused(masters, producers);
    // A master may have its server in one HAProxy and not, or after a reload no longer, in another.
    for (const master of masters) {
      if (!servers.every((list) => list.some((server) => isWhole(server, master)))) producers.add(master);
    }
    const failures: Failure[] = [];
    for (const name of producers) {
      if (!isMaster(name) || !this.#options.pattern.test(name)) continue;
      if (this.#wanted.has(name)) continue;
      await this.#want(name).catch((error: unknown) => failures.push(toFailure(error)));
    }
    return failures;
  }

  #forgetUnused(masters: ReadonlySet<string>, producers: ReadonlySet<string>): void {
    for (const name of this.#wanted.keys()) {
      if (!masters.has(name) && !producers.has(name)) this.#wanted.delete(name);
    }
  }

  async #want(name: Master): Promise<void> {
    const { limit, port } = this.#options;
    if (this.#wanted.size >= limit) {
      const why = `${limit} were added already (SASORI_NEW_MASTER_LIMIT)`;
      throw new SasoriError("HAPROXY_SERVER", `master ${name} gets no server: ${why}`);
    }
    // HAProxy does not resolve the name of a server that is added at run time.
    const { address, family } = await Promise.race([lookup(name), tooLate()]).catch((error: unknown) => {
      const why = `its name has no address (${reason(error)})`;
      throw new SasoriError("HAPROXY_SERVER", `master ${name} gets no server: ${why}`, { cause: error });
    });
    this.#wanted.set(name, `${family === 6 ? `[${address}]` : address}:${port}`);
  }

  /** Gives one HAProxy the servers that it lacks, and takes those away that `added` earlier and nobody needs. */
  async settle(
    host: ServerHost,
    servers: readonly Server[],
    added: Map<Master, string>,
    signal: AbortSignal,
  ): Promise<MasterChange[]> {
    const has = new Set(servers.map(({ name }) => name));
    const { options } = this.#options;
    const changes: MasterChange[] = [];
    const attempt = async (master: Master, change: MasterChange["change"], step: () => Promise<void>) => {
      const done = { haproxy: host.name, master, change };
      changes.push(
        await step().then(
          () => done,
          (error: unknown) => ({ ...done, failure: toFailure(error) }),
        ),
      );
    };
    for (const [name, address] of this.#wanted) {
      if (servers.some((server) => isWhole(server, name))) continue;
      await attempt(name, "added", async () => {
        const process = has.has(name)
          ? await host.enableServer(name, options, signal)
          : await host.addServer(name, address, options, signal);
        added.set(name, process);
      });
    }
    for (const [name, process] of added) {
      if (this.#wanted.has(name)) continue;
      if (has.has(name)) await attempt(name, "removed", () => host.removeServer(name, process, signal));
      else added.delete(name); // By the removal of an earlier pass.
    }
    return changes;
  }
}

const isWhole = ({ name, halfAdded }: Server, master: Master) => name === master && !halfAdded;

/** `lookup` has no deadline of its own. */
async function tooLate(): Promise<never> {
  await sleep(LOOKUP_MS, undefined, { ref: false });
  throw new Error(`no answer within ${LOOKUP_MS} ms`);
}
