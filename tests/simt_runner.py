"""The CUDA kernels as a backend, compiled by g++ and run on the CPU: Python's side of tests/simt."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from emulated import (
    DTYPES,
    KINDS,
    ROOT,
    WRITTEN,
    Combine,
    Noise,
    Probed,
    Watch,
    residual,
    sizes,
    span,
    trajectory,
    values_bytes,
)
from torch import Tensor

from fpfast import reference
from fpfast.packing import Fragments, Scratch

FOLDER = Path(__file__).parent / "simt"
KERNELS = [
    *(ROOT / f"csrc/cuda/{name}.cu" for name in ("combine", "pairs", "residual", "trajectory")),
    FOLDER / "entries.cpp",
]
EXAMPLES = [FOLDER / "examples.cu", FOLDER / "faults/faults.cpp"]
RUNNER = [FOLDER / f"{name}.cpp" for name in ("runner", "fibers", "memory", "tensor")]

NEEDED = [
    pytest.mark.skipif(sys.platform != "linux", reason="the CUDA kernels run on the CPU only under Linux"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++, which compiles the CUDA kernels, is not on PATH"),
]  # of tests that build

COMPILE = ["g++", "-std=c++17", "-O1", "-g1", "-gdwarf-4", "-fPIC", "-ffp-contract=off", f"-I{FOLDER}", "-c"]
KERNEL = ["-x", "c++", "-include", "cuda_runtime.h", "-fno-extern-tls-init"]
CHECKED = ["-fsanitize=thread,alignment,bounds-strict"]  # of which hooks.cpp is the runtime
SANITIZED = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def build(folder: Path, kernels: list[Path], under_sanitizers: bool = False) -> Path:
    """A library of kernels and the runner."""
    own = SANITIZED if under_sanitizers else []
    runner = RUNNER if under_sanitizers else [*RUNNER, FOLDER / "hooks.cpp"]

    def compiled(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        options = [*KERNEL, *(own or CHECKED)] if source in kernels else own
        subprocess.run([*COMPILE, *options, str(source), "-o", str(target)], check=True)
        if source in kernels:
            rename(target, [] if under_sanitizers else ["memcpy", "memmove", "memset"])
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, (*kernels, *runner)))
    library = folder / "simt.so"
    subprocess.run(["g++", "-shared", *own, *map(str, objects), "-ldl", "-o", str(library)], check=True)
    return library


def sanitized(*command: str) -> subprocess.CompletedProcess:
    """Runs Python, with the sanitizers loaded before all else."""
    found = [
        subprocess.run(["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    if not Path(found[0]).is_absolute():
        pytest.skip("g++ has no AddressSanitizer here")
    environment = {**os.environ, "LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)


def rename(file: Path, functions: list[str]) -> None:
    """Gives calls of functions to the runner, and its dynamic shared memory to every ``extern __shared__`` array."""
    symbols = subprocess.run(["readelf", "-Ws", str(file)], check=True, capture_output=True, text=True).stdout
    names = {name: f"simt_{name}" for name in functions}
    names |= dict.fromkeys(re.findall(r" TLS .* UND (\S+)", symbols), "simt_dynamic_shared")
    for old, new in names.items():  # one by one, as objcopy refuses one name for two
        subprocess.run(["objcopy", f"--redefine-sym={old}={new}", str(file)], check=True)


class Simt:
    """The functions of :mod:`fpfast.reference`, by the entry points of csrc/cuda/launch.h."""

    packing = Fragments()

    def __init__(self, library: Path) -> None:
        self.path, self.library = library, ctypes.CDLL(str(library))
        self.first_block = self.blocks = 0  # 0: all
        self.resident, self.warps, self.processors = True, 2, 0  # of a trajectory

    def order(self, threads_reversed: bool, blocks_reversed: bool) -> None:
        self.library.simt_order(threads_reversed, blocks_reversed)

    @property
    def launches(self) -> int:
        """Of kernels, since the library was loaded."""
        self.library.simt_launches.restype = ctypes.c_int64
        return self.library.simt_launches()

    def call(self, name: str, writable: list[Tensor], readable: list[Tensor], *arguments: object) -> None:
        """Calls an entry point, whose kernels may use only these tensors."""
        self.library.simt_forget_buffers()
        for tensors, writes in ((writable, True), (readable, False)):
            for tensor in tensors:
                bytes_ = span(tensor) * tensor.element_size()
                self.library.simt_register(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_size_t(bytes_), writes)
        self.library.simt_blocks(ctypes.c_int64(self.first_block), ctypes.c_int64(self.blocks))
        entry = getattr(self.library, f"simt_{name}")
        entry.restype = ctypes.c_char_p
        given = [ctypes.c_void_p(value.data_ptr()) if isinstance(value, Tensor) else value for value in arguments]
        error = entry(*given)
        if error:
            raise RuntimeError(self.located(error.decode()))

    def located(self, fault: str) -> str:
        """The text of a fault, with the lines of the source in place of an address."""

        def lines(match: re.Match) -> str:
            address = hex(int(match[1], 16) - 1)  # in the call, not behind it
            command = ["addr2line", "-Cfipse", str(self.path), address]
            found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found = re.sub(r"at \S*/| \(discriminator \d+\)", lambda part: "at " * part[0].startswith("at"), found)
            return ", in ".join(re.sub(r"^ *\(inlined by\) ", "", line) for line in found.splitlines())

        return re.sub(r"at 0x([0-9a-f]+)", lines, fault)

    def noise(self, out: Tensor, kind: str, key: reference.Key) -> None:
        count = map(ctypes.c_int64, sizes(out))
        self.call("noise", [out], [key.seed], out, KINDS.index(kind), ctypes.byref(noise(key)), *count)

    def combine(
        self,
        out: Tensor,
        operands: list[Tensor],
        coef: Tensor,
        key: reference.Key | None,
        position: Tensor | None = None,
    ) -> None:
        op = Combine(out.data_ptr(), operands=len(operands), coef=coef.data_ptr())
        if position is None:
            op.coef_per_sample = coef.ndim == 2
        else:
            op.position, op.step_stride = position.data_ptr(), coef.stride(0)
        op.operand[: len(operands)] = [operand.data_ptr() for operand in operands]
        op.dtype[: len(operands)] = [DTYPES.index(operand.dtype) for operand in operands]
        op.noise = noise(key)
        op.samples, op.elements = sizes(out)
        places = [] if position is None else [position]
        self.call("combine", [out], [*operands, coef, *seeds(key), *places], ctypes.byref(op))

    def pair(self, out: Tensor, x: Tensor, y: Tensor, coef: Tensor, kind: str, key: reference.Key) -> None:
        self.probed("pair", x, {"out": out}, {"x": x, "y": y, "coef": coef}, kind, key)

    def probe_times(self, out: Tensor, coef: Tensor, kind: str, key: reference.Key) -> None:
        self.probed("probe_times", out, {"out": out}, {"coef": coef}, kind, key)

    def defect(self, out: Tensor, norms: Tensor, x: Tensor, pair: Tensor, coef: Tensor) -> None:
        self.probed("defect", x, {"out": out, "norms": norms}, {"x": x, "y": pair, "coef": coef})

    def product(self, out: Tensor, x: Tensor, pair: Tensor, other: Tensor, coef: Tensor) -> None:
        self.probed("product", x, {"out": out}, {"x": x, "y": pair, "z": other, "coef": coef})

    def probe_dot(self, out: Tensor, x: Tensor, kind: str, key: reference.Key) -> None:
        self.probed("probe_dot", x, {"out": out}, {"x": x}, kind, key)

    def trajectory(
        self,
        *,
        inputs: list[tuple[Tensor, int]],
        outputs: list[tuple[Tensor, int]],
        host: dict[str, Tensor],
        device: dict[str, Tensor],
        steps: tuple[int, int],
        dimension: int,
        rows: int,
        bfloat16: bool,
        key: reference.Key,
        broken: Tensor | None = None,
        freeze: bool = False,
    ) -> None:
        of_key, tiles = noise(key), -(-len(inputs[0][0]) // 16)
        warps = min(self.warps, tiles)
        run, weights = trajectory(inputs, outputs, device, steps, dimension, rows, of_key, Tensor.data_ptr)
        weights.bfloat16 = bfloat16
        values = warps * values_bytes(rows, dimension, freeze)  # so that there is room for so many warps and no more
        processors = self.processors or -(-tiles // warps)  # with so many no more are wanted
        room = values + (4 * weights.count if self.resident else 3 * 512 * weights.most_fragments)
        self.library.simt_device(processors, room)
        written, read = [tensor for tensor, _ in outputs], [*device.values(), key.seed]
        watch = Watch(freeze=freeze)
        if broken is not None:
            watch.broken = broken.data_ptr()
            written.append(broken)
        self.call("trajectory", written, read, *map(ctypes.byref, (run, watch, weights)))

    def residual(self, *, tensors: dict[str, Tensor | None], numbers: dict[str, int | float]) -> None:
        scratch = Scratch.of(tensors, numbers, self.processors or 2, memory=1 << 34)
        there = {name: tensor for name, tensor in tensors.items() if tensor is not None and name != "program_here"}
        own = [tensor for tensor in scratch if tensor is not None]
        written = [there.pop(name) for name in WRITTEN if name in there] + own
        for tensor in own:
            tensor.fill_(float("nan"))
        run, more = residual(tensors, scratch, numbers, Tensor.data_ptr)
        self.call("residual", written, list(there.values()), ctypes.byref(run), ctypes.byref(more))

    def probed(
        self,
        name: str,
        like: Tensor,
        outputs: dict[str, Tensor],
        inputs: dict[str, Tensor],
        kind: str = "normal",
        key: reference.Key | None = None,
    ) -> None:
        """``like``: a tensor of the samples."""
        op = Probed(kind=KINDS.index(kind), noise=noise(key))
        op.samples, op.elements = sizes(like)
        for field, tensor in {**outputs, **inputs}.items():
            setattr(op, field, tensor.data_ptr())
        scratch = []
        if name in ("defect", "product", "probe_dot"):
            self.library.simt_parts_of.restype = ctypes.c_int64
            parts = self.library.simt_parts_of(ctypes.c_int64(op.elements))
            scratch = [like.new_full((op.samples * parts if parts > 1 else 0,), float("nan"))]
        written, read = [*outputs.values(), *scratch], [*inputs.values(), *seeds(key)]
        self.call(name, written, read, ctypes.byref(op), *scratch)


def seeds(key: reference.Key | None) -> list[Tensor]:
    return [key.seed] if key else []


def noise(key: reference.Key | None) -> Noise:
    if key is None:
        return Noise()
    return Noise(key.seed.data_ptr(), key.seed.ndim == 1, key.first_sample, key.stream, key.draw)
