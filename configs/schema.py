"""What a run can be told: the dataclasses behind configs/train.yaml and configs/eval.yaml."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import torch
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from agents.acting import ROLLOUTS
from agents.backbones import MIXERS
from agents.backbones.attention import AttentionConfig
from agents.backbones.mixer import BackboneConfig
from agents.policy import PolicyConfig, ReturnConditionedPolicy
from agents.trainer import PRECISIONS, TrainerConfig
from common.checks import MOST_RETURN, MOST_STEPS, check_fields, choice, number, seed
from common.errors import UserError
from configs.launch.ray import RayLauncherConfig
from envs.data.batches import ProtocolConfig
from envs.data.sources import DATASETS, DatasetConfig
from envs.tasks import ENGINES, MOST_EPISODES

DEVICES = ("auto", "cpu", "cuda")
TARGETS = ("data", "published")


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

    target: str = choice("data", TARGETS)
    target_return: float | None = number(None, at_least=-MOST_RETURN, at_most=MOST_RETURN)
    episodes: int = number(100, at_least=1, at_most=MOST_EPISODES)
    every: int = number(500, at_least=0, at_most=MOST_STEPS)
    episodes_in_training: int = number(20, at_least=1, at_most=MOST_EPISODES)
    seed: int = seed(1000)

    def __post_init__(self) -> None:
        check_fields(self, "evaluation")


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
    steps: int = number(1500, at_least=1, at_most=MOST_STEPS)
    held_out: float = number(0.0, at_least=0, below=1)
    seed: int = seed()
    rollout: str = choice("carried", ROLLOUTS)
    device: str = choice("auto", DEVICES)
    precision: str = choice("float32", PRECISIONS)
    run_dir: str | None = None
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.rollout == "rolling" and self.protocol.context_length < 2:
            raise UserError(
                "protocol.context_length is 1, but rollout=rolling resets its two states half a "
                "context apart; raise it to at least 2 or choose rollout=carried."
            )
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
                raise UserError(
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
        target_return: Returns to ask for; null asks for the one of the run's own evaluation.
        rollout: `carried`, `rolling` or `window`; null acts as the run's configuration says.
        environment: Gymnasium id, or `module:ID`, which imports the module; null takes the
            environment of the data, with its keyword arguments.
        seed: Fixes the start states; null takes those of the run's own evaluation.
        target_fraction: Asks for these fractions of the best return in the data instead.
        n_envs: Environments at once for each target return.
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
    episodes: int | None = number(None, at_least=1, at_most=MOST_EPISODES)
    target_return: list[float] | None = number(None, at_least=-MOST_RETURN, at_most=MOST_RETURN)
    target_fraction: list[float] | None = number(None, at_least=-1000, at_most=1000)
    rollout: str | None = choice(None, ROLLOUTS)
    environment: str | None = None
    seed: int | None = seed(None)
    n_envs: int | None = number(None, at_least=1, at_most=10_000)
    engine: str = choice(ENGINES[0], ENGINES)
    horizon: int | None = number(None, at_least=1, at_most=MOST_STEPS)
    start_noise: float | None = number(None, at_least=0, at_most=1000)
    observation_noise: float = number(0.0, at_least=0, at_most=1000)
    action_delay: int = number(0, at_least=0, at_most=10_000)
    device: str = choice("auto", DEVICES)
    video: str | None = None
    video_episodes: int = number(1, at_least=1, at_most=100)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.target_return is not None and self.target_fraction is not None:
            raise UserError("give either target_return or target_fraction, not both.")
        if self.video_episodes > 1 and self.video is None:
            raise UserError("video_episodes needs a file to write: give video=PATH.mp4 as well.")


def register() -> None:
    """Tells Hydra the schemas, backbones and data sets as choices, and the launcher for Ray."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="eval_schema", node=EvalConfig)
    for name, (config_class, _) in MIXERS.items():
        store.store(group="backbone", name=name, node=config_class)
    for name, config in DATASETS.items():
        store.store(group="dataset", name=name, node=config)
    if find_spec("ray"):
        store.store(group="hydra/launcher", name="ray", node=RayLauncherConfig)


def check_memory(config: TrainConfig, device: torch.device) -> None:
    """Refuses a network that cannot be trained in the memory there is, before it is built.

    Raises:
        UserError: Its parameters, gradients and optimiser state take more.
    """
    one, two = (_parameters(config, n_layer) for n_layer in (1, 2))
    parameters = one + (config.backbone.n_layer - 1) * (two - one)
    # Weights, gradients and AdamW's two moments; and the average of the weights.
    needed = 4 * parameters * (4 + (config.trainer.ema_decay > 0))
    if device.type == "cuda":
        there = torch.cuda.mem_get_info(device)[0]
    elif (path := Path("/proc/meminfo")).exists():
        there = 1024 * int(re.findall(r"MemAvailable:\s+(\d+)", path.read_text())[0])
    else:
        return
    if needed > there:
        raise UserError(
            f"the network has {parameters:,} parameters, and training them takes "
            f"{needed / 2**30:,.1f} GiB, but {there / 2**30:,.1f} GiB are free; lower "
            "backbone.d_model or backbone.n_layer."
        )


def _parameters(config: TrainConfig, n_layer: int) -> int:
    backbone = replace(config.backbone, n_layer=n_layer)
    with torch.device("meta"):  # shapes only
        policy = ReturnConditionedPolicy(config.policy, backbone, observation_dim=1, action_dim=1)
    return sum(parameter.numel() for parameter in policy.parameters())


def resolve_device(device: str) -> torch.device:
    """Turns `auto` into the best device there is.

    Raises:
        UserError: CUDA was asked for and this machine has none.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda' was asked for, but torch finds none; use device=cpu.")
    return torch.device(device)
