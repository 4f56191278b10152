"""What the kernels of whole networks share: programs in the device's memory, and products of tiles on tensor cores."""

import triton
import triton.language as tl
from fpfast.kernels.groups import NVIDIA

# A program is one warp and takes 16 samples. With more samples, or more warps for as many, the compiler runs out of
# registers or repeats products in several warps.
SAMPLES, ROWS, WARPS = 16, 16, 1
NOTHING = tl.constexpr(-1)  # as csrc/kernels.h has it


@triton.jit
def field(line, K: tl.constexpr):
    """A number of an instruction or an action; all count within a tile or a program, for which 32 bits do."""
    return tl.load(line + K).to(tl.int32)


@triton.jit
def opaque(x):
    """x, an int32 number, of which the compiler does not know that it stays the same: it would compute addresses from
    it before a loop, and keep them in registers all the way through."""
    if NVIDIA:
        x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], tl.int32, False, 1)
    return x


@triton.jit
def _split(x):
    """A number's upper 11 bits, rounded, and what is left."""
    high = ((x.to(tl.uint32, bitcast=True) + 0x1000) & 0xFFFFE000).to(tl.float32, bitcast=True)
    return high, x - high


@triton.jit
def plus_product(sums, x, w):
    """sums + x w, all but 2^-22 of it; three products of tensor cores, as csrc/cuda/tile.h has them."""
    if NVIDIA:  # tl.dot's own "tf32x3" takes half as many instructions again
        high, low = _split(x)
        w_high, w_low = _split(w)
        sums = tl.dot(low, w_high, sums, input_precision="tf32")
        sums = tl.dot(high, w_low, sums, input_precision="tf32")
        sums = tl.dot(high, w_high, sums, input_precision="tf32")
    else:
        sums = tl.dot(x, w, sums, input_precision="ieee")
    return sums
