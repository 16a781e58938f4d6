// Long work in pieces, so that requests are answered meanwhile: HAProxy waits two seconds for the owner of a node, and then
// gives up healing. Work says by `yield` where it may be interrupted. This file decides whether it is.
// Why not a thread: threads of Node share no objects. The fleet would exist twice, and would be copied after each change.
// Receiving a copy of a million nodes takes a second in the very thread that should stay free.

import { LargeMap } from "./large-map.js";

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

export function* listOf<Item>(items: Iterable<Item>): Generator<void, Item[]> {
  const list: Item[] = [];
  yield* eachInPieces(items, (item) => list.push(item));
  return list;
}

export function* copyInPieces<Key extends string, Value>(
  from: ReadonlyMap<Key, Value>,
): Generator<void, LargeMap<Key, Value>> {
  const copy = new LargeMap<Key, Value>();
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
