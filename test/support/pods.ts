/**
 * What Kubernetes does with the pods of deploy/kubernetes, with real processes on loopback and without Kubernetes: a
 * kubelet that starts and ends containers in the order of the manifests and asks their probes, and a Service that hands
 * out connections to ready pods. Commands, variables, probes and waits come from the Deployment; only its seconds are
 * shorter here (SECOND_MS).
 */
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { connect, createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import type { IDeployment } from "kubernetes-models/apps/v1";
import type { IContainer } from "kubernetes-models/v1";
import { Child, freePort, run } from "./child.js";
import { patient } from "./patience.js";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
/** A second of the manifests. */
const SECOND_MS = 100;
/** How long everybody needs to hear that a pod came or goes. preStop must be longer. */
const NEWS_MS = 10 * SECOND_MS;

export interface PodOptions {
  deployment: IDeployment;
  /** The HAProxy of its image. */
  bin: string;
  /** Instead of what settings.env says. */
  settings: Record<string, string>;
}

/** A pod: HAProxy and sasori, started and ended as the kubelet does. */
export class Pod {
  /** By port name, as a Service sees them. */
  readonly ports: Record<"gateway" | "stats" | "probes" | "sasori", number>;
  ready = false;
  readonly #options: PodOptions;
  readonly #folder: string;
  #sasori: Child | undefined;
  #haproxy: Child | undefined;
  #ending = false;
  #probing: Promise<void> = Promise.resolve();

  private constructor(options: PodOptions, folder: string, ports: Pod["ports"]) {
    this.#options = options;
    this.#folder = folder;
    this.ports = ports;
  }

  /** Resolves when both containers have started. Ready it is later: see `untilReady`. */
  static async start(options: PodOptions): Promise<Pod> {
    const folder = await mkdtemp(path.join(tmpdir(), "sasori-pod-"));
    for (const name of ["api", "map", "sockets"]) await mkdir(path.join(folder, name));
    await writeFile(path.join(folder, "api", "token"), "secret");
    const [gateway, stats, probes, sasori] = [
      await freePort(),
      await freePort(),
      await freePort(),
      await freePort(),
    ];
    const pod = new Pod(options, folder, { gateway, stats, probes, sasori });
    try {
      for (const container of pod.#spec.initContainers ?? []) {
        if (container === pod.#sidecar) await pod.#startSasori();
        else await pod.#runToItsEnd(container);
      }
      const [program, ...rest] = pod.#words(pod.#container);
      pod.#haproxy = new Child(program, rest, { env: pod.#env(pod.#container), cwd: folder });
      await pod.#untilStarted(pod.#container, pod.#haproxy);
    } catch (error) {
      await pod.kill();
      throw error;
    }
    pod.#probing = pod.#probeReadiness();
    return pod;
  }

  get printed(): string {
    return `${this.#sasori?.printed}${this.#haproxy?.printed}`;
  }

  async untilReady(): Promise<void> {
    if (this.#haproxy === undefined) throw new Error("the pod has not been started");
    await this.#haproxy.untilReady(async () => this.ready);
  }

  /** The status of a probe; 0 when nobody answers. */
  probe(container: "haproxy" | "sasori", kind: "readinessProbe" | "livenessProbe"): Promise<number> {
    return this.#ask(container === "haproxy" ? this.#container : this.#sidecar, kind);
  }

  /**
   * As after `kubectl delete pod`: preStop, the signal of HAProxy's image, and when HAProxy has ended SIGTERM for the
   * sidecar. Rejects when that takes longer than the grace period.
   */
  async delete(): Promise<void> {
    this.#ending = true;
    await this.#probing;
    this.ready = false;
    const [, seconds] = this.#container.lifecycle?.preStop?.exec?.command ?? [];
    await sleep(Number(seconds ?? 0) * SECOND_MS);
    const asked = Date.now();
    // Unscaled: what HAProxy waits for are its own time-outs. (10 s after the signal a Child is killed, with patience.)
    await this.#haproxy?.end("SIGUSR1");
    if (Date.now() - asked > patient(9_000)) throw new Error(`HAProxy did not end:\n${this.printed}`);
    await this.endSasori();
    await rm(this.#folder, { recursive: true, force: true });
  }

  /** sasori alone, as when it crashes. */
  async endSasori(): Promise<void> {
    await this.#sasori?.end();
  }

  /** Everything at once. */
  async kill(): Promise<void> {
    this.#ending = true;
    await this.#probing;
    await Promise.all([this.#haproxy?.end("SIGKILL"), this.#sasori?.end("SIGKILL")]);
    await rm(this.#folder, { recursive: true, force: true });
  }

  get #spec() {
    const spec = this.#options.deployment.spec?.template.spec;
    if (spec === undefined) throw new Error("the Deployment has no pod");
    return spec;
  }

  get #container(): IContainer {
    return only(this.#spec.containers);
  }

  get #sidecar(): IContainer {
    return only((this.#spec.initContainers ?? []).filter(({ restartPolicy }) => restartPolicy === "Always"));
  }

  /** Until its startup probe succeeds. Its command is the image's. */
  async #startSasori(): Promise<void> {
    this.#sasori = new Child(process.execPath, [path.join(ROOT, "dist/src/cli.js"), "serve"], {
      env: this.#env(this.#sidecar),
    });
    await this.#untilStarted(this.#sidecar, this.#sasori);
  }

  async #runToItsEnd(container: IContainer): Promise<void> {
    const [program, ...rest] = this.#words(container);
    await run(program, rest, { env: this.#env(container), cwd: this.#folder });
  }

  /** The program and its arguments, as they are on this machine. */
  #words(container: IContainer): [string, ...string[]] {
    const { name, command = [], args = [] } = container;
    const [program, ...rest] = [...command, ...args].map((word) => this.#here(container, word));
    if (program === undefined) throw new Error(`the container ${name} has no command`);
    return [program, ...rest];
  }

  async #probeReadiness(): Promise<void> {
    const { periodSeconds = 10 } = this.#container.readinessProbe ?? {};
    while (!this.#ending) {
      this.ready = (await this.#ask(this.#container, "readinessProbe")) === 200;
      await sleep(periodSeconds * SECOND_MS);
    }
  }

  async #untilStarted(container: IContainer, child: Child): Promise<void> {
    await child.untilReady(async () => (await this.#ask(container, "startupProbe")) === 200, undefined, 50);
  }

  async #ask(
    container: IContainer,
    kind: "startupProbe" | "readinessProbe" | "livenessProbe",
  ): Promise<number> {
    const { path: at, port } = container[kind]?.httpGet ?? {};
    const url = `http://127.0.0.1:${this.ports[port as keyof Pod["ports"]]}${at}`;
    return fetch(url, { signal: AbortSignal.timeout(patient(3_000)) }).then(
      async (response) => {
        await response.arrayBuffer();
        return response.status;
      },
      () => 0,
    );
  }

  #env(container: IContainer): Record<string, string> {
    const secrets: Record<string, string> = { user: "stats", password: "secret" };
    const own = (container.env ?? []).map(({ name, value, valueFrom }) => {
      const text = value ?? secrets[valueFrom?.secretKeyRef?.key ?? ""] ?? "";
      return [name, this.#here(container, text)];
    });
    const { gateway, stats, probes, sasori } = this.ports;
    return {
      PATH: `${path.dirname(this.#options.bin)}:${process.env.PATH}`,
      ...Object.fromEntries(own),
      // The network of a pod is its own; here all pods share one, and nothing leaves loopback.
      GATEWAY_ADDRESS: "127.0.0.1",
      STATS_ADDRESS: "127.0.0.1",
      GATEWAY_PORT: String(gateway),
      STATS_PORT: String(stats),
      PROBE_ADDRESS: "127.0.0.1",
      PROBE_PORT: String(probes),
      RESOLVER_ADDRESS: `127.0.0.1:${sasori}`,
      ...(container === this.#sidecar && { SASORI_LISTEN: `127.0.0.1:${sasori}` }),
      ...this.#options.settings,
    };
  }

  /** Where a path of the container is on this machine. */
  #here(container: IContainer, text: string): string {
    const places: Record<string, string> = {
      gateway: path.join(ROOT, "haproxy"),
      probes: path.join(ROOT, "deploy/kubernetes"),
      map: path.join(this.#folder, "map"),
      sockets: path.join(this.#folder, "sockets"),
      api: path.join(this.#folder, "api"),
      puppetdb: path.join(this.#folder, "puppetdb"),
    };
    return (container.volumeMounts ?? []).reduce(
      (found, { name, mountPath }) => found.replaceAll(mountPath, places[name] ?? mountPath),
      text,
    );
  }
}

/** A Service: each new connection goes to the next pod that is ready, as far as that is known here by now. */
export class Service {
  readonly port: number;
  readonly #known: Pod[] = [];
  readonly #sockets = new Set<Socket>();
  readonly #server = createServer((socket) => this.#forward(socket));
  #next = 0;

  private constructor(port: number) {
    this.port = port;
  }

  static async start(): Promise<Service> {
    const service = new Service(await freePort());
    await new Promise<void>((resolve) => service.#server.listen(service.port, "127.0.0.1", resolve));
    return service;
  }

  /** The pod is ready: connections reach it when everybody knows. */
  async add(pod: Pod): Promise<void> {
    await sleep(NEWS_MS);
    this.#known.push(pod);
  }

  /** The pod is being deleted: connections still reach it until everybody knows. */
  async remove(pod: Pod): Promise<void> {
    await sleep(NEWS_MS);
    this.#known.splice(this.#known.indexOf(pod), 1);
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #forward(client: Socket): void {
    this.#next += 1;
    const pod = this.#known[this.#next % this.#known.length];
    if (pod === undefined) {
      client.destroy();
      return;
    }
    const server = connect(pod.ports.gateway, "127.0.0.1");
    for (const [socket, other] of [
      [client, server],
      [server, client],
    ] as const) {
      this.#sockets.add(socket);
      socket.on("error", () => other.destroy());
      socket.on("close", () => {
        this.#sockets.delete(socket);
        other.end();
      });
      socket.pipe(other);
    }
  }
}

function only<T>(list: readonly T[]): T {
  const [one, ...others] = list;
  if (one === undefined || others.length > 0) throw new Error(`expected one container, not ${list.length}`);
  return one;
}
