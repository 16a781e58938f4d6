// The certificates with which sasori asks masters and HAProxys. Promises: a file that is renewed in place is read again; one
// that is empty or half-written is an error, and never "no CA", for which Node would trust its own.

import { pemProblem } from "./source/puppetdb-connection.js";
import { readSecretFile } from "./whole-file.js";

const READ_AGAIN_MS = 1_000;

/** Paths of PEM files: the CA of the other side, and our certificate with its key. */
export interface PemPaths {
  caFile: string;
  certFile?: string | undefined;
  keyFile?: string | undefined;
}

/** What the files hold. */
export type Pem = Record<"ca" | "cert" | "key", string | undefined>;

export class PemFiles {
  readonly #paths: PemPaths;
  #pem: Promise<Pem> | undefined;
  /** (`performance.now()`) */
  #readAt = 0;

  constructor(paths: PemPaths) {
    this.#paths = paths;
  }

  /** Read again after a second at the earliest. Rejects with the file and what is wrong with it. */
  current(): Promise<Pem> {
    const now = performance.now();
    if (this.#pem !== undefined && now - this.#readAt < READ_AGAIN_MS) return this.#pem;
    this.#readAt = now;
    const { caFile, certFile, keyFile } = this.#paths;
    this.#pem = Promise.all([
      read(caFile, "CERTIFICATE"),
      read(certFile, "CERTIFICATE"),
      read(keyFile, "PRIVATE KEY"),
    ]).then(([ca, cert, key]) => ({ ca, cert, key }));
    return this.#pem;
  }
}

async function read(file: string | undefined, kind: Parameters<typeof pemProblem>[1]) {
  if (file === undefined) return undefined;
  const text = await readSecretFile(file);
  const problem = pemProblem(text, kind);
  if (problem !== undefined) throw new Error(`${file} ${problem}`);
  return text;
}
