"""Tasks, simulators, data sets and behaviour policies.

The names here are the public API. Each is imported on first use, so `import envs` costs nothing.
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "Episodes": "data.episodes",
    "Evaluation": "tasks",
    "Reference": "tasks",
    "TASKS": "tasks",
    "load_named": "data.sources",
    "make_environment": "simulation.simulators",
    "record_episodes": "simulation.video",
    "rollout": "simulation.rollout",
    "store_episodes": "data.store",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
