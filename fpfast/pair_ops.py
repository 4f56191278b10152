"""The torch.library ops that residuals are made of: schema, checks, fake, autograd.

    fpfast::pair           [2, B, ...]   c0 x + c1 y + cz v  and  c0 x + c1 y - cz v
    fpfast::defect         [B, ...], [B] r = (x - (y+ + y-) / 2) c1 + c0 x,  and |r|^2
    fpfast::defect_product [B]           r.r' of two pairs y and z
    fpfast::probe_dot      [B]           v.x
    fpfast::probe_times    [B, ...]      c v

The probe v (normal, uniform or Rademacher) is named by its key and made inside the kernel, again wherever it is needed
again; it is never stored. All of them can be differentiated any number of times, though not by the coefficients of
``pair``, ``defect`` and ``defect_product``. float32 has kernels on the CPU, in CUDA and in Triton; float64 is plain
torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fpfast import backends
from fpfast.errors import bad, key
from fpfast.ops import _check_noise, _library
from fpfast.reference import KINDS, Key
from fpfast.vmap import by_slices, refuse_forward_mode

_PROBE = "Tensor seed, SymInt first_sample, int stream, SymInt draw, str kind, str backend"
_library.define(f"pair(Tensor x, Tensor y, Tensor coef, {_PROBE}) -> Tensor")
_library.define("defect(Tensor x, Tensor pair, Tensor coef, str backend) -> (Tensor, Tensor)")
_library.define("defect_product(Tensor x, Tensor pair, Tensor other, Tensor coef, str backend) -> Tensor")
_library.define(f"probe_dot(Tensor x, {_PROBE}) -> Tensor")
_library.define(f"probe_times(Tensor coef, SymInt[] shape, {_PROBE}) -> Tensor")


def _column(coef: Tensor, like: Tensor) -> Tensor:
    """[B] shaped to multiply [B, ...]."""
    return coef.reshape(-1, *(1,) * (like.ndim - 1))


# ------------------------------------------------------------------------------------------------ pair


def _pair(x: Tensor, y: Tensor, coef: Tensor, seed: Tensor, first: int, stream: int, draw: int, kind: str,
          backend: str) -> Tensor:  # fmt: skip
    backend = _checked_pair(x, y, coef, seed, first, stream, draw, kind, backend)
    out = x.new_empty((2, *x.shape))
    backends.kernels(backend).pair(out, x, y, coef, kind, Key(seed, first, stream, draw))
    return out


def _pair_fake(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty((2, *x.shape))


def _pair_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[2])


def _pair_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (coef,) = ctx.saved_tensors
    both = grad[0] + grad[1]  # the probe's share cancels
    return _column(coef[:, 0], both) * both, _column(coef[:, 1], both) * both, *(None,) * 7


# ------------------------------------------------------------------------------------------------ defect


def _defect(x: Tensor, pair: Tensor, coef: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    backend = _checked_defect(x, {"pair": pair}, coef, backend)
    out, norms = torch.empty_like(x), x.new_empty(len(x))
    backends.kernels(backend).defect(out, norms, x, pair, coef)
    return out, norms


def _defect_fake(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[0])


def _defect_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[0], inputs[2])


def _to_operands(grad: Tensor, coef: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients by x and by the pair, from those by r."""
    c0, c1 = _column(coef[:, 0], grad), _column(coef[:, 1], grad)
    of_pair = c1 * grad * -0.5
    return (c0 + c1) * grad, torch.stack((of_pair, of_pair))


def _defect_backward(ctx: Any, grad: Tensor, of_norms: Tensor) -> tuple[Any, ...]:
    r, coef = ctx.saved_tensors
    return *_to_operands(grad + 2 * _column(of_norms, r) * r, coef), None, None


# ------------------------------------------------------------------------------------------------ defect_product


def _product(x: Tensor, pair: Tensor, other: Tensor, coef: Tensor, backend: str) -> Tensor:
    backend = _checked_defect(x, {"pair": pair, "other": other}, coef, backend)
    out = x.new_empty(len(x))
    backends.kernels(backend).product(out, x, pair, other, coef)
    return out


