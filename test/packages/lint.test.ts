/** The packages as the distributions' own tools judge them, and the rpm installed into a folder. */
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { run } from "../support/child.js";

const DEB = "dist/packages-test/new/*.deb";
const RPM = "dist/packages-test/new/*.rpm";
const sh = (script: string) => run("bash", ["-c", `set -e; ${script}`]);

test("lintian has nothing to say but what is explained in the package", async () => {
  expect(
    await sh(`lintian --fail-on none --suppress-tags no-manual-page,initial-upload-closes-no-bugs ${DEB}`),
  ).toBe("");
});

test("rpmlint has nothing to say but what is explained beside the spec", async () => {
  expect(await sh(`rpmlint --config setup/packaging/rpm/rpmlint.toml ${RPM} || true`)).toContain(
    "0 errors, 0 warnings",
  );
});

test("the rpm asks for no newer libc than RHEL 8 has", async () => {
  expect(
    Math.max(
      ...[...(await sh(`rpm -qp --requires ${RPM}`)).matchAll(/GLIBC_2\.(\d+)/g)].map(([, minor]) =>
        Number(minor),
      ),
    ),
  ).toBe(28);
});

test("a dry run of the release makes everything under one version, with checksums that hold", async () => {
  await run("setup/release.sh", ["--dry-run"], { env: { ...process.env, PACKAGE_FAST: "1" } });
  const { version } = JSON.parse(await readFile("package.json", "utf8"));
  const arch = (await sh("dpkg --print-architecture")).trim();
  const made = (
    await sh("cd dist/release && sha256sum --quiet -c SHA256SUMS && ls | LC_ALL=C sort | grep -v image")
  )
    .trim()
    .split("\n");
  expect(made).toEqual(
    [
      "NOTES.md",
      "SHA256SUMS",
      `sasori-${version}-1.${arch === "amd64" ? "x86_64" : "aarch64"}.rpm`,
      `sasori-${version}.cdx.json`,
      `sasori-${version}.tgz`,
      `sasori-sasori-${version}.tar.gz`,
      `sasori_${version}_${arch}.deb`,
    ].sort(),
  );
  const sbom = JSON.parse(await readFile(`dist/release/sasori-${version}.cdx.json`, "utf8"));
  expect(sbom.metadata.component.version).toBe(version);
  const names = sbom.components.map(({ name }: { name: string }) => name);
  expect(names).toEqual(expect.arrayContaining(["fastify", "undici", "uplot", "node"]));
  expect(names).not.toContain("vitest");
  const module = await sh(
    `tar -xOzf dist/release/sasori-sasori-${version}.tar.gz sasori-sasori-${version}/metadata.json`,
  );
  expect(JSON.parse(module)).toMatchObject({ name: "sasori-sasori", version });
});

let root: string;
beforeAll(async () => {
  root = await mkdtemp(path.join(tmpdir(), "sasori-rpm-"));
});
afterAll(() => rm(root, { recursive: true, force: true }));

test("the rpm installs into a folder, with its scripts, runs there, and goes without a trace", async () => {
  // Debian's files stand for those of an rpm distribution. rpm's database knows none of them: neither what the package
  // needs, nor HAProxy, whose group sasori gets into by a trigger.
  const files = `(cd $root && find etc usr var -name '*sasori*' -o -path '*haproxy.service.d*' | grep -v deb-systemd | sort)`;
  const host = (await sh("setup/hosts.sh bookworm")).trim();
  const printed = await sh(`
    export root=${root}/merged
    mkdir -p $root ${root}/upper ${root}/work
    mount -t overlay overlay -o lowerdir=${host},upperdir=${root}/upper,workdir=${root}/work $root
    trap 'umount -R $root' EXIT
    mount -t proc proc $root/proc
    rpm --root $root --dbpath /var/lib/rpm -i --nodeps ${RPM}
    chroot $root sasori --version
    chroot $root id -nG sasori
    stat -c '%a %u' $root/etc/sasori/sasori.env
    echo "# mine" >>$root/etc/sasori/sasori.env
    rpm --root $root --dbpath /var/lib/rpm -e --nodeps sasori 2>&1
    ${files}`);
  const [version, groups, mode, ...left] = printed.trim().split("\n");
  expect(version).toMatch(/^\d+\.\d+\.\d+$/);
  expect(groups).toBe("sasori");
  expect(mode).toBe("640 0");
  // What somebody has edited is kept, as rpm does it.
  expect(left.filter((line) => !/^(warning|rpm): ?/.test(line))).toEqual([
    "etc/sasori",
    "etc/sasori/sasori.env.rpmsave",
    "var/lib/sasori",
  ]);
});
