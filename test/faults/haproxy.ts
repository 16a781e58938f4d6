// What HAProxy instances may do, on all three versions by turns, with workers that are reloaded. The others are served
// meanwhile, and the one that suffered is brought up to date when it can be.

import { once } from "node:events";
import { readFile, rename, writeFile } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import path from "node:path";
import { describe, expect, test } from "vitest";
import { runtimeCommand } from "../support/haproxy-server.js";
import type { PuppetdbServer } from "../support/puppetdb-server.js";
import { Arena, differences, type Gateway, LONG } from "./arena.js";

const FEW = 0.02;
const MANY = 0.6;

/** As many as HAProxy allows on one stats socket. */
const MAX_CONNECTIONS = 10;

export function haproxyFaults(puppetdb: () => PuppetdbServer): void {
  const withArena = (use: (arena: Arena) => Promise<void>, options = {}) =>
    Arena.with({ puppetdb: puppetdb(), masterWorker: true, ...options }, use);

  describe("HAProxy", () => {
    test("may be down, killed, without its socket, or refuse: the others are served, and it is up to date when it is back", () =>
      withArena(
        async (arena) => {
          await onEach(arena, "HAProxy: down when sasori starts", async (gateway) => {
            const isUp = arena.down(gateway);
            await arena.sasori?.end();
            await gateway.haproxy.kill();
            await arena.moveShare(FEW);
            await arena.startSasori();
            await arena.untilShown(
              "HAPROXY_UNREACHABLE",
              gateway.target,
              /nothing listens there: start HAProxy/,
            );
            await othersAgree(arena, gateway);
            await gateway.haproxy.restart();
            isUp();
          });
          await onEach(arena, "HAProxy: killed, and started again later", async (gateway) => {
            const isUp = arena.down(gateway);
            await gateway.haproxy.kill();
            await arena.moveShare(MANY);
            await othersAgree(arena, gateway);
            await gateway.haproxy.restart();
            isUp();
          });
          await onEach(arena, "HAProxy: its socket is gone", async (gateway) => {
            const { socketPath } = gateway.haproxy;
            const hidden = `${socketPath}.hidden`;
            await rename(socketPath, hidden);
            await arena.moveShare(FEW);
            await arena.untilShown("HAPROXY_UNREACHABLE", gateway.target, /no such socket/);
            await rename(hidden, socketPath);
          });
        },
        { direct: true },
      ));

    test("may have its map or backend renamed: sasori leaves it alone, says which names there are, and goes on after", () =>
      withArena(async (arena) => {
        const [gateway] = arena.gateways;
        if (gateway === undefined) throw new Error("no HAProxy");
        await arena.suffer("HAProxy: the map is renamed", async () => {
          const other = path.join(gateway.haproxy.dir, "other.map");
          await writeFile(other, await arena.fileText());
          const undo = await reconfigure(gateway, (text) => text.replace(`"${gateway.map}"`, `"${other}"`));
          await arena.moveShare(FEW);
          await arena.untilShown("HAPROXY_MAP", gateway.target, /it has: .*other\.map.*set SASORI_MAP_NAME/);
          await othersAgree(arena, gateway);
          await undo();
        });
        await arena.suffer("HAProxy: the backend is renamed", async () => {
          // heal.lua knows the backend by its name too: what such a gateway answers is no matter of sasori's.
          const isUp = arena.down(gateway);
          const undo = await reconfigure(gateway, (text) =>
            text.replaceAll(/^(backend| {2}default_backend) puppet$/gm, "$1 other"),
          );
          await arena.untilShown(
            "HAPROXY_BACKEND",
            gateway.target,
            /no backend "puppet": set SASORI_BACKEND/,
          );
          await othersAgree(arena, gateway);
          await undo();
          isUp();
          arena.excuse();
        });
      }));

    test("may refuse a server at run time, or a producer have no address: sasori says so, and adds it when it can", () =>
      withArena(
        async (arena) => {
          await onEach(arena, "HAProxy: the socket is no longer level admin", async (gateway) => {
            // To read and write maps no level is needed up to HAProxy 3.2; to add a server it is.
            const undo = await reconfigure(gateway, (text) =>
              text.replace("level admin mode", "level user mode"),
            );
            if (gateway === arena.gateways[0]) {
              arena.place("new.example", "localhost");
              await arena.puppetdb.replaceFacts({ certname: "new.example", producer: "localhost" });
              await arena.puppetdb.replaceFacts({ certname: "lost.example", producer: "nowhere.invalid" });
              await arena.untilShown(
                "HAPROXY_SERVER",
                "masters",
                /nowhere\.invalid gets no server: its name has no address/,
              );
              await arena.puppetdb.deactivateNode("lost.example");
            }
            await arena.untilShown("HAPROXY_PERMISSION", gateway.target, /needs "level admin"/);
            await undo();
          });
          await arena.until("every HAProxy has the server", async () => {
            const asked = arena.gateways.map(({ haproxy }) =>
              runtimeCommand(haproxy.socketPath, "show servers state puppet"),
            );
            return (await Promise.all(asked)).every((state) => state.includes(" localhost "));
          });
        },
        { env: { SASORI_NEW_MASTERS: "localhost|nowhere\\.invalid" }, direct: true },
      ));

    test("may be reloaded in the middle of a push, the old worker still alive, or start from an old file", () =>
      withArena(
        async (arena) => {
          for (const { haproxy } of arena.gateways) {
            await writeFile(haproxy.mapPath, await arena.fileText());
          }
          const reload = async (gateway: Gateway, line: RegExp, share: number) => {
            const old = await holdOpen(gateway);
            let reloaded: Promise<void> | undefined;
            gateway.front.tap = {
              line(text) {
                if (reloaded !== undefined || !line.test(text)) return undefined;
                reloaded = gateway.haproxy.reload();
                return reloaded;
              },
            };
            // The worker that comes has what the file says, and that is old.
            arena.excuse();
            await arena.moveShare(share);
            await arena.until("reloaded in mid-push", () => reloaded !== undefined, 20_000);
            await reloaded;
            gateway.front.tap = {};
            return old;
          };
          const lines = { "before the commit": /^commit map/, "the version is half filled": /^add map @/ };
          for (const [when, line] of Object.entries(lines)) {
            await onEach(arena, `HAProxy: reloaded in mid-push, ${when}`, async (gateway) => {
              (await reload(gateway, line, 1)).destroy();
            });
          }
          await onEach(
            arena,
            "HAProxy: reloaded in mid-push, single changes, the old worker lives on",
            async (gateway) => {
              const old = await reload(gateway, /^set map/, FEW);
              await arena.until("all agree", async () => (await arena.differences()).length === 0, 20_000);
              old.destroy();
            },
          );
          await onEach(arena, "HAProxy: restarted with an old file", async (gateway) => {
            const isUp = arena.down(gateway);
            await arena.moveShare(FEW);
            arena.excuse();
            await gateway.haproxy.restart();
            isUp();
          });
        },
        { ownFiles: true },
      ));

    test("may have another writer, or versions that somebody left: each node is there once, and right", () =>
      withArena(async (arena) => {
        await onEach(arena, "HAProxy: versions left behind by somebody", async (gateway) => {
          await arena.sasori?.end("SIGKILL");
          for (let left = 0; left < 3; left += 1) {
            const prepared = await runtimeCommand(gateway.haproxy.socketPath, `prepare map ${gateway.map}`);
            const version = /\d+/.exec(prepared)?.[0];
            await runtimeCommand(
              gateway.haproxy.socketPath,
              `add map @${version} ${gateway.map} left.example master1`,
            );
          }
          await arena.startSasori();
        });
        await onEach(arena, "HAProxy: another writer, during every push", async (gateway) => {
          let count = 0;
          const write = (command: string) => runtimeCommand(gateway.haproxy.socketPath, command);
          gateway.front.tap = {
            line(text) {
              const version = /^show map (@\d+ )/.exec(text)?.[1];
              if (version === undefined && !/^(set|commit) map/.test(text)) return undefined;
              count += 1;
              return write(`add map ${version ?? ""}${gateway.map} junk${count}.example nowhere`);
            },
          };
          const nodes = await arena.moveShare(1);
          await arena.untilShown("HAPROXY_CHANGED", gateway.target, /find the program that also writes/);
          await othersAgree(arena, gateway);
          gateway.front.tap = {};
          // And behind its back: a second entry of a key, a key of its own.
          await write(`add map ${gateway.map} ${nodes[0] ?? "x"} master9`);
          await write(`add map ${gateway.map} junk.example master9`);
        });
      }));

    test("may have all its connections taken, or stall in mid-reply: it is given up, and the others are served", () =>
      withArena(async (arena) => {
        const [taken, cut] = arena.gateways;
        if (taken === undefined || cut === undefined) throw new Error("two HAProxy instances are needed");
        await arena.suffer("HAProxy: one has no free connection, another stalls in mid-reply", async () => {
          const others = await Promise.all(Array.from({ length: MAX_CONNECTIONS }, () => holdOpen(taken)));
          cut.front.tap = {
            reply(chunk, { client }) {
              if (chunk.length < 1_000) return undefined;
              client.write(chunk.subarray(0, 500));
              return "stall";
            },
          };
          await arena.moveShare(FEW);
          const shown = arena.untilShown("HAPROXY_TIMEOUT", taken.target, /no answer to/, 40_000);
          await arena.untilShown("HAPROXY_TIMEOUT", cut.target, /no answer to/, 40_000);
          await shown;
          for (const other of others) other.destroy();
          cut.front.tap = {};
          await arena.sync({ full: true });
        });
        await onEach(arena, "HAProxy: a reply that is too long", async (gateway) => {
          gateway.front.tap = { reply: () => Buffer.alloc(5 * 1024 * 1024, "x") };
          await arena.moveShare(FEW);
          await arena.untilShown("HAPROXY_REPLY", gateway.target, /too long/);
          await othersAgree(arena, gateway);
          gateway.front.tap = {};
        });
        if (LONG) {
          await arena.suffer("HAProxy: reloaded 20 times while everything moves", async () => {
            for (let turn = 0; turn < 20; turn += 1) {
              await arena.moveShare(MANY);
              await Promise.all(arena.gateways.map(({ haproxy }) => haproxy.reload()));
            }
          });
        }
      }));
  });
}

