// Collects what a target holds, line by line, in as little memory as that takes: a piece cut out of a dump keeps the
// whole text of the dump in memory, so every string that is known already is used instead, and others are copied.

import type { Certname, NodeMap } from "../node-map.js";

export class Routes {
  readonly all = new Map<Certname, string>();
  readonly #desired: NodeMap | undefined;
  /** The same few masters again and again. */
  readonly #masters = new Map<string, string>();

  constructor(desired: NodeMap | undefined) {
    this.#desired = desired;
  }

  /** False for a certname that is there already: HAProxy looks no further than its first entry. */
  add(certname: Certname, master: string): boolean {
    if (this.all.has(certname)) return false;
    const known = this.#desired?.get(certname);
    this.all.set(
      known?.certname ?? copyOf(certname),
      known?.master === master ? known.master : this.#sole(master),
    );
    return true;
  }

  #sole(master: string): string {
    const sole = this.#masters.get(master) ?? copyOf(master);
    this.#masters.set(sole, sole);
    return sole;
  }
}

const copyOf = <Name extends string>(name: Name) => Buffer.from(name, "latin1").toString("latin1") as Name;
