"""A look at what is in a data set, before training on it.

    python -m envs.data.inspect dataset=hopper-medium
    python -m envs.data.inspect dataset=hopper-medium-v2.hdf5 png=hopper.png
    python -m envs.data.inspect dataset=mujoco/hopper/medium-v0 json=true

The data set is one word: a built-in one, a Minari id, a D4RL file or name, or several joined by +.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from common.arguments import parse_arguments, run_command
from common.checks import check_fields
from common.errors import UserError
from envs.data.episodes import (
    OBSERVATION_STD_FLOOR,
    Episodes,
)
from envs.data.mapped import release, too_large
from envs.data.sources import load_named

QUANTILES = (0, 10, 25, 50, 75, 90, 100)

# An action counts as saturated where it is this near to a bound, as a part of the whole range.
_SATURATION_MARGIN = 1e-3

_EPISODES_IN_FIGURE = 20


def summarize(episodes: Episodes) -> dict[str, Any]:
    """Returns what is in a data set, as plain values for JSON.

    Returns are sums of rewards, normalised scores run from 0 to 100, lengths are in steps, and
    shares are parts of 1. `suggested_target_returns` are quantiles and the mean of the best 10 % of
    the returns: what the data can tell of a return that is worth asking for.
    """
    ends = episodes.starts + episodes.lengths - 1
    terminated, truncated = episodes.terminations[ends], episodes.truncations[ends]
    spec = gym.registry.get(episodes.environment_id or "")
    horizon = spec.max_episode_steps if spec is not None else None
    cut = truncated & ~terminated & (episodes.lengths < horizon) if horizon is not None else None
    low, high, saturated = _action_ranges(episodes)
    constant = episodes.observation_std <= OBSERVATION_STD_FLOOR
    returns = _distribution(episodes.returns)
    top10 = episodes.top_fraction_return(0.1)
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
        "return": returns | {"top10_mean": top10},
        "normalized_score": _scores(episodes, returns | {"top10_mean": top10}),
        "reference": asdict(episodes.reference) if episodes.reference else None,
        "ends": {
            "terminated": int(terminated.sum()),
            "truncated": int((truncated & ~terminated).sum()),
            "neither": int((~truncated & ~terminated).sum()),
            "truncated_before_horizon": int(cut.sum()) if cut is not None else None,
        },
        "actions": {
            "bound_low": episodes.action_low.tolist(),
            "bound_high": episodes.action_high.tolist(),
            "min": low.tolist(),
            "max": high.tolist(),
            "saturated_share": saturated.tolist(),
        },
        "constant_observations": np.flatnonzero(constant).tolist(),
        "constant_actions": np.flatnonzero(low == high).tolist(),
        "constant_rewards": _constant(episodes),
        # Reading refuses a data set that holds one, and says where.
        "non_finite_values": 0,
        "duplicate_episodes": _count_duplicates(episodes),
        "suggested_target_returns": {
            "median": returns["q50"],
            "q90": returns["q90"],
            "top10_mean": top10,
            "best": returns["q100"],
        },
    }


def _distribution(values: np.ndarray) -> dict[str, float]:
    quantiles = np.percentile(values, QUANTILES)
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        **{f"q{q}": float(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
    }


def _scores(episodes: Episodes, returns: dict[str, float]) -> dict[str, float] | None:
    reference = episodes.reference
    if reference is None:
        return None
    return {k: float(reference.score(v)) for k, v in returns.items() if k != "std"}


def _action_ranges(episodes: Episodes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the least and greatest action and the share of saturated ones, by dimension."""
    margin = _SATURATION_MARGIN * (episodes.action_high - episodes.action_low)
    parts = []
    for rows in episodes.pieces("actions"):
        actions = episodes.actions[rows]
        at_bound = (actions <= episodes.action_low + margin) | (
            actions >= episodes.action_high - margin
        )
        parts.append((actions.min(axis=0), actions.max(axis=0), at_bound.sum(axis=0)))
    low, high, count = zip(*parts, strict=True)
    return np.min(low, axis=0), np.max(high, axis=0), np.sum(count, axis=0) / episodes.n_steps


def _constant(episodes: Episodes) -> bool:
    """Whether all rewards are the same."""
    first = episodes.rewards[episodes.starts[0]]
    return all((episodes.rewards[p] == first).all() for p in episodes.pieces("rewards"))


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
    """Prints the readable page."""
    table = Table(title=summary["dataset"], box=box.SIMPLE_HEAD)
    table.add_column("over the episodes")
    for heading in ("return", "normalised score", "length"):
        table.add_column(heading, justify="right")
    quantiles = {f"q{q}": f"{q} %" for q in QUANTILES} | {"q0": "least", "q100": "greatest"}
    rows = {"mean": "mean", "top10_mean": "mean of the best 10 %"} | quantiles
    for key, heading in rows.items():
        scores, lengths = summary["normalized_score"], summary["length"]
        table.add_row(
            heading,
            f"{summary['return'][key]:,.1f}",
            f"{scores[key]:.1f}" if scores else "-",
            f"{lengths[key]:,.0f}" if key in lengths else "",
        )
    console.print(table)
    grid = Table.grid(padding=(0, 2))
    for heading, text in _lines(summary):
        grid.add_row(f"[bold]{heading}[/bold]", text)
    console.print(grid, highlight=False)


