// kill -9 of sasori, at every step of a pass and at random moments. Whatever the moment: the file is whole, no half
// version is committed, what was left unfinished is dropped by the next start, and the next pass repairs.

import { watch } from "node:fs";
import path from "node:path";
import { isDeepStrictEqual } from "node:util";
import { describe, expect, test } from "vitest";
import { showMap } from "../support/haproxy-server.js";
import type { PuppetdbServer } from "../support/puppetdb-server.js";
import { ON_DEMAND } from "../support/schedules.js";
import { Arena, type Gateway, LONG, parseMap, sleep } from "./arena.js";

/** Makes `kill` happen at a step; the result takes it away again. */
type Step = (arena: Arena, kill: () => void) => () => void;

const RANDOM_TRIES = LONG ? 200 : 16;
const RANDOM_WITHIN_MS = 400;

/** So that the pass of the next start must repair everything: no schedule, and nothing learned from requests. */
const START_ONLY = { ...ON_DEMAND, SASORI_PROBE_PATH: "" };

/** Kills when a line that matches comes by for the nth time. */
const atLine =
  (match: RegExp, nth = 1, after = false): Step =>
  (arena, kill) => {
    let seen = 0;
    for (const { front } of arena.gateways) {
      front.tap = {
        line(line, { haproxy }) {
          if (!match.test(line)) return undefined;
          seen += 1;
          if (seen !== nth) return undefined;
          // HAProxy has it, and nobody hears the answer; or it never had it.
          if (after) haproxy.write(`${line}\n`);
          kill();
          return "stall";
        },
      };
    }
    return () => {
      for (const { front } of arena.gateways) front.tap = {};
    };
  };

/** Kills in the middle of the reply to a line that matches. */
const inReplyTo =
  (match: RegExp): Step =>
  (arena, kill) => {
    for (const { front } of arena.gateways) {
      let isIt = false;
      front.tap = {
        line(line) {
          isIt ||= match.test(line);
          return undefined;
        },
        reply(chunk, { client }) {
          if (!isIt || chunk.length < 100) return undefined;
          client.write(chunk.subarray(0, chunk.length / 2));
          kill();
          return "stall";
        },
      };
    }
    return () => {
      for (const { front } of arena.gateways) front.tap = {};
    };
  };

/** Kills when something happens to a file of the map's folder. */
const atFile =
  (event: "rename" | "change", match: RegExp): Step =>
  (arena, kill) => {
    const watcher = watch(path.dirname(arena.mapFile), (kind, name) => {
      if (kind === event && match.test(name ?? "")) kill();
    });
    return () => watcher.close();
  };

const STEPS: Record<string, { at: Step; share: number }> = {
  "looking at HAProxy": { at: atLine(/^show info/), share: 1 },
  "asking PuppetDB": {
    at: (arena, kill) => {
      arena.front.tap = { asked: (entity) => (entity === "factsets" ? kill() : undefined) };
      return () => {
        arena.front.tap = {};
      };
    },
    share: 1,
  },
  "half of PuppetDB's answer": {
    at: (arena, kill) => {
      arena.front.tap = {
        text(response, text) {
          response.write(text.slice(0, text.length / 2));
          setTimeout(kill, 5);
        },
      };
      return () => {
        arena.front.tap = {};
      };
    },
    share: 1,
  },
  "the temp file is there": { at: atFile("rename", /\.tmp$/), share: 1 },
  "the temp file is filled": { at: atFile("change", /\.tmp$/), share: 1 },
  "the file was replaced": { at: atFile("rename", /^nodes\.map$/), share: 1 },
  "half of a live map read": { at: inReplyTo(/^show map #/), share: 1 },
  "before the version is made": { at: atLine(/^prepare map/), share: 1 },
  "after the version is made": { at: atLine(/^prepare map/, 1, true), share: 1 },
  "the version is half filled": { at: atLine(/^add map @/, 2), share: 1 },
  "half of the version read back": { at: inReplyTo(/^show map @/), share: 1 },
  "before the commit": { at: atLine(/^commit map/), share: 1 },
  "after the commit": { at: atLine(/^commit map/, 1, true), share: 1 },
  "the third single change": { at: atLine(/^set map/, 3), share: 0.02 },
  "after a single change": { at: atLine(/^set map/, 2, true), share: 0.02 },
};

export function killFaults(puppetdb: () => PuppetdbServer): void {
  describe("kill -9 of sasori", () => {
    test("at each step of a pass leaves a whole file, no half version, and nothing that the next start does not repair", () =>
      Arena.with({ puppetdb: puppetdb(), env: START_ONLY }, async (arena) => {
        for (const [step, { at, share }] of Object.entries(STEPS)) {
          await arena.suffer(`kill -9: ${step}`, async () => {
            const before = new Map(arena.owners);
            const undo = at(
              arena,
              once(() => process.kill(arena.pid, "SIGKILL")),
            );
            await arena.moveShare(share);
            void arena.sync().catch(() => undefined);
            await arena.until(`killed at: ${step}`, () => arena.sasori?.ended === true, 10_000);
            undo();
            await expectWhole(arena, before);
            await arena.startSasori();
          });
        }
      }));

    test("at a random moment does neither", () =>
      Arena.with({ puppetdb: puppetdb(), env: START_ONLY }, async (arena) => {
        await arena.suffer(
          "kill -9: at random",
          async (index) => {
            const before = new Map(arena.owners);
            await arena.moveShare(index % 3 === 0 ? 0.02 : 0.6);
            // Every second time in the pass that a start begins with.
            if (index % 2 === 0) void arena.sync().catch(() => undefined);
            else {
              await arena.sasori?.end("SIGKILL");
              arena.spawnSasori();
              await sleep(250);
            }
            await sleep(Math.random() * RANDOM_WITHIN_MS);
            await arena.sasori?.end("SIGKILL");
            await expectWhole(arena, before);
            await arena.startSasori();
          },
          RANDOM_TRIES,
        );
        expect((await arena.leftovers()).length).toBeLessThan(RANDOM_TRIES);
      }));
  });
}

const once = (act: () => void) => {
  let done = false;
  return () => {
    if (!done) act();
    done = true;
  };
};

/** HAProxy may still be at the last command that it got, and while it commits a version it shows neither as a whole. */
async function mapAtRest(arena: Arena, { haproxy, map }: Gateway): Promise<Map<string, string>> {
  let found = await showMap(haproxy.socketPath, map);
  await arena.until("a map at rest", async () => {
    const before = found;
    found = await showMap(haproxy.socketPath, map);
    return isDeepStrictEqual(found, before);
  });
  return found;
}

/** Each entry of the file and of every live map is there once, and is either the old one or the new one. */
export async function expectWhole(arena: Arena, before: ReadonlyMap<string, string>): Promise<void> {
  const maps = [parseMap(await arena.fileText())];
  for (const gateway of arena.gateways) maps.push(await mapAtRest(arena, gateway));
  for (const entries of maps) {
    expect([...entries.keys()].sort()).toEqual([...arena.owners.keys()].sort());
    for (const [node, master] of entries)
      expect([before.get(node), arena.owners.get(node)]).toContain(master);
  }
}
