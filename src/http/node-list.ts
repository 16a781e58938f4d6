// The nodes by name, page by page, and how many each master has.
// Promises: names are sorted only after somebody has asked, and then kept sorted; no step takes so long that HAProxy's
// queries have to wait; reading page by page returns each node exactly once, if it is there all the time.

import type { Assignment, Before, Certname, Master, NodeMap, Source } from "../node-map.js";
import { eachInPieces, inPieces, letOthersIn, sortInPieces } from "../pieces.js";
import { lowerBound } from "../sorted.js";

/** After this many names other work gets a turn. */
const STEP = 1_000;

/** After more changes than this since the last request, the names are sorted again when somebody asks. */
const MAX_NEWS = 100_000;

export interface PageRequest {
  q?: string | undefined;
  master?: string | undefined;
  source?: Source | undefined;
  /** Only nodes for which this is true. */
  isWanted?: (certname: Certname) => boolean;
  limit: number;
  /** Only names behind this one. */
  cursor?: string | undefined;
}

export class NodeList {
  /** How many nodes each master has. */
  readonly counts = new Map<Master, number>();
  readonly #map: NodeMap;
  /** In order; undefined until somebody asks. */
  #names: readonly Certname[] | undefined;
  /** Names that have come or gone since. */
  #news = new Set<Certname>();
  #sorting: Promise<void> | undefined;

  constructor(map: NodeMap) {
    this.#map = map;
  }

  /** Must be called with all changes of the map, each before the next one happens. */
  *takeChanges(changes: Before): Generator<void> {
    yield* eachInPieces(changes, ([certname, from]) => {
      const to = this.#map.get(certname)?.master;
      if (from === to) return;
      this.#count(from, -1);
      this.#count(to, 1);
      const isAsked = this.#names !== undefined || this.#sorting !== undefined;
      if (isAsked && (from === undefined || to === undefined)) this.#news.add(certname);
    });
    if (this.#news.size <= MAX_NEWS || this.#sorting !== undefined) return;
    this.#names = undefined;
    this.#news.clear();
  }

  #count(master: Master | undefined, by: 1 | -1): void {
    if (master === undefined) return;
    const count = (this.counts.get(master) ?? 0) + by;
    if (count === 0) this.counts.delete(master);
    else this.counts.set(master, count);
  }

  /** The first `limit` nodes behind the cursor that match; `next` is the cursor of the page behind them. */
  async page({ q = "", master, source, isWanted = () => true, limit, cursor }: PageRequest) {
    const nodes: Assignment[] = [];
    let names = await this.#ordered();
    let seen = 0;
    for (
      let index = cursor === undefined ? 0 : firstBehind(names, cursor);
      index < names.length;
      index += 1
    ) {
      const certname = names[index] as Certname;
      seen += 1;
      if (seen % STEP === 0) {
        await letOthersIn();
        names = await this.#ordered(); // Nodes may have come and gone meanwhile.
        index = firstBehind(names, certname) - 1;
      }
      const node = certname.includes(q) && isWanted(certname) ? this.#map.get(certname) : undefined;
      if (node === undefined) continue;
      if (
        (master !== undefined && node.master !== master) ||
        (source !== undefined && node.source !== source)
      )
        continue;
      if (nodes.length === limit) return { nodes, next: nodes.at(-1)?.certname ?? null };
      nodes.push(node);
    }
    return { nodes, next: null };
  }

  async #ordered(): Promise<readonly Certname[]> {
    await this.#sorting; // It may have begun before the last change.
    if (this.#names === undefined || this.#news.size > 0) {
      this.#sorting ??= inPieces(this.#sort()).finally(() => {
        this.#sorting = undefined;
      });
      await this.#sorting;
    }
    return this.#names ?? this.#ordered();
  }

  /** A million names take about a second in all. */
  *#sort(): Generator<void> {
    const [names, news] = [this.#names, this.#news];
    this.#news = new Set();
    const inOrder = (all: Iterable<Certname>) => sortInPieces(all, (a, b) => (a < b ? -1 : 1));
    if (names === undefined) {
      this.#names = yield* inOrder(this.#map.certnames());
    } else {
      const isThere = (name: Certname) => this.#map.get(name) !== undefined;
      this.#names = yield* merged(names, yield* inOrder(news), isThere);
    }
  }
}

/** The index of the first name behind `name`. */
const firstBehind = (names: readonly string[], name: string): number =>
  lowerBound(names.length, (at) => (names[at] as string) > name);

/** The list with those of the sorted `news` that are there, and without those that are not: copied in large pieces. */
function* merged<Name extends string>(
  names: readonly Name[],
  news: readonly Name[],
  isThere: (name: Name) => boolean,
): Generator<void, Name[]> {
  const result: Name[] = [];
  let from = 0;
  for (const name of news) {
    yield;
    const behind = firstBehind(names, name);
    let end = behind;
    while (end > from && names[end - 1] === name) end -= 1; // Twice, if it went and came back while we sorted.
    for (; from < end; from += 1) result.push(names[from] as Name);
    if (isThere(name)) result.push(name);
    from = behind;
  }
  for (; from < names.length; from += 1) result.push(names[from] as Name);
  return result;
}
