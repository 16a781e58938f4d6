// "Where does this node go, and why?": what sasori wants, what the file says, what each HAProxy holds now.

import { type Failure, toFailure } from "./errors.js";
import type { Certname, Master, Source } from "./node-map.js";
import type { SyncParts } from "./sync.js";

export interface Desired {
  master?: Master;
  source?: Source;
  /** ISO 8601; null for a route that was inherited, whose age nobody knows. */
  since?: string | null;
  /** The newest submission came from this producer, for which HAProxy has no server. */
  unroutableProducer?: string;
  /** PuppetDB no longer lists the node; its removal waits for the approval of this plan. */
  heldBy?: string;
  failure?: Failure;
}

export interface Lookup {
  certname: Certname;
  desired: Desired;
  /** What the map file says; null when it does not hold the node. */
  file: { master: string | null } | { failure: Failure };
  live: { haproxy: string; master?: string | null; failure?: Failure }[];
}

const LOOKUP_DEADLINE_MS = 10_000;

/** Never throws: what could not be asked says so in its place. */
export async function lookUp(
  certname: Certname,
  desired: Desired | Promise<Desired>,
  { file, instances }: Pick<SyncParts, "file" | "instances">,
): Promise<Lookup> {
  const signal = AbortSignal.timeout(LOOKUP_DEADLINE_MS);
  const fromFile = file.lookUp(certname).then(
    (master) => ({ master: master ?? null }),
    (error: unknown) => ({ failure: toFailure(error) }),
  );
  const live = instances.map((instance) =>
    instance.lookUp(certname, signal).then(
      (master) => ({ haproxy: instance.name, master: master ?? null }),
      (error: unknown) => ({ haproxy: instance.name, failure: toFailure(error) }),
    ),
  );
  return { certname, desired: await desired, file: await fromFile, live: await Promise.all(live) };
}
