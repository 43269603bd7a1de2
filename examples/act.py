"""One episode of a policy that ships with the project.

python examples/act.py [RUN] [TARGET_RETURN]
"""

import sys
from pathlib import Path

import gymnasium

from agents import load_actor

PRETRAINED = Path(__file__).parents[1] / "pretrained"


def main(run: str | Path = PRETRAINED / "hopper", target_return: str | None = None) -> float:
    """Plays one episode in Hopper and returns what it earned."""
    actor = load_actor(run, None if target_return is None else float(target_return))
    environment = gymnasium.make("Hopper-v5")
    observation, _ = environment.reset(seed=0)
    actor.reset()
    reward, earned, done = None, 0.0, False
    while not done:
        action = actor.act(observation, reward)  # the state is the actor's own
        observation, reward, terminated, truncated, _ = environment.step(action)
        earned, done = earned + reward, terminated or truncated
    print(f"{run}: {earned:,.0f}")
    return earned


if __name__ == "__main__":
    main(*sys.argv[1:])
