// What PuppetDB may do. Whatever it answers, the map is kept, sasori says what is wrong and what to do, moved nodes
// are still served, and when PuppetDB is itself again all agree within seconds.

import { copyFile, cp } from "node:fs/promises";
import path from "node:path";
import { describe, expect, test } from "vitest";
import { startPuppetdbStandIn } from "../../demo/puppetdb.js";
import type { ErrorCode } from "../../src/errors.js";
import { freePort, run } from "../support/child.js";
import { puppetdbParts } from "../support/parts.js";
import { type PuppetdbServer, standInClient } from "../support/puppetdb-server.js";
import { answer } from "../support/scripted-puppetdb.js";
import { Arena, LONG, parseMap, sleep } from "./arena.js";
import type { HttpTap, Rows } from "./fronts.js";

const TEXT = "text/plain;charset=utf-8";
const FEW = 0.02;
const MINUTE = 60_000;

interface Wrong {
  tap: HttpTap;
  code: ErrorCode;
  remedy: RegExp;
}

/** Answers that are none. */
const WRONG: Record<string, Wrong> = {
  "maintenance (503)": {
    tap: { answer: answer("PuppetDB is in maintenance mode", 503, TEXT) },
    code: "PUPPETDB_STATUS",
    remedy: /starting or in maintenance/,
  },
  "an error (500)": {
    tap: { answer: answer("java.sql.SQLTransientConnectionException", 500, TEXT) },
    code: "PUPPETDB_STATUS",
    remedy: /PuppetDB's log says why/,
  },
  "not allowed (403)": {
    tap: { answer: answer("The client certificate name (sasori) doesn't appear", 403, TEXT) },
    code: "PUPPETDB_STATUS",
    remedy: /certificate-allowlist/,
  },
  "a page of HTML": {
    tap: { answer: answer("<html><body>Bad Gateway</body></html>", 200, "text/html") },
    code: "PUPPETDB_BODY",
    remedy: /check that SASORI_PUPPETDB_URL is the base URL/,
  },
  "200, cut off, with a message glued to it": {
    tap: {
      text: (response, text) =>
        response.end(`${text.slice(0, text.length / 2)}ERROR: canceling statement due to statement timeout`),
    },
    code: "PUPPETDB_BODY",
    remedy: /not a complete JSON array.*see PuppetDB's log/,
  },
  "rows of another shape": {
    tap: { rows: (rows) => rows.map(() => ({ name: "what?" })) },
    code: "PUPPETDB_BODY",
    remedy: /no usable certname/,
  },
};

const hash = (text: unknown) => [...String(text)].reduce((sum, letter) => sum + letter.charCodeAt(0), 0);
const isCount = (rows: Rows) => rows[0] !== undefined && "count" in rows[0];

/** Answers that are whole, and not what PuppetDB should say. */
const ODD: Record<string, HttpTap> = {
  "every row twice, once older with another producer": {
    rows: (rows) =>
      isCount(rows)
        ? rows
        : rows.flatMap((row) => {
            const older = { ...row, producer: "master9", producer_timestamp: "2020-01-01T00:00:00Z" };
            return [row, "producer" in row ? older : row, row];
          }),
  },
  "no producer in every second row": {
    rows: (rows) =>
      rows.map((row) =>
        "producer" in row && hash(row.certname) % 2 === 0 ? { ...row, producer: null } : row,
      ),
  },
  "rows of nodes that cannot be map keys": {
    rows: (rows) =>
      isCount(rows)
        ? rows
        : [
            ...rows,
            ...rows.slice(0, 20).map((row) => ({ ...row, certname: `${row.certname}; clear map #0` })),
          ],
  },
};

