"""The one loop: runs a solver's table on a score."""

from __future__ import annotations

import contextlib
import inspect
import os
import threading
import time
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, overload

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fpfast import backends
from fpfast import graph as graphs
from fpfast import noise as noises
from fpfast.errors import bad, brief, dense, flag, floating, instance, integer, key, real, sizes
from fpfast.fused import Fused
from fpfast.loop import Callback, Loop
from fpfast.score import Score
from fpfast.sde import SDES
from fpfast.solvers import SOLVERS, Plan, Solver, Table
from fpfast.tables import checked
from fpfast.times import grid
from fpfast.trajectory import FusedLoop, fusible, schedule
from fpfast.watch import ON_NONFINITE, Broken, Watch, count, finite

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Info(NamedTuple):
    """What a run did. ``seed`` repeats it (None where every sample had a seed of its own)."""

    evaluations: int  # network calls for each batch
    seconds: float
    backend: str
    nonfinite: int  # samples that hold a NaN or an infinity; with on_nonfinite="freeze", that were frozen
    first_nonfinite: tuple[int, int] | None  # (sample, step) where one appeared first; None also if nobody looked
    seed: int | None
    fused: bool  # the network was recognised and ran inside the kernel
    not_fused: str | None  # else the reason
    graph: bool  # steps were captured in a CUDA graph and replayed
    not_graph: str | None  # the reason why none was, or why from some step on


class Options(TypedDict, total=False):
    """The keyword arguments of :func:`sample`, for those who pass them on."""

    solver: str | Solver
    steps: int
    times: str | Sequence[float] | Tensor | None
    noise: float
    seed: noises.Seed
    first_sample: int
    x: Tensor | None
    final: Literal["mean", "noise"]
    device: torch.device | str | None
    dtype: torch.dtype
    backend: str
    batch_size: int | None
    progress: bool
    callback: Callback | None
    callback_steps: Sequence[int] | None
    graph: bool | Literal["auto"]
    on_nonfinite: Literal["ignore", "freeze", "raise"]


class Bar(tqdm):
    """A progress bar, without two things of tqdm's that even one that is off would have (training's).

    They are a thread that watches over all bars, and a lock that forked processes share: one that is killed while it
    holds that would leave all others waiting.
    """

    monitor_interval = 0
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):  # a thread that is not there any more may have held it
    os.register_at_fork(after_in_child=lambda: Bar.set_lock(threading.RLock()))


