// For how long sasori answers nobody, in each phase of its life and by the size of the fleet: seen inside its process
// (turns.ts) and by somebody outside who asks what HAProxy asks (stalls-asker.ts). PuppetDB is a stand-in whose answers
// are ready (stalls-fleet.ts): they come faster than a real one's, so sasori has more to do at once.

import { existsSync, readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath, pathToFileURL } from "node:url";
import type { SyncRequest } from "../src/pass-queue.js";
import { freePort } from "../test/support/child.js";
import type { Bench, Row } from "./bench.js";
import {
  type Daemon,
  forgetPeak,
  lookupConfig,
  MASTERS,
  memoryMiB,
  newestHaproxy,
  round,
  SIZES,
  startSasori,
} from "./daemon.js";
import { Stage } from "./stage.js";
import { nameOf } from "./stalls-fleet.js";

const program = (name: string) => fileURLToPath(new URL(`./${name}.js`, import.meta.url));

/** A pass of a million nodes has enough moments at which it could stall, and takes long. */
const fullPasses = (nodes: number) => (nodes > 100_000 ? 1 : 3);
const QUIET_PASSES = 20;
/** Moves that a busy fleet has in a few seconds, and those of a master that is taken out. */
const MOVES = [1_000, 10_000];
const REGISTRATIONS = 10_000;
const SETTLE_MS = 300;

/** One question after the other, as a page and its user ask them, while a full pass runs. */
const QUESTIONS = [
  "/api/v1/nodes?limit=1000",
  "/api/v1/nodes?q=77&limit=1000",
  "/api/v1/nodes?q=none&source=learned",
  "/api/v1/nodes?master=master1&limit=1000&cursor=node-0005",
  `/api/v1/nodes/${nameOf(1)}`,
  "/api/v1/moves?limit=1000",
  "/api/v1/masters",
  "/api/v1/status",
  "/metrics",
];

export const stalls: Bench = {
  what: "the longest time for which sasori answers nobody, by phase and size of the fleet; ms",
  async run({ signal, progress }) {
    const rows: Row[] = [];
    for (const nodes of SIZES) {
      const say = (text: string) => progress(`${nodes} nodes, ${text}`);
      rows.push(...(await Stage.with(signal, (stage) => measure(stage, nodes, say, signal))));
    }
    return rows;
  },
};

type Fleet = Awaited<ReturnType<typeof startFleet>>;

async function measure(stage: Stage, nodes: number, say: (text: string) => void, signal: AbortSignal) {
  say("making the fleet");
  const at = (file: string) => path.join(stage.folder, file);
  const files = { turns: at("turns"), answers: at("answers") };
  const map = at("sasori.map");
  for (const file of [...Object.values(files), map]) await writeFile(file, "");
  const fleet = await startFleet(stage, nodes);
  const haproxy = await stage.haproxy("haproxy", newestHaproxy().bin, (port, socket) =>
    lookupConfig(map, port, socket),
  );
  const port = await freePort();
  const env = {
    NODE_OPTIONS: `--import ${pathToFileURL(program("turns"))}`,
    BENCH_TURNS: files.turns,
    SASORI_PUPPETDB_URL: fleet.url,
    SASORI_HAPROXY: haproxy.socket,
    SASORI_MAP_FILE: map,
    SASORI_STATE_FILE: at("state.json"),
    SASORI_LISTEN: `127.0.0.1:${port}`,
  };
  const asked = `http://127.0.0.1:${port}/healthz`;
  const asker = [process.execPath, program("stalls-asker"), asked, files.answers];
  await stage.program("asker", asker, {}, async () => existsSync(at("asker.pid")));
  const phases = new Phases(nodes, files, say);
  await Stage.with(signal, (life) => firstLife(life, env, fleet, phases));
  await writeFile(env.SASORI_STATE_FILE, stateOf(Math.min(nodes, REGISTRATIONS)));
  await Stage.with(signal, (life) =>
    phases.start("start with a map and a state file", () => startSasori(life, "sasori", env)),
  );
  return phases.rows;
}

async function firstLife(
  life: Stage,
  env: Record<string, string>,
  fleet: Fleet,
  phases: Phases,
): Promise<void> {
  const { nodes } = phases;
  const sasori = await phases.start("first filling", () => startSasori(life, "sasori", env));
  const pass = async (request: SyncRequest = {}, outcome = "done") => {
    const report = await sasori.sync(request);
    if (report.outcome !== outcome) throw new Error(JSON.stringify(report).slice(0, 500));
  };
  const full = () => pass({ full: true });
  const times = async (count: number, work: () => Promise<unknown>) => {
    for (let turn = 0; turn < count; turn += 1) await work();
  };
  await phases.run("full passes", () => times(fullPasses(nodes), full));
  await phases.run("quiet passes, sampling", () => times(QUIET_PASSES, pass));
  for (const moves of MOVES.filter((count) => count * 10 <= nodes))
    await phases.run(`${moves} moves`, () => times(3, () => fleet.move(moves).then(() => pass())));
  await phases.run("questions during full passes", async () => {
    const passes = times(fullPasses(nodes), full);
    await ask(env.SASORI_LISTEN ?? "", passes);
  });
  await phases.run("dry run", () => pass({ full: true, dryRun: true }));
  await fleet.move(nodes);
  await phases.run("all nodes move: a version is swapped", full);
  await fleet.list(Math.floor(nodes / 2));
  await phases.run("half of the nodes are gone: held", () => pass({ full: true }, "held"));
  await phases.run("the held plan is read", () => readPlan(env.SASORI_LISTEN ?? ""));
  await fleet.list(nodes);
  await full();
  await fleet.back();
  await phases.run("PuppetDB goes back by an hour: held", () => pass({ full: true }, "held"));
  await fleet.move(nodes);
  await full();
}

