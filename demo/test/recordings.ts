/** What `python demo/record.py` wrote, the policies and the models, read from the disk. */

import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { Policy, readTensors, type PolicyConfig } from "../src/policy";

const demo = resolve(import.meta.dirname, "..");

export interface Recording {
  environment: string;
  mujoco: string;
  episodes: {
    rollout: string;
    steps: number;
    observations: string;
    rewards: string;
    actions: string;
    physics?: { steps: number; start: string; actions: string; observations: string; rewards: string };
  }[];
}

export function recording(policy: string): Recording {
  return JSON.parse(readFileSync(resolve(demo, `test/recorded/${policy}.json`), "utf8")) as Recording;
}

export function float32(text: string): Float32Array {
  return new Float32Array(bytes(text));
}

export function float64(text: string): Float64Array {
  return new Float64Array(bytes(text));
}

function bytes(text: string): ArrayBuffer {
  const buffer = Buffer.from(text, "base64");
  return buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength);
}

export function loadPolicy(name: string): Policy {
  const folder = resolve(demo, "../pretrained", name);
  const config = JSON.parse(readFileSync(resolve(folder, "config.json"), "utf8")) as PolicyConfig;
  const file = readFileSync(resolve(folder, "model.safetensors"));
  const weights = file.buffer.slice(file.byteOffset, file.byteOffset + file.byteLength);
  return new Policy(config, readTensors(weights));
}

export function loadModel(file: string): string {
  return readFileSync(resolve(demo, "public/robots", file), "utf8");
}
