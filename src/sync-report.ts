// The result of a pass: one value, which log, metrics, HTTP, command line and exit code all read.

import type { Failure } from "./errors.js";
import type { Fleet } from "./fleet.js";
import type { MasterChange } from "./masters.js";
import { LATEST_TIME } from "./node-map.js";
import type { SyncRequest } from "./pass-queue.js";
import type { Reading } from "./source/reading.js";
import type { TargetReport, TrackedTarget } from "./target/tracked-target.js";

/** How many names a report lists; it always counts all. */
const MAX_SAMPLES = 20;

interface Sample {
  count: number;
  samples: string[];
}

export interface SyncReport {
  /** `known`: PuppetDB was not asked. Only what was known went to the targets. */
  kind: "known" | "changes" | "full";
  dryRun: boolean;
  outcome: "done" | "failed" | "held";
  /** ISO 8601. */
  startedAt: string;
  durationMs: number;
  phasesMs: Record<Phase, number>;
  /** It is also `not asked` until HAProxy's servers are known, because without them no producer has a master. */
  source: { outcome: "done" | "failed" | "not asked"; submissions: number; failure?: Failure };
  /** Nodes in the desired map after the pass. */
  nodes: number;
  /** How many nodes changed in the map, by the plan of the file. The file's report lists them. */
  moved: number;
  learned: number;
  /** HAProxy servers that were added or removed at run time, and producers that could get none. */
  masters: { changes: MasterChange[]; failures: Failure[] };
  /** Nodes that left a master while it was down or drained, and have not come back. */
  displaced: number;
  unroutable: { nodes: number; producers: Record<string, number> };
  refused: Sample;
  withoutProducer: Sample;
  /** Producers whose clock was ahead of PuppetDB's: their nodes with such a submission, and its latest date (ISO 8601). */
  clocksAhead: Record<string, { nodes: number; until: string }>;
  /** Nodes whose facts and reports come from different masters in every run. */
  flapping: Sample & { between: [facts: string, reports: string][] };
  /** `all` is where the daemon's HTTP API lists every change; `sasori diff --held` prints them. */
  held?: { id: string; reason: string; all: "/api/v1/plan" } & Sample;
  /** An approval was given, and no held plan has that id. */
  approvalUnmatched?: true;
  targets: TargetReport[];
  /** The state file could not be written. */
  journal?: Failure;
}

/** What a pass has gathered for its report. */
export interface PassFacts {
  request: SyncRequest;
  kind: SyncReport["kind"];
  clock: Phases;
  source: SyncReport["source"];
  fleet: Fleet;
  targets: readonly TrackedTarget[];
  learned: number;
  masters: SyncReport["masters"];
  approvalUnmatched: boolean;
  journal: Failure | undefined;
}

export function makeReport(facts: PassFacts): SyncReport {
  const { request, kind, clock, source, fleet, learned, masters, journal } = facts;
  const { verdict } = fleet;
  const targets = facts.targets.map(({ report }) => report);
  const failures = [source, ...targets, ...masters.changes].map(({ failure }) => failure);
  const failed = [...failures, ...masters.failures, journal].some((failure) => failure !== undefined);
  const [file] = targets;
  return {
    kind,
    dryRun: request.dryRun === true,
    outcome: failed ? "failed" : verdict.kind === "held" ? "held" : "done",
    startedAt: clock.startedAt,
    ...clock.durations(),
    source,
    nodes: fleet.map.size,
    moved: file === undefined ? 0 : file.add + file.set + file.del,
    learned,
    masters,
    displaced: fleet.homes.size,
    unroutable: { nodes: fleet.unroutable.size, producers: countProducers(fleet) },
    refused: sample(fleet.refused, fleet.refused.size),
    withoutProducer: sample(fleet.withoutProducer, fleet.withoutProducer.size),
    clocksAhead: clocksAhead(fleet),
    flapping: flapping(fleet),
    ...(verdict.kind === "held" && {
      held: {
        id: verdict.id,
        reason: verdict.reason,
        all: "/api/v1/plan",
        ...sample(verdict.certnames, verdict.certnames.length),
      },
    }),
    ...(facts.approvalUnmatched && { approvalUnmatched: true }),
    targets,
    ...(journal && { journal }),
  };
}

