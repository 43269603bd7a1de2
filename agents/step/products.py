# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False
"""Matrix products for the step kernel: of single rows, or of blocks of rows.

A block adds its product tile by tile: the sums of a tile stay in vector registers while the inputs
pass (Goto and van de Geijn 2008, doi 10.1145/1356052.1356053). LLVM compiles plain loops to that
form if the tile's width is a constant and if it knows that no two arguments overlap.
"""

from llvmlite import binding, ir
from numba import njit, types
from numba.extending import intrinsic

from agents.scan.kernels import OPTIONS

BLOCK = 4  # rows that share each weight once it is in a register


def _columns_of_tile() -> int:
    """Returns how many make a tile's sums fill half of the CPU's vector registers."""
    try:
        return 64 if binding.get_host_cpu_features().get("avx512f") else 16
    except RuntimeError:  # llvmlite does not know this processor: no kernel is compiled either
        return 16


_COLUMNS = _columns_of_tile()


@intrinsic
def _vectorise_freely(context):
    """Tells LLVM what it needs to vectorise the calling function well.

    No two of its array arguments overlap, so no loop has to check that; and it may use vectors of
    512 bits, where LLVM prefers 256 on Intel's CPUs, with which these products take nearly twice as
    long. llvmlite knows no such attribute of functions, so it is written past its check.
    """

    def generate(context, builder, signature, arguments):
        for argument in builder.function.args:
            if argument.type == ir.FloatType().as_pointer():
                argument.add_attribute("noalias")
        if isinstance(builder.function.attributes, set):
            set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), generate


@njit(**OPTIONS)
def _add_product_of_row(x, weight, y, nonzero):
    """Adds x @ weight to y, skipping the zeros of x: after a ReLU, half of the weights or more."""
    _vectorise_freely()
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


# Both are inlined, so that constant `columns` are a constant in the loop over them.
@njit(forceinline=True, **OPTIONS)
def _add_rows(x0, x1, x2, x3, weight, y0, y1, y2, y3, first, columns):
    """Adds rows x0 to x3 @ weight[:, first : first + columns] to the rows y0 to y3."""
    _vectorise_freely()
    for j in range(x0.shape[0]):
        a, b, c, d = x0[j], x1[j], x2[j], x3[j]
        w = weight[j, first:]
        for i in range(columns):
            y0[i] += a * w[i]
            y1[i] += b * w[i]
            y2[i] += c * w[i]
            y3[i] += d * w[i]


@njit(forceinline=True, **OPTIONS)
def _add_tile(x, weight, y, row, first, columns):
    """Adds x @ weight to y in BLOCK rows from `row` on and in `columns` columns from `first` on."""
    x0, x1, x2, x3 = x[row], x[row + 1], x[row + 2], x[row + 3]
    y0, y1, y2, y3 = y[row, first:], y[row + 1, first:], y[row + 2, first:], y[row + 3, first:]
    _add_rows(x0, x1, x2, x3, weight, y0, y1, y2, y3, first, columns)


@njit(**OPTIONS)
def add_product(x, weight, y, rows, nonzero):
    """Adds x[:rows] @ weight (inputs, outputs) to y[:rows].

    x (room, inputs) and y (room, outputs) have rows for whole blocks; those of y from `rows` on are
    overwritten. `nonzero` (inputs,), int64, is scratch memory.
    """
    blocks = rows // BLOCK + (rows % BLOCK > 1)  # half a block is no slower than its rows alone
    outputs = weight.shape[1]
    rest = outputs % _COLUMNS
    for first in range(0, outputs - rest, _COLUMNS):
        for row in range(0, blocks * BLOCK, BLOCK):
            _add_tile(x, weight, y, row, first, _COLUMNS)
    for row in range(0, blocks * BLOCK if rest else 0, BLOCK):
        _add_tile(x, weight, y, row, outputs - rest, rest)
    for row in range(blocks * BLOCK, rows):
        _add_product_of_row(x[row], weight, y[row], nonzero)
