/**
 * docs/debian.md on clean hosts, word for word: from `apt-get install` to routed requests, then an upgrade, the removal and
 * the purge. The tests of a host are one story and stand in its order.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { patient } from "../support/patience.js";
import { blockOf, Host } from "./host.js";

const DOCUMENT = "docs/debian.md";
const SOON = { timeout: patient(30_000), interval: 500 };

const ask = (node: string) => `curl -s -H 'X-Node-Name: ${node}.example.com' http://127.0.0.1:8080/`;

/** What a purge must leave as it was; the rest is the diary of apt and systemd. */
const FILES = `find / -xdev \\( -path /proc -o -path /sys -o -path /run -o -path /tmp -o -path /dev -o -path /clone -o -path /estate \
  -o -path /var/lib/dpkg -o -path /var/lib/apt -o -path /var/lib/systemd -o -path /var/cache -o -path /var/log -o -path /root \\) -prune \
  -o -print | sort`;

describe.each([
  ["bookworm", "2.6"],
  ["trixie", "3.0"],
])("Debian %s with its HAProxy", (name, haproxy) => {
  let host: Host;
  let before: string[];
  let haproxyConfig: string;
  beforeAll(async () => {
    host = await Host.start(name);
    await host.sh("sh /clone/test/packages/estate.sh");
    before = (await host.sh(FILES)).split("\n");
    haproxyConfig = await host.sh("cat /etc/haproxy/haproxy.cfg /etc/default/haproxy");
  });
  afterAll(() => host?.stop());

  test("is that release", async () => {
    expect(await host.sh("haproxy -v")).toContain(`HAProxy version ${haproxy}.`);
  });

  test("the package is installed without a network, changes nothing of HAProxy and starts nothing", async () => {
    await host.sh(`cd /clone/dist/packages-test/previous\n${blockOf(DOCUMENT, 1)}`);
    expect(
      await host.sh(
        "systemctl is-enabled sasori.service || true; systemctl is-active haproxy || true; id -nG sasori",
      ),
    ).toBe("disabled\nactive\nsasori haproxy\n");
    expect(await host.sh("haproxy -c -f /etc/haproxy/haproxy.cfg 2>&1 || true")).not.toContain("ALERT");
    expect(await host.sh("stat -c '%a %U:%G' /etc/sasori /etc/sasori/sasori.env /var/lib/sasori")).toBe(
      "750 root:sasori\n640 root:sasori\n755 sasori:sasori\n",
    );
  });

  test("`sasori setup` without a yes writes nothing", async () => {
    const settings = await host.sh("cat /etc/sasori/*.env");
    const printed = await host.sh("sasori setup 2>&1 || true", "no\n");
    expect(printed).toContain("Nothing was written.");
    expect(await host.sh("cat /etc/sasori/*.env; ls /etc/sasori")).toBe(
      `${settings}gateway.env\nsasori.env\n`,
    );
  });

  test("`sasori setup` finds PuppetDB, the certificate and the masters, and the doctor is green", async () => {
    const printed = await host.sh(`( ${blockOf(DOCUMENT, 2).trim()} ) 2>&1`, "yes\n");
    expect(printed).toContain("SASORI_PUPPETDB_URL=https://puppetdb.example.com:8081");
    expect(printed).toContain("MASTER2_NAME=puppet2.example.com");
    expect(printed).not.toContain("STATS_PASSWORD=\n");
    const doctor = JSON.parse(await host.sh("sasori doctor --json")) as {
      findings: { outcome: string; detail: string }[];
    };
    // The one thing that it may find is that this machine has other things to do.
    const isBusy = (detail: string) => detail.includes("it was busy for");
    expect(doctor.findings.filter(({ outcome, detail }) => outcome !== "ok" && !isBusy(detail))).toEqual([]);
    expect(await host.sh("stat -c '%a %U:%G' /etc/sasori/ssl/key.pem /etc/sasori/ssl/gateway.pem")).toBe(
      "640 root:sasori\n600 root:root\n",
    );
  });

  test("then each request goes to its node's master", async () => {
    const printed = await host.sh(blockOf(DOCUMENT, 3));
    expect(printed).toMatch(/web2\.example\.com +puppet2\.example\.com/);
    expect(printed).toContain('"master":"puppet1.example.com"');
    expect(await host.sh(ask("web2"))).toContain('"master":"puppet2.example.com"');
  });

  test("a node that moves is followed", async () => {
    await host.sh("curl -sf -X POST http://127.0.0.1:8142/puppet/v3/catalog/web1.example.com");
    await expect.poll(() => host.sh("sasori lookup web1.example.com"), SOON).toContain("puppet2.example.com");
    await expect.poll(() => host.sh(ask("web1")), SOON).toContain('"master":"puppet2.example.com"');
  });

  test("`sasori setup` again keeps what was changed, and HAProxy the settings that it starts with", async () => {
    const file = "/etc/sasori/gateway.env";
    const change = (name: string, value: string) =>
      host.sh(`sed -i 's/^${name}=.*/${name}=${value}/' ${file}`);
    await change("GATEWAY_ADDRESS", "0.0.0.0");
    await change("STATS_PASSWORD", '"my own"');
    await host.sh("sasori setup --yes || true"); // The doctor may find that this machine has other things to do.
    expect(await host.sh(`grep -E '^(GATEWAY_ADDRESS|STATS_PASSWORD)=' ${file}`)).toBe(
      'GATEWAY_ADDRESS=0.0.0.0\nSTATS_PASSWORD="my own"\n',
    );
    await change("GATEWAY_PORT", "99999");
    const settings = await host.sh(`cat ${file}`);
    const printed = await host.sh("sasori setup --yes 2>&1 && echo done || true");
    expect(printed).toMatch(
      /HAProxy would refuse its configuration[\s\S]*gateway\.env was put back as it was/,
    );
    expect(printed).not.toMatch(/^done$/m);
    expect(await host.sh(`cat ${file}`)).toBe(settings);
    await change("GATEWAY_PORT", "8080");
    await expect.poll(() => host.sh(ask("web2")), SOON).toContain('"master":"puppet2.example.com"');
  });

  test("man page and completions are where their programs look", async () => {
    expect(await host.sh("zcat /usr/share/man/man1/sasori.1.gz | head -n 3")).toContain(".TH");
    expect(await host.sh("bash -n /usr/share/bash-completion/completions/sasori && echo fine")).toBe(
      "fine\n",
    );
  });

  test("an upgrade keeps the settings, and HAProxy serves the map all the time", async () => {
    await host.sh("echo 'SASORI_LOG_LEVEL=debug' >>/etc/sasori/sasori.env");
    const [settings, running] = await Promise.all([
      host.sh("cat /etc/sasori/*.env"),
      host.sh("systemctl show -P MainPID sasori haproxy"),
    ]);
    let asking = true;
    const codes: string[] = [];
    const askingOn = (async () => {
      while (asking) {
        codes.push(await host.sh(`${ask("web2")} -o /dev/null -w '%{http_code}'`));
        await sleep(50);
      }
    })();
    await host.sh("apt-get install -y /clone/dist/packages-test/new/sasori_*_amd64.deb");
    await expect.poll(() => host.sh("sasori healthy && echo well"), SOON).toBe("well\n");
    await expect.poll(() => codes.length, SOON).toBeGreaterThan(3);
    asking = false;
    await askingOn;
    expect(new Set(codes)).toEqual(new Set(["200"]));
    expect(await host.sh("cat /etc/sasori/*.env")).toBe(settings);
    const [daemon, proxy] = (await host.sh("systemctl show -P MainPID sasori haproxy"))
      .split("\n")
      .filter(Boolean);
    expect(running.split("\n").filter(Boolean)).toEqual([expect.not.stringMatching(`^${daemon}$`), proxy]);
    const installed = await host.sh("dpkg -s sasori | sed -n 's/^Version: //p'");
    expect(await host.sh("sasori --version")).toBe(installed);
  });

  test("the removal ends the daemon only, and HAProxy starts without it", async () => {
    await host.sh("apt-get remove -y sasori");
    expect(await host.sh("systemctl is-active sasori haproxy || true")).toBe("inactive\nactive\n");
    expect(await host.sh(ask("web2"))).toContain('"master":"puppet2.example.com"');
    await host.sh("systemctl restart haproxy");
    expect(await host.sh("systemctl is-active haproxy; ls /etc/sasori/sasori.env")).toBe(
      "active\n/etc/sasori/sasori.env\n",
    );
  });

  test("the purge leaves nothing but the user", async () => {
    await host.sh("apt-get purge -y sasori && systemctl restart haproxy");
    const after = (await host.sh(FILES)).split("\n");
    expect(after.filter((file) => !before.includes(file))).toEqual([]);
    expect(await host.sh("cat /etc/haproxy/haproxy.cfg /etc/default/haproxy")).toBe(haproxyConfig);
    // A container's own units, such as systemd-remount-fs, may fail when it starts.
    expect(await host.sh("systemctl --failed --plain --no-legend")).not.toMatch(/sasori|haproxy/);
    expect(await host.sh("id -un sasori")).toBe("sasori\n");
  });
});

