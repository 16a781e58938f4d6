// The gateway's second map: which nodes or clients are served first when a master's queue fills. It is small and
// changed by hand, so it has no plan: an entry goes into the file, then into every HAProxy that runs. One that
// does not run reads the file when it starts. Changes go one after the other, whoever makes them.

import { createHash } from "node:crypto";
import { once } from "node:events";
import { realpath } from "node:fs/promises";
import { createServer, isIP, type Server, SocketAddress } from "node:net";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Endpoint } from "../config.js";
import { type Failure, quote, reason, SasoriError, systemCode, toFailure } from "../errors.js";
import { isCertname } from "../node-map.js";
import { readWhole } from "../whole-file.js";
import { replaceFile } from "./atomic-file.js";
import { findMap } from "./haproxy.js";
import { RuntimeSession } from "./runtime-api.js";

/** HAProxy's range of `set-priority-class`; lower is served first, and whoever is not in the map has 0. */
const MOST = 2047;

const HEADER =
  "# node or client address, and its class: lower is served first from a queue. Written by sasori.\n";

const DEADLINE_MS = 10_000;

/** Somewhat longer than a change takes that an HAProxy does not answer. */
const TURN_MS = 15_000;
const LOOK_AGAIN_MS = 20;

// Not SASORI_MAP_NAME: with that, sasori would write the nodes' masters into this map.
const REMEDIES = {
  none: "set SASORI_PRIORITY_FILE to the file that PRIORITY_MAP names there, or PRIORITY_MAP to this file",
  several: "give the file that PRIORITY_MAP names a base name of its own",
};

export interface PriorityChange {
  key: string;
  class: number | undefined;
  /** Each HAProxy, and why it could not be told: it has the entry after its next start. */
  haproxy: { haproxy: string; failure?: Failure }[];
}

export class PriorityMap {
  readonly #file: string;
  readonly #endpoints: readonly Endpoint[];

  constructor(file: string, endpoints: readonly Endpoint[]) {
    this.#file = file;
    this.#endpoints = endpoints;
  }

  /**
   * Key to class. A file that does not exist is empty. Throws `FILE_READ`, also for a line that is no entry: HAProxy
   * does not start with it, and whoever wrote it by hand meant something.
   */
  async list(): Promise<Map<string, number>> {
    const text = await readWhole(this.#file, "latin1").catch((error: unknown) => {
      if (systemCode(error) === "ENOENT") return "";
      throw new SasoriError("FILE_READ", `cannot read ${this.#file}: ${reason(error)}`, { cause: error });
    });
    const entries = new Map<string, number>();
    for (const [index, line] of text.split("\n").entries()) {
      if (line.trim() === "" || line.startsWith("#")) continue;
      const [, key, value] = /^\s*(\S+)\s+([+-]?\d+)\s*$/.exec(line) ?? [];
      if (key === undefined) {
        const what = `line ${index + 1} of ${this.#file} is ${quote(line)}`;
        throw new SasoriError(
          "FILE_READ",
          `${what}, no node or address with its class: correct or remove it`,
        );
      }
      entries.set(key, Number(value));
    }
    return entries;
  }

  /** Sets a class, or takes the key out (`undefined`). Throws `USAGE`, `BUSY` and what `replaceFile` throws. */
  async change(name: string, value: number | undefined): Promise<PriorityChange> {
    const key = keyOf(name);
    if (value !== undefined && !(Number.isInteger(value) && Math.abs(value) <= MOST)) {
      throw new SasoriError(
        "USAGE",
        `${value} is not a class: expected a whole number from -${MOST} to ${MOST}`,
      );
    }
    const turn = await takeTurn(this.#file);
    try {
      return await this.#change(key, value);
    } finally {
      turn.close();
    }
  }

  async #change(key: string, value: number | undefined): Promise<PriorityChange> {
    const entries = await this.list();
    if (value === undefined) entries.delete(key);
    else entries.set(key, value);
    const lines = [...entries].sort().map((entry) => `${entry.join(" ")}\n`);
    await replaceFile(this.#file, [HEADER, ...lines]);
    const told = this.#endpoints.map(async (endpoint) => {
      try {
        await this.#tell(endpoint, key, value);
        return { haproxy: endpoint.name };
      } catch (error) {
        return { haproxy: endpoint.name, failure: toFailure(error) };
      }
    });
    return { key, class: value, haproxy: await Promise.all(told) };
  }

  #tell(endpoint: Endpoint, key: string, value: number | undefined): Promise<void> {
    return RuntimeSession.with(endpoint, AbortSignal.timeout(DEADLINE_MS), async (session) => {
      const maps = await session.ask("show map");
      const { id } = findMap(maps, endpoint.name, { mapFile: this.#file }, REMEDIES);
      // type=str, case=sensitive, found=yes, idx=tree, key="node1", value="-5", type="str"
      const found = /\bfound=yes\b/.test(await session.ask(`get map #${id} ${key}`));
      if (value === undefined && found) await session.run(`del map #${id} ${key}`);
      if (value !== undefined) await session.run(`${found ? "set" : "add"} map #${id} ${key} ${value}`);
    });
  }
}

/**
 * Two changes at once would lose one of them, or leave an HAProxy with another class than the file. The turn is an abstract
 * socket of Linux, a name that only one process of a machine (or of a container) can have, and that the kernel takes back
 * when the process ends in whatever way: unlike a file, it is never left behind. Whoever has the turn closes it. Throws `BUSY`.
 */
async function takeTurn(file: string): Promise<Server> {
  const place = path.join(
    await realpath(path.dirname(file)).catch(() => path.dirname(file)),
    path.basename(file),
  );
  const name = createHash("sha256").update(place).digest("hex");
  const until = performance.now() + TURN_MS;
  for (;;) {
    const turn = createServer((stranger) => stranger.destroy());
    try {
      await once(turn.listen(`\0sasori-priority-${name}`), "listening");
      return turn;
    } catch (error) {
      if (systemCode(error) !== "EADDRINUSE") throw error;
    }
    if (performance.now() > until) {
      const what = `another process has been changing ${file} for more than ${TURN_MS / 1_000} s`;
      throw new SasoriError(
        "BUSY",
        `${what}: end it if it hangs (\`pgrep -af 'sasori priority'\`), and try again`,
      );
    }
    await sleep(LOOK_AGAIN_MS);
  }
}

/** As the gateway looks it up: a certname in small letters, an address as HAProxy writes it. Throws `USAGE`. */
function keyOf(name: string): string {
  if (isIP(name) === 6) return new SocketAddress({ address: name, family: "ipv6" }).address;
  const key = name.toLowerCase();
  if (isCertname(key) || isIP(key) === 4) return key;
  throw new SasoriError("USAGE", `${quote(name)} is neither a certname nor an IP address`);
}
