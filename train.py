"""Trains a return-conditioned policy on offline data and scores it in its environment.

    python train.py
    python train.py dataset=halfcheetah-medium-expert backbone=min_lstm seed=1 steps=20000
    python train.py experiment=windowed
    python train.py -m seed=0,1,2
    torchrun --nproc-per-node 2 train.py

`python train.py --help` lists the groups and every key.
"""

from __future__ import annotations

import common.interrupt  # isort: skip  # noqa: F401
import hashlib
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from omegaconf import OmegaConf
from rich.console import Console

from agents import distributed
from agents.checkpoint import (
    RunDescription,
    check_run_folder,
    claim_run_folder,
    load_description,
    load_policy,
    save_description,
)
from agents.policy import ReturnConditionedPolicy, check_hidden
from agents.prediction import prediction_errors
from agents.trainer import Trainer
from common.errors import UserError
from configs.launch import command
from configs.schema import TrainConfig, check_memory, published_target, resolve_device
from envs.data.baselines import guess_errors
from envs.data.batches import make_batches
from envs.data.combine import hold_out
from envs.data.episodes import Episodes
from envs.data.sources import load_episodes, named_environment
from envs.data.spaces import environment_spaces, fitting_spaces
from envs.tasks import DatasetInfo, Evaluation, hidden_indices
from eval import read_description, score_policy
from reports.held_out import HELD_OUT, HeldOut, print_held_out, read_held_out, write_held_out
from reports.scores import print_scores, read_scores, write_scores

# Of the episodes, to measure a run by whose data name no environment.
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Data:
    """What a run learns from and is measured by."""

    episodes: Episodes
    held_out: Episodes | None
    info: DatasetInfo
    evaluation: Evaluation


def main(config: TrainConfig, overrides: list[str]) -> None:
    """Runs one training: data, policy, updates, scores."""
    # Find the device, the other processes and the run folder; a finished run is only shown.
    device = resolve_device(config.device)
    check_memory(config, device)
    ranks = distributed.join(device, config.seed)
    console = Console(quiet=not ranks.leads, markup=False, highlight=False)
    folder = run_folder(config, overrides)
    if line := ranks.from_first(lambda: prepare(config, overrides)):
        console.print(line, soft_wrap=True)
        return show_result(folder, console)

    # Read the data, and resolve the evaluation that the run ends with.
    data = read_data(config, console)

    # Build the policy and make the run folder.
    torch.manual_seed(config.seed)
    policy = make_policy(config, data).to(ranks.device)
    if ranks.leads:
        text = config_text(config)
        claim_run_folder(folder, text, resume=config.resume, overwrite=config.overwrite)
        description = RunDescription(asdict(data.info), asdict(data.evaluation))
        save_description(folder, policy, config.backbone, description)

    # Train.
    trainer = make_trainer(config, data, policy, folder, ranks, console)
    if config.resume:
        trainer.resume()
    console.print(
        f"{config.backbone.name}, {sum(p.numel() for p in policy.parameters()):,} parameters, "
        f"on {ranks}: updates {trainer.step} to {config.steps}, into {folder}",
        soft_wrap=True,
    )
    if not trainer.run():
        raise command.Stopped(
            f"Saved at update {trainer.step} of {config.steps}; resume=true resumes."
        )

    # Score what was saved.
    if ranks.leads:
        score_run(config, data, folder, console)
        show_result(folder, console)


# -- the data and the policy ------------------------------------------------------------------


def read_data(config: TrainConfig, console: Console) -> Data:
    """Reads the data of a run; what their environment rules out is said before."""
    if config.policy.hidden or config.evaluation.asks_for_published:
        known = named_environment(config.dataset)
        hidden = hidden_indices(config.policy.hidden, known)
        if config.evaluation.asks_for_published:
            published_target(known)
        if known is not None:
            check_hidden(hidden, environment_spaces(known)[0].shape[0])
    episodes, held_out = load_episodes(config.dataset), None
    alone = episodes.environment_id is None
    if share := config.held_out or (HELD_OUT_SHARE if alone else 0):
        episodes, held_out = hold_out(episodes, share, config.seed)
    info = describe(episodes)
    evaluation = resolve_evaluation(config, info)
    if evaluation.environment_id is not None:
        dimensions = episodes.observations.shape[1], episodes.actions.shape[1]
        played_in = evaluation.environment_id, evaluation.environment_kwargs
        fitting_spaces(info.id, dimensions, *played_in)
    elif held_out is not None:
        console.print(
            f"note: {info.id} names no environment, so there is no rollout; held out, to measure "
            f"the error of the actions: {held_out.n_episodes:,} episodes, of "
            f"{episodes.n_episodes + held_out.n_episodes:,}.",
            soft_wrap=True,
        )
    if config.protocol.name == "windowed" and config.rollout == "carried" and not alone:
        console.print(
            f"note: trained on windows of {config.protocol.context_length} steps, the policy will "
            "carry its state further than that; rollout=rolling carries it as far as in training.",
            soft_wrap=True,
        )
    return Data(episodes, held_out, info, evaluation)


