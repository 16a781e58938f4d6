/** deploy/kubernetes: rendered by kubectl, held to the schemas, and its pods run as the kubelet would run them. */
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import type { IServiceMonitor } from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";
import type { IDeployment } from "kubernetes-models/apps/v1";
import type { INetworkPolicy } from "kubernetes-models/networking.k8s.io/v1";
import type { IService } from "kubernetes-models/v1";
import { Agent, request } from "undici";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { startPuppetdbStandIn } from "../demo/puppetdb.js";
import { readConfig } from "../src/config.js";
import { freePort, run } from "./support/child.js";
import { blockWith } from "./support/documents.js";
import { startMaster, type TestMaster } from "./support/gateway.js";
import { haproxyBinariesAndNext, partIfThere } from "./support/parts.js";
import { patient } from "./support/patience.js";
import { Pod, Service } from "./support/pods.js";
import { type PuppetdbClient, standInClient } from "./support/puppetdb-server.js";
import { EVERY_SECOND } from "./support/schedules.js";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const MANIFESTS = path.join(ROOT, "deploy/kubernetes");
const kubectl = partIfThere("kubectl");
const NO_KUBECTL = { meta: { lacks: "there is no kubectl here: name one by KUBECTL_BIN" } };

interface Manifest {
  apiVersion: string;
  kind: string;
  metadata: { name: string; labels: Record<string, string> };
  data?: Record<string, string>;
  spec?: Record<string, Record<string, unknown>>;
}

let folder: string;
let manifests: Manifest[] = [];

/**
 * What `kubectl apply -k` would send, with the component for monitoring, and with `more` in the kustomization. kubectl asks no
 * cluster for that.
 */
async function render(name: string, more = ""): Promise<Manifest[]> {
  if (kubectl === undefined) return [];
  const env = { KUBECONFIG: "/dev/null", HOME: folder };
  const overlay = path.join(folder, name);
  await mkdir(overlay);
  const relative = path.relative(overlay, MANIFESTS);
  const kustomization = `resources: ["${relative}"]\ncomponents: ["${relative}/monitoring"]\n${more}`;
  await writeFile(path.join(overlay, "kustomization.yaml"), kustomization);
  const yaml = await run(kubectl, ["kustomize", overlay], { env });
  const toJson = ["annotate", "--local", "-f", "-", "-o", 'jsonpath={@}{"\\n"}', "rendered=yes"];
  const lines = (await run(kubectl, toJson, { env, input: yaml })).trim().split("\n");
  return lines.map((line) => JSON.parse(line));
}

const find = (kind: string, name = "sasori") => {
  const found = manifests.find((one) => one.kind === kind && one.metadata.name.startsWith(name));
  if (found === undefined) throw new Error(`no ${kind} ${name}`);
  return found;
};
const deployment = () => find("Deployment") as unknown as IDeployment;
const podSpec = () => deployment().spec?.template.spec;
const containers = () => [...(podSpec()?.initContainers ?? []), ...(podSpec()?.containers ?? [])];
const sidecarOf = (all: readonly Manifest[]) =>
  (
    all.find(({ kind }) => kind === "Deployment") as IDeployment | undefined
  )?.spec?.template.spec?.initContainers?.find(({ restartPolicy }) => restartPolicy === "Always");
const sidecar = () => sidecarOf(manifests);
const policy = () => (find("NetworkPolicy") as unknown as INetworkPolicy).spec;

beforeAll(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "sasori-kubernetes-"));
  manifests = await render("overlay");
});
afterAll(() => rm(folder, { recursive: true, force: true }));

/** Where the models of a manifest's group are. */
const modelsOf = ({ apiVersion }: Manifest) =>
  apiVersion.startsWith("monitoring.coreos.com/")
    ? `@kubernetes-models/prometheus-operator/${apiVersion}`
    : `kubernetes-models/${apiVersion}`;

