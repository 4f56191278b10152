"""Reads a perceptron off a module, by tracing its forward with torch.fx.

What depends on x must be made of Linear, activations, additions and constant factors (``layers.py`` has the tables);
what depends on t alone may be more, since torch computes it, once for each evaluation, in float64. Anything else raises
:class:`Unsupported`, which names the layer or operation.
"""

from __future__ import annotations

import copy
import inspect
import operator
import random
import threading
import weakref
from typing import Any, NamedTuple, cast

import numpy
import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fpfast.activation import softplus
from fpfast.layers import FUNCTIONS, LAYERS
from fpfast.program import Input, Value
from fpfast.traced import OfTime, State, Unsupported, first_line

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
CONTAINERS = (nn.ParameterList, nn.ParameterDict)  # never called, though they have a __call__ of their own
TRACING = threading.Lock()  # torch.fx replaces nn.Module.__call__ for as long as it traces
DRAWS = "net: its forward draws random numbers"
TRIES = 3  # traces, as another thread may draw from Python's or numpy's generator meanwhile
UNUSED = {*FUNCTIONS, "eq", "_assert"}  # calls that may stand in a forward without use: they change nothing


class Recognised(NamedTuple):
    end: Value
    source: Input
    flat: bool  # the output is (B,)
    looked: bool  # the trace looked at a tensor's numbers: with others it may come out differently


def recognise(net: nn.Module, dimension: int, time_column: bool) -> Recognised:
    """The program's output and input.

    It is for ``net(x, t)`` with x of shape (B, dimension), t of shape (B,), or (B, 1) where ``time_column``.

    Raises :class:`Unsupported`.
    """
    check_modules(net)
    source = Input(dimension)
    time = OfTime((1,), lambda t: t[:, None]) if time_column else OfTime((), lambda t: t)
    sizes = [(dimension,), time.tail]
    with TRACING:
        for _ in range(TRIES):
            watch, before = _Watch(), _states()
            graph, constants = _trace(net, sizes, watch)
            if all(map(numpy.array_equal, before, _states())):
                break
        else:
            raise Unsupported(DRAWS)
    end = _read(net, graph, constants, [State(source), time])
    return Recognised(end.value, source, end.flat, watch.looked)


class _Watch(TorchFunctionMode):
    """Sees if something is computed from tensors themselves, not from what stands for them in a trace."""

    HARMLESS = ("shape", "dtype", "device", "ndim", "requires_grad", "size", "dim", "is_floating_point")

    def __init__(self) -> None:
        super().__init__()
        self.looked = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(getattr(func, "__self__", None), "__name__", None) or getattr(func, "__name__", "")
        held = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor | fx.Proxy)]
        if name not in self.HARMLESS and held and not any(isinstance(one, fx.Proxy) for one in held):
            self.looked = True
        return func(*args, **(kwargs or {}))


def check_modules(net: nn.Module) -> None:
    """Refuses what a trace would not show."""
    if not isinstance(net, nn.Module):
        raise Unsupported(f"net is a {type(net).__name__}, not a torch.nn.Module")
    for name, module in net.named_modules():
        where = f"{name or 'net'} ({type(module).__name__})"
        if any(getattr(module, kind) for kind in HOOKS):
            raise Unsupported(f"{where} has hooks")
        if isinstance(module, torch.jit.ScriptModule):
            raise Unsupported(f"{where} is a TorchScript module")
        own_call = type(module).__call__ is not nn.Module.__call__ and type(module) not in CONTAINERS
        if "forward" in vars(module) or own_call:
            raise Unsupported(f"{where} has a forward or __call__ put in place of its class's")
    if any(getattr(nn.modules.module, f"_global{kind}") for kind in HOOKS):
        raise Unsupported("torch.nn.modules.module has global hooks")


def known(module: nn.Module) -> bool:
    """If a module of torch's own is one of the engine's layers, or there to hold others or parameters."""
    return type(module) in (*LAYERS, *CONTAINERS, nn.Module) or any(True for _ in module.children())


