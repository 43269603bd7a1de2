"""Sources of data: each becomes the same Episodes."""

import re
from dataclasses import MISSING, dataclass, field, replace
from pathlib import Path

from common.checks import MOST_STEPS, check_fields, choice, number, seed
from common.errors import UserError
from common.memory import require_memory
from envs.behaviors import DEFAULT_STEPS, RECIPES, find_recipe
from envs.data.combine import best, concatenate, limit
from envs.data.episodes import Episodes
from envs.data.sources.builtin import load_builtin, recipe_of
from envs.data.sources.d4rl import NAMES, download_d4rl, environment_of_file, load_d4rl
from envs.data.sources.minari import environment_of_set, load_minari

# Each source, and the keys that locate its data.
SOURCES = {
    **{"builtin": ("id",), "minari": ("id",), "d4rl": ("path", "name"), "mix": ("parts",)},
    # Episodes of a Python program, given to train.train: there is nothing to load.
    "memory": ("id",),
}

# Bytes of a collected step of the smallest environment, Hopper: float32, and a float64 reward.
_LEAST_STEP_BYTES = 4 * (11 + 3) + 8


@dataclass
class DatasetConfig:
    """Which data set, and how much of it.

    Attributes:
        source: `builtin` (made here, on first use), `minari` (any data set of Minari), `d4rl` (an
            HDF5 file of D4RL), `mix` (several of these) or `memory` (Episodes given to
            train.train in Python).
        id: ``builtin/hopper/medium-v1``, short ``hopper-medium``; or any Minari id.
        steps: Least number of steps when a built-in data set is made.
        seed: Seed when a built-in data set is made.
        path: Of `d4rl`: the file.
        name: Of `d4rl`, instead of a path: ``hopper-medium-v2``, downloaded if need be.
        parts: Of `mix`: names of built-in data sets, Minari ids, D4RL files or names.
        environment: Gymnasium id to evaluate in, or `my_package:My-v0`, which imports my_package
            first; null means the data set's own, or for D4RL files the v4 environment of the task.
        top_fraction: Keeps only this fraction of the episodes, those with the highest returns.
        max_episodes: Keeps at most this many episodes, drawn at random, always the same.
        max_steps: Keeps at most this many steps, in whole episodes drawn likewise.
    """

    source: str = choice(MISSING, SOURCES)
    id: str | None = None
    steps: int = number(DEFAULT_STEPS, at_least=1, at_most=MOST_STEPS)
    seed: int = seed()
    path: str | None = None
    name: str | None = None
    parts: list[str] = field(default_factory=list)
    environment: str | None = None
    top_fraction: float | None = number(None, above=0, at_most=1)
    max_episodes: int | None = number(None, at_least=1, at_most=MOST_STEPS)
    max_steps: int | None = number(None, at_least=1, at_most=MOST_STEPS)

    def __post_init__(self) -> None:
        check_fields(self, "dataset")
        if self.source == "builtin":  # collected in memory
            size = self.steps * _LEAST_STEP_BYTES
            require_memory(size, f"dataset.steps={self.steps}", "lower it.")
        keys = SOURCES[self.source]
        for key in ("id", "path", "name", "parts"):
            if getattr(self, key) and key not in keys:
                raise UserError(
                    f"dataset.{key} is given, but a data set of source '{self.source}' has "
                    f"dataset.{' or dataset.'.join(keys)}; remove the first or change the second"
                )

    @property
    def label(self) -> str:
        """A short name for run folders: ``hopper-medium``, ``d4rl-hopper-medium-v2``."""
        if self.source == "mix":
            return "+".join(config_of(part).label for part in self.parts) or "mix"
        if self.source == "d4rl":
            return f"d4rl-{self.name or Path(self.path or '').stem}"
        name = (self.id or "").removeprefix("builtin/").rsplit("-v", 1)[0]
        return re.sub(r"[^\w.+-]+", "-", name)


# A word on the command line -> what it stands for: dataset=hopper-medium.
DATASETS = {
    f"{recipe.task.name}-{recipe.quality}": DatasetConfig("builtin", recipe.dataset_id)
    for recipe in RECIPES.values()
} | {source: DatasetConfig(source) for source in ("minari", "d4rl", "mix")}


def load_episodes(config: DatasetConfig) -> Episodes:
    """Loads a data set, or raises UserError; makes a built-in one, downloads others if need be."""
    return part_of(_load(config), config)


def part_of(episodes: Episodes, config: DatasetConfig) -> Episodes:
    """Returns the episodes that are to be kept."""
    if config.top_fraction is not None:
        episodes = best(episodes, config.top_fraction)
    if config.max_episodes is not None or config.max_steps is not None:
        episodes = limit(episodes, config.max_episodes, config.max_steps)
    return episodes


def named_environment(config: DatasetConfig) -> str | None:
    """Returns the environment to evaluate in, before a step is read; downloads data if need be."""
    if config.environment is not None:
        return config.environment
    if config.source == "mix":
        return named_environment(_parts(config)[0]) if config.parts else None
    if config.source == "d4rl":
        return environment_of_file(_path(config))
    if config.source == "builtin":
        return recipe_of(_id(config)).task.environment_id
    if config.source == "memory":
        return None
    return environment_of_set(_id(config))


def load_named(name: str, environment: str | None = None) -> Episodes:
    """Loads a data set by one word, to evaluate in its own environment or in another.

    The word is a built-in data set, a Minari id, a D4RL file (.hdf5, .h5) or the name of one, or
    several of these joined by +.
    """
    return load_episodes(replace(config_of(name), environment=environment))


def _load(config: DatasetConfig) -> Episodes:
    if config.source == "mix":
        return concatenate([_load(part) for part in _parts(config)])
    if config.source == "d4rl":
        return load_d4rl(_path(config), config.environment)
    if config.source == "builtin":
        return load_builtin(_id(config), config.steps, config.seed, config.environment)
    if config.source == "memory":
        raise UserError(
            f"dataset.source is 'memory': {config.id or 'the data'} were in the memory of a Python "
            "program; give its Episodes to train() again, or store them with "
            "envs.store_episodes and train on dataset=minari."
        )
    return load_minari(_id(config), config.environment)


def _parts(config: DatasetConfig) -> list[DatasetConfig]:
    shared = {key: getattr(config, key) for key in ("environment", "steps", "seed")}
    return [replace(config_of(name), **shared) for name in config.parts]


def _path(config: DatasetConfig) -> Path:
    if (config.path is None) == (config.name is None):
        raise UserError(
            "give either dataset.path=FILE.hdf5 or dataset.name=hopper-medium-v2 (a download)"
        )
    return Path(config.path) if config.path is not None else download_d4rl(str(config.name))


def _id(config: DatasetConfig) -> str:
    if config.id is None:
        raise UserError("dataset.id has no value; give one as dataset.id=VALUE")
    return config.id


def config_of(name: str) -> DatasetConfig:
    """Returns the configuration of a data set that one word names; see `load_named`."""
    if "+" in name:
        return DatasetConfig("mix", parts=name.split("+"))
    if find_recipe(name) is not None:
        return DatasetConfig("builtin", name)
    if name.endswith((".hdf5", ".h5")):
        return DatasetConfig("d4rl", path=name)
    if name in NAMES:
        return DatasetConfig("d4rl", name=name)
    if re.search(r"-v\d+$", name) is None:
        raise UserError(
            f"there is no data set '{name}'; give the name of a built-in one, such as "
            "hopper-medium, a Minari id with its version, or a D4RL file or name"
        )
    return DatasetConfig("minari", name)
