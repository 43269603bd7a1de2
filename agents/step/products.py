# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False
"""Matrix products for the step kernel: of single rows, or of blocks of rows."""

from numba import njit, types
from numba.extending import intrinsic

from agents.scan.kernels import OPTIONS

BLOCK = 4  # rows that share each weight once it is in a register


@intrinsic
def _use_wide_vectors(context):
    """Lets the calling function use vectors of 512 bits where the CPU has them.

    On Intel's CPUs LLVM prefers 256 bits, with which these products take nearly twice as long.
    llvmlite knows no such attribute of functions, so it is written past its check.
    """

    def generate(context, builder, signature, arguments):
        if isinstance(builder.function.attributes, set):
            set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), generate


@njit(**OPTIONS)
def _add_product_of_row(x, weight, y, nonzero):
    """Adds x @ weight to y, skipping the zeros of x: after a ReLU, half of the weights or more."""
    _use_wide_vectors()
    # The positions of the nonzeros.
    count = 0
    for j in range(x.shape[0]):
        nonzero[count] = j
        count += x[j] != 0  # a NaN counts
    # Four weight rows in each pass over y, then the rest one by one.
    whole = count - count % 4
    for k in range(0, whole, 4):
        j0, j1, j2, j3 = nonzero[k], nonzero[k + 1], nonzero[k + 2], nonzero[k + 3]
        x0, x1, x2, x3 = x[j0], x[j1], x[j2], x[j3]
        w0, w1, w2, w3 = weight[j0], weight[j1], weight[j2], weight[j3]
        for i in range(y.shape[0]):
            y[i] = y[i] + x0 * w0[i] + x1 * w1[i] + x2 * w2[i] + x3 * w3[i]
    for k in range(whole, count):
        x0 = x[nonzero[k]]
        w0 = weight[nonzero[k]]
        for i in range(y.shape[0]):
            y[i] += x0 * w0[i]


@njit(**OPTIONS)
def _add_product_of_block(x, weight, y):
    """Adds x @ weight to y, for BLOCK rows at once, four weight rows in each pass over y."""
    _use_wide_vectors()
    ya, yb, yc, yd = y[0], y[1], y[2], y[3]
    whole = x.shape[1] - x.shape[1] % 4
    for j in range(0, whole, 4):
        w0, w1, w2, w3 = weight[j], weight[j + 1], weight[j + 2], weight[j + 3]
        a0, a1, a2, a3 = x[0, j], x[0, j + 1], x[0, j + 2], x[0, j + 3]
        b0, b1, b2, b3 = x[1, j], x[1, j + 1], x[1, j + 2], x[1, j + 3]
        c0, c1, c2, c3 = x[2, j], x[2, j + 1], x[2, j + 2], x[2, j + 3]
        d0, d1, d2, d3 = x[3, j], x[3, j + 1], x[3, j + 2], x[3, j + 3]
        for i in range(y.shape[1]):
            p, q, r, s = w0[i], w1[i], w2[i], w3[i]
            ya[i] = ya[i] + a0 * p + a1 * q + a2 * r + a3 * s
            yb[i] = yb[i] + b0 * p + b1 * q + b2 * r + b3 * s
            yc[i] = yc[i] + c0 * p + c1 * q + c2 * r + c3 * s
            yd[i] = yd[i] + d0 * p + d1 * q + d2 * r + d3 * s
    for j in range(whole, x.shape[1]):
        for b in range(BLOCK):
            for i in range(y.shape[1]):
                y[b, i] += x[b, j] * weight[j, i]


@njit(**OPTIONS)
def add_product(x, weight, y, rows, nonzero):
    """Adds x[:rows] @ weight (inputs, outputs) to y[:rows].

    x (room, inputs) and y (room, outputs) have rows for whole blocks; those of y from `rows` on are
    overwritten. `nonzero` (inputs,), int64, is scratch memory.
    """
    blocks = rows // BLOCK + (rows % BLOCK > 1)  # half a block is no slower than its rows alone
    for b in range(0, blocks * BLOCK, BLOCK):
        _add_product_of_block(x[b : b + BLOCK], weight, y[b : b + BLOCK])
    for b in range(blocks * BLOCK, rows):
        _add_product_of_row(x[b], weight, y[b], nonzero)
