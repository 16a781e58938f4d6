// Replicas that share a PostgreSQL agree, whatever is killed at whatever time. The real PostgreSQL, real HAProxy instances,
// real passes.

import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { Client } from "pg";
import { pino } from "pino";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { readConfig } from "../src/config.js";
import { startDaemon } from "../src/daemon.js";
import { runChecks } from "../src/doctor/check.js";
import { stateDatabaseChecks } from "../src/doctor/checks-state.js";
import type { Replicas, Status } from "../src/http/api-shapes.js";
import type { Certname, Master } from "../src/node-map.js";
import { inPieces } from "../src/pieces.js";
import { Journal } from "../src/state/journal.js";
import { SharedState } from "../src/state/shared-state.js";
import type { Sync } from "../src/sync.js";
import { keyWithPassphrase, makeTlsFiles } from "./support/certificates.js";
import { freePort } from "./support/child.js";
import { type FleetLab, withFleetLab } from "./support/fleet-lab.js";
import { haproxyBinaries } from "./support/parts.js";
import { patient } from "./support/patience.js";
import { type PostgresServer, startPostgres } from "./support/postgres-server.js";

const bin = haproxyBinaries().at(-1)?.bin ?? "";
const MINUTE = 60_000;
const node = (index: number) => `agent-${index}.site-one.example.com` as Certname;
const registration = (index: number, master: string) => ({
  certname: node(index),
  master: master as Master,
  source: "registration" as const,
});

let postgres: PostgresServer;
let database = "";
let databases = 0;
beforeAll(async () => {
  postgres = await startPostgres("sasori");
});
afterAll(() => postgres.stop());
beforeEach(async () => {
  databases += 1;
  database = `sasori_${databases}`;
  await postgres.sql("postgres", `CREATE DATABASE ${database}`);
});

/** `meanwhile` happens while a transaction with this statement is open. */
async function inTransaction(statement: string, meanwhile: () => Promise<void>): Promise<void> {
  const { port, user, password } = postgres;
  const client = new Client({ host: "127.0.0.1", port, user, password, database });
  await client.connect();
  try {
    await client.query("BEGIN");
    await client.query(statement);
    await meanwhile();
    await client.query("COMMIT");
  } finally {
    await client.end();
  }
}

/** A daemon of replica `index`, beside its HAProxy. */
async function withDaemon<T>(
  lab: FleetLab,
  index: number,
  use: (ask: <Answer>(method: string, where: string, body?: object) => Promise<Answer>) => Promise<T>,
  extra: Record<string, string> = {},
): Promise<T> {
  const listen = `127.0.0.1:${await freePort()}`;
  const config = lab.config({ ...replica(lab, index), SASORI_LISTEN: listen, ...extra });
  const daemon = await startDaemon(config, pino({ level: "silent" }));
  try {
    return await use(async <Answer>(method: string, where: string, body?: object) => {
      const headers = body && { "content-type": "application/json" };
      const response = await fetch(`${daemon.url}${where}`, {
        method,
        ...(headers && { headers }),
        ...(body && { body: JSON.stringify(body) }),
      });
      return (await response.json()) as Answer;
    });
  } finally {
    await daemon.stop();
  }
}

/** Each replica with its own file, state file and HAProxy, as in pods of their own. */
const replica = (lab: FleetLab, index: number): Record<string, string> => ({
  SASORI_HAPROXY: lab.haproxys[index]?.socketPath ?? "none",
  SASORI_MAP_FILE: `${lab.mapFile}.${index}`,
  SASORI_STATE_URL: `postgres://sasori@127.0.0.1:${postgres.port}/${database}`,
  SASORI_STATE_PASSWORD_FILE: postgres.passwordFile,
  SASORI_REPLICA: `replica-${index}`,
  SASORI_MAP_NAME: lab.haproxys[index]?.mapPath ?? "",
});

