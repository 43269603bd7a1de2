"""Many environments, stepped together, without automatic resets."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import FlattenObservation, OrderEnforcing, PassiveEnvChecker, TimeLimit

from common.checks import nearest
from common.errors import UserError
from envs.simulation.physics import mujoco

# The wrappers of gymnasium.make whose work `Simulators` does once for all environments.
_REPLACED_WRAPPERS = (TimeLimit, OrderEnforcing, PassiveEnvChecker)

# MuJoCo steps outside Python's lock, the rest of an environment's step (a good third) holds it:
# more than two threads gain nothing.
_MOST_WORKERS = 2


@contextlib.contextmanager
def quiet_model_files() -> Iterator[None]:
    """Silences deprecation warnings while environments are made.

    MuJoCo warns of Gymnasium's HalfCheetah model, once for each environment, on standard error and
    in a file; Gymnasium warns of v4. MuJoCo's other messages become Python warnings.
    """

    def warn(message: str) -> None:
        if "deprecated" not in message:
            warnings.warn(message, stacklevel=2)

    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(warn)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        mujoco.set_mju_user_warning(before)


def make_environment(environment_id: str, *, bare: bool = False, **kwargs: Any) -> gym.Env:
    """Makes one environment with flat, continuous observations and actions.

    Observations that are a Dict, or have more than one dimension, are laid end to end, as the
    sources of data do.

    Args:
        environment_id: Gymnasium id, such as ``Hopper-v5``, or ``my_package:My-v0``, which imports
            my_package first; only what the user typed may name a module.
        bare: Omits the time limit and the checks of ``gymnasium.make``.
        **kwargs: Passed to ``gymnasium.make``.

    Raises:
        UserError: The environment does not exist, cannot be made or has other spaces.
    """
    module, _, name = environment_id.rpartition(":")
    if module:
        _import_module_of(environment_id, module)
    try:
        with quiet_model_files():
            environment = gym.make(environment_id, disable_env_checker=True, **kwargs)
    except gym.error.UnregisteredEnv as error:
        other = f"give an id that {module} registers"
        mend = other if module else "install the package that registers it"
        raise UserError(
            f"environment '{environment_id}' does not exist{nearest(name, list(gym.registry))}; "
            f"{mend}."
        ) from error
    # An environment's own code can fail in any way on keyword arguments that it does not take.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        given = f" with {', '.join(kwargs)}" if kwargs else ""
        raise UserError(
            f"environment '{environment_id}' cannot be made{given} ({reason}); give the Gymnasium "
            "id of one that is installed, such as Hopper-v5."
        ) from error
    while bare and isinstance(environment, _REPLACED_WRAPPERS):
        environment = environment.env
    space, actions = environment.observation_space, environment.action_space
    try:
        require_vectors(environment_id, space, actions)
        if len(actions.shape) != 1:
            raise UserError(
                f"environment '{environment_id}' has the action space {actions}, "
                "but a policy here gives vectors: a Box of one dimension."
            )
    except UserError:
        environment.close()
        raise
    flat = isinstance(space, gym.spaces.Box) and len(space.shape) == 1
    return environment if flat else FlattenObservation(environment)


def _import_module_of(environment_id: str, module: str) -> None:
    try:
        import_module(module)
    except Exception as error:  # another's code can fail in any way
        reason = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".")
        raise UserError(
            f"environment '{environment_id}' is registered by the module {module}, which cannot be "
            f"imported ({reason}); install its package, or put its folder on PYTHONPATH."
        ) from error


def require_vectors(name: str, observations: gym.Space, actions: gym.Space) -> None:
    """Checks that observations are boxes of numbers, or a Dict of such, and actions one box.

    Raises:
        UserError: They are images, discrete or of another kind; names the data or environment.
    """
    parts = [("observations", part) for part in _leaves(observations)]
    for kind, part in (*parts, ("actions", actions)):
        if not isinstance(part, gym.spaces.Box):
            raise UserError(
                f"{name}: the {kind} are {part}, not boxes of numbers; a policy here sees and "
                "gives vectors of real numbers."
            )
        if part.dtype == np.uint8 and len(part.shape) > 1:
            raise UserError(
                f"{name}: the {kind} hold images ({part}); there is no encoder for images here, "
                "only vectors of real numbers can be used."
            )


def _leaves(space: gym.Space) -> list[gym.Space]:
    if not isinstance(space, gym.spaces.Dict):
        return [space]
    return [leaf for part in space.spaces.values() for leaf in _leaves(part)]


class Simulators(contextlib.AbstractContextManager):
    """`n` environments of one kind; any subset of them can be reset or stepped.

    Observations, rewards and ends of an episode are those of ``gymnasium.make(environment_id)``,
    its time limit included, and depend neither on `n` nor on `workers`. An environment whose
    episode has ended costs nothing: leave it out of `index`.

    Args:
        environment_id: Gymnasium id; see `make_environment`.
        workers: Threads that step; by default one or two, as the machine allows.
        horizon: Steps after which an episode is truncated; None is the environment's own limit.
        options: Passed to ``gymnasium.make``.

    Attributes:
        mujoco_version: None if another engine runs the environment.
        action_low: (action_dim,) float32, lower bounds of the actions; `action_high` likewise.
        environments: The environments, without the outer wrappers of gymnasium.make.
        success: (n,) bool, whether ``info["success"]``, as Gymnasium-Robotics' mazes report it,
            was true at a step of the episode.
        reports_success: Whether any environment has reported a success or its absence.
    """

    def __init__(
        self,
        environment_id: str,
        n: int,
        *,
        workers: int | None = None,
        horizon: int | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        options = options or {}
        self.environments = [
            make_environment(environment_id, bare=True, **options) for _ in range(n)
        ]
        first = self.environments[0]
        assert first.spec is not None and isinstance(first.action_space, gym.spaces.Box)
        self.n = n
        self.environment_id = first.spec.id
        self.version = gym.__version__
        of_mujoco = isinstance(getattr(first.unwrapped, "model", None), mujoco.MjModel)
        self.mujoco_version = mujoco.__version__ if of_mujoco else None
        limit = options.get("max_episode_steps") or gym.spec(first.spec.id).max_episode_steps
        self.horizon: int | None = horizon or limit
        self.observation_dim = first.observation_space.shape[0]
        self.action_dim = first.action_space.shape[0]
        self.action_low = first.action_space.low.astype(np.float32)
        self.action_high = first.action_space.high.astype(np.float32)
        self.success = np.zeros(n, bool)
        self.reports_success = False
        self._elapsed = np.zeros(n, np.int64)
        self._running = np.zeros(n, bool)
        self._workers = workers or min(_MOST_WORKERS, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(self._workers) if self._workers > 1 else None

    def reset(self, index: np.ndarray, seeds: Sequence[int] | np.ndarray) -> np.ndarray:
        """Starts an episode in each environment of `index`, (k,), with its seed of `seeds`, (k,).

        Returns:
            (k, observation_dim) float32, the first observations.
        """
        observations = np.empty((len(index), self.observation_dim), np.float32)

        def reset_one(row: int) -> None:
            observations[row] = self.environments[index[row]].reset(seed=int(seeds[row]))[0]

        self._for_each(len(index), reset_one)
        self._elapsed[index] = 0
        self._running[index] = True
        self.success[index] = False
        return observations

    def step(
        self, index: np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Takes one step in each environment of `index`, (k,) int, each there at most once.

        Args:
            index: Environments whose episode has begun and not ended.
            actions: (k, action_dim) float32.

        Returns:
            observations (k, observation_dim) float32, rewards (k,) float64, terminations (k,) bool
            and truncations (k,) bool.
        """
        if not self._running[index].all():
            ended = index[~self._running[index]]
            raise RuntimeError(f"environments {ended.tolist()} must be reset before the next step")
        count = len(index)
        observations = np.empty((count, self.observation_dim), np.float32)
        rewards = np.empty(count, np.float64)
        terminations, truncations = np.empty((2, count), bool)

        def step_one(row: int) -> None:
            environment = self.environments[index[row]]
            observations[row], rewards[row], terminations[row], truncations[row], info = (
                environment.step(actions[row])
            )
            if "success" in info:
                self.reports_success = True
                self.success[index[row]] |= bool(info["success"])

        self._for_each(count, step_one)
        self._elapsed[index] += 1
        truncations |= self._elapsed[index] >= (self.horizon or np.inf)
        self._running[index] = ~(terminations | truncations)
        return observations, rewards, terminations, truncations

    def _for_each(self, count: int, function: Callable[[int], None]) -> None:
        def run(begin: int, end: int) -> None:
            for row in range(begin, end):
                function(row)

        if self._pool is None or count == 1:
            run(0, count)
            return
        borders = np.linspace(0, count, self._workers + 1).astype(int)
        list(self._pool.map(run, borders[:-1], borders[1:]))  # raises what a thread raised

    def close(self) -> None:
        """Ends the threads and closes every environment."""
        if self._pool is not None:
            self._pool.shutdown()
        for environment in self.environments:
            environment.close()

    def __exit__(self, *_: object) -> None:
        self.close()