@overload
def sample(
    score: Score, shape: Sequence[int], *, return_info: Literal[False] = False, **options: Unpack[Options]
) -> Tensor: ...
@overload
def sample(
    score: Score, shape: Sequence[int], *, return_info: Literal[True], **options: Unpack[Options]
) -> tuple[Tensor, Info]: ...
@torch.no_grad()
def sample(
    score: Score,
    shape: Sequence[int],
    *,
    solver: str | Solver = "euler_maruyama",
    steps: int = 100,
    times: str | Sequence[float] | Tensor | None = None,
    noise: float = 1.0,
    seed: noises.Seed = None,
    first_sample: int = 0,
    x: Tensor | None = None,
    final: Literal["mean", "noise"] = "mean",
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
    batch_size: int | None = None,
    progress: bool = False,
    callback: Callback | None = None,
    callback_steps: Sequence[int] | None = None,
    graph: bool | Literal["auto"] = "auto",
    on_nonfinite: Literal["ignore", "freeze", "raise"] = "ignore",
    return_info: bool = False,
) -> Tensor | tuple[Tensor, Info]:
    """Samples by integrating dX = [a x - (1 + noise^2)/2 g^2 s] dt + noise g dW~ from T down (Song et al., 2011.13456).

    Args:
        score: a :class:`fpfast.Score`: a network, its SDE and what it predicts.
        shape: (samples, ...), as the network takes it.
        solver: a key of ``fpfast.solvers.SOLVERS``, each docstring of which says order and number of evaluations; or a
            function like those, of one's own.
        steps: number of steps of a named time grid.
        times: a name of ``fpfast.times.TIMES``, a specification "START:STOP:STEPS,...", a descending sequence from T
            (one more than steps), or None for the SDE's own grid.
        noise: lambda >= 0; 0 is the probability-flow ODE, 1 the reverse SDE.
        seed: an integer in [0, 2^64), a torch.Generator, None (torch's default generator), or one integer per sample.
        first_sample: number of the first sample. Samples [k, k + n) of a long run are those of first_sample = k. (With
            one seed per sample there is nothing to number.)
        x: the state at T to start from, in place of a draw from the prior. It is not changed.
        final: "mean": the last step adds no noise; "noise": it does.
        device: default: that of ``x``, else of the network's parameters, else the CPU.
        dtype: of the state, float32 or float64 (reference backend).
        backend: "auto" or a key of ``fpfast.backends.BACKENDS``.
        batch_size: at most so many samples at a time. Our own arithmetic gives the same bits for every value.
        progress: a progress bar on stderr.
        callback: ``callback(step, t, x)`` after each step (1 to steps) with a copy of the batch's state at time t. If
            it returns a true value the run ends there: this batch and those after it stop at that step.
        callback_steps: the steps (1 to steps) after which it is called; default: all.
        graph: "auto": on a GPU, steps are captured in a CUDA graph and replayed where the network allows it (see
            below); True: an error where that cannot be; False: not.
        on_nonfinite: "ignore": samples that hold NaN or infinity in the end are counted, and a warning says how many;
            "freeze": such a sample stays in the last state that was finite, and the warning also says where the first
            one was; "raise": an error says that, after the batch. The last two look at each step's state, without
            waiting for the device.
        return_info: return (samples, :class:`Info`).

    The layers of a perceptron (see :mod:`fpfast.fused`) run inside the kernel, all steps in one go, on the CPU and,
    in CUDA or Triton, on a GPU. It is called once, on three points, to check what was recognised (of a
    network on a GPU, a copy on the CPU); a potential a second time when it is new. backend="reference" calls it as any
    other network is called: as it is, so put it in evaluation mode if it has dropout. Its inputs x and t are the run's
    own memory: what follows the call overwrites them, and the last state is what is returned. So a network must not
    change them, and must clone what it wants to keep.

    Any other network on a GPU is launched by replays as far as can be. Of steps that do the same but for their numbers
    the first is run as it is; at the second the network is called once for each evaluation, to be captured; the others
    are replays, which call no Python. The solvers here have at most three kinds of steps, and most steps are of one;
    captures serve all batches of one length. The bits are the same. A network that cannot be captured (it waits for
    the GPU, say, or copies to the CPU) is called as it is, after one call more. What a network's Python does beside
    starting work on the GPU, such as counting its calls, a replay does not do: say graph=False then. "auto" leaves
    modules alone that are in training mode or have hooks, and steps that do not occur often enough to pay;
    Info.not_graph has the reason.

    Returns:
        Samples at the last time, of the given shape, dtype and device.

    Raises:
        ValueError, TypeError: an argument is of the wrong kind or out of range, or the network's parameters or outputs
            are; the message names it.
        RuntimeError: a named backend cannot serve, or graph is True and no step can be captured.
        FloatingPointError: on_nonfinite is "raise", and samples became NaN or infinite.

    Warns with RuntimeWarning when samples hold NaN or infinity, or were frozen.
    """
    shape = sizes("shape", shape, 1)
    noise = real("noise", noise, "a level from 0 to 10^6", 0, 1e6)
    first_sample = integer("first_sample", first_sample, 0, 2**48 - shape[0])
    return_info, progress = flag("return_info", return_info), flag("progress", progress)
    batch_size = _batches(batch_size, graph, on_nonfinite) or shape[0]
    device = _checked(score, x, shape, solver, final, device, dtype, callback)
    watched = on_nonfinite != "ignore"
    asked, backend = backend, backends.pick(backend, device.type, dtype)
    seeds = noises.seed_tensor(seed, shape[0], device)
    if seeds.ndim and first_sample:
        raise bad("first_sample", "0 where every sample has a seed of its own", first_sample)
    table, ends = _table(score, solver, times, steps, noise, final == "noise")
    chosen = set() if callback is None and callback_steps is None else _callback_steps(callback_steps, len(ends))
    net, not_fused = fusible(score, table, shape, asked, device, dtype, on_nonfinite == "freeze")
    fused = net is not None
    not_graph = "the network runs in the fused engine" if fused else graphs.obstacle(graph, score, device, backend)
    if graph is True and not_graph is not None:
        raise graphs.cannot(not_graph)
    starts = range(0, shape[0], batch_size)
    lengths = [min(batch_size, shape[0] - start) for start in starts] if not_graph is None else []
    run: Loop | FusedLoop
    if net is None:
        run = Loop(score, table, ends, backend, device, dtype, callback, chosen, lengths, graph is True)
    else:
        run = FusedLoop(schedule(net, score, table, asked, device, dtype), table, ends, callback, chosen)
    out = None if len(starts) == 1 else torch.empty(shape, dtype=dtype, device=device)
    broken = Broken()
    began = time.perf_counter()
    # One that is off would cost as much as some steps.
    bar = Bar(total=len(starts) * run.steps, desc="sampling", unit="step") if progress else None
    advance = None if bar is None else bar.update
    with contextlib.nullcontext() if bar is None else bar:
        for start in starts:
            part = slice(start, min(start + batch_size, shape[0]))
            own = seeds[part] if seeds.ndim else seeds
            first = 0 if seeds.ndim else first_sample + start
            if x is None:
                batch = (part.stop - start, *shape[1:])
                state = score.sde.prior(
                    batch, seed=own, first_sample=first, device=device, dtype=dtype, backend=backend
                )
            else:
                state = x[part].to(device=device, dtype=dtype, copy=True).contiguous()
            watch = Watch(state, on_nonfinite == "freeze") if watched else None
            samples = run(state, own, first, advance, watch)
            if watch is not None:
                broken = broken.with_batch(watch, start)
                if broken.samples and on_nonfinite == "raise":
                    raise FloatingPointError(f"net: {broken.says(on_nonfinite, part.stop, ends)}")
            if out is None:
                out = samples
            else:
                out[part] = samples
    assert out is not None
    nonfinite = broken.samples if watched else count(out)
    if nonfinite:
        said = f"{nonfinite} of {shape[0]} samples {ON_NONFINITE['ignore']}"
        said = broken.says(on_nonfinite, shape[0], ends) if watched else said
        warnings.warn(said, RuntimeWarning, stacklevel=2)
    if not return_info:
        return out
    used = None if seeds.ndim else int(seeds) % 2**64
    seconds = time.perf_counter() - began
    captured = run.graphs if isinstance(run, Loop) else None
    replayed, not_graph = (False, not_graph) if captured is None else (captured.replayed, captured.missing)
    if captured is not None and captured.failed:
        graphs.remember_failure(score, str(not_graph))
    return out, Info(
        run.evaluations, seconds, backend, nonfinite, broken.first, used, fused, not_fused, replayed, not_graph
    )


