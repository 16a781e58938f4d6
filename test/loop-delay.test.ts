import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { LoopDelay } from "../src/loop-delay.js";

test("knows of a stop in which its own timer came due", async () => {
  const delay = new LoopDelay();
  const others = setInterval(() => undefined, 1); // With them its timers are run together.
  await sleep(500);
  const until = performance.now() + 700;
  while (performance.now() < until);
  await expect.poll(() => delay.longestMs).toBeGreaterThan(600);
  clearInterval(others);
  delay.stop();
});
