"""Behaviour policies: the stochastic actors of SAC and TQC."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.errors import UserError
from common.files import write_file
from envs.behaviors import kernel

LAYERS = ("hidden_0", "hidden_1", "mean", "log_std")


@dataclass(frozen=True, eq=False)
class Behavior:
    """A Gaussian policy squashed by tanh, with two hidden layers.

    ``h = relu(W1 relu(W0 s + b0) + b1)``, ``action = tanh(mean(h) + exp(log_std(h)) * noise)``
    (Haarnoja et al., arXiv 1801.01290, appendix C), scaled to bounds of -1 and 1.

    Attributes:
        weights: For each of LAYERS, `NAME.weight` (out, in) and `NAME.bias` (out,), float32.
        metadata: Of the file: environment id, training steps, algorithm.
    """

    weights: dict[str, np.ndarray]
    metadata: dict[str, str]

    @cached_property
    def layers(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """(weight (in, out), bias (out,)) of each of LAYERS, for the compiled functions."""
        return tuple(
            (np.ascontiguousarray(self.weights[f"{n}.weight"].T), self.weights[f"{n}.bias"])
            for n in LAYERS
        )

    def act(self, observations: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        """Returns the actions (n, action_dim) float32 for observations (n, observation_dim).

        `noise` is (n, action_dim), standard normal numbers, or None for the mean action.
        """
        actions = np.zeros((len(observations), len(self.weights["mean.bias"])), np.float32)
        noise = np.zeros_like(actions) if noise is None else noise.astype(np.float32)
        kernel.act(self.layers, observations.astype(np.float32), noise, actions)
        return actions

    def save(self, path: Path) -> None:
        """Writes the weights as float16 safetensors, which keeps the file at about 150 kB."""
        half = {name: np.ascontiguousarray(w, np.float16) for name, w in self.weights.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, save(half, metadata=self.metadata))


def load_behavior(path: Path) -> Behavior:
    """Reads a behaviour policy.

    Raises:
        UserError: The file is missing, is no safetensors file or lacks a layer.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            weights = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise UserError(f"{path}: no such behaviour policy") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {error}") from None
    expected = {f"{layer}.{kind}" for layer in LAYERS for kind in ("weight", "bias")}
    if set(weights) != expected:
        raise UserError(
            f"{path} holds {sorted(weights)}, not {sorted(expected)}, the layers of a behaviour "
            "policy; give a file that envs.behaviors.train wrote"
        )
    behavior = Behavior(weights, metadata)
    inputs = [weight.shape[:1] for weight, _ in behavior.layers[1:]]
    outputs = [behavior.layers[i][1].shape for i in (0, 1, 1)]
    if inputs != outputs or any(w.shape[1:] != b.shape for w, b in behavior.layers):
        raise UserError(f"{path} holds layers whose shapes do not fit together")
    return behavior
