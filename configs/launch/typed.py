"""Modules that the user typed, which are imported before anything else.

Only what was typed is imported: a run folder and a data set name no module that is.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from agents.backbones import BUILT_IN, MIXERS
from common.errors import UserError

KEY = "backbone.module"
# An environment that Gymnasium imports a module for: environment=my_package:My-v0.
_ENVIRONMENT = re.compile(r"(dataset\.)?environment=['\"]?[^:]+:")


@dataclass(frozen=True)
class BackboneModules:
    """What backbone.module= names.

    Attributes:
        names: The modules, each of which registers a backbone.
        folder: Where modules are looked for last: the working directory; None leaves it out.
        others: The other overrides. No configuration holds the names of modules.
    """

    names: list[str]
    folder: str | None
    others: list[str]

    @classmethod
    def of(cls, overrides: list[str]) -> BackboneModules:
        """Takes the modules from the overrides of a command line."""
        keys = [override.partition("=") for override in overrides]
        names = [value.strip("'\"") for key, _, value in keys if key == KEY]
        others = ["".join(parts) for parts in keys if parts[0] != KEY]
        typed = bool(names) or any(map(_ENVIRONMENT.match, overrides))
        return cls(names, os.getcwd() if typed else None, others)

    def load(self) -> None:
        """Imports the modules, in this process.

        Raises:
            UserError: One cannot be imported, or registers nothing.
        """
        if self.folder is not None and self.folder not in sys.path:
            sys.path.append(self.folder)
        for name in self.names:
            before = set(MIXERS)
            _import(name)
            if not self._registered(name) and set(MIXERS) == before:
                raise UserError(
                    f"{KEY} is {name}, which registers no backbone; it must call "
                    "agents.register_backbone(CONFIG_CLASS, MIXER_CLASS)."
                )

    def check_used(self, configs: list[Any]) -> None:
        """Refuses runs none of which has a backbone from outside, as if one had been asked for."""
        chosen = {config.backbone.name for config in configs if hasattr(config, "backbone")}
        if self.names and chosen and chosen <= BUILT_IN:
            there = [name for name in MIXERS if name not in BUILT_IN]
            raise UserError(
                f"{KEY} is {self.names[0]}, but the backbone of this run is {min(chosen)}; add "
                f"backbone={' or backbone='.join(there)}."
            )

    def _registered(self, module: str) -> list[str]:
        """Returns what a module that was imported before has registered."""
        return [
            n for n, (cls, _) in MIXERS.items() if f"{cls.__module__}.".startswith(f"{module}.")
        ]


NO_MODULES = BackboneModules([], None, [])


def _import(name: str) -> None:
    try:
        import_module(name)
    except UserError as error:
        raise UserError(f"{KEY} is {name}, and {error}") from error
    except Exception as error:  # the user's code can fail in any way
        reason = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".")
        raise UserError(
            f"{KEY} is {name}, which cannot be imported ({reason}); give a module that is in this "
            f"folder, on PYTHONPATH or installed, and for which python -c 'import {name}' works."
        ) from error
