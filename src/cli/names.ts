// Names as people type them. A short name, without a dot, stands for the only node or master whose name continues with
// a dot: `node1` for `node1.example.com`. A name that exists exactly as typed always stands for itself.

import { number } from "../counts.js";
import { quote, SasoriError } from "../errors.js";
import type { Nodes } from "../http/api-shapes.js";
import { type Certname, parseCertname } from "../node-map.js";

/** How many names a message repeats. */
const MAX_NAMES = 12;

/** Two are enough to know that a name is ambiguous; with this limit the message can also count them. */
const NEAR = 100;

/** Nodes whose certname contains `q`, in order, behind `cursor`. */
export type NodesWith = (wanted: { q: string; cursor: string; limit: number }) => Promise<Nodes>;

/** Called with a short name and what it stands for. */
export type Note = (text: string) => void;

/** A name that nobody knows is returned as it is. Throws `USAGE` when a short name stands for several nodes. */
export async function wholeCertname(typed: Certname, nodesWith: NodesWith, note: Note): Promise<Certname> {
  if (typed.includes(".")) return typed;
  const exact = await nodesWith({ q: typed, cursor: before(typed), limit: 1 });
  if (exact.nodes.some(({ certname }) => certname === typed)) return typed;
  const { nodes } = await nodesWith({ q: `${typed}.`, cursor: before(`${typed}.`), limit: NEAR });
  const whole = only(
    typed,
    "node",
    nodes.map(({ certname }) => certname),
    note,
  );
  return whole === undefined ? typed : parseCertname(whole);
}

/** Undefined when no master has this name. Throws `USAGE` when a short name stands for several. */
export function wholeMaster(typed: string, masters: readonly string[], note: Note): string | undefined {
  return masters.includes(typed) ? typed : only(typed, "master", masters, note);
}

/** The cursor just before the names that begin with `name`: "~" sorts after every character of a certname. */
const before = (name: string): string =>
  `${name.slice(0, -1)}${String.fromCharCode(name.charCodeAt(name.length - 1) - 1)}~`;

export function noSuchMaster(typed: string, masters: readonly string[]): SasoriError {
  return new SasoriError("USAGE", `there is no master ${quote(typed)}. The masters are: ${listed(masters)}`);
}

function only(typed: string, what: string, names: readonly string[], note: Note): string | undefined {
  const found = names.filter((name) => name.startsWith(`${typed}.`));
  if (found.length > 1)
    throw new SasoriError(
      "USAGE",
      `${quote(typed)} is short for ${found.length} ${what}s: ${listed(found)}. Type the whole name`,
    );
  const [whole] = found;
  if (whole !== undefined) note(`${typed} is short for ${whole}`);
  return whole;
}

function listed(names: readonly string[]): string {
  if (names.length === 0) return "none";
  const more = names.length > MAX_NAMES ? `, and ${number(names.length - MAX_NAMES)} more` : "";
  return names.slice(0, MAX_NAMES).join(", ") + more;
}
