"""The one check of a state that every mixer's `forward` and `step` begin with."""

from __future__ import annotations

from torch import Tensor

from agents.block import State


def check_state(name: str, state: State, *shapes: tuple[int, ...]) -> None:
    """Refuses a state of another batch size or of another backbone.

    Args:
        name: The backbone whose state it should be.
        state: A tensor if there is one shape, else a tuple of tensors.
        shapes: The shapes that the state's tensors must have.

    Raises:
        ValueError: The state has another structure or other shapes.
    """
    if _structure(state) != (shapes[0] if len(shapes) == 1 else shapes):
        expected = " and ".join(map(str, shapes))
        raise ValueError(
            f"the state given to backbone '{name}' is {_describe(state)}; expected {expected}: "
            f"take it from initial_state({shapes[0][0]}) of the same backbone, or from its step "
            "before."
        )


def _structure(state: State) -> tuple[object, ...] | None:
    if isinstance(state, Tensor):
        return tuple(state.shape)
    return tuple(map(_structure, state)) if isinstance(state, tuple | list) else None


def _describe(state: State) -> str:
    structure = _structure(state)
    return f"{type(state).__name__} {structure}" if structure is None else str(structure)
