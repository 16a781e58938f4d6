// Which targets lack a change that is in force: the API, the command line and the page count alike.

import type { Story } from "./api-shapes.js";

/** How many targets cannot be asked, or hold something else, like a file on a full disk. The next pass writes them. */
export function lacking({ desired, file, live }: Pick<Story, "desired" | "file" | "live">): number {
  const wanted = desired.master ?? null;
  return [file, ...live].filter((target) => !("master" in target) || target.master !== wanted).length;
}
