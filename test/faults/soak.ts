// Ten minutes of everything at once, in the long form: memory and descriptors stay flat, and nothing drifts.

import { describe, expect, test } from "vitest";
import type { PuppetdbServer } from "../support/puppetdb-server.js";
import { Arena, LONG, sleep } from "./arena.js";

const MINUTES = Number(process.env.SOAK_MINUTES ?? 10);
const NODES = 10_000;
/** Before this share of the time nothing is compared: caches fill, V8 settles. */
const WARM_UP = 0.3;

interface Sample {
  bytes: number;
  descriptors: number;
}

export function soak(puppetdb: () => PuppetdbServer): void {
  if (!LONG) return;
  describe("Soak", () => {
    test(
      `${MINUTES} minutes with ${NODES} nodes that move, reloads of HAProxy and restarts of PuppetDB leave no leak and no drift`,
      { timeout: (MINUTES + 5) * 60_000 },
      () =>
        Arena.with(
          { puppetdb: puppetdb(), nodes: NODES, masterWorker: true, hastyMs: 60_000 },
          async (arena) => {
            const samples: Sample[] = [];
            await arena.suffer(`soak: ${MINUTES} minutes, ${NODES} nodes`, async () => {
              const end = Date.now() + MINUTES * 60_000;
              for (let turn = 1; Date.now() < end; turn += 1) {
                await arena.moveShare(turn % 20 === 0 ? 0.4 : 0.002);
                if (turn % 30 === 0) await arena.gateways[turn % arena.gateways.length]?.haproxy.reload();
                if (turn % 150 === 0) {
                  await arena.puppetdb.stopPuppetdb();
                  await arena.puppetdb.startPuppetdb();
                }
                if (turn % 50 === 0) await arena.sync({ full: true });
                for (const master of arena.masters) master.nodesAsked.length = 0;
                samples.push({
                  bytes: await arena.metric("process_resident_memory_bytes"),
                  descriptors: await arena.metric("process_open_fds"),
                });
                await sleep(500);
              }
            });
            const settled = samples.slice(Math.floor(samples.length * WARM_UP));
            const half = Math.floor(settled.length / 2);
            const [early, late] = [settled.slice(0, half), settled.slice(half)];
            const most = (list: Sample[], of: keyof Sample) => Math.max(...list.map((sample) => sample[of]));
            console.log(
              `soak: ${samples.length} turns; most memory and descriptors in the two halves after warm-up:`,
            );
            console.log(
              `  ${most(early, "bytes") >> 20} MiB, ${most(late, "bytes") >> 20} MiB; ${most(early, "descriptors")}, ${most(late, "descriptors")}`,
            );
            expect(most(late, "bytes")).toBeLessThan(most(early, "bytes") * 1.15 + 8 * 1024 * 1024);
            expect(most(late, "descriptors")).toBeLessThan(most(early, "descriptors") + 10);
          },
        ),
    );
  });
}
