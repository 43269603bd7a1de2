"""Trains a return-conditioned policy on offline data and scores it in its environment.

    python train.py
    python train.py dataset=halfcheetah-medium-expert backbone=min_lstm seed=1 steps=20000
    python train.py experiment=windowed
    python train.py -m seed=0,1,2
    torchrun --nproc-per-node 2 train.py

`python train.py --help` lists the groups and every key. In Python, nothing is printed:

    from train import train

    run = train("hopper-medium-expert", steps=300)
    run.folder, run.scores, run.metrics
    actor = run.actor(target_return=3000)
"""

from __future__ import annotations

import common.threads

if __name__ == "__main__":
    import common.interrupt  # isort: skip  # noqa: F401
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from agents import distributed
from agents.actor import Actor, load_actor
from agents.checkpoint import (
    RunDescription,
    check_run_folder,
    claim_run_folder,
    load_description,
    load_policy,
    save_description,
)
from agents.policy import ReturnConditionedPolicy
from agents.prediction import prediction_errors
from agents.trainer import Trainer
from configs.launch import command
from configs.launch.data import Data, read_data
from configs.launch.from_python import make_config, overrides_of
from configs.launch.machine import check_memory, resolve_device, resolve_precision
from configs.launch.run_folder import config_text, run_folder
from configs.launch.value_help import ValueHelp, make_value_help
from configs.schema import TrainConfig
from envs.data.baselines import guess_errors
from envs.data.batches import make_batches
from envs.data.episodes import Episodes
from envs.data.sources import DatasetConfig
from envs.tasks import hidden_indices
from eval import chooser, read_description, score_policy
from reports.held_out import HELD_OUT, HeldOut, print_held_out, read_held_out, write_held_out
from reports.progress import finished
from reports.run_files import read_log
from reports.scores import Score, print_scores, read_scores, write_scores


def train(data: str | Episodes | DatasetConfig | TrainConfig, **keys: Any) -> TrainedRun:
    """Trains a policy and scores it, as `python train.py` does; prints nothing.

    Args:
        data: The name of a data set (built in, of Minari, a D4RL file); episodes in memory; or a
            configuration.
        **keys: Fields of `configs.schema.TrainConfig`, such as steps=300, run_dir="runs/mine" or
            trainer=TrainerConfig(learning_rate=3e-4); backbone may also be a name.

    Returns:
        The run: its folder, scores, metrics and actor.

    Raises:
        UserError: A key, the data or the run folder cannot be used as they are.
        KeyboardInterrupt: The training was stopped, and saved; resume=True resumes it.
    """
    episodes = data if isinstance(data, Episodes) else None
    config = make_config(data, keys)
    folder = run_folder(config, overrides_of(config))
    try:
        make_run(config, folder, episodes, quiet=True)
    except command.Stopped as stop:
        raise KeyboardInterrupt(str(stop)) from None
    return TrainedRun(folder)


