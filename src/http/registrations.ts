// Registrations as they are asked for, one or many: all are checked before the first one counts, and an error names each
// wrong node. Pure: no I/O, no clock.

import type { z } from "zod";
import { counted, number, several } from "../counts.js";
import { quote, reason, SasoriError } from "../errors.js";
import type { Resolve } from "../fleet.js";
import { type Certname, type Master, parseCertname, parseMaster } from "../node-map.js";
import { MAX_REGISTRATIONS, type RegistrationsBody } from "./api-shapes.js";

/** For each wrong node it names this many masters, and counts the others. There may be hundreds. */
const MAX_NAMES = 12;

interface Remarks {
  reason?: string | undefined;
  by?: string | undefined;
}

export interface Registration extends Remarks {
  certname: Certname;
  master: Master;
  source: "registration";
}

/** The servers that a node may be registered with. */
export interface Servers {
  /** Undefined: there is no HAProxy to ask. */
  names: ReadonlySet<string> | undefined;
  /** Finds the server for a puppetserver's certname. */
  resolve: Resolve;
}

/** `master` is a server's name, or a puppetserver's certname. Throws `USAGE`. */
export function toRegistration(
  certname: string,
  master: string,
  remarks: Remarks,
  { names, resolve }: Servers,
): Registration {
  const parsed = parseCertname(certname);
  const server = names?.has(master) ? parseMaster(master) : (resolve(master) ?? noServer(master, names));
  return { certname: parsed, master: server, ...remarks, source: "registration" };
}

function noServer(master: string, names: ReadonlySet<string> = new Set()): Master {
  parseMaster(master);
  const more = names.size > MAX_NAMES ? `, and ${names.size - MAX_NAMES} more` : "";
  const some = [...names].slice(0, MAX_NAMES).join(", ");
  throw new SasoriError("USAGE", `HAProxy has no master ${quote(master)} (it has: ${some}${more})`);
}

/** All or none. A node's own remarks replace those for all. Throws `USAGE` that names each wrong node. */
export function toRegistrations(
  body: z.output<typeof RegistrationsBody>,
  all: Remarks,
  servers: Servers,
): Registration[] {
  const asked = Array.isArray(body)
    ? body
    : Object.entries(body).map(([certname, master]) => ({ certname, master }) as (typeof body & [])[number]);
  if (asked.length === 0) throw new SasoriError("USAGE", "name at least one node");
  if (asked.length > MAX_REGISTRATIONS) {
    const what = `one call may name at most ${number(MAX_REGISTRATIONS)} nodes; this one names ${number(asked.length)}`;
    throw new SasoriError("USAGE", `${what}: use several calls`);
  }
  const registrations = new Map<string, Registration>();
  const problems: string[] = [];
  for (const { certname, master, ...own } of asked) {
    try {
      const known = registrations.get(certname);
      const wanted = toRegistration(certname, master, { ...all, ...own }, servers);
      if (known !== undefined && known.master !== wanted.master)
        throw new SasoriError("USAGE", `it is named twice, with ${known.master} and ${quote(master)}`);
      registrations.set(certname, wanted);
    } catch (error) {
      problems.push(`${quote(certname)}: ${reason(error)}`);
    }
  }
  if (problems.length === 0) return [...registrations.values()];
  const wrong = counted(problems.length, "node is", "nodes are");
  throw new SasoriError("USAGE", `nothing was registered, ${wrong} wrong: ${several(problems)}`);
}
