// Reports of puppetservers, as their stock report processor "http" sends them at the end of a run: one POST of YAML,
// over TLS, with the puppetserver's own certificate.
// Promises: only a client with a certificate of the CA is accepted; only the line `host:` in the head of a report is
// read, and nothing is parsed as YAML; sizes, times and connections are bounded.

import { once } from "node:events";
import type { IncomingMessage, ServerResponse } from "node:http";
import { createServer } from "node:https";
import type { AddressInfo } from "node:net";
import type { TLSSocket } from "node:tls";
import type { ListenAddress } from "../config.js";
import { PemFiles, type PemPaths } from "../pem-files.js";

/** `host:` is the second line of a report. */
const HEAD_BYTES = 4 * 1024;
/** A report of a run with many resources has some megabytes. */
const MAX_BYTES = 64 * 1024 * 1024;
const REQUEST_MS = 30_000;
/** A client that connects and sends nothing must not occupy a connection. */
const HANDSHAKE_MS = 5_000;
const MAX_CONNECTIONS = 128;
/** How often the certificate files are checked for renewal. */
const RENEWED_MS = 60_000;

export interface ReportsListener extends ListenAddress {
  tls: PemPaths;
}

/** Calls `onReport` with the node of each report and the CN of the puppetserver that sent it. */
export async function listenForReports(
  { host, port, tls }: ReportsListener,
  onReport: (certname: string, producer: string) => void,
): Promise<{ port: number; stop(): void }> {
  const files = new PemFiles(tls, "REPORTS");
  const options = { requestCert: true, rejectUnauthorized: true, minVersion: "TLSv1.2" } as const;
  const server = createServer(
    { ...options, ...(await files.current()), handshakeTimeout: HANDSHAKE_MS },
    (request, response) => {
      take(request, response, onReport);
    },
  );
  server.maxConnections = MAX_CONNECTIONS;
  server.requestTimeout = REQUEST_MS;
  server.headersTimeout = REQUEST_MS;
  const renewing = setInterval(() => {
    // The file may be half written, or the new key may be missing. The next check tries again.
    files
      .current()
      .then((pem) => server.setSecureContext({ ...options, ...pem }))
      .catch(() => undefined);
  }, RENEWED_MS).unref();
  await once(server.listen({ host, port }), "listening");
  return {
    port: (server.address() as AddressInfo).port,
    stop() {
      clearInterval(renewing);
      server.close();
      server.closeAllConnections();
    },
  };
}

function take(
  request: IncomingMessage,
  response: ServerResponse,
  onReport: (certname: string, producer: string) => void,
): void {
  const producer = (request.socket as TLSSocket).getPeerCertificate().subject?.CN;
  let head = "";
  let received = 0;
  request.setEncoding("latin1");
  request.on("data", (text: string) => {
    received += text.length;
    if (head.length < HEAD_BYTES) head += text.slice(0, HEAD_BYTES - head.length);
    if (received > MAX_BYTES) request.destroy();
  });
  request.on("error", () => undefined);
  request.on("end", () => {
    const certname = hostIn(head);
    const isReport = request.method === "POST" && certname !== undefined && typeof producer === "string";
    response.writeHead(isReport ? 200 : 400, { "content-type": "text/plain" });
    response.end(isReport ? "" : "expected a Puppet report, as the report processor http sends it\n");
    if (isReport) onReport(certname, producer);
  });
}

/** `--- !ruby/object:Puppet::Transaction::Report\nhost: web1.example.com\n`, as Puppet 7 sends it; the name may be quoted. */
export function hostIn(head: string): string | undefined {
  return /^host: ["']?([^\s"']{1,253})["']?$/m.exec(head)?.[1];
}
