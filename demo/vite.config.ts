import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import { gzipSync } from "node:zlib";
import { defineConfig, type Plugin } from "vite";
import { POLICIES } from "./src/robots";

const here = import.meta.dirname;
const mujoco = dirname(createRequire(import.meta.url).resolve("@mujoco/mujoco"));

/**
 * Puts beside the page what it loads: the policies, the very files that `load_actor` reads, and the
 * physics, compressed here because a plain file server would send ten megabytes.
 */
function pageFiles(): Plugin {
  const folder = resolve(here, "public/generated");
  return {
    name: "page-files",
    buildStart() {
      rmSync(folder, { recursive: true, force: true });
      for (const policy of POLICIES) {
        mkdirSync(join(folder, policy), { recursive: true });
        for (const file of ["config.json", "model.safetensors"]) {
          copyFileSync(resolve(here, "../pretrained", policy, file), join(folder, policy, file));
        }
      }
      const physics = readFileSync(join(mujoco, "mujoco.wasm"));
      writeFileSync(join(folder, "mujoco.wasm.gz"), gzipSync(physics, { level: 9 }));
    },
    generateBundle(_, bundle) {
      // The physics as its package would load it: the page gives it the compressed file instead.
      for (const name of Object.keys(bundle)) {
        if (name.endsWith(".wasm")) Reflect.deleteProperty(bundle, name);
      }
    },
  };
}

export default defineConfig({
  base: "./",
  plugins: [pageFiles()],
  build: { target: "es2022", chunkSizeWarningLimit: 2000 },
});
