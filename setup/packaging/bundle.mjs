// `node setup/packaging/bundle.mjs`: puts what `npm run build` has made into dist/bundle, which runs without node_modules:
//   sasori.cjs    what is started (start.cjs beside this file)
//   program.cjs   all of sasori and its dependencies, one file
//   page/         the page's files
//   package.json  says the version
//   LICENSES.txt  the licences of everything in program.cjs
//   sbom.json     what is in it, as CycloneDX
// setup/package.sh adds program.cache, which only the Node that goes into the package can make.

import { execFileSync } from "node:child_process";
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const root = fileURLToPath(new URL("../..", import.meta.url));
const bundle = path.join(root, "dist/bundle");
const { name, version, license } = readJson(path.join(root, "package.json"));

rmSync(bundle, { recursive: true, force: true });
mkdirSync(bundle, { recursive: true });
const { metafile } = await build({
  absWorkingDir: root,
  entryPoints: ["dist/src/cli.js"],
  outfile: path.join(bundle, "program.cjs"),
  bundle: true,
  platform: "node",
  target: "node20",
  // CommonJS, because we can save the bytecode of a script. That of a module is only in Node's own cache.
  format: "cjs",
  // Names stay as they are, so that a stack trace can be read.
  minifySyntax: true,
  minifyWhitespace: true,
  keepNames: true,
  legalComments: "none",
  metafile: true,
  logLevel: "warning",
  define: { "import.meta.url": "sasoriUrl" },
  banner: { js: 'const sasoriUrl = require("node:url").pathToFileURL(__filename).href;' },
});
const program = path.join(bundle, "program.cjs");
// The first line ("#!") is for a file that is executed directly. This one never is.
writeFileSync(program, readFileSync(program, "utf8").replace(/^#!.*\n/, ""));
cpSync(path.join(root, "setup/packaging/start.cjs"), path.join(bundle, "sasori.cjs"));
cpSync(path.join(root, "dist/page"), path.join(bundle, "page"), { recursive: true });
writeFileSync(path.join(bundle, "package.json"), `${JSON.stringify({ name, version, license }, null, 2)}\n`);

const bundled = [
  ...new Set(
    Object.keys(metafile.inputs).flatMap((file) => {
      const found = /^(.*node_modules\/(?:@[^/]+\/)?[^/]+)\//.exec(file);
      return found === null ? [] : [path.join(root, found[1])];
    }),
  ),
].sort();
// The page has one library in it, and the page's build does not say so.
const folders = [...bundled, path.join(root, "node_modules/uplot")];
writeFileSync(path.join(bundle, "LICENSES.txt"), folders.map(licenceOf).join("\n"));
writeFileSync(path.join(bundle, "sbom.json"), sbomOf(folders));
console.log(`dist/bundle: sasori ${version} with ${folders.length} libraries`);

function licenceOf(folder) {
  const about = readJson(path.join(folder, "package.json"));
  const files = readdirSync(folder).filter((file) => /^(licen[cs]e|copying|notice)/i.test(file));
  const texts = files.map((file) => readFileSync(path.join(folder, file), "utf8").trim());
  const head = `${about.name} ${about.version} (${about.license})`;
  return `${"=".repeat(78)}\n${head}\n${"=".repeat(78)}\n\n${texts.join("\n\n")}\n`;
}

/** npm's own, of what is locked, without what is not in the bundle. */
function sbomOf(folders) {
  const wanted = new Set(
    folders.map((folder) => {
      const about = readJson(path.join(folder, "package.json"));
      return `${about.name}@${about.version}`;
    }),
  );
  const asked = ["sbom", "--sbom-format=cyclonedx", "--package-lock-only"];
  const all = JSON.parse(
    execFileSync("npm", asked, { cwd: root, encoding: "utf8", maxBuffer: 64 * 1024 * 1024 }),
  );
  // They would differ each time.
  delete all.serialNumber;
  delete all.metadata.timestamp;
  const keep = (ref) => wanted.has(ref.replace(/\|.*$/, "")) || ref.startsWith(`${name}@`);
  all.components = all.components.filter((one) => keep(one["bom-ref"]));
  all.dependencies = all.dependencies
    .filter(({ ref }) => keep(ref))
    .map((one) => ({ ...one, dependsOn: one.dependsOn.filter(keep) }));
  return `${JSON.stringify(all, null, 2)}\n`;
}

function readJson(file) {
  if (!existsSync(file)) throw new Error(`${file} is missing: run npm ci`);
  return JSON.parse(readFileSync(file, "utf8"));
}
