"""The backbones, by name. A new mixer is one file here and one line in MIXERS.

`mixer.py` is the contract of a mixer and the settings that all share, `block.py` the residual block
around a mixer and the stack of blocks, `state.py` the operations on states. Each mixer has a file;
`convolution.py` and `dropout.py` are layers.
"""

from agents.backbones.aaren import Aaren, AarenConfig
from agents.backbones.attention import Attention, AttentionConfig
from agents.backbones.block import Backbone
from agents.backbones.gru import GRU, GRUConfig
from agents.backbones.lstm import LSTM, LSTMConfig
from agents.backbones.mamba import Mamba, MambaConfig
from agents.backbones.min_gru import MinGRU, MinGRUConfig
from agents.backbones.min_lstm import MinLSTM, MinLSTMConfig
from agents.backbones.mixer import BackboneConfig, Mixer
from agents.backbones.s4d import S4D, S4DConfig
from common.checks import check_choice

MIXERS: dict[str, tuple[type[BackboneConfig], type[Mixer]]] = {
    "min_gru": (MinGRUConfig, MinGRU),
    "min_lstm": (MinLSTMConfig, MinLSTM),
    "gru": (GRUConfig, GRU),
    "lstm": (LSTMConfig, LSTM),
    "attention": (AttentionConfig, Attention),
    "aaren": (AarenConfig, Aaren),
    "s4d": (S4DConfig, S4D),
    "mamba": (MambaConfig, Mamba),
}


def mixer_entry(name: str) -> tuple[type[BackboneConfig], type[Mixer]]:
    """Returns the configuration class and the mixer class of a backbone."""
    check_choice("backbone", name, MIXERS)
    return MIXERS[name]


def build_backbone(config: BackboneConfig) -> Backbone:
    """Builds the stack of blocks that a configuration describes."""
    _, mixer_class = mixer_entry(config.name)
    return Backbone([mixer_class(config) for _ in range(config.n_layer)], config)
