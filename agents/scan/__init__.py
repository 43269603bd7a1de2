"""The recurrence h_t = decay_t * h_{t-1} + input_t, alone or with minGRU's or minLSTM's gates.

One signature, several forms, all tested against ``reference`` for values and gradients:

- ``cpu``: fused kernels (Numba) for CPUs, the default there
- ``triton``: fused kernels for CUDA, the default there
- ``two_level``: plain PyTorch on any device, accurate; the default where the others cannot run
- ``log_space``: the paper's parallel scan in logarithms; portable, loses precision with time
- ``reference``: the loop over time

The states have the dtype of ``initial_state``. With bfloat16 or float16 pre-activations the initial
state may be float32, as under autocast; sums are kept in float32 at least in every form.
"""

import contextlib
import importlib
import logging
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from agents.scan import log_space, reference, two_level

__all__ = [
    "FORMS",
    "linear_scan",
    "min_gru_scan",
    "min_gru_step",
    "min_lstm_scan",
    "min_lstm_step",
]

FORMS = ("auto", "reference", "log_space", "two_level", "cpu", "triton")

_log = logging.getLogger(__name__)
_PLAIN = {"reference": reference, "log_space": log_space, "two_level": two_level}
_FUSED = {"cpu": "cpu", "cuda": "triton"}  # device -> form
_HALF = (torch.bfloat16, torch.float16)


def linear_scan(
    decay: Tensor,
    input: Tensor,
    initial_state: Tensor,
    resets: Tensor | None = None,
    *,
    form: str = "auto",
) -> Tensor:
    """h_t = decay_t * h_{t-1} + input_t.

    Args:
        decay: (batch, time, channels).
        input: (batch, time, channels).
        initial_state: h_{-1}, (batch, channels).
        resets: (batch, time) bool; true counts the decay of that step as zero. None: nowhere.
        form: one of ``FORMS``; "auto" takes the fastest accurate one for the device.

    Returns:
        The states h_0 .. h_{time-1}, (batch, time, channels), in the dtype of ``initial_state``.

    Raises:
        ValueError: if shapes or dtypes disagree or the form does not exist or cannot run here.
    """
    _check("decay", decay, initial_state, resets, gates=1)
    _check("input", input, initial_state, None, gates=1)
    if decay.shape != input.shape or decay.dtype != input.dtype:
        raise ValueError(
            f"decay is {_describe(decay)} and input is {_describe(input)}; "
            "give both the same shape and dtype."
        )
    return _scan("linear_scan", form, (decay, input), initial_state, resets)


def min_gru_scan(
    preactivations: Tensor,
    initial_state: Tensor,
    resets: Tensor | None = None,
    *,
    form: str = "auto",
) -> Tensor:
    """MinGRU: h_t = (1 - z_t) h_{t-1} + z_t g(candidate_t) with z = sigmoid(gate).

    g(x) = x + 0.5 for x >= 0 and sigmoid(x) below (Feng et al. 2024, arXiv:2410.01201, section 3.1
    and appendix B.2.1).

    Args:
        preactivations: (batch, time, 2 * channels), a Linear's output: gates first, candidates
            last.
        initial_state: h_{-1}, (batch, channels).
        resets: (batch, time) bool; true counts the previous state of that step as zero. None:
            nowhere.
        form: one of ``FORMS``; "auto" takes the fastest accurate one for the device.

    Returns:
        The states h_0 .. h_{time-1}, (batch, time, channels), in the dtype of ``initial_state``.

    Raises:
        ValueError: if shapes or dtypes disagree or the form does not exist or cannot run here.
    """
    _check("preactivations", preactivations, initial_state, resets, gates=2)
    return _scan("min_gru_scan", form, (preactivations,), initial_state, resets)


def min_lstm_scan(
    preactivations: Tensor,
    initial_state: Tensor,
    resets: Tensor | None = None,
    *,
    form: str = "auto",
) -> Tensor:
    """MinLSTM: h_t = f'_t h_{t-1} + i'_t g(candidate_t) with f' = f / (f + i) and i' = i / (f + i).

    f and i are sigmoids; g as in `min_gru_scan` (Feng et al. 2024, arXiv:2410.01201, section 3.2
    and appendix B.2.2).

    Args:
        preactivations: (batch, time, 3 * channels), a Linear's output: forget gates, input gates,
            candidates.
        initial_state: h_{-1}, (batch, channels).
        resets: (batch, time) bool; true counts the previous state of that step as zero. None:
            nowhere.
        form: one of ``FORMS``; "auto" takes the fastest accurate one for the device.

    Returns:
        The states h_0 .. h_{time-1}, (batch, time, channels), in the dtype of ``initial_state``.

    Raises:
        ValueError: if shapes or dtypes disagree or the form does not exist or cannot run here.
    """
    _check("preactivations", preactivations, initial_state, resets, gates=3)
    return _scan("min_lstm_scan", form, (preactivations,), initial_state, resets)