def settled(score: Score, options: dict[str, Any]) -> tuple[dict[str, Any], Table]:
    """All options of :func:`sample`, those that are not given by their defaults, and the table of the solver.

    Raises what :func:`sample` would, for what does not take a network or a state to see.
    """
    bound = inspect.signature(sample).bind(score, (1,), **options)
    bound.apply_defaults()
    all_ = {name: value for name, value in bound.arguments.items() if name not in ("score", "shape")}
    checked_names = ("solver", "final", "device", "dtype", "callback")
    device = _checked(score, None, (1,), *(all_[name] for name in checked_names))
    all_["noise"] = real("noise", all_["noise"], "a level from 0 to 10^6", 0, 1e6)
    all_["batch_size"] = _batches(*(all_[name] for name in ("batch_size", "graph", "on_nonfinite")))
    backends.pick(all_["backend"], device.type, all_["dtype"])
    of_table = {name: all_[name] for name in ("solver", "times", "steps", "noise")}
    return all_, _table(score, **of_table, last_noise=all_["final"] == "noise")[0]


REMEMBERED_TABLES = 16
_tables: dict[Any, tuple[Table, tuple[float, ...]]] = {}


def _table(
    score: Score,
    solver: str | Solver,
    times: str | Sequence[float] | Tensor | None,
    steps: int,
    noise: float,
    last_noise: bool,
) -> tuple[Table, tuple[float, ...]]:
    """The solver's table and where its steps end; remembered, as short runs would spend much of their time here."""
    function = SOLVERS[solver] if isinstance(solver, str) else solver
    # Only what is built in is certain to give what it gave before, and needs no looking through.
    known_solver = getattr(function, "__module__", None) == Plan.__module__
    remember = known_solver and type(score) is Score and type(score.sde) in SDES.values()
    # Times that were looked through at an earlier call are not looked through again.
    given = None
    if isinstance(times, Tensor) and dense(times) and times.dtype == torch.float64 and times.ndim == 1 and times.is_cpu:
        given = times
    t = grid(score.sde, times, steps) if given is None else given
    key = score.sde, score.predicts, function, tuple(t.tolist()), noise, last_noise
    if remember and (known := _tables.get(key)) is not None:
        return known
    t = t if given is None else grid(score.sde, given, steps)
    plan = Plan(score, t, noise, last_noise)
    table = function(plan) if known_solver else checked(function(plan), len(t) - 1)
    made = table, tuple(plan.next.t.tolist())
    if remember:
        if len(_tables) >= REMEMBERED_TABLES:
            _tables.clear()
        _tables[key] = made
    return made


