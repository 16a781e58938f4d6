// Prometheus metrics. Counters come from the SyncReport of each pass. Gauges are computed when Prometheus asks. So no other
// part of sasori counts for metrics, and the cost of a quiet pass does not grow with the fleet. Labels are bounded: kinds,
// outcomes, phases, error codes, the configured targets, and HAProxy's servers.

import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";
import { type Failure, toFailure } from "../errors.js";
import type { HintKind } from "../hints/hints.js";
import type { LoopDelay } from "../loop-delay.js";
import type { Source } from "../source/source.js";
import type { Sync } from "../sync.js";
import type { SyncReport } from "../sync-report.js";
import type { EventStream } from "./event-stream.js";
import type { NodeList } from "./node-list.js";

const PASS_SECONDS = [0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300];

export interface MetricsParts {
  sync: Sync;
  puppetdb: Pick<Source, "states">;
  nodes: NodeList;
  events: EventStream;
  delay: LoopDelay;
  version: string;
}

/** Metrics are computed at most this often, because that takes milliseconds in which sasori answers nothing else. */
const FRESH_MS = 500;

export class Metrics {
  readonly registry = new Registry();
  #made: { at: number; text: Promise<string> } | undefined;
  readonly #parts: MetricsParts;
  readonly #passes = this.#counter("sasori_passes_total", "Passes by kind and outcome.", ["kind", "outcome"]);
  readonly #seconds = this.#histogram("sasori_pass_duration_seconds", "Duration of passes by kind.", [
    "kind",
  ]);
  readonly #phases = this.#histogram(
    "sasori_pass_phase_duration_seconds",
    "Duration of the steps of a pass: look, fetch, plan, file, push.",
    ["phase"],
  );
  readonly #changes = this.#counter("sasori_changes_total", "Changes applied to targets.", [
    "target",
    "change",
  ]);
  readonly #drift = this.#counter(
    "sasori_drift_total",
    "Entries that differed from what sasori last wrote, for no known reason.",
    ["target"],
  );
  readonly #errors = this.#counter("sasori_errors_total", "Failures by place and code.", ["target", "code"]);
  readonly #learned = this.#counter(
    "sasori_learned_routes_total",
    "Routes that an HAProxy learned by itself.",
    [],
  );
  readonly #displaced = this.#gauge(
    "sasori_displaced_nodes",
    "Nodes that left their master while it was down or drained, and have not come back.",
    [],
  );
  readonly #hints = this.#counter(
    "sasori_hints_total",
    "Hints of puppetservers that a node may have moved: syslog, report.",
    ["kind"],
  );
  readonly #resolved = this.#histogram(
    "sasori_resolve_duration_seconds",
    "How long HAProxy waited for an answer about a wrong route: found, unknown, or the code of what went wrong.",
    ["answer"],
  );
  readonly #foreign = this.#counter(
    "sasori_foreign_changes_total",
    "Passes that found a target changed by another program.",
    ["target"],
  );
  readonly #unroutable = this.#gauge(
    "sasori_unroutable_nodes",
    "Nodes whose producer has no HAProxy server.",
    [],
  );
  readonly #refused = this.#gauge("sasori_refused_names", "Certnames that cannot be map keys.", []);
  readonly #held = this.#gauge("sasori_held_removals", "Removals and steps back that wait for approval.", []);
  readonly #lastGood = this.#gauge(
    "sasori_last_good_poll_timestamp_seconds",
    "When PuppetDB was last read; 0: never.",
    [],
  );
  readonly #oldest = this.#gauge(
    "sasori_oldest_observation_timestamp_seconds",
    "Time of the oldest observation in the map, as of the last full pass; 0: unknown.",
    [],
  );

  constructor(parts: MetricsParts) {
    this.#parts = parts;
    collectDefaultMetrics({ register: this.registry });
    // These are gauges with names of counters. Each is the sum of another gauge, which has a label `type`.
    for (const what of ["handles", "requests", "resources"])
      this.registry.removeSingleMetric(`nodejs_active_${what}_total`);
    this.#askedGauges(parts);
    for (const kind of ["known", "changes", "full"])
      for (const outcome of ["done", "failed", "held"]) this.#passes.inc({ kind, outcome }, 0);
  }

  /** What is computed when Prometheus asks. */
  #askedGauges({ sync, nodes, events, delay, version, puppetdb }: MetricsParts): void {
    const { fleet } = sync;
    this.#gauge("sasori_build_info", "The running version.", ["version", "node"]).set(
      { version, node: process.version },
      1,
    );
    this.#asked("sasori_nodes", "Nodes in the desired map.", [], (set) => set({}, fleet.map.size));
    this.#asked(
      "sasori_assignments",
      "Nodes by master; `other`: masters without an HAProxy server.",
      ["master"],
      (set) => {
        for (const [master, count] of boundedCounts(sync, nodes)) set({ master }, count);
      },
    );
    this.#asked("sasori_own_routes", "Registrations and learned routes in force.", ["source"], (set) => {
      const counts = { registration: 0, learned: 0 };
      for (const { source } of fleet.own.values())
        if (source in counts) counts[source as keyof typeof counts] += 1;
      for (const [source, count] of Object.entries(counts)) set({ source }, count);
    });
    this.#asked("sasori_target_in_sync", "1 if the target holds the desired map.", ["target"], (set) => {
      for (const { target, inSync } of sync.targets()) set({ target }, inSync ? 1 : 0);
    });
    this.#asked("sasori_target_up", "1 unless the target failed in the last pass.", ["target"], (set) => {
      for (const { target, failure } of sync.targets()) set({ target }, failure === undefined ? 1 : 0);
    });
    this.#asked(
      "sasori_target_pending_changes",
      "Changes that are not in the target yet.",
      ["target"],
      (set) => {
        for (const { target, pending } of sync.targets()) set({ target }, pending);
      },
    );
    this.#asked(
      "sasori_puppetdb_up",
      "1 unless this PuppetDB failed when it was last asked.",
      ["puppetdb"],
      (set) => {
        for (const { url, failure } of puppetdb.states())
          set({ puppetdb: url }, failure === undefined ? 1 : 0);
      },
    );
    this.#asked(
      "sasori_puppetdb_asked",
      "1 for the PuppetDB that is asked, of those with the same nodes.",
      ["puppetdb"],
      (set) => {
        for (const { url, asked } of puppetdb.states()) set({ puppetdb: url }, asked ? 1 : 0);
      },
    );
    this.#asked(
      "sasori_puppetdb_queue_depth",
      "Commands that this PuppetDB has received and not stored yet, where it tells.",
      ["puppetdb"],
      (set) => {
        for (const { url, queueDepth } of puppetdb.states())
          if (queueDepth !== undefined) set({ puppetdb: url }, queueDepth);
      },
    );
    this.#asked("sasori_event_clients", "Clients that listen to live events.", [], (set) =>
      set({}, events.clients),
    );
    this.#asked(
      "sasori_event_loop_delay_seconds",
      "The longest time within the last minute in which sasori answered no request.",
      [],
      (set) => set({}, delay.longestMs / 1000),
    );
  }

  /** The metrics in Prometheus' text format. Computed again after each pass. */
  text(): Promise<string> {
    const now = performance.now();
    if (this.#made === undefined || now - this.#made.at > FRESH_MS)
      this.#made = { at: now, text: this.registry.metrics() };
    return this.#made.text;
  }

  /** Counts a hint that could be read. */
  hint(kind: HintKind): void {
    this.#hints.inc({ kind });
  }

  /** Counts how `find` ended, and for how long HAProxy waited for it. */
  async timeAnswer<Owner>(find: () => Promise<Owner | undefined>): Promise<Owner | undefined> {
    const began = performance.now();
    let answer = "";
    try {
      const owner = await find();
      answer = owner === undefined ? "unknown" : "found";
      return owner;
    } catch (error) {
      answer = toFailure(error).code;
      throw error;
    } finally {
      this.#resolved.observe({ answer }, (performance.now() - began) / 1000);
    }
  }

  /** `database`: why replicas cannot agree, if they cannot. */
  record(report: SyncReport, database?: Failure): void {
    this.#made = undefined;
    const { kind, outcome, source } = report;
    this.#passes.inc({ kind, outcome });
    this.#seconds.observe({ kind }, report.durationMs / 1000);
    for (const [phase, ms] of Object.entries(report.phasesMs)) this.#phases.observe({ phase }, ms / 1000);
    if (source.outcome === "done") this.#lastGood.set(Date.parse(report.startedAt) / 1000);
    this.#failed("puppetdb", source.failure);
    this.#failed("journal", report.journal);
    this.#failed("state database", database);
    for (const { haproxy, failure } of report.masters.changes) this.#failed(haproxy, failure);
    for (const failure of report.masters.failures) this.#failed("masters", failure);
    for (const { target, failure, drift, ...changed } of report.targets) {
      if (changed.changedByOthers) this.#foreign.inc({ target });
      this.#failed(target, failure);
      this.#drift.inc({ target }, drift);
      for (const change of ["add", "set", "del"] as const)
        this.#changes.inc({ target, change }, changed.outcome === "applied" ? changed[change] : 0);
    }
    this.#learned.inc(report.learned);
    this.#unroutable.set(report.unroutable.nodes);
    this.#refused.set(report.refused.count);
    this.#displaced.set(report.displaced);
    this.#held.set(report.held?.count ?? 0);
    if (kind === "full") this.#oldest.set(this.#parts.sync.fleet.oldestAt / 1000);
  }

  #failed(target: string, failure: Failure | undefined): void {
    if (failure !== undefined) this.#errors.inc({ target, code: failure.code });
  }

  #counter<Label extends string>(name: string, help: string, labelNames: Label[]): Counter<Label> {
    return this.#own(new Counter({ name, help, labelNames, registers: [] }));
  }

  #histogram<Label extends string>(name: string, help: string, labelNames: Label[]): Histogram<Label> {
    return this.#own(new Histogram({ name, help, labelNames, buckets: PASS_SECONDS, registers: [] }));
  }

  #gauge<Label extends string>(name: string, help: string, labelNames: Label[]): Gauge<Label> {
    return this.#own(new Gauge({ name, help, labelNames, registers: [] }));
  }

  /** A gauge whose values are looked up for each scrape. A label that `tell` does not set disappears. */
  #asked<Label extends string>(
    name: string,
    help: string,
    labelNames: Label[],
    tell: (set: (labels: Partial<Record<Label, string>>, value: number) => void) => void,
  ): void {
    const gauge: Gauge<Label> = this.#own(
      new Gauge({
        name,
        help,
        labelNames,
        registers: [],
        collect() {
          gauge.reset();
          tell((labels, value) => gauge.set(labels, value));
        },
      }),
    );
  }

  // prom-client would put every metric into one global registry, which two daemons in one test would share.
  #own<Metric extends Counter | Gauge | Histogram>(metric: Metric): Metric {
    this.registry.registerMetric(metric);
    return metric;
  }
}

/** Nodes by HAProxy's servers, and all others together, so that a producer that comes and goes makes no new time series. */
function boundedCounts(sync: Sync, { counts }: NodeList): Map<string, number> {
  const servers = sync.servers();
  if (servers === undefined) return new Map(counts);
  const bounded = new Map<string, number>(servers.map(({ name }) => [name, 0]));
  for (const [master, count] of counts) {
    const label = bounded.has(master) ? master : "other";
    bounded.set(label, (bounded.get(label) ?? 0) + count);
  }
  return bounded;
}
