"""A policy's step on the CPU as one compiled kernel: the same actions, several times faster.

PyTorch makes a few dozen calls for a step, and with a small batch each call costs more than its
arithmetic. The kernel (agents/step/kernel.py) is compiled by Numba, so no C compiler is needed. It
serves every batch size and needs none of PyTorch's matrix products.
"""

import logging
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
from agents.scan.cpu import announced, submit
from agents.step.kernel import policy_step
from agents.step.products import BLOCK

logger = logging.getLogger(__name__)

_MIXERS = {MinGRU, MinLSTM}
_MODULES = {ReturnConditionedPolicy, Backbone, Block, *_MIXERS} | {
    Dropout, nn.Embedding, nn.Identity, nn.LayerNorm, nn.Linear, nn.ModuleList, nn.ReLU,
    nn.ParameterList, nn.Sequential,
}  # fmt: skip
_ROWS_OF_A_THREAD = 16  # fewer rows are computed faster than another thread wakes up
_FLOAT, _INT, _BOOL = np.dtype(np.float32), np.dtype(np.int64), np.dtype(np.bool_)


class NotFusableError(ValueError):
    """The kernel cannot compute this policy; the message says why, in one sentence."""


class FusedPolicy:
    """Acts as a `ReturnConditionedPolicy` in evaluation mode does, with the same states.

    Each can continue from a state of the other. The weights are copied, so build a new one after
    they change. Calls keep nothing, so several threads may share one. It computes no gradients.
    """

    def __init__(self, policy: ReturnConditionedPolicy) -> None:
        """Copies the weights, compiles the kernel on its first use, and tests it.

        Raises:
            NotFusableError: The policy is not on the CPU, in float32, in evaluation mode, with one
                token for each step and minGRU or minLSTM.
        """
        reason = obstacle(policy)
        if reason is not None:
            raise NotFusableError(reason)
        self.observation_dim, self.action_dim = policy.observation_dim, policy.action_dim
        self._policy = policy
        self._layers = len(policy.backbone.blocks)
        self._channels = _first_block(policy).mixer.channels
        self._kernel, self._constants = policy_step, _pack(policy)
        self._hidden = policy.hidden.numpy() if policy.config.hidden else None
        self._means = policy.observation_mean.numpy().copy()
        with announced("the policy's step"):
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
        """Acts as `ReturnConditionedPolicy.act` does, in float32."""
        return_to_go, timestep, first = self._observe(reward, state, is_first)
        action, backbone = self._step(
            observation, return_to_go, state.action, timestep, first, state.backbone
        )
        return action, _state_after(backbone, action, return_to_go, timestep, state)

    def act_rolling(
        self,
        observation: Tensor,
        reward: Tensor,
        state: PolicyState,
        is_first: Tensor,
        context_length: int,
    ) -> tuple[Tensor, PolicyState]:
        """Acts as `agents.acting.RollingActor` does, with two states of each environment."""
        return_to_go, timestep, first = self._observe(reward, state, is_first)
        half = context_length // 2
        age = timestep % context_length
        late_age = np.where(timestep < half, timestep, (timestep - half) % context_length)
        actions, backbone = self._step(
            observation.repeat(2, 1),
            np.tile(return_to_go, 2),
            state.action.repeat(2, 1),
            np.tile(timestep, 2),
            np.concatenate([age == 0, late_age == 0]),
            state.backbone,
        )
        early, late = actions.numpy().reshape(2, len(first), -1)
        action = torch.from_numpy(np.where((age >= late_age)[:, None], early, late))
        return action, _state_after(backbone, action, return_to_go, timestep, state)

    def _observe(
        self, reward: Tensor, state: PolicyState, is_first: Tensor
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns return-to-go, timestep and is_first, (batch,).

        As `ReturnConditionedPolicy.observe`, in NumPy, whose calls on a few numbers are shorter.
        """
        rows = (len(is_first),)
        first = _array("is_first", is_first, rows, _BOOL)
        left = _array("state.return_to_go", state.return_to_go, rows, _FLOAT)
        left = left - _array("reward", reward, rows, _FLOAT)
        target = _array("state.target_return", state.target_return, rows, _FLOAT)
        time = _array("state.timestep", state.timestep, rows, _INT) + 1
        return np.where(first, target, left), np.where(first, 0, time), first

    def step(
        self,
        observation: Tensor,
        return_to_go: Tensor,
        previous_action: Tensor,
        timestep: Tensor,
        resets: Tensor,
        state: State,
    ) -> tuple[Tensor, State]:
        """Maps one step as `ReturnConditionedPolicy.step` does, in float32."""
        rows = (len(observation),)
        left = _array("return_to_go", return_to_go, rows, _FLOAT)
        time = _array("timestep", timestep, rows, _INT)
        first = _array("resets", resets, rows, _BOOL)
        return self._step(observation, left, previous_action, time, first, state)

    def _step(
        self,
        observation: Tensor,
        return_to_go: np.ndarray,
        previous_action: Tensor,
        timestep: np.ndarray,
        resets: np.ndarray,
        state: State,
    ) -> tuple[Tensor, State]:
        batch = len(timestep)
        shape = (self._layers, batch, self._channels)
        observed = _array("observation", observation, (batch, self.observation_dim), _FLOAT)
        if self._hidden is not None:
            observed = np.where(self._hidden, self._means, observed)  # normalised to 0
        inputs = (
            observed,
            return_to_go,
            _array("previous_action", previous_action, (batch, self.action_dim), _FLOAT),
            timestep,
            resets,
            _array("state", torch.stack(cast("tuple[Tensor, ...]", state)), shape, _FLOAT),
        )
        # New arrays at each step, because the caller may keep the results.
        action, states = np.empty((batch, self.action_dim), _FLOAT), np.empty(shape, _FLOAT)
        self._run(batch, (*inputs, *self._constants, action, states))
        return torch.from_numpy(action), torch.from_numpy(states).unbind(0)

    def _run(self, batch: int, arguments: tuple[Any, ...]) -> None:
        """Calls the kernel; each of PyTorch's threads computes whole blocks of rows."""
        threads = max(1, min(torch.get_num_threads(), batch // _ROWS_OF_A_THREAD))
        rows = max(1, -(-batch // (threads * BLOCK))) * BLOCK
        helpers = [
            submit(self._kernel, *arguments, b, min(b + rows, batch))
            for b in range(rows, batch, rows)
        ]
        self._kernel(*arguments, 0, min(rows, batch))
        for helper in helpers:
            helper.result()


def fuse(policy: ReturnConditionedPolicy) -> FusedPolicy | ReturnConditionedPolicy:
    """Returns the fused form of a policy, or the policy itself where it cannot be built."""
    try:
        return FusedPolicy(policy)
    except NotFusableError as error:
        logger.info("The policy acts through PyTorch: %s", error)
    except Exception as error:  # Numba or LLVM failed on this machine, in whatever way
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        logger.warning("The step's kernel failed, so the policy acts through PyTorch: %s", reason)
    return policy


def _state_after(
    backbone: State,
    action: Tensor,
    return_to_go: np.ndarray,
    timestep: np.ndarray,
    before: PolicyState,
) -> PolicyState:
    return PolicyState(
        backbone,
        action,
        torch.from_numpy(return_to_go),
        torch.from_numpy(timestep),
        before.target_return,
    )


def _array(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Returns the tensor as a contiguous array; the kernel itself checks no bounds."""
    array = tensor.numpy(force=True)
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(
            f"{name} is {array.dtype} of shape {array.shape}; expected {dtype} of shape {shape}."
        )
    return np.ascontiguousarray(array)


def obstacle(policy: nn.Module) -> str | None:
    """Returns why a policy cannot be fused, in one sentence, or None where it can.

    It compares the policy's modules and tensors with those of the kernel, so a new option that
    adds, drops or reshapes any of them is an obstacle until the kernel supports it.
    """
    if type(policy) is not ReturnConditionedPolicy:
        return f"it is a {type(policy).__name__}, not a ReturnConditionedPolicy."
    if policy.config.tokens != 1:
        return f"it has {policy.config.tokens} tokens a step; the kernel knows one."
    mixers = {type(block.mixer) for block in policy.backbone.blocks}
    if len(mixers) != 1 or not mixers <= _MIXERS:
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
    tensors = policy.state_dict()
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            return f"its {name} is {tensor.dtype} on {tensor.device}; the kernel is float32 on CPU."
    found = {(name, tuple(tensor.shape)) for name, tensor in tensors.items()}
    known = {(name, shape) for names, shape, _ in _parts(policy) for name in names}
    for name, shape in sorted(found ^ (known | {("target_return", ())})):
        return f"its {name} (shape {shape}) is unknown to the kernel, or missing for it."
    return None


def _first_block(policy: ReturnConditionedPolicy) -> Any:
    return policy.backbone.blocks[0]


def _parts(policy: ReturnConditionedPolicy) -> list[tuple[list[str], tuple[int, ...], bool]]:
    """Returns the table of all tensors that the kernel knows, in the order of its arguments.

    Each argument is a stack of the tensors with these names, each of this shape, with its last two
    axes swapped where the third entry is true. Without names, where an option is off, it is empty.
    """
    config, first = policy.config, _first_block(policy)
    blocks = [f"backbone.blocks.{i}" for i in range(len(policy.backbone.blocks))]
    d, width = policy.head.in_features, first.mlp[0].out_features
    observed, acted = policy.observation_dim, policy.action_dim
    gates, channels = first.mixer.projection.out_features, first.mixer.channels
    norms = [f"{block}.{norm}" for block in blocks for norm in ("mixer_norm", "mlp_norm")]

    def each(name: str) -> list[str]:
        return [f"{block}.{name}" for block in blocks]

    def both(*modules: str) -> list[str]:
        return [f"{module}.{name}" for module in modules for name in ("weight", "bias")]

    # A list times false is empty.
    learned, expanded, timed = first.start is not None, channels != d, config.timestep_embedding
    returned = config.return_before_head
    return [
        (["observation_mean", "observation_std"], (observed,), False),
        (["action_low", "action_high"], (acted,), False),
        (["embedding.weight"], (d, 1 + observed + acted), True),
        (["embedding.bias"], (d,), False),
        (["timestep_embedding.weight"] * timed, (config.max_timestep, d), False),
        (both("token_norm.0") * config.token_norm, (d,), False),
        (both(*norms, "backbone.norm"), (d,), False),
        (each("start.0") * learned, (1, channels), False),
        (each("mixer.projection.weight"), (gates, d), True),
        (each("mixer.projection.bias"), (gates,), False),
        (each("mixer.output.weight") * expanded, (d, channels), True),
        (each("mixer.output.bias") * expanded, (d,), False),
        (each("mlp.0.weight"), (width, d), True),
        (each("mlp.0.bias"), (width,), False),
        (each("mlp.2.weight"), (d, width), True),
        (each("mlp.2.bias"), (d,), False),
        (["head_return_embedding.weight"] * returned, (d, 1), False),
        (["head.weight"], (acted, d), False),
        (["head.bias"], (acted,), False),
    ]


def _pack(policy: ReturnConditionedPolicy) -> tuple[Any, ...]:
    """Returns the arguments of `policy_step` between the state and its outputs, as copies."""
    tensors = {**policy.state_dict()}
    # Inputs that the policy does not see have no weight.
    embedding = tensors["embedding.weight"] = tensors["embedding.weight"].clone()
    if not policy.config.return_to_go:
        embedding[:, 0] = 0.0
    if not policy.config.previous_action:
        embedding[:, 1 + policy.observation_dim :] = 0.0
    arrays = []
    for names, shape, transposed in _parts(policy):
        # In PyTorch's memory, which is aligned to cache lines; NumPy's need not be.
        stack = torch.stack([tensors[name] for name in names]) if names else torch.empty(0, *shape)
        arrays.append((stack.mT if transposed else stack).contiguous().numpy())
    epsilon = np.float32(policy.backbone.norm.eps)
    return np.float32(policy.config.return_scale), epsilon, *arrays


@torch.no_grad()
def _agrees(fused: FusedPolicy, policy: ReturnConditionedPolicy) -> bool:
    """Returns whether both act alike in a few random steps: the guard against all oversights."""
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
