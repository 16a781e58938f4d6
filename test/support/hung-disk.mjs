// Loaded into a sasori of its own (`node --import`), for which a named pipe then is a file whose file system hangs: whoever
// reads it waits for a writer that never comes, and a thread of Node with him, as with a real one.

import fs from "node:fs/promises";
import { syncBuiltinESMExports } from "node:module";

const { stat, open } = fs;

fs.stat = async (...args) => {
  const found = await stat(...args);
  return found.isFIFO() ? Object.assign(found, { isFile: () => true }) : found;
};
// Without O_NONBLOCK, by which a pipe that nobody writes to would be empty.
fs.open = async (file, flags, mode) =>
  open(file, (await stat(file).catch(() => undefined))?.isFIFO() ? "r" : flags, mode);
syncBuiltinESMExports();
