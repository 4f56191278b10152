"""Time and memory of one step of residual training as the number of points grows: python scripts/residual_memory.py

The network is 3-80-80-80-1, softplus(100), a potential under OU; each number of points has a process of its own, whose
memory is counted from before its points are made.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import torch

import fpfast
from fpfast import fused, losses
from fpfast.network import MLP


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def step(n: int) -> tuple[float, float]:
    """Seconds of a step with n points, and MB."""
    torch.manual_seed(0)
    net = MLP(2, [80, 80, 80], activation="softplus:100", potential=True, time_first=True)
    score = fpfast.Score(fused.compile(net, 2), fpfast.OU(), "potential")
    losses.fp_regulariser(score, torch.randn(100, 2), torch.rand(100), form="log_density").backward()
    before = peak_mb()
    x, t = torch.empty(n, 2).uniform_(-3.5, 3.5), torch.empty(n).uniform_(0.1, 10)
    took = []
    for _ in range(3 if n <= 1_000_000 else 1):
        began = time.perf_counter()
        losses.fp_regulariser(score, x, t, form="log_density").backward()
        took.append(time.perf_counter() - began)
    return min(took), peak_mb() - before


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(*step(int(sys.argv[1])))
    else:
        print(f"{'points':>10} {'seconds':>9} {'us/point':>9} {'MB':>7}")
        for n in (10_000, 100_000, 1_000_000, 10_000_000):
            command = [sys.executable, __file__, str(n)]
            seconds, memory = map(
                float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            )
            print(f"{n:>10} {seconds:>9.4f} {seconds / n * 1e6:>9.3f} {memory:>7.1f}", flush=True)
