"""The compiled PTX (sm_80) of the CUDA and Triton kernels, run on the CPU by ptxrun, against the reference.

Only this sees what the compilers made of the kernels. ptxrun checks each memory access, and that every output element
is written; its counts give the bytes that the threads ask for. The kernels are reached as users reach them: by
``noise`` and ``combine`` of the Triton module, and through a copy of what ``csrc/cuda/combine.cu`` does on the host.
"""

import ctypes
import importlib
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_triton import BIG_SEED, BRAIN, FAR, HALF, SINGLE, Case, compare, difference
from torch import Tensor

from fpfast import reference

ROOT = Path(__file__).parents[1]
FOLDER = Path(os.environ.get("FPFAST_PTXRUN", ROOT.parent / "shared" / "ptxrun"))
PRESENT = (FOLDER / "ptxrun").is_dir()
if PRESENT:
    sys.path.append(str(FOLDER))
    import ptxrun

pytestmark = [
    pytest.mark.ptx,
    pytest.mark.skipif(not PRESENT, reason="ptxrun, a PTX emulator, is not here (FPFAST_PTXRUN names its folder)"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++, with which ptxrun compiles, is not on PATH"),
]

THREADS = 256  # a block, in both languages
NVCC = ["nvcc", "-ptx", "-arch=compute_80", "-std=c++17", "-O3", "-fmad=false"]
DTYPES = [SINGLE, BRAIN, HALF]  # in the order of csrc/kernels.h
KINDS = list(reference.KINDS)


class Memory:
    """Device buffers of tensors; one for those that begin at the same byte. ``out`` is poisoned unless it is an input.

    A tensor keeps its offset within its storage, so that a misaligned one is misaligned on the device.
    """

    def __init__(self, out: Tensor, inputs: list[Tensor]) -> None:
        self.out, self.buffers = out, {}
        for tensor in inputs:
            self.add(tensor, readonly=tensor.data_ptr() != out.data_ptr())
        self.poisoned = out.data_ptr() not in self.buffers
        if self.poisoned:
            self.add(out, output=True, name="out")
            self[out].poison()

    def add(self, tensor: Tensor, **options: object) -> None:
        storage = tensor.untyped_storage()
        whole = np.frombuffer((ctypes.c_uint8 * storage.nbytes()).from_address(storage.data_ptr()), np.uint8)
        start = tensor.storage_offset() * tensor.element_size()
        part = whole[start : start + tensor.numel() * tensor.element_size()].view(f"i{tensor.element_size()}")
        self.buffers[tensor.data_ptr()] = ptxrun.Buffer(part, **options)

    def __getitem__(self, tensor: Tensor) -> "ptxrun.Buffer":
        return self.buffers[tensor.data_ptr()]

    def check(self, stats: "ptxrun.Stats") -> None:
        assert [*stats.races, *stats.uninitialised, *stats.warnings] == []
        unwritten = self[self.out].unwritten() if self.poisoned else []
        assert not len(unwritten), f"elements {unwritten} of the output were not written"


def later(ptx: str, first_block: int) -> str:
    """PTX whose block 0 takes itself for ``first_block``.

    Refuses approximate instructions: ptxrun computes those better than a GPU does, so their results prove nothing.
    """
    assert re.findall(r"\S*\.(?:approx|full)\S*", ptx) == []
    moved, count = re.subn(
        r"mov\.u32(\s+)(%r\d+), %ctaid\.x;", rf"mov.u32\1\2, %ctaid.x; add.u32 \2, \2, {first_block};", ptx
    )
    assert count
    return moved


class Modules:
    """PTX, translated once for each block to begin with."""

    def __init__(self, ptx: str) -> None:
        self.ptx, self.first_block = ptx, {}

    def __getitem__(self, first_block: int) -> "ptxrun.api.Module":
        if first_block not in self.first_block:
            self.first_block[first_block] = ptxrun.load(later(self.ptx, first_block))
        return self.first_block[first_block]


class Backend:
    """``noise`` and ``combine`` of :mod:`fpfast.reference`, by compiled PTX; ``stats`` are those of the last launch."""

    def __init__(self) -> None:
        self.reverse = False
        self.first_block = 0  # earlier blocks are left out
        self.stats: ptxrun.Stats | None = None

    def options(self) -> dict[str, bool]:
        return {"check_races": True, "defer_async": True, "reverse_blocks": self.reverse}


class Noise(ctypes.Structure):  # csrc/kernels.h
    _fields_ = [
        ("seeds", ctypes.c_uint64),
        ("per_sample", ctypes.c_bool),
        ("first_sample", ctypes.c_uint64),
        ("stream", ctypes.c_uint32),
        ("draw", ctypes.c_uint32),
    ]


class Combine(ctypes.Structure):  # csrc/kernels.h
    _fields_ = [
        ("out", ctypes.c_uint64),
        ("operand", ctypes.c_uint64 * 4),
        ("dtype", ctypes.c_int * 4),
        ("operands", ctypes.c_int),
        ("coef", ctypes.c_uint64),
        ("coef_per_sample", ctypes.c_bool),
        ("noise", Noise),
        ("samples", ctypes.c_int64),
        ("elements", ctypes.c_int64),
    ]


class Cuda(Backend):
    def __init__(self, modules: Modules) -> None:
        super().__init__()
        self.modules = modules
        self.most_blocks = 2**20

    def launch(self, name: str, out: Tensor, memory: Memory, arguments: list[object]) -> None:
        module = self.modules[self.first_block]
        (entry,) = (entry for entry in module.kernels if re.search(name, entry))
        blocks = min(blocks_for(out) - self.first_block, self.most_blocks)
        self.stats = module.kernel(entry).launch((blocks,), THREADS, arguments, **self.options())
        memory.check(self.stats)

    def key(self, key: reference.Key | None, memory: Memory) -> Noise:
        if key is None:
            return Noise()
        return Noise(memory[key.seed].ptr, key.seed.ndim == 1, key.first_sample, key.stream, key.draw)

    def noise(self, out: Tensor, kind: str, key: reference.Key) -> None:
        memory = Memory(out, [key.seed])
        name = f"noise_kernelIL.*4KindE{KINDS.index(kind)}E"
        self.launch(name, out, memory, [memory[out], self.key(key, memory), *sizes(out)])

    def combine(self, out: Tensor, operands: list[Tensor], coef: Tensor, key: reference.Key | None) -> None:
        memory = Memory(out, [*operands, coef, *([key.seed] if key else [])])
        op = Combine(memory[out].ptr, operands=len(operands), coef=memory[coef].ptr, coef_per_sample=coef.ndim == 2)
        op.operand[: len(operands)] = [memory[operand].ptr for operand in operands]
        op.dtype[: len(operands)] = [DTYPES.index(operand.dtype) for operand in operands]
        op.noise = self.key(key, memory)
        op.samples, op.elements = sizes(out)
        self.launch("combine_kernel", out, memory, [op])


class Triton(Backend):
    """``fpfast.kernels.combine`` itself, its kernels compiled for sm_80 and launched by ptxrun."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        from fpfast.kernels import combine
        from triton.backends.compiler import GPUTarget

        # What Triton asks of a driver before it compiles; the specialisation of the arguments is then its own.
        driver = SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", 80, 32),
            get_current_device=lambda: "sm_80",
            get_current_stream=lambda _: 0,
        )
        monkeypatch.setattr(importlib.import_module("triton.runtime.jit"), "driver", SimpleNamespace(active=driver))
        for name in ("noise_kernel", "combine_kernel"):
            monkeypatch.setattr(combine, name, Launcher(self, getattr(combine, name)))
        self.module, self.noise, self.combine = combine, combine.noise, combine.combine
        self.compiled: list[object] = []


class Launcher:
    """Stands in for a ``triton.jit`` function."""

    def __init__(self, backend: Triton, function) -> None:
        self.backend, self.function = backend, function

    def __getitem__(self, grid: tuple[int]):
        return lambda *args, **options: self.launch(grid, *args, **options)

    def launch(self, grid: tuple[int], *args: object, **options: object) -> None:
        compiled = self.function.warmup(*args, grid=grid, **options)
        self.backend.compiled.append(compiled)
        named = {**dict(zip(self.function.arg_names, args, strict=False)), **options}
        assert grid == (blocks_for(named["out"]),)
        tensors = [value for name, value in named.items() if isinstance(value, Tensor) and name != "out"]
        memory = Memory(named["out"], tensors)
        given = {name: memory[value] if isinstance(value, Tensor) else value for name, value in named.items()}
        moved = SimpleNamespace(
            src=compiled.src,
            metadata=compiled.metadata,
            asm={"ptx": later(compiled.asm["ptx"], self.backend.first_block)},
        )
        grid = (grid[0] - self.backend.first_block,)
        self.backend.stats = ptxrun.triton_launch(moved, grid, given, **self.backend.options())
        memory.check(self.backend.stats)


def sizes(out: Tensor) -> tuple[int, int]:
    return out.shape[0], math.prod(out.shape[1:])


def blocks_for(out: Tensor) -> int:
    samples, elements = sizes(out)
    return -(-samples * -(-elements // 4) // THREADS)


@pytest.fixture(scope="module")
def cuda_modules(tmp_path_factory) -> Modules:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on PATH")
    assert '"-fmad=false"' in (ROOT / "setup.py").read_text(), "setup.py lets nvcc contract multiplies and adds"
    output = tmp_path_factory.mktemp("ptx") / "combine.ptx"
    subprocess.run([*NVCC, str(ROOT / "csrc/cuda/combine.cu"), "-o", str(output)], check=True)
    return Modules(output.read_text())


@pytest.fixture
def cuda(cuda_modules) -> Cuda:
    return Cuda(cuda_modules)


@pytest.fixture
def triton(monkeypatch) -> Triton:
    pytest.importorskip("triton", minversion="3.6", reason="triton is not installed")
    return Triton(monkeypatch)


@pytest.fixture(params=["cuda", "triton"])
def backend(request) -> Backend:
    return request.getfixturevalue(request.param)


CASES = [
    *(Case((65, 4, 8), kind, (), "one") for kind in KINDS),
    Case((65, 4, 8), "normal", (), "each"),
    Case((2, 1030), "normal", (), "one"),
    Case((2, 1030), "uniform", (), "each"),
    Case((96, 32), "", (SINGLE,), "none"),
    Case((96, 32), "", (SINGLE, BRAIN, HALF, SINGLE), "one"),
    Case((96, 32), "", (SINGLE, SINGLE), "each", "each"),
    Case((96, 32), "", (SINGLE, HALF, BRAIN), "one", "each", in_place=True),
    Case((3, 7), "", (HALF, SINGLE, BRAIN, SINGLE), "each"),
    Case((300, 5, 1), "", (SINGLE, BRAIN), "one", "each"),
    Case((300, 5, 1), "", (SINGLE, HALF), "each", "each", in_place=True),
    Case((600, 2), "", (SINGLE, SINGLE, SINGLE), "one", in_place=True),
    Case((600, 2), "", (SINGLE,), "none", "each"),
    Case((1, 4099), "", (SINGLE, SINGLE), "one"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_compiled_kernels_have_the_reference_bits(backend, case):
    for backend.reverse in (False, True):
        assert compare(backend, case) == ""


@pytest.mark.parametrize("shape", [(96, 32), (300, 5)], ids=str)
def test_triton_counts_in_64_bits_where_it_must(triton, monkeypatch, shape):
    monkeypatch.setattr(triton.module, "SMALL", 0)
    assert compare(triton, Case(shape, "", (SINGLE, BRAIN), "one", "each")) == ""
    assert "div.s64" in triton.compiled[-1].asm["ptx"]


def test_triton_compiles_once_for_all_numbers(triton):
    for number in (0, 1, 16, 2**32 - 1):
        for samples in (1, 16, 17):
            key = reference.Key(torch.tensor(1), first_sample=number * 2**15, stream=number % 2**16, draw=number)
            out, expected = torch.empty(samples, 8), torch.empty(samples, 8)
            triton.noise(out, "uniform", key)
            reference.noise(expected, "uniform", key)
            assert difference(out, expected) == ""
    assert len(set(map(id, triton.compiled))) == 1


def test_cuda_threads_take_several_groups_where_blocks_run_out(cuda):
    cuda.most_blocks = 2
    for case in (Case((900, 4), "normal"), Case((900, 3), "", (SINGLE, BRAIN), "each", "each")):
        assert compare(cuda, case) == ""
        assert cuda.stats.blocks == 2


@pytest.mark.parametrize("misaligned", ["out", "operands"])
def test_addresses_that_are_not_aligned(backend, misaligned):
    """By one element, so that no 128-bit (or for 16-bit operands 64-bit) access is possible."""
    shape, key = (64, 12), reference.Key(torch.tensor(3), 0, 1, 2)
    generator = torch.Generator().manual_seed(2)
    operands = [torch.randn(64 * 12 + 1, generator=generator).to(dtype) for dtype in (SINGLE, BRAIN)]
    operands = [operand[int(misaligned == "operands") :][: 64 * 12].view(shape) for operand in operands]
    out = torch.empty(64 * 12 + 1)[int(misaligned == "out") :][: 64 * 12].view(shape)
    coef, expected = torch.randn(5, generator=generator), torch.empty(shape)
    reference.combine(expected, operands, coef, key)
    backend.combine(out, operands, coef, key)
    assert difference(out, expected) == ""


@pytest.mark.parametrize("elements", [4096, 4095])
def test_offsets_that_need_more_than_32_bits(backend, elements):
    """The last sample of 2^31 elements and more; the memory of the others (8 GiB) is never touched."""
    last = 2**31 // 4095 + 1
    x = torch.empty(last + 1, elements)
    x[last] = torch.randn(elements, generator=torch.Generator().manual_seed(3))
    coef, key = torch.tensor([0.5, 0, 0, 0, 1.5]), reference.Key(torch.tensor(BIG_SEED), stream=1, **FAR)
    expected = torch.empty(1, elements)
    reference.combine(expected, [x[last:]], coef, key._replace(first_sample=key.first_sample + last))
    backend.first_block = blocks_for(x) - 4
    backend.combine(x, [x], coef, key)
    assert difference(x[last:], expected) == ""


@pytest.mark.parametrize(
    ("dtypes", "seeds"),
    [
        ((SINGLE,), "none"),
        ((SINGLE,), "one"),
        ((SINGLE,) * 2, "one"),
        ((SINGLE,) * 3, "one"),
        ((SINGLE,) * 4, "one"),
        ((SINGLE, BRAIN, HALF), "one"),
    ],
    ids=["one-quiet", "one", "two", "three", "four", "mixed"],
)
def test_bytes_that_a_combination_moves(backend, dtypes, seeds):
    """Each operand is read once and the result written once, four elements at a time."""
    assert compare(backend, Case((64, 64), "", dtypes, seeds)) == ""
    stats, noisy, threads = backend.stats, seeds == "one", 64 * 64 // 4
    assert stats.threads == threads
    numbers = len(dtypes) + noisy  # coefficients
    assert stats.global_loads == threads * (len(dtypes) + numbers + noisy)
    assert stats.global_load_bytes == threads * (sum(4 * dtype.itemsize for dtype in dtypes) + 4 * numbers + 8 * noisy)
    assert (stats.global_stores, stats.global_store_bytes) == (threads, 16 * threads)
    assert stats.local_loads == stats.local_stores == stats.shared_loads == 0


def test_bytes_that_noise_moves(backend):
    assert compare(backend, Case((64, 64), "normal")) == ""
    assert backend.stats.global_load_bytes == 64 * 64 // 4 * 8  # the seed
    assert (backend.stats.global_stores, backend.stats.global_store_bytes) == (64 * 64 // 4, 4 * 64 * 64)
