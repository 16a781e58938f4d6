/**
 * What `npm test` prints: a line for each file as it ends, and at the end the slowest files, what was not run, and why. A
 * test that a machine may lack something for says so in its `meta.lacks`.
 */
import type { TestCase, TestModule } from "vitest/node";
import { DefaultReporter } from "vitest/node";
import { isQuick, missingParts } from "./parts.js";

declare module "vitest" {
  interface TaskMeta {
    /** What this machine must have for the test to run, and how it gets it. */
    lacks?: string;
  }
}

const SLOWEST = 10;

export default class SuiteReporter extends DefaultReporter {
  #files = 0;
  #ended = 0;

  override onTestRunStart(files: Parameters<DefaultReporter["onTestRunStart"]>[0]): void {
    this.#files = files.length;
    super.onTestRunStart(files);
  }

  override printTestModule(file: TestModule): void {
    this.#ended += 1;
    const count = `${this.#ended}/${this.#files}`.padStart(7);
    const isFailed = file.state() === "failed";
    const tests = [...file.children.allTests()];
    const notRun = tests.filter((test) => test.result().state === "skipped").length;
    const noun = tests.length === 1 ? "test" : "tests";
    const said = [`${tests.length} ${noun}`, ...(notRun > 0 ? [`${notRun} not run`] : []), seconds(file)];
    this.log(`${count} ${isFailed ? "✗" : "✓"} ${file.relativeModuleId}: ${said.join(", ")}`);
    if (isFailed) super.printTestModule(file);
  }

  override onTestRunEnd(...run: Parameters<DefaultReporter["onTestRunEnd"]>): void {
    super.onTestRunEnd(...run);
    const [files] = run;
    const print = (heading: string, lines: readonly string[]) => {
      if (lines.length > 0) this.log(`${heading}\n${lines.map((line) => `  ${line}\n`).join("")}`);
    };
    const one = files.length === 1;
    if (!one) print("Slowest files", slowest(files));
    print("Not run", [
      ...missingParts().map((part) => `tests with ${part}: \`setup/parts.sh test\` has not fetched it`),
      ...files.flatMap(skipped),
      ...(isQuick ? ["slow tests, and all with PuppetDB or an older HAProxy: npm test"] : []),
      ...(one ? [] : NEVER),
    ]);
  }
}

const NEVER = [
  "npm run test:faults: the whole of it with faults, some minutes",
  "npm run test:compose: docker-compose.yml, needs Docker",
  "npm run test:packages: packages on clean Debian hosts, needs root on Debian",
  "npm run test:puppetserver: real puppetservers and agents, needs root on Debian",
];

/** One line for each reason. */
function skipped(file: TestModule): string[] {
  const byReason = new Map<string, number>();
  for (const test of file.children.allTests("skipped")) {
    const why = reasonOf(test);
    byReason.set(why, (byReason.get(why) ?? 0) + 1);
  }
  return [...byReason].map(([why, count]) => `${count} of ${file.relativeModuleId}: ${why}`);
}

function reasonOf(test: TestCase): string {
  const result = test.result();
  const note = result.state === "skipped" ? result.note : undefined;
  const isFiltered = test.project.config.testNamePattern !== undefined;
  const lacks = isFiltered ? undefined : test.meta().lacks;
  return note ?? lacks ?? "left out by the command line, or by .skip or .only";
}

function slowest(files: readonly TestModule[]): string[] {
  return [...files]
    .sort((a, b) => durationOf(b) - durationOf(a))
    .slice(0, SLOWEST)
    .map((file) => `${seconds(file).padStart(8)}  ${file.relativeModuleId}`);
}

const durationOf = (file: TestModule) => {
  const { collectDuration, setupDuration, duration } = file.diagnostic();
  return collectDuration + setupDuration + duration;
};
const seconds = (file: TestModule) => `${(durationOf(file) / 1_000).toFixed(1)} s`;
