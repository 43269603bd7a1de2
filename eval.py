"""Scores a run folder in its environment, one step at a time.

    python eval.py run=runs/hopper-medium/min_gru-streamed-seed0
    python eval.py run=PATH episodes=100 target_return=[1800,3600] rollout=window
    python eval.py run=PATH video=hopper.mp4 video_episodes=9
    python eval.py run=PATH target_fraction=[0.25,0.5,0.75,1,1.5,2]
    python eval.py run=PATH observation_noise=0.1 action_delay=1 horizon=5000

Needs nothing but the run folder. scores.json in it is the run's own evaluation, as train.py made
it: its own target, way of acting, environment, episodes and seed. Any other is written beside it,
into a file named after what was asked for: scores-horizon-5000.json. configs/schema.py has every
key.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import fields, replace
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.progress import Progress
from yaml import YAMLError

from agents.acting import make_actor
from agents.checkpoint import (
    RunDescription,
    load_policy,
)
from agents.policy import ReturnConditionedPolicy
from common.checks import require_extra
from common.errors import UserError
from configs.launch import command
from configs.schema import EvalConfig, EvaluationConfig, resolve_device
from envs.simulation.perturbations import PerturbedActor
from envs.simulation.rollout import (
    Actor,
    rollout,
)
from envs.simulation.video import record_episodes
from reports.scores import Score, make_score, print_scores, write_scores

UNREADABLE = (OSError, ValueError, LookupError, TypeError, YAMLError, OmegaConfBaseException)
# Keys that do not change what is scored.
NOT_SCORED = ("run", "n_envs", "device", "video", "video_episodes")


def main(config: EvalConfig, overrides: list[str]) -> None:
    """Scores one run folder."""
    console = Console()
    device = resolve_device(config.device)
    if config.video is not None:
        require_extra("imageio_ffmpeg", "video", "video")
    policy, description, step = load_policy(Path(config.run))
    policy.to(device)
    own = own_evaluation(Path(config.run), policy, description)
    path = Path(config.run, file_name(config, own))
    config = replace(
        config,
        episodes=own.episodes if config.episodes is None else config.episodes,
        seed=own.seed if config.seed is None else config.seed,
    )
    description.rollout = config.rollout or description.rollout
    environment_id = config.environment or description.dataset["environment_id"]
    description.dataset["environment_id"] = environment_id
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
    write_scores(path, scores)
    print_scores(
        scores,
        dataset_return_mean=description.dataset["return_mean"],
        dataset_return_top10=description.dataset["return_top10"],
        console=console,
    )
    console.print(f"Written to {path}", highlight=False, soft_wrap=True)
    if config.video is not None:
        returns, lengths = record_episodes(
            make_actor(policy, description.rollout, description.context_length),
            environment_id,
            Path(config.video),
            seed=config.seed,
            episodes=config.video_episodes,
        )
        console.print(
            f"Video of {len(returns)} episode{'s' * (len(returns) != 1)}, mean return "
            f"{returns.mean():,.1f} in {lengths.mean():,.0f} steps: {config.video}",
            highlight=False,
            soft_wrap=True,
        )


def own_evaluation(
    folder: Path, policy: ReturnConditionedPolicy, description: RunDescription
) -> EvalConfig:
    """Returns the evaluation that train.py ends a run with.

    Raises:
        UserError: The run's config.yaml cannot be read; without one, episodes and seed are
            those of the default configuration.
    """
    path = folder / "config.yaml"
    episodes, seed = EvaluationConfig.episodes, EvaluationConfig.seed
    if path.is_file():
        try:
            given = OmegaConf.load(path)["evaluation"]
            episodes, seed = given["episodes"], given["seed"]
        except UNREADABLE as error:
            raise UserError(
                f"{path} does not say how the run was evaluated ({str(error).splitlines()[0]}); it "
                "is damaged or of another version: copy it again, or remove it."
            ) from error
    return EvalConfig(
        str(folder),
        episodes,
        target_return=[policy.target_return.item()],
        rollout=description.rollout,
        environment=description.dataset["environment_id"],
        seed=seed,
    )


def file_name(config: EvalConfig, own: EvalConfig) -> str:
    """Names the scores of an evaluation after all in which it departs from the run's own."""
    words = ["scores"]
    for field in fields(EvalConfig):
        value = getattr(config, field.name)
        if field.name not in NOT_SCORED and value not in (None, getattr(own, field.name)):
            values = value if isinstance(value, list) else [value]
            words += [field.name, *(v if isinstance(v, str) else f"{v:g}" for v in values)]
    name = re.sub(r"[^\w.]+", "-", "-".join(words))
    if len(name) > 150:
        name = name[:100] + "-" + hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name}.json"


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
        config: The episodes, their seed and their conditions; nothing else of it is looked at.
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
    command.run("eval", command.Program(main))
