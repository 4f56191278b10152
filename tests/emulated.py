"""Compiled PTX (sm_80) of the CUDA and Triton kernels as backends, run on the CPU by ptxrun.

The kernels are reached as users reach them: by the functions of the Triton modules, and through a copy of what the
``.cu`` files do on the host. ptxrun checks each memory access, and that every output element is written.
"""

import ctypes
import importlib
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_triton import BRAIN, HALF, OPS, SINGLE
from torch import Tensor

from fpfast import reference
from fpfast.packing import Fragments, Scratch

ROOT = Path(__file__).parents[1]
FOLDER = Path(os.environ.get("FPFAST_PTXRUN", ROOT.parent / "shared" / "ptxrun"))
PRESENT = (FOLDER / "ptxrun").is_dir()
if PRESENT:
    sys.path.append(str(FOLDER))
    import ptxrun

PTX = [
    pytest.mark.ptx,
    pytest.mark.skipif(not PRESENT, reason="ptxrun, a PTX emulator, is not here (FPFAST_PTXRUN names its folder)"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++, with which ptxrun compiles, is not on PATH"),
]
NVCC = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
THREADS = 256  # a block, in both languages
COMMAND = ["nvcc", "-ptx", "-arch=compute_80", "-std=c++17", "-O3", "-fmad=false"]
DTYPES = [SINGLE, BRAIN, HALF]  # in the order of csrc/kernels.h
KINDS = list(reference.KINDS)


class Memory:
    """Device buffers of tensors; one for those that begin at the same byte. Outputs that are no inputs are poisoned.

    A tensor keeps its offset within its storage, so that a misaligned one is misaligned on the device.
    """

    def __init__(self, outputs: list[Tensor], inputs: list[Tensor], whole: bool = True) -> None:
        """``whole``: the launch is to write all of the outputs."""
        self.buffers, written = {}, [out.data_ptr() for out in outputs]
        for tensor in inputs:
            self.add(tensor, readonly=tensor.data_ptr() not in written)
        pure = [out for out in outputs if out.data_ptr() not in self.buffers]
        for number, out in enumerate(pure):
            self.add(out, output=whole, name=f"output {number}")
        self.poisoned = pure if whole else []
        for out in self.poisoned:
            self[out].poison()

    def add(self, tensor: Tensor, **options: object) -> None:
        storage = tensor.untyped_storage()
        whole = np.frombuffer((ctypes.c_uint8 * storage.nbytes()).from_address(storage.data_ptr()), np.uint8)
        start = tensor.storage_offset() * tensor.element_size()
        part = whole[start : start + span(tensor) * tensor.element_size()].view(f"i{tensor.element_size()}")
        self.buffers[tensor.data_ptr()] = ptxrun.Buffer(part, **options)

    def __getitem__(self, tensor: Tensor) -> "ptxrun.Buffer":
        return self.buffers[tensor.data_ptr()]

    def check(self, stats: "ptxrun.Stats") -> None:
        assert [*stats.races, *stats.uninitialised, *stats.warnings] == []
        for out in self.poisoned:
            unwritten = self[out].unwritten()
            assert not len(unwritten), f"elements {unwritten} of an output were not written"


def later(ptx: str, first_block: int) -> str:
    """PTX whose block 0 takes itself for ``first_block``.

    Refuses approximate instructions: ptxrun computes those better than a GPU does, so their results prove nothing. But
    for the reciprocal root from which csrc/math/machine.h makes a root as compilers make sqrt.rn.
    """
    assert set(re.findall(r"\S*\.(?:approx|full)\S*", ptx)) <= {"rsqrt.approx.ftz.f32"}
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
    """The functions of :mod:`fpfast.reference`, by compiled PTX; ``stats`` are those of the last launch."""

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
        ("position", ctypes.c_uint64),
        ("step_stride", ctypes.c_int32),
        ("noise", Noise),
        ("samples", ctypes.c_int64),
        ("elements", ctypes.c_int64),
    ]


class Work(ctypes.Structure):  # csrc/cuda/combine.cu
    _fields_ = [(name, ctypes.c_uint32) for name in ("units", "stride", "multiplier", "shift", "minus")]


class Probed(ctypes.Structure):  # csrc/kernels.h
    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("out", "norms", "x", "y", "z", "coef")),
        ("kind", ctypes.c_int),
        ("noise", Noise),
        ("samples", ctypes.c_int64),
        ("elements", ctypes.c_int64),
    ]


class Port(ctypes.Structure):  # csrc/kernels.h
    _fields_ = [("data", ctypes.c_uint64), ("row", ctypes.c_int64), ("rows", ctypes.c_int64)]


