"""Noise and linear combinations in Triton, as ``csrc/cuda/combine.cu`` has them."""

import triton
import triton.language as tl
from fpfast.kernels.groups import LANES, NUMBERS, on_device, options, place, sizes, state, values, words
from torch import Tensor

from fpfast.reference import Key


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


def combine(out: Tensor, operands: list[Tensor], coef: Tensor, key: Key | None, position: Tensor | None = None) -> None:
    """out = ((c0 x + c1 y1) + c2 y2 ...) + cz z, each operation rounded by itself; ``out`` may be operand 0.

    ``out`` and ``coef`` are float32, operands float32, bfloat16 or float16; all are contiguous, but for the
    rows of ``coef`` where a ``position`` says which is read (see :func:`fpfast.reference.combine`).
    """
    elements, units = sizes(out)
    if units == 0:
        return
    seeds, *numbers = (None, 0, 0, 0) if key is None else key
    step_stride = 0 if position is None else coef.stride(0)
    each = coef.ndim == 2 and position is None
    per_sample = {"COEF_PER_SAMPLE": each, "SEED_PER_SAMPLE": seeds is not None and seeds.ndim == 1}
    padded = [*operands, None, None, None][:4]
    with on_device(out):
        combine_kernel[(triton.cdiv(units, LANES),)](
            out,
            *padded,
            coef,
            seeds,
            elements,
            units,
            *numbers,
            position,
            step_stride,
            **per_sample,
            **options(elements, units),
        )
