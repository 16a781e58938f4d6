// `sasori register --file`: the nodes of a file, and who registers them.

import { readFile } from "node:fs/promises";
import { hostname, userInfo } from "node:os";
import { text } from "node:stream/consumers";
import { counted, several } from "../counts.js";
import { quote, reason, SasoriError } from "../errors.js";
import type { Registrations } from "../http/api-shapes.js";
import { withoutPlace } from "../http/troubles.js";

/** `master2` of `node7.example.com`. Certnames are in lower case, as Puppet writes them. */
export interface FileRegistration {
  certname: string;
  master: string;
}

/** A line for each node: its certname, its master. Empty lines and what follows a `#` do not count. Throws `USAGE`. */
export async function readRegistrations(file: string): Promise<FileRegistration[]> {
  const lines = (await readAll(file)).split(/\r?\n/);
  const problems: string[] = [];
  const nodes = lines.flatMap((line, index) => {
    const [certname, master, ...rest] = line.replace(/#.*/, "").trim().split(/\s+/);
    if (certname === undefined || certname === "") return [];
    if (master !== undefined && rest.length === 0) return [{ certname: certname.toLowerCase(), master }];
    problems.push(`line ${index + 1} is ${quote(line)}`);
    return [];
  });
  if (problems.length > 0) {
    const expected = 'expected "certname master" on each line';
    throw new SasoriError("USAGE", `nothing was registered: ${expected}: ${several(problems)}`);
  }
  if (nodes.length === 0) throw new SasoriError("USAGE", `${nameOf(file)} has no nodes`);
  return nodes;
}

async function readAll(file: string): Promise<string> {
  try {
    return file === "-" ? await text(process.stdin) : await readFile(file, "utf8");
  } catch (error) {
    throw new SasoriError("USAGE", `cannot read ${nameOf(file)}: ${reason(error)}`, { cause: error });
  }
}

const nameOf = (file: string) => (file === "-" ? "standard input" : file);

/** Who runs this, for people to read. It is not verified. */
export function whoAmI(environment: Readonly<Record<string, string | undefined>>): string {
  return `${environment.SUDO_USER || userName()}@${hostname()}`;
}

function userName(): string {
  try {
    return userInfo().username;
  } catch {
    return `uid ${process.getuid?.() ?? "?"}`; // A container's user may have no name.
  }
}

/** What many registrations still lack. Empty when they lack nothing. */
export function lackInWords({ lacking, unsaved }: Registrations): string {
  const targets = lacking.map(({ target, failure }) => {
    const why = failure ? `: ${failure.code}: ${withoutPlace(failure.message, target)}` : "";
    return `${target} could not be written yet${why}`;
  });
  return [...targets, ...(unsaved ? [unsaved.message] : [])].join("; ");
}

export const registeredInWords = ({ registered }: Registrations): string =>
  `registered ${counted(registered, "node")}`;
