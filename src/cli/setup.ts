// `sasori setup`: looks at this host, and shows the settings that it proposes. If the answer is yes, it writes them,
// restarts HAProxy if it gets the gateway, starts the daemon, and runs the doctor.
// Promises: nothing is changed before the answer is yes; the previous version of a replaced file stays beside it as
// `.before-setup`; manual changes to the settings files stay; if HAProxy would refuse its configuration, it is not
// restarted, and its previous settings are put back.

import { execFile, spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { chown, mkdir, readFile, rename, stat } from "node:fs/promises";
import path from "node:path";
import { createInterface } from "node:readline";
import { promisify } from "node:util";
import { puppetdbUrls } from "../config/forms.js";
import { reason, SasoriError, toFailure } from "../errors.js";
import { lookAtHost, type PuppetFiles } from "../setup/host.js";
import {
  envFile,
  type Kept,
  type Proposal,
  parseEnvFile,
  propose,
  type Setting,
  withoutMoved,
} from "../setup/proposal.js";
import { freeName, putFile } from "../setup/put-file.js";
import { PuppetDb } from "../source/puppetdb.js";
import type { Style } from "./report-text.js";

const run = promisify(execFile);

/** Deadline for PuppetDB's list of producers, enough for a big fleet. */
const PUPPETDB_MS = 60_000;

const DAEMON_FILE = "/etc/sasori/sasori.env";
const GATEWAY_FILE = "/etc/sasori/gateway.env";

type Environment = Readonly<Record<string, string | undefined>>;

/** Runs the setup. True if the doctor finds no failure at the end. Throws `USAGE` if it cannot be done on this host. */
export async function setUp(
  environment: Environment,
  { print, yes }: { print?: boolean | undefined; yes?: boolean | undefined },
  style: Style,
): Promise<boolean> {
  const host = await lookAtHost();
  let kept: Kept = { daemon: await readOwn(DAEMON_FILE), gateway: await readOwn(GATEWAY_FILE) };
  const ask = () =>
    askProducers(propose(host, [], environment, kept).daemon, host.puppet).catch((error: unknown) => {
      tell(style.bad(`PuppetDB could not be asked: ${toFailure(error).message}`));
      return undefined;
    });
  let producers = await ask();
  const moved = environment.SASORI_PUPPETDB_URL ? undefined : withoutMoved(host, kept);
  if (producers === undefined && moved !== undefined) {
    tell(`puppetdb.conf names another PuppetDB: ${host.puppetdbUrl}. Asking that one`);
    kept = moved;
    producers = await ask();
  }
  const proposal = propose(host, producers, environment, kept);
  show(proposal, print ? undefined : style);
  for (const what of proposal.remarks) tell(`${style.warn("left out")}: ${what}`);
  for (const what of proposal.missing) tell(`${style.bad("missing")}: ${what}`);
  if (print) return proposal.missing.length === 0;
  if (proposal.missing.length > 0) {
    tell("Nothing was written.");
    return false;
  }
  if (!yes && !(await isWanted())) {
    tell("Nothing was written.");
    return false;
  }
  const { STATS_PASSWORD: password = randomBytes(16).toString("hex") } = kept.gateway;
  const written = await write(proposal, password).catch((error: unknown) => {
    if (error instanceof SasoriError) throw error;
    const what = `not every file could be written, and nothing was started: ${reason(error)}`;
    throw new SasoriError("FILE_WRITE", `${what}: correct that, and run \`sasori setup\` again`, {
      cause: error,
    });
  });
  return start(proposal, written);
}

/** What stands in a settings file. */
const readOwn = async (file: string) => parseEnvFile(await readFile(file, "utf8").catch(() => ""));

/** Remarks go to stderr, because `--print` prints to stdout. */
const tell = (line: string): unknown => process.stderr.write(`${line}\n`);

/**
 * The producers in PuppetDB, the one with the most nodes first; undefined without an address. Nodes that apply their own
 * catalogs are left out. Of alternatives the first that answers is asked, and all estates.
 */
export async function askProducers(
  settings: readonly Setting[],
  puppet: PuppetFiles | undefined,
): Promise<string[] | undefined> {
  const urls = settings.find(({ name }) => name === "SASORI_PUPPETDB_URL")?.value;
  if (urls === undefined) return undefined;
  const estates = puppetdbUrls.safeParse(urls);
  if (!estates.success)
    throw new SasoriError("USAGE", `SASORI_PUPPETDB_URL: expected ${estates.error.issues[0]?.message}`);
  const counts = new Map<string, number>();
  for (const estate of estates.data)
    for (const producer of await firstAnswer(estate, (url) => producersOf(url, puppet)))
      counts.set(producer, (counts.get(producer) ?? 0) + 1);
  return [...counts]
    .sort(([a, nodes], [b, others]) => others - nodes || (a < b ? -1 : 1))
    .map(([name]) => name);
}

async function firstAnswer<T>([url = "", ...others]: string[], ask: (url: string) => Promise<T>): Promise<T> {
  return ask(url).catch((error: unknown) => {
    if (others.length === 0) throw error;
    tell(`asking the next PuppetDB, because this one failed: ${toFailure(error).message}`);
    return firstAnswer(others, ask);
  });
}

/** The producer of each node. */
async function producersOf(url: string, puppet: PuppetFiles | undefined): Promise<string[]> {
  const puppetdb = new PuppetDb({ url, ...(url.startsWith("https:") ? puppet : undefined) });
  try {
    const { submissions } = await puppetdb.readAll(AbortSignal.timeout(PUPPETDB_MS));
    return [...submissions].flatMap(([certname, { producer }]) => (producer === certname ? [] : [producer]));
  } finally {
    await puppetdb.close();
  }
}

function show({ daemon, gateway, certificates }: Proposal, style: Style | undefined): void {
  const heading = (file: string) => `${style === undefined ? `# --- ${file}` : style.dim(file)}\n`;
  const parts = [`${heading(DAEMON_FILE)}${envFile("sasori", daemon)}`];
  if (gateway !== undefined) {
    const password = { name: "STATS_PASSWORD", value: "CHANGE-ME", why: "kept as it is, or generated" };
    parts.push(`${heading(GATEWAY_FILE)}${envFile("The gateway", [...gateway, password])}`);
  }
  for (const { file, from, reader } of certificates)
    parts.push(`# ${file} (root:${reader}) is a copy of ${from.join(" and ")}\n`);
  process.stdout.write(`${parts.join("\n")}\n`);
}

/** No answer (Ctrl-C, Ctrl-D, no input at all) counts as no. */
export async function isWanted(
  input: NodeJS.ReadableStream = process.stdin,
  output: NodeJS.WritableStream = process.stderr,
): Promise<boolean> {
  const lines = createInterface({ input, output, prompt: "Write these files, and start sasori? [yes/no] " });
  lines.prompt();
  const [answer]: (string | undefined)[] = await Promise.race([once(lines, "line"), once(lines, "close")]);
  if (answer === undefined) tell("");
  lines.close();
  return /^y(es)?$/i.test(answer?.trim() ?? "");
}

/** Returns what gateway.env was before, as `putFile` does. */
async function write(
  { daemon, gateway, certificates }: Proposal,
  password: string,
): Promise<Awaited<ReturnType<typeof putFile>>> {
  const group = await groupOf("sasori");
  await mkdir("/etc/sasori/ssl", { recursive: true, mode: 0o750 });
  await chown("/etc/sasori", 0, group);
  await chown("/etc/sasori/ssl", 0, group);
  for (const { file, from, reader } of certificates) {
    const content = Buffer.concat(await Promise.all(from.map((one) => readFile(one))));
    await put(file, content, reader === "sasori" ? group : 0, reader === "sasori" ? 0o640 : 0o600);
  }
  await put(DAEMON_FILE, Buffer.from(envFile("sasori", daemon)), group, 0o640);
  if (gateway === undefined) return undefined;
  const secret = { name: "STATS_PASSWORD", value: password, why: "" };
  return put(GATEWAY_FILE, Buffer.from(envFile("The gateway", [...gateway, secret])), 0, 0o640);
}

async function put(file: string, content: Buffer, gid: number, mode: number) {
  const put = await putFile(file, content, { uid: 0, gid, mode });
  if (put === undefined) return undefined;
  tell(
    `${file} written${put.before === undefined ? "" : `; the previous version is ${path.basename(put.before)}`}`,
  );
  return put;
}

/** Puts the previous gateway.env back, because HAProxy would read the new one at its next start. */
async function takeGatewayBack(before: string | undefined): Promise<void> {
  const refused = await freeName(`${GATEWAY_FILE}.refused`);
  await rename(GATEWAY_FILE, refused);
  if (before !== undefined) await rename(before, GATEWAY_FILE);
  tell(`${GATEWAY_FILE} was put back as it was; the refused version is ${path.basename(refused)}`);
}

async function groupOf(user: string): Promise<number> {
  try {
    return Number((await run("id", ["-g", user])).stdout);
  } catch (error) {
    const remedy = "install the package, or follow docs/debian.md";
    throw new SasoriError("USAGE", `there is no user ${user} (${reason(error).trim()}): ${remedy}`);
  }
}

/** Restarts HAProxy and starts the daemon. Without systemd there is nothing to start. */
async function start(
  { gateway }: Proposal,
  written: { before: string | undefined } | undefined,
): Promise<boolean> {
  if (!(await stat("/run/systemd/system").catch(() => undefined))) return true;
  if (gateway !== undefined) {
    const check =
      "set -a; [ ! -r /etc/default/haproxy ] || . /etc/default/haproxy; . /etc/sasori/gateway.env; " +
      "exec haproxy -Ws -c -f /etc/haproxy/haproxy.cfg $EXTRAOPTS $OPTIONS";
    const refused = await run("sh", ["-c", check]).then(
      () => undefined,
      (error: { stderr?: string }) => error.stderr ?? reason(error),
    );
    if (refused !== undefined) {
      tell(`HAProxy would refuse its configuration, so it was not restarted:\n${refused.trim()}`);
      if (written !== undefined) await takeGatewayBack(written.before);
      return false;
    }
    await run("systemctl", ["daemon-reload"]);
    await run("systemctl", ["restart", "haproxy.service"]);
    tell("HAProxy was restarted and now has the gateway");
  }
  await run("systemctl", ["enable", "sasori.service"]);
  await run("systemctl", ["restart", "sasori.service"]);
  tell("sasori is running, and starts with this host\n");
  await untilReady();
  return spawnSync("sasori", ["doctor"], { stdio: "inherit" }).status === 0;
}

/** Waits for the daemon's first pass, before the doctor asks it. */
async function untilReady(): Promise<void> {
  for (let waited = 0; waited < 30; waited += 1) {
    if (spawnSync("sasori", ["healthy"], { stdio: "ignore" }).status === 0) return;
    await new Promise((resolve) => setTimeout(resolve, 1_000));
  }
}
