import { chmod, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { describe, expect, test } from "vitest";
import { describeVariables, readAddress, readConfig, showConfig } from "../src/config.js";

const REQUIRED = {
  SASORI_PUPPETDB_URL: "http://127.0.0.1:8080/",
  SASORI_HAPROXY: "/run/haproxy/admin.sock",
  SASORI_MAP_FILE: "/var/lib/sasori/node-master.map",
};

const problems = (env: Record<string, string>): string[] => {
  try {
    readConfig(env);
  } catch (error) {
    expect(error).toMatchObject({ code: "CONFIG_INVALID" });
    return (error as Error).message.split("\n").slice(1);
  }
  return [];
};

describe("the configuration", () => {
  test("needs three variables and has a default for every other", () => {
    expect(readConfig(REQUIRED)).toMatchObject({
      puppetdb: [[{ url: "http://127.0.0.1:8080" }]],
      haproxy: [{ name: "/run/haproxy/admin.sock", connect: { path: "/run/haproxy/admin.sock" } }],
      backend: "puppet",
      schedule: "*/5 * * * * *",
      fullSchedule: "*/15 * * * *",
      maxRemoved: { percent: 10 },
      listen: { host: "127.0.0.1", port: 9180 },
      stateFile: "/var/lib/sasori/node-master.map.state.json",
      logLevel: "info",
    });
  });

  test.each([
    ["5%", { percent: 5 }],
    ["20", { entries: 20 }],
    // Not "a few in a small map": nothing is removed without approval.
    ["0%", { entries: 0 }],
    ["0", { entries: 0 }],
  ])("reads the limit for removals %s", (text, maxRemoved) => {
    expect(readConfig({ ...REQUIRED, SASORI_MAX_REMOVED: text })).toMatchObject({ maxRemoved });
  });

  test("takes several PuppetDBs: bars between alternatives, commas between estates", () => {
    const several = (url: string) => readConfig({ ...REQUIRED, SASORI_PUPPETDB_URL: url }).puppetdb;
    expect(several("http://pdb1:8080 | http://pdb2:8080/, http://pdb.us:8080")).toMatchObject([
      [
        { url: "http://pdb1:8080", from: "http://pdb1:8080" },
        { url: "http://pdb2:8080", from: "http://pdb2:8080" },
      ],
      [{ url: "http://pdb.us:8080", from: "http://pdb.us:8080" }],
    ]);
    expect(several("http://pdb1:8080")[0]?.[0]?.from).toBeUndefined();
    for (const url of ["http://pdb1:8080|", "http://pdb1:8080,http://pdb1:8080/"])
      expect(problems({ ...REQUIRED, SASORI_PUPPETDB_URL: url })).toHaveLength(1);
  });

  test("sends a token over https, or to this machine, and nowhere else", async () => {
    const folder = await mkdtemp(path.join(tmpdir(), "sasori-config-"));
    const token = path.join(folder, "token");
    await writeFile(token, "s3cret");
    const withToken = (url: string) => ({
      ...REQUIRED,
      SASORI_PUPPETDB_URL: url,
      SASORI_PUPPETDB_TOKEN_FILE: token,
    });
    const tokens = (url: string) =>
      readConfig(withToken(url))
        .puppetdb.flat()
        .map((one) => one.tokenFile);
    expect(tokens("https://pdb1:8081|http://pdb2:8080,http://[::1]:8080,http://localhost:8080")).toEqual([
      token,
      undefined,
      token,
      token,
    ]);
    expect(problems(withToken("http://pdb1:8080,http://127.0.0.1.example.com:8080"))).toEqual([
      expect.stringMatching(/a token needs an https URL, or an http one of this machine$/),
    ]);
    await rm(folder, { recursive: true });
  });

  test("takes one file for all estates, or one for each, and none where a place is empty", async () => {
    const folder = await mkdtemp(path.join(tmpdir(), "sasori-config-"));
    const [eu, us] = ["eu", "us"].map((name) => path.join(folder, name)) as [string, string];
    for (const file of [eu, us]) await writeFile(file, "secret");
    const several = {
      ...REQUIRED,
      SASORI_PUPPETDB_URL: "https://pdb1:8081|https://pdb2:8081,https://pdb.us:8081",
    };
    const { puppetdb } = readConfig({
      ...several,
      SASORI_PUPPETDB_CA: eu,
      SASORI_PUPPETDB_CERT: `${eu},${us}`,
      SASORI_PUPPETDB_KEY: `${eu}, ${us}`,
      SASORI_PUPPETDB_TOKEN_FILE: `,${us}`,
    });
    expect(puppetdb.flat()).toMatchObject([
      { caFile: eu, certFile: eu, keyFile: eu, tokenFile: undefined },
      { caFile: eu, certFile: eu, keyFile: eu, tokenFile: undefined },
      { caFile: eu, certFile: us, keyFile: us, tokenFile: us },
    ]);
    expect(problems({ ...several, SASORI_PUPPETDB_TOKEN_FILE: `${eu},${us},${us}` })).toEqual([
      expect.stringMatching(/SASORI_PUPPETDB_TOKEN_FILE names 3 files and SASORI_PUPPETDB_URL 2 estates/),
    ]);
    expect(
      problems({ ...several, SASORI_PUPPETDB_CERT: `${eu},${us}`, SASORI_PUPPETDB_KEY: `${eu},` }),
    ).toEqual([expect.stringMatching(/belong together/)]);
    await rm(folder, { recursive: true });
  });

  test("reports everything that is wrong at once: the variable, what it is, what was expected, an example", () => {
    const found = problems({
      SASORI_PUPPETDB_URL: "ftp://puppetdb",
      SASORI_HAPROXY: "admin.sock",
      SASORI_SCHEDULE: "every minute",
      SASORI_MAX_REMOVED: "110%",
      SASORI_LOG_LEVEL: "loud",
      SASORI_HAPROX: "/run/x.sock",
    });
    expect(found).toHaveLength(7);
    for (const line of found)
      expect(line).toMatch(/^ {2}SASORI_\w+ is .*(expected|required|not a variable).*/);
    expect(found.join("\n")).toContain(
      'SASORI_MAP_FILE is not set: it is required, for example SASORI_MAP_FILE="/',
    );
    expect(found.join("\n")).toContain(
      'SASORI_PUPPETDB_URL is "ftp://puppetdb": expected an http or https URL',
    );
    expect(found.join("\n")).toContain(
      "SASORI_HAPROX is not a variable of sasori: did you mean SASORI_HAPROXY?",
    );
  });

  test.each([
    { name: "SASORI_MAX_REMOVALS", meant: "SASORI_MAX_REMOVED" },
    { name: "SASORI_PUPPETDB", meant: "SASORI_PUPPETDB_URL" },
    { name: "SASORI_PROBE_CER", meant: "SASORI_PROBE_CERT" },
    { name: "SASORI_NEW_MASTERS_PORT", meant: "SASORI_NEW_MASTER_PORT" },
    { name: "SASORI_PUPETDB_CERT", meant: "SASORI_PUPPETDB_CERT" },
    { name: "SASORI_MASTER_ALIAS", meant: "SASORI_MASTER_ALIASES" },
  ])("refuses $name, which is nearly $meant", ({ name, meant }) => {
    expect(problems({ ...REQUIRED, [name]: "x" })).toEqual([
      `  ${name} is not a variable of sasori: did you mean ${meant}?`,
    ]);
  });

  test("ignores what Kubernetes makes of Services named sasori or sasori-haproxy, and other names that are like none of its own", () => {
    const foreign = {
      SASORI_SERVICE_HOST: "10.0.0.1",
      SASORI_PORT: "tcp://10.0.0.1:9180",
      SASORI_PORT_9180_TCP_ADDR: "10.0.0.1",
      SASORI_SERVICE_PORT_HTTP: "9180",
      SASORI_HAPROXY_PORT: "tcp://10.0.0.2:8080",
      SASORI_STATE_PORT: "tcp://[fd00::1]:5432",
      SASORI_HOME: "/opt/sasori",
    };
    expect(readConfig({ ...REQUIRED, ...foreign })).toEqual({
      ...readConfig(REQUIRED),
      foreignNames: Object.keys(foreign),
    });
  });

  test.each([
    ["SASORI_NEW_MASTER", "SASORI_NEW_MASTERS"],
    ["SASORI_STATE", "SASORI_STATE_FILE"],
    ["SASORI_LOG", "SASORI_LOG_LEVEL"],
    ["SASORI_MAX_REMOVALS", "SASORI_MAX_REMOVED"],
  ])("takes %s for %s misspelt", (written, meant) => {
    expect(problems({ ...REQUIRED, [written]: "1" })).toEqual([
      `  ${written} is not a variable of sasori: did you mean ${meant}?`,
    ]);
  });

  test.each([
    { name: "SASORI_PUPPETDB_URL", value: "https://user:secret@puppetdb:8081" },
    { name: "SASORI_HAPROXY", value: "/a.sock,/a.sock" },
    { name: "SASORI_HAPROXY", value: "tcp://host:99999" },
    { name: "SASORI_MAP_FILE", value: "maps/node-master.map" },
    { name: "SASORI_MASTER_ALIASES", value: "puppet1=master1,puppet1=master2" },
    { name: "SASORI_MASTER_ALIASES", value: "puppet1.corp=master1,Puppet1.CORP.=master2" },
    { name: "SASORI_MASTER_ALIASES", value: "puppet1=a b" },
    { name: "SASORI_LISTEN", value: "9180" },
    { name: "SASORI_FULL_SCHEDULE", value: "61 * * * *" },
    { name: "SASORI_BACKEND", value: "puppet;disable server x/y" },
    { name: "SASORI_PUPPETDB_TOKEN_FILE", value: "/nowhere/token" },
  ])("refuses $name=$value", ({ name, value }) => {
    expect(problems({ ...REQUIRED, [name]: value })).toEqual([
      expect.stringMatching(new RegExp(`^  ${name} is `)),
    ]);
  });

  test("takes a pattern for new masters as RE2 does: whole names, and no name that takes longer than its length", () => {
    const pattern = (text: string) =>
      readConfig({ ...REQUIRED, SASORI_NEW_MASTERS: text }).newMasters?.pattern;
    const masters = pattern("puppet[0-9]+\\.corp|compile1");
    for (const name of ["puppet1.corp", "puppet23.corp", "compile1"]) expect(masters?.test(name)).toBe(true);
    for (const name of ["xpuppet1.corp", "puppet1.corp\n", "puppet1.corp.evil", "compile12", ""])
      expect(masters?.test(name)).toBe(false);
    const began = process.cpuUsage();
    for (const text of ["([a-z]+-?)+[0-9]*\\.corp", "(puppet|compile)([0-9]+|[a-z0-9-]+)*\\.corp", "(a*)*b"])
      expect(pattern(text)?.test(`${"puppetserver".repeat(25)}_`)).toBe(false);
    expect(process.cpuUsage(began).user).toBeLessThan(1_000_000); // One second, whatever else the machine does.
    for (const text of ["(", "(?=x)y", "(a)\\1"])
      expect(problems({ ...REQUIRED, SASORI_NEW_MASTERS: text })).toEqual([
        expect.stringContaining("a regular expression as RE2 takes it"),
      ]);
  });

  test("takes pools by names and patterns, and by what the aliases name", () => {
    const pools = (more: Record<string, string>) => {
      const { backend, pools: found } = readConfig({ ...REQUIRED, SASORI_ROUTE_TO: "backends", ...more });
      const names = ["fra", "fra2", "lon", "puppet-ams", "puppet", "sasori", "stats"];
      return [backend, names.filter((name) => found?.test(name))];
    };
    expect(pools({ SASORI_BACKEND: "fra, puppet-[a-z]{2,3}" })).toEqual([
      "fra, puppet-[a-z]{2,3}",
      ["fra", "puppet-ams"],
    ]);
    expect(pools({ SASORI_BACKEND: "fra lon" })).toEqual(["fra lon", ["fra", "lon"]]);
    expect(pools({ SASORI_MASTER_ALIASES: "p[0-9]{1,2}\\.fra=fra,q=lon,r=fra" })).toEqual([
      "fra,lon",
      ["fra", "lon"],
    ]);
    expect(readConfig(REQUIRED).pools).toBeUndefined();
  });

  test.each([
    {
      set: {},
      says: /^ {2}SASORI_ROUTE_TO=backends .*SASORI_BACKEND, or name them in SASORI_MASTER_ALIASES/,
    },
    { set: { SASORI_BACKEND: "(fra" }, says: /SASORI_BACKEND is "\(fra": expected .*patterns \(RE2\)/ },
    {
      set: { SASORI_BACKEND: "fra", SASORI_NEW_MASTERS: "x" },
      says: /SASORI_NEW_MASTERS cannot be used with SASORI_ROUTE_TO=backends/,
    },
    {
      set: { SASORI_BACKEND: "fra,lon", SASORI_ROUTE_TO: "servers" },
      says: /SASORI_BACKEND is "fra,lon": expected .* one HAProxy backend; .*SASORI_ROUTE_TO=backends/,
    },
    { set: { SASORI_ROUTE_TO: "pools" }, says: /SASORI_ROUTE_TO is "pools": expected servers or backends/ },
  ])("refuses pools with $set", ({ set, says }) => {
    expect(problems({ ...REQUIRED, SASORI_ROUTE_TO: "backends", ...set })).toEqual([
      expect.stringMatching(says),
    ]);
  });

  test("takes aliases as patterns of whole names in any letter case, and a plain name before each of them", () => {
    const text = "puppet-fra[0-9]{1,2}\\.corp=fra,puppet-fra7.corp=lon,.*\\.corp=rest,Old.Corp.=m1";
    const { masterAliases } = readConfig({ ...REQUIRED, SASORI_MASTER_ALIASES: text });
    const found = (name: string) => masterAliases.of(name);
    expect(["puppet-fra12.corp", "PUPPET-FRA1.CORP.", "puppet-fra7.corp"].map(found)).toEqual([
      "fra",
      "fra",
      "lon",
    ]);
    expect(["puppet-fra123.corp", "puppet-fra1xcorp", "old.corp"].map(found)).toEqual([
      "rest",
      undefined,
      "m1",
    ]);
    const began = process.cpuUsage();
    for (let index = 0; index < 5_000; index += 1) found(`node${index}.${"a".repeat(200)}`);
    expect(process.cpuUsage(began).user).toBeLessThan(5_000_000);
    for (const wrong of ["(=x", "a=", "=b", "a=b=", "a=b,,c=d", "a[=b"])
      expect(problems({ ...REQUIRED, SASORI_MASTER_ALIASES: wrong })).toEqual([
        expect.stringMatching(/^ {2}SASORI_MASTER_ALIASES is .*expected producer=master pairs/),
      ]);
  });

  test("names Windows line ends as what they are, once for each variable", () => {
    const values = { ...REQUIRED, SASORI_BACKEND: "puppet", SASORI_LISTEN: "127.0.0.1:9180" };
    const windows = Object.fromEntries(Object.entries(values).map(([name, value]) => [name, `${value}\r`]));
    expect(problems(windows)).toEqual(
      Object.keys(values).map((name) => expect.stringContaining(`${name} ends in a carriage return`)),
    );
    expect(() => readAddress({ SASORI_LISTEN: "127.0.0.1:9180\r" })).toThrow("ends in a carriage return");
  });

  test.each([
    ["SASORI_NEW_MASTERS", '"puppet[0-9]+"', "is in quotes"],
    ["SASORI_MAP_NAME", "'/maps/nodes.map'", "is in quotes"],
    ["SASORI_MAP_FILE", '"/maps/nodes.map"', "is in quotes"],
    ["SASORI_MAP_FILE", "/maps/nodes.map # HAProxy's", "has a comment"],
    ["SASORI_HAPROXY", "/run/haproxy.sock\t# the first one", "has a comment"],
  ])("names what a file of variables has added to %s as what it is: %s", (name, value, what) => {
    expect(problems({ ...REQUIRED, [name]: value })).toEqual([expect.stringContaining(`${name} ${what}`)]);
  });

  test("takes no offence at such a value of somebody else's variable", () => {
    const { mapFile } = readConfig({ ...REQUIRED, SASORI_NOTES_OF_OURS: '"the new one" # since May' });
    expect(mapFile).toBe(REQUIRED.SASORI_MAP_FILE);
  });

  test("blanks around a value are none of it", () => {
    const { mapFile, listen, haproxy } = readConfig({
      ...REQUIRED,
      SASORI_MAP_FILE: "/maps/nodes.map ",
      SASORI_LISTEN: " 127.0.0.1:9180\t",
      SASORI_HAPROXY: "/a.sock,\n/b.sock\n",
    });
    expect([mapFile, listen.host, ...haproxy.map(({ name }) => name)]).toEqual([
      "/maps/nodes.map",
      "127.0.0.1",
      "/a.sock",
      "/b.sock",
    ]);
  });

  test("says which log levels there are", () => {
    expect(problems({ ...REQUIRED, SASORI_LOG_LEVEL: "loud" })).toEqual([
      expect.stringContaining(
        'is "loud": expected one of fatal, error, warn, info, debug, trace, silent, for',
      ),
    ]);
  });

  test("takes sockets and addresses side by side, and IPv6", () => {
    const { haproxy } = readConfig({
      ...REQUIRED,
      SASORI_HAPROXY: "/a.sock, tcp://10.0.0.1:9999,tcp://[::1]:9998",
    });
    expect(haproxy.map(({ connect }) => connect)).toEqual([
      { path: "/a.sock" },
      { host: "10.0.0.1", port: 9999 },
      { host: "::1", port: 9998 },
    ]);
  });

  test("writes only the file when told so", () => {
    expect(readConfig({ ...REQUIRED, SASORI_HAPROXY: "none" }).haproxy).toEqual([]);
  });

  test("takes an empty variable for one that is not set, as Compose and systemd pass it", () => {
    expect(readConfig({ ...REQUIRED, SASORI_MASTER_ALIASES: "", SASORI_LOG_LEVEL: "" }).logLevel).toBe(
      "info",
    );
  });

  test("does not listen beyond loopback without a token", () => {
    expect(problems({ ...REQUIRED, SASORI_LISTEN: "0.0.0.0:9180" })).toEqual([
      expect.stringContaining("set SASORI_API_TOKEN_FILE"),
    ]);
    for (const host of ["127.0.0.1", "127.1.2.3", "localhost", "[::1]"]) {
      expect(problems({ ...REQUIRED, SASORI_LISTEN: `${host}:9180` })).toEqual([]);
    }
  });

  test("wants certificate and key together, and https with them", async () => {
    const folder = await mkdtemp(path.join(tmpdir(), "sasori-config-"));
    const pem = path.join(folder, "cert.pem");
    await writeFile(pem, "");
    expect(problems({ ...REQUIRED, SASORI_PUPPETDB_CERT: pem })).toEqual([
      expect.stringContaining("belong together"),
      expect.stringContaining("certificates need an https URL"),
    ]);
    await chmod(folder, 0o755);
    await rm(folder, { recursive: true });
  });

  test("says so of contradictions together with everything else", () => {
    const found = problems({ ...REQUIRED, SASORI_SCHEDULE: "x", SASORI_LISTEN: "0.0.0.0:1" });
    expect(found).toEqual([
      expect.stringContaining("SASORI_SCHEDULE"),
      expect.stringContaining("beyond loopback"),
    ]);
  });

  test("keeps the files apart: the map, the state, the priorities", () => {
    const one = REQUIRED.SASORI_MAP_FILE;
    expect(problems({ ...REQUIRED, SASORI_STATE_FILE: one })).toEqual([
      expect.stringContaining("different files"),
    ]);
    const priority = { SASORI_PRIORITY_FILE: "/var/lib/sasori/priority.map" };
    expect(problems({ ...REQUIRED, ...priority, SASORI_MAP_NAME: "/etc/haproxy/priority.map" })).toEqual([
      expect.stringMatching(/SASORI_MAP_NAME and SASORI_PRIORITY_FILE have the same base name/),
    ]);
    expect(problems({ ...REQUIRED, SASORI_PRIORITY_FILE: `/elsewhere/${path.basename(one)}` })).toEqual([
      expect.stringMatching(/SASORI_MAP_FILE and SASORI_PRIORITY_FILE have the same base name/),
    ]);
    expect(problems({ ...REQUIRED, ...priority, SASORI_MAP_NAME: "/etc/haproxy/other.map" })).toEqual([]);
    expect(problems({ ...REQUIRED, SASORI_MAP_FILE: "/tmp/" })).toEqual([
      expect.stringContaining("SASORI_MAP_FILE"),
    ]);
    expect(problems({ ...REQUIRED, SASORI_PUPPETDB_TOKEN_FILE: "/tmp" })).toEqual([
      expect.stringContaining("it is a folder, not a file"),
    ]);
  });

  test("shows every variable and no secret", async () => {
    const folder = await mkdtemp(path.join(tmpdir(), "sasori-config-"));
    const token = path.join(folder, "token");
    await writeFile(token, "s3cret");
    const shown = showConfig({ ...REQUIRED, SASORI_API_TOKEN_FILE: token });
    expect(Object.keys(shown)).toEqual(describeVariables().map(({ name }) => name));
    expect(JSON.stringify(shown)).not.toContain("s3cret");
    expect(readConfig(shown)).toEqual(readConfig({ ...REQUIRED, SASORI_API_TOKEN_FILE: token }));
    await rm(folder, { recursive: true });
  });

  test("wants a token in a token file, and never says what else is in it", async () => {
    const folder = await mkdtemp(path.join(tmpdir(), "sasori-config-"));
    const token = path.join(folder, "token");
    for (const text of ["", " \n", "two s3cret words", "s3crét"]) {
      await writeFile(token, text);
      for (const name of ["SASORI_API_TOKEN_FILE", "SASORI_PUPPETDB_TOKEN_FILE"]) {
        const found = problems({ ...REQUIRED, [name]: token });
        expect(found).toEqual([
          expect.stringMatching(new RegExp(`${name} is .*a file with one word of ASCII characters`)),
        ]);
        expect(found.join()).not.toContain("s3cr");
      }
    }
    await writeFile(token, "s3cret\n");
    expect(problems({ ...REQUIRED, SASORI_API_TOKEN_FILE: token })).toEqual([]);
    await rm(folder, { recursive: true });
  });

  test("says nothing of what stands before a host in a URL: it may be a token", () => {
    for (const url of [
      "https://hush@pdb:8081",
      "https://me:hush@pdb:8081",
      "ftp://hush@pdb|https://hush@pdb2",
    ])
      expect(() => readConfig({ ...REQUIRED, SASORI_PUPPETDB_URL: url })).toThrow(
        expect.not.objectContaining({ message: expect.stringContaining("hush") }),
      );
  });

  test("takes a state database by URL: TLS beyond this host, no password in it, and no password in a message", () => {
    const state = (url: string, more: Record<string, string> = {}) =>
      readConfig({ ...REQUIRED, SASORI_STATE_URL: url, ...more }).stateDatabase;
    expect(state("postgres://sasori@pg.example.com/state")).toMatchObject({
      ...{ where: "postgres://sasori@pg.example.com:5432/state", host: "pg.example.com", port: 5432 },
      ...{ user: "sasori", database: "state", tls: true },
    });
    expect(state("postgresql://sasori@[2001:db8::1]:5433/state")).toMatchObject({
      ...{ host: "2001:db8::1", port: 5433, tls: true, where: "postgres://sasori@[2001:db8::1]:5433/state" },
    });
    expect(state("postgres://sasori@127.0.0.1/state")?.tls).toBe(false);
    expect(state("postgres://sasori@127.0.0.1/state?sslmode=verify-full")?.tls).toBe(true);
    expect(state("postgres://sasori@pg/state?sslmode=disable")?.tls).toBe(false);
    expect(state("postgres://sasori@localhost/state?host=/run/postgresql")).toMatchObject({
      host: "/run/postgresql",
      tls: false,
    });
    for (const wrong of [
      ...[
        "http://pg/state",
        "postgres://pg/state",
        "postgres://sasori@pg",
        "postgres://sasori@pg/state?sslmode=prefer",
      ],
      ...["postgres://sasori:hush@pg/state", "postgres://sasori@pg/state?password=hush"],
      ...["postgres://sas%ori@pg/state", "postgres://sasori@pg/state?sslpassword=hush&sslmode=disable"],
    ]) {
      const [problem = ""] = problems({ ...REQUIRED, SASORI_STATE_URL: wrong });
      expect(problem).toMatch(/^ {2}SASORI_STATE_URL is .*: expected /);
      expect(problem).not.toContain("hush");
    }
    expect(problems({ ...REQUIRED, SASORI_STATE_CA: "/etc/hostname" })).toEqual([
      "  SASORI_STATE_CA needs SASORI_STATE_URL",
    ]);
  });
});
