// "Who has this node now?", with a PuppetDB that is slow on request, and with more questions than the masters may be asked.

import { once } from "node:events";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { Aliases } from "../src/aliases.js";
import { SasoriError } from "../src/errors.js";
import { Fleet } from "../src/fleet.js";
import type { Certname, Master, Observation, Source } from "../src/node-map.js";
import { hasNode, masterAsker } from "../src/probe.js";
import { Resolver, type ResolverParts } from "../src/resolve.js";
import type { Submission } from "../src/source/reading.js";
import { PartlyRead } from "../src/source/source.js";
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
    knowsServers: () => true,
    servers: () => [],
    probePath: undefined,
    hasNode: hasNode(masterAsker({ masterAliases: new Aliases() })),
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

test("a question after a start waits for HAProxy's servers: nobody says that nobody knows better", async () => {
  let knowsServers = false;
  const resolver = resolverOf(async () => answerOf(A, "master2"), new Fleet(), {
    knowsServers: () => knowsServers,
    resolve: () => (producer) => (knowsServers ? (producer as Master) : undefined),
  });
  await expect(resolver.owner(A, "master1")).rejects.toMatchObject({ code: "BUSY" });
  knowsServers = true;
  expect(await resolver.owner(A, "master1")).toBe("master2");
});

describe("a question of which one estate knows a part while another one is silent", () => {
  test("is answered as far as it is known", async () => {
    const resolver = resolverOf(async (_certnames, _signal) => {
      throw new PartlyRead(new SasoriError("PUPPETDB_TIMEOUT", "silent"), answerOf(B, "master1"));
    });
    const answers = await Promise.allSettled([resolver.owner(A, undefined), resolver.owner(B, undefined)]);
    expect(answers).toMatchObject([{ reason: { code: "PUPPETDB_TIMEOUT" } }, { value: "master1" }]);
  });
});

describe("what takes the place of a registration", () => {
  const registrationOf = (certname: Certname): Observation => ({
    ...{ certname, master: "master3" as Master, at: 9, source: "registration" },
  });

  test("is asked for with more patience than there is while a client waits", async () => {
    const resolver = resolverOf(async ([certname = A], signal) => {
      await sleep(1_200, undefined, { signal }).catch(() => {
        throw new SasoriError("PUPPETDB_TIMEOUT", "too slow");
      });
      return answerOf(certname, "master1");
    });
    await expect(resolver.owner(A, undefined)).rejects.toMatchObject({ code: "PUPPETDB_TIMEOUT" });
    expect(await resolver.withoutRegistration(registrationOf(A))).toMatchObject({ master: "master1", at: 5 });
  });

  test("is the route that the node has where its producer has no server, and nothing where PuppetDB knows it not", async () => {
    const fleet = new Fleet();
    fleet.observe({ certname: A, master: "master2" as Master, at: 9, source: "registration" });
    const stranger = resolverOf(async () => answerOf(A, "stranger"), fleet);
    expect(await stranger.withoutRegistration(registrationOf(A))).toEqual({
      certname: A,
      master: "master2",
      at: 5,
      source: "facts",
    });
    expect(
      await resolverOf(async () => new Map(), fleet).withoutRegistration(registrationOf(A)),
    ).toBeUndefined();
  });
});

/** Masters that say, when they are probed, whether they have a node. */
async function withMasters(
  nodes: Record<string, Set<string>>,
  use: (servers: Server[]) => Promise<void>,
): Promise<void> {
  const listening = await Promise.all(
    Object.entries(nodes).map(async ([name, own]) => {
      const server = createServer((request, response) => {
        response.writeHead(own.has((request.url ?? "").slice(1)) ? 200 : 404).end();
      });
      await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
      const address = `127.0.0.1:${(server.address() as AddressInfo).port}`;
      return { server, named: { name: name as Master, host: name, address, state: "up", up: true } as const };
    }),
  );
  try {
    await use(listening.map(({ named }) => named));
  } finally {
    for (const { server } of listening) server.close();
  }
}

const knowing = (master: string, at: number, source: Source = "facts"): Fleet => {
  const fleet = new Fleet();
  fleet.observe({ certname: A, master: master as Master, at, source });
  return fleet;
};

