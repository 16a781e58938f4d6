// What a running sasori knows, in the shapes of the HTTP API: the nodes, where one goes and why, the masters and their
// load, the targets, the state of everything. Promises: nothing here changes anything; if an HAProxy does not answer, its
// failure is shown in the place of its values.

import { toFailure } from "../errors.js";
import type { Fleet } from "../fleet.js";
import type { LoopDelay } from "../loop-delay.js";
import { type Assignment, type Certname, remarksOf } from "../node-map.js";
import { inPieces } from "../pieces.js";
import type { PuppetdbState } from "../source/source.js";
import type { Sync, SyncParts } from "../sync.js";
import type { TargetDetail, TargetState } from "../target/tracked-target.js";
import type { Watchdog } from "../watchdog.js";
import {
  type DisplacedNodes,
  type DisplacedQuery,
  type HeldPlan,
  type HeldPlanQuery,
  type Instance,
  type Instances,
  type Lookup,
  type MasterRow,
  type Masters,
  type Node,
  type Nodes,
  type NodesQuery,
  type Replicas,
  type Status,
  type Story,
  type TargetRow,
  type Word,
  WordShape,
} from "./api-shapes.js";
import { HeldPlans } from "./held-plan.js";
import type { History } from "./history.js";
import { lookUp } from "./lookup.js";
import type { NodeList } from "./node-list.js";
import { summarize, troublesOf } from "./troubles.js";

/** A healthy HAProxy answers a query for its statistics in milliseconds. */
const LOADS_DEADLINE_MS = 5_000;

export interface OverviewParts {
  sync: Sync;
  history: History;
  nodes: NodeList;
  targets: Pick<SyncParts, "file" | "instances" | "state" | "shared" | "puppetdb">;
  watchdog: Watchdog;
  delay: LoopDelay;
  /** The masters are pools of servers. */
  pools?: boolean;
  version: string;
  /** How many masters send hints, where sasori listens for any. */
  hints?: () => Status["hints"];
  /** The name of this replica. */
  replica: string;
}

export class Overview {
  readonly #parts: OverviewParts;
  readonly #heldPlans: HeldPlans;
  readonly #startedAt = new Date().toISOString();

  constructor(parts: OverviewParts) {
    this.#parts = parts;
    this.#heldPlans = new HeldPlans(parts.sync.fleet);
  }

  get ready(): boolean {
    return this.#parts.sync.served;
  }

