/**
 * `setup/pin-images.mjs` against a real registry on this machine: the files that name images are copied, and name those of
 * that registry. Its images are empty, because only their digests matter.
 */
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { Child, freePort, run } from "../support/child.js";

const PIN = "setup/pin-images.mjs";
const FILES = ["Dockerfile", "docker-compose.yml", "deploy/kubernetes/kustomization.yaml"];

/** The images as they are written, such as "docker-compose.yml: postgres:17". In a release each has its digest too. */
const SHIPPED = execFileSync(PIN, ["--list"], { encoding: "utf8" }).trim().replaceAll(/@.*/g, "").split("\n");

const lacksRegistry = process.env.CI !== "true" && !existsSync("/usr/bin/apt-get");

describe.skipIf(lacksRegistry)(
  "setup/pin-images.mjs",
  { meta: { lacks: "only Debian and Ubuntu have the registry" } },
  () => {
    let folder: string;
    let registry: Child;
    let address: string;
    beforeAll(async () => {
      folder = await mkdtemp(path.join(tmpdir(), "sasori-images-"));
      address = `localhost:${await freePort()}`;
      const config = path.join(folder, "registry.yml");
      await writeFile(
        config,
        JSON.stringify({
          version: "0.1",
          log: { level: "error" },
          storage: { filesystem: { rootdirectory: path.join(folder, "registry") } },
          http: { addr: address },
        }),
      );
      const [, program = ""] = (await run("setup/parts.sh", ["registry"])).trim().split("\t");
      registry = new Child(program, ["serve", config]);
      await registry.untilReady(async () => (await fetch(`http://${address}/v2/`)).ok);
      await cp(PIN, path.join(folder, PIN));
      for (const file of FILES) {
        const text = (await readFile(file, "utf8"))
          .replace(/(@|\n +digest: )sha256:\w+/g, "")
          .replace(/^(FROM |.* image: )(?=[\w./-]+:)/gm, `$1${address}/`)
          .replace("- name: haproxy", `- name: ${address}/haproxy`);
        await cp(file, path.join(folder, file));
        await writeFile(path.join(folder, file), text);
      }
    });
    afterAll(async () => {
      await registry?.end();
      if (folder) await rm(folder, { recursive: true, force: true });
    });

    const pin = (...args: string[]) => run(path.join(folder, PIN), args);
    const listed = async () => (await pin("--list")).trim().replaceAll(`${address}/`, "").split("\n");
    const texts = () => Promise.all(FILES.map((file) => readFile(path.join(folder, file), "utf8")));

    /** Puts another image behind a tag; resolves with its digest. */
    async function push(image: string): Promise<string> {
      const [name, tag] = image.split(":");
      const mediaType = "application/vnd.oci.image.index.v1+json";
      const answer = await fetch(`http://${address}/v2/${name}/manifests/${tag}`, {
        method: "PUT",
        headers: { "content-type": mediaType },
        body: JSON.stringify({
          schemaVersion: 2,
          mediaType,
          manifests: [],
          annotations: { built: String(Math.random()) },
        }),
      });
      expect(answer.status).toBe(201);
      return answer.headers.get("docker-content-digest") ?? "";
    }

    const imageOf = (line: string) => line.slice(line.indexOf(" ") + 1);
    const images = [...new Set(SHIPPED.map(imageOf))];
    const haproxy = images.find((image) => image.startsWith("haproxy:")) ?? "";
    const digests = new Map<string, string>();
    const pinned = () => SHIPPED.map((line) => `${line}@${digests.get(imageOf(line))}`);

    test("every image of others is found in the shipped files, by its tag", () => {
      expect(SHIPPED.map((line) => line.replace(/:[^:]*$/, ""))).toEqual([
        "Dockerfile: node",
        "Dockerfile: node",
        "docker-compose.yml: haproxy",
        "docker-compose.yml: ghcr.io/openvoxproject/openvoxdb",
        "docker-compose.yml: postgres",
        "deploy/kubernetes/kustomization.yaml: haproxy",
      ]);
    });

    test("if the registry lacks one image, nothing is written", async () => {
      for (const image of images) if (image !== haproxy) digests.set(image, await push(image));
      const before = await texts();
      const message = new RegExp(`nothing was written.*\n${address}/${haproxy}: .*not found\n$`);
      await expect(pin()).rejects.toThrow(message);
      expect(await texts()).toEqual(before);
    });

    test("each image gets the digest that the registry has, and the files mean the same", async () => {
      digests.set(haproxy, await push(haproxy));
      await expect(pin("--check")).rejects.toThrow(`${haproxy} without a digest -> ${digests.get(haproxy)}`);
      await pin();
      expect(await listed()).toEqual(pinned());
      const compose = ["compose", "-f", path.join(folder, "docker-compose.yml"), "config", "--images"];
      const used = (tag: string) => run("docker", compose, { env: { ...process.env, HAPROXY_TAG: tag } });
      expect(await used("")).toContain(`${address}/${haproxy}@${digests.get(haproxy)}\n`);
      expect(await used("3.0")).toContain(`${address}/haproxy:3.0\n`);
    });

    test("what is up to date stays as it is", async () => {
      const before = await texts();
      expect(await pin()).toBe("every image has the digest of its tag\n");
      expect(await pin("--check")).toBe("every image has the digest of its tag\n");
      expect(await texts()).toEqual(before);
    });

    test("another image behind a tag is found, and its digest is renewed", async () => {
      const before = digests.get(haproxy);
      digests.set(haproxy, await push(haproxy));
      await expect(pin("--check")).rejects.toThrow(`${haproxy} ${before} -> ${digests.get(haproxy)}`);
      await pin();
      expect(await listed()).toEqual(pinned());
    });

    test("if the registry does not answer, nothing is written", async () => {
      const before = await texts();
      await registry.end();
      await expect(pin()).rejects.toThrow(/nothing was written[\s\S]*connection refused/);
      expect(await texts()).toEqual(before);
    });
  },
);
