/**
 * Real puppetservers, a real PuppetDB behind them and real agents (Debian's packages), with what the documents say pasted into
 * their configuration as it stands there. The tests of a host are one story and stand in its order.
 */
import { readFileSync } from "node:fs";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { blockOf, Host } from "../packages/host.js";
import { patient } from "../support/patience.js";
import { ON_DEMAND } from "../support/schedules.js";

/** Of a puppetserver that is being started. */
const IN_TIME = { timeout: patient(80_000), interval: 1_000 };

const MASTERS = ["puppet1", "puppet2", "puppet3"] as const;
/** Where each has what stands in /etc/puppet for it, and its unit. */
const AT = {
  puppet1: { etc: "/etc/puppet", unit: "puppetserver" },
  puppet2: { etc: "/estate/puppet2/etc", unit: "puppet2" },
  puppet3: { etc: "/estate/puppet3/etc", unit: "puppet3" },
};
const UNITS = MASTERS.map((name) => AT[name].unit).join(" ");
const SSL = "/var/lib/puppet/ssl";
const PEM = { gateway: "/estate/gateway.pem", ca: `${SSL}/certs/ca.pem` };

let host: Host;

/** Documents have the paths of Puppet's own packages; these are Debian's. */
const asInDebian = (text: string) =>
  text.replaceAll("/etc/puppetlabs/puppet/ssl", SSL).replaceAll("/etc/puppetlabs/", "/etc/puppet/");

/** Starts a program that goes on. */
const start = (unit: string, variables: Record<string, string>, command: string) => {
  const set = Object.entries(variables).map(([name, value]) => `--setenv='${name}=${value}'`);
  return host.sh(
    `systemd-run --quiet --collect --unit=${unit} --working-directory=/clone/haproxy ${set.join(" ")} ${command}`,
  );
};

/** Its polls never come: what moves a route is a hint. */
const startSasori = async (more: Record<string, string>) => {
  await start(
    "sasori",
    {
      SASORI_PUPPETDB_URL: "https://puppetdb.example.com:8081",
      SASORI_PUPPETDB_CERT: `${SSL}/certs/sasori.example.com.pem`,
      SASORI_PUPPETDB_KEY: `${SSL}/private_keys/sasori.example.com.pem`,
      SASORI_PUPPETDB_CA: PEM.ca,
      SASORI_HAPROXY: "/estate/haproxy/admin.sock",
      SASORI_MAP_FILE: "/estate/haproxy/node-master.map",
      ...ON_DEMAND,
      ...more,
    },
    "node /clone/dist/src/cli.js serve",
  );
  const seconds = Math.ceil(patient(30_000) / 1000);
  await host.sh(
    `timeout ${seconds} sh -c 'until curl -sf 127.0.0.1:9180/readyz >/dev/null; do sleep 0.2; done'`,
  );
};

const startGateway = (
  command: string,
  variables: Record<string, string>,
  names: readonly string[] = MASTERS,
) => {
  const masters = names.flatMap((name, index) => [
    [`MASTER${index + 1}`, `${name}.example.com:8140`],
    [`MASTER${index + 1}_NAME`, `${name}.example.com`],
  ]);
  const gateway = {
    NODE_MASTER_MAP: "/estate/haproxy/node-master.map",
    HAPROXY_SOCKET: "/estate/haproxy/admin.sock",
    STATS_USER: "stats",
    STATS_PASSWORD: "secret",
    MASTERS_CA: PEM.ca,
  };
  return start("gateway", { ...Object.fromEntries(masters), ...gateway, ...variables }, command);
};

/** `puppet agent -t`; rejects with what it printed when the run failed. 2: it changed something. */
const agent = (node: string, server: string, more = "") =>
  host.sh(`d=/estate/agents/${node}; mkdir -p $d; code=0
puppet agent -t --color=false ${more} --certname ${node}.example.com --server ${server}.example.com --ca_server ${server === "puppet" ? server : "puppet1"}.example.com \
  --ssldir $d/ssl --vardir $d/var --rundir $d/run --statedir $d/state --publicdir $d/public >$d/log 2>&1 || code=$?
[ $code = 0 ] || [ $code = 2 ] || { cat $d/log; exit 1; }`);

