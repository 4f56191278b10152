"""Checkpoints of a training run: everything that the next step needs, in one file that is replaced as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fpfast import output
from fpfast.errors import bad

FORMAT = 1


def there(path: str | Path, resume: bool) -> bool:
    """If there is one to go on from. Raises ValueError for a path that cannot be written, or is taken and no resume."""
    path = Path(path)
    if path.suffix != ".pt" or not path.parent.is_dir():
        raise bad("checkpoint_file", "a name that ends in .pt, in a folder that exists", repr(str(path)))
    if path.exists() and not resume:
        raise bad("checkpoint_file", "a new file, or resume=True to go on from it", repr(str(path)))
    return path.exists()


def save(
    path: str | Path, recipe: dict[str, Any], step: int, sample: Tensor, state: dict[str, Any], history: list[Any]
) -> None:
    """``sample``: the first one of the data; ``state``: what has a state_dict."""
    content = {
        "format": FORMAT,
        "recipe": recipe,
        "step": step,
        "sample": sample,
        "history": [tuple(record) for record in history],
        **{name: part.state_dict() for name, part in state.items()},
    }
    output.write(Path(path), lambda file: torch.save(content, file))


def load(path: str | Path, recipe: dict[str, Any], sample: Tensor) -> dict[str, Any]:
    """What :func:`save` wrote. Nothing in the file is executed.

    Raises ValueError for a file that is no checkpoint, or one of a run with another recipe or other data.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        version, of, began = found["format"], found["recipe"], found["sample"]
    except Exception as error:  # torch has error types of its own; the cause stays attached
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise bad("checkpoint_file", "a checkpoint of fpfast", f"{str(path)!r}: {reason}") from error
    if version != FORMAT:
        raise bad("checkpoint_file", f"a checkpoint of format {FORMAT}", f"{str(path)!r} of format {version}")
    for name, value in recipe.items():
        if of.get(name) != value:
            raise bad(name, f"{of.get(name)!r}, as in the checkpoint {str(path)!r}", repr(value))
    if not torch.equal(began, sample.cpu()):
        raise bad("data", f"those of the checkpoint {str(path)!r}", "others")
    return found
