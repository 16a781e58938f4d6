/**
 * `docker compose up` for real: what the README promises at the first minute, and what happens when parts of it are
 * killed, restarted and stopped. The tests are one story and stand in its order.
 */
import { readFileSync } from "node:fs";
import { chown, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, onTestFailed, test } from "vitest";
import { run } from "../support/child.js";
import { blockWith } from "../support/documents.js";
import { patient } from "../support/patience.js";
import { type Gateway, left, PROJECT, quickStart, REPOSITORY, Stack } from "./stack.js";

/** The commands of docs/containers.md in the block that has `words`. */
const commandsWith = (words: string) => blockWith("docs/containers.md", words).text;

/** A sync on schedule, on a machine that has other things to do. */
const SOON = { timeout: patient(30_000), interval: 250 };
/** PuppetDB starts in half a minute, where it has a core to itself. */
const LATER = { timeout: patient(60_000), interval: 500 };

const MAP = "/var/lib/sasori/node-master.map";

let stack: Stack;

beforeAll(async () => {
  stack = await Stack.create();
  await stack.removeLeftovers();
});
afterAll(() => stack.remove());

/** When something goes wrong nobody can look at the containers afterwards. */
function showLogs(): void {
  onTestFailed(async () => {
    console.error(await stack.compose("ps", "--all").catch(String));
    console.error(await stack.compose("logs", "--tail", "30").catch(String));
  });
}

const mapped = (master: string) => ({ status: 200, master, route: "mapped" });

/** sasori has seen the move, the file and every HAProxy have it, and they route by it. Nobody asks before: that heals. */
async function expectMapped(node: string, master: string, gateways: Gateway[] = ["gateway"]): Promise<void> {
  await expect
    .poll(() => stack.compose("exec", "haproxy", "cat", MAP), SOON)
    .toContain(`${node}.example.com ${master}\n`);
  await expectInSync();
  for (const gateway of gateways) expect(await stack.ask(node, gateway)).toEqual(mapped(master));
}

const expectInSync = () =>
  expect.poll(async () => (await stack.status()).targets.filter(({ inSync }) => !inSync), SOON).toEqual([]);

describe("the README's quick start", () => {
  const [up = "", move = "", after = ""] = quickStart();

  test("the first requests after `up --wait` reach the nodes' masters, and the map says so", async () => {
    showLogs();
    const printed = await stack.paste(up);
    expect(printed.match(/"master":"master\d"/g)).toEqual(
      ["1", "2", "3", "1"].map((number) => `"master":"master${number}"`),
    );
    expect(printed.match(/^node\d.example.com master\d$/gm)).toEqual([
      "node1.example.com master1",
      "node2.example.com master2",
      "node3.example.com master3",
      "node4.example.com master1",
    ]);
  });

  test("moved nodes are routed to their new masters, by schedule and by `npm run update-map`", async () => {
    showLogs();
    const printed = await stack.paste(move);
    expect(printed).toMatch(/"node":"node1.example.com","master":"master3"/);
    expect(printed).toMatch(/pass done/);
    expect(await stack.paste(after)).toMatch(/"node":"node2.example.com","master":"master3"/);
    expect(await stack.ask("node2")).toEqual(mapped("master3"));
  });

  test("the pages that it names are there", async () => {
    const code = (url: string, ...more: string[]) =>
      run("curl", ["-s", "-o", "/dev/null", "-w", "%{http_code}", ...more, url]);
    expect(await code(`${stack.url("stats")}/stats`, "-u", "admin:admin")).toBe("200");
    expect(await code(`${stack.url("stats")}/stats`)).toBe("401");
    expect(await code(stack.url("sasori"))).toBe("200");
    expect(await code(`${stack.url("sasori")}/api/v1/sync`, "-X", "POST"), "without the token").toBe("401");
  });
});

describe("hardening", () => {
  test("no container is root, may write to its own files, or has a capability", async () => {
    const containers = Object.entries(await stack.containers());
    expect(containers.map(([service]) => service).sort()).toEqual(
      [
        "haproxy",
        "master1",
        "master2",
        "master3",
        "nodes",
        "postgres",
        "prepare",
        "puppetdb",
        "sasori",
      ].sort(),
    );
    for (const [service, { Config, HostConfig, Mounts }] of containers) {
      expect(Config.User, `${service}'s user`).toMatch(/^(?!root|0(:|$)).+/);
      expect(HostConfig, service).toMatchObject({
        ReadonlyRootfs: true,
        Privileged: false,
        CapAdd: null,
        CapDrop: ["ALL"],
      });
      expect(HostConfig.SecurityOpt, service).toContain("no-new-privileges:true");
      expect(HostConfig.Memory, `${service}'s memory limit`).toBeGreaterThan(0);
      const published = Object.values(HostConfig.PortBindings ?? {}).flat();
      expect(
        published.filter(({ HostIp }) => HostIp !== "127.0.0.1"),
        `${service}'s ports`,
      ).toEqual([]);
      // A file that is mounted by itself keeps its old content when it is replaced.
      expect(Mounts.filter(({ Type, Source }) => Type === "bind" && /\.\w+$/.test(Source))).toEqual([]);
    }
  });

  test.each(["haproxy", "sasori", "puppetdb", "postgres", "master1", "nodes"])(
    "what runs in %s has no rights and cannot get any",
    async (service) => {
      const status = await stack.compose("exec", service, "cat", "/proc/1/status");
      expect(status).toMatch(/^Uid:\t(?!0\t)\d+/m);
      expect(status).toMatch(/^CapEff:\t0+$/m);
      expect(status).toMatch(/^CapBnd:\t0+$/m);
      expect(status).toMatch(/^NoNewPrivs:\t1$/m);
    },
  );

  test("the API token is this stack's own, and HAProxy cannot see it", async () => {
    expect(await token()).toMatch(/^[0-9a-f]{64}$/);
    await expect(stack.compose("exec", "haproxy", "cat", "/etc/sasori/api.token")).rejects.toThrow(
      /No such file/,
    );
  });
});

