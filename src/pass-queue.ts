// One pass at a time. A request during a pass joins the next one, because the pass under way may have read too early for it.
// A dry run never joins a real pass, nor the other way round.

import { SasoriError } from "./errors.js";

/** How long an abandoned pass is waited for. It ends at once, unless it waits for something that cannot be aborted. */
const ABANDON_MS = 1_000;

export interface SyncRequest {
  /** Do not ask PuppetDB. Only bring to the targets what is known. */
  known?: boolean | undefined;
  /** Read everything and compare it with every target, instead of looking for changes. */
  full?: boolean | undefined;
  /** Plan only. */
  dryRun?: boolean | undefined;
  /** Let the removals of the held plan of this id through. */
  approve?: string | undefined;
}

interface Waiting<Report> {
  request: SyncRequest;
  report: Promise<Report>;
  start: () => void;
}

export class PassQueue<Report> {
  readonly #pass: (request: SyncRequest, stop: AbortSignal) => Promise<Report>;
  readonly #waiting = new Map<"real" | "dry", Waiting<Report>>();
  #running: Promise<unknown> | undefined;
  #request: SyncRequest = {};
  /** Aborts the pass under way. Each pass has its own, because listeners on a single long-lived one would pile up. */
  #abort = new AbortController();
  #stopping: SasoriError | undefined;

  constructor(pass: (request: SyncRequest, stop: AbortSignal) => Promise<Report>) {
    this.#pass = pass;
  }

  get busy(): boolean {
    return this.#running !== undefined;
  }

  /** A pass is under way that asks PuppetDB. One that only pushes what is known does not. */
  get looking(): boolean {
    return this.busy && this.#request.known !== true;
  }

  /**
   * Runs a pass, or joins the next. Rejects with `STOPPED` once sasori was told to stop, and with `BUSY` if the next pass is to
   * approve another plan.
   */
  request(request: SyncRequest): Promise<Report> {
    if (this.#stopping !== undefined) return Promise.reject(this.#stopping);
    if (this.#running === undefined) return this.#run(request);
    const kind = request.dryRun ? "dry" : "real";
    const waiting = this.#waiting.get(kind) ?? this.#wait(kind);
    const { approve = request.approve } = waiting.request;
    if (request.approve !== undefined && request.approve !== approve) {
      const what = `the next pass is to approve the plan ${approve}: approve ${request.approve} when that pass is over`;
      return Promise.reject(new SasoriError("BUSY", what));
    }
    waiting.request = join(waiting.request, request);
    return waiting.report;
  }

  /**
   * Lets the pass under way finish for `graceMs`, then abandons it, and after ABANDON_MS more no longer waits for its end.
   * Requests for a next pass are rejected.
   */
  async stop(graceMs: number): Promise<void> {
    const stopping = new SasoriError("STOPPED", "sasori was told to stop");
    this.#stopping = stopping;
    let timer: NodeJS.Timeout | undefined;
    const patience = new Promise<void>((resolve) => {
      timer = setTimeout(() => {
        this.#abort.abort(stopping);
        timer = setTimeout(resolve, ABANDON_MS);
      }, graceMs);
    });
    await Promise.race([this.#running, patience]);
    clearTimeout(timer);
  }

  #run(request: SyncRequest): Promise<Report> {
    this.#abort = new AbortController();
    this.#request = request;
    const report = this.#pass(request, this.#abort.signal);
    this.#running = report.then(
      () => this.#next(),
      () => this.#next(),
    );
    return report;
  }

  #wait(kind: "real" | "dry"): Waiting<Report> {
    let start = () => {};
    const report = new Promise<void>((resolve) => {
      start = resolve;
    }).then(() => {
      if (this.#stopping === undefined) return this.#run(waiting.request);
      this.#next();
      return Promise.reject(this.#stopping);
    });
    const waiting: Waiting<Report> = { request: { known: true }, report, start };
    this.#waiting.set(kind, waiting);
    return waiting;
  }

  #next(): void {
    this.#running = undefined;
    for (const [kind, waiting] of this.#waiting) {
      this.#waiting.delete(kind);
      // A request must not overtake it before it has really begun.
      this.#running = waiting.report.catch(() => undefined);
      waiting.start();
      return;
    }
  }
}

/** One request that does what both ask for. It starts from `known`, which is the least. */
function join(a: SyncRequest, b: SyncRequest): SyncRequest {
  return {
    known: a.known && b.known,
    full: a.full || b.full,
    dryRun: b.dryRun,
    approve: a.approve ?? b.approve,
  };
}
