"""Writing results to files: whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy

from fpfast.errors import bad

Writer = Callable[[IO[bytes]], None]


def check(paths: list[str], allowed: Mapping[str, Any]) -> list[Path]:
    """The paths, if each ends in one of ``allowed`` and lies in a folder that exists. Raises ValueError otherwise."""
    checked = [Path(path) for path in paths]
    for path in checked:
        if path.suffix not in allowed:
            raise bad("--out", "files that end in " + ", ".join(allowed), repr(str(path)))
        if not path.parent.is_dir():
            raise bad("--out", "files in a folder that exists", repr(str(path)))
    return checked


def write(path: Path, writer: Writer) -> None:
    """Calls ``writer`` with a temporary file beside ``path``, then puts it in its place; a failure leaves nothing.

    The file is on the disk before it has its name, and the name before this returns.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            writer(file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    _flush(path.parent)


def _flush(folder: Path) -> None:
    """Makes sure that a name is on the disk, where folders can be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def as_json(value: Any) -> Writer:
    def writer(file: IO[bytes]) -> None:
        file.write(json.dumps(value, indent=2).encode() + b"\n")

    return writer


def as_text(text: str) -> Writer:
    def writer(file: IO[bytes]) -> None:
        file.write(text.encode())

    return writer


def as_csv(rows: list[list[Any]]) -> Writer:
    def writer(file: IO[bytes]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerows(rows)
        file.write(text.getvalue().encode())

    return writer


def as_npz(arrays: Mapping[str, numpy.ndarray]) -> Writer:
    return lambda file: numpy.savez(file, **arrays)  # type: ignore[arg-type]


def as_png(figure: Any) -> Writer:
    return lambda file: figure.savefig(file, format="png", dpi=150)


def print_table(rows: list[list[str]]) -> None:
    """On standard output; the first row is the heading."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for k, row in enumerate(rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        if k == 0:
            print("  ".join("-" * width for width in widths))