export function puppetdbFaults(puppetdb: () => PuppetdbServer): void {
  describe("PuppetDB", () => {
    test("may be down, slow, or answer nonsense: the map is kept, and sasori says what is wrong", () =>
      Arena.with({ puppetdb: puppetdb() }, async (arena) => {
        await arena.suffer("PuppetDB: down", async () => {
          await arena.front.close();
          await arena.moveShare(FEW);
          await arena.untilShown(
            "PUPPETDB_UNREACHABLE",
            "puppetdb",
            /check that PuppetDB is running and reachable/,
          );
          await expectServing(arena);
          await arena.front.open();
        });
        for (const [what, { tap, code, remedy }] of Object.entries(WRONG)) {
          await arena.suffer(`PuppetDB: ${what}`, async () => {
            arena.front.tap = tap;
            await arena.moveShare(FEW);
            await arena.untilShown(code, "puppetdb", remedy);
            expect(await arena.sync({ full: true })).toMatchObject({
              outcome: "failed",
              source: { outcome: "failed" },
            });
            await expectServing(arena);
            arena.front.tap = {};
          });
        }
        for (const [what, tap] of Object.entries(ODD)) {
          await arena.suffer(`PuppetDB: ${what}`, async () => {
            arena.front.tap = tap;
            await arena.moveShare(FEW);
            expect(await arena.sync({ full: true })).toMatchObject({ outcome: "done" });
            await arena.sync();
            await expectServing(arena);
            arena.front.tap = {};
            await arena.sync({ full: true });
          });
        }
        await arena.suffer("PuppetDB: slow", async () => {
          arena.front.tap = { asked: () => sleep(1_500) };
          await arena.moveShare(FEW);
          await arena.sync();
          expect(await arena.differences()).toEqual([]);
          arena.front.tap = {};
        });
        if (LONG) {
          await arena.suffer("PuppetDB: the process is restarted", async () => {
            await arena.puppetdb.stopPuppetdb();
            await arena.until("503", async () => (await arena.sync()).outcome === "failed");
            await arena.move([...arena.owners.keys()].slice(0, 9));
            await arena.puppetdb.startPuppetdb();
          });
        }
      }));

    test("hangs while a HAProxy stalls: each is given up in time, and the others are served", () =>
      Arena.with({ puppetdb: puppetdb() }, async (arena) => {
        const [stalled] = arena.gateways;
        await arena.suffer("PuppetDB hangs and a HAProxy stalls", async () => {
          arena.front.tap = { answer: () => undefined };
          if (stalled) stalled.front.tap = { line: () => "stall" };
          const target = stalled?.front.path ?? "";
          await arena.moveShare(FEW);
          const shown = arena.untilShown(
            "PUPPETDB_TIMEOUT",
            "puppetdb",
            /has not answered within 15 s/,
            60_000,
          );
          await arena.untilShown("HAPROXY_TIMEOUT", target, /no answer to "prompt" for 10 s/, 60_000);
          await shown;
          await expectServing(arena);
          arena.front.tap = {};
          if (stalled) stalled.front.tap = {};
          // Else it is left alone for a minute.
          await arena.sync({ full: true });
        });
      }));

    test("is empty, or lost half of the fleet: the guard holds, tells, and lets through only what was approved", () =>
      Arena.with({ puppetdb: puppetdb() }, async (arena) => {
        const lacking: Record<string, (rows: Rows) => Rows> = {
          "an empty database": (rows) => (isCount(rows) ? [{ count: 0 }] : []),
          "half of the fleet missing": (rows) =>
            rows.filter(({ certname }) => hash(certname) % 2 === 0 || !certname),
        };
        for (const [what, rows] of Object.entries(lacking)) {
          await arena.suffer(`PuppetDB: ${what}`, async () => {
            arena.front.tap = { rows };
            const { code, text } = await arena.cli("sync", "--full");
            expect(code).toBe(3);
            expect(text).toContain("--approve");
            expect(await arena.metric("sasori_held_removals")).toBeGreaterThan(200);
            expect((await arena.cli("status")).code).toBe(3);
            // Moves go on while the removals wait, and an approval of anything else lets nothing through.
            arena.front.tap = {};
            await arena.moveShare(FEW);
            arena.front.tap = { rows };
            await arena.sync({ full: true, approve: "0123456789ab" });
            expect(await arena.sync()).toMatchObject({ outcome: "held" });
            await expectServing(arena);
            arena.front.tap = {};
            expect(await arena.sync({ full: true })).toMatchObject({ outcome: "done" });
          });
        }
        await arena.suffer("PuppetDB: a third of the fleet is deactivated, and approved", async () => {
          const gone = await deactivate(arena, ([...arena.owners.keys()].length / 3) | 0);
          await arena.until("held", async () => (await arena.status()).lastPass?.held?.count === gone.length);
          await expectServing(arena);
          const id = (await arena.status()).lastPass?.held?.id ?? "";
          arena.forget(gone);
          expect(await arena.cli("sync", "--approve", id)).toMatchObject({ code: 0 });
        });
        await arena.suffer("PuppetDB: another third: the approval was for once", async () => {
          const gone = await deactivate(arena, ([...arena.owners.keys()].length / 3) | 0);
          await arena.until("held", async () => (await arena.status()).lastPass?.held?.count === gone.length);
          await expectServing(arena);
          await arena.puppetdb.sql("UPDATE certnames SET deactivated = NULL");
          for (const [node, master] of await arena.puppetdbSays())
            if (!arena.owners.has(node)) arena.place(node, master);
          await arena.tell([...arena.owners.keys()]);
          await arena.sync({ full: true });
        });
      }));

    test("is restored from an old backup, or is two that disagree: nothing goes back, nothing new vanishes", () =>
      Arena.with({ puppetdb: puppetdb() }, async (arena) => {
        await arena.suffer("PuppetDB: restored from an old backup", async () => {
          await arena.puppetdb.sql("CREATE TABLE backup AS SELECT * FROM factsets");
          const moved = await arena.moveShare(FEW);
          const fresh = await enroll(arena, "restored");
          await arena.until("all agree", async () => (await arena.differences()).length === 0);
          await arena.puppetdb.sql(
            `UPDATE factsets SET producer_id = backup.producer_id, producer_timestamp = backup.producer_timestamp,
               timestamp = clock_timestamp() FROM backup WHERE factsets.certname = backup.certname;
             DELETE FROM factsets WHERE certname LIKE 'restored%'; DELETE FROM certnames WHERE certname LIKE 'restored%';
             DROP TABLE backup`,
          );
          await arena.sync();
          await arena.sync({ full: true });
          expect(await arena.differences()).toEqual([]);
          for (const node of fresh)
            await arena.puppetdb.replaceFacts({ certname: node, producer: "master1" });
          await arena.tell(moved);
        });

        const lagging = await startPuppetdbStandIn({ host: "127.0.0.1", port: await freePort() });
        const client = standInClient(lagging.url);
        for (const [certname, producer] of await arena.puppetdbSays()) {
          await client.replaceFacts({ certname, producer, at: new Date(Date.now() - 30 * MINUTE) });
        }
        await arena.suffer("PuppetDB: two that disagree by a minute", async () => {
          await arena.moveShare(FEW);
          const fresh = await enroll(arena, "fresh");
          await arena.until("all agree", async () => (await arena.differences()).length === 0);
          let asked = 0;
          // By turns, so that even one reading is made of both.
          arena.front.upstream = () => {
            asked += 1;
            return asked % 2 === 0 ? lagging.url : arena.puppetdb.url;
          };
          for (let pass = 0; pass < 8; pass += 1) {
            if (pass === 4) arena.front.upstream = () => lagging.url;
            await arena.sync({ full: pass % 2 === 0 });
            expect(await arena.differences()).toEqual([]);
          }
          expect(fresh.length).toBe(3);
          arena.front.upstream = () => arena.puppetdb.url;
        });
        await lagging.close();
      }));

    test("has a replica an hour behind, which is asked when a reading breaks off: nothing goes back, nothing vanishes", () =>
      Arena.with({ puppetdb: puppetdb() }, async (arena) => {
        const replica = await startPuppetdbStandIn({ host: "127.0.0.1", port: await freePort() });
        const client = standInClient(replica.url);
        const hourAgo = new Date(Date.now() - 60 * MINUTE);
        for (const [certname, producer] of await arena.puppetdbSays())
          await client.replaceFacts({ certname, producer, at: hourAgo });
        await readFrom(arena, `${arena.front.url}|${replica.url}`);
        const isAsked = async (url: string) =>
          (await arena.status()).puppetdbs.find((one) => one.asked)?.url === url;

        await arena.suffer("PuppetDB: fails over in the middle of a reading", async () => {
          await arena.moveShare(FEW);
          await enroll(arena, "late");
          await arena.until("all agree", async () => (await arena.differences()).length === 0);
          arena.front.tap = {
            text: (response, text) =>
              response.write(text.slice(0, text.length / 2), () => response.destroy()),
          };
          expect(await arena.sync({ full: true })).toMatchObject({ outcome: "done" });
          expect(await isAsked(replica.url)).toBe(true);
          expect(await arena.differences()).toEqual([]);
        });
        await arena.suffer("PuppetDB: a replica an hour behind is asked", async () => {
          for (let pass = 0; pass < 6; pass += 1) {
            expect(await arena.sync({ full: pass % 2 === 0 })).toMatchObject({ outcome: "done" });
            expect(await arena.differences()).toEqual([]);
          }
          expect((await arena.status()).troubles).toContainEqual(
            expect.objectContaining({ code: "standby" }),
          );
          arena.front.tap = {};
          await arena.until("the first is asked again", () => isAsked(arena.front.url), 60_000);
        });
        await replica.close();
      }));

    test("of one estate is empty: its nodes are held by themselves, and the others go on", () =>
      Arena.with({ puppetdb: puppetdb() }, async (arena) => {
        const port = await freePort();
        let second = await startPuppetdbStandIn({ host: "127.0.0.1", port });
        const theirs = ["abroad1.example.com", "abroad2.example.com"];
        for (const certname of theirs) {
          arena.place(certname, "master2");
          const at = new Date(Date.now() - 60 * MINUTE);
          await standInClient(second.url).replaceFacts({ certname, producer: "master2", at });
        }
        await readFrom(arena, `${arena.front.url},${second.url}`);
        await arena.suffer("PuppetDB: one estate of two is empty", async () => {
          await arena.until("both are in the map", async () => (await arena.differences()).length === 0);
          await second.close();
          await arena.moveShare(FEW);
          await arena.until("the other one goes on", async () => (await arena.differences()).length === 0);
          second = await startPuppetdbStandIn({ host: "127.0.0.1", port });
          expect(await arena.sync({ full: true })).toMatchObject({
            outcome: "held",
            held: { count: theirs.length },
          });
          await expectServing(arena);
          const id = (await arena.status()).lastPass?.held?.id ?? "";
          arena.forget(theirs);
          expect(await arena.cli("sync", "--approve", id)).toMatchObject({ code: 0 });
        });
        await second.close();
      }));

    test("stores nothing for a while: sasori says how much waits in its queue, and all agree when it goes on", () =>
      Arena.with({ puppetdb: puppetdb() }, async (arena) => {
        const { puppetdb } = arena;
        const holder = "SELECT pg_sleep(3600)";
        const isHolder = `FROM pg_stat_activity WHERE query LIKE '%${holder}' AND pid <> pg_backend_pid()`;
        await arena.suffer("PuppetDB: its queue stands still", async () => {
          // Whoever writes waits, as behind a long vacuum; whoever reads does not.
          const held = puppetdb
            .sql(`BEGIN; LOCK TABLE certnames IN SHARE MODE; ${holder}`)
            .catch(() => "ended");
          const locks = `SELECT count(*) FROM pg_locks WHERE granted AND relation = 'certnames'::regclass AND mode = 'ShareLock'`;
          await arena.until("the lock is held", async () => (await puppetdb.sql(locks)) === "1");
          const late = "late.example.com";
          arena.place(late, "master1");
          const runs = [...arena.owners].map(([certname, producer]) => ({ certname, producer }));
          for (let sent = 0; sent < 1_100; sent += runs.length)
            await Promise.all(runs.map((run) => puppetdb.queueFacts(run)));
          const told = async () => (await arena.status()).troubles.find(({ code }) => code === "queue")?.what;
          await arena.sync({ full: true });
          expect(await told()).toMatch(/^PuppetDB has 1,\d{3} commands in its queue/);
          expect(
            await arena.metric("sasori_puppetdb_queue_depth", `{puppetdb="${arena.front.url}"}`),
          ).toBeGreaterThan(1_000);
          expect((await arena.cli("doctor")).text).toMatch(/PuppetDB has 1,\d{3} commands in its queue/);
          expect((await arena.differences()).join()).toContain(late);
          await puppetdb.sql(`SELECT pg_terminate_backend(pid) ${isHolder}`);
          expect(await held).toBe("ended");
        });
      }));

    test("has masters with clocks that are wrong: their nodes are served, and all agree when the clocks do", () =>
      Arena.with({ puppetdb: puppetdb() }, async (arena) => {
        const nodes = [...arena.owners.keys()].slice(0, 6);
        await arena.suffer("a master's clock is 4 minutes behind", async () => {
          await arena.move(nodes, -4 * MINUTE);
        });
        await arena.suffer("a master's clock is an hour ahead", async () => {
          await arena.move(nodes, 60 * MINUTE);
          await arena.until("all agree", async () => (await arena.differences()).length === 0);
          // At a master whose clock is right: PuppetDB takes that for older, and says nothing of it.
          await arena.move(nodes);
          await arena.until(
            "the requests have brought it to every target",
            async () => {
              for (const node of nodes) await arena.ask(node);
              return (await arena.differences()).length === 0;
            },
            20_000,
          );
          await arena.sync({ full: true });
          expect(await arena.differences()).toEqual([]);
          await arena.tell(nodes, 61 * MINUTE);
        });
      }));

    test("is reached with a certificate that expires: sasori says so, and takes the renewed one without a restart", async () => {
      const { tls } = puppetdb();
      const folder = path.dirname(tls.cert);
      const at = (name: string) => path.join(folder, name);
      const { openssl } = puppetdbParts();
      const subject = ["-subj", "/CN=sasori", "-newkey", "rsa:2048", "-nodes", "-keyout", at("expired.key")];
      await run(openssl, ["req", "-config", at("openssl.cnf"), ...subject, "-out", at("expired.csr")]);
      const signer = ["-CA", tls.ca, "-CAkey", at("ca.key"), "-days", "-1"];
      await run(openssl, ["x509", "-req", "-in", at("expired.csr"), ...signer, "-out", at("expired.pem")]);
      for (const kind of ["pem", "key"]) await cp(at(`client.${kind}`), at(`current.${kind}`));
      const env = {
        SASORI_PUPPETDB_URL: tls.url,
        SASORI_PUPPETDB_CERT: at("current.pem"),
        SASORI_PUPPETDB_KEY: at("current.key"),
        SASORI_PUPPETDB_CA: tls.ca,
      };
      await Arena.with({ puppetdb: puppetdb(), env }, async (arena) => {
        await arena.suffer("PuppetDB: our certificate has expired", async () => {
          for (const kind of ["pem", "key"]) await copyFile(at(`expired.${kind}`), at(`current.${kind}`));
          await arena.moveShare(FEW);
          await arena.untilShown("PUPPETDB_TLS", "puppetdb", /when these certificates expire/);
          await expectServing(arena);
          for (const kind of ["pem", "key"]) await copyFile(at(`client.${kind}`), at(`current.${kind}`));
        });
      });
    });
  });
}

