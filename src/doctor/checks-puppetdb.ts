// What the doctor looks at in PuppetDB: the certificates on both sides, the connection, the answers, the clocks.

import { createPrivateKey, X509Certificate } from "node:crypto";
import net from "node:net";
import tls from "node:tls";
import type { Config, PuppetdbServer as Puppetdb } from "../config.js";
import { counted } from "../counts.js";
import { quote, reason, SasoriError, systemCode } from "../errors.js";
import { LONG_QUEUE, LONG_QUEUE_REMEDY, longQueue } from "../http/troubles.js";
import { pemProblem } from "../pem-files.js";
import { PuppetDb } from "../source/puppetdb.js";
import type { Reading } from "../source/reading.js";
import { readSecretFile } from "../whole-file.js";
import { type Check, CheckError, type Problem, type Verdict, verdict } from "./check.js";

const CONNECT_MS = 5_000;
/** As long as a changes pass waits. */
const ANSWER_MS = 15_000;
/** A full reading of a million nodes takes a minute. */
const READ_ALL_MS = 5 * 60_000;

const DAY_MS = 24 * 60 * 60_000;
const EXPIRES_SOON_MS = 30 * DAY_MS;

/** More than the resolution of the `Date` header plus the round trip. */
const SKEW_MS = 5_000;
/** Clocks that differ by less than this do no harm. */
const AHEAD_MS = 60_000;

export type NodesCheck = Check<Reading>;

/** Of each PuppetDB. `nodes`: what each has. */
export function puppetdbChecks({ puppetdb }: Config): { all: Check[]; nodes: NodesCheck[] } {
  const all: Check[] = [];
  const nodes: NodesCheck[] = [];
  const files = new Map<string, Check>();
  for (const server of puppetdb.flat()) {
    const certificates = certificateChecks(server, files);
    const connection = server.url.startsWith("https:") ? tlsCheck(server, certificates) : tcpCheck(server);
    const answers = answersCheck(server, connection);
    const read = nodesCheck(server, answers);
    const clocks = [clockCheck(server, answers), mastersClockCheck(server, read)] as const;
    all.push(...certificates.filter((check) => !all.includes(check)));
    all.push(connection, answers, clocks[0], read, clocks[1]);
    nodes.push(read);
  }
  return { all, nodes };
}

/** `files`: the checks so far, by file, because several PuppetDBs may use the same certificate. */
function certificateChecks({ certFile, keyFile, caFile }: Puppetdb, files: Map<string, Check>): Check[] {
  const wanted: [string, Check][] = [];
  if (certFile !== undefined && keyFile !== undefined)
    wanted.push([`${certFile} ${keyFile}`, certificateCheck(certFile, keyFile)]);
  if (caFile !== undefined) wanted.push([caFile, authorityCheck(caFile)]);
  return wanted.map(([name, check]) => {
    const one = files.get(name) ?? check;
    files.set(name, one);
    return one;
  });
}

const placeOf = ({ from }: Puppetdb): string => from ?? "PuppetDB";

/** Our certificate: it is valid, and the key belongs to it. */
function certificateCheck(certFile: string, keyFile: string): Check {
  return {
    name: "client certificate",
    where: certFile,
    async look() {
      const certificate = parseCertificate(await readSecretFile(certFile), "SASORI_PUPPETDB_CERT");
      const key = await readSecretFile(keyFile);
      const remedy = "set SASORI_PUPPETDB_KEY to a PEM file with an unencrypted private key";
      const problem = pemProblem(key, "PRIVATE KEY");
      if (problem !== undefined) throw new CheckError(`${keyFile} ${problem}`, remedy);
      let belongs: boolean;
      try {
        belongs = certificate.checkPrivateKey(createPrivateKey(key));
      } catch (error) {
        throw new CheckError(`${keyFile} holds no usable key (${reason(error)})`, remedy);
      }
      return verdict(about(certificate), [
        belongs
          ? undefined
          : {
              outcome: "failed",
              what: `${keyFile} is not the key of this certificate`,
              remedy: "set SASORI_PUPPETDB_CERT and _KEY to a certificate and its own key",
            },
        expiry(
          "it",
          certificate,
          "renew it: `puppet ssl bootstrap`, or `puppetserver ca generate` on the CA",
        ),
      ]);
    },
  };
}

