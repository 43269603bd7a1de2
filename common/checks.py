"""What the fields of a configuration dataclass may hold, declared where each field is.

    @dataclass
    class TrainerConfig:
        learning_rate: float = number(1e-3, above=0)
        schedule: str = choice("cosine", ("cosine", "constant"))

        def __post_init__(self) -> None:
            check_fields(self, "trainer")

Numbers must be finite and strings not empty, declared or not; None is allowed where the annotation
says so; lists are checked element by element. Works for OmegaConf's structured configurations.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, field, fields
from importlib.util import find_spec
from typing import Any, get_args, get_origin, get_type_hints

from common.errors import UserError

MOST_STEPS = 10**12  # of time or of updates
MOST_RETURN = 10**9
LARGEST_SEED = 2**32 - 1  # what every generator of random numbers takes


def number(
    default: Any = MISSING,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> Any:
    """Declares a finite number, or a list of them, within limits; the type is the annotation's."""
    limits = {"above": above, "at least": at_least, "below": below, "at most": at_most}
    metadata = {"limits": {word: limit for word, limit in limits.items() if limit is not None}}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def seed(default: int | None = 0) -> Any:
    """Declares the seed of a random number generator."""
    return number(default, at_least=0, at_most=LARGEST_SEED)


def choice(default: Any, options: Iterable[Any]) -> Any:
    """Declares a value that is one of a few."""
    return field(default=default, metadata={"options": tuple(options)})


def check_fields(config: Any, prefix: str = "") -> None:
    """Checks the type, limits and options of each field; nested dataclasses check themselves.

    `prefix` is where the configuration stands in the command line, as in trainer.learning_rate.
    """
    hints = get_type_hints(type(config))
    for item in fields(config):
        value, hint = getattr(config, item.name), hints[item.name]
        key = f"{prefix}.{item.name}" if prefix else item.name
        if type(None) in get_args(hint):  # X | None
            if value is None:
                continue
            hint = get_args(hint)[0]
        if get_origin(hint) in (list, tuple):
            if not isinstance(value, get_origin(hint)):
                raise UserError(f"{key} is {value!r}; it must be a list.")
            if not value and item.default_factory is MISSING:
                raise UserError(f"{key} is an empty list; give at least one value.")
            for element in value:
                _check(key, element, get_args(hint)[0], item.metadata)
        else:
            _check(key, value, hint, item.metadata)


def check_choice(key: str, value: Any, options: Iterable[Any]) -> None:
    """Checks that a value is one of a few; else a UserError lists them."""
    words = [str(option) for option in options]
    if str(value) in words:
        return
    if not isinstance(value, str):
        raise UserError(f"{key} is {value}; it must be {' or '.join(words)}.")
    raise UserError(
        f"{key} '{value}' does not exist{nearest(value, words)}; there are: {', '.join(words)}."
    )


def require_extra(module: str, what: str, extra: str) -> None:
    """Checks that a package of an extra of this project is installed, which `what` needs."""
    found = find_spec(module)
    if found is None or found.origin is None:  # a folder of that name, such as ./wandb, is none
        install = f'pip install -e ".[{extra}]"'
        raise UserError(f"{what} needs an extra that is not installed: {install}")


def nearest(word: str, options: list[str], cutoff: float = 0.7) -> str:
    """Returns " (did you mean ...?)" with the most similar option, if any is similar (0 to 1)."""
    near = difflib.get_close_matches(word, options, n=1, cutoff=cutoff)
    return f" (did you mean '{near[0]}'?)" if near else ""


TYPES: dict[Any, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    str: (str, "text"),
}
HOLDS: dict[str, Callable[[float, float], bool]] = {
    "above": operator.gt,
    "at least": operator.ge,
    "below": operator.lt,
    "at most": operator.le,
}


def _check(key: str, value: Any, kind: Any, metadata: Mapping[str, Any]) -> None:
    if kind not in TYPES:
        return
    types, name = TYPES[kind]
    if not isinstance(value, types) or (isinstance(value, bool) and kind is not bool):
        raise UserError(f"{key} is {value!r}; it must be {name}.")
    if "options" in metadata:
        check_choice(key, value, metadata["options"])
    elif kind is str and not value.strip():
        raise UserError(f"{key} is empty; give a value or leave the key out.")
    elif kind in (int, float):
        _check_limits(key, value, metadata.get("limits", {}))


def _check_limits(key: str, value: float, limits: Mapping[str, float]) -> None:
    # Compared with infinity, because math.isfinite refuses whole numbers beyond a float's range.
    finite = -math.inf < value < math.inf
    if finite and all(HOLDS[word](value, limit) for word, limit in limits.items()):
        return
    must = [f"{word} {limit:,}" for word, limit in limits.items()]
    if "at most" not in limits and "below" not in limits:
        must.append("finite")
    raise UserError(f"{key} is {value}; it must be {' and '.join(must)}.")
