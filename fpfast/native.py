"""The compiled kernels as backends: tensors in, addresses and sizes (of stages, tensors) out to ``fpfast._native``."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fpfast import _native
from fpfast.errors import bad
from fpfast.packing import Blocks, Fragments, Scratch
from fpfast.reference import Key

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
Stages = Callable[[int, Tensor, tuple[Tensor, ...], bool, int, int], None]  # row, out, operands, noisy, stream, draw
Port = tuple[Tensor, int]  # [samples, rows] and its first row in the workspace
KINDS = {"normal": 0, "uniform": 1, "rademacher": 2}
SUMS = ("defect", "product", "probe_dot")  # of these every sample has one


def _key(key: Key | None) -> tuple[int, bool, int, int, int]:
    if key is None:
        return 0, False, 0, 0, 0
    return key.seed.data_ptr(), key.seed.ndim == 1, key.first_sample, key.stream, key.draw


def _numbers(
    coef: Tensor, key: Key | None, position: Tensor | None
) -> tuple[int, bool, int, int, int, bool, int, int, int]:
    if position is None:
        return coef.data_ptr(), coef.ndim == 2, 0, 0, *_key(key)
    return coef.data_ptr(), False, position.data_ptr(), coef.stride(0), *_key(key)


def _sizes(out: Tensor) -> tuple[int, int]:
    return out.shape[0], math.prod(out.shape[1:])


def _operands(operands: list[Tensor]) -> list[tuple[int, int]]:
    return [(operand.data_ptr(), DTYPES[operand.dtype]) for operand in operands]


def _ports(ports: list[Port]) -> list[tuple[int, int, int]]:
    return [(tensor.data_ptr(), row, tensor.shape[1]) for tensor, row in ports]


def _trajectory(
    arrays: dict[str, Tensor], steps: tuple[int, int], numbers: dict[str, int], state: Tensor, key: Key | None
) -> dict[str, int]:
    """The arguments of a trajectory by their names in csrc/kernels.h."""
    seeds, per_sample, first_sample, _, _ = _key(key)
    program, actions, biases = arrays["program"], arrays["actions"], arrays["biases"]
    return {
        **_addresses(arrays),
        **numbers,
        "float64": arrays["weights"].dtype == torch.float64,
        "instructions": len(program),
        "weight_count": len(arrays["weights"]),
        "bias_rows": biases.shape[0],
        "bias_width": biases.shape[1],
        "count": len(actions),
        "first_step": steps[0],
        "last_step": steps[1],
        "stages": arrays["evaluations"].shape[1],
        "samples": state.shape[0],
        "seeds": seeds,
        "seeds_per_sample": per_sample,
        "first_sample": first_sample,
    }


def _watch(broken: Tensor | None, freeze: bool, state: Tensor) -> tuple[int, bool]:
    """Struct Watch of csrc/kernels.h."""
    if broken is None:
        return 0, freeze
    if broken.shape != state.shape[:1] or broken.dtype != torch.int64 or broken.device != state.device:
        want = f"int64 of shape ({len(state)},) on {state.device}"
        raise bad("broken", want, f"{broken.dtype} of {tuple(broken.shape)} on {broken.device}")
    return broken.data_ptr(), freeze


class _Pairs(ABC):
    """The ops of pairs and probes, which all devices are given alike."""

    def pair(self, out: Tensor, x: Tensor, y: Tensor, coef: Tensor, kind: str, key: Key) -> None:
        self._probed("pair", x, {"out": out, "x": x, "y": y, "coef": coef}, kind, key)

    def defect(self, out: Tensor, norms: Tensor, x: Tensor, pair: Tensor, coef: Tensor) -> None:
        self._probed("defect", x, {"out": out, "norms": norms, "x": x, "y": pair, "coef": coef})

    def product(self, out: Tensor, x: Tensor, pair: Tensor, other: Tensor, coef: Tensor) -> None:
        self._probed("product", x, {"out": out, "x": x, "y": pair, "z": other, "coef": coef})

    def probe_dot(self, out: Tensor, x: Tensor, kind: str, key: Key) -> None:
        self._probed("probe_dot", x, {"out": out, "x": x}, kind, key)

    def probe_times(self, out: Tensor, coef: Tensor, kind: str, key: Key) -> None:
        self._probed("probe_times", out, {"out": out, "coef": coef}, kind, key)

    @abstractmethod
    def _probed(
        self, op: str, state: Tensor, tensors: dict[str, Tensor], kind: str = "normal", key: Key | None = None
    ) -> None:
        """Runs the op; ``tensors`` by their names in csrc/kernels.h."""


def _addresses(tensors: Mapping[str, Tensor | None]) -> dict[str, int]:
    return {name: 0 if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()}


class Cpu(_Pairs):
    """SIMD kernels at one instruction-set level (default: the best that this processor has)."""

    def __init__(self, level: str | None = None) -> None:
        self.level = level or _native.levels()[0]

    def noise(self, out: Tensor, kind: str, key: Key) -> None:
        _native.cpu_noise(self.level, out.data_ptr(), KINDS[kind], *_key(key), *_sizes(out), torch.get_num_threads())

    def combine(
        self, out: Tensor, operands: list[Tensor], coef: Tensor, key: Key | None, position: Tensor | None = None
    ) -> None:
        _native.cpu_combine(
            self.level,
            out.data_ptr(),
            _operands(operands),
            *_numbers(coef, key, position),
            *_sizes(out),
            torch.get_num_threads(),
        )

    def stages(self, rows: Tensor, times: Tensor, t: Tensor, state: Tensor, seed: Tensor, first_sample: int) -> Stages:
        """A function that does the stages of a run: what stays the same is looked at once.

        It leaves the next row's time in all of ``t``, [samples]. ``rows``, [steps, stages, 5], ``times``, [steps,
        stages], ``seed`` and the memory of ``t`` must live as long as it does. All are contiguous and float32, and
        the tensors that it is given are as large as ``state``.
        """
        return _native.CpuStages(
            self.level,
            rows.data_ptr(),
            times.data_ptr(),
            t.data_ptr(),
            times.numel(),
            *_sizes(state),
            seed.data_ptr(),
            seed.ndim == 1,
            first_sample,
            list(DTYPES),
            torch.get_num_threads(),
        ).combine

    def _probed(
        self, op: str, state: Tensor, tensors: dict[str, Tensor], kind: str = "normal", key: Key | None = None
    ) -> None:
        numbers = (KINDS[kind], *_key(key), *_sizes(state), torch.get_num_threads())
        _native.cpu_probed(self.level, op, _addresses(tensors), *numbers)

    @property
    def block_rows(self) -> int:
        """Rows of a matrix that the network kernels want packed together."""
        return _native.block_rows(self.level)

    @property
    def packing(self) -> Blocks:
        """Of residuals."""
        return Blocks(_native.jet_rows(self.level))

    def trajectory(
        self,
        *,
        inputs: list[Port],
        outputs: list[Port],
        program: Tensor,  # [n, 11] int64
        weights: Tensor,
        biases: Tensor,  # [evaluations, width]
        actions: Tensor,  # [n, 10] int64
        steps: tuple[int, int],
        evaluations: Tensor,  # [steps, stages] int64
        coef: Tensor,  # [steps, stages, 5]
        dimension: int,
        rows: int,
        key: Key | None = None,
        broken: Tensor | None = None,  # [samples] int64, as struct Watch has it; the state is the first input then
        freeze: bool = False,
        tile: int = 0,
    ) -> None:
        """Runs steps of a recognised network on all samples of the ports' tensors; see csrc/kernels.h."""
        numbers = {"steps": evaluations.shape[0], "dimension": dimension, "rows": rows}
        arrays = {"program": program, "weights": weights, "biases": biases, "actions": actions}
        arguments = _trajectory({**arrays, "evaluations": evaluations, "coef": coef}, steps, numbers, inputs[0][0], key)
        ports, watch = (_ports(inputs), _ports(outputs)), _watch(broken, freeze, inputs[0][0])
        _native.cpu_trajectory(self.level, arguments, *ports, *watch, tile, torch.get_num_threads())

    def residual(
        self,
        *,
        tensors: dict[str, Tensor | None],  # by their names in csrc/kernels.h; None: a null pointer
        numbers: dict[str, int | float],
    ) -> None:
        """A Fokker-Planck residual of a recognised network, and gradients; see csrc/kernels.h."""
        _native.cpu_residual(self.level, {**numbers, **_addresses(tensors)}, torch.get_num_threads())


