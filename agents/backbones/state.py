"""States: what a mixer remembers of the past, and the operations that every mixer's state has."""

from collections.abc import Callable
from itertools import pairwise
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

# A tensor whose first axis is the batch, or a tuple of states.
State = Any


def map_state(function: Callable[..., Any], *states: State) -> State:
    """Applies a function of one tensor of each state to all their tensors, in their structure."""
    if isinstance(states[0], Tensor):
        return function(*states)
    return tuple(map_state(function, *parts) for parts in zip(*states, strict=True))


def tensors_of(state: State) -> list[Tensor]:
    """Returns the tensors of a state, in the order in which `map_state` visits them."""
    return [state] if isinstance(state, Tensor) else [t for part in state for t in tensors_of(part)]


def check_state(state: State, expected: State, batch_size: int, owner: str) -> None:
    """Raises a ValueError unless a state has the expected structure and shapes, and batch size."""
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
    """Takes the rows where resets (batch,) is true from the initial state, of `batch` rows or 1."""

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
    """Runs a layer that knows no resets: the rows are cut at the resets into independent pieces.

    The pieces run as rows of one batch, sorted by length. One call runs all of them until the
    shortest ends, the next call the others until the next one ends, and so on: as many calls as
    there are different lengths, and no padding. (PyTorch's packed sequences do the same step by
    step; on CPUs the time of their backward pass grows with the square of the length.)

    Args:
        run: Maps x (pieces, steps, channels) and a state to outputs and the last state.
        initial_state: Maps a batch size to the initial state.
        x: (batch, time, channels).
        state: The state before the first step.
        resets: (batch, time) bool; where true, the row restarts from the initial state.
    """
    batch, time, channels = x.shape
    state = restart(state, initial_state(batch), resets[:, 0])
    if not resets[:, 1:].any():
        return run(x, state)
    # Cut: start and length of each piece in the flattened rows, the longest piece first.
    begins = resets.clone()
    begins[:, 0] = True
    start = begins.flatten().nonzero().squeeze(1)
    length = torch.diff(start, append=start.new_tensor([batch * time]))
    length, order = length.sort(descending=True)
    start = start[order].unsqueeze(1)
    rank = order.argsort()  # position of each piece in the sorted order
    pieces = begins.sum(1)
    last = pieces.cumsum(0) - 1
    first = last - pieces + 1

    # Plan: call i runs the first `running[i]` pieces over their steps edges[i]:edges[i + 1].
    edges = [0, *length.unique().tolist()]
    running = (length.unsqueeze(1) > length.new_tensor(edges[:-1])).sum(0).tolist()
    calls = list(zip(running, pairwise(edges), strict=True))
    index = torch.cat(
        [(start[:n] + torch.arange(a, b, device=x.device)).flatten() for n, (a, b) in calls]
    )
    data = x.flatten(0, 1)[index].split([n * (b - a) for n, (a, b) in calls])
    # Run. Only the first piece of a row continues its state; the others begin an episode.
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

    # Put the outputs back in order; a row's last state is that of its last piece.
    output = torch.cat(outputs)
    y = torch.empty_like(output).index_copy(0, index, output).view(batch, time, channels)
    return y, map_state(lambda *parts: torch.cat(parts)[rank[last]], *ends[::-1])
