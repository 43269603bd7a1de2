"""Records what the tests of the page compare with: the real environments and the real policies.

    python demo/record.py

For each policy an episode with the state carried, and the beginning of one with two states in turn:
observations, rewards and actions, as the actor acts in Gymnasium. For each robot the first steps of
its physics: start, actions, observations and rewards in float64. Numbers are base64, little-endian.
"""

import base64
import json
import sys
from pathlib import Path
from typing import Any

import gymnasium
import mujoco
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from agents.actor import Actor  # noqa: E402
from agents.checkpoint import load_policy, scored_as  # noqa: E402

POLICIES = {
    "halfcheetah-mix": "HalfCheetah-v5",
    "hopper": "Hopper-v5",
    "walker2d": "Walker2d-v5",
}
STEPS = {"carried": 1000, "rolling": 200}  # of an episode with each rollout
PHYSICS_STEPS = 100


def packed(values: Any, dtype: type) -> str:
    """Returns an array as text."""
    return base64.b64encode(np.asarray(values, dtype).tobytes()).decode()


def whole_episode(policy: str, environment: str, rollout: str) -> dict[str, Any]:
    """Returns the first episode that is long enough: the policies fall in some."""
    for seed in range(20):
        recorded = episode(policy, environment, rollout, seed)
        if recorded["steps"] == STEPS[rollout]:
            return recorded
    raise RuntimeError(f"{policy} falls in each of 20 episodes")


def episode(policy: str, environment: str, rollout: str, seed: int) -> dict[str, Any]:
    """Plays the policy, and returns what it saw and did; the first reward is 0."""
    env = gymnasium.make(environment)
    folder = ROOT / "pretrained" / policy
    network, description, _ = load_policy(folder)
    actor = Actor(network, **(scored_as(folder, description) | {"rollout": rollout}))
    observation, _ = env.reset(seed=seed)
    reward = 0.0
    observations, rewards, actions = [], [], []
    start = np.concatenate([env.unwrapped.data.qpos, env.unwrapped.data.qvel])
    for _ in range(STEPS[rollout]):
        action = actor.act(observation, reward)
        observations.append(observation)
        rewards.append(reward)
        actions.append(action)
        observation, reward, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            break
    recorded = {
        "rollout": rollout,
        "steps": len(actions),
        "observations": packed(observations, np.float32),
        "rewards": packed(rewards, np.float32),
        "actions": packed(actions, np.float32),
    }
    if rollout == "carried":
        n = PHYSICS_STEPS
        recorded["physics"] = {
            "steps": n,
            "start": packed(start, np.float64),
            "actions": packed(actions[:n], np.float64),
            "observations": packed(observations[1 : n + 1], np.float64),
            "rewards": packed(rewards[1 : n + 1], np.float64),
        }
    return recorded


def main() -> None:
    """Writes one file for each policy."""
    for policy, environment in POLICIES.items():
        recorded = {
            "environment": environment,
            "mujoco": mujoco.__version__,
            "gymnasium": gymnasium.__version__,
            "episodes": [whole_episode(policy, environment, rollout) for rollout in STEPS],
        }
        file = ROOT / "demo" / "test" / "recorded" / f"{policy}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(recorded, indent=1) + "\n")
        print(f"Written: {file.relative_to(ROOT)} ({file.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
