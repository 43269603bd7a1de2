"""Trains a behaviour policy with SAC or TQC from sbx-rl (JAX), and measures its snapshots.

    python -m envs.behaviors.train env=halfcheetah algorithm=tqc steps=1000000 resume=true

Every `every` steps it writes, in the folder DIRECTORY/ENV-ALGORITHM-seedSEED, a snapshot
(`step_NNNNNNN.safetensors`), a row of `returns.csv`, and all that a killed training resumes from in
`state_NNNNNNN/`: networks and optimisers (state.msgpack), the replay buffer (replay.npz), and the
settings (training.json).
"""

import hashlib
import json
import shutil
import time
from dataclasses import MISSING, asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from common.arguments import parse_arguments, run_command
from common.checks import MOST_STEPS, check_fields, choice, number, seed
from common.errors import UserError
from common.files import hidden_directory, only_process, put_in_place
from common.terminal import steps_bar
from envs.behaviors.measure import Measurement, describe, measure, write_returns
from envs.behaviors.policy import Behavior, load_behavior
from envs.simulation.batched import make_simulators
from envs.simulation.simulators import quiet_model_files
from envs.tasks import TASKS

# Quantiles dropped from each critic's target, by task (Kuznetsov et al., arXiv 2005.04269).
TOP_QUANTILES_TO_DROP = {"hopper": 5, "halfcheetah": 0, "walker2d": 2}

# Steps of every environment between two calls of the jitted update, which makes all updates that
# are due: few calls, because each costs time in Python.
ROLLOUT_STEPS = 8

# The arrays of stable-baselines3's replay buffer, (position, environment, ...).
BUFFER_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")

# Settings that may change when a training is resumed.
FREE_TO_CHANGE = {"steps", "every", "episodes", "directory", "resume"}


@dataclass
class TrainBehaviorConfig:
    """Arguments of this command.

    Attributes:
        env: Name of a task.
        algorithm: sac or tqc.
        steps: Environment steps of training, and transitions that the replay buffer has room for.
        every: Steps from one snapshot, its measurement and a save to the next.
        random_steps: Steps with random actions before learning begins.
        n_envs: Environments that step together.
        updates_per_step: Critic updates for each environment step.
        batch_size: Transitions in an update.
        policy_delay: Critic updates for each actor update.
        episodes: Episodes that each snapshot is measured with, sampled and again with the mean.
        directory: Where the folder of this training is made.
        seed: Seed of training and of the measurements.
        resume: Whether an unfinished training in that folder is resumed.
    """

    env: str = choice(MISSING, TASKS)
    algorithm: str = choice("tqc", ("sac", "tqc"))
    steps: int = number(1_000_000, at_least=1, at_most=MOST_STEPS)
    every: int = number(20_000, at_least=1, at_most=MOST_STEPS)
    random_steps: int = number(10_000, at_least=0, at_most=MOST_STEPS)
    n_envs: int = number(8, at_least=1, at_most=1000)
    updates_per_step: float = number(0.5, above=0, at_most=100)
    batch_size: int = number(128, at_least=1, at_most=1_000_000)
    policy_delay: int = number(2, at_least=1, at_most=1000)
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


