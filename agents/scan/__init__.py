"""The recurrence h_t = decay_t * h_{t-1} + input_t, alone or with the gates of minGRU or minLSTM.

One signature, several forms, all tested against `reference` for values and gradients:

- `cpu`: fused kernels (Numba) for CPUs, the default there
- `triton`: fused kernels for CUDA, the default there
- `two_level`: plain PyTorch on any device, accurate; the default on all other devices
- `log_space`: the paper's parallel scan in logarithms, of `minimal_scan` only; portable, loses
  precision with time
- `reference`: the loop over time

The states have the dtype of `initial_state`. With bfloat16 or float16 pre-activations the initial
state may be float32, as under autocast; every form accumulates in float32 at least.
"""

import importlib
import logging
from types import ModuleType

import torch
from torch import Tensor

from agents.scan import cpu, log_space, reference, two_level

__all__ = ["FORMS", "linear_scan", "minimal_scan", "minimal_step"]

FORMS = ("auto", "reference", "log_space", "two_level", "cpu", "triton")

logger = logging.getLogger(__name__)

_MODULES: dict[str, ModuleType] = {
    "reference": reference, "log_space": log_space, "two_level": two_level, "cpu": cpu
}  # fmt: skip
_FUSED = {"cpu": "cpu", "cuda": "triton"}  # device -> form
_HALF = (torch.bfloat16, torch.float16)

if torch.cuda.is_available():
    # Imported here and not on first use, because torch.compile cannot trace an import.
    try:
        _MODULES["triton"] = importlib.import_module("agents.scan.triton")
    except ImportError as error:
        logger.warning("No fused scan for CUDA (%s): using the slower form 'two_level'.", error)


def linear_scan(
    decay: Tensor,
    input: Tensor,
    initial_state: Tensor,
    resets: Tensor | None = None,
    *,
    form: str = "auto",
) -> Tensor:
    """Returns the states h_t = decay_t * h_{t-1} + input_t.

    `decay`, `input` and the states are (batch, time, channels), `initial_state` = h_{-1} is
    (batch, channels). Where `resets` (batch, time) is true, the previous state counts as zero.

    Example:
        >>> decay, input = torch.full((1, 4, 1), 0.5), torch.ones(1, 4, 1)
        >>> resets = torch.tensor([[False, False, True, False]])
        >>> linear_scan(decay, input, torch.zeros(1, 1), resets).flatten().tolist()
        [1.0, 1.5, 1.0, 1.5]
    """
    check("decay", decay, initial_state, resets, gates=(1,))
    if decay.shape != input.shape or decay.dtype != input.dtype:
        raise ValueError(
            f"decay is {_describe(decay)} and input is {_describe(input)}; "
            "give both the same shape and dtype."
        )
    return _scan("linear_scan", form, (decay, input), initial_state, resets)


def minimal_scan(
    preactivations: Tensor,
    initial_state: Tensor,
    resets: Tensor | None = None,
    *,
    form: str = "auto",
) -> Tensor:
    """Returns the states of minGRU or minLSTM, whichever the number of pre-activations says.

    minGRU: h_t = (1 - z_t) h_{t-1} + z_t g(candidate_t) with z = sigmoid(gate).
    minLSTM: h_t = f'_t h_{t-1} + i'_t g(candidate_t) with f' = f / (f + i), i' = i / (f + i), where
    f and i are sigmoids. In both g(x) = x + 0.5 for x >= 0 and sigmoid(x) below (Feng et al. 2024,
    arXiv 2410.01201, sections 3.1 and 3.2 and appendix B).

    Args:
        preactivations: A Linear's output, the gates before the candidates. For minGRU
            (batch, time, 2 * channels): gate, candidate. For minLSTM (batch, time, 3 * channels):
            forget gate, input gate, candidate.
        initial_state: h_{-1}, (batch, channels).
        resets: (batch, time) bool; where true, the previous state counts as zero. None: nowhere.
        form: One of `FORMS`; `auto` takes the fastest accurate one for the device.

    Returns:
        The states (batch, time, channels).
    """
    check("preactivations", preactivations, initial_state, resets, gates=(2, 3))
    return _scan("minimal_scan", form, (preactivations,), initial_state, resets)


def minimal_step(preactivations: Tensor, state: Tensor) -> Tensor:
    """Returns h_t of `minimal_scan`, from the pre-activations of step t and h_{t-1}."""
    if preactivations.dtype not in _HALF:
        return reference.minimal_step(preactivations, state)
    return reference.minimal_step(preactivations.float(), state.float()).to(state.dtype)


def _scan(
    name: str,
    form: str,
    sequences: tuple[Tensor, ...],
    initial_state: Tensor,
    resets: Tensor | None,
) -> Tensor:
    if form == "auto":
        form = _FUSED.get(initial_state.device.type, "two_level")
        form = form if form in _MODULES else "two_level"
    elif form not in FORMS:
        raise ValueError(f"form is {form!r}; expected one of {', '.join(map(repr, FORMS))}.")
    if form not in _MODULES:  # triton without a CUDA device: for its interpreter
        try:
            _MODULES[form] = importlib.import_module(f"agents.scan.{form}")
        except ImportError as error:
            raise ValueError(
                f"form {form!r} cannot be imported ({error}); "
                "install what it needs or leave form at 'auto'."
            ) from error
    scan = getattr(_MODULES[form], name, None)
    if scan is None:
        raise ValueError(f"form {form!r} has no {name}; use form 'two_level' or 'reference'.")
    if form not in _FUSED.values() and sequences[0].dtype in _HALF:
        wide = [sequence.float() for sequence in sequences]
        return scan(*wide, initial_state.float(), resets).to(initial_state.dtype)
    return scan(*sequences, initial_state, resets)


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def check(
    name: str,
    sequence: Tensor,
    state: Tensor,
    resets: Tensor | None,
    gates: tuple[int, ...],
) -> None:
    """Checks shapes and dtypes; `gates` are the possible numbers of pre-activations a channel."""
    if (
        state.dim() != 2
        or sequence.dim() != 3
        or sequence.shape[0] != state.shape[0]
        or sequence.shape[-1] not in [n * state.shape[1] for n in gates]
    ):
        last = " or ".join(f"{n} * channels" if n > 1 else "channels" for n in gates)
        raise ValueError(
            f"{name} is {_describe(sequence)} and the state is {_describe(state)}; "
            f"expected (batch, time, {last}) and (batch, channels)."
        )
    same = sequence.dtype == state.dtype and sequence.is_floating_point()
    if not same and not (sequence.dtype in _HALF and state.dtype == torch.float32):
        raise ValueError(
            f"{name} is {_describe(sequence)} and the state is {_describe(state)}; expected the "
            "same floating-point dtype, or half precision with a float32 state."
        )
    if resets is not None and (resets.dtype != torch.bool or resets.shape != sequence.shape[:2]):
        raise ValueError(
            f"resets is {_describe(resets)}; expected bool of shape (batch, time) = "
            f"{tuple(sequence.shape[:2])}."
        )
