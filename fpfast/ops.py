"""The torch.library ops: schema, checks, fake, autograd.

    fpfast::combine   x' = ((c0 x + c1 y1) + c2 y2 + c3 y3) + cz z,  z ~ N(0, I) made inside the kernel
    fpfast::combine_  the same in place
    fpfast::noise     normal, uniform or Rademacher values

Every solver stage is one ``combine`` (docs: "a solver is a table"). The noise is named by its key (see
:class:`fpfast.reference.Key`), never stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fpfast import backends
from fpfast.errors import bad, instance, key, sizes
from fpfast.reference import KINDS, Key
from fpfast.vmap import by_slices, refuse_forward_mode

MAX_OPERANDS = 4
COEFFICIENTS = MAX_OPERANDS + 1
OPERAND_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_KEY = "Tensor? seed, SymInt first_sample, int stream, SymInt draw, str backend"
_library = torch.library.Library("fpfast", "DEF")
_library.define(f"combine(Tensor x, Tensor[] ys, Tensor coef, {_KEY}) -> Tensor")
_library.define(f"combine_(Tensor(a!) x, Tensor[] ys, Tensor coef, {_KEY}) -> ()")
_library.define("noise(Tensor seed, SymInt[] shape, SymInt first_sample, int stream, SymInt draw, "
                "str kind, str backend) -> Tensor")  # fmt: skip


def _key(seed: Tensor | None, first_sample: int, stream: int, draw: int) -> Key | None:
    return None if seed is None else Key(seed, first_sample, stream, draw)


def _combine(
    x: Tensor,
    ys: list[Tensor],
    coef: Tensor,
    seed: Tensor | None,
    first_sample: int,
    stream: int,
    draw: int,
    backend: str,
) -> Tensor:
    backend = _checked(x, ys, coef, seed, first_sample, stream, draw, backend)
    out = torch.empty_like(x)
    backends.kernels(backend).combine(out, [x, *ys], coef, _key(seed, first_sample, stream, draw))
    return out


def _combine_inplace(
    x: Tensor,
    ys: list[Tensor],
    coef: Tensor,
    seed: Tensor | None,
    first_sample: int,
    stream: int,
    draw: int,
    backend: str,
) -> None:
    backend = _checked(x, ys, coef, seed, first_sample, stream, draw, backend)
    for name, other in (("coef", coef), *((f"ys[{k}]", y) for k, y in enumerate(ys))):
        if _share_memory(x, other):
            raise bad(name, "memory of its own", "memory that x uses")
    backends.kernels(backend).combine(x, [x, *ys], coef, _key(seed, first_sample, stream, draw))


def _noise(
    seed: Tensor, shape: Sequence[int], first_sample: int, stream: int, draw: int, kind: str, backend: str
) -> Tensor:
    backend = _checked_noise(kind, seed, shape, first_sample, stream, draw, backend)
    out = torch.empty(shape, dtype=torch.float32, device=seed.device)
    backends.kernels(backend).noise(out, kind, Key(seed, first_sample, stream, draw))
    return out


_library.impl("combine", _combine, "CompositeExplicitAutograd")
_library.impl("combine_", _combine_inplace, "CompositeExplicitAutograd")
_library.impl("noise", _noise, "CompositeExplicitAutograd")


@torch.library.register_fake("fpfast::combine", lib=_library)
def _combine_fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


@torch.library.register_fake("fpfast::combine_", lib=_library)
def _combine_inplace_fake(*_: Any) -> None:
    return None


@torch.library.register_fake("fpfast::noise", lib=_library)
def _noise_fake(seed: Tensor, shape: Sequence[int], *_: Any) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device=seed.device)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ys, coef, *_ = inputs
    ctx.save_for_backward(coef)
    ctx.dtypes = [x.dtype, *(y.dtype for y in ys)]


def _combine_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (coef,) = ctx.saved_tensors
    column = coef.reshape(coef.shape[:-1] + (1,) * (grad.ndim - coef.ndim + 1) + coef.shape[-1:])
    grads = [(column[..., k] * grad).to(dtype) for k, dtype in enumerate(ctx.dtypes)]
    return grads[0], grads[1:], None, None, None, None, None, None


torch.library.register_autograd("fpfast::combine", _combine_backward, setup_context=_remember, lib=_library)
for _name in ("combine", "noise"):
    torch.library.register_vmap(f"fpfast::{_name}", by_slices(getattr(torch.ops.fpfast, _name)), lib=_library)


def _check_noise(samples: int, seed: Tensor | None, first_sample: int, stream: int, draw: int) -> None:
    if seed is not None and (
        seed.dtype != torch.int64 or seed.shape not in ((), (samples,)) or not seed.is_contiguous()
    ):
        got = f"{seed.dtype} of shape {tuple(seed.shape)}, strides {seed.stride()}"
        raise bad("seed", f"contiguous int64 of shape () or ({samples},)", got)
    for name, value, end in (
        ("first_sample", first_sample, 2**48 - samples + 1),
        ("stream", stream, 2**16),
        ("draw", draw, 2**32),
    ):
        if not isinstance(value, int) or not 0 <= value < end:  # torch.compile keeps such a number symbolic
            raise bad(name, f"an integer in [0, {end})", repr(value))


def _check_combine(x: Tensor, ys: Sequence[Tensor], coef: Tensor, seed: Tensor | None) -> None:
    if not isinstance(ys, Sequence):
        raise bad("ys", "a list of tensors", type(ys).__name__)
    for name, tensor in (("x", x), ("coef", coef), ("seed", seed), *((f"ys[{k}]", y) for k, y in enumerate(ys))):
        if not isinstance(tensor, Tensor) and not (name == "seed" and tensor is None):
            raise bad(name, "a tensor", type(tensor).__name__)
    if x.ndim == 0:
        raise bad("x", "at least one dimension (samples, ...)", "a 0-dimensional tensor")
    if x.dtype not in (torch.float32, torch.float64):
        raise bad("x", "a float32 or float64 state", x.dtype)
    if len(ys) > MAX_OPERANDS - 1:
        raise bad("ys", f"at most {MAX_OPERANDS - 1} tensors", len(ys))
    allowed = (*OPERAND_DTYPES, x.dtype)
    for k, tensor in enumerate((x, *ys)):
        name = "x" if k == 0 else f"ys[{k - 1}]"
        if tensor.shape != x.shape:
            raise bad(name, f"shape {tuple(x.shape)} as x", tuple(tensor.shape))
        if tensor.dtype not in allowed:
            raise bad(name, "one of " + ", ".join(map(str, allowed)), tensor.dtype)
        if tensor.device != x.device:
            raise bad(name, f"a tensor on {x.device} as x", tensor.device)
        if not tensor.is_contiguous():
            raise bad(name, "a contiguous tensor", f"strides {tensor.stride()} for shape {tuple(tensor.shape)}")
    if tuple(coef.shape) not in ((COEFFICIENTS,), (x.shape[0], COEFFICIENTS)) or not coef.is_contiguous():
        raise bad("coef", f"a contiguous (5,) or ({x.shape[0]}, 5)", tuple(coef.shape))
    if coef.dtype != x.dtype:
        raise bad("coef", f"{x.dtype} as x", coef.dtype)
    refuse_forward_mode((x, *ys))
    for name, extra in (("coef", coef), ("seed", seed)):
        if extra is not None and extra.device != x.device:
            raise bad(name, f"a tensor on {x.device} as x", extra.device)


def _checked(
    x: Tensor,
    ys: Sequence[Tensor],
    coef: Tensor,
    seed: Tensor | None,
    first_sample: int,
    stream: int,
    draw: int,
    backend: str,
) -> str:
    """The backend, of a call whose arguments fit each other. Ops do it too, as they can be called by themselves."""
    _check_combine(x, ys, coef, seed)
    _check_noise(x.shape[0], seed, first_sample, stream, draw)
    return backends.pick(backend, x.device.type, x.dtype)


def _checked_noise(
    kind: str, seed: Tensor, shape: Sequence[int], first_sample: int, stream: int, draw: int, backend: str
) -> str:
    key("kind", kind, KINDS)
    instance("seed", seed, Tensor, "a tensor")
    _check_noise(sizes("shape", shape, 0)[0], seed, first_sample, stream, draw)
    return backends.pick(backend, seed.device.type, torch.float32)


def _share_memory(x: Tensor, y: Tensor) -> bool:
    return x.data_ptr() < y.data_ptr() + y.nbytes and y.data_ptr() < x.data_ptr() + x.nbytes


def combine(
    x: Tensor,  # [B, ...] float32 (float64 on the reference backend)
    ys: Sequence[Tensor],  # up to three of [B, ...], float32, bfloat16 or float16
    coef: Tensor,  # [5] or [B, 5]: c0, c1, c2, c3, cz; those past the last operand are not read
    *,
    seed: Tensor | None = None,  # int64, [] or [B]; None: no noise
    first_sample: int = 0,
    stream: int = 1,
    draw: int = 0,
    backend: str = "auto",
) -> Tensor:
    """x' = ((c0 x + c1 y1) + c2 y2 + c3 y3) + cz z, in exactly this order, every operation rounded by itself.

    z ~ N(0, I) is drawn by Philox under (seed, sample, element, stream, draw), see docs/noise.md. Differentiable in x
    and ys, backwards, not in coef. Raises ValueError for a wrong shape, dtype, device, layout or noise number,
    RuntimeError for a backend that cannot serve, and for tangents of forward mode.
    """
    backend = _checked(x, ys, coef, seed, first_sample, stream, draw, backend)
    return torch.ops.fpfast.combine(x, list(ys), coef, seed, first_sample, stream, draw, backend)


def combine_(
    x: Tensor,
    ys: Sequence[Tensor],
    coef: Tensor,
    *,
    seed: Tensor | None = None,
    first_sample: int = 0,
    stream: int = 1,
    draw: int = 0,
    backend: str = "auto",
) -> Tensor:
    """:func:`combine` in place: x becomes x' and is returned.

    Raises ValueError as :func:`combine` does, where ys or coef share memory with x, and where autograd would need x or
    ys: it is not differentiable.
    """
    backend = _checked(x, ys, coef, seed, first_sample, stream, draw, backend)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (x, *ys)):
        raise bad("x, ys", "tensors that do not require grad (else use combine)", "one that does")
    torch.ops.fpfast.combine_(x, list(ys), coef, seed, first_sample, stream, draw, backend)
    if not torch.compiler.is_compiling() and not x.is_inference():
        torch.autograd.graph.increment_version(x)  # so that autograd notices if it had saved x
    return x


def combine_into(
    out: Tensor,
    operands: list[Tensor],
    coef: Tensor,
    key: Key | None,
    backend: str,
    position: Tensor | None = None,
) -> None:
    """:func:`combine` of ``operands`` into ``out``, which may be the first, for a caller that has checked everything.

    No autograd, no dispatcher: the loop calls it at every stage. ``backend`` is one that serves. ``position``: see
    :func:`fpfast.reference.combine`.
    """
    backends.kernels(backend).combine(out, operands, coef, key, position)
    changed(out)


def combined(operands: list[Tensor], coef: Tensor, key: Key | None, backend: str) -> Tensor:
    """:func:`combine_into` a new tensor, and by way of autograd where that has to know."""
    x, *ys = operands
    if torch.is_grad_enabled() and any(operand.requires_grad for operand in operands):
        if key is None:
            return combine(x, ys, coef, backend=backend)
        seed, first_sample, stream, draw = key
        return combine(
            x, ys, coef, seed=seed, first_sample=first_sample, stream=stream, draw=draw, backend=backend
        )  # fmt: skip
    out = torch.empty_like(x)
    backends.kernels(backend).combine(out, operands, coef, key)
    return out


def changed(out: Tensor) -> None:
    """Tells autograd that a kernel wrote to ``out``: a network may have saved it for a graph of its own."""
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)


def noise(
    kind: str, seed: Tensor, shape: Sequence[int], *, first_sample: int, stream: int, draw: int, backend: str = "auto"
) -> Tensor:
    """float32 values of ``kind`` ("normal", "uniform" or "rademacher") on the device of ``seed``."""
    shape = sizes("shape", shape, 0)
    backend = _checked_noise(kind, seed, shape, first_sample, stream, draw, backend)
    return torch.ops.fpfast.noise(seed, list(shape), first_sample, stream, draw, kind, backend)
