"""How far a score is from solving the Fokker-Planck equation of its SDE.                                       FORMS"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fpfast import fused_residual, noise
from fpfast.divergence import ESTIMATORS, Estimated, Estimator, average, make_probes
from fpfast.errors import bad, flag, key
from fpfast.fused import EXACT_DIVERGENCE
from fpfast.points import Points, Probes, dot
from fpfast.score import Score


def _of_score(estimator: Estimator, at: Points, probes: Probes) -> Iterator[Tensor]:
    return estimator.residual(at, probes)


def _of_log_density(estimator: Estimator, at: Points, probes: Probes) -> Iterator[Tensor]:
    if at.score.predicts != "potential":
        raise bad("form", "'score' for a network that is no potential", "'log_density'")
    d_t, a, g2 = at.d_t_potential, at.a.flatten(), at.g2.flatten()
    s = at.value
    known = d_t + a * at.dimension + a * dot(at.x, s) - g2 / 2 * dot(s, s)
    for divergence in estimator.divergence(at, probes):
        residual = known - g2 / 2 * divergence
        yield residual if at.graph else residual.detach()


FORMS = {"score": _of_score, "log_density": _of_log_density}


@torch.inference_mode(False)
def fp_residual(
    score: Score,
    x: Tensor,
    t: float | Tensor,
    *,
    form: str = "score",
    estimator: str = "auto",
    probes: int = 1,
    seed: noise.Seed = None,
    h: float | None = None,
    distribution: str = "rademacher",
    create_graph: bool = False,
) -> Estimated:
    """The residual of the Fokker-Planck equation of dX = a X dt + g dW at (x, t).

    form="score", shape of x (Lai et al., arXiv 2210.04296, eq. 9):

        eps = d_t s - grad[ g^2/2 (div s + |s|^2) - a x.s - a d ]
            = d_t s + a s + J^T (a x - g^2 s) - g^2/2 grad(div s),      J = ds/dx

    form="log_density", shape (B,), for potentials phi with s = grad phi (Deveney et al., arXiv 2311.15996):

        R = d_t phi + a d + a x.s - g^2/2 (|s|^2 + div s),              eps = grad R

    Both vanish for the score of a density that the SDE carries. "taylor", "finite_difference" and "martingale" take s
    for a gradient: for another score their "score" form differs from eps by (J - J^T) w + g^2/2 (grad div s -
    Laplacian s), w = a x - g^2 s. The "log_density" form takes from the estimator what it says of div s.

    Args:
        estimator: a key of ``ESTIMATORS``, or "auto": "exact" for networks of :func:`fpfast.fused.compile` up to d = 64
            (which have kernels of their own, see ``fused_residual.FUSED``) and for at most 16 dimensions if autograd
            goes through the network twice, else "martingale" (two more evaluations of the network, no derivatives of
            higher order). The result says which it was.
        h: the step in time of "martingale" and "finite_difference"; default: c std^2 / g^2 with c = 4 epsilon^(1/2) and
            2 epsilon^(1/3), epsilon the dtype's. A smaller one loses digits (rounding grows with 1 / h), a larger one
            adds bias (which grows with h).
        others: as for :func:`fpfast.divergence`.

    Returns:
        (value, error, estimator); the error is that of the mean over the probes, component by component.

    Raises ValueError for arguments out of range or a form that the network does not have, RuntimeError where a named
    estimator cannot differentiate the network.
    """
    form = key("form", form, FORMS)
    at = Points(score, x, t, flag("create_graph", create_graph), h)
    name = pick(estimator, form, at)
    drawn = make_probes(name, at, probes, seed, distribution)
    if (engine := fused_residual.serve(score, x, form, name, create_graph)) is not None:
        with torch.set_grad_enabled(create_graph):
            given = [None] if name == "exact" else [drawn.some(k, 1) for k in range(drawn.count)]
            return average(name, (engine.values(x, at.t, probe) for probe in given))
    return average(name, FORMS[form](ESTIMATORS[name], at, drawn))


def pick(estimator: str, form: str, at: Points) -> str:
    """A key of ``ESTIMATORS``: the named one, or what "auto" stands for."""
    if key("estimator", estimator, ("auto", *ESTIMATORS)) != "auto":
        return estimator
    if fused_residual.serve(at.score, at.x, form, "exact") is not None:
        return "exact"
    return "exact" if at.dimension <= EXACT_DIVERGENCE and _twice(at) else "martingale"


def _twice(at: Points) -> bool:
    """If autograd differentiates the score twice; tried on one point."""
    one = Points(at.score, at.x[:1].detach(), at.t[:1].detach(), graph=False)
    try:
        next(ESTIMATORS["hutchinson"].residual(one, Probes(one.x, 1, noise.seed_tensor(0, 1), "rademacher")))
    except (RuntimeError, NotImplementedError, ValueError):
        return False
    return True
