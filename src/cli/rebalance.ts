// Moves many nodes, one after the other, at a given rate. `sasori rebalance` moves displaced nodes back to the master that they
// left. `sasori drain` moves all nodes of a master to the others. Promises: a master gets nodes only if an HAProxy sees it up
// (so a drained one gets none); a node that cannot be moved does not stop the others; a node that has moved by itself
// meanwhile stays where it is.

import { setTimeout as sleep } from "node:timers/promises";
import { counted, number } from "../counts.js";
import { SasoriError } from "../errors.js";
import type { Displaced, DisplacedNodes, MasterRow, Masters, Nodes, Story } from "../http/api-shapes.js";
import { lacking } from "../http/lacking.js";
import { type Address, isRefused, mustAskDaemon, pagesOf } from "./daemon-client.js";
import { query } from "./listing.js";
import { noSuchMaster } from "./names.js";
import { lacksInWords } from "./report-text.js";

/** How many nodes are read at once. */
const PAGE = 1_000;

type Tell = (line: string) => void;

export interface NodeMove {
  certname: string;
  from: string;
  to: string;
}

/** Moves one node after the other, and counts what failed. */
class Mover {
  readonly #address: Address;
  readonly #pauseMs: number;
  readonly #tell: Tell;
  #begun = false;
  moved = 0;
  readonly #lacks = { untold: 0, unsaved: 0, refused: 0 };

  constructor(address: Address, perMinute: number, tell: Tell) {
    this.#address = address;
    this.#pauseMs = 60_000 / perMinute;
    this.#tell = tell;
  }

