// What the commands of the command line have in common: their examples, their output, and how they end.

import { type Command, InvalidArgumentError, Option } from "commander";
import { type Example, exampleText } from "./manual.js";
import { styleFor } from "./report-text.js";
import { type Column, type Format, Table } from "./table.js";

export const style = styleFor(process.stdout, process.env);

export interface Output {
  json?: boolean;
}

export interface ListOutput extends Output {
  output?: Exclude<Format, "json">;
  headers: boolean;
}

export interface Filter {
  master?: string;
  source?: string;
}

export const examplesOf = new Map<Command, readonly Example[]>();

/** A command with the examples of its help and of the man page. */
export function withExamples(command: Command, examples: readonly Example[]): Command {
  examplesOf.set(command, examples);
  if (command.parent !== null) command.showHelpAfterError(`Run ${pathOf(command)} --help for examples.`);
  return command.addHelpText("after", exampleText(examples));
}

function pathOf(command: Command): string {
  return command.parent === null ? command.name() : `${pathOf(command.parent)} ${command.name()}`;
}

/** For a command that prints one thing: text or JSON. */
export function withJson(command: Command, description = "print JSON"): Command {
  return command
    .option("--json", description)
    .addOption(new Option("-o, --output <format>", "text or json").choices(["text", "json"]).hideHelp());
}

/** For a command that prints a list: a table with headers, names only, or JSON. */
export function withListOutput(
  command: Command,
  { isWide = false, description = "print JSON" } = {},
): Command {
  const formats = ["table", ...(isWide ? ["wide"] : []), "name", "json"];
  return command
    .addOption(new Option("-o, --output <format>", "how to print the list").choices(formats))
    .option("--no-headers", "print the table without its headers")
    .option("--json", `${description}, as -o json`);
}

export const formatOf = ({ json, output }: ListOutput): Format => (json ? "json" : (output ?? "table"));

/** `names` is the first word of each row, for `-o name`. An empty list is reported on stderr: `no moves`. */
export function printList(options: ListOutput, { json, columns, rows, names, none }: List): void {
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

export function print<T>(value: T, json: boolean | undefined, render: (value: T) => string): void {
  process.stdout.write(`${json ? JSON.stringify(value, null, 2) : render(value)}\n`);
}

/** A line on a terminal, in place of the one before it. Nothing is said where a line cannot be erased. */
export function progress(text = ""): void {
  if (process.stderr.isTTY && process.env.TERM !== "dumb") process.stderr.write(`\r\u001b[K${text}`);
}

export const note = (text: string) => process.stderr.write(`${text}\n`);

export function parseCount(text: string): number {
  if (/^[1-9]\d{0,8}$/.test(text)) return Number(text);
  throw new InvalidArgumentError("Expected a whole number above 0.");
}
