// The commands that list: nodes page by page, moves as they happen. They print as they go, so that neither a large
// fleet nor a long list of moves needs memory.

import { once } from "node:events";
import type { Config } from "../config.js";
import { SasoriError } from "../errors.js";
import type { Move, Moves, Node, Nodes } from "../http/api-shapes.js";
import { shown } from "../http/troubles.js";
import { type Address, askDaemon, daemonEvents, mustAskDaemon } from "./daemon-client.js";
import { MOVE_COLUMNS, moveRow, NODE_COLUMNS, nodeRow } from "./list-text.js";
import { type Style, styleFor } from "./report-text.js";
import { type Format, Table } from "./table.js";

/** The daemon sends a list in pages of at most this size. */
const PAGE = 1_000;

export interface NodesWanted {
  q?: string | undefined;
  master?: string | undefined;
  source?: string | undefined;
  limit: number;
}

/** How a list is printed. */
export interface Look {
  format: Format;
  headers: boolean;
  style: Style;
}

/** `limit` may be Infinity. Without a daemon the map file answers, which does not know where a route comes from. */
export async function listNodes(
  address: Address,
  configure: () => Promise<Config>,
  wanted: NodesWanted,
  { format, ...look }: Look,
): Promise<void> {
  const { q, master, source, limit } = wanted;
  const json = format === "json";
  const table = new Table(NODE_COLUMNS, look);
  const text = (nodes: readonly Node[]) =>
    lines(format === "name" ? nodes.map(({ certname }) => certname) : table.lines(nodes.map(nodeRow)));
  let printed = 0;
  let next: string | null | undefined;
  while (next !== null && printed < limit) {
    const isFirst = next === undefined;
    const size = Math.min(PAGE, limit - printed);
    const path = `/api/v1/nodes?${query({ q, master, source, limit: size, cursor: next })}`;
    // The map file could only start from the beginning, so a daemon that stops halfway is a failure.
    const {
      nodes,
      next: following,
      unroutable = [],
    } = isFirst
      ? ((await askDaemon<Nodes>(address, "GET", path)) ?? (await fromFile(configure, wanted)))
      : await mustAskDaemon<Nodes>(address, "GET", path);
    const noRoute = (one: { certname: string; producer: string }) =>
      `${one.certname} has no route: HAProxy has no server for ${shown(one.producer)}\n`;
    if (!json) process.stderr.write(unroutable.map(noRoute).join(""));
    if (json && isFirst) await write('{"nodes":[');
    await write(json ? jsonRows(nodes, printed === 0) : text(nodes));
    printed += nodes.length;
    next = following ?? null; // A daemon of another version may not tell.
  }
  if (json) await write(`\n],"next":${JSON.stringify(next ?? null)}}\n`);
  else if (printed === 0) process.stderr.write("no nodes found\n");
  else if (next !== null)
    process.stderr.write(`there are more than ${limit}: use --all, or narrow the search\n`);
}

async function fromFile(
  configure: () => Promise<Config>,
  { source, ...wanted }: NodesWanted,
): Promise<Nodes> {
  if (source !== undefined) {
    const what =
      "no daemon is running, and the map file does not hold the source of a route: start `sasori serve`";
    throw new SasoriError("DAEMON", `--source ${source}: ${what}`);
  }
  const { nodesOfFile } = await import("./standalone.js"); // It takes long to load, and a daemon needs none of it.
  const { mapFile } = await configure();
  process.stderr.write(`no daemon is running: these are the nodes of ${mapFile}\n`);
  return nodesOfFile(mapFile, wanted);
}

const lines = (texts: readonly string[]): string => texts.map((text) => `${text}\n`).join("");
const jsonRows = (rows: readonly unknown[], isFirst: boolean): string =>
  rows.map((row, index) => `${isFirst && index === 0 ? "\n" : ",\n"}${JSON.stringify(row)}`).join("");

/** `a=1&b=2` of those that are set. */
export function query(parameters: Readonly<Record<string, string | number | null | undefined>>): string {
  const set = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== undefined && value !== null) set.set(name, String(value));
  }
  return set.toString();
}

/** Waits while the reader of our output is slower than we are. */
async function write(text: string): Promise<void> {
  if (!process.stdout.write(text)) await once(process.stdout, "drain");
}

export interface MovesWanted {
  certname?: string | undefined;
  master?: string | undefined;
  limit: number;
}

/** The newest moves, in the order of a log: the oldest of them first. */
export async function recentMoves(
  address: Address,
  { certname, master, limit }: MovesWanted,
): Promise<Moves> {
  const moves: Move[] = [];
  for (let before: number | undefined; ; ) {
    const asked = query({ certname, master, before, limit: Math.min(PAGE, limit - moves.length) });
    const page = await mustAskDaemon<Moves>(address, "GET", `/api/v1/moves?${asked}`);
    moves.push(...page.moves);
    if (!page.next || moves.length >= limit) return { ...page, moves };
    before = page.next;
  }
}

/**
 * Prints the newest moves and then each as it happens, until it is interrupted. It survives a restart of the daemon.
 */
export async function followMoves(
  address: Address,
  wanted: MovesWanted,
  { format, ...look }: Look,
): Promise<never> {
  const { style } = look;
  const table = new Table(MOVE_COLUMNS, look);
  const text = (moves: readonly Move[]) => {
    if (format === "json") return moves.map((move) => JSON.stringify(move));
    if (format === "name") return moves.map((move) => move.certname);
    return table.lines(moves.map((move) => moveRow(move, style)));
  };
  const { certname, master } = wanted;
  const isWanted = (move: Move) =>
    (certname === undefined || move.certname === certname) &&
    (master === undefined || move.from === master || move.to === master);
  const { dim } = styleFor(process.stderr, process.env);
  const note = (text: string) => process.stderr.write(`${dim(`-- ${text}`)}\n`);
  let lastAt = "";
  let lastId = 0;
  const show = async (moves: readonly Move[]) => {
    const news = moves.filter((move) => {
      // Ids begin again with each start of the daemon, so times are compared.
      if (move.at < lastAt || (move.at === lastAt && move.id <= lastId)) return false;
      [lastAt, lastId] = [move.at, move.id];
      return isWanted(move);
    });
    await write(lines(text(news)));
  };
  const events = daemonEvents(address, (lost) =>
    note(lost ? "lost the connection to the daemon; waiting for it" : "the daemon is back"),
  );
  let begun = false;
  for await (const { event, data } of events) {
    // Asked for only after the events flow: what happens in between comes twice, and is shown once.
    if (!begun) await show([...(await recentMoves(address, wanted)).moves].reverse());
    begun = true;
    if (event === "moves") await show(JSON.parse(data) as Move[]);
    if (event === "reset") await show(await missedMoves(address, wanted));
  }
  throw new SasoriError("INTERNAL", "the events ended");
}

/** After a restart of the daemon, or after more moves than it sends one by one: those that it still has. */
async function missedMoves(address: Address, wanted: MovesWanted): Promise<Move[]> {
  const { moves } = await recentMoves(address, { ...wanted, limit: PAGE }).catch(() => ({ moves: [] }));
  return [...moves].reverse();
}
