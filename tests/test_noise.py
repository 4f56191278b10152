"""Section "noise" of docs/noise.md: known answers, the same bits on every level, and the right distributions."""

import math

import pytest
import torch
from conftest import LEVELS, bits, native, same_bits
from scipy import stats

from fpfast import noise, reference

KNOWN_ANSWERS = [  # Random123's kat_vectors for philox4x32-10
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, words):
    assert " ".join(f"{int(word):08x}" for word in noise.philox(counter, key)) == words


def test_words_are_numbered_as_specified():
    seed, sample, element, draw = 2**63 + 12345, 2**33 + 7, 9, 2**32 - 1
    counter = (element // 4, sample & 0xFFFFFFFF, (sample >> 32) | (noise.STREAMS["probes"] << 16), draw)
    word = noise.philox(counter, (seed & 0xFFFFFFFF, seed >> 32))[element % 4]
    u = noise.uniform(seed, (1, 12), first_sample=sample, stream="probes", draw=draw)[0, element]
    sign = noise.rademacher(seed, (1, 12), first_sample=sample, stream="probes", draw=draw)[0, element]
    assert float(u) == float(torch.tensor(int(word)).to(torch.float32) * 2.0**-32 + 2.0**-33)
    assert float(sign) == (-1.0 if int(word) >> 31 else 1.0)


@native
@pytest.mark.parametrize("level", LEVELS)
def test_zeros_have_the_sign_of_the_reference(level):
    """Of one word in 2^25 the uniform value is 1, its logarithm 0."""
    from fpfast.native import Cpu

    key, got, want = reference.Key(torch.tensor(1), 3974242, 0, 0), torch.empty(1, 4), torch.empty(1, 4)
    reference.noise(want, "normal", key)
    Cpu(level).noise(got, "normal", key)
    assert want[0, :2].eq(0).all()
    assert same_bits(got, want)


def test_normal_is_box_muller_of_the_words():
    key = reference.Key(torch.tensor(3), 0, 1, 0)
    w = [word.double() * 2.0**-32 + 2.0**-33 for word in reference.words(key, 1000, 4)]
    exact = []
    for u, v in ((w[0], w[1]), (w[2], w[3])):
        radius = (-2 * u.float().double().log()).sqrt()
        angle = 2 * math.pi * v.float().double()
        exact += [radius * angle.cos(), radius * angle.sin()]
    z = noise.normal(3, (1000, 4), backend="reference").double()
    assert (z - torch.cat(exact, dim=1)).abs().max() < 1.2e-6  # the largest is 6.8


@native
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["normal", "uniform", "rademacher"])
@pytest.mark.parametrize("shape", [(3, 7), (1, 1), (1000, 2), (5, 4, 3), (2, 100_003), (70_000, 3)])
def test_cpu_kernel_has_the_reference_bits(level, kind, shape):
    from fpfast.native import Cpu

    for seed in (torch.tensor(-3), torch.arange(shape[0]) * 2**40 + 1):
        key = reference.Key(seed, 2**33 + 5 if seed.ndim == 0 else 0, 3, 2**32 - 1)
        expected, got = torch.full(shape, math.nan), torch.full(shape, math.nan)
        reference.noise(expected, kind, key)
        Cpu(level).noise(got, kind, key)
        assert same_bits(got, expected)


@native
@pytest.mark.parametrize("level", LEVELS)
def test_ten_million_normals_have_the_reference_bits(level):
    from fpfast.native import Cpu

    key = reference.Key(torch.tensor(2026), 0, 1, 0)
    expected, got = torch.empty(1000, 10_000), torch.full((1000, 10_000), math.nan)
    reference.noise(expected, "normal", key)
    Cpu(level).noise(got, "normal", key)
    assert same_bits(got, expected)


def test_one_sample_does_not_depend_on_its_neighbours(threads):
    whole = noise.normal(1, (4000, 33), draw=4)
    for first, count in ((0, 1), (17, 5), (3999, 1), (1000, 3000)):
        assert same_bits(noise.normal(1, (count, 33), first_sample=first, draw=4), whole[first : first + count])
    threads(1)
    assert same_bits(noise.normal(1, (4000, 33), draw=4), whole)


