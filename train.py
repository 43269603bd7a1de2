"""Trains a return-conditioned policy on offline data and scores it in its environment.

    python train.py
    python train.py dataset=halfcheetah-medium-expert backbone=min_lstm seed=1 steps=20000
    python train.py experiment=windowed
    python train.py -m seed=0,1,2
    torchrun --nproc-per-node 2 train.py

`python train.py --help` lists the groups and every key.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import OmegaConf
from rich.console import Console

from agents import distributed
from agents.checkpoint import (
    RunDescription,
    build_policy,
    check_run_folder,
    claim_run_folder,
    load_policy,
    save_description,
)
from agents.policy import ReturnConditionedPolicy
from agents.trainer import Trainer
from common.errors import UserError
from configs.launch import command
from configs.schema import TrainConfig, check_memory, published_target, resolve_device
from envs.data.batches import Batches, make_batches
from envs.data.combine import hold_out
from envs.data.episodes import Episodes
from envs.data.sources import load_episodes
from envs.data.spaces import environment_spaces, require_dimensions
from envs.tasks import DatasetInfo, Evaluation
from eval import read_description, score_policy
from reports.scores import Score, print_scores, read_scores, write_scores


def main(config: TrainConfig, overrides: list[str]) -> None:
    """Runs one training: data, policy, updates, scores."""
    device = resolve_device(config.device)
    check_memory(config, device)
    ranks = distributed.join(device, config.seed)
    console = Console(quiet=not ranks.leads, markup=False, highlight=False)
    folder = run_folder(config, overrides)
    if line := ranks.from_first(lambda: prepare(config, overrides)):
        console.print(line, soft_wrap=True)
        return show_scores(folder, read_scores(folder / "scores.json"), console)
    with ranks.one_first():
        episodes = load_episodes(config.dataset)
    held_out = None
    if config.held_out:
        episodes, held_out = hold_out(episodes, config.held_out, config.seed)
    dataset = describe(episodes)
    evaluation = resolve_evaluation(config, dataset)
    dimensions = episodes.observations.shape[1], episodes.actions.shape[1]
    spaces = environment_spaces(evaluation.environment_id, evaluation.environment_kwargs)
    require_dimensions(dataset.id, evaluation.environment_id, spaces, dimensions)
    if ranks.leads:
        text = config_text(config)
        claim_run_folder(folder, text, resume=config.resume, overwrite=config.overwrite)

    if config.protocol.name == "windowed" and config.rollout == "carried":
        console.print(
            f"note: trained on windows of {config.protocol.context_length} steps, the policy will "
            "act with its state carried on further than that; rollout=rolling acts on as long a "
            "past as it was trained on.",
            highlight=False,
            soft_wrap=True,
        )
    torch.manual_seed(config.seed)
    policy = make_policy(config, episodes, evaluation.target_returns[0]).to(ranks.device)
    if ranks.leads:
        description = RunDescription(dataset.to_dict(), evaluation.to_dict())
        save_description(folder, policy, config.backbone, description)
    in_training = replace(evaluation, episodes=config.evaluation.episodes_in_training)

    def evaluate(acting: ReturnConditionedPolicy, step: int) -> dict[str, float]:
        (score,) = score_policy(acting, in_training, dataset, step)
        console.print(
            f"update {step:,}: return {score.return_mean:,.0f} ± {score.return_std:,.0f} over "
            f"{in_training.episodes} episodes",
            highlight=False,
        )
        scalars = score.scalars()
        if held_out is not None:
            batches = make_batches(held_out, config.protocol, seed=0, device=ranks.device)
            scalars["eval/loss"] = mean_loss(acting, batches)
        return scalars

    every = config.evaluation.every
    if held_out is not None:  # their loss is logged once at least
        every = min(every or config.steps, config.steps)
    trainer = Trainer(
        policy,
        make_batches(
            episodes,
            config.protocol,
            seed=config.seed,
            device=ranks.device,
            rank=ranks.rank,
            ranks=ranks.count,
        ),
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
    if not ranks.leads:
        return
    # Scored as eval.py would score it: from the run folder, with nothing else.
    policy, description, step = load_policy(folder)
    dataset, evaluation = read_description(folder, description)
    scores = score_policy(policy, evaluation, dataset, step, console=console)
    write_scores(folder / "scores.json", scores)
    show_scores(folder, scores, console)


def show_scores(folder: Path, scores: list[Score], console: Console) -> None:
    """Prints the scores of a run folder, and the command that scores it again."""
    dataset, _ = read_description(folder, build_policy(folder)[1])
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
    policy = ReturnConditionedPolicy(
        config.policy,
        config.backbone,
        observation_dim=episodes.observations.shape[1],
        action_dim=episodes.actions.shape[1],
    )
    policy.set_statistics(
        observation_mean=torch.as_tensor(episodes.observation_mean),
        observation_std=torch.as_tensor(episodes.observation_std),
        action_low=torch.as_tensor(episodes.action_low),
        action_high=torch.as_tensor(episodes.action_high),
        target_return=target_return,
    )
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
    """Returns the folder of a run."""
    return Path(config.run_dir or default_run_dir(config, overrides))


def prepare(config: TrainConfig, overrides: list[str]) -> str | None:
    """Looks at the folder of a run: returns one line if resuming finds nothing left to do.

    Raises:
        UserError: The folder holds a run that is not to be touched.
    """
    asked = {"resume": config.resume, "overwrite": config.overwrite}
    resumes = check_run_folder(run_folder(config, overrides), config_text(config), **asked)
    return result(config, overrides) if resumes else None


def result(config: TrainConfig, overrides: list[str]) -> str | None:
    """Returns one line on a run that was scored after its last update; None if it was not."""
    folder = run_folder(config, overrides)
    try:
        score = read_scores(folder / "scores.json")[0]
        name, mean, std = "return", score.return_mean, score.return_std
        if score.normalized_score_mean is not None and score.normalized_score_std is not None:
            name, mean, std = "score", score.normalized_score_mean, score.normalized_score_std
    except UserError:  # none, or damaged: scored again
        return None
    episodes = score.evaluation.episodes
    line = f"{folder} is finished: {name} {mean:,.1f} ± {std:,.1f}, {episodes} episodes"
    return line if score.checkpoint_step == config.steps else None


def default_run_dir(config: TrainConfig, overrides: list[str]) -> str:
    """Names a run after what tells it from others: runs/hopper-medium/min_gru-streamed-seed0."""
    chosen = dict(override.partition("=")[::2] for override in overrides).get("experiment")
    recipe = config.protocol.name if chosen in (None, "null") else chosen
    name = f"{config.backbone.name}-{recipe}-seed{config.seed}"
    named = ("dataset", "backbone", "experiment", "protocol.name", "seed", "device")
    named += ("dataset.path", "dataset.name", "dataset.parts")
    unnamed = ("resume", "overwrite", "run_dir")
    last = {o.partition("=")[0]: o for o in overrides}  # of a key that is given twice
    others = [last[key] for key in sorted(last) if key not in (*named, *unnamed)]
    # Only what needs no quoting in a shell or an override.
    rest = "".join("-" + re.sub(r"[^\w.]+", "-", other).strip("-") for other in others)
    if len(rest.encode()) > 100:
        rest = "-" + hashlib.sha256(rest.encode()).hexdigest()[:8]
    return str(Path("runs", config.dataset.label, name + rest))


def config_text(config: TrainConfig) -> str:
    """Returns config.yaml: every value of the run, but not how this start of it was asked for."""
    values = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(values, dict)
    return OmegaConf.to_yaml({k: v for k, v in values.items() if k not in ("resume", "overwrite")})


if __name__ == "__main__":
    command.run("train", command.Program(main, run_folder, prepare, result))
