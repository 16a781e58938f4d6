// Three replicas that share a PostgreSQL, and kill -9 of any of them and of PostgreSQL at random moments, while orders are
// given. Whatever the moment: what was answered is in force everywhere in the end, and all live maps are the same.

import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import type { Status } from "../../src/http/api-shapes.js";
import { Child, freePort } from "../support/child.js";
import { type FleetLab, MASTERS, withFleetLab } from "../support/fleet-lab.js";
import { haproxyBinaries } from "../support/parts.js";
import { patient } from "../support/patience.js";
import { type PostgresServer, startPostgres } from "../support/postgres-server.js";
import { CLI, LONG } from "./arena.js";
import { enter, enterCode, type Row } from "./ledger.js";

const REPLICAS = 3;
const NODES = 30;
const ORDERS = LONG ? 1_000 : 120;
/** One of so many orders meets a kill. */
const KILL_EVERY = 4;
const DOWN_MS = 1_500;
const ANSWER_MS = 20_000;

const node = (index: number) => `agent-${index}.site-one.example.com`;
const any = <Item>(items: readonly Item[]) => items[Math.floor(Math.random() * items.length)] as Item;

class Replica {
  child: Child | undefined;
  isUp = false;
  kills = 0;
  /** Since it was killed it is being started again. */
  restarting: Promise<void> = Promise.resolve();
  readonly #env: Record<string, string>;
  readonly url: string;

  constructor(env: Record<string, string>, listen: string) {
    this.#env = env;
    this.url = `http://${listen}`;
  }

  async start(): Promise<void> {
    const env = { PATH: process.env.PATH ?? "", ...this.#env };
    this.child = new Child(process.execPath, [CLI, "serve"], { env });
    await this.child.untilReady(async () => (await fetch(`${this.url}/readyz`)).ok);
    this.isUp = true;
  }

  /** kill -9, and a start after a while. */
  kill(afterMs: number): void {
    const { child } = this;
    this.isUp = false;
    this.kills += 1;
    this.restarting = (async () => {
      await child?.end("SIGKILL");
      await sleep(afterMs);
      await this.start();
    })();
  }

  /** Whether it has answered that the order is in force. */
  async order(certname: string, master: string): Promise<boolean> {
    try {
      const response = await fetch(`${this.url}/api/v1/nodes/${certname}`, {
        method: "PUT",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ master, reason: `order of ${certname}` }),
        signal: AbortSignal.timeout(patient(ANSWER_MS)),
      });
      const { unsaved } = (await response.json()) as { unsaved?: object };
      return response.status === 200 && unsaved === undefined;
    } catch {
      return false; // It was killed meanwhile: nobody knows.
    }
  }
}

/** What may be in force: the last order that was answered, and those since then that were not. */
type Possible = Map<string, Set<string>>;

async function withReplicas(
  use: (lab: FleetLab, replicas: Replica[], postgres: PostgresServer) => Promise<void>,
): Promise<void> {
  const bin = haproxyBinaries().at(-1)?.bin ?? "";
  const postgres = await startPostgres("sasori");
  const replicas: Replica[] = [];
  try {
    await postgres.sql("postgres", "CREATE DATABASE sasori");
    await withFleetLab(
      Array.from({ length: REPLICAS }, () => ({ bin })),
      async (lab) => {
        for (let index = 0; index < NODES; index += 1) await lab.run(node(index), "master1", -60_000);
        for (const [index, haproxy] of lab.haproxys.entries()) {
          const listen = `127.0.0.1:${await freePort()}`;
          const env = {
            SASORI_PUPPETDB_URL: lab.puppetdb.url,
            SASORI_HAPROXY: haproxy.socketPath,
            SASORI_MAP_NAME: haproxy.mapPath,
            SASORI_MAP_FILE: path.join(path.dirname(lab.mapFile), `replica${index}.map`),
            SASORI_STATE_URL: `postgres://sasori@127.0.0.1:${postgres.port}/sasori`,
            SASORI_STATE_PASSWORD_FILE: postgres.passwordFile,
            SASORI_REPLICA: `replica-${index}`,
            SASORI_LISTEN: listen,
          };
          const replica = new Replica(env, listen);
          replicas.push(replica);
          await replica.start();
        }
        try {
          await use(lab, replicas, postgres);
        } finally {
          for (const { child, restarting } of replicas) {
            await restarting.catch(() => undefined);
            await child?.end("SIGKILL");
          }
        }
      },
    );
  } finally {
    await postgres.stop();
  }
}

