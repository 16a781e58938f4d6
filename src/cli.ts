#!/usr/bin/env node
// The command line. It asks the running daemon where there is one and does the work itself elsewhere, and it
// prints what a SyncReport, a Lookup or a Status says: for people, or with --json for machines.
// Exit codes: src/cli/exit-codes.ts.
//
// Only what every command needs is loaded at once; each command loads the rest by import(). undici, zod and fastify take
// longer to load than most commands take, and people wait for those (`npm run bench -- start` measures it).

import { getDefaultAutoSelectFamilyAttemptTimeout, setDefaultAutoSelectFamilyAttemptTimeout } from "node:net";
import { Argument, Command, CommanderError, InvalidArgumentError, Option } from "commander";
import type { Address, Method } from "./cli/daemon-client.js";
import { EXIT, EXIT_CODES } from "./cli/exit-codes.js";
import {
  isAllWell,
  MOVE_COLUMNS,
  masterColumns,
  masterRows,
  masterTroubles,
  moveRow,
  PASS_COLUMNS,
  passRow,
  renderDiagnosis,
  renderFinding,
  renderReplicas,
} from "./cli/list-text.js";
import {
  completeWords,
  completionScript,
  type Example,
  exampleText,
  type Looked,
  manPage,
  SHELLS,
  type Shell,
} from "./cli/manual.js";
import type { NodesWith } from "./cli/names.js";
import type { NodeMove } from "./cli/rebalance.js";
import {
  lacksInWords,
  renderDiff,
  renderLookup,
  renderReport,
  renderStatus,
  styleFor,
} from "./cli/report-text.js";
import { type Column, type Format, Table } from "./cli/table.js";
import type { Config, Variable } from "./config.js";
import type { Check, Finding } from "./doctor/check.js";
import { reason, SasoriError, systemCode, toFailure } from "./errors.js";
import { PLAN_ID } from "./guard.js";
import type {
  Lookup,
  Masters,
  Nodes,
  Pass,
  Registrations,
  Replicas,
  Status,
  Story,
} from "./http/api-shapes.js";
import { withoutPlace } from "./http/troubles.js";
import { type Certname, parseCertname, SOURCES } from "./node-map.js";
import type { SyncRequest } from "./pass-queue.js";
import type { PriorityMap } from "./target/priority.js";
import { VERSION } from "./version.js";

/** Nobody waits longer for a completion. */
const COMPLETION_MS = 1_000;

// Of a host with several addresses Node tries each for 250 ms: too short for one that is far away, when the one beside it
// (IPv6, most often) leads nowhere. This is time for the first packet to be sent twice.
const ADDRESS_MS = 1_500;
setDefaultAutoSelectFamilyAttemptTimeout(Math.max(ADDRESS_MS, getDefaultAutoSelectFamilyAttemptTimeout()));

const style = styleFor(process.stdout, process.env);

interface Output {
  json?: boolean;
}

interface ListOutput extends Output {
  output?: Exclude<Format, "json">;
  headers: boolean;
}

interface Filter {
  master?: string;
  source?: string;
}

const examplesOf = new Map<Command, readonly Example[]>();

const program = new Command("sasori")
  .description("Keeps HAProxy's node-to-puppetserver map in sync with PuppetDB.")
  .version(VERSION)
  .configureHelp({ minWidthToWrap: 20 }) // Below that it prints long lines, and the list of commands leaves less than 40.
  .showHelpAfterError("Run sasori --help for the list of commands.")
  .exitOverride();
withExamples(program, [
  ["sasori doctor", "does sasori have everything it needs?"],
  ["sasori serve", "run the daemon"],
  ["sasori status", "is everything in sync, and if not, why?"],
  ["sasori diff", "what would a full pass change?"],
  ["sasori sync", "look for changes in PuppetDB now, and apply them"],
  ["sasori lookup node7.example.com", "where does this node go, and why?"],
  ["sasori moves --follow", "show each node that changes its master, until Ctrl-C"],
]);
program.addHelpText(
  "after",
  `
Most commands ask the running daemon. Without one they do the work themselves, or say that they need it.
Environment variables configure sasori: sasori config --help
Exit codes: ${EXIT_CODES.map((code) => code.join(" ")).join(", ")}`,
);

/** A command with the examples of its help and of the man page. */
function withExamples(command: Command, examples: readonly Example[]): Command {
  examplesOf.set(command, examples);
  if (command !== program) command.showHelpAfterError(`Run ${pathOf(command)} --help for examples.`);
  return command.addHelpText("after", exampleText(examples));
}

function pathOf(command: Command): string {
  return command.parent === null ? command.name() : `${pathOf(command.parent)} ${command.name()}`;
}

