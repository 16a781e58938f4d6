/**
 * The Puppet module on clean hosts: a manifest of one class is all that an operator writes, and `puppet apply` by the agent of
 * Debian is all that is run. The tests of a host are one story and stand in its order.
 */
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { patient } from "../support/patience.js";
import { Host } from "./host.js";

const SOON = { timeout: patient(30_000), interval: 500 };

const manifest = (more: string, file = "previous") => `
class { 'sasori':
  package_source => '/root/sasori-${file}.deb',
  puppetdb_url   => 'https://puppetdb.example.com:8081',
  ssldir         => '/etc/puppetlabs/puppet/ssl',
  certname       => 'gateway.example.com',
  stats_password => Sensitive('secret-of-the-stats-page'),
  api_token      => Sensitive('secret-of-the-api'),
  masters        => {
    'puppet1.example.com' => { 'address' => 'puppet1.example.com' },
    'puppet2.example.com' => { 'address' => 'puppet2.example.com' },
  },
  ${more}
}`;

let host: Host;
/** 0: nothing to do; 2: changed; all else is a failure, and rejects with what Puppet printed. */
async function apply(text: string): Promise<{ code: number; printed: string }> {
  const script =
    "cat >/root/site.pp; set +e; puppet apply --detailed-exitcodes --color=false /root/site.pp 2>&1; echo code=$?";
  const printed = await host.sh(script, text);
  const code = Number(/code=(\d+)\s*$/.exec(printed)?.[1]);
  if (code !== 0 && code !== 2) throw new Error(printed);
  return { code, printed };
}

// The tools write into the folder that they look at, and the clone is read-only.
const inModule = (script: string) =>
  host.sh(`rm -rf /tmp/sasori && cp -r /clone/deploy/puppet /tmp/sasori && cd /tmp/sasori && ${script}`);

describe.each([
  ["7", "bookworm"],
  ["8", "trixie"],
])("Puppet %s of Debian %s", (version, name) => {
  beforeAll(async () => {
    host = await Host.start(`${name}-puppet`);
    await host.sh(`sh /clone/test/packages/estate.sh
      mkdir -p /etc/puppet/code/modules
      ln -s /clone/deploy/puppet /etc/puppet/code/modules/sasori
      cp /clone/dist/packages-test/previous/*.deb /root/sasori-previous.deb
      cp /clone/dist/packages-test/new/*.deb /root/sasori-new.deb`);
  });
  afterAll(() => host?.stop());

  test("is that version", async () => {
    expect(await host.sh("puppet --version")).toMatch(new RegExp(`^${version}\\.`));
  });

  test("manifests, templates and metadata are valid, and puppet-lint has nothing to say", async () => {
    expect(
      await inModule(
        "puppet parser validate manifests types examples && puppet epp validate templates/*.epp",
      ),
    ).toBe("");
    const lint = "puppet-lint --relative --fail-on-warnings --no-140chars-check --no-documentation-check";
    expect(await inModule(`${lint} manifests types examples`)).toBe("");
  });

  test("rspec-puppet compiles it for every system that it supports", async () => {
    expect(await inModule("rspec --no-color")).toMatch(/[1-9]\d* examples, 0 failures/);
  });

  // Each version of puppet-strings has a format of its own; the newer one counts.
  if (version === "8")
    test("REFERENCE.md is what puppet-strings writes", async () => {
      await inModule("puppet strings generate --format markdown --out REFERENCE.md >/dev/null 2>&1");
      expect(
        await host.sh("diff /clone/deploy/puppet/REFERENCE.md /tmp/sasori/REFERENCE.md && echo same"),
      ).toBe("same\n");
    });

  test("the first run makes a gateway of the host, and shows no secret", async () => {
    const { code, printed } = await apply(manifest(""));
    expect(code).toBe(2);
    expect(printed).not.toContain("secret-of");
  });

  test("then requests are routed", async () => {
    const ask = "curl -s -H 'X-Node-Name: web2.example.com' http://127.0.0.1:8080/";
    await expect.poll(() => host.sh(ask), SOON).toContain('"master":"puppet2.example.com"');
    expect(await host.sh("sasori doctor | grep -ci failed || true")).toBe("0\n");
  });

  test("the second run changes nothing", async () => {
    expect((await apply(manifest(""))).code).toBe(0);
  });

  test("another setting restarts sasori and leaves HAProxy alone", async () => {
    const haproxy = await host.sh("systemctl show -P MainPID haproxy");
    await apply(manifest("settings => { 'SASORI_LOG_LEVEL' => 'debug' },"));
    expect(await host.sh("sasori config | grep LOG_LEVEL")).toBe("SASORI_LOG_LEVEL=debug\n");
    expect(await host.sh("systemctl show -P MainPID haproxy")).toBe(haproxy);
  });

  test("another package file is an upgrade", async () => {
    await apply(manifest("settings => { 'SASORI_LOG_LEVEL' => 'debug' },", "new"));
    expect(await host.sh("sasori --version")).not.toContain("previous");
    expect((await apply(manifest("settings => { 'SASORI_LOG_LEVEL' => 'debug' },", "new"))).code).toBe(0);
  });

  test("absent leaves nothing, and HAProxy serves its own configuration", async () => {
    const absent = manifest("ensure => 'absent',", "new");
    expect((await apply(absent)).code).toBe(2);
    const left =
      "find /etc /usr /var/lib -name '*sasori*' ! -path '/var/lib/puppet/*' ! -path '/etc/puppet/*'; id -u sasori 2>/dev/null || echo no user; systemctl is-active haproxy";
    expect(await host.sh(left)).toBe("no user\nactive\n");
    expect((await apply(absent)).code).toBe(0);
  });
});
