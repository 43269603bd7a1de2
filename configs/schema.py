"""What a run can be told: the dataclasses behind configs/train.yaml and configs/eval.yaml."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from agents.acting import ROLLOUTS
from agents.backbones import backbone_names, mixer_entry
from agents.backbones.attention import AttentionConfig
from agents.backbones.mixer import BackboneConfig
from agents.critic.learning import CriticConfig
from agents.policy import PolicyConfig
from agents.trackers import TRACKERS
from agents.trainer import PRECISIONS, TrainerConfig
from common.checks import MOST_RETURN, MOST_STEPS, check_fields, choice, number, require_extra, seed
from common.errors import UserError
from configs.launch.ray import RayLauncherConfig
from envs.data.batches import ProtocolConfig
from envs.data.sources import DATASETS, DatasetConfig
from envs.tasks import (
    ENGINES,
    MOST_EPISODES,
    DatasetInfo,
    Evaluation,
    hidden_indices,
    task_of_environment,
)

DEVICES = ("auto", "cpu", "cuda")
TARGETS = ("auto", "best", "held", "chosen", "data", "published")


@dataclass
class EvaluationConfig:
    """How a policy is scored.

    Attributes:
        target: The rule for the target return, fixed in advance: `best`, the largest return in the
            data; `held`, the same, but asked for at every step, the rewards not subtracted; `auto`,
            `held` where the best episodes of the data are cut short by a fall (see
            `Episodes.cut_short`), otherwise `best`; `chosen`, at every step the better of the
            actions of these two, as the run's critic judges them; `data`, the mean return of the
            best 10 % of the episodes; or `published`, Decision Transformer's first target for the
            task.
        target_return: A target return to use instead.
        episodes: Episodes of the final evaluation.
        every: Updates between two evaluations in training; 0 evaluates at the end only.
        episodes_in_training: Episodes of each evaluation in training.
        seed: Fixes the start states: the same for every run, so that runs are comparable.
    """

    target: str = choice("auto", TARGETS)
    target_return: float | None = number(None, at_least=-MOST_RETURN, at_most=MOST_RETURN)
    episodes: int = number(100, at_least=1, at_most=MOST_EPISODES)
    every: int = number(500, at_least=0, at_most=MOST_STEPS)
    episodes_in_training: int = number(20, at_least=1, at_most=MOST_EPISODES)
    seed: int = seed(1000)

    def __post_init__(self) -> None:
        check_fields(self, "evaluation")

    def asks_by_rule(self, rule: str) -> bool:
        """Whether the target return follows from this rule."""
        return self.target == rule and self.target_return is None


@dataclass
class ConditionsConfig:
    """Conditions that the policy is trained under, and so evaluated under.

    Attributes:
        observation_loss: Probability that an observation is lost, so that the policy sees the last
            one that arrived; the first of an episode is never lost.
        action_delay: In eval.py only: recorded data cannot show late actions.
    """

    observation_loss: float = number(0.0, at_least=0, below=1)
    action_delay: int = number(0, at_least=0, at_most=10_000)

    def __post_init__(self) -> None:
        check_fields(self, "conditions")
        if self.action_delay:
            raise UserError(
                f"conditions.action_delay is {self.action_delay}, but actions that arrive late "
                "change the trajectory, so recorded data cannot simulate them; train without and "
                f"evaluate with eval.py action_delay={self.action_delay}."
            )


@dataclass
class TrainConfig:
    """One training run.

    Attributes:
        steps: Updates.
        held_out: Fraction of the episodes that is kept out of training; each evaluation in
            training, and there is at least one, logs the loss on them as eval/loss. Where the data
            name no environment this is what a run is measured by, and 0 stands for 0.1.
        critic: Value help.
        seed: Of the parameters, the critic, the dropout and the order of the data.
        rollout: How the policy acts: `carried`, `rolling` or `window`; see agents.acting.
        device: `auto` takes CUDA where there is one.
        precision: `float32`, or `bfloat16` for automatic mixed precision in training; `auto` takes
            bfloat16 on a CPU that multiplies it faster, which is measured.
        run_dir: The run folder; null names it after the data set, the backbone, the protocol,
            the seed and whatever else was overridden, below runs/.
        tracker: Who gets the records of the training too: `wandb` or `trackio`, each an extra.
        resume: Resumes from the last save of the run folder.
        overwrite: Discards the run that the folder holds.
    """

    dataset: DatasetConfig = MISSING
    backbone: BackboneConfig = MISSING
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    conditions: ConditionsConfig = field(default_factory=ConditionsConfig)
    steps: int = number(1500, at_least=1, at_most=MOST_STEPS)
    held_out: float = number(0.0, at_least=0, below=1)
    seed: int = seed()
    rollout: str = choice("carried", ROLLOUTS)
    device: str = choice("auto", DEVICES)
    precision: str = choice("auto", ("auto", *PRECISIONS))
    run_dir: str | None = None
    tracker: str | None = choice(None, TRACKERS)
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.tracker is not None:
            require_extra(self.tracker, f"tracker={self.tracker}", self.tracker)
        if not self.critic.updates and self.critic != CriticConfig():
            defaults = vars(CriticConfig()).items()
            key = next(key for key, value in defaults if getattr(self.critic, key) != value)
            raise UserError(
                f"critic.{key} is {getattr(self.critic, key)}, but critic.updates is 0: no critic "
                "is trained; give critic.updates=20000 as well, or leave it out."
            )
        if self.evaluation.asks_by_rule("chosen") and not self.critic.updates:
            raise UserError(
                "evaluation.target is 'chosen', but critic.updates is 0: no critic is trained that "
                "could choose; give experiment=chosen, or another target."
            )
        if self.evaluation.asks_by_rule("chosen") and not self.policy.return_to_go:
            raise UserError(
                "evaluation.target is 'chosen', but with policy.return_to_go=false the policy sees "
                "no target, so there is nothing to choose between; give another target."
            )
        if self.critic.updates and self.conditions.observation_loss:
            raise UserError(
                f"conditions.observation_loss is {self.conditions.observation_loss}, but the "
                "critic judges an action by the observation of its step, which may be lost; set "
                "conditions.observation_loss or critic.updates to 0."
            )
        if self.rollout == "rolling" and self.protocol.context_length < 2:
            raise UserError(
                "protocol.context_length is 1, but rollout=rolling resets its two states half a "
                "context apart; raise it to at least 2 or choose rollout=carried."
            )
        if named := self.dataset.environment:  # refused before the data are read
            hidden_indices(self.policy.hidden, named)
            if self.evaluation.asks_by_rule("published"):
                published_target(named)
        contexts = {"protocol.context_length": self.protocol.context_length}
        if isinstance(self.backbone, AttentionConfig):  # it counts tokens
            steps = -(-self.backbone.context_length // self.policy.tokens)
            contexts["backbone.context_length"] = steps
        for key, steps in contexts.items():
            if self.policy.timestep_embedding and steps > self.policy.max_timestep:
                raise UserError(
                    f"{key} is {steps} steps, but the timestep embedding has "
                    f"policy.max_timestep = {self.policy.max_timestep} rows; lower the first or "
                    "raise the second."
                )


@dataclass
class EvalConfig:
    """One evaluation of a run folder.

    Attributes:
        run: The run folder, or a repository of the Hugging Face Hub, as `USER/NAME`.
        episodes: Episodes for each target return; null plays as many as the run's own evaluation.
        target_return: Returns to ask for; null asks for the one of the run's own evaluation.
        target_fraction: Asks for these fractions of the best return in the data instead.
        target: Asks for the return that this rule names instead (see `EvaluationConfig`).
        rollout: `carried`, `rolling` or `window`; null acts as the run's configuration says.
        environment: Gymnasium id, or `module:ID`, which imports the module; null takes the
            environment of the data, with its keyword arguments.
        seed: Fixes the start states; null takes those of the run's own evaluation.
        n_envs: Environments at once for each target return.
        engine: `gymnasium`, or `envpool` (an extra): faster, with other start states.
        horizon: Steps of an episode; null is the environment's own limit. Longer than it was in
            training is where a carried state must show what it is worth.
        start_noise: Scatter of the start states; null is the environment's own.
        observation_noise: Standard deviation of noise on the observations, in units of the data's.
        observation_loss: Probability that an observation is lost and the last one repeated; null
            takes that of the run's own evaluation, which is that of its training.
        action_delay: Steps by which actions arrive late.
        device: `auto` takes CUDA where there is one.
        video: Also writes an mp4 file of the first episodes.
        video_episodes: How many of them, side by side.
    """

    run: str = MISSING
    episodes: int | None = number(None, at_least=1, at_most=MOST_EPISODES)
    target_return: list[float] | None = number(None, at_least=-MOST_RETURN, at_most=MOST_RETURN)
    target_fraction: list[float] | None = number(None, at_least=-1000, at_most=1000)
    target: str | None = choice(None, TARGETS)
    rollout: str | None = choice(None, ROLLOUTS)
    environment: str | None = None
    seed: int | None = seed(None)
    n_envs: int | None = number(None, at_least=1, at_most=10_000)
    engine: str = choice(ENGINES[0], ENGINES)
    horizon: int | None = number(None, at_least=1, at_most=MOST_STEPS)
    start_noise: float | None = number(None, at_least=0, at_most=1000)
    observation_noise: float = number(0.0, at_least=0, at_most=1000)
    observation_loss: float | None = number(None, at_least=0, below=1)
    action_delay: int = number(0, at_least=0, at_most=10_000)
    device: str = choice("auto", DEVICES)
    video: str | None = None
    video_episodes: int = number(1, at_least=1, at_most=100)

    def __post_init__(self) -> None:
        check_fields(self)
        asked = (self.target_return, self.target_fraction, self.target)
        if sum(key is not None for key in asked) > 1:
            raise UserError("give only one of target_return, target_fraction and target.")
        if self.video_episodes > 1 and self.video is None:
            raise UserError("video_episodes needs a file to write: give video=PATH.mp4 as well.")


def register() -> None:
    """Registers the schemas, backbones, data sets and the Ray launcher with Hydra."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="eval_schema", node=EvalConfig)
    for name in backbone_names():
        with suppress(UserError):  # of a package that cannot be imported; said where it is chosen
            store.store(group="backbone", name=name, node=mixer_entry(name)[0])
    for name, config in DATASETS.items():
        store.store(group="dataset", name=name, node=config)
    if find_spec("ray"):
        store.store(group="hydra/launcher", name="ray", node=RayLauncherConfig)


