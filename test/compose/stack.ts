/**
 * The stack of docker-compose.yml as a test sees it: under a project name, an image name and ports of its own, so that
 * a stack that somebody runs on this machine is left alone.
 */
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { request } from "undici";
import { systemCode } from "../../src/errors.js";
import { isFree, run } from "../support/child.js";
import { patient } from "../support/patience.js";

export const REPOSITORY = fileURLToPath(new URL("../..", import.meta.url));

const PREFIX = "sasori-test-";
/** The project, and its image. Another run on this Docker has another one. */
export const PROJECT = `${PREFIX}${process.pid}`;

/** What docker-compose.yml publishes: the variable for the port, and the port that the README speaks of. */
const PUBLISHED = {
  gateway: ["DEMO_GATEWAY_PORT", 8080],
  stats: ["DEMO_STATS_PORT", 8081],
  gateway2: ["DEMO_GATEWAY2_PORT", 8082],
  stats2: ["DEMO_STATS2_PORT", 8083],
  sasori: ["DEMO_SASORI_PORT", 9180],
  nodes: ["DEMO_NODES_PORT", 9190],
} as const;
type Service = keyof typeof PUBLISHED;

const FIRST_PORT = 61_000;
const PORTS = 4_000;
export type Gateway = "gateway" | "gateway2";

export interface Routed {
  status: number;
  /** The master that says it has the node. */
  master: string | undefined;
  /** X-Route. */
  route: string | undefined;
}

export interface Container {
  Name: string;
  State: { Running: boolean; ExitCode: number; Health?: { Status: string } };
  RestartCount: number;
  Config: { User: string; Labels: Record<string, string> };
  HostConfig: {
    ReadonlyRootfs: boolean;
    Privileged: boolean;
    CapAdd: string[] | null;
    CapDrop: string[] | null;
    SecurityOpt: string[] | null;
    Memory: number;
    PortBindings: Record<string, { HostIp: string }[]> | null;
  };
  Mounts: { Type: string; Source: string }[];
}

export class Stack {
  readonly #ports: Readonly<Record<Service, number>>;
  readonly #env: NodeJS.ProcessEnv;

