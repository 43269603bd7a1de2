"""Trains a behaviour policy with SAC or TQC from sbx-rl (JAX), and measures its snapshots.

    python -m envs.behaviors.train env=halfcheetah algorithm=tqc steps=1000000 resume=true

Every `every` steps it writes, in the folder DIRECTORY/ENV-ALGORITHM-seedSEED, a snapshot
(`step_NNNNNNN.safetensors`), a row of `returns.csv`, and `state.npz`, from which a killed training
resumes: networks, optimisers, replay buffer and settings.
"""

import json
import time
import zipfile
from dataclasses import MISSING, asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from common.arguments import parse_arguments, run_command
from common.checks import MOST_STEPS, check_fields, choice, number, require_extra, seed
from common.errors import UserError
from common.files import only_process, write_file
from common.terminal import steps_bar
from envs.behaviors.measure import Measurement, measure, write_returns
from envs.behaviors.policy import LAYERS, Behavior
from envs.simulation.simulators import quiet_model_files
from envs.tasks import TASKS

# Quantiles dropped from each critic's target, by task (Kuznetsov et al., arXiv 2005.04269).
TOP_QUANTILES_TO_DROP = {"hopper": 5, "halfcheetah": 0, "walker2d": 2}

N_ENVS = 8
BATCH_SIZE = 128
UPDATES_PER_STEP = 0.5
# Steps of every environment between two calls of the jitted update, which makes all updates that
# are due: few calls, because each costs time in Python.
ROLLOUT_STEPS = 8

# The arrays of stable-baselines3's replay buffer, (position, environment, ...).
BUFFER_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


@dataclass
class TrainBehaviorConfig:
    """Arguments of this command.

    Attributes:
        env: Name of a task.
        algorithm: sac or tqc.
        steps: Environment steps of training, and transitions that the replay buffer has room for.
        every: Steps from one snapshot, its measurement and a save to the next.
        random_steps: Steps with random actions before learning begins.
        episodes: Episodes that each snapshot is measured with, sampled and again with the mean.
        directory: Where the folder of this training is made.
        seed: Seed of training and of the measurements.
        resume: Whether an unfinished training in that folder is resumed.
    """

    env: str = choice(MISSING, TOP_QUANTILES_TO_DROP)
    algorithm: str = choice("tqc", ("sac", "tqc"))
    steps: int = number(1_000_000, at_least=1, at_most=MOST_STEPS)
    every: int = number(20_000, at_least=1, at_most=MOST_STEPS)
    random_steps: int = number(10_000, at_least=0, at_most=MOST_STEPS)
    episodes: int = number(10, at_least=1, at_most=1_000_000)
    directory: str = "runs/behaviors"
    seed: int = seed()
    resume: bool = False

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def folder(self) -> Path:
        """Where this training writes."""
        return Path(self.directory) / f"{self.env}-{self.algorithm}-seed{self.seed}"