def resolve_evaluation(config: TrainConfig, dataset: DatasetInfo) -> Evaluation:
    """Returns the evaluation that a run ends with; refuses a published target that is unknown."""
    asked = config.evaluation
    if asked.target_return is not None:
        target: dict[str, Any] = {"target_returns": (asked.target_return,)}
    else:
        # A policy that sees no return is not said to hold one.
        unseen = asked.target == "auto" and not config.policy.return_to_go
        target = demand("best" if unseen else asked.target, dataset)
    return Evaluation(
        dataset.environment_id,
        config.rollout,
        config.protocol.context_length,
        **target,
        environment_kwargs=dataset.environment_kwargs,
        episodes=asked.episodes,
        seed=asked.seed,
        observation_loss=config.conditions.observation_loss,
    )


def demand(rule: str, dataset: DatasetInfo) -> dict[str, Any]:
    """Returns what a rule asks for: the `target_returns`, `held` and `chosen` of `Evaluation`.

    Raises:
        UserError: The published one is asked for, and none is known for the environment.
    """
    target = dataset.return_max
    if rule == "published":
        target = published_target(dataset.environment_id)
    elif rule == "data":
        target = dataset.return_top10
    held = rule == "held" or (rule == "auto" and bool(dataset.cut_short))
    return {"target_returns": (target,), "held": held, "chosen": rule == "chosen"}


def published_target(environment_id: str | None) -> float:
    """Returns the published target return of an environment's task."""
    task = task_of_environment(environment_id)
    if task is None or task.target_return is None:
        raise UserError(
            "evaluation.target (in eval.py: target) is 'published', but none is known for "
            f"{environment_id or 'data that name no environment'}; choose best or data, or give "
            "a target_return."
        )
    return task.target_return
