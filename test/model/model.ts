// What must be true, said without a line of src/: of each node the newest evidence decides, and what nobody can know
// is allowed either way. Evidence is dated by an interval: a command to PuppetDB or an order is known to the
// millisecond; of a route that somebody set in HAProxy by hand it is only known since when. Of two pieces of evidence
// the newer one wins if the intervals do not overlap. PuppetDB is the log of the commands that it has stored, by its
// own rules: an older factset is refused, a deactivation older than a submission too.

/** The servers of the backend, which are the masters. Other producers have no server. */
export const MASTERS = ["master1", "master2", "master3"] as const;

/** Where a node is that must not be in any map. */
export const GONE = "gone";

const EVER = Number.NEGATIVE_INFINITY;

/** Dated further ahead than this, a submission comes from a wrong clock. */
const AHEAD_MS = 5 * 60_000;
/** Of what such a clock says only that is known: it was made shortly before PuppetDB received it. */
const DOUBT_MS = 1_000;
/** sasori keeps a node that ran within ten minutes, though PuppetDB lists it no more. A minute for the clocks. */
const FRESH_MS = 11 * 60_000;

/** A sasori that starts anew takes what is up to five minutes older than the file for news. A minute for the test. */
const MUST_BE_NEWS_MS = 4 * 60_000;

export interface Evidence {
  /** A master, or GONE. */
  where: string;
  /** `puppetdb`: its data. `order`: a registration. `hand`: set in one HAProxy. `gone`: removed from PuppetDB. */
  kind: "puppetdb" | "order" | "hand" | "gone";
  /** It was made at some moment from here to there (ms since the epoch). */
  from: number;
  to: number;
  /** It is known to have come through. What is not sure is allowed beside what was there before. */
  sure: boolean;
}

/** A command as PuppetDB has stored it. */
export interface Command {
  node: string;
  kind: "facts" | "report" | "catalog" | "deactivate";
  producer: string;
  /** `producer_timestamp`. */
  at: number;
  received: number;
}

export type Log = readonly Command[];

interface View {
  facts: Command | undefined;
  reports: Command[];
  catalog: Command | undefined;
  deactivated: number | undefined;
}

/** What PuppetDB has of a node after these commands; undefined for a node that it has never heard of. */
function viewOf(log: Log, node: string): View | undefined {
  let view: View | undefined;
  for (const command of log) {
    if (command.node !== node) continue;
    view ??= { facts: undefined, reports: [], catalog: undefined, deactivated: undefined };
    const { kind, at } = command;
    if (kind === "deactivate") {
      const times = [view.facts, view.catalog, ...view.reports].map((stored) => stored?.at ?? EVER);
      if (Math.max(...times, view.deactivated ?? EVER) <= at) view.deactivated = at;
      continue;
    }
    if (view.deactivated !== undefined && view.deactivated < at) view.deactivated = undefined;
    if (kind === "report") view.reports.push(command);
    else if ((view[kind]?.at ?? EVER) <= at) view[kind] = command;
  }
  return view;
}

/** A submission counts from the moment when it was made, but never later than PuppetDB has received it. */
function evidenceOf({ producer, at, received }: Command): Evidence {
  const to = Math.min(at, received);
  const from = at > received + AHEAD_MS ? to - DOUBT_MS : to;
  return { where: producer, kind: "puppetdb", from, to, sure: true };
}

const hasServer = ({ producer }: Command): boolean => (MASTERS as readonly string[]).includes(producer);

const isCatalogOnly = ({ facts, reports }: View): boolean => facts === undefined && reports.length === 0;

/** What PuppetDB's data say of a node: nothing where it does not know it, or no master of it, and more than one where clocks are wrong. */
function saysOf(view: View | undefined): Evidence[] {
  if (view === undefined) return [];
  const runs = [view.facts, ...view.reports].filter((run) => run !== undefined);
  const counting = runs.length > 0 ? runs : [view.catalog].filter((run) => run !== undefined);
  const all = counting.filter(hasServer).map(evidenceOf);
  return all.filter(({ to }) => !all.some(({ from }) => from > to));
}

export class Model {
  log: Command[] = [];
  /** Of each node, what may be its newest evidence. One piece of it where all is known. */
  readonly #evidence = new Map<string, Evidence[]>();
  /** When every sasori began its last comparison of everything. */
  comparedAt = 0;
  /** PuppetDB is an older copy, and nothing newer than what it once had has come yet. */
  behind = false;
  /** Where each node was when all agreed last. */
  readonly #agreed = new Map<string, string>();

