"""What a mixer remembers of the past, and what is done with it whatever the mixer is."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

# A tensor whose first axis is the batch, or a tuple of states.
State = Any


def map_state(function: Callable[..., Any], *states: State) -> State:
    """Applies a function to every tensor of a state, keeping its structure.

    Args:
        function: Takes one tensor of each state.
        states: One, or several of the same structure.
    """
    if isinstance(states[0], Tensor):
        return function(*states)
    return tuple(map_state(function, *parts) for parts in zip(*states, strict=True))


def tensors_of(state: State) -> list[Tensor]:
    """Returns the tensors of a state, in the order in which `map_state` visits them."""
    return [state] if isinstance(state, Tensor) else [t for part in state for t in tensors_of(part)]


def check_state(state: State, expected: State, batch_size: int, owner: str) -> None:
    """Refuses a state of another batch size or of another backbone.

    Args:
        state: What was given.
        expected: A state of the right structure, of any batch size.
        batch_size: Rows that it must have.
        owner: Whose state it should be, for the error.

    Raises:
        ValueError: The state has another structure or other shapes.
    """
    right = map_state(lambda tensor: (batch_size, *tensor.shape[1:]), expected)
    found = _shapes(state)
    if found != right:
        what = type(state).__name__ if found is None else found
        raise ValueError(
            f"the state given to {owner} is {what}; expected {right}: take it from "
            f"initial_state({batch_size}) of the same backbone, or from its step before."
        )


def _shapes(state: State) -> tuple[object, ...] | None:
    if isinstance(state, Tensor):
        return tuple(state.shape)
    return tuple(map(_shapes, state)) if isinstance(state, tuple | list) else None


def restart(state: State, initial: State, resets: Tensor) -> State:
    """Puts the initial state into the rows (batch,) where an episode begins."""

    def choose(past: Tensor, new: Tensor) -> Tensor:
        return torch.where(resets.view(-1, *[1] * (past.dim() - 1)), new, past)

    return map_state(choose, state, initial)


def run_pieces(
    run: Callable[[Tensor, State], tuple[Tensor, State]],
    initial_state: Callable[[int], State],
    x: Tensor,
    state: State,
    resets: Tensor,
) -> tuple[Tensor, State]:
    """Runs a layer that knows nothing of episodes, its rows cut where one begins.

    The pieces run side by side, the longest first. Until the shortest ends all run in one call,
    then the others in one up to the end of the next: as many calls as there are lengths, without
    padding. (torch's packed sequences do the same step by step, and on CPUs the time of their
    backward pass grows with the square of the length.)

    Args:
        run: Maps x (pieces, steps, channels) and a state to outputs and the last state.
        initial_state: Maps a batch size to the state at which an episode begins.
        x: (batch, time, channels).
        state: What the rows remember from before their first step.
        resets: (batch, time) bool; true where an episode begins.

    Returns:
        The outputs (batch, time, channels) and the state after the last step.
    """
    batch, time, channels = x.shape
    state = restart(state, initial_state(batch), resets[:, 0])
    if not resets[:, 1:].any():
        return run(x, state)
    begins = resets.clone()
    begins[:, 0] = True
    start = begins.flatten().nonzero().squeeze(1)
    length = torch.diff(start, append=start.new_tensor([batch * time]))
    length, order = length.sort(descending=True)
    start = start[order].unsqueeze(1)
    rank = order.argsort()  # where each piece stands in the sorted order
    pieces = begins.sum(1)
    last = pieces.cumsum(0) - 1
    first = last - pieces + 1

    edges = [0, *length.unique().tolist()]
    running = (length.unsqueeze(1) > length.new_tensor(edges[:-1])).sum(0).tolist()
    calls = list(zip(running, pairwise(edges), strict=True))
    index = torch.cat(
        [(start[:n] + torch.arange(a, b, device=x.device)).flatten() for n, (a, b) in calls]
    )
    data = x.flatten(0, 1)[index].split([n * (b - a) for n, (a, b) in calls])
    # Only each row's first piece has its state.
    state = map_state(
        lambda new, past: new.index_copy(0, rank[first], past), initial_state(len(start)), state
    )
    outputs, ends = [], []
    for (n, (a, b)), steps in zip(calls, data, strict=True):
        ends.append(map_state(itemgetter(slice(n, None)), state))
        state = map_state(itemgetter(slice(n)), state)
        y, state = run(steps.view(n, b - a, channels), state)
        outputs.append(y.flatten(0, 1))
    ends.append(state)

    output = torch.cat(outputs)
    y = torch.empty_like(output).index_copy(0, index, output).view(batch, time, channels)
    return y, map_state(lambda *parts: torch.cat(parts)[rank[last]], *ends[::-1])