  private constructor(ports: Record<Service, number>) {
    this.#ports = ports;
    const foreign = /^(DEMO_|SASORI_|STATS_|COMPOSE_)/;
    this.#env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !foreign.test(name)));
    Object.assign(this.#env, {
      COMPOSE_PROJECT_NAME: PROJECT,
      DEMO_NODES: "40",
      DEMO_CHECK_IN_SECONDS: "10",
    });
    for (const service of names) this.#env[PUBLISHED[service][0]] = String(ports[service]);
  }

  /** On ports above those that the kernel and other tests give away: the last one is only bound minutes from now. */
  static async create(): Promise<Stack> {
    for (let tries = 0; tries < 100; tries += 1) {
      const first = FIRST_PORT + Math.floor(Math.random() * PORTS);
      const ports = Object.fromEntries(names.map((name, index) => [name, first + index]));
      const free = await Promise.all(Object.values(ports).map(isFree));
      if (free.every(Boolean)) return new Stack(ports as Record<Service, number>);
    }
    throw new Error(`no ${names.length} free ports in a row from ${FIRST_PORT} on`);
  }

  url(service: Service): string {
    return `http://localhost:${this.#ports[service]}`;
  }

  /** From now on docker-compose.yml means these as well, and none that was named before. */
  override(...files: string[]): void {
    this.#env.COMPOSE_FILE = ["docker-compose.yml", ...files].join(path.delimiter);
  }

  /** `docker compose <args>`; resolves with its output, rejects with all it said. */
  compose(...args: string[]): Promise<string> {
    return run("docker", ["compose", ...args], { cwd: REPOSITORY, env: this.#env });
  }

  /** Runs commands of a document as a person would who pastes them, but for the ports. */
  paste(commands: string): Promise<string> {
    const ported = names.reduce(
      (text, name) => text.replaceAll(`localhost:${PUBLISHED[name][1]}`, `localhost:${this.#ports[name]}`),
      commands,
    );
    return run("bash", ["-euo", "pipefail", "-c", ported], { cwd: REPOSITORY, env: this.#env });
  }

  /** Asks for a node through the gateway. */
  async ask(node: string, gateway: Gateway = "gateway"): Promise<Routed> {
    const headers = { "x-node-name": `${node}.example.com` };
    const answer = await request(this.url(gateway), {
      headers,
      signal: AbortSignal.timeout(patient(10_000)),
    });
    const body = (await answer.body.json()) as { master?: string };
    return { status: answer.statusCode, master: body.master, route: answer.headers["x-route"]?.toString() };
  }

  /** Rejects when the node could not check in with that master. */
  async move(node: string, to: string): Promise<void> {
    const url = `${this.url("nodes")}/nodes/${node}.example.com/move`;
    const answer = await request(url, { method: "POST", body: JSON.stringify({ to }) });
    const text = await answer.body.text();
    if (answer.statusCode !== 200) throw new Error(`${url} answered ${answer.statusCode}: ${text}`);
  }

  /** What sasori says of itself. */
  async status(): Promise<{
    nodes: number;
    targets: { target: string; inSync: boolean }[];
    lastPass: { outcome: string; source: { outcome: string; failure?: { code: string } } };
  }> {
    const answer = await request(`${this.url("sasori")}/api/v1/status`, {
      signal: AbortSignal.timeout(patient(10_000)),
    });
    return (await answer.body.json()) as Awaited<ReturnType<Stack["status"]>>;
  }

  /** Every container of the project, ended ones too, by service. */
  async containers(): Promise<Record<string, Container>> {
    const ids = await left("container", ["--all"]);
    const found = JSON.parse(await run("docker", ["container", "inspect", ...ids])) as Container[];
    return Object.fromEntries(
      found.map((container) => [container.Config.Labels["com.docker.compose.service"], container]),
    );
  }

  /** Removes whatever there is of it. */
  async remove(project = PROJECT): Promise<void> {
    const down = ["down", "--volumes", "--remove-orphans", "--timeout", "5"];
    await this.compose("--project-name", project, ...down);
    await new Promise((resolve) => execFile("docker", ["image", "rm", project], resolve));
  }

  /** Removes what runs have left that were killed: the process that the project is named after is gone. */
  async removeLeftovers(): Promise<void> {
    for (const project of await projects()) {
      const pid = Number(project.slice(PREFIX.length));
      if (pid !== process.pid && isRunning(pid)) continue;
      // Another run may be about it too.
      await this.remove(project).catch((error) => console.warn(`${project} is left: ${error}`));
    }
  }
}

const names = Object.keys(PUBLISHED) as Service[];

/** Those of this test on this Docker, of other runs too. */
async function projects(): Promise<Set<string>> {
  const label = '{{.Label "com.docker.compose.project"}}';
  const lists = [
    ["container", "ls", "--all", "--format", label],
    ["volume", "ls", "--format", label],
    ["network", "ls", "--format", label],
    ["image", "ls", "--format", "{{.Repository}}"],
  ];
  const listed = await Promise.all(lists.map((args) => run("docker", args)));
  const isOurs = new RegExp(`^${PREFIX}\\d+$`);
  return new Set(listed.flatMap((text) => text.split("\n")).filter((name) => isOurs.test(name)));
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return systemCode(error) !== "ESRCH";
  }
}

/** What the engine has of the project: the ids of its containers, volumes or networks. */
export async function left(kind: "container" | "volume" | "network", more: string[] = []): Promise<string[]> {
  const filter = `label=com.docker.compose.project=${PROJECT}`;
  const ids = await run("docker", [kind, "ls", "--quiet", "--filter", filter, ...more]);
  return ids.split("\n").filter((id) => id !== "");
}

/** The commands of the README's quick start with Docker, one text for each block. */
export function quickStart(): string[] {
  const readme = readFileSync(new URL("../../README.md", import.meta.url), "utf8");
  const part = /<!-- docker -->([\s\S]*?)<!-- \/docker -->/.exec(readme)?.[1] ?? "";
  return Array.from(part.matchAll(/```sh\n([\s\S]*?)```/g), ([, commands = ""]) => commands);
}