async function withReplicas(
  count: number,
  use: (lab: FleetLab, syncs: Sync[]) => Promise<void>,
): Promise<void> {
  await withFleetLab(
    Array.from({ length: count }, () => ({ bin })),
    async (lab) => {
      for (let index = 0; index < 20; index += 1) await lab.run(node(index), "master1", -60 * MINUTE);
      const syncs: Sync[] = [];
      for (let index = 0; index < count; index += 1) syncs.push(await lab.newSync(replica(lab, index)));
      for (const sync of syncs) await sync.request({ full: true });
      await use(lab, syncs);
    },
  );
}

const liveMaster = async (lab: FleetLab, index: number, certname: string) =>
  (await lab.haproxys[index]?.showMap())?.get(certname);

/** Every replica's live map has it. */
async function expectEverywhere(lab: FleetLab, certname: string, master: string | undefined): Promise<void> {
  for (const index of lab.haproxys.keys())
    await expect.poll(() => liveMaster(lab, index, certname)).toBe(master);
}

describe("replicas that share a database", () => {
  test("have a registration, its reason and its end in every live map, and in every state file", () =>
    withReplicas(3, async (lab, [one, two, three]) => {
      await one?.submit({ ...registration(3, "master2"), reason: "disk of master1", by: "ana" });
      await expectEverywhere(lab, node(3), "master2");
      expect(three?.fleet.own.get(node(3))).toMatchObject({ reason: "disk of master1", by: "ana" });
      const file = () => readFile(`${lab.mapFile}.2.state.json`, "utf8");
      await expect.poll(file).toContain("disk of master1");
      const own = two?.fleet.own.get(node(3));
      const submitted = { certname: node(3), master: "master1" as Master, source: "facts" as const };
      if (own !== undefined) await two?.withdraw(own, { ...submitted, at: Date.now() - 60 * MINUTE });
      await expect.poll(() => one?.fleet.own.size).toBe(0);
      for (const sync of [one, two, three]) await sync?.request({});
      await expectEverywhere(lab, node(3), "master1");
      expect([one, two, three].map((sync) => sync?.fleet.own.size)).toEqual([0, 0, 0]);
    }));

  test("that are told differently at the same time agree on one, and a later order wins everywhere", () =>
    withReplicas(2, async (lab, [one, two]) => {
      for (let round = 0; round < 10; round += 1) {
        await Promise.all([one?.submit(registration(4, "master2")), two?.submit(registration(4, "master3"))]);
        const masters = async () => [await liveMaster(lab, 0, node(4)), await liveMaster(lab, 1, node(4))];
        await expect.poll(async () => new Set(await masters()).size).toBe(1);
        await two?.submit(registration(4, "master1"));
        await expectEverywhere(lab, node(4), "master1");
      }
      expect(one?.fleet.own.get(node(4))).toEqual(two?.fleet.own.get(node(4)));
    }));

  test("count an approval that was given once, and remember a removed node together", () =>
    withReplicas(2, async (lab, [one, two]) => {
      for (let index = 0; index < 15; index += 1) await lab.puppetdb.deactivateNode(node(index));
      for (const sync of [one, two])
        expect(await sync?.request({ full: true })).toMatchObject({ outcome: "held" });
      const { held } = (await one?.request({ full: true })) ?? {};
      expect(await one?.request({ approve: held?.id })).toMatchObject({ outcome: "done", nodes: 5 });
      await expect.poll(async () => (await two?.request({}))?.nodes).toBe(5);
      expect(two?.fleet.verdict).toMatchObject({ kind: "allowed" });
      // A second person approves the same plan, there or here, and another one that nobody has seen.
      for (const sync of [one, two])
        expect(await sync?.request({ approve: held?.id })).not.toHaveProperty("approvalUnmatched");
      expect(await two?.request({ approve: "0123456789ab" })).toMatchObject({ approvalUnmatched: true });
      await expectEverywhere(lab, node(1), undefined);
      const third = await lab.newSync({ ...replica(lab, 1), SASORI_STATE_FILE: `${lab.mapFile}.new` });
      expect(third.fleet.tombstones.has(node(1))).toBe(true);
      expect(third.fleet.guard.sizes).toMatchObject([{ size: 5 }]);
    }));

  test("know each other's homes: a rebalance may be ordered anywhere", () =>
    withReplicas(2, async (lab, [one, two]) => {
      const note = async (sync: Sync | undefined) =>
        sync && inPieces(sync.fleet.noteMoves(new Map([[node(2), "master1" as Master]]), () => "down"));
      await note(one);
      expect(one?.fleet.homes.size).toBe(0); // It has not moved.
      await one?.submit(registration(2, "master2"));
      await note(one);
      await one?.request({ known: true });
      await expect.poll(() => two?.fleet.homes.get(node(2))).toBe("master1");
      await two?.submit(registration(2, "master1"));
      await expect.poll(() => one?.fleet.homes.size).toBe(0);
      await expectEverywhere(lab, node(2), "master1");
    }));

  test("go on without the database from memory and file, and agree when it is back", () =>
    withReplicas(2, async (lab, [one, two]) => {
      await one?.submit(registration(1, "master2"));
      await expectEverywhere(lab, node(1), "master2");
      await postgres.end("SIGKILL");
      try {
        await one?.submit(registration(5, "master2"));
        await two?.submit(registration(6, "master3"));
        await two?.submit(registration(1, "master3"));
        expect(await liveMaster(lab, 0, node(5))).toBe("master2");
        expect(await liveMaster(lab, 1, node(1))).toBe("master3");
        expect(one?.unsaved).toBeUndefined();
        // After a restart it knows the registrations from before and from the meantime.
        const again = await lab.newSync({ ...replica(lab, 0), SASORI_HAPROXY: "none" });
        expect([...again.fleet.own.keys()].sort()).toEqual([node(1), node(5)]);
      } finally {
        await postgres.start();
      }
      for (const [index, master] of [
        [1, "master3"],
        [5, "master2"],
        [6, "master3"],
      ] as const)
        await expectEverywhere(lab, node(index), master);
      expect(await postgres.sql(database, "SELECT count(*) FROM sasori_state WHERE kind = 'route'")).toBe(
        "3",
      );
    }));

  test("give a database that was restored empty, or is new, all that they know", () =>
    withReplicas(2, async (lab, [one]) => {
      await one?.submit(registration(1, "master2"));
      await expectEverywhere(lab, node(1), "master2");
      await postgres.sql(database, "TRUNCATE sasori_state");
      await postgres.sql(
        "postgres",
        `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '${database}'`,
      );
      const rows = () => postgres.sql(database, "SELECT key, value FROM sasori_state WHERE kind = 'route'");
      await expect.poll(rows).toContain('"master2"');
    }));

  test("do not let the database grow for ever with nodes that come and go, and keep what is in force there", () =>
    withReplicas(1, async (lab, [one]) => {
      await one?.submit(registration(1, "master2"));
      await postgres.sql(
        database,
        `INSERT INTO sasori_state SELECT 'removed', 'gone-' || n || '.example.com', now() + n * interval '1 ms', '{"at":1}', 'by hand', txid_current() FROM generate_series(1, 30000) AS n`,
      );
      const rows = async (what: string) =>
        Number(await postgres.sql(database, `SELECT count(*) FROM sasori_state WHERE ${what}`));
      const files = { SASORI_HAPROXY: "none", SASORI_STATE_FILE: `${lab.mapFile}.new` };
      const other = await lab.newSync({ ...replica(lab, 0), ...files });
      await expect.poll(() => rows("kind = 'removed'"), { timeout: patient(15_000) }).toBe(20_000);
      expect(await rows("key = 'gone-30000.example.com' OR kind = 'route'")).toBe(2);
      const own = () => other.fleet.own.get(node(1));
      await expect.poll(own, { timeout: patient(15_000) }).toMatchObject({ master: "master2" });
    }));

  test("take as many rows as there are, also at the first start", () =>
    withFleetLab([], async (lab) => {
      const settings = { ...replica(lab, 0), SASORI_STATE_FILE: `${lab.mapFile}.new` };
      const config = lab.config(settings);
      if (config.stateDatabase === undefined) throw new Error("there is a URL");
      const first = new SharedState(new Journal(`${lab.mapFile}.first`), config.stateDatabase);
      await first.load(); // It makes the tables.
      await first.close();
      const many = 200_000; // More than a call can have arguments.
      await postgres.sql(
        database,
        `INSERT INTO sasori_state SELECT 'route', 'many-' || n || '.example.com', now(), '{"master":"master1","source":"learned"}', 'by hand', txid_current() FROM generate_series(1, ${many}) AS n`,
      );
      const journal = new Journal(config.stateFile);
      const state = new SharedState(journal, config.stateDatabase);
      try {
        await state.load();
        expect(state.failure).toBeUndefined();
        await expect.poll(() => journal.rows.size, { timeout: patient(30_000) }).toBe(many);
      } finally {
        await state.close();
      }
    }));

  test("miss no row of a transaction that is committed after a later one", () =>
    withReplicas(2, async (lab, [one]) => {
      await inTransaction(
        `INSERT INTO sasori_state VALUES ('route', '${node(7)}', now(), '{"master":"master3","source":"registration"}', 'by hand', txid_current())`,
        async () => {
          await one?.submit(registration(8, "master2"));
          await expectEverywhere(lab, node(8), "master2");
        },
      );
      await postgres.sql(database, "SELECT pg_notify('sasori_state', '')");
      await expectEverywhere(lab, node(7), "master3");
    }));

  test("leave a row alone that nobody can use, and tell of it", () =>
    withReplicas(1, async (lab, [one]) => {
      await postgres.sql(
        database,
        `INSERT INTO sasori_state VALUES ('route', 'a;b', now(), '{"master":"x y","source":"registration"}', 'by hand', txid_current())`,
      );
      const other = await lab.newSync({
        ...replica(lab, 0),
        SASORI_HAPROXY: "none",
        SASORI_STATE_FILE: `${lab.mapFile}.x`,
      });
      await one?.submit(registration(1, "master2"));
      await expect.poll(() => other.fleet.own.size).toBe(1);
    }));

  test("tell of such a row once, for as long as it is there", () =>
    withFleetLab([], async (lab) => {
      const { stateDatabase, stateFile } = lab.config({
        SASORI_STATE_URL: `postgres://sasori@127.0.0.1:${postgres.port}/${database}`,
        SASORI_STATE_PASSWORD_FILE: postgres.passwordFile,
      });
      if (stateDatabase === undefined) throw new Error("there is a URL");
      const state = new SharedState(new Journal(stateFile), stateDatabase);
      await state.load();
      // Like a backup that takes hours: while it runs, the same rows are read again and again.
      const backup = "SELECT txid_current()";
      const failure = () => state.failure?.message;
      try {
        await inTransaction(backup, async () => {
          await postgres.sql(
            database,
            `INSERT INTO sasori_state SELECT 'route', key, now(), '{"master":"x y","source":"registration"}', 'by hand', txid_current() FROM unnest('{a;b,c;d}'::text[]) AS key`,
          );
          const notify = () => postgres.sql(database, "SELECT pg_notify('sasori_state', '')");
          for (let told = 0; told < 3; told += 1) await notify();
          await expect.poll(failure).toMatch(/ 2 rows of sasori_state cannot be used/);
          for (let told = 0; told < 3; told += 1) await notify();
          await postgres.sql(database, "DELETE FROM sasori_state WHERE key = 'a;b'");
          await expect.poll(failure).toMatch(/ 1 row of sasori_state cannot be used \("route" "c;d"\)/);
          await postgres.sql(database, "DELETE FROM sasori_state");
          await expect.poll(failure).toBeUndefined();
        });
      } finally {
        await state.close();
      }
    }));

  test("say all the time that the role may no longer write, and nothing when it may again", () =>
    withFleetLab([], async (lab) => {
      const role = `app_${databases}`;
      const app = `CREATE ROLE ${role} LOGIN PASSWORD '${postgres.password}'`;
      await postgres.sql("postgres", `${app}; ALTER DATABASE ${database} OWNER TO ${role}`);
      const { stateDatabase, stateFile } = lab.config({
        SASORI_STATE_URL: `postgres://${role}@127.0.0.1:${postgres.port}/${database}`,
        SASORI_STATE_PASSWORD_FILE: postgres.passwordFile,
      });
      if (stateDatabase === undefined) throw new Error("there is a URL");
      const state = new SharedState(new Journal(stateFile), stateDatabase);
      state.describe(() => "{}");
      const failure = () => state.failure?.message;
      const sessions = async () =>
        Number(
          await postgres.sql(
            "postgres",
            `SELECT sessions FROM pg_stat_database WHERE datname = '${database}'`,
          ),
        );
      try {
        await state.load();
        await expect.poll(() => state.heard.length, { timeout: patient(15_000) }).toBe(1);
        await postgres.sql(database, `REVOKE INSERT ON sasori_replicas FROM ${role}`);
        await expect.poll(failure, { timeout: patient(15_000) }).toMatch(/permission denied/);
        const before = await sessions();
        const said = new Set<string | undefined>();
        let isOver = false;
        const watch = () => {
          said.add(failure());
          if (!isOver) setImmediate(watch);
        };
        watch();
        await expect.poll(sessions, { timeout: patient(30_000) }).toBeGreaterThanOrEqual(before + 3);
        isOver = true;
        expect([...said]).toEqual([failure()]);
        await postgres.sql(database, `GRANT INSERT ON sasori_replicas TO ${role}`);
        await expect.poll(failure, { timeout: patient(30_000) }).toBeUndefined();
      } finally {
        await state.close();
      }
    }));

  test("know each other: name, HAProxy instances, nodes, state, last pass, version; who stops goes, who is killed is silent", () =>
    withFleetLab([{ bin }, { bin }], async (lab) => {
      await lab.run(node(0), "master1");
      await withDaemon(lab, 0, async (ask) => {
        const names = async () =>
          (await ask<Replicas>("GET", "/api/v1/replicas")).replicas.map(({ name }) => name);
        await withDaemon(lab, 1, async () => {
          const both = async () => (await ask<Replicas>("GET", "/api/v1/replicas")).replicas;
          const well = (index: number) => ({
            name: `replica-${index}`,
            self: index === 0,
            state: "in sync",
            nodes: 1,
            haproxys: [{ target: lab.haproxys[index]?.socketPath, inSync: true, pending: 0 }],
            lastPass: { outcome: "done" },
          });
          await expect.poll(both, { timeout: patient(15_000) }).toMatchObject([well(0), well(1)]);
        });
        await expect.poll(names, { timeout: patient(15_000) }).toEqual(["replica-0"]);
        await postgres.sql(
          database,
          "INSERT INTO sasori_replicas SELECT 'replica-9', now() - interval '1 hour', word FROM sasori_replicas",
        );
        const troubles = async () => (await ask<Status>("GET", "/api/v1/status")).troubles;
        await expect
          .poll(troubles, { timeout: patient(15_000) })
          .toMatchObject([
            { code: "replica", where: "replica-9", what: "it has reported nothing for 60 minutes" },
          ]);
        await postgres.end("SIGKILL");
        try {
          await expect
            .poll(troubles, { timeout: patient(15_000) })
            .toMatchObject([{ code: "STATE_DATABASE", where: "state database" }]);
          const told = await ask<Replicas>("GET", "/api/v1/replicas");
          expect(told).toMatchObject({ shared: true, failure: { code: "STATE_DATABASE" } });
          expect(JSON.stringify(told)).not.toContain(postgres.password);
        } finally {
          await postgres.start();
        }
        await expect
          .poll(async () => (await ask<Replicas>("GET", "/api/v1/replicas")).failure)
          .toBeUndefined();
      });
    }));
});

