"""GRU and LSTM against torch.nn, and expanded minimal RNNs."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.backbones import MIXERS
from agents.backbones.state import map_state, restart
from common.errors import UserError

CHANNELS = 6
PEERS = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}
BOTH = pytest.mark.parametrize("name", PEERS)
MINIMAL = {"min_gru": torch.nn.GRU, "min_lstm": torch.nn.LSTM}


def make_mixer(name: str, d_model: int = CHANNELS, **config):
    torch.manual_seed(0)
    config_class, mixer_class = MIXERS[name]
    return mixer_class(config_class(d_model=d_model, **config)).double()


def make_pair(name: str):
    """Our mixer, and torch's own layer with the same weights."""
    mixer, peer = make_mixer(name), PEERS[name](CHANNELS, CHANNELS, batch_first=True).double()
    peer.load_state_dict({key.removeprefix("rnn."): t for key, t in mixer.state_dict().items()})
    return mixer, peer


def random_state(name: str, batch: int, generator: torch.Generator):
    parts = [
        torch.randn(batch, CHANNELS, generator=generator, dtype=torch.float64).requires_grad_()
        for _ in range(2 if name == "lstm" else 1)
    ]
    return tuple(parts) if name == "lstm" else parts[0]


def flat(state) -> list[torch.Tensor]:
    return list(state) if isinstance(state, tuple) else [state]


def run_episodes(peer, x, state, resets):
    """What torch's layer answers to each episode of each row, one after the other."""
    rows, ends = [], []
    for row in range(len(x)):
        borders = [0, *(t for t in range(1, x.shape[1]) if resets[row, t]), x.shape[1]]
        now = map_state(lambda part, row=row: part[row : row + 1].unsqueeze(0), state)
        if resets[row, 0]:
            now = map_state(torch.zeros_like, now)
        outputs = []
        for begin, end in pairwise(borders):
            if begin > 0:
                now = map_state(torch.zeros_like, now)
            y, now = peer(x[row : row + 1, begin:end], now)
            outputs.append(y)
        rows.append(torch.cat(outputs, 1))
        ends.append(now)
    if isinstance(ends[0], tuple):
        return torch.cat(rows), tuple(torch.cat(p, 1)[0] for p in zip(*ends, strict=True))
    return torch.cat(rows), torch.cat(ends, 1)[0]


def run_steps(mixer, x, state, resets):
    outputs = []
    for t in range(x.shape[1]):
        state = restart(state, mixer.initial_state(len(x)), resets[:, t])
        y, state = mixer.step(x[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, 1), state


def gradients(y, end, leaves) -> list[torch.Tensor]:
    """Of a sum in which every output and every part of the last state has a weight of its own."""
    weights = torch.Generator().manual_seed(3)
    total = sum(
        (t * torch.randn(t.shape, generator=weights, dtype=t.dtype)).sum() for t in [y, *flat(end)]
    )
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


@BOTH
@pytest.mark.parametrize("resets", [0.0, 0.3])
@settings(max_examples=15, deadline=None)
@given(batch=st.integers(1, 4), time=st.integers(1, 16), seed=st.integers(0, 1000))
def test_torch_on_each_episode_alone_agrees_in_value_and_gradient(name, resets, batch, time, seed):
    mixer, peer = make_pair(name)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, time, CHANNELS, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    resets = torch.rand(batch, time, generator=generator) < resets
    state = random_state(name, batch, generator)

    expected, expected_end = run_episodes(peer, x, state, resets)
    inputs = [x, *flat(state)]
    wanted = gradients(expected, expected_end, [*inputs, *peer.parameters()])
    for run in (mixer, mixer.by_pytorch, lambda *arguments: run_steps(mixer, *arguments)):
        y, end = run(x, state, resets)
        torch.testing.assert_close(y, expected)
        for part, expected_part in zip(flat(end), flat(expected_end), strict=True):
            torch.testing.assert_close(part, expected_part)
        found = gradients(y, end, [*inputs, *mixer.parameters()])
        for gradient, expected_gradient in zip(found, wanted, strict=True):
            torch.testing.assert_close(gradient, expected_gradient)


@BOTH
def test_calls_of_pytorchs_kernel_do_not_grow_with_time(name):
    mixer, lengths = make_mixer(name), []
    mixer.rnn.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[:2]))
    x = torch.zeros(3, 40, CHANNELS, dtype=torch.float64)
    resets = torch.zeros(3, 40, dtype=torch.bool)
    resets[:, 0] = True
    mixer.by_pytorch(x, mixer.initial_state(3), resets)
    assert lengths == [(3, 40)]
    # Three tokens a step: the episode begins at the second.
    lengths.clear()
    mixer.by_pytorch(x, mixer.initial_state(3), resets.roll(1, dims=1))
    assert lengths == [(6, 1), (3, 38)]
    lengths.clear()
    resets[:, 20] = True
    mixer.by_pytorch(x, mixer.initial_state(3), resets)
    assert lengths == [(6, 20)]


