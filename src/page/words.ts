// Numbers, times and names as people read them. All pure; times are ISO 8601 and come out in the reader's zone.

import type { Nodes } from "../http/api-shapes.js";
import { h } from "./dom.js";

const NUMBER = new Intl.NumberFormat("en");
const PERCENT = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 1 });
const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const WHOLE = new Intl.DateTimeFormat("en-GB", { dateStyle: "full", timeStyle: "long" });

const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;
const DAY_MS = 24 * HOUR_MS;

export const count = (value: number) => NUMBER.format(value);
export const percent = (share: number) => PERCENT.format(share);

/** `1 node`, `12,000 nodes`. */
export const counted = (value: number, one: string, many = `${one}s`) =>
  `${count(value)} ${value === 1 ? one : many}`;

/** `85 ms`, `1.2 s`, `2 min 3 s`. */
export function duration(ms: number): string {
  if (ms < 1_000) return `${Math.round(ms)} ms`;
  if (ms < MINUTE_MS) return `${(ms / 1_000).toFixed(ms < 10_000 ? 1 : 0)} s`;
  return `${Math.floor(ms / MINUTE_MS)} min ${Math.round((ms % MINUTE_MS) / 1_000)} s`;
}

/** `just now`, `12 s ago`, `5 min ago`, `3 h ago`, `2 days ago`. */
export function age(at: string, now: number): string {
  const ms = now - Date.parse(at);
  if (ms < 1_500) return "just now";
  if (ms < MINUTE_MS) return `${Math.floor(ms / 1_000)} s ago`;
  if (ms < HOUR_MS) return `${Math.floor(ms / MINUTE_MS)} min ago`;
  if (ms < 2 * DAY_MS) return `${Math.floor(ms / HOUR_MS)} h ago`;
  return `${Math.floor(ms / DAY_MS)} days ago`;
}

/** `03:12:45`, with the day in front if that is not today. */
export function clock(at: string, now: number): string {
  const day = DAY.format(new Date(at));
  const time = CLOCK.format(new Date(at));
  return day === DAY.format(now) ? time : `${day}, ${time}`;
}

/** A time as an element that says the whole of it when pointed at. */
export const moment = (at: string, text: string) =>
  h("time", { datetime: at, title: WHOLE.format(new Date(at)) }, text);

/** A command with its options. A line may end between two words of it, not behind the hyphens of an option. */
const command = (text: string) =>
  h(
    "code",
    {},
    text
      .split(/(--\S+)/)
      .map((part, index) => (index % 2 === 1 ? h("span", { class: "option" }, part) : part)),
  );

const TIME_OR_COMMAND =
  /(\d{4}-\d\d-\d\dT\d\d:\d\d:[\d.]{2,6}Z|sasori [a-z]+(?: --[a-z-]+)+(?: [0-9a-f]{12})?)/;

/** A text of sasori's, with the times in it as the reader's clock has them, and commands as what they are. */
export const prose = (text: string, now: number) =>
  h(
    "bdi",
    { class: "name" },
    text.split(TIME_OR_COMMAND).map((part, index) => {
      if (index % 2 === 0) return part;
      return part.startsWith("sasori ") ? command(part) : moment(part, clock(part, now));
    }),
  );

/** The same as a sentence of its own. What begins with an address or a path is left as it is. */
export const sentence = (text: string, now: number) =>
  prose(
    text.replace(/^[a-z]+(?= )/, (word) => word.slice(0, 1).toUpperCase() + word.slice(1)),
    now,
  );

/** A name that came from outside: its own direction of writing ends with it. */
export const name = (text: string) => h("bdi", { class: "name" }, text);

/** A node's name that opens its story. */
export const nodeLink = (certname: string) =>
  h("a", { class: "name", href: `#node=${encodeURIComponent(certname)}` }, h("bdi", {}, certname));

type Source = Nodes["nodes"][number]["source"];

/** Where a route comes from, in a few words. */
export const SOURCE_WORDS: Record<Source, string> = {
  facts: "PuppetDB, facts",
  catalog: "PuppetDB, catalog",
  report: "PuppetDB, report",
  registration: "registered by hand",
  learned: "learned by HAProxy",
  inherited: "found at start",
};

/** Why a node goes where it goes, as the rest of "It goes to master1, because ...", and what is to be known of that. */
export const SOURCE_REASONS: Record<Source, [why: string, note?: string]> = {
  facts: ["that master sent its newest facts to PuppetDB"],
  catalog: ["that master sent its newest catalog to PuppetDB"],
  report: ["that master sent its newest report to PuppetDB"],
  registration: ["somebody registered it there by hand", "PuppetDB's next, newer word replaces that."],
  learned: ["it was wrong elsewhere and that master had it", "PuppetDB's next, newer word replaces that."],
  inherited: ["the map said so when sasori started", "PuppetDB has not said otherwise."],
};