def saved_state(config: TrainBehaviorConfig) -> tuple[Path, dict[str, Any]] | None:
    """Finds and checks the last save of a training; None if there is none.

    Returns:
        The folder of the save and the content of its training.json.

    Raises:
        UserError: The folder holds a training and `resume` is false, or the save is damaged, was
            made with other settings, or is beyond `steps`.
    """
    folder = config.folder
    states = sorted(folder.glob("state_*"))
    snapshots = list(folder.glob("step_*.safetensors"))
    if (states or snapshots) and not config.resume:
        raise UserError(f"{folder} holds a training already; add resume=true to resume it.")
    if not states:
        if len(snapshots) > 1:
            raise UserError(
                f"{folder} holds snapshots but no state_NNNNNNN to resume from; give another "
                "directory or remove it."
            )
        return None
    state = states[-1]
    try:
        saved = json.loads((state / "training.json").read_text())
        hashes, settings, done = saved["sha256"], saved["config"], saved["num_timesteps"]
        found = {name: _sha256(state / name) for name in hashes}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{state} cannot be read ({error}); remove {folder} to begin anew."
        ) from None
    for name in hashes:
        if found[name] != hashes[name]:
            raise UserError(
                f"{state / name} is cut off or damaged: its SHA-256 is not the one in "
                f"training.json; remove {folder} to begin anew."
            )
    for key, value in asdict(config).items():
        if key not in FREE_TO_CHANGE and settings.get(key) != value:
            raise UserError(
                f"{key} is {value}, but the training in {folder} has {key}={settings.get(key)}; "
                "give that, or another directory."
            )
    if config.steps < done:
        raise UserError(
            f"steps is {config.steps}, but the training in {folder} has made {done} already; "
            "give at least that."
        )
    return state, saved


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_model(config: TrainBehaviorConfig, steps_done: int = 0) -> Any:
    """Returns an untrained model of sbx-rl with its environments.

    Args:
        config: The settings.
        steps_done: Steps before a resumption, which draws other random numbers than the beginning.
    """
    import sbx
    from stable_baselines3.common.env_util import make_vec_env

    model_seed = (config.seed + steps_done) % 2**32
    with quiet_model_files():
        environment = make_vec_env(
            TASKS[config.env].environment_id, n_envs=config.n_envs, seed=model_seed
        )
    options: dict[str, Any] = {}
    if config.algorithm == "tqc":
        options["top_quantiles_to_drop_per_net"] = TOP_QUANTILES_TO_DROP[config.env]
    steps_a_rollout = ROLLOUT_STEPS * config.n_envs
    return getattr(sbx, config.algorithm.upper())(
        "MlpPolicy",
        environment,
        learning_starts=config.random_steps,
        buffer_size=config.steps + steps_a_rollout,  # the last rollout may go beyond `steps`
        batch_size=config.batch_size,
        train_freq=ROLLOUT_STEPS,
        gradient_steps=max(1, round(steps_a_rollout * config.updates_per_step)),
        policy_delay=config.policy_delay,
        policy_kwargs={"net_arch": [256, 256], "layer_norm": True},  # of the critics
        seed=model_seed,
        **options,
    )


def behavior_of(model: Any, config: TrainBehaviorConfig) -> Behavior:
    """Returns the actor of a model, which acts as the model does."""
    layers = model.policy.actor_state.params["params"]
    weights: dict[str, np.ndarray] = {}
    for i, name in enumerate(("hidden_0", "hidden_1", "mean", "log_std")):
        weights[f"{name}.weight"] = np.array(layers[f"Dense_{i}"]["kernel"]).T.copy()
        weights[f"{name}.bias"] = np.array(layers[f"Dense_{i}"]["bias"])
    metadata = {
        "algorithm": config.algorithm.upper(),
        "environment_id": TASKS[config.env].environment_id,
        "training_steps": str(model.num_timesteps),
        "training": f"sbx-rl {version('sbx-rl')}, seed {config.seed}, batch {config.batch_size}, "
        f"{config.updates_per_step} updates a step, layer norm in the critics",
    }
    return Behavior(weights, metadata)


def _learned(model: Any) -> dict[str, Any]:
    """Returns the objects that hold what is learned, by name; model.key is added in `save`."""
    names = ("actor_state", "qf_state", "qf1_state", "qf2_state")
    states = {name: getattr(model.policy, name) for name in names if hasattr(model.policy, name)}
    return {**states, "ent_coef_state": model.ent_coef_state}


