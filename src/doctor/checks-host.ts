// What the doctor looks at on this machine: Node, the files that sasori reads and writes, the daemon.

import { randomBytes } from "node:crypto";
import { rename, stat, statfs, unlink } from "node:fs/promises";
import { createServer } from "node:net";
import { userInfo } from "node:os";
import path from "node:path";
import { askDaemon, daemonUrl, NoSasori } from "../cli/daemon-client.js";
import type { Config, ListenAddress } from "../config.js";
import { counted, duration } from "../counts.js";
import { quote, reason, SasoriError, systemCode } from "../errors.js";
import type { Status } from "../http/api-shapes.js";
import type { Certname } from "../node-map.js";
import { readState, stateProblem, unusableEntries } from "../state/journal.js";
import { type Kind, Rows } from "../state/rows.js";
import { replaceFile } from "../target/atomic-file.js";
import { MapFile } from "../target/map-file.js";
import { PriorityMap } from "../target/priority.js";
import { isMountPoint, UnusableFile } from "../whole-file.js";
import { type Check, CheckError, type Problem, verdict } from "./check.js";

/** package.json's `engines`. */
const OLDEST_NODE = [20, 18, 1];

/** Free space to ask for: the old and the new map are on the disk at the same time, and the map may grow. */
const FREE_BYTES = 16 * 1024 * 1024;

/** The version of Node.js, and that the doctor does not run as root. */
export function nodeCheck(): Check {
  return {
    name: "Node.js",
    look() {
      const have = process.versions.node.split(".").map(Number);
      const differs = OLDEST_NODE.findIndex((number, index) => have[index] !== number);
      const isOld = differs >= 0 && (have[differs] ?? 0) < (OLDEST_NODE[differs] ?? 0);
      const wanted = OLDEST_NODE.join(".");
      return verdict(`Node.js ${process.versions.node}`, [
        isOld
          ? { outcome: "failed", what: "too old", remedy: `install Node.js ${wanted} or newer` }
          : undefined,
        process.geteuid?.() === 0
          ? {
              outcome: "warning",
              what: "the doctor runs as root, so it does not check permissions",
              remedy: "run it as the daemon's user (docs/debian.md)",
            }
          : undefined,
      ]);
    },
  };
}

/** The same limit as the alert SasoriSlowToAnswer. */
const LONG_DELAY_MS = 500;

/** A daemon that runs answers at once. */
const STATUS_MS = 5_000;

export type MapFileCheck = Check<ReadonlyMap<Certname, string>>;

export function fileChecks(config: Config): { all: Check[]; mapFile: MapFileCheck } {
  const { mapFile: map, stateFile, priorityFile, apiTokenFile, puppetdb } = config;
  const folders = new Set(
    [map, stateFile, ...(priorityFile ? [priorityFile] : [])].map((file) => path.dirname(file)),
  );
  const mapFile = mapFileCheck(map);
  const all = [
    mapFile,
    ...Array.from(folders, (folder) => folderCheck(folder, map)),
    stateFileCheck(stateFile),
  ];
  if (priorityFile !== undefined) all.push(priorityFileCheck(priorityFile));
  const filesOf = (kind: "keyFile" | "tokenFile") =>
    new Set(puppetdb.flat().flatMap((server) => server[kind] ?? []));
  for (const file of filesOf("keyFile")) all.push(secretCheck("private key", file));
  for (const file of filesOf("tokenFile")) all.push(secretCheck("PuppetDB token", file));
  const { stateDatabase: database } = config;
  if (database?.passwordFile !== undefined) all.push(secretCheck("state password", database.passwordFile));
  if (database?.keyFile !== undefined) all.push(secretCheck("state key", database.keyFile));
  if (apiTokenFile !== undefined) all.push(secretCheck("API token", apiTokenFile));
  return { all, mapFile };
}

/** Its value is what the file holds. */
function mapFileCheck(file: string): MapFileCheck {
  return {
    name: "map file",
    where: file,
    async look() {
      const found = await stat(file).catch((error: unknown) => {
        if (systemCode(error) !== "ENOENT") throw cannotRead(file, error);
        const remedy = `correct SASORI_MAP_FILE if HAProxy uses another file. Otherwise, before HAProxy's first start: touch ${file}`;
        throw new CheckError("it does not exist, and HAProxy does not start without it", remedy);
      });
      if (!found.isFile())
        throw new CheckError("it is not a file", "set SASORI_MAP_FILE to the path of a file");
      const { routes, capitals, strays = [] } = await new MapFile(file).read();
      const strange = strays.length + (capitals?.size ?? 0);
      const mounted = isMountPoint(file);
      return verdict(
        counted(routes.size, "node"),
        [
          mounted && {
            outcome: "failed" as const,
            what: "the file itself is a mount point, so it cannot be replaced",
            remedy: `mount its folder ${path.dirname(file)} instead of the file`,
          },
          strange > 0 && {
            outcome: "warning" as const,
            what: `${counted(strange, "line")} not as sasori writes them: capitals, illegal names, or a node twice`,
            remedy:
              "`sasori diff` shows what a pass would change. Lines that would be lost wait for your approval",
          },
        ].filter((problem) => problem !== false),
        routes,
      );
    },
  };
}

