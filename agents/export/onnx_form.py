"""A policy as one ONNX file: a step of its rollout, with the state as inputs and outputs.

All that acting needs happens inside (return-to-go, previous action, resets, the bounds of the
actions). The caller gives observation, reward and is_first, and gives each next_state_k that came
out of a step to the next one as state_k.
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

from agents.acting import make_actor
from agents.backbones import MIXERS
from agents.backbones.mixer import Mixer
from agents.backbones.s4d import S4D
from agents.backbones.state import map_state, restart, tensors_of
from agents.policy import PolicyState, ReturnConditionedPolicy
from common.checks import require_extra
from common.errors import UserError

OPSET = 18  # the first that PyTorch's exporter writes without a conversion
LEAST = {"carried": 0, "rolling": 2, "window": 1}  # steps of the past
KEY = "decision_minrnn"  # of the file's metadata
HOW_TO_ACT = (
    "A step of a policy. Begin with zeros as state_0, state_1, ... (their first axis is the batch) "
    "and is_first = true, which makes any state good. Then give each next_state_k as state_k, the "
    "reward of the previous action, or zeros where the metadata say held, which holds the target, "
    "and is_first = true in the rows in which an episode begins. "
    "The action is within the bounds of the data. target_return, where the policy sees a return, "
    "may be left out; its default is in the metadata."
)


class _RealS4D(Mixer):
    """The step of an S4D mixer in real numbers: ONNX has no complex ones."""

    decay: Tensor
    readout: Tensor

    def __init__(self, mixer: S4D) -> None:
        super().__init__()
        self.mixer = mixer
        decay, readout = mixer._discretize()
        self.register_buffer("decay", torch.view_as_real(decay))
        self.register_buffer("readout", torch.view_as_real(readout.conj().resolve_conj()))

    def initial_state(self, batch_size: int) -> Tensor:
        """Returns that of S4D."""
        return self.mixer.initial_state(batch_size)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Maps x (batch, d_model) as S4D does."""
        (a, b), (real, imaginary) = self.decay.unbind(-1), state.unbind(-1)
        real, imaginary = a * real - b * imaginary + x.unsqueeze(-1), a * imaginary + b * real
        after = torch.stack([real, imaginary], dim=-1)
        y = F.gelu((after * self.readout).sum((-2, -1)) + self.mixer.D * x)
        return F.glu(self.mixer.output(y)), after


