/**
 * The policy, one step at a time: a port of agents/export/min_rnn.py for one environment.
 *
 * The minGRU of Feng et al. (arXiv 2410.01201): h = h + sigmoid(z) * (g(c) - h), where z and c are
 * functions of the input alone and g keeps the candidate positive.
 */

export interface PolicyConfig {
  observation_dim: number;
  action_dim: number;
  policy: {
    tokens: number;
    previous_action: boolean;
    timestep_embedding: boolean;
    token_norm: boolean;
    return_before_head: boolean;
    return_scale: number;
    return_to_go: boolean;
    hidden: number[] | null;
  };
  backbone: {
    name: string;
    d_model: number;
    n_layer: number;
    mlp_ratio: number;
    convolution: number;
    learnable_initial_state: boolean;
    expansion: number;
  };
  evaluation: { context_length: number; target_returns: number[] };
}

export type Tensors = Record<string, Float32Array>;

/** Reads a safetensors file: the length of a JSON header, the header, and the numbers. */
export function readTensors(file: ArrayBuffer): Tensors {
  const length = Number(new DataView(file).getBigUint64(0, true));
  const text = new TextDecoder().decode(new Uint8Array(file, 8, length));
  const header = JSON.parse(text) as Record<string, { dtype: string; data_offsets: number[] }>;
  const tensors: Tensors = {};
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    if (entry.dtype !== "F32") throw new Error(`${name} is ${entry.dtype}; expected F32.`);
    const [begin, end] = entry.data_offsets;
    tensors[name] = new Float32Array(file.slice(8 + length + begin, 8 + length + end));
  }
  return tensors;
}

/** What a layer remembers, and the action before: all that the policy carries. */
interface Memory {
  layers: Float32Array[];
  action: Float32Array;
}

export class Policy {
  /** The return still to be collected; the page may set it while the robot runs. */
  returnToGo = 0;
  /** Two memories, each forgotten every `contextLength` steps, instead of one that is carried. */
  rolling = false;
  readonly hidden: Set<number>;
  private readonly velocities: number;
  private memories: Memory[] = [];
  private acting = 0;
  private age = 0;
  hideVelocities = false;

  constructor(
    readonly config: PolicyConfig,
    private readonly tensors: Tensors,
  ) {
    const { policy, backbone } = config;
    const known =
      backbone.name === "min_gru" && backbone.convolution === 0 && backbone.expansion === 1;
    const plain =
      policy.tokens === 1 && policy.return_to_go && policy.previous_action && !policy.token_norm;
    if (!known || !plain || policy.timestep_embedding || policy.return_before_head) {
      throw new Error("this page runs minGRU policies with the default inputs only.");
    }
    this.hidden = new Set(policy.hidden ?? []);
    // Positions (but the first) come before velocities: there is one velocity more.
    this.velocities = (config.observation_dim - 1) / 2;
    this.forget();
  }

  /** Numbers in the network. */
  get parameters(): number {
    const statistics = /^(action|observation|target)_/;
    const counted = Object.entries(this.tensors).filter(([name]) => !statistics.test(name));
    return counted.reduce((sum, [, values]) => sum + values.length, 0);
  }

  /** The state of the layers that acted last. */
  get layers(): Float32Array[] {
    return this.memories[this.acting].layers;
  }

  /** Begins an episode that is asked for this return. */
  begin(target: number): void {
    this.returnToGo = target;
    this.forget();
  }

  /** Zeroes the state, and goes on. */
  forget(): void {
    const { d_model, n_layer } = this.config.backbone;
    this.memories = [0, 1].map(() => ({
      layers: Array.from({ length: n_layer }, () => new Float32Array(d_model)),
      action: new Float32Array(this.config.action_dim),
    }));
    this.acting = 0;
    this.age = 0;
  }

