"""Tasks, reference returns, evaluations and their results, without torch or a simulator.

Run folders keep the first three as plain values; `envs.simulation` plays an evaluation, `reports`
reads it.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

from common.checks import MOST_RETURN, MOST_STEPS, check_fields, choice, number, seed
from common.errors import UserError

if TYPE_CHECKING:
    import numpy as np

# D4RL (Fu et al., arXiv 2004.07219), d4rl/infos.py: a random policy's and a SAC expert's mean
# return, measured in the v2 environments. v5 no longer pays the healthy reward on the step that
# falls (Hopper, Walker2d, Ant) and changed Walker2d's foot friction, so a score in v5 is comparable
# with D4RL's tables only approximately. Ant has 111 observations in v2, 27 in v4 and 105 in v5: the
# last 84, 0 and 78 are contact forces, and v4 does not subtract their cost either.
D4RL_REFERENCE_SOURCE = "D4RL (arXiv 2004.07219), measured in the v2 environments"

ENGINES = ("gymnasium", "envpool")
MOST_EPISODES = 1_000_000

Plain = TypeVar("Plain")


def from_plain(cls: type[Plain], values: Any) -> Plain:
    """Builds a dataclass from the plain values of a JSON file, checked: the inverse of `asdict`.

    >>> from_plain(Reference, {"minimum": 0, "maximum": 200.0, "source": "mine"})
    Reference(minimum=0.0, maximum=200.0, source='mine')
    """
    hints, known = get_type_hints(cls), fields(cls)  # type: ignore[arg-type]
    required = {f.name for f in known if f.default is MISSING and f.default_factory is MISSING}
    if not isinstance(values, Mapping):
        raise UserError(f"there is {values!r:.40} where the keys of a {cls.__name__} should be")
    if wrong := (required - values.keys()) | (values.keys() - hints.keys()):
        raise UserError(f"these keys are missing or unknown: {', '.join(sorted(wrong))}")
    return cls(**{key: _from_plain(key, hints[key], value) for key, value in values.items()})


def _from_plain(key: str, hint: Any, value: Any) -> Any:
    for kind in get_args(hint) if isinstance(hint, UnionType) else (hint,):
        container = get_origin(kind) or kind
        if is_dataclass(kind) and isinstance(value, Mapping):
            return from_plain(kind, value)  # type: ignore[arg-type]
        if container in (list, tuple) and isinstance(value, list):
            return container(_from_plain(key, get_args(kind)[0], item) for item in value)
        if isinstance(value, bool) and kind is not bool:
            continue
        if kind is float and isinstance(value, int | float) and -math.inf < value < math.inf:
            return float(value)
        if kind is not float and isinstance(value, container):
            return value
    name = getattr(hint, "__name__", str(hint))
    raise UserError(f"{key} is {value!r:.40}, which is not of the type {name}")


@dataclass(frozen=True)
class Reference:
    """The returns of a random policy and of an expert, and the publication that gives them."""

    minimum: float
    maximum: float
    source: str = "not stated"

    def __post_init__(self) -> None:
        if not -math.inf < self.minimum < self.maximum < math.inf:
            raise UserError(
                f"the reference returns are {self.minimum} (random policy) and {self.maximum} "
                "(expert); both must be finite, and the second above the first."
            )

    def score(self, returns: Any) -> Any:
        """Returns normalised scores: 0 for the minimum, 100 for the maximum (D4RL, section 4).

        >>> Reference(0.0, 200.0).score(50.0)
        25.0
        """
        return 100 * (returns - self.minimum) / (self.maximum - self.minimum)


@dataclass(frozen=True)
class DatasetInfo:
    """What config.json keeps of the data that a policy was trained on.

    `return_top10` is the mean return of the best 10 % of the episodes, `sha256` hashes the arrays;
    `environment_id` and `reference` are None where the data does not give them. `cut_short` is that
    of `Episodes`, None in the description of an earlier version.
    """

    id: str
    environment_id: str | None
    environment_kwargs: dict[str, Any]
    reference: Reference | None
    episodes: int
    steps: int
    return_mean: float
    return_top10: float
    return_max: float
    sha256: str
    cut_short: bool | None = None


@dataclass(frozen=True)
class Evaluation:
    """How a policy is scored; each score keeps a copy.

    Attributes:
        environment_id: Gymnasium id; None if the data name no environment: there is no rollout.
        rollout: How the policy acts: ``carried``, ``rolling`` or ``window``; see agents.acting.
        context_length: Steps of the past that ``rolling`` and ``window`` keep.
        target_returns: Returns to ask for, each in `episodes` episodes of its own.
        held: Whether the policy is asked for its target at every step, the rewards not subtracted.
        chosen: Whether the critic of the run chooses at every step between the actions of the
            target less the rewards and of the target held; see agents.critic.choosing.
        environment_kwargs: Keyword arguments of `gymnasium.make`.
        seed: Seed of the start states, and of the noise and the losses of observations.
        horizon: Steps after which an episode is truncated; None is the environment's own limit.
        engine: ``gymnasium``, or ``envpool``: faster, with other start states.
        start_noise: ``reset_noise_scale`` of Gymnasium's MuJoCo tasks; None is their own.
        observation_noise: Standard deviation of noise on the observations, in units of the data's.
        observation_loss: Probability that an observation is lost and the last one repeated.
        action_delay: Steps by which actions arrive late.
        n_envs: Environments at once for each target return; by default at most 100. It does not
            change the result, up to the rounding of batched matrix products.
    """

    environment_id: str | None
    rollout: str
    context_length: int = number(at_least=1)
    target_returns: tuple[float, ...] = number(at_least=-MOST_RETURN, at_most=MOST_RETURN)
    held: bool = False
    chosen: bool = False
    environment_kwargs: dict[str, Any] = field(default_factory=dict)
    episodes: int = number(100, at_least=1, at_most=MOST_EPISODES)
    seed: int = seed(1000)
    horizon: int | None = number(None, at_least=1, at_most=MOST_STEPS)
    engine: str = choice(ENGINES[0], ENGINES)
    start_noise: float | None = number(None, at_least=0, at_most=1000)
    observation_noise: float = number(0.0, at_least=0, at_most=1000)
    observation_loss: float = number(0.0, at_least=0, below=1)
    action_delay: int = number(0, at_least=0, at_most=10_000)
    n_envs: int | None = number(None, at_least=1, at_most=10_000)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.rollout == "rolling" and self.context_length < 2:
            raise UserError(
                "context_length is 1, but rollout=rolling resets its two states half a context "
                "apart; choose rollout=carried or window."
            )

    @property
    def way(self) -> str:
        """How the target is asked for, unless it is counted down, in words to append to it."""
        return ", held" * self.held + ", chosen" * self.chosen

    @property
    def conditions(self) -> str:
        """How the environment is not as usual, in words; may be empty."""
        names = "horizon", "start_noise", "observation_noise", "observation_loss", "action_delay"
        declared, values = Evaluation.__dataclass_fields__, {n: getattr(self, n) for n in names}
        return ", ".join(f"{n} {v:g}" for n, v in values.items() if v != declared[n].default)

    def differences(self, other: "Evaluation") -> dict[str, Any]:
        """Returns the values that differ from another evaluation's, by name, without n_envs.

        >>> own = Evaluation("Hopper-v5", "carried", 20, (3600.0,))
        >>> Evaluation("Hopper-v5", "carried", 20, (1800.0,), n_envs=3).differences(own)
        {'target_returns': (1800.0,)}
        """
        names = [f.name for f in fields(self) if f.name != "n_envs"]
        return {n: getattr(self, n) for n in names if getattr(self, n) != getattr(other, n)}


@dataclass(frozen=True)
class RolloutResult:
    """Whole episodes, in the order of their index, for each target return.

    Attributes:
        episode_returns: Undiscounted sums of rewards, (targets, episodes), float64.
        episode_lengths: Steps, (targets, episodes), int64.
        successes: Whether ``info["success"]`` was true at a step, (targets, episodes), bool; None
            if the environment does not report it.
        engine_version: Version of Gymnasium or EnvPool.
        mujoco_version: None if unknown, or if the environment does not use MuJoCo.
    """

    episode_returns: "np.ndarray"
    episode_lengths: "np.ndarray"
    successes: "np.ndarray | None"
    environment_id: str
    engine_version: str
    mujoco_version: str | None
    seconds: float


@dataclass(frozen=True)
class Task:
    """A locomotion task.

    Attributes:
        target_return: Decision Transformer's first (arXiv 2106.01345, table 8); None where it has
            none.
        velocities: Indices of the observations that are velocities, in every version of the
            environment.
    """

    name: str
    environment_id: str
    reference: Reference
    target_return: float | None
    velocities: range


TASKS = {
    name: Task(name, environment_id, Reference(*returns, D4RL_REFERENCE_SOURCE), target, velocities)
    for name, environment_id, returns, target, velocities in (
        ("hopper", "Hopper-v5", (-20.272305, 3234.3), 3600.0, range(5, 11)),
        ("halfcheetah", "HalfCheetah-v5", (-280.178953, 12135.0), 12000.0, range(8, 17)),
        ("walker2d", "Walker2d-v5", (1.629008, 4592.3), 5000.0, range(8, 17)),
        ("ant", "Ant-v5", (-325.6, 3879.7), None, range(13, 27)),
    )
}


def without_version(environment_id: str | None) -> str:
    """Returns ``hopper`` of ``Hopper-v5``."""
    return (environment_id or "").rsplit("-v", 1)[0].lower()


def task_of_environment(environment_id: str | None) -> Task | None:
    """Returns the task of an environment, whatever its version; None for an unknown one.

    >>> task_of_environment("Hopper-v4").name
    'hopper'
    """
    return TASKS.get(without_version(environment_id))


def hidden_indices(
    hidden: list[int] | str | None,
    environment_id: str | None,
    environment_kwargs: dict[str, Any] | None = None,
) -> list[int]:
    """Returns the indices of the observations that `policy.hidden` hides.

    >>> hidden_indices("velocities", "Hopper-v5")
    [5, 6, 7, 8, 9, 10]

    Raises:
        UserError: They are the velocities, and which those are is not known.
    """
    if not isinstance(hidden, str):
        return hidden or []
    task = task_of_environment(environment_id)
    shifts = "exclude_current_positions_from_observation"
    if task is None or shifts in (environment_kwargs or {}):
        given = f" with {shifts}" if task else ""
        raise UserError(
            "policy.hidden is 'velocities', but which observations are velocities is not known for "
            f"{environment_id or 'data without an environment'}{given}; give their indices, such "
            "as policy.hidden=[3,4]."
        )
    return list(task.velocities)
