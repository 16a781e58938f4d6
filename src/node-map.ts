// The names that may reach HAProxy, and the map of them: which master each node last spoke to.
// A Certname or a Master exists only parsed, so nothing else can be put into a command or into the file.
// NodeMap keeps one rule, "the newest observation wins", and remembers what changed until it is asked.
// It does no I/O.

import { quote, SasoriError } from "./errors.js";
import { LargeMap } from "./large-map.js";
import { copyInPieces } from "./pieces.js";

/** A node's name in Puppet's CA, and its key in HAProxy's map. Only `parseCertname` makes one. */
export type Certname = string & { readonly brand: "Certname" };

/** The name of a server line in the backend of the masters, or of a backend that is a pool. Only `parseMaster` makes one. */
export type Master = string & { readonly brand: "Master" };

// Puppet allows every printable character but "/" in a certname, and PuppetDB asks only for "not blank".
// A space, ";", "\", "<" or "#" would change a Runtime API command or a line of the map file, so a name
// outside this set is refused and reported, never escaped.
const CERTNAME = /^[a-z0-9_][a-z0-9._-]{0,252}$/;

// HAProxy's own rule for server names (letters, digits, "_", ":", ".", "-"), with a bound on the length.
const MASTER = /^[A-Za-z0-9_:.-]{1,128}$/;

export function isCertname(text: string): text is Certname {
  return CERTNAME.test(text);
}

export function isMaster(text: string): text is Master {
  return MASTER.test(text);
}

/** Throws `USAGE`: for names that a person typed. */
export function parseCertname(text: string): Certname {
  if (isCertname(text)) return text;
  throw new SasoriError(
    "USAGE",
    `${quote(text)} cannot be a map key: a certname is 1 to 253 of a-z 0-9 . _ - and does not begin with . or -`,
  );
}

/** Throws `USAGE`: for names that a person typed. */
export function parseMaster(text: string): Master {
  if (isMaster(text)) return text;
  throw new SasoriError(
    "USAGE",
    `${quote(text)} cannot be an HAProxy server name: expected 1 to 128 of A-Z a-z 0-9 _ : . -`,
  );
}

/**
 * Where an observation comes from. `inherited`: the map file or a live map had the route when sasori started. Its time is the
 * one in the last line of the file (see map-file.ts), less an allowance. Without that it is 0, and every other observation
 * replaces it.
 */
export const SOURCES = ["facts", "catalog", "report", "registration", "learned", "inherited"] as const;
export type Source = (typeof SOURCES)[number];

/** Whether it comes from PuppetDB. A registration, a learned route and an inherited route do not. */
export const isOfPuppetdb = ({ source }: Pick<Observation, "source">): boolean =>
  source === "facts" || source === "report" || source === "catalog";

/** The place of a registration or learned route, see Observation. */
export const placeOf = ({ place, at }: Pick<Observation, "place" | "at">): number => place ?? at;

/**
 * Later times are refused. PuppetDB takes years up to 9999, but no real clock shows them, and later years have more than four
 * digits.
 */
export const LATEST_TIME = Date.UTC(9000, 0);

/** One node seen at one master. `at` is in milliseconds since the epoch, on the clock of the program that saw it. */
export interface Observation {
  certname: Certname;
  master: Master;
  at: number;
  source: Source;
  /** Which PuppetDB it came from, if several are configured. */
  from?: string;
  /**
   * For a registration or learned route: the time of the PuppetDB observation that it replaced; missing if there was none.
   */
  reported?: number | undefined;
  /**
   * For a registration or learned route: its place in their order for this node, if that is later than `at`, because a clock
   * was ahead when it or an earlier one was dated. PuppetDB's observations are compared with `at`.
   */
  place?: number;
  /** For an inherited route: PuppetDB was read and says nothing newer. */
  confirmed?: true;
  /** For a registration: its reason, and who made it by their own account; one line each. */
  reason?: string | undefined;
  by?: string | undefined;
}

/** Maximum length of a reason, or of the name of the person who gave it: one line. */
export const MAX_REMARK = 200;
// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is refused.
export const isRemark = (text: string): boolean => !/[\u0000-\u001f\u007f-\u009f\u2028\u2029]/.test(text);

/** The reason of a registration, and who made it, if that was given. */
export const remarksOf = ({ reason, by }: Pick<Observation, "reason" | "by">) => ({
  ...(reason !== undefined && { reason }),
  ...(by !== undefined && { by }),
});

/** The newest observation of a node. */
export type Assignment = Observation;

/** The master that a node had before it changed; `undefined` for a node that the map did not hold. */
export type Before = Map<Certname, Master | undefined>;

export class NodeMap {
  #assignments: Map<Certname, Assignment> = new LargeMap();
  #before: Before = new LargeMap();
  /** The time of the newest PuppetDB observation ever taken, even if its node was removed since. 0: none yet. */
  newestAt = 0;

  /** A copy of the map. */
  static *copy(from: NodeMap): Generator<void, NodeMap> {
    const copy = new NodeMap();
    copy.#assignments = yield* copyInPieces(from.#assignments);
    copy.newestAt = from.newestAt;
    return copy;
  }

  get size(): number {
    return this.#assignments.size;
  }

  get(certname: Certname): Assignment | undefined {
    return this.#assignments.get(certname);
  }

  /**
   * A time for something that happens `now`. It is later than that of the known assignment, even if that is in the future.
   */
  timeAfterKnown(certname: Certname, now: number): number {
    return Math.max(now, (this.get(certname)?.at ?? 0) + 1);
  }

  certnames(): IterableIterator<Certname> {
    return this.#assignments.keys();
  }

  /** All assignments, in no particular order. */
  assignments(): IterableIterator<Assignment> {
    return this.#assignments.values();
  }

  /** Takes the observation if it is newer than what is known. Equal or older never replaces. */
  observe(observation: Observation): boolean {
    const known = this.#assignments.get(observation.certname);
    if (known !== undefined && known.at >= observation.at) return false;
    this.replace(observation);
    return true;
  }

  /** The observation's producer has another server now. The observation keeps its time. */
  reassign(certname: Certname, master: Master): boolean {
    const known = this.#assignments.get(certname);
    if (known === undefined || known.master === master) return false;
    this.#remember(certname, known.master);
    this.#assignments.set(certname, { ...known, master });
    return true;
  }

  /** Notes that the same observation now comes from another PuppetDB. */
  credit(certname: Certname, from: string): void {
    const known = this.#assignments.get(certname);
    if (known !== undefined && known.from !== from) this.#assignments.set(certname, { ...known, from });
  }

  /** Takes the observation even if it is older, because the known one was inherited, or a person approved the step back. */
  replace(observation: Observation): void {
    const known = this.#assignments.get(observation.certname);
    if (known?.master !== observation.master) this.#remember(observation.certname, known?.master);
    if (isOfPuppetdb(observation)) this.newestAt = Math.max(this.newestAt, observation.at);
    this.#assignments.set(observation.certname, observation);
  }

  remove(certname: Certname): boolean {
    const known = this.#assignments.get(certname);
    if (known === undefined) return false;
    this.#remember(certname, known.master);
    return this.#assignments.delete(certname);
  }

  /** What changed since the last call, each node with the master that it had then. */
  takeChanges(): Before {
    const taken = this.#before;
    this.#before = new LargeMap();
    return taken;
  }

  #remember(certname: Certname, master: Master | undefined): void {
    if (!this.#before.has(certname)) this.#before.set(certname, master);
  }
}
