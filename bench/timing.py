"""Times the sides of a case in turn: A B C A B C ..., so that a change of the machine's mood meets all of them."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from bench.machine import Machine, memory_of

Run = Callable[[], Any]
# Prepares a side: builds, compiles and checks it. Returns the run to be timed and a remark on how it was built.
Side = Callable[[], tuple[Run, str]]

PAUSE = 0.05  # for what the side before leaves to other threads: JAX gives 256 MiB back after it has returned


@dataclass(frozen=True)
class Settings:
    """What a run of all cases is told."""

    threads: int
    quick: bool  # sizes that only show that everything runs
    reference_data: Path | None  # the folder of the networks of arXiv 2311.15996
    machine: Machine


@dataclass(frozen=True)
class Case:
    """One thing measured on several sides."""

    group: str
    name: str
    sides: dict[str, Side]
    unit: str  # of a time divided by ``count``
    count: float
    scale: float = 1e9  # units in a second
    flops: float = 0.0  # per count, where a share of the peak means something
    bases: tuple[tuple[str, ...], ...] = (("fpfast",),)  # sides that ratios refer to; of several, the sum
    shortest: float = 0.02  # seconds of a sample: a run that takes less is repeated within it
    curve: str = ""  # cases of one curve differ by their size alone
    size: float = 0.0


@dataclass
class Row:
    """What came out for one side."""

    group: str
    case: str
    side: str
    threads: int
    unit: str
    median: float | None = None
    low: float | None = None
    high: float | None = None
    samples: list[float] = field(default_factory=list)
    ratios: dict[str, float] = field(default_factory=dict)  # by base
    share_of_peak: float | None = None
    curve: str = ""
    size: float = 0.0
    memory: float | None = None  # MB that a run's allocations come to at most at one time
    remark: str = ""
    failed: str = ""  # why there is no time


def measure(case: Case, threads: int, repeats: int, peak: float) -> list[Row]:
    """All sides of a case. ``peak``: GFLOPS of the machine."""
    curve = {"curve": case.curve, "size": case.size}
    rows = {side: Row(case.group, case.name, side, threads, case.unit, **curve) for side in case.sides}
    runs: dict[str, Run] = {}
    for side, prepare in case.sides.items():
        try:
            runs[side], rows[side].remark = prepare()
        except Exception as error:  # of whatever kind: the table says so in place of a time
            rows[side].failed = f"{type(error).__name__}: {error}".splitlines()[0][:160]
    gc.collect()
    gc.freeze()  # a user's process has not the objects of all peers, which a collection would walk through
    # This round is not counted: after it each side has the memory it wants.
    times = {side: math.ceil(case.shortest / seconds(run)) for side, run in runs.items()}
    for _ in range(repeats):
        for side, run in runs.items():
            time.sleep(PAUSE)
            rows[side].samples.append(seconds(run, times[side]) / case.count * case.scale)
    for side, run in runs.items():
        time.sleep(PAUSE)
        rows[side].memory = memory_of(run)
    for row in rows.values():
        if row.samples:
            row.median, row.low, row.high = median(row.samples), min(row.samples), max(row.samples)
            if case.flops:
                row.share_of_peak = case.flops / (row.median / case.scale) / 1e9 / peak
    for base in case.bases:
        reference = [rows[side].median for side in base if side in rows]
        known = [value for value in reference if value is not None]
        if len(known) == len(base):
            for row in rows.values():
                if row.median is not None:
                    row.ratios[" + ".join(base)] = row.median / sum(known)
    return list(rows.values())


def seconds(run: Run, times: int = 1) -> float:
    """Of one of ``times`` runs on end."""
    began = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - began) / times