/** For a command that prints one thing: text or JSON. */
function withJson(command: Command, description = "print JSON"): Command {
  return command
    .option("--json", description)
    .addOption(new Option("-o, --output <format>", "text or json").choices(["text", "json"]).hideHelp());
}

/** For a command that prints a list: a table with headers, names only, or JSON. */
function withListOutput(command: Command, { isWide = false, description = "print JSON" } = {}): Command {
  const formats = ["table", ...(isWide ? ["wide"] : []), "name", "json"];
  return command
    .addOption(new Option("-o, --output <format>", "how to print the list").choices(formats))
    .option("--no-headers", "print the table without its headers")
    .option("--json", `${description}, as -o json`);
}

program.hook("preAction", (_, command) => {
  const { output, json } = command.opts<{ output?: string; json?: boolean }>();
  if (output === "json") command.setOptionValue("json", true);
  else if (json && output !== undefined) command.error(`error: --json and -o ${output} exclude each other`);
});

const formatOf = ({ json, output }: ListOutput): Format => (json ? "json" : (output ?? "table"));

/** `names` is the first word of each row, for `-o name`. An empty list is told on stderr: `no moves`. */
function printList(options: ListOutput, { json, columns, rows, names, none }: List): void {
  const format = formatOf(options);
  if (format === "json") {
    print(json, true, String);
    return;
  }
  if (rows.length === 0) process.stderr.write(`${none}\n`);
  const table = new Table(columns, { style, headers: options.headers });
  const lines = format === "name" ? names : table.lines(rows);
  process.stdout.write(lines.map((line) => `${line}\n`).join(""));
}

interface List {
  /** What is printed as JSON. */
  json: unknown;
  columns: readonly (Column | string)[];
  rows: readonly (readonly string[])[];
  names: readonly string[];
  /** What to say when there are no rows. */
  none: string;
}

withExamples(program.command("serve").description("run the daemon: schedules, HTTP API, page, metrics"), [
  ["sasori serve", ""],
  ["SASORI_LOG_LEVEL=debug sasori serve", "with a line for every pass"],
]).action(async () => {
  const { serve } = await import("./daemon.js");
  await serve(await configure());
});

withExamples(
  program
    .command("setup")
    .summary("look at this host, propose the settings, and on yes write them and start sasori")
    .description(
      "look at this host (Puppet's certificate, puppetdb.conf, HAProxy's configuration, the producers in PuppetDB), propose the settings, show them, and on yes write /etc/sasori and start sasori. A SASORI_ variable that is set counts more than what was found",
    )
    .option("--yes", "write without a question")
    .addOption(new Option("--print", "print the files only").conflicts("yes")),
  [
    ["sasori setup", "after the installation of the package, as root"],
    ["sasori setup --print", "for those who manage files otherwise"],
    ["SASORI_PUPPETDB_URL=https://puppetdb2.example.com:8081 sasori setup", "something is to be otherwise"],
  ],
).action(async (options: { yes?: true; print?: true }) => {
  const { setUp } = await import("./cli/setup.js");
  if (!options.print && process.geteuid?.() !== 0)
    throw new SasoriError("USAGE", "only root may write /etc/sasori: use sudo, or --print");
  process.exitCode = (await setUp(process.env, options, style)) ? EXIT.done : EXIT.failed;
});

withExamples(
  withJson(
    program
      .command("doctor")
      .description("check everything sasori needs, and say what to do; changes nothing"),
  ),
  [
    ["sasori doctor", "before the first start, and when something does not work"],
    ["sasori doctor --json | jq '.findings[] | select(.outcome != \"ok\")'", "only problems, for a program"],
  ],
).action(async ({ json }: Output) => {
  const { diagnose } = await import("./doctor/doctor.js");
  const diagnosis = await diagnose(process.env, VERSION, json ? undefined : showFinding);
  print(diagnosis, json, (all) => renderDiagnosis(all, style));
  const code = { ok: EXIT.done, warning: EXIT.done, failed: EXIT.failed, misconfigured: EXIT.usage }[
    diagnosis.outcome
  ];
  // A check that hangs, on a dead file server for one, must not keep us.
  process.stdout.write("", () => process.exit(code));
});

function showFinding(finding: Finding, left: readonly Check[]): void {
  clearProgress();
  process.stdout.write(`${renderFinding(finding, style)}\n`);
  const waiting = left.map(({ name, where }) => [name, where].filter((text) => text !== undefined).join(" "));
  if (waiting.length === 0 || !process.stderr.isTTY) return;
  const text = `checking ${waiting.join(", ")}`;
  const columns = (process.stderr.columns || 80) - 2;
  const { dim } = styleFor(process.stderr, process.env);
  process.stderr.write(dim(text.length > columns ? `${text.slice(0, columns - 1)}…` : text));
}

