// Two sasoris that share a file and HAProxy instances, which nobody should do: they converge, no node is there twice, and both
// say that they see another writer.

import { describe, expect, test } from "vitest";
import { Child, freePort } from "../support/child.js";
import type { PuppetdbServer } from "../support/puppetdb-server.js";
import { Arena, CLI, LONG } from "./arena.js";

export function twoSasoris(puppetdb: () => PuppetdbServer): void {
  describe("Two sasoris", () => {
    test("on one file and the same HAProxy instances converge, and both say that somebody else writes", () =>
      Arena.with({ puppetdb: puppetdb() }, async (arena) => {
        const port = await freePort();
        const url = `http://127.0.0.1:${port}`;
        const env = { ...arena.env, SASORI_LISTEN: `127.0.0.1:${port}` };
        const other = new Child(process.execPath, [CLI, "serve"], { env });
        try {
          await other.untilReady(async () => (await fetch(`${url}/readyz`)).ok);
          const sync = [() => arena.sync(), () => fetch(`${url}/api/v1/sync`, { method: "POST" })] as const;
          const metrics = [() => arena.metrics(), async () => (await fetch(`${url}/metrics`)).text()];
          const change = async (index: number) => {
            await arena.moveShare(index % 2 === 0 ? 0.05 : 0.7);
            const name = `new${index}.example`;
            arena.place(name, "master1");
            await arena.puppetdb.replaceFacts({ certname: name, producer: "master1" });
          };
          const rounds = LONG ? 60 : 8;
          await arena.suffer(
            "two sasoris on one file and the same HAProxy instances",
            async (index) => {
              await change(index);
              // At the same moment, for the races between reading and writing.
              await Promise.all(sync.map((start) => start()));
            },
            rounds,
          );
          // Only who comes second finds what the other wrote, and one of them may have been first each time.
          let round = rounds;
          await arena.until("both say that somebody else writes", async () => {
            const told = await Promise.all(metrics.map((read) => read()));
            const logged = [arena.sasori?.printed, other.printed];
            if (
              told.every((text) => text.includes("sasori_foreign_changes_total{")) &&
              logged.every((text) => text?.includes('"changedByOthers":true'))
            ) {
              return true;
            }
            await change(round);
            for (const start of round % 2 === 0 ? sync : sync.toReversed()) await start();
            round += 1;
            return false;
          });
        } finally {
          await other.end();
        }
        // And when one of them is gone, the other has nothing to complain about any more.
        await arena.sync();
        const foreign = () => arena.metricOr0("sasori_foreign_changes_total", `{target="${arena.mapFile}"}`);
        const before = await foreign();
        await arena.moveShare(0.05);
        await arena.untilAgreed();
        expect(await foreign()).toBe(before);
      }));
  });
}
