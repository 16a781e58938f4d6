// What the API, the command line and the page must judge alike: which targets lack a change that is in force, and which
// replica is silent. Pure.

import type { Story } from "./api-shapes.js";

/** A replica reports every few seconds. One that has not done so for this long is in trouble, whatever it said last. */
export const SILENT_MS = 60_000;

/**
 * How many targets cannot be asked, or hold something else, such as a file on a full disk. The next pass writes them.
 */
export function lacking({ desired, file, live }: Pick<Story, "desired" | "file" | "live">): number {
  const wanted = desired.master ?? null;
  return [file, ...live].filter((target) => !("master" in target) || target.master !== wanted).length;
}
