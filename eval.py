"""Scores a run folder in its environment, one step at a time.

    python eval.py run=runs/hopper-medium-expert/min_gru-streamed-seed0
    python eval.py run=PATH episodes=100 target_return=[1800,3600] rollout=window
    python eval.py run=PATH video=hopper.mp4 video_episodes=9
    python eval.py run=PATH target_fraction=[0.25,0.5,0.75,1,1.5,2]  # or target=data
    python eval.py run=PATH observation_noise=0.1 action_delay=1 horizon=5000

scores.json in the run folder holds the run's own evaluation; another is written into a file named
after what differs, such as scores-horizon-5000.json. configs/schema.py has every key. In Python:

    from eval import evaluate

    scores = evaluate("runs/hopper-medium-expert/min_gru-streamed-seed0", episodes=20)
"""

from __future__ import annotations

import common.threads

if __name__ == "__main__":
    import common.interrupt  # isort: skip  # noqa: F401
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from agents.acting import ROLLOUTS, make_actor
from agents.checkpoint import RunDescription, load_policy
from agents.critic.file import critic_of
from agents.critic.learning import Critic
from agents.hub import own_folder
from agents.policy import ReturnConditionedPolicy
from common.checks import check_choice, require_extra
from common.errors import UserError
from configs.launch import command
from configs.launch.from_python import check_keys
from configs.launch.machine import resolve_device
from configs.schema import EvalConfig, demand
from envs.simulation.perturbations import PerturbedActor
from envs.simulation.rollout import Actor, rollout
from envs.simulation.video import record_episodes
from envs.tasks import DatasetInfo, Evaluation, from_plain, without_version
from reports.scores import Score, make_scores, print_scores, scores_file, write_scores


def evaluate(run: str | Path, **keys: Any) -> list[Score]:
    """Scores a run folder as `python eval.py` does, which also writes the scores there.

    Args:
        run: The run folder.
        **keys: Fields of `configs.schema.EvalConfig`, such as episodes=20 or rollout="window".

    Returns:
        One score for each target return.

    Raises:
        UserError: A key or the run folder cannot be used as they are.
    """
    check_keys("evaluate()", keys, EvalConfig, "run")
    return score_folder(EvalConfig(str(run), **keys), Console(quiet=True))


def main(config: EvalConfig, overrides: list[str]) -> None:
    """Scores the run folder of a command line."""
    score_folder(config, Console())


def score_folder(config: EvalConfig, console: Console) -> list[Score]:
    """Scores one run folder."""
    say = partial(console.print, highlight=False, markup=False, soft_wrap=True)
    device = resolve_device(config.device)
    if config.video is not None:
        require_extra("imageio_ffmpeg", "video", "video")
    folder = own_folder(config.run)
    policy, description, step = load_policy(folder)
    policy.to(device)
    dataset, own = read_description(folder, description)
    evaluation = resolve(config, dataset, own)
    other, known = evaluation.environment_id, own.environment_id
    if known and policy.config.hidden and without_version(other) != without_version(known):
        raise UserError(
            f"the policy in {folder} does not see the observations {policy.config.hidden} of "
            f"{known}, and these may be others in {other}; evaluate it in {known}, of any version."
        )
    path = folder / scores_file(evaluation, own)

    shown_on = None if console.quiet else console
    critic = chooser(folder, evaluation, dataset)
    scores = score_policy(policy, evaluation, dataset, step, critic=critic, console=shown_on)
    write_scores(path, scores)
    print_scores(scores, dataset, console)
    say(f"Written to {path}")
    if config.video is not None:
        shown = replace(evaluation, target_returns=evaluation.target_returns[:1])
        actor = evaluated_actor(policy, shown, critic)
        played = record_episodes(actor, shown, config.video, episodes=config.video_episodes)
        say(
            f"Video of {config.video_episodes} episode{'s' * (config.video_episodes != 1)}, mean "
            f"return {played.episode_returns.mean():,.1f} in {played.episode_lengths.mean():,.0f} "
            f"steps: {config.video}"
        )
    return scores


