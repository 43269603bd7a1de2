"""Mamba against the one of transformers, with the same weights."""

from functools import partial

import pytest
import torch

from agents.backbones import mamba
from agents.backbones.mamba import Mamba, MambaConfig
from agents.backbones.state import restart
from agents.scan import selective
from agents.scan.selective import selective_scan
from common.errors import UserError

D_MODEL = 24


def make(dtype: torch.dtype = torch.float32, **config) -> Mamba:
    torch.manual_seed(0)
    return Mamba(MambaConfig(d_model=D_MODEL, **config)).to(dtype)


@pytest.mark.parametrize("config", [{}, {"d_state": 5, "d_conv": 3, "expand": 3}])
def test_values_and_gradients_are_those_of_transformers(config):
    from transformers import MambaConfig as PeerConfig  # takes seconds
    from transformers.models.mamba.modeling_mamba import MambaMixer as Peer

    mixer = make(**config)
    with torch.no_grad():  # away from the initial values, which are the same in every channel
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    defaults = MambaConfig()
    peer = Peer(
        PeerConfig(
            hidden_size=D_MODEL,
            state_size=config.get("d_state", defaults.d_state),
            conv_kernel=config.get("d_conv", defaults.d_conv),
            expand=config.get("expand", defaults.expand),
            num_hidden_layers=1,
            use_mambapy=False,
        ),
        layer_idx=0,
    )
    peer.load_state_dict(mixer.state_dict())
    x = torch.randn(3, 50, D_MODEL)
    own, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, _ = mixer(own, mixer.initial_state(3), torch.zeros(3, 50, dtype=torch.bool))
    expected = peer(other)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)

    weight = torch.randn_like(y)
    (y * weight).sum().backward()
    (expected * weight).sum().backward()
    gradients = {name: p.grad for name, p in mixer.named_parameters()} | {"x": own.grad}
    for name, p in [*peer.named_parameters(), ("x", other)]:
        # Sums over 150 steps: what float32 loses is in proportion to the largest.
        atol = 1e-5 * float(p.grad.abs().max())
        torch.testing.assert_close(gradients[name], p.grad, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("resets", [0.0, 0.2, 1.0])
def test_kernel_chunks_and_steps_have_the_same_values_and_gradients(resets, monkeypatch):
    mixer = make(torch.float64)
    torch.manual_seed(1)
    x = torch.randn(2, 23, D_MODEL, dtype=torch.float64)
    resets = torch.rand(2, 23) < resets
    start = [torch.randn_like(part) for part in mixer.initial_state(2)]
    weight = torch.randn_like(x)

    def by_steps(x, state):
        outputs = []
        for t in range(23):
            y, state = mixer.step(x[:, t], restart(state, mixer.initial_state(2), resets[:, t]))
            outputs.append(y)
        return torch.stack(outputs, 1), state

    def whole(x, state):
        return mixer(x, state, resets)

    results = []
    # The kernel, then without it: one chunk, chunks of 5 steps, chunks of 1 step although that is
    # above the size, no chunks.
    sizes = [None, 10**6, 5 * 2 * 48 * 16, 1, 1]
    for size, run in zip(sizes, [whole] * 4 + [by_steps], strict=True):
        if size is not None:
            monkeypatch.setattr(mamba, "selective_scan", partial(selective_scan, form="chunks"))
            monkeypatch.setattr(selective, "_CHUNK", size)
        own, state = x.clone().requires_grad_(), tuple(p.clone().requires_grad_() for p in start)
        mixer.zero_grad()
        y, end = run(own, state)
        ((y * weight).sum() + sum(part.square().sum() for part in end)).backward()
        parameters = [p.grad.clone() for p in mixer.parameters()]
        results.append([y, *end, own.grad, *(part.grad for part in state), *parameters])
    for other in results[1:]:
        for found, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(found, expected)


def test_threads_change_no_bit_of_the_kernel():
    """Three rows of enough work for two threads."""
    torch.manual_seed(0)
    dt, dt_x = torch.rand(3, 40, 64), torch.randn(3, 40, 64)
    b, c, a, h = (torch.randn(s) for s in [(3, 40, 16), (3, 40, 16), (16, 64), (3, 16, 64)])
    tensors = [t.requires_grad_() for t in (dt, dt_x, b, c, -a.abs(), h)]
    resets = torch.rand(3, 40) < 0.1
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            y, end = selective_scan(*tensors, resets)
            results.append([y, end, *torch.autograd.grad(y.sum() + end.sum(), tensors)])
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *results))