def describe(episodes: Episodes) -> DatasetInfo:
    """Returns what the run folder keeps of its data."""
    return DatasetInfo(
        id=episodes.dataset_id,
        environment_id=episodes.environment_id,
        environment_kwargs=episodes.environment_kwargs,
        reference=episodes.reference,
        episodes=episodes.n_episodes,
        steps=episodes.n_steps,
        return_mean=float(episodes.returns.mean()),
        return_top10=float(episodes.top_fraction_return(0.1)),
        return_max=float(episodes.returns.max()),
        sha256=episodes.sha256(),
    )


def make_policy(config: TrainConfig, data: Data) -> ReturnConditionedPolicy:
    """Builds the policy for a data set, with the statistics of the data."""
    known = data.info.environment_id, data.info.environment_kwargs
    policy = ReturnConditionedPolicy(
        replace(config.policy, hidden=hidden_indices(config.policy.hidden, *known)),
        config.backbone,
        observation_dim=data.episodes.observations.shape[1],
        action_dim=data.episodes.actions.shape[1],
    )
    names = ("observation_mean", "observation_std", "action_low", "action_high")
    statistics = {name: torch.as_tensor(getattr(data.episodes, name)) for name in names}
    policy.set_statistics(**statistics, target_return=data.evaluation.target_returns[0])
    return policy


def resolve_evaluation(config: TrainConfig, dataset: DatasetInfo) -> Evaluation:
    """Returns the evaluation that a run ends with; refuses a published target that is unknown."""
    target = config.evaluation.target_return
    if config.evaluation.asks_for_published:
        target = published_target(dataset.environment_id)
    elif target is None:
        target = dataset.return_top10
    return Evaluation(
        dataset.environment_id,
        config.rollout,
        config.protocol.context_length,
        (target,),
        environment_kwargs=dataset.environment_kwargs,
        episodes=config.evaluation.episodes,
        seed=config.evaluation.seed,
        observation_loss=config.conditions.observation_loss,
    )


# -- training and scoring ---------------------------------------------------------------------


def make_trainer(
    config: TrainConfig,
    data: Data,
    policy: ReturnConditionedPolicy,
    folder: Path,
    ranks: distributed.Ranks,
    console: Console,
) -> Trainer:
    """Makes the trainer of a run, which evaluates in between."""
    in_training = replace(data.evaluation, episodes=config.evaluation.episodes_in_training)
    shared = {"device": ranks.device, "observation_loss": config.conditions.observation_loss}

    def evaluate(acting: ReturnConditionedPolicy, step: int) -> dict[str, float]:
        found, scalars = [], {}
        if in_training.environment_id is not None:
            (score,) = score_policy(acting, in_training, data.info, step)
            scalars = score.scalars()
            found.append(
                f"return {score.return_mean:,.0f} ± {score.return_std:,.0f} over "
                f"{in_training.episodes} episodes"
            )
        if data.held_out is not None:
            batches = make_batches(data.held_out, config.protocol, seed=0, **shared)
            scalars["eval/loss"], _ = prediction_errors(acting, batches)
            found.append(f"held-out loss {scalars['eval/loss']:.4g}")
        console.print(f"update {step:,}: {', '.join(found)}")
        return scalars

    every = config.evaluation.every
    if data.held_out is not None:  # their loss is logged at least once
        every = min(every or config.steps, config.steps)
    shares = shared | {"rank": ranks.rank, "ranks": ranks.count}
    return Trainer(
        policy,
        make_batches(data.episodes, config.protocol, seed=config.seed, **shares),
        config.trainer,
        steps=config.steps,
        folder=folder,
        precision=config.precision,
        evaluate=evaluate,
        evaluate_every=every,
        console=console,
        ranks=ranks,
    )