class _Sized(fx.Proxy):
    """x or t: the number of its dimensions and all sizes but the number of samples are known, and may be asked for."""

    def __init__(self, node: fx.Node, tracer: fx.Tracer, sizes: tuple[int, ...]) -> None:
        super().__init__(node, tracer)
        self.sizes = sizes

    @property
    def shape(self) -> tuple[Any, ...]:
        samples: Any = self.tracer.create_proxy("call_method", "size", (self, 0), {})
        return samples, *self.sizes

    @property
    def ndim(self) -> int:
        return 1 + len(self.sizes)

    def dim(self) -> int:
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # else their values would be read once, at the trace

    def __init__(self, sizes: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.sizes = list(sizes)  # of inputs to come
        self.modes = self._modes()
        self.thread = threading.get_ident()

    # While torch.fx traces, every module of the process comes by here, those that other threads call too.
    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self.thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        if node.op == "placeholder" and self.sizes:
            return _Sized(node, self, self.sizes.pop(0))
        return super().proxy(node)

    @staticmethod
    def _modes() -> tuple[bool, bool]:
        return torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if self._modes() != self.modes:
            raise Unsupported("net: its forward switches gradients or autocast")
        return super().create_node(*args, **kwargs)


def _trace(net: nn.Module, sizes: list[tuple[int, ...]], watch: _Watch) -> tuple[fx.Graph, dict[str, Tensor]]:
    """The graph, and the constants that tracing made of tensors without a name."""
    signature = list(inspect.signature(type(net).forward).parameters.values())[1:]
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if len(signature) < 2 or any(p.kind in variable for p in signature):
        raise Unsupported("net: its forward does not take (x, t)")
    if missing := [p.name for p in signature[2:] if p.default is inspect.Parameter.empty]:
        raise Unsupported(f"net: its forward needs more than (x, t): {missing}")
    before = [(module, _snapshot(module)) for module in net.modules()]
    changed: set[str] = set()
    constants: dict[str, Tensor] = {}
    try:
        with watch, _NoDraws():
            graph = _Tracer(sizes).trace(net, concrete_args={p.name: p.default for p in signature[2:]})
    except Unsupported:
        raise
    except Exception as error:  # whatever the user's forward does with something that is no tensor
        raise Unsupported(f"net: its forward cannot be traced: {first_line(error)}") from error
    finally:
        constants.update({name: value for name, value in vars(net).items() if name.startswith("_tensor_constant")})
        for module, old in before:
            changed |= _restore(module, old)
    if changed := changed - set(constants):
        raise Unsupported(f"net: its forward sets attributes: {sorted(changed)}")
    return graph, constants


class _NoDraws(TorchDispatchMode):
    """Refuses torch's random numbers, this thread's, before any is drawn: others draw from the same generator."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Unsupported(DRAWS)
        return func(*args, **(kwargs or {}))


def _states() -> list[Any]:
    """Of Python's and numpy's default generators."""
    return [*random.getstate()[1:], *cast(tuple[Any, ...], numpy.random.get_state())[1:]]


Snapshot = dict[str, tuple[Any, Any]]


def _snapshot(module: nn.Module) -> Snapshot:
    """Each attribute with a copy of what it holds, if it is a container."""
    return {name: (value, copy.copy(value) if isinstance(value, list | dict | set) else None)
            for name, value in vars(module).items()}  # fmt: skip


STORES = ("_parameters", "_buffers")  # of tensors whose values are compared elsewhere


def marks(module: nn.Module) -> dict[str, Any]:
    """What the attributes of a module are known by later; it keeps none of their owners alive."""
    return {name: _mark(value, deep=name not in STORES) for name, value in vars(module).items()}


def unchanged(module: nn.Module, old: dict[str, Any]) -> bool:
    """If the attributes are what they were: equal numbers, tensors and items of containers, the same other objects."""
    now = vars(module)
    return now.keys() == old.keys() and all(_is_as(value, old[name]) for name, value in now.items())


def _mark(value: Any, deep: bool = True) -> Any:
    if isinstance(value, list | tuple):
        return type(value), [_mark(item, deep) for item in value]
    if isinstance(value, dict):
        return dict, {key: _mark(item, deep) for key, item in value.items()}
    if isinstance(value, Tensor) and deep:
        return Tensor, (weakref.ref(value), value.detach().clone())
    if isinstance(value, set):
        return None, set(value)
    try:
        return weakref.ref, weakref.ref(value)
    except TypeError:  # numbers, names, None
        return None, value


def _is_as(value: Any, mark: Any) -> bool:
    kind, held = mark
    if kind is weakref.ref:
        return held() is value
    if kind is Tensor:
        same = held[0]() is value and value.shape == held[1].shape and value.dtype == held[1].dtype
        same = same and value.device == held[1].device
        return same and bool(torch.equal(value, held[1]))
    if kind is dict:
        same = isinstance(value, dict) and value.keys() == held.keys()
        return same and all(_is_as(item, held[key]) for key, item in value.items())
    if kind is None:
        return type(value) is type(held) and bool(value == held)
    return type(value) is kind and len(value) == len(held) and all(map(_is_as, value, held))


def _restore(module: nn.Module, old: Snapshot) -> set[str]:
    """Puts a module's attributes back, and says which had changed."""
    now = vars(module)
    changed = {name for name in {**old, **now} if name not in old or name not in now or old[name][0] is not now[name]}
    for name, (value, held) in old.items():
        if held is None or _same_items(value, held):
            continue
        changed.add(name)
        value.clear()
        value.extend(held) if isinstance(value, list) else value.update(held)
    for name in changed:
        if name in old:
            now[name] = old[name][0]
        else:
            del now[name]
    return changed


def _same_items(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(a[key] is b[key] for key in a)
    if isinstance(a, set):
        return bool(a == b)
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def _read(net: nn.Module, graph: fx.Graph, constants: dict[str, Tensor], inputs: list[Any]) -> State:
    """Walks over the graph and keeps what each node stands for."""
    modules = dict(net.named_modules())
    needed = _needed(graph)
    known: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            known[node] = inputs.pop(0) if inputs else None
        elif node.op == "get_attr":
            name = str(node.target)
            known[node] = _attribute(constants[name] if name in constants else operator.attrgetter(name)(net))
        elif node.op == "output":
            result = fx.node.map_arg(node.args[0], known.__getitem__)
            if not isinstance(result, State):
                raise Unsupported("net: its output is not one tensor that depends on x")
            return result
        elif node in needed:
            args = fx.node.map_arg(node.args, known.__getitem__)
            kwargs = fx.node.map_arg(node.kwargs, known.__getitem__)
            known[node] = _call(node, modules, list(args), dict(kwargs))
        elif node.op != "call_module" and _name(node) not in UNUSED:
            raise Unsupported(f"operation {_name(node)!r} is not one that the fused engine knows")
        elif any(node.kwargs.get(name) for name in ("inplace", "out")):
            raise Unsupported(f"operation {_name(node)!r}: it works in place")
    raise Unsupported("net: its forward returns nothing")


def _needed(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that the output is computed from."""
    needed: set[fx.Node] = set()
    stack = [node for node in graph.nodes if node.op == "output"]
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack.extend(node.all_input_nodes)
    return needed


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def _attribute(value: Any) -> Any:
    return OfTime.of(value) if isinstance(value, Tensor) else value


def _call(node: fx.Node, modules: dict[str, nn.Module], args: list[Any], kwargs: dict[str, Any]) -> Any:
    if node.op == "call_module":
        module = modules[str(node.target)]
        where, handler, args = f"{node.target} ({type(module).__name__})", LAYERS.get(type(module)), [module, *args]
    else:
        handler = FUNCTIONS.get(_name(node)) if _well_known(node.target) else None
        where = f"operation {_name(node)!r}"
    if handler is None:
        raise Unsupported(f"{where} is not one that the fused engine knows")
    try:
        return handler(*args, **kwargs)
    except Unsupported as error:
        raise Unsupported(f"{where}: {error}") from error
    except (
        TypeError,
        AttributeError,
        ValueError,
        IndexError,
        RuntimeError,
    ) as error:  # arguments that the handler does not know
        raise Unsupported(f"{where} is called in a way that the fused engine does not know: {error}") from error


def _well_known(target: Any) -> bool:
    """A tensor method, or a function of Python, torch or this package; not somebody else's of the same name."""
    if isinstance(target, str) or target is softplus:
        return True
    return (getattr(target, "__module__", None) or "builtins").split(".")[0] in ("torch", "_operator", "builtins")
