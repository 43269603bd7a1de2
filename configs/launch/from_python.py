"""A configuration made in Python, and what a command line would have overridden to get it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, get_type_hints

from omegaconf import OmegaConf

from agents.backbones import mixer_entry
from agents.backbones.min_gru import MinGRUConfig
from common.errors import UserError
from configs.schema import TrainConfig
from envs.data.episodes import Episodes
from envs.data.sources import DATASETS, DatasetConfig, config_of


def make_config(
    data: str | Episodes | DatasetConfig | TrainConfig, keys: dict[str, Any]
) -> TrainConfig:
    """Returns the configuration of a run that is asked for in Python."""
    check_keys("train()", keys, TrainConfig, "dataset")
    if isinstance(name := keys.get("backbone"), str):
        keys = keys | {"backbone": mixer_entry(name)[0]()}
    hints = get_type_hints(TrainConfig)
    for key, value in keys.items():
        kind = hints[key]
        if isinstance(kind, type) and is_dataclass(kind) and not isinstance(value, kind):
            raise UserError(f"{key} is {value!r:.60}; give a {kind.__name__}.")
    if isinstance(data, TrainConfig):
        return replace(data, **keys)
    if isinstance(data, Episodes):
        data = DatasetConfig("memory", data.dataset_id)
    elif not isinstance(data, DatasetConfig):
        data = DATASETS.get(data) or config_of(data)
    return TrainConfig(data, **{"backbone": MinGRUConfig()} | keys)


def check_keys(function: str, keys: dict[str, Any], config: type, other: str) -> None:
    """Checks that a function's keys are fields of a configuration, but for the one it takes first.

    Raises:
        UserError: One is not.
    """
    known = [item.name for item in fields(config) if item.name != other]
    if unknown := sorted(keys.keys() - set(known)):
        raise UserError(f"{function} has no key {unknown[0]!r}; the keys are {', '.join(known)}.")


def overrides_of(config: TrainConfig) -> list[str]:
    """Returns what a command line would override to get a configuration made in Python."""
    usual = TrainConfig(dataset=DatasetConfig("memory"), backbone=type(config.backbone)())
    defaults = dict(_keys(OmegaConf.to_container(OmegaConf.structured(usual))))
    values = dict(_keys(OmegaConf.to_container(OmegaConf.structured(config))))
    located = {"dataset.source", "dataset.id"}  # the folder above is named after them
    changed = (k for k, v in values.items() if k not in located and v != defaults.get(k))
    return [f"{key}={values[key]}" for key in changed]


def _keys(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields each value with its key, such as trainer.learning_rate."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
