// Starts the bundled sasori, with the bytecode that was made of it when it was packaged. Compiling 2.5 MB of JavaScript
// anew would take longer than most commands. Node's own cache (NODE_COMPILE_CACHE) is a folder that each user can write,
// by default in /tmp. A command that root runs must not take bytecode from there. V8 itself refuses a cache of another
// Node, of other flags or of another program: then sasori starts without it, only slower.

const { readFileSync, writeFileSync } = require("node:fs");
const path = require("node:path");
const vm = require("node:vm");

const filename = path.join(__dirname, "program.cjs");
const cacheFile = path.join(__dirname, "program.cache");
// esbuild writes ASCII only.
const source = `(function (exports, require, module, __filename, __dirname) {${readFileSync(filename, "latin1")}\n})`;
const script = new vm.Script(source, { filename, cachedData: readCache() });

// setup/package.sh makes the cache so: after a command has run, with the functions that it needed.
const wanted = process.env.SASORI_PACKAGING_CACHE;
delete process.env.SASORI_PACKAGING_CACHE;
if (wanted !== undefined) process.on("exit", () => writeFileSync(wanted, script.createCachedData()));

script.runInThisContext()(exports, require, module, filename, __dirname);

function readCache() {
  try {
    return readFileSync(cacheFile);
  } catch {
    return undefined; // Another processor's package has none.
  }
}
