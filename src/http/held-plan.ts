// The plan that the guard holds, whole: every change, and how many each master would lose. The page, `sasori diff` and
// `sasori status --json` show it, so that a person can read all of it before approving exactly that.
// Promises: pages follow the names, so that reading page by page returns every change once; a large plan is sorted in
// pieces, and only once for each verdict of the guard.

import type { Fleet, HeldChange } from "../fleet.js";
import type { Verdict } from "../guard.js";
import { eachInPieces, inPieces, sortInPieces } from "../pieces.js";
import { lowerBound } from "../sorted.js";
import type { HeldPlan, HeldPlanQuery } from "./api-shapes.js";

type Held = Extract<Verdict, { kind: "held" }>;

interface Whole {
  changes: readonly HeldChange[];
  masters: HeldPlan["masters"];
}

export class HeldPlans {
  readonly #fleet: Pick<Fleet, "verdict" | "heldChange">;
  /** A plan that is no longer held is forgotten with its verdict. */
  readonly #known = new WeakMap<Verdict, Promise<Whole>>();

  constructor(fleet: Pick<Fleet, "verdict" | "heldChange">) {
    this.#fleet = fleet;
  }

  /** A page of what is held now, or undefined when nothing is. */
  async page({ master, limit, cursor }: HeldPlanQuery): Promise<HeldPlan | undefined> {
    const { verdict } = this.#fleet;
    if (verdict.kind !== "held") return undefined;
    const { id, reason, certnames } = verdict;
    const { changes, masters } = await this.#whole(verdict);
    const page: HeldChange[] = [];
    let next: string | null = null;
    const first =
      cursor === undefined
        ? 0
        : lowerBound(changes.length, (at) => (changes[at] as HeldChange).certname > cursor);
    for (let at = first; at < changes.length; at += 1) {
      const change = changes[at] as HeldChange;
      if (master !== undefined && change.from !== master) continue;
      if (page.length === limit) {
        next = page.at(-1)?.certname ?? null;
        break;
      }
      page.push(change);
    }
    return { id, reason, count: certnames.length, masters, changes: page, next };
  }

  /** The same as text, in pieces of many lines: `certname<TAB>from<TAB>to`, where `-` is no master. */
  async *text(): AsyncGenerator<string> {
    const { verdict } = this.#fleet;
    if (verdict.kind !== "held") return;
    const { changes } = await this.#whole(verdict);
    yield `# plan ${verdict.id}: ${verdict.reason}\n# certname\tfrom\tto (-: removed)\n`;
    const LINES = 2_000;
    for (let at = 0; at < changes.length; at += LINES)
      yield changes
        .slice(at, at + LINES)
        .map(({ certname, from, to }) => `${certname}\t${from ?? "-"}\t${to ?? "-"}\n`)
        .join("");
  }

  #whole(verdict: Held): Promise<Whole> {
    const whole = this.#known.get(verdict) ?? inPieces(this.#read(verdict.certnames));
    this.#known.set(verdict, whole);
    return whole;
  }

  *#changes(certnames: readonly string[]): Generator<HeldChange> {
    for (const certname of certnames) yield this.#fleet.heldChange(certname);
  }

  *#read(certnames: readonly string[]): Generator<void, Whole> {
    const changes = yield* sortInPieces(this.#changes(certnames), (a, b) =>
      a.certname < b.certname ? -1 : 1,
    );
    const counts = new Map<string | null, { master: string | null; removed: number; moved: number }>();
    yield* eachInPieces(changes, ({ from, to }) => {
      const count = counts.get(from) ?? { master: from, removed: 0, moved: 0 };
      counts.set(from, count);
      count[to === null ? "removed" : "moved"] += 1;
    });
    const masters = [...counts.values()].sort((a, b) => b.removed + b.moved - (a.removed + a.moved));
    return { changes, masters };
  }
}
