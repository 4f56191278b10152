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

# Scalars, one a coefficient: not every Triton in use can index a constant tuple.
L7, L6, L5, L4, L3, L2, L1, L0 = map(tl.constexpr, reference.LOG)
S3, S2, S1, S0 = map(tl.constexpr, reference.SINE)
C3, C2, C1, C0 = map(tl.constexpr, reference.COSINE)
LN2_HIGH = tl.constexpr(reference.LN2_HIGH)
LN2_LOW = tl.constexpr(reference.LN2_LOW)
SQRT_HALF_BITS = tl.constexpr(reference.SQRT_HALF_BITS)

# Sizes and noise numbers are always 64-bit and never specialised. Left to itself Triton would make a constant of 1,
# and compile again when a number becomes a multiple of 16 or outgrows 32 bits: `draw` changes with every step.
NUMBERS = ["elements", "units", "first_sample", "stream", "draw", "step_stride"]


@triton.jit
def _philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 of uint32 words; any of them may be a scalar."""
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, 0xD2511F53), c0 * 0xD2511F53  # of a 64-bit product LLVM makes slower code
        high1, low1 = tl.umulhi(c2, 0xCD9E8D57), c2 * 0xCD9E8D57
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + 0x9E3779B9, k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def _cubic(a3, a2, a1, a0, x):
    return ((x * a3 + a2) * x + a1) * x + a0


@triton.jit
def _uniform(word):
    """u = float(r) 2^-32 + 2^-33, in (0, 1]."""
    return word.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10


@triton.jit
def _rademacher(word):
    return ((word & 0x80000000) | 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit
def _log_uniform(u):
    """log u for u in [2^-33, 1]."""
    shifted = u.to(tl.int32, bitcast=True) - SQRT_HALF_BITS
    e = (shifted >> 23).to(tl.float32)
    f = ((shifted & 0x007FFFFF) + SQRT_HALF_BITS).to(tl.float32, bitcast=True) - 1.0
    q = _cubic(L7, L6, L5, L4, f)
    q = (((q * f + L3) * f + L2) * f + L1) * f + L0
    tail = e * LN2_LOW + (f + f * f * q)
    return e * LN2_HIGH + tail


@triton.jit
def _with_sign_of(value, bit):
    """``value``, negated where bit 1 of ``bit`` is set."""
    flip = (bit.to(tl.uint32) & 2) << 30
    return (value.to(tl.uint32, bitcast=True) ^ flip).to(tl.float32, bitcast=True)


@triton.jit
def _normal_pair(word0, word1):
    """Box-Muller: (r cos 2 pi v, r sin 2 pi v) with r = sqrt(-2 log u); the angle is reduced to a quarter turn."""
    radius = tl.sqrt_rn(_log_uniform(_uniform(word0)) * -2.0)
    quarters = _uniform(word1) * 4.0
    quadrant = (quarters + 0.5).to(tl.int32)
    r = quarters - quadrant.to(tl.float32)
    r2 = r * r
    s = _cubic(S3, S2, S1, S0, r2) * r
    c = _cubic(C3, C2, C1, C0, r2)
    odd = (quadrant & 1) != 0
    sine = _with_sign_of(tl.where(odd, c, s), quadrant)
    cosine = _with_sign_of(tl.where(odd, s, c), quadrant + 1)
    return radius * cosine, radius * sine


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
