"""Activations with their first four derivatives, as csrc/math/activation.h has them: arguments and values are scaled.

What a kernel does not use of them the compiler leaves out.
"""

import triton
import triton.language as tl


def _constants(text: str) -> list[tl.constexpr]:
    return [tl.constexpr(float.fromhex(number)) for number in text.split()]


# Polynomials, the highest power first; names, as not every Triton in use can index a constant tuple.
P4, P3, P2, P1, P0 = _constants("0x1.5bba52p-10 0x1.3cea86p-7 0x1.c6b752p-5 0x1.ebf9bcp-3 0x1.62e42ap-1")
M5, M4, M3, M2, M1, M0 = _constants(
    "0x1.4308f4p-13 0x1.5f07b6p-10 0x1.3b2ba0p-7 0x1.c6af6ep-5 0x1.ebfbdep-3 0x1.62e430p-1"
)
L8, L7, L6, L5, L4, L3, L2, L1, L0 = _constants(
    "0x1.eebcb0p-8 -0x1.5cb4d6p-5 0x1.ce41b2p-4 -0x1.93b2dep-3 0x1.1a41b0p-2 -0x1.6f029ep-2 0x1.ec3ac6p-2"
    " -0x1.715380p-1 0x1.715476p+0"
)
S2, S1, S0 = _constants("-0x1.994cf8p-13 0x1.11075cp-7 -0x1.555546p-3")
C2, C1, C0 = _constants("0x1.9a00ccp-16 -0x1.6c0c86p-10 0x1.55554ap-5")
LN2, LOG2E = _constants("0x1.62e430p-1 0x1.715476p+0")
TWO_BY_PI, TURN1, TURN2, TURN3 = _constants("0x1.45f306p-1 -0x1.92p+0 -0x1.fb4p-12 -0x1.4442d2p-24")
EXACT_TWO_BY_PI, EXACT_TURN1, EXACT_TURN2 = _constants(
    "0x1.45f306dc9c883p-1 0x1.921fb54442d18p+0 0x1.1a62633145c07p-54"
)
ROUND, EXACT_ROUND = _constants("0x1.8p23 0x1.8p52")  # added and subtracted, they leave the nearest whole number
GELU = tl.constexpr(float.fromhex("0x1.988454p+0"))  # 2 sqrt(2 / pi)
CUBIC = tl.constexpr(0.044715)

TANH, SOFTPLUS, SILU, GELU_TANH, ELU = map(tl.constexpr, range(5))  # numbers of csrc/math/activation.h; 5 is sine


@triton.jit
def _split_power(x):
    """2^n and f of x = n + f <= 0, |f| <= 1/2; below -126 it is taken for -126."""
    x = tl.where(x < -126.0, -126.0, x)
    shifted = x + ROUND
    whole = ((shifted.to(tl.uint32, bitcast=True) << 23) + 0x3F800000).to(tl.float32, bitcast=True)
    return whole, x - (shifted - ROUND)


@triton.jit
def _power_of_two(x):
    """2^x for x <= 0."""
    whole, f = _split_power(x)
    p = tl.fma(tl.fma(tl.fma(tl.fma(f, P4, P3), f, P2), f, P1), f, P0)
    return tl.fma(whole * f, p, whole)


@triton.jit
def _power_of_two_minus_1(x):
    """2^x - 1 and 2^x for x <= 0."""
    whole, f = _split_power(x)
    p = tl.fma(tl.fma(tl.fma(tl.fma(tl.fma(f, M5, M4), f, M3), f, M2), f, M1), f, M0)
    scaled = whole * f
    return tl.fma(scaled, p, whole - 1.0), tl.fma(scaled, p, whole)


@triton.jit
def _inverse(x):
    return tl.div_rn(tl.full(x.shape, 1.0, tl.float32), x)


@triton.jit
def _logistic(u):
    """e = 2^-|u|, s = 1 / (1 + 2^-u), and the first four derivatives of s(w) = 1 / (1 + e^-w)."""
    e = _power_of_two(tl.abs(u) * -1.0)
    r = _inverse(e + 1.0)
    s = tl.where(u < 0, e * r, r)
    first = e * r * r
    second = first * tl.fma(s, -2.0, 1.0)
    return e, s, first, second, first * tl.fma(first, -6.0, 1.0), second * tl.fma(first, -12.0, 1.0)


@triton.jit
def _tanh(u):
    m, e = _power_of_two_minus_1(tl.abs(u) * -1.0)
    r = _inverse(m + 2.0)
    value = tl.where(u < 0, m * r, m * r * -1.0)
    first = e * r * r * 4.0
    second = value * first * -2.0
    return value, first, second, first * tl.fma(first, -6.0, 4.0), second * tl.fma(first, -12.0, 4.0)


@triton.jit
def _softplus(u, beta):
    e, s, first, second, third, _ = _logistic(u)
    q = tl.fma(tl.fma(tl.fma(tl.fma(e, L8, L7), e, L6), e, L5), e, L4)  # log2(1 + e) / e on [0, 1]
    q = tl.fma(tl.fma(tl.fma(tl.fma(q, e, L3), e, L2), e, L1), e, L0)
    value = tl.fma(q, e, tl.where(u < 0, 0.0, u))
    return value, s, first * beta, second * (beta * beta), third * (beta * beta * beta)


