/**
 * A clean Debian host with systemd as process 1 (systemd-nspawn), without a network: what is not on it cannot be fetched.
 * Everything that is written to it is gone when it is stopped. setup/hosts.sh has made what it starts from.
 */
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import path from "node:path";
import { Child, run } from "../support/child.js";

const REPOSITORY = path.resolve(".");

/** A host that is made ready in five seconds, on a machine that has other things to do. */
const BOOT_MS = 120_000;

export class Host {
  readonly #container: Child;
  readonly #leader: number;

  private constructor(container: Child, leader: number) {
    this.#container = container;
    this.#leader = leader;
  }

  /** Starts one of `setup/hosts.sh`. It sees the repository, read-only, as /clone, and with `node` this Node.js in its PATH. */
  static async start(name: string, { node = false } = {}): Promise<Host> {
    const folder = (await run("setup/hosts.sh", [name])).trim();
    const options = [
      "--quiet",
      "--boot",
      "--console=pipe",
      "--register=no",
      "--keep-unit",
      "--private-network",
    ];
    const machine = `sasori-${randomBytes(4).toString("hex")}`;
    const container = new Child(
      "systemd-nspawn",
      [
        ...options,
        `--directory=${folder}`,
        "--volatile=overlay",
        `--machine=${machine}`,
        "--hostname=gateway",
        `--bind-ro=${REPOSITORY}:/clone`,
        ...(node ? [`--bind-ro=${process.execPath}:/usr/local/bin/node`] : []),
      ],
      // systemd 257 knows cgroups of the second version only.
      { env: { ...process.env, SYSTEMD_NSPAWN_UNIFIED_HIERARCHY: "1" } },
    );
    let leader = 0;
    await container.untilReady(
      async () => {
        const children = readFileSync(`/proc/${container.pid}/task/${container.pid}/children`, "utf8").trim();
        leader = Number(children.split(" ")[0]);
        if (leader === 0) return false;
        const state = await inside(leader, "systemctl is-system-running || true");
        return /^(running|degraded)$/.test(state.trim());
      },
      BOOT_MS,
      250,
    );
    return new Host(container, leader);
  }

  /** Runs shell commands as root, as a person would; resolves with what they print, rejects when one fails. */
  sh(script: string, input = ""): Promise<string> {
    return inside(this.#leader, `set -e\n${script}`, input);
  }

  /** Its process 1 takes all others with it; without it systemd-nspawn ends. The other way round it would go on. */
  stop(): Promise<void> {
    process.kill(this.#leader, "SIGKILL");
    return this.#container.end();
  }
}

function inside(leader: number, script: string, input = ""): Promise<string> {
  const environment = [
    "env",
    "-i",
    "HOME=/root",
    "LANG=C.UTF-8",
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
  ];
  const quiet = ["DEBIAN_FRONTEND=noninteractive", "DEBCONF_NOWARNINGS=yes"];
  return run("nsenter", ["-t", String(leader), "-a", ...environment, ...quiet, "bash", "-c", script], {
    input,
  });
}

/** The n-th block of a document that is in this language (shell commands), as it stands there. */
export function blockOf(document: string, number: number, language = "sh"): string {
  const blocks = [...readFileSync(document, "utf8").matchAll(/^```(\w*)\n(.*?)^```$/gms)];
  const block = blocks.filter(([, of]) => of === language)[number - 1]?.[2];
  if (block === undefined)
    throw new Error(`${document} has no ${number} blocks of ${language || "plain text"}`);
  return block;
}
