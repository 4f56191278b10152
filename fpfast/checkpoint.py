"""Checkpoints of a training run: everything that the next step needs, in one file that is replaced as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fpfast import output
from fpfast.errors import as_path, bad

FORMAT = 1


def there(path: str | Path, resume: bool) -> bool:
    """If there is one to go on from. Raises ValueError for a path that cannot be written, or is taken and no resume."""
    path = as_path("checkpoint_file", path)
    if path.suffix != ".pt" or not path.parent.is_dir():
        raise bad("checkpoint_file", "a name that ends in .pt, in a folder that exists", repr(str(path)))
    if path.exists() and not resume:
        raise bad("checkpoint_file", "a new file, or resume=True to go on from it", repr(str(path)))
    return path.exists()


def save(path: str | Path, run: dict[str, Any], step: int, state: dict[str, Any], history: list[Any]) -> None:
    """``run``: what a run that goes on must have in common with this one; ``state``: what has a state_dict."""
    content = {
        "format": FORMAT,
        "run": run,
        "step": step,
        "history": [tuple(record) for record in history],
        "state": {name: part.state_dict() for name, part in state.items()},
    }
    output.write(Path(path), lambda file: torch.save(content, file))


def load(path: str | Path, run: dict[str, Any], state: dict[str, Any]) -> tuple[int, list[Any]]:
    """Gives ``state`` what :func:`save` wrote. Returns step and history. Nothing in the file is executed.

    Raises ValueError for a file that is no checkpoint, and for one of another run: names what differs.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        version, of, states = found["format"], dict(found["run"]), dict(found["state"])
        step, history = int(found["step"]), [tuple(record) for record in found["history"]]
    except Exception as error:  # torch has error types of its own; the cause stays attached
        raise bad("checkpoint_file", "a checkpoint of fpfast", f"{str(path)!r}: {_reason(error)}") from error
    if version != FORMAT:
        raise bad("checkpoint_file", f"a checkpoint of format {FORMAT}", f"{str(path)!r} of format {version}")
    for name, value in run.items():
        if of.get(name) != value:
            raise bad(name, f"{of.get(name)!r}, as in the checkpoint {str(path)!r}", repr(value))
    try:
        for name, part in state.items():
            part.load_state_dict(states[name])
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise bad("checkpoint_file", "a checkpoint of this network", f"{str(path)!r}: {_reason(error)}") from error
    return step, history


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
