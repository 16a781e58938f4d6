// Numbers, times and names as people read them. Pure. Times are ISO 8601, and are shown in the reader's time zone.

export { age, counted, duration, number, percent } from "../counts.js";

import type { Node } from "../http/api-shapes.js";

const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
export const WHOLE_TIME = new Intl.DateTimeFormat("en-GB", { dateStyle: "full", timeStyle: "long" });

/** Joins what there is to say: `listOf("a", false, "b")` is `a, b`. */
export const listOf = (...words: (string | false | undefined)[]) => words.filter(Boolean).join(", ");

/** `03:12:45`, with the day in front if that is not today. */
export function clock(at: string, now: number): string {
  const day = DAY.format(new Date(at));
  const time = CLOCK.format(new Date(at));
  return day === DAY.format(now) ? time : `${day}, ${time}`;
}

/** The same without the seconds. */
export const minute = (at: string, now: number) => clock(at, now).slice(0, -3);

/** A master's name without the domain that all masters share. */
export const shortName = (master: string, domain: string) =>
  domain !== "" && master.endsWith(domain) ? master.slice(0, -domain.length) : master;

type Source = Node["source"];

/** Where a route comes from, in a few words. */
export const SOURCE_WORDS: Record<Source, string> = {
  facts: "PuppetDB: facts",
  catalog: "PuppetDB: catalog",
  report: "PuppetDB: report",
  registration: "registered by hand",
  learned: "learned by HAProxy",
  inherited: "found at start",
};

/** Who registered it, and why: ` by alice: “ticket 4711”`. */
export const remarksOf = ({ by, reason }: Pick<Node, "by" | "reason">) =>
  `${by === undefined ? "" : ` by ${by}`}${reason === undefined ? "" : `: “${reason}”`}`;

/** Why a node goes where it goes, as the rest of "It goes to master1 because ...". */
export const SOURCE_REASONS: Record<Source, string> = {
  facts: "that master sent its latest facts to PuppetDB",
  catalog: "that master sent its latest catalog to PuppetDB",
  report: "that master sent its latest report to PuppetDB",
  registration: "it was registered there by hand",
  learned: "HAProxy found it there when another route was wrong",
  inherited: "the map said so when sasori started, and PuppetDB has not said otherwise",
};
