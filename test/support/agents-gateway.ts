/**
 * The project's own agents.cfg on a real HAProxy, between clients with certificates of a small Puppet CA and
 * masters that accept HAProxy's certificate alone, for tests of agents through the gateway.
 */
import { once } from "node:events";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import https from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type ConnectionOptions, connect, type PeerCertificate, type TLSSocket } from "node:tls";
import { fileURLToPath } from "node:url";
import { run } from "./child.js";
import {
  type HaproxyOptions,
  type HaproxyPlaces,
  type HaproxyServer,
  runtimeCommand,
  startHaproxy,
} from "./haproxy-server.js";
import { puppetdbParts } from "./parts.js";
import { patient } from "./patience.js";

const ANSWER_DEADLINE_MS = 15_000;

/** The name that agents have as "server"; it is in the gateway's certificate. */
export const GATEWAY_NAME = "puppet.test";

/** The CN of HAProxy's certificate on the leg to the masters. */
export const LEG_NAME = "haproxy-leg";

/** Paths of PEM files. `both` has the certificate and the key. */
export interface Certificate {
  cert: string;
  key: string;
  both: string;
}

/** A CA like that of `puppetserver ca setup`: a root, and an intermediate that signs. */
export interface PuppetCa {
  dir: string;
  /** PEM files: both CAs, and both revocation lists, with nothing revoked. */
  caBundle: string;
  emptyCrls: string;
  gateway: Certificate;
  leg: Certificate;
  /** Signs a certificate; `subject` is what `openssl req -subj` takes. `by: "stranger"` is another CA. */
  issue(
    subject: string,
    options?: { by?: "ca" | "stranger"; extension?: string; rsa?: boolean },
  ): Promise<Certificate>;
  /** Both revocation lists as text, with these certificates revoked. */
  crlsWith(revoked: readonly Certificate[]): Promise<string>;
  remove(): Promise<void>;
}

export async function makePuppetCa(): Promise<PuppetCa> {
  const { openssl } = puppetdbParts();
  const dir = await mkdtemp(join(tmpdir(), "sasori-agents-"));
  const at = (name: string): string => join(dir, name);
  await writeFile(
    at("openssl.cnf"),
    `[req]\ndistinguished_name = name\n[name]\n[ca]\ndefault_ca = only\n[only]
database = ${at("revoked.txt")}\ncrlnumber = ${at("crl-number.txt")}\ndefault_md = sha256\ndefault_crl_days = 30\n`,
  );
  await writeFile(at("crl-number.txt"), "1000\n");
  let count = 0;

  const make = async (
    subject: string,
    extension: string,
    rsa: boolean,
    signer: string,
  ): Promise<Certificate> => {
    const name = `${++count}`;
    const files = { cert: at(`${name}.pem`), key: at(`${name}.key`), both: at(`${name}.both.pem`) };
    const key = rsa ? ["-newkey", "rsa:4096"] : ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
    const signedBy = signer === "" ? [] : ["-CA", at(`${signer}.pem`), "-CAkey", at(`${signer}.key`)];
    const request = ["req", "-x509", "-config", at("openssl.cnf"), "-nodes", "-days", "30", ...key];
    await run(openssl, [
      ...[...request, "-subj", subject, "-addext", extension, ...signedBy],
      ...["-keyout", files.key, "-out", files.cert],
    ]);
    await writeFile(files.both, (await readFile(files.cert, "utf8")) + (await readFile(files.key, "utf8")));
    return files;
  };
  /** Its revocation list; `revoked` are certificates that it has signed. */
  const crl = async (signer: string, revoked: readonly Certificate[]): Promise<string> => {
    const ca = [
      "ca",
      "-config",
      at("openssl.cnf"),
      "-cert",
      at(`${signer}.pem`),
      "-keyfile",
      at(`${signer}.key`),
    ];
    await writeFile(at("revoked.txt"), "");
    for (const { cert } of revoked) await run(openssl, [...ca, "-revoke", cert]);
    return run(openssl, [...ca, "-gencrl"]);
  };

  const authority = "basicConstraints=critical,CA:TRUE";
  const root = "1";
  const intermediate = "2";
  const stranger = "3";
  await make("/CN=Puppet Root CA", authority, false, "");
  await make("/CN=Puppet CA: test", authority, false, root);
  await make("/CN=Somebody else's CA", authority, false, "");
  const issue: PuppetCa["issue"] = (
    subject,
    { by = "ca", extension = "keyUsage=digitalSignature", rsa = false } = {},
  ) => make(subject, extension, rsa, by === "ca" ? intermediate : stranger);
  const crlsWith: PuppetCa["crlsWith"] = async (revoked) =>
    (await crl(intermediate, revoked)) + (await crl(root, []));

  await writeFile(
    at("ca.pem"),
    (await readFile(at(`${intermediate}.pem`), "utf8")) + (await readFile(at(`${root}.pem`), "utf8")),
  );
  await writeFile(at("crl.pem"), await crlsWith([]));
  return {
    dir,
    caBundle: at("ca.pem"),
    emptyCrls: at("crl.pem"),
    gateway: await issue(`/CN=${GATEWAY_NAME}`, { extension: `subjectAltName=DNS:${GATEWAY_NAME}` }),
    // A certificate of its own: the masters accept only this one.
    leg: await make(`/CN=${LEG_NAME}`, "extendedKeyUsage=clientAuth", false, ""),
    issue,
    crlsWith,
    remove: () => rm(dir, { recursive: true, force: true }),
  };
}

