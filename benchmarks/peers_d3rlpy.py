"""Trains an algorithm of d3rlpy on an .npz file; peers.py starts it where d3rlpy is installed.

    python peers_d3rlpy.py DATA.npz ALGORITHM UPDATES SEED POLICY.pt

The settings are those of d3rlpy's own reproductions on D4RL (its reproductions/offline/iql.py and
td3_plus_bc.py), but for the number of updates, there 500,000. The learned policy is written as
TorchScript, observations to actions; the seconds of the training are printed.
"""

import sys
import time

import d3rlpy
import numpy as np
import torch
from d3rlpy.preprocessing import ReturnBasedRewardScaler, StandardObservationScaler

MAKE = {
    "iql": lambda updates: d3rlpy.algos.IQLConfig(
        actor_optim_factory=d3rlpy.optimizers.AdamFactory(
            lr_scheduler_factory=d3rlpy.optimizers.CosineAnnealingLRFactory(T_max=updates)
        ),
        weight_temp=3.0,
        max_weight=100.0,
        expectile=0.7,
        reward_scaler=ReturnBasedRewardScaler(multiplier=1000.0),
    ),
    "td3_plus_bc": lambda updates: d3rlpy.algos.TD3PlusBCConfig(
        alpha=2.5,
        update_actor_interval=2,
        target_smoothing_sigma=0.2,
        target_smoothing_clip=0.5,
        observation_scaler=StandardObservationScaler(),
    ),
}


def main(data: str, algorithm: str, updates: int, seed: int, policy: str) -> None:
    """Trains and writes the policy."""
    torch.set_num_threads(1)
    d3rlpy.seed(seed)
    with np.load(data) as arrays:
        dataset = d3rlpy.dataset.MDPDataset(
            *(arrays[n] for n in ("observations", "actions", "rewards", "terminals", "timeouts"))
        )
    learner = MAKE[algorithm](updates).create(device="cpu:0")
    begin = time.perf_counter()
    learner.fit(
        dataset,
        n_steps=updates,
        n_steps_per_epoch=updates,
        show_progress=False,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
    )
    print(f"seconds {time.perf_counter() - begin:.1f}")
    learner.save_policy(policy)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