def test_a_second_derivative_is_refused_and_not_dropped():
    mixer = make()
    x = torch.randn(1, 3, D_MODEL, requires_grad=True)
    y, _ = mixer(x, mixer.initial_state(1), torch.zeros(1, 3, dtype=torch.bool))
    with pytest.raises(RuntimeError, match=r"no second derivative; pass .*'chunks'"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_the_convolution_does_not_look_across_an_episodes_border():
    """Whatever the three steps before a border are, in the row or in the state's window."""
    mixer = make()
    x = torch.randn(1, 9, D_MODEL)
    resets = torch.zeros(1, 9, dtype=torch.bool)
    resets[0, 4] = True
    changed = x.clone()
    changed[:, :4] += 1.0
    y, end = mixer(x, mixer.initial_state(1), resets)
    other, other_end = mixer(changed, mixer.initial_state(1), resets)
    assert not torch.allclose(y[:, :4], other[:, :4])
    assert torch.equal(y[:, 4:], other[:, 4:])
    assert all(torch.equal(a, b) for a, b in zip(end, other_end, strict=True))
    # Two steps after a border, the window's oldest place is from before it: zeros.
    _, (window, _) = mixer(x[:, :6], mixer.initial_state(1), resets[:, :6])
    assert not window[:, 0].any() and window[:, 1:].all()


def test_initial_values_are_the_published_ones():
    mixer = Mamba(MambaConfig(d_model=400))
    dt = torch.nn.functional.softplus(mixer.dt_proj.bias)
    assert dt.min() >= 0.000999 and dt.max() <= 0.1001
    assert abs(dt.log().mean() - torch.tensor(0.01).log()) < 0.2  # log-uniform
    assert mixer.dt_proj.weight.shape == (800, 25)  # the rank is 400 / 16
    assert mixer.dt_proj.weight.abs().max() <= 25**-0.5
    assert Mamba(MambaConfig(d_model=17)).dt_rank == 2  # rounded up
    expected = torch.arange(1.0, 17.0).expand(800, 16)
    torch.testing.assert_close(mixer.A_log.data.exp(), expected)
    assert torch.equal(mixer.D.data, torch.ones(800))
    assert mixer.conv1d.weight.shape == (800, 1, 4)


def test_a_long_row_saves_less_than_its_states():
    """The states of all steps are never there at once, nor kept for the gradient."""
    time = 5000
    mixer = make()
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = torch.randn(1, time, D_MODEL)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y, _ = mixer(x, mixer.initial_state(1), torch.zeros(1, time, dtype=torch.bool))
    y.sum().backward()
    states = 4 * time * 2 * D_MODEL * 16
    assert sum(saved.values()) < states  # with every step kept it is more than three times that


def test_under_autocast_the_state_stays_in_float32():
    mixer = make()
    x, resets = torch.randn(2, 40, D_MODEL), torch.zeros(2, 40, dtype=torch.bool)
    expected, _ = mixer(x, mixer.initial_state(2), resets)
    with torch.autocast("cpu", torch.bfloat16):
        found, state = mixer(x, mixer.initial_state(2), resets)
        found.sum().backward()
    assert all(part.dtype == torch.float32 for part in state)
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("key", ["d_state", "d_conv", "expand"])
def test_sizes_below_one_are_refused(key):
    with pytest.raises(UserError, match=f"backbone.{key} is 0; it must be at least 1"):
        MambaConfig(**{key: 0})