def _lines(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    ends, actions = summary["ends"], summary["actions"]
    yield (
        "data",
        f"{summary['episodes']:,} episodes, {summary['steps']:,} steps, "
        f"{summary['observation_dim']} observation and {summary['action_dim']} action dimensions",
    )
    limit = f", at most {summary['horizon']:,} steps" if summary["horizon"] else ""
    installed = "" if summary["environment_is_installed"] else ", which is not installed here"
    arguments = "".join(f", {k}={v!r}" for k, v in summary["environment_kwargs"].items())
    if summary["environment"] is None:
        yield "environment", "unknown"
    else:
        yield "environment", f"{summary['environment']}{arguments}{limit}{installed}"
    if (reference := summary["reference"]) is not None:
        yield (
            "references",
            f"score 0 is a return of {reference['minimum']:,.1f}, 100 is "
            f"{reference['maximum']:,.1f}; source: {reference['source']}",
        )
    else:
        yield "references", "none known, so that there are no normalised scores"
    text = (
        f"{ends['terminated']:,} episodes end by termination, {ends['truncated']:,} by truncation"
    )
    if ends["neither"]:
        text += f", {ends['neither']:,} by neither"
    if ends["truncated_before_horizon"]:
        text += f"; {ends['truncated_before_horizon']:,} of these before the time limit"
    yield "ends", text
    yield (
        "actions",
        f"{min(actions['min']):.3f} to {max(actions['max']):.3f} within bounds of "
        f"{min(actions['bound_low']):g} to {max(actions['bound_high']):g}; at a bound: "
        + ", ".join(f"{share:.1%}" for share in actions["saturated_share"]),
    )
    for kind in ("observations", "actions"):
        if summary[f"constant_{kind}"]:
            which = ", ".join(map(str, summary[f"constant_{kind}"]))
            yield "constant", f"dimensions of the {kind}: {which}"
    if summary["constant_rewards"]:
        yield "constant", "all rewards are the same"
    if summary["duplicate_episodes"]:
        yield "duplicates", f"{summary['duplicate_episodes']:,} episodes equal an earlier one"
    targets = summary["suggested_target_returns"]
    yield (
        "targets",
        f"to ask for: median {targets['median']:,.0f}, 90 % {targets['q90']:,.0f}, mean of the "
        f"best 10 % {targets['top10_mean']:,.0f} (the default), greatest {targets['best']:,.0f}",
    )


def save_figure(episodes: Episodes, path: Path) -> None:
    """Draws histograms of return and length, and the reward summed up over some episodes.

    Raises:
        UserError: Matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            'png=... needs matplotlib, which is not installed: pip install -e ".[plots]"'
        ) from error
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    figure.suptitle(f"{episodes.dataset_id}, {episodes.environment_id or 'unknown environment'}")
    returns, lengths, sums = figure.subplots(1, 3)
    blue, orange = "#3b6ea5", "#d1762c"
    returns.hist(episodes.returns, bins=50, color=blue)
    top10 = episodes.top_fraction_return(0.1)
    returns.axvline(top10, color=orange, linestyle="--")
    returns.set_title(f"dashed: mean of the best 10 %, {top10:,.0f}", fontsize="small")
    returns.set(xlabel="return of an episode", ylabel="episodes")
    lengths.hist(episodes.lengths, bins=50, color=blue)
    lengths.set(xlabel="length of an episode (steps)", ylabel="episodes")
    for begin, end in itertools.islice(episodes.borders, _EPISODES_IN_FIGURE):
        total = np.cumsum(episodes.rewards[begin:end], dtype=np.float64)
        sums.plot(np.arange(1, end - begin + 1), total, color=blue, alpha=0.5, linewidth=1)
        # Also seen where the episode is one step, which is no line.
        sums.plot(end - begin, total[-1], ".", color=orange, markersize=5)
    count = min(_EPISODES_IN_FIGURE, episodes.n_episodes)
    sums.set_title(f"first {count} episodes", fontsize="small")
    sums.set(xlabel="step", ylabel="sum of the rewards until then")
    for axes in (returns, lengths, sums):
        axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=110, format="png")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror})") from error


@dataclass
class InspectConfig:
    """Arguments of this command.

    Attributes:
        dataset: A built-in data set, a Minari id, a D4RL file or name, or several joined by +.
        environment: Gymnasium id to evaluate in, instead of the data set's own.
        png: A file for the figure.
        json: Whether JSON is printed instead of the page.
    """

    dataset: str
    environment: str | None = None
    png: str | None = None
    json: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


def main(arguments: list[str]) -> None:
    """Inspects one data set from the command line.

    Raises:
        UserError: An argument is wrong.
        UserError: The data set cannot be used, or the figure cannot be made.
        UserError: The reference scores of the data set are not in order.
    """
    config = parse_arguments(InspectConfig, arguments)
    episodes = load_named(config.dataset, config.environment)
    summary = summarize(episodes)
    if config.json:
        print(json.dumps(summary, indent=2))
    else:
        print_summary(summary, Console())
    if config.png is not None:
        save_figure(episodes, Path(config.png))
        if not config.json:
            print(f"Figure: {config.png}")


if __name__ == "__main__":
    run_command(main)
