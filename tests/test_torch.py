"""vmap, export and autocast over the ops (torch.compile: test_combine.py; docs/torch.md runs the rest)."""

import pytest
import torch
from conftest import same_bits
from torch.func import vmap

import fpfast
from fpfast import ops, pair_ops

COEF = torch.tensor([0.9, 0.1, 0.0, 0.0, 0.3])
X, Y = torch.randn(3, 5, 2), torch.randn(3, 5, 2)
SEEDS = torch.tensor([4, 5, 6])


@pytest.mark.parametrize("in_dims", [(0, 0, None, None), (0, None, 0, 0), (1, 1, None, 0), (None, 0, 0, None)])
def test_vmap_of_a_combination(in_dims):
    """Over any of state, output, coefficients and seed: each slice has its own bits."""

    def of(x, y, coef, seed):
        return ops.combine(x, [y], coef, seed=seed, draw=2)

    whole = [X.movedim(0, in_dims[0] or 0), Y.movedim(0, in_dims[1] or 0), torch.stack([COEF, 2 * COEF, -COEF]), SEEDS]
    arguments = [value if dim is not None else value[0] for value, dim in zip(whole, in_dims, strict=True)]
    got = vmap(of, in_dims=in_dims)(*arguments)
    for k in range(3):
        alone = [a if dim is None else a.select(dim, k).contiguous() for a, dim in zip(arguments, in_dims, strict=True)]
        assert same_bits(got[k], of(*alone))


def test_gradients_through_vmap():
    x, y = X.clone().requires_grad_(), Y.clone().requires_grad_()
    vmap(lambda x, y: ops.combine(x, [y], COEF))(x, y).square().sum().backward()
    expected = 2 * (COEF[0] * X + COEF[1] * Y)
    assert torch.allclose(x.grad, COEF[0] * expected)
    assert torch.allclose(y.grad, COEF[1] * expected)


def test_vmap_of_pairs():
    coef = torch.rand(5, 3)
    pairs = vmap(lambda x, y: pair_ops.pair(x, y, coef, seed=SEEDS[0]))(X, Y)
    for k in range(3):
        assert same_bits(pairs[k], pair_ops.pair(X[k], Y[k], coef, seed=SEEDS[0]))
    r, norms = vmap(lambda x, pair: pair_ops.defect(x, pair, coef[:, :2].contiguous()))(X, pairs)
    assert torch.allclose(norms, r.square().sum(-1), rtol=1e-5)
    dots = vmap(lambda x, seed: pair_ops.probe_dot(x, seed=seed))(X, SEEDS)
    assert same_bits(dots[1], pair_ops.probe_dot(X[1], seed=SEEDS[1]))


def test_sampling_under_autocast():
    net = torch.nn.Linear(2, 2)
    score = fpfast.Score(lambda x, t: -x + 0.1 * net(x), fpfast.VP())
    seen = []
    watched = fpfast.Score(lambda x, t: seen.append(net(x).dtype) or score.net(x, t), fpfast.VP())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = fpfast.sample(watched, (50, 2), steps=20, seed=0)
    assert set(seen) == {torch.bfloat16}
    assert x.dtype == torch.float32
    assert torch.allclose(x, fpfast.sample(score, (50, 2), steps=20, seed=0), atol=0.05)


def test_forward_mode_is_refused():
    """torch's answer for a custom op would be zero."""
    x, coef = torch.ones(3, 2), torch.tensor([2.0, 0, 0, 0, 0])
    calls = {
        "combine": lambda a: ops.combine(a, [], coef),
        "combine, operand": lambda a: ops.combine(x, [a], coef),
        "probe_dot": lambda a: pair_ops.probe_dot(a, seed=torch.tensor(0)),
    }
    for call in calls.values():
        with pytest.raises(RuntimeError, match="fpfast's ops have no forward mode"):
            torch.func.jvp(call, (x,), (x,))
        with pytest.raises(RuntimeError, match="fpfast's ops have no forward mode"):
            torch.func.jacfwd(call)(x)
    with torch.autograd.forward_ad.dual_level():  # of what carries no tangent
        assert torch.equal(ops.combine(x, [], coef), 2 * x)


def test_vmap_over_nothing():
    with pytest.raises(ValueError, match="in_dims: expected one slice or more"):
        torch.func.vmap(lambda a: ops.combine(a, [], torch.tensor([2.0, 0, 0, 0, 0])))(torch.ones(0, 3, 2))
