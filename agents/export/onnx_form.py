"""A policy as one ONNX file: a step of its rollout, with the state as inputs and outputs.

The file is made from the policy's own step and from the classes of agents.acting, so it acts as
the run was scored. What else acting needs (return-to-go, previous action, resets, the bounds of the
actions) happens inside: the caller gives observation, reward and is_first, and gives the
next_state_k that came out of a step to the next one as state_k.
"""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from agents.acting import ROLLOUTS, RollingActor, WindowActor
from agents.backbones.mixer import Mixer
from agents.backbones.s4d import S4D
from agents.backbones.state import State, map_state, tensors_of
from agents.policy import PolicyState, ReturnConditionedPolicy
from common.checks import check_choice, require_extra
from common.errors import UserError

OPSET = 18  # the oldest that PyTorch's exporter writes without converting: read by most runtimes
KEY = "decision_minrnn"  # of the file's metadata
HOW_TO_ACT = (
    "A step of a policy. Begin with zeros as state_0, state_1, ... (their first axis is the batch) "
    "and is_first = true, which makes any state good; then give each next_state_k as state_k, the "
    "reward of the previous action, and is_first = true in the rows whose episode begins. Returns "
    "to go, the previous action and the bounds of the actions need no care outside. target_return, "
    "where it is an input, may be left out: its default is in the metadata."
)


class _Unfused(RollingActor):
    """The rolling actor with the policy's own step in place of the compiled one."""

    def __init__(self, policy: ReturnConditionedPolicy, context_length: int) -> None:
        super(RollingActor, self).__init__(policy, context_length)
        self.step = policy.step


class _RealS4D(Mixer):
    """An S4D mixer's step in real numbers, because ONNX has no complex ones."""

    decay: Tensor
    readout: Tensor

    def __init__(self, mixer: S4D) -> None:
        super().__init__()
        self.mixer = mixer
        decay, readout = mixer._discretize()
        self.register_buffer("decay", torch.view_as_real(decay))
        self.register_buffer("readout", torch.view_as_real(readout.conj().resolve_conj()))

    def initial_state(self, batch_size: int) -> Tensor:
        """Returns S4D's own initial state."""
        return self.mixer.initial_state(batch_size)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Maps x (batch, d_model) as S4D does."""
        (a, b), (real, imaginary) = self.decay.unbind(-1), state.unbind(-1)
        real, imaginary = a * real - b * imaginary + x.unsqueeze(-1), a * imaginary + b * real
        parts = torch.stack([real, imaginary], dim=-1)
        y = F.gelu((parts * self.readout).sum((-2, -1)) + self.mixer.D * x)
        return F.glu(self.mixer.output(y)), parts


class _StepByStep(ReturnConditionedPolicy):
    """Runs a sequence by the steps of the policy: the parallel forms have no ONNX operators.

    One ONNX Scan, whose body is one step, however long the window is.
    """

    def forward(
        self,
        observations: Tensor,
        returns_to_go: Tensor,
        previous_actions: Tensor,
        timesteps: Tensor,
        resets: Tensor,
        state: State,
    ) -> tuple[Tensor, State]:
        """Maps a sequence as the policy does; but returns the last action alone, (batch, 1, ...)."""
        from torch._higher_order_ops.scan import scan

        def body(carry: list[Tensor], inputs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            parts = iter(carry[1:])
            action, after = self.step(*inputs, map_state(lambda _: next(parts), state))
            # Copies, because what a body returns must be neither its input nor twice the same.
            return [action, *(part.clone() for part in tensors_of(after))], []

        inputs = observations, returns_to_go, previous_actions, timesteps, resets
        first = [previous_actions[:, 0].clone(), *(part.clone() for part in tensors_of(state))]
        last, _ = scan(body, first, [x.transpose(0, 1) for x in inputs])
        return last[0].unsqueeze(1), state


class _ExportedStep(nn.Module):
    """A step of a rollout between tensors whose first axis is the batch."""

    def __init__(
        self, policy: ReturnConditionedPolicy, rollout: str, context_length: int
    ) -> None:
        super().__init__()
        self.policy = copy.deepcopy(policy).cpu().requires_grad_(False).eval()
        for block in self.policy.backbone.blocks:
            if type(block.mixer) is S4D:
                block.mixer = _RealS4D(block.mixer)
        self.rolling = rollout == "rolling"
        if rollout == "window":
            self.policy.__class__ = _StepByStep
        self.actor = _actor(self.policy, rollout, context_length)
        self.like = self.actor.initial_state(1)
        past = self.like.past if rollout == "window" else self.like
        # The target is an input of its own, not a part of the state: where it stands in the actor's
        # state. The tensors of the backbone come first, two rows a row of the batch if `rolling`.
        self.target = len(tensors_of(past)) - 1
        self.backbone = len(tensors_of(past.backbone))

    def initial_state(self, batch_size: int) -> list[Tensor]:
        """Returns the state of rows that are about to begin an episode."""
        return self._parts(self.actor.initial_state(batch_size))

    def forward(
        self,
        observation: Tensor,
        reward: Tensor,
        is_first: Tensor,
        target_return: Tensor,
        state: list[Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        """Returns the action within the bounds of the data, and the next state."""
        parts = [self._joined(i, part) for i, part in enumerate(state)]
        parts.insert(self.target, target_return)
        past = _filled(self.like, iter(parts))
        action, after = self.actor.act(observation, reward, past, is_first)
        action = torch.minimum(
            torch.maximum(action, self.policy.action_low), self.policy.action_high
        )
        return action, self._parts(after)

    def _joined(self, index: int, part: Tensor) -> Tensor:
        """Turns (batch, 2, ...) into the rolling actor's two halves, one after the other."""
        rolling = self.rolling and index < self.backbone
        return part.transpose(0, 1).flatten(0, 1) if rolling else part

    def _parts(self, state: Any) -> list[Tensor]:
        parts = tensors_of(state)
        batch = parts.pop(self.target).shape[0]
        if self.rolling:
            for i in range(self.backbone):
                parts[i] = parts[i].unflatten(0, (2, batch)).transpose(0, 1)
        return parts


