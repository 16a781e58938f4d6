// The page at `GET /`: four files of dist/page, read once at start.
// Promises: they go out with a Content-Security-Policy under which nothing but these files and sasori's own API can be
// loaded or asked; a browser checks them each time, and gets 304 if they are unchanged. A path from a request never
// reaches the file system.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { gzipSync } from "node:zlib";
import type { FastifyInstance } from "fastify";

const FILES = [
  { route: "/", file: "index.html", type: "text/html; charset=utf-8" },
  { route: "/page.js", file: "page.js", type: "text/javascript; charset=utf-8" },
  { route: "/page.css", file: "page.css", type: "text/css; charset=utf-8" },
  { route: "/icon.svg", file: "icon.svg", type: "image/svg+xml" },
];

const HEADERS = {
  "content-security-policy":
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; " +
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
  "x-content-type-options": "nosniff",
  "x-frame-options": "DENY",
  "referrer-policy": "no-referrer",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
  // The browser keeps it, but asks each time whether it has changed: a newer sasori may have another page.
  "cache-control": "no-cache",
  vary: "accept-encoding",
};

/** Seen from dist/src/http, from src/http (in tests), and from the bundle of a deb or rpm. */
const FOLDERS = ["../../page/", "../../dist/page/", "./page/"].map((path) => new URL(path, import.meta.url));

/** Adds the routes. Throws when the page has not been built (`npm run build` does). */
export function servePage(api: FastifyInstance): void {
  for (const { route, file, type } of FILES) {
    const plain = readPageFile(file);
    const packed = gzipSync(plain, { level: 9 });
    const etag = `"${createHash("sha256").update(plain).digest("base64url").slice(0, 22)}"`;
    api.get(route, { schema: { hide: true } as object }, (request, reply) => {
      reply.headers({ ...HEADERS, etag }).type(type);
      // A proxy that recompresses the answer marks the tag as weak.
      const known = request.headers["if-none-match"]?.split(",").map((tag) => tag.trim().replace(/^W\//, ""));
      if (known?.includes(etag)) return reply.code(304).send();
      if (!/\bgzip\b/.test(request.headers["accept-encoding"] ?? "")) return reply.send(plain);
      return reply.header("content-encoding", "gzip").send(packed);
    });
  }
}

function readPageFile(file: string): Buffer {
  const tried = FOLDERS.map((folder) => new URL(file, folder));
  for (const url of tried) {
    try {
      return readFileSync(url);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    }
  }
  throw new Error(`${tried.map(({ pathname }) => pathname).join(" and ")} are missing: run npm run build`);
}
