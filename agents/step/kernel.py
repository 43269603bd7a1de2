# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False
"""One step of a whole policy as one CPU kernel: embedding, blocks and head.

Weights are (inputs, outputs), so that the inner loops run over contiguous outputs and vectorise.
The step of a single row is bound by loading the weights from the cache; from two rows on, each
loaded weight serves a block of rows (`products.py`). The gates are those of `scan/kernels.py`.
"""

import math

import numpy as np
from numba import njit

from agents.scan import kernels
from agents.scan.kernels import OPTIONS, SUM_OPTIONS, dot, kernel, min_gru_forward, min_lstm_forward
from agents.step import products
from agents.step.products import BLOCK, add_product


@njit(**OPTIONS)
def _copy(x, y):
    """Copies a row into y; as a loop, it compiles in a fraction of the time of `y[:] = x`."""
    for c in range(y.shape[0]):
        y[c] = x[c]


@njit(**OPTIONS)
def _add(x, y):
    """Adds a row x to y."""
    for c in range(y.shape[0]):
        y[c] += x[c]


@njit(**SUM_OPTIONS)
def _layer_norm(x, norm, epsilon, y):
    """Layer norm (Ba et al. 2016, arXiv 1607.06450) of one row; norm[:2] are scale and shift."""
    scale, shift = norm[0], norm[1]
    total = x.dtype.type(0.0)
    for c in range(x.shape[0]):
        total += x[c]
    mean = total / x.dtype.type(x.shape[0])
    squares = x.dtype.type(0.0)
    for c in range(x.shape[0]):
        squares += (x[c] - mean) * (x[c] - mean)
    variance = squares / x.dtype.type(x.shape[0])
    inverse = x.dtype.type(1.0) / np.sqrt(variance + epsilon)
    for c in range(x.shape[0]):
        y[c] = (x[c] - mean) * inverse * scale[c] + shift[c]


@kernel(kernels, products)
def policy_step(
    observation, return_to_go, action, timestep, resets, state,
    return_scale, epsilon, normaliser, bounds, embedding, embedding_bias, time_embedding,
    token_norm, norms, start, projection, projection_bias, output, output_bias,
    up, up_bias, down, down_bias, head_return, head, head_bias,
    next_action, next_state, begin, end,
):  # fmt: skip
    """One step of `agents.policy.ReturnConditionedPolicy.step` with one token for each step.

    The arguments up to `state` (layers, batch, channels) are those of that method; `state` is
    overwritten where `resets` is true. The arguments between, which do not change from step to
    step, are listed with their shapes in `agents.step.fused`. `next_action` and `next_state`
    receive the result. Only the rows `begin` to `end - 1` of the batch are computed.
    """
    layers, _, channels = state.shape
    batch = end - begin
    observation, return_to_go = observation[begin:end], return_to_go[begin:end]
    action, timestep, resets = action[begin:end], timestep[begin:end], resets[begin:end]
    next_action = next_action[begin:end]
    d, width, gates = embedding.shape[2], up.shape[2], projection.shape[2]
    observed = observation.shape[1]
    zero = np.float32(0.0)
    room = -(-batch // BLOCK) * BLOCK
    inputs = np.empty((room, embedding.shape[1]), np.float32)
    x = np.empty((room, d), np.float32)
    normed = np.empty((room, d), np.float32)
    preactivations = np.empty((room, gates), np.float32)
    mixed = np.empty((room, channels), np.float32)
    hidden = np.empty((room, width), np.float32)
    for rows in (inputs, x, normed, preactivations, mixed, hidden):
        for b in range(batch, room):  # rows that complete the last block
            for c in range(rows.shape[1]):
                rows[b, c] = zero
    nonzero = np.empty(max(width, channels, d, inputs.shape[1]), np.int64)
    no_resets = np.empty((0, 0), np.bool_)  # the states are reset here, not by the recurrence

    # The token: resets, scaled inputs, one Linear over them, timestep embedding, norm.
    for b in range(batch):
        first = resets[b]
        for layer in range(layers if first else 0):
            if start.shape[0] > 0:
                _copy(start[layer, 0], state[layer, begin + b])
            else:
                for c in range(channels):
                    state[layer, begin + b, c] = zero
        inputs[b, 0] = return_to_go[b] / return_scale
        for c in range(observed):
            inputs[b, 1 + c] = (observation[b, c] - normaliser[0, c]) / normaliser[1, c]
        for c in range(action.shape[1]):
            inputs[b, 1 + observed + c] = zero if first else action[b, c]
        _copy(embedding_bias[0], x[b])
        if time_embedding.shape[0] > 0:
            _add(time_embedding[0, min(timestep[b], time_embedding.shape[1] - 1)], x[b])
    add_product(inputs, embedding[0], x, batch, nonzero)
    if token_norm.shape[0] > 0:
        for b in range(batch):
            _layer_norm(x[b], token_norm, epsilon, x[b])

    for layer in range(layers):
        # Norm and the pre-activations of gates and candidate.
        for b in range(batch):
            _layer_norm(x[b], norms[4 * layer :], epsilon, normed[b])
            _copy(projection_bias[layer], preactivations[b])
        add_product(normed, projection[layer], preactivations, batch, nonzero)
        # The recurrence, a scan over one step.
        p = preactivations[:batch].reshape(batch, 1, gates)
        before = state[layer][begin:end]
        h = next_state[layer][begin:end].reshape(batch, 1, channels)
        if gates == 2 * channels:
            min_gru_forward(p, before, no_resets, h, 0, batch, 0, channels)
        else:
            min_lstm_forward(p, before, no_resets, h, 0, batch, 0, channels)
        # The residual connection around the mixer, through a Linear where the state is wider.
        if output.shape[0] > 0:
            for b in range(batch):
                _copy(h[b, 0], mixed[b])
                _add(output_bias[layer], x[b])
            add_product(mixed, output[layer], x, batch, nonzero)
        else:
            for b in range(batch):
                _add(h[b, 0], x[b])

        # Norm, MLP and its residual connection.
        for b in range(batch):
            _layer_norm(x[b], norms[4 * layer + 2 :], epsilon, normed[b])
            _copy(up_bias[layer], hidden[b])
            _add(down_bias[layer], x[b])
        add_product(normed, up[layer], hidden, batch, nonzero)
        for b in range(batch):
            for c in range(width):
                hidden[b, c] = zero if hidden[b, c] < zero else hidden[b, c]  # a NaN stays
        add_product(hidden, down[layer], x, batch, nonzero)

    # Final norm, head, and the action within its bounds.
    for b in range(batch):
        features = normed[b]
        _layer_norm(x[b], norms[4 * layers :], epsilon, features)
        for c in range(d if head_return.shape[0] > 0 else 0):
            features[c] += inputs[b, 0] * head_return[0, c, 0]
        for c in range(head.shape[1]):
            unit = math.tanh(dot(features, head[0, c]) + head_bias[0, c])
            low, high = bounds[0, c], bounds[1, c]
            next_action[b, c] = (high + low) / 2 + unit * (high - low) / 2