def read_description(folder: Path, description: RunDescription) -> tuple[DatasetInfo, Evaluation]:
    """Returns what a run was trained on, and its own evaluation."""
    try:
        dataset = from_plain(DatasetInfo, description.dataset)
        own = from_plain(Evaluation, description.evaluation)
        check_choice("rollout", own.rollout, ROLLOUTS)
    except UserError as error:
        raise UserError(
            f"{folder / 'config.json'} is damaged or of another version of this project "
            f"({str(error).rstrip('.')}): copy it again from its source, or train again."
        ) from error
    return dataset, own


def resolve(config: EvalConfig, dataset: DatasetInfo, own: Evaluation) -> Evaluation:
    """Returns the run's own evaluation, with the keys that are given in its place.

    Returns that are given are counted down: only a rule holds one.
    """
    asked: dict[str, Any] = {}
    if config.target is not None:
        asked = demand(config.target, dataset)
    elif config.target_return is not None:
        asked = {"target_returns": tuple(config.target_return), "held": False, "chosen": False}
    elif config.target_fraction is not None:
        targets = tuple(dataset.return_max * x for x in config.target_fraction)
        asked = {"target_returns": targets, "held": False, "chosen": False}
    values = {key: value for key, value in vars(config).items() if value is not None}
    given = {key: values[key] for key in values.keys() & vars(own).keys()}
    if config.environment is None and own.environment_id is None:
        raise UserError(
            f"{config.run} was trained on data that name no environment, so there is nothing to "
            "play the policy in; give a Gymnasium id as environment=ID."
        )
    if config.environment is None and ":" in str(own.environment_id):
        raise UserError(
            f"{config.run} names the environment {own.environment_id}, and to make it is to import "
            f"a module; if you trust it, give environment={own.environment_id}"
        )
    if config.environment not in (None, own.environment_id):
        given |= {"environment_id": config.environment, "environment_kwargs": {}}
    return replace(own, **asked, **given)


def chooser(folder: Path, evaluation: Evaluation, dataset: DatasetInfo) -> Critic | None:
    """Returns the critic that chooses in an evaluation of a run; None if none does."""
    return critic_of(folder, dataset.sha256) if evaluation.chosen else None


def evaluated_actor(
    policy: ReturnConditionedPolicy, evaluation: Evaluation, critic: Critic | None
) -> Actor:
    """Returns the actor of an evaluation, with its noise, losses and delay, if it has any."""
    critic = critic.to(policy.action_low.device) if critic is not None else None
    actor: Actor = make_actor(policy, evaluation.rollout, evaluation.context_length, critic)
    disturbing = evaluation.observation_noise, evaluation.observation_loss, evaluation.action_delay
    if not any(disturbing):
        return actor
    std, width = policy.observation_std, policy.action_dim
    return PerturbedActor(actor, evaluation, observation_std=std, action_dim=width)


def score_policy(
    policy: ReturnConditionedPolicy,
    evaluation: Evaluation,
    dataset: DatasetInfo,
    step: int,
    *,
    critic: Critic | None = None,
    console: Console | None = None,
) -> list[Score]:
    """Plays an evaluation of a policy in evaluation mode; `console` gets a progress bar.

    The critic is the one of `chooser`.

    Returns:
        One score for each target return.
    """
    with Progress(console=console, transient=True, disable=console is None) as progress:
        bar = progress.add_task("evaluating")

        def show(done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)

        result = rollout(evaluated_actor(policy, evaluation, critic), evaluation, progress=show)
    return make_scores(result, evaluation, dataset, step, policy.config.hidden or ())


def start() -> None:
    """Scores as the command line says."""
    command.run("eval", command.Program(main))


if __name__ == "__main__":
    start()
