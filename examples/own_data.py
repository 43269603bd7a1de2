"""From arrays of your own to a policy, without a file in between.

python examples/own_data.py
"""

import numpy as np

from envs import Episodes
from train import TrainedRun, train


def main(steps: int = 200) -> TrainedRun:
    """Trains on random swings of a pendulum; put your robot's log in their place."""
    draw = np.random.default_rng(0)
    angle, speed = draw.uniform(-np.pi, np.pi, 4000), draw.uniform(-8, 8, 4000)
    torque = draw.uniform(-2, 2, (4000, 1))
    episodes = Episodes.from_arrays(  # one row a step
        observations=np.stack([np.cos(angle), np.sin(angle), speed], axis=1),
        actions=torque,
        rewards=-(angle**2) - 0.1 * speed**2 - 0.001 * torque[:, 0] ** 2,
        terminations=np.zeros(4000),
        truncations=np.arange(4000) % 200 == 199,
        action_low=[-2],
        action_high=[2],
        dataset_id="mine/pendulum-v0",
        environment_id="Pendulum-v1",  # leave it out if there is none: a part is held out instead
    )
    run = train(episodes, steps=steps, overwrite=True)
    for score in run.scores:
        print(f"{run.folder}: {score.return_mean:,.0f} ± {score.return_std:,.0f}")
    return run


if __name__ == "__main__":
    main()
