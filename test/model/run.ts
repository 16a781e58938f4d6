// Runs of the model test: by a seed, or by a history that was written down. What diverges is printed step by step, and
// how to play it again; with MODEL_SHRINK=yes the history is cut to the steps that it takes.

import { readFileSync } from "node:fs";
import { type Outcome, play, type Setting, settingOf } from "./play.js";
import { historyOf, type Step } from "./steps.js";

/** `MODEL_SEED` and `MODEL_STEPS` take the place of what a test has chosen. */
export const chosen = {
  seeds: process.env.MODEL_SEED?.split(",").map(Number),
  steps: process.env.MODEL_STEPS === undefined ? undefined : Number(process.env.MODEL_STEPS),
};

export const randomSeed = () => Math.floor(Math.random() * 2 ** 31);

/** Plays the history of a seed. Rejects, with all that happened, where the programs and the model differ. */
export async function playSeed(seed: number, steps: number): Promise<Outcome> {
  const setting = settingOf(seed);
  const written = process.env.MODEL_HISTORY;
  let history =
    written === undefined
      ? historyOf(seed, steps, process.env.MODEL_WITHOUT?.split(","))
      : (JSON.parse(readFileSync(written, "utf8")) as Step[]);
  console.log(`model test: MODEL_SEED=${seed} MODEL_STEPS=${steps}`);
  let outcome = await play(history, setting);
  if (process.env.MODEL_TELL === "yes") console.log(outcome.told.join("\n"));
  if (outcome.divergence.length === 0) return outcome;
  if (process.env.MODEL_SHRINK === "yes") [history, outcome] = await shrink(history, outcome, setting);
  const { told, divergence } = outcome;
  throw new Error(
    [
      `the programs differ from the model. To play it again: MODEL_SEED=${seed} MODEL_STEPS=${steps}`,
      `gateways: HAProxy ${setting.haproxys.join(" and ")} of those that there are, requests repeated: ${setting.replay}`,
      ...told,
      ...divergence.map((line) => `>>> ${line}`),
      ...(process.env.MODEL_SHRINK === "yes" ? [JSON.stringify(history)] : []),
    ].join("\n"),
  );
}

/** Leaves out whatever is not needed for a divergence, in ever smaller pieces. */
async function shrink(whole: Step[], first: Outcome, setting: Setting): Promise<[Step[], Outcome]> {
  let history = whole;
  let outcome = first;
  for (let size = Math.ceil(history.length / 2); size >= 1; size = size === 1 ? 0 : Math.ceil(size / 2)) {
    for (let from = 0; from < history.length; ) {
      const shorter = [...history.slice(0, from), ...history.slice(from + size)];
      const again = await play(shorter, setting);
      if (again.divergence.length > 0) {
        history = shorter;
        outcome = again;
      } else from += size;
    }
  }
  return [history, outcome];
}