const token = async () => (await stack.compose("exec", "sasori", "cat", "/etc/sasori/api.token")).trim();

describe("the image", () => {
  test("is the program and the demo's, with licences and SBOM, without packages, and says what it is", async () => {
    const inImage = (...command: string[]) =>
      run("docker", [
        "run",
        "--rm",
        "--network=none",
        "--entrypoint",
        command[0] ?? "",
        PROJECT,
        ...command.slice(1),
      ]);
    expect((await inImage("ls", "/app")).trim().split("\n").sort()).toEqual(
      // biome-ignore format: a list
      ["LICENSES.txt", "demo", "package.json", "page", "program.cache", "program.cjs", "sasori.cjs", "sbom.json"],
    );

    const { version } = JSON.parse(readFileSync(`${REPOSITORY}/package.json`, "utf8")) as { version: string };
    const [image] = JSON.parse(await run("docker", ["image", "inspect", PROJECT])) as [
      { Config: { Labels: Record<string, string>; User: string; Entrypoint: string[] } },
    ];
    expect(image.Config.Labels).toMatchObject({
      "org.opencontainers.image.title": "sasori",
      "org.opencontainers.image.version": version,
    });
    expect(image.Config).toMatchObject({ User: "1000:1000", Entrypoint: ["node", "/app/sasori.cjs"] });
  });

  test("says what is missing when it is run without configuration", async () => {
    await expect(run("docker", ["run", "--rm", PROJECT])).rejects.toThrow(
      /failed \(2\):[\s\S]*SASORI_PUPPETDB_URL is not set[\s\S]*SASORI_HAPROXY is not set/,
    );
  });
});

describe("when parts of it fail", () => {
  test("a stale route heals on the request that meets it: HAProxy's question reaches sasori", async () => {
    showLogs();
    let to = "master2";
    const moveAndAsk = async () => {
      to = to === "master2" ? "master1" : "master2";
      await stack.move("node3", to);
      const { master, route } = await stack.ask("node3");
      expect(master).toBe(to);
      return route;
    };
    // The schedule may be quicker than we are, now and then.
    await expect.poll(moveAndAsk, SOON).toBe("learned");
  });

  test("HAProxy restarted, as for an upgrade: the first request is mapped, and sasori finds it in sync", async () => {
    showLogs();
    await stack.move("node4", "master2");
    await stack.compose("exec", "sasori", "npm", "run", "update-map");
    // Without the new version itself.
    await stack.paste(commandsWith("git pull").replace("git pull\n", ""));
    await stack.compose("up", "--wait", "--no-recreate", "haproxy");
    expect(await stack.ask("node4")).toEqual(mapped("master2"));
    await expect
      .poll(async () => (await stack.status()).targets.every(({ inSync }) => inSync), SOON)
      .toBe(true);
  });

  test("sasori killed: it is started again, and the gateway serves meanwhile", async () => {
    showLogs();
    // Everything in its container but the init process.
    await stack.compose("exec", "sasori", "sh", "-c", "kill -9 -1").catch(() => undefined);
    expect(await stack.ask("node4")).toEqual(mapped("master2"));
    const sasori = async () => (await stack.containers()).sasori;
    await expect
      .poll(sasori, SOON)
      .toMatchObject({ RestartCount: 1, State: { Running: true, Health: { Status: "healthy" } } });
  });

  test("sasori stopped: it ends at once with 0; what moved meanwhile is found, and mapped when it is back", async () => {
    showLogs();
    await stack.compose("stop", "sasori");
    // Docker kills after 10 s, and then the code is 137.
    expect((await stack.containers()).sasori?.State).toMatchObject({ Running: false, ExitCode: 0 });

    await stack.move("node4", "master3");
    expect(await stack.ask("node4")).toMatchObject({ status: 200, master: "master3", route: "redispatched" });
    expect(await stack.ask("node2")).toEqual(mapped("master3"));
    await stack.compose("up", "--wait", "--no-recreate", "sasori");
    await expectMapped("node4", "master3");
  });

  test("PuppetDB stopped: everything is served as before; moves arrive again when it is back", async () => {
    showLogs();
    await stack.compose("stop", "puppetdb");
    await expect
      .poll(async () => (await stack.status()).lastPass.source, SOON)
      .toMatchObject({ outcome: "failed", failure: { code: "PUPPETDB_UNREACHABLE" } });
    expect(await stack.ask("node1")).toEqual(mapped("master3"));
    expect((await stack.containers()).sasori?.State.Health?.Status).toBe("healthy");

    await stack.compose("start", "puppetdb");
    const move = () =>
      stack.move("node1", "master2").then(
        () => "moved",
        (error: Error) => error.message,
      );
    await expect.poll(move, LATER).toBe("moved");
    await expectMapped("node1", "master2");
  });
});

