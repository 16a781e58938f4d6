// `sasori rebalance`: displaced nodes go back to the master that they left while it was down, one after the other.
// Promises: none is sent to a master that no HAProxy sees up; a node that cannot be moved stops no other.

import { setTimeout as sleep } from "node:timers/promises";
import type { Displaced, Masters, Story } from "../http/api-shapes.js";
import { lacking } from "../http/lacking.js";
import { counted } from "../http/troubles.js";
import { type Address, isRefused, mustAskDaemon } from "./daemon-client.js";
import { lacksInWords } from "./report-text.js";

/** Tells each node that goes home, and at the end what did not go well. Returns whether everything did. */
export async function bringHome(
  address: Address,
  nodes: readonly Displaced[],
  perMinute: number,
  tell: (line: string) => void,
): Promise<boolean> {
  /** Masters that were found down, and how many nodes are not sent there. */
  const down = new Map<string, number>();
  const counts = { home: 0, untold: 0, unsaved: 0, refused: 0 };
  for (const [index, { certname, home }] of nodes.entries()) {
    const skipped = down.get(home);
    if (skipped === undefined && index > 0) await sleep(60_000 / perMinute);
    if (skipped !== undefined || !(await isUp(address, home))) {
      down.set(home, (skipped ?? 0) + 1);
      continue;
    }
    const place = `${index + 1}/${nodes.length}  ${certname}`;
    try {
      const path = `/api/v1/nodes/${certname}`;
      const story = await mustAskDaemon<Story>(address, "PUT", path, { master: home });
      const lacks = lacksInWords(story);
      counts.home += 1;
      counts.untold += lacking(story) > 0 ? 1 : 0;
      counts.unsaved += story.unsaved ? 1 : 0;
      tell(`${place} → ${home}${lacks && `; ${lacks}`}`);
    } catch (error) {
      if (!isRefused(error)) throw error;
      counts.refused += 1;
      tell(`${place}: ${error.message}`);
    }
  }
  tell(`${counted(counts.home, "node")} brought home`);
  if (counts.untold > 0) tell(`${counts.untold} of them not in every target: the next pass tells it`);
  if (counts.unsaved > 0) tell(`${counts.unsaved} of them not in the state file, see above`);
  if (counts.refused > 0) tell(`refused ${counts.refused}, see above`);
  for (const [master, count] of down) tell(`skipped ${count}: no HAProxy sees ${master} up`);
  return counts.untold + counts.unsaved + counts.refused + down.size === 0;
}

async function isUp(address: Address, name: string): Promise<boolean> {
  const { masters } = await mustAskDaemon<Masters>(address, "GET", "/api/v1/masters");
  return masters.some(({ master, servers }) => master === name && servers.some(({ up }) => up));
}
