// The certificates with which sasori asks PuppetDB, masters and HAProxy instances. Promises: a file that is renewed in place is
// read again; one that is empty or half-written is an error, and never "no CA", for which Node would trust its own.

import { X509Certificate } from "node:crypto";
import { reason, SasoriError } from "./errors.js";
import { readSecretFile } from "./whole-file.js";

const READ_AGAIN_MS = 1_000;

/** Paths of PEM files: the CA of the other side, and our certificate with its key. */
export interface PemPaths {
  caFile: string;
  certFile?: string | undefined;
  keyFile?: string | undefined;
}

type Paths = { [Path in keyof PemPaths]?: PemPaths[Path] | undefined };

/** Whose variables name the files: `SASORI_<group>_CA`, `_CERT` and `_KEY`. */
type Group = "PUPPETDB" | "HAPROXY" | "PROBE" | "REPORTS";

/** What the files hold. */
export type Pem = Record<"ca" | "cert" | "key", string | undefined>;

export class PemFiles {
  readonly #paths: Paths;
  readonly #group: Group;
  /** The last content that was usable. */
  readonly #checked: Partial<Pem> = {};
  #pem: Promise<Pem> | undefined;
  /** (`performance.now()`) */
  #readAt = 0;

  constructor(paths: Paths, group: Group) {
    this.#paths = paths;
    this.#group = group;
  }

  /** The content, read again after a second at the earliest. Rejects like `read`. */
  current(): Promise<Pem> {
    const now = performance.now();
    if (this.#pem !== undefined && now - this.#readAt < READ_AGAIN_MS) return this.#pem;
    this.#readAt = now;
    this.#pem = this.read();
    return this.#pem;
  }

  /**
   * Reads the files now, one after the other, so that one that hangs blocks only itself. Rejects with the file and what is
   * wrong with it, or with the reason of `signal`.
   */
  async read(signal?: AbortSignal): Promise<Pem> {
    const { certFile, keyFile, caFile } = this.#paths;
    return {
      cert: await this.#read("cert", certFile, signal),
      key: await this.#read("key", keyFile, signal),
      ca: await this.#read("ca", caFile, signal),
    };
  }

  async #read(part: keyof Pem, file: string | undefined, signal: AbortSignal | undefined) {
    if (file === undefined) return undefined;
    const variable = `SASORI_${this.#group}_${part.toUpperCase()}`;
    const text = await readNamed(file, variable, signal);
    const problem =
      text === this.#checked[part]
        ? undefined
        : pemProblem(text, part === "key" ? "PRIVATE KEY" : "CERTIFICATE");
    if (problem !== undefined)
      throw new Error(`${file} ${problem}: repair it, or name another file in ${variable}`);
    this.#checked[part] = text;
    return text;
  }
}

/** Reads a secret or a certificate. Throws an Error that names the file and the variable, or the reason of `signal`. */
export async function readNamed(file: string, variable: string, signal?: AbortSignal): Promise<string> {
  try {
    return await readSecretFile(file, signal);
  } catch (error) {
    if (error instanceof SasoriError) throw error; // Told to stop, or out of time.
    const what = `cannot read ${file}: ${reason(error)}`;
    throw new Error(`${what}: check ${variable} and that sasori may read the file`, { cause: error });
  }
}

/** Why a text is not a PEM file with at least one part of this kind, all of them complete. Undefined if it is. */
export function pemProblem(text: string, kind: "CERTIFICATE" | "PRIVATE KEY"): string | undefined {
  const [begun, ended] = [/-----BEGIN /g, /-----END [A-Z0-9 ]+-----/g].map(
    (mark) => text.match(mark)?.length ?? 0,
  );
  if (begun !== ended) return "ends in the middle";
  const parts = text.match(/-----BEGIN [A-Z0-9 ]+-----[\s\S]*?-----END [A-Z0-9 ]+-----/g) ?? [];
  const wanted = parts.filter((part) => part.endsWith(`${kind}-----`));
  if (wanted.length === 0) return `holds no ${kind.toLowerCase()} in PEM form`;
  if (kind === "PRIVATE KEY")
    return text.includes("ENCRYPTED")
      ? "holds a key with a passphrase, which nobody can type here (`openssl pkey` removes it)"
      : undefined;
  for (const part of wanted) {
    try {
      new X509Certificate(part);
    } catch (error) {
      return `holds something that is not a certificate (${reason(error)})`;
    }
  }
  return undefined;
}
