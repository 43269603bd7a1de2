"""What the command line asks for: every run of it is composed, and checked, before one starts.

Hydra's own messages say what is wrong, but not what there is instead.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from common.checks import nearest
from common.errors import UserError

FOLDER = Path(__file__).resolve().parents[1]
GROUPS = ("dataset", "backbone", "experiment")
# Launchers of sweeps besides Hydra's own, and the extra of this project that brings each.
LAUNCHERS = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray"}


def check(arguments: list[str], name: str) -> list[tuple[list[str], Any]]:
    """Composes the configuration of every run that the overrides ask for.

    Args:
        arguments: Overrides; a choice, a range or a glob in one makes a run for each value.
        name: The configuration's name.

    Returns:
        The overrides and the dataclass of each run, the last key changing fastest; without a
        sweep, of the only one.

    Raises:
        UserError: What is wrong, and what there is instead.
    """
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        groups = _groups()
        swept: dict[str, list[str]] = {}
        for override in parse(arguments):
            if is_of_hydra(override):
                _check_launcher(override)
                continue
            if override.type != OverrideType.CHANGE:
                raise UserError(
                    f"{override.input_line} would add or remove a key, and there are only those "
                    "that --help lists; write key=value."
                )
            texts = _values(override, groups)
            for text in texts:
                _check_choice(text, groups)
            swept[override.get_key_element()] = texts
        runs = [list(run) for run in itertools.product(*swept.values())]
        return [(run, _compose(run, name, groups)) for run in runs]


def compose_for_help(name: str, arguments: list[str]) -> tuple[DictConfig, dict[str, list[str]]]:
    """Composes a configuration that may lack values, and returns with it each group's options.

    Raises:
        UserError: An override is wrong.
    """
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        groups = _groups()
        return _compose(arguments, name, groups, lambda config: config), groups


def quoted(arguments: list[str]) -> list[str]:
    """Quotes the values that Hydra's grammar has no letters for: run_dir=ü, run_dir=a=b.

    Lists, sweeps and interpolations are left as they are.
    """
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        return [_quoted(argument) for argument in arguments]


def _quoted(argument: str) -> str:
    key, equals, value = argument.partition("=")
    try:
        parse([argument])
    except UserError:
        if key and equals and not re.search(r"[][(){},]", value):
            escaped = value.replace("\\'", "\\\\'").replace("'", "\\'")
            return f"{key}='{escaped}'"
    return argument


def _groups() -> dict[str, list[str]]:
    loader = GlobalHydra.instance().config_loader()
    return {group: sorted(loader.get_group_options(group)) for group in GROUPS}


def parse(arguments: list[str]) -> list[Override]:
    """Parses overrides; Hydra must be initialised.

    Raises:
        UserError: One cannot be read.
    """
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    overrides = []
    for argument in arguments:
        try:
            if argument.startswith("="):
                raise HydraException("no key")
            overrides += parser.parse_overrides([argument])
        except HydraException as error:
            how = "a sweep is key=a,b or 'key=range(3)' or 'key=glob(a*)', quoted for the shell"
            how += "; text with brackets or commas is \"key='a,b'\""
            if not argument.partition("=")[1] or argument.startswith("="):
                how = "write key=value"
            raise UserError(f"'{argument}' is not an override; {how}.") from error
    return overrides


def is_of_hydra(override: Override) -> bool:
    """Whether an override is about how runs are started, as hydra/launcher=joblib."""
    return override.key_or_group.startswith(("hydra.", "hydra/"))


def to_dataclass(config: DictConfig) -> Any:
    """Turns a composed configuration into its dataclass.

    Raises:
        UserError: A value is missing or not allowed.
    """
    try:
        return OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        key = error.full_key or "a key"
        raise UserError(f"{key} has no value; give one as {key}=VALUE.") from error
    except ValueError as error:
        raise UserError(str(error)) from error


def _check_launcher(override: Override) -> None:
    if override.key_or_group != "hydra/launcher":
        return
    name = str(override.value())
    installed = GlobalHydra.instance().config_loader().get_group_options("hydra/launcher")
    if name in LAUNCHERS and name not in installed:
        raise UserError(
            f"hydra/launcher={name} needs an extra that is not installed: "
            f'pip install -e ".[{LAUNCHERS[name]}]"'
        )
    _check_choice(str(override.input_line), {"hydra/launcher": sorted({*installed, *LAUNCHERS})})


def _values(override: Override, groups: dict[str, list[str]]) -> list[str]:
    """Returns an override itself, or, if it is a sweep, one for each of its values."""
    text = str(override.input_line)
    if not override.is_sweep_override():
        return [text]
    options = groups.get(override.key_or_group)
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP and options is None:
        raise UserError(f"{text} cannot be used: only {', '.join(groups)} have choices to match.")
    if not override.is_discrete_sweep():
        raise UserError(f"{text} has no list of values; a sweep is a,b or range(3) or glob(a*).")
    try:
        values = list(override.sweep_string_iterator())
    except ValueError as error:
        raise UserError(f"{text} cannot be swept: {error}.") from error
    if not values:
        there = f"; there are: {', '.join(options)}" if options else ""
        raise UserError(f"{text} is a sweep over nothing: no value matches{there}.")
    return [f"{override.get_key_element()}={value}" for value in values]


def _compose(
    run: list[str],
    name: str,
    groups: dict[str, list[str]],
    convert: Callable[[DictConfig], Any] = to_dataclass,
) -> Any:
    try:
        return convert(compose(name, run))
    except (HydraException, OmegaConfBaseException) as error:
        _explain(run, name, groups)
        reason = str(error.__cause__ or error).splitlines()[0].rstrip(".")
        raise UserError(f"{' '.join(run)} cannot be used: {reason}.") from error


def _explain(run: list[str], name: str, groups: dict[str, list[str]]) -> None:
    """Finds the overrides because of which a run does not compose, and raises what is wrong."""
    chosen = [text for text in run if text.partition("=")[0] in groups]
    try:
        known = compose(name, chosen)
    except HydraException as error:
        reason = str(error.__cause__ or error).splitlines()
        detail = next((line for line in reason if line.startswith("Key ")), reason[0])
        raise UserError(f"{' '.join(chosen)} do not go together: {detail}.") from error
    for text in run:
        if text not in chosen:
            _check_key(text, known)
    for text in run:
        _check_value(text, name, chosen)


def _check_choice(text: str, groups: dict[str, list[str]]) -> None:
    key, _, value = text.partition("=")
    options = groups.get(key)
    if options is not None and value not in options:
        raise UserError(
            f"{key} '{value}' does not exist{nearest(value, options)}; there are: "
            f"{', '.join(options)}."
        )


def _check_key(text: str, known: DictConfig) -> None:
    key = text.partition("=")[0]
    node: Any = known
    path: list[str] = []
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in list(node):
            where = f" in {'.'.join(path)}" if path else ""
            names = [str(name) for name in node] if isinstance(node, DictConfig) else []
            there = f"there are: {', '.join(names)}" if names else f"{'.'.join(path)} has no keys"
            raise UserError(f"key '{part}' does not exist{where}{nearest(part, names)}; {there}.")
        path.append(part)
        node = None if OmegaConf.is_missing(node, part) else node[part]


def _check_value(text: str, name: str, chosen: list[str]) -> None:
    try:
        compose(name, [*chosen, text] if text not in chosen else chosen)
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ or error
        reason = str(cause).splitlines()[0].rstrip(".")
        raise UserError(f"{text} cannot be used: {reason}.") from error
