"""How far a rollout is from its physics alone, and from the way most projects evaluate.

    python benchmarks/rollout.py --threads 2

Measures, for each engine (Gymnasium, EnvPool where it is installed), environment steps per second:

- ``physics``: the environments stepped with actions that are ready, no policy
- ``ours``: the same number of episodes with a 3-layer minGRU policy, all side by side
- ``one by one, window``: one Gymnasium environment at a time whose policy runs the last 20 steps
  again at every step (Decision Transformer's evaluation), on a few episodes

Medians of interleaved rounds, HalfCheetah-v5 (every episode has all its steps). Saves rollout.csv.
"""

import importlib.util
from dataclasses import replace
from functools import partial
from statistics import median

import numpy as np
import torch
from timing import Measure, Row, interleaved, make_parser, printed, timed, write_csv

from agents.acting import make_actor
from agents.backbones import mixer_entry
from agents.policy import PolicyConfig, ReturnConditionedPolicy
from envs.simulation.envpool import EnvPoolSimulators
from envs.simulation.rollout import rollout, start_seeds
from envs.simulation.simulators import Simulators
from envs.tasks import Evaluation

ENVIRONMENT, OBSERVATION_DIM, ACTION_DIM = "HalfCheetah-v5", 17, 6


def physics(engine: str, episodes: int, steps: int) -> float:
    """Seconds to make, reset and step the environments with ready actions."""
    seeds, everything = start_seeds(0, np.arange(episodes)), np.arange(episodes)
    actions = np.random.default_rng(0).uniform(-1, 1, (64, episodes, ACTION_DIM))
    actions = actions.astype(np.float32)

    def run() -> None:
        simulators = (
            Simulators(ENVIRONMENT, episodes)
            if engine == "gymnasium"
            else EnvPoolSimulators(ENVIRONMENT, episodes, seeds, horizon=None)
        )
        simulators.reset(everything, seeds)
        for step in range(steps):
            simulators.step(everything, actions[step % 64])
        simulators.close()

    return timed(run)()


def main() -> None:
    """Measures in rounds, prints and saves."""
    parser = make_parser(__doc__, rounds=3, threads=2)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--steps", type=int, default=1000, help="of an episode")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    config = mixer_entry("min_gru")[0]()
    dimensions = {"observation_dim": OBSERVATION_DIM, "action_dim": ACTION_DIM}
    policy = ReturnConditionedPolicy(PolicyConfig(), config, **dimensions).eval()
    window = make_actor(policy, "window", 20)
    episodes, steps = arguments.episodes, arguments.steps
    asked = Evaluation(
        ENVIRONMENT, "carried", 20, (6000.0,), episodes=episodes, n_envs=episodes, horizon=steps
    )

    def ours(engine: str) -> float:
        carried = make_actor(policy, "carried", 20)
        return rollout(carried, replace(asked, engine=engine)).seconds

    def one_by_one() -> float:
        return rollout(window, replace(asked, episodes=1)).seconds * episodes

    engines = ["gymnasium"] + ["envpool"] * (importlib.util.find_spec("envpool") is not None)
    measures: dict[str, Measure] = {}
    for engine in engines:
        measures[f"physics, {engine}"] = partial(physics, engine, episodes, steps)
        measures[f"ours, {engine}"] = partial(ours, engine)
    measures["one by one, window"] = one_by_one
    samples = interleaved(measures, arguments.rounds, warm_up=0)
    medians = {name: median(values) for name, values in samples.items()}

    def row(name: str, seconds: float) -> Row:
        base = medians.get(f"physics, {name.rpartition(', ')[2]}", medians["physics, gymnasium"])
        return {
            "what": name,
            "seconds for all episodes": f"{seconds:.2f}",
            "steps per second": f"{episodes * steps / seconds:.0f}",
            "x physics of its engine": f"{seconds / base:.2f}",
            "x ours, gymnasium": f"{seconds / medians['ours, gymnasium']:.2f}",
            "episodes": episodes,
            "steps": steps,
            "threads": arguments.threads,
        }

    write_csv(arguments.out / "rollout.csv", printed(row(*item) for item in medians.items()))


if __name__ == "__main__":
    main()
