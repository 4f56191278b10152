"""Whole runs of a recognised network in one launch, as ``csrc/cuda/trajectory.cu`` has them, in Triton.

A program, one warp, takes 16 samples through all steps, then others. It reads what to do, instructions and actions of
csrc/kernels.h, from the device's memory. Values lie in scratch memory of its own, in tiles [16 samples][16 rows] one
after another; what an instruction writes there other lanes read in the next, so there is a barrier behind each.
"""

import torch
import triton
import triton.language as tl
from fpfast.kernels.activation import activation
from fpfast.kernels.groups import on_device, values, words
from fpfast.kernels.tiles import NOTHING, ROWS, SAMPLES, WARPS, field, opaque, plus_product
from torch import Tensor

from fpfast.reference import Key

PROGRAMS = 1024  # about eight for each multiprocessor of a large GPU, whose caches are to hold their values
NUMBERS = [
    *("tiles", "samples", "dimension", "rows", "slots", "instructions", "bias_width", "count", "stages"),
    *("first_step", "last_step", "first_sample"),
]

INPUT_ROWS = tl.constexpr(-2)  # these, and the numbers of operations, as csrc/kernels.h has them
OUTPUT_ROWS = tl.constexpr(-3)
LINEAR = tl.constexpr(0)
ACTIVATE = tl.constexpr(1)
MULTIPLY = tl.constexpr(3)
SCALE = tl.constexpr(4)
FILL = tl.constexpr(5)


@triton.jit
def _tile(at, row, SAMPLES: tl.constexpr, ROWS: tl.constexpr):
    """Addresses of rows ``row``, a multiple of 16, and following, [SAMPLES, ROWS]."""
    return at + row * SAMPLES + tl.arange(0, SAMPLES)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]


@triton.jit
def _place(line, K: tl.constexpr, source, target):
    row = field(line, K)
    return tl.where(row == INPUT_ROWS, source, tl.where(row == OUTPUT_ROWS, target, row))