function cannotRead(file: string, error: unknown): CheckError {
  return new CheckError(
    `cannot read it: ${reason(error)}`,
    `let ${whoAmI()} read ${file} and enter its folder`,
  );
}

/** Writes a file there in the same way as the map: a temporary file, which is renamed. Then it is removed. */
function folderCheck(folder: string, mapFile: string): Check {
  return {
    name: "folder",
    where: folder,
    async look() {
      // If the doctor is killed here, sasori's next start removes a file of this name.
      const own = path.join(
        folder,
        `.${path.basename(mapFile)}.doctor-${randomBytes(6).toString("hex")}.tmp`,
      );
      try {
        await replaceFile(own, ["sasori doctor was here\n"], 0o600);
        await rename(own, `${own}.tmp`);
      } catch (error) {
        throw folderError(folder, error);
      } finally {
        for (const left of [own, `${own}.tmp`]) await unlink(left).catch(() => undefined);
      }
      const { bavail, bsize, files, ffree } = await statfs(folder);
      const size = await stat(mapFile).then(
        (found) => found.size,
        () => 0,
      );
      const [free, wanted] = [bavail * bsize, FREE_BYTES + 2 * size];
      return verdict(`writable, ${megabytes(free)} free`, [
        free < wanted || (files > 0 && ffree < 10)
          ? {
              outcome: "warning",
              what: "the disk is nearly full",
              remedy: `free ${megabytes(wanted)} in ${folder}`,
            }
          : undefined,
      ]);
    },
  };
}

function folderError(folder: string, error: unknown): CheckError {
  const code = error instanceof SasoriError ? error.code : "";
  const why = systemCode(error instanceof SasoriError ? error.cause : error);
  if (code === "FILE_FULL")
    return new CheckError(
      "the disk or quota is full, or its inodes are used up",
      `free some space in ${folder}`,
    );
  if (why === "ENOENT") return new CheckError("it does not exist", `create it: mkdir -p ${folder}`);
  if (why === "EROFS") return new CheckError("its file system is mounted read-only", "mount it writable");
  if (code === "FILE_READ_ONLY") {
    const remedy = `let ${whoAmI()} write the folder: sasori replaces files by renaming new ones`;
    return new CheckError("sasori cannot write there", remedy);
  }
  return new CheckError(reason(error), `let ${whoAmI()} create and rename files in ${folder}`);
}

function stateFileCheck(file: string): Check {
  return {
    name: "state file",
    where: file,
    async look() {
      try {
        const { rows, unusable } = await readState(file);
        const known = new Rows();
        for (const row of rows) known.take(row);
        const count = (kind: Kind) =>
          [...known].filter((row) => row.kind === kind && row.value !== null).length;
        return verdict(
          `${counted(count("route"), "registration or learned route", "registrations and learned routes")}, ${counted(count("home"), "displaced node")}`,
          unusable.length === 0
            ? []
            : [
                {
                  outcome: "warning",
                  what: `${unusableEntries(unusable)} cannot be used`,
                  remedy: "when sasori starts, it will set a copy aside. Then register the lost routes again",
                },
              ],
        );
      } catch (error) {
        if (systemCode(error) === "ENOENT")
          return verdict("does not exist yet: no registrations, no learned routes", []);
        if (error instanceof UnusableFile || systemCode(error) !== "") throw cannotRead(file, error);
        throw new CheckError(
          `it cannot be used: ${stateProblem(error).replaceAll(/\s*\n\s*/g, ", ")}`,
          "repair or remove it. Otherwise sasori will set it aside when it starts, and you register the lost routes again",
        );
      }
    },
  };
}

function priorityFileCheck(file: string): Check {
  return {
    name: "priority file",
    where: file,
    async look() {
      const isThere = await stat(file).then(
        () => true,
        () => false,
      );
      const listed = await new PriorityMap(file, []).list().catch((error: unknown) => {
        throw new CheckError(reason(error), "correct the file, and let sasori's user read it");
      });
      const entries = [...listed];
      const wrong = entries.filter(([, value]) => Math.abs(value) > 2047);
      const names = wrong.map(([key]) => quote(key)).join(", ");
      return verdict(counted(entries.length, "entry", "entries"), [
        isThere
          ? undefined
          : {
              outcome: "warning",
              what: "it does not exist, and an HAProxy that uses it does not start",
              remedy: `touch ${file}`,
            },
        wrong.length === 0
          ? undefined
          : {
              outcome: "warning",
              what: `classes outside -2047 to 2047: ${names}`,
              remedy: "sasori priority set <name> <class>",
            },
      ]);
    },
  };
}