  /** Returns the action for an observation; `reward` is what the action before earned. */
  act(observation: ArrayLike<number>, reward: number): Float32Array {
    this.returnToGo = Math.fround(this.returnToGo - reward);
    const context = this.config.evaluation.context_length;
    const late = this.age < context / 2 ? this.age : this.age - context / 2;
    const ages = this.rolling ? [this.age % context, late % context] : [this.age];
    this.acting = ages.length === 1 || ages[0] >= ages[1] ? 0 : 1;
    const actions = ages.map((age, which) => {
      const memory = this.memories[which];
      if (age === 0) {
        for (const layer of memory.layers) layer.fill(0);
        memory.action.fill(0);
      }
      return this.step(observation, memory);
    });
    for (const memory of this.memories) memory.action.set(actions[this.acting]);
    this.age += 1;
    return actions[this.acting];
  }

  /** Runs the network for one step; changes the layers of the memory. */
  private step(observation: ArrayLike<number>, memory: Memory): Float32Array {
    const t = this.tensors;
    const { observation_dim, action_dim, backbone, policy } = this.config;
    const input = new Float32Array(1 + observation_dim + action_dim);
    input[0] = this.returnToGo / policy.return_scale;
    for (let i = 0; i < observation_dim; i++) {
      const unseen = this.hidden.has(i) || (this.hideVelocities && i >= this.velocities);
      input[1 + i] = unseen
        ? 0
        : (observation[i] - t["observation_mean"][i]) / t["observation_std"][i];
    }
    input.set(memory.action, 1 + observation_dim);
    let x = this.linear(input, "embedding");
    for (let layer = 0; layer < backbone.n_layer; layer++) {
      const block = `backbone.blocks.${layer}.`;
      const gates = this.linear(this.norm(x, `${block}mixer_norm`), `${block}mixer.projection`);
      const state = memory.layers[layer];
      for (let i = 0; i < state.length; i++) {
        const candidate = gates[state.length + i];
        const positive = candidate >= 0 ? candidate + 0.5 : sigmoid(candidate);
        state[i] += sigmoid(gates[i]) * (positive - state[i]);
      }
      x = add(x, this.linear(state, `${block}mixer.output`));
      const hidden = this.linear(this.norm(x, `${block}mlp_norm`), `${block}mlp.0`);
      for (let i = 0; i < hidden.length; i++) hidden[i] = Math.max(hidden[i], 0);
      x = add(x, this.linear(hidden, `${block}mlp.2`));
    }
    const head = this.linear(this.norm(x, "backbone.norm"), "head");
    return head.map((value, i) => {
      const [low, high] = [t["action_low"][i], t["action_high"][i]];
      return (high + low) / 2 + (Math.tanh(value) * (high - low)) / 2;
    });
  }

  /** Applies a Linear; returns x where the network has none of this name. */
  private linear(x: Float32Array, name: string): Float32Array {
    const [weight, bias] = [this.tensors[`${name}.weight`], this.tensors[`${name}.bias`]];
    if (!(`${name}.weight` in this.tensors)) return x;
    const y = new Float32Array(bias);
    for (let row = 0, at = 0; row < y.length; row++) {
      let sum = 0;
      for (let i = 0; i < x.length; i++) sum += weight[at++] * x[i];
      y[row] += sum;
    }
    return y;
  }

  /** Applies a LayerNorm. */
  private norm(x: Float32Array, name: string): Float32Array {
    const [weight, bias] = [this.tensors[`${name}.weight`], this.tensors[`${name}.bias`]];
    let mean = 0;
    for (const value of x) mean += value / x.length;
    let variance = 0;
    for (const value of x) variance += (value - mean) ** 2 / x.length;
    const scale = 1 / Math.sqrt(variance + 1e-5);
    return x.map((value, i) => (value - mean) * scale * weight[i] + bias[i]);
  }
}

function sigmoid(x: number): number {
  return 1 / (1 + Math.exp(-x));
}

function add(x: Float32Array, y: Float32Array): Float32Array {
  return x.map((value, i) => value + y[i]);
}
