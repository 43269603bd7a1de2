"""The fused scans as PyTorch operations: shapes for tracing, and gradients."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

NO_SECOND_DERIVATIVE = (
    "the fused scan has no second derivative; pass form='two_level', 'reference' or, for Mamba's "
    "scan, 'chunks', which have derivatives of any order."
)
Forward = Callable[[list[Tensor], Tensor, Tensor | None], Tensor]
Backward = Callable[..., list[Tensor]]


def operation(
    name: str, inputs: tuple[str, ...], forward: Forward, backward: Backward, device: str | None
) -> Any:
    """Returns the operation torch.ops.decision_minrnn.name(*inputs, initial_state, resets).

    Args:
        name: As above.
        inputs: Names of the sequences that it scans.
        forward: (sequences, initial_state, resets) -> states.
        backward: (first sequence, initial_state, resets, states, gradient of the states, number of
            sequences) -> gradients of the sequences, and of the initial state.
        device: The only type of device on which it runs; None for any.
    """
    count = len(inputs)
    sequences = ", ".join(f"Tensor {x}" for x in inputs)
    gradients = ", ".join(["Tensor"] * (count + 1))
    define: Any = torch.library.custom_op

    def scan(*args: Any) -> Tensor:
        *sequences, state, resets = args
        return forward(sequences, state, resets)

    def scan_backward(*args: Any) -> tuple[Tensor, ...]:
        return tuple(backward(*args, count))

    op = define(
        f"decision_minrnn::{name}",
        scan,
        mutates_args=(),
        device_types=device,
        schema=f"({sequences}, Tensor initial_state, Tensor? resets) -> Tensor",
    )
    backward_op = define(
        f"decision_minrnn::{name}_backward",
        scan_backward,
        mutates_args=(),
        device_types=device,
        schema="(Tensor sequence, Tensor initial_state, Tensor? resets, Tensor states, "
        f"Tensor gradient) -> ({gradients})",
    )

    def fake(*args: Any) -> Tensor:
        sequence, state = args[0], args[-2]
        return state.new_empty((*sequence.shape[:2], state.shape[1]))

    def fake_backward(sequence: Tensor, state: Tensor, *_: Any) -> tuple[Tensor, ...]:
        like_sequences = (sequence.new_empty(sequence.shape) for _ in range(count))
        return (*like_sequences, state.new_empty(state.shape))

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], *inputs[-2:], output)

    def differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return (*backward_op(*ctx.saved_tensors, grad), None)

    def refuse(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(NO_SECOND_DERIVATIVE)

    op.register_fake(fake)
    backward_op.register_fake(fake_backward)
    op.register_autograd(differentiate, setup_context=save)
    backward_op.register_autograd(refuse, setup_context=lambda ctx, inputs, output: None)
    return op
