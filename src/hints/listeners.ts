// Listens for hints on the addresses of the configuration.

import type { Config } from "../config.js";
import { cannotListen } from "../errors.js";
import { Hints, type HintsParts } from "./hints.js";
import { listenForReports } from "./reports.js";
import { listenForLines } from "./syslog.js";

const IF_IN_USE = "stop the other program, or choose another port";

export interface Listeners {
  hints: Hints;
  stop(): void;
}

/** Throws `DAEMON` if it cannot listen on an address. Undefined when the configuration has none. */
export async function listenForHints(
  { syslogListen, reports }: Pick<Config, "syslogListen" | "reports">,
  parts: HintsParts,
): Promise<Listeners | undefined> {
  if (syslogListen === undefined && reports === undefined) return undefined;
  const hints = new Hints(parts);
  const stops: (() => void)[] = [];
  const stop = () => {
    for (const one of stops) one();
  };
  try {
    if (syslogListen !== undefined) {
      const listening = listenForLines(syslogListen, ({ certname, producers }) => {
        void hints.take("syslog", certname, producers);
      });
      stops.push((await listening.catch(cannotListen("SASORI_SYSLOG_LISTEN", syslogListen, IF_IN_USE))).stop);
    }
    if (reports !== undefined) {
      const listening = listenForReports(reports, (certname, producer) => {
        void hints.take("report", certname, [producer]);
      });
      stops.push((await listening.catch(cannotListen("SASORI_REPORTS_LISTEN", reports, IF_IN_USE))).stop);
    }
  } catch (error) {
    stop();
    throw error;
  }
  return { hints, stop };
}