function clearProgress(): void {
  if (process.stderr.isTTY) process.stderr.write("\r\u001b[K");
}

withExamples(
  withJson(
    program
      .command("sync")
      .description("run one pass now: in the daemon, or in this command if no daemon is running")
      .option("--full", "read everything, and compare it with the file and every live map")
      .option("--dry-run", "show the plan, change nothing")
      .addOption(
        new Option("--approve <plan-id>", "apply the held changes of this plan")
          .argParser(parsePlanId)
          .conflicts("dryRun"),
      ),
    "print the SyncReport as JSON",
  ),
  [
    ["sasori sync", "look for changes since the last pass, and apply them"],
    ["sasori sync --full --dry-run", "what would a full pass do?"],
    ["sasori sync --approve 3f2a9c01d4e5", "let the guard's held plan through"],
  ],
).action(async ({ json, full, dryRun, approve }: Output & SyncRequest) => {
  const { runPass } = await import("./cli/standalone.js");
  const wanted = { ...(full && { full }), ...(dryRun && { dryRun }), ...(approve && { approve }) };
  const report = await runPass(await address(), configure, wanted);
  print(report, json, (value) => renderReport(value, style));
  process.exitCode = report.approvalUnmatched ? EXIT.failed : EXIT[report.outcome];
});

withExamples(
  withJson(
    program
      .command("diff")
      .description("show what a full pass would change in the map file and in every live map")
      .option("--exit-code", "exit with 1 if anything differs, as git diff does")
      .addOption(
        new Option("--held", "show every change of the plan that the guard holds").conflicts("exitCode"),
      ),
    "print the SyncReport, or the held plan, as JSON",
  ),
  [
    ["sasori diff", "the first changes of each target"],
    ["sasori diff --held", "read a held plan before you approve it"],
    ["sasori diff --exit-code > /dev/null", "for scripts: 0 only if everything is in sync"],
    ["sasori diff --json | jq .targets", "for a program"],
  ],
).action(async ({ json, exitCode, held }: Output & { exitCode?: true; held?: true }) => {
  if (held) return showHeldPlan(json);
  const { runPass } = await import("./cli/standalone.js");
  const report = await runPass(await address(), configure, { full: true, dryRun: true });
  print(report, json, (value) => renderDiff(value, style));
  const differs = report.targets.some(({ outcome }) => outcome !== "unchanged");
  process.exitCode = exitCode && differs && report.outcome === "done" ? EXIT.failed : EXIT[report.outcome];
});

async function showHeldPlan(json: boolean | undefined): Promise<void> {
  const { heldPlanHead, readHeldPlan } = await import("./cli/held-plan.js");
  const plan = await readHeldPlan(await address());
  const table = new Table(["NODE", "FROM", "TO"], { style, headers: true });
  print(plan ?? null, json, (value) => {
    if (value === null) return "nothing is held";
    const rows = value.changes.map(({ certname, from, to }) => [certname, from ?? "", to ?? "(removed)"]);
    return [...heldPlanHead(value), ...table.lines(rows)].join("\n");
  });
  process.exitCode = plan === undefined ? EXIT.done : EXIT.held;
}

withExamples(
  withJson(
    program
      .command("lookup")
      .description("show where a node goes, and why: the desired master, the map file, each live map")
      .addArgument(certnameArgument()),
  ),
  [
    ["sasori lookup node7.example.com", ""],
    ["sasori lookup node7", "a short name is enough if it is unique"],
    ["sasori lookup node7 --json | jq -r .desired.master", "for a script; exit code 1 for an unknown node"],
  ],
).action(async (typed: Certname, { json }: Output) => {
  const certname = await whole(typed, nodesOfFile);
  const { askDaemon } = await import("./cli/daemon-client.js");
  const found =
    (await askDaemon<Story>(await address(), "GET", `/api/v1/nodes/${certname}`)) ??
    (await lookUpHere(certname));
  print(found, json, (value) => renderLookup(value, style));
  const { desired, file, live } = found;
  const failed = [desired, ...live].some(({ failure }) => failure !== undefined) || "failure" in file;
  const isKnown = [desired, file, ...live].some((place) => "master" in place && place.master !== null);
  process.exitCode = failed || !isKnown ? EXIT.failed : EXIT.done;
});