  get nodes(): string[] {
    return [...this.#evidence.keys()];
  }

  evidence(node: string): readonly Evidence[] {
    return this.#evidence.get(node) ?? [NEVER_SEEN];
  }

  /** Every place that the maps may name for it, GONE among them. */
  allowed(node: string): Set<string> {
    return new Set(this.evidence(node).map(({ where }) => where));
  }

  /** The one place that it must have; undefined while more than one is allowed. */
  must(node: string): string | undefined {
    const [where, ...others] = this.allowed(node);
    return others.length === 0 ? where : undefined;
  }

  /** The earliest time that anything believed of it may have. */
  oldest(node: string): number {
    const times = this.evidence(node).map(({ from }) => from);
    return Math.min(...times.map((time) => (time === EVER ? Date.now() : time)));
  }

  knows(node: string): boolean {
    return viewOf(this.log, node) !== undefined;
  }

  /** It has submitted neither facts nor a report. */
  isCatalogOnly(node: string): boolean {
    const view = viewOf(this.log, node);
    return view === undefined || isCatalogOnly(view);
  }

  // ---- what happens

  /** PuppetDB stores a command. */
  submit(command: Command): void {
    const before = viewOf(this.log, command.node);
    this.log.push(command);
    const view = viewOf(this.log, command.node);
    if (command.kind === "deactivate") {
      const { at } = command;
      if (view?.deactivated !== at) return;
      this.#add(command.node, goneAt(at));
      // A learned route ends with its node, though it may be newer.
      if (this.evidence(command.node).some(({ kind }) => kind === "hand"))
        this.#mayBe(command.node, goneAt(at));
      return;
    }
    this.behind = false;
    const isRefused = command.kind === "facts" && view?.facts !== command;
    const isOverruled = command.kind === "catalog" && before !== undefined && !isCatalogOnly(before);
    // Active again, though perhaps nobody has said where: what it had before may count again, and what comes late.
    if (before?.deactivated !== undefined && view?.deactivated === undefined) {
      this.#doubtRemoval(command.node);
      this.#mayBe(command.node, ...saysOf(view));
    }
    if (isRefused || isOverruled || view?.deactivated !== undefined || !hasServer(command)) return;
    this.#add(command.node, evidenceOf(command));
  }

  #doubtRemoval(node: string): void {
    const known = this.evidence(node);
    this.#evidence.set(
      node,
      known.map((one) => (one.where === GONE ? { ...one, from: EVER, sure: false } : one)),
    );
  }

  /** PuppetDB forgets the node and all that was submitted for it. */
  purge(node: string): void {
    this.log = this.log.filter((command) => command.node !== node);
    this.#vanish(node, false);
  }

  /** PuppetDB is an older copy of itself. */
  restore(log: Log): void {
    this.log = [...log];
    this.behind = true;
    for (const node of this.nodes) {
      const view = viewOf(this.log, node);
      // A learned route ends with its node, and of what is not certain it may be one.
      const known = this.evidence(node);
      const isLearned = known.length > 1 || known.some(({ kind }) => kind === "hand");
      if (view === undefined) this.#vanish(node, true);
      else if (view.deactivated !== undefined && isLearned) this.#mayBe(node, goneAt(view.deactivated));
      else if (known.some(({ from }) => from === EVER)) this.#mayBe(node, ...this.#says(node));
    }
  }

  /**
   * PuppetDB lists it no more, and nobody can say since when: what is old goes, an order or what was seen lately may
   * stay, and what comes late may bring it back.
   */
  #vanish(node: string, isRestored: boolean): void {
    const now = Date.now();
    const staying = this.evidence(node).filter(
      ({ where, kind, to }) => where !== GONE && (isRestored || kind !== "puppetdb" || now - to < FRESH_MS),
    );
    const gone: Evidence = { where: GONE, kind: "gone", from: EVER, to: now, sure: staying.length === 0 };
    this.#evidence.set(node, [...staying, gone]);
  }

  /** Somebody registers it with a master. Without an answer it may or may not be in force. */
  order(node: string, where: string, from: number, to: number, sure: boolean): void {
    this.#add(node, { where, kind: "order", from, to, sure });
  }

  /** An order or a learned route ends: PuppetDB decides again, by what it has, however old that is. */
  end(node: string): void {
    const view = viewOf(this.log, node);
    const says = view?.deactivated === undefined ? saysOf(view) : [];
    if (says.length === 0 && view !== undefined && view.deactivated === undefined) {
      // It keeps its route until PuppetDB knows any master of it.
      const kept = this.evidence(node).map((one) => ({ ...one, from: EVER, sure: false }));
      this.#evidence.set(node, kept);
      return;
    }
    const gone = { ...goneAt(view?.deactivated ?? Date.now()), ...(view === undefined && { from: EVER }) };
    const before = this.evidence(node);
    this.#evidence.set(node, says.length > 0 ? says : [gone]);
    // An older copy is not believed for a step back; a person who asks for it may get it.
    if (this.behind) this.#mayBe(node, ...before);
  }

  /** What PuppetDB has is older than what is believed: it would be a step back. */
  isStepBack(node: string): boolean {
    return this.#says(node).some((says) =>
      this.evidence(node).some(({ where, to }) => where !== says.where && to > says.from),
    );
  }

  /** A person has approved what PuppetDB says, however old it is. */
  approve(node: string): void {
    this.#mayBe(node, ...this.#says(node));
  }

  #says(node: string): Evidence[] {
    const view = viewOf(this.log, node);
    return view?.deactivated === undefined ? saysOf(view) : [goneAt(view.deactivated)];
  }

  /** A learned route ends with its node: one that was removed, or that PuppetDB has as inactive, has none. */
  isEnded(node: string): boolean {
    const wasRemoved = this.evidence(node).some((one) => one.where === GONE && one !== NEVER_SEEN);
    return wasRemoved || viewOf(this.log, node)?.deactivated !== undefined;
  }

  /** Somebody sets a route in one HAProxy. Not sure until a comparison has seen it there. */
  hand(node: string, where: string): Evidence {
    const hand: Evidence = { where, kind: "hand", from: this.comparedAt, to: Date.now(), sure: false };
    const isEnded = this.isEnded(node);
    this.#add(node, hand);
    if (isEnded) this.#mayBe(node, goneAt(Date.now()));
    return hand;
  }

  /** A comparison is about to see it, where it was set, undisturbed. */
  confirm(node: string, hand: Evidence): void {
    const known = this.evidence(node);
    if (!known.includes(hand)) return;
    hand.sure = true;
    this.#evidence.set(
      node,
      known.filter((one) => one === hand || one.to >= hand.from),
    );
    const deactivated = viewOf(this.log, node)?.deactivated;
    if (deactivated !== undefined) this.#mayBe(node, goneAt(deactivated));
  }

  /**
   * A sasori starts anew. What it keeps is its own routes, what was removed, and the file, which says until when it was
   * written. What PuppetDB has lost since has no date any more: what PuppetDB has instead may count. And what came late, and
   * nobody had read before, looks like a step back and is held.
   */
  restart(): void {
    for (const node of this.nodes) {
      const says = this.#says(node);
      const isLost = ({ kind, where, from, to }: Evidence) =>
        kind === "puppetdb" && !says.some((one) => one.where === where && one.to >= from && one.to <= to);
      const known = this.evidence(node).map((one) => (isLost(one) ? { ...one, from: EVER } : one));
      this.#evidence.set(node, known);
      if (known.some(({ from }) => from === EVER)) this.#mayBe(node, ...says);
      const where = this.#agreed.get(node) ?? GONE;
      const isLate = known.every(({ to }) => to < Date.now() - MUST_BE_NEWS_MS);
      if (isLate) this.#mayBe(node, { where, kind: "puppetdb", from: EVER, to: Date.now(), sure: false });
    }
  }

  /**
   * Everybody agrees on it. What PuppetDB lists no more may still go later. `sharedAt`: there are two sasoris, and one may
   * have learned from HAProxy what the other one brought there, as of this time.
   */
  settle(node: string, where: string, sharedAt: number | undefined): void {
    const isListed = this.knows(node);
    const hasMoved = this.#agreed.get(node) !== where;
    const left = this.evidence(node).filter(
      (one) => one.where === where || (one.where === GONE && one.from === EVER && !isListed),
    );
    this.#agreed.set(node, where);
    const [only] = left;
    if (left.length === 1 && only !== undefined) only.sure = true;
    if (left.length > 0) this.#evidence.set(node, left);
    if (sharedAt === undefined || !hasMoved || where === GONE) return;
    for (const one of left) one.to = Math.max(one.to, sharedAt);
  }

  #add(node: string, news: Evidence): void {
    const { where, from, to } = news;
    const known = this.evidence(node).filter(
      (one) => one.where !== where || one.from !== from || one.to !== to, // A run is facts and a report.
    );
    if (known.some((one) => one.sure && one.from > to)) return;
    const staying = news.sure ? known.filter((one) => one.to >= from) : known;
    this.#evidence.set(node, [...staying, news]);
  }

  /** Allowed as well, however old. */
  #mayBe(node: string, ...more: Evidence[]): void {
    const allowed = this.allowed(node);
    const news = more.filter(({ where }) => !allowed.has(where)).map((one) => ({ ...one, sure: false }));
    this.#evidence.set(node, [...this.evidence(node), ...news]);
  }
}

const goneAt = (at: number): Evidence => ({ where: GONE, kind: "gone", from: at, to: at, sure: true });

const NEVER_SEEN: Evidence = { where: GONE, kind: "gone", from: EVER, to: EVER, sure: true };
