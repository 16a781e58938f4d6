// Files that are read as a whole, and file systems that do not answer.

import { mkdir, mkdtemp, rm, symlink, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { toFailure } from "../src/errors.js";
import { newClient } from "../src/state/database.js";
import { readSecretFile, readSecretFileSync, readWhole, SilentFile } from "../src/whole-file.js";
import { run } from "./support/child.js";
import { freeze, opened } from "./support/slow-disk.js";

vi.mock("node:fs/promises", async (original) =>
  (await import("./support/slow-disk.js")).slowDisk(await original()),
);

let folder: string;
const at = (name: string) => path.join(folder, name);
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "sasori-whole-"));
});
afterEach(async () => {
  vi.useRealTimers();
  await rm(folder, { recursive: true, force: true });
});

describe("a file that is read as a whole", () => {
  test("is the text that was written, of any length", async () => {
    for (const text of ["", "one\n", "é".repeat(200_000)]) {
      await writeFile(at("text"), text);
      expect(await readWhole(at("text"), "utf8")).toBe(text);
    }
  });

  test.each([
    ["a pipe", (file: string) => run("mkfifo", [file]), "it is a pipe, not a file"],
    [
      "a link to a device without an end",
      (file: string) => symlink("/dev/zero", file),
      "it is a device, not a file",
    ],
    [
      "larger than it may be",
      async (file: string) => {
        await writeFile(file, "");
        await truncate(file, 300 * 1024 * 1024);
      },
      "it has 300 MiB, more than the",
    ],
  ])("is refused at once when it is %s", async (_, make, message) => {
    await make(at("odd"));
    await expect(readWhole(at("odd"), "latin1")).rejects.toThrow(message);
    await expect(readSecretFile(at("odd"))).rejects.toThrow(message);
    expect(() => readSecretFileSync(at("odd"))).toThrow(message);
  });

  test("of /proc says that it has nothing, and nothing is read of it", async () => {
    // /proc/kmsg waits for the kernel's next message. Others never end.
    expect(await readSecretFile("/proc/self/status")).toBe("");
    expect(await readWhole("/proc/self/status", "latin1")).toBe("");
    expect(readSecretFileSync("/proc/self/status")).toBe("");
  });
});

describe("where the file system does not answer", () => {
  test("nobody waits for more than 5 s, one thread is held, and all goes on when it answers again", async () => {
    await writeFile(at("hangs"), "secret");
    await writeFile(at("well"), "token");
    const thaw = freeze(at("hangs"), "reads");
    const before = opened();
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    const asked = ["hangs", "hangs", "well", "hangs", "well"].map((name) =>
      readSecretFile(at(name)).catch((error: unknown) => error),
    );
    await expect.poll(opened).toBe(before + 1);
    // Another file system still works.
    const elsewhere = await mkdtemp(path.join(tmpdir(), "sasori-whole-"));
    await writeFile(path.join(elsewhere, "well"), "elsewhere");
    expect(await readSecretFile(path.join(elsewhere, "well"))).toBe("elsewhere");
    await rm(elsewhere, { recursive: true });
    await vi.advanceTimersByTimeAsync(5_000);
    for (const one of await Promise.all(asked)) {
      expect(one).toBeInstanceOf(SilentFile);
      expect(one).toMatchObject({ message: "its file system has not answered within 5 s" });
    }
    vi.useRealTimers();
    expect(opened()).toBe(before + 2);
    thaw();
    expect(await readSecretFile(at("well"))).toBe("token");
    expect(await readSecretFile(at("hangs"))).toBe("secret");
  });

  test("three of Node's four threads are held at most, so that one is left for the map file", async () => {
    const names = ["a", "b", "c", "d", "e"].map((name) => path.join(name, "hangs"));
    for (const name of names) {
      await mkdir(path.dirname(at(name)));
      await writeFile(at(name), "secret");
    }
    const thaw = freeze(folder, "reads");
    const before = opened();
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    const asked = names.map((name) => readSecretFile(at(name)).catch((error: unknown) => error));
    await expect.poll(opened).toBe(before + 3);
    await vi.advanceTimersByTimeAsync(5_000);
    for (const one of await Promise.all(asked)) expect(one).toBeInstanceOf(SilentFile);
    vi.useRealTimers();
    expect(opened()).toBe(before + 3);
    thaw();
    for (const name of names) expect(await readSecretFile(at(name))).toBe("secret");
  });

  test("PostgreSQL's client does not get to wait for its own file of passwords", async () => {
    const options = { host: "127.0.0.1", port: 1, user: "sasori", database: "sasori", tls: false };
    vi.stubEnv("PGPASSFILE", at("pgpass"));
    await newClient({ ...options, where: "postgres://here", replica: "gw1" }); // It is missing, and not needed.
    await writeFile(at("pgpass"), "*:*:*:*:secret");
    const thaw = freeze(folder, "reads");
    const before = opened();
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    const asked = newClient({ ...options, where: "postgres://here", replica: "gw1" }).catch(toFailure);
    await expect.poll(opened).toBe(before + 1);
    await vi.advanceTimersByTimeAsync(5_000);
    expect(await asked).toMatchObject({ code: "STATE_DATABASE", message: expect.stringContaining("pgpass") });
    thaw();
    vi.unstubAllEnvs();
  });

  test("whoever is told to stop does not wait", async () => {
    await writeFile(at("hangs"), "secret");
    const thaw = freeze(at("hangs"), "reads");
    const stop = new AbortController();
    const asked = readSecretFile(at("hangs"), stop.signal);
    stop.abort(new Error("told to stop"));
    await expect(asked).rejects.toThrow("told to stop");
    await expect(readSecretFile(at("hangs"), stop.signal)).rejects.toThrow("told to stop");
    thaw();
  });
});