def _per_sample_fake(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0])


def _product_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.backend = inputs[4]


def _product_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, pair, other, coef = ctx.saved_tensors
    r, _ = torch.ops.fpfast.defect(x, pair, coef, ctx.backend)  # made again rather than stored
    r_other, _ = torch.ops.fpfast.defect(x, other, coef, ctx.backend)
    of_x, of_pair = _to_operands(_column(grad, x) * r_other, coef)
    of_x_too, of_other = _to_operands(_column(grad, x) * r, coef)
    return of_x + of_x_too, of_pair, of_other, None, None


# ------------------------------------------------------------------------------------------------ probes


def _dot(x: Tensor, seed: Tensor, first: int, stream: int, draw: int, kind: str, backend: str) -> Tensor:
    backend = _checked_dot(x, seed, first, stream, draw, kind, backend)
    out = x.new_empty(len(x))
    backends.kernels(backend).probe_dot(out, x, kind, Key(seed, first, stream, draw))
    return out


def _dot_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, seed, *ctx.key = inputs
    ctx.shape = x.shape
    ctx.save_for_backward(seed)


def _dot_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (seed,) = ctx.saved_tensors
    return torch.ops.fpfast.probe_times(grad.contiguous(), ctx.shape, seed, *ctx.key), *(None,) * 6


def _times(coef: Tensor, shape: Sequence[int], seed: Tensor, first: int, stream: int, draw: int, kind: str,
           backend: str) -> Tensor:  # fmt: skip
    out = coef.new_empty(shape)
    _check_state(out)
    _check(out, {"coef": (coef, (len(out),))})
    backend = _probe(out, seed, first, stream, draw, kind, backend)
    backends.kernels(backend).probe_times(out, coef, kind, Key(seed, first, stream, draw))
    return out


def _times_fake(coef: Tensor, shape: Sequence[int], *_: Any) -> Tensor:
    return coef.new_empty(shape)


def _times_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, _, seed, *ctx.key = inputs
    ctx.save_for_backward(seed)


def _times_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    (seed,) = ctx.saved_tensors
    return torch.ops.fpfast.probe_dot(grad.contiguous(), seed, *ctx.key), *(None,) * 7


