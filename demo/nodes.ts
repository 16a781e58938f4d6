// The demo's fleet: node1, node2, ... in one process. All check in with their master again and again, and now
// and then one moves to another master without telling anybody but the two, as real nodes do.
// node1 to node4 never move by themselves: they are for the person at the keyboard.

import { EventEmitter, on, setMaxListeners } from "node:events";
import { Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { Command, InvalidArgumentError, Option } from "commander";
import type { FastifyRequest } from "fastify";
import type { ListenAddress } from "../src/config.js";
import { quote, reason } from "../src/errors.js";
import { isMaster, parseCertname } from "../src/node-map.js";
import { Agent, COMMANDS, isNodeCommand, type MasterAddress, type Move } from "./agent.js";
import {
  atLeast,
  HttpError,
  isProgram,
  listen,
  listenOption,
  newServer,
  parseUrl,
  type RunningServer,
  serveUntilSignal,
} from "./http.js";

export interface FleetOptions {
  count: number;
  masters: readonly MasterAddress[];
  /** Each node checks in once in this time. */
  checkInSeconds: number;
  /** About one node in this time moves by itself; 0: none does. */
  moveSeconds: number;
  listen: ListenAddress;
  /** The control API as the masters reach it; undefined: as it listens. */
  callbackUrl?: string | undefined;
}

/** So many nodes check in side by side, at most. */
const CREWS = 16;

const RETRY_MS = 500;

/** The nodes that stay where they are put. */
const SETTLED = 4;

class Fleet {
  readonly agents: ReadonlyMap<string, Agent>;
  readonly #options: FleetOptions;
  readonly #stop = new AbortController();
  readonly #failing = new Set<string>();
  readonly #events = new EventEmitter().setMaxListeners(0);

  constructor(options: FleetOptions) {
    this.#options = options;
    const { count, masters, listen, callbackUrl = `http://${listen.host}:${listen.port}` } = options;
    const agents = Array.from({ length: count }, (_, index) => {
      const certname = parseCertname(`node${index + 1}.example.com`);
      return new Agent(certname, at(masters, index), `${callbackUrl}/nodes/${certname}/run`);
    });
    this.agents = new Map(agents.map((agent) => [agent.certname, agent]));
  }

  get ready(): boolean {
    return [...this.agents.values()].every(({ state }) => state.checkedInAt !== null);
  }

  start(): void {
    setMaxListeners(0, this.#stop.signal); // Every crew and every listener waits for it.
    // A crew looks after every 16th node and takes one after another: so the check-ins are spread evenly, and
    // there are never more at a time than crews.
    const crews = Array.from({ length: CREWS }, (_, crew) =>
      [...this.agents.values()].filter((_, i) => i % CREWS === crew),
    );
    const loops = crews.map((agents) => this.#checkInForever(agents));
    if (this.#options.moveSeconds > 0) loops.push(this.#moveForever());
    // A loop ends only by stop(), which interrupts its sleep.
    for (const loop of loops) loop.catch((error) => this.#stop.signal.aborted || Promise.reject(error));
  }

  stop(): void {
    this.#stop.abort();
  }

  /** Moves a node there, or to the next master. Rejects when that master does not take it. */
  async move(agent: Agent, to?: MasterAddress): Promise<Move> {
    const { masters } = this.#options;
    const next = masters.findIndex(({ name }) => name === agent.state.master) + 1;
    const move = await agent.move(to ?? at(masters, next));
    if (move.from !== move.to) {
      console.log(`${move.at} ${move.certname} moved from ${move.from} to ${move.to}`);
      this.#events.emit("move", move);
    }
    return move;
  }

  /** Every move from now on, as lines of JSON, until the fleet stops. */
  async *moves(): AsyncGenerator<string> {
    const moves = on(this.#events, "move", { signal: this.#stop.signal });
    yield "\n"; // Tells the listener that it will miss none.
    for await (const [move] of moves) yield `${JSON.stringify(move)}\n`;
  }

  masterNamed(name: string): MasterAddress | undefined {
    return this.#options.masters.find((master) => master.name === name);
  }

  async #checkInForever(agents: readonly Agent[]): Promise<void> {
    if (agents.length === 0) return;
    const pauseMs = (this.#options.checkInSeconds * 1000) / agents.length;
    for (let turn = 0; ; turn += 1) {
      const agent = at(agents, turn);
      const failed = await agent.checkIn().then(
        () => this.#tell(agent),
        (error: unknown) => this.#tell(agent, error),
      );
      // At the start all as fast as the masters take them, but slowly against a master that is not there yet.
      const late = agents.some(({ state }) => state.checkedInAt === null);
      await this.#pause(late ? (failed ? RETRY_MS : 0) : jitter(pauseMs));
    }
  }

  /** A master that is down fails for all its nodes: it is told once, and once when it is back. */
  #tell({ certname, state: { master } }: Agent, failure?: unknown): boolean {
    const failed = failure !== undefined;
    if (failed && !this.#failing.has(master)) {
      console.error(`${certname} cannot check in with ${master}: ${reason(failure)}`);
      this.#failing.add(master);
    } else if (!failed && this.#failing.delete(master)) {
      console.log(`nodes can check in with ${master} again`);
    }
    return failed;
  }

  async #moveForever(): Promise<void> {
    const movers = [...this.agents.values()].slice(SETTLED);
    if (movers.length === 0) return;
    for (;;) {
      await this.#pause(jitter(this.#options.moveSeconds * 1000));
      if (!this.ready) continue;
      const agent = random(movers);
      const others = this.#options.masters.filter(({ name }) => name !== agent.state.master);
      if (others.length === 0) return;
      await this.move(agent, random(others)).catch((error) =>
        console.error(`${agent.certname} could not move: ${reason(error)}`),
      );
    }
  }

  #pause(ms: number): Promise<void> {
    return sleep(ms, undefined, { signal: this.#stop.signal });
  }
}

function at<Item>(list: readonly Item[], index: number): Item {
  const item = list[index % list.length];
  if (item === undefined) throw new RangeError("an empty list");
  return item;
}

const random = <Item>(list: readonly Item[]): Item => at(list, Math.floor(Math.random() * list.length));
const jitter = (ms: number): number => ms * (0.5 + Math.random());

type AgentRequest = FastifyRequest<{ Params: { certname: string }; Body?: Record<string, unknown> }>;

/** Serves the fleet's control API, then lets the nodes check in. Rejects when the address is taken. */
export async function startNodes(options: FleetOptions): Promise<RunningServer> {
  const fleet = new Fleet(options);
  const app = newServer();
  const named = ({ params }: AgentRequest): Agent => {
    const agent = fleet.agents.get(params.certname);
    if (agent !== undefined) return agent;
    throw new HttpError(404, "node_unknown", `there is no node ${quote(params.certname)}`);
  };

  app.get("/ready", (_request, reply) => reply.code(fleet.ready ? 200 : 503).send({ ready: fleet.ready }));
  app.get("/nodes", () => [...fleet.agents.values()].map(({ state }) => state));
  app.get("/nodes/:certname", (request: AgentRequest) => named(request).state);
  app.get("/moves", (_request, reply) =>
    reply.type("application/x-ndjson").send(Readable.from(fleet.moves())),
  );
  app.post("/nodes/:certname/move", (request: AgentRequest) => {
    const agent = named(request);
    const to = request.body?.to;
    const master = to === undefined ? undefined : fleet.masterNamed(String(to));
    if (to !== undefined && master === undefined) {
      const names = options.masters.map(({ name }) => name).join(", ");
      throw new HttpError(400, "master_unknown", `"to" must be one of: ${names}`);
    }
    return fleet.move(agent, master).catch((error) => {
      throw new HttpError(502, "move_failed", reason(error));
    });
  });
  app.post("/nodes/:certname/run", (request: AgentRequest) => {
    const agent = named(request);
    const command = request.body?.command;
    if (isNodeCommand(command)) return { output: agent.execute(command) };
    throw new HttpError(400, "command_unknown", `"command" must be one of: ${COMMANDS.join(", ")}`);
  });

  const server = await listen(app, options.listen);
  fleet.start();
  return {
    url: server.url,
    close: () => {
      fleet.stop();
      return server.close();
    },
  };
}

function parseMasters(text: string): MasterAddress[] {
  return text.split(",").map((part) => {
    const [name, url, ...rest] = part.trim().split("=");
    if (!name || !isMaster(name) || !url || rest.length > 0) {
      throw new InvalidArgumentError("It must be name=url,name=url,...");
    }
    return { name, url: parseUrl(url) };
  });
}

if (isProgram(import.meta)) {
  const options = new Command("nodes")
    .description("The demo's simulated nodes: they check in with their masters, and sometimes move.")
    .addOption(
      new Option("--masters <name=url,...>", "the masters")
        .env("DEMO_MASTERS")
        .argParser(parseMasters)
        .makeOptionMandatory(),
    )
    .addOption(listenOption("127.0.0.1:9190"))
    .addOption(
      new Option(
        "--callback-url <url>",
        "the same as the masters reach it; needed when --listen is no address of theirs",
      )
        .env("DEMO_CALLBACK_URL")
        .argParser(parseUrl),
    )
    .addOption(
      new Option("--count <number>", "how many nodes")
        .env("DEMO_NODES")
        .argParser(atLeast(1, Number.isInteger))
        .default(200),
    )
    .addOption(
      new Option("--check-in-seconds <seconds>", "each node checks in once in this time")
        .env("DEMO_CHECK_IN_SECONDS")
        .argParser(atLeast(1))
        .default(30),
    )
    .addOption(
      new Option("--move-seconds <seconds>", "about one node in this time moves by itself; 0: none does")
        .env("DEMO_MOVE_SECONDS")
        .argParser(atLeast(0))
        .default(5),
    )
    .parse()
    .opts<FleetOptions>();
  await serveUntilSignal(`the fleet of ${options.count} nodes`, () => startNodes(options));
}