class Cuda(_Pairs):
    """CUDA C++ kernels, on the tensors' device and its current stream."""

    def noise(self, out: Tensor, kind: str, key: Key) -> None:
        with torch.cuda.device(out.device):
            stream = torch.cuda.current_stream().cuda_stream
            _native.cuda_noise(out.data_ptr(), KINDS[kind], *_key(key), *_sizes(out), stream)

    def combine(
        self, out: Tensor, operands: list[Tensor], coef: Tensor, key: Key | None, position: Tensor | None = None
    ) -> None:
        numbers = _numbers(coef, key, position)
        with torch.cuda.device(out.device):
            stream = torch.cuda.current_stream().cuda_stream
            _native.cuda_combine(out.data_ptr(), _operands(operands), *numbers, *_sizes(out), stream)

    def _probed(
        self, op: str, state: Tensor, tensors: dict[str, Tensor], kind: str = "normal", key: Key | None = None
    ) -> None:
        samples, elements = _sizes(state)
        with torch.cuda.device(state.device):
            parts = _native.cuda_parts(elements)
            scratch = state.new_empty(samples * parts if parts > 1 and op in SUMS else 0)
            stream = torch.cuda.current_stream().cuda_stream
            numbers = (KINDS[kind], *_key(key), samples, elements)
            _native.cuda_probed(op, _addresses(tensors), *numbers, scratch.data_ptr(), stream)

    def shared_memory(self, device: torch.device) -> int:
        """Bytes that a block of threads can have."""
        with torch.cuda.device(device):
            return _native.cuda_shared_memory()

    def trajectory(
        self,
        *,
        inputs: list[Port],
        outputs: list[Port],
        host: dict[str, Tensor],  # program, actions, evaluations, slabs; read before the launch to check them
        device: dict[str, Tensor],  # the same, and weights, biases, coef
        steps: tuple[int, int],
        dimension: int,
        rows: int,
        bfloat16: bool,  # products are of numbers rounded so
        key: Key | None = None,
        broken: Tensor | None = None,  # as Cpu has it
        freeze: bool = False,
    ) -> None:
        """Runs steps of a recognised network on all samples of the ports' tensors; see csrc/cuda/trajectory.cu."""
        state = inputs[0][0]
        for tensor, _ in (*inputs, *outputs):
            if tensor.dtype != torch.float32 or tensor.device != state.device or not tensor.is_contiguous():
                got = f"{tensor.dtype} on {tensor.device}, strides {tensor.stride()}"
                raise bad("states", f"contiguous float32 on {state.device}", got)
        numbers = {
            "steps": len(host["evaluations"]),
            "dimension": dimension,
            "rows": rows,
            "slab_count": len(host["slabs"]),
            "bfloat16": int(bfloat16),
        }
        arguments = _trajectory({**device, **host}, steps, numbers, state, key)
        ports, watch = (_ports(inputs), _ports(outputs)), _watch(broken, freeze, state)
        with torch.cuda.device(state.device):
            stream = torch.cuda.current_stream().cuda_stream
            _native.cuda_trajectory(arguments, _addresses(device), *ports, *watch, stream)

    @property
    def packing(self) -> Fragments:
        """Of residuals."""
        return Fragments()

    def residual(self, *, tensors: dict[str, Tensor | None], numbers: dict[str, int | float]) -> None:
        """A Fokker-Planck residual of a recognised network, and gradients; see csrc/cuda/residual.cu."""
        x = tensors["x"]
        assert x is not None
        gpu = torch.cuda.get_device_properties(x.device)
        scratch = Scratch.of(tensors, numbers, gpu.multi_processor_count, gpu.total_memory)
        blocks, size = scratch.values.shape
        given = {**numbers, "blocks": blocks, "value_count": size}
        given["sum_count"] = 0 if scratch.sums is None else scratch.sums.shape[1]
        with torch.cuda.device(x.device):
            stream = torch.cuda.current_stream().cuda_stream
            _native.cuda_residual({**given, **_addresses(tensors), **_addresses(scratch._asdict())}, stream)
