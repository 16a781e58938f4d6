// When it is time for a pass: cron expressions and the machine's clock. node-cron only says whether a second matches.
// Its own timers wait for a time of the clock: if the clock is set back by an hour, they stand still for an hour. If it
// is set forward, they go through every second that was left out (for a day, sasori would not answer for half a minute).
// And they skip what comes more than a second late.
// Promises: every second that matches causes a run, which is late if the process was held up. Every schedule runs once,
// immediately, after somebody has set the clock, after the machine has slept, and when summer time begins (the times that
// it leaves out never match) or ends.

import { createTask, validate } from "node-cron";

/** How often the clock is looked at. */
const BEAT_MS = 250;

/** If the process was held up for longer, that is treated as a change of the clock. */
const MAX_LATE_S = 60;

export interface Job {
  /** As `isCron` takes it; in local time. */
  cron: string;
  run(): void;
}

/** The nicknames of crontab(5). */
const NICKNAMES = new Map([
  ["@yearly", "0 0 1 1 *"],
  ["@annually", "0 0 1 1 *"],
  ["@monthly", "0 0 1 * *"],
  ["@weekly", "0 0 * * 0"],
  ["@daily", "0 0 * * *"],
  ["@midnight", "0 0 * * *"],
  ["@hourly", "0 * * * *"],
]);

/** 5 or 6 fields, or a nickname such as `@hourly`. Some second must match: `31 4 *` is refused, and `31 4 1` is not. */
export const isCron = (text: string): boolean =>
  possibleOf(text).length > 0 && expressionsOf(text).every((expression) => validate(inAnyMonth(expression)));

/** Those that can match. node-cron refuses a day that its month does not have. */
const possibleOf = (cron: string) => expressionsOf(cron).filter((expression) => validate(expression));

const inAnyMonth = (expression: string) => expression.split(" ").with(-2, "*").join(" ");

/** Tells whether a second (since the epoch) matches. */
export function matcherOf(cron: string): (second: number) => boolean {
  const tasks = possibleOf(cron).map((expression) => createTask(expression, () => undefined));
  return (second) => tasks.some((task) => task.match(new Date(second * 1000)));
}

/**
 * The same for node-cron. If both a day of the month and a day of the week are given, cron runs when either one matches.
 * node-cron runs only when both match.
 */
function expressionsOf(cron: string): string[] {
  const fields = (NICKNAMES.get(cron.trim()) ?? cron).trim().split(/\s+/);
  const days = [fields.length - 3, fields.length - 1];
  const isEither = fields.length >= 5 && days.every((day) => !/^[*?]/.test(fields[day] ?? "*"));
  return isEither ? days.map((day) => fields.with(day, "*").join(" ")) : [fields.join(" ")];
}

export class Schedule {
  readonly #jobs: { matches: (second: number) => boolean; run: () => void }[];
  readonly #onJump: (seconds: number) => void;
  readonly #timer: NodeJS.Timeout;
  /** All schedules have run up to this time (seconds since the epoch). */
  #done = nowSeconds();

  /** Begins with the next second. `onJump` is called with the number of seconds by which the clock was set. */
  constructor(jobs: readonly Job[], onJump: (seconds: number) => void) {
    this.#jobs = jobs.map(({ cron, run }) => ({ matches: matcherOf(cron), run }));
    this.#onJump = onJump;
    this.#timer = setInterval(() => this.#beat(), BEAT_MS);
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  #beat(): void {
    const before = this.#done;
    const now = nowSeconds();
    this.#done = now;
    const jumped = Math.abs(now - before) > MAX_LATE_S;
    if (jumped) this.#onJump(now - before);
    const isAnew = jumped || offset(now) !== offset(before);
    for (const { matches, run } of this.#jobs) {
      let isDue = isAnew;
      for (let second = before + 1; second <= now && !isDue; second += 1) isDue = matches(second);
      if (isDue) run();
    }
  }
}

/** Local time's distance to UTC. */
const offset = (second: number) => new Date(second * 1000).getTimezoneOffset();

const nowSeconds = () => Math.floor(Date.now() / 1000);
