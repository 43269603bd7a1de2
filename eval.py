"""Scores a run folder in its environment, one step at a time.

    python eval.py run=runs/hopper-medium/min_gru-windowed-seed0
    python eval.py run=PATH episodes=100 target_return=[1800,3600] rollout=window
    python eval.py run=PATH episodes=1 video=hopper.mp4

Needs nothing but the run folder. Writes scores.json into it; configs/schema.py has every key.
"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from agents.acting import make_actor
from agents.checkpoint import CheckpointError, RunDescription, load_policy
from agents.policy import ReturnConditionedPolicy
from agents.trainer import TrainingError
from configs import command_line
from configs.schema import EvalConfig, resolve_device
from envs.episodes import DatasetError
from envs.rollout import RolloutError, rollout
from envs.scores import Score, make_score, print_scores, write_scores
from envs.video import record_episode

ERRORS = (CheckpointError, TrainingError, DatasetError, RolloutError, command_line.ConfigError)


def main(config: EvalConfig, overrides: list[str]) -> None:
    """Scores one run folder."""
    console = Console()
    policy, description, step = load_policy(Path(config.run))
    policy.to(resolve_device(config.device))
    if config.rollout is not None:
        description.rollout = config.rollout
    if config.environment is not None:
        description.dataset["environment_id"] = config.environment
    scores = score_policy(
        policy,
        description,
        step,
        episodes=config.episodes,
        seed=config.seed,
        target_returns=config.target_return,
        n_envs=config.n_envs,
        console=console,
    )
    write_scores(Path(config.run, "scores.json"), scores)
    print_scores(
        scores,
        dataset_return_mean=description.dataset["return_mean"],
        dataset_return_top10=description.dataset["return_top10"],
        console=console,
    )
    if config.video is not None:
        actor = make_actor(policy, description.rollout, description.context_length)
        environment_id = description.dataset["environment_id"]
        episode_return, length = record_episode(
            actor, environment_id, Path(config.video), seed=config.seed
        )
        console.print(
            f"Video of episode 0, return {episode_return:,.1f} in {length} steps: {config.video}"
        )


def score_policy(
    policy: ReturnConditionedPolicy,
    description: RunDescription,
    step: int,
    *,
    episodes: int,
    seed: int,
    target_returns: list[float] | None = None,
    n_envs: int | None = None,
    console: Console | None = None,
) -> list[Score]:
    """Rolls a policy out, once for each target return.

    Args:
        policy: In evaluation mode.
        description: How it acts and what it was trained on.
        step: Updates that it was trained for.
        episodes: Episodes for each target.
        seed: Fixes the start states.
        target_returns: What to ask for; None asks for the policy's own target.
        n_envs: Environments at once.
        console: Where a progress bar goes, if any.

    Returns:
        One score for each target return.
    """
    actor = make_actor(policy, description.rollout, description.context_length)
    own_target = policy.target_return.item()
    scores = []
    with Progress(console=console, transient=True, disable=console is None) as progress:
        for target in target_returns or [own_target]:
            bar = progress.add_task(f"evaluating, target return {target:,.0f}", total=episodes)
            policy.target_return.fill_(target)
            try:
                result = rollout(
                    actor,
                    description.dataset["environment_id"],
                    episodes=episodes,
                    seed=seed,
                    n_envs=n_envs,
                    progress=lambda done, _, bar=bar: progress.update(bar, completed=done),
                )
            finally:
                policy.target_return.fill_(own_target)
            scores.append(make_score(result, description, target, step))
    return scores


if __name__ == "__main__":
    command_line.run("eval", main, ERRORS)
