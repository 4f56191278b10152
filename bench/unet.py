"""What a regulariser costs a training step of a small U-Net: diffusers' UNet2DModel under VP, batch 8.

A step is the loss and its gradients by all parameters. The regulariser is taken at the perturbed data of the denoising
loss, whose evaluation of the network the antithetic pairs share.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fpfast
from bench.gates import GateError
from bench.timing import Run
from fpfast import losses

BATCH, SIZE = 8, 32


class Net(nn.Module):
    """UNet2DModel as net(x, t); its embedding of time expects t of about 0 to 1,000."""

    def __init__(self) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        torch.manual_seed(0)
        self.unet = UNet2DModel(
            sample_size=SIZE,
            block_out_channels=(32, 64),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=1,
            norm_num_groups=8,
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.unet(x, 999 * t).sample


def score() -> fpfast.Score:
    return fpfast.Score(Net(), fpfast.VP(), "noise")


def data() -> Tensor:
    return torch.rand(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1


Loss = Callable[[fpfast.Score, Tensor, Tensor], Tensor]  # score, data, times


def plain(score: fpfast.Score, x0: Tensor, t: Tensor) -> Tensor:
    return losses.dsm(score, x0, weighting="noise", t=t)


def fp_diffusion(score: fpfast.Score, x0: Tensor, t: Tensor) -> Tensor:
    """As Lai et al. (arXiv 2210.04296) compute it: Hutchinson's estimate, double backward, a difference in time.

    The denoising loss shares the evaluation at x.
    """
    sde, h = score.sde, 1e-3
    x, z = losses.perturb(sde, x0, t)
    x.requires_grad_()
    s, v = score(x, t), fpfast.noise.rademacher(None, x.shape)
    loss = (sde.std(t).float()[:, None, None, None] * s + z).square().flatten(1).sum(1).mean()
    trace = (torch.autograd.grad(s, x, v, create_graph=True)[0] * v).flatten(1).sum(1)
    a, g2 = sde.a(t).float(), sde.g2(t).float()
    rate = g2 / 2 * (trace + (s * s).flatten(1).sum(1)) - a * (x * s).flatten(1).sum(1)
    (gradient,) = torch.autograd.grad(rate.sum(), x, create_graph=True)
    eps = (score(x, t + h) - score(x, t - h)) / (2 * h) - gradient
    vector = g2 * (eps.flatten(1).norm(dim=1) / x[0].numel()) ** 2
    return loss + 0.15 * vector.mean() + 0.01 * rate.norm()


def ours(score: fpfast.Score, x0: Tensor, t: Tensor, *, unbiased: bool, fraction: float) -> Tensor:
    loss, x, t, s = losses.dsm(score, x0, weighting="noise", t=t, return_points=True)
    options = {"estimator": "martingale", "unbiased": unbiased, "fraction": fraction, "value": s}
    return loss + 1e-3 * losses.fp_regulariser(score, x, t, **options)


LOSSES: dict[str, Loss] = {
    "denoising alone": plain,
    "FP-Diffusion": fp_diffusion,
    "one pair": partial(ours, unbiased=False, fraction=1.0),
    "two pairs": partial(ours, unbiased=True, fraction=1.0),
    "one pair, fraction 0.25": partial(ours, unbiased=False, fraction=0.25),
    "two pairs, fraction 0.25": partial(ours, unbiased=True, fraction=0.25),
}


def step(name: str) -> tuple[Run, str]:
    held, x0, loss = score(), data(), LOSSES[name]
    parameters = list(held.net.parameters())
    times = torch.linspace(0.1, 0.9, BATCH, dtype=torch.float64)

    def run() -> tuple[Tensor, ...]:
        with sdpa_kernel(SDPBackend.MATH):  # the one that can be differentiated twice
            return torch.autograd.grad(loss(held, x0, times), parameters)

    if not all(bool(g.isfinite().all()) and bool(g.any()) for g in run()):
        raise GateError("expected finite gradients that are not 0")
    count = sum(p.numel() for p in parameters)
    return run, f"{count / 1e6:.2f} M parameters"
