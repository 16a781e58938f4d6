import { expect, test, vi } from "vitest";
import { PassQueue, type SyncRequest } from "../src/pass-queue.js";

/** A queue whose passes the test ends. Each reports its request. */
function steppedQueue() {
  const passes: { request: SyncRequest; end: () => void }[] = [];
  const queue = new PassQueue<SyncRequest>(
    (request) =>
      new Promise((resolve) => {
        passes.push({ request, end: () => resolve(request) });
      }),
  );
  return { queue, passes };
}

test("whoever asks during a pass gets the next one, which does what all of them asked for", async () => {
  const { queue, passes } = steppedQueue();
  const first = queue.request({ known: true });
  const joined = [
    queue.request({ known: true }),
    queue.request({ full: true }),
    queue.request({ approve: "a" }),
    queue.request({ approve: "a" }),
  ];
  await expect(queue.request({ approve: "b" })).rejects.toMatchObject({
    code: "BUSY",
    message: expect.stringMatching(/approve the plan a: approve b when that pass is over/),
  });
  expect(passes).toHaveLength(1);
  passes[0]?.end();
  await first;
  await expect.poll(() => passes.length).toBe(2);
  expect(passes[1]?.request).toMatchObject({ full: true, approve: "a" });
  expect(passes[1]?.request.known).toBeFalsy();
  passes[1]?.end();
  expect(new Set(await Promise.all(joined)).size).toBe(1);
  await expect.poll(() => queue.busy).toBe(false);
});

test("a pass for what is known is no look for changes: the schedule still asks for one", async () => {
  const { queue, passes } = steppedQueue();
  const known = queue.request({ known: true });
  expect([queue.busy, queue.looking]).toEqual([true, false]);
  const looking = queue.request({});
  passes[0]?.end();
  await known;
  await expect.poll(() => passes.length).toBe(2);
  expect([queue.busy, queue.looking]).toEqual([true, true]);
  passes[1]?.end();
  await looking;
  await expect.poll(() => queue.looking).toBe(false);
});

test("a dry run never becomes a real pass, nor a real pass a dry run", async () => {
  const { queue, passes } = steppedQueue();
  void queue.request({});
  const dry = queue.request({ dryRun: true });
  const real = queue.request({ full: true });
  for (let index = 0; index < 3; index += 1) {
    await expect.poll(() => passes.length).toBe(index + 1);
    passes[index]?.end();
  }
  expect(await dry).toMatchObject({ dryRun: true });
  expect((await real).dryRun).toBeFalsy();
});

test("on stop everybody who waits is told, and nothing new begins", async () => {
  const { queue, passes } = steppedQueue();
  const running = queue.request({});
  const waiting = [queue.request({}), queue.request({ dryRun: true })];
  const stopped = queue.stop(1_000);
  passes[0]?.end();
  await running;
  for (const outcome of await Promise.allSettled(waiting)) {
    expect(outcome).toMatchObject({ status: "rejected", reason: { code: "STOPPED" } });
  }
  await stopped;
  await expect(queue.request({})).rejects.toMatchObject({ code: "STOPPED" });
  expect(passes).toHaveLength(1);
  await expect.poll(() => queue.busy).toBe(false);
});

test("a pass that never ends is waited for no longer than a second after it was told to stop", async () => {
  vi.useFakeTimers();
  let told = false;
  const queue = new PassQueue<SyncRequest>((_request, stop) => {
    stop.addEventListener("abort", () => {
      told = true;
    });
    return new Promise(() => {});
  });
  void queue.request({});
  let stopped = false;
  const stopping = queue.stop(7_000).then(() => {
    stopped = true;
  });
  await vi.advanceTimersByTimeAsync(6_999);
  expect({ told, stopped }).toEqual({ told: false, stopped: false });
  await vi.advanceTimersByTimeAsync(1_001);
  expect({ told, stopped }).toEqual({ told: true, stopped: true });
  await stopping;
  vi.useRealTimers();
});
