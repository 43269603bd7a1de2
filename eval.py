"""Scores a run folder in its environment, one step at a time.

    python eval.py run=runs/hopper-medium/min_gru-windowed-seed0
    python eval.py run=PATH episodes=100 target_return=[1800,3600] rollout=window
    python eval.py run=PATH episodes=1 video=hopper.mp4
    python eval.py run=PATH target_fraction=[0.25,0.5,0.75,1,1.5,2]
    python eval.py run=PATH observation_noise=0.1 action_delay=1 horizon=5000

Needs nothing but the run folder. Writes scores.json into it, or, where the environment was made
harder, a file named after how. configs/schema.py has every key.
"""

from __future__ import annotations

import re
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
from envs.perturbations import PerturbedActor
from envs.rollout import Actor, RolloutError, rollout
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
    targets = config.target_return
    if config.target_fraction is not None:
        targets = [description.dataset["return_max"] * part for part in config.target_fraction]
    scores = score_policy(
        policy,
        description,
        step,
        config=config,
        target_returns=targets,
        console=console,
    )
    suffix = re.sub(r"[^\w.]+", "-", f" {config.conditions}") if config.conditions else ""
    write_scores(Path(config.run, f"scores{suffix}.json"), scores)
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
    config: EvalConfig,
    target_returns: list[float] | None = None,
    console: Console | None = None,
) -> list[Score]:
    """Rolls a policy out, once for each target return.

    Args:
        policy: In evaluation mode.
        description: How it acts and what it was trained on.
        step: Updates that it was trained for.
        config: The episodes and their conditions; neither its run nor its targets are looked at.
        target_returns: What to ask for; None asks for the policy's own target.
        console: Where a progress bar goes, if any.

    Returns:
        One score for each target return.
    """
    actor: Actor = make_actor(policy, description.rollout, description.context_length)
    if config.observation_noise or config.action_delay:
        actor = PerturbedActor(
            actor,
            observation_noise=config.observation_noise,
            observation_std=policy.observation_std,
            action_delay=config.action_delay,
            action_dim=policy.action_dim,
            seed=config.seed,
        )
    own_target = policy.target_return.item()
    scores = []
    with Progress(console=console, transient=True, disable=console is None) as progress:
        for target in target_returns or [own_target]:
            bar = progress.add_task(
                f"evaluating, target return {target:,.0f}", total=config.episodes
            )
            policy.target_return.fill_(target)
            try:
                result = rollout(
                    actor,
                    description.dataset["environment_id"],
                    episodes=config.episodes,
                    seed=config.seed,
                    n_envs=config.n_envs,
                    horizon=config.horizon,
                    engine=config.engine,
                    start_noise=config.start_noise,
                    progress=lambda done, _, bar=bar: progress.update(bar, completed=done),
                )
            finally:
                policy.target_return.fill_(own_target)
            scores.append(make_score(result, description, target, step, config.conditions))
    return scores


if __name__ == "__main__":
    command_line.run("eval", command_line.Program(main, ERRORS))
