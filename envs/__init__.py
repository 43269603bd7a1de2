"""What a policy acts in, and what was recorded there.

Importing this package costs nothing: each name below is loaded when it is first used.
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "Evaluation": "envs.tasks",
    "Reference": "envs.tasks",
    "TASKS": "envs.tasks",
    "make_environment": "envs.simulation.simulators",
    "rollout": "envs.simulation.rollout",
    "record_episodes": "envs.simulation.video",
    "Episodes": "envs.data.episodes",
    "load_named": "envs.data.sources",
    "store_episodes": "envs.data.store",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'envs' has no attribute '{name}'")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return __all__
