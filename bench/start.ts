// How long a command takes from the shell's call to its end: of a clone and of the package. By turns, beside a Node.js that
// does nothing; what counts is the ratio, and the processor time, which other programs on the machine change less.

import { execFile, spawn } from "node:child_process";
import { createServer } from "node:http";
import path from "node:path";
import { promisify } from "node:util";
import type { Story } from "../src/http/api-shapes.js";
import type { Bench, Row } from "./bench.js";
import { median } from "./stage.js";

const RUNS = 15;

/** Where `setup/package.sh --tree` lays the package's files out. */
const TREE = path.resolve(
  `dist/packages/tree-${process.arch === "x64" ? "amd64" : process.arch}/usr/lib/sasori`,
);

interface Variant {
  name: string;
  program: string[];
  args: string[];
}

export const start: Bench = {
  what: "the start of commands: a clone's and the package's, beside a Node.js that does nothing",
  async run({ signal, progress }) {
    progress("laying out the package");
    await promisify(execFile)("setup/package.sh", ["--tree"], { signal });
    const daemon = await answering({ certname: "web1.example.com", isKnown: true });
    const own = [process.execPath];
    const packaged = [path.join(TREE, "node")];
    const clone = [...own, path.resolve("dist/src/cli.js")];
    const bundle = [...packaged, path.join(TREE, "sasori.cjs")];
    const variants: Variant[] = [
      { name: "node -e 0", program: own, args: ["-e", "0"] },
      { name: "clone: sasori --version", program: clone, args: ["--version"] },
      { name: "clone: sasori lookup", program: clone, args: ["lookup", "web1.example.com"] },
      { name: "package: node -e 0", program: packaged, args: ["-e", "0"] },
      { name: "package: sasori --version", program: bundle, args: ["--version"] },
      { name: "package: sasori lookup", program: bundle, args: ["lookup", "web1.example.com"] },
    ];
    try {
      const seen = variants.map(() => [] as { wallMs: number; cpuMs: number }[]);
      for (let turn = 0; turn <= RUNS; turn += 1) {
        for (const [index, variant] of variants.entries()) {
          progress(`round ${turn} of ${RUNS}: ${variant.name}`);
          const once = await time(variant, daemon.port, signal);
          if (turn > 0) seen[index]?.push(once); // The first one reads from the disk.
        }
      }
      return variants.map(({ name }, index) => toRow(name, seen[index] ?? [], seen[index < 3 ? 0 : 3] ?? []));
    } finally {
      daemon.close();
    }
  },
};

function toRow(
  name: string,
  own: readonly { wallMs: number; cpuMs: number }[],
  bare: readonly { wallMs: number; cpuMs: number }[],
): Row {
  const ratios = own.map(({ wallMs }, index) => wallMs / (bare[index]?.wallMs ?? Number.NaN));
  return {
    command: name,
    "ms, best": Math.round(Math.min(...own.map(({ wallMs }) => wallMs))),
    "ms, median": Math.round(median(own.map(({ wallMs }) => wallMs))),
    "CPU ms": Math.round(median(own.map(({ cpuMs }) => cpuMs))),
    "of its node -e 0": Number(median(ratios).toFixed(1)),
  };
}

/** The processor time of a child is what the shell's `times` says of its own. */
async function time({ program, args }: Variant, port: number, signal: AbortSignal) {
  const began = performance.now();
  const child = spawn(
    "sh",
    ["-c", '"$@" >/dev/null; code=$?; times >&2; exit $code', "sh", ...program, ...args],
    {
      signal,
      env: { PATH: process.env.PATH ?? "", SASORI_LISTEN: `127.0.0.1:${port}` },
      stdio: ["ignore", "ignore", "pipe"],
    },
  );
  let printed = "";
  child.stderr.on("data", (chunk: Buffer) => {
    printed += chunk.toString();
  });
  const code = await new Promise<number | null>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", resolve);
  });
  const wallMs = performance.now() - began;
  if (code !== 0) throw new Error(`${[...program, ...args].join(" ")} failed (${code}): ${printed}`);
  const times = Array.from(
    printed
      .trim()
      .split("\n")
      .at(-1)
      ?.matchAll(/(\d+)m([\d.]+)s/g) ?? [],
    ([, m, s]) => 60 * Number(m) + Number(s),
  );
  return { wallMs, cpuMs: 1000 * times.reduce((sum, one) => sum + one, 0) };
}

/** A daemon that answers each question with this node. */
async function answering(about: { certname: string; isKnown: boolean }) {
  const story = {
    certname: about.certname,
    desired: { master: "puppet1", source: "facts", since: "2026-11-30T10:00:00.000Z" },
    file: { master: "puppet1" },
    live: [{ haproxy: "/run/haproxy/admin.sock", master: "puppet1" }],
    moves: [],
  } as unknown as Story;
  const server = createServer((_, response) => {
    response.setHeader("content-type", "application/json");
    response.end(JSON.stringify(story));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("no address");
  return { port: address.port, close: () => server.close() };
}