@dataclass(frozen=True)
class TrainedRun:
    """A run that has ended.

    Attributes:
        folder: Its folder; all that follows is read from it.
    """

    folder: Path

    def actor(self, target_return: float | None = None) -> Actor:
        """Returns the actor of the policy; see agents.load_actor."""
        return load_actor(self.folder, target_return)

    @property
    def scores(self) -> list[Score]:
        """The scores of the run's own evaluation; none where the data name no environment."""
        path = self.folder / "scores.json"
        return read_scores(path) if path.exists() else []

    @property
    def held_out(self) -> HeldOut | None:
        """The error on the episodes held out, where the data name no environment."""
        return read_held_out(self.folder) if (self.folder / HELD_OUT).exists() else None

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of the training: the step, the losses, the scores on the way."""
        return list(read_log(self.folder / "metrics.jsonl"))


# -- one run ----------------------------------------------------------------------------------


def main(config: TrainConfig, overrides: list[str]) -> None:
    """Makes the run of a command line."""
    make_run(config, run_folder(config, overrides))


def make_run(
    config: TrainConfig, folder: Path, episodes: Episodes | None = None, *, quiet: bool = False
) -> None:
    """Runs one training: data, policy, updates, scores.

    `episodes` are given where the data are in memory.
    """
    # Find the device, the other processes and the run folder; a finished run is only shown.
    device = resolve_device(config.device)
    check_memory(config, device)
    ranks = distributed.join(device, config.seed)
    console = Console(quiet=quiet or not ranks.leads, markup=False, highlight=False)
    if line := ranks.from_first(lambda: claimable(config, folder)):
        console.print(line, soft_wrap=True)
        return show_result(folder, console)

    # Read the data, and resolve the evaluation that the run ends with.
    data = read_data(config, console, episodes)

    # Build the policy and make the run folder.
    torch.manual_seed(config.seed)
    policy = make_policy(config, data).to(ranks.device)
    if ranks.leads:
        text = config_text(config)
        claim_run_folder(folder, text, resume=config.resume, overwrite=config.overwrite)
        description = RunDescription(asdict(data.info), asdict(data.evaluation))
        save_description(folder, policy, config.backbone, description)

    # Train, with value help if it is asked for.
    value_help = make_value_help(config, data, folder, ranks, console)
    trainer = make_trainer(config, data, policy, value_help, folder, ranks, console)
    if config.resume:
        trainer.resume()
    console.print(
        f"{config.backbone.name}, {sum(p.numel() for p in policy.parameters()):,} parameters, "
        f"on {ranks}: updates {trainer.step} to {config.steps} in {trainer.precision}, "
        f"into {folder}",
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


# -- training and scoring ---------------------------------------------------------------------


def make_trainer(
    config: TrainConfig,
    data: Data,
    policy: ReturnConditionedPolicy,
    value_help: ValueHelp | None,
    folder: Path,
    ranks: distributed.Ranks,
    console: Console,
) -> Trainer:
    """Makes the trainer of a run, which evaluates in between."""
    in_training = replace(data.evaluation, episodes=config.evaluation.episodes_in_training)
    shared = {"device": ranks.device, "observation_loss": config.conditions.observation_loss}
    critic, weights = value_help or (None, None)
    chooses = critic if in_training.chosen else None
    uniform = replace(config.protocol, best_share=0.0)  # the error is one of all episodes held out

    def evaluate(acting: ReturnConditionedPolicy, step: int) -> dict[str, float]:
        found, scalars = [], {}
        if in_training.environment_id is not None:
            (score,) = score_policy(acting, in_training, data.info, step, critic=chooses)
            scalars = score.scalars()
            found.append(
                f"return {score.return_mean:,.0f} ± {score.return_std:,.0f} over "
                f"{in_training.episodes} episodes"
            )
        if data.held_out is not None:
            batches = make_batches(data.held_out, uniform, seed=0, **shared)
            scalars["eval/loss"], _ = prediction_errors(acting, batches)
            found.append(f"held-out loss {scalars['eval/loss']:.4g}")
        console.print(f"update {step:,}: {', '.join(found)}")
        return scalars

    every = config.evaluation.every
    if data.held_out is not None:  # their loss is logged at least once
        every = min(every or config.steps, config.steps)
    shares = shared | {"rank": ranks.rank, "ranks": ranks.count}
    if weights is not None:
        shares["per_step"] = weights
    return Trainer(
        policy,
        make_batches(data.episodes, config.protocol, seed=config.seed, **shares),
        config.trainer,
        steps=config.steps,
        folder=folder,
        precision=resolve_precision(config.precision, ranks.device),
        evaluate=evaluate,
        evaluate_every=every,
        tracker=config.tracker,
        console=console,
        ranks=ranks,
        q=critic if weights is not None else None,
    )


def score_run(config: TrainConfig, data: Data, folder: Path, console: Console) -> None:
    """Scores what was saved, as eval.py would: from the run folder, with nothing else."""
    policy, description, step = load_policy(folder)
    dataset, evaluation = read_description(folder, description)
    if evaluation.environment_id is not None:
        critic = chooser(folder, evaluation, dataset)
        scores = score_policy(policy, evaluation, dataset, step, critic=critic, console=console)
        return write_scores(folder / "scores.json", scores)
    # No environment: no rollout.
    assert data.held_out is not None
    shared = {
        "device": policy.action_low.device,
        "observation_loss": config.conditions.observation_loss,
    }
    uniform = replace(config.protocol, best_share=0.0)
    batches = make_batches(data.held_out, uniform, seed=0, **shared)
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


def claimable(config: TrainConfig, folder: Path) -> str | None:
    """Checks the folder of a run; returns one line if resuming finds nothing left to do."""
    asked = {"resume": config.resume, "overwrite": config.overwrite}
    resumes = check_run_folder(folder, config_text(config), **asked)
    return finished(folder, config.steps) if resumes else None


def prepare(config: TrainConfig, overrides: list[str]) -> str | None:
    """Checks the folder of a run of a sweep; returns one line if nothing is left to do in it."""
    return claimable(config, run_folder(config, overrides))


def result(config: TrainConfig, overrides: list[str]) -> str | None:
    """Returns one line on a finished run of a sweep; None if it is not finished."""
    return finished(run_folder(config, overrides), config.steps)


def start() -> None:
    """Trains as the command line says."""
    command.run("train", command.Program(main, run_folder, prepare, result))


if __name__ == "__main__":
    start()
