// Long work in pieces, so that requests are answered meanwhile: HAProxy waits two seconds for the owner of a node, and then
// gives up healing. Work says by `yield` where it may be interrupted. This file decides whether it is.
// Why not a thread: threads of Node share no objects. The fleet would exist twice, and would be copied after each change.
// Receiving a copy of a million nodes takes a second in the very thread that should stay free.

import { LargeMap, LargeSet } from "./large-map.js";

/**
 * Length of a piece. The goal is to answer within 50 ms with 100,000 nodes. The rest of that is for V8's memory collection.
 */
const PIECE_MS = 10;

/** When other work last got a turn. There is one such time for all work, because several tasks may run in the same turn. */
let began = 0;
let next: Promise<void> | undefined;

const isTime = () => performance.now() - began > PIECE_MS;

/**
 * Lets other work run, if a piece is over. The other work must not change anything that the caller's work reads or changes.
 */
export async function letOthersIn(): Promise<void> {
  if (isTime()) await breathe();
}

function breathe(): Promise<void> {
  next ??= new Promise((resolve) => {
    setImmediate(() => {
      next = undefined;
      began = performance.now();
      resolve();
    });
  });
  return next;
}

/** Nothing that the work reads or changes may be changed by others until it is done. */
export async function inPieces<Result>(work: Generator<void, Result>): Promise<Result> {
  for (;;) {
    const { done, value } = work.next();
    if (done) return value;
    if (isTime()) await breathe();
  }
}

/** Some entries are a piece of work of half a millisecond. */
const STEP = 256;

/** Goes through the items. Between some of them the work may be interrupted. */
export function* eachInPieces<Item>(items: Iterable<Item>, use: (item: Item) => void): Generator<void> {
  let count = 0;
  for (const item of items) {
    use(item);
    count += 1;
    if (count % STEP === 0) yield;
  }
}

export function* mapInPieces<Item, Result>(
  items: Iterable<Item>,
  use: (item: Item) => Result,
): Generator<void, Result[]> {
  const results: Result[] = [];
  yield* eachInPieces(items, (item) => results.push(use(item)));
  return results;
}

export const listOf = <Item>(items: Iterable<Item>) => mapInPieces(items, (item) => item);

export function* setOf<Key extends string>(keys: Iterable<Key>): Generator<void, LargeSet<Key>> {
  const set = new LargeSet<Key>();
  yield* eachInPieces(keys, (key) => set.add(key));
  return set;
}

/** The latest of the items' times (ms); 0 if there is none. */
export function* latestOf<Item>(
  items: Iterable<Item>,
  timeOf: (item: Item) => number,
): Generator<void, number> {
  let latest = 0;
  yield* eachInPieces(items, (item) => {
    latest = Math.max(latest, timeOf(item));
  });
  return latest;
}

/** Copies the entries into `copy`, or into a new map. */
export function* copyInPieces<Key extends string, Value>(
  from: ReadonlyMap<Key, Value>,
  copy: Map<Key, Value> = new LargeMap(),
): Generator<void, Map<Key, Value>> {
  yield* eachInPieces(from, ([key, value]) => copy.set(key, value));
  return copy;
}

/** How many are sorted in one go. */
const RUN = 1_000;

/** A merge sort. `compare` works as for Array's sort; no two items may be equal. */
export function* sortInPieces<Item>(
  items: Iterable<Item>,
  compare: (a: Item, b: Item) => number,
): Generator<void, Item[]> {
  let runs: Item[][] = [];
  let run: Item[] = [];
  for (const item of items) {
    run.push(item);
    if (run.length < RUN) continue;
    runs.push(run.sort(compare));
    run = [];
    yield;
  }
  runs.push(run.sort(compare));
  while (runs.length > 1) {
    const longer: Item[][] = [];
    for (let index = 0; index < runs.length; index += 2)
      longer.push(yield* zip(runs[index] ?? [], runs[index + 1] ?? [], compare));
    runs = longer;
  }
  return runs[0] ?? [];
}

/** Merges two sorted lists. */
function* zip<Item>(
  left: Item[],
  right: Item[],
  compare: (a: Item, b: Item) => number,
): Generator<void, Item[]> {
  if (right.length === 0) return left;
  const items: Item[] = [];
  let at = 0;
  yield* eachInPieces(left, (item) => {
    while (at < right.length && compare(right[at] as Item, item) < 0) items.push(right[at++] as Item);
    items.push(item);
  });
  while (at < right.length) items.push(right[at++] as Item);
  return items;
}
