// The page's few signs. They stand beside a word, never instead of one: a screen reader passes them over.

import { svg } from "./dom.js";

const PATHS = {
  good: "M4 12.5 9.5 18 20 6.5",
  bad: "M6 6 18 18M18 6 6 18",
  warn: "M12 4v10M12 19v.5",
  busy: "M12 6v6l4 3",
  stale: "M4 4 20 20M8.5 16a5 5 0 0 1 4-2M5 12a10 10 0 0 1 4-2.5M13 9a10 10 0 0 1 6 3M12 19.5v.5",
  arrow: "M4 12h15M13 6l6 6-6 6",
} as const;

export type Sign = keyof typeof PATHS;

export const icon = (sign: Sign) =>
  svg(
    "svg",
    { viewBox: "0 0 24 24", class: `icon ${sign}`, "aria-hidden": "true", focusable: "false" },
    svg("path", { d: PATHS[sign] }),
  );
