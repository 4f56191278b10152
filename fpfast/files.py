"""What files may hold: arrays and tensors, of sizes that are looked at before there is memory for them, and no code."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy
import torch
from numpy.lib import format as npy
from torch import Tensor

HEADER = 2**24  # bytes of a safetensors header: room for a hundred thousand tensors
DEFLATED = 1032  # bytes that a byte of a zip archive may become, at most (zlib.net/zlib_tech.html)
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def array(path: Path) -> numpy.ndarray:
    """Of a ``.npy`` file, or of a ``.npz`` file of one. Raises ValueError, and what numpy and zipfile do."""
    if path.suffix == ".npy":
        with path.open("rb") as file:
            return _array(file, path.stat().st_size)
    with _archive(path) as archive:
        entries = archive.infolist()
        if len(entries) != 1:
            raise ValueError(f"{len(entries)} arrays")
        with archive.open(entries[0]) as file:
            return _array(file, entries[0].file_size)


def _array(file: IO[bytes], size: int) -> numpy.ndarray:
    version = npy.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"version {version} of the format")
    shape, _, dtype = _HEADERS[version](file)
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(f"shape {shape} of {dtype} in {size - file.tell()} bytes")
    file.seek(0)
    found = npy.read_array(file, allow_pickle=False)
    return found.astype(found.dtype.newbyteorder("="))


def _archive(path: Path) -> zipfile.ZipFile:
    archive, size = zipfile.ZipFile(path), path.stat().st_size
    for entry in archive.infolist():
        plain = entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if not plain or entry.compress_size > size or entry.file_size > DEFLATED * entry.compress_size:
            archive.close()
            raise ValueError(f"{entry.filename!r} claims {entry.file_size} bytes, in {entry.compress_size}")
    return archive


def pickled(path: Path) -> Any:
    """What a ``.pt`` file holds; see ``stored``. Raises what torch does, which refuses code, and ValueError."""
    if zipfile.is_zipfile(path):
        _archive(path).close()
    return torch.load(path, map_location="cpu", weights_only=True)


def stored(x: Any) -> bool:
    """Whether x is a tensor all of whose numbers were in a file: by its strides a few may look like any number."""
    return (
        isinstance(x, Tensor)
        and (x.layout, x.device.type, x.is_nested, x.is_quantized) == (torch.strided, "cpu", False, False)
        and x.numel() * x.element_size() <= x.untyped_storage().nbytes()
    )


def check_header(path: Path) -> None:
    """Raises ValueError for a safetensors file whose header is longer than the file, or than one should be."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > min(HEADER, path.stat().st_size - 8):
        raise ValueError(f"a header of {length} bytes")