/** Whether a pass changed anything, including one that only brought a restarted HAProxy up to date. */
export const changedAnything = ({
  moved,
  learned,
  masters,
  approvalUnmatched,
  targets,
}: SyncReport): boolean =>
  moved + learned + masters.changes.length > 0 ||
  approvalUnmatched === true ||
  targets.some(({ outcome }) => outcome === "applied");

export function sourceReport(reading: Reading | Failure | undefined): SyncReport["source"] {
  if (reading === undefined) return { outcome: "not asked", submissions: 0 };
  if ("code" in reading) return { outcome: "failed", submissions: 0, failure: reading };
  const { submissions, failures: [failure, ...more] = [] } = reading;
  if (failure === undefined) return { outcome: "done", submissions: submissions.size };
  const message = [failure, ...more].map((one) => one.message).join("; ");
  return { outcome: "failed", submissions: submissions.size, failure: { ...failure, message } };
}

function countProducers({ unroutable }: Fleet): Record<string, number> {
  const producers = new Map<string, number>();
  for (const { producer } of unroutable.values()) producers.set(producer, (producers.get(producer) ?? 0) + 1);
  return Object.fromEntries([...producers].sort((a, b) => b[1] - a[1]).slice(0, MAX_SAMPLES));
}

function clocksAhead({ ahead }: Fleet): SyncReport["clocksAhead"] {
  const clocks = new Map<string, { nodes: number; until: string }>();
  for (const { producer, until } of ahead.values()) {
    const { nodes, until: latest } = clocks.get(producer) ?? { nodes: 0, until: "" };
    const date = new Date(Math.min(until, LATEST_TIME)).toISOString();
    clocks.set(producer, { nodes: nodes + 1, until: date > latest ? date : latest });
  }
  return Object.fromEntries([...clocks].slice(0, MAX_SAMPLES));
}

function flapping({ flapping, map }: Fleet): SyncReport["flapping"] {
  const nodes = flapping.nodes(map.size);
  const between = new Map<string, [string, string]>();
  for (const { facts, report } of nodes.values()) between.set(`${facts} ${report}`, [facts, report]);
  return { ...sample(nodes.keys(), nodes.size), between: [...between.values()].slice(0, MAX_SAMPLES) };
}

/** Takes only the first names, because there may be a million. */
function sample(names: Iterable<string>, count: number): Sample {
  const samples: string[] = [];
  for (const name of names) {
    if (samples.length === MAX_SAMPLES) break;
    samples.push(name);
  }
  return { count, samples };
}

export type Phase = "look" | "fetch" | "plan" | "file" | "push";

/** Stopwatch of a pass. Whole milliseconds. */
export class Phases {
  readonly startedAt = new Date().toISOString();
  readonly #began = performance.now();
  readonly #onPhase: (phase: Phase | undefined) => void;
  readonly #phases: Record<Phase, number> = { look: 0, fetch: 0, plan: 0, file: 0, push: 0 };
  #phase: Phase | undefined;
  #since = this.#began;

  constructor(onPhase: (phase: Phase | undefined) => void) {
    this.#onPhase = onPhase;
  }

  begin(phase: Phase | undefined): void {
    const now = performance.now();
    if (this.#phase !== undefined) this.#phases[this.#phase] = Math.round(now - this.#since);
    this.#phase = phase;
    this.#since = now;
    this.#onPhase(phase);
  }

  end(): void {
    this.begin(undefined);
  }

  durations(): Pick<SyncReport, "durationMs" | "phasesMs"> {
    return { durationMs: Math.round(this.#since - this.#began), phasesMs: this.#phases };
  }
}
