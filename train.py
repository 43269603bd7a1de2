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
from dataclasses import asdict, replace
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
from agents.trainer import Trainer
from common.errors import UserError
from configs.launch import command
from configs.schema import TrainConfig, check_memory, published_target, resolve_device
from envs.data.batches import Batches, make_batches
from envs.data.combine import hold_out
from envs.data.episodes import Episodes
from envs.data.sources import load_episodes
from envs.data.spaces import environment_spaces, require_dimensions
from envs.tasks import DatasetInfo, Evaluation, hidden_indices
from eval import read_description, score_policy
from reports.scores import Score, print_scores, read_scores, write_scores


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
        return show_scores(folder, read_scores(folder / "scores.json"), console)

    # Read the data, and resolve the evaluation that the run ends with.
    if config.policy.hidden and (known := config.dataset.known_environment):
        hidden = hidden_indices(config.policy.hidden, known)
        check_hidden(hidden, environment_spaces(known)[0].shape[0])
    episodes, held_out = load_episodes(config.dataset), None
    if config.held_out:
        episodes, held_out = hold_out(episodes, config.held_out, config.seed)
    dataset = describe(episodes)
    evaluation = resolve_evaluation(config, dataset)
    dimensions = episodes.observations.shape[1], episodes.actions.shape[1]
    spaces = environment_spaces(evaluation.environment_id, evaluation.environment_kwargs)
    require_dimensions(dataset.id, evaluation.environment_id, spaces, dimensions)
    if config.protocol.name == "windowed" and config.rollout == "carried":
        console.print(
            f"note: trained on windows of {config.protocol.context_length} steps, the policy will "
            "carry its state further than that; rollout=rolling carries it as far as in training.",
            soft_wrap=True,
        )

    # Build the policy and make the run folder.
    torch.manual_seed(config.seed)
    policy = make_policy(config, episodes, evaluation.target_returns[0]).to(ranks.device)
    if ranks.leads:
        text = config_text(config)
        claim_run_folder(folder, text, resume=config.resume, overwrite=config.overwrite)
        description = RunDescription(asdict(dataset), asdict(evaluation))
        save_description(folder, policy, config.backbone, description)

    # Train.
    in_training = replace(evaluation, episodes=config.evaluation.episodes_in_training)

    def evaluate(acting: ReturnConditionedPolicy, step: int) -> dict[str, float]:
        (score,) = score_policy(acting, in_training, dataset, step)
        console.print(
            f"update {step:,}: return {score.return_mean:,.0f} ± {score.return_std:,.0f} over "
            f"{in_training.episodes} episodes",
        )
        scalars = score.scalars()
        if held_out is not None:
            batches = make_batches(held_out, config.protocol, seed=0, device=ranks.device)
            scalars["eval/loss"] = mean_loss(acting, batches)
        return scalars

    every = config.evaluation.every
    if held_out is not None:  # their loss is logged at least once
        every = min(every or config.steps, config.steps)
    shared = {"device": ranks.device, "rank": ranks.rank, "ranks": ranks.count}
    trainer = Trainer(
        policy,
        make_batches(episodes, config.protocol, seed=config.seed, **shared),
        config.trainer,
        steps=config.steps,
        folder=folder,
        precision=config.precision,
        evaluate=evaluate,
        evaluate_every=every,
        console=console,
        ranks=ranks,
    )
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

    # Score what was saved, as eval.py would: from the run folder, with nothing else.
    if ranks.leads:
        policy, description, step = load_policy(folder)
        dataset, evaluation = read_description(folder, description)
        scores = score_policy(policy, evaluation, dataset, step, console=console)
        write_scores(folder / "scores.json", scores)
        show_scores(folder, scores, console)


def show_scores(folder: Path, scores: list[Score], console: Console) -> None:
    """Prints the scores of a run folder, and the command that scores it again."""
    dataset, _ = read_description(folder, load_description(folder))
    print_scores(scores, dataset, console)
    console.print(f"Score it again: python eval.py run={folder}")


@torch.no_grad()
def mean_loss(policy: ReturnConditionedPolicy, batches: Batches, count: int = 20) -> float:
    """Returns the mean loss of a policy in evaluation mode over some batches."""
    losses, carried = [], None
    for _ in range(count):
        loss, state = policy.loss(**batches.next(), state=carried)
        carried = state if batches.continues else None
        losses.append(loss)
    return torch.stack(losses).mean().item()


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


def make_policy(
    config: TrainConfig, episodes: Episodes, target_return: float
) -> ReturnConditionedPolicy:
    """Builds the policy for a data set, with the statistics of the data."""
    known = episodes.environment_id, episodes.environment_kwargs
    policy = ReturnConditionedPolicy(
        replace(config.policy, hidden=hidden_indices(config.policy.hidden, *known)),
        config.backbone,
        observation_dim=episodes.observations.shape[1],
        action_dim=episodes.actions.shape[1],
    )
    names = ("observation_mean", "observation_std", "action_low", "action_high")
    statistics = {name: torch.as_tensor(getattr(episodes, name)) for name in names}
    policy.set_statistics(**statistics, target_return=target_return)
    return policy


def resolve_evaluation(config: TrainConfig, dataset: DatasetInfo) -> Evaluation:
    """Returns the evaluation that a run ends with.

    Raises:
        UserError: The data name no environment, or no published target is known for it.
    """
    if dataset.environment_id is None:
        raise UserError(
            f"{dataset.id} does not name the environment that it was recorded in, and the policy "
            "is scored in one; give its Gymnasium id as dataset.environment=ID."
        )
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
    )


def run_folder(config: TrainConfig, overrides: list[str]) -> Path:
    """Names a run after what tells it from others: runs/hopper-medium/min_gru-streamed-seed0."""
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
        score = read_scores(folder / "scores.json")[0]
    except UserError:  # none, or damaged: scored again
        return None
    if score.checkpoint_step != config.steps:
        return None
    name, mean, std = "score", score.normalized_score_mean, score.normalized_score_std
    if mean is None:
        name, mean, std = "return", score.return_mean, score.return_std
    episodes = score.evaluation.episodes
    return f"{folder} is finished: {name} {mean:,.1f} ± {std:,.1f}, {episodes} episodes"


def config_text(config: TrainConfig) -> str:
    """Returns config.yaml: every value of the run, but not how this start of it was asked for."""
    values = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(values, dict)
    return OmegaConf.to_yaml({k: v for k, v in values.items() if k not in ("resume", "overwrite")})


if __name__ == "__main__":
    command.run("train", command.Program(main, run_folder, prepare, result))
