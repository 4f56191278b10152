"""The fused engine: recognised networks run whole, a tile of samples at a time, in one native call.

    net = fpfast.fused.compile(module, dimension=2)      # raises Unsupported, with the layer that stopped it
    score = fpfast.Score(net, sde, predicts="noise")

:func:`fpfast.sample` recognises a module by itself.
"""

from __future__ import annotations

import contextlib
import copy
import math
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fpfast import backends
from fpfast.assemble import PLAIN, Layout, Program, assemble
from fpfast.errors import bad, integer, key
from fpfast.jets import Jets
from fpfast.packed import Packed, obstacle
from fpfast.program import Value, divergence, gradient, joined
from fpfast.recognise import check_modules, known, marks, recognise, unchanged
from fpfast.traced import Unsupported, first_line

__all__ = ["Fused", "Unsupported", "compile"]

PER_SAMPLE = 1 << 14  # samples at a time where each has a time, and so biases, of its own
REMEMBERED = 16  # programs and schedules of one network
TRUST = 1e-3  # of the largest output: float32's own error is far below, that of a misread forward far above
PRODUCTS = ("float32", "bfloat16")
DIVERGENCES = {"divergence": "output", "laplacian": "gradient"}  # and what they are the divergence of
EXACT_DIVERGENCE = 16  # largest dimension: the cost is one forward pass for each


