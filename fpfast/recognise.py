"""Reads a perceptron off a module, by tracing its forward with torch.fx.

What depends on x must be made of Linear, activations, additions and constant factors (``layers.py`` has the tables);
what depends on t alone may be more, since torch computes it, once for each evaluation, in float64. Anything else raises
:class:`Unsupported`, which names the layer or operation.
"""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from fpfast.activation import softplus
from fpfast.layers import FUNCTIONS, LAYERS
from fpfast.program import Input, Value
from fpfast.traced import OfTime, State, Unsupported

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def recognise(net: nn.Module, dimension: int, time_column: bool) -> tuple[Value, Input, bool]:
    """The program's output and input, and if the output is flat, (B,).

    It is for ``net(x, t)`` with x of shape (B, dimension), t of shape (B,), or (B, 1) where ``time_column``.

    Raises :class:`Unsupported`.
    """
    _check_modules(net)
    source = Input(dimension)
    time = OfTime((1,), lambda t: t[:, None]) if time_column else OfTime((), lambda t: t)
    end = _read(net, _trace(net), [State(source), time])
    return end.value, source, end.flat


def _check_modules(net: nn.Module) -> None:
    """What a trace would not show."""
    if not isinstance(net, nn.Module):
        raise Unsupported(f"net is a {type(net).__name__}, not a torch.nn.Module")
    for name, module in net.named_modules():
        where = f"{name or 'net'} ({type(module).__name__})"
        if any(getattr(module, kind) for kind in HOOKS):
            raise Unsupported(f"{where} has hooks")
        if isinstance(module, torch.jit.ScriptModule):
            raise Unsupported(f"{where} is a TorchScript module")
        if "forward" in vars(module) or type(module).__call__ is not nn.Module.__call__:
            raise Unsupported(f"{where} has a forward or __call__ put in place of its class's")
    if nn.modules.module._has_any_global_hook():
        raise Unsupported("torch.nn.modules.module has global hooks")


def _trace(net: nn.Module) -> fx.Graph:
    signature = list(inspect.signature(type(net).forward).parameters.values())[1:]
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if len(signature) < 2 or any(p.kind in variable for p in signature):
        raise Unsupported("net: its forward does not take (x, t)")
    if missing := [p.name for p in signature[2:] if p.default is inspect.Parameter.empty]:
        raise Unsupported(f"net: its forward needs more than (x, t): {missing}")
    before = [(module, dict(vars(module))) for module in net.modules()]
    random = torch.get_rng_state()
    changed: list[str] = []
    try:
        graph = fx.Tracer().trace(net, concrete_args={p.name: p.default for p in signature[2:]})
    except Exception as error:  # whatever the user's forward does with something that is no tensor
        raise Unsupported(
            f"net: its forward cannot be traced: {(str(error) or repr(error)).splitlines()[0]}"
        ) from error
    finally:
        for module, old in before:
            changed += _restore(module, old)
        drawn = not torch.equal(random, torch.get_rng_state())
        torch.set_rng_state(random)
    if changed:
        raise Unsupported(f"net: its forward sets attributes: {sorted(changed)}")
    if drawn:
        raise Unsupported("net: its forward draws random numbers")
    return graph


def _restore(module: nn.Module, old: dict[str, Any]) -> list[str]:
    """Puts a module's attributes back, and says which had changed."""
    now = vars(module)
    changed = [name for name in {**old, **now} if name not in old or name not in now or old[name] is not now[name]]
    now.clear()
    now.update(old)
    return changed


def _read(net: nn.Module, graph: fx.Graph, inputs: list[Any]) -> State:
    """Walks over the graph and keeps what each node stands for."""
    modules = dict(net.named_modules())
    known: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            known[node] = inputs.pop(0) if inputs else None
        elif node.op == "get_attr":
            known[node] = _attribute(operator.attrgetter(str(node.target))(net))
        elif node.op == "output":
            result = fx.node.map_arg(node.args[0], known.__getitem__)
            if not isinstance(result, State):
                raise Unsupported("net: its output is not one tensor that depends on x")
            return result
        elif node.users:  # what nobody uses may be anything
            args = fx.node.map_arg(node.args, known.__getitem__)
            kwargs = fx.node.map_arg(node.kwargs, known.__getitem__)
            known[node] = _call(node, modules, list(args), dict(kwargs))
    raise Unsupported("net: its forward returns nothing")


def _attribute(value: Any) -> Any:
    return OfTime.of(value) if isinstance(value, Tensor) else value


def _call(node: fx.Node, modules: dict[str, nn.Module], args: list[Any], kwargs: dict[str, Any]) -> Any:
    if node.op == "call_module":
        module = modules[str(node.target)]
        where, handler, args = f"{node.target} ({type(module).__name__})", LAYERS.get(type(module)), [module, *args]
    else:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        where, handler = f"operation {name!r}", FUNCTIONS.get(name) if _well_known(node.target) else None
    if handler is None:
        raise Unsupported(f"{where} is not one that the fused engine knows")
    try:
        return handler(*args, **kwargs)
    except Unsupported as error:
        raise Unsupported(f"{where}: {error}") from error
    except (TypeError, AttributeError, ValueError, IndexError) as error:  # arguments that the handler does not know
        raise Unsupported(f"{where} is called in a way that the fused engine does not know: {error}") from error


def _well_known(target: Any) -> bool:
    """A tensor method, or a function of Python, torch or this package; not somebody else's of the same name."""
    if isinstance(target, str) or target is softplus:
        return True
    return (getattr(target, "__module__", None) or "builtins").split(".")[0] in ("torch", "_operator", "builtins")
