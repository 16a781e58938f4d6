// Callers that ask at the same time share one work.

import { expect, test } from "vitest";
import { Shared } from "../src/deadline.js";

/** Works that the test ends. */
function stepped() {
  const works: { end(value: string): void; fail(): void }[] = [];
  const shared = new Shared(
    () =>
      new Promise<string>((resolve, reject) => {
        works.push({ end: resolve, fail: () => reject(new Error("failed")) });
      }),
  );
  return { shared, works };
}

test("who asks while a work is under way has the next one, which is one for all of them", async () => {
  const { shared, works } = stepped();
  const first = shared.get();
  const later = [shared.get(), shared.get()];
  expect(works.length).toBe(1);
  works[0]?.end("old");
  expect(await first).toBe("old");
  await expect.poll(() => works.length).toBe(2);
  works[1]?.end("new");
  expect(await Promise.all(later)).toEqual(["new", "new"]);
  expect(works.length).toBe(2);
});

test("a work that fails, fails for those who asked for it, and the next is begun", async () => {
  const { shared, works } = stepped();
  const first = shared.get();
  const second = shared.get();
  works[0]?.fail();
  await expect(first).rejects.toThrow("failed");
  await expect.poll(() => works.length).toBe(2);
  works[1]?.end("well");
  expect(await second).toBe("well");
  const third = shared.get();
  works[2]?.end("again");
  expect(await third).toBe("again");
});