withExamples(
  withJson(
    program
      .command("status")
      .description("is everything in sync, and if not, why")
      .option("--replicas", "list the replicas that share SASORI_STATE_URL, with their last known state"),
  ),
  [
    ["sasori status", ""],
    ["sasori status --replicas", "are all replicas in sync?"],
    ["sasori status --json | jq -r .state", "for monitoring"],
  ],
).action(async ({ json, replicas }: Output & { replicas?: true }) => {
  if (replicas) {
    const found = await ask<Replicas>("GET", "/api/v1/replicas");
    print(found, json, (value) => renderReplicas(value, style));
    process.exitCode = isAllWell(found) ? EXIT.done : EXIT.failed;
    return;
  }
  const status = await ask<Status>("GET", "/api/v1/status");
  print(status, json, (value) => renderStatus(value, style));
  const isHeld = status.troubles.some(({ code }) => code === "held");
  process.exitCode =
    !status.ready || status.state === "failing" ? EXIT.failed : isHeld ? EXIT.held : EXIT.done;
});

withExamples(
  program.command("healthy").description("for health checks: exit code 0 if the daemon serves a map"),
  [["sasori healthy", "the HEALTHCHECK of the container image"]],
).action(async () => {
  const { isReady } = await import("./cli/daemon-client.js");
  if (await isReady(await address())) return;
  process.stderr.write("sasori: the daemon does not serve a map yet; `sasori status` says why\n");
  process.exitCode = EXIT.failed;
});

withExamples(
  withListOutput(
    program
      .command("nodes")
      .description("list the nodes and their masters; without a daemon, those of the map file")
      .argument("[text]", "only certnames that contain this text")
      .option("--master <name>", "only nodes of this master")
      .addOption(
        new Option("--source <source>", "only nodes known from this source; needs the daemon").choices(
          SOURCES,
        ),
      )
      .addOption(new Option("--limit <count>", "how many at most").argParser(parseCount).default(100))
      .addOption(new Option("--all", "list all of them").conflicts("limit")),
  ),
  [
    ["sasori nodes --master master2", ""],
    ["sasori nodes db", 'certnames that contain "db"'],
    ["sasori nodes --source registration", "nodes that somebody moved by hand"],
    ["sasori nodes --all -o name | wc -l", "how many are there?"],
  ],
).action(
  async (
    q: string | undefined,
    { all, limit, source, master, ...options }: ListOutput & { all?: true; limit: number } & Filter,
  ) => {
    const { listNodes } = await import("./cli/listing.js");
    const at = all ? Number.POSITIVE_INFINITY : limit;
    const named = master === undefined ? undefined : await mustBeMaster(master, knownMasters);
    const wanted = { q, source, master: named, limit: at };
    const look = { format: formatOf(options), headers: options.headers, style };
    await listNodes(await address(), configure, wanted, look);
  },
);

withExamples(
  withListOutput(program.command("masters").description("list the masters: their nodes, state and load"), {
    isWide: true,
  }),
  [
    ["sasori masters", "the sums of all HAProxys"],
    ["sasori masters -o wide", "each HAProxy on its own line"],
  ],
).action(async (options: ListOutput) => {
  const found = await ask<Masters>("GET", "/api/v1/masters");
  const isWide = options.output === "wide";
  printList(options, {
    json: found,
    columns: masterColumns(isWide),
    rows: masterRows(found, isWide, style),
    names: found.masters.map(({ master }) => master),
    none: "no masters",
  });
  if (formatOf(options) !== "json")
    for (const line of masterTroubles(found, styleFor(process.stderr, process.env)))
      process.stderr.write(`${line}\n`);
  process.exitCode = found.failures.length > 0 ? EXIT.failed : EXIT.done;
});

withExamples(
  withListOutput(
    program
      .command("moves")
      .description("list the nodes that changed their master, the newest last")
      .addArgument(certnameArgument("[certname]", "only this node"))
      .option("--follow", "then show each move as it happens, until Ctrl-C; survives a restart of the daemon")
      .option("--master <name>", "only moves from or to this master")
      .addOption(
        new Option("--limit <count>", "how many past moves at most").argParser(parseCount).default(20),
      ),
    { description: "print JSON; with --follow one line for each move" },
  ),
  [
    ["sasori moves", "the last 20"],
    ["sasori moves node7.example.com", "where has this node been?"],
    ["sasori moves --follow --master master1", ""],
  ],
).action(
  async (
    typed: Certname | undefined,
    { follow, limit, master, ...options }: ListOutput & { follow?: true; limit: number } & Filter,
  ) => {
    const wanted = {
      certname: typed && (await whole(typed)),
      master: await maybeMaster(master),
      limit,
    };
    const { followMoves, recentMoves } = await import("./cli/listing.js");
    const look = { format: formatOf(options), headers: options.headers, style };
    if (follow) await followMoves(await address(), wanted, look);
    const found = await recentMoves(await address(), wanted);
    const moves = [...found.moves].reverse();
    printList(options, {
      json: found,
      columns: MOVE_COLUMNS,
      rows: moves.map((move) => moveRow(move, style)),
      names: moves.map(({ certname }) => certname),
      none: "no moves",
    });
  },
);

