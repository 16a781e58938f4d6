/**
 * Where the real programs are that the tests run: those that `setup/parts.sh test` has fetched, or those that
 * the environment names (HAPROXY_BIN, TEST_HAPROXY_BINS; see that script, which alone knows the places).
 */
import { execFileSync } from "node:child_process";
import path from "node:path";

/** Tests and benchmarks run in the repository's root, wherever this file was compiled to. */
const SETUP = path.resolve("setup/parts.sh");
const REMEDY = "run `setup/parts.sh test`, which fetches it (no root needed)";

/** `npm run test:quick`: one HAProxy, the newest. */
export const isQuick = process.env.TEST_QUICK === "yes";

/** A HAProxy to test against: its version ("3.0.11") and the path of its program. */
export interface HaproxyBinary {
  version: string;
  bin: string;
}

/** The programs around PuppetDB: all are absolute paths; `classpath` is what `java -cp` wants. */
export interface PuppetdbParts {
  java: string;
  classpath: string;
  /** The package's own configuration, to take `bootstrap.cfg` and `conf.d/auth.conf` from. */
  configDir: string;
  openssl: string;
}

let listed: Map<string, string[]> | undefined;
let haproxys: HaproxyBinary[] | undefined;
let next: HaproxyBinary[] | undefined;

/**
 * Every HAProxy to test against, oldest release first. Asks each for its version once per process.
 * Throws when there is none, and with CI=true already when one is missing: CI must not skip silently.
 */
export function haproxyBinaries(): HaproxyBinary[] {
  haproxys ??= findHaproxys();
  return haproxys;
}

/** As `haproxyBinaries`, and 3.4 where `setup/parts.sh next` has fetched it: for what the containers run. */
export function haproxyBinariesAndNext(): HaproxyBinary[] {
  next ??= isQuick ? [] : named("next");
  return [...haproxyBinaries(), ...next];
}

/** The absolute path of a program or folder. Throws, with the remedy, when it has not been fetched. */
export function pathOf(name: string): string {
  const found = list().get(name)?.[0];
  if (found === undefined) throw new Error(`${name} is missing here: ${REMEDY}`);
  return found;
}

/** A release of PuppetDB that the tests run. */
export type PuppetdbRelease = 7 | 8;

/** PuppetDB and its Java. */
export function puppetdbParts(release: PuppetdbRelease = 7): PuppetdbParts {
  const suffix = release === 7 ? "" : "8";
  return {
    java: pathOf(`java${suffix}`),
    classpath: pathOf(`classpath${suffix}`),
    configDir: pathOf(`puppetdb${suffix}`),
    openssl: pathOf("openssl"),
  };
}

/** Those that have not been fetched, such as "haproxy-trixie". */
export function missingParts(): string[] {
  return list().get("missing") ?? [];
}

/** As `pathOf`, for a program that not every distribution has: undefined where it is missing, but for CI. */
export function partIfThere(name: string): string | undefined {
  return process.env.CI === "true" ? pathOf(name) : list().get(name)?.[0];
}

/** Whether a version is this release or a later one, as `isFrom("3.0.11", 3, 4)`. */
export function isFrom(version: string, major: number, minor: number): boolean {
  const [ours = 0, minorOurs = 0] = version.split(".").map(Number);
  return ours > major || (ours === major && minorOurs >= minor);
}

function findHaproxys(): HaproxyBinary[] {
  const missing = missingParts().filter((part) => part.startsWith("haproxy"));
  if (process.env.CI === "true" && missing.length > 0) {
    throw new Error(`${missing.join(", ")} missing, and CI=true skips nothing: ${REMEDY}`);
  }
  const found = named("haproxy");
  if (found.length === 0) {
    throw new Error(`no HAProxy to test against: ${REMEDY}, or set HAPROXY_BIN`);
  }
  found.sort((a, b) => a.version.localeCompare(b.version, "en", { numeric: true }));
  return isQuick ? found.slice(-1) : found;
}

function named(name: string): HaproxyBinary[] {
  return (list().get(name) ?? []).map((bin) => ({ version: haproxyVersion(bin), bin }));
}

function haproxyVersion(bin: string): string {
  const answer = execFileSync(bin, ["-v"], { encoding: "utf8" });
  const version = /^HA-?Proxy version (\d+(?:\.\d+)+)/.exec(answer)?.[1];
  if (version === undefined) throw new Error(`${bin} -v does not say a HAProxy version: ${answer}`);
  return version;
}

function list(): Map<string, string[]> {
  if (listed === undefined) {
    listed = new Map();
    for (const line of execFileSync(SETUP, ["paths"], { encoding: "utf8" }).split("\n")) {
      const [name, path] = line.split("\t");
      if (name !== undefined && path !== undefined) listed.set(name, [...(listed.get(name) ?? []), path]);
    }
  }
  return listed;
}
