// Commands about the command line itself: version, completion, man page.

import { Argument, type Command } from "commander";
import { VERSION } from "../../version.js";
import { knownMasters, nodesOfDaemon, nodesOfFile } from "../asking.js";
import { examplesOf, type Output, print, withExamples, withJson } from "../command.js";
import { EXIT_CODES } from "../exit-codes.js";
import { completeWords, completionScript, type Looked, manPage, SHELLS, type Shell } from "../manual.js";

export function addVersion(program: Command): void {
  withExamples(
    withJson(program.command("version").description("print the version of sasori and of Node.js")),
    [["sasori version", ""]],
  ).action(({ json }: Output) => {
    const about = {
      version: VERSION,
      node: process.version,
      platform: `${process.platform}-${process.arch}`,
    };
    print(about, json, ({ version, node, platform }) => `sasori ${version} (Node.js ${node}, ${platform})`);
  });
}

export function addCompletion(program: Command): void {
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
}

export function addMan(program: Command): void {
  withExamples(
    program.command("man").description("print the man page sasori(1): commands, variables, exit codes"),
    [
      ["sasori man | man -l -", "read it"],
      ["sasori man > /usr/local/share/man/man1/sasori.1", "install it"],
    ],
  ).action(async () => {
    const { describeVariables } = await import("../../config.js");
    const about = {
      version: VERSION,
      examples: examplesOf,
      variables: describeVariables(),
      exitCodes: EXIT_CODES,
    };
    process.stdout.write(manPage(program, about));
  });
}

/** Deadline for a completion. */
const COMPLETION_MS = 1_000;

/** Names for the completion, from the daemon or from the map file. */
async function lookUpNames(what: Looked, prefix: string): Promise<string[]> {
  if (what === "master") return knownMasters(COMPLETION_MS);
  const asked = { q: prefix, limit: 200 };
  const { nodes } = (await nodesOfDaemon(asked, COMPLETION_MS)) ?? (await nodesOfFile(asked));
  return nodes.map(({ certname }) => certname);
}

/** Not a command for people. The scripts of `sasori completion` ask it which words may follow. */
export async function offerWords(program: Command, words: readonly string[]): Promise<void> {
  const offers = await completeWords(program, words, (what, prefix) =>
    lookUpNames(what, prefix).catch(() => []),
  );
  process.stdout.write(offers.map((offer) => `${offer}\n`).join(""));
}