def _batches(batch_size: int | None, graph: bool | str, on_nonfinite: str) -> int | None:
    """Checks how batches are run, and returns how many samples are in one."""
    if not isinstance(graph, bool) and not (isinstance(graph, str) and graph == "auto"):
        raise bad("graph", "'auto', True or False", repr(graph))
    key("on_nonfinite", on_nonfinite, ON_NONFINITE)
    return None if batch_size is None else integer("batch_size", batch_size, 1)


def _callback_steps(chosen: Sequence[int] | None, steps: int) -> set[int]:
    if chosen is None:
        return set(range(1, steps + 1))
    try:
        numbers = tuple(chosen)
    except TypeError as error:
        raise bad("callback_steps", "numbers of steps", repr(chosen)) from error
    return {integer("callback_steps", step, 1, steps) for step in numbers}


def _checked(
    score: Score,
    x: Tensor | None,
    shape: tuple[int, ...],
    solver: str | Solver,
    final: str,
    device: torch.device | str | None,
    dtype: torch.dtype,
    callback: Callback | None,
) -> torch.device:
    """Checks what is not checked elsewhere, and returns the device to run on."""
    instance("score", score, Score, "fpfast.Score(net, sde, predicts=...)")
    if not callable(solver):
        key("solver", solver, SOLVERS)
    key("final", final, ("mean", "noise"))
    floating("dtype", dtype)
    if callback is not None and not callable(callback):
        raise bad("callback", "a function callback(step, t, x) or None", repr(callback))
    if x is not None:
        if not dense(x):
            raise bad("x", f"a dense tensor of shape {shape}", brief(x))
        if tuple(x.shape) != shape or not x.is_floating_point() or not finite(x):
            raise bad("x", f"finite floating-point values of shape {shape}", f"{x.dtype} of shape {tuple(x.shape)}")
    return usable_device(score, x, device)


def usable_device(score: Score, x: Tensor | None, device: torch.device | str | None) -> torch.device:
    """The device asked for, else that of x, else of the network's parameters, which are checked to be finite."""
    net = score.net.net if isinstance(score.net, Fused) else score.net
    parameters = list(net.named_parameters()) if isinstance(net, nn.Module) else []
    for name, value in parameters if net is score.net else ():  # Fused looks for itself
        if not bool(value.isfinite().all()):
            raise bad("score", "a network with finite parameters", f"NaN or infinity in {name!r}")
    if device is None and x is not None:
        device = x.device
    if device is None:
        device = next((value.device for _, value in parameters), torch.device("cpu"))
    return backends.usable("device", device)
