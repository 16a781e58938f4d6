// What has to change, as values: the plan of one target (desired minus actual), and the three-way comparison that tells a
// route learned by HAProxy from one that is stale.
// Pure: no I/O, no clock.

import {
  type Before,
  type Certname,
  isMaster,
  type Master,
  type NodeMap,
  type Observation,
} from "./node-map.js";
import { eachInPieces, inPieces } from "./pieces.js";
import type { Contents } from "./target/target.js";

/** One entry that changes. No `from`: it is added. No `to`: it is removed. */
export interface Change {
  certname: Certname;
  from?: string;
  to?: Master;
}

export interface Plan {
  kind: "unchanged" | "changes";
  add: Change[];
  set: Change[];
  del: Change[];
  /** The target must be replaced whole, see Contents. */
  rebuild: boolean;
  /** Entries of somebody else that stay, of nodes that are not known. Then the target must not be replaced whole. */
  keepsOthers?: Before;
  /** Nodes that keep the target's entry until PuppetDB has decided. Then they are pushed. */
  undecided: Before;
}

/** Compares everything: for a target whose contents were just read. */
export function* planFromContents(desired: NodeMap, actual: Contents): Generator<void, Plan> {
  const plan = emptyPlan();
  yield* eachInPieces(desired.assignments(), (assignment) =>
    planOne(plan, assignment.certname, actual.routes.get(assignment.certname), assignment),
  );
  // If the target has only entries that are in both, there is nothing to remove.
  if (actual.routes.size > desired.size - plan.add.length) {
    yield* eachInPieces(actual.routes, ([certname, from]) => {
      if (desired.get(certname) === undefined) planOne(plan, certname, from, undefined);
    });
  }
  return settled({ ...plan, rebuild: actual.rebuild });
}

/** Looks only at what changed since the target was in sync: the cost follows the changes, not the fleet. */
export function* planFromChanges(desired: NodeMap, pending: Before): Generator<void, Plan> {
  const plan = emptyPlan();
  yield* eachInPieces(pending, ([certname, from]) => planOne(plan, certname, from, desired.get(certname)));
  return settled(plan);
}

/**
 * As `planFromChanges`, but targets that lack the same changes share one plan. It must be used before `desired` or the
 * pending changes change. With the file and one HAProxy this saves half of the time and memory: 75 MiB with a million nodes.
 */
export function plansFromChanges(desired: NodeMap): (pending: Before) => Promise<Plan> {
  const plans = new Map<Before, Promise<Plan>>();
  return (pending) => {
    const plan = plans.get(pending) ?? inPieces(planFromChanges(desired, pending));
    plans.set(pending, plan);
    return plan;
  };
}

const emptyPlan = (): Plan => ({
  kind: "unchanged",
  add: [],
  set: [],
  del: [],
  rebuild: false,
  undecided: new Map(),
});

/** Adds the change of one entry to the plan. `from` is what the target holds. */
function planOne(plan: Plan, certname: Certname, from: string | undefined, wanted: Observation | undefined) {
  const to = wanted?.master;
  if (from === to) return;
  if (from === undefined) plan.add.push({ certname, to: to as Master });
  else if (to === undefined) plan.del.push({ certname, from });
  // A route that was only inherited from one target never overrules the route of another one. Only PuppetDB can decide.
  else if (wanted !== undefined && isUndecided(wanted)) plan.undecided.set(certname, from as Master);
  else plan.set.push({ certname, from, to });
}

const isUndecided = ({ source, confirmed }: Observation) => source === "inherited" && confirmed !== true;

/**
 * The plan without changes that would remove somebody else's entry. `capitals`: nodes whose key in the map has capital letters.
 * sasori cannot change such an entry, so it adds one in lower case, which HAProxy's lookup finds.
 */
export function* keepingOthers(plan: Plan, capitals: ReadonlySet<Certname>): Generator<void, Plan> {
  const set: Change[] = [];
  const add: Change[] = [];
  const keepsOthers = new Map<Certname, Master>();
  yield* eachInPieces(plan.del, ({ certname, from }) => keepsOthers.set(certname, from as Master));
  yield* eachInPieces(plan.add, (change) => add.push(change));
  yield* eachInPieces(plan.set, (change) => {
    const { from: _, ...added } = change;
    if (capitals.has(change.certname)) add.push(added);
    else set.push(change);
  });
  return settled({ ...plan, add, set, del: [], rebuild: false, keepsOthers });
}

function settled(plan: Plan): Plan {
  const isChanged = plan.rebuild || countOf(plan) > 0;
  return { ...plan, kind: isChanged ? "changes" : "unchanged" };
}

/** The number of entries that the plan changes. */
export const countOf = ({ add, set, del }: Plan): number => add.length + set.length + del.length;

/**
 * Finds the routes that HAProxy learned by itself (a request healed to another master) or that a person set by hand: the same
 * process holds another value than sasori last wrote, and no change of that node waits to be pushed (`pending`). They become
 * observations. All other differences are drift, and are corrected. An undecided node also waits in `pending`. It counts as
 * learned only if its value has changed since.
 */
export function* learnedRoutes(
  desired: NodeMap,
  pending: Before,
  live: Contents,
  isServer: (master: Master) => boolean,
  now: number,
): Generator<void, Observation[]> {
  const learned: Observation[] = [];
  yield* eachInPieces(live.routes, ([certname, master]) => {
    const wanted = desired.get(certname);
    const isOld =
      wanted !== undefined && isUndecided(wanted) ? pending.get(certname) === master : pending.has(certname);
    if (wanted?.master === master || isOld) return;
    if (isMaster(master) && isServer(master)) learned.push({ certname, master, at: now, source: "learned" });
  });
  return learned;
}
