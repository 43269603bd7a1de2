"""The engine on a GPU: the kernels against the loop, and what a layer costs.

    python benchmarks/gpu.py
    TRITON_INTERPRET=1 python benchmarks/gpu.py --device cpu --quick    # that it works

Needs torch and triton of CUDA, numba and safetensors, and neither a simulator nor a network. Parts:

- ``check``: values and gradients of the Triton kernels against the loop in float64; every mixer
  in float32 against itself on the CPU in float64, forward, by steps and its gradients
- ``layers``: forward and backward of a layer as a multiple of a Linear of the same width,
  interleaved, in float32 and in bfloat16 (autocast)
- ``headline``: minGRU against a GRU that goes step by step through autograd, and cuDNN's

Saves gpu_check.csv, gpu_layers.csv and gpu_headline.csv, which name the device and the versions.
"""

import argparse
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from scan import LAYERS, STEPWISE, Builders, Shape, StepwiseGRU, available, make_step
from timing import ROOT, Row, medians, printed, write_csv
from torch import Tensor, nn

from agents.backbones import MIXERS
from agents.scan import linear_scan, minimal_scan

SHAPES = [(64, 20, 128), (64, 512, 128), (16, 1024, 256), (16, 4096, 256), (1, 65_536, 128)]
QUICK_SHAPES = [(2, 9, 16)]
# Where a variant stops: beyond, it takes seconds a call, or more memory than there is.
LONGEST = {"log-space": 4096, "nn.GRU": 4096, "nn.LSTM": 4096}
COMPARED = [
    *("Linear 2d", "Linear 3d", "minGRU", "minLSTM", "minGRU recomputed", "log-space"),
    *("nn.GRU", "nn.LSTM", "attention"),
]
# Largest error, relative to the largest value: float32's sums differ in their order.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
PARTS = ("check", "layers", "headline")


def relative_error(actual: Tensor, wanted: Tensor) -> float:
    """The largest error, relative to the largest value."""
    wanted = wanted.detach().double()
    difference = (actual.detach().double().cpu() - wanted).abs().max()
    return float(difference / wanted.abs().max().clamp(1e-9))


def check_scans(device: str, quick: bool) -> Iterator[Row]:
    """The fused scans on the device, values and gradients, against the loop in float64."""
    kinds: dict[str, tuple[Callable[..., Tensor], int, int]] = {
        "linear": (linear_scan, 1, 2),
        "minGRU": (minimal_scan, 2, 1),
    }
    kinds["minLSTM"] = minimal_scan, 3, 1
    shapes = [(2, 9, 5)] if quick else [(2, 9, 5), (64, 20, 128), (3, 1000, 70), (1, 4096, 64)]
    for (name, (scan, gates, count)), shape in itertools.product(kinds.items(), shapes):
        batch, time, channels = shape
        for dtype in (torch.float32, torch.bfloat16):
            torch.manual_seed(0)
            exact = [2 * torch.randn(batch, time, gates * channels) for _ in range(count)]
            if name == "linear":
                exact[0] = exact[0].sigmoid()  # decays
            exact = [x.to(dtype).double() for x in (*exact, torch.randn(batch, channels))]
            narrow = [x.to(device, dtype).requires_grad_() for x in exact]
            exact = [x.requires_grad_() for x in exact]
            weight = torch.randn(batch, time, channels).to(dtype)
            for resets in (None, torch.rand(batch, time) < 0.1):
                found = []
                for inputs, form in ((narrow, "triton"), (exact, "reference")):
                    where = inputs[0].device
                    first = None if resets is None else resets.to(where)
                    states = scan(*inputs, first, form=form)
                    gradient = weight.to(where, states.dtype)
                    found.append([states, *torch.autograd.grad(states, inputs, gradient)])
                error = max(map(relative_error, *found))
                yield {
                    "what": f"{name}, {'with' if resets is not None else 'no'} resets",
                    "shape": "x".join(map(str, shape)),
                    "dtype": str(dtype).removeprefix("torch."),
                    "error": f"{error:.1e}",
                    "within": TOLERANCE[dtype],
                    "holds": error <= TOLERANCE[dtype],
                }


