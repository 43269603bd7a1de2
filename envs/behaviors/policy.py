"""Behaviour policies: the stochastic actors of SAC and TQC, in NumPy."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from common.errors import UserError
from common.files import write_file

LAYERS = ("hidden_0", "hidden_1", "mean", "log_std")

# Bounds of the log standard deviation in SAC (Haarnoja et al., arXiv 1801.01290; the values are
# those of the authors' code, and of stable-baselines3).
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0

# Rows in one matrix product. BLAS starts no threads for so few, which would cost more time than
# they save, and an action does not depend on the other rows of its batch.
_ROWS = 4


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

    def act(self, observations: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        """Returns the actions (n, action_dim) float32 for observations (n, observation_dim).

        `noise` is (n, action_dim), standard normal numbers, or None for the mean action.
        """
        count = len(observations)
        groups = -(-count // _ROWS)
        padded = np.zeros((groups * _ROWS, observations.shape[1]), np.float32)
        padded[:count] = observations
        hidden = padded.reshape(groups, _ROWS, -1)
        for layer in ("hidden_0", "hidden_1"):
            hidden = np.maximum(self._linear(layer, hidden), 0.0)
        mean = self._linear("mean", hidden).reshape(groups * _ROWS, -1)[:count]
        if noise is None:
            return np.tanh(mean)
        log_std = self._linear("log_std", hidden).reshape(groups * _ROWS, -1)[:count]
        std = np.exp(np.clip(log_std, LOG_STD_MIN, LOG_STD_MAX))
        return np.tanh(mean + std * noise.astype(np.float32))

    def _linear(self, layer: str, x: np.ndarray) -> np.ndarray:
        return x @ self.weights[f"{layer}.weight"].T + self.weights[f"{layer}.bias"]

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
    return Behavior(weights, metadata)
