/** Certificates as a small Puppet CA signs them, right ones and wrong ones, for tests of TLS with PuppetDB. */
import { generateKeyPairSync } from "node:crypto";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { run } from "./child.js";
import { puppetdbParts } from "./parts.js";

/**
 * Puts `<name>.pem` and `<name>.key` into `dir`: the CAs `ca` and `other-ca`; of `ca` the servers `server`
 * (127.0.0.1), `elsewhere` (another name), `expired` and `soon` (for ten more days) and the clients `client` and
 * `renewed`; of `other-ca` the client `stranger`; of `intermediate`, which `ca` has signed, the server `below`.
 */
export async function makeTlsFiles(dir: string): Promise<void> {
  const { openssl } = puppetdbParts();
  const at = (name: string) => join(dir, name);
  const config = [
    "[req]\ndistinguished_name = name\n[name]\n[ca]\ndefault_ca = own\n[own]",
    `database = ${at("index")}\nnew_certs_dir = ${dir}\nserial = ${at("serial")}\ndefault_md = sha256`,
    "policy = any\ncopy_extensions = copy\nunique_subject = no\n[any]\ncommonName = supplied\n",
  ].join("\n");
  await writeFile(at("openssl.cnf"), config);
  await writeFile(at("index"), "");
  await writeFile(at("serial"), "01\n");
  const make = (name: string, subject: string, extension: string, ...more: string[]) => {
    const files = ["-keyout", at(`${name}.key`), "-out", at(`${name}.pem`)];
    const about = ["-subj", `/CN=${subject}`, "-addext", extension];
    const key = ["-newkey", "rsa:2048", "-nodes"];
    return run(openssl, ["req", "-config", at("openssl.cnf"), ...key, ...files, ...about, ...more]);
  };
  const self = (days: number) => ["-x509", "-days", String(days)];
  const signed = (ca: string, days = 90) => [
    ...self(days),
    "-CA",
    at(`${ca}.pem`),
    "-CAkey",
    at(`${ca}.key`),
  ];
  const isServer = "subjectAltName=IP:127.0.0.1";
  const isClient = "extendedKeyUsage=clientAuth";
  await make("ca", "test CA", "basicConstraints=critical,CA:TRUE", ...self(90));
  await make("other-ca", "other CA", "basicConstraints=critical,CA:TRUE", ...self(90));
  await make("intermediate", "test intermediate", "basicConstraints=critical,CA:TRUE", ...signed("ca"));
  await make("below", "puppetdb", isServer, ...signed("intermediate"));
  await make("server", "puppetdb", isServer, ...signed("ca"));
  await make("elsewhere", "puppetdb", "subjectAltName=DNS:puppetdb.example.com", ...signed("ca"));
  await make("soon", "puppetdb", isServer, ...signed("ca", 10));
  await make("client", "sasori", isClient, ...signed("ca"));
  await make("renewed", "sasori renewed", isClient, ...signed("ca"));
  await make("stranger", "stranger", isClient, ...signed("other-ca"));
  await make("expired", "puppetdb", isServer);
  const past = ["-startdate", "20240101000000Z", "-enddate", "20240201000000Z"];
  const signer = ["-cert", at("ca.pem"), "-keyfile", at("ca.key")];
  const files = ["-in", at("expired.pem"), "-out", at("expired.pem"), "-notext"];
  await run(openssl, ["ca", "-batch", "-config", at("openssl.cnf"), ...signer, ...past, ...files]);
}

/** A private key that sasori cannot use, as PEM. */
export const keyWithPassphrase = (): string =>
  generateKeyPairSync("ec", {
    namedCurve: "P-256",
    publicKeyEncoding: { type: "spki", format: "pem" },
    privateKeyEncoding: { type: "pkcs8", format: "pem", cipher: "aes-256-cbc", passphrase: "x" },
  }).privateKey;
