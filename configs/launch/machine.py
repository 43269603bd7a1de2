"""What the machine offers to a run: its device, its precision, its memory."""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median

import torch

from agents.policy import ReturnConditionedPolicy
from common.errors import UserError
from common.memory import require_memory
from configs.schema import TrainConfig

# How many times faster bfloat16 must multiply for `auto` to take it: processors are far from it on
# either side (Intel's without AMX at 0.6, AMD's at 2), so that one machine always answers alike.
WORTHWHILE = 1.2


def resolve_device(device: str) -> torch.device:
    """Returns the device that was asked for; `auto` is CUDA where there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda' was asked for, but torch finds none; use device=cpu.")
    return torch.device(device)


def resolve_precision(precision: str, device: torch.device) -> str:
    """Returns the precision that was asked for; `auto` is bfloat16 where a CPU is faster with it.

    On a GPU networks of this size wait for its launches, so that bfloat16 gains nothing.
    """
    if precision != "auto":
        return precision
    # PyTorch has no public name for this; a release without it trains in float32. A CPU without
    # the instruction emulates bfloat16, and one that has it need not be faster.
    multiplies = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    if device.type == "cpu" and multiplies() and gain_of_bfloat16() > WORTHWHILE:
        return "bfloat16"
    return "float32"


def gain_of_bfloat16() -> float:
    """Returns how many times faster than float32 this CPU multiplies bfloat16, in about 0.1 s.

    The product is one of the default network's: 1,280 steps of 128 channels to 512. The two are
    timed in turn and on one thread, so that other work on the machine slows both alike.
    """
    left, right = torch.ones(1280, 128), torch.ones(128, 512)
    pairs = [(left, right), (left.bfloat16(), right.bfloat16())]
    ratios: list[float] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for _ in range(16):
        seconds: list[float] = []
        for a, b in pairs:
            begin = time.perf_counter()
            a @ b
            seconds.append(time.perf_counter() - begin)
        ratios.append(seconds[0] / seconds[1])
    torch.set_num_threads(threads)
    return median(ratios[1:])  # the first prepares the kernels


def check_memory(config: TrainConfig, device: torch.device) -> None:
    """Refuses a network that cannot be trained in the free memory, before it is built."""

    def parameters(n_layer: int) -> int:
        backbone = replace(config.backbone, n_layer=n_layer)
        with torch.device("meta"):  # shapes only
            policy = ReturnConditionedPolicy(
                replace(config.policy, hidden=None), backbone, observation_dim=1, action_dim=1
            )
        return sum(parameter.numel() for parameter in policy.parameters())

    count = parameters(1) + (config.backbone.n_layer - 1) * (parameters(2) - parameters(1))
    require_memory(
        4 * count * 5,  # float32: weights, gradients, AdamW's two moments, EMA weights
        f"training the network of {count:,} parameters",
        "lower backbone.d_model or backbone.n_layer.",
        torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None,
    )