/** Starts sasori anew, with these PuppetDBs. */
async function readFrom(arena: Arena, url: string): Promise<void> {
  await arena.sasori?.end();
  arena.env.SASORI_PUPPETDB_URL = url;
  await arena.startSasori();
  await arena.sync({ full: true });
}

/** It is ready, and no node is missing anywhere. */
async function expectServing(arena: Arena): Promise<void> {
  expect((await fetch(`${arena.url}/readyz`)).status).toBe(200);
  const wanted = new Set(arena.owners.keys());
  const there = new Set(parseMap(await arena.fileText()).keys());
  expect([...wanted].filter((node) => !there.has(node))).toEqual([]);
  for (const found of await arena.liveMaps()) {
    expect([...wanted].filter((node) => !found.has(node))).toEqual([]);
  }
}

/** As `puppet node deactivate` for many. Returns them. */
async function deactivate(arena: Arena, count: number): Promise<string[]> {
  const nodes = [...arena.owners.keys()].slice(0, count);
  const names = nodes.map((node) => `'${node}'`).join(",");
  await arena.puppetdb.sql(
    `UPDATE certnames SET deactivated = clock_timestamp() WHERE certname IN (${names})`,
  );
  return nodes;
}

/** Three nodes that were not there before. */
async function enroll(arena: Arena, name: string): Promise<string[]> {
  const nodes = [1, 2, 3].map((number) => `${name}${number}.example`);
  for (const node of nodes) {
    arena.place(node, "master1");
    await arena.puppetdb.replaceFacts({ certname: node, producer: "master1" });
  }
  return nodes;
}
