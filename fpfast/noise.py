"""Counter-based noise: the same seed gives the same bits on every backend, device, batch size and thread count. STREAMS

Philox4x32-10 with key = seed and counter = (element // 4 within one sample, sample, stream, draw); see docs/noise.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fpfast import ops, reference
from fpfast.backends import usable
from fpfast.errors import bad, integer, key, sizes

STREAMS = {"prior": 0, "step": 1, "corrector": 2, "probes": 3, "times": 4, "data": 5}

Seed = int | torch.Generator | Sequence[int] | Tensor | None


def philox(counter: Sequence[Any], key: Sequence[Any]) -> tuple[Tensor, ...]:
    """Philox4x32-10 (Salmon et al. 2011): four words from a counter of four words and a key of two.

    Each word is an integer or an int64 tensor of integers in [0, 2^32); tensors broadcast. Returns four int64 tensors.
    Raises ValueError for another number of words, or for words out of range.
    """
    if len(counter) != 4 or len(key) != 2:
        raise bad("counter, key", "four words and two words", f"{len(counter)} and {len(key)}")
    words = [torch.as_tensor(word) for word in (*counter, *key)]
    for word in words:
        if word.is_floating_point() or (word.numel() and not 0 <= int(word.min()) <= int(word.max()) <= reference.MASK):
            raise bad("counter, key", "integers in [0, 2^32)", word)
    words = [word.to(torch.int64) for word in words]
    return reference.philox((words[0], words[1], words[2], words[3]), (words[4], words[5]))


def _signed(seed: Any) -> int:
    number = integer("seed", seed, 0, 2**64 - 1)
    return number - 2**64 if number >= 2**63 else number


def seed_tensor(seed: Seed, samples: int, device: torch.device | str = "cpu") -> Tensor:
    """The int64 tensor that the ops take: shape () for one seed, (samples,) for one seed per sample.

    ``None`` draws a seed from torch's default generator (so ``torch.manual_seed`` rules), a ``torch.Generator`` is
    drawn from. With one seed per sample, a sample's noise depends on its own seed only, not on its place.
    Raises ValueError for anything else, or for a wrong number of seeds.
    """
    if seed is None or isinstance(seed, torch.Generator):
        where = seed.device if isinstance(seed, torch.Generator) else "cpu"
        return torch.randint(2**63 - 1, (), generator=seed, device=where).to(device)
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or tuple(seed.shape) not in ((), (samples,)):
            raise bad("seed", f"int64 of shape () or ({samples},)", f"{seed.dtype} of shape {tuple(seed.shape)}")
        return seed.to(device).contiguous()
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        if len(seed) != samples:
            raise bad("seed", f"one seed, or one for each of the {samples} samples", f"{len(seed)} seeds")
        return torch.tensor([_signed(one) for one in seed], dtype=torch.int64, device=device)
    return torch.tensor(_signed(seed), dtype=torch.int64, device=device)


def _draw(
    kind: str,
    seed: Seed,
    shape: Sequence[int],
    first_sample: int,
    stream: str,
    draw: int,
    device: torch.device | str,
    backend: str,
) -> Tensor:
    number = STREAMS[key("stream", stream, STREAMS)]
    shape = sizes("shape", shape, 0)
    seeds = seed_tensor(seed, shape[0], usable("device", device))
    return ops.noise(kind, seeds, shape, first_sample=first_sample, stream=number, draw=draw, backend=backend)


def normal(
    seed: Seed,
    shape: Sequence[int],
    *,
    first_sample: int = 0,
    stream: str = "step",
    draw: int = 0,
    device: torch.device | str = "cpu",
    backend: str = "auto",
) -> Tensor:
    """Standard normal float32 values by Box-Muller, shape (samples, ...).

    Args:
        seed: an integer in [0, 2^64), a torch.Generator, one integer per sample, or None (torch's default generator).
        shape: number of samples, then the shape of one.
        first_sample: number of the first sample; value [k] with first_sample = 0 is value [0] with first_sample = k.
        stream: a key of ``STREAMS``.
        draw: which draw of this stream, usually the step; below 2^32.

    Raises ValueError for arguments out of range, RuntimeError for a backend that cannot serve.
    """
    return _draw("normal", seed, shape, first_sample, stream, draw, device, backend)


def uniform(
    seed: Seed,
    shape: Sequence[int],
    *,
    first_sample: int = 0,
    stream: str = "step",
    draw: int = 0,
    device: torch.device | str = "cpu",
    backend: str = "auto",
) -> Tensor:
    """Uniform float32 values in (0, 1]: u = float(word) 2^-32 + 2^-33. Arguments as for :func:`normal`."""
    return _draw("uniform", seed, shape, first_sample, stream, draw, device, backend)


def rademacher(
    seed: Seed,
    shape: Sequence[int],
    *,
    first_sample: int = 0,
    stream: str = "probes",
    draw: int = 0,
    device: torch.device | str = "cpu",
    backend: str = "auto",
) -> Tensor:
    """float32 values +1 or -1 with equal chance (the top bit of the word). Arguments as for :func:`normal`."""
    return _draw("rademacher", seed, shape, first_sample, stream, draw, device, backend)
