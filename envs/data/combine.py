"""Parts and concatenations of data sets.

All keep whole episodes, the environment and the reference returns. A part shares the arrays of the
whole: nothing is copied.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import fields

import numpy as np

from common.errors import UserError
from envs.data.cache import Reading, lay_out
from envs.data.episodes import TYPES, Episodes

logger = logging.getLogger(__name__)

# Seed of the order of the episodes in `limit`: a smaller selection is part of every larger one.
_SEED = 0


def best(episodes: Episodes, fraction: float) -> Episodes:
    """Returns the best fraction (0 to 1) of the episodes by return, at least one."""
    return episodes.select(
        episodes.best(fraction), f"{episodes.dataset_id} (best {100 * fraction:g} %)"
    )


def limit(
    episodes: Episodes, max_episodes: int | None = None, max_steps: int | None = None
) -> Episodes:
    """Returns a random selection of episodes, always the same, of at most the given size.

    Raises:
        UserError: The first episode drawn alone has more than `max_steps` steps.
    """
    order = np.random.default_rng(_SEED).permutation(episodes.n_episodes)[:max_episodes]
    name = episodes.dataset_id
    if max_episodes is not None:
        name += f" (at most {max_episodes:,} episodes)"
    if max_steps is not None:
        name += f" (at most {max_steps:,} steps)"
        count = np.searchsorted(np.cumsum(episodes.lengths[order]), max_steps, side="right")
        if not count:
            raise UserError(
                f"{name}: the first episode drawn has {episodes.lengths[order[0]]} steps, and "
                "episodes are kept whole; raise max_steps"
            )
        order = order[:count]
    return episodes.select(order, name)


def hold_out(episodes: Episodes, fraction: float, seed: int) -> tuple[Episodes, Episodes]:
    """Splits episodes at random into those to train on and the held-out ones.

    Args:
        episodes: All of them.
        fraction: Share to hold out, 0 to 1; at least one episode is held out, and one is not.
        seed: Seed of the split.

    Raises:
        UserError: There is only one episode.
    """
    if episodes.n_episodes < 2:
        raise UserError(
            f"{episodes.dataset_id} has one episode only, and none can be held out; split it, by "
            "marking the last step of each part as truncated"
        )
    count = min(max(1, round(fraction * episodes.n_episodes)), episodes.n_episodes - 1)
    order = np.random.default_rng(seed).permutation(episodes.n_episodes)
    held_out = episodes.select(order[:count], f"{episodes.dataset_id} (held out)")
    return episodes.select(order[count:]), held_out


def concatenate(parts: Sequence[Episodes]) -> Episodes:
    """Concatenates data sets of one environment.

    Raises:
        UserError: There is no part, or they differ in environment, dimensions or action bounds.
    """
    if not parts:
        raise UserError("a mix needs parts: dataset.parts=[hopper-medium,hopper-medium-expert]")
    first = parts[0]
    for other in parts[1:]:
        _require_same_task(first, other)
    scored = [part for part in parts if part.reference is not None]
    reference = scored[0].reference if scored else None
    if any(part.reference != reference for part in scored):
        logger.warning("the parts have different reference scores; taken: %s", scored[0].dataset_id)

    def rows() -> Iterator[dict[str, np.ndarray]]:
        for part in parts:
            for piece in part.pieces(*TYPES):
                yield {name: getattr(part, name)[piece] for name in TYPES}

    arrays = (*TYPES, "lengths", "starts")
    attributes = {f.name: getattr(first, f.name) for f in fields(first) if f.name not in arrays}
    attributes["dataset_id"] = " + ".join(part.dataset_id for part in parts)
    attributes["reference"] = reference
    lengths = np.concatenate([part.lengths for part in parts])
    dimensions = first.observations.shape[1], first.actions.shape[1]
    return lay_out(attributes, lambda: Reading(lengths, *dimensions, rows()))


def _require_same_task(first: Episodes, other: Episodes) -> None:
    for (what, ours), theirs in zip(_task(first).items(), _task(other).values(), strict=True):
        if ours != theirs:
            raise UserError(
                f"{first.dataset_id} and {other.dataset_id} differ in {what}: {ours} and {theirs}; "
                "mix data of one environment, or give the one to evaluate in, such as "
                "dataset.environment=Hopper-v5"
            )


def _task(episodes: Episodes) -> dict[str, str]:
    environment = f"{episodes.environment_id or 'unknown'} {episodes.environment_kwargs or ''}"
    return {
        "their environment": environment.strip(),
        "observation_dim": str(episodes.observations.shape[1]),
        "action_low": str(episodes.action_low.tolist()),
        "action_high": str(episodes.action_high.tolist()),
    }
