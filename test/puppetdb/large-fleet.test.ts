// 100,000 nodes in the real PuppetDB: what arrives in the file and in HAProxy is compared entry by entry with what
// PuppetDB's own database says.

import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { MASTERS, withFleetLab } from "../support/fleet-lab.js";
import { haproxyBinaries } from "../support/parts.js";
import { patient } from "../support/patience.js";
import { type PuppetdbServer, startPuppetdb } from "../support/puppetdb-server.js";

const NODES = 100_000;
const MOVED = 1_000;

let puppetdb: PuppetdbServer;
beforeAll(async () => {
  puppetdb = await startPuppetdb();
  await puppetdb.fill(NODES, MASTERS);
}, patient(240_000));
afterAll(() => puppetdb.stop());

/** Node to the producer of its factset, read past PuppetDB. */
async function truth(): Promise<Map<string, string>> {
  const rows = await puppetdb.sql(
    "SELECT f.certname, p.name FROM factsets f JOIN producers p ON p.id = f.producer_id ORDER BY f.certname",
  );
  return new Map(rows.split("\n").map((row) => row.split("|") as [string, string]));
}

/** The runs of `MOVED` nodes, spread over the fleet, at another master each, received by PuppetDB now. */
async function move(): Promise<void> {
  await puppetdb.sql(
    `UPDATE factsets f SET timestamp = now(), producer_timestamp = now(),
       producer_id = coalesce((SELECT min(id) FROM producers WHERE id > f.producer_id), (SELECT min(id) FROM producers))
     WHERE f.id % ${NODES / MOVED} = 0`,
  );
}

describe.each(haproxyBinaries())("a fleet of 100,000 nodes beside HAProxy $version", ({ bin }) => {
  test("is right entry by entry after the first pass, and after a change of 1,000 nodes", () =>
    withFleetLab([{ bin }], async (lab) => {
      const sync = await lab.newSync({ SASORI_PUPPETDB_URL: puppetdb.url });
      const same = async () => {
        const expected = await truth();
        expect(expected.size).toBe(NODES);
        // Compared as text: a failed comparison of two big maps would take the reporter minutes.
        const text = (map: Map<string, string>) => [...map].sort().join("\n");
        expect(text(await lab.file()) === text(expected)).toBe(true);
        expect(text((await lab.haproxys[0]?.showMap()) ?? new Map()) === text(expected)).toBe(true);
      };
      const first = await sync.request({});
      expect(first).toMatchObject({ kind: "full", outcome: "done", nodes: NODES });
      await same();
      await move();
      const second = await sync.request({});
      expect(second).toMatchObject({ kind: "changes", outcome: "done", moved: MOVED });
      await same();
    }));
});
