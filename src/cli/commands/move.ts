// Commands that move nodes by hand.

import type { Command } from "commander";
import type { Registrations, Story } from "../../http/api-shapes.js";
import type { Certname } from "../../node-map.js";
import { address, ask, certnameArgument, maybeMaster, mustBeMaster, whole } from "../asking.js";
import {
  type Filter,
  type ListOutput,
  type Output,
  print,
  printList,
  style,
  withExamples,
  withJson,
  withListOutput,
} from "../command.js";
import { EXIT } from "../exit-codes.js";
import type { NodeMove } from "../rebalance.js";
import { lacksInWords, renderLookup } from "../report-text.js";

export function addRegister(program: Command): void {
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
      command.error("error: expected a certname and a master, a certname and --end, or --file");
    const { lackInWords, readRegistrations, registeredInWords, whoAmI } = await import("../registrations.js");
    const remarks = { ...(reason !== undefined && { reason }), by: whoAmI(process.env) };
    if (file !== undefined) {
      const nodes = await readRegistrations(file);
      const { query } = await import("../listing.js");
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
}

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

export function addDrain(program: Command): void {
  withExamples(
    withListOutput(
      program
        .command("drain")
        .summary("move all nodes of a master to the others, before its maintenance")
        .description(
          "Move all nodes of a master evenly to the others that are up. Agents that use the gateway follow with their next run. Drain the master in HAProxy first: then it gets no new nodes, and `sasori rebalance` can move its nodes back afterwards.",
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
      const { drain, planDrain } = await import("../rebalance.js");
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
}

export function addRebalance(program: Command): void {
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
      const { bringHome, displacedNodes } = await import("../rebalance.js");
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
      process.exitCode = EXIT.failed; // Set until it is done, because the reader of its output may go away first.
      const isDone = await bringHome(await address(), nodes, pace, tellTo(options));
      process.exitCode = isDone ? EXIT.done : EXIT.failed;
    },
  );
}

/** Each step as it happens. With JSON it goes to stderr. */
const tellTo =
  ({ json }: Output) =>
  (line: string) =>
    (json ? process.stderr : process.stdout).write(`${line}\n`);

function paceOf(text: string, command: Command): number {
  const perMinute = Number(text);
  if (perMinute > 0) return perMinute;
  return command.error(`error: --per-minute ${text}: expected a number above 0`);
}