@triton.jit
def _silu(u):
    _, s, first, second, third, fourth = _logistic(u)
    z = u * LN2
    return (u * s, tl.fma(z, first, s), tl.fma(z, second, first * 2.0), tl.fma(z, third, second * 3.0),
            tl.fma(z, fourth, third * 4.0))  # fmt: skip


@triton.jit
def _gelu(z):
    z2 = z * z
    _, s, first, second, third, fourth = _logistic(z * tl.fma(z2, GELU * CUBIC * LOG2E, GELU * LOG2E))
    w1 = tl.fma(z2, 3 * GELU * CUBIC, GELU)
    w2 = z * (6 * GELU * CUBIC)
    w1_2 = w1 * w1
    # Derivatives of s(w(z)), then h'... = z s(w)'... + n s(w)'...
    s1 = first * w1
    s2 = tl.fma(second, w1_2, first * w2)
    s3 = tl.fma(third * w1_2, w1, tl.fma(second * (w1 * w2), 3.0, first * (6 * GELU * CUBIC)))
    s4 = second * tl.fma(w2 * w2, 3.0, w1 * (4 * (6 * GELU * CUBIC)))
    s4 = tl.fma(fourth * w1_2, w1_2, tl.fma(third * (w1_2 * w2), 6.0, s4))
    return z * s, tl.fma(z, s1, s), tl.fma(z, s2, s1 * 2.0), tl.fma(z, s3, s2 * 3.0), tl.fma(z, s4, s3 * 4.0)


@triton.jit
def _elu(u, alpha):
    m, e = _power_of_two_minus_1(tl.abs(u) * -1.0)
    slope = e * alpha
    below = u <= 0
    curve = tl.where(below, slope, 0.0)
    return tl.where(below, m * (alpha * LOG2E), u), tl.where(below, slope, 1.0), curve, curve, curve


@triton.jit
def _reduce_large(z, r, quadrant):
    """r and the number of quarter turns by way of float64; from 2^48 on that does not count turns well enough."""
    shifted = tl.fma(z.to(tl.float64), EXACT_TWO_BY_PI, EXACT_ROUND)
    turns = shifted - EXACT_ROUND
    exact = tl.fma(turns * -1.0, EXACT_TURN2, tl.fma(turns * -1.0, EXACT_TURN1, z.to(tl.float64)))
    far = tl.abs(z) >= 281474976710656.0
    large = tl.abs(z) > 8192.0
    r = tl.where(large, tl.where(far, z - z, exact.to(tl.float32)), r)
    return r, tl.where(large, shifted.to(tl.uint64, bitcast=True).to(tl.uint32), quadrant)


@triton.jit
def _turned(value, quadrant):
    """Negated in the third and fourth quarter."""
    return (value.to(tl.uint32, bitcast=True) ^ ((quadrant << 30) & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def _sine(z):
    shifted = tl.fma(z, TWO_BY_PI, ROUND)
    n = shifted - ROUND
    r = tl.fma(n, TURN3, tl.fma(n, TURN2, tl.fma(n, TURN1, z)))
    quadrant = shifted.to(tl.uint32, bitcast=True)
    if tl.max(tl.abs(z)) > 8192.0:
        r, quadrant = _reduce_large(z, r, quadrant)
    r2 = r * r
    s = tl.fma(tl.fma(tl.fma(r2, S2, S1), r2, S0) * r2, r, r)
    c = tl.fma(tl.fma(tl.fma(r2, C2, C1), r2, C0), r2 * r2, tl.fma(r2, -0.5, 1.0))
    odd = (quadrant & 1) != 0
    value = _turned(tl.where(odd, c, s), quadrant)
    first = _turned(tl.where(odd, s, c), quadrant + 1)
    return value, first, value * -1.0, first * -1.0, value


@triton.jit
def activation(kind, u, parameter):
    """(value, first, second, third, fourth) of ``kind``, a number of csrc/math/activation.h."""
    value, first, second, third, fourth = u, u, u, u, u
    if kind == TANH:
        value, first, second, third, fourth = _tanh(u)
    elif kind == SOFTPLUS:
        value, first, second, third, fourth = _softplus(u, parameter)
    elif kind == SILU:
        value, first, second, third, fourth = _silu(u)
    elif kind == GELU_TANH:
        value, first, second, third, fourth = _gelu(u)
    elif kind == ELU:
        value, first, second, third, fourth = _elu(u, parameter)
    else:
        value, first, second, third, fourth = _sine(u)
    return value, first, second, third, fourth


@triton.jit
def scales(kind, parameter):
    """What the argument is to be multiplied by, and then the value."""
    argument = tl.where(kind == TANH, 2 * LOG2E, tl.where((kind == SILU) | (kind == ELU), LOG2E, 1.0))
    argument = tl.where(kind == SOFTPLUS, parameter * LOG2E, argument)
    value = tl.where((kind == SILU) | (kind == ELU), LN2, 1.0)
    return argument, tl.where(kind == SOFTPLUS, _inverse(argument), value)