withExamples(
  withListOutput(
    program
      .command("passes")
      .description("list the last passes that changed something or failed, the newest last"),
  ),
  [["sasori passes", ""]],
).action(async (options: ListOutput) => {
  const found = await ask<{ passes: Pass[] }>("GET", "/api/v1/passes");
  const passes = [...found.passes].reverse();
  printList(options, {
    json: found,
    columns: PASS_COLUMNS,
    rows: passes.map((pass) => passRow(pass, style)),
    names: passes.map(({ startedAt }) => startedAt),
    none: "no passes",
  });
});

withExamples(
  withJson(
    program
      .command("register")
      .summary("move nodes to a master now, until PuppetDB has something newer")
      .description(
        "Move nodes to a master now. The registration holds until PuppetDB has a newer submission of the node.",
      )
      .addArgument(certnameArgument("[certname]"))
      .argument("[master]", "an HAProxy server, or the certname of its puppetserver")
      .option(
        "--file <file>",
        "register many nodes, all or none: one certname and master per line; - reads standard input",
      )
      .option("--reason <text>", "why; `lookup` and `moves` show it, with your user name")
      .option("--end", "end the node's registration or learned route, so that PuppetDB decides again"),
  ),
  [
    ["sasori register node7.example.com master2", "it goes there now"],
    [
      'sasori register node7 puppet2.corp --reason "disk of master1"',
      "short names, a puppetserver's certname",
    ],
    ["sasori register --file nodes.txt", "many nodes, as one change"],
    ["sasori register node7.example.com --end", "PuppetDB decides again"],
  ],
).action(async (typed: Certname | undefined, master: string | undefined, options, command: Command) => {
  const { end, file, reason, json }: Output & Registering = options;
  const isOne = typed !== undefined && file === undefined && (master === undefined) === (end === true);
  const isMany = typed === undefined && file !== undefined && end === undefined;
  if (!isOne && !isMany)
    command.error("error: expected a certname and a master, or a certname and --end, or --file");
  const { lackInWords, readRegistrations, registeredInWords, whoAmI } = await import(
    "./cli/registrations.js"
  );
  const remarks = { ...(reason !== undefined && { reason }), by: whoAmI(process.env) };
  if (file !== undefined) {
    const nodes = await readRegistrations(file);
    const { query } = await import("./cli/listing.js");
    const found = await ask<Registrations>("PUT", `/api/v1/nodes?${query(remarks)}`, nodes);
    print(found, json, registeredInWords);
    return tellLacks(lackInWords(found), "the registrations are in force");
  }
  if (typed === undefined) return;
  const path = `/api/v1/nodes/${await whole(typed)}`;
  const found = end
    ? await ask<Story>("DELETE", path)
    : await ask<Story>("PUT", path, { master: await maybeMaster(master), ...remarks });
  print(found, json, (value) => renderLookup(value, style));
  tellLacks(lacksInWords(found), "the registration is in force");
});

interface Registering {
  end?: true;
  file?: string;
  reason?: string;
}

function tellLacks(lacks: string, inForce: string): void {
  if (lacks === "") return;
  process.stderr.write(`${inForce}; ${lacks}\n`);
  process.exitCode = EXIT.failed;
}

withExamples(
  withListOutput(
    program
      .command("rebalance")
      .summary("move nodes back to the master they left while it was down or drained")
      .description(
        "Move nodes back to the master they left while it was down or drained. Agents that use the gateway follow with their next run.",
      )
      .option("--dry-run", "list the nodes, move none")
      .option("--master <name>", "only nodes that left this master")
      .option("--per-minute <count>", "how many nodes to move each minute", "60"),
  ),
  [
    ["sasori rebalance --dry-run", "which nodes are not at their usual master?"],
    ["sasori rebalance --master master1 --per-minute 30", "move them back, slowly"],
  ],
).action(
  async (
    { dryRun, master, perMinute, ...options }: ListOutput & { dryRun?: true; perMinute: string } & Filter,
    command: Command,
  ) => {
    const pace = paceOf(perMinute, command);
    const wanted = master === undefined ? undefined : await mustBeMaster(master);
    const { bringHome, displacedNodes } = await import("./cli/rebalance.js");
    const nodes = await displacedNodes(await address(), wanted);
    if (dryRun || options.json)
      printList(options, {
        json: nodes,
        columns: ["NODE", "MASTER", "HOME"],
        rows: nodes.map(({ certname, home, master: now = "" }) => [certname, now, home]),
        names: nodes.map(({ certname }) => certname),
        none: "no displaced nodes",
      });
    if (dryRun) return;
    process.exitCode = EXIT.failed; // Until it is done: whoever reads what it tells may go away first.
    const isDone = await bringHome(await address(), nodes, pace, tellTo(options));
    process.exitCode = isDone ? EXIT.done : EXIT.failed;
  },
);

