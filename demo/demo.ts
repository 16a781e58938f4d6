// `npm run demo`: starts everything, tells what happens, and leaves nothing behind.
// In the usual mode it runs until Ctrl-C; with --once it plays a script of moves and exits with 0 or 1.

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Command, Option } from "commander";
import { reason } from "../src/errors.js";
import { atLeast, parsePort, parseUrl } from "./http.js";
import { Processes } from "./processes.js";
import { playScript, SCRIPTED_NODES } from "./script.js";
import { PORT_NAMES, portFlag, portVariable, STANDARD_PORTS, type StageOptions, setStage } from "./stage.js";
import { tellStory } from "./story.js";
import { Terminal } from "./terminal.js";

const PARENT_CHECK_MS = 1_000;
const DEATH_NOTICE_MS = 300;

interface DemoOptions extends StageOptions {
  once: boolean;
}

/** Returns the exit code. Whatever happens, all processes are ended and all files removed before it does. */
async function demo(options: DemoOptions): Promise<number> {
  const terminal = new Terminal();
  const ending = new AbortController();
  // npm passes Ctrl-C on although the terminal has sent it to us already: the second one changes nothing.
  for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"] as const) process.on(signal, () => ending.abort());
  // A SIGTERM to npm ends npm and its shell, but does not always come through to here.
  const parent = process.ppid;
  setInterval(() => process.ppid === parent || ending.abort(), PARENT_CHECK_MS).unref();
  process.stdout.on("error", () => ending.abort()); // Whoever read our output is gone.

  const folder = await mkdtemp(path.join(tmpdir(), "sasori-demo-"));
  const processes = new Processes(folder);
  const play = async () => {
    const stage = await setStage(options, folder, processes, terminal, ending.signal);
    if (options.once) return (await playScript(stage, terminal, ending.signal)) ? 0 : 1;
    await tellStory(stage, terminal, ending.signal);
    return 0;
  };
  const playing = play();
  try {
    return await Promise.race([playing, processes.death]);
  } catch (error) {
    if (ending.signal.aborted) return options.once ? 1 : 0;
    // What fails because a program has died is told as its death, which is noticed a moment later.
    const died = processes.death.catch((death: unknown) => death);
    const cause = await Promise.race([died, sleep(DEATH_NOTICE_MS, error)]);
    terminal.print("");
    console.error(`${terminal.style.bad("The demo failed:")} ${reason(cause)}`);
    return 1;
  } finally {
    ending.abort();
    terminal.waiting("ending all processes …");
    await processes.stop();
    await playing.catch(() => undefined); // It removes its own file at its end.
    await rm(folder, { recursive: true, force: true });
    terminal.waiting("");
  }
}

function readOptions(): DemoOptions {
  const command = new Command("npm run demo --")
    .description(
      "Start HAProxy, three simulated puppetservers, simulated nodes, a stand-in for PuppetDB, and sasori on this machine. Print a quick start and show what happens. Ctrl-C ends everything and leaves nothing behind.",
    )
    .option("--once", "play a script of moves, check each through the gateway, exit with 0 or 1")
    .addOption(
      new Option("--nodes <number>", `how many nodes, at least ${SCRIPTED_NODES}`)
        .env("DEMO_NODES")
        .argParser(atLeast(SCRIPTED_NODES, Number.isInteger))
        .default(200),
    )
    .addOption(
      new Option("--move-seconds <seconds>", "how often a node moves by itself, on average; 0: never")
        .env("DEMO_MOVE_SECONDS")
        .argParser(atLeast(0))
        .default(5),
    )
    .addOption(
      new Option("--check-in-seconds <seconds>", "how often each node checks in")
        .env("DEMO_CHECK_IN_SECONDS")
        .argParser(atLeast(1))
        .default(30),
    )
    .option(
      "--hints",
      "the masters send sasori their log lines, so that a move is routed at once (docs/hints.md)",
    )
    .addOption(
      new Option(
        "--puppetdb <url>",
        "use this PuppetDB instead of the stand-in. The demo writes its nodes into it, and they stay there. For https, SASORI_PUPPETDB_CERT, _KEY and _CA are used",
      ).argParser(parseUrl),
    )
    .addHelpText(
      "after",
      `
SASORI_ variables of your shell are ignored, so that the demo never writes into a PuppetDB by accident.

Examples:
  npm run demo                                       until Ctrl-C
  npm run demo -- --once                             play a script, check every move
  npm run demo -- --nodes 5000 --move-seconds 0.5    a larger fleet that moves more
  npm run demo -- --hints                            the masters tell of moves themselves
  npm run demo -- --puppetdb http://127.0.0.1:8080   with a test PuppetDB of yours`,
    );
  for (const name of PORT_NAMES) {
    command.addOption(
      new Option(`${portFlag(name)} <port>`, `${STANDARD_PORTS[name]}; with --once any free port`)
        .env(portVariable(name))
        .argParser(parsePort),
    );
  }
  const {
    once = false,
    hints = false,
    nodes,
    moveSeconds,
    checkInSeconds,
    puppetdb,
    ...rest
  } = command.parse().opts();
  const portOf = (name: (typeof PORT_NAMES)[number]) =>
    [name, rest[`${name}Port`] ?? (once ? undefined : STANDARD_PORTS[name])] as const;
  return {
    once,
    nodes,
    // Only what the script does happens in it.
    moveSeconds: once ? 0 : moveSeconds,
    checkInSeconds,
    puppetdbUrl: puppetdb,
    scheduleSeconds: once ? 2 : 5,
    hints,
    ports: Object.fromEntries(PORT_NAMES.map(portOf)) as StageOptions["ports"],
  };
}

process.exit(await demo(readOptions()));
