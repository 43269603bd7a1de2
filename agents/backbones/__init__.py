"""The backbones, by name. A new mixer is one file here and one line in MIXERS.

A mixer from outside this project is registered by `register_backbone`, in a module that the user
names (`backbone.module=my.module`) or that an installed package names in pyproject.toml, by the
name of its backbone:

    [project.entry-points."decision_minrnn.backbones"]
    leaky = "my_package.mixers"

`mixer.py` is the contract of a mixer and the settings that all share, `block.py` the residual block
around a mixer and the stack of blocks, `state.py` the operations on states. Each mixer has a file;
`convolution.py` and `dropout.py` are layers.
"""

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

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
from common.errors import UserError

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
BUILT_IN = frozenset(MIXERS)
GROUP = "decision_minrnn.backbones"  # of the entry points of installed packages


def mixer_entry(name: str) -> tuple[type[BackboneConfig], type[Mixer]]:
    """Returns the configuration class and the mixer class of a backbone.

    Raises:
        UserError: There is no backbone of this name, or its package cannot be imported.
    """
    if name not in MIXERS:
        installed = _installed()
        check_choice("backbone", name, [*MIXERS, *installed])
        _load(installed[name])
    return MIXERS[name]


def build_backbone(config: BackboneConfig) -> Backbone:
    """Builds the stack of blocks that a configuration describes."""
    _, mixer_class = mixer_entry(config.name)
    return Backbone([mixer_class(config) for _ in range(config.n_layer)], config)


# -- from outside -----------------------------------------------------------------------------


def register_backbone(config_class: type[BackboneConfig], mixer_class: type[Mixer]) -> None:
    """Makes a mixer of your own a choice of `backbone=`, under the name in its configuration.

    Args:
        config_class: A dataclass with a default for each key; that of `name` is the new name.
        mixer_class: A `Mixer`, made from a configuration.

    Raises:
        UserError: The name is taken, or a class is not what the contract in mixer.py says.
    """
    asked = f"register_backbone({_name(config_class)}, {_name(mixer_class)})"
    for given, base in ((config_class, BackboneConfig), (mixer_class, Mixer)):
        if not isinstance(given, type) or not issubclass(given, base):
            raise UserError(f"{asked}: {_name(given)} is no subclass of {base.__name__}.")
    name = config_class.__dict__.get("name")
    if not isinstance(name, str) or not name.isidentifier():
        raise UserError(
            f'{asked}: {_name(config_class)} has no name of its own; give one, as name: str = "..."'
            ", of letters, digits and underscores."
        )
    # A cell of a notebook that is run again registers the same classes anew.
    before = MIXERS.get(name)
    if before is not None and _place(before) != _place((config_class, mixer_class)):
        raise UserError(
            f"{asked}: the name '{name}' is taken by {before[1].__module__}.{_name(before[1])}; "
            "give another one."
        )
    try:
        OmegaConf.structured(config_class())
    except (TypeError, ValueError, OmegaConfBaseException) as error:
        raise UserError(
            f"{asked}: {_name(config_class)} is no dataclass whose keys have a default each, of a "
            f"type that a command line can give ({str(error).partition(chr(10))[0]})."
        ) from error
    MIXERS[name] = config_class, mixer_class


def backbone_names() -> list[str]:
    """Returns the name of every backbone that is built in, registered or installed.

    Raises:
        UserError: Installed packages bring two backbones of one name.
    """
    return list(dict.fromkeys([*MIXERS, *_installed()]))


def _installed() -> dict[str, EntryPoint]:
    """Returns the backbones of installed packages, not yet imported."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        if entry.name in BUILT_IN or entry.name in found:
            other = f"{_package(found[entry.name])} too" if entry.name in found else "this project"
            raise UserError(
                f"the installed package {_package(entry)} brings a backbone '{entry.name}', and so "
                f"does {other}; uninstall one, or ask for another name there."
            )
        found[entry.name] = entry
    return found


def _load(entry: EntryPoint) -> None:
    source = f"backbone '{entry.name}' is that of the installed package {_package(entry)}"
    try:
        entry.load()
    except UserError as error:
        raise UserError(f"{source}, and {error}") from error
    except Exception as error:  # another's code can fail in any way
        reason = f"{type(error).__name__}: {error}".partition("\n")[0].rstrip(".")
        raise UserError(
            f"{source}, whose module {entry.value} cannot be imported ({reason}); mend or "
            "uninstall that package."
        ) from error
    if entry.name not in MIXERS:
        raise UserError(
            f"{source}, whose module {entry.value} registers no backbone of that name; it must "
            "call agents.register_backbone(CONFIG_CLASS, MIXER_CLASS)."
        )


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.value


def _name(given: object) -> str:
    return getattr(given, "__name__", repr(given))


def _place(classes: Iterable[type]) -> list[tuple[str, str]]:
    return [(cls.__module__, cls.__qualname__) for cls in classes]
