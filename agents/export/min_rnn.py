"""Acts with an exported minGRU or minLSTM policy. This file and its .npz need NumPy alone.

policy = Policy("policy.npz", target_return=3000)
policy.reset()                            # or reset(rows), for a batch
action = policy.act(observation)          # from then on: policy.act(observation, reward)
"""

import numpy as np


class Policy:
    """Maps observations to actions; keeps its state, and the return still to be collected."""

    def __init__(self, path, target_return=None, held=None):
        """Loads the policy; it asks for its own return by default, and if held at every step."""
        with np.load(path, allow_pickle=False) as file:
            self.weights = {name: file[name] for name in file.files}
        own, w = target_return is None, self.weights
        self.target = np.asarray(w["target_return"] if own else target_return, np.float32)
        self.counts = w["sees_returns"] and not (own and w["held"] if held is None else held)
        self.context_length = int(self.weights["context_length"])  # 0: one state, carried
        self.reset()

    def reset(self, rows=None):
        """Begins an episode: in one environment, or in each of the rows of a batch."""
        self.rows, batch, w = rows, rows or 1, self.weights
        shape = (2 if self.context_length else 1, w["layers"], batch, w["channels"])
        self.states = np.zeros(shape, np.float32)
        self.action = np.zeros((batch, len(w["head.bias"])), np.float32)
        self.return_to_go = np.zeros(batch, np.float32)
        self.time = np.full(batch, -1)
        self.first = np.ones(batch, bool)

    def act(self, observation, reward=None, is_first=None):
        """Returns the action, (action_dim,) or (rows, action_dim); is_first marks new episodes."""
        batch, observed = len(self.time), len(self.weights["observation_mean"])
        observation = np.asarray(observation, np.float32)
        if observation.shape != ((observed,) if self.rows is None else (batch, observed)):
            raise ValueError(f"observation has the shape {observation.shape}, for {self.rows} rows")
        first = self.first if is_first is None else self.first | np.asarray(is_first, bool)
        if reward is None and self.counts and not first.all():
            raise ValueError("give the reward of the previous action, or call reset()")
        reward = np.asarray(reward if self.counts and reward is not None else 0, np.float32)
        self.return_to_go = np.where(first, self.target, self.return_to_go - reward)
        self.time, self.first = np.where(first, 0, self.time + 1), np.zeros(batch, bool)
        ages, context = [self.time], self.context_length  # rolling: two, half a context apart
        if context:
            late = np.where(self.time < context // 2, self.time, self.time - context // 2)
            ages = [self.time % context, late % context]
        x = observation.reshape(batch, observed)
        actions = [self.step(x, s, a == 0) for s, a in zip(self.states, ages, strict=True)]
        self.action = np.where((ages[0] >= ages[-1])[:, None], actions[0], actions[-1])
        action = np.clip(self.action, self.weights["action_low"], self.weights["action_high"])
        return action if self.rows is not None else action[0]

    def step(self, observation, states, resets):
        """Runs the network for one step, (batch, ...); changes states (layers, batch, channels)."""
        w, resets = self.weights, resets[:, None]
        returns = (self.return_to_go / w["return_scale"])[:, None] * w["sees_returns"]
        observation = (observation - w["observation_mean"]) / w["observation_std"]
        observation = np.where(w["hidden"], np.float32(0), observation)
        action = np.where(resets, np.float32(0), self.action) * w["sees_actions"]
        x = self.linear(np.concatenate([returns, observation, action], 1), "embedding")
        if (table := w.get("timestep_embedding.weight")) is not None:
            x = x + table[np.minimum(self.time, len(table) - 1)]
        x = self.norm(x, "token_norm.0")
        for layer, state in enumerate(states):
            block = f"backbone.blocks.{layer}."
            state[:] = np.where(resets, w.get(block + "start.0", np.float32(0)), state)
            gates = self.linear(self.norm(x, block + "mixer_norm"), block + "mixer.projection")
            *gate, candidate = np.split(gates, gates.shape[1] // state.shape[1], axis=1)
            # minLSTM's input gate i / (f + i) is the sigmoid of log i - log f.
            z = gate[0] if len(gate) == 1 else np.logaddexp(0, -gate[0]) - np.logaddexp(0, -gate[1])
            positive = np.where(candidate >= 0, candidate + np.float32(0.5), sigmoid(candidate))
            state += sigmoid(z) * (positive - state)
            x = x + self.linear(state, block + "mixer.output")
            hidden = self.linear(self.norm(x, block + "mlp_norm"), block + "mlp.0")
            x = x + self.linear(np.maximum(hidden, 0), block + "mlp.2")
        x = self.norm(x, "backbone.norm")
        x = x + returns @ w.get("head_return_embedding.weight", np.zeros((1, 1), np.float32)).T
        low, high = w["action_low"], w["action_high"]
        return (high + low) / 2 + np.tanh(self.linear(x, "head")) * (high - low) / 2

    def linear(self, x, name):
        """Applies a Linear; returns x where the network has none of this name."""
        w = self.weights
        return x @ w[name + ".weight"].T + w[name + ".bias"] if name + ".weight" in w else x

    def norm(self, x, name):
        """Applies a LayerNorm; returns x where the network has none of this name."""
        if name + ".weight" not in self.weights:
            return x
        x = x - x.mean(1, keepdims=True)
        x = x / np.sqrt((x * x).mean(1, keepdims=True) + self.weights["epsilon"])
        return x * self.weights[name + ".weight"] + self.weights[name + ".bias"]


def sigmoid(x):
    """1 / (1 + exp(-x)), without overflow."""
    return (np.tanh(x / 2) + 1) / 2
