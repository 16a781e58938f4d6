// Counts, shares and times as people read them: in messages, on the command line and on the page. Pure.

export const number = (value: number) => value.toLocaleString("en-US");

/** `1 node`, `1,200 nodes`. */
export const counted = (value: number, one: string, many = `${one}s`) =>
  `${number(value)} ${value === 1 ? one : many}`;

/** A message names this many problems, and counts the others. */
const MAX_TOLD = 20;

/** `a; b; c`, and `; and 5 more` if there are too many. */
export function several(problems: readonly string[]): string {
  const told = problems.slice(0, MAX_TOLD).join("; ");
  return problems.length > MAX_TOLD ? `${told}; and ${number(problems.length - MAX_TOLD)} more` : told;
}

const PERCENT = new Intl.NumberFormat("en", {
  style: "percent",
  minimumFractionDigits: 1,
  maximumFractionDigits: 1,
});

/** `33.5%` of a share from 0 to 1. */
export const percent = (share: number) => PERCENT.format(share);

/** `85 ms`, `1.2 s`, `12 s`, `2 min 3 s`. */
export function duration(ms: number): string {
  if (ms < 1_000) return `${Math.round(ms)} ms`;
  if (ms < 10_000) return `${(ms / 1_000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1_000);
  return seconds < 60 ? `${seconds} s` : `${Math.floor(seconds / 60)} min ${seconds % 60} s`;
}

/** How long ago a time (ISO 8601) was: `just now`, `12 s ago`, `5 min ago`, `3 h ago`, `2 days ago`. `now` in ms. */
export function age(at: string, now: number): string {
  const seconds = (now - Date.parse(at)) / 1_000;
  if (seconds < 1.5) return "just now";
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3_600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 2 * 86_400) return `${Math.floor(seconds / 3_600)} h ago`;
  return `${Math.floor(seconds / 86_400)} days ago`;
}