/** What a master got. `headers` has every header as it came, the names in lower case. */
export interface Received {
  master: string;
  path: string;
  bytes: number;
  headers: [string, string][];
  /** The CN of the certificate that was shown to the master, and the name that the TLS handshake asked for. */
  shown: string;
  sni: string | false;
}

/** A puppetserver as HAProxy sees it: mTLS, one certificate let in, and an answer that says what came. */
export interface AgentsMaster {
  name: string;
  port: number;
  /** Requests so far, without health checks. */
  requests: number;
  /** While set, requests wait for it, so a queue fills. */
  hold: Promise<void> | undefined;
  /** What it answers instead of an echo of the request. */
  answer: string | undefined;
  stop(): Promise<void>;
  start(): Promise<void>;
}

export async function startAgentsMaster(
  ca: PuppetCa,
  name: string,
  certificate: Certificate,
): Promise<AgentsMaster> {
  const tls = {
    cert: await readFile(certificate.cert),
    key: await readFile(certificate.key),
    ca: await readFile(ca.leg.cert),
    requestCert: true,
    rejectUnauthorized: true,
  };
  const server = https.createServer(tls, async (request, response) => {
    if (request.url === "/status/v1/simple") {
      response.end("running");
      return;
    }
    master.requests += 1;
    const socket = request.socket as TLSSocket & { servername?: string | false };
    const peer: Partial<PeerCertificate> = socket.getPeerCertificate();
    let bytes = 0;
    for await (const chunk of request) bytes += (chunk as Buffer).length;
    await master.hold;
    const headers: [string, string][] = [];
    for (let at = 0; at < request.rawHeaders.length; at += 2) {
      headers.push([(request.rawHeaders[at] ?? "").toLowerCase(), request.rawHeaders[at + 1] ?? ""]);
    }
    const shown = String(peer.subject?.CN);
    const received: Received = {
      ...{ master: name, path: request.url ?? "", bytes, headers, shown, sni: socket.servername ?? false },
    };
    response.end(master.answer ?? JSON.stringify(received));
  });
  server.keepAliveTimeout = 0; // See startMaster.
  const master: AgentsMaster = {
    ...{ name, port: 0, requests: 0, hold: undefined, answer: undefined },
    async start() {
      await new Promise<void>((resolve) => server.listen(master.port, "127.0.0.1", resolve));
      master.port = (server.address() as AddressInfo).port;
    },
    async stop() {
      server.closeAllConnections();
      if (server.listening) await new Promise((resolve) => server.close(resolve));
    },
  };
  await master.start();
  return master;
}

