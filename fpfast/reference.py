"""The specification in plain torch: every op of the package, on any device, in float32 or float64.

This is the oracle of the tests and the backend of last resort. The noise repeats ``csrc/math`` operation by operation;
each multiply and add is a torch call of its own, so each is rounded by itself and the bits are those of the kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

MASK = 0xFFFFFFFF

# Coefficients of csrc/math/normal.h, highest power first.
LOG = [
    float.fromhex(c)
    for c in [
        "0x1.65c77ep-4",
        "-0x1.2504aep-3",
        "0x1.31852ap-3",
        "-0x1.535d2ep-3",
        "0x1.98d2c0p-3",
        "-0x1.00049ap-2",
        "0x1.5556f4p-2",
        "-0x1.fffffap-2",
    ]
]
SINE = [float.fromhex(c) for c in ["-0x1.2d9bb8p-8", "0x1.465ec6p-4", "-0x1.4abbbap-1", "0x1.921fb6p+0"]]
COSINE = [float.fromhex(c) for c in ["-0x1.4ea9e6p-6", "0x1.03b162p-2", "-0x1.3bd3a2p+0", "0x1p+0"]]
LN2_HIGH, LN2_LOW = float.fromhex("0x1.62e4p-1"), float.fromhex("0x1.7f7d1cp-20")
SQRT_HALF_BITS = 0x3F3504F3


class Key(NamedTuple):
    """Which noise: the words are Philox(counter = (element // 4, sample, stream, draw), key = seed)."""

    seed: Tensor  # int64; () for one seed, (samples,) for one each, every sample then being sample 0
    first_sample: int
    stream: int
    draw: int


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon et al. 2011). All words are int64 tensors that hold values below 2^32."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = ((p1 >> 32) & MASK) ^ c1 ^ k0, p1 & MASK, ((p0 >> 32) & MASK) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def words(key: Key, samples: int, elements: int, position: Tensor | None = None) -> tuple[Tensor, ...]:
    """Four tensors (samples, ceil(elements / 4)): word k belongs to elements 4 group + k.

    ``position``, int64 (draw, first sample), stands in for these numbers of the key.
    """
    device, groups = key.seed.device, (elements + 3) // 4
    group = torch.arange(groups, device=device)
    if key.seed.ndim:
        seed, sample = key.seed[:, None], torch.zeros(samples, 1, dtype=torch.int64, device=device)
    else:
        first = key.first_sample if position is None else position[1]
        seed, sample = key.seed, torch.arange(samples, device=device)[:, None] + first
    c2 = ((sample >> 32) & 0xFFFF) | (key.stream << 16)
    draw = torch.tensor(key.draw, device=device) if position is None else position[0]
    return philox((group, sample & MASK, c2, draw), (seed & MASK, (seed >> 32) & MASK))


def uniform_value(word: Tensor) -> Tensor:
    """u = float(r) 2^-32 + 2^-33, in (0, 1]."""
    return word.to(torch.float32) * 2.0**-32 + 2.0**-33


def rademacher_value(word: Tensor) -> Tensor:
    """+1, or -1 where the top bit is set."""
    return (1 - 2 * (word >> 31)).to(torch.float32)


def _horner(coefficients: list[float], x: Tensor) -> Tensor:
    value = torch.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        value = value * x + c
    return value


def log_uniform(u: Tensor) -> Tensor:
    """log u for u in [2^-33, 1]."""
    shifted = u.view(torch.int32) - SQRT_HALF_BITS
    e = (shifted >> 23).to(torch.float32)
    f = ((shifted & 0x007FFFFF) + SQRT_HALF_BITS).view(torch.float32) - 1.0
    tail = e * LN2_LOW + (f + f * f * _horner(LOG, f))
    return e * LN2_HIGH + tail


def normal_pair(word0: Tensor, word1: Tensor) -> tuple[Tensor, Tensor]:
    """Box-Muller: (r cos 2 pi v, r sin 2 pi v) with r = sqrt(-2 log u)."""
    # On the CPU torch's float32 sqrt can be one unit off in the last place; by way of float64 it is correctly rounded.
    radius = torch.sqrt((-2.0 * log_uniform(uniform_value(word0))).double()).to(torch.float32)
    quarters = uniform_value(word1) * 4.0
    quadrant = (quarters + 0.5).to(torch.int32)
    r = quarters - quadrant.to(torch.float32)
    r2 = r * r
    s, c = _horner(SINE, r2) * r, _horner(COSINE, r2)
    odd = (quadrant & 1).bool()
    sine = torch.where((quadrant & 2).bool(), -torch.where(odd, c, s), torch.where(odd, c, s))
    cosine = torch.where(((quadrant + 1) & 2).bool(), -torch.where(odd, s, c), torch.where(odd, s, c))
    return radius * cosine, radius * sine


def _normal_values(w: tuple[Tensor, ...]) -> list[Tensor]:
    return [*normal_pair(w[0], w[1]), *normal_pair(w[2], w[3])]


KINDS: dict[str, Callable[[tuple[Tensor, ...]], list[Tensor]]] = {
    "normal": _normal_values,
    "uniform": lambda w: [uniform_value(word) for word in w],
    "rademacher": lambda w: [rademacher_value(word) for word in w],
}


def noise(out: Tensor, kind: str, key: Key) -> None:
    """Fills ``out`` (samples, ...) with the values that ``key`` names."""
    out.copy_(_values(out, kind, key))


def _values(like: Tensor, kind: str, key: Key, position: Tensor | None = None) -> Tensor:
    samples = like.shape[0]
    elements = math.prod(like.shape[1:])
    values = torch.stack(KINDS[kind](words(key, samples, elements, position)), dim=-1)
    return values.reshape(samples, (elements + 3) // 4 * 4)[:, :elements].reshape(like.shape).to(like.dtype)


def _per_sample(coef: Tensor, like: Tensor) -> Tensor:
    return coef.reshape(-1, *(1,) * (like.ndim - 1))


def pair(out: Tensor, x: Tensor, y: Tensor, coef: Tensor, kind: str, key: Key) -> None:
    """out = (c0 x + c1 y) +- cz v, [2, samples, ...]."""
    c0, c1, cz = (_per_sample(c, x) for c in coef.unbind(1))
    middle, step = c0 * x + c1 * y, cz * _values(x, kind, key)
    out[0].copy_(middle + step)
    out[1].copy_(middle - step)


def _defect(x: Tensor, pair: Tensor, coef: Tensor) -> Tensor:
    c0, c1 = (_per_sample(c, x) for c in coef.unbind(1))
    return (x - (pair[0] + pair[1]) * 0.5) * c1 + c0 * x


def defect(out: Tensor, norms: Tensor, x: Tensor, pair: Tensor, coef: Tensor) -> None:
    """out = (x - (pair[0] + pair[1]) / 2) c1 + c0 x, and its squared norms."""
    out.copy_(_defect(x, pair, coef))
    norms.copy_(out.square().flatten(1).sum(1))


def product(out: Tensor, x: Tensor, pair: Tensor, other: Tensor, coef: Tensor) -> None:
    """out = the inner product of two defects, [samples]."""
    out.copy_((_defect(x, pair, coef) * _defect(x, other, coef)).flatten(1).sum(1))


def probe_dot(out: Tensor, x: Tensor, kind: str, key: Key) -> None:
    """out = v.x, [samples]."""
    out.copy_((x * _values(x, kind, key)).flatten(1).sum(1))


def probe_times(out: Tensor, coef: Tensor, kind: str, key: Key) -> None:
    """out = c v, [samples, ...]."""
    out.copy_(_per_sample(coef, out) * _values(out, kind, key))


def combine(out: Tensor, operands: list[Tensor], coef: Tensor, key: Key | None, position: Tensor | None = None) -> None:
    """out = ((c0 x + c1 y1) + c2 y2 ...) + cz z, each operation rounded by itself; ``out`` may be an operand.

    ``position``, int64 (step, first sample) on the device, stands in for numbers of the call, so that one can be
    recorded for all steps: ``coef`` is [steps, 5], of which the step's row is read, and the noise has the step as its
    draw and that first sample. The key's own must agree with it in the upper 32 bits of all samples' numbers.
    """
    if position is not None:
        coef = coef.index_select(0, position[:1])[0]
    column = coef.reshape(coef.shape[:-1] + (1,) * (out.ndim - coef.ndim + 1) + coef.shape[-1:])
    total = column[..., 0] * operands[0].to(out.dtype)
    for k, operand in enumerate(operands[1:], start=1):
        total = total + column[..., k] * operand.to(out.dtype)
    if key is not None:
        total = total + column[..., 4] * _values(out, "normal", key, position)
    out.copy_(total)
