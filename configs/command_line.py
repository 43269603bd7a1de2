"""Runs an entry script under Hydra, with one sentence instead of a traceback for a wrong key.

Hydra composes, sweeps (`-m`) and launches; the overrides are looked at first, because its own
messages do not say what exists. The code behind gets dataclasses, never a DictConfig.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from agents import distributed
from configs.schema import register

FOLDER = Path(__file__).resolve().parent
GROUPS = ("dataset", "backbone", "experiment")


class ConfigError(ValueError):
    """A configuration that cannot be used; its message is one sentence for the user."""


def run(
    name: str, main: Callable[[Any, list[str]], None], errors: tuple[type[Exception], ...]
) -> None:
    """Composes configs/{name}.yaml with the command line and calls main with the result.

    Args:
        name: The configuration's name.
        main: Takes the dataclass and the overrides as they were given.
        errors: Exceptions whose message is meant for the user; they end the program with it.
    """
    register()
    try:
        check([argument for argument in sys.argv[1:] if not argument.startswith("-")], name)
    except ConfigError as error:
        fail(error)

    @hydra.main(version_base="1.3", config_path=str(FOLDER), config_name=name)
    def job(config: DictConfig) -> None:
        try:
            main(to_dataclass(config), list(HydraConfig.get().overrides.task))
        except errors as error:
            fail(error)
        except Exception:
            if distributed.fails_first():
                raise
            sys.exit(1)

    job()


def fail(error: Exception) -> NoReturn:
    """Ends the program with an error's message on standard error and exit status 1."""
    if distributed.fails_first():
        print(f"error: {error}", file=sys.stderr)
    sys.exit(1)


def to_dataclass(config: DictConfig) -> Any:
    """Turns a composed configuration into its dataclass.

    Raises:
        ConfigError: A value is missing or not allowed.
    """
    try:
        return OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        key = error.full_key or "a key"
        raise ConfigError(f"{key} has no value; give one as {key}=VALUE.") from error
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check(arguments: list[str], name: str) -> None:
    """Composes the configuration once, only to find what is wrong with the overrides.

    Raises:
        ConfigError: What is wrong, and what there is instead.
    """
    try:
        overrides = OverridesParser.create().parse_overrides(arguments)
    except HydraException as error:
        wrong = next((a for a in arguments if "=" not in a and not a.startswith("~")), None)
        what = f"'{wrong}' is" if wrong else f"{' '.join(arguments)} holds"
        raise ConfigError(f"{what} not an override; write key=value.") from error
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        plain = [_first_of_sweep(override) for override in overrides]
        groups = _groups()
        for override in plain:
            _check_choice(override, groups)
        chosen = [text for text in plain if text.partition("=")[0].lstrip("+~") in groups]
        try:
            known = compose(name, chosen)
        except HydraException as error:
            reason = str(error.__cause__ or error).splitlines()
            detail = next((line for line in reason if line.startswith("Key ")), reason[0])
            raise ConfigError(f"{' '.join(chosen)} do not go together: {detail}.") from error
        for text in plain:
            if text not in chosen:
                _check_key(text, known)
        for text in plain:
            _check_value(text, name, chosen)
        to_dataclass(compose(name, plain))


def _first_of_sweep(override: Override) -> str:
    if not override.is_sweep_override():
        return str(override.input_line)
    return f"{override.get_key_element()}={next(override.sweep_string_iterator())}"


def _groups() -> dict[str, list[str]]:
    loader = GlobalHydra.instance().config_loader()
    return {group: sorted(loader.get_group_options(group)) for group in GROUPS}


def _check_choice(text: str, groups: dict[str, list[str]]) -> None:
    key, _, value = text.partition("=")
    options = groups.get(key.lstrip("+"))
    if options is not None and value not in (*options, "null"):
        raise ConfigError(
            f"{key} '{value}' does not exist{_nearest(value, options)}; there are: "
            f"{', '.join(options)}."
        )


def _check_key(text: str, known: DictConfig) -> None:
    key = text.partition("=")[0].lstrip("+~")
    if key.startswith("hydra."):
        return
    node: Any = known
    path: list[str] = []
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in list(node):
            where = f" in {'.'.join(path)}" if path else ""
            names = [str(name) for name in node] if isinstance(node, DictConfig) else []
            there = f"there are: {', '.join(names)}" if names else f"{'.'.join(path)} has no keys"
            raise ConfigError(
                f"key '{part}' does not exist{where}{_nearest(part, names)}; {there}."
            )
        path.append(part)
        node = None if OmegaConf.is_missing(node, part) else node[part]


def _check_value(text: str, name: str, chosen: list[str]) -> None:
    try:
        compose(name, [*chosen, text] if text not in chosen else chosen)
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ or error
        reason = str(cause).splitlines()[0].rstrip(".")
        raise ConfigError(f"{text} cannot be used: {reason}.") from error


def _nearest(word: str, options: list[str]) -> str:
    near = difflib.get_close_matches(word, options, n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""
