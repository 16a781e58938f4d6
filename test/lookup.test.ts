// A lookup while targets hang: it ends in time, and says what is known of each target.

import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, expect, test, vi } from "vitest";
import { LOOKUP_DEADLINE_MS, lookUp } from "../src/http/lookup.js";
import type { Certname, Master } from "../src/node-map.js";
import { HaproxyInstance } from "../src/target/haproxy.js";
import { MapFile } from "../src/target/map-file.js";
import { freeze } from "./support/slow-disk.js";

vi.mock("node:fs/promises", async (original) =>
  (await import("./support/slow-disk.js")).slowDisk(await original()),
);

const NODE = "node1.example.com" as Certname;
const DESIRED = { master: "master1" as Master };

afterEach(() => void vi.useRealTimers());

/** The lookup, when the time that it may take has passed, and `others` have answered. */
async function atItsDeadline(file: MapFile, instances: HaproxyInstance[], others: () => Promise<unknown>) {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
  const found = lookUp(NODE, DESIRED, { file, instances });
  await others();
  await vi.advanceTimersByTimeAsync(LOOKUP_DEADLINE_MS);
  vi.useRealTimers();
  return found;
}

test("an HAProxy, or a file system, that hangs is told as such before the page gives up waiting", async () => {
  expect(LOOKUP_DEADLINE_MS).toBeLessThan(8_000); // src/page/calls.ts
  const folder = await mkdtemp(path.join(tmpdir(), "sasori-lookup-"));
  const socket = path.join(folder, "admin.sock");
  const silent = createServer((connection) => connection.on("error", () => undefined));
  await once(silent.listen(socket), "listening");
  const haproxy = new HaproxyInstance(
    { name: socket, connect: { path: socket } },
    { backend: "puppet", mapFile: "node-master.map" },
  );
  const mapFile = path.join(folder, "node-master.map");
  const hangs = path.join(folder, "hangs.map");
  await writeFile(mapFile, `${NODE} master1\n`);
  await writeFile(hangs, "");
  const thaw = freeze(hangs, "reads");
  const noAnswer = { code: "HAPROXY_TIMEOUT", message: `${socket}: no answer within 5 s` };
  const live = [{ haproxy: socket, failure: noAnswer }];
  try {
    const file = new MapFile(mapFile);
    // Its readers wait.
    expect(await atItsDeadline(file, [haproxy], () => file.lookUp(NODE))).toEqual({
      certname: NODE,
      desired: DESIRED,
      file: { master: "master1" },
      live,
    });
    expect(await atItsDeadline(new MapFile(hangs), [haproxy], async () => undefined)).toMatchObject({
      file: { failure: { code: "FILE_READ", message: expect.stringContaining("does not answer") } },
      live,
    });
  } finally {
    thaw();
    silent.close();
    await rm(folder, { recursive: true });
  }
});
