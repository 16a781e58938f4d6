// `sasori serve`: the schedules, the signals and the HTTP API around one Sync.
// Promises: it starts with PuppetDB or HAProxy down and serves the last good map; SIGHUP is a full pass;
// SIGTERM ends it within 10 s, with no target half-written, whatever hangs.

import { once } from "node:events";
import { type AddressInfo, createServer } from "node:net";
import { setFlagsFromString } from "node:v8";
import type { FastifyInstance } from "fastify";
import type { Logger } from "pino";
import type { Config } from "./config.js";
import { cannotListen, toFailure } from "./errors.js";
import { type Listeners, listenForHints } from "./hints/listeners.js";
import type { Status } from "./http/api-shapes.js";
import { EventStream } from "./http/event-stream.js";
import { History } from "./http/history.js";
import { buildApi } from "./http/http-api.js";
import { Metrics } from "./http/metrics.js";
import { NodeList } from "./http/node-list.js";
import { Overview } from "./http/overview.js";
import { newLog } from "./log.js";
import { LoopDelay } from "./loop-delay.js";
import type { SyncRequest } from "./pass-queue.js";
import { hasNode, masterAsker } from "./probe.js";
import { Resolver } from "./resolve.js";
import { Schedule } from "./schedule.js";
import { assemble, Sync } from "./sync.js";
import { changedAnything, type SyncReport } from "./sync-report.js";
import { VERSION } from "./version.js";
import { Watchdog } from "./watchdog.js";

/** How long a pass under way may take to finish on SIGTERM. Together with the rest, the shutdown takes less than 10 s. */
const STOP_GRACE_MS = 7_000;

/** After this long the process ends on SIGTERM even if something hangs. */
const STOP_MS = 9_000;

/** Time for the last lines of the log at the end. */
const LOG_GRACE_MS = 1_000;

/** If more nodes move at once, the page and other listeners do not get each move, but are told to read everything again. */
const MAX_MOVES_TOLD = 1_000;

/** Runs until SIGTERM or SIGINT. Throws only when it cannot start. */
export async function serve(config: Config): Promise<void> {
  // A full reading makes much short-lived garbage, and V8 prefers to let the heap grow: with 100,000 nodes the process had
  // 290 MiB after four full passes. With these flags it has 180.
  // `--optimize-for-size` would save 10 MiB more. But then V8 stops everything for a whole collection when the heap reaches
  // its limit, instead of collecting step by step: 0.2 s with a million nodes.
  setFlagsFromString("--semi-space-growth-factor=1");
  setFlagsFromString("--heap-growing-percent=20");
  // undici's HTTP parser is one large function of WebAssembly. After some use V8 would compile it again, to optimise it. That
  // takes 40 MiB for 0.15 s, and saves no time that could be measured.
  setFlagsFromString("--liftoff-only");
  const log = newLog(config.logLevel);
  let daemon: Daemon | undefined;
  // Listen from the first moment to the last, because without a listener SIGHUP ends the process. Before the daemon is up
  // nothing needs to be done, because its first pass is a full one.
  process.on("SIGHUP", () => daemon?.sync({ full: true }));
  // Without listeners, SIGUSR1 makes Node open its debugger to every program on this machine (port 9229), and SIGUSR2 ends
  // it. Operators send both to HAProxy.
  for (const signal of ["SIGUSR1", "SIGUSR2"]) process.on(signal, () => log.warn(`ignored ${signal}`));
  daemon = await startDaemon(config, log);
  const [signal] = (await Promise.race([once(process, "SIGTERM"), once(process, "SIGINT")])) as [string];
  log.info({ signal }, "stopping");
  // The process ends by itself with exit code 0, unless a file system, or the reader of the log, hangs and blocks a thread of
  // Node. `process.exit()` would wait for that thread. So the process then sends itself the signal, which nothing catches any
  // more.
  const end = () => process.kill(process.pid, signal);
  const late = setTimeout(end, STOP_MS);
  await daemon.stop();
  clearTimeout(late);
  log.info("stopped");
  setTimeout(end, LOG_GRACE_MS).unref();
}

export interface Daemon {
  /** `http://host:port` of the HTTP API. */
  url: string;
  /** Asks for a pass; its failure is logged. */
  sync(request: SyncRequest): void;
  stop(): Promise<void>;
}

