// Servers for new masters, with a scripted DNS resolver.

import { describe, expect, test } from "vitest";
import { Fleet } from "../src/fleet.js";
import { NewMasters, type ServerHost } from "../src/masters.js";
import type { Certname, Master } from "../src/node-map.js";

const OPTIONS = { pattern: /^puppet\d+$/, port: 8140, limit: 4, options: "" };
const NO_SERVERS = [[]];
const NONE_ADDED = new Set<Master>();
const never = new AbortController().signal;

/** Each producer has one node and no server. */
function fleetOf(...producers: string[]): Fleet {
  const fleet = new Fleet();
  for (const producer of producers) {
    const certname = `node-of-${producer}` as Certname;
    fleet.unroutable.set(certname, { certname, producer, at: 1, source: "facts", receivedAt: 0 });
  }
  return fleet;
}

const masters = (count: number) => Array.from({ length: count }, (_, index) => `puppet${index}`);

/** What HAProxy is told to add. */
async function additions(newMasters: NewMasters): Promise<string[]> {
  const told: string[] = [];
  const host: ServerHost = {
    name: "haproxy",
    addServer: async (name, address) => {
      told.push(`${name} ${address}`);
      return "1@1";
    },
    enableServer: async () => "1@1",
    readdressServer: async () => undefined,
    removeServer: async () => undefined,
  };
  await newMasters.settle(host, [], new Map<Master, string>(), never);
  return told;
}

describe("the addresses of new masters", () => {
  test("hold up a pass once and not for each name, while the resolver is silent", async () => {
    const asked: string[] = [];
    const newMasters = new NewMasters(OPTIONS, (name) => {
      asked.push(name);
      return new Promise(() => undefined);
    });
    const fleet = fleetOf(...masters(100));
    for (let pass = 0; pass < 3; pass += 1) {
      const failures = await newMasters.consider(fleet, true, NO_SERVERS, NONE_ADDED, never);
      expect(failures).toHaveLength(OPTIONS.limit);
      expect(failures[0]).toMatchObject({
        code: "HAPROXY_SERVER",
        message: expect.stringContaining("puppet0 gets no server: its name has no address (no answer"),
      });
    }
    expect(asked).toEqual(masters(OPTIONS.limit));
  });

  test("are asked for by turns, and not again at once where there is none", async () => {
    const asked: string[] = [];
    const newMasters = new NewMasters(OPTIONS, async (name) => {
      asked.push(name);
      if (name !== "puppet6") throw new Error("ENOTFOUND");
      return [{ address: "2001:db8::6", family: 6 }];
    });
    const fleet = fleetOf(...masters(7), "elsewhere");
    await newMasters.consider(fleet, true, NO_SERVERS, NONE_ADDED, never);
    expect(await additions(newMasters)).toEqual([]);
    const failures = await newMasters.consider(fleet, true, NO_SERVERS, NONE_ADDED, never);
    expect(failures.map(({ message }) => message)).toEqual(
      masters(6).map((name) => `master ${name} gets no server: its name has no address (ENOTFOUND)`),
    );
    expect(await additions(newMasters)).toEqual(["puppet6 [2001:db8::6]:8140"]);
    expect(asked).toEqual(masters(7));
  });

  test("are taken when they come late", async () => {
    const stop = new AbortController();
    let answer = () => {};
    const answered = new Promise<void>((resolve) => {
      answer = resolve;
    });
    const newMasters = new NewMasters(OPTIONS, async () => {
      stop.abort();
      await answered;
      return [{ address: "192.0.2.1", family: 4 }];
    });
    const fleet = fleetOf("puppet1");
    expect(await newMasters.consider(fleet, true, NO_SERVERS, NONE_ADDED, stop.signal)).toHaveLength(1);
    answer();
    await expect.poll(() => newMasters.consider(fleet, true, NO_SERVERS, NONE_ADDED, never)).toEqual([]);
    expect(await additions(newMasters)).toEqual(["puppet1 192.0.2.1:8140"]);
  });

  test("stay as they are while DNS has them, among others and in any order", async () => {
    let found = ["192.0.2.1"];
    const newMasters = new NewMasters(OPTIONS, async () => found.map((address) => ({ address, family: 4 })));
    const fleet = fleetOf("puppet1");
    for (const [addresses, taken] of [
      [["192.0.2.1"], "192.0.2.1"],
      [["192.0.2.2", "192.0.2.1"], "192.0.2.1"],
      [["192.0.2.3", "192.0.2.2"], "192.0.2.3"],
      [["0.0.0.0"], "192.0.2.3"], // A nameserver that blocks the name.
    ] as const) {
      found = [...addresses];
      expect(await newMasters.consider(fleet, true, NO_SERVERS, NONE_ADDED, never)).toEqual([]);
      expect(await additions(newMasters)).toEqual([`puppet1 ${taken}:8140`]);
    }
  });

  test("are asked for again after a reload, and kept where there is no answer any more", async () => {
    const addresses = ["192.0.2.1", "192.0.2.2"];
    const newMasters = new NewMasters(OPTIONS, async () => {
      const address = addresses.shift();
      if (address === undefined) throw new Error("EAI_AGAIN");
      return [{ address, family: 4 }];
    });
    const fleet = fleetOf("puppet1");
    for (const host of ["192.0.2.1", "192.0.2.2", "192.0.2.2"]) {
      expect(await newMasters.consider(fleet, true, NO_SERVERS, NONE_ADDED, never)).toEqual([]);
      expect(await additions(newMasters)).toEqual([`puppet1 ${host}:8140`]);
    }
  });
});
