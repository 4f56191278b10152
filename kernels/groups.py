"""What the Triton kernels share: a lane for each group of four elements of a sample, that is for each Philox call.

The same arithmetic as ``csrc/cuda``: float32 multiplies and adds in the same order, each rounded by itself
(``enable_fp_fusion=False``), so the bits are those of :mod:`fpfast.reference`.
"""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

from fpfast import reference

# The work is memory traffic and integer arithmetic, the same for every size, so one launch shape serves all: a program
# of 256 groups, one a thread. A grid may have 2^31 - 1 programs: two million million elements, more than any GPU holds.
LANES = 256
WARPS = LANES // 32
SMALL = 2**31 - LANES  # the most units that 32-bit numbers count, those past the end in the last program included

# Scalars, one a coefficient: not every Triton in use can index a constant tuple. Those of the logarithm are of 2 log u,
# for u given as 2^32 u and its exponent e as 2^23 e, as in csrc/math/normal.h.
L7, L6, L5, L4, L3, L2, L1, L0 = (tl.constexpr(2 * c) for c in reference.LOG)
S3, S2, S1, S0 = map(tl.constexpr, reference.SINE)
C3, C2, C1, C0 = map(tl.constexpr, reference.COSINE)
LN2_HIGH = tl.constexpr(reference.LN2_HIGH * 2**-22)
LN2_LOW = tl.constexpr(reference.LN2_LOW * 2**-22)
SQRT_HALF_BITS = tl.constexpr(reference.SQRT_HALF_BITS)
TWO_32 = tl.constexpr(32 << 23)  # 2^32, in an exponent

# Sizes and noise numbers are always 64-bit and never specialised. Left to itself Triton would make a constant of 1,
# and compile again when a number becomes a multiple of 16 or outgrows 32 bits: `draw` changes with every step.
NUMBERS = ["elements", "units", "first_sample", "stream", "draw", "step_stride"]


@triton.jit
def _cubic(a3, a2, a1, a0, x):
    return ((x * a3 + a2) * x + a1) * x + a0


# PTX can be written in a kernel. Not so in the interpreter, which makes something else of a function, nor for AMD.
NVIDIA = tl.constexpr(torch.version.hip is None and isinstance(_cubic, triton.JITFunction))


@triton.jit
def _product(word, CONSTANT: tl.constexpr):
    """Upper and lower half."""
    if NVIDIA:  # of two products, or one in 64 bits, the compilers do not always make one instruction
        both = tl.inline_asm_elementwise("mul.wide.u32 $0, $1, $2;", "=l,r,r", [word, CONSTANT], tl.uint64, True, 1)
        high, low = (both >> 32).to(tl.uint32), both.to(tl.uint32)
    else:
        high, low = tl.umulhi(word, CONSTANT), word * CONSTANT
    return high, low


@triton.jit
def _philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 of uint32 words; any of them may be a scalar."""
    for _ in tl.static_range(10):
        high0, low0 = _product(c0, 0xD2511F53)
        high1, low1 = _product(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def _uniform(word):
    """u = float(r) 2^-32 + 2^-33, in (0, 1]; the product is exact."""
    return tl.fma(word.to(tl.float32), 2.3283064365386963e-10, 1.1641532182693481e-10)


@triton.jit
def _rademacher(word):
    return ((word & 0x80000000) | 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit
def _two_log(word):
    """2 log u for the word's uniform value, with the bits of (e high + (e low + (f + f f q))) 2."""
    bits = (word.to(tl.float32) + 0.5).to(tl.uint32, bitcast=True)
    exponent = (bits - (TWO_32 + SQRT_HALF_BITS)) & 0xFF800000
    f = (bits - exponent - TWO_32).to(tl.float32, bitcast=True) - 1.0
    q = _cubic(L7, L6, L5, L4, f)
    q = (((q * f + L3) * f + L2) * f + L1) * f + L0
    e = exponent.to(tl.int32, bitcast=True).to(tl.float32)
    tail = e * LN2_LOW + tl.fma(f, 2.0, f * f * q)
    return tl.fma(e, LN2_HIGH, tail)  # 6 bits times 15


@triton.jit
def _root(value):
    """The square root, rounded correctly, of 0 and values of moderate size."""
    if NVIDIA:  # as csrc/math/machine.h makes it
        bounded = tl.maximum(value, 8.673617379884035e-19)
        y = tl.inline_asm_elementwise("rsqrt.approx.ftz.f32 $0, $1;", "=f,f", [bounded], tl.float32, True, 1)
        root = value * y
        root = tl.fma(tl.fma(root * -1.0, root, value), y * 0.5, root)
    else:
        root = tl.sqrt_rn(value)
    return root


