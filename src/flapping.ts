// Nodes whose facts and reports come from different masters in every run, which is what Puppet's `report_server` does: by
// the newest of both they would move twice per run. A node that moves does so once: then both come from its new master.
// Pure state: no I/O, no clock.

import type { Certname, Master, Source } from "./node-map.js";

interface Seen {
  master: Master;
  source: Source;
}

interface Pair {
  facts: Master;
  report: Master;
  last: "facts" | "report";
  /** How often the other kind came next. */
  turns: number;
}

/** Enough to see it; a whole fleet of such nodes need not be kept. */
const MAX_PAIRS = 10_000;

/** A move in the middle of a run is one turn. */
const SURE_TURNS = 2;

export class Flapping {
  readonly #pairs: Map<Certname, Pair>;

  constructor(like?: Flapping) {
    this.#pairs = new Map(like === undefined ? [] : like.#pairs);
  }

  /** Takes what is new of a node, and what it had before, or has beside that. */
  note(certname: Certname, now: Seen, before: Seen | undefined): void {
    if (before === undefined || before.source === now.source) return;
    const pair = toPair(now, before);
    if (pair === undefined || now.master === before.master) {
      this.#pairs.delete(certname);
      return;
    }
    const known = this.#pairs.get(certname);
    if (known === undefined && this.#pairs.size >= MAX_PAIRS) return;
    const isSame = known?.facts === pair.facts && known.report === pair.report;
    const turns = isSame && known.last !== pair.last ? known.turns + 1 : isSame ? known.turns : 1;
    this.#pairs.set(certname, { ...pair, turns });
  }

  delete(certname: Certname): void {
    this.#pairs.delete(certname);
  }

  /** Those that are sure to flap; all with such a pair if they are most of a fleet of so many `nodes`. */
  nodes(nodes: number): Map<Certname, { facts: Master; report: Master }> {
    const reported = [...this.#pairs].filter(([, { last }]) => last === "report");
    const isMost = reported.length >= SURE_TURNS && reported.length * 2 > Math.min(nodes, MAX_PAIRS);
    return new Map(isMost ? reported : [...this.#pairs].filter(([, { turns }]) => turns >= SURE_TURNS));
  }
}

function toPair(now: Seen, before: Seen): Omit<Pair, "turns"> | undefined {
  const [{ source, master }, other] = [now, before];
  if (source === "facts" && other.source === "report")
    return { facts: master, report: other.master, last: "facts" };
  if (source === "report" && other.source === "facts")
    return { facts: other.master, report: master, last: "report" };
  return undefined;
}
