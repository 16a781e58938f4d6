// The clients of the benchmark `instead`, as a thread of their own: they ask a gateway at a steady rate, whatever the
// answers take, and know for each node which master is right. A watcher beside them sees when the last moved node of a
// sample is routed right; the clock for that runs in both threads (`performance.timeOrigin` + `now()`).

import { once } from "node:events";
import { parentPort, Worker, workerData } from "node:worker_threads";
import { Client } from "undici";

const CONNECTIONS = 20;
/** One request of so many is for a node that has moved. */
const MOVED_SHARE = 10;
const ANSWER_MS = 5_000;
const WATCH_EVERY_MS = 2;
const WATCH_MS = 60_000;
/** Once the first route is right, so many are looked at together. */
const WATCH_AT_ONCE = 5;

export interface Route {
  node: string;
  master: string;
  /** Where a moved node was before. */
  was?: string;
}

/** `lost` is no master at all, or one that never had the node; `failed` a broken connection, or 5xx. */
export type Outcome = "right" | "stale" | "lost" | "failed";

export interface Answer {
  /** When it was due, whenever this thread got to it. */
  at: number;
  ms: number;
  outcome: Outcome;
}

interface Orders {
  port: number;
  perSecond: number;
  moved: readonly Route[];
  still: readonly Route[];
  watched: readonly Route[];
}

export const now = (): number => performance.timeOrigin + performance.now();

export class Clients {
  readonly #worker: Worker;
  /** When the last route of those watched was right; undefined when that takes too long. */
  readonly right: Promise<number | undefined>;

  private constructor(worker: Worker) {
    this.#worker = worker;
    this.right = once(worker, "message").then(([at]) => at as number | undefined);
    this.right.catch(() => undefined);
  }

  /** Their connections and their code are warm when it resolves. */
  static async start(orders: Orders): Promise<Clients> {
    const worker = new Worker(new URL(import.meta.url), { workerData: { clientsOf: orders } });
    worker.unref();
    await once(worker, "message");
    return new Clients(worker);
  }

  /** All answers; only after `right`. */
  async answers(): Promise<Answer[]> {
    const answers = once(this.#worker, "message");
    this.#worker.postMessage("end");
    const [all] = await answers;
    return all as Answer[];
  }

  async stop(): Promise<void> {
    await this.#worker.terminate();
  }
}

async function ask(client: Client, { node, master, was }: Route): Promise<Outcome> {
  try {
    const headers = { "x-node-name": node };
    const { statusCode, body } = await client.request({ method: "GET", path: "/", headers });
    const answer = await body.text();
    if (statusCode >= 500) return "failed";
    if (answer === master) return "right";
    return answer === was ? "stale" : "lost";
  } catch {
    return "failed";
  }
}

const connect = (port: number) =>
  new Client(`http://127.0.0.1:${port}`, { headersTimeout: ANSWER_MS, bodyTimeout: ANSWER_MS });

async function serve({ port, perSecond, moved, still, watched }: Orders): Promise<void> {
  const clients = Array.from({ length: CONNECTIONS }, () => connect(port));
  const answers: Answer[] = [];
  let asked = 0;
  const askNext = async (at: number) => {
    const index = asked++;
    const turn = Math.floor(index / MOVED_SHARE);
    const route = index % MOVED_SHARE === 0 ? moved[turn % moved.length] : still[index % still.length];
    const client = clients[index % CONNECTIONS];
    if (client === undefined || route === undefined) return;
    const outcome = await ask(client, route);
    answers.push({ at, ms: now() - at, outcome });
  };
  for (const client of clients) await Promise.all(still.slice(0, 10).map((route) => ask(client, route)));
  parentPort?.postMessage("warm");
  const began = now();
  const timer = setInterval(() => {
    const dueAt = () => began + (asked * 1_000) / perSecond;
    while (dueAt() <= now()) askNext(dueAt());
  }, 1);
  parentPort?.once("message", () => {
    clearInterval(timer);
    parentPort?.postMessage(answers);
  });
  parentPort?.postMessage(await watch(port, watched));
}

/** When all were right: too late by no more than the time that a look at all of them takes. */
async function watch(port: number, watched: readonly Route[]): Promise<number | undefined> {
  const deadline = now() + WATCH_MS;
  const watchers = Array.from({ length: WATCH_AT_ONCE }, () => connect(port));
  let pending = [...watched];
  while (pending.length > 0) {
    if (now() > deadline) return undefined;
    const looked = pending.slice(0, pending.length < watched.length ? WATCH_AT_ONCE : 1);
    const outcomes = await Promise.all(
      looked.map((route, index) => ask(watchers[index] ?? connect(port), route)),
    );
    // What is wrong goes to the end: the next look is at others.
    const wrong = looked.filter((_, index) => outcomes[index] !== "right");
    pending = [...pending.slice(looked.length), ...wrong];
    if (pending.length > 0) await new Promise((resolve) => setTimeout(resolve, WATCH_EVERY_MS));
  }
  return now();
}

if (workerData?.clientsOf !== undefined) await serve(workerData.clientsOf);
