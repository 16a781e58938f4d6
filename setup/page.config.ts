// How `npm run build` makes dist/page of src/page: three files under names that src/http/page-files.ts knows, and an icon.
import { fileURLToPath } from "node:url";
import { defineConfig } from "vite";

const place = (path: string) => fileURLToPath(new URL(`../${path}`, import.meta.url));

export default defineConfig({
  root: place("src/page"),
  base: "./",
  logLevel: "warn",
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
