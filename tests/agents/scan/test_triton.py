"""The Triton kernels, interpreted on the CPU, against the loop; and whether they build for a GPU.

In a process of their own, because TRITON_INTERPRET is read when kernels are defined. They need the
extra `triton`; where it is missing they are skipped, but not in continuous integration.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None and "CI" not in os.environ,
    reason="the extra `triton` is not installed",
)

_COMPARE = """
import torch
from agents.scan import linear_scan, minimal_scan
from agents.scan import triton as kernels

torch.manual_seed(0)
scans = {"linear": (linear_scan, 1, 2), "gru": (minimal_scan, 2, 1), "lstm": (minimal_scan, 3, 1)}
scan, gates, count = scans[NAME]
if CUT:  # into pieces, as long sequences are
    kernels._SHORTEST, kernels._FEWEST = 2, 2
assert (kernels._length(2, 9, 5) < 9) == CUT
for batch, time, channels in [(2, 9, 5), (1, 2, 70), (1, 1, 3), (2, 0, 3), (0, 2, 3)]:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 2e-2)):
        exact = [2 * torch.randn(batch, time, gates * channels) for _ in range(count)]
        exact = [x.to(dtype).double() for x in (*exact, torch.randn(batch, channels))]
        narrow = [x.to(dtype).requires_grad_() for x in exact]
        exact = [x.requires_grad_() for x in exact]
        weight = torch.randn(batch, time, channels).to(dtype)
        for resets in (None, torch.rand(batch, time) < 0.3):
            results = []
            for inputs, form in ((narrow, "triton"), (exact, "reference")):
                states = scan(*inputs, resets, form=form)
                assert states.dtype == inputs[0].dtype
                gradients = torch.autograd.grad(
                    states, inputs, weight.to(states.dtype), allow_unused=True,
                    materialize_grads=True,
                )
                results.append([states, *gradients])
            for actual, wanted in zip(*results, strict=True):
                assert actual.shape == wanted.shape
                if actual.numel():
                    error = (actual.double() - wanted).abs().max() / wanted.abs().max().clamp(1e-9)
                    assert error < tolerance, (batch, time, channels, dtype, form, error)
# Nothing passes a reset, not even a NaN.
p = torch.randn(1, 9, gates * 3)
p[0, 1] = float("nan")
inputs = [p.clone().requires_grad_() for _ in range(count)]
resets = torch.arange(9)[None] == 4
states = scan(*inputs, torch.zeros(1, 3), resets, form="triton")
assert states[0, 1:4].isnan().all() and not states[0, 4:].isnan().any()
(gradient,) = torch.autograd.grad(states[:, 4:].sum(), inputs[0])
assert not gradient[0, 4:].isnan().any()
if gates > 1:
    x = torch.tensor([-500.0, -50.0, 0.0, 50.0, 500.0])
    grid = torch.cartesian_prod(*[x] * gates)
    p = grid.t().reshape(1, 1, -1).requires_grad_()
    for form in ("triton", "cpu"):
        state = torch.zeros(1, len(grid), requires_grad=True)
        states = scan(p, state, form=form)
        gradients = torch.autograd.grad(states.sum(), (p, state))
        if form == "triton":
            expected = [states, *gradients]
    torch.testing.assert_close([states, *gradients], expected, rtol=1e-5, atol=1e-6)
"""

_BUILD = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton.language as tl
from agents.scan import triton as kernels

def build(kernel, pointers, kind, ends):
    names = kernel.arg_names
    signature = {n: "*fp32" if n in pointers else "constexpr" for n in names}
    signature |= {"time": "i32", "length": "i32", "channels": "i32", "first_ptr": "*u8"}
    constants = {"KIND": kind, "RESETS": True, "ENDS": ends, "WIDE": tl.float32, "BLOCK": 64}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32))
    assert ".entry" in compiled.asm["ptx"]

for kernel in (kernels._forward_kernel, kernels._backward_kernel):
    pointers = [n for n in kernel.arg_names if n.endswith("_ptr")]
    for kind in (0, 1, 2):
        for ends in (False, True):
            build(kernel, pointers, kind, ends)
"""


def run(code: str, interpret: str) -> None:
    paths = [str(Path(__file__).resolve().parents[3]), os.environ.get("PYTHONPATH", "")]
    environment = {"TRITON_INTERPRET": interpret, "PYTHONPATH": os.pathsep.join(paths)}
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("name", ["linear", "gru", pytest.param("lstm", marks=pytest.mark.slow)])
def test_interpreted_kernels_agree_with_the_loop(name, cut):
    run(_COMPARE.replace("NAME", repr(name)).replace("CUT", repr(cut)), interpret="1")


def test_kernels_build_to_ptx_without_a_gpu():
    run(_BUILD, interpret="0")


def test_a_cpu_tensor_without_the_interpreter_is_refused():
    run(
        """
import torch
from agents.scan import minimal_scan
try:
    minimal_scan(torch.zeros(1, 2, 4), torch.zeros(1, 2), form="triton")
except ValueError as error:
    assert "needs CUDA tensors" in str(error)
else:
    raise AssertionError("a CPU tensor went to a CUDA kernel")
""",
        interpret="0",
    )
