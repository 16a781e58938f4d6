// Finds nodes whose facts and reports come from different masters in every run, as with Puppet's `report_server`. If the
// newest of both decided, they would move twice in each run. A node that really moves does so once: then both come from its
// new master. Pure state: no I/O, no clock.

import type { Certname, Master, Source } from "./node-map.js";

interface Seen {
  master: Master;
  source: Source;
}

interface Pair {
  facts: Master;
  report: Master;
  last: "facts" | "report";
  /** How often a submission of the other kind came next. */
  turns: number;
}

/** This many nodes are enough to notice it. So not every node of a fleet is kept. */
const MAX_PAIRS = 10_000;

/** A node that moves in the middle of a run makes one turn, so one turn is no proof. */
const SURE_TURNS = 2;

export class Flapping {
  readonly #pairs: Map<Certname, Pair>;

  constructor(like?: Flapping) {
    this.#pairs = new Map(like === undefined ? [] : like.#pairs);
  }

  /** `now` is the newest submission of a node; `before` is the one that it replaces, or the newest of the other kind. */
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

  /**
   * The nodes that certainly flap. If more than half of the fleet's `nodes` have facts and reports from different masters,
   * then all of these, because so many nodes do not move at once.
   */
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