# name -> implementation, fake, what is kept for the way back, the way back
OPS: dict[str, tuple[Any, Any, Any, Any]] = {
    "pair": (_pair, _pair_fake, _pair_setup, _pair_backward),
    "defect": (_defect, _defect_fake, _defect_setup, _defect_backward),
    "defect_product": (_product, _per_sample_fake, _product_setup, _product_backward),
    "probe_dot": (_dot, _per_sample_fake, _dot_setup, _dot_backward),
    "probe_times": (_times, _times_fake, _times_setup, _times_backward),
}
for _name, (_implementation, _fake, _setup, _backward) in OPS.items():
    _library.impl(_name, _implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fpfast::{_name}", _fake, lib=_library)
    torch.library.register_autograd(f"fpfast::{_name}", _backward, setup_context=_setup, lib=_library)
    torch.library.register_vmap(f"fpfast::{_name}", by_slices(getattr(torch.ops.fpfast, _name)), lib=_library)


# ------------------------------------------------------------------------------------------------ what one calls


def _check_state(x: Tensor) -> None:
    if not isinstance(x, Tensor) or x.ndim < 2 or x.dtype not in (torch.float32, torch.float64):
        raise bad("x", "float32 or float64 of shape (B, ...)", getattr(x, "shape", type(x).__name__))


def _check(x: Tensor, others: dict[str, tuple[Tensor, tuple[int, ...]]]) -> None:
    """The others are like the state x, of the shapes given."""
    for name, (tensor, shape) in {"x": (x, tuple(x.shape)), **others}.items():
        if not isinstance(tensor, Tensor) or tuple(tensor.shape) != shape:
            raise bad(name, f"shape {shape}", getattr(tensor, "shape", type(tensor).__name__))
        if tensor.dtype != x.dtype or tensor.device != x.device:
            raise bad(name, f"{x.dtype} on {x.device} as x", f"{tensor.dtype} on {tensor.device}")
        if not tensor.is_contiguous():
            raise bad(name, "a contiguous tensor", f"strides {tensor.stride()} for shape {tuple(tensor.shape)}")
    refuse_forward_mode((x, *(tensor for tensor, _ in others.values())))


def _probe(x: Tensor, seed: Tensor, first: int, stream: int, draw: int, kind: str, backend: str) -> str:
    """Checks what names a probe, and picks the backend."""
    key("kind", kind, KINDS)
    if not isinstance(seed, Tensor) or seed.device != x.device:
        raise bad("seed", f"a tensor on {x.device} as x", getattr(seed, "device", type(seed).__name__))
    _check_noise(len(x), seed, first, stream, draw)
    return backends.pick(backend, x.device.type, x.dtype)


# Ops check too, as they can be called by themselves. All give the backend.


def _checked_pair(x: Tensor, y: Tensor, coef: Tensor, seed: Tensor, *rest: Any) -> str:
    _check_state(x)
    _check(x, {"y": (y, tuple(x.shape)), "coef": (coef, (len(x), 3))})
    return _probe(x, seed, *rest)


def _checked_defect(x: Tensor, pairs: dict[str, Tensor], coef: Tensor, backend: str) -> str:
    _check_state(x)
    shape = (2, *x.shape)
    _check(x, {**{name: (pair, shape) for name, pair in pairs.items()}, "coef": (coef, (len(x), 2))})
    return backends.pick(backend, x.device.type, x.dtype)


def _checked_dot(x: Tensor, seed: Tensor, *rest: Any) -> str:
    _check_state(x)
    _check(x, {})
    return _probe(x, seed, *rest)


def pair(
    x: Tensor,  # [B, ...] float32 or float64
    y: Tensor,  # like x
    coef: Tensor,  # [B, 3]: c0, c1, cz
    *,
    seed: Tensor,  # int64, [] or [B]
    kind: str = "rademacher",
    first_sample: int = 0,
    stream: int = 3,
    draw: int = 0,
    backend: str = "auto",
) -> Tensor:
    """The antithetic pair (c0 x + c1 y) +- cz v, [2, B, ...], every operation rounded by itself.

    With c0 = 1 - h a, c1 = h g^2 and cz = g sqrt(h), y the score, it is two reverse Euler-Maruyama steps of length h.
    Raises ValueError for a wrong shape, dtype, device, layout or noise number, RuntimeError for a backend that cannot
    serve; so do the others here.
    """
    backend = _checked_pair(x, y, coef, seed, first_sample, stream, draw, kind, backend)
    return torch.ops.fpfast.pair(x, y, coef, seed, first_sample, stream, draw, kind, backend)


def defect(x: Tensor, pair: Tensor, coef: Tensor, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """(r, |r|^2) with r = (x - (pair[0] + pair[1]) / 2) c1 + c0 x, row b of coef [B, 2] being (c0, c1)."""
    return torch.ops.fpfast.defect(x, pair, coef, _checked_defect(x, {"pair": pair}, coef, backend))


def defect_product(x: Tensor, pair: Tensor, other: Tensor, coef: Tensor, *, backend: str = "auto") -> Tensor:
    """r.r', [B], of the two defects of :func:`defect`. Where the pairs are independent, so are the defects' errors."""
    backend = _checked_defect(x, {"pair": pair, "other": other}, coef, backend)
    return torch.ops.fpfast.defect_product(x, pair, other, coef, backend)


def probe_dot(
    x: Tensor,
    *,
    seed: Tensor,
    kind: str = "rademacher",
    first_sample: int = 0,
    stream: int = 3,
    draw: int = 0,
    backend: str = "auto",
) -> Tensor:
    """v.x of each sample, [B]: Hutchinson's estimate if x = J^T v."""
    backend = _checked_dot(x, seed, first_sample, stream, draw, kind, backend)
    return torch.ops.fpfast.probe_dot(x, seed, first_sample, stream, draw, kind, backend)
