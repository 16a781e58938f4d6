// "Who has this node now?", with a PuppetDB that is slow in ways that no real one is on request, and with more questions
// than the masters are to be asked.

import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, describe, expect, test, vi } from "vitest";
import { SasoriError } from "../src/errors.js";
import { Fleet } from "../src/fleet.js";
import type { Certname, Master } from "../src/node-map.js";
import { Resolver, type ResolverParts } from "../src/resolve.js";
import type { Submission } from "../src/source/puppetdb.js";
import type { Server } from "../src/target/target.js";

const A = "a.example.com" as Certname;
const B = "b.example.com" as Certname;

/** Every producer but `stranger` has a server of its name. */
function resolverOf(
  readNodes: ResolverParts["puppetdb"]["readNodes"],
  fleet = new Fleet(),
  probe: Partial<ResolverParts> = {},
): Resolver {
  return new Resolver({
    fleet,
    puppetdb: { readNodes },
    resolve: () => (producer) => (producer === "stranger" ? undefined : (producer as Master)),
    servers: () => [],
    probePath: undefined,
    onObservation: () => undefined,
    ...probe,
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

describe("a flood of names that nobody knows", () => {
  afterEach(() => void vi.useRealTimers());

  test("leaves room for the nodes of the map, at PuppetDB", async () => {
    const fleet = new Fleet();
    const [asked, answers] = [[] as string[], [] as (() => void)[]];
    const resolver = resolverOf(
      (certnames) =>
        new Promise((resolve) => {
          asked.push(...certnames);
          answers.push(() => resolve(answerOf(A, "master2")));
        }),
      fleet,
    );
    fleet.observe({ certname: A, master: "master1" as Master, at: 1, source: "facts" });
    const flood = Array.from({ length: 300 }, (_, index) =>
      resolver.owner(`bogus${index}` as Certname, undefined).catch((error: SasoriError) => error.code),
    );
    const honest = resolver.owner(A, "master1");
    for (let batch = 0; !asked.includes(A); batch += 1) {
      await expect.poll(() => answers.length).toBe(batch + 1);
      answers[batch]?.();
      expect(batch).toBeLessThan(5);
    }
    answers.at(-1)?.();
    expect(await honest).toBe("master2");
    expect((await Promise.all(flood)).filter((answer) => answer === "BUSY").length).toBe(200);
  });

  test("leaves room for them at the masters", async () => {
    vi.useFakeTimers({ toFake: ["performance"] });
    const hasIt = createServer((request, response) => {
      response.statusCode = request.url === `/${A}` ? 200 : 404;
      response.end();
    });
    await new Promise<void>((resolve) => hasIt.listen(0, "127.0.0.1", resolve));
    const address = `127.0.0.1:${(hasIt.address() as AddressInfo).port}`;
    const fleet = new Fleet();
    fleet.observe({ certname: A, master: "master1" as Master, at: 9, source: "facts" });
    const servers = () => [{ name: "master2" as Master, host: "master2", address, up: true }];
    const resolver = resolverOf(async () => new Map(), fleet, { probePath: "/{certname}", servers });
    const codes = new Set<unknown>();
    for (let index = 0; index < 150; index += 1)
      codes.add(
        await resolver
          .owner(`bogus${index}` as Certname, undefined)
          .catch((error: SasoriError) => error.code),
      );
    expect(codes).toEqual(new Set([undefined, "BUSY"]));
    expect(await resolver.owner(A, "master1")).toBe("master2");
    await new Promise((resolve) => hasIt.close(resolve));
  });
});

describe("a node that the masters are not asked about, because they are asked about too many already", () => {
  afterEach(() => void vi.useRealTimers());

  /** A resolver whose probes of this second are used up, and the masters that it would ask. */
  async function withNoProbeLeft(
    owners: Map<Certname, Submission>,
    use: (resolver: Resolver, fleet: Fleet) => Promise<void>,
  ): Promise<void> {
    vi.useFakeTimers({ toFake: ["performance"] });
    const hasIt = createServer((_request, response) => void response.end());
    await new Promise<void>((resolve) => hasIt.listen(0, "127.0.0.1", resolve));
    const address = `127.0.0.1:${(hasIt.address() as AddressInfo).port}`;
    const servers: Server[] = [];
    const fleet = new Fleet();
    const probe = { probePath: "/{certname}", servers: () => servers };
    const resolver = resolverOf(async () => owners, fleet, probe);
    try {
      for (let index = 0; index < 100; index += 1)
        expect(await resolver.owner(`bogus${index}` as Certname, undefined)).toBeUndefined();
      for (let index = 0; index < 100; index += 1) {
        const certname = `known${index}` as Certname;
        fleet.observe({ certname, master: "master1" as Master, at: 1, source: "facts" });
        expect(await resolver.owner(certname, "master1")).toBeUndefined();
      }
      servers.push({ name: "master2" as Master, host: "master2", address, up: true });
      await use(resolver, fleet);
    } finally {
      await new Promise((resolve) => hasIt.close(resolve));
    }
  }

  test.each([
    ["PuppetDB does not know it", new Map<Certname, Submission>()],
    ["PuppetDB knows it where it is not", answerOf(A, "master1")],
  ])("is neither called unknown nor sent back, and is asked about as soon as that may be: %s", (_, owners) =>
    withNoProbeLeft(owners, async (resolver) => {
      for (let count = 0; count < 2; count += 1)
        await expect(resolver.owner(A, "master1")).rejects.toMatchObject({ code: "BUSY" });
      vi.advanceTimersByTime(1_000);
      expect(await resolver.owner(A, "master1")).toBe("master2");
    }),
  );

  test("is where PuppetDB says, if that is elsewhere, until the masters can be asked", () =>
    withNoProbeLeft(answerOf(A, "master3"), async (resolver, fleet) => {
      fleet.observe({ certname: A, master: "master1" as Master, at: 9, source: "learned" });
      expect(await resolver.owner(A, "master1")).toBe("master3");
      vi.advanceTimersByTime(1_000);
      expect(await resolver.owner(A, "master1")).toBe("master2");
    }));
});