def test_one_seed_per_sample_depends_on_the_seed_alone():
    seeds = [5, 2**64 - 1, 5, 0]
    z = noise.normal(seeds, (4, 6))
    assert same_bits(z[0], z[2])
    for k, seed in enumerate(seeds):
        assert same_bits(z[k], noise.normal(seed, (1, 6))[0])


def test_seed_tensors_may_be_strided():
    seeds = torch.arange(20)[::2]
    assert same_bits(noise.normal(seeds, (10, 3)), noise.normal(seeds.tolist(), (10, 3)))
    assert same_bits(noise.normal(torch.tensor(3).expand(4), (4, 3)), noise.normal([3] * 4, (4, 3)))


def test_seed_none_follows_torch():
    torch.manual_seed(4)
    a = noise.normal(None, (2, 2))
    b = noise.normal(None, (2, 2))
    torch.manual_seed(4)
    assert same_bits(noise.normal(None, (2, 2)), a)
    assert not same_bits(a, b)
    assert same_bits(
        noise.normal(torch.Generator().manual_seed(9), (2, 2)), noise.normal(torch.Generator().manual_seed(9), (2, 2))
    )


def check_normal(n, chunk=10**6, bins=10**6):
    """Moments to the 6th within 5 standard errors, Kolmogorov-Smirnov (at the edges of ``bins``) at level 1e-4."""
    sums, counts = torch.zeros(7, dtype=torch.float64), torch.zeros(bins, dtype=torch.int64)
    for first in range(n // chunk):
        z = noise.normal(7, (1, chunk), first_sample=first)[0].double()
        powers = torch.cumprod(z.expand(6, chunk), dim=0)
        sums[1:] += powers.sum(1)
        counts += torch.bincount((torch.special.ndtr(z) * bins).long().clamp(max=bins - 1), minlength=bins)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (5, 0, 945), (6, 15, 10170)):
        assert abs(float(sums[power]) / n - moment) < 5 * math.sqrt(variance / n), power
    empirical, exact = counts.cumsum(0).double() / n, torch.arange(1, bins + 1, dtype=torch.float64) / bins
    assert stats.kstwobign.sf(float((empirical - exact).abs().max()) * math.sqrt(n)) > 1e-4


def test_normals_are_normal():
    check_normal(10**6)


def test_hundred_million_normals_are_normal():
    check_normal(10**8)


def test_uniforms_are_uniform():
    u = noise.uniform(7, (1000, 1000)).flatten()
    assert stats.kstest(u.numpy(), "uniform").pvalue > 1e-4
    assert float(u.min()) > 0
    assert float(u.max()) <= 1


def test_samples_draws_and_streams_are_uncorrelated():
    n = 10**6
    sides = [
        noise.normal(1, (1, n)),
        noise.normal(1, (1, n), first_sample=1),
        noise.normal(1, (1, n), first_sample=2**32),
        noise.normal(1, (1, n), draw=1),
        noise.normal(1, (1, n), stream="prior"),
        noise.normal(1, (1, n), stream="corrector"),
        noise.normal(2, (1, n)),
        noise.normal(1 + 2**32, (1, n)),
        noise.normal(1, (1, n)).roll(1),
        noise.normal(1, (1, n)).square() / math.sqrt(2) - math.sqrt(0.5),
    ]
    correlation = torch.corrcoef(torch.cat(sides))
    assert (correlation - torch.eye(len(sides))).abs().max() < 5 / math.sqrt(n)


def test_nothing_is_drawn_twice():
    words = torch.stack(reference.words(reference.Key(torch.tensor(0), 0, 1, 0), 1000, 4000)).flatten()
    expected = len(words) ** 2 / 2 / 2**32  # birthday collisions of independent words
    repeated = len(words) - len(words.unique())
    assert abs(repeated - expected) < 5 * math.sqrt(expected)
    assert bits(noise.normal(0, (2, 8)))[0].tolist() != bits(noise.normal(0, (2, 8)))[1].tolist()
