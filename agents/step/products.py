# mypy: disallow-untyped-defs=False, disallow-untyped-decorators=False
"""Matrix products for the step kernel: one row at a time, or blocks of rows.

For a block of rows, all sums of a tile of the result are held in vector registers while the rows
pass (Goto and van de Geijn 2008, doi:10.1145/1356052.1356053). A compiler does not find that form
of the loop by itself, so it is written here in LLVM's own terms.
"""

import itertools

from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from agents.scan.kernels import _OPTIONS

BLOCK = 4  # rows that share each weight once it is in a register


def _shape_of_tile():
    """Floats in a vector of this CPU, and vectors in a row of a tile.

    BLOCK rows of sums, one row of weights and one input fit the 32 registers of AVX-512 and of
    Arm, or the 16 of AVX2.
    """
    features = binding.get_host_cpu_features()
    if features.get("avx512f"):
        return 16, 4
    if features.get("avx2"):
        return 8, 2
    return 4, 4 if features.get("neon") else 2


_FLOATS, _VECTORS = _shape_of_tile()
_COLUMNS = _FLOATS * _VECTORS  # of a tile


def _use_wide_vectors(function):
    """Lets an LLVM function use vectors of 512 bits where the CPU has them.

    LLVM keeps to 256 bits on Intel's, for the sake of programs that seldom need more; a product
    takes nearly twice as long then. llvmlite has no name for the attribute that says so.
    """
    if isinstance(function.attributes, set):
        set.add(function.attributes, '"prefer-vector-width"="512"')


@intrinsic
def _wide(context):
    def generate(context, builder, signature, arguments):
        _use_wide_vectors(builder.function)
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _add_tile(context, x, weight, y):
    """Adds x (BLOCK, inputs), at least one, @ weight to y, in their first _COLUMNS columns."""

    def generate(context, builder, signature, arguments):
        _use_wide_vectors(builder.function)
        integer, scalar, short = ir.IntType(64), ir.FloatType(), ir.IntType(32)
        vector = ir.VectorType(scalar, _FLOATS)
        nothing = ir.Constant(vector, ir.Undefined)
        arrays = [
            context.make_array(kind)(context, builder, array)
            for kind, array in zip(signature.args, arguments, strict=True)
        ]
        inputs = cgutils.unpack_tuple(builder, arrays[0].shape, 2)[1]
        x, weight, y = (builder.ptrtoint(array.data, integer) for array in arrays)
        row_bytes = [cgutils.unpack_tuple(builder, array.strides, 2)[0] for array in arrays]

        def number(value):
            return ir.Constant(integer, value)

        def address(start, row, stride, offset):
            return builder.add(builder.add(start, builder.mul(number(row), stride)), offset)

        def load(where, kind):
            value = builder.load(builder.inttoptr(where, kind.as_pointer()))
            value.align = 4
            return value

        def repeated(value):
            first = builder.insert_element(nothing, value, ir.Constant(short, 0))
            lanes = ir.Constant(ir.VectorType(short, _FLOATS), [0] * _FLOATS)
            return builder.shuffle_vector(first, nothing, lanes)

        parts = [number(4 * _FLOATS * part) for part in range(_VECTORS)]  # in bytes of a row
        results = [
            address(y, row, row_bytes[2], part)
            for row, part in itertools.product(range(BLOCK), parts)
        ]
        before, loop, after = (
            builder.block,
            builder.append_basic_block("inputs"),
            builder.append_basic_block("done"),
        )
        starts = [number(0), weight, *(load(result, vector) for result in results)]
        builder.branch(loop)

        builder.position_at_end(loop)
        carried = [builder.phi(value.type) for value in starts]
        position, weights, *sums = carried
        factors = [load(builder.add(weights, part), vector) for part in parts]
        values = [
            repeated(load(address(x, row, row_bytes[0], builder.mul(position, number(4))), scalar))
            for row in range(BLOCK)
        ]
        products = [
            builder.fmul(value, factor, flags=["contract"])
            for value, factor in itertools.product(values, factors)
        ]
        following = builder.add(position, number(1))
        nexts = [following, builder.add(weights, row_bytes[1])] + [
            builder.fadd(total, product, flags=["contract"])
            for total, product in zip(sums, products, strict=True)
        ]
        for phi, start, after_one in zip(carried, starts, nexts, strict=True):
            phi.add_incoming(start, before)
            phi.add_incoming(after_one, loop)
        builder.cbranch(builder.icmp_signed("<", following, inputs), loop, after)

        builder.position_at_end(after)
        for result, total in zip(results, nexts[2:], strict=True):
            builder.store(total, builder.inttoptr(result, vector.as_pointer())).align = 4
        return context.get_dummy_value()

    return types.void(x, weight, y), generate


@njit(**_OPTIONS)
def _add_product_of_row(x, weight, y, nonzero):
    """Adds x @ weight to y, skipping the zeros of x: behind a ReLU, half of the weights or more."""
    _wide()
    count = 0
    for j in range(x.shape[0]):
        nonzero[count] = j
        count += x[j] != 0  # a NaN counts
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


@njit(**_OPTIONS)
def _add_product_of_block(x, weight, y):
    """Adds x @ weight to y, for BLOCK rows at once and any number of columns."""
    _wide()
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


@njit(**_OPTIONS)
def add_product(x, weight, y, rows, nonzero):
    """Adds x[:rows] @ weight to y[:rows].

    Args:
        x: (room, inputs), float32; rows to spare up to a whole block.
        weight: (inputs, outputs), float32.
        y: (room, outputs), float32; what the rows to spare hold is overwritten.
        rows: How many rows to compute.
        nonzero: (inputs,), int64, scratch.
    """
    if weight.shape[0] == 0:  # an MLP without width; a tile takes one input at least
        return
    blocks = rows // BLOCK + (rows % BLOCK > 1)  # half a block is no slower than its rows alone
    if weight.shape[1] % _COLUMNS == 0:
        for i in range(0, weight.shape[1], _COLUMNS):  # a tile's weights stay in the first cache
            for b in range(0, blocks * BLOCK, BLOCK):
                _add_tile(x[b : b + BLOCK], weight[:, i:], y[b : b + BLOCK, i:])
    else:  # tiles and a rest would be slower
        for b in range(0, blocks * BLOCK, BLOCK):
            _add_product_of_block(x[b : b + BLOCK], weight, y[b : b + BLOCK])
    for b in range(blocks * BLOCK, rows):
        _add_product_of_row(x[b], weight, y[b], nonzero)