/** An answer that came through the gateway. */
export interface Answer {
  status: number;
  headers: Record<string, string | string[] | undefined>;
  text: string;
  /** The body as what a master got. */
  received(): Received;
}

export interface Request {
  path?: string;
  /** Name, value, name, value: so one can come twice, in any letter case. */
  headers?: readonly string[];
  body?: Buffer;
  /** Default: that of the gateway. */
  port?: number;
  tls?: ConnectionOptions;
}

export interface AgentsGateway {
  haproxy: HaproxyServer;
  /** master1 to master3. */
  masters: AgentsMaster[];
  caMaster: AgentsMaster;
  /** A request as an agent makes it, on a connection of its own. Rejects when the handshake fails. */
  ask(certificate: Certificate | undefined, request?: Request): Promise<Answer>;
}

/** The certificates of the masters, made once for all tests. */
export type MasterCertificates = Record<"ca" | "master1" | "master2" | "master3", Certificate>;

export async function makeMasterCertificates(ca: PuppetCa): Promise<MasterCertificates> {
  const one = (name: string) =>
    ca.issue(`/CN=${name}.test`, { extension: `subjectAltName=DNS:${name}.test` });
  return {
    ca: await one("ca"),
    master1: await one("master1"),
    master2: await one("master2"),
    master3: await one("master3"),
  };
}

/** Gives `use` a CA master and three masters behind haproxy/agents.cfg. */
export async function withAgentsGateway<T>(
  options: Pick<HaproxyOptions, "bin" | "map"> & {
    ca: PuppetCa;
    certificates: MasterCertificates;
    /** More variables of agents.cfg. */
    variables?: Record<string, string>;
    /** The file to begin with. Default: nothing is revoked. */
    crl?: string;
  },
  use: (gateway: AgentsGateway) => Promise<T>,
): Promise<T> {
  const { ca, certificates } = options;
  const start = (name: keyof MasterCertificates) => startAgentsMaster(ca, name, certificates[name]);
  const [caMaster, ...masters] = await Promise.all([
    start("ca"),
    start("master1"),
    start("master2"),
    start("master3"),
  ]);
  try {
    const config = (at: HaproxyPlaces): string => {
      const own = agentsVariables(
        ca,
        at,
        caMaster.port,
        masters.map(({ port }) => port),
      );
      const variables = { ...own, ...(options.crl && { AGENTS_CRL: options.crl }), ...options.variables };
      const lines = Object.entries(variables).map(([name, value]) => `  setenv ${name} "${value}"\n`);
      return `global\n${lines.join("")}${AGENTS_TEXT}`;
    };
    const haproxy = await startHaproxy({ bin: options.bin, map: options.map ?? [], config });
    try {
      const port = haproxy.ports.frontend;
      return await use({
        haproxy,
        masters,
        caMaster,
        ask: (certificate, request) => ask(ca, { port, ...request }, certificate),
      });
    } finally {
      await haproxy.stop();
    }
  } finally {
    for (const master of [caMaster, ...masters]) await master.stop();
  }
}

export const AGENTS_CONFIG = fileURLToPath(new URL("../../haproxy/agents.cfg", import.meta.url));
const AGENTS_TEXT = await readFile(AGENTS_CONFIG, "utf8");

