"""The step kernel's matrix products against NumPy's in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.step.products import BLOCK, add_product


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 13),
    inputs=st.integers(0, 40),  # none: an MLP without width
    outputs=st.integers(1, 200),
    zeros=st.sampled_from([0.0, 0.6, 1.0]),
    seed=st.integers(0, 9),
)
def test_adds_the_product_to_what_is_there(rows, inputs, outputs, zeros, seed):
    generator = np.random.default_rng(seed)
    room = -(-rows // BLOCK) * BLOCK
    x = np.zeros((room, inputs), np.float32)
    x[:rows] = generator.normal(size=(rows, inputs)) * (generator.random((rows, inputs)) >= zeros)
    weight = generator.normal(size=(inputs, outputs)).astype(np.float32)
    y = np.zeros((room, outputs), np.float32)
    y[:rows] = generator.normal(size=(rows, outputs))
    expected = y.astype(np.float64) + x.astype(np.float64) @ weight.astype(np.float64)
    add_product(x, weight, y, rows, np.empty(inputs, np.int64))
    np.testing.assert_allclose(y[:rows], expected[:rows], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows", [4, 5])  # the fifth goes by itself
@pytest.mark.parametrize("columns", [64, 70])
def test_nan_stays_in_its_row(rows, columns):
    x, weight = np.ones((8, 3), np.float32), np.ones((3, columns), np.float32)
    y = np.zeros((8, columns), np.float32)
    x[rows - 1, 1] = np.nan
    add_product(x, weight, y, rows, np.empty(3, np.int64))
    assert np.isnan(y[rows - 1]).all()
    assert (y[: rows - 1] == 3.0).all()
