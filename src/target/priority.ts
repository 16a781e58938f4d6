// The gateway's second map: which nodes or clients are served first when a master's queue fills. It is small and
// changed by hand, so it has no plan: an entry goes into the file, then into every HAProxy that runs. One that
// does not run reads the file when it starts.

import { readFile } from "node:fs/promises";
import { isIP } from "node:net";
import type { Endpoint } from "../config.js";
import { type Failure, quote, reason, SasoriError, systemCode, toFailure } from "../errors.js";
import { isCertname } from "../node-map.js";
import { replaceFile } from "./atomic-file.js";
import { findMap } from "./haproxy.js";
import { RuntimeSession } from "./runtime-api.js";

/** HAProxy's range of `set-priority-class`; lower is served first, and whoever is not in the map has 0. */
const MOST = 2047;

const HEADER =
  "# node or client address, and its class: lower is served first from a queue. Written by sasori.\n";

const DEADLINE_MS = 10_000;

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

  /** Key to class. A file that does not exist is empty. Throws `FILE_READ`. */
  async list(): Promise<Map<string, number>> {
    try {
      const lines = (await readFile(this.#file, "latin1")).split("\n");
      const entries = lines
        .filter((line) => line !== "" && !line.startsWith("#"))
        .map((line) => line.split(/\s+/));
      return new Map(entries.map(([key = "", value]) => [key, Number(value)]));
    } catch (error) {
      if (systemCode(error) === "ENOENT") return new Map();
      throw new SasoriError("FILE_READ", `cannot read ${this.#file}: ${reason(error)}`, { cause: error });
    }
  }

  /** Sets a class, or takes the key out (`undefined`). Throws `USAGE` and what `replaceFile` throws. */
  async change(key: string, value: number | undefined): Promise<PriorityChange> {
    if (!isCertname(key) && isIP(key) === 0) {
      throw new SasoriError("USAGE", `${quote(key)} is neither a certname nor an IP address`);
    }
    if (value !== undefined && !(Number.isInteger(value) && Math.abs(value) <= MOST)) {
      throw new SasoriError(
        "USAGE",
        `${value} is not a class: expected a whole number from -${MOST} to ${MOST}`,
      );
    }
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
      const { id } = findMap(await session.ask("show map"), endpoint.name, { mapFile: this.#file });
      // type=str, case=sensitive, found=yes, idx=tree, key="node1", value="-5", type="str"
      const found = /\bfound=yes\b/.test(await session.ask(`get map #${id} ${key}`));
      if (value === undefined && found) await session.run(`del map #${id} ${key}`);
      if (value !== undefined) await session.run(`${found ? "set" : "add"} map #${id} ${key} ${value}`);
    });
  }
}
