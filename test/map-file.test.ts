import { execFile } from "node:child_process";
import { once } from "node:events";
import {
  chmod,
  chown,
  lstat,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rm,
  stat,
  symlink,
  utimes,
  writeFile,
} from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { promisify } from "node:util";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { type Certname, type Master, NodeMap } from "../src/node-map.js";
import { planFromChanges, planFromContents } from "../src/plan.js";
import { MapFile, MapText } from "../src/target/map-file.js";
import { atOnce } from "./support/pieces.js";
import { freeze, opened } from "./support/slow-disk.js";

vi.mock("node:fs/promises", async (original) =>
  (await import("./support/slow-disk.js")).slowDisk(await original()),
);

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "sasori-file-"));
});
afterEach(() => rm(folder, { recursive: true, force: true }));

const mapPath = () => path.join(folder, "node-master.map");

function fleet(routes: Record<string, string>): NodeMap {
  const map = new NodeMap();
  for (const [name, to] of Object.entries(routes)) {
    map.observe({ certname: name as Certname, master: to as Master, at: 1, source: "facts" });
  }
  return map;
}

async function bring(file: MapFile, desired: NodeMap) {
  const contents = await file.read();
  const plan = atOnce(planFromContents(desired, contents));
  await file.apply(plan, desired, contents.fingerprint);
  return plan;
}

