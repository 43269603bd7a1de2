"""The CPU form as a PyTorch operation: tracing, precision, threads and bad input."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from agents.scan import cpu, linear_scan, minimal_scan

SCANS = {
    "linear": (linear_scan, 1, 2),
    "min_gru": (minimal_scan, 2, 1),
    "min_lstm": (minimal_scan, 3, 1),
}
OPERATIONS = {
    "linear": cpu.linear_scan,
    "min_gru": cpu.minimal_scan,
    "min_lstm": cpu.minimal_scan,
}


def make(name, batch=2, time=5, channels=4, dtype=torch.float64):
    _, gates, count = SCANS[name]
    torch.manual_seed(0)
    inputs = [torch.randn(batch, time, gates * channels, dtype=dtype) for _ in range(count)]
    inputs.append(torch.randn(batch, channels, dtype=dtype))
    return [x.requires_grad_() for x in inputs], torch.rand(batch, time) < 0.3


@pytest.mark.parametrize("name", SCANS)
def test_opcheck(name):
    inputs, resets = make(name)
    torch.library.opcheck(OPERATIONS[name], (*inputs, resets))
    torch.library.opcheck(OPERATIONS[name], (*inputs, None))


@pytest.mark.parametrize("name", SCANS)
def test_gradcheck(name):
    inputs, resets = make(name)
    assert torch.autograd.gradcheck(lambda *x: SCANS[name][0](*x, resets, form="cpu"), inputs)


def test_a_second_derivative_is_refused_in_a_sentence():
    (p, state), _ = make("min_gru")
    (gradient,) = torch.autograd.grad(
        minimal_scan(p, state, form="cpu").sum(), p, create_graph=True
    )
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()
    assert torch.autograd.gradgradcheck(
        lambda x, h: minimal_scan(x, h, form="two_level"), (p, state)
    )


def test_compiles_without_a_graph_break():
    (p, state), resets = make("min_gru", dtype=torch.float32)
    compiled = torch.compile(
        lambda x, h: minimal_scan(2 * x, h, resets), backend="aot_eager", fullgraph=True
    )
    expected = torch.autograd.grad(minimal_scan(2 * p, state, resets).square().sum(), (p, state))
    actual = torch.autograd.grad(compiled(p, state).square().sum(), (p, state))
    torch.testing.assert_close(actual, expected)


def test_activation_checkpointing_gives_the_same_gradients():
    (p, state), _ = make("min_lstm")
    plain = torch.autograd.grad(minimal_scan(p, state).square().sum(), (p, state))
    states = checkpoint(minimal_scan, p, state, use_reentrant=False)
    again = torch.autograd.grad(states.square().sum(), (p, state))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize("form", ["cpu", "two_level", "reference"])
@pytest.mark.parametrize("name", ["min_gru", "min_lstm"])
def test_autocast_keeps_the_states_in_float32(form, name):
    scan, gates, _ = SCANS[name]
    layer = torch.nn.Linear(6, gates * 4)
    x, state = torch.randn(2, 200, 6), torch.zeros(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = scan(layer(x), state, form=form)
    assert states.dtype == torch.float32
    states.sum().backward()
    exact = scan(layer(x).double(), state.double())
    assert (states - exact).abs().max() < 0.02 * exact.abs().max()
    assert layer.weight.grad is not None and layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("name", SCANS)
def test_bfloat16_adds_up_in_float32(name):
    # 500 steps whose increments vanish beside the state if the sum itself is kept in bfloat16
    scan = SCANS[name][0]
    inputs, _ = make(name, time=500, dtype=torch.bfloat16)
    if name == "linear":
        inputs = [torch.ones_like(inputs[0]), torch.full_like(inputs[1], 2**-8), inputs[2] * 0 + 1]
        inputs = [x.detach().requires_grad_() for x in inputs]
    states = scan(*inputs, form="cpu")
    assert states.dtype == torch.bfloat16
    exact = scan(*(x.double() for x in inputs), form="reference")
    assert (states.double() - exact).abs().max() <= 2**-8 * exact.abs().max()
    gradients = torch.autograd.grad(states.float().sum(), inputs)
    assert all(g.dtype == torch.bfloat16 and g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("name", SCANS)
def test_strides_do_not_matter(name):
    inputs, resets = make(name, batch=5, time=7, dtype=torch.float32)
    strided = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in inputs[:-1]]
    strided.append(inputs[-1].t().contiguous().t())
    resets = resets.t().contiguous().t()
    assert not strided[0].is_contiguous()
    actual = SCANS[name][0](*strided, resets, form="cpu")
    assert torch.equal(actual, SCANS[name][0](*inputs, resets, form="cpu"))
    # the gradient of a sum arrives expanded, with strides of zero
    for wanted in torch.autograd.grad(actual.sum(), inputs):
        assert wanted.isfinite().all()


@pytest.mark.parametrize("shape", [(9, 120, 128), (1, 1500, 130)])
def test_threads_change_nothing_and_repeat_to_the_bit(shape):
    before = torch.get_num_threads()
    (p, state), resets = make("min_lstm", *shape, dtype=torch.float32)
    results = []
    try:
        for threads in (1, 2, 2, 3):
            torch.set_num_threads(threads)
            states = minimal_scan(p, state, resets, form="cpu")
            results.append((states, *torch.autograd.grad(states.square().sum(), (p, state))))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(results[1], results[2], strict=True))
    for other in (results[1], results[3]):
        torch.testing.assert_close(other, results[0], rtol=1e-5, atol=1e-6)


def test_100000_steps_keep_their_digits():
    torch.manual_seed(0)
    p, state = torch.randn(1, 100_000, 8), torch.randn(1, 4)
    weight = torch.randn(1, 100_000, 4)
    results = []
    for dtype in (torch.float32, torch.float64):
        inputs = [p.to(dtype).requires_grad_(), state.to(dtype).requires_grad_()]
        states = minimal_scan(*inputs, form="cpu")
        results.append([states, *torch.autograd.grad(states, inputs, weight.to(dtype))])
    for narrow, wide in zip(*results, strict=True):
        assert (narrow - wide).abs().max() < 1e-5 * wide.abs().max()


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).resolve().parents[3])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": root, **environment},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_a_change_of_an_inlined_function_is_seen_by_the_cache(tmp_path):
    """Numba itself looks only at the file of the kernel, which is the same in all three runs."""
    (tmp_path / "kernel_of_test.py").write_text(
        """