/** The schemas' types refuse unknown fields. The API server would drop them silently. */
async function fieldErrors(all: readonly Manifest[]): Promise<string> {
  const place = await mkdtemp(path.join(ROOT, "node_modules/.manifests-"));
  try {
    const lines = all.map(
      (one, index) =>
        `export const m${index}: import("${modelsOf(one)}").I${one.kind} = ${JSON.stringify(one)};\n`,
    );
    await writeFile(path.join(place, "manifests.ts"), lines.join(""));
    const options = ["--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--ignoreConfig"];
    const tsc = path.join(ROOT, "node_modules/.bin/tsc");
    return await run(tsc, [...options, "manifests.ts"], { cwd: place }).catch(String);
  } finally {
    await rm(place, { recursive: true });
  }
}

describe.skipIf(kubectl === undefined)("the manifests", NO_KUBECTL, () => {
  test("hold to Kubernetes' schemas, with no field that there is not", async () => {
    expect(manifests.map(({ kind }) => kind).sort()).toEqual(
      // biome-ignore format: a list
      ["ConfigMap", "ConfigMap", "ConfigMap", "Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service", "Service",
        "ServiceMonitor"],
    );
    for (const manifest of manifests) {
      const models = await import(modelsOf(manifest));
      new models[manifest.kind](manifest).validate();
    }
    expect(await fieldErrors(manifests)).toBe("");
    const misspelt = JSON.parse(
      JSON.stringify(manifests).replaceAll("readOnlyRootFilesystem", "readOnlyRootFs"),
    );
    expect(await fieldErrors(misspelt)).toContain("'\"readOnlyRootFs\"' does not exist");
  });

  test("select the pods, and nothing but them", () => {
    const labels = deployment().spec?.template.metadata?.labels ?? {};
    const selectors = [
      ...manifests.filter(({ kind }) => kind === "Service").map(({ spec }) => spec?.selector),
      find("PodDisruptionBudget").spec?.selector?.matchLabels,
      find("NetworkPolicy").spec?.podSelector?.matchLabels,
      deployment().spec?.selector.matchLabels,
      ...(podSpec()?.topologySpreadConstraints ?? []).map(({ labelSelector }) => labelSelector?.matchLabels),
    ];
    expect(selectors).toHaveLength(7);
    for (const selector of selectors) {
      expect(Object.keys(selector ?? {})).not.toEqual([]);
      expect(labels).toMatchObject(selector as object);
    }
    const monitored = find("ServiceMonitor").spec?.selector?.matchLabels as object;
    expect(find("Service", "sasori-metrics").metadata.labels).toMatchObject(monitored);
    expect(find("Service").metadata.labels).not.toMatchObject(monitored);
  });

  test("name ports that a Service finds: a sidecar's only by number", () => {
    const named = (podSpec()?.containers ?? []).flatMap(({ ports = [] }) => ports.map(({ name }) => name));
    const numbers = containers().flatMap(({ ports = [] }) => ports.map(({ containerPort }) => containerPort));
    const services = manifests.filter(({ kind }) => kind === "Service") as unknown as IService[];
    const { ingress = [] } = policy() ?? {};
    const targets = [
      ...services.flatMap(({ spec }) => (spec?.ports ?? []).map(({ targetPort }) => targetPort)),
      ...ingress.flatMap(({ ports = [] }) => ports.map(({ port }) => port)),
    ];
    expect(targets).toHaveLength(6);
    expect([...named, ...numbers]).toEqual(expect.arrayContaining(targets));
  });

  test("are scraped as the jobs that alerts and dashboard ask for", async () => {
    const { endpoints = [] } = (find("ServiceMonitor") as unknown as IServiceMonitor).spec;
    const jobs = endpoints.map(({ port, relabelings = [] }) => [
      port,
      relabelings.find(({ targetLabel }) => targetLabel === "job")?.replacement,
    ]);
    expect(jobs).toEqual([
      ["sasori", "sasori"],
      ["stats", "haproxy"],
    ]);
    const read = (name: string) => readFile(path.join(ROOT, "deploy", name), "utf8");
    const matches = (text: string, pattern: RegExp) => [
      ...new Set(Array.from(text.matchAll(pattern), ([, job]) => job)),
    ];
    const example = await read("prometheus/scrape.example.yml");
    expect(jobs.map(([, job]) => job)).toEqual(matches(example, /job_name: (\S+)/g));
    const asked = (await read("prometheus/sasori.rules.yml")) + (await read("grafana/sasori.json"));
    expect(matches(asked, /\bjob=~?\\?"([^"\\]*)/g)).toEqual(["sasori"]);
  });

  test("carry the gateway of this repository, and a version of sasori that there is", async () => {
    const { data } = find("ConfigMap", "sasori-gateway");
    for (const name of ["haproxy.cfg", "heal.lua"])
      expect(data?.[name]).toBe(await readFile(path.join(ROOT, "haproxy", name), "utf8"));
    const { version } = JSON.parse(await readFile(path.join(ROOT, "package.json"), "utf8"));
    const images = (podSpec()?.initContainers ?? []).map(({ image }) => image);
    expect([...new Set(images)]).toEqual([`sasori:${version}`]);
  });

  test("confine every container", () => {
    expect(podSpec()).toMatchObject({
      automountServiceAccountToken: false,
      securityContext: { runAsNonRoot: true, seccompProfile: { type: "RuntimeDefault" } },
    });
    for (const container of containers()) {
      expect(container.securityContext).toMatchObject({
        allowPrivilegeEscalation: false,
        readOnlyRootFilesystem: true,
        capabilities: { drop: ["ALL"] },
      });
      expect(container.resources).toMatchObject({ requests: expect.anything(), limits: expect.anything() });
    }
  });

  test("let HAProxy read the map that only sasori writes, and share nothing but the sockets", () => {
    const writers = (volume: string) =>
      containers()
        .filter(({ volumeMounts = [] }) =>
          volumeMounts.some(({ name, readOnly = false }) => name === volume && !readOnly),
        )
        .map(({ name }) => name);
    expect(podSpec()?.volumes?.map(({ name }) => [name, writers(name)])).toEqual([
      ["map", ["map", "sasori"]],
      ["sockets", ["sasori", "haproxy"]],
      ["gateway", []],
      ["probes", []],
      ["puppetdb", []],
      ["api", []],
    ]);
    const folderOf = (container: string, variable: string) => {
      const one = containers().find(({ name }) => name === container);
      const file = one?.env?.find(({ name }) => name === variable)?.value ?? "";
      return one?.volumeMounts?.find(({ mountPath }) => mountPath === path.dirname(file))?.name;
    };
    expect(folderOf("sasori", "SASORI_MAP_FILE")).toBe("map");
    expect(folderOf("sasori", "SASORI_STATE_FILE")).toBe("map");
    expect(folderOf("haproxy", "NODE_MASTER_MAP")).toBe("map");
    expect(folderOf("haproxy", "HAPROXY_SOCKET")).toBe("sockets");
  });

  test("let the pods reach the cluster's DNS, PuppetDB and the masters, and say where each of them is", () => {
    const [dns, ...others] = policy()?.egress ?? [];
    expect(policy()?.policyTypes).toContain("Egress");
    expect(dns).toEqual({
      to: [
        {
          namespaceSelector: { matchLabels: { "kubernetes.io/metadata.name": "kube-system" } },
          podSelector: { matchLabels: { "k8s-app": "kube-dns" } },
        },
      ],
      ports: [
        { port: 53, protocol: "UDP" },
        { port: 53, protocol: "TCP" },
      ],
    });
    const settings = find("ConfigMap", "sasori-settings").data ?? {};
    const used = [
      new URL(settings.SASORI_PUPPETDB_URL ?? "").port,
      new URL(`tcp://${settings.MASTER1}`).port,
    ].map((port) => [{ port: Number(port), protocol: "TCP" }]);
    expect(others.map(({ ports }) => ports)).toEqual(used);
    for (const { to = [] } of others) {
      const networks = to.map(({ ipBlock }) => ipBlock?.cidr ?? "");
      // A rule with an empty list of destinations would allow all of them.
      expect(networks).not.toEqual([]);
      expect(networks.filter((cidr) => !/^(10|172|192)\.[\d.]+\/(8|12|16)$/.test(cidr))).toEqual([]);
    }
  });

  test("set what sasori understands", async () => {
    const { data = {} } = find("ConfigMap", "sasori-settings");
    const own = (sidecar()?.env ?? []).map(({ name, value }) => [name, value]);
    const file = path.join(folder, "any");
    await writeFile(file, "any");
    const env: Record<string, string> = { ...data, ...Object.fromEntries(own) };
    for (const name of ["PUPPETDB_CERT", "PUPPETDB_KEY", "PUPPETDB_CA", "API_TOKEN_FILE"])
      env[`SASORI_${name}`] = file;
    expect(readConfig(env)).toMatchObject({ listen: { host: "0.0.0.0", port: 9180 } });
    expect(podSpec()?.enableServiceLinks).toBe(false);
  });

  test("take the patch of docs/estates.md, by which replicas share a database", async () => {
    const patched = await render("replicas", blockWith("docs/estates.md", "patches:").text);
    expect(await fieldErrors(patched)).toBe("");
    const { env = [], volumeMounts = [] } = sidecarOf(patched) ?? {};
    const added = env.filter(({ name }) => !sidecar()?.env?.some((one) => one.name === name));
    expect(added.map(({ name }) => name).sort()).toEqual([
      "SASORI_REPLICA",
      "SASORI_STATE_CA",
      "SASORI_STATE_PASSWORD_FILE",
      "SASORI_STATE_URL",
    ]);
    expect(volumeMounts.map(({ mountPath }) => mountPath)).toContain("/etc/sasori/state");
  });

  test("leave each wait the time that it may take", () => {
    const [haproxy] = podSpec()?.containers ?? [];
    const preStop = Number(haproxy?.lifecycle?.preStop?.exec?.command?.[1]);
    // haproxy.cfg: the longest answer, and an idle connection. sasori promises to end within 10 s.
    expect(podSpec()?.terminationGracePeriodSeconds).toBeGreaterThanOrEqual(preStop + 120 + 30 + 10);
  });
});

