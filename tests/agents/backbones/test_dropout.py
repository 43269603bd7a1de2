"""Dropout against what nn.Dropout promises: which elements fall, and the mean of what is left."""

import pytest
import torch

from agents.backbones.dropout import Dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
def test_share_and_scale(p, dtype):
    torch.manual_seed(0)
    dropped = Dropout(p)(torch.ones(401, 999, dtype=dtype))
    share = (dropped == 0).double().mean().item()
    # Five standard deviations of a binomial share.
    assert share == pytest.approx(p, abs=5 * (p * (1 - p) / dropped.numel()) ** 0.5)
    kept = dropped[dropped != 0].unique()
    assert kept.tolist() == pytest.approx([1 / (1 - p)], rel=0.01)


def test_each_of_the_four_elements_of_a_draw_falls_alike():
    torch.manual_seed(0)
    fallen = Dropout(0.3)(torch.ones(400_000)) == 0
    for lane in range(4):
        assert fallen[lane::4].double().mean().item() == pytest.approx(0.3, abs=0.008)
    assert not torch.equal(fallen[0::4], fallen[1::4])


def test_the_mask_is_the_same_forward_and_backward():
    torch.manual_seed(0)
    x = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    y = Dropout(0.4)(x)
    y.sum().backward()
    assert torch.equal(y.detach(), (x * x.grad).detach())
    assert x.grad.unique().tolist() == pytest.approx([0.0, 1 / 0.6], rel=1e-4)


def test_the_generator_of_torch_decides():
    x = torch.ones(64, 20, 128)
    torch.manual_seed(3)
    first, second = Dropout(0.1)(x), Dropout(0.1)(x)
    torch.manual_seed(3)
    assert torch.equal(Dropout(0.1)(x), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_nothing_falls_in_evaluation_and_the_ends_are_exact(p):
    x = torch.randn(6, 11)
    layer = Dropout(p)
    assert torch.equal(layer.eval()(x), x)
    if p != 0.5:
        assert torch.equal(layer.train()(x), x * (1 - p))


def test_compiles_and_empties():
    layer = Dropout(0.5)
    assert layer(torch.ones(0, 4)).shape == (0, 4)
    compiled = torch.compile(layer, backend="eager")
    assert 0 < (compiled(torch.ones(1000)) == 0).sum() < 1000