describe("evidence", () => {
  test("is nothing that is older than what the route rests on: a registration stands", async () => {
    const resolver = resolverOf(async () => answerOf(A, "master1"), knowing("master3", 9, "registration"));
    expect(await resolver.owner(A, "master3")).toBeUndefined();
  });

  test("is what PuppetDB says newer than that, and is told once", async () => {
    const told: Observation[] = [];
    const resolver = resolverOf(async () => answerOf(A, "master2"), knowing("master1", 4), {
      onObservation: (observation) => told.push(observation),
    });
    expect(await resolver.owner(A, "master1")).toBe("master2");
    expect(await resolver.owner(A, "master1")).toBe("master2");
    expect(told).toMatchObject([{ certname: A, master: "master2", at: 5, source: "facts" }]);
  });

  test("is not what the map holds while PuppetDB is down: nobody can say that nobody knows better", async () => {
    const down = async () => {
      throw new SasoriError("PUPPETDB_UNREACHABLE", "down");
    };
    for (const fleet of [knowing("master1", 4), new Fleet()])
      await expect(resolverOf(down, fleet).owner(A, "master1")).rejects.toMatchObject({
        code: "PUPPETDB_UNREACHABLE",
      });
  });

  test("of a removed node is what is newer than its deactivation", async () => {
    const fleet = new Fleet();
    fleet.tombstones.set(A, { at: 5 });
    expect(await resolverOf(async () => answerOf(A, "master1"), fleet).owner(A, undefined)).toBeUndefined();
  });

  test.each([
    { what: "is not allowed to", status: 403 },
    { what: "is in trouble", status: 500 },
    { what: "cannot be reached", status: undefined },
  ])("of a master that $what say whether it has the node is no 'no'", ({ status }) =>
    withMasters({ master1: new Set(), master2: new Set([B]) }, async (servers) => {
      const third = createServer((_, response) => response.writeHead(status ?? 500).end());
      await once(third.listen(0, "127.0.0.1"), "listening");
      const address = `127.0.0.1:${(third.address() as AddressInfo).port}`;
      if (status === undefined) third.close();
      const silent = { name: "master3" as Master, host: "master3", address, state: "up", up: true } as const;
      const resolver = resolverOf(async () => new Map(), knowing("master1", 4), {
        probePath: "/{certname}",
        servers: () => [...servers, silent],
      });
      const nobodys = "c.example.com" as Certname;
      await expect(resolver.owner(nobodys, undefined)).rejects.toMatchObject({ code: "PROBE_TIMEOUT" });
      expect(await resolver.owner(A, "master1")).toBeUndefined(); // PuppetDB and the map agree.
      expect(await resolver.owner(B, undefined)).toBe("master2");
      third.close();
    }),
  );

  test("of a master that has the node is nothing new where the map says so, and stores nothing", () =>
    withMasters({ master1: new Set([A]), master2: new Set([A]) }, async (servers) => {
      const told: Observation[] = [];
      const resolver = resolverOf(async () => new Map(), knowing("master1", 4), {
        probePath: "/{certname}",
        servers: () => servers,
        onObservation: (observation) => told.push(observation),
      });
      for (let count = 0; count < 5; count += 1) expect(await resolver.owner(A, "master1")).toBeUndefined();
      expect(told).toEqual([]);
    }));
});

test("a node that moves right after a question that found nothing is found by the next one", async () => {
  let answer = new Map<Certname, Submission>();
  const asked: (readonly Certname[])[] = [];
  const resolver = resolverOf(
    async (certnames) => {
      asked.push(certnames);
      return answer;
    },
    knowing("master1", 4),
  );
  expect(await resolver.owner(A, "master1")).toBeUndefined();
  answer = answerOf(A, "master2");
  expect(await resolver.owner(A, "master1")).toBe("master2");
  expect(asked).toEqual([[A], [A]]);
});

test("many questions are few to PuppetDB: of one node at most the one under way and the next", async () => {
  let asked = 0;
  const resolver = resolverOf(
    async () => {
      asked += 1;
      await sleep(20);
      return new Map();
    },
    knowing("master1", 4),
  );
  await Promise.all(Array.from({ length: 500 }, () => resolver.owner(A, "master1")));
  expect(asked).toBeLessThanOrEqual(2);
});

describe("a flood of names that nobody knows", () => {
  test("leaves room for the nodes of the map, at PuppetDB", async () => {
    const fleet = new Fleet();
    const asked: (readonly Certname[])[] = [];
    const resolver = resolverOf(async (certnames) => {
      asked.push(certnames);
      return answerOf(A, "master2");
    }, fleet);
    fleet.observe({ certname: A, master: "master1" as Master, at: 1, source: "facts" });
    const flood = Array.from({ length: 700 }, (_, index) =>
      resolver.owner(`bogus${index}` as Certname, undefined).catch((error: SasoriError) => error.code),
    );
    expect(await resolver.owner(A, "master1")).toBe("master2");
    expect(asked.findIndex((names) => names.includes(A))).toBe(1); // One question was under way; the next was its turn.
    expect((await Promise.all(flood)).filter((answer) => answer === "BUSY").length).toBe(200);
  });

  test("leaves room for them at the masters", async () => {
    const hasIt = createServer((request, response) => {
      response.statusCode = request.url === `/${A}` ? 200 : 404;
      response.end();
    });
    await new Promise<void>((resolve) => hasIt.listen(0, "127.0.0.1", resolve));
    const address = `127.0.0.1:${(hasIt.address() as AddressInfo).port}`;
    const fleet = new Fleet();
    fleet.observe({ certname: A, master: "master1" as Master, at: 9, source: "facts" });
    const servers = () => [
      { name: "master2" as Master, host: "master2", address, state: "up", up: true } as const,
    ];
    const resolver = resolverOf(async () => new Map(), fleet, { probePath: "/{certname}", servers });
    // At once: on a slow machine, one after the other would be no flood.
    const flood = Array.from({ length: 150 }, (_, index) =>
      resolver.owner(`bogus${index}` as Certname, undefined).catch((error: SasoriError) => error.code),
    );
    expect(await Promise.all(flood)).toContain("BUSY");
    expect(await resolver.owner(A, "master1")).toBe("master2");
    await new Promise((resolve) => hasIt.close(resolve));
  });
});

test("a burst of questions at the masters about nodes of the map waits for its turn, and is told to come back if that is far", () =>
  withMasters({ master2: new Set([A]) }, async (servers) => {
    const fleet = knowing("master1", 4);
    const names = Array.from({ length: 300 }, (_, index) => `node${index}` as Certname);
    for (const certname of names)
      fleet.observe({ certname, master: "master1" as Master, at: 4, source: "facts" });
    const probe = { probePath: "/{certname}", servers: () => servers };
    const resolver = resolverOf(async () => new Map(), fleet, probe);
    const answers = names.map((certname) =>
      resolver.owner(certname, "master1").catch((error: SasoriError) => error.code),
    );
    expect(new Set(await Promise.all(answers.slice(0, 100)))).toEqual(new Set([undefined]));
    const late = (await Promise.all(answers)).filter((code) => code === "BUSY").length;
    expect(late).toBeGreaterThan(0); // How many: a slow machine asks for them in more than one second.
    await expect.poll(() => resolver.owner(A, "master1").catch(() => undefined)).toBe("master2");
  }));