@BOTH
def test_our_kernels_in_float32_are_as_exact(name):
    generator = torch.Generator().manual_seed(4)
    given = torch.randn(3, 50, 37, generator=generator)  # no multiple of a vector of a processor
    given[0] *= 40  # saturates the gates
    resets = torch.rand(3, 50, generator=generator) < 0.1
    found = []
    for dtype in (torch.float32, torch.float64):
        mixer = make_mixer(name, d_model=37).to(dtype)
        x = given.to(dtype).requires_grad_()
        y, end = mixer(x, mixer.initial_state(3), resets)
        total = (y * y.detach().cos()).sum() + sum(part.square().sum() for part in flat(end))
        found.append([y, *torch.autograd.grad(total, [x, *mixer.parameters()])])
    for short, exact in zip(*found, strict=True):
        scale = exact.abs().max()
        torch.testing.assert_close(short.double() / scale, exact / scale, rtol=0, atol=1e-5)


@BOTH
def test_the_recurrence_stays_in_float32_under_mixed_precision(name):
    mixer = make_mixer(name).float()
    x, resets = torch.randn(2, 30, CHANNELS), torch.rand(2, 30) < 0.1
    expected, _ = mixer(x, mixer.initial_state(2), resets)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = mixer(x.bfloat16(), mixer.initial_state(2), resets)
    assert all(part.dtype == torch.float32 for part in flat(state))
    torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", MINIMAL)
def test_an_expanded_state_is_wider_and_runs_in_both_forms(name):
    mixer = make_mixer(name, expansion=3)
    assert mixer.initial_state(2).shape == (2, 3 * CHANNELS)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 20, CHANNELS, generator=generator, dtype=torch.float64)
    resets = torch.rand(2, 20, generator=generator) < 0.1
    state = torch.rand(2, 3 * CHANNELS, generator=generator, dtype=torch.float64)
    y, end = mixer(x, state, resets)
    assert y.shape == x.shape
    stepped, stepped_end = run_steps(mixer, x, state, resets)
    torch.testing.assert_close(stepped, y)
    torch.testing.assert_close(stepped_end, end)
    # The fused kernels, which float64 does not take.
    short, _ = mixer.float()(x.float(), state.float(), resets)
    torch.testing.assert_close(short.double(), y, rtol=1e-5, atol=1e-5)

    assert set(make_mixer(name).state_dict()) == {"projection.weight", "projection.bias"}
    with pytest.raises(UserError, match=r"backbone\.expansion is 0; it must be at least 1"):
        MIXERS[name][0](expansion=0)


@pytest.mark.parametrize(("name", "bias"), [("min_gru", "gate_bias"), ("min_lstm", "forget_bias")])
def test_the_bias_says_how_much_of_the_state_is_kept(name, bias):
    for value in (-1.0, 0.0, 3.0):
        mixer = make_mixer(name, expansion=2, **{bias: value})
        torch.nn.init.zeros_(mixer.projection.weight)
        x, state = torch.zeros(1, CHANNELS), torch.tensor([0.25, 1.25])[:, None].double()
        states = [mixer.step(x.double(), before.expand(1, 2 * CHANNELS)) for before in state]
        kept = states[1][1] - states[0][1]  # of a difference of 1
        sign = -1 if name == "min_gru" else 1
        expected = torch.sigmoid(torch.tensor(sign * value).double()).expand_as(kept)
        torch.testing.assert_close(kept, expected)


@pytest.mark.parametrize("name", MINIMAL)
def test_parameters_are_the_share_of_the_classical_cell_that_the_paper_states(name):
    """Feng et al. (arXiv 2410.01201), section 3, at expansion 1, 2, 3 and 4.

    They count the gates and the candidate, not the Linear that leads back from an expanded state.
    """
    stated = {"min_gru": [33, 22, 17, 13], "min_lstm": [38, 25, 19, 15]}[name]
    shares = []
    for expansion in (1, 2, 3, 4):
        own = sum(
            p.numel() for p in make_mixer(name, 128, expansion=expansion).projection.parameters()
        )
        classical = sum(p.numel() for p in MINIMAL[name](128, expansion * 128).parameters())
        shares.append(round(100 * own / classical))
    assert shares == stated