def score_run(config: TrainConfig, data: Data, folder: Path, console: Console) -> None:
    """Scores what was saved, as eval.py would: from the run folder, with nothing else."""
    policy, description, step = load_policy(folder)
    dataset, evaluation = read_description(folder, description)
    if evaluation.environment_id is not None:
        scores = score_policy(policy, evaluation, dataset, step, console=console)
        return write_scores(folder / "scores.json", scores)
    # No environment: no rollout.
    assert data.held_out is not None
    shared = {
        "device": policy.action_low.device,
        "observation_loss": config.conditions.observation_loss,
    }
    batches = make_batches(data.held_out, config.protocol, seed=0, **shared)
    loss, error = prediction_errors(policy, batches)
    of_mean, of_previous = guess_errors(data.episodes, data.held_out)
    held_out = HeldOut(
        dataset_id=dataset.id,
        checkpoint_step=step,
        episodes=data.held_out.n_episodes,
        steps=data.held_out.n_steps,
        loss=loss,
        action_low=data.episodes.action_low.tolist(),
        action_high=data.episodes.action_high.tolist(),
        error=error.tolist(),
        mean_action_error=of_mean.tolist(),
        previous_action_error=of_previous.tolist(),
    )
    write_held_out(folder, held_out)


def show_result(folder: Path, console: Console) -> None:
    """Prints what a run folder's run ended with, and the command that scores it again."""
    dataset, evaluation = read_description(folder, load_description(folder))
    again = f"python eval.py run={folder}"
    if evaluation.environment_id is None:
        print_held_out(read_held_out(folder), console)
        console.print(f"Score it in an environment: {again} environment=ID", soft_wrap=True)
    else:
        print_scores(read_scores(folder / "scores.json"), dataset, console)
        console.print(f"Score it again: {again}", soft_wrap=True)


# -- the run folder ---------------------------------------------------------------------------


def run_folder(config: TrainConfig, overrides: list[str]) -> Path:
    """Names a run after what tells it from others: runs/walker2d-medium/min_gru-streamed-seed0."""
    if config.run_dir:
        return Path(config.run_dir)
    given = {override.partition("=")[0]: override for override in overrides}  # the last of a key
    experiment = given.get("experiment", "").partition("=")[2]
    recipe = config.protocol.name if experiment in ("", "null") else experiment
    unnamed = {"dataset", "backbone", "experiment", "protocol.name", "seed", "device", "resume"}
    unnamed |= {"dataset.path", "dataset.name", "dataset.parts", "overwrite", "run_dir"}
    # Only what needs no quoting in a shell or an override.
    others = [given[key] for key in sorted(given.keys() - unnamed)]
    rest = "".join("-" + re.sub(r"[^\w.]+", "-", other).strip("-") for other in others)
    if len(rest.encode()) > 100:
        rest = "-" + hashlib.sha256(rest.encode()).hexdigest()[:8]
    name = f"{config.backbone.name}-{recipe}-seed{config.seed}{rest}"
    return Path("runs", config.dataset.label, name)


def prepare(config: TrainConfig, overrides: list[str]) -> str | None:
    """Checks the folder of a run; returns one line if resuming finds nothing left to do."""
    asked = {"resume": config.resume, "overwrite": config.overwrite}
    resumes = check_run_folder(run_folder(config, overrides), config_text(config), **asked)
    return result(config, overrides) if resumes else None


def result(config: TrainConfig, overrides: list[str]) -> str | None:
    """Returns one line on a run that was scored after its last update; None if it was not."""
    folder = run_folder(config, overrides)
    try:
        if (folder / HELD_OUT).exists():
            held_out = read_held_out(folder)
            step, episodes = held_out.checkpoint_step, held_out.episodes
            found = f"held-out loss {held_out.loss:.4g}"
        else:
            score = read_scores(folder / "scores.json")[0]
            step, episodes = score.checkpoint_step, score.evaluation.episodes
            name, mean, std = "score", score.normalized_score_mean, score.normalized_score_std
            if mean is None:
                name, mean, std = "return", score.return_mean, score.return_std
            found = f"{name} {mean:,.1f} ± {std:,.1f}"
    except UserError:  # none, or damaged: scored again
        return None
    return f"{folder} is finished: {found}, {episodes} episodes" if step == config.steps else None


def config_text(config: TrainConfig) -> str:
    """Returns config.yaml: every value of the run, but not how this start of it was asked for."""
    values = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(values, dict)
    return OmegaConf.to_yaml({k: v for k, v in values.items() if k not in ("resume", "overwrite")})


if __name__ == "__main__":
    command.run("train", command.Program(main, run_folder, prepare, result))