withExamples(
  withListOutput(
    program
      .command("drain")
      .summary("move all nodes of a master to the others, before its maintenance")
      .description(
        "Move all nodes of a master evenly to the others that are up. Agents that use the gateway follow with their next run. Drain the master in HAProxy first: then it gets no new nodes, and `sasori rebalance` can move these back afterwards.",
      )
      .argument("<master>", "a server name; a short name is enough if it is unique")
      .option("--dry-run", "list the moves, move no node")
      .option("--per-minute <count>", "how many nodes to move each minute", "60"),
  ),
  [
    ["sasori drain master1 --dry-run", "which nodes would go where?"],
    ["sasori drain master1 --per-minute 30", "move them, slowly"],
    ["sasori rebalance --master master1", "when it is back"],
  ],
).action(
  async (
    typed: string,
    { dryRun, perMinute, ...options }: ListOutput & { dryRun?: true; perMinute: string },
    command: Command,
  ) => {
    const pace = paceOf(perMinute, command);
    const master = await mustBeMaster(typed);
    const { drain, planDrain } = await import("./cli/rebalance.js");
    const list = (moves: readonly NodeMove[]) => ({
      json: moves,
      columns: ["NODE", "FROM", "TO"],
      rows: moves.map(({ certname, from, to }) => [certname, from, to]),
      names: moves.map(({ certname }) => certname),
      none: "no nodes to move",
    });
    if (dryRun) return printList(options, list(await planDrain(await address(), master)));
    process.exitCode = EXIT.failed; // Until it is done, as above.
    const { moves, isDone } = await drain(await address(), master, pace, tellTo(options));
    if (options.json) printList(options, list(moves));
    process.exitCode = isDone ? EXIT.done : EXIT.failed;
  },
);

/** Each step as it happens; beside JSON it is a remark. */
const tellTo =
  ({ json }: Output) =>
  (line: string) =>
    (json ? process.stderr : process.stdout).write(`${line}\n`);

function paceOf(text: string, command: Command): number {
  const perMinute = Number(text);
  if (perMinute > 0) return perMinute;
  return command.error(`error: --per-minute ${text}: expected a number above 0`);
}

const priority = withExamples(
  program
    .command("priority")
    .summary("decide who is served first from a master's queue")
    .description(
      "Decide who is served first when a master's queue fills: a node, or a client by its address. SASORI_PRIORITY_FILE is the gateway's second map.",
    ),
  [
    ["sasori priority set db1.example.com -100", "before all others"],
    ["sasori priority list", ""],
    ["sasori priority unset db1.example.com", ""],
  ],
);

withExamples(
  withListOutput(priority.command("list").description("list all classes, those served first at the top")),
  [["sasori priority list", ""]],
).action(async (options: ListOutput) => {
  const entries = [...(await (await priorityMap()).list())].sort((a, b) => a[1] - b[1]);
  printList(options, {
    json: Object.fromEntries(entries),
    columns: ["NODE OR ADDRESS", { head: "CLASS", isNumber: true }],
    rows: entries.map(([key, value]) => [key, String(value)]),
    names: entries.map(([key]) => key),
    none: "no classes: everybody has class 0",
  });
});

withExamples(
  withJson(
    priority
      .command("set")
      .description(
        "give a node or client address a class, from -2047 (first) to 2047 (last); all others have 0",
      )
      .argument("<node-or-address>")
      .addArgument(new Argument("<class>").argParser(parseClass)),
  ),
  [
    ["sasori priority set db1.example.com -100", "before all others"],
    ["sasori priority set 192.0.2.7 500", "a client that can wait"],
  ],
).action((key: string, value: number, { json }: Output) => changePriority(key, value, json));

withExamples(
  withJson(
    priority
      .command("unset")
      .description("remove the class of a node or client address")
      .argument("<node-or-address>"),
  ),
  [["sasori priority unset db1.example.com", ""]],
).action((key: string, { json }: Output) => changePriority(key, undefined, json));

const configure = async (): Promise<Config> => (await import("./config.js")).readConfig(process.env);
const address = async (): Promise<Address> => (await import("./config.js")).readAddress(process.env);

/** What only a running daemon knows. */
async function ask<T>(method: Method, path: string, body?: object): Promise<T> {
  const { mustAskDaemon } = await import("./cli/daemon-client.js");
  return mustAskDaemon<T>(await address(), method, path, body);
}