export async function startDaemon(config: Config, log: Logger): Promise<Daemon> {
  const parts = assemble(config);
  const history = new History();
  const sync: Sync = new Sync(parts, {
    *changed(changes, { map, complete }) {
      yield* nodes.takeChanges(changes);
      yield* history.takeChanges(changes, map, complete, new Date().toISOString());
    },
    passed(report) {
      metrics.record(report, parts.shared?.failure && toFailure(parts.shared.failure));
      logPass(log, report);
      watchdog.takePass(report);
      history.takePass(report);
    },
  });
  const watchdog = new Watchdog();
  const delay = new LoopDelay();
  const nodes = new NodeList(sync.fleet.map);
  const events = new EventStream();
  const metrics = new Metrics({ sync, puppetdb: parts.puppetdb, nodes, events, delay, version: VERSION });
  const notRestored = await sync.restore().then(() => undefined, toFailure);
  if (notRestored) log.error(notRestored, "state file");
  let listeners: Listeners | undefined;
  const overview = new Overview({
    ...{ sync, history, nodes, targets: parts, watchdog, delay },
    pools: config.pools !== undefined,
    version: VERSION,
    replica: config.replica,
    hints: () => listeners?.hints.coverage,
  });
  parts.shared?.describe(() => JSON.stringify(overview.word));
  const tellStatus = tellEvents(history, events, overview, log);
  const resolver = new Resolver({
    fleet: sync.fleet,
    puppetdb: parts.puppetdb,
    resolve: () => sync.resolver(),
    knowsServers: () => sync.knowsServers,
    servers: () => sync.servers() ?? [],
    probePath: config.probePath,
    hasNode: hasNode(masterAsker(config)),
    onObservation: (observation) => {
      sync.submit(observation).catch((error: unknown) => log.error(toFailure(error), "resolved route"));
    },
  });
  const api = await buildApi({
    sync,
    overview,
    history,
    events,
    resolver,
    metrics,
    version: VERSION,
    tokenFile: config.apiTokenFile,
  });
  const ifInUse =
    "stop the program that listens there, which may be another sasori (`sasori status` shows it)";
  const url = await listen(api, config.listen).catch(cannotListen("SASORI_LISTEN", config.listen, ifInUse));
  listeners = await listenForHints(config, {
    map: sync.fleet.map,
    resolver,
    resolve: () => sync.resolver(),
    counts: nodes.counts,
    onHint: (kind) => metrics.hint(kind),
  });
  log.info(
    {
      url,
      puppetdb: config.puppetdb.flat().map((server) => server.url),
      haproxy: config.haproxy.map(({ name }) => name),
    },
    "started",
  );
  if (config.foreignNames?.length)
    log.warn({ names: config.foreignNames }, "set, but not variables of sasori: ignored");

  const request = (wanted: SyncRequest) => {
    sync.request(wanted).catch((error: unknown) => log.error(toFailure(error), "pass"));
  };
  // No changes pass is needed while another pass asks PuppetDB: the next tick finds what that misses. A pass that only
  // pushes, such as for a learned route, does not count. Such passes may follow each other without a gap for a long time.
  const onTime = (run: () => void) => () => {
    watchdog.tick();
    tellStatus(); // A pass that does not end reports nothing.
    run();
  };
  const changes = { cron: config.schedule, run: onTime(() => (sync.looking ? undefined : request({}))) };
  const full = { cron: config.fullSchedule, run: onTime(() => request({ full: true })) };
  const schedule = new Schedule([changes, full], (seconds) => log.warn({ seconds }, "the clock was set"));
  request({ full: true });

  return {
    url,
    sync: request,
    async stop() {
      schedule.stop();
      listeners?.stop();
      events.close();
      await sync.stop(STOP_GRACE_MS);
      await parts.state.close();
      await api.close();
      await parts.puppetdb.close();
      delay.stop();
    },
  };
}

/** Listens, and returns the URL. For `localhost` it also listens on IPv6, if the machine has it. */
async function listen(api: FastifyInstance, { host, port }: Config["listen"]): Promise<string> {
  if (host !== "localhost") return api.listen({ host, port });
  const url = await api.listen({ host: "127.0.0.1", port });
  const too = createServer((socket) => void api.server.emit("connection", socket));
  too.on("error", () => undefined);
  too.listen({ host: "::1", port: (api.server.address() as AddressInfo).port });
  api.server.once("close", () => too.close());
  return url;
}

/**
 * Reports to listeners and to the log what happens: each trouble when it appears and when it is over. Returns a function that
 * looks for troubles between passes.
 */
function tellEvents(history: History, events: EventStream, overview: Overview, log: Logger): () => void {
  let told: Status["troubles"] = [];
  const tellStatus = () => {
    const { status } = overview;
    events.publishStatus(status);
    const { troubles } = status;
    const isIn = (list: Status["troubles"]) => (one: Status["troubles"][number]) =>
      list.some(({ code, where }) => code === one.code && where === one.where);
    // A trouble with another remedy is a new one: a master that was down for one HAProxy and now for all, or another plan id.
    const isTold = ({ code, where, remedy }: Status["troubles"][number]) =>
      told.some((one) => one.code === code && one.where === where && one.remedy === remedy);
    for (const { severity, ...trouble } of troubles.filter((one) => !isTold(one)))
      log[severity === "critical" ? "error" : "warn"](trouble, "trouble");
    for (const { code, where } of told.filter((one) => !isIn(troubles)(one)))
      log.info({ code, where }, "trouble is over");
    told = troubles;
  };
  history.watch({
    moves: (moves, all) => {
      if (all > MAX_MOVES_TOLD) events.publish("reset", {});
      else events.publish("moves", moves);
    },
    pass(pass) {
      events.publish("pass", pass);
      tellStatus();
    },
  });
  return tellStatus;
}

/**
 * One line per pass: the counts of its report. The level says whether somebody has to look at it; a look at PuppetDB that
 * found nothing is for `debug`, because there is one every few seconds.
 */
function logPass(log: Logger, report: SyncReport): void {
  log[levelOf(report)](lineOf(report), `pass ${report.outcome}`);
}

function levelOf(report: SyncReport): "error" | "warn" | "info" | "debug" {
  if (report.outcome === "failed") return "error";
  if (report.outcome === "held" || report.targets.some(({ changedByOthers }) => changedByOthers))
    return "warn";
  return report.kind === "full" || changedAnything(report) ? "info" : "debug";
}

function lineOf(report: SyncReport) {
  const { phasesMs, targets, refused, withoutProducer, ...counts } = report;
  return {
    ...counts,
    phasesMs,
    refused: refused.count,
    withoutProducer: withoutProducer.count,
    targets: targets.map(({ changes: _changes, kind: _kind, ...counts }) => counts),
  };
}
