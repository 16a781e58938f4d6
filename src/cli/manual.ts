// The man page and the shell completion, made of the same definitions of commands as `--help`.

import type { Command } from "commander";
import type { Variable } from "../config.js";

/** A command line, and what it is for. */
export type Example = readonly [line: string, purpose: string];

/** Examples of a command, as its `--help` shows them. */
export function exampleText(examples: readonly Example[]): string {
  const wide = Math.max(...examples.map(([line]) => line.length));
  const lines = examples.map(([line, purpose]) => `  ${line.padEnd(wide)}   ${purpose}`.trimEnd());
  return `\nExamples:\n${lines.join("\n")}`;
}

export interface Manual {
  version: string;
  examples: ReadonlyMap<Command, readonly Example[]>;
  variables: readonly Variable[];
  exitCodes: readonly Example[];
}

const visible = (command: Command): Command[] => command.commands.filter((sub) => sub.name() !== "help");

const usageOf = (command: Command): string => {
  const names: string[] = [];
  for (let at: Command | null = command; at !== null; at = at.parent) names.unshift(at.name());
  return `${names.join(" ")} ${command.usage()}`.trim();
};

/** The man page sasori(1), in roff. */
export function manPage(program: Command, { version, examples, variables, exitCodes }: Manual): string {
  const lines = [
    `.TH SASORI 1 "" ${quoted(`sasori ${version}`)} "User Commands"`,
    ".SH NAME",
    `sasori \\- ${roff(program.description().replace(/^Keeps (.*)\.$/, "keeps $1"))}`,
    ".SH SYNOPSIS",
    ".B sasori",
    ".I command",
    "[options]",
    ".SH DESCRIPTION",
    "sasori asks PuppetDB which puppetserver each node last used. It writes the differences into the map file and into",
    "every running HAProxy, within seconds and without a reload. If PuppetDB is down or empty, the old map stays.",
    "Most commands ask the running daemon. Without one they do the work themselves, or say that they need it.",
    ".SH COMMANDS",
    ...visible(program).flatMap((command) => commandLines(command, examples)),
    ".SH ENVIRONMENT",
    "sasori checks all variables at start, and reports all problems at once. It refuses a name that looks like a misspelling of one of them, and ignores other names that begin with SASORI_.",
    "NO_COLOR turns colours off.",
    ...variables.flatMap(({ name, meaning, example, ...variable }) => [
      ".TP",
      `.B ${roff(name)}`,
      `${roff(meaning)}. Default: ${roff(variable.default)}. Example: ${roff(example)}`,
    ]),
    ".SH EXIT STATUS",
    ...exitCodes.flatMap(([code, meaning]) => [".TP", `.B ${code}`, roff(meaning)]),
    ".SH EXAMPLES",
    ...exampleLines(examples.get(program) ?? []),
    ".SH SEE ALSO",
    ".BR haproxy (1)",
  ];
  return `${lines.join("\n")}\n`;
}

function commandLines(command: Command, examples: Manual["examples"]): string[] {
  const subs = visible(command);
  if (subs.length > 0) {
    const about = [`.SS ${quoted(usageOf(command))}`, roff(sentence(command.description()))];
    return [
      ...about,
      ...exampleLines(examples.get(command) ?? []),
      ...subs.flatMap((sub) => commandLines(sub, examples)),
    ];
  }
  return [
    `.SS ${quoted(usageOf(command))}`,
    roff(sentence(command.description())),
    ...command.options
      .filter(({ hidden }) => !hidden)
      .flatMap((option) => [
        ".TP",
        `.B ${roff(option.flags)}`,
        roff(command.createHelp().optionDescription(option)), // With its choices and its default.
      ]),
    ...exampleLines(examples.get(command) ?? []),
  ];
}

function exampleLines(examples: readonly Example[]): string[] {
  if (examples.length === 0) return [];
  const lines = examples.flatMap(([line, purpose]) => [
    ...(purpose === "" ? [] : [roff(`# ${purpose}`)]),
    roff(line),
  ]);
  return [".PP", ".nf", ".RS", ...lines, ".RE", ".fi"];
}