test("a map that HAProxy's configuration names stays after a purge", async () => {
  const host = await Host.start("bookworm");
  try {
    await host.sh("apt-get install -y /clone/dist/packages-test/new/sasori_*_amd64.deb");
    await host.sh(`cat >>/etc/haproxy/haproxy.cfg <<'END'
frontend tools
  bind 127.0.0.1:8090
  http-request set-var(txn.master) req.hdr(x-node-name),lower,map_str(/var/lib/sasori/node-master.map)
END
systemctl restart haproxy
apt-get purge -y sasori
systemctl restart haproxy`);
    expect(await host.sh("ls /var/lib/sasori")).toBe("node-master.map\n");
  } finally {
    await host.stop();
  }
});

test("HAProxy may come after sasori: then sasori may use its socket", async () => {
  const host = await Host.start("trixie");
  try {
    await host.sh("apt-get purge -y haproxy; getent group haproxy && groupdel haproxy || true");
    await host.sh("dpkg -i /clone/dist/packages-test/new/sasori_*_amd64.deb");
    expect(await host.sh("id -nG sasori")).toBe("sasori\n");
    // There is no network to fetch it from again; what its installation does for us is its program and its user.
    await host.sh(
      "useradd --system haproxy && dpkg-trigger --by-package=sasori /usr/sbin/haproxy && dpkg --triggers-only sasori",
    );
    expect(await host.sh("id -nG sasori")).toBe("sasori haproxy\n");
  } finally {
    await host.stop();
  }
});
