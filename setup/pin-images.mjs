#!/usr/bin/env node
// Writes the digest of each image of others behind its tag, in the Dockerfile, in docker-compose.yml and for Kubernetes.
// A tag may name another image tomorrow. A digest always names the same one.
//
//   setup/pin-images.mjs          asks the registries, and pins every image or renews its digest
//   setup/pin-images.mjs --check  asks them too, and only says which images have no digest or an older one (exit code 1)
//   setup/pin-images.mjs --list   asks no registry: prints the images as they are written
//
// It asks with `docker buildx imagetools`, which needs no engine, and uses the logins of `docker login`. The digest is that
// of the image for all processors. If one image cannot be found, nothing is written.
import { execFile } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const ANSWER_MS = 60_000;

// Each pattern ends with the digest, or where it belongs. An image without a tag is one of our own.
const DIGEST = "(?<digest>sha256:[0-9a-f]{64})";
const REFERENCE = String.raw`(?<name>[\w./:-]+):(?:\$\{\w+:-)?(?<tag>[\w.-]+)`;
const FILES = [
  { file: "Dockerfile", joint: "@", pattern: `(?<before>^FROM ${REFERENCE})(?:@${DIGEST})?` },
  { file: "docker-compose.yml", joint: "@", pattern: `(?<before>^ +image: ${REFERENCE})(?:@${DIGEST})?` },
  {
    file: "deploy/kubernetes/kustomization.yaml",
    joint: "\n    digest: ",
    pattern: String.raw`(?<before>^  - name: (?!sasori$)(?<name>\S+)\n    newTag: "?(?<tag>[\w.-]+)"?$)(?:\n    digest: ${DIGEST})?`,
  },
].map(({ pattern, ...place }) => ({ ...place, pattern: new RegExp(pattern, "gm") }));

process.chdir(fileURLToPath(new URL("..", import.meta.url)));
const mode = process.argv[2] ?? "--pin";
if (!["--pin", "--check", "--list"].includes(mode)) fail("usage: setup/pin-images.mjs [--check|--list]", 2);

const images = FILES.flatMap(({ file, pattern }) =>
  [...readFileSync(file, "utf8").matchAll(pattern)].map(({ groups: { name, tag, digest } }) => ({
    file,
    image: `${name}:${tag}`,
    digest,
  })),
);
if (mode === "--list") {
  for (const { file, image, digest } of images) {
    console.log(`${file}: ${image}${digest === undefined ? "" : `@${digest}`}`);
  }
  process.exit();
}

const digests = await askForAll(new Set(images.map(({ image }) => image)));
const behind = images.filter(({ image, digest }) => digest !== digests.get(image));
if (mode === "--pin") FILES.forEach(write);
for (const { file, image, digest } of behind) {
  console.log(`${file}: ${image} ${digest ?? "without a digest"} -> ${digests.get(image)}`);
}
if (behind.length === 0) console.log("every image has the digest of its tag");
else if (mode === "--check")
  fail("nothing was written: run setup/pin-images.mjs without --check to write these digests", 1);

/** The digest of each image. Ends the program if one cannot be had. */
async function askForAll(wanted) {
  const found = new Map();
  const problems = [];
  await Promise.all(
    [...wanted].map(async (image) => {
      try {
        found.set(image, await ask(image));
      } catch (error) {
        problems.push(`${image}: ${error.stderr?.trim() || error.message}`);
      }
    }),
  );
  if (problems.length > 0) {
    fail(
      `nothing was written, because not every image was found in its registry:\n${problems.join("\n")}`,
      1,
    );
  }
  return found;
}

async function ask(image) {
  const args = ["buildx", "imagetools", "inspect", "--format", "{{json .Manifest}}", image];
  const { stdout } = await promisify(execFile)("docker", args, { timeout: ANSWER_MS });
  return JSON.parse(stdout).digest;
}

function write({ file, joint, pattern }) {
  const text = readFileSync(file, "utf8");
  writeFileSync(
    file,
    text.replace(pattern, (...match) => {
      const { before, name, tag } = match.at(-1);
      return `${before}${joint}${digests.get(`${name}:${tag}`)}`;
    }),
  );
}

function fail(message, code) {
  console.error(message);
  process.exit(code);
}
