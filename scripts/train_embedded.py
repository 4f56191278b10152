"""Trains the networks inside the package, ``fpfast/weights/blob_w0`` and ``blob_w1`` (2 and 3 minutes on a core).

    python scripts/train_embedded.py --weight 0 --out fpfast/weights/blob_w0.safetensors
    python scripts/train_embedded.py --weight 1 --out fpfast/weights/blob_w1.safetensors

Setting of Deveney et al. (arXiv 2311.15996): forward process dX = -X dt + dW on [0, 10], potential network
phi(t, x) = 3-80-80-80-1, t = 10 Beta(1, 2), denoising score matching, plus ``weight`` times the mean square of the
log-density Fokker-Planck residual

    R = d_t phi - d - x.grad phi - 1/2 (|grad phi|^2 + Laplacian phi)

times std(t)^2, at uniform points of the box [-4, 4]^2. With softplus(20) in place of their softplus(100) the Laplacian
is less spiky and 12,000 steps are enough. The derivatives in x and t are carried forward through the layers beside the
value (forward Laplacian), so one reverse pass gives the gradient of the loss.
"""

from __future__ import annotations

import argparse
import math

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import trange

from fpfast import data
from fpfast.network import MLP

BETA = 20.0
HORIZON = 10.0


def jets(net: MLP, t: Tensor, x: Tensor, laplacian: bool) -> tuple[Tensor, Tensor, Tensor]:
    """d_t phi (B, 1), grad phi (B, 2) and Laplacian phi (B, 1) of a potential network, with graphs to its weights."""
    *inner, last = net.children()
    value = torch.cat((t, x), dim=1)
    d_t, d_x, trace = None, None, torch.zeros(())
    for layer in (*inner, last):
        value = layer(value)
        if d_x is None:
            d_t, d_x = layer.weight[:, 0], layer.weight[:, 1:].T[:, None]  # (H), (2, 1, H): the input's own derivatives
        else:
            d_t, d_x, trace = d_t @ layer.weight.T, d_x @ layer.weight.T, trace @ layer.weight.T if laplacian else trace
        if layer is last:
            break
        slope = torch.sigmoid(BETA * value)
        if laplacian:
            trace = slope * trace + BETA * slope * (1 - slope) * d_x.square().sum(0)
        d_t, d_x = slope * d_t, slope * d_x
        value = net.activation(value)
    return d_t, d_x.squeeze(-1).T, trace


def times(n: int) -> Tensor:
    """10 Beta(1, 2): the smaller of two uniforms."""
    return HORIZON * torch.rand(2, n, 1).amin(0)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--weight", type=float, required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--points", type=int, default=256)
    args = parser.parse_args()
    torch.manual_seed(0)
    net = MLP(2, (80, 80, 80), activation=f"softplus:{BETA:g}", potential=True, time_first=True)
    optimiser = torch.optim.Adam(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, args.steps)
    generator = torch.Generator().manual_seed(1)
    for _ in (bar := trange(args.steps, mininterval=5)):
        t, x0, noise = times(args.batch), data.blob(args.batch, generator), torch.randn(args.batch, 2)
        std = (-torch.expm1(-2 * t) / 2).sqrt()
        _, score, _ = jets(net, t, x0 * (-t).exp() + std * noise, laplacian=False)
        loss = dsm = (std * score + noise).square().sum(1).mean()
        if args.weight:
            t, x = times(args.points), 8 * torch.rand(args.points, 2) - 4
            d_t, score, trace = jets(net, t, x, laplacian=True)
            residual = d_t - 2 - (x * score).sum(1, keepdim=True) - 0.5 * (score.square().sum(1, keepdim=True) + trace)
            variance = -torch.expm1(-2 * t) / 2  # weighs residuals down where scores, and so residuals, are large
            loss = dsm + args.weight * (variance * residual).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if not math.isfinite(float(loss)):
            raise SystemExit("the loss is not finite")
        bar.set_postfix(dsm=f"{float(dsm.detach()):.4f}", loss=f"{float(loss.detach()):.4f}", refresh=False)
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, args.out)


if __name__ == "__main__":
    main()