async function lookUpHere(certname: Certname): Promise<Lookup> {
  const standalone = await import("./cli/standalone.js");
  return standalone.lookUpHere(await configure(), certname);
}

/** As Puppet and the gateway write it: people type capitals. */
const certnameOf = (text: string) => parseCertname(text.toLowerCase());

function certnameArgument(name = "<certname>", description?: string): Argument {
  return new Argument(name, description).argParser((text) => {
    try {
      return certnameOf(text);
    } catch (error) {
      throw new InvalidArgumentError(reason(error));
    }
  });
}

const note = (text: string) => process.stderr.write(`${text}\n`);

/** Nodes of the daemon; undefined without one. */
async function nodesOfDaemon(
  wanted: Parameters<NodesWith>[0] | { q: string; limit: number },
  deadlineMs?: number,
): Promise<Nodes | undefined> {
  const [{ askDaemon }, { query }] = await Promise.all([
    import("./cli/daemon-client.js"),
    import("./cli/listing.js"),
  ]);
  return askDaemon<Nodes>(await address(), "GET", `/api/v1/nodes?${query(wanted)}`, undefined, deadlineMs);
}

/** The certname that a short name stands for. Without a daemon, `elsewhere` knows the nodes; by default there are none. */
async function whole(
  typed: Certname,
  elsewhere: NodesWith = async () => ({ nodes: [], next: null }),
): Promise<Certname> {
  const { wholeCertname } = await import("./cli/names.js");
  return wholeCertname(typed, async (near) => (await nodesOfDaemon(near)) ?? elsewhere(near), note);
}

const daemonMasters = async (): Promise<string[]> =>
  (await ask<Masters>("GET", "/api/v1/masters")).masters.map(({ master }) => master);

/** The master that a name or short name stands for; a name that no master has stays as it is. */
async function maybeMaster(typed: string | undefined): Promise<string | undefined> {
  if (typed === undefined) return undefined;
  const { wholeMaster } = await import("./cli/names.js");
  return wholeMaster(typed, await daemonMasters(), note) ?? typed;
}

/** The same, but throws `USAGE`, with the names there are, when no master has this one. */
async function mustBeMaster(typed: string, names: () => Promise<string[]> = daemonMasters): Promise<string> {
  const { noSuchMaster, wholeMaster } = await import("./cli/names.js");
  const masters = await names();
  const found = wholeMaster(typed, masters, note);
  if (found === undefined) throw noSuchMaster(typed, masters);
  return found;
}

/** Of the daemon, or else of the map file. */
async function knownMasters(deadlineMs?: number): Promise<string[]> {
  const { askDaemon } = await import("./cli/daemon-client.js");
  const answer = await askDaemon<Masters>(await address(), "GET", "/api/v1/masters", undefined, deadlineMs);
  if (answer !== undefined) return answer.masters.map(({ master }) => master);
  const { nodes } = await nodesOfFile({ limit: Number.POSITIVE_INFINITY });
  return [...new Set(nodes.map(({ master }) => master))].sort();
}

async function nodesOfFile(wanted: { q?: string; cursor?: string; limit: number }): Promise<Nodes> {
  const standalone = await import("./cli/standalone.js");
  return standalone.nodesOfFile((await configure()).mapFile, wanted);
}

function parsePlanId(text: string): string {
  if (PLAN_ID.test(text)) return text;
  throw new InvalidArgumentError("A plan id has 12 hexadecimal digits. `sasori status` shows it.");
}

function parseCount(text: string): number {
  if (/^[1-9]\d{0,8}$/.test(text)) return Number(text);
  throw new InvalidArgumentError("Expected a whole number above 0.");
}

function parseClass(text: string): number {
  if (/^[+-]?\d{1,9}$/.test(text)) return Number(text);
  throw new InvalidArgumentError("Expected a whole number from -2047 (first) to 2047 (last).");
}

async function priorityMap(): Promise<PriorityMap> {
  const { priorityFile, haproxy } = await configure();
  const { PriorityMap } = await import("./target/priority.js");
  if (priorityFile !== undefined) return new PriorityMap(priorityFile, haproxy);
  throw new SasoriError(
    "USAGE",
    "SASORI_PRIORITY_FILE is not set: set it to the file that PRIORITY_MAP names in HAProxy",
  );
}

async function changePriority(
  key: string,
  value: number | undefined,
  json: boolean | undefined,
): Promise<void> {
  const change = await (await priorityMap()).change(key, value);
  print(change, json, () =>
    [
      `${key}  ${value ?? "(default)"}`,
      ...change.haproxy.map(
        ({ haproxy, failure }) =>
          `  ${haproxy}  ${failure ? `${style.bad("failed")}: ${failure.code}: ${withoutPlace(failure.message, haproxy)}` : "told"}`,
      ),
    ].join("\n"),
  );
  process.exitCode = change.haproxy.some(({ failure }) => failure) ? EXIT.failed : EXIT.done;
}

