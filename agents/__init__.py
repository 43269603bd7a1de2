"""What learns and acts: the policy with its recurrent backbone, its trainer, and the scan below.

The names here are the public API. Each is imported on first use, so `import agents` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.acting import make_actor as make_actor
    from agents.actor import Actor as Actor
    from agents.actor import load_actor as load_actor
    from agents.backbones import MIXERS as MIXERS
    from agents.backbones import build_backbone as build_backbone
    from agents.backbones import register_backbone as register_backbone
    from agents.backbones.mixer import BackboneConfig as BackboneConfig
    from agents.backbones.mixer import Mixer as Mixer
    from agents.checkpoint import load_policy as load_policy
    from agents.policy import PolicyConfig as PolicyConfig
    from agents.policy import ReturnConditionedPolicy as ReturnConditionedPolicy
    from agents.trainer import Trainer as Trainer
    from agents.trainer import TrainerConfig as TrainerConfig

_MODULES = {
    "Actor": "actor",
    "BackboneConfig": "backbones.mixer",
    "MIXERS": "backbones",
    "Mixer": "backbones.mixer",
    "PolicyConfig": "policy",
    "ReturnConditionedPolicy": "policy",
    "Trainer": "trainer",
    "TrainerConfig": "trainer",
    "build_backbone": "backbones",
    "load_actor": "actor",
    "load_policy": "checkpoint",
    "make_actor": "acting",
    "register_backbone": "backbones",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
