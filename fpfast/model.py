"""Files of trained scores: weights, and beside them what network, SDE and outputs are.                      NETWORKS"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import IO, Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from fpfast import files, output
from fpfast.convnet import ConvNet
from fpfast.errors import as_path, bad, instance, key
from fpfast.network import MLP, load_tensors
from fpfast.score import PREDICTIONS, Score
from fpfast.sde import SDE, SDES

DESCRIPTION = 2**16  # characters, at most

# Networks that can be made again from their ``options``.
NETWORKS: dict[str, type[nn.Module]] = {"mlp": MLP, "conv": ConvNet}


def describe_sde(sde: SDE) -> dict[str, Any]:
    """{"name": a key of SDES, and its fields}."""
    for name, kind in SDES.items():
        if type(sde) is kind:
            return {"name": name, **dataclasses.asdict(cast(Any, sde))}
    raise bad("sde", "one of " + ", ".join(SDES), repr(sde))


def describe(score: Score) -> dict[str, Any]:
    """What :func:`load` makes the score from again. Raises ValueError for networks that are not in ``NETWORKS``."""
    net = score.module
    if score.guidance is not None:
        raise bad("guidance", "None: networks of fpfast have no pair of outputs", score.guidance)
    for name, kind in NETWORKS.items():
        if type(net) is kind:
            network = {"name": name, **cast(dict[str, Any], net.options)}
            return {"network": network, "sde": describe_sde(score.sde), "predicts": score.predicts}
    raise bad("net", "one of " + ", ".join(kind.__name__ for kind in NETWORKS.values()), type(net).__name__)


def write(path: str | Path, score: Score) -> None:
    """Writes a score to a ``.safetensors`` file, whole or not at all."""
    instance("score", score, Score, "fpfast.Score(net, sde, predicts=...)")
    path = as_path("file", path)
    if path.suffix != ".safetensors" or not path.parent.is_dir():
        raise bad("file", "a name that ends in .safetensors, in a folder that exists", repr(str(path)))
    described = json.dumps(describe(score))
    state = cast(nn.Module, score.module).state_dict()
    content = save({name: value.cpu().contiguous() for name, value in state.items()}, {"fpfast": described})

    def writer(file: IO[bytes]) -> None:
        file.write(content)

    output.write(path, writer)


def description(path: str | Path) -> dict[str, Any] | None:
    """What :func:`write` has put beside the weights; None for files of other origin."""
    if Path(path).suffix != ".safetensors" or not Path(path).is_file():
        return None
    try:
        files.check_header(Path(path))
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("fpfast")
        if text is not None and len(text) > DESCRIPTION:
            raise ValueError(f"a description of {len(text)} characters")
        return None if text is None else json.loads(text)
    except Exception as error:  # a damaged file; safetensors has an error type of its own
        raise bad("file", "weights of fpfast", f"{str(path)!r}: {error}") from error


def load(path: str | Path) -> Score:
    """The score that :func:`write` wrote, its network in evaluation mode and without gradients for its parameters.

    Raises FileNotFoundError, or ValueError for files that are damaged or that :func:`write` has not written.
    """
    tensors, found = load_tensors(path), description(path)
    if found is None:
        raise bad("file", "one that fpfast has written, with a description", repr(str(path)))
    try:
        network, sde = dict(found["network"]), dict(found["sde"])
        kind = NETWORKS[key("network", network.pop("name"), NETWORKS)]
        with torch.device("meta"):  # which has no numbers, whatever sizes are described
            wanted = {name: value.shape for name, value in kind(**network).state_dict().items()}
        if wanted != {name: value.shape for name, value in tensors.items()}:
            raise ValueError("layers of other names or shapes")
        net = kind(**network)
        net.to(next(iter(tensors.values())).dtype).load_state_dict(tensors)
        score = Score(
            net, SDES[key("sde", sde.pop("name"), SDES)](**sde), key("predicts", found["predicts"], PREDICTIONS)
        )
    except (KeyError, TypeError, RuntimeError, ValueError, StopIteration) as error:
        raise bad("file", "a description that fits its weights", f"{str(path)!r}: {error}") from error
    if not all(bool(torch.isfinite(value).all()) for value in tensors.values()):
        raise bad("file", "finite weights", f"{str(path)!r}: NaN or infinity")
    net.eval().requires_grad_(False)
    return score
