// Every command in every document is run, as written: in a folder that stands for an operator's host, with the HAProxy
// and the daemon of the README, a PuppetDB stand-in and a PostgreSQL. Only places, ports and what needs another
// machine are this folder's: /etc/sasori is <folder>/etc/sasori, and so on.
//
// A new block runs here, or its lines stand in NOT_HERE with a reason. Otherwise this fails.
import { existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { makePuppetCa, type PuppetCa } from "./support/agents-gateway.js";
import { Child, freePort } from "./support/child.js";
import { type Block, blocksOf, blockWith, commandsOf, documents } from "./support/documents.js";
import { type FleetLab, withFleetLab } from "./support/fleet-lab.js";
import { haproxyBinaries, partIfThere, pathOf } from "./support/parts.js";
import { patient } from "./support/patience.js";
import { type PostgresServer, startPostgres } from "./support/postgres-server.js";
import { EVERY_SECOND } from "./support/schedules.js";

const kubectl = partIfThere("kubectl");

/**
 * What is not run here: commands of a document (of all, without one), and why. `by`: the test that reads them from the
 * document and runs them. Without it nothing runs them.
 */
const NOT_HERE: readonly { document?: string; commands: RegExp; because: string; by?: string }[] = [
  { commands: /^setup\/build\.sh/, because: "every run of the tests begins with it" },
  {
    commands: /^([A-Z_]+=\S+ )*(nice -n \S+ )?npm (test|run (test:|check|demo))/,
    because: "these are the tests themselves; .ci/run runs them",
  },
  { commands: /^([A-Z_]+=\S+ )*npm run (bench|reference)/, because: "they measure, or write into the clone" },
  {
    document: "README.md",
    commands: /docker compose|localhost:(8080|9190)|^sleep/,
    because: "needs Docker",
    by: "test/compose/stack.ts",
  },
  {
    document: "docs/containers.md",
    commands: /./,
    because: "needs Docker",
    by: "test/compose/compose.test.ts",
  },
  {
    document: "docs/estates.md",
    commands: /^docker compose|openssl rand.* state\.password/,
    because: "needs Docker",
    by: "test/compose/compose.test.ts",
  },
  {
    document: "docs/debian.md",
    commands: /./,
    because: "needs clean hosts with systemd",
    by: "test/packages/debian.test.ts",
  },
  { document: "docs/install.md", commands: /^(dnf|sasori setup)/, because: "needs RHEL" },
  { document: "docs/kubernetes.md", commands: /^kubectl rollout/, because: "needs a cluster" },
  ...(kubectl === undefined ? [{ commands: /^kubectl/, because: "there is no kubectl here" }] : []),
  {
    document: "docs/agents.md",
    commands: /^(curl|crl=|\{ echo|echo "commit)/,
    because: "needs masters that serve agents",
    by: "test/agents.test.ts",
  },
];

/** What a command prints, where the document says so. */
const PRINTS: readonly [command: string, prints: RegExp][] = [
  ["sasori nodes --master master2  ", /^NODE +MASTER +SOURCE +SINCE$/m],
  ["sasori status --json | jq", /^in sync$/m],
];

const isElsewhere = (document: string, command: string) =>
  NOT_HERE.some((one) => (one.document ?? document) === document && one.commands.test(command));

const shell = documents.flatMap(blocksOf).filter(({ language }) => language === "sh");
const runHere = shell.filter((block) => commandsOf(block).some((line) => !isElsewhere(block.document, line)));
const README = blockWith("README.md", "./sasori serve");
const bin = haproxyBinaries().at(-1)?.bin ?? "";

/** The operator's host. */
let root: string;
let lab: FleetLab;
let ca: PuppetCa;
let postgres: PostgresServer;
let haproxy: Child;
let daemon: Child;
let environment: Record<string, string>;
const ending: (() => Promise<unknown>)[] = [];
const at = (place: string) => join(root, place);
const write = (place: string, text: string, mode = 0o644) => {
  mkdirSync(dirname(at(place)), { recursive: true });
  writeFileSync(at(place), text, { mode });
};

/** A text of a document with the places and ports of this host. */
const moved = (text: string) =>
  text
    .replaceAll(
      /(?<![\w.-])\/(etc\/(sasori|haproxy|puppetlabs)|run\/haproxy|run\/credentials|var\/lib\/sasori|usr\/local)\//g,
      `${root}/$1/`,
    )
    .replaceAll("http://127.0.0.1:8080", environment.PUPPETDB ?? "")
    .replaceAll("127.0.0.1:9180", environment.SASORI_LISTEN ?? "");

/** Programs of other machines, or that would wait for a person. */
const STAND_INS = {
  sasori: () => `exec ${resolve("sasori")} "$@"`,
  haproxy: () => `exec ${bin} "$@"`,
  curl: () => `exec ${pathOf("curl")} "$@"`,
  jq: () => `exec ${pathOf("jq")} "$@"`,
  socat: () => `exec ${pathOf("socat")} "$@"`,
  openssl: () => `exec ${pathOf("openssl")} "$@"`,
  psql: () => `exec ${join(pathOf("postgres"), "psql")} -w "$@"`,
  sudo: () => `[ "$1" = -u ]; shift 2; exec "$@"`,
  puppet: () => `[ "$*" = "config print ssldir" ]; echo ${at("etc/puppetlabs/puppet/ssl")}`,
  // As far as it does without a cluster: what it would send.
  kubectl: () => `export KUBECONFIG=/dev/null
case "$1 $2" in
  "create secret") exec ${kubectl} "$@" --dry-run=client -o yaml ;;
  "apply -k") exec ${kubectl} kustomize "$3" ;;
  *) exit 1 ;;
esac`,
  // `puppetserver ca generate --certname <name> ...`
  puppetserver: () => `[ "$1 $2 $3" = "ca generate --certname" ]; cd ${at("etc/puppetlabs/puppet/ssl")}
cp ${ca.gateway.cert} certs/$4.pem; cp ${ca.gateway.key} private_keys/$4.pem`,
};

/** In front of each block: what would run until Ctrl-C runs beside it, until the block is done. */
const PRELUDE = `set -euo pipefail
trap 'for job in $(jobs -p); do kill $job; done; wait' EXIT
until_there() { until "$@" >/dev/null 2>&1; do kill -0 $!; sleep 0.05; done; }
haproxy() {
  if [ "$1" != -W ]; then command haproxy "$@"; return; fi
  rm -f "$HAPROXY_SOCKET"; command haproxy "$@" & until_there test -S "$HAPROXY_SOCKET"
}
sasori() {
  if [ "$1" != serve ]; then command sasori "$@"; return; fi
  command sasori serve & until_there curl -sf "http://$SASORI_LISTEN/healthz"
}
`;

beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), "sasori-host-"));
  ending.push(() => rm(root, { recursive: true, force: true }));
  ca = await makePuppetCa();
  ending.push(() => ca.remove());
  postgres = await startPostgres("postgres");
  ending.push(() => postgres.stop());
  await postgres.sql("postgres", "CREATE TABLE plan (certname text, master text)");
  await postgres.sql("postgres", "INSERT INTO plan VALUES ('node5.example.com', 'master3')");
  // The laboratory lives until its test is done: here until the end.
  await new Promise<void>((ready, failed) => {
    const closed = new Promise<void>((close) => {
      ending.push(async () => {
        close();
        await done;
      });
    });
    const done = withFleetLab([], async (made) => {
      lab = made;
      ready();
      await closed;
    }).catch(failed);
  });
  for (const [index, master] of ["master1", "master2", "master2", "master3", "master2", "master3"].entries())
    await lab.run(`node${index + 5}.example.com`, master, -60_000);

  const ports = {
    GATEWAY_PORT: await freePort(),
    STATS_PORT: await freePort(),
    RUNTIME_PORT: await freePort(),
  };
  environment = {
    PATH: `${at("bin")}:${process.env.PATH}`,
    HOME: at("home"),
    LANG: "C.UTF-8",
    PUPPETDB: lab.config().puppetdb[0]?.[0]?.url ?? "",
    // Of the daemon, as its environment file has it.
    SASORI_LISTEN: `127.0.0.1:${await freePort()}`,
    SASORI_API_TOKEN_FILE: at("etc/sasori/api.token"),
    ...EVERY_SECOND,
    // Of the gateway.
    ...Object.fromEntries(Object.entries(ports).map(([name, port]) => [name, String(port)])),
    NODE_MASTER_MAP: at("var/lib/sasori/gateway.map"),
    HAPROXY_SOCKET: at("run/haproxy/sasori.sock"),
    ...{ STATS_USER: "stats", STATS_PASSWORD: "secret" },
    ...{
      PGHOST: "127.0.0.1",
      PGPORT: String(postgres.port),
      PGUSER: "postgres",
      PGPASSWORD: postgres.password,
    },
  };
  for (const [name, program] of Object.entries(STAND_INS))
    write(`bin/${name}`, `#!/bin/bash\nset -eu\n${program()}\n`, 0o755);
  for (const folder of [
    "home/.zfunc",
    "home/.config/fish/completions",
    "usr/local/share/man/man1",
    "run/haproxy",
  ])
    mkdirSync(at(folder), { recursive: true });
  for (const folder of ["certs", "private_keys"])
    mkdirSync(at(`etc/puppetlabs/puppet/ssl/${folder}`), { recursive: true });
  const [both, certificates] = [readFileSync(ca.gateway.both, "utf8"), readFileSync(ca.caBundle, "utf8")];
  for (const name of ["gateway.pem", "gw1.pem", "leg.pem"]) write(`etc/haproxy/${name}`, both);
  for (const place of [
    "etc/haproxy/ca.pem",
    "etc/sasori/ca.pem",
    "etc/puppetlabs/puppetserver/ca/ca_crt.pem",
  ])
    write(place, certificates);
  write("etc/puppetlabs/puppetserver/ca/ca_crl.pem", readFileSync(ca.emptyCrls, "utf8"));
  write("etc/sasori/postgres-ca.pem", certificates);
  write("etc/sasori/cert.pem", readFileSync(ca.gateway.cert, "utf8"));
  write("etc/sasori/key.pem", readFileSync(ca.gateway.key, "utf8"), 0o600);
  for (const place of ["etc/sasori", "run/credentials/sasori.service"])
    write(`${place}/state.password`, "secret\n", 0o600);
  write("etc/sasori/api.token", "secret\n", 0o600);
  for (const map of ["node-master.map", "gateway.map"]) write(`var/lib/sasori/${map}`, "");

  // The folder in which the operator is: of a clone, with files that the documents speak of.
  for (const name of readdirSync("haproxy")) {
    if (!name.includes(".")) continue;
    write(`work/haproxy/${name}`, readFileSync(join("haproxy", name), "utf8"));
    symlinkSync(`haproxy/${name}`, at(`work/${name}`));
  }
  for (const name of readdirSync("examples"))
    write(`work/examples/${name}`, moved(readFileSync(join("examples", name), "utf8")));
  symlinkSync(at("bin/sasori"), at("work/sasori"));
  symlinkSync(resolve("deploy"), at("work/deploy"));
  for (const name of ["cert.pem", "key.pem", "ca.pem", "postgres-ca.pem", "state.password"])
    symlinkSync(at(`etc/sasori/${name}`), at(`work/${name}`));
  write("work/nodes.txt", "node8.example.com master2 # as before\n");
  write("work/my-pools.cfg", `${blockWith("docs/gateway.md", "backend fra").text}\nbackend lon\n`);

  // The README's HAProxy: an existing configuration with the lines that it adds, and its daemon.
  const lines = moved(blockWith("README.md", "http-request set-var(txn.master)").text).replace(
    "frontend tools\n",
    `defaults\n  mode http\nfrontend tools\n  bind 127.0.0.1:${await freePort()}\n  default_backend puppet\n`,
  );
  const servers = ["master1", "master2", "master3"].map((name) => `  server ${name} 127.0.0.1:9\n`);
  write("etc/haproxy/haproxy.cfg", `${lines.trimEnd()}\n${servers.join("")}`);
  haproxy = new Child(bin, ["-db", "-f", at("etc/haproxy/haproxy.cfg")]);
  ending.push(() => haproxy.end());
  await haproxy.untilReady(async () => existsSync(at("run/haproxy/admin.sock")));
  daemon = new Child("bash", ["-c", script(README)], { cwd: at("work"), env: environment });
  ending.push(() => daemon.end("SIGKILL"));
  await daemon.untilReady(async () => (await fetch(`http://${environment.SASORI_LISTEN}/readyz`)).ok, 30_000);
}, patient(120_000));

