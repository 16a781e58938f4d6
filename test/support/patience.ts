/**
 * How long a test waits before it gives up: the one place that every deadline of a test goes through. A deadline is only
 * felt when something is wrong, so it may be long; on a busy machine it must be.
 *
 * TEST_PATIENCE sets the factor (1: the deadlines as they are written, which suit a quiet machine and one file). Without it
 * the factor is 3, as files run side by side, and grows with the load of each CPU up to 12.
 */
import { availableParallelism, loadavg } from "node:os";

const LEAST = 3;
const MOST = 12;

/** A deadline of so many milliseconds on a quiet machine, for this one as it is now. */
export function patient(ms: number): number {
  return Math.ceil(ms * factor());
}

function factor(): number {
  const set = process.env.TEST_PATIENCE;
  if (set === undefined) return Math.min(MOST, LEAST + (loadavg()[0] ?? 0) / availableParallelism());
  if (!(Number(set) > 0))
    throw new Error(`TEST_PATIENCE must be a number above 0, not ${JSON.stringify(set)}`);
  return Number(set);
}
