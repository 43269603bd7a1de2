"""The layers inside what PyTorch builds around a network: export, inductor, data parallelism."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel

from agents.backbones import build_backbone
from agents.backbones.min_gru import MinGRUConfig
from agents.backbones.min_lstm import MinLSTMConfig

CONFIGS = [
    MinGRUConfig(d_model=16, n_layer=2, dropout=0.0),
    MinLSTMConfig(d_model=16, n_layer=2, dropout=0.0),
]
by_name = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)


def make(config, batch=4, time=9):
    torch.manual_seed(0)
    backbone = build_backbone(config)
    x = torch.randn(batch, time, config.d_model)
    return backbone, (x, backbone.initial_state(batch), torch.rand(batch, time) < 0.2)


@by_name
def test_exports_with_a_free_batch_size(config):
    backbone, inputs = make(config)
    batch = {0: torch.export.Dim("batch", min=2)}
    shapes = {"x": batch, "state": (batch,) * config.n_layer, "resets": batch}
    program = torch.export.export(backbone, inputs, dynamic_shapes=shapes)
    _, others = make(config, batch=7)
    torch.testing.assert_close(program.module()(*others), backbone(*others))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a compiler on CPUs")
def test_inductor_gives_the_same_values_and_gradients():
    backbone, inputs = make(CONFIGS[0])
    compiled = torch.compile(copy.deepcopy(backbone), fullgraph=True)
    for network in (backbone, compiled):
        network(*inputs)[0].square().sum().backward()
    torch.testing.assert_close(compiled(*inputs), backbone(*inputs))
    for ours, theirs in zip(backbone.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(theirs.grad, ours.grad, rtol=1e-4, atol=1e-5)


def train_on_a_share(rank: int, folder: str) -> None:
    """One of two processes: the gradient on its half of the batch, averaged over both."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    backbone, (x, state, resets) = make(CONFIGS[0])
    half = slice(2 * rank, 2 * rank + 2)
    network = DistributedDataParallel(backbone)
    outputs, _ = network(x[half], tuple(s[half] for s in state), resets[half])
    outputs.square().mean().backward()
    if rank == 0:
        torch.save([p.grad for p in backbone.parameters()], Path(folder, "gradients.pt"))
    torch.distributed.destroy_process_group()


@pytest.mark.slow  # torchrun in tests/test_distributed.py proves it by default
def test_two_processes_find_the_gradient_of_the_whole_batch(tmp_path):
    torch.multiprocessing.spawn(train_on_a_share, args=(str(tmp_path),), nprocs=2)
    backbone, inputs = make(CONFIGS[0])
    backbone(*inputs)[0].square().mean().backward()
    gradients = torch.load(tmp_path / "gradients.pt", weights_only=True)
    for whole, shared in zip(backbone.parameters(), gradients, strict=True):
        torch.testing.assert_close(shared, whole.grad)