class Trajectory(ctypes.Structure):  # csrc/kernels.h
    _fields_ = [
        ("float64", ctypes.c_bool),
        ("program", ctypes.c_uint64),
        ("instructions", ctypes.c_int64),
        ("weights", ctypes.c_uint64),
        ("biases", ctypes.c_uint64),
        ("bias_width", ctypes.c_int64),
        ("actions", ctypes.c_uint64),
        *((name, ctypes.c_int64) for name in ("count", "first_step", "last_step", "stages")),
        ("evaluations", ctypes.c_uint64),
        ("coef", ctypes.c_uint64),
        ("inputs", Port * 16),
        ("outputs", Port * 16),
        ("input_count", ctypes.c_int),
        ("output_count", ctypes.c_int),
        ("dimension", ctypes.c_int64),
        ("rows", ctypes.c_int64),
        ("noise", Noise),
        ("samples", ctypes.c_int64),
        ("tile", ctypes.c_int64),
    ]


class Watch(ctypes.Structure):  # csrc/kernels.h
    _fields_ = [("broken", ctypes.c_uint64), ("freeze", ctypes.c_bool)]


class Weights(ctypes.Structure):  # csrc/cuda/launch.h
    _fields_ = [
        ("count", ctypes.c_int64),
        ("slabs", ctypes.c_uint64),
        ("slab_count", ctypes.c_int64),
        ("most_fragments", ctypes.c_int64),
        ("bfloat16", ctypes.c_bool),
    ]


class Residual(ctypes.Structure):  # csrc/kernels.h
    _fields_ = [
        ("float64", ctypes.c_bool),
        ("form", ctypes.c_int),
        ("program", ctypes.c_uint64),
        ("instructions", ctypes.c_int64),
        ("weights", ctypes.c_uint64),
        *((name, ctypes.c_int64) for name in ("dimension", "directions")),
        ("share", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("output", "outputs", "output_adjoint")),
        *((name, ctypes.c_int64) for name in ("features", "feature_count", "features_adjoint")),
        *((name, ctypes.c_int64) for name in ("jets", "adjoints", "slopes", "samples")),
        *((name, ctypes.c_uint64) for name in ("x", "feature_values", "feature_rates", "probes", "coef")),
        *((name, ctypes.c_uint64) for name in ("value", "upstream", "weight")),
        ("scale", ctypes.c_double),
        *((name, ctypes.c_uint64) for name in ("loss", "gradient")),
        ("gradient_count", ctypes.c_int64),
        *((name, ctypes.c_uint64) for name in ("feature_adjoints", "rate_adjoints")),
    ]


class OfBlocks(ctypes.Structure):  # csrc/cuda/launch.h
    _fields_ = [
        *((name, ctypes.c_uint64) for name in ("values", "sums", "losses", "places")),
        *((name, ctypes.c_int64) for name in ("sum_count", "blocks")),
    ]


class Layout(ctypes.Structure):  # csrc/cuda/jets.h
    _fields_ = [(name, ctypes.c_int) for name in ("directions", "columns", "jets", "size")]


WRITTEN = ("value", "loss", "gradient", "feature_adjoints", "rate_adjoints")  # of a residual


