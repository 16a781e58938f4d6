// The version of this sasori, as its package says.

import { existsSync, readFileSync } from "node:fs";

// It is beside the bundle of a deb or rpm, one folder above the sources, or two above the compiled files.
const places = ["./package.json", "../package.json", "../../package.json"].map(
  (path) => new URL(path, import.meta.url),
);
const manifest = places.find((place) => existsSync(place));

export const VERSION =
  manifest === undefined
    ? "unknown"
    : (JSON.parse(readFileSync(manifest, "utf8")) as { version: string }).version;
