"""Jets (csrc/kernels.h) of 16 points through a network and back, with the rules of csrc/math/jet.h.

Jets, and adjoints behind them, lie in scratch memory, a tile of 16 rows after the other, its columns side by side:
[16 points][16 rows] each. Functions take the address of column 0 at row 0, ``at``, and so many columns, ``count``.
"""

import triton
import triton.language as tl
from fpfast.kernels.activation import activation, scales
from fpfast.kernels.tiles import NOTHING, ROWS, SAMPLES, opaque, plus_product

SIDE = tl.constexpr(ROWS)
TILE = tl.constexpr(SAMPLES * ROWS)
PART = tl.constexpr(8)  # rows of a tile that are computed at once; all 16 take more registers than there are
TOGETHER = tl.constexpr(2)  # columns that are multiplied at once

# Columns that take part in a pass back: Reach of csrc/math/jet.h.
VALUE, DIRECTIONS, FIRST_ORDER, ALONG_E, RATE_ALONG_E = map(tl.constexpr, range(5))


@triton.jit
def whole(rows):
    """With those that fill the last tile."""
    return (rows + SIDE - 1) // SIDE * SIDE


@triton.jit
def part(at, row, count, N: tl.constexpr = PART):
    """Addresses in column 0 of N rows from ``row`` on, a multiple of it, [SIDE, N]; the next column's are TILE on."""
    row = tl.cast(row, tl.int32)
    start = row // SIDE * count * TILE + tl.multiple_of(row % SIDE, N)
    return at + start + tl.arange(0, SIDE)[:, None] * SIDE + tl.arange(0, N)[None, :]


@triton.jit
def put(to, value, adds):
    """Stores, or adds where ``adds``."""
    tl.store(to, value + tl.load(to, mask=tl.full(to.shape, 1, tl.int1) & adds, other=0.0))


@triton.jit
def clear(at, rows, count):
    count = opaque(count)
    for row in range(0, whole(rows), PART):
        for column in range(count):
            tl.store(part(at, row, count) + column * TILE, tl.zeros((SIDE, PART), tl.float32))


@triton.jit
def _columns(start, last, step):
    """Numbers of columns start, start + step ..., addresses in them, and which are there, [TOGETHER * SIDE, SIDE]."""
    lane = tl.arange(0, TOGETHER * SIDE)
    column = start + lane // SIDE * step
    places = (column * TILE + lane % SIDE * SIDE)[:, None] + tl.arange(0, SIDE)[None, :]
    return column[:, None], places, (column < last)[:, None]


@triton.jit
def multiply(at, matrix, vectors, out, source, other, rows, columns, bias, count, first, last, step):
    """out = W source + bias + other, some columns; W comes as [row tile][column tile][SIDE columns][SIDE rows]."""
    count = opaque(count)
    square = tl.arange(0, SIDE)[:, None] * SIDE + tl.arange(0, SIDE)[None, :]
    for start in range(first, last, step * TOGETHER):
        column, places, there = _columns(start, last, step)
        for row in range(0, rows, SIDE):
            sums = tl.zeros((TOGETHER * SIDE, SIDE), tl.float32)
            for k in range(0, columns, SIDE):
                values = tl.load(at + (source + k) * count * SIDE + places, mask=there, other=0.0)
                w = tl.load(matrix + (row * whole(columns) + k * SIDE) + square)
                sums = plus_product(sums, values, w)
            if bias != NOTHING:
                shift = tl.load(vectors + bias + row + tl.arange(0, SIDE))[None, :]
                sums += tl.where(column == 0, shift, 0.0)
            if other != NOTHING:
                sums += tl.load(at + (other + row) * count * SIDE + places, mask=there, other=0.0)
            tl.store(at + (out + row) * count * SIDE + places, sums, mask=there)


@triton.jit
def copy(at, vectors, factors, out, source, other, rows, bias, count, first, last, step, SCALED: tl.constexpr):
    """out = factor * source + bias + other, some columns."""
    count = opaque(count)
    for row in range(0, whole(rows), PART):
        for column in range(first, last, step):
            value = tl.load(part(at + source * count * SIDE, row, count) + column * TILE)
            if SCALED:
                value *= tl.load(factors + row + tl.arange(0, PART))[None, :]
            if (bias != NOTHING) & (column == 0):
                value += tl.load(vectors + bias + row + tl.arange(0, PART))[None, :]
            if other != NOTHING:
                value += tl.load(part(at + other * count * SIDE, row, count) + column * TILE)
            tl.store(part(at + out * count * SIDE, row, count) + column * TILE, value)


