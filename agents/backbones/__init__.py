"""The sequence mixers, by name. A new one is one file here and one line in MIXERS."""

from agents.backbones.min_gru import MinGRU, MinGRUConfig
from agents.backbones.min_lstm import MinLSTM, MinLSTMConfig
from agents.block import Backbone, BackboneConfig, Mixer

MIXERS: dict[str, tuple[type[BackboneConfig], type[Mixer]]] = {
    "min_gru": (MinGRUConfig, MinGRU),
    "min_lstm": (MinLSTMConfig, MinLSTM),
}


def mixer_entry(name: str) -> tuple[type[BackboneConfig], type[Mixer]]:
    """Returns the configuration class and the mixer class of a backbone.

    Raises:
        ValueError: No backbone has this name.
    """
    if name not in MIXERS:
        raise ValueError(f"backbone '{name}' does not exist; there are: {', '.join(MIXERS)}.")
    return MIXERS[name]


def build_backbone(config: BackboneConfig) -> Backbone:
    """Builds the stack of blocks that a configuration describes.

    Raises:
        ValueError: No backbone has the configuration's name.
    """
    _, mixer_class = mixer_entry(config.name)
    return Backbone([mixer_class(config) for _ in range(config.n_layer)], config)
