// Several estates, each with its own PuppetDBs, read as one source.
// Promises: the newest submission of a node counts, whichever estate has it; a node is active as long as one estate has it;
// an estate that cannot be read keeps the nodes that it had; until every estate was read once, no node counts as gone.

import { type Failure, SasoriError, toFailure } from "../errors.js";
import { LargeMap, LargeSet } from "../large-map.js";
import type { Certname } from "../node-map.js";
import { eachInPieces, inPieces, setOf } from "../pieces.js";
import type { HasServer, Names, Reading } from "./reading.js";
import { keepNewer, PartlyRead, type PuppetdbState, type Source, type Wanted } from "./source.js";

/** A question about a few nodes waits a second at most. */
const OTHERS_MS = 500;

/** An estate that did not answer in time is left alone by changes passes for this long. */
const SILENT_PAUSE_MS = 30_000;

/** What is remembered about one estate. */
interface Estate {
  source: Source;
  /** It did not answer in time; `until` says when it is asked again (`performance.now()`). */
  silent?: { failure: SasoriError; until: number };
  /** Its active nodes in the last reading that was taken over; undefined until it was read. */
  members: LargeSet<Certname> | undefined;
  refused: ReadonlySet<string>;
  withoutProducer: ReadonlySet<Certname>;
}

/** An estate after one reading. */
type Update = Omit<Estate, "source" | "silent"> & {
  reading: Reading | undefined;
  failure: Failure | undefined;
};

export class Estates implements Source {
  readonly #estates: Estate[];
  #updates: Update[] = [];

  constructor(sources: readonly Source[]) {
    this.#estates = sources.map((source) => ({
      source,
      members: undefined,
      refused: new Set(),
      withoutProducer: new Set(),
    }));
  }

  /** True even if an estate was down at the start. Otherwise all others would be read as a whole every few seconds. */
  get canGoOn(): boolean {
    return this.#estates.some(({ source }) => source.canGoOn);
  }

  async read(kind: Reading["kind"], signal: AbortSignal, wanted: Wanted): Promise<Reading> {
    const answers = await Promise.allSettled(
      this.#estates.map((estate) => this.#readOne(estate, kind, signal, wanted)),
    );
    signal.throwIfAborted();
    const updates: Update[] = [];
    for (const [index, estate] of this.#estates.entries())
      updates.push(await inPieces(updateOf(estate, answers[index])));
    this.#updates = updates;
    const [first] = answers;
    if (first?.status === "rejected" && updates.every(({ reading }) => reading === undefined))
      throw first.reason;
    return inPieces(unite(updates, this.#names()));
  }

  /** An estate that hangs would otherwise delay what the others have to tell, in each pass until its deadline. */
  async #readOne(
    estate: Estate,
    kind: Reading["kind"],
    signal: AbortSignal,
    wanted: Wanted,
  ): Promise<Reading> {
    const { silent } = estate;
    if (silent !== undefined && kind === "changes" && performance.now() < silent.until) throw silent.failure;
    delete estate.silent;
    try {
      return await estate.source.read(kind, signal, wanted);
    } catch (error) {
      if (error instanceof SasoriError && error.code === "PUPPETDB_TIMEOUT")
        estate.silent = { failure: error, until: performance.now() + SILENT_PAUSE_MS };
      throw error;
    }
  }

  took(lateMs: number): void {
    for (const [index, { reading, members, refused, withoutProducer }] of this.#updates.entries()) {
      const estate = this.#estates[index];
      if (estate === undefined || reading === undefined) continue;
      Object.assign(estate, { members, refused, withoutProducer });
      estate.source.took(lateMs);
    }
    this.#updates = [];
  }

  /** The names of the PuppetDBs of each estate. */
  #names(): string[][] {
    return this.#estates.map(({ source }) => source.states().map(({ url }) => url));
  }

  /**
   * If one estate knows a node, that counts as evidence without the others. But "no estate knows it" needs an answer of all, and
   * so does, if `patiently`, which observation is the newest. Throws `PartlyRead` if only some have answered.
   */
  async readNodes(
    certnames: readonly Certname[],
    signal: AbortSignal,
    hasServer?: HasServer,
    patiently = false,
  ) {
    const found: Reading["submissions"] = new Map();
    const stop = new AbortController();
    let waiting: NodeJS.Timeout | undefined;
    const late = new SasoriError(
      "PUPPETDB_TIMEOUT",
      "not every PuppetDB says in time whether it has the node",
    );
    const both = AbortSignal.any([signal, stop.signal]);
    const take = (submissions: Reading["submissions"]) => {
      for (const submission of submissions.values()) keepNewer(found, submission);
      if (found.size > 0 && !patiently) waiting ??= setTimeout(() => stop.abort(late), OTHERS_MS);
    };
    const answers = await Promise.allSettled(
      this.#estates.map(async ({ source }) => {
        try {
          take(await source.readNodes(certnames, both, hasServer, patiently));
        } catch (error) {
          if (error instanceof PartlyRead) take(error.found);
          throw error;
        }
      }),
    ).finally(() => clearTimeout(waiting));
    const failed = answers.find((answer) => answer.status === "rejected");
    if (failed !== undefined && (patiently || found.size < certnames.length))
      throw new PartlyRead(failed.reason, found);
    return found;
  }

  states(): PuppetdbState[] {
    return this.#estates.flatMap(({ source }) => source.states());
  }

  async close(): Promise<void> {
    await Promise.all(this.#estates.map(({ source }) => source.close()));
  }
}