  /** When the next one may be moved: at once, if it is the first. */
  async turn(): Promise<void> {
    if (this.#begun) await sleep(this.#pauseMs);
    this.#begun = true;
  }

  /** Whether it was moved. A refusal is reported and counted. */
  async move(certname: string, master: string, place: string): Promise<boolean> {
    try {
      const path = `/api/v1/nodes/${certname}`;
      const story = await mustAskDaemon<Story>(this.#address, "PUT", path, { master });
      const lacks = lacksInWords(story);
      this.moved += 1;
      this.#lacks.untold += lacking(story) > 0 ? 1 : 0;
      this.#lacks.unsaved += story.unsaved ? 1 : 0;
      this.#tell(`${place}  ${certname} → ${master}${lacks && `; ${lacks}`}`);
      return true;
    } catch (error) {
      if (!isRefused(error)) throw error;
      this.#lacks.refused += 1;
      this.#tell(`${place}  ${certname}: ${error.message}`);
      return false;
    }
  }

  /** Reports how many were moved, and what they lack. Returns whether they lack nothing. */
  conclude(what: string): boolean {
    const { untold, unsaved, refused } = this.#lacks;
    this.#tell(`${counted(this.moved, "node")} ${what}`);
    if (untold > 0)
      this.#tell(`${number(untold)} of them are not in every target yet; the next pass writes them`);
    if (unsaved > 0) this.#tell(`${number(unsaved)} of them are not in the state file, see above`);
    if (refused > 0) this.#tell(`${number(refused)} refused, see above`);
    return untold + unsaved + refused === 0;
  }
}

/** All displaced nodes, or those that left this master. */
export async function displacedNodes(address: Address, home: string | undefined): Promise<Displaced[]> {
  const nodes: Displaced[] = [];
  const ask = (cursor: string | undefined) =>
    mustAskDaemon<DisplacedNodes>(
      address,
      "GET",
      `/api/v1/displaced?${query({ home, limit: PAGE, cursor })}`,
    );
  for await (const page of pagesOf(ask)) nodes.push(...page.nodes);
  return nodes;
}

/** Moves nodes back. Prints each move, and at the end what failed. True if nothing did. */
export async function bringHome(
  address: Address,
  nodes: readonly Displaced[],
  perMinute: number,
  tell: Tell,
): Promise<boolean> {
  const mover = new Mover(address, perMinute, tell);
  /** Masters that were found not to be up, and how many nodes are not sent there. */
  const shut = new Map<string, number>();
  for (const [index, { certname, home }] of nodes.entries()) {
    const skipped = shut.get(home);
    if (skipped === undefined) await mover.turn();
    if (
      skipped !== undefined ||
      !(await mastersOf(address)).some((row) => row.master === home && isUp(row))
    ) {
      shut.set(home, (skipped ?? 0) + 1);
      continue;
    }
    await mover.move(certname, home, `${number(index + 1)}/${number(nodes.length)}`);
  }
  const isWell = mover.conclude("moved back");
  for (const [master, count] of shut) tell(`${counted(count, "node")} skipped: no HAProxy sees ${master} up`);
  return isWell && shut.size === 0;
}

/** Where each node of a master would go now. Changes nothing. */
export async function planDrain(address: Address, from: string): Promise<NodeMove[]> {
  const masters = await mastersOf(address);
  const { nodes: count } = rowOf(masters, from);
  const places = placesBut(from, masters);
  if (count > 0 && places.length === 0) throw new SasoriError("HAPROXY_SERVER", noPlace(from));
  const moves: NodeMove[] = [];
  for await (const { nodes } of pagesOf((cursor) => nodesOf(address, from, PAGE, cursor)))
    for (const { certname } of nodes) moves.push({ certname, from, to: takePlace(places) });
  return moves;
}

/**
 * Moves all nodes of a master to the others that are up, each to the one that has the fewest. Prints each move, and at the
 * end what failed. Returns the moves, and whether all went well.
 */
export async function drain(
  address: Address,
  from: string,
  perMinute: number,
  tell: Tell,
): Promise<{ moves: NodeMove[]; isDone: boolean }> {
  const { nodes: total, servers, kind } = rowOf(await mastersOf(address), from);
  if (servers.some(({ state }) => state === "up")) tell(notDrained(from, kind));
  const mover = new Mover(address, perMinute, tell);
  const moves: NodeMove[] = [];
  // The nodes and the masters are asked for again each second: both may change meanwhile.
  const atOnce = Math.min(Math.max(1, Math.floor(perMinute / 60)), PAGE);
  let done = 0;
  const next = (cursor: string | undefined) =>
    mover.turn().then(() => nodesOf(address, from, atOnce, cursor));
  for await (const { nodes } of pagesOf(next)) {
    const places = placesBut(from, await mastersOf(address));
    if (places.length === 0) break;
    for (const [index, { certname }] of nodes.entries()) {
      if (index > 0) await mover.turn();
      done += 1;
      const to = takePlace(places);
      const isMoved = await mover.move(certname, to, `${number(done)}/${number(Math.max(done, total))}`);
      if (isMoved) moves.push({ certname, from, to });
    }
  }
  const isWell = mover.conclude(`moved away from ${from}`);
  const masters = await mastersOf(address);
  const { nodes: left } = rowOf(masters, from);
  const why = placesBut(from, masters).length > 0 ? "refused, or arrived meanwhile" : noPlace(from);
  if (left > 0) tell(`${counted(left, "node")} still there: ${why}`);
  return { moves, isDone: isWell && left === 0 };
}

/** A warning for a master that is not drained: new nodes may still come to it, and moved nodes do not count as displaced. */
const notDrained = (master: string, kind: MasterRow["kind"]) =>
  `${master} is not drained in HAProxy: it still gets new nodes, and \`sasori rebalance\` will not move these back. ` +
  `Drain it first, on the Runtime API socket of each HAProxy: set server ${kind === "pool" ? `${master}/<each server>` : `<backend>/${master}`} state drain`;

async function mastersOf(address: Address): Promise<MasterRow[]> {
  return (await mustAskDaemon<Masters>(address, "GET", "/api/v1/masters")).masters;
}

const nodesOf = (address: Address, master: string, limit: number, cursor: string | null | undefined) =>
  mustAskDaemon<Nodes>(address, "GET", `/api/v1/nodes?${query({ master, limit, cursor })}`);

function rowOf(masters: readonly MasterRow[], name: string): MasterRow {
  const row = masters.find(({ master }) => master === name);
  if (row !== undefined) return row;
  throw noSuchMaster(
    name,
    masters.map(({ master }) => master),
  );
}

/** At least one HAProxy sends it new nodes. */
const isUp = ({ servers }: MasterRow) => servers.some(({ state }) => state === "up");

const placesBut = (from: string, masters: readonly MasterRow[]) =>
  masters.filter((row) => row.master !== from && isUp(row)).map(({ master, nodes }) => ({ master, nodes }));

const noPlace = (from: string) => `no HAProxy sees a master other than ${from} up`;

/** The one that has the fewest nodes, which now has one more. There must be one. */
function takePlace(places: { master: string; nodes: number }[]): string {
  const least = places.reduce((best, place) => (place.nodes < best.nodes ? place : best));
  least.nodes += 1;
  return least.master;
}
