// "Where does this node go, and why?": what sasori wants, what the file says, what each HAProxy holds now.

import { toFailure } from "../errors.js";
import type { Certname } from "../node-map.js";
import type { SyncParts } from "../sync.js";
import type { Desired, Lookup } from "./api-shapes.js";

/** The page waits 8 s for a story, which must tell of an HAProxy that hangs. */
export const LOOKUP_DEADLINE_MS = 5_000;

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