const sentence = (text: string): string =>
  `${text.charAt(0).toUpperCase()}${text.slice(1)}${text.endsWith(".") ? "" : "."}`;

/** A line that begins with "." or "'" would be a request; "-" is a hyphen, "\-" the sign that one types. */
function roff(text: string): string {
  const escaped = text
    .replaceAll("\\", "\\e")
    .replaceAll("-", "\\-")
    .replaceAll("'", "\\(aq")
    .replaceAll("`", "\\(ga");
  return /^[.']/.test(escaped) ? `\\&${escaped}` : escaped;
}

const quoted = (text: string): string => `"${roff(text).replaceAll('"', "\\(dq")}"`;

// The shells ask sasori itself what may stand where the cursor is, so what they offer is never out of date.
const SCRIPTS = {
  bash: `# bash completion of sasori:  source <(sasori completion bash)
_sasori() {
  local IFS=$'\\n'
  COMPREPLY=($(sasori complete-words "\${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null | cut -f 1))
}
complete -F _sasori sasori
`,
  zsh: `#compdef sasori
# zsh completion of sasori:  source <(sasori completion zsh)
_sasori() {
  local -a offers
  offers=("\${(@f)$(sasori complete-words "\${(@)words[2,CURRENT]}" 2>/dev/null | sed 's/:/\\\\:/g; s/\\t/:/')}")
  _describe sasori offers
}
if [ "\${funcstack[1]}" = _sasori ]; then _sasori "$@"; else compdef _sasori sasori; fi
`,
  fish: `# fish completion of sasori:  sasori completion fish | source
complete -c sasori -f -a '(sasori complete-words (commandline -opc)[2..-1] "$(commandline -ct)" 2>/dev/null)'
`,
} as const;

export type Shell = keyof typeof SCRIPTS;
export const SHELLS = Object.keys(SCRIPTS) as Shell[];
export const completionScript = (shell: Shell): string => SCRIPTS[shell];

/** What kind of name is completed by a lookup: that of a master, or a certname. */
export type Looked = "master" | "certname";

/**
 * What can replace the last word: commands, options, values. Each line has the word, a tab, and a description.
 * `lookUp` knows names that begin with what was typed.
 */
export async function completeWords(
  program: Command,
  words: readonly string[],
  lookUp: (what: Looked, prefix: string) => Promise<readonly string[]>,
): Promise<string[]> {
  const prefix = words.at(-1) ?? "";
  let command = program;
  let position = 0;
  let expecting: Command["options"][number] | undefined;
  for (const word of words.slice(0, -1)) {
    const sub = command.commands.find((one) => one.name() === word);
    if (expecting !== undefined) expecting = undefined;
    else if (word.startsWith("-"))
      expecting = command.options.find(
        (option) => (option.long === word || option.short === word) && takesValue(option),
      );
    else if (sub !== undefined) command = sub;
    else position += 1;
  }
  const starting = (offers: readonly string[]) => offers.filter((offer) => offer.startsWith(prefix));
  const named = async (name: string, choices: readonly string[] | undefined) => {
    if (choices !== undefined) return starting(choices);
    const what = (["master", "certname"] as const).find((one) => one === name);
    return what === undefined ? [] : starting(await lookUp(what, prefix));
  };
  if (expecting !== undefined)
    return named(expecting.long === "--master" ? "master" : "", expecting.argChoices);
  if (prefix.startsWith("-")) {
    const options = command.options.filter(({ hidden }) => !hidden);
    return starting(options.map(({ long, short, description }) => `${long ?? short}\t${description}`));
  }
  if (command.commands.length > 0) {
    return starting(visible(command).map((sub) => `${sub.name()}\t${sub.description()}`));
  }
  const argument = command.registeredArguments[position];
  return argument === undefined ? [] : named(argument.name(), argument.argChoices);
}

const takesValue = ({ required, optional }: Command["options"][number]): boolean => required || optional;