def min_gru_step(preactivations: Tensor, state: Tensor, resets: Tensor | None = None) -> Tensor:
    """One step of `min_gru_scan`: the recurrence as it runs in a rollout.

    Args:
        preactivations: (batch, 2 * channels).
        state: h_{t-1}, (batch, channels).
        resets: (batch,) bool; true counts the previous state as zero. None: nowhere.

    Returns:
        h_t, (batch, channels), in the dtype of ``state``.

    Raises:
        ValueError: if shapes or dtypes disagree.
    """
    _check_step(preactivations, state, resets, gates=2)
    return _step(reference.min_gru_step, preactivations, state, resets)


def min_lstm_step(preactivations: Tensor, state: Tensor, resets: Tensor | None = None) -> Tensor:
    """One step of `min_lstm_scan`, with preactivations of (batch, 3 * channels).

    Arguments, result and errors as for `min_gru_step`.
    """
    _check_step(preactivations, state, resets, gates=3)
    return _step(reference.min_lstm_step, preactivations, state, resets)


def _step(
    step: Callable[..., Tensor], preactivations: Tensor, state: Tensor, resets: Tensor | None
) -> Tensor:
    if preactivations.dtype not in _HALF:
        return step(preactivations, state, resets)
    return step(preactivations.float(), state.float(), resets).to(state.dtype)


def _scan(
    name: str,
    form: str,
    sequences: tuple[Tensor, ...],
    initial_state: Tensor,
    resets: Tensor | None,
) -> Tensor:
    device = initial_state.device.type
    # a look-up first: torch.compile can trace that, but not an import
    module = _modules.get((form, device)) or _find_module(form, device)
    scan = getattr(module, name)
    if module in _PLAIN.values() and sequences[0].dtype in _HALF:
        wide = [sequence.float() for sequence in sequences]
        return scan(*wide, initial_state.float(), resets).to(initial_state.dtype)
    return scan(*sequences, initial_state, resets)


def _find_module(form: str, device: str) -> ModuleType:
    """The module of a form, remembered in ``_modules``; "auto" falls back, once, with a warning."""
    if form not in FORMS:
        raise ValueError(f"form is {form!r}; expected one of {', '.join(map(repr, FORMS))}.")
    name = _FUSED.get(device, "two_level") if form == "auto" else form
    module: ModuleType | None = _PLAIN.get(name)
    if module is None:
        try:
            module = importlib.import_module(f"agents.scan.{name}")
        except ImportError as error:
            if form != "auto":
                raise ValueError(
                    f"form {form!r} cannot be imported ({error}); "
                    "install what it needs or leave form at 'auto'."
                ) from error
            message = "No fused scan for %s (%s): using the slower form 'two_level'."
            _log.warning(message, device, error)
            module = two_level
    _modules[form, device] = module
    return module


def _find_usual_modules() -> None:
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in devices:
        for form in (*_PLAIN, _FUSED[device], "auto"):
            # where its package is missing, "auto" warns on its first use
            with contextlib.suppress(ValueError):
                if form != "auto" or (_FUSED[device], device) in _modules:
                    _find_module(form, device)


_modules: dict[tuple[str, str], ModuleType] = {}
_find_usual_modules()


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _check(name: str, sequence: Tensor, state: Tensor, resets: Tensor | None, gates: int) -> None:
    if (
        sequence.dim() != 3
        or state.dim() != 2
        or sequence.shape[0] != state.shape[0]
        or sequence.shape[2] != gates * state.shape[1]
    ):
        factor = f"{gates} * channels" if gates > 1 else "channels"
        raise ValueError(
            f"{name} is {_describe(sequence)} and initial_state is {_describe(state)}; "
            f"expected (batch, time, {factor}) and (batch, channels)."
        )
    _check_dtype(name, sequence, state)
    _check_first(resets, sequence.shape[:2], "(batch, time)")


def _check_step(preactivations: Tensor, state: Tensor, resets: Tensor | None, gates: int) -> None:
    if (
        state.dim() != 2
        or preactivations.dim() != 2
        or preactivations.shape[0] != state.shape[0]
        or preactivations.shape[1] != gates * state.shape[1]
    ):
        raise ValueError(
            f"preactivations is {_describe(preactivations)} and state is {_describe(state)}; "
            f"expected (batch, {gates} * channels) and (batch, channels)."
        )
    _check_dtype("preactivations", preactivations, state)
    _check_first(resets, state.shape[:1], "(batch,)")


def _check_dtype(name: str, sequence: Tensor, state: Tensor) -> None:
    same = sequence.dtype == state.dtype and sequence.is_floating_point()
    if not same and not (sequence.dtype in _HALF and state.dtype == torch.float32):
        raise ValueError(
            f"{name} is {_describe(sequence)} and the state is {_describe(state)}; expected the "
            "same floating-point dtype, or half precision beside a float32 state."
        )


def _check_first(resets: Tensor | None, shape: torch.Size, names: str) -> None:
    if resets is not None and (resets.dtype != torch.bool or resets.shape != shape):
        raise ValueError(
            f"resets is {_describe(resets)}; expected bool of shape {names} = {tuple(shape)}."
        )
