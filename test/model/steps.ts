// What may happen, as plain values: a history is a list of them and can be written down, played again and cut short.
// Each says for itself what it is about; one that makes no sense where it comes is left out by who plays it.

import fc from "fast-check";
import { MASTERS } from "./model.js";
import type { Side, Who } from "./world.js";

/** Those that PuppetDB knows at the beginning, and some that nobody knows yet. */
export const NODES = Array.from({ length: 10 }, (_, index) => `node${index + 1}.example`);
export const KNOWN_AT_START = 7;

/** What may happen while PuppetDB takes its time to answer. */
type Meanwhile =
  | {
      step: "run";
      node: string;
      master: string;
      by: "facts" | "report" | "both" | "catalog";
      /**
       * When, by the master's clock: `minutes` ago; `queued` a minute and a half ago, as PuppetDB's own clock says too;
       * `late`: before all that is known of it; `future`: next year; `ahead`: next year too, but PuppetDB has had it for
       * minutes.
       */
      clock: "now" | "minutes" | "queued" | "late" | "future" | "ahead";
    }
  | { step: "deactivate"; node: string; clock: "now" | "minutes" }
  | { step: "register"; who: Who; node: string; master: string }
  | { step: "hand"; side: Side; node: string; master: string }
  | { step: "strike"; side: Side; node: string }
  | { step: "sync"; who: Who; full: boolean };

export type Step =
  | Meanwhile
  /** A producer without a server: Bolt, or `puppet apply`. */
  | { step: "stranger"; node: string; by: "facts" | "report" }
  | { step: "purge"; node: string }
  | { step: "backup" }
  | { step: "restore" }
  | { step: "puppetdb"; is: "down" | "up" }
  /** Both sasoris at once. */
  | { step: "together"; full: boolean }
  | { step: "request"; side: Side; method: "GET" | "POST"; node: string; where: "/" | "/none" }
  | { step: "end"; who: Who; node: string }
  | { step: "second"; is: "started" | "stopped" | "killed" }
  | { step: "kill"; during: "rest" | "sync" | "register"; node: string; master: string }
  | { step: "start" }
  | { step: "haproxy"; side: Side; how: "restart" | "reload" | "crash" }
  | { step: "cut"; side: Side; is: "cut" | "mended" }
  /** PuppetDB does not answer this until the rest has happened; `stale`: it has its answer by then. */
  | {
      step: "slow";
      who: Who;
      act: "quick" | "full" | "end";
      node: string;
      stale: boolean;
      meanwhile: Meanwhile[];
    }
  /** Everything is up, every sasori has compared everything: now all must agree. */
  | { step: "compare" };

const node = fc.constantFrom(...NODES);
const master = fc.constantFrom<string>(...MASTERS);
const side = fc.constantFrom<Side>(0, 1);
/** Mostly the first: the second is an accident. */
const who = fc.constantFrom<Who>("A", "A", "A", "B");
const is = <Value extends string>(...values: Value[]) => fc.constantFrom(...values);

const runAt = <Clock extends string>(...clocks: Clock[]) =>
  fc.record({
    step: is("run"),
    node,
    master,
    by: is("facts", "facts", "report", "both", "both", "both", "catalog"),
    clock: is(...clocks),
  });
const run = runAt("now", "now", "now", "now", "minutes", "queued", "late", "future", "ahead");
const deactivate = fc.record({ step: is("deactivate"), node, clock: is("now", "now", "minutes") });
const register = fc.record({ step: is("register"), who, node, master });
const hand = fc.record({ step: is("hand"), side, node, master });
const strike = fc.record({ step: is("strike"), side, node });
const sync = fc.record({ step: is("sync"), who, full: fc.boolean() });

const meanwhile: fc.Arbitrary<Meanwhile> = fc.oneof(
  { weight: 4, arbitrary: runAt("now", "now", "now", "minutes", "queued", "late", "future") },
  { weight: 2, arbitrary: deactivate },
  { weight: 3, arbitrary: register },
  { weight: 2, arbitrary: hand },
  { weight: 1, arbitrary: strike },
  { weight: 3, arbitrary: sync },
);

const anything: fc.Arbitrary<Step> = fc.oneof(
  { weight: 16, arbitrary: run },
  { weight: 3, arbitrary: fc.record({ step: is("stranger"), node, by: is("facts", "report") }) },
  { weight: 5, arbitrary: deactivate },
  { weight: 2, arbitrary: fc.record({ step: is("purge"), node }) },
  { weight: 1, arbitrary: fc.record({ step: is("backup") }) },
  { weight: 1, arbitrary: fc.record({ step: is("restore") }) },
  { weight: 4, arbitrary: fc.record({ step: is("puppetdb"), is: is("down", "up", "up") }) },
  { weight: 14, arbitrary: sync },
  { weight: 2, arbitrary: fc.record({ step: is("together"), full: fc.boolean() }) },
  {
    weight: 22,
    arbitrary: fc.record({
      step: is("request"),
      side,
      method: is("GET", "GET", "POST"),
      node,
      where: is("/", "/", "/none"),
    }),
  },
  { weight: 6, arbitrary: register },
  { weight: 4, arbitrary: fc.record({ step: is("end"), who, node }) },
  { weight: 5, arbitrary: hand },
  { weight: 2, arbitrary: strike },
  { weight: 3, arbitrary: fc.record({ step: is("second"), is: is("started", "stopped", "killed") }) },
  {
    weight: 3,
    arbitrary: fc.record({ step: is("kill"), during: is("rest", "sync", "register"), node, master }),
  },
  { weight: 3, arbitrary: fc.record({ step: is("start") }) },
  { weight: 3, arbitrary: fc.record({ step: is("haproxy"), side, how: is("restart", "reload", "crash") }) },
  { weight: 4, arbitrary: fc.record({ step: is("cut"), side, is: is("cut", "mended", "mended") }) },
  {
    weight: 4,
    arbitrary: fc.record({
      step: is("slow"),
      who,
      act: is("quick", "full", "end"),
      node,
      stale: fc.boolean(),
      meanwhile: fc.array(meanwhile, { minLength: 1, maxLength: 3, size: "max" }),
    }),
  },
  { weight: 9, arbitrary: fc.record({ step: is("compare") }) },
);

/** The same steps for the same seed; the last one compares. Left out is what has a word of `without` in it. */
export function historyOf(seed: number, steps: number, without: readonly string[] = []): Step[] {
  const all: Step[] = [...fc.sample(fc.noBias(anything), { seed, numRuns: steps }), { step: "compare" }];
  return all.filter((step) => !without.some((word) => JSON.stringify(step).includes(`"${word}"`)));
}
