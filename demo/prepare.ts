// What must be there before the demo's containers start for the first time: a map, because HAProxy does not start
// without one, and an API token that nobody else has. What is there already is never touched.

import { randomBytes } from "node:crypto";
import { stat } from "node:fs/promises";
import { Command, Option } from "commander";
import { reason } from "../src/errors.js";
import { replaceFile } from "../src/target/atomic-file.js";

/** For sasori only; HAProxy asks nothing that needs it. */
const TOKEN_MODE = 0o600;

async function putIfMissing(file: string, text: string, mode?: number): Promise<void> {
  if (await stat(file).catch(() => undefined)) return;
  await replaceFile(file, [text], mode);
  console.log(`made ${file}`);
}

const { mapFile, tokenFile } = new Command("prepare")
  .description("Makes an empty map and an API token where there is none.")
  .addOption(new Option("--map-file <file>", "the map").env("SASORI_MAP_FILE").makeOptionMandatory())
  .addOption(
    new Option("--token-file <file>", "the token").env("SASORI_API_TOKEN_FILE").makeOptionMandatory(),
  )
  .parse()
  .opts<{ mapFile: string; tokenFile: string }>();

try {
  await putIfMissing(mapFile, "");
  await putIfMissing(tokenFile, `${randomBytes(32).toString("hex")}\n`, TOKEN_MODE);
} catch (error) {
  console.error(`prepare: ${reason(error)}`);
  process.exitCode = 1;
}
