// A check of `sasori doctor`: what it can report, and how checks are run that need each other.
// Promises: a check that fails or hangs never stops another; checks that do not need each other run in parallel.

import { toFailure } from "../errors.js";
import { remedyFor } from "../http/troubles.js";

/** What a check without a deadline of its own may take. */
const CHECK_MS = 10_000;

/** What a check found. Later checks may use its `value`; what failed has none. */
export interface Verdict<Value = unknown> {
  outcome: "ok" | "warning" | "failed";
  detail: string;
  remedy?: string;
  value?: Value;
}

/** Results of earlier checks: `of` for those that this one needs, `maybe` for those that it only waits for. */
export interface Known {
  of<Value>(check: Check<Value>): Value;
  maybe<Value>(check: Check<Value>): Value | undefined;
}

export interface Check<Value = unknown> {
  name: string;
  /** The file, address or socket that is looked at. */
  where?: string;
  /** If one of these fails, this one is skipped. */
  needs?: readonly Check[];
  /** Waits for these, whatever their outcome. */
  follows?: readonly Check[];
  deadlineMs?: number;
  /** What to do if there is no answer by then. */
  ifLate?: string;
  /** A SasoriError that it throws is its failure; `signal` ends with the deadline. */
  look(signal: AbortSignal, known: Known): Promise<Verdict<Value>> | Verdict<Value>;
}

/** A line of the result. */
export interface Finding {
  check: string;
  where?: string;
  outcome: Verdict["outcome"] | "skipped";
  detail: string;
  remedy?: string;
  durationMs: number;
}

/**
 * Runs the checks, each as soon as those that it waits for are done. Findings are reported, and returned, in the order of the
 * list: an early one waits for those before it.
 */
export async function runChecks(
  checks: readonly Check[],
  onFinding: (finding: Finding, left: readonly Check[]) => void,
): Promise<Finding[]> {
  const done = new Map<Check, Promise<Finding>>();
  const values = new Map<Check, unknown>();
  const left = new Set(checks);
  const known: Known = {
    of: <Value>(check: Check<Value>) => values.get(check) as Value,
    maybe: <Value>(check: Check<Value>) => values.get(check) as Value | undefined,
  };
  const findingOf = async (check: Check): Promise<Finding> => {
    await Promise.all((check.follows ?? []).map((other) => done.get(other)));
    const needed = await Promise.all((check.needs ?? []).map((other) => done.get(other)));
    const began = performance.now();
    const lacking = needed.find((finding) => finding?.outcome === "failed" || finding?.outcome === "skipped");
    const finding: Finding = {
      ...{ check: check.name, ...(check.where !== undefined && { where: check.where }) },
      ...(lacking === undefined ? await judge(check, known, values) : skipped(lacking)),
      durationMs: Math.round(performance.now() - began),
    };
    left.delete(check);
    return finding;
  };
  // A check can only wait for those that stand before it in the list.
  for (const check of checks) done.set(check, findingOf(check));
  const findings: Finding[] = [];
  for (const finding of done.values()) {
    findings.push(await finding);
    onFinding(await finding, [...left]);
  }
  return findings;
}

function skipped({ check, where }: Finding): Pick<Finding, "outcome" | "detail"> {
  const which = where === undefined ? check : `${check} ${where}`;
  return { outcome: "skipped", detail: `not checked, because this failed: ${which}` };
}

/** A check that hangs is left to itself: nothing it still does can change what was found. */
async function judge(
  check: Check,
  known: Known,
  values: Map<Check, unknown>,
): Promise<Pick<Finding, "outcome" | "detail" | "remedy">> {
  const controller = new AbortController();
  const ms = check.deadlineMs ?? CHECK_MS;
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      const error = new CheckError(
        `no answer within ${ms / 1000} s`,
        check.ifLate ?? "find out what makes it hang",
      );
      controller.abort(error);
      reject(error);
    }, ms);
  });
  try {
    const { value, ...found } = await Promise.race([
      (async () => check.look(controller.signal, known))(),
      late,
    ]);
    values.set(check, value);
    return found;
  } catch (error) {
    return failed(error);
  } finally {
    clearTimeout(timer);
    controller.abort();
  }
}

/** A failure whose remedy is known where it was found. */
export class CheckError extends Error {
  readonly remedy: string;

  constructor(message: string, remedy: string) {
    super(message);
    this.remedy = remedy;
  }
}

function failed(error: unknown): Pick<Finding, "outcome" | "detail" | "remedy"> {
  if (error instanceof CheckError) return { outcome: "failed", detail: error.message, remedy: error.remedy };
  const { code, message } = toFailure(error);
  return { outcome: "failed", detail: message, remedy: remedyFor(code) };
}

/** Something that is wrong, and what to do. */
export interface Problem {
  outcome: "warning" | "failed";
  what: string;
  remedy: string;
}

/** Without problems: `ok`, with the text `good`. Otherwise all problems, with the worst outcome of them, then `good` in brackets. */
export function verdict<Value>(
  good: string,
  problems: readonly (Problem | undefined)[],
  value?: Value,
): Verdict<Value> {
  const found = problems.filter((problem) => problem !== undefined);
  const about = { ...(value !== undefined && { value }) };
  if (found.length === 0) return { outcome: "ok", detail: good, ...about };
  return {
    outcome: found.some(({ outcome }) => outcome === "failed") ? "failed" : "warning",
    detail: `${found.map(({ what }) => what).join("; ")}${good === "" ? "" : ` (${good})`}`,
    remedy: [...new Set(found.map(({ remedy }) => remedy))].join("; "),
    ...about,
  };
}
