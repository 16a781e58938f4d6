/** The npm package: what is in it, that it installs without our development tools, and that it runs. */
import { cp, mkdir, mkdtemp, readFile, rm, stat, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test, vi } from "vitest";
import { run } from "./support/child.js";
import { patient } from "./support/patience.js";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const LEFT_OUT = new Set(["node_modules", "dist", ".git", ".demo"]);

/** The environment of a shell: the variables of the npm that runs the tests must not reach another npm. */
const env = Object.fromEntries(
  Object.entries(process.env).filter(
    ([name]) => !/^npm_(package|lifecycle|command|config_local)/i.test(name),
  ),
);

let folder: string;
let tarball: string;
let elsewhere: string;

// Packing compiles from nothing, so it is done in a copy: other tests run what is compiled here.
beforeAll(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "sasori-npm-"));
  const clone = path.join(folder, "clone");
  await cp(ROOT, clone, { recursive: true, filter: (file) => !LEFT_OUT.has(path.basename(file)) });
  await symlink(path.join(ROOT, "node_modules"), path.join(clone, "node_modules"));
  await run("npm", ["pack", "--pack-destination", folder], { cwd: clone, env });
  const { version } = JSON.parse(await readFile(path.join(ROOT, "package.json"), "utf8"));
  tarball = path.join(folder, `sasori-${version}.tgz`);
  elsewhere = path.join(folder, "elsewhere");
  await mkdir(elsewhere);
  await writeFile(path.join(elsewhere, "package.json"), "{}");
  await run("npm", ["install", "--prefer-offline", "--no-audit", "--no-fund", tarball], {
    cwd: elsewhere,
    env,
  });
}, patient(180_000));

// npm and npx take seconds on a busy machine.
vi.setConfig({ testTimeout: patient(90_000) });

afterAll(() => rm(folder, { recursive: true, force: true }));

const sasori = (...args: string[]) =>
  run("npx", ["--no", "--", "sasori", ...args], {
    cwd: elsewhere,
    env: {
      ...env,
      SASORI_PUPPETDB_URL: "http://127.0.0.1:8080",
      SASORI_HAPROXY: "none",
      SASORI_MAP_FILE: path.join(elsewhere, "node-master.map"),
    },
  });

describe("the npm package", () => {
  test("has the program, the gateway, the units and manifests, the documents, and nothing else", async () => {
    const files = (await run("tar", ["-tzf", tarball])).trim().split("\n");
    for (const file of [
      "dist/src/cli.js",
      "dist/page/index.html",
      "haproxy/haproxy.cfg",
      "haproxy/heal.lua",
      "deploy/systemd/sasori.service",
      "deploy/kubernetes/kustomization.yaml",
      "docs/debian.md",
      "CHANGELOG.md",
      "LICENSE",
    ])
      expect(files).toContain(`package/${file}`);
    const expected =
      /^package\/(package\.json|README\.md|CHANGELOG\.md|LICENSE|(dist\/src|dist\/page|haproxy|deploy|docs)\/.+)$/;
    expect(files.filter((file) => !expected.test(file))).toEqual([]);
    expect(files.filter((file) => /\.map$|\.ts$|\.test\./.test(file))).toEqual([]);
    expect((await stat(tarball)).size).toBeLessThan(500_000);
  });

  test("installs without our development tools, and nothing that needs a newer Node than we do", async () => {
    const { engines } = JSON.parse(await readFile(path.join(ROOT, "package.json"), "utf8"));
    const oldest = Number(/\d+/.exec(engines.node)?.[0]);
    const folders = (await run("npm", ["ls", "--all", "--parseable"], { cwd: elsewhere, env }))
      .trim()
      .split("\n");
    const packages = await Promise.all(
      folders.slice(1).map(async (at) => JSON.parse(await readFile(path.join(at, "package.json"), "utf8"))),
    );
    const names = packages.map(({ name }) => name);
    expect(names).toEqual(expect.arrayContaining(["sasori", "fastify", "undici"]));
    for (const tool of ["typescript", "vitest", "vite", "@biomejs/biome", "kubernetes-models"])
      expect(names).not.toContain(tool);
    // "overrides" of ours hold for our own clone and not for those who install the package.
    const tooNew = packages.filter(({ engines }) => {
      const majors = Array.from(String(engines?.node ?? "0").matchAll(/(\d+)[\d.]*/g), ([, major]) =>
        Number(major),
      );
      return Math.min(...majors) > oldest;
    });
    expect(tooNew.map(({ name, version, engines }) => `${name} ${version} ${engines.node}`)).toEqual([]);
  });

  test("runs: help, version, configuration, and the exit code of a wrong one", async () => {
    const { version } = JSON.parse(await readFile(path.join(ROOT, "package.json"), "utf8"));
    expect(await sasori("--help")).toContain(
      "Keeps HAProxy's node-to-puppetserver map in sync with PuppetDB.",
    );
    expect((await sasori("--version")).trim()).toBe(version);
    expect(await sasori("config")).toContain(path.join(elsewhere, "node-master.map"));
    await expect(sasori("no-such-command")).rejects.toThrow("failed (2)");
  });

  test("is published only with a repository, release notes, images by digest, a clean clone and a tag", async () => {
    const clone = path.join(folder, "clone");
    await writeFile(path.join(clone, "CHANGELOG.md"), "# Changes\n");
    await writeFile(path.join(clone, "Dockerfile"), "FROM node:24\n");
    await run("npm", ["pkg", "delete", "repository"], { cwd: clone, env });
    const environment = { ...env, GIT_CEILING_DIRECTORIES: folder };
    const refusal = await run(path.join(clone, "setup/release.sh"), [], {
      cwd: clone,
      env: environment,
    }).catch(String);
    expect(refusal).toMatch(
      /failed \(1\).*no repository.*no heading.*images without a digest.*not a clean clone/s,
    );
    const { publishConfig } = JSON.parse(await readFile(path.join(ROOT, "package.json"), "utf8"));
    expect(publishConfig).toEqual({ access: "public", provenance: true });
  });
});
