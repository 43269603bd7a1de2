/** Fetches what the page needs, with progress; what goes wrong becomes one sentence. */

import loadMujoco, { type MainModule } from "@mujoco/mujoco";
import { Policy, readTensors, type PolicyConfig } from "./policy";

/** Something that a visitor can be told in one sentence. */
export class PageError extends Error {}

export type Progress = (bytes: number) => void;

async function fetched(path: string, progress: Progress): Promise<ArrayBuffer> {
  let response: Response;
  try {
    response = await fetch(path);
  } catch {
    throw new PageError(`${path} could not be fetched: the server does not answer. Reload the page.`);
  }
  if (!response.ok || response.body === null) {
    throw new PageError(
      `${path} is missing (the server says ${response.status}): build the page again with npm run build.`,
    );
  }
  const chunks: Uint8Array[] = [];
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    chunks.push(value);
    progress(value.length);
  }
  return await new Blob(chunks as BlobPart[]).arrayBuffer();
}

/** Loads the physics. */
export async function loadPhysics(progress: Progress): Promise<MainModule> {
  if (typeof WebAssembly === "undefined") {
    throw new PageError("This browser has no WebAssembly, which the physics needs: try a newer one.");
  }
  const packed = await fetched("./generated/mujoco.wasm.gz", progress);
  let wasmBinary: ArrayBuffer;
  if (new Uint8Array(packed, 0, 4).every((byte, i) => byte === WASM[i])) {
    wasmBinary = packed; // the server has said that it is compressed, and the browser has unpacked it
  } else {
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    wasmBinary = await new Response(stream).arrayBuffer();
  }
  return await loadMujoco({ wasmBinary });
}

const WASM = [0x00, 0x61, 0x73, 0x6d];

/** Loads a policy: the files of a run folder. */
export async function loadPolicy(name: string, progress: Progress): Promise<Policy> {
  const folder = `./generated/${name}`;
  const [config, weights] = await Promise.all([
    fetched(`${folder}/config.json`, progress),
    fetched(`${folder}/model.safetensors`, progress),
  ]);
  const parsed = JSON.parse(new TextDecoder().decode(config)) as PolicyConfig;
  return new Policy(parsed, readTensors(weights));
}

export async function loadModel(file: string, progress: Progress): Promise<string> {
  return new TextDecoder().decode(await fetched(`./robots/${file}`, progress));
}