interface Fleet {
  puppetdb: PuppetdbClient;
  masters: TestMaster[];
  /** Starts a pod; it is ended with the test. */
  start(bin: string): Promise<Pod>;
  /** A node's run at a master, which has it from now on. */
  move(node: string, to: string): Promise<void>;
  stopPuppetdb(): Promise<void>;
}

async function withFleet(use: (fleet: Fleet) => Promise<void>): Promise<void> {
  const masters = await Promise.all(["master1", "master2", "master3"].map((name) => startMaster(name)));
  for (const master of masters) master.nodes = new Set();
  const port = await freePort();
  const standIn = await startPuppetdbStandIn({ host: "127.0.0.1", port });
  const url = `http://127.0.0.1:${port}`;
  const puppetdb = standInClient(url);
  const pods: Pod[] = [];
  const settings = {
    SASORI_PUPPETDB_URL: url,
    ...Object.fromEntries(["CERT", "KEY", "CA"].map((name) => [`SASORI_PUPPETDB_${name}`, ""])),
    SASORI_MASTER_ALIASES: "",
    ...EVERY_SECOND,
    ...Object.fromEntries(masters.map((master) => [master.name.toUpperCase(), `127.0.0.1:${master.port}`])),
  };
  try {
    await use({
      puppetdb,
      masters,
      async start(bin) {
        const pod = await Pod.start({ deployment: deployment(), bin, settings });
        pods.push(pod);
        return pod;
      },
      async move(certname, to) {
        await puppetdb.replaceFacts({ certname, producer: to, at: new Date() });
        for (const { name, nodes } of masters) name === to ? nodes?.add(certname) : nodes?.delete(certname);
      },
      stopPuppetdb: () => standIn.close(),
    });
  } finally {
    await Promise.all(pods.map((pod) => pod.kill()));
    await standIn.close();
    for (const master of masters) await master.stop();
  }
}

