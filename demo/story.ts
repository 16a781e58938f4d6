// The usual mode: a quick start to follow in a second terminal, and a line for everything that happens meanwhile.

import { mkdir, rm, rmdir, writeFile } from "node:fs/promises";
import path from "node:path";
import { createInterface } from "node:readline";
import { request } from "undici";
import { reason } from "../src/errors.js";
import type { Move } from "./agent.js";
import { untilMapped, untilRouted } from "./routing.js";
import { MASTERS, type Stage } from "./stage.js";
import type { Terminal } from "./terminal.js";

/** Tells until the signal. */
export async function tellStory(stage: Stage, terminal: Terminal, signal: AbortSignal): Promise<void> {
  const envFile = path.join(stage.repository, ".demo", "env");
  await writeEnvFile(envFile, stage);
  try {
    terminal.print(quickStart(stage, terminal));
    await tellMoves(stage, terminal, signal);
  } finally {
    await rm(envFile, { force: true });
    await rmdir(path.dirname(envFile)).catch(() => undefined); // Something else of the user's may be in it.
  }
}

async function writeEnvFile(file: string, { sasoriEnv }: Stage): Promise<void> {
  const quoted = (value: string) => `'${value.replaceAll("'", `'\\''`)}'`;
  const lines = Object.entries(sasoriEnv).map(([name, value]) => `export ${name}=${quoted(value)}\n`);
  await mkdir(path.dirname(file), { recursive: true });
  await writeFile(file, lines.join(""), { mode: 0o600 });
}

function quickStart({ repository, urls, scheduleSeconds }: Stage, { style }: Terminal): string {
  const ask = (node: string, more = "", where = "/") =>
    `curl -s -H 'X-Node-Name: ${node}.example.com' ${more}${urls.gateway}${where}`;
  const move = (node: string, to: string) =>
    `curl -s -d '{"to":"${to}"}' ${urls.nodes}/nodes/${node}.example.com/move`;
  const steps: [string, string[]][] = [
    ["the map", ["grep 'node[1-4]\\.' $SASORI_MAP_FILE"]],
    ["ask through the gateway: the node's own master answers", [ask("node1")]],
    ["run a command on a node", [ask("node2", `-d '{"command":"uptime"}' `, "/run")]],
    [
      `move a node, wait for sasori's schedule (every ${scheduleSeconds} s), ask again`,
      [move("node3", "master1"), `sleep ${scheduleSeconds + 1}`, ask("node3")],
    ],
    [
      "move a node and sync at once: in one line, or the schedule may find the move first",
      [`${move("node4", "master2")} && ./sasori sync`, ask("node4")],
    ],
    ["why does a node go where it goes?", ["./sasori lookup node4"]],
    ["which nodes moved?", ["./sasori moves"]],
    ["ask one master for its nodes", [`curl -s ${urls[MASTERS[0]]}/nodes`]],
  ];
  const pages = [
    ["sasori's page", `${urls.sasori}/`],
    ["HAProxy's stats", `${urls.stats}/stats`, "(admin/admin)"],
    ["sasori's metrics", `${urls.sasori}/metrics`],
  ];
  return [
    "",
    style.bold(`Quick start: in a second terminal, in ${repository}`),
    "",
    "  . .demo/env",
    ...steps.flatMap(([what, commands]) => [
      "",
      `  ${style.dim(`# ${what}`)}`,
      ...commands.map((command) => `  ${command}`),
    ]),
    "",
    style.bold("Pages"),
    ...pages.map(([what = "", url = "", note]) =>
      `  ${what.padEnd(17)} ${url} ${style.dim(note ?? "")}`.trimEnd(),
    ),
    "",
    `${style.bold("What happens")} ${style.dim("(node1 to node4 move only when you tell them to; Ctrl-C ends everything)")}`,
  ].join("\n");
}

/** Follows every move, whoever caused it, until the signal. A node that moves on is followed anew. */
async function tellMoves(stage: Stage, terminal: Terminal, signal: AbortSignal): Promise<void> {
  const followed = new Map<string, AbortController>();
  const { body } = await request(`${stage.urls.nodes}/moves`, { signal, bodyTimeout: 0 });
  for await (const line of createInterface({ input: body })) {
    if (line === "") continue;
    const move = JSON.parse(line) as Move;
    followed.get(move.certname)?.abort();
    const current = new AbortController();
    followed.set(move.certname, current);
    terminal.tell("move", move.certname, `${move.from} → ${move.to}`, "warn");
    void tellRouted(stage, terminal, move, AbortSignal.any([signal, current.signal]));
  }
  signal.throwIfAborted();
}

// The map first: a request that comes too early could teach HAProxy the way, and we want to see sasori do it.
async function tellRouted(stage: Stage, terminal: Terminal, move: Move, signal: AbortSignal): Promise<void> {
  try {
    await untilMapped(stage, move, signal);
    const { seconds } = await untilRouted(stage, move, signal);
    terminal.tell("routed", move.certname, `${move.to} after ${seconds.toFixed(1)} s`);
  } catch (error) {
    if (!signal.aborted)
      terminal.tell("late", move.certname, `not routed to ${move.to}: ${reason(error)}`, "bad");
  }
}