@triton.jit
def _normal_pair(word0, word1):
    """Box-Muller: (r cos 2 pi v, r sin 2 pi v) with r = sqrt(-2 log u); the angle is reduced to a quarter turn."""
    radius = _root(_two_log(word0) * -1.0)
    quarters = tl.fma(word1.to(tl.float32), 9.313225746154785e-10, 4.656612873077393e-10)  # 4 times the uniform value
    quadrant = (quarters + 0.5).to(tl.int32)
    r = quarters - quadrant.to(tl.float32)
    r2 = r * r
    s = _cubic(S3, S2, S1, S0, r2) * r
    c = _cubic(C3, C2, C1, C0, r2)
    odd = (quadrant & 1) != 0
    half_turns = (quadrant.to(tl.uint32) << 30) & 0x80000000  # a sign: from the third quarter on
    turned = (radius.to(tl.uint32, bitcast=True) ^ half_turns).to(tl.float32, bitcast=True)
    return turned * tl.where(odd, s * -1.0, c), turned * tl.where(odd, c, s)


@triton.jit
def place(elements, units, WHOLE: tl.constexpr, INDEX: tl.constexpr, LANES: tl.constexpr):
    """(sample, group, live) of each lane, and of its four elements the offsets and which of them exist, [LANES, 4].

    INDEX counts the units (samples x groups). Offsets are always 64-bit. WHOLE says that samples are whole groups; the
    offset is then 4 x unit, from which the compiler sees that 128-bit accesses are aligned.
    """
    groups = ((elements + 3) // 4).to(INDEX)
    unit = tl.program_id(0).to(INDEX) * LANES + tl.arange(0, LANES)
    sample = unit // groups
    group = (unit - sample * groups).to(tl.int64)
    live = unit < units
    lane = tl.arange(0, 4)[None, :]
    if WHOLE:
        offset = unit.to(tl.int64)[:, None] * 4 + lane
        exists = live[:, None]
    else:
        within = group[:, None] * 4 + lane
        offset = (sample.to(tl.int64) * elements)[:, None] + within
        exists = live[:, None] & (within < elements)
    return sample.to(tl.int64), group, live, offset, exists


@triton.jit
def words(seeds, sample, group, live, first_sample, stream, draw, SEED_PER_SAMPLE: tl.constexpr):
    """The four Philox words of each lane."""
    if SEED_PER_SAMPLE:
        seed = tl.load(seeds + sample, mask=live, other=0)
        index = tl.zeros_like(sample)  # with a seed of its own, every sample is sample 0
    else:
        seed = tl.load(seeds)
        index = sample + first_sample
    c2 = ((index >> 32) & 0xFFFF).to(tl.uint32) | (stream.to(tl.uint32) << 16)
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    return _philox(group.to(tl.uint32), index.to(tl.uint32), c2, draw.to(tl.uint32), k0, k1)


@triton.jit
def plain_words(seed, sample, group, first_sample, stream, draw):
    """Those of ``words``, with one seed, where all samples have the upper half of ``first_sample``'s number."""
    c1 = first_sample.to(tl.uint32) + sample
    c2 = ((first_sample >> 32) & 0xFFFF).to(tl.uint32) | (stream.to(tl.uint32) << 16)
    return _philox(group, c1, c2, draw.to(tl.uint32), seed.to(tl.uint32), (seed >> 32).to(tl.uint32))


@triton.jit
def _side_by_side(z0, z1, z2, z3, LANES: tl.constexpr):
    """[LANES, 4] of four [LANES]. Nothing moves unless Triton spreads ragged samples over other threads than these."""
    return tl.reshape(tl.join(tl.join(z0, z2), tl.join(z1, z3)), (LANES, 4))


@triton.jit
def values(w0, w1, w2, w3, KIND: tl.constexpr, LANES: tl.constexpr):
    """The four random values of each lane, [LANES, 4]."""
    if KIND == "normal":
        z0, z1 = _normal_pair(w0, w1)
        z2, z3 = _normal_pair(w2, w3)
        z = _side_by_side(z0, z1, z2, z3, LANES)
    elif KIND == "uniform":
        z = _side_by_side(_uniform(w0), _uniform(w1), _uniform(w2), _uniform(w3), LANES)
    else:
        z = _side_by_side(_rademacher(w0), _rademacher(w1), _rademacher(w2), _rademacher(w3), LANES)
    return z


@triton.jit
def state(x, offset, exists):
    """Elements of an operand in float32; 0 where there is none."""
    return tl.load(x + offset, mask=exists, other=0.0).to(tl.float32)


def on_device(out: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensors'. Its interpreter runs on CPU tensors."""
    return torch.cuda.device(out.device) if out.is_cuda else nullcontext()


def sizes(out: Tensor) -> tuple[int, int]:
    elements = math.prod(out.shape[1:])
    return elements, out.shape[0] * ((elements + 3) // 4)


def options(elements: int, units: int) -> dict[str, object]:
    index = tl.int32 if units <= SMALL else tl.int64  # 64-bit division is slow
    return {"WHOLE": elements % 4 == 0, "INDEX": index, "LANES": LANES, "num_warps": WARPS, "enable_fp_fusion": False}
