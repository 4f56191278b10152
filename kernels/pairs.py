"""Antithetic pairs, their defects, and dot products with probes, in Triton, as ``csrc/cuda/pairs.cu`` has them.

A program sums up the groups of several samples, or part of one: COLUMNS lanes work side by side on a sample, the power
of two that holds its groups, or all lanes of a program. That depends on the number of elements alone, so a sum has the
same bits in every batch.
"""

import torch
import triton
import triton.language as tl
from fpfast.kernels.groups import LANES, NUMBERS, WARPS, on_device, options, place, sizes, state, values, words
from torch import Tensor

from fpfast.reference import Key

STEPS = 8  # groups of a lane, in samples that have so many


@triton.jit(do_not_specialize=[*NUMBERS, "half"])
def pair_kernel(out, x, y, coef, seeds, elements: tl.int64, units: tl.int64, half: tl.int64, first_sample: tl.int64,
                stream: tl.int64, draw: tl.int64, KIND: tl.constexpr, SEED_PER_SAMPLE: tl.constexpr,
                WHOLE: tl.constexpr, INDEX: tl.constexpr, LANES: tl.constexpr):  # fmt: skip
    """``half``: from a pair's first state to its second, in groups of four where samples are whole groups."""
    sample, group, live, offset, exists = place(elements, units, WHOLE, INDEX, LANES)
    c0 = tl.load(coef + sample * 3, mask=live, other=0.0)[:, None]
    c1 = tl.load(coef + sample * 3 + 1, mask=live, other=0.0)[:, None]
    cz = tl.load(coef + sample * 3 + 2, mask=live, other=0.0)[:, None]
    w0, w1, w2, w3 = words(seeds, sample, group, live, first_sample, stream, draw, SEED_PER_SAMPLE)
    middle = c0 * state(x, offset, exists) + c1 * state(y, offset, exists)
    step = cz * values(w0, w1, w2, w3, KIND, LANES)
    tl.store(out + offset, middle + step, mask=exists)
    tl.store(out + (offset + (half * 4 if WHOLE else half)), middle - step, mask=exists)


@triton.jit(do_not_specialize=NUMBERS)
def times_kernel(out, coef, seeds, elements: tl.int64, units: tl.int64, first_sample: tl.int64, stream: tl.int64,
                 draw: tl.int64, KIND: tl.constexpr, SEED_PER_SAMPLE: tl.constexpr, WHOLE: tl.constexpr,
                 INDEX: tl.constexpr, LANES: tl.constexpr):  # fmt: skip
    sample, group, live, offset, exists = place(elements, units, WHOLE, INDEX, LANES)
    w0, w1, w2, w3 = words(seeds, sample, group, live, first_sample, stream, draw, SEED_PER_SAMPLE)
    c = tl.load(coef + sample, mask=live, other=0.0)[:, None]
    tl.store(out + offset, c * values(w0, w1, w2, w3, KIND, LANES), mask=exists)


@triton.jit
def _defect(x, pair, half, c0, c1, offset, exists):
    """x is there already, the pair is read."""
    middle = (state(pair, offset, exists) + state(pair, offset + half, exists)) * 0.5
    return (x - middle) * c1 + c0 * x


@triton.jit(do_not_specialize=[*NUMBERS, "half", "parts"])
def sum_kernel(sums, out, x, y, z, coef, seeds, elements: tl.int64, units: tl.int64, half: tl.int64, parts: tl.int64,
               first_sample: tl.int64, stream: tl.int64, draw: tl.int64, OP: tl.constexpr, KIND: tl.constexpr,
               SEED_PER_SAMPLE: tl.constexpr, WHOLE: tl.constexpr, COLUMNS: tl.constexpr, STEPS: tl.constexpr,
               LANES: tl.constexpr):  # fmt: skip
    """sums[sample, part], ``units`` of them. What an op does not take is None."""
    ROWS: tl.constexpr = LANES // COLUMNS
    lane = tl.arange(0, LANES)
    unit = tl.program_id(0).to(tl.int64) * ROWS + lane // COLUMNS
    sample, part, live = unit // parts, unit % parts, unit < units
    groups = (elements + 3) // 4
    total = tl.zeros((LANES,), tl.float32)
    if coef is not None:
        c0 = tl.load(coef + sample * 2, mask=live, other=0.0)[:, None]
        c1 = tl.load(coef + sample * 2 + 1, mask=live, other=0.0)[:, None]
    for step in range(STEPS):
        group = (part * STEPS + step) * COLUMNS + lane % COLUMNS
        if WHOLE:  # four elements exist or none, from which the compiler sees that 128-bit accesses will do
            exists = (live & (group < groups))[:, None]
            offset = (sample * groups + group)[:, None] * 4 + tl.arange(0, 4)[None, :]
        else:
            within = group[:, None] * 4 + tl.arange(0, 4)[None, :]
            exists = live[:, None] & (within < elements)
            offset = (sample * elements)[:, None] + within
        at = state(x, offset, exists)
        if OP == "probe_dot":
            w0, w1, w2, w3 = words(seeds, sample, group, live, first_sample, stream, draw, SEED_PER_SAMPLE)
            term = at * values(w0, w1, w2, w3, KIND, LANES)
        else:
            r = _defect(at, y, half * 4 if WHOLE else half, c0, c1, offset, exists)
            if OP == "defect":
                tl.store(out + offset, r, mask=exists)
                term = r * r
            else:
                term = r * _defect(at, z, half * 4 if WHOLE else half, c0, c1, offset, exists)
        total += tl.sum(term, axis=1)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    tl.store(sums + row, tl.sum(tl.reshape(total, (ROWS, COLUMNS)), axis=1), mask=row < units)


