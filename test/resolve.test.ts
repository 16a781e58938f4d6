// "Who has this node now?", with a PuppetDB that is slow in ways that no real one is on request.

import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { SasoriError } from "../src/errors.js";
import { Fleet } from "../src/fleet.js";
import type { Certname, Master } from "../src/node-map.js";
import { Resolver, type ResolverParts } from "../src/resolve.js";
import type { Submission } from "../src/source/puppetdb.js";

const A = "a.example.com" as Certname;
const B = "b.example.com" as Certname;

/** Every producer but `stranger` has a server of its name. */
function resolverOf(readNodes: ResolverParts["puppetdb"]["readNodes"], fleet = new Fleet()): Resolver {
  return new Resolver({
    fleet,
    puppetdb: { readNodes },
    resolve: () => (producer) => (producer === "stranger" ? undefined : (producer as Master)),
    servers: () => [],
    probePath: undefined,
    onObservation: () => undefined,
  });
}

const answerOf = (certname: Certname, producer: string) =>
  new Map<Certname, Submission>([[certname, { certname, producer, at: 5, source: "facts", receivedAt: 0 }]]);

describe("a question behind one that PuppetDB does not answer", () => {
  test("is given up as soon as it is too old itself", async () => {
    const gaveUpOn: string[][] = [];
    const resolver = resolverOf(
      (certnames, signal) =>
        new Promise((_resolve, reject) => {
          signal.addEventListener("abort", () => {
            gaveUpOn.push([...certnames]);
            reject(signal.reason);
          });
        }),
    );
    const first = resolver.owner(A, undefined);
    const second = resolver.owner(B, undefined);
    const failures = await Promise.allSettled([first, second]);
    expect(failures).toMatchObject([
      { reason: { code: "PUPPETDB_TIMEOUT" } },
      { reason: { code: "PUPPETDB_TIMEOUT" } },
    ]);
    expect(gaveUpOn).toEqual([[A]]);
  });
});

describe("what takes the place of a registration", () => {
  test("is asked for with more patience than there is while a client waits", async () => {
    const resolver = resolverOf(async ([certname = A], signal) => {
      await sleep(1_200, undefined, { signal }).catch(() => {
        throw new SasoriError("PUPPETDB_TIMEOUT", "too slow");
      });
      return answerOf(certname, "master1");
    });
    await expect(resolver.owner(A, undefined)).rejects.toMatchObject({ code: "PUPPETDB_TIMEOUT" });
    expect(await resolver.withoutRegistration(A)).toMatchObject({ master: "master1", at: 5 });
  });

  test("is the route that the node has where its producer has no server, and nothing where PuppetDB knows it not", async () => {
    const fleet = new Fleet();
    fleet.observe({ certname: A, master: "master2" as Master, at: 9, source: "registration" });
    const stranger = resolverOf(async () => answerOf(A, "stranger"), fleet);
    expect(await stranger.withoutRegistration(A)).toEqual({
      certname: A,
      master: "master2",
      at: 5,
      source: "facts",
    });
    expect(await resolverOf(async () => new Map(), fleet).withoutRegistration(A)).toBeUndefined();
  });
});
