// "Where does this node go, and why?": what sasori wants, what the file says, what each HAProxy holds now.

import { Patience, within } from "../deadline.js";
import { SasoriError, toFailure } from "../errors.js";
import type { Certname } from "../node-map.js";
import type { SyncParts } from "../sync.js";
import type { Desired, Lookup } from "./api-shapes.js";

/** The page waits 8 s for a story, which must tell of an HAProxy, or a file system, that hangs. */
export const LOOKUP_DEADLINE_MS = 5_000;

/** Never throws: what could not be asked says so in its place. */
export function lookUp(
  certname: Certname,
  desired: Desired | Promise<Desired>,
  { file, instances }: Pick<SyncParts, "file" | "instances">,
): Promise<Lookup> {
  const late = new SasoriError("HAPROXY_TIMEOUT", `no answer within ${LOOKUP_DEADLINE_MS / 1_000} s`);
  return within(LOOKUP_DEADLINE_MS, undefined, late, async (signal) => {
    // The file queues its readers, so that only one of them is ever held up in a file system that hangs.
    const fromFile = new Patience()
      .wait(signal, unread, () => file.lookUp(certname))
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
