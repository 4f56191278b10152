"""A multilayer perceptron for low-dimensional scores, and how its weights are stored.

The layers are ``input``, ``hidden1`` ... ``hiddenK``, ``output``, so a file holds ``input.weight``, ``input.bias`` and
so on. This is also the layout in which Deveney et al. (arXiv 2311.15996) published theirs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fpfast import activation as activations
from fpfast import files
from fpfast.errors import as_path, bad, flag, integer, sizes


class MLP(nn.Module):
    """y = W_K act(... act(W_0 [x, t] + b_0) ...) + b_K.

    Args:
        dimension: d, the size of one sample.
        hidden: widths of the hidden layers, one or more.
        activation: see :func:`fpfast.activation.activation`.
        potential: one output phi(x, t) of shape (B, 1) in place of d outputs of shape (B, d).
        time_first: t stands before x in the input, not after it.
    """

    def __init__(
        self,
        dimension: int,
        hidden: Sequence[int],
        *,
        activation: str = "silu",
        potential: bool = False,
        time_first: bool = False,
    ) -> None:
        super().__init__()
        dimension, hidden = integer("dimension", dimension, 1, 2**24), sizes("hidden", hidden, 1)
        potential, time_first = flag("potential", potential), flag("time_first", time_first)
        self.options: dict[str, Any] = {
            "dimension": dimension,
            "hidden": list(hidden),
            "activation": activation,
            "potential": potential,
            "time_first": time_first,
        }
        self.dimension = dimension
        self.activation = activations.activation(activation)
        self.time_first = time_first
        names = ["input", *(f"hidden{i}" for i in range(1, len(hidden))), "output"]
        widths = [dimension + 1, *hidden, 1 if potential else dimension]
        for name, fan_in, fan_out in zip(names, widths[:-1], widths[1:], strict=True):
            self.add_module(name, nn.Linear(fan_in, fan_out))

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:  # x: [B, d], t: [B] -> [B, d] or [B, 1]
        t = t.reshape(-1, 1)
        h = torch.cat((t, x) if self.time_first else (x, t), dim=-1)
        *inner, last = self.children()
        for layer in inner:
            h = self.activation(layer(h))
        return last(h)


def _order(layer: str) -> tuple[int, list[int | str]]:
    """Sorts ``input`` first, ``output`` last and numbered layers by number."""
    rank = {"input": 0, "output": 2}.get(layer, 1)
    return rank, [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", layer)]


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of a ``.pt`` / ``.pth`` state dict. Nothing in the file is executed.

    Raises FileNotFoundError, or ValueError when the ending is another one, the file is damaged, or holds anything but
    tensors (a pickle with code is refused).
    """
    path = as_path("file", path)
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise bad("file", "a name that ends in .safetensors, .pt or .pth", repr(str(path)))
    if not path.is_file():
        raise FileNotFoundError(f"file: expected a readable file, got {str(path)!r}, which does not exist")
    try:
        if path.suffix == ".safetensors":
            files.check_header(path)
            tensors = load_file(path)
        else:
            tensors = files.pickled(path)
    except Exception as error:  # each library has error types of its own; the cause stays attached
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise bad("file", "weights and nothing else (no code)", f"{str(path)!r}: {reason}") from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and files.stored(value) for name, value in tensors.items()
    ):
        raise bad("file", "a mapping of names to tensors", f"{str(path)!r}: {type(tensors).__name__}")
    return tensors


def load_mlp(
    path: str | Path,
    hidden: Sequence[int],
    *,
    activation: str = "silu",
    potential: bool = False,
    time_first: bool = False,
) -> MLP:
    """The perceptron whose weights are in a file, in evaluation mode and without gradients for its parameters.

    The layers of the file are taken in the order input, hidden..., output (numbered names by number), whatever they
    are called, and their shapes must be those that ``hidden`` asks for.

    Raises what :func:`load_tensors` raises, and ValueError when layers or shapes do not fit, or weights are not finite.
    """
    tensors = load_tensors(path)
    layers = sorted((name.removesuffix(".weight") for name in tensors if name.endswith(".weight")), key=_order)
    if len(layers) != len(hidden) + 1:
        raise bad("hidden", f"{len(layers) - 1} widths for the {len(layers)} layers {layers} of the file", list(hidden))
    first = tensors[layers[0] + ".weight"]
    if first.ndim != 2 or first.shape[1] < 2:
        raise bad("file", f"a matrix {layers[0] + '.weight'!r} in {str(path)!r}", f"shape {tuple(first.shape)}")
    dimension = first.shape[1] - 1
    net = MLP(dimension, hidden, activation=activation, potential=potential, time_first=time_first)
    state = {}
    for own, layer in zip((name for name, _ in net.named_children()), layers, strict=True):
        for kind in ("weight", "bias"):
            want = net.state_dict()[f"{own}.{kind}"].shape
            got = tensors.get(f"{layer}.{kind}")
            if got is None or got.shape != want:
                came = "nothing" if got is None else tuple(got.shape)
                raise bad("hidden", f"{layer}.{kind} of shape {tuple(want)} in {str(path)!r}", came)
            if not bool(torch.isfinite(got).all()):
                raise bad("file", "finite weights", f"{str(path)!r}: NaN or infinity in '{layer}.{kind}'")
            state[f"{own}.{kind}"] = got.float()
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)