const NODES = Array.from({ length: 60 }, (_, index) => `node${index}.example.com`);

describe.skipIf(kubectl === undefined)("a pod", NO_KUBECTL, () => {
  test.each(haproxyBinariesAndNext())(
    "gets no request before HAProxy $version has the map, and keeps them when sasori and PuppetDB are down",
    ({ bin }) =>
      withFleet(async ({ start, move, stopPuppetdb }) => {
        const pod = await start(bin);
        const ready = () => pod.probe("haproxy", "readinessProbe");
        // PuppetDB is empty, and sasori has said so: HAProxy is alive, but not for clients.
        const passes = () => pod.printed.split('"msg":"pass done"').length - 1;
        await expect.poll(passes).toBeGreaterThan(0);
        expect([await pod.probe("haproxy", "livenessProbe"), await ready()]).toEqual([200, 503]);
        await move("node1.example.com", "master2");
        await pod.untilReady();
        const headers = { "x-node-name": "node1.example.com" };
        const statuses = new Set<number>();
        const servedBy = async () => {
          const answer = await fetch(`http://127.0.0.1:${pod.ports.gateway}/`, { headers });
          statuses.add(answer.status);
          return answer.headers.get("x-served-by");
        };
        await expect.poll(servedBy).toBe("master2");
        await stopPuppetdb();
        await pod.endSasori();
        expect([await pod.probe("sasori", "livenessProbe"), await ready()]).toEqual([0, 200]);
        await expect.poll(servedBy).toBe("master2");
        // A master on a busy machine may be down for a moment (503), but the map was there from the first request on.
        expect([...statuses].filter((status) => ![200, 503].includes(status))).toEqual([]);
      }),
  );
});