class Cuda(Backend):
    packing = Fragments()

    def __init__(self, modules: dict[str, Modules]) -> None:
        super().__init__()
        self.modules = modules
        self.most_blocks = 2**14
        self.plain = True  # where the call is
        self.resident, self.warps = True, 2  # of a trajectory
        self.processors = 2  # of a residual

    def launch(
        self,
        file: str,
        name: str,
        blocks: int,
        memory: Memory,
        arguments: list[object],
        threads: int = THREADS,
        shared_bytes: int = 0,
    ) -> None:
        module = self.modules[file][self.first_block]
        (entry,) = (entry for entry in module.kernels if re.search(name, entry))
        blocks, more = min(blocks - self.first_block, self.most_blocks), {"shared_bytes": shared_bytes}
        self.stats = module.kernel(entry).launch((blocks,), threads, arguments, **more, **self.options())
        memory.check(self.stats)

    def key(self, key: reference.Key | None, memory: Memory) -> Noise:
        if key is None:
            return Noise()
        return Noise(memory[key.seed].ptr, key.seed.ndim == 1, key.first_sample, key.stream, key.draw)

    def noise(self, out: Tensor, kind: str, key: reference.Key) -> None:
        memory = Memory([out], [key.seed])
        name = f"noise_kernelIL.*4KindE{KINDS.index(kind)}E"
        self.launch("combine", name, blocks_for(out), memory, [memory[out], self.key(key, memory), *sizes(out)])

    def combine(
        self,
        out: Tensor,
        operands: list[Tensor],
        coef: Tensor,
        key: reference.Key | None,
        position: Tensor | None = None,
    ) -> None:
        memory = Memory(
            [out], [*operands, coef, *([key.seed] if key else []), *([] if position is None else [position])]
        )
        op = Combine(memory[out].ptr, operands=len(operands), coef=memory[coef].ptr)
        if position is None:
            op.coef_per_sample = coef.ndim == 2
        else:
            op.position, op.step_stride = memory[position].ptr, coef.stride(0)
        op.operand[: len(operands)] = [memory[operand].ptr for operand in operands]
        op.dtype[: len(operands)] = [DTYPES.index(operand.dtype) for operand in operands]
        op.noise = self.key(key, memory)
        op.samples, op.elements = sizes(out)
        if not (self.plain and is_plain(op, key, [out, *operands])):
            self.launch("combine", "combine_kernel", blocks_for(out), memory, [op])
            return
        name = f"plain_kernelILi{len(operands)}ELb{int(key is not None)}ELb{int(set(op.dtype) == {0})}E"
        blocks, groups = blocks_for(out), op.elements // 4
        shift = groups.bit_length() - 1
        multiplier = 2 ** (32 + shift) // groups + 1
        if groups == 1 << shift:
            multiplier, shift = 2**31, shift - 1
        stride = min(blocks, self.most_blocks) * THREADS
        work = Work(op.samples * groups, stride, multiplier, shift, 2**32 - groups)
        self.launch("combine", name, blocks, memory, [op, work])

    def pair(self, out: Tensor, x: Tensor, y: Tensor, coef: Tensor, kind: str, key: reference.Key) -> None:
        name = f"pair_kernelIL.*4KindE{KINDS.index(kind)}E"
        memory, op = self.probed({"out": out}, {"x": x, "y": y, "coef": coef}, kind, key)
        if op.samples * op.elements:
            self.launch("pairs", name, blocks_for(x), memory, [op])

    def probe_times(self, out: Tensor, coef: Tensor, kind: str, key: reference.Key) -> None:
        name = f"times_kernelIL.*4KindE{KINDS.index(kind)}E"
        memory, op = self.probed({"out": out}, {"coef": coef}, kind, key)
        if op.samples * op.elements:
            self.launch("pairs", name, blocks_for(out), memory, [op])

    def defect(self, out: Tensor, norms: Tensor, x: Tensor, pair: Tensor, coef: Tensor) -> None:
        self.sum("Defect", norms, {"out": out}, {"x": x, "y": pair, "coef": coef})

    def product(self, out: Tensor, x: Tensor, pair: Tensor, other: Tensor, coef: Tensor) -> None:
        self.sum("Product", out, {}, {"x": x, "y": pair, "z": other, "coef": coef})

    def probe_dot(self, out: Tensor, x: Tensor, kind: str, key: reference.Key) -> None:
        self.sum(f"DotIL.*4KindE{KINDS.index(kind)}E", out, {}, {"x": x}, kind, key)

    def probed(
        self,
        outputs: dict[str, Tensor],
        inputs: dict[str, Tensor],
        kind: str = "normal",
        key: reference.Key | None = None,
    ) -> tuple[Memory, Probed]:
        seeds = [key.seed] if key else []
        memory = Memory([*outputs.values()], [*inputs.values(), *seeds], whole=self.first_block == 0)
        op = Probed(kind=KINDS.index(kind), noise=self.key(key, memory))
        op.samples, op.elements = sizes(inputs.get("x", outputs.get("out")))
        for name, tensor in {**outputs, **inputs}.items():
            if name in ("out", "norms", "x", "y", "z", "coef"):
                setattr(op, name, memory[tensor].ptr)
        return memory, op

    def sum(
        self,
        term: str,
        sums: Tensor,
        outputs: dict[str, Tensor],
        inputs: dict[str, Tensor],
        kind: str = "normal",
        key: reference.Key | None = None,
    ) -> None:
        samples, elements = sizes(inputs["x"])
        groups = -(-elements // 4)
        together = min(THREADS, 1 << max(groups - 1, 0).bit_length())
        parts = max(1, -(-groups // (8 * THREADS)))
        if samples == 0:
            return
        room = sums if parts == 1 else sums.new_empty(samples * parts)
        memory, op = self.probed({**outputs, "sums": room}, inputs, kind, key)
        blocks = -(-samples * parts * together // THREADS)
        self.launch("pairs", f"sum_kernel.*{term}", blocks, memory, [op, memory[room], together, parts])
        if parts > 1:
            memory = Memory([sums], [room])
            arguments = [memory[sums], memory[room], samples, parts]
            self.launch("pairs", "add_parts_kernel", -(-samples // THREADS), memory, arguments)

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
        states = {tensor.data_ptr(): tensor for tensor, _ in [*inputs, *outputs]}
        states |= {} if broken is None else {broken.data_ptr(): broken}
        memory = Memory(list(states.values()), [*states.values(), *device.values(), key.seed])
        run, weights = trajectory(
            inputs, outputs, device, steps, dimension, rows, self.key(key, memory), lambda tensor: memory[tensor].ptr
        )
        weights.bfloat16 = bfloat16
        of_weights = 4 * weights.count * (weights.slab_count > 0) if self.resident else 3 * 512 * weights.most_fragments
        of_kernel = (
            "Resident" if self.resident else "Streamed",
            "Rounded" if bfloat16 else "Exactly",
            "Unwatched" if broken is None else "7Watched",
        )
        self.launch(
            "trajectory",
            ".*".join(("trajectory_kernel", *of_kernel)),
            -(-run.samples // (16 * self.warps)),
            memory,
            [run, weights, Watch(0 if broken is None else memory[broken].ptr, freeze)],
            threads=32 * self.warps,
            shared_bytes=of_weights + self.warps * values_bytes(rows, dimension, freeze),
        )

    def residual(self, *, tensors: dict[str, Tensor | None], numbers: dict[str, int | float]) -> None:
        scratch = Scratch.of(tensors, numbers, self.processors, memory=1 << 34)
        there = {name: tensor for name, tensor in tensors.items() if tensor is not None and name != "program_here"}
        own = [tensor for tensor in scratch if tensor is not None]
        outputs = [there[name] for name in WRITTEN if name in there]
        inputs = [tensor for name, tensor in there.items() if tensor.numel() and name not in ("value", *WRITTEN[3:])]
        memory = Memory([*outputs, *own], inputs, whole=False)
        run, more = residual(tensors, scratch, numbers, lambda tensor: memory[tensor].ptr if tensor.numel() else 0)
        name, columns = f"residual_kernelIL.*4FormE{run.form}E", int(numbers["columns"])
        size = (run.jets + run.adjoints) // 8 * columns * 32
        layout = Layout(run.directions, columns, run.jets, size)
        self.launch("residual", name, more.blocks, memory, [run, more, layout])
        if run.gradient or run.loss:
            count = run.gradient_count * bool(run.gradient) + bool(run.loss)
            self.launch("residual", "fold_kernel", -(-count // THREADS), memory, [run, more])


def residual(
    tensors: dict[str, Tensor | None],
    scratch: Scratch,
    numbers: dict[str, int | float],
    address: Callable[[Tensor], int],
) -> tuple[Residual, OfBlocks]:
    """What native.Cuda.residual gives to the kernels."""
    run = Residual()
    for name, _ in run._fields_:
        given = tensors[name] if name in tensors else numbers.get(name)
        if given is not None:
            setattr(run, name, address(given) if isinstance(given, Tensor) else given)
    own = OfBlocks(places=address(tensors["places"]), blocks=len(scratch.values))
    for name, tensor in scratch._asdict().items():
        if tensor is not None:
            setattr(own, name, address(tensor))
    own.sum_count = 0 if scratch.sums is None else scratch.sums.shape[1]
    return run, own


def values_bytes(rows: int, dimension: int, freeze: bool) -> int:
    """Of a trajectory's warp, 16 samples: its values, and the state before a step."""
    return 64 * (rows + (-(-dimension // 8) * 8 if freeze else 0))


def trajectory(
    inputs: list[tuple[Tensor, int]],
    outputs: list[tuple[Tensor, int]],
    device: dict[str, Tensor],
    steps: tuple[int, int],
    dimension: int,
    rows: int,
    noise: Noise,
    address: Callable[[Tensor], int],
) -> tuple[Trajectory, Weights]:
    """What native.Cuda.trajectory gives to the kernel."""
    run = Trajectory(instructions=len(device["program"]), bias_width=device["biases"].shape[1], noise=noise)
    for name in ("program", "weights", "biases", "actions", "evaluations", "coef"):
        setattr(run, name, address(device[name]))
    run.count, run.stages = len(device["actions"]), device["evaluations"].shape[1]
    run.first_step, run.last_step = steps
    for ports, given in ((run.inputs, inputs), (run.outputs, outputs)):
        ports[: len(given)] = [Port(address(tensor), row, tensor.shape[1]) for tensor, row in given]
    run.input_count, run.output_count = len(inputs), len(outputs)
    run.dimension, run.rows, run.samples = dimension, rows, len(inputs[0][0])
    slabs = device["slabs"]
    return run, Weights(len(device["weights"]), address(slabs), len(slabs), max([0, *slabs[:, 1].tolist()]))


class Triton(Backend):
    """The functions of ``fpfast.kernels``, whose kernels are compiled for sm_80 and launched by ptxrun."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        from fpfast.kernels import combine, groups, pairs, residual, trajectory
        from triton.backends.compiler import GPUTarget

        from fpfast import backends

        # What Triton asks of a driver before it compiles; the specialisation of the arguments is then its own.
        driver = SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", 80, 32),
            get_current_device=lambda: "sm_80",
            get_current_stream=lambda _: 0,
        )
        monkeypatch.setattr(importlib.import_module("triton.runtime.jit"), "driver", SimpleNamespace(active=driver))
        for file in (combine, pairs, residual, trajectory):
            for name in [name for name in vars(file) if name.endswith("_kernel")]:
                monkeypatch.setattr(file, name, Launcher(self, getattr(file, name)))
        self.groups, self.combinations, self.residuals, self.trajectories = groups, combine, residual, trajectory
        for name in OPS:
            setattr(self, name, getattr(backends.kernels("triton"), name))
        self.trajectory = trajectory.trajectory
        self.residual, self.packing = residual.residual, residual.PACKING
        self.compiled: list[object] = []  # a kernel a launch

    @property
    def launches(self) -> int:
        return len(self.compiled)


# Of Triton's kernels: outputs that are written whole, and what programs have of their own. Others have out and sums.
OUTPUTS = {
    "trajectory_kernel": (("states", "broken"), ("scratch",)),
    "residual_kernel": (("value", "feature_adjoints", "rate_adjoints"), ("scratch", "sums", "losses")),
    "fold_kernel": (("gradient", "loss"), ()),
}
READ = ("states", "broken", "gradient", "loss")  # outputs that are read, too


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
        tensors = {name: value for name, value in named.items() if isinstance(value, Tensor) and value.numel()}
        given, written, own = dict(tensors), *OUTPUTS.get(self.function.__name__, (("out", "sums"), ("scratch",)))
        # x stands where there is no such output.
        outputs = {name: tensors.pop(name) for name in written if name in tensors and given[name] is not given.get("x")}
        own = [tensors.pop(name) for name in own if name in tensors]
        inputs = [*tensors.values(), *(outputs[name] for name in READ if name in outputs)]
        memory = Memory(list(outputs.values()), inputs, whole=self.backend.first_block == 0)
        for tensor in own:  # it is read where it was written, but not all of it need be
            memory.add(tensor, output=True)
        given = {name: memory[value] for name, value in given.items()}
        given = {name: given.get(name) if isinstance(value, Tensor) else value for name, value in named.items()}
        moved = SimpleNamespace(
            src=compiled.src,
            metadata=compiled.metadata,
            asm={"ptx": later(compiled.asm["ptx"], self.backend.first_block)},
        )
        if "stride" in named:  # its programs take several blocks each where there are too many
            blocks = -(-named["units"] // THREADS) - self.backend.first_block
            grid = (min(grid[0], blocks),)
        else:
            grid = (grid[0] - self.backend.first_block,)
        self.backend.stats = ptxrun.triton_launch(moved, grid, given, **self.backend.options())
        memory.check(self.backend.stats)


def span(tensor: Tensor) -> int:
    """Elements from the first to the last in memory."""
    return tensor.numel() and 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))


def sizes(out: Tensor) -> tuple[int, int]:
    return out.shape[0], math.prod(out.shape[1:])


def is_plain(op: Combine, key: reference.Key | None, states: list[Tensor]) -> bool:
    first, aligned = key.first_sample if key else 0, all(x.data_ptr() % (4 * x.element_size()) == 0 for x in states)
    alike = (
        not op.coef_per_sample and (key is None or key.seed.ndim == 0) and first >> 32 == (first + op.samples - 1) >> 32
    )
    return alike and aligned and op.elements % 4 == 0 and op.elements > 4 and op.samples * op.elements < 2**33


def blocks_for(out: Tensor) -> int:
    samples, elements = sizes(out)
    return -(-samples * -(-elements // 4) // THREADS)


def compiled_by_nvcc(source: str, folder: Path) -> Modules:
    output = folder / f"{source}.ptx"
    subprocess.run([*COMMAND, str(ROOT / f"csrc/cuda/{source}.cu"), "-o", str(output)], check=True)
    return Modules(output.read_text())