@triton.jit
def _linear(at, weights, bias_row, out, factor, source, other, rows, columns, bias, SAMPLES: tl.constexpr,
            ROWS: tl.constexpr):  # fmt: skip
    """out = (W in + bias + other) * factor; W comes as [row tile][column tile][ROWS columns][ROWS rows]."""
    square = tl.arange(0, ROWS)[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
    width = (columns + ROWS - 1) // ROWS * ROWS
    for row in range(0, rows, ROWS):
        sums = tl.zeros((SAMPLES, ROWS), tl.float32)
        for column in range(0, columns, ROWS):
            x = tl.load(_tile(at, source + column, SAMPLES, ROWS))
            w = tl.load(weights + (row * width + column * ROWS) + square)
            sums = plus_product(sums, x, w)
        if bias != NOTHING:
            sums += tl.load(bias_row + bias + row + tl.arange(0, ROWS))[None, :]
        if other != NOTHING:
            sums += tl.load(_tile(at, other + row, SAMPLES, ROWS))
        if factor != NOTHING:
            sums *= tl.load(_tile(at, factor + row, SAMPLES, ROWS))
        tl.store(_tile(at, out + row, SAMPLES, ROWS), sums)


@triton.jit
def _activate(at, parameter, kind, out, first, second, source, rows, SAMPLES: tl.constexpr, ROWS: tl.constexpr):
    for row in range(0, rows, ROWS):
        u = tl.load(_tile(at, source + row, SAMPLES, ROWS))
        value, slope, curve, _, _ = activation(kind, u, parameter)
        if out != NOTHING:
            tl.store(_tile(at, out + row, SAMPLES, ROWS), value)
        if first != NOTHING:
            tl.store(_tile(at, first + row, SAMPLES, ROWS), slope)
        if second != NOTHING:
            tl.store(_tile(at, second + row, SAMPLES, ROWS), curve)


@triton.jit
def _elementwise(op, at, vector, bias_row, out, source, other, rows, bias, SAMPLES: tl.constexpr,
                 ROWS: tl.constexpr):  # fmt: skip
    """in + bias + other, in * other, vector * in + other, or vector."""
    for row in range(0, rows, ROWS):
        value = tl.zeros((SAMPLES, ROWS), tl.float32)
        if op != FILL:
            value = tl.load(_tile(at, source + row, SAMPLES, ROWS))
        if op == MULTIPLY:
            value *= tl.load(_tile(at, other + row, SAMPLES, ROWS))
        else:
            if op == SCALE:
                value *= tl.load(vector + row + tl.arange(0, ROWS))[None, :]
            if op == FILL:
                value += tl.load(vector + row + tl.arange(0, ROWS))[None, :]
            if bias != NOTHING:
                value += tl.load(bias_row + bias + row + tl.arange(0, ROWS))[None, :]
            if other != NOTHING:
                value += tl.load(_tile(at, other + row, SAMPLES, ROWS))
        tl.store(_tile(at, out + row, SAMPLES, ROWS), value)


@triton.jit
def _evaluate(at, program, weights, bias_row, instructions, source, target, SAMPLES: tl.constexpr,
              ROWS: tl.constexpr):  # fmt: skip
    """The program at the rows from ``source``, its end to those from ``target``."""
    for number in range(instructions):
        line = program + number * 11
        op, rows, columns, bias = field(line, 0), field(line, 6), field(line, 7), field(line, 9)
        out, first = _place(line, 1, source, target), _place(line, 2, source, target)
        a, b = _place(line, 4, source, target), _place(line, 5, source, target)
        numbers = weights + tl.multiple_of(tl.load(line + 8), ROWS)
        if op == LINEAR:
            _linear(at, numbers, bias_row, out, first, a, b, rows, columns, bias, SAMPLES, ROWS)
        elif op == ACTIVATE:
            second = _place(line, 3, source, target)
            _activate(at, tl.load(numbers), field(line, 10), out, first, second, a, rows, SAMPLES, ROWS)
        else:
            _elementwise(op, at, numbers, bias_row, out, a, b, rows, bias, SAMPLES, ROWS)
        tl.debug_barrier()


@triton.jit
def _combine(at, action, c, seeds, first, samples, dimension, first_sample, draw, SEED_PER_SAMPLE: tl.constexpr,
             SAMPLES: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    """((c0 x + c1 y1) + c2 y2 ...) + cz z, with the bits of ``combine``; 0 in rows that do not exist."""
    operands, cz = field(action, 4), tl.load(c + 4)
    for row in range(0, dimension, ROWS):
        total = tl.load(c) * tl.load(_tile(at, field(action, 5) + row, SAMPLES, ROWS))
        for n in range(1, operands):
            cn = tl.load(c + n)
            if cn != 0:
                total = total + cn * tl.load(_tile(at, field(action + n, 5) + row, SAMPLES, ROWS))
        if cz != 0:
            lane = tl.arange(0, SAMPLES * ROWS // 4)  # for each a group of four rows of a sample
            sample = (first + lane // (ROWS // 4)).to(tl.int64)
            group = (lane % (ROWS // 4)).to(tl.int64) + row // 4
            stream = tl.load(action + 9)
            w0, w1, w2, w3 = words(seeds, sample, group, sample < samples, first_sample, stream, draw, SEED_PER_SAMPLE)
            z = values(w0, w1, w2, w3, "normal", SAMPLES * ROWS // 4)
            total = total + cz * tl.reshape(z, (SAMPLES, ROWS))
        exists = row + tl.arange(0, ROWS)[None, :] < dimension
        tl.store(_tile(at, field(action, 3) + row, SAMPLES, ROWS), tl.where(exists, total, 0.0))


@triton.jit
def _copy(at, source, target, dimension, SAMPLES: tl.constexpr, ROWS: tl.constexpr):
    for row in range(0, dimension, ROWS):
        tl.store(_tile(at, target + row, SAMPLES, ROWS), tl.load(_tile(at, source + row, SAMPLES, ROWS)))


@triton.jit
def _look(at, broken, state, before, first, samples, dimension, number, FREEZE: tl.constexpr, SAMPLES: tl.constexpr,
          ROWS: tl.constexpr):  # fmt: skip
    """After step ``number``, 1 to steps, what struct Watch asks for."""
    sample = first + opaque(tl.arange(0, SAMPLES))  # else it is made before the steps, and takes registers
    exists = sample < samples
    zero = tl.zeros((SAMPLES, ROWS), tl.float32)
    for row in range(0, dimension, ROWS):
        zero += 0.0 * tl.load(_tile(at, state + row, SAMPLES, ROWS))  # NaN where the state is not finite
    known = tl.load(broken + sample, mask=exists, other=0)
    breaks = (tl.sum(zero, 1) != 0) & (known == 0)
    tl.store(broken + sample, tl.zeros((SAMPLES,), tl.int64) + number, mask=exists & breaks)
    if FREEZE:
        frozen = ((known != 0) | breaks)[:, None]
        for row in range(0, dimension, ROWS):
            here = _tile(at, state + row, SAMPLES, ROWS)
            tl.store(here, tl.where(frozen, tl.load(_tile(at, before + row, SAMPLES, ROWS)), tl.load(here)))
    tl.debug_barrier()


@triton.jit
def _transfer(states, at, slot_rows, slots, first, samples, dimension, SAMPLES: tl.constexpr, ROWS: tl.constexpr,
              IN: tl.constexpr):  # fmt: skip
    """States [slots, samples, dimension] into the values, or back. Samples that do not exist are zeros."""
    sample = first + tl.arange(0, SAMPLES)[:, None]
    for slot in range(slots):
        start = field(slot_rows + slot, 0)
        for row in range(0, dimension, ROWS):
            element = row + tl.arange(0, ROWS)[None, :]
            exists = (sample < samples) & (element < dimension)
            there = states + (slot * samples + sample) * dimension + element
            here = _tile(at, start + row, SAMPLES, ROWS)
            if IN:
                tl.store(here, tl.load(there, mask=exists, other=0.0))
            else:
                tl.store(there, tl.load(here), mask=exists)
    tl.debug_barrier()


@triton.jit(do_not_specialize=NUMBERS)
def trajectory_kernel(states, scratch, slot_rows, program, weights, biases, actions, evaluations, coef, seeds,
                      broken, tiles: tl.int32, samples: tl.int64, dimension: tl.int32, rows: tl.int32, slots: tl.int32,
                      instructions: tl.int32, bias_width: tl.int32, count: tl.int32, stages: tl.int32,
                      first_step: tl.int32, last_step: tl.int32, first_sample: tl.int64,
                      SEED_PER_SAMPLE: tl.constexpr, FREEZE: tl.constexpr, SAMPLES: tl.constexpr,
                      ROWS: tl.constexpr):  # fmt: skip
    """``broken`` is None where nobody asks which samples are not finite. With FREEZE the last of the rows are those of
    the state before a step. The state is the first slot."""
    at = scratch + tl.program_id(0).to(tl.int64) * rows * SAMPLES
    before = rows - tl.cdiv(dimension, ROWS) * ROWS
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        first = tl.cast(tile, tl.int64) * SAMPLES
        _transfer(states, at, slot_rows, slots, first, samples, dimension, SAMPLES, ROWS, True)
        for step in range(first_step, last_step):
            if FREEZE:
                _copy(at, field(slot_rows, 0), before, dimension, SAMPLES, ROWS)
                tl.debug_barrier()
            for number in range(count):
                action = actions + number * 10
                stage, source, target = field(action, 1), field(action, 2), field(action, 3)
                if stage == NOTHING:
                    _copy(at, source, target, dimension, SAMPLES, ROWS)
                elif tl.load(action) == 0:
                    c = coef + (step * stages + stage) * 5
                    _combine(at, action, c, seeds, first, samples, dimension, first_sample, tl.cast(step, tl.int64),
                             SEED_PER_SAMPLE, SAMPLES, ROWS)  # fmt: skip
                else:
                    evaluation = tl.load(evaluations + step * stages + stage)
                    if evaluation != NOTHING:
                        _evaluate(at, program, weights, biases + evaluation * bias_width, instructions, source, target,
                                  SAMPLES, ROWS)  # fmt: skip
                tl.debug_barrier()
            if broken is not None:
                _look(at, broken, field(slot_rows, 0), before, first, samples, dimension, tl.cast(step, tl.int64) + 1,
                      FREEZE, SAMPLES, ROWS)  # fmt: skip
        _transfer(states, at, slot_rows, slots, first, samples, dimension, SAMPLES, ROWS, False)


def trajectory(
    states: list[Tensor],  # [samples, d], float32; changed in place
    device: dict[str, Tensor],  # program, weights, biases, actions, evaluations, coef, and the states' slot_rows
    steps: tuple[int, int],
    rows: int,
    key: Key,
    broken: Tensor | None = None,  # [samples] int64, as struct Watch has it; the state is the first of states then
    freeze: bool = False,
) -> None:
    """Runs steps of a recognised network on all samples; see csrc/kernels.h. A key's stream and draw do not count."""
    together = torch.stack(states) if len(states) > 1 else states[0][None]
    slots, samples, dimension = together.shape
    tiles = triton.cdiv(samples, SAMPLES)
    if tiles == 0:
        return
    programs = min(tiles, PROGRAMS)
    rows += triton.cdiv(dimension, ROWS) * ROWS * freeze
    names = ("slot_rows", "program", "weights", "biases", "actions", "evaluations", "coef")
    with on_device(together):
        trajectory_kernel[(programs,)](
            together, together.new_empty(programs * rows * SAMPLES), *(device[name] for name in names), key.seed,
            broken, tiles, samples, dimension, rows, slots, len(device["program"]), device["biases"].shape[1],
            len(device["actions"]), device["evaluations"].shape[1], *steps, key.first_sample,
            SEED_PER_SAMPLE=key.seed.ndim == 1, FREEZE=freeze, SAMPLES=SAMPLES, ROWS=ROWS, num_warps=WARPS,
            enable_fp_fusion=False,
        )  # fmt: skip
    if slots > 1:
        for state, new in zip(states, together, strict=True):
            state.copy_(new)
