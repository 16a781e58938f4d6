// Masters that come and go: a producer that appears in PuppetDB gets an HAProxy server at run time, if the operator's pattern
// allows it. It gets the server again after each reload of HAProxy, another address when its name has another one, and loses
// it when no node is left there.
// Promises: only names that the pattern matches, and no more servers than the limit; servers of HAProxy's own
// configuration are never touched; one HAProxy's failure never stops another; a silent resolver holds up no pass.
// HAProxy does not tell which of its servers were added at run time. So those that an earlier run of sasori has added are
// neither counted nor removed: they stay until HAProxy's next reload.

import { lookup } from "node:dns/promises";
import { setTimeout as sleep } from "node:timers/promises";
import type { Config } from "./config.js";
import { type Failure, reason, toFailure } from "./errors.js";
import type { Fleet } from "./fleet.js";
import { isMaster, type Master } from "./node-map.js";
import { isUsable } from "./target/dns-names.js";
import type { Server } from "./target/target.js";

/** Deadline for looking up all names of a pass together. */
const LOOKUP_MS = 2_000;
/** For this long a name without an address is not looked up again. */
const REMEMBERED_MS = 60_000;

/** All addresses of a name. Throws when it has none. */
type LookUp = (name: string) => Promise<{ address: string; family: number }[]>;

const lookUpHere: LookUp = (name) => lookup(name, { all: true });

/** A name that is looked up. */
interface Question {
  /** The addresses that were found, in the form that HAProxy takes. */
  hosts: readonly string[];
  /** Why it has no address. */
  why: string;
  /** When it is forgotten (`performance.now()`), but never before it is answered. */
  until: number;
}

/** An HAProxy whose servers can be changed at run time. */
export interface ServerHost {
  readonly name: string;
  /** Returns the process that now has the server. Throws `HAPROXY_...`. */
  addServer(name: Master, address: string, options: string, signal: AbortSignal): Promise<string>;
  enableServer(name: Master, options: string, signal: AbortSignal): Promise<string>;
  /** Throws `HAPROXY_CHANGED` when another process answers. */
  readdressServer(name: Master, address: string, process: string, signal: AbortSignal): Promise<void>;
  /** Throws `HAPROXY_REPLY` while it still serves requests, `HAPROXY_CHANGED` when another process answers. */
  removeServer(name: Master, process: string, signal: AbortSignal): Promise<void>;
}

export interface MasterChange {
  haproxy: string;
  master: string;
  change: "added" | "removed" | "readdressed";
  failure?: Failure;
}

export class NewMasters {
  readonly #options: NonNullable<Config["newMasters"]>;
  readonly #lookUp: LookUp;
  /** The servers that should exist in addition to those of the configuration, each with its address. */
  readonly #wanted = new Map<Master, string>();
  /** The addresses that they had before. If a server has any other address, the operator has set it, and it stays. */
  readonly #former = new Map<Master, Set<string>>();
  /** Names whose lookup has not been answered yet, or that had no address lately. */
  readonly #questions = new Map<Master, Question>();

  constructor(options: NonNullable<Config["newMasters"]>, lookUp: LookUp = lookUpHere) {
    this.#options = options;
    this.#lookUp = lookUp;
  }