/** For the help of this one command: help is written at once, so they are there before. */
let variables: Variable[] = [];

withExamples(
  withJson(
    program
      .command("config")
      .description("show the effective configuration; secrets appear as file names only"),
  ),
  [
    ["sasori config", ""],
    ["sasori config --help", "all variables, with their defaults"],
  ],
)
  .addHelpText(
    "after",
    () =>
      `\nVariables:\n${variables
        .map(
          ({ name, meaning, ...variable }) =>
            `  ${name} (${variable.default})\n      ${meaning}\n      ${name}=${variable.example}`,
        )
        .join("\n")}\n`,
  )
  .action(async ({ json }: Output) => {
    const { showConfig } = await import("./config.js");
    const shown = showConfig(process.env);
    print(shown, json, (values) =>
      Object.entries(values)
        .map(([name, value]) => `${name}=${value}`)
        .join("\n"),
    );
  });

withExamples(withJson(program.command("version").description("print the version of sasori and of Node.js")), [
  ["sasori version", ""],
]).action(({ json }: Output) => {
  const about = { version: VERSION, node: process.version, platform: `${process.platform}-${process.arch}` };
  print(about, json, ({ version, node, platform }) => `sasori ${version} (Node.js ${node}, ${platform})`);
});

withExamples(
  program
    .command("completion")
    .description("print a script for shell completion: commands, options, masters and certnames")
    .addArgument(new Argument("<shell>").choices(SHELLS)),
  [
    ["source <(sasori completion bash)", "in this shell, or in ~/.bashrc"],
    ["sasori completion zsh > ~/.zfunc/_sasori", "in a folder of $fpath"],
    ["sasori completion fish > ~/.config/fish/completions/sasori.fish", ""],
  ],
).action((shell: Shell) => {
  process.stdout.write(completionScript(shell));
});

withExamples(
  program.command("man").description("print the man page sasori(1): commands, variables, exit codes"),
  [
    ["sasori man | man -l -", "read it"],
    ["sasori man > /usr/local/share/man/man1/sasori.1", "install it"],
  ],
).action(async () => {
  const { describeVariables } = await import("./config.js");
  const about = {
    version: VERSION,
    examples: examplesOf,
    variables: describeVariables(),
    exitCodes: EXIT_CODES,
  };
  process.stdout.write(manPage(program, about));
});

/** Names for the completion: the daemon knows them, or the map file does. */
async function lookUpNames(what: Looked, prefix: string): Promise<string[]> {
  if (what === "master") return knownMasters(COMPLETION_MS);
  const asked = { q: prefix, limit: 200 };
  const { nodes } = (await nodesOfDaemon(asked, COMPLETION_MS)) ?? (await nodesOfFile(asked));
  return nodes.map(({ certname }) => certname);
}

function print<T>(value: T, json: boolean | undefined, render: (value: T) => string): void {
  process.stdout.write(`${json ? JSON.stringify(value, null, 2) : render(value)}\n`);
}

// `sasori sync --json | head`: whoever reads has seen enough.
for (const stream of [process.stdout, process.stderr]) {
  stream.on("error", (error) => {
    if (systemCode(error) === "EPIPE") process.exit();
    process.stderr.write(`sasori: cannot write the output: ${reason(error)}\n`);
    process.exit(EXIT.failed);
  });
}

void main();

async function main(): Promise<void> {
  const [asked, ...words] = process.argv.slice(2);
  try {
    // Not a command for people: the scripts of `sasori completion` ask what may stand where the cursor is.
    if (asked === "complete-words") return await offerWords(words);
    if (process.argv.includes("config")) variables = (await import("./config.js")).describeVariables();
    await program.parseAsync();
  } catch (error) {
    if (error instanceof CommanderError) {
      process.exitCode = error.exitCode === 0 ? EXIT.done : EXIT.usage; // Commander has said why.
      return;
    }
    const { code, message } = toFailure(error);
    process.stderr.write(`sasori: ${code}: ${message}\n`);
    if (code === "INTERNAL" && !(error instanceof SasoriError))
      process.stderr.write(`${(error as Error).stack}\n`);
    process.exitCode = code === "CONFIG_INVALID" || code === "USAGE" ? EXIT.usage : EXIT.failed;
  }
}

async function offerWords(words: readonly string[]): Promise<void> {
  const offers = await completeWords(program, words, (what, prefix) =>
    lookUpNames(what, prefix).catch(() => []),
  );
  process.stdout.write(offers.map((offer) => `${offer}\n`).join(""));
}