describe("TLS", () => {
  test("is spoken with a PostgreSQL whose certificate is right, and with no other; no message has the password", async () => {
    const folder = await mkdtemp(path.join(tmpdir(), "sasori-tls-"));
    try {
      await makeTlsFiles(folder);
      const at = (name: string) => path.join(folder, name);
      for (const [name, ca, wrong] of [
        ["server", "ca", undefined],
        ["server", "other-ca", /self-signed|unable to verify|certificate/],
        ["elsewhere", "ca", /does not match certificate's altnames|altnames/],
      ] as const) {
        const server = await startPostgres("sasori", [], { cert: at(`${name}.pem`), key: at(`${name}.key`) });
        try {
          await server.sql("postgres", "CREATE DATABASE sasori");
          const url = `postgres://sasori@127.0.0.1:${server.port}/sasori`;
          const env = {
            SASORI_STATE_URL: url,
            SASORI_STATE_PASSWORD_FILE: server.passwordFile,
            SASORI_STATE_CA: at(`${ca}.pem`),
          };
          await withFleetLab([], async (lab) => {
            const { stateDatabase, stateFile } = lab.config(env);
            if (stateDatabase === undefined) throw new Error("there is a URL");
            const state = new SharedState(new Journal(stateFile), stateDatabase);
            await state.load();
            const told = state.failure?.message;
            if (wrong === undefined) expect(told).toBeUndefined();
            else expect(told).toMatch(wrong);
            expect(told ?? "").not.toContain(server.password);
            const tls =
              "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE ssl AND application_name LIKE 'sasori %'";
            expect(await server.sql("sasori", tls)).toBe(wrong === undefined ? "1" : "0");
            await state.close();
          });
        } finally {
          await server.stop();
        }
      }
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  });
});

test("a key with a passphrase is said to be one", () =>
  withFleetLab([], async (lab) => {
    const key = `${lab.mapFile}.key`;
    await writeFile(key, keyWithPassphrase());
    const state = new SharedState(new Journal(`${lab.mapFile}.state.json`), {
      where: "the state database",
      ...{ host: "127.0.0.1", port: 1, user: "sasori", database, tls: true, replica: "sasori-a" },
      keyFile: key,
    });
    await state.load();
    expect(state.failure).toMatchObject({
      code: "STATE_DATABASE",
      message: expect.stringContaining(`${key} holds a key with a passphrase`),
    });
    await state.close();
  }));

describe("the doctor", () => {
  const look = async (url: string, extra: Record<string, string> = {}) => {
    const [check] = stateDatabaseChecks(
      readConfig({
        ...{
          SASORI_PUPPETDB_URL: "http://127.0.0.1:1",
          SASORI_HAPROXY: "none",
          SASORI_MAP_FILE: "/nowhere/nodes.map",
        },
        ...{ SASORI_STATE_URL: url, SASORI_STATE_PASSWORD_FILE: postgres.passwordFile, ...extra },
      }),
    );
    const [finding] = await runChecks(check ? [check] : [], () => undefined);
    return finding;
  };
  const url = (user: string, name = database, query = "") =>
    `postgres://${user}@127.0.0.1:${postgres.port}/${name}${query}`;

  test("says what is wrong with the state database, and what to do", async () => {
    expect(await look(url("sasori"))).toMatchObject({
      outcome: "ok",
      detail: expect.stringMatching(/^PostgreSQL \d.*no tables yet/),
    });
    expect(await look(url("sasori", "nowhere"))).toMatchObject({
      outcome: "failed",
      remedy: 'create it: CREATE DATABASE "nowhere" OWNER "sasori"',
    });
    await postgres.sql("postgres", `CREATE ROLE guest LOGIN PASSWORD '${postgres.password}'`);
    await postgres.sql(database, "REVOKE CREATE ON SCHEMA public FROM PUBLIC");
    expect(await look(url("guest"))).toMatchObject({
      outcome: "failed",
      detail: expect.stringMatching(/guest may not create tables/),
    });
    await postgres.sql("postgres", "ALTER ROLE guest PASSWORD 'another'");
    expect(await look(url("guest"))).toMatchObject({
      remedy: expect.stringContaining("SASORI_STATE_PASSWORD_FILE"),
    });
    expect(await look(url("sasori", database, "?sslmode=verify-full"))).toMatchObject({
      outcome: "failed",
      detail: expect.stringContaining("does not support SSL"),
      remedy: expect.stringContaining("?sslmode=disable"),
    });
    await withFleetLab([{ bin }], async (lab) => {
      await lab.newSync(replica(lab, 0));
      expect(await look(url("sasori"))).toMatchObject({
        outcome: "ok",
        detail: expect.stringContaining("0 registrations"),
      });
    });
    await postgres.sql(database, "INSERT INTO sasori_schema VALUES (99, now())");
    expect(await look(url("sasori"))).toMatchObject({
      outcome: "failed",
      detail: expect.stringContaining("newer sasori"),
    });
  });
});