/** What the tools' gateway answers. */
const ask = async (node: string, path: string, more = "") => {
  const text = await host.sh(
    `curl -s -o /tmp/body -w '%{http_code} %header{x-served-by}' ${more} -H 'X-Node-Name: ${node}.example.com' 'http://127.0.0.1:8080${path}'`,
  );
  const [status = "", master] = text.split(" ");
  return { status: Number(status), master, body: await host.sh("cat /tmp/body") };
};
const routeOf = async (node: string) => (await ask(node, "/status/v1/simple")).master;
const hintsOf = async (kind: string) =>
  Number(
    await host.sh(`curl -s 127.0.0.1:9180/metrics | sed -n 's/^sasori_hints_total{kind="${kind}"} //p'`),
  );

/** Status and last health check of each server of the masters. */
const serversOf = (name: string) =>
  host.sh(
    `curl -s -u stats:secret '127.0.0.1:8081/stats;csv' | awk -F, '$2 ~ /^${name}[.]example[.]com$/ { print $2, $18, $37 }' | sort -u`,
  );
/** HAProxy looks at them every two seconds, and finds one gone that is being reloaded. */
const untilUp = () =>
  expect
    .poll(() => serversOf("puppet[123]"), IN_TIME)
    .toBe(MASTERS.map((name) => `${name}.example.com UP L7OK\n`).join(""));
const reload = async () => {
  await host.sh(`systemctl reload ${UNITS}`);
  await untilUp();
};
/** Commands of HAProxy's Runtime API. */
const tell = (...commands: string[]) =>
  host.sh(
    `node -e 'require("net").connect("/estate/haproxy/admin.sock").end(process.argv[1] + "\\n").pipe(process.stdout)' '${commands.join(";")}'`,
  );
/** One pass, because polls never come. */
const sync = () =>
  host.sh("curl -sf -X POST -H 'Content-Type: application/json' -d '{}' 127.0.0.1:9180/api/v1/sync");

/** Puts rules of a document first into auth.conf. */
const addRules = async (rules: string) => {
  for (const name of MASTERS)
    await host.sh(
      `f=${AT[name].etc}/puppetserver/conf.d/auth.conf; cat >/tmp/rules; sed -i '/^    rules: \\[/r /tmp/rules' $f; grep -q sasori: $f`,
      rules,
    );
};

const V4 = (node: string) =>
  `-X POST -H 'Content-Type: application/json' -d '${JSON.stringify({
    certname: `${node}.example.com`,
    persistence: { facts: false, catalog: false },
    environment: "production",
    facts: { values: {} },
    trusted_facts: { values: {} },
  })}'`;
const FACTS = (node: string) =>
  `-X PUT -H 'Content-Type: application/json' -d '${JSON.stringify({ name: `${node}.example.com`, values: { kernel: "Linux" } })}'`;
const CALLS: [string, string, string, number][] = [
  ["the node", "/puppet/v3/node/NODE?environment=production", "", 200],
  ["the catalog", "/puppet/v3/catalog/NODE?environment=production", "", 200],
  ["its facts", "/puppet/v3/facts/NODE?environment=production", FACTS("db1"), 200],
  ["a v4 catalog", "/puppet/v4/catalog", V4("db1"), 200],
  ["the environment cache", "/puppet-admin-api/v1/environment-cache", "-X DELETE", 204],
];
const call = (path: string, more: string, node = "db1") =>
  ask(node, path.replace("NODE", `${node}.example.com`), `${more} -H 'Accept: application/json'`);

