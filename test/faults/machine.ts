// What the machine under sasori may do: disks, clocks, descriptors, signals, and a process that stands still.

import { mkdir, rename, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { describe, expect, test } from "vitest";
import type { ErrorCode } from "../../src/errors.js";
import { run } from "../support/child.js";
import { pathOf } from "../support/parts.js";
import type { PuppetdbServer } from "../support/puppetdb-server.js";
import { ON_DEMAND } from "../support/schedules.js";
import { Arena, sleep } from "./arena.js";
import { expectWhole } from "./kill.js";

const FEW = 0.02;
const MANY = 0.6;
const HOUR_S = 3600;

interface Disk {
  fault: string;
  code: ErrorCode;
  remedy: RegExp;
  /** Shell commands, where sasori is. */
  begin: string;
  end: string;
}

/** A mount namespace of our own: root may make one where it has CAP_SYS_ADMIN, anybody else in a user namespace. */
const IS_ROOT = process.getuid?.() === 0;
const NAMESPACE = IS_ROOT ? "-m" : "-Urm";
const SIGTERM_DEADLINE_MS = 10_000;

export function machineFaults(puppetdb: () => PuppetdbServer): void {
  describe("The machine", () => {
    test("may have a full disk, a read-only one, or a mounted file: HAProxy is served, and the file is right after", () =>
      Arena.with({ puppetdb: puppetdb() }, async (arena) => {
        await run("unshare", [NAMESPACE, "true"]).catch((error: Error) => {
          throw new Error(
            `no mount namespace here: needs ${IS_ROOT ? "CAP_SYS_ADMIN" : "user namespaces"}: ${error.message}`,
          );
        });
        const folder = path.dirname(arena.mapFile);
        await arena.sasori?.end();
        // A disk of its own for the map's folder, which nobody else sees.
        const saved = path.join(arena.dir, "saved.map");
        await writeFile(saved, await arena.fileText());
        const mount = `mount -t tmpfs -o size=256k none ${folder}; cp ${saved} ${arena.mapFile}; exec "$0" "$@"`;
        await arena.startSasori({ prefix: ["unshare", NAMESPACE, "sh", "-ec", mount] });
        arena.root = `/proc/${arena.pid}/root`;
        const inside = (command: string) =>
          run("nsenter", [
            `--target=${arena.pid}`,
            "--mount",
            ...(IS_ROOT ? [] : ["--user", "--preserve-credentials"]),
            ...["sh", "-ec", command],
          ]);
        const filler = `${folder}/filler`;
        const disks: Disk[] = [
          {
            fault: "the disk is full",
            code: "FILE_FULL",
            remedy: /free some space/,
            begin: `dd if=/dev/zero of=${filler} bs=1k 2>/dev/null || true`,
            end: `rm ${filler}`,
          },
          {
            fault: "the folder is read-only",
            code: "FILE_READ_ONLY",
            remedy: /mounted read-only: mount it for writing/,
            begin: `mount -o remount,bind,ro ${folder}`,
            end: `mount -o remount,bind,rw ${folder}`,
          },
          {
            fault: "the file is a mount point",
            code: "FILE_MOUNTED",
            remedy: /mount its folder/,
            begin: `cp ${arena.mapFile} ${filler}; mount --bind ${filler} ${arena.mapFile}`,
            end: `umount ${arena.mapFile}; rm ${filler}`,
          },
          {
            fault: "the file is a folder",
            code: "FILE_READ",
            remedy: /cannot read the map file/,
            begin: `mv ${arena.mapFile} ${filler}; mkdir ${arena.mapFile}`,
            end: `rmdir ${arena.mapFile}; mv ${filler} ${arena.mapFile}`,
          },
        ];
        for (const { fault, code, remedy, begin, end } of disks) {
          await arena.suffer(`machine: ${fault}`, async () => {
            await inside(begin);
            const nodes = await arena.moveShare(FEW);
            await arena.untilShown(code, arena.mapFile, remedy);
            await arena.until("HAProxy has it", async () => {
              const maps = await arena.liveMaps();
              return maps.every((map) => nodes.every((node) => map.get(node) === arena.owners.get(node)));
            });
            await inside(end);
          });
        }
        expect(await arena.leftovers()).toEqual([]);
      }));

    test("may lose the folder or the state file: sasori says so, and goes on", () =>
      Arena.with({ puppetdb: puppetdb() }, async (arena) => {
        const folder = path.dirname(arena.mapFile);
        await arena.suffer("machine: the folder is gone", async () => {
          await rename(folder, `${folder}.gone`);
          await arena.moveShare(FEW);
          await arena.untilShown("FILE_WRITE", arena.mapFile, /does not exist: create it/);
          await rename(`${folder}.gone`, folder);
        });
        await arena.suffer("machine: the state file is broken", async () => {
          await arena.sasori?.end();
          await writeFile(`${arena.mapFile}.state.json`, '{"version": 1, "observ');
          await arena.moveShare(FEW);
          await arena.startSasori();
          await arena.untilLogged("STATE_FILE", /set aside as .*\.broken/);
        });
        await arena.suffer("machine: the state file cannot even be set aside", async () => {
          await arena.sasori?.end();
          const state = path.join(arena.dir, "state");
          await mkdir(state);
          await arena.startSasori({ env: { SASORI_STATE_FILE: state } });
          await arena.moveShare(FEW);
          await arena.sync();
          await arena.sasori?.end();
          await rm(state, { recursive: true, force: true });
          await arena.startSasori();
        });
      }));

    test("may send SIGTERM in the middle of a pass: it ends in time, and nothing is half-written", () =>
      Arena.with({ puppetdb: puppetdb(), env: ON_DEMAND }, async (arena) => {
        const steps = [/^show info/, /^show map #/, /^prepare map/, /^add map @/, /^commit map/];
        await arena.suffer(
          "machine: SIGTERM in mid-pass",
          async (index) => {
            const before = new Map(arena.owners);
            let asked = 0;
            for (const { front } of arena.gateways) {
              front.tap = {
                line(line) {
                  if (asked === 0 && steps[index]?.test(line)) {
                    asked = Date.now();
                    process.kill(arena.pid, "SIGTERM");
                  }
                  return undefined;
                },
              };
            }
            await arena.moveShare(1);
            void arena.sync({ full: index === 1 }).catch(() => undefined);
            await arena.until(`${steps[index]}, and SIGTERM`, () => asked > 0);
            await arena.until("ended", () => arena.sasori?.ended === true, SIGTERM_DEADLINE_MS);
            expect(await arena.sasori?.code()).toBe(0);
            for (const { front } of arena.gateways) front.tap = {};
            await expectWhole(arena, before);
            await arena.startSasori();
          },
          steps.length,
        );
      }));

    test("may run out of descriptors, or stand still: it is as it was when that is over", () =>
      Arena.with({ puppetdb: puppetdb() }, async (arena) => {
        await arena.suffer("machine: no more descriptors", async () => {
          const limit = (soft: string) => run("prlimit", [`--pid=${arena.pid}`, `--nofile=${soft}:`]);
          // Fewer than it has open: everything that it opens from now on is refused.
          await limit("10");
          await arena.moveShare(FEW);
          await arena.until("EMFILE", () => arena.sasori?.printed.includes("EMFILE") === true);
          await sleep(1_500);
          expect(arena.sasori?.ended).toBe(false);
          await limit("1024");
        });
        await arena.suffer("machine: the process stands still for 4 s", async () => {
          process.kill(arena.pid, "SIGSTOP");
          await arena.moveShare(MANY);
          await sleep(4_000);
          process.kill(arena.pid, "SIGCONT");
        });
      }));

    test("may have its clock set: sasori goes on looking for changes", () =>
      Arena.with({ puppetdb: puppetdb() }, async (arena) => {
        await arena.sasori?.end();
        const clock = path.join(arena.dir, "clock");
        await writeFile(clock, "+0");
        await arena.startSasori({
          env: {
            LD_PRELOAD: pathOf("faketime"),
            FAKETIME_TIMESTAMP_FILE: clock,
            FAKETIME_NO_CACHE: "1",
            FAKETIME_DONT_FAKE_MONOTONIC: "1",
          },
        });
        const jumps = {
          "an hour back": -HOUR_S,
          "an hour on again": 0,
          "a year on": 365 * 24 * HOUR_S,
          "back to the right time": 0,
        };
        const noticed = () => arena.sasori?.printed.match(/the clock was set/g)?.length ?? 0;
        const setClock = async (seconds: number) => {
          const before = noticed();
          await writeFile(clock, `${seconds < 0 ? "" : "+"}${seconds}`);
          await arena.until("noticed", () => noticed() > before);
        };
        for (const [what, seconds] of Object.entries(jumps)) {
          await arena.suffer(`machine: the clock is set ${what}`, async () => {
            await arena.moveShare(FEW);
            await arena.untilAgreed();
            await setClock(seconds);
            await arena.moveShare(FEW);
          });
        }
        // What was ordered by a wrong clock gives way to what PuppetDB says by a right one.
        const [node = ""] = arena.owners.keys();
        await arena.suffer("machine: a node is registered while the clock is a day ahead", async () => {
          await setClock(24 * HOUR_S);
          await arena.cli("register", node, arena.owners.get(node) ?? "");
          await setClock(0);
          await arena.move([node]);
        });
      }));
  });
}
