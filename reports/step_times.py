"""Step time against the length of the history: measured here and now, for a picture."""

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch

from envs.simulation.rollout import Actor
from reports.comparison import Comparison
from reports.page import Picture
from reports.panels import clean_panel, make_figure, style_of, to_png

HISTORIES = (10, 30, 100, 300, 1000)  # steps of the episode so far
BLOCK = 10  # steps that are timed together
EPISODES = 5


def measure_step_times(actors: Mapping[str, tuple[Actor, int]]) -> dict[str, dict[int, float]]:
    """Measures the step of several actors for one environment, in turn, on one thread.

    Args:
        actors: Name to the actor and the length of its observations.

    Returns:
        Name to history to the seconds of a step, from there to a tenth more: the least of the
        blocks, for other work on the machine can only add to it.
    """
    samples: dict[str, dict[int, list[float]]] = {
        name: {h: [] for h in HISTORIES} for name in actors
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for _ in range(EPISODES):
                walks = {name: _walk(actor, dim) for name, (actor, dim) in actors.items()}
                for age in range(0, HISTORIES[-1] * 11 // 10, BLOCK):
                    histories = [h for h in HISTORIES if h <= age <= 1.1 * h]
                    for name, walk in walks.items():
                        seconds = walk(BLOCK) / BLOCK
                        for history in histories:
                            samples[name][history].append(seconds)
    finally:
        torch.set_num_threads(threads)
    return {
        name: {history: min(seconds) for history, seconds in found.items()}
        for name, found in samples.items()
    }


def _walk(actor: Actor, observation_dim: int) -> Callable[[int], float]:
    """Returns what goes on by some steps of one endless episode, and tells the seconds."""
    observation, reward = torch.randn(1, observation_dim), torch.zeros(1)
    _, state = actor.act(observation, reward, actor.initial_state(1), torch.tensor([True]))
    later = torch.tensor([False])

    def walk(steps: int) -> float:
        nonlocal state
        started = time.perf_counter()
        for _ in range(steps):
            _, state = actor.act(observation, reward, state, later)
        return time.perf_counter() - started

    return walk


def draw_step_times(comparison: Comparison, times: Mapping[str, Mapping[int, float]]) -> Picture:
    """Draws what `measure_step_times` found; the names are rows of the comparison."""
    figure = make_figure(8, max(4.2, 0.6 + 0.22 * len(times)))
    panel = figure.add_subplot()
    slowest_first = sorted(times, key=lambda row: -times[row][HISTORIES[-1]])
    for row in slowest_first:
        microseconds = 1e6 * np.array(list(times[row].values()))
        panel.loglog(
            list(times[row]), microseconds, marker="o", ms=4, label=row, **style_of(comparison, row)
        )
    panel.set_ylim(bottom=0.5e6 * min(min(found.values()) for found in times.values()))
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(lambda x, _: f"{x:,.10g}")
    panel.set_xlabel("steps of the episode so far")
    panel.set_ylabel("microseconds for one step of one environment")
    panel.grid(color="#ddd", lw=0.6)
    clean_panel(panel)
    panel.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
    return Picture(
        "step_time",
        "Step time against history: lower is better, level is O(1)",
        "Time that the policy takes to choose one action, as it acts in its evaluations (carried, "
        "rolling or window), on one thread of this machine when this report was made: the least of "
        f"{EPISODES} or more samples of {BLOCK} steps, on logarithmic scales. Rows with the same "
        "network and way of acting are measured once.",
        to_png(figure),
        [
            {"row": row, "history": history, "seconds": seconds}
            for row in slowest_first
            for history, seconds in times[row].items()
        ],
    )