function* updateOf(
  { members, refused, withoutProducer }: Estate,
  answer: PromiseSettledResult<Reading> | undefined,
): Generator<void, Update> {
  if (answer?.status !== "fulfilled") {
    const failure = answer && toFailure(answer.reason);
    return { members, refused, withoutProducer, reading: undefined, failure };
  }
  const reading = answer.value;
  if (reading.active !== undefined) {
    return { ...reading, members: yield* setOf(reading.active), reading, failure: undefined };
  }
  return {
    members: yield* membersAfter(reading, members ?? new LargeSet()),
    refused: new Set([...refused, ...reading.refused]),
    withoutProducer: new Set([...withoutProducer, ...reading.withoutProducer]),
    reading,
    failure: undefined,
  };
}

/** The set is copied only if it changes: it may have a million nodes, and this runs every few seconds. */
function* membersAfter(reading: Reading, members: LargeSet<Certname>): Generator<void, LargeSet<Certname>> {
  const { submissions, unroutable, inactive } = reading;
  const told = [...submissions.keys(), ...(unroutable?.keys() ?? [])];
  const come = told.filter((certname) => !members.has(certname) && !inactive.has(certname));
  const gone = [...inactive.keys()].filter((certname) => members.has(certname));
  if (come.length + gone.length === 0) return members;
  const now = yield* setOf(members);
  for (const certname of come) now.add(certname);
  for (const certname of gone) now.delete(certname);
  return now;
}

/** Unites the readings of the estates; `names`: the PuppetDBs of each. */
function* unite(updates: readonly Update[], names: readonly string[][]): Generator<void, Reading> {
  const readings = updates.flatMap(({ reading }) => (reading === undefined ? [] : [reading]));
  const kind = readings.some((reading) => reading.kind === "full") ? "full" : "changes";
  const submissions: Reading["submissions"] = new LargeMap();
  const unroutable: NonNullable<Reading["unroutable"]> = new LargeMap();
  for (const reading of readings) {
    yield* eachInPieces(reading.submissions.values(), (one) => keepNewer(submissions, one));
    yield* eachInPieces(reading.unroutable?.values() ?? [], (one) => keepNewer(unroutable, one));
  }
  yield* eachInPieces(unroutable, ([certname, { at }]) => {
    if ((submissions.get(certname)?.at ?? 0) >= at) unroutable.delete(certname);
  });
  const isWhole = updates.every(({ members }) => members !== undefined);
  const members = updates.map((update) => update.members ?? new LargeSet<Certname>());
  const some = <Value>(pick: (update: Update) => Iterable<Value>) =>
    new Set(updates.flatMap((one) => [...pick(one)]));
  return {
    kind,
    asOf: Math.min(...readings.map(({ asOf }) => asOf)),
    submissions,
    unroutable,
    ahead: new Map(readings.flatMap(({ ahead }) => [...(ahead ?? [])])),
    active: kind === "full" && isWhole ? union(members) : undefined,
    inactive: isWhole ? yield* inactiveInAll(readings, members) : new Map(),
    inactiveCount: readings.reduce((sum, { inactiveCount }) => sum + inactiveCount, 0),
    refused:
      kind === "full"
        ? some(({ refused }) => refused)
        : new Set(readings.flatMap(({ refused }) => [...refused])),
    withoutProducer: some(({ withoutProducer }) => withoutProducer),
    isStandby: readings.some(({ isStandby }) => isStandby === true),
    told: new Set(readings.flatMap((one) => (one.kind === kind ? [...(one.told ?? [])] : []))),
    estates: updates.map(({ members }, index) => ({
      puppetdbs: names[index] ?? [],
      size: members?.size ?? 0,
    })),
    failures: updates.flatMap(({ failure }) => (failure === undefined ? [] : [failure])),
  };
}

function* inactiveInAll(
  readings: readonly Reading[],
  members: readonly LargeSet<Certname>[],
): Generator<void, Reading["inactive"]> {
  const inactive: Reading["inactive"] = new Map();
  for (const reading of readings)
    yield* eachInPieces(reading.inactive, ([certname, at]) => {
      if (!members.some((nodes) => nodes.has(certname)))
        inactive.set(certname, Math.max(at, inactive.get(certname) ?? 0));
    });
  return inactive;
}

/** Not copied: there may be a million. */
function union(members: readonly LargeSet<Certname>[]): Names {
  const all = {
    has: (certname: Certname) => members.some((nodes) => nodes.has(certname)),
    get size() {
      return [...all].length;
    },
    *[Symbol.iterator]() {
      for (const [index, nodes] of members.entries())
        for (const certname of nodes)
          if (!members.slice(0, index).some((before) => before.has(certname))) yield certname;
    },
  };
  return all;
}