# ----------------------------------------------------------------------------------------------------- activations


@triton.jit
def _first_order(z, h, h1, h2, curvature, directions):
    """The columns along directions, and the rate."""
    rate = (1 + directions) * TILE
    square = tl.zeros((SIDE, PART), tl.float32)
    for i in range(1, directions + 1):
        zi = tl.load(z + i * TILE)
        square = tl.fma(zi, zi, square)
        tl.store(h + i * TILE, h1 * zi)
    tl.store(h + rate, tl.fma(h1, tl.load(z + rate), curvature * h2 * square * -1.0))


@triton.jit
def _along_e(z, h, h1, h2, h3, curvature, directions, RATES: tl.constexpr):
    """The columns along e, with that of the rate or without it."""
    along, mixed = (2 + directions) * TILE, (2 + directions) * TILE  # the mixed ones are counted from 1
    ze = tl.load(z + along)
    h2_ze = h2 * ze
    tl.store(h + along, h1 * ze)
    square, product = tl.zeros((SIDE, PART), tl.float32), tl.zeros((SIDE, PART), tl.float32)
    for i in range(1, directions + 1):
        zi, zie = tl.load(z + i * TILE), tl.load(z + mixed + i * TILE)
        if RATES:
            square = tl.fma(zi, zi, square)
            product = tl.fma(zi, zie, product)
        tl.store(h + mixed + i * TILE, tl.fma(h1, zie, h2_ze * zi))
    if RATES:
        last = mixed + (1 + directions) * TILE
        bend = tl.fma(h2 + h2, product, h3 * ze * square)
        flow = tl.fma(h1, tl.load(z + last), h2_ze * tl.load(z + (1 + directions) * TILE))
        tl.store(h + last, flow - curvature * bend)


@triton.jit
def activate(at, out, source, rows, kind, parameter, curvature, directions, count, first, last, RATES: tl.constexpr,
             DUAL: tl.constexpr):  # fmt: skip
    """Columns first ... last - 1 of out = h(source); those along e, if any, with their rate or without it."""
    count, directions = opaque(count), opaque(directions)
    argument, result = scales(kind, parameter)
    for row in range(0, whole(rows), PART):
        z, h = part(at + source * count * SIDE, row, count), part(at + out * count * SIDE, row, count)
        value, h1, h2, h3, _ = activation(kind, argument * tl.load(z), parameter)
        if first == 0:
            tl.store(h, result * value)
        if (first <= 1) & (last > 1):
            _first_order(z, h, h1, h2, curvature, directions)
        if DUAL and last > directions + 2:
            _along_e(z, h, h1, h2, h3, curvature, directions, RATES)


@triton.jit
def _back(z, u, to, adds, h1, h2, h3, h4, curvature, directions, REACH: tl.constexpr):
    """The adjoint of z from that of h, ``u``, which may be the same place."""
    rates: tl.constexpr = REACH >= FIRST_ORDER
    dual: tl.constexpr = REACH >= ALONG_E
    dual_rates: tl.constexpr = REACH == RATE_ALONG_E
    rate, along, mixed = (1 + directions) * TILE, (2 + directions) * TILE, (2 + directions) * TILE
    last = mixed + (1 + directions) * TILE
    zero = tl.zeros(z.shape, tl.float32)
    of_h1, square, product, mixed_sum = zero, zero, zero, zero
    if REACH >= DIRECTIONS:
        for i in range(1, directions + 1):
            zi = tl.load(z + i * TILE)
            of_h1 = tl.fma(tl.load(u + i * TILE), zi, of_h1)
            if rates:
                square = tl.fma(zi, zi, square)
            if dual:
                uie, zie = tl.load(u + mixed + i * TILE), tl.load(z + mixed + i * TILE)
                of_h1 = tl.fma(uie, zie, of_h1)
                mixed_sum = tl.fma(uie, zi, mixed_sum)
                if dual_rates:
                    product = tl.fma(zi, zie, product)
    of_h2, of_h3, bend, bend_e, ue, ze, ur, zr, ure = zero, zero, zero, zero, zero, zero, zero, zero, zero
    if rates:
        ur, zr = tl.load(u + rate), tl.load(z + rate)
        of_h1 = tl.fma(ur, zr, of_h1)
        bend = curvature * ur
        of_h2 = bend * square * -1.0
    if dual:
        ue, ze = tl.load(u + along), tl.load(z + along)
        of_h1 = tl.fma(ue, ze, of_h1)
        of_h2 = tl.fma(ze, mixed_sum, of_h2)
    if dual_rates:
        ure = tl.load(u + last)
        bend_e = curvature * ure
        of_h1 = tl.fma(ure, tl.load(z + last), of_h1)
        of_h2 = of_h2 + ure * ze * zr - (bend_e + bend_e) * product
        of_h3 = bend_e * ze * square * -1.0
    of_z = tl.fma(tl.load(u), h1, of_h1 * h2)
    if rates:
        of_z = tl.fma(of_h2, h3, of_z)
    if dual_rates:
        of_z = tl.fma(of_h3, h4, of_z)
    put(to, of_z, adds)
    if REACH >= DIRECTIONS:
        for i in range(1, directions + 1):
            zi = tl.load(z + i * TILE)
            of_zi = tl.load(u + i * TILE) * h1
            if rates:
                of_zi -= (bend + bend) * h2 * zi
            if dual:
                uie = tl.load(u + mixed + i * TILE)
                of_zi = tl.fma(uie * h2, ze, of_zi)
                of_zie = uie * h1
                if dual_rates:
                    of_zi -= (bend_e + bend_e) * tl.fma(h2, tl.load(z + mixed + i * TILE), h3 * ze * zi)
                    of_zie -= (bend_e + bend_e) * h2 * zi
                put(to + mixed + i * TILE, of_zie, adds)
            put(to + i * TILE, of_zi, adds)
    if dual_rates:
        put(to + rate, tl.fma(ure * h2, ze, ur * h1), adds)
        put(to + along, tl.fma(ue, h1, h2 * mixed_sum) + ure * h2 * zr - bend_e * h3 * square, adds)
        put(to + last, ure * h1, adds)
    else:
        if rates:
            put(to + rate, ur * h1, adds)
        if dual:
            put(to + along, tl.fma(ue, h1, h2 * mixed_sum), adds)


