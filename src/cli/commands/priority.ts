// `sasori priority`: who is served first from a queue.

import { Argument, type Command, InvalidArgumentError } from "commander";
import { SasoriError } from "../../errors.js";
import { withoutPlace } from "../../http/troubles.js";
import type { PriorityMap } from "../../target/priority.js";
import { configure } from "../asking.js";
import {
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

export function addPriority(program: Command): void {
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
  addList(priority);
  addSet(priority);
  addUnset(priority);
}

function addList(priority: Command): void {
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
      none: "no classes: every node and client has class 0",
    });
  });
}

function addSet(priority: Command): void {
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
}

function addUnset(priority: Command): void {
  withExamples(
    withJson(
      priority
        .command("unset")
        .description("remove the class of a node or client address")
        .argument("<node-or-address>"),
    ),
    [["sasori priority unset db1.example.com", ""]],
  ).action((key: string, { json }: Output) => changePriority(key, undefined, json));
}

function parseClass(text: string): number {
  if (/^[+-]?\d{1,9}$/.test(text)) return Number(text);
  throw new InvalidArgumentError("Expected a whole number from -2047 (first) to 2047 (last).");
}

async function priorityMap(): Promise<PriorityMap> {
  const { priorityFile, haproxy } = await configure();
  const { PriorityMap } = await import("../../target/priority.js");
  if (priorityFile !== undefined) return new PriorityMap(priorityFile, haproxy);
  throw new SasoriError(
    "USAGE",
    "SASORI_PRIORITY_FILE is not set: set it to the file that PRIORITY_MAP names in HAProxy",
  );
}

async function changePriority(
  name: string,
  value: number | undefined,
  json: boolean | undefined,
): Promise<void> {
  const change = await (await priorityMap()).change(name, value);
  print(change, json, () =>
    [
      `${change.key}  ${value ?? "(default)"}`,
      ...change.haproxy.map(
        ({ haproxy, failure }) =>
          `  ${haproxy}  ${failure ? `${style.bad("failed")}: ${failure.code}: ${withoutPlace(failure.message, haproxy)}` : "updated"}`,
      ),
    ].join("\n"),
  );
  process.exitCode = change.haproxy.some(({ failure }) => failure) ? EXIT.failed : EXIT.done;
}