/** The CAs that PuppetDB's certificate may come from; Puppet's own file has two. */
function authorityCheck(caFile: string): Check {
  return {
    name: "CA certificate",
    where: caFile,
    async look() {
      const text = await readSecretFile(caFile);
      const problem = pemProblem(text, "CERTIFICATE");
      if (problem !== undefined)
        throw new CheckError(`it ${problem}`, "set SASORI_PUPPETDB_CA to a complete PEM file");
      const blocks =
        text.match(/-----BEGIN [\w ]*CERTIFICATE-----[\s\S]*?-----END [\w ]*CERTIFICATE-----/g) ?? [];
      const certificates = blocks.map((block) => parseCertificate(block, "SASORI_PUPPETDB_CA"));
      const problems = certificates.map((one) =>
        expiry(commonName(one.subject), one, "renew Puppet's CA and distribute it"),
      );
      // One good CA is enough: an expired one beside it does no harm. Whether PuppetDB's chain is trusted, the connection shows.
      const isUsable = problems.some((problem) => problem?.outcome !== "failed");
      return verdict(
        certificates.map(about).join("; "),
        problems.map((problem) => (problem && isUsable ? { ...problem, outcome: "warning" } : problem)),
      );
    },
  };
}

function parseCertificate(pem: string | Buffer, variable: string): X509Certificate {
  try {
    return new X509Certificate(pem);
  } catch (error) {
    throw new CheckError(`it holds no certificate (${reason(error)})`, `set ${variable} to a PEM file`);
  }
}

const commonName = (subject: string): string => /(?:^|\n)CN=(.*)/.exec(subject)?.[1] ?? subject;
const day = (time: string | number): string => new Date(time).toISOString().slice(0, 10);
const about = ({ subject, validTo }: X509Certificate): string =>
  `${commonName(subject)}, valid to ${day(validTo)}`;

function expiry(
  who: string,
  { validFrom, validTo }: { validFrom: string; validTo: string },
  remedy: string,
): Problem | undefined {
  const left = Date.parse(validTo) - Date.now();
  if (left < 0) return { outcome: "failed", what: `${who} expired on ${day(validTo)}`, remedy };
  if (Date.parse(validFrom) > Date.now()) {
    const what = `${who} is only valid from ${validFrom}`;
    return { outcome: "failed", what, remedy: "correct the clocks of this machine and of the CA" };
  }
  const days = Math.floor(left / DAY_MS);
  return left < EXPIRES_SOON_MS
    ? { outcome: "warning", what: `${who} expires in ${days} days, on ${day(validTo)}`, remedy }
    : undefined;
}

function tcpCheck({ url }: Puppetdb): Check {
  return {
    name: "PuppetDB",
    where: url,
    async look(signal) {
      const socket = net.connect(place(url));
      return connected(socket, "connect", url, signal, () => verdict("reachable, without TLS", []));
    },
  };
}

/** Connects without checking the certificate, and sends nothing. So an expired certificate can be shown with its date. */
function tlsCheck(config: Puppetdb, certificates: readonly Check[]): Check {
  const { url } = config;
  return {
    name: "PuppetDB",
    where: url,
    needs: certificates,
    async look(signal) {
      const { host, port } = place(url);
      const pem = async (file?: string) => (file === undefined ? undefined : await readSecretFile(file));
      const [cert, key, ca] = await Promise.all([
        pem(config.certFile),
        pem(config.keyFile),
        pem(config.caFile),
      ]);
      const socket = tls.connect({
        ...{ host, port, rejectUnauthorized: false, allowPartialTrustChain: true },
        ...(net.isIP(host) === 0 && { servername: host }),
        ...(cert && { cert }),
        ...(key && { key }),
        ...(ca && { ca }),
      });
      return connected(socket, "secureConnect", url, signal, () => {
        judgePeer(socket, config);
        const peer = socket.getPeerCertificate();
        const who = `certificate of ${String(peer.subject?.CN)}, valid to ${day(peer.valid_to)}`;
        const until = { validFrom: peer.valid_from, validTo: peer.valid_to };
        return verdict(`${socket.getProtocol() ?? "TLS"}, ${who}`, [
          expiry("PuppetDB's certificate", until, RENEW_PUPPETDB),
        ]);
      });
    },
  };
}

const RENEW_PUPPETDB = "renew it on PuppetDB's host, then `puppetdb ssl-setup -f` and restart PuppetDB";

