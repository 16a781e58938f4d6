// What the faults did: one row each. Each test file keeps its own; report.ts makes one table of them.

import { mkdirSync, writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll } from "vitest";
import { type PuppetdbServer, startPuppetdb } from "../support/puppetdb-server.js";

/** Where the parts are put, and the whole. */
export const RESULTS = fileURLToPath(new URL("../../dist/faults", import.meta.url));

export interface Row {
  fault: string;
  tries: number;
  /** Entries of the file, a live map or PuppetDB that did not agree in the end, of all tries. */
  lost: number;
  /** Requests whose route was wrong although their node had not moved since all agreed. */
  misrouted: number;
  /** Requests without an answer of their node's master, which was there. */
  failed: number;
  requests: number;
  /** From the end of the fault to full agreement: the slowest try. */
  seconds: number;
}

export interface Ledger {
  rows: Row[];
  /** The error codes that a fault made sasori show, each with one of its messages. */
  codes: Record<string, string>;
}

const ledger: Ledger = { rows: [], codes: {} };

export function enter(row: Row): void {
  ledger.rows.push(row);
}

/** A fault without an arena: nothing was lost, or an assertion has said so. */
export function enterCases(fault: string, tries: number, seconds = 0): void {
  enter({ fault, tries, lost: 0, misrouted: 0, failed: 0, requests: 0, seconds });
}

export function enterCode(code: string, message: string): void {
  ledger.codes[code] = message;
}

/** At the end of the tests of this file the ledger is written. */
export function keepLedger(file: string): void {
  afterAll(() => {
    mkdirSync(RESULTS, { recursive: true });
    writeFileSync(path.join(RESULTS, `${file}.json`), JSON.stringify(ledger));
  });
}

/** A PuppetDB for the tests of this file, which begin by emptying it. */
export function ownPuppetdb(file: string): () => PuppetdbServer {
  let server: PuppetdbServer | undefined;
  beforeAll(async () => {
    server = await startPuppetdb();
  });
  afterAll(() => server?.stop());
  keepLedger(file);
  return () => {
    if (server === undefined) throw new Error("PuppetDB has not been started");
    return server;
  };
}
