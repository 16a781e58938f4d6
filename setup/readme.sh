#!/bin/sh
# Puts the table of variables, as src/config.ts has it, between its two marks in README.md.
set -eu
cd "$(dirname "$0")/.."
setup/build.sh
node --input-type=module -e '
  import { readFileSync, writeFileSync } from "node:fs";
  import { variablesTable } from "./dist/src/config.js";
  const readme = readFileSync("README.md", "utf8");
  const marked = /(<!-- variables -->\n)[\s\S]*?(<!-- \/variables -->)/;
  writeFileSync("README.md", readme.replace(marked, (_, open, close) => `${open}${variablesTable()}\n${close}`));
'
