"""Data sets to sample from: the two-dimensional ones of the literature, and one of real images.                DATA

Each is a function (n, generator) -> float32 tensor of n samples. The definitions of ``blob``, ``circles2`` and
``checker`` are those of Deveney et al. (arXiv 2311.15996, code at github.com/teojd/ODESDEGap).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy
import torch
from torch import Generator, Tensor

from fpfast import files
from fpfast.errors import as_path, bad, integer, key

BLOB_CENTRES = ((-2, -2), (-2, 2), (2, -2), (2, 2), (0, 0), (4, 0), (-4, 0), (0, 4), (0, -4))
BLOB_SCALE = 0.65
BLOB_VARIANCE = 0.2


def blob(n: int, generator: Generator) -> Tensor:
    """Nine Gaussians of covariance 0.2 I at (+-2, +-2), (0, 0), (+-4, 0), (0, +-4); everything times 0.65."""
    centres = torch.tensor(BLOB_CENTRES, dtype=torch.float32)
    chosen = centres[torch.randint(len(centres), (n,), generator=generator)]
    return BLOB_SCALE * (chosen + math.sqrt(BLOB_VARIANCE) * torch.randn(n, 2, generator=generator))


def circles2(n: int, generator: Generator) -> Tensor:
    """Two rings: radius N(0.65, 0.1^2) or N(1.4, 0.1^2) with equal chance, angle uniform; everything times 2."""
    radius = torch.where(torch.rand(n, generator=generator) < 0.5, 0.65, 1.4)
    radius = radius + 0.1 * torch.randn(n, generator=generator)
    angle = 2 * math.pi * torch.rand(n, generator=generator)
    return 2 * torch.stack((radius * angle.cos(), radius * angle.sin()), dim=1)


def checker(n: int, generator: Generator) -> Tensor:
    """Eight squares of side 0.25 in [-0.5, 0.5]^2 in a checkerboard; everything times 6."""
    row = torch.randint(4, (n,), generator=generator)
    column = 2 * torch.randint(2, (n,), generator=generator) + row % 2
    corner = torch.stack((column, row), dim=1)
    return 6 * (0.25 * (corner + torch.rand(n, 2, generator=generator)) - 0.5)


def _numpy_seed(generator: Generator) -> int:
    return int(torch.randint(2**31 - 1, (), generator=generator))


def moons(n: int, generator: Generator) -> Tensor:
    """scikit-learn's two moons with noise 0.05, centred, times 2."""
    from sklearn.datasets import make_moons

    points, _ = make_moons(n, noise=0.05, random_state=_numpy_seed(generator))
    return torch.from_numpy(2 * (points - numpy.array([0.5, 0.25]))).float()


def swiss_roll(n: int, generator: Generator) -> Tensor:
    """scikit-learn's Swiss roll with noise 0.5, seen from the side (first and third coordinate), divided by 5."""
    from sklearn.datasets import make_swiss_roll

    points, _ = make_swiss_roll(n, noise=0.5, random_state=_numpy_seed(generator))
    return torch.from_numpy(points[:, [0, 2]] / 5).float()


@cache
def _digit_images() -> Tensor:
    from sklearn.datasets import load_digits

    return torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1


def digit_images() -> Tensor:
    """scikit-learn's handwritten digits, (1797, 1, 8, 8) in [-1, 1]."""
    return _digit_images().clone()


def digits(n: int, generator: Generator) -> Tensor:
    """Images of :func:`digit_images`, (n, 1, 8, 8), drawn with replacement."""
    images = _digit_images()
    return images[torch.randint(len(images), (n,), generator=generator)]


DATA: dict[str, Callable[[int, Generator], Tensor]] = {
    "blob": blob,
    "circles2": circles2,
    "checker": checker,
    "moons": moons,
    "swiss_roll": swiss_roll,
    "digits": digits,
}


def draw(name: str, n: int, *, seed: int = 0) -> Tensor:
    """``n`` samples of the data set ``name`` (a key of ``DATA``); the same seed gives the same samples.

    Returns float32, (n, 2), or (n, 1, 8, 8) for digits.
    Raises ValueError for an unknown name or n < 1.
    """
    n = integer("n", n, 1, 2**48)
    seed = integer("seed", seed, 0, 2**64 - 1)
    return DATA[key("data", name, DATA)](n, torch.Generator().manual_seed(seed))


def load(path: str | Path) -> Tensor:
    """The samples of a ``.npy``, ``.npz`` (of one array) or ``.pt`` (one tensor) file as float32, (N, ...).

    Nothing in the file is executed. Raises FileNotFoundError, or ValueError for files that hold anything else, or
    numbers that are not finite.
    """
    path = as_path("data", path)
    if path.suffix not in (".npy", ".npz", ".pt"):
        raise bad("data", "one of " + ", ".join(DATA) + ", or a file that ends in .npy, .npz or .pt", repr(str(path)))
    if not path.is_file():
        raise FileNotFoundError(f"data: expected a readable file, got {str(path)!r}, which does not exist")
    try:
        x = files.pickled(path) if path.suffix == ".pt" else torch.from_numpy(files.array(path))
    except Exception as error:  # each library has error types of its own; the cause stays attached
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise bad("data", "one array of numbers and nothing else (no code)", f"{str(path)!r}: {reason}") from error
    if not files.stored(x) or x.ndim < 2 or len(x) == 0 or x.is_complex():
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise bad("data", "one array of numbers of shape (N, ...), N > 0", f"{str(path)!r}: {got}")
    x = x.detach().float()
    if not bool(x.isfinite().all()):
        raise bad("data", "finite numbers", f"{str(path)!r}: NaN or infinity")
    return x
