"""S4D against its convolution computed directly, and its steps against the continuous system."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.backbones import s4d
from agents.backbones.s4d import S4D, S4DConfig
from agents.backbones.state import restart
from common.errors import UserError

D_MODEL = 6


def make(dtype: torch.dtype = torch.float64, **config) -> S4D:
    torch.manual_seed(0)
    return S4D(S4DConfig(d_model=D_MODEL, **config)).to(dtype)


def continuous(mixer: S4D) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A (d_model, d_state / 2), dt (d_model, 1) and C of the state space model."""
    a = -mixer.log_A_real.exp() + 1j * mixer.A_imag
    return a, mixer.log_dt.exp().unsqueeze(-1), torch.view_as_complex(mixer.C)


def convolve_directly(mixer: S4D, x: torch.Tensor, resets: torch.Tensor) -> torch.Tensor:
    """y_t = sum_s K_{t-s} u_s over the own episode, K_j = 2 Re(C (e^{dt A} - 1) / A e^{j dt A})."""
    time = x.shape[1]
    a, dt, c = continuous(mixer)
    steps = torch.arange(time, dtype=torch.float64)
    modes = c * ((dt * a).exp() - 1) / a
    kernel = 2 * (modes.unsqueeze(-1) * (steps * (dt * a).unsqueeze(-1)).exp()).sum(1).real
    lag = steps.long().unsqueeze(1) - steps.long()
    episode = resets.cumsum(1)
    seen = (lag >= 0) & (episode.unsqueeze(2) == episode.unsqueeze(1))
    weights = kernel[:, lag.clamp(min=0)].unsqueeze(1) * seen
    y = (weights @ x.permute(2, 0, 1).unsqueeze(-1)).squeeze(-1).permute(1, 2, 0)
    y = mixer.output(F.gelu(y + mixer.D * x))
    return y[..., :D_MODEL] * y[..., D_MODEL:].sigmoid()


@pytest.mark.parametrize("init", ["lin", "inv"])
@pytest.mark.parametrize("time", [20, 64, 65, 150])
def test_values_and_gradients_are_those_of_the_convolution(init, time):
    mixer = make(init=init)
    torch.manual_seed(1)
    x = torch.randn(2, time, D_MODEL, dtype=torch.float64)
    resets = torch.rand(2, time) < 0.05
    weight = torch.randn(2, time, D_MODEL, dtype=torch.float64)
    results = []
    for run in (
        lambda x: mixer(x, mixer.initial_state(2), resets)[0],
        lambda x: convolve_directly(mixer, x, resets),
    ):
        own = x.clone().requires_grad_()
        mixer.zero_grad()
        y = run(own)
        (y * weight).sum().backward()
        results.append([y, own.grad, *(p.grad.clone() for p in mixer.parameters())])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


def test_the_zero_order_hold_is_exact_for_a_constant_input():
    """Held at 1, the continuous state is (e^{A t} - 1) / A after any time t."""
    mixer = make()
    a, dt, c = continuous(mixer)
    time = 100
    times = dt.unsqueeze(-1) * torch.arange(1, time + 1)
    state = ((a.unsqueeze(-1) * times).exp() - 1) / a.unsqueeze(-1)
    y = 2 * (c.unsqueeze(-1) * state).sum(1).real + mixer.D.unsqueeze(-1)
    expected = F.glu(mixer.output(F.gelu(y.t())))
    u = torch.ones(1, time, D_MODEL, dtype=torch.float64)
    found, _ = mixer(u, mixer.initial_state(1), torch.zeros(1, time, dtype=torch.bool))
    torch.testing.assert_close(found[0], expected)


