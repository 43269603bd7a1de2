"""A policy's step on the CPU as one compiled kernel: the same actions, several times sooner.

PyTorch makes a few dozen calls for a step, and while the batch is small each costs more than the
arithmetic in it. The kernel is Numba's (agents/step/kernel.py), so the user's machine needs
no compiler. It serves every batch size: no matrix product of PyTorch's is left.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from agents.backbones.block import Backbone, Block
from agents.backbones.dropout import Dropout
from agents.backbones.min_gru import MinGRU
from agents.backbones.min_lstm import MinLSTM
from agents.backbones.state import State
from agents.policy import PolicyState, ReturnConditionedPolicy

_log = logging.getLogger(__name__)

_GATES = {MinGRU: 2, MinLSTM: 3}  # pre-activations a channel
_MODULES = {ReturnConditionedPolicy, Backbone, Block, *_GATES} | {
    Dropout, nn.Embedding, nn.Identity, nn.LayerNorm, nn.Linear, nn.ModuleList, nn.ReLU,
    nn.ParameterList, nn.Sequential,
}  # fmt: skip
_ROWS_OF_A_THREAD = 16  # fewer are done before another thread is awake
_FLOAT, _INT, _BOOL = np.dtype(np.float32), np.dtype(np.int64), np.dtype(np.bool_)


class NotFusableError(ValueError):
    """A policy that the kernel does not compute; the message says why, in one sentence."""


def fuse(policy: ReturnConditionedPolicy) -> FusedPolicy | ReturnConditionedPolicy:
    """Returns what acts like the policy soonest: its fused form, or where there is none, itself."""
    try:
        return FusedPolicy(policy)
    except (NotFusableError, ImportError) as error:
        _log.info("The policy acts through PyTorch: %s", error)
        return policy


class FusedPolicy:
    """Acts as a `ReturnConditionedPolicy` in evaluation mode does, with the same states.

    Either may take over from the other at any step. The weights are copied here, so build a new
    one after they change. Nothing is kept from call to call: several threads may share one. No
    gradient passes through it.
    """

    def __init__(self, policy: ReturnConditionedPolicy) -> None:
        """Copies the weights, compiles the kernel on its first use, and tries it.

        Args:
            policy: On the CPU, in float32, in evaluation mode, one token a step, minGRU or minLSTM.

        Raises:
            NotFusableError: The policy is none of this kind.
            ImportError: Numba is missing.
        """
        reason = obstacle(policy)
        if reason is not None:
            raise NotFusableError(reason)
        # Here, for Numba may be missing.
        from agents.scan.cpu import thread_pool
        from agents.step.kernel import observe, policy_step
        from agents.step.products import BLOCK

        self.observation_dim = policy.observation_dim
        self.action_dim = policy.action_dim
        self._policy = policy
        self._layers = len(policy.backbone.blocks)
        self._channels = _channels(policy)
        self._kernel, self._block, self._pool = policy_step, BLOCK, thread_pool
        self._observe = observe
        self._constants = _constants(policy)
        with _announced():
            agrees = _agrees(self, policy)
        if not agrees:
            raise NotFusableError("its own steps differ from those of the kernel.")

    def initial_state(
        self, batch_size: int, target_return: float | Tensor | None = None
    ) -> PolicyState:
        """Returns the state of environments that are about to begin an episode."""
        return self._policy.initial_state(batch_size, target_return)

    def act(
        self, observation: Tensor, reward: Tensor, state: PolicyState, is_first: Tensor
    ) -> tuple[Tensor, PolicyState]:
        """Acts as `ReturnConditionedPolicy.act` does.

        Args:
            observation: (batch, observation_dim), float32.
            reward: (batch,), float32, the reward of the action before.
            state: From the step before, of this or of the policy itself, or `initial_state`.
            is_first: (batch,) bool; true on the observation that begins an episode.

        Returns:
            The action (batch, action_dim) and the state to hand back at the next step.

        Raises:
            ValueError: An argument has another shape or dtype.
        """
        first = _array("is_first", is_first, is_first.shape, _BOOL)
        left, time = self._observe(
            _array("reward", reward, first.shape, _FLOAT),
            first,
            _array("state.return_to_go", state.return_to_go, first.shape, _FLOAT),
            _array("state.timestep", state.timestep, first.shape, _INT),
            _array("state.target_return", state.target_return, first.shape, _FLOAT),
        )
        action, backbone = self._answer(
            observation, left, state.action, time, first, state.backbone
        )
        return action, PolicyState(
            backbone, action, torch.from_numpy(left), torch.from_numpy(time), state.target_return
        )

    def step(
        self,
        observation: Tensor,
        return_to_go: Tensor,
        previous_action: Tensor,
        timestep: Tensor,
        resets: Tensor,
        state: State,
    ) -> tuple[Tensor, State]:
        """Answers one step as `ReturnConditionedPolicy.step` does.

        Raises:
            ValueError: An argument has another shape or dtype.
        """
        first = _array("resets", resets, resets.shape, _BOOL)
        left = _array("return_to_go", return_to_go, first.shape, _FLOAT)
        time = _array("timestep", timestep, first.shape, _INT)
        return self._answer(observation, left, previous_action, time, first, state)

    def _answer(
        self,
        observation: Tensor,
        return_to_go: np.ndarray,
        previous_action: Tensor,
        timestep: np.ndarray,
        resets: np.ndarray,
        state: State,
    ) -> tuple[Tensor, State]:
        batch = len(observation)
        if resets.shape != (batch,):
            raise ValueError(f"resets has the shape {resets.shape}; expected ({batch},).")
        backbone = torch.stack(cast("tuple[Tensor, ...]", state))
        shape = (self._layers, batch, self._channels)
        inputs = (
            _array("observation", observation, (batch, self.observation_dim), _FLOAT),
            return_to_go,
            _array("previous_action", previous_action, (batch, self.action_dim), _FLOAT),
            timestep,
            resets,
            _array("state", backbone, shape, _FLOAT),
        )
        # Made anew at each step: the caller may keep what it is given.
        action, states = np.empty((batch, self.action_dim), _FLOAT), np.empty(shape, _FLOAT)
        self._share(batch, (*inputs, *self._constants, action, states))
        return torch.from_numpy(action), torch.from_numpy(states).unbind(0)

    def _share(self, batch: int, arguments: tuple[Any, ...]) -> None:
        """Computes the step; whole blocks of rows, the same bits, on each of PyTorch's threads."""
        threads = max(1, min(torch.get_num_threads(), batch // _ROWS_OF_A_THREAD))
        rows = max(1, -(-batch // (threads * self._block))) * self._block
        helpers = [
            self._pool(threads - 1).submit(
                partial(self._kernel, *arguments, b, min(b + rows, batch))
            )
            for b in range(rows, batch, rows)
        ]
        self._kernel(*arguments, 0, min(rows, batch))
        for helper in helpers:
            helper.result()


def _array(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The tensor as a contiguous array; the kernel itself checks no bounds."""
    array = tensor.numpy(force=True)
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(
            f"{name} is {array.dtype} of shape {array.shape}; expected {dtype} of shape {shape}."
        )
    return np.ascontiguousarray(array)


def obstacle(policy: nn.Module) -> str | None:
    """Says in one sentence why a policy cannot be fused; None where it can.

    Judged by the modules and tensors that are there, not by the configuration: an option that
    adds, drops or reshapes any of them is an obstacle until the kernel learns it.
    """
    if type(policy) is not ReturnConditionedPolicy:
        return f"it is a {type(policy).__name__}, not a ReturnConditionedPolicy."
    if policy.config.tokens != 1:
        return f"it has {policy.config.tokens} tokens a step; the kernel knows one."
    mixers = {type(block.mixer) for block in policy.backbone.blocks}
    if len(mixers) != 1 or not mixers <= _GATES.keys():
        names = ", ".join(sorted(mixer.__name__ for mixer in mixers))
        return f"its mixers are {names or 'none'}; the kernel knows MinGRU or MinLSTM throughout."
    for name, module in policy.named_modules():
        if type(module) not in _MODULES:
            return (
                f"its module {name} is a {type(module).__name__}, which the kernel does not know."
            )
        if module.training:
            return "it is in training mode; call eval() first."
        if module._forward_hooks or module._forward_pre_hooks:
            return f"its {name or 'forward'} has hooks, which the kernel would not call."
    if len({norm.eps for norm in policy.modules() if isinstance(norm, nn.LayerNorm)}) > 1:
        return "its layer norms differ in eps."
    tensors = _tensors(policy)
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            return f"its {name} is {tensor.dtype} on {tensor.device}; the kernel is float32 on CPU."
    found = {(name, tuple(tensor.shape)) for name, tensor in tensors.items()}
    for name, shape in sorted(found ^ _layout(policy).items()):
        return f"its {name} (shape {shape}) is unknown to the kernel, or missing for it."
    return None


def _tensors(policy: nn.Module) -> dict[str, Tensor]:
    return {**dict(policy.named_parameters()), **dict(policy.named_buffers())}


def _channels(policy: ReturnConditionedPolicy) -> int:
    """Channels of the state of each layer."""
    mixer: Any = cast("Any", policy.backbone.blocks[0]).mixer
    return mixer.projection.out_features // _GATES[type(mixer)]


def _layout(policy: ReturnConditionedPolicy) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors of a policy that the kernel computes."""
    observed, acted, d = policy.observation_dim, policy.action_dim, policy.head.in_features
    first: Any = policy.backbone.blocks[0]
    width, channels = first.mlp[0].out_features, _channels(policy)
    linears = {
        "mixer.projection": (_GATES[type(first.mixer)] * channels, d),
        "mlp.0": (width, d),
        "mlp.2": (d, width),
    }
    if channels != d:
        linears["mixer.output"] = (d, channels)
    shapes: dict[str, tuple[int, ...]] = {
        "observation_mean": (observed,),
        "observation_std": (observed,),
        "action_low": (acted,),
        "action_high": (acted,),
        "target_return": (),
        "embedding.weight": (d, 1 + observed + acted),
        "embedding.bias": (d,),
        "backbone.norm.weight": (d,),
        "backbone.norm.bias": (d,),
        "head.weight": (acted, d),
        "head.bias": (acted,),
    }
    if policy.config.timestep_embedding:
        shapes["timestep_embedding.weight"] = (policy.config.max_timestep, d)
    if policy.config.return_before_head:
        shapes["head_return_embedding.weight"] = (d, 1)
    if policy.config.token_norm:
        shapes["token_norm.0.weight"] = shapes["token_norm.0.bias"] = (d,)
    for layer in range(len(policy.backbone.blocks)):
        block = f"backbone.blocks.{layer}"
        for name, (rows, columns) in linears.items():
            shapes[f"{block}.{name}.weight"] = (rows, columns)
            shapes[f"{block}.{name}.bias"] = (rows,)
        if first.start is not None:
            shapes[f"{block}.start.0"] = (1, channels)
        for name in ("mixer_norm.weight", "mixer_norm.bias", "mlp_norm.weight", "mlp_norm.bias"):
            shapes[f"{block}.{name}"] = (d,)
    return shapes


def _constants(policy: ReturnConditionedPolicy) -> tuple[Any, ...]:
    """Copies of what `policy_step` takes between the state and its outputs, in its order."""
    tensors = {name: tensor.detach() for name, tensor in _tensors(policy).items()}
    d, channels = policy.head.in_features, _channels(policy)
    blocks = [f"backbone.blocks.{layer}" for layer in range(len(policy.backbone.blocks))]

    def stacked(name: str) -> Tensor:
        return torch.stack([tensors[f"{block}.{name}"] for block in blocks])

    def norm(name: str) -> Tensor:
        return torch.stack([tensors[f"{name}.weight"], tensors[f"{name}.bias"]])

    embedding = tensors["embedding.weight"].t().clone()
    if not policy.config.return_to_go:
        embedding[0] = 0.0
    if not policy.config.previous_action:
        embedding[1 + policy.observation_dim :] = 0.0
    norms = [norm(f"{block}.{part}") for block in blocks for part in ("mixer_norm", "mlp_norm")]
    has_output = channels != d
    arrays = (
        torch.stack([tensors["observation_mean"], tensors["observation_std"]]),
        torch.stack([tensors["action_low"], tensors["action_high"]]),
        embedding,
        tensors["embedding.bias"],
        # Where an option is off, zeros do for a short vector; no rows tell the kernel to skip.
        tensors.get("timestep_embedding.weight", torch.zeros(1, d)),
        norm("token_norm.0").unsqueeze(0) if policy.config.token_norm else torch.zeros(0, 2, d),
        torch.stack([*norms, norm("backbone.norm")]),
        torch.stack(
            [tensors.get(f"{block}.start.0", torch.zeros(1, channels)) for block in blocks]
        ),
        stacked("mixer.projection.weight").mT,
        stacked("mixer.projection.bias"),
        stacked("mixer.output.weight").mT if has_output else torch.zeros(0, channels, d),
        stacked("mixer.output.bias") if has_output else torch.zeros(0, d),
        stacked("mlp.0.weight").mT,
        stacked("mlp.0.bias"),
        stacked("mlp.2.weight").mT,
        stacked("mlp.2.bias"),
        tensors.get("head_return_embedding.weight", torch.zeros(d, 1)).flatten(),
        tensors["head.weight"],
        tensors["head.bias"],
    )
    # PyTorch aligns its memory to cache lines, NumPy need not.
    copies = (array.clone(memory_format=torch.contiguous_format).numpy() for array in arrays)
    epsilon = np.float32(policy.backbone.norm.eps)
    return np.float32(policy.config.return_scale), epsilon, *copies


@contextlib.contextmanager
def _announced() -> Iterator[None]:
    """Says that the kernel is being compiled if that takes over a second."""
    message = "Compiling the policy's step for this CPU; later runs find it on disk."
    notice = threading.Timer(1.0, _log.info, (message,))
    notice.daemon = True
    notice.start()
    try:
        yield
    finally:
        notice.cancel()


@torch.no_grad()
def _agrees(fused: FusedPolicy, policy: ReturnConditionedPolicy) -> bool:
    """Whether both act alike in a few random steps, whatever else may have been overlooked."""
    generator = torch.Generator().manual_seed(0)
    batch = 5  # a block of rows and a single one
    state = policy.initial_state(batch)
    for step in range(3):
        noise = torch.randn(batch, policy.observation_dim, generator=generator)
        observation = policy.observation_mean + policy.observation_std * noise
        reward = torch.rand(batch, generator=generator)
        is_first = (torch.arange(batch) % 3 == step) | (step == 0)
        found, found_state = fused.act(observation, reward, state, is_first)
        action, state = policy.act(observation, reward, state, is_first)
        pairs = [(found, action), *zip(found_state.backbone, state.backbone, strict=True)]
        for x, y in pairs:
            if not torch.allclose(x, y, rtol=1e-3, atol=1e-3 * y.abs().max().item()):
                return False
    return True