function judgePeer(socket: tls.TLSSocket, { url, caFile }: Puppetdb): void {
  if (socket.authorized) return;
  const peer = socket.getPeerCertificate();
  const error = socket.authorizationError as Error | string | undefined;
  const code = typeof error === "string" ? error : systemCode(error);
  const name = `PuppetDB's certificate (${String(peer.subject?.CN)})`;
  if (code === "CERT_HAS_EXPIRED" && Date.parse(peer.valid_to) < Date.now())
    throw new CheckError(`${name} expired on ${day(peer.valid_to)}`, RENEW_PUPPETDB);
  if (code === "CERT_NOT_YET_VALID")
    throw new CheckError(
      `${name} is only valid from ${peer.valid_from}`,
      "correct the clock of this machine",
    );
  if (code === "ERR_TLS_CERT_ALTNAME_INVALID" || /altname|does not match/i.test(String(error))) {
    const names = peer.subjectaltname ?? "none";
    const what = `${name} is not for ${quote(place(url).host)} but for ${names}`;
    throw new CheckError(what, "use one of these names in SASORI_PUPPETDB_URL");
  }
  const remedy =
    caFile === undefined
      ? "set SASORI_PUPPETDB_CA, usually /etc/puppetlabs/puppet/ssl/certs/ca.pem"
      : `set SASORI_PUPPETDB_CA to the CA that signed it (${caFile} did not)`;
  throw new CheckError(`${name} is not trusted: ${code || String(error)}`, remedy);
}

function place(text: string): { host: string; port: number } {
  const url = new URL(text);
  const port = Number(url.port) || (url.protocol === "https:" ? 443 : 80);
  return { host: url.hostname.replace(/^\[|\]$/g, ""), port };
}

/** Waits for the event, and ends the connection whatever `judge` says of it while it is open. */
async function connected(
  socket: net.Socket,
  event: "connect" | "secureConnect",
  url: string,
  signal: AbortSignal,
  judge: () => Verdict,
): Promise<Verdict> {
  const silence = new CheckError(`no connection within ${CONNECT_MS / 1000} s`, REACHABLE(url));
  try {
    await new Promise<void>((resolve, reject) => {
      socket.once(event, () => resolve());
      socket.once("error", reject);
      socket.setTimeout(CONNECT_MS, () => reject(silence));
      signal.addEventListener("abort", () => reject(silence), { once: true });
    });
    return judge();
  } catch (error) {
    throw error instanceof CheckError ? error : connectionError(url, error);
  } finally {
    socket.on("error", () => undefined); // Such as the alert of a server that refuses our certificate: asked for below.
    socket.destroy();
  }
}

const REACHABLE = (url: string) =>
  `check that ${place(url).host}:${place(url).port} is right, and that no firewall blocks it`;

function connectionError(url: string, error: unknown): CheckError {
  const { host, port } = place(url);
  const code = systemCode(error);
  const remedies: Record<string, string> = {
    ECONNREFUSED: `nothing listens on ${host}:${port}: start PuppetDB, or correct SASORI_PUPPETDB_URL`,
    ENOTFOUND: `the host name does not exist: correct SASORI_PUPPETDB_URL, or DNS`,
    ECONNRESET:
      "PuppetDB closed the connection: check that this is its TLS port, and that it accepts SASORI_PUPPETDB_CERT",
    EPROTO: "no TLS on this port: PuppetDB's TLS port is usually 8081, its plain one 8080 (http://)",
  };
  const wrongVersion = /wrong version number|packet length too long/i.test(reason(error));
  const { reason: meaning } = error as { reason?: unknown };
  const what = typeof meaning === "string" ? meaning : reason(error);
  return new CheckError(what, (wrongVersion ? remedies.EPROTO : remedies[code]) ?? REACHABLE(url));
}

interface Answers {
  version: string;
  /** PuppetDB's clock less ours. */
  skewMs: number;
}

/** The very queries that sasori sends every few seconds. */
function answersCheck(config: Puppetdb, connection: Check): Check<Answers> {
  return {
    name: "PuppetDB's answers",
    where: config.url,
    needs: [connection],
    deadlineMs: ANSWER_MS,
    ifLate: "PuppetDB is too slow or hangs. Its log and PostgreSQL's log say why",
    look: (signal) =>
      withPuppetdb(config, async (puppetdb) => {
        const before = Date.now();
        const { asOf } = await puppetdb.readChanges(before, signal);
        const after = Date.now();
        const version = await puppetdb.readVersion(signal);
        const { queueDepth } = puppetdb; // Known from readChanges.
        // The `Date` header has whole seconds: PuppetDB's clock was at `asOf` or up to a second later.
        const skewMs = asOf > after ? asOf - after : Math.min(0, asOf + 1_000 - before);
        const isKnown = /^[78]\./.test(version);
        return verdict(
          `PuppetDB ${version} answered sasori's queries in ${after - before} ms${inQueue(queueDepth)}`,
          [
            queueDepth !== undefined && queueDepth >= LONG_QUEUE
              ? { outcome: "warning", what: longQueue(queueDepth), remedy: LONG_QUEUE_REMEDY }
              : undefined,
            isKnown
              ? undefined
              : {
                  outcome: "warning",
                  what: "sasori is tested with PuppetDB 7 and 8",
                  remedy: "test it first, or upgrade PuppetDB",
                },
          ],
          { version, skewMs },
        );
      }),
  };
}

