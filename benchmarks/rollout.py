"""How far a rollout is from its physics alone, and from the way most projects evaluate.

    python benchmarks/rollout.py --threads 2

Measures, for each engine (Gymnasium, EnvPool where it is installed), environment steps per second:

- ``physics``: the environments stepped with actions that are ready, no policy
- ``ours``: the same number of episodes with a 3-layer minGRU policy, all side by side
- ``one by one, window``: one Gymnasium environment at a time whose policy runs the last 20 steps
  again at every step (Decision Transformer's evaluation), on a few episodes

In rounds of all of them, medians, HalfCheetah-v5 (every episode has all its steps). Saved as
benchmarks/results/rollout.csv.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agents.acting import make_actor  # noqa: E402
from agents.backbones import mixer_entry  # noqa: E402
from agents.policy import PolicyConfig, ReturnConditionedPolicy  # noqa: E402
from envs.simulation.envpool import EnvPoolSimulators  # noqa: E402
from envs.simulation.rollout import rollout, start_seeds  # noqa: E402
from envs.simulation.simulators import Simulators  # noqa: E402

ENVIRONMENT, OBSERVATION_DIM, ACTION_DIM = "HalfCheetah-v5", 17, 6


def physics(engine: str, episodes: int, steps: int) -> float:
    """Seconds to make, reset and step the environments with ready actions."""
    seeds = start_seeds(0, np.arange(episodes))
    actions = np.random.default_rng(0).uniform(-1, 1, (64, episodes, ACTION_DIM))
    actions = actions.astype(np.float32)
    everything = np.arange(episodes)
    start = time.perf_counter()
    simulators = (
        Simulators(ENVIRONMENT, episodes)
        if engine == "gymnasium"
        else EnvPoolSimulators(ENVIRONMENT, episodes, seeds, horizon=None)
    )
    simulators.reset(everything, seeds)
    for step in range(steps):
        simulators.step(everything, actions[step % 64])
    simulators.close()
    return time.perf_counter() - start


def main() -> None:
    """Measures in rounds, prints and saves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1000, help="of an episode")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    policy = ReturnConditionedPolicy(
        PolicyConfig(),
        mixer_entry("min_gru")[0](),
        observation_dim=OBSERVATION_DIM,
        action_dim=ACTION_DIM,
    ).eval()
    window = make_actor(policy, "window", 20)
    episodes, steps = arguments.episodes, arguments.steps

    def ours(engine: str) -> float:
        carried = make_actor(policy, "carried", 20)
        return rollout(
            carried, ENVIRONMENT, episodes=episodes, seed=0, horizon=steps, engine=engine
        ).seconds

    def one_by_one() -> float:
        result = rollout(window, ENVIRONMENT, episodes=1, seed=0, horizon=steps)
        return result.seconds * episodes

    engines = ["gymnasium"] + ["envpool"] * (importlib.util.find_spec("envpool") is not None)
    measures: dict[str, Callable[[], float]] = {}
    for engine in engines:
        measures[f"physics, {engine}"] = lambda engine=engine: physics(engine, episodes, steps)
        measures[f"ours, {engine}"] = lambda engine=engine: ours(engine)
    measures["one by one, window"] = one_by_one
    samples: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(arguments.rounds):
        for name, measure in measures.items():
            samples[name].append(measure())
    medians = {name: statistics.median(values) for name, values in samples.items()}

    rows = []
    for name, seconds in medians.items():
        engine = name.rpartition(", ")[2]
        base = medians.get(f"physics, {engine}", medians["physics, gymnasium"])
        rows.append(
            {
                "what": name,
                "seconds for all episodes": f"{seconds:.2f}",
                "steps per second": f"{episodes * steps / seconds:.0f}",
                "x physics of its engine": f"{seconds / base:.2f}",
                "x ours, gymnasium": f"{seconds / medians['ours, gymnasium']:.2f}",
                "episodes": episodes,
                "steps": steps,
                "threads": arguments.threads,
            }
        )
        print(*(f"{key} {value};" for key, value in rows[-1].items()))
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    with open(results / "rollout.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
