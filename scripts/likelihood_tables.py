"""Prints the tables of docs/likelihood.md: errors on Gaussian mixtures by SDE and solver, coverage, bits per dimension.

python scripts/likelihood_tables.py
"""

from __future__ import annotations

import math

import torch
from scipy import stats
from sklearn.datasets import load_digits
from torch import Tensor

import fpfast
from fpfast.sde import SDE, SDES

CLUSTERS = fpfast.GaussianMixture(
    torch.tensor([[1.0, 0.5], [-1.0, 1.0], [0.0, -1.5]]), torch.tensor([0.1, 0.2, 0.15]), torch.tensor([0.5, 0.3, 0.2])
)
WIDE = fpfast.GaussianMixture(
    torch.tensor([[0.5, 0.0], [-0.5, 0.2]]), torch.tensor([0.7, 0.6]), torch.tensor([0.6, 0.4])
)
SCALE = {"levels": 17, "low": -1.0, "high": 1.0}
RUNS = {
    "heun 64": {"solver": "heun", "steps": 64},
    "heun 128": {"solver": "heun", "steps": 128},
    "rk4 32": {"solver": "rk4", "steps": 32},
    "rk4 64": {"solver": "rk4", "steps": 64},
    "dopri5": {"solver": "dopri5"},
    "heun 64, the SDE's grid": {"solver": "heun", "steps": 64, "times": None},
}


def points(gm: fpfast.GaussianMixture, sde: SDE, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    x = gm.sample(n, generator)
    return sde.alpha(sde.t_min) * x + sde.std(sde.t_min) * torch.randn(x.shape, dtype=x.dtype, generator=generator)


def accuracy(gm: fpfast.GaussianMixture) -> None:
    """Greatest error in nats over 300 samples, the prior's density replaced by the marginal's; then by the prior's."""
    for name, kind in SDES.items():
        sde = kind()
        x = points(gm, sde, 300)
        truth, row, prior = gm.log_prob(x, sde, sde.t_min), [], 0.0
        for run in RUNS.values():
            found = fpfast.log_likelihood(gm.score(sde), x, dtype=torch.float64, **run)
            exchanged = gm.log_prob(found.latent, sde, sde.T) - sde.prior_log_prob(found.latent)
            row.append(f"{float((found.value + exchanged - truth).abs().max()):.1e}")
            prior = max(prior, float(exchanged.abs().max()))
        print("|", " | ".join([f"`{name}`", *row, f"{prior:.1e}"]), "|")


def clusters(d: int) -> fpfast.GaussianMixture:
    means = torch.randn(3, d, generator=torch.Generator().manual_seed(5))
    return fpfast.GaussianMixture(means, torch.tensor([0.3, 0.6, 0.9]))


def correlated(d: int) -> fpfast.GaussianMixture:
    generator = torch.Generator().manual_seed(5)
    root = torch.randn(2, d, d, generator=generator, dtype=torch.float64) / d**0.5
    means = torch.randn(2, d, generator=generator) / 2
    return fpfast.GaussianMixture(means, root @ root.mT + 0.05 * torch.eye(d))


def coverage(name: str, gm: fpfast.GaussianMixture, n: int) -> None:
    """Share of samples whose exact value is within the 95% interval by Student's t, and by the normal law."""
    sde, options = fpfast.VP(), {"solver": "heun", "steps": 24}
    x, score = points(gm, sde, n).float(), gm.score(sde)
    exact = fpfast.log_likelihood(score, x, **options).value
    for distribution in ("rademacher", "normal"):
        for probes in (2, 8, 32):
            found = fpfast.log_likelihood(
                score, x, estimator="hutchinson", probes=probes, distribution=distribution, seed=0, **options
            )
            off, error = (found.value - exact).abs(), found.error
            by_t = float((off < stats.t.ppf(0.975, probes - 1) * error).double().mean())
            by_normal = float((off < 1.96 * error).double().mean())
            spread = float(off.square().mean().sqrt())
            print(f"| {name} | {distribution} | {probes} | {by_t:.3f} | {by_normal:.3f} | {spread:.2f} |")


def digits() -> tuple[Tensor, fpfast.GaussianMixture]:
    """Whole numbers, and the Gaussian fitted to their dequantised values, of scikit-learn's digits."""
    whole = torch.from_numpy(load_digits().images).long().flatten(1)
    data = fpfast.dequantise(whole, seed=1, dtype=torch.float64, **SCALE)
    return whole, fpfast.GaussianMixture(data.mean(0)[None], data.T.cov()[None])


def bits(whole: Tensor, gm: fpfast.GaussianMixture, n: int = 100) -> None:
    sde, d = fpfast.VP(), whole.shape[1]
    x = fpfast.dequantise(whole[:n], seed=2, dtype=torch.float64, **SCALE)
    closed = -(gm.log_prob(x, sde, sde.t_min) / d + math.log(2 / 17)) / math.log(2)
    print(f"closed form, of the data at t_min: {float(closed.mean()):.5f}")
    for label, options in {
        "exact, rk4, 50": {},
        "exact, heun, 100": {"solver": "heun", "steps": 100},
        "exact, dopri5": {"solver": "dopri5"},
        "hutchinson, K = 8, rk4, 50": {"estimator": "hutchinson", "probes": 8, "seed": 0},
        "hutchpp, K = 24, rk4, 50": {"estimator": "hutchpp", "probes": 24, "seed": 0},
    }.items():
        found = fpfast.log_likelihood(gm.score(sde), x, dtype=torch.float64, **options)
        got = fpfast.bits_per_dimension(found, **SCALE)
        worst = float((got.value - closed).abs().max())
        error = "" if got.error is None else f", mean standard error {float(got.error.mean()):.4f}"
        print(f"{label}: {float(got.value.mean()):.5f}, greatest difference {worst:.5f}{error}")


if __name__ == "__main__":
    for mixture in (WIDE, CLUSTERS):
        print("| SDE |", " | ".join([*RUNS, "prior"]), "|")
        accuracy(mixture)
    print("| scores of | probes | K | by t | by the normal law | root mean square error, nats |")
    coverage("three round clusters, d = 12", clusters(12), 1000)
    coverage("two correlated Gaussians, d = 32", correlated(32), 1000)
    whole, fitted = digits()
    coverage("a Gaussian fitted to digits, d = 64", fitted, 300)
    bits(whole, fitted)
