"""Noise and linear combinations in Triton, as ``csrc/cuda/combine.cu`` has them."""

import triton
import triton.language as tl
from fpfast.kernels.groups import (
    LANES,
    NUMBERS,
    WARPS,
    on_device,
    options,
    place,
    plain_words,
    sizes,
    state,
    values,
    words,
)
from torch import Tensor

from fpfast.reference import Key

# Beyond so many a plain call's programs take several blocks of groups each, and so many groups fit into 32 bits.
PROGRAMS = 2**14
MOST_PLAIN = 2**31 - PROGRAMS * LANES
WORK = ["units", "stride", "multiplier", "shift", "minus_groups"]


@triton.jit(do_not_specialize=NUMBERS)
def noise_kernel(out, seeds, elements: tl.int64, units: tl.int64, first_sample: tl.int64, stream: tl.int64,
                 draw: tl.int64, KIND: tl.constexpr, SEED_PER_SAMPLE: tl.constexpr, WHOLE: tl.constexpr,
                 INDEX: tl.constexpr, LANES: tl.constexpr):  # fmt: skip
    sample, group, live, offset, exists = place(elements, units, WHOLE, INDEX, LANES)
    w0, w1, w2, w3 = words(seeds, sample, group, live, first_sample, stream, draw, SEED_PER_SAMPLE)
    tl.store(out + offset, values(w0, w1, w2, w3, KIND, LANES), mask=exists)


@triton.jit
def _coefficient(coef, sample, live, K: tl.constexpr, COEF_PER_SAMPLE: tl.constexpr):
    return tl.load(coef + sample * 5 + K, mask=live, other=0.0)[:, None] if COEF_PER_SAMPLE else tl.load(coef + K)


@triton.jit
def _term(x, offset, exists, coef, sample, live, K: tl.constexpr, COEF_PER_SAMPLE: tl.constexpr):
    return _coefficient(coef, sample, live, K, COEF_PER_SAMPLE) * state(x, offset, exists)


@triton.jit(do_not_specialize=NUMBERS)
def combine_kernel(out, x0, x1, x2, x3, coef, seeds, elements: tl.int64, units: tl.int64, first_sample: tl.int64,
                   stream: tl.int64, draw: tl.int64, position, step_stride: tl.int64, COEF_PER_SAMPLE: tl.constexpr,
                   SEED_PER_SAMPLE: tl.constexpr, WHOLE: tl.constexpr, INDEX: tl.constexpr,
                   LANES: tl.constexpr):  # fmt: skip
    """Operands past the last, ``seeds`` where there is no noise and a ``position`` that is not there are None: the
    compiler then leaves them out."""
    if position is not None:
        draw = tl.load(position)
        first_sample = tl.load(position + 1)
        coef += draw * step_stride
    sample, group, live, offset, exists = place(elements, units, WHOLE, INDEX, LANES)
    total = _term(x0, offset, exists, coef, sample, live, 0, COEF_PER_SAMPLE)
    if x1 is not None:
        total = total + _term(x1, offset, exists, coef, sample, live, 1, COEF_PER_SAMPLE)
    if x2 is not None:
        total = total + _term(x2, offset, exists, coef, sample, live, 2, COEF_PER_SAMPLE)
    if x3 is not None:
        total = total + _term(x3, offset, exists, coef, sample, live, 3, COEF_PER_SAMPLE)
    if seeds is not None:
        w0, w1, w2, w3 = words(seeds, sample, group, live, first_sample, stream, draw, SEED_PER_SAMPLE)
        z = values(w0, w1, w2, w3, "normal", LANES)
        total = total + _coefficient(coef, sample, live, 4, COEF_PER_SAMPLE) * z
    tl.store(out + offset, total, mask=exists)


@triton.jit
def _turn(out, x0, x1, x2, x3, c0, c1, c2, c3, cz, seeds, seed, unit, live, multiplier, shift, minus_groups,
          first_sample, stream, draw, LANES: tl.constexpr):  # fmt: skip
    """A block of groups, all of which exist where ``live`` is None: so no register is cleared before a load."""
    offset = unit.to(tl.int64)[:, None] * 4 + tl.arange(0, 4)[None, :]
    total = c0 * tl.load(x0 + offset, mask=live).to(tl.float32)
    if x1 is not None:
        total = total + c1 * tl.load(x1 + offset, mask=live).to(tl.float32)
    if x2 is not None:
        total = total + c2 * tl.load(x2 + offset, mask=live).to(tl.float32)
    if x3 is not None:
        total = total + c3 * tl.load(x3 + offset, mask=live).to(tl.float32)
    if seeds is not None:
        sample = tl.umulhi(unit.to(tl.uint32), multiplier.to(tl.uint32)) >> shift.to(tl.uint32)
        group = unit.to(tl.uint32) + sample * minus_groups.to(tl.uint32)
        w0, w1, w2, w3 = plain_words(seed, sample, group, first_sample, stream, draw)
        total = total + cz * values(w0, w1, w2, w3, "normal", LANES)
    tl.store(out + offset, total, mask=live)