def _actor(policy: ReturnConditionedPolicy, rollout: str, context_length: int) -> Any:
    """Returns what agents.acting.make_actor does, without the compiled step."""
    if rollout == "carried":
        return policy
    return (_Unfused if rollout == "rolling" else WindowActor)(policy, context_length)


def _filled(like: Any, tensors: Iterator[Tensor]) -> Any:
    """Returns a state of the same structure, with these tensors."""
    if isinstance(like, Tensor):
        return next(tensors)
    parts = [_filled(part, tensors) for part in like]
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)


def onnx_of(
    policy: ReturnConditionedPolicy, rollout: str, context_length: int, **facts: Any
) -> bytes:
    """Returns a step of the policy as an ONNX file.

    Args:
        policy: The policy; it stays as it is.
        rollout: How it acts: `carried`, `rolling` or `window`; see agents.acting.
        context_length: Steps of the past that `rolling` and `window` keep.
        facts: What the file's metadata say besides: plain values.

    Raises:
        UserError: The extra is not installed, or the policy has no form in ONNX.
    """
    for module in ("onnx", "onnxscript"):
        require_extra(module, "an export to ONNX", "onnx")
    check_choice("rollout", rollout, ROLLOUTS)
    import onnx_ir as ir

    name = type(policy.backbone.blocks[0].mixer).__name__
    step = _ExportedStep(policy, rollout, context_length)
    program = _traced(step, name, rollout)
    model = program.model
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # source lines, with the paths of this machine
    if policy.config.return_to_go:
        default = policy.target_return.reshape(1).numpy(force=True)
        target = next(value for value in model.graph.inputs if value.name == "target_return")
        # An input with an initial value is optional in ONNX.
        target.const_value = ir.tensor(default, name="target_return")
        target.shape = ir.Shape(["targets"])
        model.graph.register_initializer(target)
    low, high = policy.action_low.tolist(), policy.action_high.tolist()
    metadata = {
        "rollout": rollout,
        "context_length": context_length,
        "target_return": policy.target_return.item() if policy.config.return_to_go else None,
        "observation_dim": policy.observation_dim,
        "action_dim": policy.action_dim,
        "action_low": low,
        "action_high": high,
        "opset": OPSET,
    }
    model.doc_string = HOW_TO_ACT
    model.metadata_props[KEY] = json.dumps(metadata | facts)
    content: bytes = ir.to_proto(model).SerializeToString()
    return content


def _traced(step: _ExportedStep, mixer: str, rollout: str) -> Any:
    rows = 3  # neither 1 nor the number of anything else
    policy, state = step.policy, step.initial_state(rows)
    arguments = (
        torch.zeros(rows, policy.observation_dim),
        torch.zeros(rows),
        torch.ones(rows, dtype=torch.bool),
        policy.target_return.repeat(rows),
        state,
    )
    free = {0: torch.export.Dim("batch")}
    states = [f"state_{i}" for i in range(len(state))]
    with _quiet():
        return torch.onnx.export(
            step,
            arguments,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["observation", "reward", "is_first", "target_return", *states],
            output_names=["action", *(f"next_{name}" for name in states)],
            dynamic_shapes=(free, free, free, free, [free] * len(state)),
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter, which warns of what the caller cannot change."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
