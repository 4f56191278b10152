"""What a training step sees: data, times and points, each a function of the run's seed and of the step.       TIME_LAWS

Nothing here has a state. So a run that goes on from a checkpoint sees what an uninterrupted one would have seen, and
processes that share a batch take places of one and the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Generator, Tensor

from fpfast import noise
from fpfast.errors import bad, brief, dense
from fpfast.sde import SDE

Draw = Callable[[int, Generator], Tensor]  # (n, generator) -> n samples, such as those of fpfast.data.DATA

SPREAD = 0x9E3779B97F4A7C15  # odd, so that seeds stay apart; near ones end up 2^64 / golden ratio from each other
PURPOSES = ("data", "points", "validation", "network")


def _key(seed: int, purpose: str, number: int) -> int:
    """One of 2^64 for everything that is drawn in a run."""
    key = ((seed + 1) * SPREAD + (PURPOSES.index(purpose) << 60) + number) % 2**64
    return key - 2**64 if key >= 2**63 else key


def seeds(seed: int, purpose: str, first: int, count: int) -> Tensor:
    """A seed for each of the samples ``first`` ... of a run, int64, (count,): see fpfast.noise."""
    return torch.arange(count) + _key(seed, purpose, first)


def network_seed(seed: int, step: int) -> int:
    """For what a network itself draws in a step, as dropout does."""
    return _key(seed, "network", step) % 2**63


def _uniform(sde: SDE, keys: Tensor) -> Tensor:
    return sde.t_min + (sde.T - sde.t_min) * noise.uniform(keys, (len(keys), 1), stream="times")[:, 0].double()


def _beta(sde: SDE, keys: Tensor) -> Tensor:
    u = noise.uniform(keys, (len(keys), 2), stream="times").double().amin(1)
    return sde.t_min + (sde.T - sde.t_min) * u


def _log_normal(sde: SDE, keys: Tensor) -> Tensor:
    z = noise.normal(keys, (len(keys), 1), stream="times")[:, 0].double()
    return (1.2 * z - 1.2).exp().clamp(sde.t_min, sde.T)


# How times are drawn on [t_min, T], float64, (B,), from a seed for each.
TIME_LAWS: dict[str, Callable[[SDE, Tensor], Tensor]] = {
    "uniform": _uniform,
    "beta": _beta,  # t_min + (T - t_min) Beta(1, 2), the smaller of two uniforms (Deveney et al., arXiv 2311.15996)
    "log_normal": _log_normal,  # exp N(-1.2, 1.2^2), for t = sigma (Karras et al., arXiv 2206.00364, table 1)
}


def checked(name: str, x: object) -> Tensor:
    """x, if it can be data."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if not dense(x) or x.ndim < 2 or len(x) == 0 or x.dtype not in (torch.float32, torch.float64):
        raise bad(name, "float32 or float64 of shape (N, ...), N > 0", brief(x))
    if not bool(x.isfinite().all()):
        raise bad(name, "finite numbers", "NaN or infinity")
    return x.detach()


class Batches:
    """Batches of ``size`` samples: of a tensor (N, ...) in shuffled epochs, or of a function that draws them."""

    def __init__(self, data: Tensor | Draw, size: int, seed: int) -> None:
        if not isinstance(data, Tensor) and not callable(data):
            raise TypeError(f"data: expected a tensor or a function (n, generator), got {type(data).__name__}")
        self.data, self.size, self.seed = checked("data", data) if isinstance(data, Tensor) else data, size, seed
        self._order = lru_cache(maxsize=2)(self._permutation)
        self._drawn = lru_cache(maxsize=1)(self._draw)  # micro-batches are parts of one

    def __call__(self, step: int, first: int, count: int) -> Tensor:
        """Samples ``first`` ... of the batch of a step."""
        if not isinstance(self.data, Tensor):
            return self._drawn(step)[first : first + count]
        place = step * self.size + first + torch.arange(count)
        epochs = place.div(len(self.data), rounding_mode="floor")
        chosen = [self._order(int(epoch))[place[epochs == epoch] % len(self.data)] for epoch in epochs.unique()]
        return self.data[torch.cat(chosen)]

    @property
    def mark(self) -> str:
        """Tells data from others: a digest of all, or of the first batch of a function."""
        data = self.data if isinstance(self.data, Tensor) else self._drawn(0)
        return hashlib.sha256(data.cpu().contiguous().numpy().tobytes()).hexdigest()

    def _draw(self, step: int) -> Tensor:
        assert not isinstance(self.data, Tensor)
        drawn = self.data(self.size, Generator().manual_seed(_key(self.seed, "data", step)))
        if not isinstance(drawn, Tensor) or len(drawn) != self.size:
            raise bad("data", f"{self.size} samples when asked for them", getattr(drawn, "shape", type(drawn)))
        return checked("data", drawn)

    def _permutation(self, epoch: int) -> Tensor:
        assert isinstance(self.data, Tensor)
        return torch.randperm(len(self.data), generator=Generator().manual_seed(_key(self.seed, "data", epoch)))