const inQueue = (depth: number | undefined): string =>
  depth === undefined ? "" : `, and has ${counted(depth, "command")} in its queue`;

async function withPuppetdb<T>(config: Puppetdb, use: (puppetdb: PuppetDb) => Promise<T>): Promise<T> {
  const puppetdb = new PuppetDb(config);
  try {
    return await use(puppetdb);
  } catch (error) {
    throw error instanceof SasoriError ? withRemedy(error) : error;
  } finally {
    puppetdb.close().catch(() => undefined); // Not awaited, because a PuppetDB that hangs would make us wait.
  }
}

/** The messages of PuppetDb end with what to do. */
function withRemedy({ message }: SasoriError): CheckError {
  const [, what, remedy] = /^(.*)(?:; |: )(.*)$/s.exec(message) ?? [];
  return new CheckError(what ?? message, remedy ?? "PuppetDB's log says why");
}

function clockCheck(config: Puppetdb, answers: Check<Answers>): Check {
  return {
    name: "clock",
    where: placeOf(config),
    needs: [answers],
    look(_, known) {
      const { skewMs } = known.of(answers);
      const seconds = Math.round(Math.abs(skewMs) / 1000);
      return verdict(skewMs === 0 ? "the same time as here" : "", [
        Math.abs(skewMs) < SKEW_MS
          ? undefined
          : {
              outcome: "warning",
              what: `PuppetDB's clock is ${seconds} s ${skewMs > 0 ? "ahead of" : "behind"} this machine's. The newest observation wins, and registrations have the time of this machine`,
              remedy: "synchronize both clocks with NTP",
            },
      ]);
    },
  };
}

/** A full reading, as at sasori's start. */
function nodesCheck(config: Puppetdb, answers: Check): NodesCheck {
  return {
    name: "nodes",
    where: placeOf(config),
    needs: [answers],
    deadlineMs: READ_ALL_MS,
    ifLate: "PuppetDB is too slow or hangs. Its log and PostgreSQL's log say why",
    look: (signal) =>
      withPuppetdb(config, async (puppetdb) => {
        const began = Date.now();
        const reading = await puppetdb.readAll(signal);
        const producers = new Set(Array.from(reading.submissions.values(), ({ producer }) => producer));
        const seconds = ((Date.now() - began) / 1000).toFixed(1);
        const active = reading.active?.size ?? 0;
        return verdict(
          `${counted(active, "active node")} of ${counted(producers.size, "producer")}, read in ${seconds} s`,
          [...nodeProblems(reading, active)],
          reading,
        );
      }),
  };
}

function* nodeProblems({ refused, withoutProducer }: Reading, active: number): Generator<Problem> {
  const some = (names: Iterable<string>) =>
    [...names]
      .slice(0, 3)
      .map((name) => quote(name))
      .join(", ");
  if (active === 0) {
    const remedy = "if PuppetDB is new, wait for the next Puppet runs. If it should have nodes, restore it";
    yield { outcome: "warning", what: "PuppetDB has no active nodes", remedy };
  }
  if (refused.size > 0) {
    const what = `${counted(refused.size, "certname")} cannot be in the map: ${some(refused)}`;
    yield {
      outcome: "warning",
      what,
      remedy: "find the machines with these certificates. sasori does not route them",
    };
  }
  if (withoutProducer.size > 0) {
    const what = `PuppetDB names no producer for ${counted(withoutProducer.size, "node")}: ${some(withoutProducer)}`;
    yield { outcome: "warning", what, remedy: "their next Puppet run adds it" };
  }
}

/** Finds masters whose clocks are ahead of PuppetDB's. */
function mastersClockCheck({ from }: Puppetdb, nodes: NodesCheck): Check {
  return {
    name: "clock",
    where: from === undefined ? "masters" : `masters of ${from}`,
    needs: [nodes],
    look(_, known) {
      const { submissions, asOf } = known.of(nodes);
      const ahead = new Map<string, number>();
      for (const { producer, at } of submissions.values()) {
        if (at - asOf > AHEAD_MS) ahead.set(producer, Math.max(ahead.get(producer) ?? 0, at - asOf));
      }
      const who = Array.from(ahead, ([producer, ms]) => `${quote(producer)} by ${Math.round(ms / 1000)} s`);
      return verdict("no submission from the future", [
        who.length === 0
          ? undefined
          : {
              outcome: "warning",
              what: `clocks of masters are ahead of PuppetDB's: ${who.join(", ")}. sasori sees the moves of their nodes late`,
              remedy: "synchronize the clocks of these masters with NTP",
            },
      ]);
    },
  };
}