def _half(elements: int, samples: int) -> int:
    """Distance of a pair's two states, in groups where the kernel is to see that it is a multiple of four."""
    return samples * (elements // 4 if elements % 4 == 0 else elements)


def pair(out: Tensor, x: Tensor, y: Tensor, coef: Tensor, kind: str, key: Key) -> None:
    """out = (c0 x + c1 y) +- cz v, [2, samples, ...]; all are float32 and contiguous, here and below."""
    elements, units = sizes(x)
    if units == 0:
        return
    seeds, *numbers = key
    with on_device(out):
        pair_kernel[(triton.cdiv(units, LANES),)](
            out, x, y, coef, seeds, elements, units, _half(elements, len(x)), *numbers, KIND=kind,
            SEED_PER_SAMPLE=seeds.ndim == 1, **options(elements, units),
        )  # fmt: skip


def probe_times(out: Tensor, coef: Tensor, kind: str, key: Key) -> None:
    """out = c v, [samples, ...]."""
    elements, units = sizes(out)
    if units == 0:
        return
    seeds, *numbers = key
    with on_device(out):
        times_kernel[(triton.cdiv(units, LANES),)](
            out, coef, seeds, elements, units, *numbers, KIND=kind, SEED_PER_SAMPLE=seeds.ndim == 1,
            **options(elements, units),
        )  # fmt: skip


def _sum(
    op: str,
    sums: Tensor,  # [samples]
    x: Tensor,
    out: Tensor | None = None,
    y: Tensor | None = None,
    z: Tensor | None = None,
    coef: Tensor | None = None,
    kind: str = "normal",
    key: Key | None = None,
) -> None:
    elements, units = sizes(x)
    if units == 0:
        sums.zero_()
        return
    samples, groups = len(x), units // len(x)
    columns = min(LANES, triton.next_power_of_2(groups))
    steps = 1 if groups <= columns else STEPS
    parts = triton.cdiv(groups, columns * steps)
    part_sums = sums if parts == 1 else sums.new_empty(samples, parts)
    seeds, *numbers = (None, 0, 0, 0) if key is None else key
    with on_device(x):
        sum_kernel[(triton.cdiv(samples * parts, LANES // columns),)](
            part_sums, out, x, y, z, coef, seeds, elements, samples * parts, _half(elements, samples), parts, *numbers,
            OP=op, KIND=kind, SEED_PER_SAMPLE=seeds is not None and seeds.ndim == 1, WHOLE=elements % 4 == 0,
            COLUMNS=columns, STEPS=steps, LANES=LANES, num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    if parts > 1:
        sums.copy_(part_sums.sum(1, dtype=torch.float64))


def defect(out: Tensor, norms: Tensor, x: Tensor, pair: Tensor, coef: Tensor) -> None:
    """out = (x - (pair[0] + pair[1]) / 2) c1 + c0 x, and its squared norms, [samples]."""
    _sum("defect", norms, x, out, pair, coef=coef)


def product(out: Tensor, x: Tensor, pair: Tensor, other: Tensor, coef: Tensor) -> None:
    """out = the inner product of two defects, [samples]."""
    _sum("product", out, x, None, pair, other, coef)


def probe_dot(out: Tensor, x: Tensor, kind: str, key: Key) -> None:
    """out = v.x, [samples]."""
    _sum("probe_dot", out, x, kind=kind, key=key)