describe("the map file", () => {
  test("is sorted, begins with a comment, and is what HAProxy reads: key, blank, value", async () => {
    await bring(new MapFile(mapPath()), fleet({ "b.example.com": "master2", "a.example.com": "master1" }));
    const [comment, ...lines] = (await readFile(mapPath(), "utf8")).split("\n");
    expect(comment).toMatch(/^# .*sasori/);
    const until = expect.stringMatching(
      /^# PuppetDB's word until 1970-01-01T00:00:00.001Z, checksum [0-9a-f]{8}$/,
    );
    expect(lines).toEqual(["a.example.com master1", "b.example.com master2", until, ""]);
  });

  test("is made even when it is empty, because HAProxy does not start without it", async () => {
    await bring(new MapFile(mapPath()), fleet({}));
    expect((await readFile(mapPath(), "utf8")).split("\n").filter((line) => !line.startsWith("#"))).toEqual([
      "",
    ]);
  });

  test("reads back what was written, for any map", async () => {
    const name = fc.stringMatching(/^[a-z0-9_][a-z0-9._-]{0,40}$/);
    const routes = fc.dictionary(name, fc.stringMatching(/^[A-Za-z0-9_:.-]{1,20}$/), {
      noNullPrototype: true,
    });
    await fc.assert(
      fc.asyncProperty(routes, async (wanted) => {
        const file = new MapFile(mapPath());
        await bring(file, fleet(wanted));
        expect(Object.fromEntries((await file.read()).routes)).toEqual(wanted);
      }),
      { numRuns: 50 },
    );
  });

  test("after any changes is the same as if it were written anew", async () => {
    const file = new MapFile(mapPath());
    const desired = fleet(Object.fromEntries(Array.from({ length: 3_000 }, (_, n) => [`n${n}`, "m0"])));
    await bring(file, desired);
    let { fingerprint } = await file.look();
    const name = fc.oneof(
      fc.integer({ min: 0, max: 3_000 }).map((n) => `n${n}`),
      fc.stringMatching(/^[a-z0-9_][a-z0-9._-]{0,9}$/),
    );
    const change = fc.tuple(name, fc.option(fc.constantFrom("m1", "m2")));
    let at = 1;
    await fc.assert(
      fc.asyncProperty(fc.array(change, { maxLength: 200 }), async (changes) => {
        desired.takeChanges();
        at += 1;
        for (const [certname, master] of changes) {
          const known = certname as Certname;
          if (master === null) desired.remove(known);
          else desired.observe({ certname: known, master: master as Master, at, source: "facts" });
        }
        const plan = atOnce(planFromChanges(desired, desired.takeChanges()));
        ({ fingerprint } = await file.apply(plan, desired, fingerprint));
        const anew = Array.from((await MapText.of(desired)).chunks(""), String).join("");
        const [first = "", ...lines] = (await readFile(mapPath(), "utf8")).split("\n");
        expect(first).toContain("Written by sasori");
        expect(lines.slice(0, -2).join("\n")).toBe(anew.slice(0, -1));
      }),
      { numRuns: 100 },
    );
  });

  test("is written anew when somebody else has edited it", async () => {
    const file = new MapFile(mapPath());
    const routes = Object.fromEntries(Array.from({ length: 30 }, (_, n) => [`n${n}`, "m1"]));
    const desired = fleet(routes);
    await bring(file, desired);
    await writeFile(mapPath(), (await readFile(mapPath(), "utf8")).replace("n7 m1\n", "n7 m2\n"));
    desired.observe({ certname: "n7" as Certname, master: "m2" as Master, at: 2, source: "facts" });
    desired.observe({ certname: "n8" as Certname, master: "m2" as Master, at: 2, source: "facts" });
    await bring(file, desired);
    expect(Object.fromEntries((await file.read()).routes)).toEqual({ ...routes, n7: "m2", n8: "m2" });
  });

  test("is not touched when nothing changed", async () => {
    const file = new MapFile(mapPath());
    await bring(file, fleet({ a: "m1" }));
    const before = await file.look();
    expect((await bring(file, fleet({ a: "m1" }))).kind).toBe("unchanged");
    expect(await file.look()).toEqual(before);
  });

  test("is told from a file that somebody edited", async () => {
    const file = new MapFile(mapPath());
    await bring(file, fleet({ a: "m1" }));
    const before = await file.look();
    await writeFile(mapPath(), "a m2\n");
    expect((await file.look()).fingerprint).not.toEqual(before.fingerprint);
  });

  test("takes comments, blanks and tabs as HAProxy does, and marks what it cannot use", async () => {
    await writeFile(
      mapPath(),
      "# comment\n\n  a.example.com \t master1 \r\nb.example.com\nB.Example.COM m2\nX m1\nY! Z\n#c m1\na.example.com master9\n",
    );
    const { routes, capitals, strays, rebuild, origin } = await new MapFile(mapPath()).read();
    expect([...routes]).toEqual([
      ["a.example.com", "master1"],
      ["b.example.com", ""],
      ["x", "m1"],
    ]);
    expect([...(capitals ?? [])]).toEqual(["x"]);
    expect(strays).toEqual(["Y! Z", "a.example.com master9", "B.Example.COM m2"]);
    expect({ rebuild, origin }).toEqual({ rebuild: true, origin: "others" });
  });

  test("keeps its owner and mode", async () => {
    await writeFile(mapPath(), "");
    await chmod(mapPath(), 0o640);
    const asRoot = process.getuid?.() === 0;
    if (asRoot) await chown(mapPath(), 1234, 2345);
    const before = await stat(mapPath());
    await bring(new MapFile(mapPath()), fleet({ a: "m1" }));
    const { mode, uid, gid, ino } = await stat(mapPath());
    expect({ mode, uid, gid }).toEqual({ mode: before.mode, uid: before.uid, gid: before.gid });
    expect(ino).not.toBe(before.ino);
  });

  test("is readable for HAProxy's user when it is new, whatever the umask", async () => {
    const umask = process.umask(0o077);
    try {
      await bring(new MapFile(mapPath()), fleet({ a: "m1" }));
    } finally {
      process.umask(umask);
    }
    expect((await stat(mapPath())).mode & 0o777).toBe(0o644);
  });

  test("stays a link where it is one, and what it points to is replaced", async () => {
    const target = path.join(folder, "elsewhere.map");
    await writeFile(target, "");
    await symlink(target, mapPath());
    await bring(new MapFile(mapPath()), fleet({ a: "m1" }));
    expect((await lstat(mapPath())).isSymbolicLink()).toBe(true);
    expect(await readFile(target, "utf8")).toContain("a m1\n");
  });

  test("removes what a killed writer has left, but not what may still be written", async () => {
    const [old, young] = ["old", "young"].map((name) => path.join(folder, `.node-master.map.${name}.tmp`));
    for (const file of [old, young]) await writeFile(file ?? "", "half");
    const twoHoursAgo = Date.now() / 1000 - 7200;
    await utimes(old ?? "", twoHoursAgo, twoHoursAgo);
    await new MapFile(mapPath()).removeLeftovers();
    expect(await readdir(folder)).toEqual([".node-master.map.young.tmp"]);
  });

  test("says where one node leads without reading the map into memory", async () => {
    const file = new MapFile(mapPath());
    await bring(file, fleet({ "a.example.com": "m1", "aa.example.com": "m2" }));
    const look = (name: string) => file.lookUp(name as Certname);
    expect(await Promise.all([look("a.example.com"), look("aa.example.com"), look("b"), look("a")])).toEqual([
      "m1",
      "m2",
      undefined,
      undefined,
    ]);
  });

  test("is not waited for when its file system hangs, nor asked anything more until it has answered", async () => {
    await writeFile(mapPath(), "a m1\n");
    const thaw = freeze(mapPath(), "reads");
    const file = new MapFile(mapPath());
    const stop = new AbortController();
    const reading = file.read(stop.signal);
    stop.abort(new Error("gave up"));
    const silent = { code: "FILE_READ", message: expect.stringContaining("does not answer") };
    await expect(reading).rejects.toMatchObject(silent);
    await expect(file.look(new AbortController().signal)).rejects.toMatchObject(silent);
    thaw();
    await expect.poll(async () => (await file.read().catch(() => undefined))?.routes.size).toBe(1);
  });

  test.each([
    { what: "a folder", make: () => mkdir(mapPath()) },
    { what: "a pipe", make: () => promisify(execFile)("mkfifo", [mapPath()]) },
    { what: "a socket", make: () => once(createServer().listen(mapPath()).unref(), "listening") },
    { what: "a link that leads back to itself", make: () => symlink(mapPath(), mapPath()) },
  ])(
    "is not waited for where there is $what: it says so, and is written when that is gone",
    async ({ what, make }) => {
      const file = new MapFile(mapPath());
      await bring(file, fleet({ a: "m1" }));
      await rm(mapPath());
      await make();
      const refusal = { code: "FILE_READ", message: expect.stringContaining(`it is ${what}`) };
      await expect(file.read()).rejects.toMatchObject(refusal);
      await expect(file.lookUp("a" as Certname)).rejects.toThrow("remove it: sasori writes the file again");
      await rm(mapPath(), { recursive: true });
      expect((await bring(file, fleet({ a: "m1" }))).kind).toBe("changes");
      expect(await file.lookUp("a" as Certname)).toBe("m1");
    },
  );

  test("is looked up without being read while it is as it was left, and once for all who ask at a time", async () => {
    const file = new MapFile(mapPath());
    await bring(file, fleet({ a: "m1", b: "m2" }));
    const { content } = (await file.look()).fingerprint;
    const known = (master: string) => ({ content, master: master as Master });
    const before = opened();
    expect(await file.lookUp("a" as Certname, known("m1"))).toBe("m1");
    expect(opened()).toBe(before);
    await writeFile(mapPath(), "a m3\n");
    const asked = Array.from({ length: 100 }, () => file.lookUp("a" as Certname, known("m1")));
    expect(new Set(await Promise.all(asked))).toEqual(new Set(["m3"]));
    expect(opened() - before).toBeLessThanOrEqual(2);
  });

  test("is written also in a folder that sasori may write but not list", async () => {
    const asRoot = process.getuid?.() === 0; // Who may read everything.
    if (asRoot) await chown(folder, 65534, 65534);
    await chmod(folder, 0o300);
    if (asRoot) process.seteuid?.(65534);
    try {
      await bring(new MapFile(mapPath()), fleet({ a: "m1" }));
    } finally {
      if (asRoot) process.seteuid?.(0);
      await chmod(folder, 0o700);
    }
    expect(await readFile(mapPath(), "utf8")).toContain("a m1\n");
  });

  test("says that the folder is missing", async () => {
    const file = new MapFile(path.join(folder, "none", "node-master.map"));
    await expect(bring(file, fleet({ a: "m1" }))).rejects.toMatchObject({
      code: "FILE_WRITE",
      message: expect.stringContaining("create it"),
    });
  });
});

// The kernel makes these faults real: a private mount namespace needs no root where user namespaces exist.
describe("the map file on a disk that refuses", () => {
  test.each([
    {
      fault: "full disk",
      code: "FILE_FULL",
      mount: "mount -t tmpfs -o size=16k none $D; echo 'a m1' > $D/node-master.map",
    },
    {
      fault: "read-only file system",
      code: "FILE_READ_ONLY",
      mount: "mount -t tmpfs none $D; echo 'a m1' > $D/node-master.map; mount -o remount,bind,ro $D",
    },
    {
      fault: "bind-mounted file",
      code: "FILE_MOUNTED",
      mount: "echo 'a m1' > $D/outside; touch $D/node-master.map; mount --bind $D/outside $D/node-master.map",
    },
  ])("$fault: $code says what to do, and the old file stays in force", async ({ code, mount }) => {
    const script = path.join(folder, "write.mjs");
    const built = (name: string) => new URL(`../dist/src/${name}.js`, import.meta.url).href;
    await writeFile(
      script,
      `import { readdirSync, readFileSync } from "node:fs";
       import { MapFile } from "${built("target/map-file")}";
       import { NodeMap } from "${built("node-map")}";
       import { inPieces } from "${built("pieces")}";
       import { planFromContents } from "${built("plan")}";
       const file = new MapFile(process.argv[2] + "/node-master.map");
       const map = new NodeMap();
       for (let i = 0; i < 5000; i += 1) map.observe({ certname: "node" + i, master: "m1", at: 1, source: "facts" });
       const failure = await file.read().then(async (now) => file.apply(await inPieces(planFromContents(map, now)), map, now.fingerprint)).catch((error) => error);
       const left = readdirSync(process.argv[2]).filter((name) => name.endsWith(".tmp"));
       const text = readFileSync(process.argv[2] + "/node-master.map", "utf8");
       console.log(JSON.stringify({ code: failure.code, message: failure.message, left, text }));`,
    );
    const disk = path.join(folder, "disk");
    const inside = `mkdir -p $D; ${mount}; exec ${process.execPath} ${script} $D`;
    const flags = process.getuid?.() === 0 ? "-m" : "-Urm";
    const { stdout } = await promisify(execFile)("unshare", [flags, "sh", "-ec", inside], {
      env: { ...process.env, D: disk },
    });
    const result = JSON.parse(stdout) as { code: string; message: string; left: string[]; text: string };
    expect(result).toMatchObject({ code, left: [], text: "a m1\n" });
    expect(result.message).toContain("the old file stays in force");
  });

  test("leaves no temp file behind", async () => {
    await bring(new MapFile(mapPath()), fleet({ a: "m1" }));
    expect(await readdir(folder)).toEqual(["node-master.map"]);
  });
});
