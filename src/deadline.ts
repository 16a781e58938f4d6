// Deadlines. `AbortSignal.any([stop, AbortSignal.timeout(ms)])` is not one on Node 20: a timeout that only `any`
// refers to may be collected and then never fires, and a long-lived `stop` gathers a listener for each. Here a
// timer holds the controller, and both are gone when the work is.

import { setMaxListeners } from "node:events";
import type { SasoriError } from "./errors.js";

/**
 * Runs `use` with a signal that ends after `ms` with `late`, or with `stop`, whatever comes first. What is still under
 * way when `use` is done is ended as well.
 */
export async function within<T>(
  ms: number,
  stop: AbortSignal | undefined,
  late: SasoriError,
  use: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const controller = new AbortController();
  setMaxListeners(0, controller.signal); // One for each connection, and nobody counts the HAProxys.
  const timer = setTimeout(() => controller.abort(late), ms);
  const onStop = () => controller.abort(stop?.reason);
  if (stop?.aborted) onStop();
  stop?.addEventListener("abort", onStop, { once: true });
  try {
    return await use(controller.signal);
  } finally {
    clearTimeout(timer);
    stop?.removeEventListener("abort", onStop);
    controller.abort();
  }
}
