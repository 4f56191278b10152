"""Fokker-Planck residuals of recognised networks and gradients of their losses: ``csrc/cuda/residual.cu`` in Triton.

A program, one warp, takes 16 points forwards and back, then others, and adds to sums of its own; those of all programs
are added at last, in an order of their own and in float64. So bits depend on the number of programs alone, which is
that of the points, or of the memory that they may take.
"""

import torch
import triton
import triton.language as tl
from fpfast.kernels.groups import NVIDIA, on_device
from fpfast.kernels.jets import (
    ALONG_E,
    DIRECTIONS,
    FIRST_ORDER,
    PART,
    RATE_ALONG_E,
    SIDE,
    TILE,
    VALUE,
    activate,
    activate_back,
    clear,
    copy,
    multiply,
    outer,
    part,
    row_sums,
    whole,
)
from fpfast.kernels.tiles import NOTHING, ROWS, SAMPLES, WARPS, field, opaque
from torch import Tensor

from fpfast.errors import bad
from fpfast.packing import SCRATCH, Tiles

PACKING = Tiles()
PROGRAMS = 1024  # about eight for each multiprocessor of a large GPU
MOST = 2**31  # numbers of a program's: they are counted in 32 bits
# Three warps for each scheduler of a multiprocessor; left to itself NVIDIA's assembler spills, for more.
REGISTERS = {"maxnreg": 168} if NVIDIA.value else {}
FOLDED, LANES = 16, 64  # programs that are added up side by side, and numbers of each, by a program of fold_kernel
FLAGS = ("value", "upstream", "loss", "weight", "gradient", "feature_adjoints", "probes")
NUMBERS = [
    *("has", "tiles", "samples", "dimension", "directions", "count", "instructions", "jets", "adjoints"),
    *("output", "outputs", "output_adjoint", "features", "feature_count", "features_adjoint", "sum_count"),
]
TENSORS = [  # which come as parts of others: an address need not be a multiple of 16
    *("x", "feature_values", "feature_rates", "probes", "coef", "value", "upstream", "weight"),
    *("feature_adjoints", "rate_adjoints"),
]

# What is there, of the tensors that may not be.
HAS_VALUE, HAS_UPSTREAM, HAS_LOSS, HAS_WEIGHT, HAS_GRADIENT, HAS_FEATURES, HAS_PROBES = (
    tl.constexpr(1 << bit) for bit in range(len(FLAGS))
)
LOG_DENSITY, PROBES, POTENTIAL, SCORE = map(tl.constexpr, range(4))  # forms, as csrc/kernels.h has them
LINEAR, FEATURE, ACTIVATE, ADD, SCALE = map(tl.constexpr, range(5))  # and operations
FIELDS = tl.constexpr(18)  # of an instruction


# --------------------------------------------------------------------------------------------------------- the network


@triton.jit
def _forward(at, program, weights, instructions, curvature, directions, count, first, last, FORM: tl.constexpr):
    """Columns first ... last - 1 of the network's jets."""
    rate = 1 + directions
    # Of the value's and the rate's columns those that are asked for.
    first_of_time = tl.where(first == 0, 0, rate)
    last_of_time = tl.where((last > rate) & (first <= rate), rate + 1, tl.where(first == 0, 1, 0))
    for number in range(instructions):
        line = program + number * FIELDS
        op, rows = field(line, 0), field(line, 1)
        out, a, b, bias = field(line, 3), field(line, 4), field(line, 5), field(line, 13)
        place = tl.load(line + 11)
        numbers = weights + tl.multiple_of(place, SIDE)
        if op == ACTIVATE:
            activate(at, out, a, rows, field(line, 17), tl.load(numbers), curvature, directions, count, first, last,
                     FORM == POTENTIAL, FORM >= POTENTIAL)  # fmt: skip
        elif op == SCALE:
            copy(at, weights, numbers, out, a, NOTHING, rows, NOTHING, count, first, last, 1, True)
        else:
            begin, end, step, other = first, last, 1, b
            if op == FEATURE:
                begin, end, step, other = first_of_time, last_of_time, rate, out
            if (op == ADD) | (place == NOTHING):
                copy(at, weights, numbers, out, a, other, rows, bias, count, begin, end, step, False)
            else:
                multiply(at, numbers, weights, out, a, other, rows, field(line, 2), bias, count, begin, end, step)
        tl.debug_barrier()