import numpy as np
import inlined_by_test
from agents.scan.kernels import kernel

@kernel(inlined_by_test)
def add(x):
    x[0] += inlined_by_test.number()

x = np.zeros(1)
add(x)
print(x[0], sum(add.stats.cache_hits.values()))
"""
    )
    found = []
    for number in (1, 2, 2):
        (tmp_path / "inlined_by_test.py").write_text(
            f"from numba import njit\n\n@njit\ndef number():\n    return {number}\n"
        )
        root = str(Path(__file__).resolve().parents[3])
        paths = os.pathsep.join([str(tmp_path), root])
        result = python("import kernel_of_test", PYTHONPATH=paths, PYTHONDONTWRITEBYTECODE="1")
        assert result.returncode == 0, result.stderr
        found.append(result.stdout.split())
    assert found == [["1.0", "0"], ["2.0", "0"], ["2.0", "1"]]


def test_no_place_for_the_cache_does_not_stop_the_kernels():
    code = """
import numba.core.caching as caching, torch
class Nowhere(caching._CacheLocator):
    @classmethod
    def from_function(cls, *_):
        return None
caching.CacheImpl._locator_classes = [Nowhere]
from agents.scan import linear_scan
a = torch.ones(1, 4, 2)
assert linear_scan(a, a, torch.zeros(1, 2), form="cpu")[0, :, 0].tolist() == [1, 2, 3, 4]
"""
    result = python(code)
    assert result.returncode == 0, result.stderr


@pytest.mark.posix
def test_a_forked_child_can_scan_after_its_parent_did():
    code = """
import os, torch
torch.set_num_threads(2)
from agents.scan import linear_scan
a = torch.rand(4, 300, 128)
expected = linear_scan(a, a, a[:, 0], form="cpu")
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(linear_scan(a, a, a[:, 0], form="cpu"), expected) else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    result = python(code)
    assert result.returncode == 0, result.stderr


def test_bad_input_is_named():
    p, state = torch.zeros(2, 3, 8), torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"preactivations is float32 of shape \(2, 3, 6\)"):
        minimal_scan(p[..., :6], state)
    with pytest.raises(ValueError, match="same floating-point dtype"):
        minimal_scan(p.double(), state)
    with pytest.raises(ValueError, match="resets is float32"):
        minimal_scan(p, state, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="'reference', 'log_space', 'two_level', 'cpu', 'triton'"):
        minimal_scan(p, state, form="fast")
    with pytest.raises(ValueError, match="give both the same shape"):
        linear_scan(torch.zeros(2, 3, 4), torch.zeros(2, 5, 4), state)
    with pytest.raises(ValueError, match="form 'log_space' has no linear_scan"):
        linear_scan(torch.ones(2, 3, 4), torch.zeros(2, 3, 4), state, form="log_space")
