"""The ops that residuals are made of: bits of the reference, gradients to any order, whole graphs, messages."""

import pytest
import torch
from conftest import LEVELS, native, same_bits

from fpfast import backends, noise, pair_ops, reference
from fpfast.reference import KINDS, Key

SHAPES = [(1, 1), (3, 2), (40, 3), (5, 3, 7, 11), (2, 5000), (700, 4), (1, 20001), (0, 4)]
SEEDS = {"one": lambda n: torch.tensor(7), "each": lambda n: torch.arange(n) * 31 + 5}


def inputs(shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    return draw(*shape), draw(*shape), draw(2, *shape), draw(2, *shape), draw(shape[0], 3), draw(shape[0], 2)


def size_of(x):
    return x.double().square().flatten(1).sum(1)


@native
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_bits_of_the_reference(level, shape, seeds, kind):
    """The same bits where nothing is summed up; sums to rounding."""
    from fpfast.native import Cpu

    cpu, key = Cpu(level), Key(SEEDS[seeds](shape[0]), 2**33 if seeds == "one" else 0, 3, 5)
    x, y, pair, other, three, two = inputs(shape)

    def both(name, *outs, arguments):
        found = []
        for kernels in (cpu, reference):
            mine = [torch.full_like(out, torch.nan) for out in outs]
            getattr(kernels, name)(*mine, *arguments)
            found.append(mine)
        return zip(*found, strict=True)

    per_sample = torch.empty(shape[0])
    for a, b in both("pair", torch.empty(2, *shape), arguments=(x, y, three, kind, key)):
        assert same_bits(a, b)
    for a, b in both("probe_times", x, arguments=(two[:, 0].contiguous(), kind, key)):
        assert same_bits(a, b)
    (a, b), (norm, norm_too) = both("defect", x, per_sample, arguments=(x, pair, two))
    assert same_bits(a, b)
    assert bool(((norm - norm_too).abs() <= 1e-5 * size_of(a)).all())
    for a, b in both("product", per_sample, arguments=(x, pair, other, two)):
        sizes = (size_of(reference._defect(x, pair, two)) * size_of(reference._defect(x, other, two))).sqrt()
        assert bool(((a - b).abs() <= 1e-5 * sizes).all())
    for a, b in both("probe_dot", per_sample, arguments=(x, kind, key)):
        scale = (size_of(x) * x[:1].numel()).sqrt()
        assert bool(((a - b).abs() <= 1e-6 * scale + 1e-6).all())


@native
def test_threads_do_not_change_bits(threads):
    found = []
    for count in (1, 2, 3):
        threads(count)
        x, y, pair, other, three, two = inputs((300, 200))
        seed = torch.tensor(3)
        found.append(
            [
                pair_ops.pair(x, y, three, seed=seed),
                *pair_ops.defect(x, pair, two),
                pair_ops.defect_product(x, pair, other, two),
                pair_ops.probe_dot(x, seed=seed),
            ]
        )
    for other in found[1:]:
        assert all(map(same_bits, found[0], other))


@native
def test_parts_of_large_calls_are_one_result():
    """Beyond 2^25 elements a call goes on in parts, after which signals are looked at: four samples and one here."""
    x = noise.normal(0, (5, 1 << 23))
    two, seed = torch.tensor([[0.5, 2.0]] * 5) * torch.arange(1, 6)[:, None], torch.tensor(3)
    three = torch.cat((two, two[:, :1]), 1)

    def run(start, stop):
        some, numbers = x[start:stop], two[start:stop]
        pair = pair_ops.pair(some, some, three[start:stop], seed=seed, first_sample=start)
        other = pair_ops.pair(some, some, three[start:stop], seed=seed, first_sample=start, draw=1)
        r, norm = pair_ops.defect(some, pair, numbers)
        product = pair_ops.defect_product(some, pair, other, numbers)
        dot = pair_ops.probe_dot(some, seed=seed, first_sample=start)
        return [*pair[:, :, -1000:], r, norm, product, dot]

    whole = run(0, 5)
    for start, stop in [(0, 2), (2, 5)]:
        assert all(same_bits(a[start:stop], b) for a, b in zip(whole, run(start, stop), strict=True))


def test_the_pair_is_two_reverse_steps():
    """(1 - h a) x + h g^2 s +- g sqrt(h) v, v the probe that noise.rademacher gives for the key."""
    x, y, _, _, coef, _ = inputs((6, 5))
    found = pair_ops.pair(x, y, coef, seed=torch.tensor(9), draw=4)
    v = noise.rademacher(9, x.shape, draw=4)
    c0, c1, cz = (c[:, None] for c in coef.unbind(1))
    assert same_bits(found[0], c0 * x + c1 * y + cz * v)
    assert same_bits(found[1], c0 * x + c1 * y - cz * v)


OPS = ["pair", "defect", "defect_product", "probe_dot", "probe_times"]


def call(name, dtype=torch.float32, grad=True, shape=(3, 5)):
    """The raw op, and its arguments."""
    x, y, pair, other, three, two = inputs(shape, dtype)
    backend = backends.pick("auto", "cpu", dtype)
    seed, probe = torch.tensor(3), (0, 3, 2, "rademacher", backend)
    column = two[:, 0].contiguous()
    arguments = {
        "pair": (x, y, three, seed, *probe),
        "defect": (x, pair, two, backend),
        "defect_product": (x, pair, other, two, backend),
        "probe_dot": (x, seed, *probe),
        "probe_times": (column, list(x.shape), seed, *probe),
    }[name]
    if grad:
        for tensor in (x, y, pair, other, column):
            tensor.requires_grad_()
    return getattr(torch.ops.fpfast, name), arguments


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_opcheck(name, dtype):
    op, arguments = call(name, dtype)
    torch.library.opcheck(op.default, arguments)


@pytest.mark.parametrize("name", OPS)
def test_ops_check_what_they_are_given_themselves(name):
    op, arguments = call(name, grad=False)
    op(*arguments)
    wrong = [
        (place, bad)
        for place, given in enumerate(arguments)
        if isinstance(given, torch.Tensor)
        for bad in (given.new_zeros(7), given.new_zeros(7, 3, 5)[:, 0], given.to(torch.bfloat16))
    ]
    wrong += [(place, "nothing") for place, given in enumerate(arguments) if isinstance(given, str)]
    wrong += [(place, -1) for place, given in enumerate(arguments) if isinstance(given, int)]
    for place, bad in wrong:
        with pytest.raises((ValueError, RuntimeError), match=r"^\w+: "):  # this op's, or what would have to fit it
            op(*arguments[:place], bad, *arguments[place + 1 :])


@pytest.mark.parametrize("name", OPS)
def test_gradients_of_both_orders(name):
    op, arguments = call(name, torch.float64, shape=(2, 3))
    places = [k for k, a in enumerate(arguments) if isinstance(a, torch.Tensor) and a.requires_grad]

    def function(*tensors):
        given = list(arguments)
        for place, tensor in zip(places, tensors, strict=True):
            given[place] = tensor
        return op(*given)

    tensors = [arguments[place] for place in places]
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


def test_compiles_whole():
    def step(x, y, coef, two, seed):
        ends = pair_ops.pair(x, y, coef, seed=seed).tanh()
        r, norms = pair_ops.defect(y, ends, two)
        return (norms + pair_ops.probe_dot(r, seed=seed)).sum()

    x, y, _, _, three, two = inputs((4, 6))
    found = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        torch.compiler.reset()
        held = x.clone().requires_grad_()
        value = function(held, y, three, two, torch.tensor(1))
        found.append((value, *torch.autograd.grad(value, held)))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b)


