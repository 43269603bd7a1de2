"""The layer in pieces against the Linear and the scan: values, gradients, what stays alive."""

import pytest
import torch
import torch.nn.functional as F

from agents.scan import cpu, minimal_scan
from agents.scan.layer import minimal_layer

GATES = {"min_gru": 2, "min_lstm": 3}


def make(gates, batch, time, features=6, channels=16):
    torch.manual_seed(0)
    x = torch.randn(batch, time, features)
    weight = torch.randn(gates * channels, features) / features**0.5
    bias, state = torch.randn(gates * channels), torch.randn(batch, channels)
    resets = torch.rand(batch, time) < 0.01
    return [y.requires_grad_() for y in (x, weight, bias, state)], resets


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("gates", GATES.values(), ids=GATES)
# whole sequences with a rest; one sequence in stretches with a rest; stretches of several sequences
@pytest.mark.parametrize(("batch", "time"), [(70, 60), (1, 2500), (3, 1100), (2, 1), (2, 0)])
def test_layer_equals_linear_and_scan(gates, recompute, batch, time):
    inputs, some = make(gates, batch, time)
    for resets in (None, some):
        actual = minimal_layer(*inputs, resets, recompute=recompute)
        x, weight, bias, state = inputs
        wide = minimal_scan(
            F.linear(x.double(), weight.double(), bias.double()), state.double(), resets
        )
        assert actual.shape == wide.shape
        if time == 0:
            continue
        torch.testing.assert_close(actual.double(), wide, rtol=1e-5, atol=1e-5)
        weight_of_loss = torch.randn(actual.shape)
        ours = torch.autograd.grad(actual, inputs, weight_of_loss)
        exact = torch.autograd.grad(wide, inputs, weight_of_loss.double())
        for a, b in zip(ours, exact, strict=True):
            assert (a - b).abs().max() < 2e-5 * b.abs().max()


@pytest.fixture
def three_threads(monkeypatch):
    monkeypatch.setattr(cpu, "_SHARED_FROM", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("gates", GATES.values(), ids=GATES)
@pytest.mark.parametrize(("batch", "time"), [(70, 60), (4, 1100), (3, 1), (2, 50)])
def test_threads_share_the_rows_of_a_layer(gates, recompute, batch, time, three_threads):
    inputs, resets = make(gates, batch, time)
    weight_of_loss = torch.randn(batch, time, 16)

    def results():
        states = minimal_layer(*inputs, resets, recompute=recompute)
        return [states, *torch.autograd.grad(states, inputs, weight_of_loss)]

    shared, again = results(), results()
    assert torch.get_num_threads() == 3
    torch.set_num_threads(1)
    for ours, repeated, alone in zip(shared, again, results(), strict=True):
        assert torch.equal(ours, repeated)  # a run repeats to the bit
        torch.testing.assert_close(ours, alone, rtol=1e-4, atol=1e-4 * alone.abs().max().item())


def test_an_error_in_a_share_comes_after_the_other_shares_ended(three_threads):
    done = []

    def work(rows):
        if rows.start == 0:
            raise MemoryError("no room")
        done.append(rows)

    with pytest.raises(MemoryError):
        cpu.share_rows(work, 6, 10)
    assert sorted(rows.start for rows in done) == [2, 4]
    assert torch.get_num_threads() == 3


def test_recomputation_keeps_one_float_a_step_and_channel():
    inputs, _ = make(2, 8, 200)
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        states = minimal_layer(*inputs, recompute=True)
    given = {y.data_ptr() for y in inputs}
    assert sum(n for at, n in kept.items() if at not in given) <= 1.2 * states.numel()


def test_a_second_derivative_is_refused_in_a_sentence():
    inputs, _ = make(2, 2, 3)
    y = minimal_layer(*inputs)
    with pytest.raises(RuntimeError, match="no second derivative; pass form='two_level'"):
        torch.autograd.grad(y.sum(), inputs[0], create_graph=True)
    y = minimal_layer(*inputs, form="two_level")
    (gradient,) = torch.autograd.grad(y.square().sum(), inputs[0], create_graph=True)
    assert gradient.requires_grad


def test_bad_shapes_reach_the_scan_and_its_sentence():
    (x, weight, bias, _), _ = make(2, 2, 3)
    with pytest.raises(ValueError, match="the state is float32"):
        minimal_layer(x, weight, bias, torch.zeros(2, 5))