@triton.jit
def activate_back(at, adjoints, to, of, source, rows, adds, kind, parameter, curvature, directions, count, parameters,
                  OF_X: tl.constexpr, OF_PARAMETERS: tl.constexpr, N: tl.constexpr):  # fmt: skip
    """Adjoints ``to`` of h's argument from those of h, ``of``: for ``parameters``, or else for x; N rows at once."""
    count, directions = opaque(count), opaque(directions)
    argument, _of_value = scales(kind, parameter)
    for row in range(0, whole(rows), N):
        z = part(at + source * count * SIDE, row, count, N)
        _value, h1, h2, h3, h4 = activation(kind, argument * tl.load(z), parameter)
        u, out = part(adjoints + of * count * SIDE, row, count, N), part(adjoints + to * count * SIDE, row, count, N)
        if parameters:
            _back(z, u, out, adds, h1, h2, h3, h4, curvature, directions, OF_PARAMETERS)
        else:
            _back(z, u, out, adds, h1, h2, h3, h4, curvature, directions, OF_X)


# ------------------------------------------------------------------------------------------------------- gradients


@triton.jit
def outer(at, adjoints, sums, of, source, rows, columns, adds, count, last, step):
    """sums (+)= adjoint source^T over the tile's points and some columns: [row tile][column tile][SIDE][SIDE]."""
    count = opaque(count)
    square = tl.arange(0, SIDE)[:, None] * SIDE + tl.arange(0, SIDE)[None, :]
    for row in range(0, rows, SIDE):
        for k in range(0, columns, SIDE):
            total = tl.zeros((SIDE, SIDE), tl.float32)
            for start in range(0, last, step * TOGETHER):
                _, places, there = _columns(start, last, step)
                u = tl.load(adjoints + (of + row) * count * SIDE + places, mask=there, other=0.0)
                values = tl.load(at + (source + k) * count * SIDE + places, mask=there, other=0.0)
                total = plus_product(total, tl.trans(u), values)
            put(sums + (row * whole(columns) + k * SIDE) + square, total, adds)


@triton.jit
def row_sums(at, adjoints, sums, of, source, rows, adds, count, last):
    """sums (+)= adjoint over the tile's points and the first columns, times ``source`` if it is not NOTHING."""
    count = opaque(count)
    for row in range(0, whole(rows), PART):
        total = tl.zeros((SIDE, PART), tl.float32)
        for column in range(last):
            value = tl.load(part(adjoints + of * count * SIDE, row, count) + column * TILE)
            if source != NOTHING:
                value *= tl.load(part(at + source * count * SIDE, row, count) + column * TILE)
            total += value
        put(sums + row + tl.arange(0, PART), tl.sum(total, 0), adds)
