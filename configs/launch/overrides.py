"""What a command line asks for: each of its runs is composed and checked before one starts.

Hydra composes and finds what is wrong; here its errors become one sentence that also says what
would be right.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from yaml import YAMLError  # type: ignore[import-untyped]

from agents.backbones import mixer_entry
from common.checks import check_choice, nearest
from common.errors import UserError

FOLDER = Path(__file__).resolve().parents[1]
# Launchers of sweeps besides Hydra's own, and the extra of this project that brings each.
LAUNCHERS = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray"}


def check(arguments: list[str], name: str) -> list[tuple[list[str], Any]]:
    """Composes the configuration of every run that the overrides ask for.

    Args:
        arguments: Overrides; a choice, a range or a glob in one makes a run for each value.
        name: The configuration's name: train or eval.

    Returns:
        The overrides and the dataclass of each run, the last key changing fastest; without a
        sweep, of the only one. Overrides of Hydra's own keys are checked and left out.
    """
    with initialize_config_dir(str(FOLDER), version_base="1.3"):
        of_hydra: list[str] = []
        swept: dict[str, list[str]] = {}
        for override in parse(arguments):
            text = str(override.input_line)
            if override.type != OverrideType.CHANGE or override.package is not None:
                raise UserError(
                    f"{text} would add or remove a key, and there are only those that --help "
                    "lists; write key=value."
                )
            if override.is_hydra_override():
                of_hydra.append(text)
            else:
                swept[override.key_or_group] = _values(override)
        if of_hydra:
            composed(of_hydra, name)  # says what is wrong
        return [(run, to_dataclass(config)) for run, config in _compositions(swept, name)]


def parse(arguments: list[str]) -> list[Override]:
    """Parses overrides; Hydra must be initialised."""
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    overrides = []
    for argument in arguments:
        how = "write key=value"
        try:
            if argument.startswith("="):
                raise HydraException("no key")
            overrides += parser.parse_overrides([argument])
        except HydraException as error:
            if "=" in argument.lstrip("="):
                how = (
                    "a sweep is key=a,b or 'key=range(3)' or 'key=glob(a*)', quoted for the shell; "
                    "text with brackets or commas is \"key='a,b'\""
                )
            raise UserError(f"'{argument}' is not an override; {how}.") from error
    return overrides


def quoted(argument: str) -> str:
    """Quotes a value that Hydra's grammar has no letters for: run_dir=ü, run_dir=a=b.

    Lists, sweeps and interpolations are left as they are.
    """
    key, equals, value = argument.partition("=")
    try:
        OverridesParser.create().parse_overrides([argument])
    except HydraException:
        if key and equals and not re.search(r"[][(){},]", value):
            escaped = value.replace("\\'", "\\\\'").replace("'", "\\'")
            return f"{key}='{escaped}'"
    return argument


def _values(override: Override) -> list[str]:
    """Returns an override itself, or, if it is a sweep, one for each of its values."""
    text = str(override.input_line)
    if not override.is_sweep_override():
        return [text]
    try:
        values = list(override.sweep_string_iterator())
    except (HydraException, ValueError) as error:
        raise UserError(
            f"{text} cannot be swept ({error}); a sweep is a,b or range(3) or glob(a*)."
        ) from error
    if not values:
        there = GlobalHydra.instance().config_loader().get_group_options(override.key_or_group)
        raise UserError(f"{text} is a sweep over nothing; there are: {', '.join(there) or 'none'}.")
    return [f"{override.key_or_group}={value}" for value in values]


def _compositions(swept: dict[str, list[str]], name: str) -> Iterator[tuple[list[str], DictConfig]]:
    """Yields the overrides and the configuration of each run.

    Hydra composes the files anew for each run, which is nearly all of its time. Here runs that
    choose the same files share them, and set their values in a copy as Hydra would.
    """
    is_group = GlobalHydra.instance().config_loader().get_group_options
    of_files = {key for key in swept if is_group(key)}
    values = {t: parse([t])[0].value() for key in swept.keys() - of_files for t in swept[key]}
    files: dict[tuple[str, ...], DictConfig] = {}
    for texts in itertools.product(*swept.values()):
        run = dict(zip(swept, texts, strict=True))
        chosen = tuple(text for key, text in run.items() if key in of_files)
        if chosen not in files:
            files[chosen] = composed(list(chosen), name)
        config = copy.deepcopy(files[chosen])
        try:
            for key, text in run.items():
                if key not in of_files:
                    OmegaConf.update(config, key, values[text], merge=True)
        except OmegaConfBaseException:
            config = composed(list(texts), name)  # says what is wrong
        yield list(texts), config


def composed(overrides: list[str], name: str) -> DictConfig:
    """Composes a configuration, which may still lack values; Hydra must be initialised."""
    try:
        return compose(name, overrides)
    except (HydraException, OmegaConfBaseException, ValueError, YAMLError) as error:
        if isinstance(error, MissingConfigException) and error.options:
            group, _, option = str(error.missing_cfg_file).rpartition("/")
            if group == "hydra/launcher" and option in LAUNCHERS:
                raise UserError(
                    f"hydra/launcher={option} needs an extra that is not installed: "
                    f'pip install -e ".[{LAUNCHERS[option]}]"'
                ) from error
            if group == "backbone":
                mixer_entry(option)  # says why one of an installed package is not there
            check_choice(group, option, error.options)
        cause = error.__cause__
        if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.full_key:
            parent, _, key = str(cause.full_key).rpartition(".")
            keys = [str(key) for key in cause.parent_node or () if key != "hydra"]
            raise UserError(
                f"key '{key}' does not exist{f' in {parent}' if parent else ''}"
                f"{nearest(key, keys)}; there are: {', '.join(keys)}."
            ) from error
        before, merging, at_fault = str(error).partition("Error merging override ")
        what = at_fault if merging and not before else " ".join(overrides)
        raise UserError(f"{what} cannot be used: {_reason(cause or error)}.") from error


def to_dataclass(config: DictConfig) -> Any:
    """Turns a composed configuration into its dataclass, which checks itself."""
    try:
        return OmegaConf.to_object(config)
    except MissingMandatoryValue as error:
        key = error.full_key
        raise UserError(f"{key} has no value; give one as {key}=VALUE.") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key} cannot be used: {_reason(error)}.") from error


def _reason(error: BaseException) -> str:
    """Returns the last line of an error of Hydra's that is not one of its indented details."""
    return re.findall(r"^\S.*", str(error), re.M)[-1].rstrip(".")
