#!/usr/bin/env node
// The command line. It asks the running daemon where there is one and does the work itself elsewhere, and it
// prints what a SyncReport, a Lookup or a Status says: for people, or with --json for machines.
// Exit codes: 0 done, 1 failed, 2 bad configuration or usage, 3 held by the guard.
//
// Only what every command needs is loaded at once; each command loads the rest by import(). undici, zod and fastify take
// longer to load than most commands take, and people wait for those (`npm run bench -- start` measures it).

import { getDefaultAutoSelectFamilyAttemptTimeout, setDefaultAutoSelectFamilyAttemptTimeout } from "node:net";
import { Argument, Command, CommanderError, InvalidArgumentError, Option } from "commander";
import type { Address, Method } from "./cli/daemon-client.js";
import { EXIT, EXIT_CODES } from "./cli/exit-codes.js";
import {
  isAllWell,
  renderDiagnosis,
  renderFinding,
  renderMasters,
  renderMove,
  renderPass,
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
import {
  lacksInWords,
  renderDiff,
  renderDisplaced,
  renderLookup,
  renderNodeMoves,
  renderReport,
  renderStatus,
  styleFor,
} from "./cli/report-text.js";
import type { Config, Variable } from "./config.js";
import type { Check, Finding } from "./doctor/check.js";
import { reason, SasoriError, systemCode, toFailure } from "./errors.js";
import { PLAN_ID } from "./guard.js";
import type {
  Displaced,
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

interface Filter {
  master?: string;
  source?: string;
}

const examplesOf = new Map<Command, readonly Example[]>();

const program = new Command("sasori")
  .description("Keeps HAProxy's node-to-Puppet-master map true.")
  .version(VERSION)
  .configureHelp({ minWidthToWrap: 20 }) // Below that it prints long lines, and the list of commands leaves less than 40.
  .showHelpAfterError("(sasori --help shows the commands)")
  .exitOverride();
withExamples(program, [
  ["sasori doctor", "is everything here that sasori needs?"],
  ["sasori serve", "run the daemon"],
  ["sasori status", "is everything in sync, and if not, why?"],
  ["sasori diff", "what would a full pass change?"],
  ["sasori sync", "what changed in PuppetDB goes to the file and to HAProxy now"],
  ["sasori lookup node7.example.com", "where does this node go, and why?"],
  ["sasori moves --follow", "which nodes change their master? (until Ctrl-C)"],
]);
program.addHelpText(
  "after",
  `
A running daemon is asked where there is one; otherwise a command does the work itself, or says what is missing.
Configuration is read from environment variables: sasori config --help
Exit codes: ${EXIT_CODES.map((code) => code.join(" ")).join(", ")}`,
);

/** A command with the examples of its help and of the man page. */
function withExamples(command: Command, examples: readonly Example[]): Command {
  examplesOf.set(command, examples);
  return command.addHelpText("after", exampleText(examples));
}

withExamples(program.command("serve").description("run the daemon: schedules, HTTP API, metrics"), [
  ["sasori serve", ""],
  ["SASORI_LOG_LEVEL=debug sasori serve", ""],
]).action(async () => {
  const { serve } = await import("./daemon.js");
  await serve(await configure());
});

withExamples(
  program
    .command("doctor")
    .description("check everything that sasori needs, and say what to do: it changes nothing")
    .option("--json", "print as JSON"),
  [
    ["sasori doctor", "before the first start, and whenever something is odd"],
    [
      "sasori doctor --json | jq '.findings[] | select(.outcome != \"ok\")'",
      "what is not well, for a program",
    ],
  ],
).action(async ({ json }: Output) => {
  const { diagnose } = await import("./doctor/doctor.js");
  const isLive = !json && process.stdout.isTTY;
  const diagnosis = await diagnose(process.env, VERSION, isLive ? showFinding : undefined);
  if (json) print(diagnosis, json, String);
  else {
    // In a pipe or a file they stand in their order, on a terminal in that in which they came.
    if (!isLive)
      for (const finding of diagnosis.findings) print(finding, json, (one) => renderFinding(one, style));
    print(diagnosis, json, (all) => renderDiagnosis(all, style));
  }
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
  process.stderr.write(style.dim(text.length > columns ? `${text.slice(0, columns - 1)}…` : text));
}

function clearProgress(): void {
  if (process.stderr.isTTY) process.stderr.write("\r\u001b[K");
}

withExamples(
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
    .option("--json", "print the SyncReport as JSON"),
  [
    ["sasori sync", "what changed since the last pass"],
    ["sasori sync --full --dry-run", "what would a full pass do?"],
    ["sasori sync --approve 3f2a9c01d4e5", "the held nodes may go"],
  ],
).action(async ({ json, ...wanted }: Output & SyncRequest) => {
  const { runPass } = await import("./cli/standalone.js");
  const report = await runPass(await address(), configure, wanted);
  print(report, json, (value) => renderReport(value, style));
  process.exitCode = report.approvalUnmatched ? EXIT.failed : EXIT[report.outcome];
});

withExamples(
  program
    .command("diff")
    .description("what a full pass would change in the file and in every live map")
    .option("--json", "print the SyncReport as JSON"),
  [
    ["sasori diff", ""],
    ["sasori diff --json | jq .targets", "for a program"],
  ],
).action(async ({ json }: Output) => {
  const { runPass } = await import("./cli/standalone.js");
  const report = await runPass(await address(), configure, { full: true, dryRun: true });
  print(report, json, (value) => renderDiff(value, style));
  process.exitCode = EXIT[report.outcome];
});

withExamples(
  program
    .command("lookup")
    .description("where a node goes, and why: desired, the file, and each live map")
    .argument("<certname>")
    .option("--json", "print as JSON"),
  [["sasori lookup node7.example.com", ""]],
).action(async (text: string, { json }: Output) => {
  const certname = certnameOf(text);
  const { askDaemon } = await import("./cli/daemon-client.js");
  const found =
    (await askDaemon<Story>(await address(), "GET", `/api/v1/nodes/${certname}`)) ??
    (await lookUpHere(certname));
  print(found, json, (value) => renderLookup(value, style));
  const failed =
    [found.desired, ...found.live].some(({ failure }) => failure !== undefined) || "failure" in found.file;
  process.exitCode = failed ? EXIT.failed : EXIT.done;
});

withExamples(
  program
    .command("status")
    .description("is everything in sync, and if not, why")
    .option("--replicas", "each replica that shares SASORI_STATE_URL, and what it said last")
    .option("--json", "print as JSON"),
  [
    ["sasori status", ""],
    ["sasori status --replicas", "are they all well?"],
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
  program
    .command("healthy")
    .description("exit code 0 if the daemon serves a map: for health checks, wherever it listens"),
  [["sasori healthy", "what the image's HEALTHCHECK does"]],
).action(async () => {
  const { isReady } = await import("./cli/daemon-client.js");
  if (await isReady(await address())) return;
  process.stderr.write("sasori: no map is being served yet: `sasori status` says why\n");
  process.exitCode = EXIT.failed;
});

withExamples(
  program
    .command("nodes")
    .description("the nodes and their masters; without a daemon those of the map file")
    .argument("[text]", "only certnames with this in them")
    .option("--master <name>", "only nodes of this master")
    .addOption(
      new Option("--source <source>", "only nodes known from this source (asks the daemon)").choices(SOURCES),
    )
    .addOption(new Option("--limit <count>", "how many at most").argParser(parseCount).default(100))
    .addOption(new Option("--all", "all of them").conflicts("limit"))
    .option("--json", "print as JSON"),
  [
    ["sasori nodes --master master2", ""],
    ["sasori nodes db", 'certnames with "db" in them'],
    ["sasori nodes --source registration", "who was moved by hand?"],
    ["sasori nodes --all | wc -l", ""],
  ],
).action(
  async (
    q: string | undefined,
    { all, limit, ...options }: Output & { all?: true; limit: number } & Filter,
  ) => {
    const { listNodes } = await import("./cli/listing.js");
    const wanted = { q, ...options, limit: all ? Number.POSITIVE_INFINITY : limit };
    await listNodes(await address(), configure, wanted, style);
  },
);

withExamples(
  program
    .command("masters")
    .description("the masters, how many nodes each has, and how its servers in each HAProxy are")
    .option("--json", "print as JSON"),
  [["sasori masters", ""]],
).action(async ({ json }: Output) => {
  const masters = await ask<Masters>("GET", "/api/v1/masters");
  print(masters, json, (value) => renderMasters(value, style));
  process.exitCode = masters.failures.length > 0 ? EXIT.failed : EXIT.done;
});

withExamples(
  program
    .command("moves")
    .description("which nodes changed their master, the newest last")
    .argument("[certname]", "only this node")
    .option(
      "--follow",
      "go on with each move as it happens, until Ctrl-C; a restart of the daemon is survived",
    )
    .option("--master <name>", "only moves from or to this master")
    .addOption(
      new Option("--limit <count>", "how many at most, to begin with").argParser(parseCount).default(20),
    )
    .option("--json", "print as JSON; with --follow a line for each move"),
  [
    ["sasori moves", "the last 20"],
    ["sasori moves node7.example.com", "where has this node been?"],
    ["sasori moves --follow --master master1", ""],
  ],
).action(
  async (
    name: string | undefined,
    { json, follow, ...options }: Output & { follow?: true; limit: number } & Filter,
  ) => {
    const wanted = { ...options, certname: name === undefined ? undefined : certnameOf(name) };
    const { followMoves, recentMoves } = await import("./cli/listing.js");
    if (follow) await followMoves(await address(), wanted, { json, style });
    const found = await recentMoves(await address(), wanted);
    print(found, json, ({ moves }) =>
      moves.length === 0
        ? "no moves"
        : [...moves]
            .reverse()
            .map((move) => renderMove(move, style))
            .join("\n"),
    );
  },
);

withExamples(
  program
    .command("passes")
    .description("the last passes that did or met something, the newest last")
    .option("--json", "print as JSON"),
  [["sasori passes", ""]],
).action(async ({ json }: Output) => {
  const found = await ask<{ passes: Pass[] }>("GET", "/api/v1/passes");
  print(found, json, ({ passes }) =>
    passes.length === 0
      ? "no passes"
      : [...passes]
          .reverse()
          .map((pass) => renderPass(pass, style))
          .join("\n"),
  );
});

withExamples(
  program
    .command("register")
    .description("move nodes to a master now; PuppetDB's next, newer observation of one replaces this")
    .argument("[certname]")
    .argument("[master]")
    .option(
      "--file <file>",
      "many at once, all or none: a certname and a master on each line; - reads them from stdin",
    )
    .option("--reason <text>", "what for: lookup and moves show it, and who ran this")
    .option("--end", "end the node's registration or learned route: PuppetDB decides again")
    .option("--json", "print as JSON"),
  [
    ["sasori register node7.example.com master2", "it is there now"],
    ['sasori register node7.example.com master2 --reason "disk of master1"', ""],
    ["sasori register --file nodes.txt", "many, as one change"],
    ["sasori register node7.example.com --end", "PuppetDB decides again"],
  ],
).action(async (name: string | undefined, master: string | undefined, options: Output & Registering) => {
  const { end, file, reason, json } = options;
  const isOne = name !== undefined && file === undefined && (master === undefined) === (end === true);
  const isMany = name === undefined && file !== undefined && end === undefined;
  if (!isOne && !isMany)
    throw new SasoriError("USAGE", "name a node and its master, or a node and --end, or --file");
  const { lackInWords, readRegistrations, registeredInWords, whoAmI } = await import(
    "./cli/registrations.js"
  );
  const remarks = { ...(reason !== undefined && { reason }), by: whoAmI(process.env) };
  if (file !== undefined) {
    const nodes = await readRegistrations(file);
    const { query } = await import("./cli/listing.js");
    const found = await ask<Registrations>("PUT", `/api/v1/nodes?${query(remarks)}`, nodes);
    print(found, json, registeredInWords);
    return tellLacks(lackInWords(found), "they are in force");
  }
  const path = `/api/v1/nodes/${certnameOf(name ?? "")}`;
  const found = end
    ? await ask<Story>("DELETE", path)
    : await ask<Story>("PUT", path, { master, ...remarks });
  print(found, json, (value) => renderLookup(value, style));
  tellLacks(lacksInWords(found), "it is in force");
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
  program
    .command("rebalance")
    .summary("bring displaced nodes back to the master that they left while it was down or drained")
    .description(
      "bring displaced nodes back to the master that they left while it was down or drained: agents that reach it through the gateway follow with their next run",
    )
    .option("--dry-run", "list them only")
    .option("--master <name>", "only nodes that were at home there")
    .option("--per-minute <count>", "how many nodes to move each minute", "60")
    .option("--json", "print the nodes as JSON"),
  [
    ["sasori rebalance --dry-run", "who is away from home?"],
    ["sasori rebalance --master master1 --per-minute 30", "bring them back, slowly"],
  ],
).action(async (options: Output & { dryRun?: boolean; master?: string; perMinute: string }) => {
  const perMinute = paceOf(options.perMinute);
  const all = await ask<Displaced[]>("GET", "/api/v1/displaced");
  const nodes = all.filter(({ home }) => options.master === undefined || home === options.master);
  if (options.dryRun || options.json) print(nodes, options.json, renderDisplaced);
  if (options.dryRun) return;
  const { bringHome } = await import("./cli/rebalance.js");
  const isDone = await bringHome(await address(), nodes, perMinute, tellTo(options));
  process.exitCode = isDone ? EXIT.done : EXIT.failed;
});

withExamples(
  program
    .command("drain")
    .summary("move all nodes of a master to the others, before its maintenance")
    .description(
      "move all nodes of a master to the others that are up, evenly: agents that reach it through the gateway follow with their next run. Drain it in HAProxy first, so that it gets no new ones and `sasori rebalance` brings these home afterwards",
    )
    .argument("<master>")
    .option("--dry-run", "list the moves only")
    .option("--per-minute <count>", "how many nodes to move each minute", "60")
    .option("--json", "print the moves as JSON"),
  [
    ["sasori drain master1 --dry-run", "which nodes would go where?"],
    ["sasori drain master1 --per-minute 30", "slowly"],
    ["sasori rebalance --master master1", "when it is back"],
  ],
).action(async (master: string, options: Output & { dryRun?: boolean; perMinute: string }) => {
  const perMinute = paceOf(options.perMinute);
  const { drain, planDrain } = await import("./cli/rebalance.js");
  if (options.dryRun) {
    print(await planDrain(await address(), master), options.json, renderNodeMoves);
    return;
  }
  const { moves, isDone } = await drain(await address(), master, perMinute, tellTo(options));
  if (options.json) print(moves, true, renderNodeMoves);
  process.exitCode = isDone ? EXIT.done : EXIT.failed;
});

/** Each step as it happens; beside JSON it is a remark. */
const tellTo =
  ({ json }: Output) =>
  (line: string) =>
    (json ? process.stderr : process.stdout).write(`${line}\n`);

function paceOf(text: string): number {
  const perMinute = Number(text);
  if (perMinute > 0) return perMinute;
  throw new SasoriError("USAGE", `--per-minute ${text}: expected a number above 0`);
}

const priority = withExamples(
  program
    .command("priority")
    .description("who is served first when a master's queue fills: a node, or a client by its address"),
  [
    ["sasori priority set db1.example.com -100", "before all others"],
    ["sasori priority list", ""],
    ["sasori priority unset db1.example.com", ""],
  ],
);

priority
  .command("list")
  .description("all classes, first served first")
  .option("--json", "print as JSON")
  .action(async ({ json }: Output) => {
    const entries = [...(await (await priorityMap()).list())].sort((a, b) => a[1] - b[1]);
    print(Object.fromEntries(entries), json, () =>
      entries.map(([key, value]) => `${key}  ${value}`).join("\n"),
    );
  });

priority
  .command("set")
  .description("give a node or client address a class from -2047 (first) to 2047 (last); others have 0")
  .argument("<node-or-address>")
  .addArgument(new Argument("<class>").argParser(parseClass))
  .option("--json", "print as JSON")
  .action((key: string, value: number, { json }: Output) => changePriority(key, value, json));

priority
  .command("unset")
  .description("take a node or client address out")
  .argument("<node-or-address>")
  .option("--json", "print as JSON")
  .action((key: string, { json }: Output) => changePriority(key, undefined, json));

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

function parsePlanId(text: string): string {
  if (PLAN_ID.test(text)) return text;
  throw new InvalidArgumentError("A plan id is 12 hexadecimal digits, as `sasori status` shows it.");
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
  throw new SasoriError("USAGE", "set SASORI_PRIORITY_FILE to the map that HAProxy has as PRIORITY_MAP");
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

program
  .command("config")
  .description("the effective configuration; secrets are named by their file only")
  .option("--json", "print as JSON")
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

withExamples(
  program
    .command("completion")
    .description("a script that lets the shell complete commands, options, masters and certnames")
    .addArgument(new Argument("<shell>").choices(SHELLS)),
  [
    ["source <(sasori completion bash)", "now; or in ~/.bashrc"],
    ["sasori completion zsh > ~/.zfunc/_sasori", "a folder of $fpath"],
    ["sasori completion fish > ~/.config/fish/completions/sasori.fish", ""],
  ],
).action((shell: Shell) => {
  process.stdout.write(completionScript(shell));
});

withExamples(
  program
    .command("man")
    .description("the man page sasori(1), in roff: all commands, variables and exit codes"),
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
  const { askDaemon } = await import("./cli/daemon-client.js");
  const ofDaemon = async <T>(path: string) =>
    askDaemon<T>(await address(), "GET", path, undefined, COMPLETION_MS);
  const ofFile = async (wanted: { q?: string; limit: number }) => {
    const { nodesOfFile } = await import("./cli/standalone.js");
    return nodesOfFile((await configure()).mapFile, wanted);
  };
  if (what === "master") {
    const answer = await ofDaemon<Masters>("/api/v1/masters");
    if (answer !== undefined) return answer.masters.map(({ master }) => master);
    const { nodes } = await ofFile({ limit: Number.POSITIVE_INFINITY });
    return [...new Set(nodes.map(({ master }) => master))];
  }
  const asked = { q: prefix, limit: 200 };
  const { query } = await import("./cli/listing.js");
  const { nodes } = (await ofDaemon<Nodes>(`/api/v1/nodes?${query(asked)}`)) ?? (await ofFile(asked));
  return nodes.map(({ certname }) => certname);
}

function print<T>(value: T, json: boolean | undefined, render: (value: T) => string): void {
  process.stdout.write(`${json ? JSON.stringify(value, null, 2) : render(value)}\n`);
}

// `sasori sync --json | head`: whoever reads has seen enough.
for (const stream of [process.stdout, process.stderr]) {
  stream.on("error", (error) => {
    if (systemCode(error) === "EPIPE") process.exit();
    process.stderr.write(`sasori: cannot write its answer: ${reason(error)}\n`);
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