class Step(nn.Module):
    """The acting classes of agents.acting as functions of tensors, all with the batch first.

    They are written once more because tracing their code (len, chunk) fixes the size of the batch,
    and because the parallel forms of the mixers, which `window` runs, have no ONNX operators.
    """

    def __init__(self, policy: ReturnConditionedPolicy, rollout: str, context_length: int) -> None:
        super().__init__()
        self.policy = copy.deepcopy(policy)
        for block in self.policy.backbone.blocks:
            if type(block.mixer) is S4D:
                block.mixer = _RealS4D(block.mixer)
        self.rollout, self.context_length = rollout, context_length

    def initial_state(self, rows: int) -> list[Tensor]:
        """Returns the state of rows that are about to begin an episode."""
        backbone, *others, _ = self.policy.initial_state(rows)
        parts = tensors_of(backbone)
        if self.rollout == "rolling":
            parts = [torch.stack([part, part], dim=1) for part in parts]
        if self.rollout == "window":
            blank = self.policy.action_low.new_zeros(rows, self.context_length)
            channels = self.policy.observation_dim, self.policy.action_dim
            observations, actions = (blank.unsqueeze(-1).repeat(1, 1, n) for n in channels)
            length = others[-1]
            parts = [observations, blank, actions, blank.long(), length]
        # Copies: one tensor given twice is one input to the exporter.
        return [part.clone() for part in (*parts, *others)]

    def forward(
        self,
        observation: Tensor,
        reward: Tensor,
        is_first: Tensor,
        target_return: Tensor,
        state: list[Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        """Returns the action within the bounds of the data, and the next state."""
        *memory, action, return_to_go, timestep = state
        past = PolicyState((), action, return_to_go, timestep, target_return)
        return_to_go, timestep = self.policy.observe(reward, past, is_first)
        act = {"carried": self._carried, "rolling": self._rolling, "window": self._window}
        action, memory = act[self.rollout](
            memory, is_first, observation, return_to_go, action, timestep
        )
        low, high = self.policy.action_low, self.policy.action_high
        bounded = torch.minimum(torch.maximum(action, low), high)
        return bounded, [*memory, action, return_to_go, timestep]

    def _step(
        self, memory: list[Tensor], resets: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        parts = iter(memory)
        state = map_state(lambda _: next(parts), self.policy.backbone.expected)
        observation, return_to_go, action, timestep = inputs
        action, state = self.policy.step(observation, return_to_go, action, timestep, resets, state)
        return action, tensors_of(state)

    _carried = _step

    def _rolling(
        self, memory: list[Tensor], is_first: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """See agents.acting.RollingActor; the two states are (batch, 2, ...)."""
        timestep, context = inputs[-1], self.context_length
        half = context // 2
        late = torch.where(timestep < half, timestep, (timestep - half) % context)
        ages = torch.stack([timestep % context, late], dim=1)
        twice = [torch.stack([x, x], dim=1).flatten(0, 1) for x in inputs]
        states = [part.flatten(0, 1) for part in memory]
        actions, states = self._step(states, (ages == 0).flatten(), *twice)
        first, second = actions.view(-1, 2, self.policy.action_dim).unbind(1)
        action = torch.where(ages[:, :1] >= ages[:, 1:], first, second)
        return action, [part.view(-1, 2, *part.shape[1:]) for part in states]

    def _window(
        self, memory: list[Tensor], is_first: Tensor, *inputs: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """See agents.acting.WindowActor; runs step by step, as an ONNX Scan."""
        from torch._higher_order_ops.scan import scan  # has no public name yet

        *windows, length = memory
        length = torch.where(is_first, 1, (length + 1).clamp(max=self.context_length))
        blank = [torch.zeros_like(window) for window in windows]
        windows = [
            torch.cat([window[:, 1:], newest.unsqueeze(1)], dim=1)
            for window, newest in zip(restart(windows, blank, is_first), inputs, strict=True)
        ]
        position = torch.arange(self.context_length)
        begins = position == (self.context_length - length).unsqueeze(1)

        def body(carry: list[Tensor], step: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            action, states = self._step(carry[1:], *step)
            # Copies, because a body may return neither its input nor one tensor twice.
            return [action, *(part.clone() for part in states)], []

        begin = tensors_of(self.policy.backbone.initial_state(length.shape[0]))
        first = [torch.zeros_like(inputs[2]), *(part.clone() for part in begin)]
        last, _ = scan(body, first, [x.transpose(0, 1) for x in (begins, *windows)])
        return last[0], [*windows, length]


def onnx_of(
    policy: ReturnConditionedPolicy, rollout: str, context_length: int, **facts: Any
) -> bytes:
    """Returns a step of the policy as an ONNX file, which has been run to see that it agrees.

    Args:
        policy: The policy; it stays as it is.
        rollout: How it acts: `carried`, `rolling` or `window`; see agents.acting.
        context_length: Steps of the past that `rolling` and `window` keep.
        facts: What the file's metadata say besides: plain values.

    Raises:
        UserError: The extra is not installed, or the policy has no form in ONNX.
    """
    for module in ("onnx", "onnxscript", "onnxruntime"):
        require_extra(module, "an export to .onnx", "onnx")
    if rollout not in LEAST or (
        rollout != "carried"
        and not (isinstance(context_length, int) and context_length >= LEAST[rollout])
    ):
        raise UserError(
            f"the policy was scored with rollout={rollout} and context_length={context_length}, "
            "which has no form in ONNX; there are carried, rolling (over at least 2 steps) and "
            "window (over at least 1)."
        )
    mixers = {type(block.mixer) for block in policy.backbone.blocks}
    names = [name for name, (_, mixer) in MIXERS.items() if mixer in mixers]
    metadata = {
        "backbone": ", ".join(names or sorted(mixer.__name__ for mixer in mixers)),
        "rollout": rollout,
        "context_length": None if rollout == "carried" else context_length,
        "target_return": policy.target_return.item() if policy.config.return_to_go else None,
        "observation_dim": policy.observation_dim,
        "action_dim": policy.action_dim,
        "action_low": policy.action_low.tolist(),
        "action_high": policy.action_high.tolist(),
        "opset": OPSET,
    }
    policy = copy.deepcopy(policy).cpu().requires_grad_(False).eval()
    step = Step(policy, rollout, context_length)
    try:
        with _quiet():
            model = _traced(step)
            content = _file_of(model, policy, json.dumps(metadata | facts))
            agrees = _agrees(content, step, make_actor(policy, rollout, context_length))
    except Exception as error:  # of PyTorch's exporter, of whatever class
        raise UserError(
            f"the policy cannot be exported, because PyTorch's exporter to ONNX fails on its "
            f"backbone {metadata['backbone']} ({_cause(error)}); choose another backbone."
        ) from error
    if not agrees:
        raise UserError(
            f"the policy cannot be exported, because the ONNX form of its backbone "
            f"{metadata['backbone']} acts otherwise than the policy; choose another backbone."
        )
    return content


def _traced(step: Step) -> Any:
    """Returns the program as onnx_ir's model."""
    rows = 3  # an example; the batch is free
    policy, state = step.policy, step.initial_state(rows)
    arguments = (
        torch.zeros(rows, policy.observation_dim),
        torch.zeros(rows),
        torch.ones(rows, dtype=torch.bool),
        torch.zeros(1),  # the target: one for all rows
        state,
    )
    free = {0: torch.export.Dim("batch")}
    shapes = (free, free, free, None, [free] * len(state))
    names = [f"state_{i}" for i in range(len(state))]
    # PyTorch's newer exporter manages all eight backbones in all rollouts; the older one
    # (dynamo=False) is deprecated and cannot trace a scan. The program is traced here and not by
    # torch.onnx, which fixes the batch without a word where it cannot be free. A scan is traced
    # from bytecode (strict) only.
    program = torch.export.export(
        step, arguments, dynamic_shapes=shapes, strict=step.rollout == "window"
    )
    exported: Any = torch.onnx.export(
        program,
        dynamo=True,
        verbose=False,
        opset_version=OPSET,
        input_names=["observation", "reward", "is_first", "target_return", *names],
        output_names=["action", *(f"next_{name}" for name in names)],
        dynamic_shapes=shapes,
    )
    return exported.model


def _file_of(model: Any, policy: ReturnConditionedPolicy, metadata: str) -> bytes:
    import onnx_ir as ir
    from onnx_ir.passes import common

    common.RemoveUnusedNodesPass()(model)
    common.DeduplicateInitializersPass()(model)  # transposed weights, one for each of 3 tokens
    common.ClearMetadataAndDocStringPass()(model)  # source lines, with the paths of this machine
    target = model.graph.inputs[3]
    target.const_value = ir.tensor(policy.target_return.view(1).numpy(), name=target.name)
    model.graph.register_initializer(target)
    if policy.config.return_to_go:
        # An input that is also an initializer may be left out. One number serves all rows.
        target.shape = ir.Shape(["targets"])
    else:
        model.graph.inputs.remove(target)
    model.doc_string = HOW_TO_ACT
    model.metadata_props[KEY] = metadata
    content: bytes = ir.to_proto(model).SerializeToString()
    return content


def _agrees(content: bytes, step: Step, actor: Any) -> bool:
    """Returns whether the file acts as the actor in a few random steps of another batch."""
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1  # errors only
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    generator, policy, rows = torch.Generator().manual_seed(0), step.policy, 5
    parts, state = step.initial_state(rows), actor.initial_state(rows)
    for count in range(3):
        noise = torch.randn(rows, policy.observation_dim, generator=generator)
        observation = policy.observation_mean + policy.observation_std * noise
        reward = torch.rand(rows, generator=generator)
        is_first = (torch.arange(rows) % 3 == count) | (count == 0)
        action, state = actor.act(observation, reward, state, is_first)
        inputs = {"observation": observation, "reward": reward, "is_first": is_first}
        inputs |= {f"state_{i}": part for i, part in enumerate(parts)}
        found, *after = session.run(None, {name: x.numpy() for name, x in inputs.items()})
        parts = [torch.from_numpy(part) for part in after]
        if not torch.allclose(torch.from_numpy(found), action, rtol=1e-3, atol=1e-3):
            return False
    return True


def _cause(error: BaseException) -> str:
    """Returns the first line of the error at the root of a chain."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter, which warns of what nobody can mend."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