const LEG = "/estate/agents-gateway/leg.pem";
const AGENTS = {
  MASTERS_CERT: LEG,
  AGENTS_ADDRESS: "127.0.1.9",
  AGENTS_CERT: "/estate/agents-gateway/gateway.pem",
  AGENTS_CA: "/estate/agents-gateway/ca.pem",
  AGENTS_CRL: "/estate/agents-gateway/crl.pem",
  AGENTS_LEG_CERT: LEG,
  AGENTS_LEG_CA: "/estate/agents-gateway/ca.pem",
  AGENTS_OPERATORS: "/estate/agents-gateway/operators",
  CA_MASTER: "puppet1.example.com:8140",
  CA_MASTER_CERTNAME: "puppet1.example.com",
};

/** Of the documents' pool: a pool `fra` with puppet1, and `lon` with the others, for tools and then for agents. */
function pools(): string {
  const [defaults = "", agents = ""] = blockOf("docs/agents.md", 4, "").split("\n\n");
  const tools = blockOf("docs/gateway.md", 2, "");
  const withServers = (section: string, ...names: string[]) => {
    const [line = ""] = section.match(/^ {2}server .*/m) ?? [];
    const lines = names.map((name) =>
      line.replaceAll("puppet-fra1", name).replace("192.0.2.11", `${name}.example.com`),
    );
    return [section.replaceAll(/^ {2}server .*\n?/gm, "").trimEnd(), ...lines, ""].join("\n");
  };
  const fra = (section: string) => withServers(section, "puppet1");
  const lon = (section: string) =>
    withServers(section, "puppet2", "puppet3").replaceAll("fra", "lon").replace("8151", "8152");
  return [fra(tools), lon(tools), defaults, fra(agents), lon(agents)].join("\n");
}

/** Which master made the catalog of the node's last run. */
const compiledBy = async (node: string) =>
  /by (puppet\d)\.example\.com/.exec(await host.sh(`cat /estate/agents/${node}/log`))?.[1];

/** What the agents' gateway answers who has this certificate, and names a node. */
const askAs = async (who: string, path: string, more: string, node = "db1") => {
  const text =
    await host.sh(`cd /estate/agents-gateway; curl -s -o /dev/null -w '%{http_code} %header{x-served-by}' ${more} \
--cacert ca.pem --cert ${who}.pem --key ${who}.key -H 'Accept: application/json' -H 'X-Node-Name: ${node}.example.com' \
'https://puppet.example.com:8140${path.replace("NODE", `${node}.example.com`)}'`);
  const [status, master] = text.split(" ");
  return { status: Number(status), master };
};

