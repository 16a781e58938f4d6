// Secrets: the API's token, PuppetDB's token, the private key. They are in files, and nowhere else: not in a log, an
// error, a metric, a status, a file of ours, or the list of processes. And what may not be done without them is not.

import { once } from "node:events";
import { copyFile, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { createServer } from "node:tls";
import { describe, expect, test } from "vitest";
import { PuppetDb } from "../../src/source/puppetdb.js";
import { patient } from "../support/patience.js";
import type { PuppetdbServer } from "../support/puppetdb-server.js";
import { EMPTY, startScriptedPuppetdb } from "../support/scripted-puppetdb.js";
import { Arena } from "./arena.js";
import { enterCases } from "./ledger.js";

const API_TOKEN = "api-token-7f3a9c1e5b2d4860";
const PUPPETDB_TOKEN = "puppetdb-token-0c9d8e7f6a5b4c3d";

export function secrets(puppetdb: () => PuppetdbServer): void {
  describe("Secrets", () => {
    test("are nowhere but in their files, whatever fails", async () => {
      const folder = await mkdtemp(path.join(tmpdir(), "sasori-secrets-"));
      const at = (name: string) => path.join(folder, name);
      const { tls } = puppetdb();
      await writeFile(at("api"), `${API_TOKEN}\n`);
      await writeFile(at("puppetdb"), `${PUPPETDB_TOKEN}\n`);
      for (const name of ["cert", "key"] as const) await copyFile(tls[name], at(`${name}.pem`));
      const key = (await readFile(at("key.pem"), "utf8")).split("\n")[5] ?? "?";
      const env = {
        SASORI_PUPPETDB_URL: tls.url,
        SASORI_PUPPETDB_CERT: at("cert.pem"),
        SASORI_PUPPETDB_KEY: at("key.pem"),
        SASORI_PUPPETDB_CA: tls.ca,
        SASORI_PUPPETDB_TOKEN_FILE: at("puppetdb"),
        SASORI_API_TOKEN_FILE: at("api"),
        SASORI_LOG_LEVEL: "trace",
      };
      await Arena.with({ puppetdb: puppetdb(), nodes: 60, env }, async (arena) => {
        const told: string[] = [];
        const post = async (authorization?: string) => {
          const headers: Record<string, string> = { "content-type": "application/json" };
          if (authorization !== undefined) headers.authorization = authorization;
          const answer = await fetch(`${arena.url}/api/v1/sync`, { method: "POST", headers, body: "{}" });
          told.push(await answer.text());
          return answer.status;
        };
        // Of the same length, all but the last letter right, too long, twice, another scheme, nothing.
        const wrong = [
          API_TOKEN.replace(/.$/, "x"),
          `${API_TOKEN}x`,
          `${API_TOKEN} ${API_TOKEN}`,
          "",
          API_TOKEN.toUpperCase(),
        ];
        for (const token of wrong) expect(await post(`Bearer ${token}`)).toBe(401);
        expect(await post(`Basic ${API_TOKEN}`)).toBe(401);
        expect(await post()).toBe(401);
        expect(await post(`Bearer ${API_TOKEN}`)).toBe(200);
        for (const [method, body] of [
          ["PUT", '{"master":"master1"}'],
          ["DELETE", undefined],
        ] as const) {
          const headers = body === undefined ? {} : { "content-type": "application/json" };
          const url = `${arena.url}/api/v1/nodes/node1.example`;
          expect((await fetch(url, { method, headers, ...(body && { body }) })).status).toBe(401);
        }
        // An empty token file lets nobody in.
        await writeFile(at("api"), "\n");
        expect(await post("Bearer ")).toBe(503);
        expect(await post()).toBe(503);
        await writeFile(at("api"), `${API_TOKEN}\n`);
        // Everything that can fail about them fails: the token file is gone, the key is another's, the key is none.
        const failing = async (name: string, content: string | undefined) => {
          const before = await readFile(at(name));
          if (content === undefined) await rm(at(name));
          else await writeFile(at(name), content);
          const outcome = async () => (await arena.status()).lastPass?.outcome;
          await arena.until(`failed without ${name}`, async () => (await outcome()) === "failed");
          told.push((await arena.cli("sync")).text, JSON.stringify(await arena.status()));
          await writeFile(at(name), before);
          await arena.until(`done with ${name}`, async () => (await outcome()) === "done");
        };
        await failing("puppetdb", undefined);
        await failing("puppetdb", `${PUPPETDB_TOKEN}\n${PUPPETDB_TOKEN}\n`);
        await failing("key.pem", (await readFile(at("key.pem"), "utf8")).replace("\n", "\nAAAA"));
        for (const args of [
          ["config"],
          ["config", "--json"],
          ["status"],
          ["sync"],
          ["lookup", "node-0000001.example", "--json"],
        ]) {
          told.push((await arena.cli(...args)).text);
        }
        for (const page of [
          "/metrics",
          "/api/v1/status",
          "/readyz",
          "/api/v1/nodes/node-0000001.example",
          "/nowhere",
        ]) {
          told.push(await (await fetch(`${arena.url}${page}`)).text());
        }
        for (const file of ["cmdline", "environ"])
          told.push(await readFile(`/proc/${arena.pid}/${file}`, "latin1"));
        for (const file of await readdir(path.dirname(arena.mapFile))) {
          told.push(await readFile(path.join(path.dirname(arena.mapFile), file), "utf8"));
        }
        told.push(arena.sasori?.printed ?? "");
        const all = told.join("\n");
        for (const secret of [API_TOKEN, PUPPETDB_TOKEN, key]) expect(all).not.toContain(secret);
        enterCases("secrets looked for in all that is told", told.length);
      });
      await rm(folder, { recursive: true, force: true });
    });

    test("are shown to no PuppetDB whose certificate is not right, even where Node was told not to look", async () => {
      const { tls } = puppetdb();
      const token = path.join(path.dirname(tls.cert), "token");
      await writeFile(token, PUPPETDB_TOKEN);
      const server = await startScriptedPuppetdb(
        { other: EMPTY },
        {
          key: await readFile(path.join(path.dirname(tls.cert), "server.key")),
          cert: await readFile(path.join(path.dirname(tls.cert), "server.pem")),
        },
      );
      process.env.NODE_TLS_REJECT_UNAUTHORIZED = "0";
      try {
        // Without SASORI_PUPPETDB_CA nobody vouches for it.
        const source = new PuppetDb({ url: server.url, tokenFile: token });
        await expect(source.readAll(AbortSignal.timeout(patient(5_000)))).rejects.toMatchObject({
          code: "PUPPETDB_TLS",
        });
        expect(server.asked).toEqual([]);
        await source.close();
      } finally {
        delete process.env.NODE_TLS_REJECT_UNAUTHORIZED;
        await server.close();
      }
    });

    test("are not sent by a TLS that is older than 1.2", async () => {
      const { tls } = puppetdb();
      const folder = path.dirname(tls.cert);
      const old = createServer({
        key: await readFile(path.join(folder, "server.key")),
        cert: await readFile(path.join(folder, "server.pem")),
        minVersion: "TLSv1",
        maxVersion: "TLSv1.1",
        ciphers: "DEFAULT@SECLEVEL=0",
      });
      const seen: string[] = [];
      old.on("secureConnection", (socket) => seen.push(String(socket.getProtocol())));
      old.on("tlsClientError", () => undefined);
      old.listen(0, "127.0.0.1");
      await once(old, "listening");
      const source = new PuppetDb({
        url: `https://127.0.0.1:${(old.address() as AddressInfo).port}`,
        caFile: tls.ca,
      });
      await expect(source.readAll(AbortSignal.timeout(patient(5_000)))).rejects.toMatchObject({
        code: "PUPPETDB_TLS",
        message: expect.stringContaining("let PuppetDB use TLS 1.2 or 1.3"),
      });
      expect(seen).toEqual([]);
      await source.close();
      old.close();
    });
  });
}
