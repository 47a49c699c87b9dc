// Builds the pages into the Python package. The result is committed, so that users need no Node;
// build.json records what it was built from, and tests/serve/test_ui_fresh.py compares that with
// the sources (in Python), so that a forgotten build cannot be committed unseen.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, relative, sep } from "node:path";
import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig, type Plugin } from "vite";

const ROOT = import.meta.dirname;
const STATIC = join(ROOT, "../src/modelworks/serve/studio/static");
const SOURCES = ["index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts", "src"];

function filesBelow(path: string): string[] {
  try {
    return readdirSync(path).flatMap((name) => filesBelow(join(path, name)));
  } catch {
    return [path];
  }
}

/** SHA-256 of "path, digest of the text with LF line ends" lines, sorted by path. */
function digest(root: string, paths: string[]): string {
  const total = createHash("sha256");
  const names = paths.flatMap((path) => filesBelow(join(root, path))).map((path) => relative(root, path).split(sep).join("/"));
  for (const name of names.sort()) {
    const text = readFileSync(join(root, name), "utf8").replaceAll("\r\n", "\n");
    total.update(`${name} ${createHash("sha256").update(text).digest("hex")}\n`);
  }
  return total.digest("hex");
}

function recordSources(): Plugin {
  return {
    name: "record-sources",
    apply: "build",
    closeBundle() {
      const built = filesBelow(STATIC).map((path) => relative(STATIC, path)).filter((name) => name !== "build.json");
      const record = { command: "cd ui && npm ci && npm run build", sources: digest(ROOT, SOURCES), built: digest(STATIC, built) };
      writeFileSync(join(STATIC, "build.json"), JSON.stringify(record, null, 2) + "\n");
    },
  };
}

export default defineConfig({
  base: "./",
  plugins: [svelte({ configFile: false }), recordSources()],
  build: {
    outDir: STATIC,
    emptyOutDir: true,
    // light-dark() and dynamic viewport units, unpolyfilled: browsers of spring 2024 and later
    target: ["chrome123", "edge123", "firefox121", "safari17.5"],
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0,
    cssCodeSplit: false,
    reportCompressedSize: true,
  },
  // `npm run dev` talks to a `modelworks serve` beside it
  server: { proxy: { "/v1": "http://127.0.0.1:8000" } },
});
