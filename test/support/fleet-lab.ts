/**
 * A laboratory for passes: the PuppetDB stand-in, real HAProxy instances that share one map file, and a Sync over them.
 * Everything is on loopback and in a temporary folder, and is gone when the test is over.
 */
import { mkdir, mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { expect } from "vitest";
import { startPuppetdbStandIn } from "../../demo/puppetdb.js";
import { type Config, readConfig } from "../../src/config.js";
import { parseLine, toLine } from "../../src/state/rows.js";
import { assemble, Sync, type SyncWatcher } from "../../src/sync.js";
import { freePort } from "./child.js";
import { type HaproxyOptions, type HaproxyServer, startHaproxy } from "./haproxy-server.js";
import { type PuppetdbClient, standInClient } from "./puppetdb-server.js";

/** How long a pass that is under way may go on when a laboratory is closed. */
const STOP_MS = 2_000;

export const MASTERS = ["master1", "master2", "master3"];

export interface FleetLab {
  puppetdb: PuppetdbClient;
  haproxys: HaproxyServer[];
  mapFile: string;
  /** As PuppetDB's outage: the port is closed. */
  stopPuppetdb(): Promise<void>;
  /** It comes back empty, at the same address. */
  startPuppetdb(): Promise<void>;
  /** What `sasori serve` would read from the environment here, with more variables. */
  config(extra?: Record<string, string>): Config;
  /** A new Sync, as after a restart of sasori; the map file and the state file stay. */
  newSync(extra?: Record<string, string>, watcher?: SyncWatcher): Promise<Sync>;
  /** The map file's entries. */
  file(): Promise<Map<string, string>>;
  /** A node's run at a master, `at` milliseconds from now. */
  run(certname: string, master: string, at?: number): Promise<void>;
}

/** Gives `use` a laboratory with as many HAProxy instances as there are options. */
export async function withFleetLab<T>(
  options: readonly (Omit<HaproxyOptions, "servers"> & Partial<Pick<HaproxyOptions, "servers">>)[],
  use: (lab: FleetLab) => Promise<T>,
): Promise<T> {
  const folder = await mkdtemp(path.join(tmpdir(), "sasori-lab-"));
  const mapFile = path.join(folder, "maps", "nodes.map");
  await mkdir(path.dirname(mapFile));
  const port = await freePort();
  let standIn = await startPuppetdbStandIn({ host: "127.0.0.1", port });
  const servers = MASTERS.map((name, index) => ({ name, port: 18141 + index }));
  const haproxys: HaproxyServer[] = [];
  const url = `http://127.0.0.1:${port}`;
  const puppetdb = standInClient(url);
  const config = (extra: Record<string, string> = {}) =>
    readConfig({
      SASORI_PUPPETDB_URL: url,
      SASORI_HAPROXY: haproxys.map(({ socketPath }) => socketPath).join(",") || "none",
      SASORI_MAP_FILE: mapFile,
      ...extra,
    });
  const closing: (() => Promise<void>)[] = [];
  try {
    for (const one of options) haproxys.push(await startHaproxy({ servers, ...one }));
    const result = await use({
      puppetdb,
      haproxys,
      mapFile,
      stopPuppetdb: () => standIn.close(),
      async startPuppetdb() {
        standIn = await startPuppetdbStandIn({ host: "127.0.0.1", port });
      },
      config,
      async newSync(extra = {}, watcher = {}) {
        const parts = assemble(config(extra));
        const sync = new Sync(parts, watcher);
        closing.push(
          () => sync.stop(STOP_MS),
          () => parts.state.close(),
          () => parts.puppetdb.close(),
        );
        await sync.restore();
        return sync;
      },
      file: async () => parse(await readFile(mapFile, "utf8")),
      run: (certname, producer, at = 0) =>
        puppetdb.replaceFacts({ certname, producer, at: new Date(Date.now() + at) }),
    });
    await checkState(`${mapFile}.state.json`);
    return result;
  } finally {
    for (const close of closing) await close();
    for (const haproxy of haproxys) await haproxy.stop();
    await standIn.close();
    await rm(folder, { recursive: true, force: true });
  }
}

/** Rows are compared by their texts, so each has the text that it has after it was read. */
async function checkState(file: string): Promise<void> {
  const text = await readFile(file, "utf8").catch(() => "");
  for (const line of text.split("\n").slice(1, -1)) expect(toLine(parseLine(line))).toBe(`${line}\n`);
}

function parse(text: string): Map<string, string> {
  const lines = text.split("\n").filter((line) => line !== "" && !line.startsWith("#"));
  return new Map(lines.map((line) => line.split(" ") as [string, string]));
}