@triton.jit
def _gradients(at, adjoints, sums, line, adds, directions, count):
    """Adds the tile's to the program's, of one instruction."""
    op, rows, columns = field(line, 0), field(line, 1), field(line, 2)
    a, out, gradient, of_bias = field(line, 4), field(line, 6), tl.load(line + 14), tl.load(line + 15)
    if of_bias != NOTHING:
        row_sums(at, adjoints, sums + tl.multiple_of(of_bias, SIDE), out, NOTHING, rows, adds, count, 1)
    if gradient != NOTHING:
        own = sums + tl.multiple_of(gradient, SIDE)
        if op == SCALE:
            row_sums(at, adjoints, own, out, a, rows, adds, count, count)
        else:
            last = tl.where(op == FEATURE, directions + 2, count)
            outer(
                at, adjoints, own, out, a, rows, columns, adds, count, last, tl.where(op == FEATURE, directions + 1, 1)
            )


@triton.jit
def _backward(at, adjoints, sums, program, weights, instructions, adds, curvature, dimension, directions, count, last,
              parameters, FORM: tl.constexpr, OF_X: tl.constexpr, OF_PARAMETERS: tl.constexpr):  # fmt: skip
    """Adjoints of columns 0 ... last - 1: of parameters, or else of x."""
    for number in range(instructions):
        line = program + (instructions - 1 - number) * FIELDS
        op, rows = field(line, 0), field(line, 1)
        out, a, b = field(line, 6), field(line, 7), field(line, 8)
        if parameters:
            _gradients(at, adjoints, sums, line, adds, directions, count)
            tl.debug_barrier()  # an adjoint's place may be its operand's
            a = tl.where(a < dimension, NOTHING, a)  # x is the first
            b = tl.where(b < dimension, NOTHING, b)
        else:
            a = tl.where(op == FEATURE, NOTHING, a)
        if (b != NOTHING) & (field(line, 5) != NOTHING):
            other = tl.where(field(line, 10) != 0, b, NOTHING)
            copy(adjoints, weights, weights, b, out, other, rows, NOTHING, count, 0, last, 1, False)
        if a != NOTHING:
            place = tl.load(line + 11)
            other = tl.where(field(line, 9) != 0, a, NOTHING)
            if op == ACTIVATE:
                activate_back(at, adjoints, a, out, field(line, 4), rows, other != NOTHING, field(line, 17),
                              tl.load(weights + place), curvature, directions, count, parameters, OF_X, OF_PARAMETERS,
                              PART // 2 if FORM == POTENTIAL else PART)  # fmt: skip
            elif op == SCALE:
                factors = weights + tl.multiple_of(place, SIDE)
                copy(adjoints, weights, factors, a, out, other, rows, NOTHING, count, 0, last, 1, True)
            else:
                end, step = last, 1
                if op == FEATURE:
                    end, step = directions + 2, directions + 1
                if (op == ADD) | (place == NOTHING):
                    copy(adjoints, weights, weights, a, out, other, rows, NOTHING, count, 0, end, step, False)
                else:
                    transposed = weights + tl.multiple_of(tl.load(line + 12), SIDE)
                    multiply(adjoints, transposed, weights, a, out, other, field(line, 2), rows, NOTHING, count, 0, end,
                             step)  # fmt: skip
        tl.debug_barrier()


# ------------------------------------------------------------------------------------------------------------ the forms
#
# log_density         R, all in the second pass: value, gradient and Laplacian from one way forwards.
# log_density_probes  With the drift w = a x - g^2 s held fixed, M phi + g^2/2 |s|^2 + a d has R's value and R's
#                     gradient by parameters. The first pass makes s.
# potential           eps = grad R, and the gradient of e.eps by parameters is that of the derivative of R along e.
# score               eps = d_t s - grad U, U = g^2/2 (div s + |s|^2) - a x.s, with sums of v.J v for div s.


@triton.jit
def _points(tile, samples):
    """The tile's first point, how many there are, and which of 16 are read: where there is no point the last one."""
    first, lane = tl.cast(opaque(tile), tl.int64) * SIDE, opaque(tl.arange(0, SIDE))
    there = tl.minimum(samples - first, SIDE).to(tl.int32)
    return first, there, tl.minimum(lane, there - 1)


@triton.jit
def _gather(data, first, lane, columns, row):
    """Rows ``row`` and following of an array [samples, columns] at the points, zeros where there is none."""
    element = row + opaque(tl.arange(0, PART))[None, :]
    return tl.load(data + first * columns + (lane[:, None] * columns + element), mask=element < columns, other=0.0)


@triton.jit
def _scatter(data, value, first, there, columns, row):
    lane, element = opaque(tl.arange(0, SIDE))[:, None], row + opaque(tl.arange(0, PART))[None, :]
    tl.store(data + first * columns + (lane * columns + element), value, mask=(lane < there) & (element < columns))


@triton.jit
def _within(value, row, rows):
    """Zeros in place of rows that do not exist."""
    return tl.where(row + tl.arange(0, PART)[None, :] < rows, value, 0.0)


@triton.jit
def _coefficient(coef, which, samples, first, lane):
    return tl.load(coef + which * samples + first + lane)[:, None]


@triton.jit
def _load_points(at, x, probes, feature_values, feature_rates, coef, has, features, feature_count, tile, samples,
                 dimension, directions, count, FORM: tl.constexpr):  # fmt: skip
    count, directions, has = opaque(count), opaque(directions), opaque(has)
    first, _, lane = _points(tile, samples)
    a = _coefficient(coef, 0, samples, first, lane)
    clear(at, dimension, count)
    tl.debug_barrier()
    for row in range(0, whole(dimension), PART):
        here, values = part(at, row, count), _gather(x, first, lane, dimension, row)
        tl.store(here, values)
        if FORM != SCORE:
            tl.store(here + (1 + directions) * TILE, a * values)
        for i in range(directions):
            along = tl.where(row + tl.arange(0, PART)[None, :] == i, 1.0, 0.0) + tl.zeros((SIDE, PART), tl.float32)
            if has & HAS_PROBES != 0:
                along = _gather(probes + i * samples * dimension, first, lane, dimension, row)
            tl.store(here + (1 + i) * TILE, along)
    if feature_count > 0:
        behind = at + opaque(features) * count * SIDE
        clear(behind, feature_count, count)
        tl.debug_barrier()
        for row in range(0, whole(feature_count), PART):
            here = part(behind, row, count)
            tl.store(here, _gather(feature_values, first, lane, feature_count, row))
            tl.store(here + (1 + directions) * TILE, _gather(feature_rates, first, lane, feature_count, row))


@triton.jit
def _scatter_features(adjoints, feature_adjoints, rate_adjoints, features_adjoint, feature_count, tile, samples,
                      directions, count):  # fmt: skip
    count, directions = opaque(count), opaque(directions)
    first, there, _ = _points(tile, samples)
    for row in range(0, whole(feature_count), PART):
        of_features = part(adjoints + opaque(features_adjoint) * count * SIDE, row, count)
        _scatter(feature_adjoints, tl.load(of_features), first, there, feature_count, row)
        of_rates = tl.load(of_features + (1 + directions) * TILE)
        _scatter(rate_adjoints, of_rates, first, there, feature_count, row)


@triton.jit
def _finish(residual, value, upstream, weight, has, scale, first, there, lane, columns, row, loss):
    """Writes rows of a residual. Returns what a loss of it asks of its adjoint, and the loss, added to."""
    if has & HAS_VALUE != 0:
        _scatter(value, residual, first, there, columns, row)
    exists = tl.arange(0, SIDE)[:, None] < there
    asked = tl.zeros((SIDE, PART), tl.float32)
    if has & HAS_UPSTREAM != 0:
        asked = tl.where(exists, _gather(upstream, first, lane, columns, row), 0.0)
    elif has & HAS_LOSS != 0:
        factor = tl.where(exists, scale, 0.0)
        if has & HAS_WEIGHT != 0:
            factor *= tl.load(weight + first + lane)[:, None]
        weighted = factor * residual
        loss += tl.sum(tl.sum(weighted.to(tl.float64) * residual.to(tl.float64), 1), 0)
        asked = weighted + weighted
    return asked, loss


@triton.jit
def _score(at, y, coef, a, gamma, samples, first, lane, row, count):
    """s = p x + q y, and the gradient by s of U, but for div s."""
    p, q = _coefficient(coef, 2, samples, first, lane), _coefficient(coef, 3, samples, first, lane)
    x = tl.load(part(at, row, count))
    s = tl.fma(p + tl.zeros((SIDE, PART), tl.float32), x, q * y)
    return s, 2.0 * gamma * s - a * x


@triton.jit
def _seed_residual(at, adjoints, coef, share, tile, samples, dimension, directions, output, outputs, output_adjoint,
                   count, FORM: tl.constexpr):  # fmt: skip
    """Adjoints of the output with which the first pass back begins; they are zeros before."""
    count, directions = opaque(count), opaque(directions)
    first, _there, lane = _points(tile, samples)
    a, gamma = _coefficient(coef, 0, samples, first, lane), _coefficient(coef, 1, samples, first, lane)
    outputs_at, seeds = at + opaque(output) * count * SIDE, adjoints + opaque(output_adjoint) * count * SIDE
    one = _within(tl.full((SIDE, PART), 1.0, tl.float32), 0, 1)
    seed, y = part(seeds, 0, count), part(outputs_at, 0, count)
    if FORM == PROBES:
        tl.store(seed, one)
    if FORM == POTENTIAL:
        for i in range(1, directions + 1):
            tl.store(seed + i * TILE, -2.0 * gamma * _within(tl.load(y + i * TILE), 0, outputs))
        tl.store(seed + (1 + directions) * TILE, one)
    if FORM == SCORE:
        for row in range(0, whole(dimension), PART):
            seed, x = part(seeds, row, count), part(at, row, count)
            y0 = _within(tl.load(part(outputs_at, row, count)), row, outputs)
            q = _coefficient(coef, 3, samples, first, lane)
            _s, by_score = _score(at, y0, coef, a, gamma, samples, first, lane, row, count)
            tl.store(seed, q * by_score)
            for i in range(1, directions + 1):
                tl.store(seed + i * TILE, share * gamma * q * tl.load(x + i * TILE))


@triton.jit
def _finish_residual(at, adjoints, coef, value, upstream, weight, has, scale, tile, samples, dimension, directions,
                     output, outputs, count, square, loss, FORM: tl.constexpr):  # fmt: skip
    """What the first pass has found, and what the second begins with. Returns |s|^2 of probes, and the loss."""
    count, directions, has = opaque(count), opaque(directions), opaque(has)
    first, there, lane = _points(tile, samples)
    a, gamma = _coefficient(coef, 0, samples, first, lane), _coefficient(coef, 1, samples, first, lane)
    outputs_at = at + opaque(output) * count * SIDE
    rate, along = (1 + directions) * TILE, (2 + directions) * TILE
    for row in range(0, whole(dimension), PART):
        x, of_x = part(at, row, count), part(adjoints, row, count)
        if FORM == PROBES:
            s = _within(tl.load(of_x), row, dimension)
            square += tl.sum(s * s, 1)[:, None]
            tl.store(x + rate, a * tl.load(x) - 2.0 * gamma * s)
        if FORM == POTENTIAL:
            found = _within(tl.load(of_x) + a * tl.load(of_x + rate), row, dimension)
            e, loss = _finish(found, value, upstream, weight, has, scale, first, there, lane, dimension, row, loss)
            tl.store(x + along, e)
            tl.store(x + along + (1 + directions) * TILE, a * e)
        if FORM == SCORE:
            y = part(outputs_at, row, count)
            y0, y_rate = _within(tl.load(y), row, outputs), _within(tl.load(y + rate), row, outputs)
            s, by_score = _score(at, y0, coef, a, gamma, samples, first, lane, row, count)
            p, q = _coefficient(coef, 2, samples, first, lane), _coefficient(coef, 3, samples, first, lane)
            p_rate, q_rate = _coefficient(coef, 4, samples, first, lane), _coefficient(coef, 5, samples, first, lane)
            gradient = tl.load(of_x) + p * by_score - a * s
            found = _within(p_rate * tl.load(x) + q_rate * y0 + q * y_rate - gradient, row, dimension)
            e, loss = _finish(found, value, upstream, weight, has, scale, first, there, lane, dimension, row, loss)
            tl.store(x + along, e)
    return square, loss


@triton.jit
def _seed_gradients(at, adjoints, coef, share, value, upstream, weight, has, scale, tile, samples, dimension,
                    directions, output, outputs, output_adjoint, count, square, loss, FORM: tl.constexpr):  # fmt: skip
    """The same of the second pass, which makes the residuals of log-densities. Returns the loss."""
    count, directions, has = opaque(count), opaque(directions), opaque(has)
    first, there, lane = _points(tile, samples)
    a, gamma = _coefficient(coef, 0, samples, first, lane), _coefficient(coef, 1, samples, first, lane)
    outputs_at, seeds = at + opaque(output) * count * SIDE, adjoints + opaque(output_adjoint) * count * SIDE
    rate, along = (1 + directions) * TILE, (2 + directions) * TILE  # the mixed columns are counted from 1
    seed, y = part(seeds, 0, count), part(outputs_at, 0, count)
    if FORM <= PROBES:
        squares = square + tl.zeros((SIDE, PART), tl.float32)
        if FORM == LOG_DENSITY:
            for i in range(1, directions + 1):
                yi = tl.load(y + i * TILE)
                squares -= yi * yi
        known = a * dimension.to(tl.float32) + gamma * squares
        found = _within(tl.load(y + rate) + known, 0, 1)
        asked, loss = _finish(found, value, upstream, weight, has, scale, first, there, lane, 1, 0, loss)
        if FORM == LOG_DENSITY:
            for i in range(1, directions + 1):
                tl.store(seed + i * TILE, -2.0 * gamma * asked * _within(tl.load(y + i * TILE), 0, 1))
        tl.store(seed + rate, asked)
    if FORM == POTENTIAL:
        for i in range(1, directions + 1):
            tl.store(seed + i * TILE, -2.0 * gamma * _within(tl.load(y + along + i * TILE), 0, 1))
            tl.store(seed + along + i * TILE, -2.0 * gamma * _within(tl.load(y + i * TILE), 0, 1))
        one = _within(tl.full((SIDE, PART), 1.0, tl.float32), 0, 1)
        tl.store(seed + along + (1 + directions) * TILE, one)
    if FORM == SCORE:
        for row in range(0, whole(dimension), PART):
            seed, x, y = part(seeds, row, count), part(at, row, count), part(outputs_at, row, count)
            y0, ye = _within(tl.load(y), row, outputs), _within(tl.load(y + along), row, outputs)
            _s, by_score = _score(at, y0, coef, a, gamma, samples, first, lane, row, count)
            p, q = _coefficient(coef, 2, samples, first, lane), _coefficient(coef, 3, samples, first, lane)
            q_rate, e = _coefficient(coef, 5, samples, first, lane), tl.load(x + along)
            along_e = p * e + q * ye
            tl.store(seed, q_rate * e + q * (a * e - 2.0 * gamma * along_e))
            tl.store(seed + rate, q * e)
            tl.store(seed + along, -1.0 * q * by_score)
            for i in range(1, directions + 1):
                tl.store(seed + along + i * TILE, -1.0 * share * gamma * q * tl.load(x + i * TILE))
    return loss


# ------------------------------------------------------------------------------------------------------------ launches


@triton.jit(do_not_specialize=[*NUMBERS, *TENSORS])
def residual_kernel(scratch, sums, losses, program, weights, x, feature_values, feature_rates, probes, coef, value,
                    upstream, weight, feature_adjoints, rate_adjoints, has: tl.int32, tiles: tl.int32,
                    samples: tl.int64, dimension: tl.int32, directions: tl.int32, count: tl.int32,
                    instructions: tl.int32, jets: tl.int32, adjoints: tl.int32, output: tl.int32, outputs: tl.int32,
                    output_adjoint: tl.int32, features: tl.int32, feature_count: tl.int32, features_adjoint: tl.int32,
                    sum_count: tl.int32, share: tl.float32, scale: tl.float32, FORM: tl.constexpr):  # fmt: skip
    number = tl.program_id(0).to(tl.int64)
    at = scratch + number * ((jets + adjoints) * count) * SIDE
    of_all, own = at + jets * count * SIDE, sums + number * (sum_count // SIDE) * SIDE
    of_x: tl.constexpr = FIRST_ORDER if FORM == POTENTIAL else DIRECTIONS if FORM == SCORE else VALUE
    of_parameters: tl.constexpr = RATE_ALONG_E if FORM == POTENTIAL else ALONG_E if FORM == SCORE else FIRST_ORDER
    wanted = has & HAS_GRADIENT != 0
    before = 1 if FORM == PROBES else 2 + directions  # columns of the first pass
    passes = 2
    if FORM >= POTENTIAL:
        passes = tl.where(wanted, 2, 1)
    loss = tl.full((), 0.0, tl.float64)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        adds = tile >= tl.num_programs(0)  # it is not the program's first
        first_point, _, lane = _points(tile, samples)
        curvature = share * _coefficient(coef, 1, samples, first_point, lane)
        if FORM == SCORE:
            curvature = curvature * 0.0  # there a rate is d_t alone
        _load_points(at, x, probes, feature_values, feature_rates, coef, has, features, feature_count, tile, samples,
                     dimension, directions, count, FORM)  # fmt: skip
        tl.debug_barrier()
        square = tl.zeros((SIDE, 1), tl.float32)
        # Twice forwards and back: the first time for the residual, the second for the parameters' gradients. One loop,
        # so that there is one text of the network in the machine's code.
        for turn in range(1 if FORM == LOG_DENSITY else 0, passes):
            parameters = turn == 1
            first, last = tl.where(parameters, before, 0), tl.where(parameters, count, before)
            if FORM == LOG_DENSITY:
                first = 0
            _forward(at, program, weights, instructions, curvature, directions, count, first, last, FORM)
            clear(of_all + opaque(output_adjoint) * count * SIDE, outputs, count)
            tl.debug_barrier()
            if parameters:
                loss = _seed_gradients(at, of_all, coef, share, value, upstream, weight, has, scale, tile, samples,
                                       dimension, directions, output, outputs, output_adjoint, count, square, loss,
                                       FORM)  # fmt: skip
            else:
                _seed_residual(at, of_all, coef, share, tile, samples, dimension, directions, output, outputs,
                               output_adjoint, count, FORM)  # fmt: skip
                if FORM == SCORE:
                    last = 1 + directions
            tl.debug_barrier()
            if wanted | (turn == 0):
                _backward(at, of_all, own, program, weights, instructions, adds, curvature, dimension, directions,
                          count, last, parameters, FORM, of_x, of_parameters)  # fmt: skip
            if turn == 0:
                square, loss = _finish_residual(at, of_all, coef, value, upstream, weight, has, scale, tile, samples,
                                                dimension, directions, output, outputs, count, square, loss,
                                                FORM)  # fmt: skip
                tl.debug_barrier()
        if has & HAS_FEATURES != 0:
            _scatter_features(of_all, feature_adjoints, rate_adjoints, features_adjoint, feature_count, tile,
                              samples, directions, count)  # fmt: skip
        tl.debug_barrier()
    if has & HAS_LOSS != 0:
        tl.store(losses + number, loss)


@triton.jit(do_not_specialize=["programs", "sum_count", "gradient_count", "count"])
def fold_kernel(gradient, loss, sums, losses, places, programs: tl.int32, sum_count: tl.int32, gradient_count: tl.int32,
                count: tl.int32, FOLDED: tl.constexpr, LANES: tl.constexpr):  # fmt: skip
    """Adds to a gradient, and to a loss, if there is one the last of ``count`` numbers, what programs have of it."""
    number = tl.program_id(0) * LANES + tl.arange(0, LANES)
    of_gradient, of_loss = number < gradient_count, (number >= gradient_count) & (number < count)
    place = tl.load(places + number, mask=of_gradient, other=0)[None, :]
    total = tl.zeros((FOLDED, LANES), tl.float64)
    for first in range(0, programs, FOLDED):
        program = (first + tl.arange(0, FOLDED))[:, None]
        there, wide = program < programs, program.to(tl.int64)
        total += tl.load(sums + wide * sum_count + place, mask=there & of_gradient[None, :], other=0.0).to(tl.float64)
        total += tl.load(losses + wide + place * 0, mask=there & of_loss[None, :], other=0.0)
    found = tl.sum(total, 0)
    tl.store(gradient + number, tl.load(gradient + number, mask=of_gradient, other=0.0) + found, mask=of_gradient)
    to = loss + number * 0
    tl.store(to, tl.load(to, mask=of_loss, other=0.0) + found, mask=of_loss)


def residual(*, tensors: dict[str, Tensor | None], numbers: dict[str, int | float]) -> None:
    """A Fokker-Planck residual of a recognised network, and gradients: what ``native.Cuda.residual`` does."""
    x, loss, gradient = tensors["x"], tensors["loss"], tensors["gradient"]
    assert x is not None
    samples = len(x)
    if samples == 0:
        return
    size = SAMPLES * int(numbers["jets"] + numbers["adjoints"]) * int(numbers["columns"])
    sum_count = max(int(numbers["sum_count"]), ROWS) if gradient is not None else 0
    if max(size, sum_count) >= MOST:
        raise bad("net", f"values of 16 points that are fewer than {MOST}", max(size, sum_count))
    tiles = triton.cdiv(samples, SAMPLES)
    programs = max(1, min(tiles, PROGRAMS, SCRATCH // (4 * (size + sum_count))))
    sums, losses = x.new_empty(programs * sum_count), x.new_empty(programs, dtype=torch.float64)
    there = [x if tensors[name] is None else tensors[name] for name in TENSORS]  # x where there is none
    given = {**numbers, "count": numbers["columns"], "tiles": tiles, "samples": samples, "sum_count": sum_count}
    given["has"] = sum((tensors[name] is not None) << bit for bit, name in enumerate(FLAGS))
    with on_device(x):
        residual_kernel[(programs,)](
            x.new_empty(programs * size), sums, losses, tensors["program"], tensors["weights"],
            *there, *(given[name] for name in NUMBERS), numbers["share"], numbers["scale"],
            FORM=numbers["form"], num_warps=WARPS, num_stages=1, enable_fp_fusion=False, **REGISTERS,
        )  # fmt: skip
        gradient_count = int(numbers["gradient_count"]) if gradient is not None else 0
        count = gradient_count + (loss is not None)
        if count:
            fold_kernel[(triton.cdiv(count, LANES),)](
                losses if gradient is None else gradient, losses if loss is None else loss, sums, losses,
                tensors["places"], programs, sum_count, gradient_count, count, FOLDED=FOLDED, LANES=LANES,
                num_warps=4, enable_fp_fusion=False,
            )  # fmt: skip
