// The gateway's second map: which nodes or clients are served first when a master's queue fills. It is small and
// changed by hand, so it has no plan: an entry goes into the file, then into every HAProxy that runs. One that
// does not run reads the file when it starts. Changes are made one after the other, also those of several processes.

import { isIP, SocketAddress } from "node:net";
import type { Endpoint } from "../config.js";
import { type Failure, quote, reason, SasoriError, systemCode, toFailure } from "../errors.js";
import { isCertname } from "../node-map.js";
import { readWhole } from "../whole-file.js";
import { replaceFile } from "./atomic-file.js";
import { findMap } from "./haproxy.js";
import { RuntimeSession } from "./runtime-api.js";
import { takeTurn } from "./turn.js";

/** HAProxy's range of `set-priority-class`; lower is served first, and 0 is the class of everything that is not in the map. */
const MOST = 2047;

const HEADER =
  "# node or client address, and its class: lower is served first from a queue. Written by sasori.\n";

const DEADLINE_MS = 10_000;

/** More entries than anybody writes for one key. */
const MAX_DUPLICATES = 1_000;

/** Somewhat longer than a change takes if an HAProxy does not answer. */
const TURN_MS = 15_000;

// Not SASORI_MAP_NAME: with that, sasori would write the nodes' masters into this map.
const NO_SUCH_MAP =
  "set SASORI_PRIORITY_FILE to the file that PRIORITY_MAP names there, or PRIORITY_MAP to this file";
const REMEDIES = {
  none: NO_SUCH_MAP,
  another: () => NO_SUCH_MAP,
  several: "give the file that PRIORITY_MAP names a base name of its own",
};

export interface PriorityChange {
  key: string;
  class: number | undefined;
  /** Each HAProxy, and why the change did not reach it. Such an HAProxy reads the file at its next start. */
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
   * does not start with such a line, and the person who wrote it had a reason.
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
          `${what}: expected a node or client address and its class, for example "db1.example.com -100": correct or remove it`,
        );
      }
      if (!entries.has(key)) entries.set(key, Number(value)); // HAProxy uses the first entry of a key.
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
    // Two changes at once would lose one of them, or leave an HAProxy with another class than the file.
    const turn = await takeTurn(this.#file, TURN_MS);
    try {
      return await this.#change(key, value);
    } finally {
      await turn.end();
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
      const lookUp = async () =>
        /\bfound=yes\b.*?\bvalue="([^"]*)"/.exec(await session.ask(`get map #${id} ${key}`))?.[1];
      const had = await lookUp();
      if (value !== undefined && had !== undefined) {
        await session.run(`set map #${id} ${key} ${value}`);
        if ((await lookUp()) === String(value)) return;
      }
      // A key may occur twice. From HAProxy 3.4 on "set" and "del" change only one of its entries.
      for (let times = 1; (await lookUp()) !== undefined; times += 1) {
        if (times > MAX_DUPLICATES) throw stillThere(endpoint, key);
        await session.run(`del map #${id} ${key}`);
      }
      if (value !== undefined) await session.run(`add map #${id} ${key} ${value}`);
    });
  }
}

const stillThere = ({ name }: Endpoint, key: string) =>
  new SasoriError("HAPROXY_REPLY", `${name}: ${quote(key)} is still there after ${MAX_DUPLICATES} "del map"`);

/** As the gateway looks it up: a certname in lower case, an address as HAProxy writes it. Throws `USAGE`. */
function keyOf(name: string): string {
  if (isIP(name) === 6) return new SocketAddress({ address: name, family: "ipv6" }).address;
  const key = name.toLowerCase();
  if (isCertname(key) || isIP(key) === 4) return key;
  throw new SasoriError("USAGE", `${quote(name)} is neither a certname nor an IP address`);
}
