// The version of this sasori, as its package says.

import { existsSync, readFileSync } from "node:fs";

// Beside the bundle of a deb or rpm; one folder up from the sources, two from what is built of them.
const places = ["./package.json", "../package.json", "../../package.json"].map(
  (path) => new URL(path, import.meta.url),
);
const manifest = places.find((place) => existsSync(place));

export const VERSION =
  manifest === undefined
    ? "unknown"
    : (JSON.parse(readFileSync(manifest, "utf8")) as { version: string }).version;
