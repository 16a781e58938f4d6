#!/usr/bin/env node
// The command line. It asks the running daemon where there is one and does the work itself elsewhere, and it
// prints what a SyncReport, a Lookup or a Status says: for people, or with --json for machines.
// Exit codes: 0 done, 1 failed, 2 bad configuration or usage, 3 held by the guard.

import { readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { Command, CommanderError, InvalidArgumentError, Option } from "commander";
import { request } from "undici";
import type { Desired, Displaced, Lookup, Status } from "./api-shapes.js";
import { type Config, describeVariables, readConfig, showConfig } from "./config.js";
import { reason, SasoriError, systemCode, toFailure } from "./errors.js";
import { resolver } from "./fleet.js";
import { lookUp } from "./lookup.js";
import { type Certname, parseCertname } from "./node-map.js";
import type { SyncRequest } from "./pass-queue.js";
import { PLAN_ID } from "./plan.js";
import { PriorityMap } from "./priority.js";
import {
  renderDiff,
  renderDisplaced,
  renderLookup,
  renderReport,
  renderStatus,
  styleFor,
} from "./report-text.js";
import { assemble, Sync, type SyncParts } from "./sync.js";
import type { SyncReport } from "./sync-report.js";
import { VERSION } from "./version.js";

const EXIT = { done: 0, failed: 1, usage: 2, held: 3 } as const;

/** A full pass over a big fleet takes its time; the daemon has a deadline of its own. */
const DAEMON_DEADLINE_MS = 15 * 60_000;
/** For one node. */
const PUPPETDB_DEADLINE_MS = 20_000;

/** Shorter work shows no progress. */
const PROGRESS_AFTER_MS = 1_000;

const style = styleFor(process.stdout, process.env);

interface Output {
  json?: boolean;
}

const program = new Command("sasori")
  .description("Keeps HAProxy's node-to-Puppet-master map true.")
  .version(VERSION)
  .showHelpAfterError("(sasori --help shows the commands)")
  .exitOverride()
  .addHelpText(
    "after",
    `
Examples:
  sasori serve                          run the daemon
  sasori sync                           one pass now: what changed in PuppetDB goes to the file and to HAProxy
  sasori diff                           what would a full pass change?
  sasori lookup node7.example.com       where does this node go, and why?

Configuration is read from environment variables: sasori config --help
Exit codes: 0 done, 1 failed, 2 bad configuration or usage, 3 removals held by the guard`,
  );

program
  .command("serve")
  .description("run the daemon: schedules, HTTP API, metrics")
  .action(async () => {
    const { serve } = await import("./daemon.js"); // Only here: the other commands start faster without it.
    await serve(readConfig(process.env));
  });

program
  .command("sync")
  .description("one pass now, by the running daemon or, without one, by this command")
  .option("--full", "read everything and compare it with the file and every live map")
  .option("--dry-run", "plan only, change nothing")
  .addOption(
    new Option("--approve <plan-id>", "let the removals of this held plan through")
      .argParser(parsePlanId)
      .conflicts("dryRun"),
  )
  .option("--json", "print the SyncReport as JSON")
  .addHelpText(
    "after",
    "\nExamples:\n  sasori sync\n  sasori sync --full --dry-run\n  sasori sync --approve 3f2a9c01d4e5\n",
  )
  .action(async ({ json, ...wanted }: Output & SyncRequest) => {
    const report = await runPass(readConfig(process.env), wanted);
    print(report, json, (value) => renderReport(value, style));
    process.exitCode = EXIT[report.outcome];
  });

program
  .command("diff")
  .description("what a full pass would change in the file and in every live map")
  .option("--json", "print the SyncReport as JSON")
  .action(async ({ json }: Output) => {
    const report = await runPass(readConfig(process.env), { full: true, dryRun: true });
    print(report, json, (value) => renderDiff(value, style));
    process.exitCode = EXIT[report.outcome];
  });

program
  .command("lookup")
  .description("where a node goes, and why: desired, the file, and each live map")
  .argument("<certname>")
  .option("--json", "print as JSON")
  .addHelpText("after", "\nExample:\n  sasori lookup node7.example.com\n")
  .action(async (text: string, { json }: Output) => {
    const certname = parseCertname(text);
    const config = readConfig(process.env);
    const found =
      (await askDaemon<Lookup>(config, "GET", `/api/v1/nodes/${certname}`)) ??
      (await lookUpHere(config, certname));
    print(found, json, (value) => renderLookup(value, style));
    const failed =
      found.desired.failure !== undefined || found.live.some(({ failure }) => failure !== undefined);
    process.exitCode = failed ? EXIT.failed : EXIT.done;
  });

program
  .command("status")
  .description("is everything in sync, and if not, why")
  .option("--json", "print as JSON")
  .action(async ({ json }: Output) => {
    const config = readConfig(process.env);
    const status = await mustAskDaemon<Status>(config, "GET", "/api/v1/status");
    print(status, json, (value) => renderStatus(value, style));
    process.exitCode = status.ready ? EXIT[status.lastPass?.outcome ?? "done"] : EXIT.failed;
  });

program
  .command("register")
  .description("move a node to a master now; PuppetDB's next, newer observation of it replaces this")
  .argument("<certname>")
  .argument("[master]")
  .option("--end", "end the node's registration or learned route: PuppetDB decides again")
  .option("--json", "print as JSON")
  .addHelpText(
    "after",
    "\nExamples:\n  sasori register node7.example.com master2\n  sasori register node7.example.com --end\n",
  )
  .action(async (text: string, master: string | undefined, { end, json }: Output & { end?: boolean }) => {
    if ((master === undefined) === (end === undefined)) {
      throw new SasoriError("USAGE", "name the master, or end the registration with --end");
    }
    const config = readConfig(process.env);
    const path = `/api/v1/nodes/${parseCertname(text)}`;
    const found = end
      ? await mustAskDaemon<Lookup>(config, "DELETE", path)
      : await mustAskDaemon<Lookup>(config, "PUT", path, { master });
    print(found, json, (value) => renderLookup(value, style));
  });

program
  .command("rebalance")
  .description("bring displaced nodes back to the master that they left while it was down")
  .option("--dry-run", "list them only")
  .option("--master <name>", "only nodes that were at home there")
  .option("--per-minute <count>", "how many nodes to move each minute", "60")
  .option("--json", "print the nodes as JSON")
  .addHelpText(
    "after",
    "\nWorks for agents that reach their master through the gateway: they follow the route with their next run.\n\nExamples:\n  sasori rebalance --dry-run\n  sasori rebalance --master master1 --per-minute 30\n",
  )
  .action(async (options: Output & { dryRun?: boolean; master?: string; perMinute: string }) => {
    const perMinute = Number(options.perMinute);
    if (!(perMinute > 0))
      throw new SasoriError("USAGE", `--per-minute ${options.perMinute}: expected a number above 0`);
    const config = readConfig(process.env);
    const all = await mustAskDaemon<Displaced[]>(config, "GET", "/api/v1/displaced");
    const nodes = all.filter(({ home }) => options.master === undefined || home === options.master);
    if (options.dryRun || options.json) print(nodes, options.json, renderDisplaced);
    if (options.dryRun) return;
    for (const [index, { certname, home }] of nodes.entries()) {
      if (index > 0) await sleep(60_000 / perMinute);
      await mustAskDaemon<Lookup>(config, "PUT", `/api/v1/nodes/${certname}`, { master: home });
      if (!options.json) process.stdout.write(`${index + 1}/${nodes.length}  ${certname} → ${home}\n`);
    }
    if (!options.json)
      process.stdout.write(`${nodes.length === 1 ? "1 node" : `${nodes.length} nodes`} brought home\n`);
  });

const priority = program
  .command("priority")
  .description("who is served first when a master's queue fills: a node, or a client by its address")
  .addHelpText(
    "after",
    "\nExamples:\n  sasori priority set db1.example.com -100\n  sasori priority list\n  sasori priority unset db1.example.com\n",
  );

priority
  .command("list")
  .description("all classes, first served first")
  .option("--json", "print as JSON")
  .action(async ({ json }: Output) => {
    const entries = [...(await priorityMap().list())].sort((a, b) => a[1] - b[1]);
    print(Object.fromEntries(entries), json, () =>
      entries.map(([key, value]) => `${key}  ${value}`).join("\n"),
    );
  });

priority
  .command("set")
  .description("give a node or client address a class from -2047 (first) to 2047 (last); others have 0")
  .argument("<node-or-address>")
  .argument("<class>")
  .option("--json", "print as JSON")
  .action((key: string, value: string, { json }: Output) => changePriority(key, Number(value), json));

priority
  .command("unset")
  .description("take a node or client address out")
  .argument("<node-or-address>")
  .option("--json", "print as JSON")
  .action((key: string, { json }: Output) => changePriority(key, undefined, json));

function parsePlanId(text: string): string {
  if (PLAN_ID.test(text)) return text;
  throw new InvalidArgumentError("A plan id is 12 hexadecimal digits, as `sasori status` shows it.");
}

function priorityMap(): PriorityMap {
  const { priorityFile, haproxy } = readConfig(process.env);
  if (priorityFile !== undefined) return new PriorityMap(priorityFile, haproxy);
  throw new SasoriError("USAGE", "set SASORI_PRIORITY_FILE to the map that HAProxy has as PRIORITY_MAP");
}

async function changePriority(
  key: string,
  value: number | undefined,
  json: boolean | undefined,
): Promise<void> {
  const change = await priorityMap().change(key, value);
  print(change, json, () =>
    [
      `${key}  ${value ?? "(default)"}`,
      ...change.haproxy.map(
        ({ haproxy, failure }) =>
          `  ${haproxy}  ${failure ? `${style.bad("failed")}: ${failure.code}: ${failure.message}` : "told"}`,
      ),
    ].join("\n"),
  );
  process.exitCode = change.haproxy.some(({ failure }) => failure) ? EXIT.failed : EXIT.done;
}

program
  .command("config")
  .description("the effective configuration; secrets are named by their file only")
  .option("--json", "print as JSON")
  .addHelpText(
    "after",
    () =>
      `\nVariables:\n${describeVariables()
        .map(
          ({ name, meaning, ...variable }) =>
            `  ${name} (${variable.default})\n      ${meaning}\n      ${name}=${variable.example}`,
        )
        .join("\n")}\n`,
  )
  .action(({ json }: Output) => {
    const shown = showConfig(process.env);
    print(shown, json, (values) =>
      Object.entries(values)
        .map(([name, value]) => `${name}=${value}`)
        .join("\n"),
    );
  });

function print<T>(value: T, json: boolean | undefined, render: (value: T) => string): void {
  process.stdout.write(`${json ? JSON.stringify(value, null, 2) : render(value)}\n`);
}

async function runPass(config: Config, wanted: SyncRequest): Promise<SyncReport> {
  const began = Date.now();
  let sync: Sync | undefined;
  const timer = setInterval(() => {
    const elapsed = Date.now() - began;
    if (elapsed < PROGRESS_AFTER_MS || !process.stderr.isTTY) return;
    process.stderr.write(
      `\r\u001b[K${sync?.phase ?? "waiting for the daemon"} … ${Math.round(elapsed / 1000)} s`,
    );
  }, 250);
  try {
    const byDaemon = await askDaemon<SyncReport>(config, "POST", "/api/v1/sync", wanted);
    if (byDaemon !== undefined) return byDaemon;
    const parts = assemble(config);
    sync = new Sync(parts);
    // Without what an earlier run has left a pass is still worth more than none.
    await sync
      .restore()
      .catch((error: unknown) => process.stderr.write(`sasori: ${toFailure(error).message}\n`));
    try {
      return await sync.request({ ...wanted, full: true });
    } finally {
      await parts.puppetdb.close();
    }
  } finally {
    clearInterval(timer);
    if (process.stderr.isTTY) process.stderr.write("\r\u001b[K");
  }
}

/** As askDaemon, for what only a running daemon knows. */
async function mustAskDaemon<T>(...question: Parameters<typeof askDaemon>): Promise<T> {
  const answer = await askDaemon<T>(...question);
  if (answer !== undefined) return answer;
  const { host, port } = question[0].listen;
  throw new SasoriError(
    "DAEMON",
    `no daemon answers on ${host}:${port} (SASORI_LISTEN): start one with \`sasori serve\``,
  );
}

/** Undefined when no daemon listens. Throws `DAEMON` or what the daemon's problem+json says. */
async function askDaemon<T>(
  config: Config,
  method: "GET" | "POST" | "PUT" | "DELETE",
  path: string,
  body?: object,
): Promise<T | undefined> {
  const { host, port } = config.listen;
  // A daemon that listens everywhere listens on loopback too.
  const to =
    host === "0.0.0.0" ? "127.0.0.1" : host === "::" ? "[::1]" : host.includes(":") ? `[${host}]` : host;
  const headers: Record<string, string> = {};
  if (body !== undefined) headers["content-type"] = "application/json";
  if (config.apiTokenFile !== undefined && method !== "GET") {
    headers.authorization = `Bearer ${(await readFile(config.apiTokenFile, "utf8")).trim()}`;
  }
  try {
    const response = await request(`http://${to}:${port}${path}`, {
      method,
      headers,
      ...(body !== undefined && { body: JSON.stringify(body) }),
      headersTimeout: DAEMON_DEADLINE_MS,
      signal: AbortSignal.timeout(method === "GET" ? 30_000 : DAEMON_DEADLINE_MS),
    });
    const answer = (await response.body.json()) as T & { title?: string; detail?: string };
    if (response.statusCode === 200) return answer;
    throw new SasoriError(
      "DAEMON",
      `the daemon on ${to}:${port} answered ${response.statusCode}: ${answer.detail ?? ""}`,
    );
  } catch (error) {
    if (error instanceof SasoriError) throw error;
    if (systemCode(error) === "ECONNREFUSED") return undefined;
    throw new SasoriError("DAEMON", `the daemon on ${to}:${port} gave no usable answer: ${reason(error)}`, {
      cause: error,
    });
  }
}

async function lookUpHere(config: Config, certname: Certname): Promise<Lookup> {
  const parts = assemble(config);
  try {
    return await lookUp(certname, askPuppetdb(config, parts, certname), parts);
  } finally {
    await parts.puppetdb.close();
  }
}

async function askPuppetdb(
  config: Config,
  { puppetdb, instances }: SyncParts,
  certname: Certname,
): Promise<Desired> {
  const signal = AbortSignal.timeout(PUPPETDB_DEADLINE_MS);
  try {
    const submission = await puppetdb.readNode(certname, signal);
    if (submission === undefined) return {};
    const sightings = await Promise.allSettled(instances.map((instance) => instance.look(signal)));
    const servers = sightings.flatMap((seen) => (seen.status === "fulfilled" ? seen.value.servers : []));
    const master = resolver(
      config.masterAliases,
      instances.length === 0 ? undefined : servers,
    )(submission.producer);
    if (master === undefined) return { unroutableProducer: submission.producer };
    return { master, source: submission.source, since: new Date(submission.at).toISOString() };
  } catch (error) {
    return { failure: toFailure(error) };
  }
}

// `sasori sync --json | head`: whoever reads has seen enough.
process.stdout.on("error", (error) => {
  if (systemCode(error) !== "EPIPE") throw error;
  process.exit();
});

try {
  await program.parseAsync();
} catch (error) {
  if (error instanceof CommanderError) {
    process.exitCode = error.exitCode === 0 ? EXIT.done : EXIT.usage; // Commander has said why.
  } else {
    const { code, message } = toFailure(error);
    process.stderr.write(`sasori: ${code}: ${message}\n`);
    if (code === "INTERNAL") process.stderr.write(`${(error as Error).stack}\n`);
    process.exitCode = code === "CONFIG_INVALID" || code === "USAGE" ? EXIT.usage : EXIT.failed;
  }
}