def read_state(config: TrainBehaviorConfig) -> dict[str, Any] | None:
    """Reads and checks the save of a training; None if there is none.

    Raises:
        UserError: The folder holds a training and `resume` is false, or the save is damaged, was
            made with other settings, or is beyond `steps`.
    """
    folder, path = config.folder, config.folder / "state.npz"
    snapshots = list(folder.glob("step_*.safetensors"))
    if (path.exists() or snapshots) and not config.resume:
        raise UserError(f"{folder} holds a training already; add resume=true to resume it.")
    if not path.exists():
        if len(snapshots) > 1:
            raise UserError(
                f"{folder} holds snapshots but no state.npz to resume from; give another "
                "directory or remove it."
            )
        return None
    try:
        with np.load(path, allow_pickle=False) as file:  # checks the CRC of each array
            state: dict[str, Any] = dict(file)
        state |= json.loads(str(state["training"]))
        made, done = state["config"], int(state["num_timesteps"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is cut off or damaged ({error}); remove {folder} to begin anew."
        ) from None
    for key in ("env", "algorithm", "seed", "random_steps"):
        if made.get(key) != getattr(config, key):
            raise UserError(
                f"{key} is {getattr(config, key)}, but the training in {folder} has "
                f"{key}={made.get(key)}; give that, or another directory."
            )
    if config.steps < done:
        raise UserError(
            f"steps is {config.steps}, but the training in {folder} has made {done} already; "
            "give at least that."
        )
    return state


def make_model(config: TrainBehaviorConfig, steps_done: int = 0) -> Any:
    """Returns an untrained model of sbx-rl with its environments.

    A training resumed after `steps_done` steps draws other random numbers than at its beginning.
    """
    import sbx
    from stable_baselines3.common.env_util import make_vec_env

    model_seed = (config.seed + steps_done) % 2**32
    with quiet_model_files():
        environment = make_vec_env(TASKS[config.env].environment_id, N_ENVS, seed=model_seed)
    options: dict[str, Any] = {}
    if config.algorithm == "tqc":
        options["top_quantiles_to_drop_per_net"] = TOP_QUANTILES_TO_DROP[config.env]
    return getattr(sbx, config.algorithm.upper())(
        "MlpPolicy",
        environment,
        learning_starts=config.random_steps,
        buffer_size=config.steps + ROLLOUT_STEPS * N_ENVS,  # the last rollout may go beyond `steps`
        batch_size=BATCH_SIZE,
        train_freq=ROLLOUT_STEPS,
        gradient_steps=round(ROLLOUT_STEPS * N_ENVS * UPDATES_PER_STEP),
        policy_delay=2,
        policy_kwargs={"net_arch": [256, 256], "layer_norm": True},  # of the critics
        seed=model_seed,
        **options,
    )


def behavior_of(model: Any, config: TrainBehaviorConfig) -> Behavior:
    """Returns the actor of a model, which acts as the model does."""
    layers = model.policy.actor_state.params["params"]
    weights: dict[str, np.ndarray] = {}
    for i, name in enumerate(LAYERS):
        weights[f"{name}.weight"] = np.array(layers[f"Dense_{i}"]["kernel"]).T.copy()
        weights[f"{name}.bias"] = np.array(layers[f"Dense_{i}"]["bias"])
    metadata = {
        "algorithm": config.algorithm.upper(),
        "environment_id": TASKS[config.env].environment_id,
        "training_steps": str(model.num_timesteps),
        "training": f"sbx-rl {version('sbx-rl')}, seed {config.seed}, batch {BATCH_SIZE}, "
        f"{UPDATES_PER_STEP} updates a step, layer norm in the critics",
    }
    return Behavior(weights, metadata)


def _learned(model: Any) -> dict[str, Any]:
    """Returns the objects that hold what is learned, by their attribute of the policy or model."""
    names = ("actor_state", "qf_state", "qf1_state", "qf2_state")
    states = {name: getattr(model.policy, name) for name in names if hasattr(model.policy, name)}
    return {**states, "ent_coef_state": model.ent_coef_state, "key": model.key}


def save_state(model: Any, config: TrainBehaviorConfig, measured: list[Measurement]) -> None:
    """Writes all that a killed training resumes from, in one file."""
    import jax

    buffer = model.replay_buffer
    arrays = {name: getattr(buffer, name)[: buffer.pos] for name in BUFFER_ARRAYS}
    for i, leaf in enumerate(jax.tree.leaves(_learned(model))):
        arrays[f"leaf_{i}"] = np.asarray(leaf)
    training = {
        "config": asdict(config),
        "num_timesteps": model.num_timesteps,
        "n_updates": model._n_updates,
        "measured": [asdict(measurement) for measurement in measured],
    }
    arrays["training"] = np.array(json.dumps(training))
    write_file(config.folder / "state.npz", lambda file: np.savez(file, **arrays))


def load_state(model: Any, state: dict[str, Any]) -> list[Measurement]:
    """Restores what `read_state` returned; returns the measurements.

    The episodes that were under way begin anew.
    """
    import jax
    import jax.numpy as jnp

    leaves, structure = jax.tree.flatten(_learned(model))
    saved = [jnp.asarray(state[f"leaf_{i}"]) for i in range(len(leaves))]
    for name, value in jax.tree.unflatten(structure, saved).items():
        setattr(model if name in ("ent_coef_state", "key") else model.policy, name, value)
    buffer = model.replay_buffer
    buffer.pos = len(state["rewards"])
    for name in BUFFER_ARRAYS:
        getattr(buffer, name)[: buffer.pos] = state[name]
    model.num_timesteps, model._n_updates = state["num_timesteps"], state["n_updates"]
    return [Measurement(**row) for row in state["measured"]]


def train(config: TrainBehaviorConfig) -> list[Measurement]:
    """Trains, measures and saves; returns the measurements of all snapshots.

    Raises:
        UserError: sbx-rl is not installed, the folder cannot be written, or see `read_state`.
    """
    require_extra("sbx", "training a behaviour policy", "behavior")
    folder = config.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with only_process(folder / ".training.lock", f"training in {folder}"):
            return _train(config)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}); free some space or give another "
            "directory; what was saved there before is intact."
        ) from error


def _train(config: TrainBehaviorConfig) -> list[Measurement]:
    state, folder, measurements = read_state(config), config.folder, []
    model = make_model(config, state["num_timesteps"] if state else 0)
    if state:
        measurements = load_state(model, state)
        del state
    with steps_bar(folder.name, config.steps) as show:

        def on_step(*_: object) -> bool:
            show(min(model.num_timesteps, config.steps))
            return True

        while (before := model.num_timesteps) < config.steps:
            started = time.perf_counter()
            steps = min(config.every, config.steps - before)
            model.learn(steps, callback=on_step, reset_num_timesteps=False)
            rate = (model.num_timesteps - before) / (time.perf_counter() - started)
            path = folder / f"step_{model.num_timesteps:07d}.safetensors"
            behavior_of(model, config).save(path)
            measurements.append(
                measure(TASKS[config.env], path, model.num_timesteps, config.episodes, config.seed)
            )
            write_returns(folder / "returns.csv", measurements)
            save_state(model, config, measurements)
            print(f"{measurements[-1]}, {rate:.0f} steps a second", flush=True)
    return measurements


if __name__ == "__main__":
    run_command(
        lambda arguments: train(parse_arguments(TrainBehaviorConfig, arguments)),
        interrupted="interrupted; add resume=true to resume from the last save",
    )
