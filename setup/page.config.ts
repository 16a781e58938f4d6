// How `npm run build` makes dist/page of src/page: three files under names that src/http/page-files.ts knows, and an icon.
import { basename } from "node:path";
import { fileURLToPath } from "node:url";
import { defineConfig } from "vite";

const place = (path: string) => fileURLToPath(new URL(`../${path}`, import.meta.url));

export default defineConfig({
  root: place("src/page"),
  base: "./",
  logLevel: "warn",
  // The class of a part has the part's name in front: `masters-bar` of masters.module.css.
  css: {
    modules: { generateScopedName: (name, file) => `${basename(file).split(".")[0]}-${name}` },
  },
  esbuild: { jsx: "automatic", jsxImportSource: "preact" },
  build: {
    outDir: place("dist/page"),
    emptyOutDir: true,
    target: "es2022",
    modulePreload: { polyfill: false },
    rollupOptions: {
      output: { entryFileNames: "page.js", assetFileNames: "page[extname]" },
    },
  },
});
