"""What makes a fused scan a proper PyTorch operation: shapes for tracing, and the gradient."""

from typing import Any

from torch import Tensor


def register(forward: Any, backward: Any, count: int) -> None:
    """Give the custom operation ``forward`` its fake kernel and its gradient.

    Args:
        forward: operation (sequence, ..., initial_state, resets) -> states.
        backward: operation (first sequence, initial_state, resets, states, gradient of states)
            -> gradients of the sequences and of the initial state.
        count: how many sequences there are.
    """

    def fake_forward(*args: Any) -> Tensor:
        sequence, state = args[0], args[-2]
        return state.new_empty((*sequence.shape[:2], state.shape[1]))

    def fake_backward(sequence: Tensor, state: Tensor, *_: Any) -> tuple[Tensor, ...]:
        sequences = (sequence.new_empty(sequence.shape) for _ in range(count))
        return (*sequences, state.new_empty(state.shape))

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], *inputs[-2:], output)

    def differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return (*backward(*ctx.saved_tensors, grad), None)

    def refuse(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(
            f"the fused {forward._name} has no second derivative; "
            "pass form='two_level' or form='reference', which have derivatives of any order."
        )

    forward.register_fake(fake_forward)
    backward.register_fake(fake_backward)
    forward.register_autograd(differentiate, setup_context=save)
    backward.register_autograd(refuse, setup_context=lambda ctx, inputs, output: None)
