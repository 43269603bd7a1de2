"""What a mamba layer costs in training, compared with mambapy's layer (extra ``bench``).

    python benchmarks/mamba.py

One training update of one layer with the same settings: forward, backward (gradients of input and
weights) and AdamW, float32. Interleaved rounds in one process, in CPU time, so that other work on
the machine disturbs little; the table gives medians, and the median ratio of the rounds. Saves
mamba.csv.
"""

import importlib
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from timing import Row, interleaved, make_parser, printed, timed, write_csv
from torch import Tensor, nn

from agents.backbones.mamba import Mamba, MambaConfig

SHAPES = [(64, 20, 128), (2, 1000, 128)]


class FromZero(nn.Module):
    """The layer over rows that begin an episode."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.mixer = Mamba(MambaConfig(d_model=d_model))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, d_model) -> the same."""
        resets = torch.zeros(x.shape[:2], dtype=torch.bool)
        resets[:, 0] = True
        return self.mixer(x, self.mixer.initial_state(len(x)), resets)[0]


def update(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """One training update as a call."""
    optimizer = torch.optim.AdamW(model.parameters())
    x = x.clone().requires_grad_()
    target = torch.randn_like(x)

    def run() -> None:
        optimizer.zero_grad()
        x.grad = None
        model(x).backward(target)
        optimizer.step()

    return run


def main() -> None:
    """Measures, prints and saves."""
    arguments = make_parser(__doc__, rounds=21).parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    try:
        theirs = importlib.import_module("mambapy.mamba")
    except ModuleNotFoundError:
        sys.exit('error: mambapy is not installed; pip install -e ".[bench]"')
    rows: list[Row] = []
    for batch, steps, d_model in SHAPES:
        x = torch.randn(batch, steps, d_model)
        peer = theirs.MambaBlock(theirs.MambaConfig(d_model=d_model, n_layers=1))
        updates = {"mamba": update(FromZero(d_model), x), "mambapy": update(peer, x)}
        measures = {name: timed(run, clock=time.process_time) for name, run in updates.items()}
        seconds = interleaved(measures, arguments.rounds, warm_up=2)
        for name, own in seconds.items():
            ratio = median(b / a for a, b in zip(seconds["mamba"], own, strict=True))
            rows.append(
                {
                    "batch": batch, "time": steps, "d": d_model, "layer": name,
                    "CPU ms": round(1e3 * median(own), 1), "x mamba": round(ratio, 2),
                }
            )  # fmt: skip
    write_csv(arguments.out / "mamba.csv", printed(rows))


if __name__ == "__main__":
    main()