class Fused:
    """A recognised network. Calling it gives what the module gives, without autograd.

    Where autograd would be needed (gradients are enabled, and x or a parameter requires them) the module itself is
    called. Changes of parameters, parts, modes and attributes are noticed, whatever way they came in, but not those
    inside of objects that are no tensors or containers. The module is called on three points, to check what was
    recognised: its output, and the gradient of a potential. If it is on a GPU, all that is done with a copy on the CPU.

    Attributes:
        net: the module.
        dimension: d, columns of x.
        time_column: the module takes t of shape (B, 1).
        products: what :func:`compile` was told.
        parameters: the module's, as of the last refresh.
    """

    def __init__(self, net: nn.Module, dimension: int, level: str | None = None, products: str = "float32") -> None:
        self.net = net
        self.dimension = dimension
        self.level = level  # of the instruction set; None: the best here
        self.products = key("products", products, PRODUCTS)
        self.time_column = bool(getattr(net, "time_column", False))
        self._holding = threading.local()
        self._recognise()

    def _recognise(self) -> None:
        self._tensors: list[Tensor] = []  # so that a refusal is repeated by the next refresh
        self._copy = None if _on_cpu(self.net) else _copied(self.net)
        self._end, self._source, self.flat, self._looked = recognise(self.here, self.dimension, self.time_column)
        self.parameters = list(self.net.parameters())
        self._check_finite()
        self._ends: dict[str, Value] = {"output": self._end}
        self._remembered: dict[Any, Any] = {}
        self._answers: dict[str, Tensor] = {}
        self._compare("output")
        self._marks = [(type(module), marks(module)) for module in self.net.modules()]
        self._tensors = self._read()
        self._values = [tensor.detach().clone() for tensor in self._tensors]

    def __reduce__(self) -> tuple[type[Fused], tuple[nn.Module, int, str | None, str]]:
        return Fused, (self.net, self.dimension, self.level, self.products)  # a copy reads its own module's parameters

    def of(self, net: nn.Module) -> Fused:
        """Another module, recognised as this one was."""
        return Fused(net, self.dimension, self.level, self.products)

    @property
    def here(self) -> nn.Module:
        """The module, or its copy on the CPU."""
        return self.net if self._copy is None else self._copy

    def _read(self) -> list[Tensor]:
        return [*self.net.parameters(), *self.net.buffers()]

    def refresh(self) -> None:
        """Recognises the module again where an attribute of it or of its parts, or a parameter's value, has changed.

        Values are compared, not version counters: changes by way of ``.data`` do not count there. Raises Unsupported
        where the module is no longer one that the engine runs.
        """
        if getattr(self._holding, "on", False):
            return
        check_modules(self.net)
        tensors, modules = self._read(), list(self.net.modules())
        same = len(tensors) == len(self._tensors) and len(modules) == len(self._marks)
        same = same and all(
            type(module) is kind and unchanged(module, old)
            for module, (kind, old) in zip(modules, self._marks, strict=True)
        )
        same = same and all(map(_alike, tensors, self._tensors, self._values))
        if same and all(map(torch.equal, tensors, self._values)):
            return
        if same and not self._looked:
            self._take_values()
        else:
            self._recognise()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within it this thread looks at the module once, now, and not in each call: for many calls on end.

        The module must not be changed meanwhile.
        """
        self.refresh()
        before, self._holding.on = getattr(self._holding, "on", False), True
        try:
            yield
        finally:
            self._holding.on = before

    def _take_values(self) -> None:
        """Other values of the same parameters: a trace, which did not look at them, would be the same."""
        self._check_finite()
        self._values = [tensor.detach().clone() for tensor in self._tensors]
        if self._copy is not None:
            for own, value in zip([*self._copy.parameters(), *self._copy.buffers()], self._values, strict=True):
                own.detach().copy_(value)
        self._remembered = {key: made for key, made in self._remembered.items() if isinstance(made, Jets)}
        self._answers = {}

    def _check_finite(self) -> None:
        numbers = [parameter.detach().reshape(-1) for parameter in self.parameters]
        if not numbers or math.isfinite(torch.cat(numbers).sum(dtype=torch.float64).item()):
            return  # a sum is not finite where a number is not, and costs a fifth of asking each of them
        for name, parameter in self.net.named_parameters():
            if not bool(parameter.isfinite().all()):
                self._tensors = []  # so that the refusal is repeated by the next refresh
                raise bad("net", "finite parameters", f"NaN or infinity in {name!r}")

    def _compare(self, what: str) -> None:
        """Runs module and program on a few points: the last guard against a forward that a trace does not see through.

        Such as one that asks for types, which are others while it is traced.
        """
        x, t = self._points()
        got = self._evaluate(what, self._ends[what].rows, x, t)
        try:
            want = self._ask(what)
        except Exception as error:
            raise Unsupported(f"net cannot be called on {tuple(x.shape)}: {first_line(error)}") from error
        self._answers[what] = want
        scale = float(want.abs().nan_to_num(0, 0).amax()) if want.numel() else 0.0
        if not torch.allclose(got, want.reshape(got.shape), rtol=0, atol=TRUST * scale + 1e-30, equal_nan=True):
            raise Unsupported(f"net: its {what} is not what its trace says: {got[0].tolist()}, not {want[0].tolist()}")

    def _points(self) -> tuple[Tensor, Tensor]:
        some = torch.Generator().manual_seed(0)
        dtype = next((p.dtype for p in self._read() if p.is_floating_point()), torch.float32)
        x, t = (torch.randn(3, n, generator=some).to(dtype) for n in (self.dimension, 1))
        return x, t.abs() if self.time_column else t[:, 0].abs()

    def _ask(self, what: str) -> Tensor:
        x, t = self._points()
        return _autograd(self.here, x, t) if what == "gradient" else self.here(x, t).detach()

    def answers_as_before(self, what: str) -> bool:
        """If the module still says, to the bit, what it said when ``what`` was compared."""
        return what in self._answers and torch.equal(self._ask(what), self._answers[what])

    @property
    def outputs(self) -> int:
        """Columns of the module's output."""
        return self._end.rows

    def packed(self, what: str, first_row: int, dtype: torch.dtype) -> Packed:
        """The program for "output", "gradient" (of a potential), "divergence" or "laplacian" of these, or "A and B"."""
        key = what, first_row, dtype
        return self.remembered(key, lambda: Packed(self.program(what, first_row), dtype, self.level))

    def program(self, what: str, first_row: int, layout: Layout = PLAIN) -> Program:
        """The program behind a name of :meth:`packed`; its rows below ``first_row`` are the caller's."""
        return assemble(self.value(what), self._source, first_row, layout)

    def kernels(self, x: Tensor) -> backends.Residuals | None:
        """Those that compute residuals of tensors like x; None where there are none."""
        if obstacle(x) is None:
            from fpfast.native import Cpu

            return Cpu(self.level)
        if backends.BACKENDS["cpu"].missing() is None:
            for name in ("cuda", "triton"):
                if backends.obstacle(name, x.device.type, x.dtype) is None:
                    return backends.kernels(name)  # type: ignore[return-value]
        return None

    @torch.inference_mode(False)  # what is remembered serves training too
    def jets(
        self, kernels: backends.Residuals, dtype: torch.dtype, device: torch.device
    ) -> tuple[Jets, list[Tensor], list[Tensor], Tensor]:
        """The program for residuals, its parameters and constants on the CPU, and these as the kernels want them.

        The constants have a graph to the parameters, which are the module's or their copies. Refresh first.
        """
        parameters: list[Tensor] = list(self.here.parameters())
        packing = kernels.packing
        if self._copy is not None:
            for own, parameter in zip(parameters, self.parameters, strict=True):
                own.requires_grad_(parameter.requires_grad)
        trained = tuple(tensor.requires_grad for tensor in self._tensors)

        def make() -> Jets:
            jets = Jets(self._end, self._source, packing)
            jets.check_leaves(parameters)
            return jets

        def weights() -> Tensor:
            return jets.weights(constants, dtype).to(device)

        jets = self.remembered(("jets", trained, packing), make)
        constants = self.remembered(("constants", trained, packing), jets.settled)
        return jets, parameters, constants, self.remembered(("jet weights", packing, dtype, device), weights)

    def remembered(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What ``make`` made of the present weights under this key, here or at an earlier call."""
        made = self._remembered.get(key)
        if made is None:
            made = make()
            if len(self._remembered) >= REMEMBERED:
                self._remembered.clear()
            self._remembered[key] = made
        return made

    def value(self, what: str) -> Value:
        """The value behind a name of :meth:`packed`. Raises Unsupported where engine and autograd do not agree."""
        if what not in self._ends:
            if what == "gradient":
                if self.outputs != 1:
                    raise bad("net", "a potential with one output", self.outputs)
                self._ends[what] = gradient(self._end, self._source)
                try:
                    self._compare(what)
                except Unsupported:
                    del self._ends[what]  # all over again next time, with the same refusal
                    raise
            elif what in DIVERGENCES:
                self._ends[what] = divergence(self.value(DIVERGENCES[what]), self._source)
            else:
                self._ends[what] = joined(*map(self.value, what.split(" and ")))
        return self._ends[what]

    def serves(self, x: Tensor, t: Tensor) -> bool:
        """If the engine, not autograd, answers for x and t."""
        asked = torch.is_grad_enabled() and any(
            getattr(v, "requires_grad", False) for v in (x, t, *self.net.parameters())
        )
        return not asked and obstacle(x) is None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """net(x, t)."""
        if not self.serves(x, t):
            return self.net(x, t)
        self.refresh()
        y = self._evaluate("output", self.outputs, x, t)
        return y[:, 0] if self.flat else y

    def gradient(self, x: Tensor, t: Tensor) -> Tensor:
        """The gradient by x of a net with one output, shape of x; never with a graph."""
        self.refresh()
        return self._evaluate("gradient", self.dimension, x, t)

    def divergence(self, x: Tensor, t: Tensor, *, potential: bool = False) -> Tensor:
        """sum_i d net_i / d x_i at (x, t), exact, shape (B,); for a potential the Laplacian.

        Raises ValueError where d > 16 (each dimension costs a forward pass) or the net has not d outputs.
        """
        self.refresh()
        return self._evaluate(self._divergence_name(potential), 1, x, t)[:, 0]

    def _divergence_name(self, potential: bool) -> str:
        if self.dimension > EXACT_DIVERGENCE:
            raise bad("dimension", f"at most {EXACT_DIVERGENCE} for an exact divergence", self.dimension)
        if not potential and self.outputs != self.dimension:
            raise bad("net", f"{self.dimension} outputs, as x has columns", self.outputs)
        return "laplacian" if potential else "divergence"

    def with_divergence(self, t: Tensor, dtype: torch.dtype, potential: bool) -> Callable[[Tensor, int], Tensor]:
        """f(x, k) = (net_1, ..., net_d, sum_i d net_i / d x_i) at (x, t[k]), (B, d + 1), for x (B, d) of this dtype.

        Of a potential its gradient and Laplacian. What depends on times alone is made now for all of t.
        """
        self.refresh()
        name, columns = self._divergence_name(potential), self.dimension + 1
        packed = self.packed(f"{DIVERGENCES[name]} and {name}", self.dimension + columns, dtype)
        biases = packed.program.biases(t, dtype)

        def evaluate(x: Tensor, k: int) -> Tensor:
            if x.shape[1:] != (self.dimension,):
                raise bad("x", f"shape (B, {self.dimension})", tuple(x.shape))
            out = x.new_empty(len(x), columns)
            packed.evaluate(x.detach().contiguous(), out, biases[k : k + 1])
            return out

        return evaluate

    def _evaluate(self, what: str, columns: int, x: Tensor, t: Tensor) -> Tensor:
        if (reason := obstacle(x)) is not None:
            raise RuntimeError(f"fused engine: {reason}")
        if x.ndim != 2 or x.shape[1] != self.dimension:
            raise bad("x", f"shape (B, {self.dimension})", tuple(x.shape))
        x = x.detach().contiguous()
        t = torch.as_tensor(t, dtype=torch.float64).detach().reshape(-1)
        if len(t) not in (1, len(x)):
            raise bad("t", f"a number or one for each of the {len(x)} samples", f"{len(t)} numbers")
        out = x.new_empty(len(x), columns)
        packed = self.packed(what, self.dimension + columns, x.dtype)
        if len(t) and bool((t == t[0]).all()):
            packed.evaluate(x, out, packed.program.biases(t[:1], x.dtype))
            return out
        for start in range(0, len(x), PER_SAMPLE):
            part = slice(start, start + PER_SAMPLE)
            packed.evaluate(x[part], out[part], packed.program.biases(t[part], x.dtype), per_sample=True)
        return out


def compile(net: nn.Module, dimension: int, *, products: str = "float32") -> Fused:
    """Recognises ``net(x, t)``, x of shape (B, dimension), t of shape (B,) or (B, 1), for the fused engine.

    It must be made of Linear, activations (tanh, softplus, SiLU, GELU in its tanh form, ELU, sine), additions and
    constant factors; t may come in anywhere, through anything elementwise or Linear. What forward reads from elsewhere
    than the module and its parts, such as a global variable, is read now.

    Args:
        products: "float32", or "bfloat16": in trajectories on CUDA, factors of matrix products are rounded to bfloat16
            (each by at most 2^-9 of it) and summed up in float32, by a sixth of the tensor cores' work. All else in a
            trajectory is float32's, and so are residuals, derivatives and what runs on other devices.

    Raises:
        Unsupported: (a ValueError) names the layer or operation that stopped it.
        ValueError: for a dimension below 1, or other products.
        RuntimeError: the native kernels are not built.
    """
    integer("dimension", dimension, 1)
    if (missing := backends.BACKENDS["cpu"].missing()) is not None:
        raise RuntimeError(f"fused.compile: {missing}")
    return Fused(net, dimension, products=products)


# By id: a reference to the module, and what is known of it, without the module, so that it does not live for ever.
_known: dict[int, tuple[weakref.ref[nn.Module], dict[str, Any]]] = {}


def recognised(net: nn.Module, dimension: int, what: str) -> Fused:
    """``net`` as :class:`Fused`, from an earlier call as long as it is what it was. Raises Unsupported.

    Its attributes and values are compared, and its answers on a few points ("output" or "gradient", whatever is going
    to be asked): it may read what is not its own.
    """
    fused: Fused | None = None
    entry = _known.get(id(net))
    if entry is not None and entry[0]() is net and entry[1]["dimension"] == dimension:
        fused = Fused.__new__(Fused)
        vars(fused).update(entry[1], net=net)
        try:
            fused.refresh()
            known = fused.answers_as_before(what)
        except Exception:  # of whatever kind: a new trace says what is the matter
            known = False
        fused = fused if known else None
    if fused is None:
        fused = Fused(net, dimension)
    if id(net) not in _known and len(_known) >= REMEMBERED:
        _known.clear()
    key, state = id(net), {name: value for name, value in vars(fused).items() if name != "net"}
    _known[key] = weakref.ref(net, lambda _: _known.pop(key, None)), state
    return fused


def _on_cpu(net: nn.Module) -> bool:
    return isinstance(net, nn.Module) and all(t.device.type == "cpu" for t in (*net.parameters(), *net.buffers()))


@torch.inference_mode(False)  # it serves training too
def _copied(net: nn.Module) -> nn.Module:
    """On the CPU. Raises Unsupported, where that can be seen before a network of any size is copied."""
    check_modules(net)
    if len(devices := {str(tensor.device) for tensor in (*net.parameters(), *net.buffers())}) > 1:
        raise Unsupported(f"net is on several devices: {', '.join(sorted(devices))}")
    for name, module in net.named_modules():
        if type(module).__module__.startswith("torch.nn.modules") and not known(module):
            raise Unsupported(f"{name} ({type(module).__name__}) is not one that the fused engine knows")
    try:
        return copy.deepcopy(net).cpu()
    except Exception as error:
        raise Unsupported(f"net cannot be copied to the CPU: {first_line(error)}") from error


def _alike(tensor: Tensor, known: Tensor, value: Tensor) -> bool:
    same = tensor.shape == value.shape and tensor.dtype == value.dtype and tensor.device == value.device
    return tensor is known and same


def _autograd(net: nn.Module, x: Tensor, t: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        x = x.clone().requires_grad_()
        return torch.autograd.grad(net(x, t.clone()).sum(), x)[0]