/** Checks who can read the file. Its content was checked with the configuration. */
function secretCheck(name: string, file: string): Check {
  return {
    name,
    where: file,
    async look() {
      const { mode } = await stat(file);
      const problems: (Problem | undefined)[] = [
        (mode & 0o007) === 0
          ? undefined
          : {
              outcome: "failed",
              what: `every user of this machine may ${(mode & 0o002) === 0 ? "read" : "write"} it`,
              remedy: `chmod o= ${file}`,
            },
      ];
      return verdict(`mode ${(mode & 0o777).toString(8)}`, problems);
    },
  };
}

export function daemonCheck({ listen, apiTokenFile }: Config, version: string): Check {
  const url = daemonUrl(listen);
  return {
    name: "daemon",
    where: url,
    async look() {
      const address = { listen, apiTokenFile };
      const question = askDaemon<Partial<Status>>(address, "GET", "/api/v1/status", undefined, STATUS_MS);
      let taken = new CheckError(
        "another program listens there, and closes the connection at once",
        CHOOSE_ANOTHER,
      );
      const status = await question.catch((error: unknown) => {
        taken = takenBy(error);
        return undefined;
      });
      if (status === undefined) {
        await mustBeFree(listen, taken);
        const remedy = "start it: sasori serve";
        return verdict("", [
          { outcome: "warning", what: "no daemon is running; its address is free", remedy },
        ]);
      }
      const state = status.state ?? (status.ready ? "ready" : "not ready");
      const summary = status.summary === undefined ? "" : `: ${status.summary}`;
      const other = status.version !== undefined && status.version !== version;
      return verdict(`sasori ${status.version ?? ""} runs, ${state}${summary}`, [
        other
          ? { outcome: "warning", what: `this is sasori ${version}`, remedy: "restart the daemon" }
          : undefined,
        (status.longestDelayMs ?? 0) > LONG_DELAY_MS
          ? {
              outcome: "warning",
              what: `it was busy for ${duration(status.longestDelayMs ?? 0)} within the last minute, and answered no request meanwhile`,
              remedy:
                "give it more processor time. HAProxy waits 2 s for its answer, and then goes on without it",
            }
          : undefined,
        silentMasters(status.hints),
        status.ready === true && state !== "failing" && state !== "attention"
          ? undefined
          : { outcome: "warning", what: `its state is: ${state}`, remedy: "`sasori status` says why" },
      ]);
    },
  };
}

/** Masters that have nodes and send no hints. */
function silentMasters(hints: Status["hints"]): Problem | undefined {
  if (hints === undefined || hints.masters >= hints.of) return undefined;
  const more = hints.of - hints.masters - hints.silent.length;
  return {
    outcome: "warning",
    what: `${hints.masters} of ${hints.of} masters send hints: none from ${hints.silent.join(", ")}${more > 0 ? ` and ${more} more` : ""}`,
    remedy: "set up the others (docs/hints.md); their nodes' moves wait for the next pass",
  };
}

const CHOOSE_ANOTHER = "stop that program, or choose another address in SASORI_LISTEN";

/**
 * Another program listens there only if its answer shows that. A sasori that hangs or is busy gives no usable answer
 * either.
 */
function takenBy(error: unknown): CheckError {
  if (error instanceof NoSasori)
    return new CheckError(`another program listens there, not sasori (${reason(error)})`, CHOOSE_ANOTHER);
  const what = `something listens there, but gives no usable answer: ${reason(error)}`;
  return new CheckError(what, "check the daemon's log; restart it if it hangs");
}

/** Listens on the address for a moment. Throws `taken` if another program already does. */
async function mustBeFree({ host, port }: ListenAddress, taken: CheckError): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    const server = createServer();
    server.once("error", reject);
    server.listen({ host, port }, () => server.close(() => resolve()));
  }).catch((error: unknown) => {
    const remedies: Record<string, string> = {
      EADDRNOTAVAIL: "this machine has no such address: correct SASORI_LISTEN",
      ENOTFOUND: "this machine has no such address: correct SASORI_LISTEN",
      EACCES: "only root may use ports below 1024: choose a higher one in SASORI_LISTEN",
    };
    const code = systemCode(error);
    if (code === "EADDRINUSE") throw taken;
    const what = `sasori could not listen on it: ${reason(error)}`;
    throw new CheckError(what, remedies[code] ?? "correct SASORI_LISTEN");
  });
}

const megabytes = (bytes: number): string =>
  bytes > 10 * 1024 ** 3 ? `${Math.round(bytes / 1024 ** 3)} GB` : `${Math.round(bytes / 1024 ** 2)} MB`;

/** For remedies: who needs the permission. */
export function whoAmI(): string {
  try {
    return `user ${userInfo().username}`;
  } catch {
    return `uid ${process.getuid?.() ?? "?"}`; // It has no entry in /etc/passwd.
  }
}