  /**
   * Decides which producers should have servers. Whether a server is still needed is checked only after a full reading,
   * because that goes through all nodes, or while an `added` server is there that should be removed. Then all names are
   * looked up again, too. Returns the failures of producers that get no server.
   */
  async consider(
    fleet: Pick<Fleet, "map" | "unroutable" | "homes">,
    full: boolean,
    servers: readonly (readonly Server[])[],
    added: ReadonlySet<Master>,
    stop: AbortSignal,
  ): Promise<Failure[]> {
    const producers = new Set(Array.from(fleet.unroutable.values(), ({ producer }) => producer));
    const leaving = [...added].filter((name) => !this.#wanted.has(name));
    const masters = new Set<Master>();
    if (full || leaving.length > 0) {
      for (const { master } of fleet.map.assignments()) masters.add(master);
      for (const home of fleet.homes.values()) masters.add(home); // `sasori rebalance` moves its nodes back.
      this.#takeBack(leaving, masters, servers);
      if (full) this.#forgetUnused(masters, producers);
    }
    // A master may have its server in one HAProxy, but not in another, or not any longer after a reload.
    const lacking = [...new Set([...this.#wanted.keys(), ...producers, ...masters])].filter(
      (name) =>
        isMaster(name) &&
        this.#options.pattern.test(name) &&
        !servers.every((list) => list.some((server) => isWhole(server, name))),
    ) as Master[];
    const names = full ? [...new Set([...lacking, ...this.#wanted.keys()])] : lacking;
    await this.#findAddresses(names, stop);
    return names.flatMap((name) => this.#want(name) ?? []);
  }

  #isFormer(name: Master, address: string): boolean {
    return (
      address.endsWith(`:${this.#options.port}`) && this.#former.get(name)?.has(hostOf(address)) === true
    );
  }

  /** HAProxy does not remove a server that still serves requests. If nodes came back to it meanwhile, the server is kept. */
  #takeBack(
    leaving: readonly Master[],
    masters: ReadonlySet<Master>,
    servers: readonly (readonly Server[])[],
  ): void {
    for (const name of leaving.filter((one) => masters.has(one))) {
      const server = servers.flat().find((one) => one.name === name);
      if (server !== undefined) this.#wanted.set(name, hostOf(server.address));
    }
  }

  #forgetUnused(masters: ReadonlySet<string>, producers: ReadonlySet<string>): void {
    for (const name of this.#wanted.keys()) {
      if (masters.has(name) || producers.has(name)) continue;
      this.#wanted.delete(name);
      this.#former.delete(name);
    }
  }

  /**
   * HAProxy does not resolve the name of a server that is added at run time, so sasori does. All names are looked up in parallel,
   * also those that had a server before, because a rebuilt master may have another address. A late answer is used in the next
   * pass.
   */
  async #findAddresses(names: readonly Master[], stop: AbortSignal): Promise<void> {
    for (const [name, { until }] of this.#questions)
      if (until < performance.now()) this.#questions.delete(name);
    const isNew = (name: Master) => !this.#wanted.has(name);
    const unasked = names.filter((name) => !this.#questions.has(name));
    const underway = [...this.#questions.values()].filter(({ until }) => until === Number.POSITIVE_INFINITY);
    const room = Math.max(0, this.#options.limit - this.#wanted.size - underway.length);
    const asked = [...unasked.filter((name) => !isNew(name)), ...unasked.filter(isNew).slice(0, room)];
    if (asked.length === 0) return;
    const late = sleep(LOOKUP_MS, undefined, { ref: false, signal: stop }).catch(() => undefined);
    await Promise.race([Promise.all(asked.map((name) => this.#ask(name))), late]);
  }

  async #ask(name: Master): Promise<void> {
    const question: Question = {
      hosts: [],
      why: `no answer within ${LOOKUP_MS} ms`,
      until: Number.POSITIVE_INFINITY,
    };
    this.#questions.set(name, question);
    try {
      const addresses = (await this.#lookUp(name)).filter(isUsable);
      if (addresses.length === 0) question.why = "DNS blocks it";
      question.hosts = addresses.map(({ address, family }) => (family === 6 ? `[${address}]` : address));
    } catch (error) {
      question.why = reason(error);
    }
    question.until = performance.now() + REMEMBERED_MS;
  }

  /** Returns why it gets no server. Undefined if it gets one, or if that is not known yet. */
  #want(name: Master): Failure | undefined {
    const { limit } = this.#options;
    const question = this.#questions.get(name);
    const host = this.#wanted.get(name);
    const isNew = host === undefined;
    const failure = (why: string): Failure => ({
      code: "HAPROXY_SERVER",
      message: `master ${name} gets no server: ${why}`,
    });
    if (isNew && this.#wanted.size >= limit)
      return failure(`${limit} were added already (SASORI_NEW_MASTER_LIMIT)`);
    const [first] = question?.hosts ?? [];
    if (first !== undefined) {
      // Of several addresses DNS tells another one first each time.
      const next = question?.hosts.find((one) => one === host) ?? first;
      if (host !== undefined && next !== host)
        this.#former.set(name, (this.#former.get(name) ?? new Set()).add(host));
      this.#wanted.set(name, next);
      this.#questions.delete(name);
      return undefined;
    }
    // A name that had an address keeps it.
    return isNew && question ? failure(`its name has no address (${question.why})`) : undefined;
  }

  /**
   * Gives one HAProxy the servers that it lacks. Of those that were `added` earlier, some get another address, and those are taken
   * away that nobody needs.
   */
  async settle(
    host: ServerHost,
    servers: readonly Server[],
    added: Map<Master, string>,
    signal: AbortSignal,
  ): Promise<MasterChange[]> {
    const has = new Set(servers.map(({ name }) => name));
    const { options, port } = this.#options;
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
    for (const [name, at] of this.#wanted) {
      const address = `${at}:${port}`;
      const there = servers.find((server) => isWhole(server, name));
      const since = added.get(name);
      if (there === undefined)
        await attempt(name, "added", async () => {
          const process = has.has(name)
            ? await host.enableServer(name, options, signal)
            : await host.addServer(name, address, options, signal);
          added.set(name, process);
        });
      else if (since !== undefined && at !== hostOf(there.address) && this.#isFormer(name, there.address))
        await attempt(name, "readdressed", () => host.readdressServer(name, address, since, signal));
    }
    for (const [name, process] of added) {
      if (this.#wanted.has(name)) continue;
      if (has.has(name)) await attempt(name, "removed", () => host.removeServer(name, process, signal));
      else added.delete(name); // It was removed in an earlier pass.
    }
    return changes;
  }
}

/** `host:port` without the port; an IPv6 address keeps its brackets. */
const hostOf = (address: string) => address.slice(0, address.lastIndexOf(":"));

const isWhole = ({ name, halfAdded }: Server, master: Master) => name === master && !halfAdded;
