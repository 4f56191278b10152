"""fpfast::combine: the CPU kernel against the reference, bit for bit, and torch's own checks of the op."""

import itertools
import math

import pytest
import torch
from conftest import LEVELS, native, same_bits

from fpfast import backends, ops, reference

SHAPES = [(1, 1), (3, 7), (5, 4, 3, 3), (1000, 2), (2, 100_001), (7,), (0, 4), (4, 0)]
KEYS = [None, reference.Key(torch.tensor(-7), 2**33, 2, 5), "per sample"]


def case(shape, operands, per_sample, key, dtypes=(torch.float32,)):
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(shape, generator=generator).to(dtypes[k % len(dtypes)] if k else torch.float32)
        for k in range(operands)
    ]
    coef = torch.randn((shape[0], 5) if per_sample else (5,), generator=generator)
    if key == "per sample":
        key = reference.Key(torch.arange(shape[0]) * 2**35, 0, 1, 3)
    return tensors, coef, key


@native
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("operands", [1, 2, 3, 4])
@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("key", KEYS, ids=["quiet", "seed", "seeds"])
def test_cpu_kernel_has_the_reference_bits(level, operands, per_sample, key):
    from fpfast.native import Cpu

    for shape in SHAPES:
        tensors, coef, one = case(shape, operands, per_sample, key, (torch.float16, torch.float32, torch.bfloat16))
        expected = torch.full(shape, math.nan)
        reference.combine(expected, tensors, coef, one)
        got = torch.full(shape, math.nan)
        Cpu(level).combine(got, tensors, coef, one)
        assert same_bits(got, expected)
        Cpu(level).combine(tensors[0], tensors, coef, one)
        assert same_bits(tensors[0], expected)


@native
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("key", KEYS, ids=["quiet", "seed", "seeds"])
def test_numbers_from_memory(level, key):
    """A position names the step, which is the draw and names the row of coefficients, and the first sample."""
    from fpfast.native import Cpu

    for shape, dtype in itertools.product(SHAPES, (torch.float32, torch.float64)):
        tensors, _, one = case(shape, 3, False, key, (dtype,))
        tensors = [tensor.to(dtype) for tensor in tensors]
        table = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(6)).to(dtype)
        at = one and one._replace(draw=3, first_sample=one.first_sample + 9)
        expected = torch.full(shape, math.nan, dtype=dtype)
        reference.combine(expected, tensors, table[3, 1], at)
        position = torch.tensor([3, 0 if at is None else at.first_sample])
        for kernels in (reference, Cpu(level)) if dtype == torch.float32 else (reference,):
            got = torch.full(shape, math.nan, dtype=dtype)
            kernels.combine(got, tensors, table[:, 1], one, position)
            assert same_bits(got, expected)


@native
@pytest.mark.parametrize("level", LEVELS)
def test_every_half_is_widened_exactly(level):
    from fpfast.native import Cpu

    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    zero, coef = torch.zeros(1, 2**16), torch.tensor([0.0, 1, 0, 0, 0])
    for dtype in (torch.float16, torch.bfloat16):
        halves = every.view(dtype)[None]
        out = torch.empty(1, 2**16)
        Cpu(level).combine(out, [zero, halves], coef, None)
        torch.testing.assert_close(out, halves.float() + 0.0, rtol=0, atol=0, equal_nan=True)


@native
def test_threads_do_not_change_bits(threads):
    tensors, coef, key = case((501, 1003), 3, True, KEYS[1])
    results = []
    for n in (1, 2, 5):
        threads(n)
        results.append(ops.combine(tensors[0], tensors[1:], coef, seed=key.seed, backend="cpu"))
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])


@pytest.mark.parametrize("name", ["cpu", "reference"])
def test_error_against_float64(name):
    """At most twice plain float32 torch's."""
    if (reason := backends.obstacle(name, "cpu", torch.float32)) is not None:
        pytest.skip(reason)
    tensors, coef, _ = case((100, 1000), 4, False, None)
    exact = sum(float(c) * x.double() for c, x in zip(coef, tensors, strict=False))
    plain = sum(c * x for c, x in zip(coef, tensors, strict=False))
    ours = ops.combine(tensors[0], tensors[1:], coef, backend=name)
    assert (ours - exact).abs().max() <= 2 * (plain - exact).abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("per_sample", [False, True])
