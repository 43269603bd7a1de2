"""What a run can be told: the dataclasses behind configs/train.yaml and configs/eval.yaml."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec

import torch
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from agents.acting import ROLLOUTS
from agents.backbones import MIXERS
from agents.backbones.attention import AttentionConfig
from agents.backbones.block import BackboneConfig
from agents.policy import PolicyConfig
from agents.trainer import PRECISIONS, TrainerConfig
from configs.launch.ray import RayLauncherConfig
from envs.data.batches import ProtocolConfig
from envs.data.sources import DatasetConfig
from envs.simulation.rollout import ENGINES

DEVICES = ("auto", "cpu", "cuda")
TARGETS = ("data", "published")


def _check_choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{key} '{value}' does not exist; there are: {', '.join(allowed)}.")


@dataclass
class EvaluationConfig:
    """How a policy is scored.

    Attributes:
        target: Where the return comes from that the policy is asked for, fixed in advance: `data`,
            the mean of its best 10 % of episodes, or `published`, Decision Transformer's first
            target for the task.
        target_return: Asks for this return instead.
        episodes: Episodes of the final evaluation.
        every: Updates between two evaluations in training; 0 evaluates at the end only.
        episodes_in_training: Episodes of each of those.
        seed: Fixes the start states: the same for every run, so that runs are compared on them.
    """

    target: str = "data"
    target_return: float | None = None
    episodes: int = 100
    every: int = 500
    episodes_in_training: int = 20
    seed: int = 1000

    def __post_init__(self) -> None:
        _check_choice("evaluation.target", self.target, TARGETS)


@dataclass
class TrainConfig:
    """One training run.

    Attributes:
        steps: Updates.
        held_out: Fraction of the episodes that is not trained on; each evaluation in training (at
            least one, whatever `evaluation.every` is) logs the loss on them as eval/loss.
        seed: Of the parameters, the dropout and the order of the data.
        rollout: How the policy acts: `carried`, `rolling` or `window`; see agents.acting.
        device: `auto` takes CUDA where there is one.
        precision: `float32`, or `bfloat16` for automatic mixed precision in training.
        run_dir: The run folder; null names it after the data set, the backbone, the protocol,
            the seed and whatever else was overridden, below runs/.
        resume: Goes on from the run folder's last save.
        overwrite: Discards what the run folder holds.
    """

    dataset: DatasetConfig = MISSING
    backbone: BackboneConfig = MISSING
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    steps: int = 1500
    held_out: float = 0.0
    seed: int = 0
    rollout: str = "carried"
    device: str = "auto"
    precision: str = "float32"
    run_dir: str | None = None
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        _check_choice("rollout", self.rollout, ROLLOUTS)
        _check_choice("device", self.device, DEVICES)
        _check_choice("precision", self.precision, tuple(PRECISIONS))
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; it must be at least 1.")
        if self.policy.timestep_embedding:
            self._check_timesteps()

    def _check_timesteps(self) -> None:
        """Refuses a context that is longer than the table of the timestep embedding."""
        contexts = {"protocol.context_length": self.protocol.context_length}
        if isinstance(self.backbone, AttentionConfig):  # it counts tokens
            steps = -(-self.backbone.context_length // self.policy.tokens)
            contexts["backbone.context_length"] = steps
        for key, steps in contexts.items():
            if steps > self.policy.max_timestep:
                raise ValueError(
                    f"{key} is {steps} steps, but the timestep embedding has "
                    f"policy.max_timestep = {self.policy.max_timestep} rows; lower the first or "
                    "raise the second."
                )


@dataclass
class EvalConfig:
    """One evaluation of a run folder.

    Attributes:
        run: The run folder.
        episodes: Episodes for each target return; null plays as many as the run's own evaluation.
        target_return: Targets to ask for, one after the other; null asks for the policy's own.
        rollout: `carried`, `rolling` or `window`; null acts as the run's configuration says.
        environment: Gymnasium id; null takes the environment of the data.
        seed: Fixes the start states; null takes those of the run's own evaluation.
        target_fraction: Asks for these fractions of the best return in the data instead.
        n_envs: Environments at once.
        engine: `gymnasium`, or `envpool` (an extra): faster, with other start states.
        horizon: Steps of an episode; null is the environment's own limit. Longer than it was in
            training is where a carried state must show what it is worth.
        start_noise: Scatter of the start states; null is the environment's own.
        observation_noise: Standard deviation of noise on the observations, in units of the data's.
        action_delay: Steps by which actions arrive late.
        device: `auto` takes CUDA where there is one.
        video: Also writes an mp4 file of the first episodes.
        video_episodes: How many of them, side by side.
    """

    run: str = MISSING
    episodes: int | None = None
    target_return: list[float] | None = None
    target_fraction: list[float] | None = None
    rollout: str | None = None
    environment: str | None = None
    seed: int | None = None
    n_envs: int | None = None
    engine: str = ENGINES[0]
    horizon: int | None = None
    start_noise: float | None = None
    observation_noise: float = 0.0
    action_delay: int = 0
    device: str = TrainConfig.device
    video: str | None = None
    video_episodes: int = 1

    def __post_init__(self) -> None:
        _check_choice("device", self.device, DEVICES)
        if self.rollout is not None:
            _check_choice("rollout", self.rollout, ROLLOUTS)
        _check_choice("engine", self.engine, ENGINES)
        if self.target_return is not None and self.target_fraction is not None:
            raise ValueError("give either target_return or target_fraction, not both.")
        if self.video_episodes < 1:
            raise ValueError(f"video_episodes is {self.video_episodes}; it must be at least 1.")
        if self.video_episodes > 1 and self.video is None:
            raise ValueError("video_episodes needs a file to write: give video=PATH.mp4 as well.")
        if self.video is not None and self.conditions:
            raise ValueError(
                f"video shows the unchanged environment, and {self.conditions} was asked for; "
                "leave out one of the two."
            )

    @property
    def conditions(self) -> str:
        """How the environment is made harder than it was in training, in words."""
        changed = {
            "horizon": self.horizon,
            "start_noise": self.start_noise,
            "observation_noise": self.observation_noise or None,
            "action_delay": self.action_delay or None,
        }
        return ", ".join(f"{key} {value:g}" for key, value in changed.items() if value is not None)


def register() -> None:
    """Tells Hydra the schemas, each backbone as a choice of its group, and the launcher for Ray."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="eval_schema", node=EvalConfig)
    for name, (config_class, _) in MIXERS.items():
        store.store(group="backbone", name=name, node=config_class)
    if find_spec("ray"):
        store.store(group="hydra/launcher", name="ray", node=RayLauncherConfig)


def resolve_device(device: str) -> torch.device:
    """Turns `auto` into the best device there is.

    Raises:
        ValueError: CUDA was asked for and this machine has none.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda' was asked for, but torch finds none; use device=cpu.")
    return torch.device(device)
