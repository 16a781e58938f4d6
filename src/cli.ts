#!/usr/bin/env node
// The command line. It asks the running daemon, or does the work itself if none runs. It prints a SyncReport, a Lookup or
// a Status: for people, or with --json for machines. Exit codes are in src/cli/exit-codes.ts.
//
// Only what every command needs is loaded at once; each command loads the rest by import(). undici, zod and fastify take
// longer to load than most commands take, and people wait for those (`npm run bench -- start` measures it).

import { getDefaultAutoSelectFamilyAttemptTimeout, setDefaultAutoSelectFamilyAttemptTimeout } from "node:net";
import { Command, CommanderError } from "commander";
import { withExamples } from "./cli/command.js";
import { addCompletion, addMan, addVersion, offerWords } from "./cli/commands/about.js";
import { addDrain, addRebalance, addRegister } from "./cli/commands/move.js";
import { addPriority } from "./cli/commands/priority.js";
import { addLookup, addMasters, addMoves, addNodes, addPasses, addStatus } from "./cli/commands/see.js";
import {
  addConfig,
  addDoctor,
  addHealthy,
  addServe,
  addSetup,
  readVariables,
} from "./cli/commands/set-up.js";
import { addDiff, addSync } from "./cli/commands/sync.js";
import { EXIT, EXIT_CODES } from "./cli/exit-codes.js";
import { reason, SasoriError, systemCode, toFailure } from "./errors.js";
import { VERSION } from "./version.js";

// If a host has several addresses, Node tries each for 250 ms. That is too short for one that is far away, if another one
// (mostly IPv6) leads nowhere. This is long enough for the first packet to be sent twice.
const ADDRESS_MS = 1_500;
setDefaultAutoSelectFamilyAttemptTimeout(Math.max(ADDRESS_MS, getDefaultAutoSelectFamilyAttemptTimeout()));

const program = new Command("sasori")
  .description("Keeps HAProxy's node-to-puppetserver map in sync with PuppetDB.")
  .version(VERSION)
  .configureHelp({ minWidthToWrap: 20 }) // Narrower text is not wrapped. The list of commands leaves less than 40 columns.
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

for (const [group, adders] of [
  ["Set up and run:", [addSetup, addDoctor, addConfig, addServe, addHealthy]],
  ["See what there is:", [addStatus, addLookup, addNodes, addMasters, addMoves, addPasses]],
  ["Sync:", [addSync, addDiff]],
  ["Change routes and priorities:", [addRegister, addDrain, addRebalance, addPriority]],
  ["About sasori:", [addVersion, addCompletion, addMan]],
] as const) {
  program.commandsGroup(group);
  for (const add of adders) add(program);
}
program.helpCommand("help [command]", "show the help of a command");

program.hook("preAction", (_, command) => {
  const { output, json } = command.opts<{ output?: string; json?: boolean }>();
  if (output === "json") command.setOptionValue("json", true);
  else if (json && output !== undefined) command.error(`error: --json and -o ${output} exclude each other`);
});

// `sasori sync --json | head`: a reader that closes the pipe has read enough, so this is not an error.
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
    if (asked === "complete-words") return await offerWords(program, words);
    if (process.argv.includes("config")) await readVariables();
    await program.parseAsync();
  } catch (error) {
    if (error instanceof CommanderError) {
      process.exitCode = error.exitCode === 0 ? EXIT.done : EXIT.usage; // Commander has said why.
      return;
    }
    const { code, message } = toFailure(error);
    process.stderr.write(`sasori: ${code}: ${message}\n`);
    if (code === "INTERNAL" && !(error instanceof SasoriError))
      process.stderr.write(
        `${(error as Error).stack}\nIf the daemon was not restarted after an upgrade, restart it. Otherwise this is a bug in sasori.\n`,
      );
    process.exitCode = code === "CONFIG_INVALID" || code === "USAGE" ? EXIT.usage : EXIT.failed;
  }
}
