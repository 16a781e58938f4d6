// The last passes that changed something or failed: what each did, and where a slow one spent its time.

import type { Pass } from "../http/api-shapes.js";
import { usePage } from "./page.js";
import css from "./passes.module.css";
import { nowOf } from "./state.js";
import { Card, Icon, Quiet, Time } from "./ui.js";
import { clock, counted, duration, listOf, number } from "./words.js";

const SHOWN = 8;
/** For a quicker pass the phases are not shown. */
const SLOW_MS = 1_000;

const PHASE_WORDS = {
  look: "looking at the targets",
  fetch: "reading PuppetDB",
  plan: "planning",
  file: "writing the file",
  push: "pushing to HAProxy",
};
const KIND_WORDS = { known: "PuppetDB not read", changes: undefined, full: "everything read" };

export function PassesCard() {
  const { state, actions } = usePage();
  return (
    <Card
      label="Passes"
      action={
        <button
          type="button"
          data-kind="plain"
          aria-disabled={state.busy !== undefined}
          onClick={() => void actions.sync("full", { full: true })}
        >
          {state.busy === "full" ? "Reading …" : "Read everything"}
        </button>
      }
    >
      {state.passes.length === 0 && <Quiet>None has changed anything or failed since sasori started.</Quiet>}
      <ol class={css.passes}>
        {state.passes.slice(0, SHOWN).map((pass) => (
          <Row key={pass.startedAt} pass={pass} now={nowOf(state)} />
        ))}
      </ol>
    </Card>
  );
}

function Row({ pass, now }: { pass: Pass; now: number }) {
  const failed = pass.targets.find(({ outcome }) => outcome === "failed");
  const failure = pass.source.failure ?? failed?.failure ?? pass.masters.failures[0] ?? pass.journal;
  const slow = Object.entries(PHASE_WORDS)
    .map(([phase, words]) => ({ words, ms: pass.phasesMs[phase as keyof typeof PHASE_WORDS] ?? 0 }))
    .filter(({ ms }) => pass.durationMs >= SLOW_MS && ms >= pass.durationMs / 20);
  return (
    <li data-outcome={pass.outcome}>
      <Time at={pass.startedAt}>{clock(pass.startedAt, now)}</Time>
      <span class={css.what}>
        {pass.outcome !== "done" && <Icon sign={pass.outcome === "failed" ? "bad" : "warn"} />}
        {wordsOf(pass)}
      </span>
      <span class={css.took}>{duration(pass.durationMs)}</span>
      {(failure !== undefined || slow.length > 0) && (
        <small>
          {failure !== undefined && <code>{failure.code} </code>}
          {slow.map(({ words, ms }) => `${words} ${duration(ms)}`).join(", ")}
        </small>
      )}
    </li>
  );
}

function wordsOf({ kind, dryRun, outcome, moved, learned, targets }: Pass): string {
  const written = targets.filter((target) => target.outcome === "applied").map(({ target }) => target);
  const pushed = written.length > 0 ? `pushed to ${written.join(", ")}` : "nothing to change";
  const changed = moved > 0 ? `${counted(moved, "node")} changed` : pushed;
  return listOf(
    dryRun && "dry run",
    outcome !== "done" && outcome,
    (moved > 0 || written.length > 0 || outcome === "done") && changed,
    learned > 0 && `${number(learned)} learned`,
    KIND_WORDS[kind],
  );
}