def save_state(model: Any, config: TrainBehaviorConfig, measured: list[Measurement]) -> None:
    """Writes all that a killed training resumes from: one folder, put in place by one rename."""
    import jax
    from flax.serialization import msgpack_serialize, to_state_dict

    place = config.folder / f"state_{model.num_timesteps:07d}"
    with hidden_directory(config.folder) as hidden:
        made = hidden / "state"
        made.mkdir()
        tree = {name: to_state_dict(state) for name, state in _learned(model).items()}
        tree = jax.tree.map(np.asarray, {**tree, "key": model.key})
        (made / "state.msgpack").write_bytes(msgpack_serialize(tree))
        buffer = model.replay_buffer
        arrays = {name: getattr(buffer, name)[: buffer.pos] for name in BUFFER_ARRAYS}
        np.savez(made / "replay.npz", **arrays)
        saved = {
            "config": asdict(config),
            "num_timesteps": model.num_timesteps,
            "n_updates": model._n_updates,
            "measured": [asdict(measurement) for measurement in measured],
            "sha256": {path.name: _sha256(path) for path in made.iterdir()},
        }
        (made / "training.json").write_text(json.dumps(saved, indent=1))
        put_in_place(made, place, hidden)
    for older in config.folder.glob("state_*"):
        if older != place:
            shutil.rmtree(older)


def load_state(model: Any, state: Path, saved: dict[str, Any]) -> list[Measurement]:
    """Restores what `save_state` wrote and `saved_state` checked; returns the measurements.

    The episodes that were under way begin anew.
    """
    import jax.numpy as jnp
    from flax.serialization import from_state_dict, msgpack_restore

    tree = msgpack_restore((state / "state.msgpack").read_bytes())
    for name, empty in _learned(model).items():
        owner = model if name == "ent_coef_state" else model.policy
        setattr(owner, name, from_state_dict(empty, tree[name]))
    model.key = jnp.asarray(tree["key"])
    buffer = model.replay_buffer
    with np.load(state / "replay.npz", allow_pickle=False) as file:
        for name in BUFFER_ARRAYS:
            array = file[name]
            getattr(buffer, name)[: len(array)] = array
            buffer.pos = len(array)
    model.num_timesteps, model._n_updates = saved["num_timesteps"], saved["n_updates"]
    return [Measurement(**row) for row in saved["measured"]]


def train(config: TrainBehaviorConfig) -> list[Measurement]:
    """Trains, measures and saves; returns the measurements of all snapshots.

    Raises:
        UserError: sbx-rl is not installed, the folder cannot be written, or see `saved_state`.
    """
    if find_spec("sbx") is None:
        raise UserError(
            'training a behaviour policy needs sbx-rl: run pip install -e ".[behavior]".'
        )
    task, folder = TASKS[config.env], config.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with only_process(folder / ".training.lock", f"training in {folder}"):
            return _train(config, task, folder)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}); free some space or give another "
            "directory; what was saved there before is intact."
        ) from error


def _train(config: TrainBehaviorConfig, task: Any, folder: Path) -> list[Measurement]:
    found = saved_state(config)
    if found is None:
        model, measurements = make_model(config), []
    else:
        model = make_model(config, found[1]["num_timesteps"])
        measurements = load_state(model, *found)

    with (
        make_simulators(task.environment_id, config.episodes) as simulators,
        steps_bar(folder.name, config.steps) as show,
    ):

        def on_step(*_: object) -> bool:
            show(min(model.num_timesteps, config.steps))
            return True

        while model.num_timesteps < config.steps:
            started, before = time.perf_counter(), model.num_timesteps
            steps = min(config.every, config.steps - before)
            model.learn(steps, callback=on_step, reset_num_timesteps=False)
            rate = (model.num_timesteps - before) / (time.perf_counter() - started)
            path = folder / f"step_{model.num_timesteps:07d}.safetensors"
            behavior_of(model, config).save(path)
            behavior = load_behavior(path)  # measure what the file holds: float16
            measurements.append(
                measure(task, simulators, behavior, model.num_timesteps, config.seed)
            )
            write_returns(folder / "returns.csv", measurements)
            save_state(model, config, measurements)
            print(f"{describe(measurements[-1])}, {rate:.0f} steps a second", flush=True)
    return measurements


if __name__ == "__main__":
    run_command(
        lambda arguments: train(parse_arguments(TrainBehaviorConfig, arguments)),
        interrupted="interrupted; add resume=true to resume from the last save",
    )