/** The fault for each HAProxy in its turn, as tries of one row. */
function onEach(arena: Arena, fault: string, act: (gateway: Gateway) => Promise<void>): Promise<void> {
  return arena.suffer(
    fault,
    async (index) => {
      const gateway = arena.gateways[index];
      if (gateway !== undefined) await act(gateway);
    },
    arena.gateways.length,
  );
}

/** The file and the other HAProxy instances are right although this one cannot be. */
async function othersAgree(arena: Arena, except: Gateway): Promise<void> {
  const where = `HAProxy ${except.version}`;
  await arena.until("the others agree", async () => {
    const found = await arena.differences();
    return found.every((difference) => difference.startsWith(where));
  });
  expect(differences("PuppetDB", arena.owners, await arena.puppetdbSays())).toEqual([]);
}

/** Another configuration, by a reload. The result puts the old one back. */
async function reconfigure(
  { haproxy }: Gateway,
  change: (text: string) => string,
): Promise<() => Promise<void>> {
  const file = path.join(haproxy.dir, "haproxy.cfg");
  const before = await readFile(file, "utf8");
  const after = change(before);
  expect(after).not.toBe(before);
  await writeFile(file, after);
  await haproxy.reload();
  return async () => {
    await writeFile(file, before);
    await haproxy.reload();
  };
}

/** Somebody else's connection to the Runtime API, which also keeps its worker alive over a reload. */
async function holdOpen({ haproxy }: Gateway): Promise<Socket> {
  const socket = connect(haproxy.socketPath);
  await once(socket, "connect");
  socket.on("error", () => undefined);
  socket.write("prompt\n");
  await once(socket, "data");
  return socket;
}
