"""Times one recurrent step, as it runs in a rollout, and the matrix products that it contains.

    python benchmarks/step.py

Batch 1 and 100, 3 layers, d 128, float32, CPU, microseconds: medians of interleaved rounds and, for
a busy machine, minima. "rolling" keeps two states, reset in turn (agents/acting.py). "products
alone" are the step's matrix products by torch.addmm into preallocated memory; "fused" is the
compiled step, and its "kernel alone" leaves out the conversion from and to PyTorch tensors. "NumPy"
and "onnxruntime" are the two exported forms (extra: onnx). x_products, x_fused and eager_x compare
the medians. Saves step.csv.
"""

import io
from collections.abc import Iterator
from functools import cache
from itertools import chain
from statistics import median
from typing import Any

import numpy as np
import torch
from timing import Row, Work, acting_step, interleaved, make_parser, printed, timed, write_csv
from torch import nn

from agents.acting import make_actor
from agents.backbones import MIXERS
from agents.export.__main__ import arrays_of
from agents.export.min_rnn import Policy
from agents.export.onnx_form import onnx_of
from agents.policy import PolicyConfig, ReturnConditionedPolicy
from agents.step.fused import FusedPolicy, obstacle

OBSERVATION_DIM, ACTION_DIM, LAYERS, D_MODEL = 11, 3, 3, 128  # Hopper's


@cache
def make_policy(backbone: str) -> ReturnConditionedPolicy:
    """A policy of the default kind, untrained."""
    torch.manual_seed(0)
    config = MIXERS[backbone][0](d_model=D_MODEL, n_layer=LAYERS)
    return ReturnConditionedPolicy(
        PolicyConfig(), config, observation_dim=OBSERVATION_DIM, action_dim=ACTION_DIM
    ).eval()


def kernel(fused: FusedPolicy, batch: int) -> Work:
    """The same compiled call again and again, on the arrays of one step."""
    calls: list[tuple[object, ...]] = []
    own = fused._kernel
    fused._kernel = lambda *arguments: calls.append(arguments)
    acting_step(fused, batch, OBSERVATION_DIM)
    fused._kernel = own
    return lambda: own(*calls[0])


def products(policy: ReturnConditionedPolicy, batch: int) -> Work:
    """All matrix products of a step."""
    parts = []
    for linear in (module for module in policy.modules() if isinstance(module, nn.Linear)):
        x = torch.randn(batch, linear.in_features)
        weight = linear.weight.detach().t().contiguous()
        parts.append((linear.bias.detach(), x, weight, torch.empty(batch, len(linear.bias))))

    def step() -> None:
        for bias, x, weight, out in parts:
            torch.addmm(bias, x, weight, out=out)

    return step


def numpy_step(policy: ReturnConditionedPolicy, batch: int) -> Work:
    """A step of min_rnn.py."""
    file = io.BytesIO()
    arrays: dict[str, Any] = arrays_of(policy, "carried", 0)
    np.savez(file, **arrays)
    file.seek(0)
    actor = Policy(file, target_return=3000.0)
    actor.reset(batch)
    generator = np.random.default_rng(0)
    observation = generator.normal(size=(batch, OBSERVATION_DIM)).astype(np.float32)
    reward = generator.random(batch).astype(np.float32)
    return lambda: actor.act(observation, reward)


@cache
def exported(backbone: str) -> bytes:
    """The ONNX file of a policy."""
    return onnx_of(make_policy(backbone), "carried", 0)


def onnx_step(backbone: str, batch: int) -> Work:
    """A step of the ONNX file in ONNX Runtime, NumPy in and out, with as many threads as torch."""
    content = exported(backbone)  # says what to install where the extra is missing
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(content, options)
    generator = np.random.default_rng(0)
    inputs = {
        "observation": generator.normal(size=(batch, OBSERVATION_DIM)).astype(np.float32),
        "reward": generator.random(batch).astype(np.float32),
        "is_first": np.ones(batch, bool),
        "target_return": np.full(1, 3000.0, np.float32),
    }
    names = [value.name for value in session.get_inputs() if value.name.startswith("state_")]
    types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
    for value in session.get_inputs()[-len(names) :]:
        inputs[value.name] = np.zeros((batch, *value.shape[1:]), types[value.type])

    def step() -> None:
        _, *state = session.run(None, inputs)
        inputs.update(zip(names, state, strict=True))

    step()
    inputs["is_first"] = np.zeros(batch, bool)
    return step


def library(layer: nn.GRU | nn.LSTM, batch: int) -> Work:
    """One step of PyTorch's own recurrent layers, which have neither MLP nor head."""
    x, state = torch.randn(1, batch, D_MODEL), None

    def step() -> None:
        nonlocal state
        _, state = layer(x, state)

    return step


def variants(batch: int) -> dict[str, Work]:
    """Every variant at one batch size."""
    steps: dict[str, Work] = {}
    for backbone in MIXERS:
        policy = make_policy(backbone)
        name = f"{backbone} policy"
        steps[f"{name}, eager"] = acting_step(policy, batch, OBSERVATION_DIM)
        steps[f"{name}, onnxruntime"] = onnx_step(backbone, batch)
        if obstacle(policy) is None:  # minGRU and minLSTM
            fused = FusedPolicy(policy)
            steps[f"{name}, products alone"] = products(policy, batch)
            steps[f"{name}, fused"] = acting_step(fused, batch, OBSERVATION_DIM)
            rolling = make_actor(policy, "rolling", 20)
            steps[f"{name}, fused, rolling"] = acting_step(rolling, batch, OBSERVATION_DIM)
            steps[f"{name}, fused, kernel alone"] = kernel(fused, batch)
            steps[f"{name}, NumPy"] = numpy_step(policy, batch)
    for layer in (nn.GRU(D_MODEL, D_MODEL, LAYERS), nn.LSTM(D_MODEL, D_MODEL, LAYERS)):
        steps[f"nn.{type(layer).__name__}, {LAYERS} layers"] = library(layer, batch)
    return steps


def measure(batch: int, rounds: int) -> Iterator[Row]:
    """One row a variant: median and least time, and the ratios to products and eager."""
    calls = max(2, 50 // batch)
    measures = {name: timed(step, calls) for name, step in variants(batch).items()}
    samples = interleaved(measures, rounds)
    medians = {name: 1e6 * median(values) for name, values in samples.items()}
    for name, middle in medians.items():
        family = name.split(",")[0]
        floor, fused, eager = (
            medians.get(f"{family}, {x}") for x in ("products alone", "fused", "eager")
        )
        yield {
            "threads": torch.get_num_threads(),
            "batch": batch,
            "variant": name,
            "median_us": round(middle, 1),
            "min_us": round(1e6 * min(samples[name]), 1),
            "x_products": round(middle / floor, 2) if floor else "",
            "x_fused": round(middle / fused, 2) if fused else "",
            "eager_x": round(eager / middle, 1) if eager else "",
        }


def main() -> None:
    """Parse the command line, measure, print and save."""
    arguments = make_parser(__doc__, rounds=300).parse_args()
    torch.set_num_threads(arguments.threads)
    with torch.inference_mode():
        batches = (measure(batch, arguments.rounds) for batch in (1, 100))
        rows = printed(chain.from_iterable(batches))
    write_csv(arguments.out / "step.csv", rows)


if __name__ == "__main__":
    main()
