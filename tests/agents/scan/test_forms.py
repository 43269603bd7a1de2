"""Every form of the scan against the loop over time, for values and gradients."""

import pytest
import torch
from torch import Tensor

from agents.scan import linear_scan, minimal_scan, minimal_step

ACCURATE = ["two_level", "cpu"]
SCANS = {"linear": (linear_scan, 1), "min_gru": (minimal_scan, 2), "min_lstm": (minimal_scan, 3)}


def make_inputs(name, batch, time, channels, dtype=torch.float64, scale=3.0, resets=0.2, seed=0):
    """Inputs of the scan, its initial state and resets, drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if name == "linear":
        decay = torch.rand(batch, time, channels, generator=generator, dtype=torch.float64)
        inputs = [0.1 + 0.9 * decay, normal(batch, time, channels)]
    else:
        inputs = [scale * normal(batch, time, SCANS[name][1] * channels)]
    inputs.append(normal(batch, channels))
    resets = torch.rand(batch, time, generator=generator) < resets
    return [x.to(dtype).requires_grad_() for x in inputs], resets


def run(name, inputs, resets, form, weight):
    """States and the gradients of all inputs under the loss sum(weight * states)."""
    states = SCANS[name][0](*inputs, resets, form=form)
    # The loop over an empty time does not touch the state: no gradient is a gradient of zero
    gradients = torch.autograd.grad(
        states, inputs, weight.to(states.dtype), allow_unused=True, materialize_grads=True
    )
    return [states, *gradients]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    if actual.numel() == 0:
        return 0.0
    scale = expected.abs().max().clamp(min=1e-30)  # below, float32 has no digits left
    return ((actual.double() - expected.double()).abs().max() / scale).item()


@pytest.mark.parametrize("form", ACCURATE)
@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize(
    ("batch", "time", "channels"),
    [(3, 0, 5), (0, 4, 5), (1, 1, 1), (2, 2, 17), (3, 7, 19), (5, 33, 16), (2, 101, 40)],
)
def test_agrees_with_the_loop(form, name, batch, time, channels):
    weight = torch.randn(batch, time, channels, dtype=torch.float64)
    for with_resets in (False, True):
        inputs, resets = make_inputs(name, batch, time, channels)
        resets = resets if with_resets else None
        expected = run(name, inputs, resets, "reference", weight)
        for actual, wanted in zip(run(name, inputs, resets, form, weight), expected, strict=True):
            assert actual.dtype == wanted.dtype
            assert relative_error(actual, wanted) < 1e-12
        narrow = [x.detach().float().requires_grad_() for x in inputs]
        for actual, wanted in zip(run(name, narrow, resets, form, weight), expected, strict=True):
            assert actual.dtype == torch.float32
            assert relative_error(actual, wanted) < 2e-6


@pytest.mark.parametrize("name", ["min_gru", "min_lstm"])
def test_log_space_agrees_as_far_as_logarithms_can(name):
    inputs, _ = make_inputs(name, 3, 33, 5, scale=1.0)
    resets = torch.zeros(3, 33, dtype=torch.bool)
    resets[1, [0, 7]] = True
    weight = torch.randn(3, 33, 5, dtype=torch.float64)
    expected = run(name, inputs, resets, "reference", weight)
    for actual, wanted in zip(
        run(name, inputs, resets, "log_space", weight), expected, strict=True
    ):
        assert relative_error(actual, wanted) < 1e-8
    narrow = [x.detach().float().requires_grad_() for x in inputs]
    states = run(name, narrow, resets, "log_space", weight)[0]
    assert relative_error(states, expected[0]) < 1e-4


@pytest.mark.parametrize("form", ["reference", "log_space", *ACCURATE])
@pytest.mark.parametrize("name", SCANS)
def test_pieces_with_a_carried_state_equal_the_whole(form, name):
    if (form, name) == ("log_space", "linear"):
        pytest.skip("the paper's form is that of the gates")
    (*sequences, state), resets = make_inputs(name, 2, 12, 6, scale=1.0)
    scan = SCANS[name][0]
    whole = scan(*sequences, state, resets, form=form)
    pieces = []
    for start, stop in [(0, 1), (1, 6), (6, 12)]:
        piece = [x[:, start:stop] for x in sequences]
        pieces.append(scan(*piece, state, resets[:, start:stop], form=form))
        state = pieces[-1][:, -1]
    assert relative_error(torch.cat(pieces, dim=1), whole) < 1e-9


@pytest.mark.parametrize("name", ["min_gru", "min_lstm"])
def test_steps_equal_the_scan(name):
    (preactivations, state), _ = make_inputs(name, 4, 9, 11)
    states = minimal_scan(preactivations, state)
    for t in range(9):
        state = minimal_step(preactivations[:, t], state)
        assert relative_error(state, states[:, t]) < 1e-12


def extreme(name, case, time=64):
    """Pre-activations where a careless formula overflows, divides 0 by 0 or loses digits."""
    (x, state), _ = make_inputs(name, 2, time, 4, scale=1.0)
    x, state = x.detach(), state.detach()
    if case == "gates +-50":
        x = 50 * x.sign()
    elif case == "gates +-500":
        x = 500 * x.sign()
    elif case == "very negative":
        x = x - 90
    elif case == "zero state":
        state = torch.zeros_like(state)
    elif case == "zeros":
        x = torch.zeros_like(x)
    elif case == "infinite gates":
        x[..., :4] = torch.where(x[..., :4] > 0, torch.inf, -torch.inf)
    return [x.requires_grad_(), state.requires_grad_()]


CASES = ["gates +-50", "gates +-500", "very negative", "zero state", "zeros", "infinite gates"]


@pytest.mark.parametrize("form", ACCURATE)
@pytest.mark.parametrize("name", ["min_gru", "min_lstm"])
@pytest.mark.parametrize("case", CASES)
def test_extreme_gates(form, name, case):
    if name == "min_lstm" and case == "infinite gates":
        pytest.skip("an infinite forget gate has no gradient in the formula f / (f + i)")
    inputs = extreme(name, case)
    weight = torch.randn(2, 64, 4, dtype=torch.float64)
    expected = run(name, inputs, None, "reference", weight)
    narrow = [x.detach().float().requires_grad_() for x in inputs]
    for actual, wanted in zip(run(name, narrow, None, form, weight), expected, strict=True):
        assert actual.isfinite().all()
        assert relative_error(actual, wanted) < 1e-5


@pytest.mark.parametrize("name", ["min_gru", "min_lstm"])
def test_gates_of_exactly_0_and_1_copy_without_rounding(name):
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(3, 8, generator=generator) * 1e6
    candidate = torch.rand(3, 5, 8, generator=generator)
    keep = [-torch.full((3, 5, 8), 60.0), candidate]
    take = [torch.full((3, 5, 8), 60.0), candidate]
    if name == "min_lstm":  # the forget gate is the opposite of the input gate
        keep, take = [-keep[0], *keep], [-take[0], *take]
    scan = SCANS[name][0]
    assert torch.equal(scan(torch.cat(keep, -1), state)[:, -1], state)
    assert torch.equal(scan(torch.cat(take, -1), state), candidate + 0.5)


@pytest.mark.parametrize("form", ["reference", *ACCURATE])
@pytest.mark.parametrize("name", ["min_gru", "min_lstm"])
def test_nothing_crosses_a_reset_not_even_nan(form, name):
    (preactivations, state), _ = make_inputs(name, 2, 8, 5)
    resets = torch.zeros(2, 8, dtype=torch.bool)
    resets[:, 4] = True
    clean = SCANS[name][0](preactivations, state, resets, form=form)
    poisoned = preactivations.detach().clone()
    poisoned[:, 1] = torch.nan
    states = SCANS[name][0](poisoned, state, resets, form=form)
    assert states[:, 1:4].isnan().all()  # a NaN is shown, not swallowed
    if form != "two_level":  # its blocks carry products, where 0 * NaN is NaN
        assert torch.equal(states[:, 4:], clean[:, 4:])