  get status(): Status {
    const { sync, history, version, watchdog, delay } = this.#parts;
    const { shared, state } = this.#parts.targets;
    const { trouble } = state;
    const targets = sync.targets();
    const { lastReport: pass } = sync;
    const { lastPass } = history;
    const hints = this.#parts.hints?.();
    const puppetdbs = this.#parts.targets.puppetdb.states();
    const troubles = troublesOf({
      pass,
      targets,
      puppetdb: history.puppetdb,
      secondSasori: sync.secondSasori,
      notLookedSince: watchdog.isLate ? (history.lastGoodPoll ?? this.#startedAt) : undefined,
      puppetdbs,
      stateFile: trouble && toFailure(trouble),
      shared: shared && {
        failure: shared.failure && toFailure(shared.failure),
        clockAheadMs: shared.clockAheadMs,
        heard: shared.heard,
      },
      homes: sync.fleet.homes.values(),
    });
    return {
      ...summarize({ pass, targets }, troubles),
      ready: this.ready,
      version,
      startedAt: this.#startedAt,
      nodes: sync.fleet.map.size,
      troubles,
      targets: targets.map(targetRow),
      puppetdbs: puppetdbs.map(puppetdbRow),
      lastGoodPoll: history.lastGoodPoll ?? null,
      longestDelayMs: delay.longestMs,
      ...(hints && { hints }),
      ...(lastPass && { lastPass }),
    };
  }

  /** What this replica says about itself to the others. */
  get word(): Word {
    const { version, startedAt, state, summary, nodes, lastPass } = this.status;
    const haproxys = this.#parts.sync
      .targets()
      .flatMap(({ target, kind, inSync, pending }) =>
        kind === "haproxy" ? [{ target, inSync, pending }] : [],
      );
    const last = lastPass && {
      startedAt: lastPass.startedAt,
      kind: lastPass.kind,
      outcome: lastPass.outcome,
      durationMs: lastPass.durationMs,
    };
    return { version, startedAt, state, summary, nodes, haproxys, lastPass: last ?? null };
  }

  get replicas(): Replicas {
    const { replica, targets } = this.#parts;
    const { shared } = targets;
    const own = { ...this.word, name: replica, self: true, silentMs: 0 };
    const others = (shared?.heard ?? []).flatMap(({ name, word, silentMs }) => {
      const said = name === replica ? undefined : parseWord(word);
      return said === undefined ? [] : [{ ...said, name, self: false, silentMs }];
    });
    return {
      shared: shared !== undefined,
      ...(shared?.failure && { failure: toFailure(shared.failure) }),
      replicas: [own, ...others].sort((a, b) => (a.name < b.name ? -1 : 1)),
    };
  }

  async page(query: NodesQuery): Promise<Nodes> {
    const { nodes, next } = await this.#parts.nodes.page(query);
    const { q, master, source, cursor, limit } = query;
    const isSearch = q !== undefined && (master ?? source ?? cursor) === undefined;
    return {
      nodes: nodes.map(nodeRow),
      next,
      ...(isSearch && { unroutable: await inPieces(withoutRoute(this.#parts.sync.fleet, q, limit)) }),
    };
  }

  /** The plan that the guard holds; undefined when it holds none. */
  heldPlan(query: HeldPlanQuery): Promise<HeldPlan | undefined> {
    return this.#heldPlans.page(query);
  }

  heldPlanText(): AsyncGenerator<string> {
    return this.#heldPlans.text();
  }

  async story(certname: Certname): Promise<Story> {
    const { sync, history, targets } = this.#parts;
    const master = sync.fleet.map.get(certname)?.master;
    const [file] = sync.targetDetails();
    const settled = file?.inSync && file.fingerprint && { content: file.fingerprint.content, master };
    const found = await lookUp(certname, this.#desired(certname), targets, settled || undefined);
    const health = sync
      .targets()
      .flatMap(({ target, servers = [] }) =>
        servers.flatMap(({ name, state, up }) => (name === master ? { haproxy: target, state, up } : [])),
      );
    const home = sync.fleet.homes.get(certname);
    return { ...found, health, ...(home && { home }), moves: history.movesOf(certname) };
  }

  #desired(certname: Certname): Lookup["desired"] {
    const { fleet } = this.#parts.sync;
    const assignment = fleet.map.get(certname);
    const producer = fleet.unroutable.get(certname)?.producer;
    const { verdict } = fleet;
    const held = verdict.kind === "held" && fleet.isHeld(certname) ? verdict.id : undefined;
    return {
      ...(assignment && {
        master: assignment.master,
        source: assignment.source,
        since: since(assignment),
        ...remarksOf(assignment),
        ...(assignment.from && { puppetdb: assignment.from }),
      }),
      ...(producer !== undefined && { unroutableProducer: producer }),
      ...(held !== undefined && { heldBy: held }),
    };
  }

  async displaced({ home: wanted, limit, cursor }: DisplacedQuery): Promise<DisplacedNodes> {
    const { homes } = this.#parts.sync.fleet;
    const isWanted = (certname: Certname) => {
      const home = homes.get(certname);
      return home !== undefined && (wanted === undefined || home === wanted);
    };
    const { nodes, next } = await this.#parts.nodes.page({ isWanted, limit, cursor });
    const rows = nodes.flatMap(({ certname, master }) => {
      const home = homes.get(certname); // The node may have returned meanwhile.
      return home === undefined ? [] : { certname, home, master };
    });
    return { nodes: rows, next };
  }

  async masters(): Promise<Masters> {
    const { sync, nodes, targets } = this.#parts;
    const signal = AbortSignal.timeout(LOADS_DEADLINE_MS);
    const failures: Masters["failures"] = [];
    const rows = new Map<string, MasterRow>();
    const kind = this.#parts.pools ? "pool" : "server";
    const row = (master: string) => {
      const known: MasterRow = rows.get(master) ?? { master, kind, nodes: 0, share: 0, servers: [] };
      rows.set(master, known);
      return known;
    };
    const asked = targets.instances.map(async (instance) => {
      try {
        for (const { name, ...load } of await instance.loads(signal))
          row(name).servers.push({ haproxy: instance.name, ...load });
      } catch (error) {
        failures.push({ haproxy: instance.name, failure: toFailure(error) });
      }
    });
    await Promise.all(asked);
    for (const { name } of sync.servers() ?? []) row(name);
    for (const [master, count] of nodes.counts) {
      Object.assign(row(master), { nodes: count, share: count / sync.fleet.map.size });
    }
    const unroutable = Object.entries(sync.lastReport?.unroutable.producers ?? {});
    // In the order of SASORI_HAPROXY, not in the order of the answers.
    const order = new Map(targets.instances.map(({ name }, index) => [name, index]));
    const place = ({ haproxy }: { haproxy: string }) => order.get(haproxy) ?? 0;
    for (const { servers } of rows.values()) servers.sort((a, b) => place(a) - place(b));
    failures.sort((a, b) => place(a) - place(b));
    return {
      masters: [...rows.values()].sort((a, b) => b.nodes - a.nodes || (a.master < b.master ? -1 : 1)),
      unroutable: unroutable.map(([producer, count]) => ({ producer, nodes: count })),
      failures,
    };
  }

  get instances(): Instances {
    const [file, ...instances] = this.#parts.sync.targetDetails().map(instanceRow);
    if (file === undefined) throw new Error("there is always a map file");
    return { file, instances };
  }
}

/** Nodes without a route, because their producer has no server, whose names contain this text. */
function* withoutRoute(
  { map, unroutable }: Pick<Fleet, "map" | "unroutable">,
  q: string,
  limit: number,
): Generator<void, NonNullable<Nodes["unroutable"]>> {
  const found: NonNullable<Nodes["unroutable"]> = [];
  let seen = 0;
  for (const [certname, { producer }] of unroutable) {
    seen += 1;
    if (seen % 1_000 === 0) yield;
    if (!certname.includes(q) || map.get(certname) !== undefined) continue;
    found.push({ certname, producer });
    if (found.length === limit) break;
  }
  return found;
}

/** Undefined for a word that this version of sasori does not understand. */
function parseWord(text: string): Word | undefined {
  try {
    return WordShape.parse(JSON.parse(text));
  } catch {
    return undefined;
  }
}

/** The age of an inherited route is unknown. */
const since = ({ at, source }: Assignment) => (source === "inherited" ? null : new Date(at).toISOString());

function nodeRow(assignment: Assignment): Node {
  const { certname, master, source } = assignment;
  return { certname, master, source, since: since(assignment), ...remarksOf(assignment) };
}

function puppetdbRow({
  newestAt,
  clockAheadMs: _,
  queueDepth,
  ...state
}: PuppetdbState): Status["puppetdbs"][number] {
  return {
    ...state,
    ...(newestAt > 0 && { newest: new Date(newestAt).toISOString() }),
    ...(queueDepth !== undefined && { queueDepth }),
  };
}

function targetRow({ servers, ...state }: TargetState): TargetRow {
  const told = servers?.map(({ halfAdded: _, ...server }) => server);
  return { ...state, ...(told && { servers: told }) };
}

function instanceRow({ fingerprint, lastPush, ...state }: TargetDetail): Instance {
  const isHaproxy = state.kind === "haproxy" && fingerprint !== undefined;
  // The fingerprint's content is `version:entries`, see haproxy.ts. HAProxy 2.4 does not say how many.
  const [version, entries = ""] = fingerprint?.content.split(":") ?? [];
  const count = /^\d+$/.test(entries) ? `, ${entries} entries` : "";
  return {
    ...targetRow(state),
    process: isHaproxy ? fingerprint.process : null,
    map: isHaproxy ? `version ${version}${count}` : null,
    lastPush: lastPush ?? null,
  };
}