describe("docker-compose.second-haproxy.yml", () => {
  test("both HAProxy instances agree, on what is there and on what moves", async () => {
    showLogs();
    stack.override("docker-compose.second-haproxy.yml");
    const printed = await stack.paste(commandsWith("docker-compose.second-haproxy.yml"));
    expect(printed).toContain('"node":"node1.example.com"');
    const { targets } = await stack.status();
    expect(targets.map(({ target }) => target)).toContain("/run/sasori/haproxy2.sock");
    for (const node of ["node1", "node2", "node3", "node4"]) {
      expect(await stack.ask(node, "gateway2")).toEqual(await stack.ask(node));
    }
    await stack.move("node1", "master1");
    await stack.compose("exec", "sasori", "npm", "run", "update-map");
    expect(await stack.ask("node1")).toEqual(mapped("master1"));
    expect(await stack.ask("node1", "gateway2")).toEqual(mapped("master1"));
  });

  test("one of them down does not keep the other from what moves, and it catches up", async () => {
    showLogs();
    await stack.compose("stop", "haproxy2");
    await stack.move("node1", "master3");
    await expect
      .poll(() => stack.compose("exec", "haproxy", "cat", MAP), SOON)
      .toContain("node1.example.com master3");
    expect(await stack.ask("node1")).toEqual(mapped("master3"));
    await stack.compose("start", "haproxy2");
    await expectMapped("node1", "master3", ["gateway", "gateway2"]);
  });
});

describe("docs/estates.md in compose", () => {
  test("gives sasori a database in PuppetDB's PostgreSQL", async () => {
    showLogs();
    const folder = await mkdtemp(path.join(tmpdir(), "sasori-compose-"));
    try {
      const here = (text: string) => text.replaceAll(/(\.\/)?state\.password/g, `${folder}/state.password`);
      stack.override();
      await stack.paste(here(blockWith("docs/estates.md", "docker compose exec postgres").text));
      if (process.getuid?.() === 0) await chown(path.join(folder, "state.password"), 1000, 1000);
      const override = path.join(folder, "override.yml");
      await writeFile(override, here(blockWith("docs/estates.md", "secrets: [state_password]").text));
      stack.override(override);
      await stack.compose("up", "--wait", "--remove-orphans");
      await expect
        .poll(() => stack.compose("exec", "sasori", "sasori", "status", "--replicas"), SOON)
        .toMatch(/gateway-1.*in sync/);
    } finally {
      stack.override();
      await rm(folder, { recursive: true });
    }
  });
});

describe("docker-compose.light.yml", () => {
  test("after `down` it serves from the kept volumes, without Java and PostgreSQL", async () => {
    showLogs();
    const before = await token();
    await stack.compose("down");
    expect(await left("container", ["--all"])).toEqual([]);
    expect((await left("volume")).length).toBeGreaterThan(0);

    stack.override("docker-compose.light.yml");
    await stack.paste(commandsWith("docker-compose.light.yml"));
    const answers = await Promise.all(["node1", "node2", "node3", "node4"].map((node) => stack.ask(node)));
    expect(answers.map(({ status, master }) => [status, master])).toEqual([
      [200, "master1"],
      [200, "master2"],
      [200, "master3"],
      [200, "master1"],
    ]);
    const containers = await stack.containers();
    expect(containers).not.toHaveProperty("postgres");
    expect(await stack.compose("exec", "puppetdb", "cat", "/proc/1/status")).toMatch(/^Uid:\t1000\t/m);
    expect(await token()).toBe(before);
  });

  test("a move arrives by schedule", async () => {
    showLogs();
    await stack.move("node2", "master1");
    await expectMapped("node2", "master1");
  });
});

test("`docker compose down -v` leaves no container, volume or network of any form", async () => {
  showLogs();
  stack.override();
  await stack.compose("down", "-v");
  expect(await left("container", ["--all"])).toEqual([]);
  expect(await left("volume")).toEqual([]);
  expect(await left("network")).toEqual([]);
});