/**
 * Waits until each live map has for each node what may be in force, and all have the same. Enters how many nodes differed in
 * the end, and fails for them.
 */
async function untilAgreed(
  lab: FleetLab,
  possible: Possible,
  row: Pick<Row, "fault" | "tries" | "failed" | "requests">,
): Promise<void> {
  const began = performance.now();
  const wrong = async () => {
    const maps = await Promise.all(lab.haproxys.map((haproxy) => haproxy.showMap()));
    return [...possible].flatMap(([certname, masters]) => {
      const found = maps.map((map) => map.get(certname) ?? "-");
      const isRight = new Set(found).size === 1 && masters.has(found[0] ?? "");
      return isRight ? [] : [`${certname}: ${found} instead of ${[...masters]}`];
    });
  };
  const agreed = expect.poll(wrong, { timeout: patient(30_000) }).toEqual([]);
  const lost = await agreed.then(() => [], wrong);
  const seconds = (performance.now() - began) / 1_000;
  enter({ ...row, lost: lost.length, misrouted: 0, seconds });
  expect(lost).toEqual([]);
  expect(row.failed).toBe(0);
}

export function replicaFaults(): void {
  describe("Three replicas", () => {
    test("lose no order and agree, while any of them and PostgreSQL are killed at random moments", () =>
      withReplicas(async (lab, replicas, postgres) => {
        const possible: Possible = new Map();
        let database = Promise.resolve();
        let kills = 0;
        let answered = 0;
        let failed = 0;
        for (let order = 0; order < ORDERS; order += 1) {
          const certname = node(Math.floor(Math.random() * NODES));
          const living = replicas.filter(({ isUp }) => isUp);
          const told = any(living);
          const { kills: before } = told;
          const master = any(MASTERS);
          const answer = told.order(certname, master);
          if (order % KILL_EVERY === 0) {
            kills += 1;
            await sleep(Math.random() * 40); // Before, in the middle of, or after the order.
            if (Math.random() < 0.4) {
              await database;
              await postgres.end("SIGKILL");
              database = sleep(Math.random() * DOWN_MS).then(() => postgres.start());
            } else if (living.length > 1) {
              const victim = Math.random() < 0.5 ? told : any(living);
              victim.kill(Math.random() * DOWN_MS);
            }
          }
          const isAnswered = await answer;
          if (isAnswered) possible.set(certname, new Set([master]));
          else possible.set(certname, (possible.get(certname) ?? new Set(["master1"])).add(master));
          if (isAnswered) answered += 1;
          else if (told.kills === before) failed += 1;
        }
        await database;
        for (const { restarting } of replicas) await restarting;
        const fault = "replicas: kill -9 of any, and of PostgreSQL";
        await untilAgreed(lab, possible, { fault, tries: kills, failed, requests: ORDERS });
        expect(answered).toBeGreaterThan(ORDERS / 2);
      }));

    test("go on while PostgreSQL is gone, say so, and agree on what each was told when it is back", () =>
      withReplicas(async (lab, replicas, postgres) => {
        await postgres.end("SIGKILL");
        const possible: Possible = new Map();
        for (const [index, replica] of replicas.entries()) {
          expect(await replica.order(node(index), "master3")).toBe(true);
          possible.set(node(index), new Set(["master3"]));
          const told = async () => {
            const { troubles } = (await (await fetch(`${replica.url}/api/v1/status`)).json()) as Status;
            const found = troubles.find(({ code }) => code === "STATE_DATABASE");
            if (found !== undefined) enterCode(found.code, found.what);
            return found?.remedy;
          };
          await expect.poll(told).toMatch(/^start PostgreSQL/);
          const metrics = async () => (await fetch(`${replica.url}/metrics`)).text();
          await expect
            .poll(metrics, { timeout: patient(30_000) })
            .toContain('sasori_errors_total{target="state database",code="STATE_DATABASE"}');
          expect(replica.child?.printed).not.toContain(postgres.password);
        }
        await postgres.start();
        const fault = "replicas: PostgreSQL gone";
        await untilAgreed(lab, possible, { fault, tries: 1, failed: 0, requests: REPLICAS });
      }));
  });
}
