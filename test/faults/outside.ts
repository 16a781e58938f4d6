// Whoever reaches sasori's API, and whoever may write where its secrets are: floods that were sent at once, connections that
// ask half, and files that hang. Nodes move meanwhile, and all has to agree as if nothing were.

import { constants } from "node:fs";
import { open, rm, writeFile } from "node:fs/promises";
import { connect, type Socket } from "node:net";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { run } from "../support/child.js";
import type { PuppetdbServer } from "../support/puppetdb-server.js";
import { Arena } from "./arena.js";

const FEW = 0.05;
const HUNG_DISK = fileURLToPath(new URL("../support/hung-disk.mjs", import.meta.url));
const QUESTION = "GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n";

export function outsiders(puppetdb: () => PuppetdbServer): void {
  describe("Whoever reaches the API", () => {
    test("may ask ten thousand questions at once on each of some connections: moves are taken, requests heal", () =>
      Arena.with({ puppetdb: puppetdb() }, async (arena) => {
        await arena.suffer(
          "pipelined flood: 5 times 10,000 questions at once",
          async () => {
            const sockets = connections(arena, 5, () => QUESTION.repeat(10_000));
            await arena.moveShare(FEW);
            await arena.until("all agree", async () => (await arena.differences()).length === 0, 10_000);
            end(sockets);
          },
          3,
        );
      }));

    test("may hold more connections than sasori may have files, each with half a question", () =>
      Arena.with({ puppetdb: puppetdb() }, async (arena) => {
        await arena.sasori?.end();
        await arena.startSasori({ prefix: ["prlimit", "--nofile=1024:1024"] });
        await arena.suffer("half-sent connections: 1,100 at 1,024 files", async () => {
          const sockets = connections(arena, 1_100, (index) => QUESTION.slice(0, index % QUESTION.length));
          await arena.moveShare(FEW);
          await arena.until("all agree", async () => (await arena.differences()).length === 0, 10_000);
          expect((await arena.status()).troubles).toEqual([]);
          end(sockets);
        });
      }));

    test("and whoever writes where the token is, may make it a file that hangs: that is told, and the rest goes on", async () => {
      await Arena.with({ puppetdb: puppetdb() }, async (arena) => {
        const token = path.join(arena.dir, "token");
        await writeFile(token, "secret\n");
        await arena.sasori?.end();
        const env = { SASORI_PUPPETDB_TOKEN_FILE: token, NODE_OPTIONS: `--import=${HUNG_DISK}` };
        await arena.startSasori({ env });
        await arena.suffer("files that hang: PuppetDB's token", async () => {
          await rm(token);
          await run("mkfifo", [token]);
          await arena.untilShown("PUPPETDB_TLS", "puppetdb", /its file system has not answered/);
          await arena.moveShare(FEW);
          const answers = await open(token, constants.O_RDWR | constants.O_NONBLOCK);
          await rm(token);
          await writeFile(token, "secret\n");
          await arena.until("PuppetDB is read", async () => (await arena.status()).troubles.length === 0);
          await answers.close();
        });
        await arena.suffer("files that hang: the state file, at the start", async () => {
          await arena.sasori?.end();
          const state = path.join(path.dirname(arena.mapFile), "state");
          await run("mkfifo", [state]);
          await arena.startSasori({ env: { ...env, SASORI_STATE_FILE: state } });
          await arena.untilLogged("STATE_FILE", /its file system has not answered/);
          await arena.moveShare(FEW);
          await arena.until("all agree", async () => (await arena.differences()).length === 0);
          process.kill(arena.pid, "SIGTERM");
          await arena.until("ended", () => arena.sasori?.ended === true, 4_500); // 13.5 s at least.
          await arena.startSasori();
        });
      });
    });
  });
}

function connections({ port }: Arena, count: number, text: (index: number) => string): Socket[] {
  return Array.from({ length: count }, (_, index) => {
    const socket = connect({ host: "127.0.0.1", port });
    socket.on("error", () => undefined).resume();
    socket.write(text(index));
    return socket;
  });
}

function end(sockets: readonly Socket[]): void {
  for (const socket of sockets) socket.destroy();
}
