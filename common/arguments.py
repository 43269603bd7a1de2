"""key=value arguments for `python -m envs...`, and the help on the keys of any configuration."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from textwrap import fill
from typing import Any, TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from common.errors import UserError, exits

Arguments = TypeVar("Arguments")
HELP = {"-h", "--help", "help"}


def parse_arguments(cls: type[Arguments], arguments: list[str]) -> Arguments:
    """Builds a dataclass from arguments such as ``steps=1000``; --help prints its keys and exits.

    A field without a default must be given.
    """
    structured = OmegaConf.structured(cls)
    if HELP & set(arguments):
        module = sys.modules[cls.__module__]
        print("\n".join([inspect.getdoc(module) or "", "", "Keys:", *describe_keys(structured)]))
        sys.exit()
    known = "the keys are: " + ", ".join(
        name if OmegaConf.is_missing(structured, name) else f"{name}={_written(structured[name])}"
        for name in map(str, structured)
    )
    for argument in arguments:
        if not re.match(r"[^=]+=", argument):
            raise UserError(f"'{argument}' is not of the form key=value; {known}")
    try:
        merged = OmegaConf.merge(structured, _given(cls, arguments))
    except ConfigKeyError as error:
        raise UserError(f"there is no key '{error.key}'; {known}") from None
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}; {known}") from None
    for name in map(str, merged):
        if OmegaConf.is_missing(merged, name):
            raise UserError(f"{name}=... must be given; {known}")
    result: Any = OmegaConf.to_object(merged)
    return result


def _given(cls: type, arguments: list[str]) -> DictConfig:
    """Reads the values as YAML, but words of a string key as they are: `no` is a name there."""
    given, hints = OmegaConf.from_cli(arguments), get_type_hints(cls)
    for key, _, word in (argument.partition("=") for argument in arguments):
        if hints.get(key) in (str, str | None) and isinstance(given[key], bool | int | float):
            given[key] = word
    return given


def describe_keys(config: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yields the help on each key of a configuration: its value, and what its docstring says."""
    cls: Any = OmegaConf.get_type(config)
    documented = _documented(cls)
    nested = []
    for item in fields(cls):
        key, missing = f"{prefix}{item.name}", OmegaConf.is_missing(config, item.name)
        if not missing and isinstance(config[item.name], DictConfig):
            nested.append(item.name)
            continue
        yield f"  {key}={'...' if missing else _written(config[item.name])}"
        text = documented.get(item.name, "")
        if options := item.metadata.get("options"):
            text = f"{text} One of: {', '.join(map(str, options))}.".strip()
        if text:
            yield fill(text, 92, initial_indent=" " * 6, subsequent_indent=" " * 6)
    for name in nested:
        if config[name]:
            yield from ("", f"{prefix}{name}:")
            yield from describe_keys(config[name], f"{prefix}{name}.")


def _written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


def _documented(cls: type) -> dict[str, str]:
    """Returns what the docstrings of a class and its bases say of each attribute."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        text = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        for name, words in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", text, re.M):
            found[name] = " ".join(words.split())
    return found


def run_command(main: Callable[[list[str]], Any], interrupted: str = "interrupted") -> None:
    """Runs a command with the arguments of this process."""
    with exits(interrupted):
        main(sys.argv[1:])
