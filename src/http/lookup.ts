// "Where does this node go, and why?": the desired master, the map file, and the live map of each HAProxy.

import { Patience, within } from "../deadline.js";
import { SasoriError, toFailure } from "../errors.js";
import type { Certname, Master } from "../node-map.js";
import type { SyncParts } from "../sync.js";
import type { Desired, Lookup } from "./api-shapes.js";

/** The page waits 8 s for a story. Within that time it must say that an HAProxy or a file system hangs. */
export const LOOKUP_DEADLINE_MS = 5_000;

/**
 * Never throws: a target that could not be asked has its failure in the answer. `settled`: the file's fingerprint while it
 * holds the desired map, if that is known.
 */
export function lookUp(
  certname: Certname,
  desired: Desired | Promise<Desired>,
  { file, instances }: Pick<SyncParts, "file" | "instances">,
  settled?: { content: string; master: Master | undefined },
): Promise<Lookup> {
  const late = new SasoriError("HAPROXY_TIMEOUT", `no answer within ${LOOKUP_DEADLINE_MS / 1_000} s`);
  return within(LOOKUP_DEADLINE_MS, undefined, late, async (signal) => {
    const fromFile = new Patience()
      .wait(signal, unread, () => file.lookUp(certname, settled))
      .then(
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
  });
}

const unread = (why: string) =>
  new SasoriError("FILE_READ", `cannot read the map file: its file system does not answer (${why})`);
