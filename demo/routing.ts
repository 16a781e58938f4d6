// Looks at a move from outside, as an operator would: when does the map say it, and when does a request through
// the gateway reach the new master?

import type { Certname, Master } from "../src/node-map.js";
import type { Move } from "./agent.js";
import { ask, mustAsk } from "./http.js";
import { until } from "./processes.js";
import type { Stage } from "./stage.js";

const DEADLINE_MS = 15_000;
const MAP_POLL_MS = 50;
const GATEWAY_POLL_MS = 100;

export interface Routed {
  /** Since the new master has the node. */
  seconds: number;
  /** How the gateway found the master, by its header X-Route: "mapped" is by sasori's map. */
  route: string;
}

/** Tells a node to move; undefined: to the next master. */
export async function moveNode(stage: Stage, certname: string, to?: Master): Promise<Move> {
  const url = `${stage.urls.nodes}/nodes/${certname}/move`;
  return (await mustAsk("POST", url, to === undefined ? undefined : { to })).body as Move;
}

/** Resolves when sasori has put the move into the map file. Rejects after 15 s. */
export function untilMapped({ readMap }: Stage, { certname, to }: Move, signal: AbortSignal): Promise<void> {
  const isMapped = async () => (await readMap()).get(certname) === to;
  return until(`${certname} is in the map at ${to}`, isMapped, {
    deadlineMs: DEADLINE_MS,
    pollMs: MAP_POLL_MS,
    signal,
  });
}

/** Asks for the node through the gateway until its new master answers. Rejects after 15 s. */
export async function untilRouted(stage: Stage, move: Move, signal: AbortSignal): Promise<Routed> {
  let route = "";
  const isRouted = async () => {
    const answer = await ask("GET", stage.urls.gateway, undefined, {
      headers: { "x-node-name": move.certname },
      signal,
    });
    const { node, master } = answer.body as { node?: Certname; master?: Master };
    route = String(answer.headers["x-route"] ?? "");
    return answer.status === 200 && node === move.certname && master === move.to;
  };
  await until(`${move.to} answers for ${move.certname}`, isRouted, {
    deadlineMs: DEADLINE_MS,
    pollMs: GATEWAY_POLL_MS,
    signal,
  });
  return { seconds: (Date.now() - Date.parse(move.at)) / 1000, route };
}