@settings(max_examples=20, deadline=None)
@given(
    time=st.integers(1, 40),
    resets=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    seed=st.integers(0, 1000),
)
def test_chunks_of_any_number_and_filling_are_the_steps(time, resets, seed):
    """Chunks of at most 7 steps, so that borders, padding and resets meet in every way."""
    mixer = make(d_state=4)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, time, D_MODEL, generator=generator, dtype=torch.float64)
    start = torch.randn(2, D_MODEL, 2, 2, generator=generator, dtype=torch.float64)
    resets = torch.rand(2, time, generator=generator) < resets
    weight = torch.randn(2, time, D_MODEL, generator=generator, dtype=torch.float64)

    def by_steps(x, state):
        outputs = []
        for t in range(time):
            y, state = mixer.step(x[:, t], restart(state, mixer.initial_state(2), resets[:, t]))
            outputs.append(y)
        return torch.stack(outputs, 1), state

    results = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s4d, "_CHUNK", 7)
        for run in (lambda x, state: mixer(x, state, resets), by_steps):
            own, state = x.clone().requires_grad_(), start.clone().requires_grad_()
            mixer.zero_grad()
            y, end = run(own, state)
            ((y * weight).sum() + end.square().sum()).backward()
            gradients = [p.grad.clone() for p in mixer.parameters()]
            results.append([y, end, own.grad, state.grad, *gradients])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


def test_float32_steps_agree_with_float32_chunks_at_the_highest_frequencies():
    mixer = make(torch.float32, init="inv")
    torch.manual_seed(1)
    x = torch.randn(1, 300, D_MODEL)
    resets = torch.zeros(1, 300, dtype=torch.bool)
    with torch.no_grad():
        whole, end = mixer(x, mixer.initial_state(1), resets)
        state, outputs = mixer.initial_state(1), []
        for t in range(300):
            y, state = mixer.step(x[:, t], state)
            outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, end, rtol=1e-3, atol=1e-3)


def test_initial_values_are_the_published_ones():
    lin, inv = make(d_state=64), make(d_state=64, init="inv")
    n = torch.arange(32, dtype=torch.float64)
    one, rtol = torch.ones(D_MODEL, 1, dtype=torch.float64), 1e-5
    torch.testing.assert_close(lin.A_imag.data, one * math.pi * n, rtol=rtol, atol=0.0)
    expected = one * 64 / math.pi * (64 / (2 * n + 1) - 1)
    torch.testing.assert_close(inv.A_imag.data, expected, rtol=rtol, atol=0.0)
    assert inv.A_imag[0, 0] > 1283 and abs(inv.A_imag[0, 31]) < 0.5
    torch.testing.assert_close(lin.log_A_real.data.exp(), one * torch.full_like(n, 0.5))
    dt = S4D(S4DConfig(d_model=4000, d_state=2)).log_dt.exp()
    assert dt.min() >= 0.000999 and dt.max() <= 0.1001
    assert abs(dt.log().mean() - math.log(0.01)) < 0.1  # the middle of a log-uniform range


def test_a_long_row_saves_less_than_its_states():
    """20,000 steps of d_model states are never there at once, nor kept for the gradient."""
    time, channels = 20_000, 32
    mixer = S4D(S4DConfig(d_model=channels))
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randn(1, time, channels)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y, _ = mixer(x, mixer.initial_state(1), torch.zeros(1, time, dtype=torch.bool))
    y.sum().backward()
    states = 4 * time * channels * 64
    assert sum(saved.values()) < states / 4


def test_under_autocast_the_recurrence_stays_in_float32():
    mixer = make(torch.float32)
    x, resets = torch.randn(2, 100, D_MODEL), torch.zeros(2, 100, dtype=torch.bool)
    expected, end = mixer(x, mixer.initial_state(2), resets)
    with torch.autocast("cpu", torch.bfloat16):
        found, state = mixer(x, mixer.initial_state(2), resets)
    torch.testing.assert_close(state, end)
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"d_state": 7}, "d_state is 7; it must be even, for half"),
        ({"d_state": 0}, "d_state is 0; it must be at least 2"),
        ({"init": "legs"}, "init 'legs' does not exist; there are: lin, inv"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting, message):
    with pytest.raises(UserError, match=message):
        S4DConfig(**setting)