@triton.jit(do_not_specialize=[*WORK, *NUMBERS])
def plain_kernel(out, x0, x1, x2, x3, coef, seeds, units: tl.int32, stride: tl.int32, multiplier: tl.uint32,
                 shift: tl.uint32, minus_groups: tl.uint32, first_sample: tl.int64, stream: tl.int64, draw: tl.int64,
                 position, step_stride: tl.int64, LANES: tl.constexpr):  # fmt: skip
    """What nearly all calls are: see :func:`_is_plain`. Nothing is worked out twice that is the same for all lanes."""
    if position is not None:
        draw = tl.load(position)
        first_sample = tl.load(position + 1)
        coef += draw * step_stride
    c0, c1, c2, c3, cz = tl.load(coef), tl.load(coef + 1), tl.load(coef + 2), tl.load(coef + 3), tl.load(coef + 4)
    seed = 0 if seeds is None else tl.load(seeds)
    first = tl.program_id(0) * LANES
    while first + LANES <= units:
        _turn(out, x0, x1, x2, x3, c0, c1, c2, c3, cz, seeds, seed, first + tl.arange(0, LANES), None, multiplier,
              shift, minus_groups, first_sample, stream, draw, LANES)  # fmt: skip
        first += stride
    if first < units:
        unit = first + tl.arange(0, LANES)
        live = (unit < units)[:, None]
        _turn(out, x0, x1, x2, x3, c0, c1, c2, c3, cz, seeds, seed, unit, live, multiplier, shift, minus_groups,
              first_sample, stream, draw, LANES)  # fmt: skip


def noise(out: Tensor, kind: str, key: Key) -> None:
    """Fills ``out`` (samples, ...; float32, contiguous) with the values that ``key`` names."""
    elements, units = sizes(out)
    if units == 0:
        return
    seeds, *numbers = key
    shape = options(elements, units)
    with on_device(out):
        noise_kernel[(triton.cdiv(units, LANES),)](
            out, seeds, elements, units, *numbers, KIND=kind, SEED_PER_SAMPLE=seeds.ndim == 1, **shape
        )


def _divisor(number: int) -> tuple[int, int, int]:
    """By which q / number is a multiplication: (multiplier, shift, -number), as ``csrc/cuda/groups.h`` has them."""
    shift = number.bit_length() - 1
    if number == 1 << shift:
        return 2**31, shift - 1, 2**32 - number
    return 2 ** (32 + shift) // number + 1, shift, 2**32 - number


def _is_plain(elements: int, units: int, samples: int, each: bool, key: Key | None) -> bool:
    """If samples are two whole groups or more, 32 bits count all groups, and all samples have the same coefficients,
    seed, and upper half of their numbers."""
    alike = key is None or (key.seed.ndim == 0 and key.first_sample >> 32 == (key.first_sample + samples - 1) >> 32)
    return alike and not each and elements % 4 == 0 and elements > 4 and units < MOST_PLAIN


def combine(out: Tensor, operands: list[Tensor], coef: Tensor, key: Key | None, position: Tensor | None = None) -> None:
    """out = ((c0 x + c1 y1) + c2 y2 ...) + cz z, each operation rounded by itself; ``out`` may be operand 0.

    ``out`` and ``coef`` are float32, operands float32, bfloat16 or float16; all are contiguous, but for the
    rows of ``coef`` where a ``position`` says which is read (see :func:`fpfast.reference.combine`).
    """
    elements, units = sizes(out)
    if units == 0:
        return
    seeds, *numbers = (None, 0, 0, 0) if key is None else key
    placed = position, 0 if position is None else coef.stride(0)
    each = coef.ndim == 2 and position is None
    padded = [*operands, None, None, None][:4]
    if _is_plain(elements, units, len(out), each, key):
        programs = min(triton.cdiv(units, LANES), PROGRAMS)
        with on_device(out):
            plain_kernel[(programs,)](
                out, *padded, coef, seeds, units, programs * LANES, *_divisor(elements // 4), *numbers, *placed,
                LANES=LANES, num_warps=WARPS, enable_fp_fusion=False,
            )  # fmt: skip
        return
    per_sample = {"COEF_PER_SAMPLE": each, "SEED_PER_SAMPLE": seeds is not None and seeds.ndim == 1}
    with on_device(out):
        combine_kernel[(triton.cdiv(units, LANES),)](
            out, *padded, coef, seeds, elements, units, *numbers, *placed, **per_sample, **options(elements, units)
        )
