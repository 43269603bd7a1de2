"""Run folders for tests, written by the project's own writers; only the returns are made up."""

from dataclasses import asdict, replace

import numpy as np

from agents.backbones import MIXERS
from agents.checkpoint import RunDescription, claim_run_folder, save_description
from agents.metrics import Metrics
from agents.policy import ReturnConditionedPolicy
from configs.launch.run_folder import config_text
from configs.schema import TrainConfig, resolve_evaluation
from envs.data.sources import DatasetConfig
from envs.tasks import TASKS, DatasetInfo, RolloutResult
from reports.scores import make_scores, write_scores


def make_run(
    folder,
    task="hopper-medium",
    backbone="min_gru",
    *,
    score=50.0,
    curve=(),
    episodes=4,
    targets=(3000.0,),
    held=False,
    chosen=False,
    environment=None,
    engine="gymnasium",
    referenced=True,
    finished=True,
    step=1500,
    protocol=None,
    sha256=None,
    updates_per_second=None,
    others=None,
    **keys,
):
    """Writes a run folder as train.py does, without training.

    `targets`: of scores.json, the first is the run's own. `others`: the stem of a further file of
    scores to its (score, target, what differs).
    """
    name, _, kind = task.partition("-")
    about = TASKS[name]
    config = TrainConfig(
        dataset=DatasetConfig(source="builtin", id=f"builtin/{name}/{kind}-v1"),
        backbone=MIXERS[backbone][0](d_model=8, n_layer=1),
        **keys,
    )
    for key, value in (protocol or {}).items():
        setattr(config.protocol, key, value)
    claim_run_folder(folder, config_text(config), resume=False, overwrite=False)
    dataset = DatasetInfo(
        id=config.dataset.id,
        environment_id=about.environment_id,
        environment_kwargs={},
        reference=about.reference if referenced else None,
        episodes=9,
        steps=999,
        return_mean=1000.0,
        return_top10=3000.0,
        return_max=3300.0,
        sha256=sha256 or "0" * 64,
    )
    own = resolve_evaluation(config, dataset)
    own = replace(own, target_returns=targets[:1], held=held, chosen=chosen, episodes=episodes)
    described = RunDescription(asdict(dataset), asdict(own))
    policy = ReturnConditionedPolicy(
        config.policy, config.backbone, observation_dim=2, action_dim=1
    )
    save_description(folder, policy, config.backbone, described)

    def scored(value, target, checkpoint_step=step, **changed):
        mean = about.reference.minimum + value / 100 * (
            about.reference.maximum - about.reference.minimum
        )
        evaluation = replace(own, target_returns=(target,), engine=engine)
        evaluation = replace(evaluation, **changed)
        result = RolloutResult(
            episode_returns=mean + np.linspace(-1, 1, evaluation.episodes)[None],
            episode_lengths=np.full((1, evaluation.episodes), 1000),
            successes=None,
            environment_id=environment or evaluation.environment_id,
            engine_version="1.2.0",
            mujoco_version="3.3.1",
            seconds=2.0,
        )
        hidden = config.policy.hidden or ()
        return make_scores(result, evaluation, dataset, checkpoint_step, hidden)[0]

    metrics = Metrics(folder, resume_step=0)
    if updates_per_second is not None:
        metrics.record(step, {"time/updates_per_second": updates_per_second})
    for i, value in enumerate(curve, start=1):
        metrics.record(50 * i, {"train/loss": 1.0})
        metrics.record(50 * i, scored(value, targets[0]).scalars())
    metrics.close()
    if finished:
        write_scores(folder / "scores.json", [scored(score, target) for target in targets])
    for stem, rows in (others or {}).items():
        made = [scored(value, target, **changed) for value, target, changed in rows]
        write_scores(folder / f"{stem}.json", made)
    return folder


def damage(folder, name, change):
    path = folder / name
    path.write_text(change(path.read_text()))
