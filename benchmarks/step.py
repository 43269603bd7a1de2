"""Times one recurrent step, as it runs in a rollout, and the matrix products that it contains.

    python benchmarks/step.py

Batch 1 and 100, 3 layers, d 128, float32, CPU, microseconds. Interleaved rounds; the table shows
medians and, for a busy machine, minima. Saved as benchmarks/results/step.csv.

"products alone" are the step's own matrix products by torch.addmm into preallocated memory.
"no MLP" is the policy with MLPs of width 0: the recurrent stack with embedding, norms and head.
"kernel alone" leaves out the conversion from and to PyTorch tensors.
"""

import argparse
import warnings
from collections.abc import Iterator
from itertools import chain
from statistics import median

import torch
from timing import Row, Work, acting_step, interleaved, machine, printed, timed, write_csv
from torch import nn

from agents.backbones import MIXERS
from agents.policy import PolicyConfig, ReturnConditionedPolicy
from agents.step.fused import FusedPolicy

OBSERVATION_DIM, ACTION_DIM, LAYERS, D_MODEL = 11, 3, 3, 128  # Hopper's


def make_policy(backbone: str, mlp_ratio: int) -> ReturnConditionedPolicy:
    """A policy of the default kind, untrained."""
    torch.manual_seed(0)
    config = MIXERS[backbone][0](d_model=D_MODEL, n_layer=LAYERS)
    config.mlp_ratio = mlp_ratio  # set afterwards: the configuration refuses 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the initialisation of an MLP of width 0
        policy = ReturnConditionedPolicy(
            PolicyConfig(), config, observation_dim=OBSERVATION_DIM, action_dim=ACTION_DIM
        )
    return policy.eval()


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
    linears = [module for module in policy.modules() if isinstance(module, nn.Linear)]
    parts = []
    for linear in linears:
        if linear.weight.numel():
            x = torch.randn(batch, linear.in_features)
            weight = linear.weight.detach().t().contiguous()
            parts.append((linear.bias.detach(), x, weight, torch.empty(batch, len(linear.bias))))

    def step() -> None:
        for bias, x, weight, out in parts:
            torch.addmm(bias, x, weight, out=out)

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
    for backbone in ("min_gru", "min_lstm"):
        for kind, mlp_ratio in (("policy", 4), ("no MLP", 0)):
            policy = make_policy(backbone, mlp_ratio)
            fused = FusedPolicy(policy)
            name = f"{backbone} {kind}"
            steps[f"{name}, products alone"] = products(policy, batch)
            steps[f"{name}, eager"] = acting_step(policy, batch, OBSERVATION_DIM)
            steps[f"{name}, fused"] = acting_step(fused, batch, OBSERVATION_DIM)
            steps[f"{name}, fused, kernel alone"] = kernel(fused, batch)
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
        floor, eager = (medians.get(f"{family}, {x}") for x in ("products alone", "eager"))
        yield {
            "threads": torch.get_num_threads(),
            "batch": batch,
            "variant": name,
            "median_us": round(middle, 1),
            "min_us": round(1e6 * min(samples[name]), 1),
            "x_products": round(middle / floor, 2) if floor else "",
            "eager_x": round(eager / middle, 1) if eager else "",
        }


def main() -> None:
    """Parse the command line, measure, print and save."""
    parser = argparse.ArgumentParser(description="Benchmark the recurrent step on the CPU.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=300)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(machine())
    with torch.inference_mode():
        batches = (measure(batch, arguments.rounds) for batch in (1, 100))
        rows = printed(chain.from_iterable(batches))
    print(f"saved {write_csv('step.csv', rows)}")


if __name__ == "__main__":
    main()