describe.each([
  ["7", "bookworm"],
  ["8", "trixie"],
])("puppetservers %s of Debian %s", (version, name) => {
  beforeAll(async () => {
    host = await Host.start(`${name}-puppetserver`, { node: true });
    await host.sh("bash /clone/test/puppetserver/estate.sh");
    const gateway = ["gateway", "sasori"].map(
      (name) => `puppetserver ca generate --certname ${name}.example.com\n`,
    );
    await host.sh(`${gateway.join("")}
  cat ${SSL}/certs/gateway.example.com.pem ${SSL}/private_keys/gateway.example.com.pem >${PEM.gateway}
  mkdir /estate/haproxy; touch /estate/haproxy/node-master.map`);
    await startGateway("haproxy -W -db -f haproxy.cfg", { MASTERS_CERT: PEM.gateway }, [
      "puppet1",
      "puppet2",
    ]);
    await agent("web1", "puppet1");
    await agent("db1", "puppet2");
    const options = /`SASORI_NEW_MASTER_OPTIONS` has their options.*?`(check [^`]+)`/s.exec(
      readFileSync("docs/gateway.md", "utf8"),
    )?.[1];
    await startSasori({
      SASORI_SYSLOG_LISTEN: "0.0.0.0:5514",
      SASORI_NEW_MASTERS: "puppet[0-9]+\\.example\\.com",
      SASORI_NEW_MASTER_OPTIONS: `${options}`
        .replace("/etc/ca.pem", PEM.ca)
        .replace("/etc/gateway.pem", PEM.gateway),
    });
  });
  afterAll(() => host?.stop());

  test("are of that version", async () => {
    expect(await host.sh("dpkg-query -W puppetserver")).toMatch(new RegExp(`\\t${version}\\.`));
  });

  test("each node's requests go to the master where its agent ran", async () => {
    await expect.poll(() => routeOf("web1"), IN_TIME).toBe("puppet1.example.com");
    await expect.poll(() => routeOf("db1"), IN_TIME).toBe("puppet2.example.com");
  });

  test("a puppetserver that begins to serve gets its server, over TLS and with its health checked", async () => {
    await host.sh("systemctl start puppet3");
    await agent("app1", "puppet3");
    await sync();
    await untilUp();
    // Its nodes follow in the next pass.
    await sync();
    await expect.poll(() => routeOf("app1"), IN_TIME).toBe("puppet3.example.com");
    // It stands still: another master answers, until it goes on.
    await host.sh("systemctl kill -s STOP puppet3");
    await expect.poll(() => routeOf("app1"), IN_TIME).toMatch(/^puppet[12]\.example\.com$/);
    await expect.poll(() => serversOf("puppet3"), IN_TIME).toContain("DOWN");
    await host.sh("systemctl kill -s CONT puppet3");
    await untilUp();
    await expect.poll(() => routeOf("app1"), IN_TIME).toBe("puppet3.example.com");
  });

  test("a request that the wrong master cannot answer reaches the right one, which is then learned", async () => {
    for (const master of ["puppet1", "puppet2"]) {
      await agent("db1", master);
      const path = `/puppet/v3/file_content/modules/site/${master}?environment=production`;
      // sasori has a second for its question to PuppetDB, which may be too little while a machine is busy.
      await expect
        .poll(() => ask("db1", path, "-H 'Accept: application/octet-stream'"), IN_TIME)
        .toEqual({ status: 200, master: `${master}.example.com`, body: `${master}\n` });
      await expect.poll(() => routeOf("db1"), IN_TIME).toBe(`${master}.example.com`);
    }
  });

  test("a puppetserver's log line moves a node's route; puppetserver need not be restarted for it", async () => {
    const appender = blockOf("docs/hints.md", 1, "xml");
    for (const name of MASTERS) {
      const lines = appender.replace("puppet1.example.com", `${name}.example.com`);
      await host.sh(
        `f=${AT[name].etc}/puppetserver/logback.xml; sed -i '/^<\\/configuration>/d' $f; cat >>$f; echo '</configuration>' >>$f`,
        lines,
      );
    }
    // It looks at the file once a minute. Nodes that move before that are not followed.
    const moved = async () => {
      await agent("web1", "puppet2");
      return routeOf("web1");
    };
    await expect.poll(moved, IN_TIME).toBe("puppet2.example.com");
    await agent("web1", "puppet1");
    await expect.poll(() => routeOf("web1"), IN_TIME).toBe("puppet1.example.com");
    expect(await hintsOf("syslog")).toBeGreaterThan(0);
  });

  test("so does its report, without log lines", async () => {
    const settings = blockOf("docs/hints.md", 1, "ini");
    for (const name of MASTERS)
      await host.sh(`f=${AT[name].etc}/puppet.conf; sed -i '/^reports/d' $f; cat >>$f`, settings);
    await reload();
    await host.sh("systemctl stop sasori");
    await startSasori({
      SASORI_REPORTS_LISTEN: "0.0.0.0:9181",
      SASORI_REPORTS_CA: PEM.ca,
      SASORI_REPORTS_CERT: `${SSL}/certs/sasori.example.com.pem`,
      SASORI_REPORTS_KEY: `${SSL}/private_keys/sasori.example.com.pem`,
    });
    await expect.poll(() => routeOf("web1"), IN_TIME).toBe("puppet1.example.com");
    await agent("web1", "puppet2");
    await expect.poll(() => routeOf("web1"), IN_TIME).toBe("puppet2.example.com");
    expect(await hintsOf("report")).toBeGreaterThan(0);
    expect(await hintsOf("syslog")).toBe(0);
  });

  test("the tools' gateway is somebody to the masters, who lets it ask only with the rules of the document", async () => {
    for (const [what, path, more] of CALLS) expect((await call(path, more)).status, what).toBe(403);
    await addRules(blockOf("docs/gateway.md", 1, "hocon"));
    await reload();
    for (const [what, path, more, status] of CALLS)
      expect(await call(path, more), what).toMatchObject({ status, master: "puppet2.example.com" });
    expect((await call("/puppet/v3/catalog/NODE?environment=production", "")).body).toContain(
      "by puppet2.example.com",
    );
    // Also by the server that was added at run time.
    expect((await call("/puppet/v3/catalog/NODE?environment=production", "", "app1")).body).toContain(
      "by puppet3.example.com",
    );
    // It takes facts, and has none to give: PuppetDB has.
    expect((await call("/puppet/v3/facts/NODE?environment=production", "")).status).toBe(404);
    // A node still gets its own catalog.
    await agent("db1", "puppet2");
    await agent("web1", "puppet1");
    await expect.poll(() => routeOf("web1"), IN_TIME).toBe("puppet1.example.com");
  });

  test("behind the agents' gateway agents go on, each at its own master", async () => {
    const plain = (number: number) => asInDebian(blockOf("docs/agents.md", number, ""));
    await host.sh(`sed -i -e 's/# allow-subject-alt-names: false/allow-subject-alt-names: true/' -e 's/allow-auto-renewal: false/allow-auto-renewal: true/' /etc/puppet/puppetserver/conf.d/ca.conf
  systemctl reload puppetserver
  mkdir /estate/agents-gateway; cd /estate/agents-gateway
  ${asInDebian(blockOf("docs/agents.md", 1))}
  puppetserver ca generate --certname ops.example.com
  cp ${SSL}/certs/ops.example.com.pem ops.pem; cp ${SSL}/private_keys/ops.example.com.pem ops.key
  cp /estate/agents/web1/ssl/certs/web1.example.com.pem web1.pem; cp /estate/agents/web1/ssl/private_keys/web1.example.com.pem web1.key
  echo ops.example.com >operators`);
    for (const [index, name] of MASTERS.entries()) {
      const etc = `${AT[name].etc}/puppetserver`;
      const address = `127.0.1.${index + 1}`;
      await host.sh(
        `install -m 644 /estate/agents-gateway/leg-cert.pem ${etc}; cat >${etc}/conf.d/webserver.conf`,
        plain(3).replaceAll("puppet1.example.com", `${name}.example.com`).replace("0.0.0.0", address),
      );
      await host.sh(
        `f=${etc}/conf.d/auth.conf; cat >/tmp/auth.conf; sed 1,2d $f >>/tmp/auth.conf; cat /tmp/auth.conf >$f
  sed -i s/gateway.example.com/ops.example.com/ $f`,
        plain(2),
      );
    }
    await host.sh(`systemctl restart ${UNITS}; systemctl stop gateway`);
    await startGateway("haproxy -W -db -f haproxy.cfg -f agents.cfg", AGENTS);
    await untilUp();
    await expect
      .poll(() => askAs("ops", "/status/v1/simple", ""), IN_TIME)
      .toEqual({ status: 200, master: "puppet2.example.com" });

    // Agents go through it, each to its own master.
    await agent("web1", "puppet");
    await agent("db1", "puppet");
    await expect.poll(() => routeOf("web1"), IN_TIME).toBe("puppet1.example.com");
    await expect.poll(() => routeOf("db1"), IN_TIME).toBe("puppet2.example.com");
  });

  if (version === "8")
    test("there an agent renews its certificate", async () => {
      const serial = () =>
        host.sh("openssl x509 -noout -serial -in /estate/agents/web1/ssl/certs/web1.example.com.pem");
      const before = await serial();
      // A certificate is valid for five years.
      await agent("web1", "puppet", "--hostcert_renewal_interval 6y");
      expect(await serial()).not.toBe(before);
      await agent("web1", "puppet");
    });

  test("there an operator's call about a node reaches that node's master, and nobody else's does", async () => {
    for (const [what, path, more, status] of CALLS) {
      expect(await askAs("ops", path, more), what).toEqual({ status, master: "puppet2.example.com" });
      // web1 cannot name db1: it reaches its own master, as itself.
      expect(await askAs("web1", path, more), what).toEqual({ status: 403, master: "puppet1.example.com" });
      // Nor does the tools' gateway let anybody say who he is.
      const forged = "-H 'X-Client-Verify: SUCCESS' -H 'X-Client-DN: CN=ops.example.com'";
      expect((await call(path, `${more} ${forged}`)).status, what).toBe(403);
    }
    expect(
      (
        await host.sh(`cd /estate/agents-gateway; ${blockOf("docs/agents.md", 2).trim()} -w '%{http_code}'`)
      ).trim(),
    ).toBe("204");
  });

  test("an agent that no master can serve waits as Retry-After says; that of Puppet 8 then asks again", async () => {
    const all = (state: string) =>
      tell(...MASTERS.map((name) => `set server agents_masters/${name}.example.com state ${state}`));
    await all("maint");
    const run = agent("web1", "puppet").then(() => "ran", String);
    await expect.poll(() => host.sh("cat /estate/agents/web1/log"), IN_TIME).toContain("Sleeping for");
    await all("ready");
    const ended = await run;
    // Puppet 7 gives up the request, and perhaps the run.
    const gaveUp = (await host.sh("cat /estate/agents/web1/log")).includes(
      "attempt to read body out of block",
    );
    expect(gaveUp).toBe(version === "7");
    if (version === "8") expect(ended).toBe("ran");
  });

  test("where masters are pools, agents and tools go on when a puppetserver of their pool stops", async () => {
    const at = "/estate/pools";
    await host.sh(
      `systemctl stop gateway sasori; mkdir ${at}; touch ${at}/node-master.map; cat >${at}/pools.cfg`,
      pools(),
    );
    const address = (name: string, port: number, number: number) => ({
      [`MASTER${number}_NAME`]: name,
      [`MASTER${number}_CERTNAME`]: `${name}.example.com`,
      [`AGENTS_MASTER${number}`]: `127.0.0.1:${port}`,
    });
    await startGateway(
      `haproxy -W -db -f pools.cfg -f ${at}/pools.cfg -f /clone/haproxy/agents.cfg`,
      {
        ...AGENTS,
        ...address("fra", 8151, 1),
        ...address("lon", 8152, 2),
        POOLS: "fra lon",
        NODE_MASTER_MAP: `${at}/node-master.map`,
        HAPROXY_SOCKET: `${at}/admin.sock`,
      },
      [],
    );
    await startSasori({
      SASORI_HAPROXY: `${at}/admin.sock`,
      SASORI_MAP_FILE: `${at}/node-master.map`,
      SASORI_ROUTE_TO: "backends",
      SASORI_BACKEND: "fra,lon",
    });
    await untilUp();
    await expect.poll(() => routeOf("web1"), IN_TIME).toBe("fra/puppet1.example.com");
    await expect.poll(() => routeOf("db1"), IN_TIME).toMatch(/^lon\/puppet[23]\.example\.com$/);

    await host.sh("systemctl stop puppet2");
    await expect.poll(() => serversOf("puppet2"), IN_TIME).not.toContain("UP");
    for (const [node, pool, by] of [
      ["web1", "fra", "puppet1"],
      ["db1", "lon", "puppet3"],
    ] as const) {
      await agent(node, "puppet");
      expect(await compiledBy(node)).toBe(by);
      await expect.poll(() => routeOf(node), IN_TIME).toBe(`${pool}/${by}.example.com`);
      expect(await askAs("ops", "/puppet/v3/node/NODE?environment=production", "", node)).toEqual({
        status: 200,
        master: pool,
      });
    }
    // A new node gets its certificate, and stays in the pool where it ran.
    await agent("new1", "puppet");
    await sync();
    const by = await compiledBy("new1");
    await expect
      .poll(() => routeOf("new1"), IN_TIME)
      .toBe(`${by === "puppet1" ? "fra" : "lon"}/${by}.example.com`);
  });
});
