// The last passes: what each did, and which phase took how long.

import type { Pass } from "../http/api-shapes.js";
import { h } from "./dom.js";
import { icon } from "./icons.js";
import { nowOf, type State } from "./state.js";
import { clock, count, counted, duration, moment } from "./words.js";

const PHASES = ["look", "fetch", "plan", "file", "push"] as const;
const PHASE_WORDS = {
  look: "looking at the targets",
  fetch: "reading PuppetDB",
  plan: "planning",
  file: "writing the file",
  push: "pushing to HAProxy",
};
const KIND_WORDS = { known: "without PuppetDB", changes: undefined, full: "full" };

export function renderPasses(state: State): Node[] {
  const now = nowOf(state);
  const shown = state.passes.slice(0, 10);
  // By its square root: beside a pass that waited 30 s the others would be points.
  const longest = Math.max(1, ...shown.map(({ durationMs }) => durationMs));
  return [
    h(
      "div",
      { class: "title" },
      h("h2", {}, "Passes"),
      h(
        "button",
        { class: "plain", "data-do": "full", "aria-disabled": state.busy ? "true" : undefined },
        state.busy === "full" ? "Reading …" : "Read everything",
      ),
    ),
    shown.length === 0
      ? h("p", { class: "quiet" }, "None has done or met anything yet; quiet ones are not listed.")
      : h(
          "ol",
          { class: "passes" },
          shown.map((pass) => renderPass(pass, longest, now)),
        ),
    h(
      "ul",
      { class: "legend", "aria-hidden": "true" },
      PHASES.map((phase) => h("li", { class: phase }, PHASE_WORDS[phase])),
    ),
  ];
}

function renderPass(pass: Pass, longest: number, now: number): Node {
  const phases = PHASES.map((phase) => ({ phase, ms: pass.phasesMs[phase] ?? 0 }));
  const spoken = phases
    .filter(({ ms }) => ms >= 1)
    .map(({ phase, ms }) => `${PHASE_WORDS[phase]} ${duration(ms)}`);
  const failed = pass.targets.find(({ outcome }) => outcome === "failed");
  const failure = pass.source.failure ?? failed?.failure ?? pass.masters.failures[0] ?? pass.journal;
  return h(
    "li",
    { "data-key": pass.startedAt, class: pass.outcome },
    h("span", { class: "when" }, moment(pass.startedAt, clock(pass.startedAt, now))),
    h(
      "span",
      { class: "what" },
      pass.outcome !== "done" && icon(pass.outcome === "failed" ? "bad" : "warn"),
      wordsOf(pass),
      failure && h("span", { class: "quiet" }, " ", h("code", {}, failure.code)),
    ),
    h(
      "span",
      { class: "phases", title: spoken.join(", "), "--length": Math.sqrt(pass.durationMs / longest) },
      phases.map(({ phase, ms }) => ms > 0 && h("i", { class: phase, "--ms": ms })),
    ),
    h(
      "span",
      { class: "took" },
      duration(pass.durationMs),
      h("span", { class: "unseen" }, spoken.length > 0 && `: ${spoken.join(", ")}`),
    ),
  );
}

function wordsOf({ kind, dryRun, outcome, moved, learned, targets }: Pass): string {
  const written = targets.filter((target) => target.outcome === "applied").map(({ target }) => target);
  const pushed = written.length > 0 ? `pushed to ${written.join(", ")}` : "nothing to change";
  const changed = moved > 0 ? `${counted(moved, "node")} changed` : pushed;
  const words = [
    dryRun ? "dry run" : undefined,
    outcome === "done" ? undefined : outcome,
    moved > 0 || written.length > 0 || outcome === "done" ? changed : undefined,
    learned > 0 ? `${count(learned)} learned` : undefined,
    KIND_WORDS[kind],
  ];
  return words.filter((word) => word !== undefined).join(", ");
}