/** One question after the other until the work is done. */
async function ask(address: string, work: Promise<unknown>): Promise<void> {
  let isDone = false;
  const done = work.finally(() => {
    isDone = true;
  });
  for (let turn = 0; !isDone; turn += 1) {
    const answer = await fetch(`http://${address}${QUESTIONS[turn % QUESTIONS.length]}`);
    if (!answer.ok) throw new Error(`${answer.url}: ${answer.status} ${await answer.text()}`);
    await answer.arrayBuffer();
  }
  await done;
}

/** As the page and `sasori diff --held` read it. */
async function readPlan(address: string): Promise<void> {
  for (const question of ["/api/v1/plan?limit=1000", "/api/v1/plan.txt"]) {
    const answer = await fetch(`http://${address}${question}`);
    if (!answer.ok) throw new Error(`${answer.url}: ${answer.status} ${await answer.text()}`);
    for await (const _ of answer.body ?? []);
  }
}

/** A state file with so many registrations, made now: PuppetDB knows nothing newer. */
function stateOf(registrations: number): string {
  const at = new Date().toISOString();
  const observations = Array.from({ length: registrations }, (_, node) => ({
    certname: nameOf(node),
    master: MASTERS[node % MASTERS.length],
    at,
    source: "registration",
  }));
  return JSON.stringify({ version: 1, observations, homes: [], tombstones: [], ended: [], sizes: [] });
}

async function startFleet(stage: Stage, nodes: number) {
  const port = await freePort();
  const url = `http://127.0.0.1:${port}`;
  const command = [process.execPath, program("stalls-fleet"), String(port), String(nodes)];
  await stage.program("puppetdb", command, {}, async () => (await fetch(`${url}/ready`)).ok);
  const tell = async (what: string) => {
    const answer = await fetch(`${url}/${what}`, { method: "POST" });
    if (!answer.ok) throw new Error(`${answer.url}: ${answer.status}`);
  };
  return {
    url,
    move: (count: number) => tell(`move?count=${count}`),
    list: (count: number) => tell(`list?count=${count}`),
    back: () => tell("back"),
  };
}

/** What the watchers have written, phase by phase. */
class Phases {
  readonly rows: Row[] = [];
  readonly nodes: number;
  readonly #files: { turns: string; answers: string };
  readonly #say: (text: string) => void;
  /** Of the sasori that was started last. */
  #pid = 0;

  constructor(nodes: number, files: { turns: string; answers: string }, say: (text: string) => void) {
    this.nodes = nodes;
    this.#files = files;
    this.#say = say;
  }

  /** Counts from its first answer on. Before it listens nobody asks. */
  start(phase: string, work: () => Promise<Daemon>): Promise<Daemon> {
    const start = async () => {
      const sasori = await work();
      this.#pid = sasori.pid;
      return sasori;
    };
    return this.#watch(phase, start, "its first answer");
  }

  run<T>(phase: string, work: () => Promise<T>): Promise<T> {
    forgetPeak(this.#pid);
    return this.#watch(phase, work, undefined);
  }

  async #watch<T>(phase: string, work: () => Promise<T>, from: "its first answer" | undefined): Promise<T> {
    this.#say(phase);
    const [began, at] = [performance.now(), Date.now()];
    const result = await work();
    const seconds = (performance.now() - began) / 1000;
    await sleep(SETTLE_MS); // The last of them are written now.
    const answers = readNumbers(this.#files.answers, at);
    const since = from === undefined ? at : (answers[0]?.[0] ?? at);
    const late = readNumbers(this.#files.turns, since);
    const most = (numbers: number[]) => round(numbers.reduce((a, b) => Math.max(a, b), 0));
    this.rows.push({
      nodes: this.nodes,
      phase,
      seconds: round(seconds, 1),
      "on the clock": most(late.map(([, clock = 0]) => clock)),
      "on a core": most(late.map(([, , core = 0]) => core)),
      "seen outside": most(answers.map(([, took = 0]) => took)),
      "peak MiB": memoryMiB(this.#pid, "VmHWM"),
    });
    return result;
  }
}

/** The lines that were written since. */
const readNumbers = (file: string, since: number): number[][] =>
  readFileSync(file, "latin1")
    .split("\n")
    .map((line) => line.split(" ").map(Number))
    .filter(([at = 0]) => at >= since);