describe.skipIf(kubectl === undefined)("a rolling restart", NO_KUBECTL, () => {
  // The oldest and the newest: each takes a quarter of a minute.
  test.each(haproxyBinariesAndNext().filter((_, index, all) => index === 0 || index === all.length - 1))(
    "fails no request on HAProxy $version, while nodes move and clients keep their connections",
    ({ bin }) =>
      withFleet(async ({ start, move, masters }) => {
        for (const [index, node] of NODES.entries()) await move(node, `master${(index % 3) + 1}`);
        const service = await Service.start();
        const old = await Promise.all([start(bin), start(bin)]);
        for (const pod of old) await pod.untilReady();
        await Promise.all(old.map((pod) => service.add(pod)));

        const connections = new Agent({ connections: 12, pipelining: 1 });
        const failures: string[] = [];
        let requests = 0;
        let restarting = true;
        const client = async (number: number) => {
          for (let turn = number; restarting; turn += 1) {
            const node = NODES[(turn * 7) % NODES.length] ?? "";
            await request(`http://127.0.0.1:${service.port}/`, {
              headers: { "x-node-name": node },
              dispatcher: connections,
            }).then(
              async ({ statusCode, body }) => {
                const text = await body.text();
                requests += 1;
                if (statusCode !== 200) failures.push(`${node} ${statusCode} ${text}`);
              },
              (error) => failures.push(`${node} ${error}`),
            );
            await sleep(5);
          }
        };
        const moving = async () => {
          for (let turn = 0; restarting; turn += 1) {
            await move(NODES[turn % NODES.length] ?? "", `master${(turn % 3) + 1}`);
            await sleep(100);
          }
        };
        const busy = [...Array.from({ length: 12 }, (_, number) => client(number)), moving()];
        try {
          for (const pod of old) {
            const fresh = await start(bin);
            await fresh.untilReady();
            await service.add(fresh);
            await Promise.all([service.remove(pod), pod.delete()]);
          }
          await expect.poll(() => requests).toBeGreaterThan(500);
        } finally {
          restarting = false;
          await Promise.all(busy);
          await connections.close();
          await service.close();
        }
        expect(failures).toEqual([]);
        expect(masters.every((master) => master.requests > 0)).toBe(true);
      }),
    patient(60_000),
  );
});
