"""Eight environments at once, in a loop of your own.

python examples/evaluate_in_your_loop.py [RUN]
"""

import sys
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from agents import load_actor

PRETRAINED = Path(__file__).parents[1] / "pretrained"


def main(run: str | Path = PRETRAINED / "hopper", steps: int = 1000) -> np.ndarray:
    """Plays eight Hoppers for some steps; returns the returns of the episodes that ended."""
    make = [lambda: gymnasium.make("Hopper-v5", max_episode_steps=500)] * 8
    environments = SyncVectorEnv(make, autoreset_mode=AutoresetMode.SAME_STEP)
    observations, _ = environments.reset(seed=0)
    actor = load_actor(run)
    actor.reset(8)
    earned, ended = np.zeros(8), []
    rewards, begins = np.zeros(8), np.ones(8, bool)
    for _ in range(steps):
        actions = actor.act(observations, rewards, begins)  # a row that begins forgets
        observations, rewards, terminated, truncated, _ = environments.step(actions)
        earned, begins = earned + rewards, terminated | truncated
        ended += earned[begins].tolist()
        earned[begins] = 0
    print(f"{len(ended)} episodes, mean return {np.mean(ended):,.0f}")
    return np.array(ended)


if __name__ == "__main__":
    main(*sys.argv[1:])
