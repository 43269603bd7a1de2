"""Run folders for tests, written by the project's own writers; only the returns are made up."""

from dataclasses import replace

import numpy as np

import train
from agents.backbones import MIXERS
from agents.checkpoint import RunDescription, claim_run_folder, save_description
from agents.policy import ReturnConditionedPolicy
from agents.trainer import Metrics
from configs.schema import TrainConfig
from envs.data.sources import DatasetConfig
from envs.simulation.rollout import RolloutResult
from envs.tasks import TASKS
from reports.scores import make_score, write_scores


def make_run(
    folder,
    task="hopper-medium",
    backbone="min_gru",
    *,
    score=50.0,
    curve=(),
    episodes=4,
    targets=(3000.0,),
    environment=None,
    engine="gymnasium",
    referenced=True,
    finished=True,
    step=1500,
    protocol=None,
    sha256=None,
    others=None,
    **keys,
):
    """Writes a run folder as train.py does, without training.

    `others`: the stem of a further file of scores to its (score, target, changed keys).
    """
    name, _, kind = task.partition("-")
    about = TASKS[name]
    config = TrainConfig(
        dataset=DatasetConfig(source="builtin", id=f"builtin/{name}/{kind}-v0"),
        backbone=MIXERS[backbone][0](d_model=8, n_layer=1),
        **keys,
    )
    for key, value in (protocol or {}).items():
        setattr(config.protocol, key, value)
    claim_run_folder(folder, train.config_text(config), resume=False, overwrite=False)
    dataset = {"id": config.dataset.id, "environment_id": about.environment_id}
    if referenced:
        dataset |= {
            "reference_min": about.reference.minimum,
            "reference_max": about.reference.maximum,
        }
    dataset |= {"reference_source": about.reference.source, "episodes": 9, "steps": 999}
    dataset |= {"return_mean": 1000.0, "return_top10": 3000.0, "return_max": 3300.0}
    if sha256 is not None:
        dataset["sha256"] = sha256
    described = RunDescription(config.rollout, config.protocol.context_length, dataset)
    policy = ReturnConditionedPolicy(
        config.policy, config.backbone, observation_dim=2, action_dim=1
    )
    save_description(folder, policy, config.backbone, described)

    def scored(value, target):
        mean = about.reference.minimum + value / 100 * (
            about.reference.maximum - about.reference.minimum
        )
        returns = mean + np.linspace(-1, 1, episodes)
        lengths = np.full(episodes, 1000)
        result = RolloutResult(
            engine=engine,
            episode_returns=returns,
            episode_lengths=lengths,
            environment_id=environment or about.environment_id,
            mujoco_version="3.3.1",
            seed=1000,
            seconds=2.0,
            policy_seconds=1.0,
        )
        return make_score(result, described, target, step)

    metrics = Metrics(folder, resume_step=0)
    for i, value in enumerate(curve, start=1):
        metrics.record(50 * i, {"train/loss": 1.0})
        metrics.record(50 * i, scored(value, targets[0]).scalars())
    metrics.close()
    if finished:
        write_scores(folder / "scores.json", [scored(score, target) for target in targets])
    for stem, rows in (others or {}).items():
        made = [replace(scored(value, target), **changed) for value, target, changed in rows]
        write_scores(folder / f"{stem}.json", made)
    return folder


def damage(folder, name, change):
    path = folder / name
    path.write_text(change(path.read_text()))