afterAll(async () => {
  for (const end of ending.reverse()) await end();
});

/** Without what is not run here. Settings for sasori are read by it at the end. */
function script(block: Block): string {
  const commands = commandsOf(block).filter((command) => !isElsewhere(block.document, command));
  const isSettings =
    commands.some((command) => /^(export )?SASORI_\w+=\S*$/m.test(command)) && block !== README;
  return `${PRELUDE}${isSettings ? "set -a\n" : ""}${moved(commands.join("\n"))}\n${isSettings ? "sasori config" : ""}\n`;
}

test("the README's settings, doctor, diff and daemon work beside an HAProxy with its lines", () => {
  expect(daemon.ended, daemon.printed).toBe(false);
  expect(daemon.printed).toContain("node5.example.com"); // `diff` shows what it would add
});

describe("a document's commands work as written", () => {
  test.each(runHere.filter(({ line, document }) => document !== README.document || line !== README.line))(
    "$document, line $line",
    async (block) => {
      const own: Record<string, string> = block.text.includes("sasori serve")
        ? {
            SASORI_LISTEN: `127.0.0.1:${await freePort()}`,
            SASORI_HAPROXY: at("run/haproxy/sasori.sock"),
            SASORI_MAP_FILE: at("var/lib/sasori/gateway.map"),
          }
        : { MASTER1: "127.0.0.1:9" };
      const settings = {
        SASORI_PUPPETDB_URL: environment.PUPPETDB,
        SASORI_HAPROXY: at("run/haproxy/admin.sock"),
        SASORI_MAP_FILE: at("var/lib/sasori/node-master.map"),
      };
      const child = new Child("bash", ["-c", script(block)], {
        cwd: at("work"),
        env: { ...environment, ...settings, ...own },
      });
      const code = await child.code();
      expect(code, child.printed).toBe(0);
      for (const [command, prints] of PRINTS)
        if (block.text.includes(command)) expect(child.printed).toMatch(prints);
    },
  );
});

test("what is not run here is in a document still, and in the test that runs it", () => {
  for (const { document = "", commands, because, by } of NOT_HERE) {
    if (by !== undefined) expect(readFileSync(by, "utf8"), by).toContain(document);
    const found = shell.filter(
      (block) =>
        (document || block.document) === block.document &&
        commandsOf(block).some((line) => commands.test(line)),
    );
    expect(found, `${commands} (${because})`).not.toEqual([]);
  }
  for (const [command] of PRINTS)
    expect(
      runHere.some(({ text }) => text.includes(command)),
      command,
    ).toBe(true);
});

test("commands stand in blocks that are marked as such", () => {
  for (const { document, line, text } of documents
    .flatMap(blocksOf)
    .filter(({ language }) => language === ""))
    expect(text, `${document}:${line}`).not.toMatch(
      /^(\w+="?[^\n]* )?(\.\/)?(sasori|npm|curl|haproxy|docker|kubectl|puppetserver|apt-get) /m,
    );
});
