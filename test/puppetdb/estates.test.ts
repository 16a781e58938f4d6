// A primary and its replica, two real PuppetDBs: 7 and 8 where both are there.

import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { parseCertname } from "../../src/node-map.js";
import { withFleetLab } from "../support/fleet-lab.js";
import { partIfThere } from "../support/parts.js";
import { type PuppetdbServer, startPuppetdbs, usualRelease } from "../support/puppetdb-server.js";

const MINUTE = 60_000;
const NODE = "web1.example.com";
const at = (ago: number) => new Date(Date.now() - ago);

let servers: PuppetdbServer[];
let primary: PuppetdbServer;
let replica: PuppetdbServer;
beforeAll(async () => {
  servers = await startPuppetdbs([usualRelease, partIfThere("puppetdb8") ? 8 : usualRelease]);
  [primary, replica] = servers as [PuppetdbServer, PuppetdbServer];
});
afterAll(async () => {
  for (const server of servers) await server.stop();
});
beforeEach(async () => {
  for (const server of servers) await server.reset();
});

describe("two real PuppetDBs", () => {
  test("as estates: each by TLS with its files, their union is the map, and a node goes when both say so", () =>
    withFleetLab([], async (lab) => {
      for (const server of servers) {
        for (let n = 0; n < 12; n += 1)
          await server.replaceFacts({
            certname: `node${n}.${server === primary ? "eu" : "us"}.example.com`,
            producer: "master1",
            at: at(60 * MINUTE),
          });
        await server.storeReport({
          certname: NODE,
          producer: server === primary ? "master1" : "master2",
          at: at(server === primary ? 60 * MINUTE : 50 * MINUTE),
        });
      }
      const files = (kind: "cert" | "key" | "ca") => servers.map(({ tls }) => tls[kind]).join(",");
      const sync = await lab.newSync({
        SASORI_PUPPETDB_URL: servers.map(({ tls }) => tls.url).join(","),
        SASORI_PUPPETDB_CERT: files("cert"),
        SASORI_PUPPETDB_KEY: files("key"),
        SASORI_PUPPETDB_CA: files("ca"),
      });
      expect(await sync.request({ full: true })).toMatchObject({ outcome: "done", nodes: 25 });
      expect(sync.fleet.map.get(parseCertname(NODE))).toMatchObject({
        master: "master2",
        from: replica.tls.url,
      });

      await primary.replaceFacts({ certname: NODE, producer: "master3" });
      expect(await sync.request({})).toMatchObject({ outcome: "done", moved: 1 });
      await primary.deactivateNode(NODE);
      expect(await sync.request({})).toMatchObject({ outcome: "done", nodes: 25 });
      await replica.deactivateNode(NODE);
      expect(await sync.request({})).toMatchObject({ outcome: "done", nodes: 24 });
      expect(await sync.request({ full: true })).toMatchObject({ outcome: "done", nodes: 24 });
    }));

  test("as alternatives: the replica is asked when the primary is stopped, and what it lacks or has older changes nothing", () =>
    withFleetLab([], async (lab) => {
      for (const server of servers)
        for (let n = 0; n < 12; n += 1)
          await server.replaceFacts({
            certname: `node${n}.example.com`,
            producer: "master1",
            at: at(90 * MINUTE),
          });
      await primary.replaceFacts({ certname: "node0.example.com", producer: "master2", at: at(20 * MINUTE) });
      await primary.replaceFacts({ certname: NODE, producer: "master3", at: at(20 * MINUTE) });
      const sync = await lab.newSync({ SASORI_PUPPETDB_URL: servers.map(({ url }) => url).join("|") });
      expect(await sync.request({ full: true })).toMatchObject({ outcome: "done", nodes: 13 });
      const before = await lab.file();

      await primary.stopPuppetdb();
      for (const full of [false, true, false, true])
        expect(await sync.request({ full })).toMatchObject({ outcome: "done" });
      expect(await lab.file()).toEqual(before);
      await replica.replaceFacts({ certname: "node1.example.com", producer: "master2" });
      expect(await sync.request({})).toMatchObject({ outcome: "done", moved: 1 });
    }));
});
