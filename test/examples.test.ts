// Each file in examples/ is a configuration that HAProxy accepts, on every version, once its paths are those of the test.
import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { makePuppetCa, type PuppetCa } from "./support/agents-gateway.js";
import { run } from "./support/child.js";
import { haproxyBinaries } from "./support/parts.js";

let ca: PuppetCa;
beforeAll(async () => {
  ca = await makePuppetCa();
  await mkdir(join(ca.dir, "run"));
  await writeFile(join(ca.dir, "node-master.map"), "");
  await writeFile(join(ca.dir, "gateway.pem"), await readFile(ca.gateway.both));
  await writeFile(join(ca.dir, "leg.pem"), await readFile(ca.leg.both));
});
afterAll(() => ca.remove());

/** The example with the places of an operator's machine replaced by the test's folder; the path of the copy. */
async function here(name: string): Promise<string> {
  const text = await readFile(join("examples", name), "utf8");
  const copy = join(ca.dir, name);
  const moved = text
    .replaceAll("/etc/haproxy/", `${ca.dir}/`)
    .replaceAll("/var/lib/sasori/", `${ca.dir}/`)
    .replaceAll("/run/haproxy/", `${ca.dir}/run/`);
  await writeFile(copy, moved);
  return copy;
}

const files = (await readdir("examples")).filter((name) => name !== "README.md");
/** The pools are the second file of pools.env: its first line says how. */
const examples = files.filter((name) => name !== "pools.cfg");
const [, POOLS] = /haproxy -W (-f .*)/.exec(await readFile("examples/pools.cfg", "utf8")) ?? [];

describe.each(haproxyBinaries())("HAProxy $version", ({ bin }) => {
  test.each(examples)("accepts examples/%s", async (name) => {
    const copy = await here(name);
    // An environment names the configuration that it is for in its first line.
    const config = /^# (haproxy\/\w+\.cfg)/.exec(await readFile(copy, "utf8"))?.[1] ?? copy;
    const settings = config === copy ? "" : `set -a; . ${copy}; set +a;`;
    await run("bash", [
      "-euc",
      `${settings} exec ${bin} -c ${name === "pools.env" ? POOLS : `-f ${config}`}`,
    ]);
  });
});

test("examples/README.md names each of them", async () => {
  const readme = await readFile("examples/README.md", "utf8");
  for (const name of files) expect(readme).toContain(`](${name})`);
});
