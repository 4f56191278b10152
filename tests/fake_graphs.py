"""CUDA graphs without a GPU: what a step does is recorded op by op, and done again on the same memory."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fpfast import backends

EMPTY = ("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided")
SYNCHRONISING = (  # on a GPU these wait for it, or copy from the host's memory
    *("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "unique_dim", "_unique2"),
    *("lift_fresh", "tolist", "allclose"),
)
READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__")  # of Tensor


class Recording(TorchDispatchMode):
    """Keeps the calls of ops and of kernels. What was there before is put back in the end: a capture does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], None]] = []
        self.made: list[Tensor] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # by address: memory and its old content
        self.inside = False  # an op that calls kernels of ours is one call

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        refuse(func, kwargs)
        self.remember(tree_leaves((args, kwargs)))
        self.inside = True
        try:
            out = func(*args, **kwargs)
        finally:
            self.inside = False
        outputs = [y for y in tree_leaves(out) if isinstance(y, Tensor)]
        self.made += [y for y in outputs if y.untyped_storage().data_ptr() not in self.before]
        if func.__name__.split(".")[0] not in EMPTY:
            self.calls.append(lambda: again(func, args, kwargs, outputs))
        return out

    def remember(self, values: list[object]) -> None:
        made = {y.untyped_storage().data_ptr() for y in self.made}
        for value in values:
            if isinstance(value, Tensor) and (address := value.untyped_storage().data_ptr()) not in made:
                whole = value.as_strided((value.untyped_storage().nbytes() // value.element_size(),), (1,), 0)
                self.before.setdefault(address, (whole, whole.clone()))

    def replay(self) -> None:
        for y in self.made:  # a graph's own memory holds anything when it begins
            if y.is_floating_point():
                y.fill_(torch.nan)
        for call in self.calls:
            call()


def again(func, args, kwargs, outputs: list[Tensor]) -> None:
    for old, new in zip(outputs, tree_leaves(func(*args, **kwargs)), strict=True):
        if old.data_ptr() != new.data_ptr():
            old.copy_(new)


def refuse(func, kwargs) -> None:
    name = func.__name__.split(".")[0]
    if name in SYNCHRONISING or (name == "_to_copy" and kwargs.get("device") is not None):
        raise RuntimeError(f"operation not permitted when stream is capturing: {func}")


class Fake:
    """In place of fpfast.graph.Cuda; ``recording`` is that of the capture that is being made."""

    recording: Recording | None = None
    made: list["Fake"] = []  # noqa: RUF012

    def __init__(self, device: torch.device) -> None:
        self.captures, self.replays, self.warm_ups = 0, 0, 0
        self.graphs: list[weakref.ref] = []  # those of the memory in use
        Fake.made.append(self)

    def warm_up(self, step, slots) -> None:
        self.warm_ups += 1
        step()

    def capture(self, step, first: bool):
        if not first and not any(graph() for graph in self.graphs):
            raise RuntimeError("the memory that is to be shared went with its graphs")
        recording = Recording()
        Fake.recording = recording
        try:
            with recording:
                step()
        finally:
            Fake.recording = None
            for whole, old in recording.before.values():
                whole.copy_(old)
        self.captures += 1

        def replay() -> None:
            self.replays += 1
            recording.replay()

        self.graphs = [*([] if first else self.graphs), weakref.ref(replay)]
        return replay


class Recorded:
    """A backend's kernels, which a capture records."""

    def __init__(self, kernels) -> None:
        self.kernels = kernels

    def __getattr__(self, name: str):
        function = getattr(self.kernels, name)

        def call(*args) -> None:
            recording = Fake.recording
            if recording is not None and not recording.inside:
                recording.remember(tree_leaves(args))
                recording.calls.append(lambda: function(*args))
            function(*args)

        return call


@contextmanager
def no_waiting() -> Iterator[None]:
    """Fails where a host would wait for a GPU, or copy to it."""

    class Refusing(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            refuse(func, kwargs or {})
            return func(*args, **(kwargs or {}))

    def refused(self, *_):
        raise RuntimeError("a tensor's values were read")

    before = {name: getattr(Tensor, name) for name in READS}
    for name in READS:
        setattr(Tensor, name, refused)
    try:
        with Refusing():
            yield
    finally:
        for name, function in before.items():
            setattr(Tensor, name, function)


def install(monkeypatch) -> list[Fake]:
    """Makes graphs possible on the CPU; returns what captures, one for each run."""
    from fpfast import graph

    kernels = backends.kernels
    monkeypatch.setattr(backends, "kernels", lambda name: Recorded(kernels(name)))
    monkeypatch.setitem(graph.CAPTURERS, "cpu", Fake)
    monkeypatch.setattr(graph, "SAFE", "0")  # a fake that fails leaves nothing in disorder, whatever torch this is
    Fake.made = []
    return Fake.made
