"""Prints how noisy the estimators of divergence and residual are, and how their errors depend on the step h.

    python scripts/estimator_tables.py

The first table is of random perceptrons (potential, tanh, two hidden layers of 64) under VP at t = 0.5: the standard
error of one product with the Jacobian, that is error x sqrt(probes), over the root mean square of the value. The second
is of a mixture's exact score in float32.
"""

from __future__ import annotations

import torch

import fpfast
from fpfast.network import MLP
from fpfast.sde import SDES

POINTS, PROBES = 50, 30
NAMES = ("hutchinson", "hutchpp", "taylor", "martingale", "finite_difference")


def noise_table() -> None:
    print(f"noise of one product, {POINTS} points, {PROBES} probes: divergence | score residual")
    for d in (2, 64, 3072):
        torch.manual_seed(0)
        net = MLP(d, [64, 64], activation="tanh", potential=True).requires_grad_(False)
        score, x = fpfast.Score(net, fpfast.VP(), "potential"), torch.randn(POINTS, d)
        for distribution in fpfast.points.DISTRIBUTIONS:
            cells = []
            for name in NAMES:
                options = {"estimator": name, "probes": PROBES, "seed": 0, "distribution": distribution}
                pair = []
                for call in (fpfast.divergence, fpfast.fp_residual):
                    found = call(score, x, 0.5, **options)
                    pair.append(f"{_rms(found.error) * PROBES**0.5 / _rms(found.value):.2e}")
                cells.append(f"{name} {' | '.join(pair)}")
            print(f"d {d:4}  {distribution:10}  " + "   ".join(cells))


def _rms(x: torch.Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def sweep_table() -> None:
    print("\nmedian |error| of the score residual in float32, d = 2, by c = h g^2 / std^2")
    steps = [10 ** (k / 2) for k in range(-12, 1)]
    print(f"{'':23}" + "".join(f"{c:9.0e}" for c in steps) + "  default")
    gm = fpfast.GaussianMixture(torch.tensor([[1.0, 0.5], [-1.0, 1.0], [0.0, -1.5]]), torch.tensor([0.3, 0.1, 0.7]))
    for sde_name, kind in SDES.items():
        sde = kind()
        t = torch.full((200,), sde.T / 3)
        x = gm.sample(200, torch.Generator().manual_seed(0)) * sde.alpha(t)[:, None]
        x = (x + sde.std(t)[:, None] * torch.randn(200, 2, generator=torch.Generator().manual_seed(1))).float()
        score, scale = gm.score(sde), float(sde.std(sde.T / 3) ** 2 / sde.g2(sde.T / 3))
        exact = fpfast.fp_residual(score, x.double(), t.double(), estimator="taylor", probes=4, seed=0).value
        for name in ("martingale", "finite_difference"):
            errors = []
            for h in [*(scale * c for c in steps), None]:
                found = fpfast.fp_residual(score, x, t, estimator=name, probes=4, seed=0, h=h).value
                errors.append(float((found - exact).norm(dim=1).median()))
            print(f"{sde_name:5} {name:17}" + "".join(f"{e:9.0e}" for e in errors))


if __name__ == "__main__":
    noise_table()
    sweep_table()