def check_mixers(device: str, quick: bool) -> Iterator[Row]:
    """Each mixer on the device against itself on the CPU in float64: forward, steps, gradients.

    A block's ReLU has no place here: where its input is zero but for rounding, gradients differ.
    """
    shape = (2, 7, 16) if quick else (4, 50, 64)
    torch.backends.cudnn.allow_tf32 = False  # cuDNN's GRU and LSTM round to it by default
    for name, (config_class, mixer_class) in MIXERS.items():
        torch.manual_seed(0)
        config = config_class(d_model=shape[2], dropout=0.0)
        exact, narrow = mixer_class(config).double(), mixer_class(config).to(device)
        narrow.load_state_dict(exact.state_dict())
        x, weight = torch.randn(2, *shape).double()
        resets = torch.rand(shape[:2]) < 0.1
        found: list[list[Tensor]] = []
        for mixer, where, dtype in ((narrow, device, torch.float32), (exact, "cpu", x.dtype)):
            given, start = x.to(where, dtype).requires_grad_(), mixer.initial_state(shape[0])
            y, _ = mixer(given, start, resets.to(where))
            gradients = torch.autograd.grad(y, [given, *mixer.parameters()], weight.to(y))
            # As one: that of a key's bias is zero but for rounding.
            gradient = torch.cat([g.flatten() for g in gradients])
            state, steps = start, []
            with torch.no_grad():
                for t in range(shape[1]):
                    step, state = mixer.step(given[:, t], state)
                    steps.append(step)
            found.append([y, torch.stack(steps, 1), gradient])
        errors = map(relative_error, *found)
        for what, error in zip(("forward", "steps", "gradients"), errors, strict=True):
            yield {
                "what": f"{name}, {what}",
                "shape": "x".join(map(str, shape)),
                "dtype": "float32",
                "error": f"{error:.1e}",
                "within": 1e-4,
                "holds": error <= 1e-4,
            }


def device_step(
    build: Callable[[int], nn.Module], shape: Shape, device: str, narrow: bool
) -> Callable[[], None]:
    """One forward and backward pass on the device, waited for; `narrow` in bfloat16."""
    with torch.device(device):
        step = make_step(build, shape)

    def waited() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=narrow):
            step()
        if device == "cuda":
            torch.cuda.synchronize()

    return waited


def times_of(builders: Builders, shape: Shape, rounds: int, device: str, narrow: bool) -> Row:
    """Median seconds of each variant that is measured at this length."""
    short = {n: b for n, b in builders.items() if shape[1] <= LONGEST.get(n, shape[1])}
    steps = {}
    for name, build in short.items():
        step = device_step(build, shape, device, narrow)
        try:
            step()
            steps[name] = step
        except RuntimeError as error:  # too little memory, or no such form in this precision
            print(f"left out: {name}, {shape} ({str(error).splitlines()[0]})")
    return medians(steps, rounds, slow=1.0)


def layers(device: str, quick: bool) -> Iterator[Row]:
    """The table of all variants and shapes, in both precisions."""
    builders = available({name: LAYERS[name] for name in COMPARED})
    for shape, narrow in itertools.product(QUICK_SHAPES if quick else SHAPES, (False, True)):
        times = times_of(builders, shape, 3 if quick else 15, device, narrow)
        for name, value in times.items():
            three = name == "attention" or name.startswith("minLSTM")
            yield {
                "precision": "bfloat16" if narrow else "float32",
                "shape": "x".join(map(str, shape)),
                "layer": name,
                "ms": round(1e3 * value, 3),
                "x its Linear": round(value / times["Linear 3d" if three else "Linear 2d"], 2),
            }


def headline(device: str, quick: bool) -> Iterator[Row]:
    """MinGRU against GRUs, batch 64, d 128; the paper's factors are for a T4 and the plain loop."""
    paper = {512: 175, 4096: 1324}
    builders = {n: LAYERS[n] for n in ("minGRU", "nn.GRU")} | {STEPWISE: StepwiseGRU}
    for length in [16] if quick else [512, 4096]:
        times = times_of(builders, (64, length, 128), 3, device, False)
        for name, value in times.items():
            yield {
                "time": length,
                "layer": name,
                "ms": round(1e3 * value, 2),
                "x minGRU": round(value / times["minGRU"], 2),
                "paper (T4 GPU)": paper.get(length, "") if name == STEPWISE else "",
            }


def main() -> None:
    """Checks, measures, prints and saves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    given = parser.parse_args()
    name = torch.cuda.get_device_name() if given.device == "cuda" else "cpu"
    where = {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda or ""}
    tables: dict[str, Callable[[], Iterator[Row]]] = {
        "check": lambda: itertools.chain(
            check_scans(given.device, given.quick), check_mixers(given.device, given.quick)
        ),
        "layers": partial(layers, given.device, given.quick),
        "headline": partial(headline, given.device, given.quick),
    }
    for part in given.parts:
        rows = printed(row | where for row in tables[part]())
        write_csv(given.out / f"gpu_{'quick_' * given.quick}{part}.csv", rows)


if __name__ == "__main__":
    main()
