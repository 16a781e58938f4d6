// Commands that show what there is. They change nothing.

import { type Command, Option } from "commander";
import { quote } from "../../errors.js";
import type { Lookup, Masters, Pass, Replicas, Status, Story } from "../../http/api-shapes.js";
import { type Certname, SOURCES } from "../../node-map.js";
import {
  address,
  ask,
  certnameArgument,
  configureAlone,
  knownMasters,
  maybeMaster,
  mustBeMaster,
  nodesOfFile,
  whole,
} from "../asking.js";
import {
  type Filter,
  formatOf,
  type ListOutput,
  type Output,
  parseCount,
  print,
  printList,
  style,
  withExamples,
  withJson,
  withListOutput,
} from "../command.js";
import { EXIT } from "../exit-codes.js";
import {
  isAllWell,
  MOVE_COLUMNS,
  masterColumns,
  masterRows,
  masterTroubles,
  moveRow,
  PASS_COLUMNS,
  passRow,
  renderReplicas,
} from "../list-text.js";
import { renderLookup, renderStatus, styleFor } from "../report-text.js";

export function addStatus(program: Command): void {
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
}

export function addLookup(program: Command): void {
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
    const { askDaemon } = await import("../daemon-client.js");
    const found =
      (await askDaemon<Story>(await address(), "GET", `/api/v1/nodes/${certname}`)) ??
      (await lookUpHere(certname));
    print(found, json, (value) => renderLookup(value, style));
    const { desired, file, live } = found;
    const failed = [desired, ...live].some(({ failure }) => failure !== undefined) || "failure" in file;
    const isKnown = [desired, file, ...live].some((place) => "master" in place && place.master !== null);
    process.exitCode = failed || !isKnown ? EXIT.failed : EXIT.done;
  });
}

async function lookUpHere(certname: Certname): Promise<Lookup> {
  const standalone = await import("../standalone.js");
  return standalone.lookUpHere(await configureAlone(), certname);
}

export function addNodes(program: Command): void {
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
      const { listNodes } = await import("../listing.js");
      const at = all ? Number.POSITIVE_INFINITY : limit;
      const named = master === undefined ? undefined : await mustBeMaster(master, knownMasters);
      const wanted = { q, source, master: named, limit: at };
      const look = { format: formatOf(options), headers: options.headers, style };
      await listNodes(await address(), configureAlone, wanted, look);
    },
  );
}

export function addMasters(program: Command): void {
  withExamples(
    withListOutput(program.command("masters").description("list the masters: their nodes, state and load"), {
      isWide: true,
    }),
    [
      ["sasori masters", "the sums of all HAProxy instances"],
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
}

export function addMoves(program: Command): void {
  withExamples(
    withListOutput(
      program
        .command("moves")
        .description("list the nodes that changed their master, the newest last")
        .addArgument(certnameArgument("[certname]", "only this node"))
        .option(
          "--follow",
          "then show each move as it happens, until Ctrl-C; survives a restart of the daemon",
        )
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
      const { followMoves, recentMoves } = await import("../listing.js");
      const look = { format: formatOf(options), headers: options.headers, style };
      if (follow) await followMoves(await address(), wanted, look);
      const found = await recentMoves(await address(), wanted);
      const moves = [...found.moves].reverse();
      printList(options, {
        json: found,
        columns: MOVE_COLUMNS,
        rows: moves.map((move) => moveRow(move, style)),
        names: moves.map(({ certname }) => certname),
        none: master === undefined ? "no moves" : `no moves from or to ${quote(wanted.master ?? master)}`,
      });
    },
  );
}

export function addPasses(program: Command): void {
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
}
