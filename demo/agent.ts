// One simulated node: the agent that checks in with a master, and the commands that its master may run on it.
// A node does one thing at a time: a check-in that is under way at the old master can never follow a move and
// undo it in PuppetDB.

import type { Certname, Master } from "../src/node-map.js";
import { ask, mustAsk } from "./http.js";

/** What can be run on a node. All are harmless: nothing is executed, the node only talks about itself. */
export const COMMANDS = ["facts", "hostname", "puppet-version", "uptime"] as const;
export type NodeCommand = (typeof COMMANDS)[number];

export const isNodeCommand = (text: unknown): text is NodeCommand =>
  (COMMANDS as readonly unknown[]).includes(text);

/** A demo master as a node sees it. */
export interface MasterAddress {
  name: Master;
  url: string;
}

export interface Move {
  certname: Certname;
  from: Master;
  to: Master;
  /** When the new master had the node, ISO 8601. */
  at: string;
}

export class Agent {
  readonly certname: Certname;
  readonly #callback: string;
  readonly #bornAt = Date.now();
  #master: MasterAddress;
  #checkedInAt: string | null = null;
  #turn: Promise<unknown> = Promise.resolve();

  /** `callback` is the URL at which a master can run a command on this node. */
  constructor(certname: Certname, master: MasterAddress, callback: string) {
    this.certname = certname;
    this.#master = master;
    this.#callback = callback;
  }

  get state(): { certname: Certname; master: Master; checkedInAt: string | null } {
    return { certname: this.certname, master: this.#master.name, checkedInAt: this.#checkedInAt };
  }

  /** A Puppet run: the catalog first, the report when it is applied. Rejects when the master does not take it. */
  checkIn(): Promise<void> {
    return this.#inTurn(() => this.#run(this.#master));
  }

  /** From now on the node belongs to that master. The old one is told last: until then both would answer. */
  move(to: MasterAddress): Promise<Move> {
    return this.#inTurn(async () => {
      const from = this.#master;
      await this.#run(to);
      this.#master = to;
      const at = new Date().toISOString();
      // An old master that cannot be told is down, and nobody reaches the node through it.
      if (from !== to) await ask("DELETE", `${from.url}/nodes/${this.certname}`).catch(() => undefined);
      return { certname: this.certname, from: from.name, to: to.name, at };
    });
  }

  /** Does as a master tells it. */
  execute(command: NodeCommand): unknown {
    const uptime = `up ${Math.round((Date.now() - this.#bornAt) / 1000)} s`;
    const facts = { hostname: this.certname, "puppet-version": "7.23.0", uptime };
    return command === "facts" ? { ...facts, server: this.#master.name } : facts[command];
  }

  async #run({ url }: MasterAddress): Promise<void> {
    await mustAsk("POST", `${url}/puppet/v3/catalog/${this.certname}`, { callback: this.#callback });
    await mustAsk("PUT", `${url}/puppet/v3/report/${this.certname}`, { status: "unchanged" });
    this.#checkedInAt = new Date().toISOString();
  }

  #inTurn<Result>(step: () => Promise<Result>): Promise<Result> {
    const result = this.#turn.then(step);
    this.#turn = result.catch(() => undefined);
    return result;
  }
}
