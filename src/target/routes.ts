// Collects the entries of a target, line by line, with little memory. A string that is cut out of a dump keeps the dump's whole
// text in memory. So known strings are used instead, and others are copied.
// Keys that differ in letter case only are the same node.

import { LargeMap } from "../large-map.js";
import { type Certname, isCertname, type NodeMap } from "../node-map.js";

export class Routes {
  readonly all = new LargeMap<Certname, string>();
  /** Nodes whose key has capitals: a command cannot name it. */
  readonly capitals = new Set<Certname>();
  /** Entries that no command may name, as they are: illegal keys, and second ones of a node. */
  readonly strays: string[] = [];
  readonly #capitalized: [key: string, value: string][] = [];
  readonly #desired: NodeMap | undefined;
  /** Masters are few, so each string is kept once. */
  readonly #masters = new Map<string, string>();

  constructor(desired: NodeMap | undefined) {
    this.#desired = desired;
  }

  add(key: string, value: string): void {
    if (isCertname(key)) {
      // HAProxy uses the first entry of a key.
      if (!this.#add(key, value)) this.#stray(key, value);
    } else if (isCertname(key.toLowerCase())) {
      this.#capitalized.push([copyOf(key), copyOf(value)]);
    } else {
      this.#stray(key, value);
    }
  }

  /** When all lines were added. */
  end(): this {
    for (const [key, value] of this.#capitalized.splice(0)) {
      const certname = copyOf(key.toLowerCase()) as Certname;
      if (this.#add(certname, value)) this.capitals.add(certname);
      else this.#stray(key, value);
    }
    return this;
  }

  #stray(key: string, value: string): void {
    this.strays.push(copyOf(`${key} ${value}`));
  }

  /** False for a certname that is there already. */
  #add(certname: Certname, master: string): boolean {
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
