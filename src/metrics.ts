// Prometheus metrics. They are read off the SyncReport of each pass: nothing else in sasori counts anything.
// Labels are bounded: kinds, outcomes, error codes, and the configured targets.

import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";
import type { Sync } from "./sync.js";
import type { SyncReport } from "./sync-report.js";

const PASS_SECONDS = [0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300];

export class Metrics {
  readonly registry = new Registry();
  readonly #passes = this.#counter("sasori_passes_total", "Passes by kind and outcome.", ["kind", "outcome"]);
  readonly #seconds = this.#own(
    new Histogram({
      name: "sasori_pass_duration_seconds",
      help: "Duration of passes by kind.",
      labelNames: ["kind"],
      buckets: PASS_SECONDS,
      registers: [],
    }),
  );
  readonly #phases = this.#counter("sasori_pass_phase_seconds_total", "Time spent in passes, by phase.", [
    "phase",
  ]);
  readonly #changes = this.#counter("sasori_changes_total", "Changes applied to targets.", [
    "target",
    "change",
  ]);
  readonly #errors = this.#counter("sasori_errors_total", "Failures by where they happened and code.", [
    "target",
    "code",
  ]);
  readonly #learned = this.#counter(
    "sasori_learned_routes_total",
    "Routes that an HAProxy had learned by itself.",
    [],
  );
  readonly #foreign = this.#counter(
    "sasori_foreign_changes_total",
    "Passes that found a target changed by somebody else.",
    ["target"],
  );
  readonly #nodes = this.#gauge("sasori_nodes", "Nodes in the desired map.", []);
  readonly #unroutable = this.#gauge(
    "sasori_unroutable_nodes",
    "Nodes whose producer has no HAProxy server.",
    [],
  );
  readonly #refused = this.#gauge("sasori_refused_names", "Certnames that cannot be map keys.", []);
  readonly #displaced = this.#gauge(
    "sasori_displaced_nodes",
    "Nodes that left a master while it was down, and have not come back.",
    [],
  );
  readonly #held = this.#gauge("sasori_held_removals", "Removals that wait for approval.", []);
  readonly #synced = this.#gauge(
    "sasori_target_in_sync",
    "1 if the target held the desired map in the last pass.",
    ["target"],
  );
  readonly #lastGood = this.#gauge(
    "sasori_last_good_poll_timestamp_seconds",
    "When PuppetDB was last read.",
    [],
  );

  constructor() {
    collectDefaultMetrics({ register: this.registry });
  }

  record(report: SyncReport, sync: Sync): void {
    const { kind, outcome, source } = report;
    this.#passes.inc({ kind, outcome });
    this.#seconds.observe({ kind }, report.durationMs / 1000);
    for (const [phase, ms] of Object.entries(report.phasesMs)) this.#phases.inc({ phase }, ms / 1000);
    if (source.failure) this.#errors.inc({ target: "puppetdb", code: source.failure.code });
    else if (source.outcome === "done") this.#lastGood.set(Date.parse(report.startedAt) / 1000);
    if (report.journal) this.#errors.inc({ target: "journal", code: report.journal.code });
    for (const { haproxy, failure } of report.masters.changes)
      if (failure) this.#errors.inc({ target: haproxy, code: failure.code });
    for (const { code } of report.masters.failures) this.#errors.inc({ target: "masters", code });
    for (const { target, failure, ...changed } of report.targets) {
      if (failure) this.#errors.inc({ target, code: failure.code });
      if (changed.changedByOthers) this.#foreign.inc({ target });
      if (changed.outcome !== "applied") continue;
      for (const change of ["add", "set", "del"] as const)
        this.#changes.inc({ target, change }, changed[change]);
    }
    for (const { target, inSync } of sync.targets()) this.#synced.set({ target }, inSync ? 1 : 0);
    this.#learned.inc(report.learned);
    this.#nodes.set(report.nodes);
    this.#unroutable.set(report.unroutable.nodes);
    this.#refused.set(report.refused.count);
    this.#displaced.set(report.displaced);
    this.#held.set(report.held?.count ?? 0);
  }

  #counter<Label extends string>(name: string, help: string, labelNames: Label[]): Counter<Label> {
    return this.#own(new Counter({ name, help, labelNames, registers: [] }));
  }

  #gauge<Label extends string>(name: string, help: string, labelNames: Label[]): Gauge<Label> {
    return this.#own(new Gauge({ name, help, labelNames, registers: [] }));
  }

  // prom-client would put every metric into one global registry, which two daemons in one test would share.
  #own<Metric extends Counter | Gauge | Histogram>(metric: Metric): Metric {
    this.registry.registerMetric(metric);
    return metric;
  }
}
