"""Machine code of every GPU kernel for one architecture, as nvcc and Triton compile it; no GPU is needed."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.sass import Function, functions
from fpfast.reference import KINDS

FORMS = ("log_density", "log_density_probes", "potential", "score")  # in the order of csrc/kernels.h

ROOT = Path(__file__).parents[1]


class Kernel(NamedTuple):
    name: str
    code: Function
    registers: int
    stack: int  # bytes
    shared: int  # bytes a block
    threads: int  # a block


def setting(name: str) -> Any:
    """What setup.py, which cannot be imported, assigns to a name."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    raise LookupError(f"setup.py: expected an assignment to {name}, found none")


def nvcc_version() -> str:
    text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return re.findall(r"release [\d.]+, V([\d.]+)", text)[0]


def _tool(name: str) -> str:
    """nvdisasm or cuobjdump: of the CUDA toolkit, or of Triton, which brings them along."""
    if found := shutil.which(name):
        return found
    from triton import knobs

    return getattr(knobs.nvidia, name).path


def _printed(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _plain(symbol: str) -> str:
    """A kernel's name as one would write it: sum_kernel<Dot<normal>>."""
    name = _printed("c++filt", symbol).strip().removeprefix("void ")
    name = re.sub(r"fpfast::|cuda::|\(anonymous namespace\)::", "", name)
    name = re.sub(r"\(Kind\)(\d)", lambda found: list(KINDS)[int(found[1])], name)
    name = re.sub(r"\(Form\)(\d)", lambda found: FORMS[int(found[1])], name)
    return re.sub(r"\([^()]*\)$", "", name).replace(" >", ">")


def _read(cubin: Path, architecture: str) -> Iterator[Kernel]:
    """All kernels of a file."""
    system = 0 if int(architecture) < 90 else 1024  # bytes of shared memory that the compiler puts before the kernel's
    code = functions(_printed(_tool("nvdisasm"), "-c", str(cubin)))
    usage = _printed(_tool("cuobjdump"), "-res-usage", str(cubin))
    info = re.split(r"\.nv\.info\.(\S+)\n", _printed(_tool("cuobjdump"), "-elf", str(cubin)))
    notes = dict(zip(info[1::2], info[2::2], strict=True))
    for symbol, registers, stack, shared in re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage):
        sizes = re.search(r"EIATTR_(?:MAX_THREADS|REQNTID)\s+Format:.*\s+Value:\s+(\w+) (\w+) (\w+)", notes[symbol])
        if sizes is None:
            raise LookupError(f"{symbol}: expected __launch_bounds__, which give the threads of a block, found none")
        x, y, z = (int(size, 16) for size in sizes.groups())
        own = max(0, int(shared) - system)
        yield Kernel(_plain(symbol), code[symbol], int(registers), int(stack), own, x * y * z)


def cuda(architecture: str, folder: Path) -> Iterator[Kernel]:
    for source in setting("CUDA_SOURCES"):
        cubin = folder / f"{source}_{architecture}.cubin"
        command = ["nvcc", "-cubin", f"-arch=sm_{architecture}", *setting("CUDA_FLAGS")]
        subprocess.run([*command, str(ROOT / f"csrc/cuda/{source}.cu"), "-o", str(cubin)], check=True)
        yield from (kernel._replace(name=f"{source}.cu: {kernel.name}") for kernel in _read(cubin, architecture))


def triton(architecture: str, folder: Path) -> Iterator[Kernel]:
    from bench.launches import compiled

    for name, kernel in compiled(architecture):
        cubin = folder / f"triton_{architecture}.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        (read,) = _read(cubin, architecture)
        # Triton asks for its shared memory at the launch.
        yield read._replace(name=name, shared=read.shared + kernel.metadata.shared)