def test_nothing_of_the_probe_is_kept():
    """What autograd keeps for the way back is the seed and coefficients, no array like x."""
    x, y, _, _, three, _ = inputs((4, 1000))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        held = x.requires_grad_()
        pair_ops.pair(held, y, three, seed=torch.tensor(1))
        pair_ops.probe_dot(held, seed=torch.tensor(1))
    assert max(kept) == three.numel()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(4)}, "x: expected float32 or float64 of shape"),
        ({"x": torch.ones(4, 3).half()}, "x: expected float32 or float64"),
        ({"y": torch.ones(4, 2)}, r"y: expected shape \(4, 3\)"),
        ({"y": torch.ones(4, 3).double()}, "y: expected torch.float32"),
        ({"y": torch.ones(3, 4).T}, "y: expected a contiguous tensor"),
        ({"coef": torch.ones(4, 2)}, r"coef: expected shape \(4, 3\)"),
        ({"seed": torch.tensor(1.0)}, "seed: expected contiguous int64"),
        ({"seed": 3}, "seed: expected a tensor"),
        ({"kind": "cauchy"}, "kind: expected one of"),
        ({"draw": -1}, "draw: expected an integer"),
        ({"stream": 2**16}, "stream: expected an integer"),
    ],
    ids=str,
)
def test_messages(change, message):
    given = {"x": torch.randn(4, 3), "y": torch.randn(4, 3), "coef": torch.randn(4, 3), "seed": torch.tensor(1)}
    given.update(change)
    with pytest.raises(ValueError, match=message):
        pair_ops.pair(given.pop("x"), given.pop("y"), given.pop("coef"), **given)
