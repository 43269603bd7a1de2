/**
 * The page's own step beside onnxruntime-web's, for the same policy: time of a step in Node.js, and size.
 *
 *     python -m agents.export run=pretrained/hopper to=demo/measure/hopper.onnx
 *     npm --prefix demo install --no-save onnxruntime-web
 *     npm --prefix demo run measure
 *
 * Both act 2,000 times in turn on one thread; medians.
 */

import { readFileSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, resolve } from "node:path";
import { gzipSync } from "node:zlib";
import { loadPolicy } from "../test/recordings";

const here = import.meta.dirname;
const STEPS = 2000;

interface Ort {
  env: { wasm: { numThreads: number } };
  Tensor: new (type: string, data: unknown, dims: number[]) => unknown;
  InferenceSession: {
    create(model: Uint8Array): Promise<{ run(feeds: Record<string, unknown>): Promise<Record<string, unknown>> }>;
  };
}

const packages = createRequire(resolve(here, "../package.json"));
const folder = dirname(packages.resolve("onnxruntime-web"));
const ort = (await import(/* @vite-ignore */ resolve(folder, "ort.wasm.min.mjs"))) as Ort;
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(readFileSync(resolve(here, "hopper.onnx")));
const policy = loadPolicy("hopper");
policy.begin(3000);

const observation = new Float32Array(11).fill(0.1);
const tensor = (data: unknown, dims: number[], type = "float32") => new ort.Tensor(type, data, dims);
let state: Record<string, unknown> = {
  state_0: tensor(new Float32Array(128), [1, 128]),
  state_1: tensor(new Float32Array(128), [1, 128]),
  state_2: tensor(new Float32Array(128), [1, 128]),
  state_3: tensor(new Float32Array(3), [1, 3]),
  state_4: tensor(new Float32Array(1), [1]),
  state_5: tensor(new BigInt64Array(1), [1], "int64"),
};

async function onnx(first: boolean): Promise<void> {
  const outputs = await session.run({
    observation: tensor(observation, [1, 11]),
    reward: tensor(new Float32Array([1]), [1]),
    is_first: tensor(new Uint8Array([first ? 1 : 0]), [1], "bool"),
    ...state,
  });
  state = Object.fromEntries([0, 1, 2, 3, 4, 5].map((i) => [`state_${i}`, outputs[`next_state_${i}`]]));
}

const times: [number[], number[]] = [[], []];
for (let step = 0; step < STEPS; step++) {
  let begin = performance.now();
  policy.act(observation, 1);
  times[0].push(performance.now() - begin);
  begin = performance.now();
  await onnx(step === 0);
  times[1].push(performance.now() - begin);
}
const median = (values: number[]) => [...values].sort((a, b) => a - b)[values.length / 2];
const wasm = readFileSync(resolve(folder, "ort-wasm-simd-threaded.wasm"));
const script = statSync(resolve(folder, "ort.wasm.min.mjs")).size;
const source = statSync(resolve(here, "../src/policy.ts")).size;
console.log(`own step: ${(1000 * median(times[0])).toFixed(0)} us; ${source} bytes of TypeScript`);
console.log(
  `onnxruntime-web: ${(1000 * median(times[1])).toFixed(0)} us; ${wasm.length} bytes of WebAssembly ` +
    `(${gzipSync(wasm, { level: 9 }).length} compressed), ${script} of JavaScript`,
);
