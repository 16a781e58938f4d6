// `npm run demo -- --once`: a fixed script of moves, each checked by requests through the gateway.

import { setTimeout as sleep } from "node:timers/promises";
import type { Move } from "./agent.js";
import { moveNode, type Routed, untilMapped, untilRouted } from "./routing.js";
import type { Stage } from "./stage.js";
import { formatTable, type Terminal } from "./terminal.js";

/** The nodes that the script moves are node1 to this one. */
export const SCRIPTED_NODES = 12;

interface Scene {
  title: string;
  /** Moved at the same time. Each goes to the master after the one it is at. */
  nodes: readonly number[];
  /** Whether the first request is sent at once, or when sasori has put the move into the map. */
  asked: "at once" | "when mapped";
}

const SCENES: readonly Scene[] = [
  { title: "one node", nodes: [1], asked: "when mapped" },
  { title: "another one", nodes: [2], asked: "when mapped" },
  { title: "eight at once", nodes: [3, 4, 5, 6, 7, 8, 9, 10], asked: "when mapped" },
  { title: "two that are asked for before sasori can know", nodes: [11, 12], asked: "at once" },
  { title: "the first one again", nodes: [1], asked: "when mapped" },
  { title: "and back to where it was", nodes: [1], asked: "when mapped" },
];

type Check = Move & (Routed | { failure: string });

/** Plays the script and prints the table. True if every move was routed in time. */
export async function playScript(stage: Stage, terminal: Terminal, signal: AbortSignal): Promise<boolean> {
  const checks: Check[] = [];
  for (const scene of SCENES) {
    // Right after a pass every move would wait the longest. Real nodes do not keep step with sasori.
    await sleep(Math.random() * stage.scheduleSeconds * 1_000, undefined, { signal });
    terminal.print(terminal.style.dim(`-- ${scene.title}`));
    checks.push(...(await playScene(scene, stage, terminal, signal)));
  }
  const routed = checks.filter((check) => "route" in check);
  const failed = checks.length - routed.length;
  terminal.print("");
  for (const line of tableOf(checks)) terminal.print(line);
  const slowest = Math.max(...routed.map(({ seconds }) => seconds)).toFixed(1);
  const summary = `${routed.length} of ${checks.length} moves routed${routed.length > 0 ? `, the slowest after ${slowest} s` : ""}`;
  terminal.print(`\n${terminal.style[failed === 0 ? "good" : "bad"](summary)}`);
  return failed === 0;
}

async function playScene(
  scene: Scene,
  stage: Stage,
  terminal: Terminal,
  signal: AbortSignal,
): Promise<Check[]> {
  const certnames = scene.nodes.map((number) => `node${number}.example.com`);
  const moves = await Promise.all(certnames.map((certname) => moveNode(stage, certname)));
  const waiting = new Set(certnames);
  const began = Date.now();
  const progress = setInterval(() => {
    const seconds = ((Date.now() - began) / 1000).toFixed(1);
    terminal.waiting(`${seconds} s … waiting for ${[...waiting].join(", ")}`);
  }, 100);
  try {
    return await Promise.all(
      moves.map(async (move) => {
        terminal.tell("move", move.certname, `${move.from} → ${move.to}`, "warn");
        const check = await follow(move, scene.asked, stage, signal);
        waiting.delete(move.certname);
        if ("failure" in check) terminal.tell("failed", move.certname, check.failure, "bad");
        else terminal.tell("routed", move.certname, `${move.to} after ${check.seconds.toFixed(1)} s`);
        return check;
      }),
    );
  } finally {
    clearInterval(progress);
  }
}

async function follow(move: Move, asked: Scene["asked"], stage: Stage, signal: AbortSignal): Promise<Check> {
  try {
    if (asked === "when mapped") await untilMapped(stage, move, signal);
    return { ...move, ...(await untilRouted(stage, move, signal)) };
  } catch (error) {
    signal.throwIfAborted();
    return { ...move, failure: error instanceof Error ? error.message : String(error) };
  }
}

function tableOf(checks: readonly Check[]): string[] {
  const rows = checks.map((check) => [
    check.certname,
    check.from,
    check.to,
    "route" in check ? check.seconds.toFixed(2) : "never",
    "route" in check ? check.route : check.failure,
  ]);
  return formatTable([["node", "from", "to", "seconds until routed", "route"], ...rows]);
}