/** What agents.cfg needs in its environment. */
export function agentsVariables(
  ca: PuppetCa,
  at: { mapPath: string; socketPath: string; ports: { frontend: number } },
  caPort: number,
  ports: readonly number[],
): Record<string, string> {
  return {
    NODE_MASTER_MAP: at.mapPath,
    AGENTS_SOCKET: at.socketPath,
    AGENTS_ADDRESS: "127.0.0.1",
    AGENTS_PORT: String(at.ports.frontend),
    AGENTS_CERT: ca.gateway.both,
    AGENTS_CA: ca.caBundle,
    AGENTS_CRL: ca.emptyCrls,
    AGENTS_LEG_CERT: ca.leg.both,
    AGENTS_LEG_CA: ca.caBundle,
    CA_MASTER: `127.0.0.1:${caPort}`,
    CA_MASTER_CERTNAME: "ca.test",
    ...Object.fromEntries(
      ports.flatMap((port, index) => [
        [`AGENTS_MASTER${index + 1}`, `127.0.0.1:${port}`],
        [`MASTER${index + 1}_CERTNAME`, `master${index + 1}.test`],
      ]),
    ),
  };
}

/** Where and how to connect to the gateway, with this client's certificate. */
async function connectionOf(
  ca: PuppetCa,
  { port, tls }: Request,
  certificate: Certificate | undefined,
): Promise<ConnectionOptions> {
  const identity = certificate && {
    cert: await readFile(certificate.cert),
    key: await readFile(certificate.key),
  };
  const server = { host: "127.0.0.1", servername: GATEWAY_NAME, ca: await readFile(ca.caBundle) };
  return { ...server, ...(port !== undefined && { port }), ...identity, ...tls };
}

/** A request as an agent makes it, on a connection of its own. Rejects when the handshake fails. */
export async function ask(
  ca: PuppetCa,
  request: Request,
  certificate: Certificate | undefined,
): Promise<Answer> {
  const { path = "/puppet/v3/catalog/any", headers = [], body } = request;
  const length = body === undefined ? [] : ["Content-Length", String(body.length)];
  const options: https.RequestOptions = {
    ...{ path, method: body === undefined ? "GET" : "POST", agent: false },
    headers: ["Host", `${GATEWAY_NAME}:8140`, ...length, ...headers],
    ...(await connectionOf(ca, request, certificate)),
  };
  return new Promise((resolve, reject) => {
    const request = https.request(options, (response) => {
      let text = "";
      response.setEncoding("utf8");
      response.on("data", (chunk: string) => {
        text += chunk;
      });
      response.on("end", () =>
        resolve({
          ...{ status: response.statusCode ?? 0, headers: response.headers, text },
          received: () => JSON.parse(text) as Received,
        }),
      );
      response.on("error", reject);
    });
    request.setTimeout(patient(ANSWER_DEADLINE_MS), () => request.destroy(new Error("no answer")));
    request.on("error", reject);
    request.end(body);
  });
}

/** What is needed to resume a TLS session that the gateway has given to this client; nothing if it gave none. */
export async function establish(
  ca: PuppetCa,
  request: Request,
  certificate: Certificate,
): Promise<{ session?: Buffer }> {
  const socket = connect(await connectionOf(ca, request, certificate));
  const sessions: Buffer[] = [];
  socket.on("session", (session) => sessions.push(session));
  socket.on("secureConnect", () =>
    socket.write(`GET / HTTP/1.1\r\nHost: ${GATEWAY_NAME}\r\nConnection: close\r\n\r\n`),
  );
  await once(socket.resume(), "close");
  const session = sessions.at(-1);
  return session === undefined ? {} : { session };
}

/** Gives a running HAProxy new revocation lists in the place of `file`, as docs/agents.md does it. */
export async function commitCrl({ socketPath }: HaproxyServer, file: string, lists: string): Promise<void> {
  const lines = lists.replaceAll(/^\s*\n/gm, "");
  const commands = [`set ssl crl-file ${file} <<\n${lines}\n`, `commit ssl crl-file ${file}`];
  const answers: string[] = [];
  for (const command of commands) answers.push(await runtimeCommand(socketPath, command));
  if (!/transaction created[\s\S]*Success!/.test(answers.join(""))) throw new Error(answers.join(""));
}
