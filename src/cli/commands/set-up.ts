// Commands that set sasori up and run it.

import { type Command, Option } from "commander";
import type { Variable } from "../../config.js";
import type { Check, Finding } from "../../doctor/check.js";
import { SasoriError } from "../../errors.js";
import { VERSION } from "../../version.js";
import { address, configure } from "../asking.js";
import { type Output, print, progress, style, withExamples, withJson } from "../command.js";
import { EXIT } from "../exit-codes.js";
import { renderDiagnosis, renderFinding } from "../list-text.js";
import { styleFor } from "../report-text.js";

export function addSetup(program: Command): void {
  withExamples(
    program
      .command("setup")
      .summary("look at this host, propose the settings; if you agree, write them and start sasori")
      .description(
        "Look at this host and show the settings that fit it. If you answer yes, write them to /etc/sasori and start sasori. Setup reads Puppet's certificate, puppetdb.conf, HAProxy's configuration and the producers in PuppetDB. A SASORI_ variable that is set overrides what was found.",
      )
      .option("--yes", "write without asking")
      .addOption(new Option("--print", "print the files only").conflicts("yes")),
    [
      ["sasori setup", "after the installation of the package, as root"],
      ["sasori setup --print", "print the files only, for another tool to manage"],
      [
        "SASORI_PUPPETDB_URL=https://puppetdb2.example.com:8081 sasori setup",
        "another PuppetDB than the one found",
      ],
    ],
  ).action(async (options: { yes?: true; print?: true }) => {
    const { setUp } = await import("../setup.js");
    if (!options.print && process.geteuid?.() !== 0)
      throw new SasoriError("USAGE", "only root may write /etc/sasori: use sudo, or --print");
    process.exitCode = (await setUp(process.env, options, style)) ? EXIT.done : EXIT.failed;
  });
}

export function addDoctor(program: Command): void {
  withExamples(
    withJson(
      program
        .command("doctor")
        .description("check everything sasori needs, and say what to do; changes nothing"),
    ),
    [
      ["sasori doctor", "before the first start, and when something does not work"],
      [
        "sasori doctor --json | jq '.findings[] | select(.outcome != \"ok\")'",
        "only problems, for a program",
      ],
    ],
  ).action(async ({ json }: Output) => {
    const { diagnose } = await import("../../doctor/doctor.js");
    const diagnosis = await diagnose(process.env, VERSION, json ? undefined : showFinding);
    print(diagnosis, json, (all) => renderDiagnosis(all, style));
    const code = { ok: EXIT.done, warning: EXIT.done, failed: EXIT.failed, misconfigured: EXIT.usage }[
      diagnosis.outcome
    ];
    // A check that hangs, for example on a dead file server, must not keep us.
    process.stdout.write("", () => process.exit(code));
  });
}

function showFinding(finding: Finding, left: readonly Check[]): void {
  progress();
  process.stdout.write(`${renderFinding(finding, style)}\n`);
  const waiting = left.map(({ name, where }) => [name, where].filter((text) => text !== undefined).join(" "));
  if (waiting.length === 0) return;
  const text = `checking ${waiting.join(", ")}`;
  const columns = (process.stderr.columns || 80) - 2;
  const { dim } = styleFor(process.stderr, process.env);
  progress(dim(text.length > columns ? `${text.slice(0, columns - 1)}…` : text));
}

/** For the help of `sasori config`. Help is printed synchronously, so they are loaded before. */
let variables: Variable[] = [];

export async function readVariables(): Promise<void> {
  variables = (await import("../../config.js")).describeVariables();
}

export function addConfig(program: Command): void {
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
      const { showConfig } = await import("../../config.js");
      const shown = showConfig(process.env);
      print(shown, json, (values) =>
        Object.entries(values)
          .map(([name, value]) => `${name}=${value}`)
          .join("\n"),
      );
    });
}

export function addServe(program: Command): void {
  withExamples(program.command("serve").description("run the daemon: schedules, HTTP API, page, metrics"), [
    ["sasori serve", ""],
    ["SASORI_LOG_LEVEL=debug sasori serve", "with a line for every pass"],
  ]).action(async () => {
    const { serve } = await import("../../daemon.js");
    await serve(await configure());
  });
}

export function addHealthy(program: Command): void {
  withExamples(
    program.command("healthy").description("for health checks: exit code 0 if the daemon serves a map"),
    [["sasori healthy", "the HEALTHCHECK of the container image"]],
  ).action(async () => {
    const { isReady } = await import("../daemon-client.js");
    if (await isReady(await address())) return;
    process.stderr.write("sasori: the daemon does not serve a map yet; `sasori status` says why\n");
    process.exitCode = EXIT.failed;
  });
}
