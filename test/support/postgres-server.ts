/** The real PostgreSQL, on loopback, for tests: with a data directory of its own, which outlives a kill. */
import { randomBytes } from "node:crypto";
import { chmod, chown, copyFile, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Child, freePort, run } from "./child.js";
import { pathOf } from "./parts.js";

/** PostgreSQL refuses to run as root. This is "nobody" on Debian and Ubuntu. */
const NOBODY = 65534;

/** Where it is, and how to be its superuser. */
export interface PostgresAddress {
  port: number;
  user: string;
  password: string;
}

export interface PostgresServer extends PostgresAddress {
  /** Of its first process, the parent of all others. */
  readonly pid: number;
  /** A file with the password. */
  passwordFile: string;
  /** Runs SQL in a database of it; resolves with the rows as psql prints them (columns by "|", rows by newline). */
  sql(database: string, text: string): Promise<string>;
  /** "fast": it does not wait for clients. SIGKILL takes all its processes. */
  end(signal?: "SIGINT" | "SIGKILL"): Promise<void>;
  /** Again, after `end`, with the data that it has left. */
  start(): Promise<void>;
  /** Ends it and removes its data. */
  stop(): Promise<void>;
}

/** `settings` as in postgresql.conf; `tls`: PEM files, it speaks TLS too. */
export async function startPostgres(
  user: string,
  settings: readonly string[] = [],
  tls?: { cert: string; key: string },
): Promise<PostgresServer> {
  const bin = pathOf("postgres");
  const parent = await mkdtemp(join(tmpdir(), "sasori-postgres-"));
  const dir = join(parent, "postgres");
  const data = join(dir, "data");
  const passwordFile = join(parent, "password");
  const address = { port: await freePort(), user, password: randomBytes(12).toString("hex") };
  const isRoot = process.getuid?.() === 0;
  const as = isRoot ? { uid: NOBODY, gid: NOBODY } : {};
  await mkdir(dir);
  await writeFile(passwordFile, address.password);
  if (isRoot) {
    await chmod(parent, 0o711);
    await chmod(passwordFile, 0o644);
    await chown(dir, NOBODY, NOBODY);
  }
  const initdb = ["-D", data, "-U", user, `--pwfile=${passwordFile}`, "--auth=scram-sha-256"];
  await run(join(bin, "initdb"), [...initdb, "--no-sync", "--locale=C", "-E", "UTF8"], { ...as, cwd: dir });
  const all = [
    // Nothing of it outlives the tests, so it need not survive a power cut.
    ...["fsync=off", "shared_buffers=128MB", "listen_addresses=127.0.0.1"],
    ...[`port=${address.port}`, `unix_socket_directories=${dir}`, ...settings],
  ];
  for (const [name, file] of Object.entries(tls ?? {})) {
    const own = join(dir, `${name}.pem`);
    await copyFile(file, own);
    await chmod(own, 0o600);
    if (isRoot) await chown(own, NOBODY, NOBODY);
    all.push(`ssl_${name}_file=${own}`);
  }
  if (tls !== undefined) all.push("ssl=on");
  let postgres: Child | undefined;
  const start = async () => {
    const args = ["-D", data, ...all.flatMap((setting) => ["-c", setting])];
    postgres = new Child(join(bin, "postgres"), args, { ...as, cwd: dir });
    const ready = async () => {
      await run(join(bin, "pg_isready"), ["-h", dir, "-p", String(address.port), "-U", user]);
      return true;
    };
    await postgres.untilReady(ready, undefined, 50);
  };
  const server: PostgresServer = {
    ...address,
    passwordFile,
    get pid() {
      return postgres?.pid ?? 0;
    },
    async sql(database, text) {
      const where = ["-h", "127.0.0.1", "-p", String(address.port), "-U", user, "-d", database];
      const env = { ...process.env, PGPASSWORD: address.password };
      const psql = [join(bin, "psql"), ["-XqAt", "-v", "ON_ERROR_STOP=1", ...where]] as const;
      return (await run(...psql, { env, input: text })).trim();
    },
    end: async (signal = "SIGINT") => {
      await postgres?.end(signal);
    },
    start,
    async stop() {
      await postgres?.end("SIGINT");
      await rm(parent, { recursive: true, force: true });
    },
  };
  try {
    await start();
    return server;
  } catch (error) {
    await server.stop();
    throw error;
  }
}
