// Commands that run a pass, or show what one would do.

import { type Command, InvalidArgumentError, Option } from "commander";
import { PLAN_ID } from "../../guard.js";
import type { SyncRequest } from "../../pass-queue.js";
import { address, configureAlone } from "../asking.js";
import { type Output, print, style, withExamples, withJson } from "../command.js";
import { EXIT } from "../exit-codes.js";
import { renderDiff, renderReport } from "../report-text.js";
import { Table } from "../table.js";

export function addSync(program: Command): void {
  withExamples(
    withJson(
      program
        .command("sync")
        .description("run one pass now: in the daemon, or in this command if no daemon is running")
        .option("--full", "read everything, and compare it with the file and every live map")
        .option("--dry-run", "show the plan, change nothing")
        .addOption(
          new Option("--approve <plan-id>", "apply the held changes of this plan")
            .argParser(parsePlanId)
            .conflicts("dryRun"),
        ),
      "print the SyncReport as JSON",
    ),
    [
      ["sasori sync", "look for changes since the last pass, and apply them"],
      ["sasori sync --full --dry-run", "what would a full pass do?"],
      ["sasori sync --approve 3f2a9c01d4e5", "approve the plan that the guard holds"],
    ],
  ).action(async ({ json, full, dryRun, approve }: Output & SyncRequest) => {
    const { runPass } = await import("../standalone.js");
    const wanted = { ...(full && { full }), ...(dryRun && { dryRun }), ...(approve && { approve }) };
    const report = await runPass(await address(), configureAlone, wanted);
    print(report, json, (value) => renderReport(value, style));
    process.exitCode = report.approvalUnmatched ? EXIT.failed : EXIT[report.outcome];
  });
}

function parsePlanId(text: string): string {
  if (PLAN_ID.test(text)) return text;
  throw new InvalidArgumentError("A plan id has 12 hexadecimal digits. `sasori status` shows it.");
}

export function addDiff(program: Command): void {
  withExamples(
    withJson(
      program
        .command("diff")
        .description("show what a full pass would change in the map file and in every live map")
        .option("--exit-code", "exit with 1 if anything differs, as git diff does")
        .addOption(
          new Option("--held", "show every change of the plan that the guard holds").conflicts("exitCode"),
        ),
      "print the SyncReport, or the held plan, as JSON",
    ),
    [
      ["sasori diff", "the first changes of each target"],
      ["sasori diff --held", "read a held plan before you approve it"],
      ["sasori diff --exit-code > /dev/null", "for scripts: 0 only if everything is in sync"],
      ["sasori diff --json | jq .targets", "for a program"],
    ],
  ).action(async ({ json, exitCode, held }: Output & { exitCode?: true; held?: true }) => {
    if (held) return showHeldPlan(json);
    const { runPass } = await import("../standalone.js");
    const report = await runPass(await address(), configureAlone, { full: true, dryRun: true });
    print(report, json, (value) => renderDiff(value, style));
    const differs = report.targets.some(({ outcome }) => outcome !== "unchanged");
    process.exitCode = exitCode && differs && report.outcome === "done" ? EXIT.failed : EXIT[report.outcome];
  });
}

async function showHeldPlan(json: boolean | undefined): Promise<void> {
  const { heldPlanHead, readHeldPlan } = await import("../held-plan.js");
  const plan = await readHeldPlan(await address());
  const table = new Table(["NODE", "FROM", "TO"], { style, headers: true });
  print(plan ?? null, json, (value) => {
    if (value === null) return "nothing is held";
    const rows = value.changes.map(({ certname, from, to }) => [certname, from ?? "", to ?? "(removed)"]);
    return [...heldPlanHead(value), ...table.lines(rows)].join("\n");
  });
  process.exitCode = plan === undefined ? EXIT.done : EXIT.held;
}
