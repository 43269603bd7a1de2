"""Statistics of a data set, before training on it.

    python -m envs.data.inspect dataset=hopper-medium
    python -m envs.data.inspect dataset=mujoco/hopper/medium-v0 json=true

The data set is one word: a built-in one, a Minari id, a D4RL file or name, or several joined by +.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from common.arguments import parse_arguments, run_command
from common.checks import check_fields
from envs.data.episodes import OBSERVATION_STD_FLOOR, Episodes
from envs.data.mapped import release, too_large
from envs.data.sources import load_named

QUANTILES = {"q0": 0, "q10": 10, "q25": 25, "q50": 50, "q75": 75, "q90": 90, "q100": 100}

# An action counts as saturated where its distance to a bound is at most this part of the range.
_SATURATION_MARGIN = 1e-3


def summarize(episodes: Episodes) -> dict[str, Any]:
    """Returns the statistics of a data set as plain values for JSON.

    Returns are sums of rewards, normalised scores run from 0 to 100, lengths are in steps, and
    shares are parts of 1.
    """
    terminated = episodes.terminated
    truncated = episodes.truncations[episodes.starts + episodes.lengths - 1]
    spec = gym.registry.get(episodes.environment_id or "")
    horizon = spec.max_episode_steps if spec is not None else None
    cut = truncated & ~terminated & (episodes.lengths < horizon) if horizon is not None else None
    low, high, saturated = _action_ranges(episodes)
    constant = episodes.observation_std <= OBSERVATION_STD_FLOOR
    returns = _distribution(episodes.returns) | {"top10_mean": episodes.top_fraction_return(0.1)}
    reference, first = episodes.reference, episodes.rewards[episodes.starts[0]]
    return {
        "dataset": episodes.dataset_id,
        "environment": episodes.environment_id,
        "environment_kwargs": episodes.environment_kwargs,
        "environment_is_installed": spec is not None,
        "horizon": horizon,
        "episodes": episodes.n_episodes,
        "steps": episodes.n_steps,
        "observation_dim": episodes.observations.shape[1],
        "action_dim": episodes.actions.shape[1],
        "length": _distribution(episodes.lengths),
        "return": returns,
        "normalized_score": (
            {k: float(reference.score(v)) for k, v in returns.items() if k != "std"}
            if reference
            else None
        ),
        "reference": asdict(reference) if reference else None,
        "ends": {
            "terminated": int(terminated.sum()),
            "truncated": int((truncated & ~terminated).sum()),
            "neither": int((~truncated & ~terminated).sum()),
            "truncated_before_horizon": int(cut.sum()) if cut is not None else None,
        },
        "best_episodes_cut_short": episodes.cut_short,
        "actions": {
            "bound_low": episodes.action_low.tolist(),
            "bound_high": episodes.action_high.tolist(),
            "min": low.tolist(),
            "max": high.tolist(),
            "saturated_share": saturated.tolist(),
        },
        "constant_observations": np.flatnonzero(constant).tolist(),
        "constant_actions": np.flatnonzero(low == high).tolist(),
        "constant_rewards": all(
            (episodes.rewards[piece] == first).all() for piece in episodes.pieces("rewards")
        ),
        "duplicate_episodes": _count_duplicates(episodes),
    }


def _distribution(values: np.ndarray) -> dict[str, float]:
    quantiles = np.percentile(values, list(QUANTILES.values())).tolist()
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


def _action_ranges(episodes: Episodes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the least and greatest action and the share of saturated ones, by dimension."""
    margin = _SATURATION_MARGIN * (episodes.action_high - episodes.action_low)
    parts = []
    for piece in episodes.pieces("actions"):
        actions = episodes.actions[piece]
        at_bound = (actions <= episodes.action_low + margin) | (
            actions >= episodes.action_high - margin
        )
        parts.append((actions.min(axis=0), actions.max(axis=0), at_bound.sum(axis=0)))
    low, high, count = zip(*parts, strict=True)
    return np.min(low, axis=0), np.max(high, axis=0), np.sum(count, axis=0) / episodes.n_steps


def _count_duplicates(episodes: Episodes) -> int:
    """Returns how many episodes equal an earlier one in observations, actions and rewards."""
    seen: set[bytes] = set()
    arrays = episodes.observations, episodes.actions, episodes.rewards
    mapped = too_large(arrays, episodes.n_steps)
    for begin, end in episodes.borders:
        digest = hashlib.blake2b(digest_size=16)
        for array in arrays:
            digest.update(array[begin:end].data)
        seen.add(digest.digest())
        release(*mapped)
    return episodes.n_episodes - len(seen)


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """Prints a table of the distributions over the episodes, and a line for each other value."""
    table = Table(title=summary["dataset"], box=box.SIMPLE_HEAD)
    table.add_column("over the episodes")
    for heading in ("return", "normalised score", "length"):
        table.add_column(heading, justify="right")
    headings = {"mean": "mean", "std": "standard deviation", "top10_mean": "mean of the best 10 %"}
    headings |= {"q0": "least", "q100": "greatest (return: the default target)"}
    scores, lengths = summary["normalized_score"] or {}, summary["length"]
    for key, value in summary["return"].items():
        table.add_row(
            headings.get(key, f"{key[1:]} %"),
            f"{value:,.1f}",
            f"{scores[key]:.1f}" if key in scores else "",
            f"{lengths[key]:,.0f}" if key in lengths else "",
        )
    console.print(table)
    grid = Table.grid(padding=(0, 2))
    for key, value in summary.items():
        if key not in ("dataset", "return", "normalized_score", "length"):
            grid.add_row(key.replace("_", " "), _text(value))
    console.print(grid, highlight=False, markup=False)


def _text(value: Any) -> str:
    """Returns a value of the summary in words, without braces."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "unknown"}[value]
    if isinstance(value, dict):
        words = (f"{key.replace('_', ' ')} {_text(item)}" for key, item in value.items())
        return ", ".join(words) or "none"
    if isinstance(value, list):
        return " ".join(map(_text, value)) or "none"
    return value if isinstance(value, str) else f"{value:,.6g}"


@dataclass
class InspectConfig:
    """Arguments of this command.

    Attributes:
        dataset: A built-in data set, a Minari id, a D4RL file or name, or several joined by +.
        environment: Gymnasium id to evaluate in, instead of the data set's own.
        json: Whether JSON is printed instead of the page.
    """

    dataset: str
    environment: str | None = None
    json: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


def main(arguments: list[str]) -> None:
    """Inspects one data set from the command line."""
    config = parse_arguments(InspectConfig, arguments)
    summary = summarize(load_named(config.dataset, config.environment))
    if config.json:
        print(json.dumps(summary, indent=2))
    else:
        print_summary(summary, Console())


def start() -> None:
    """Inspects as the command line says."""
    run_command(main)


if __name__ == "__main__":
    start()