def test_opcheck(dtype, per_sample):
    x, y = torch.randn(3, 4, dtype=dtype), torch.randn(3, 4, dtype=dtype)
    coef = torch.randn((3, 5) if per_sample else (5,), dtype=dtype)
    backend = backends.pick("auto", "cpu", dtype)
    for seed in (None, torch.tensor(3), torch.tensor([1, 2, 3])):
        args = ([y], coef, seed, 0, 1, 2, backend)
        torch.library.opcheck(torch.ops.fpfast.combine_, (x.clone(), *args))
        args = ([y.clone().requires_grad_()], *args[1:])
        torch.library.opcheck(torch.ops.fpfast.combine, (x.clone().requires_grad_(), *args))
    torch.library.opcheck(
        torch.ops.fpfast.noise,
        (torch.tensor(3), [3, 4], 0, 1, 2, "normal", backends.pick("auto", "cpu", torch.float32)),
    )


def test_ops_check_what_they_are_given_themselves():
    x, seed = torch.zeros(3, 4), torch.tensor(3)
    right = [x + 1]
    for op in (torch.ops.fpfast.combine, torch.ops.fpfast.combine_):
        for ys, coef, key, backend in (
            ([torch.zeros(1, 4)], torch.ones(5), seed, "auto"),
            ([torch.zeros(4, 3).T], torch.ones(5), seed, "auto"),
            (right * 4, torch.ones(5), seed, "auto"),
            (right, torch.ones(2), seed, "auto"),
            (right, torch.ones(5), torch.zeros(2, dtype=torch.int64), "auto"),
            (right, torch.ones(5), torch.tensor(3.0), "auto"),
            (right, torch.ones(5), seed, "cuda"),
            (right, torch.ones(5), seed, "nothing"),
        ):
            with pytest.raises((ValueError, RuntimeError), match=r"^(ys|ys\[0\]|coef|seed|backend): "):
                op(x, ys, coef, key, 0, 1, 2, backend)
    with pytest.raises(ValueError, match="memory"):
        torch.ops.fpfast.combine_(x, [x], torch.ones(5), None, 0, 1, 2, "auto")
    for arguments in (
        (torch.tensor(3.0), [3, 4], 0, 1, 2, "normal", "auto"),
        (torch.zeros(2, dtype=torch.int64), [3, 4], 0, 1, 2, "normal", "auto"),
        (seed, [-3, 4], 0, 1, 2, "normal", "auto"),
        (seed, [3, 4], -1, 1, 2, "normal", "auto"),
        (seed, [3, 4], 0, 1, 2, "cauchy", "auto"),
        (seed, [3, 4], 0, 1, 2, "normal", "cuda"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=r"^(seed|shape|first_sample|kind|backend): "):
            torch.ops.fpfast.noise(*arguments)


def test_gradients():
    x, y = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for coef in (torch.randn(5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)):
        torch.autograd.gradcheck(lambda x, y, c=coef: ops.combine(x, [y], c, seed=torch.tensor(1)), (x, y))


def test_autograd_notices_an_in_place_change():
    """A tensor saved for backward and then overwritten must not give a wrong gradient silently."""
    w = torch.ones(3, 2, requires_grad=True)
    a = torch.ones(3, 2)
    z = (a * w).sum()
    ops.combine_(a, [], torch.tensor([10.0, 0, 0, 0, 0]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.backward()


def test_compiles_whole():
    """torch.compile(fullgraph=True) of a solver step, with steps that change; one compilation serves all."""
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def step(x, y, coef, seed, draw):
        quiet = ops.combine(x, [torch.tanh(y)], coef)
        return ops.combine_(quiet, [y], coef, seed=seed, draw=draw)

    compiled = torch.compile(step, fullgraph=True, backend=keep)
    x, y, coef, seed = torch.randn(5, 6), torch.randn(5, 6), torch.randn(5), torch.tensor(9)
    for draw in (3, 4, 5):
        assert torch.equal(compiled(x, y, coef, seed, draw), step(x, y, coef, seed, draw))
    assert len(graphs) <= 2  # the first with a constant draw, the second for any


@pytest.mark.slow
def test_compiles_whole_with_inductor():
    def step(x, y, coef, seed):
        return ops.combine(x, [torch.tanh(y) * 2], coef, seed=seed, draw=7)

    x, y, coef, seed = torch.randn(5, 6), torch.randn(5, 6), torch.randn(5), torch.tensor(9)
    compiled = torch.compile(step, fullgraph=True)
    torch.testing.assert_close(compiled(x, y, coef, seed), step(x, y, coef, seed))


@native
@pytest.mark.slow
def test_more_than_two_to_the_31_elements():
    """8.6 GB in place: the last samples are those of a small run that is numbered to begin there."""
    samples, tail = 2**29 + 5, 7
    x = torch.ones(samples, 4)
    coef = torch.tensor([0.5, 0, 0, 0, 2.0])
    ops.combine_(x, [], coef, seed=torch.tensor(3), backend="cpu")
    expected = torch.ones(tail, 4)
    ops.combine_(expected, [], coef, seed=torch.tensor(3), first_sample=samples - tail, backend="reference")
    assert same_bits(x[-tail:], expected)
