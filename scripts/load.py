"""What long and crowded use does: python scripts/load.py [memory] [callers] [stress] [--minutes 10]

memory   1,000,000 samples to a folder, in files of 50,000: the process's memory over time
callers  eight threads that sample at once against one that uses all processors: samples a second
stress   eight threads that sample, draw, and make residuals for some minutes: the bits of each call alone
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

import fpfast
from fpfast.embedded import embedded
from fpfast.network import MLP

CALLERS = 8


def resident() -> float:
    """MiB of memory that this process holds."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def memory(_: argparse.Namespace) -> None:
    score, seen, done = embedded("blob_w1"), [], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            seen.append(resident())

    before = resident()
    watcher = threading.Thread(target=watch)
    with tempfile.TemporaryDirectory() as folder:
        watcher.start()
        start = time.perf_counter()
        fpfast.sample_to_folder(score, (1_000_000, 2), folder, shard_samples=50_000, steps=50, batch_size=2048)
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
    tenth = len(seen) // 10
    peaks = [f"{max(seen[k * tenth : (k + 1) * tenth]) - before:.0f}" for k in range(10)]
    print(f"1,000,000 samples, 50 steps, {seconds:.0f} s; MiB over what was held before, peaks of ten tenths:")
    print("   ", ", ".join(peaks))


def callers(_: argparse.Namespace) -> None:
    """In turn, so that what else the machine does meets both."""
    score = embedded("blob_w1")

    def call(k: int) -> None:
        fpfast.sample(score, (4096, 2), steps=50, seed=k)

    def one() -> None:
        for k in range(2 * CALLERS):
            call(k)

    def many() -> None:
        with ThreadPoolExecutor(CALLERS) as pool:
            list(pool.map(call, range(2 * CALLERS)))

    ratios = []
    for _ in range(12):
        took = []
        for run in (one, many):
            start = time.perf_counter()
            run()
            took.append(time.perf_counter() - start)
        ratios.append(took[0] / took[1])
    print(f"{CALLERS} callers against one, samples a second: {statistics.median(ratios):.2f} times "
          f"[{min(ratios):.2f} .. {max(ratios):.2f}], {torch.get_num_threads()} threads")  # fmt: skip


def jobs() -> list[Callable[[int], torch.Tensor]]:
    torch.manual_seed(0)
    net = MLP(2, [48, 48], activation="tanh").requires_grad_(False)
    score, potential = fpfast.Score(net, fpfast.VP(), "noise"), embedded("blob_w1")
    unknown = fpfast.Score(lambda x, t: net(x, t).sin(), fpfast.VP(), "noise")
    points = torch.randn(500, 2)
    return [
        lambda k: fpfast.sample(score, (900 + k, 2), steps=10 + k, seed=k),
        lambda k: fpfast.sample(potential, (300, 2), steps=5, seed=k, on_nonfinite="freeze"),
        lambda k: fpfast.sample(unknown, (400, 2), steps=5, solver="heun", seed=k),
        lambda k: fpfast.noise.normal(k, (64, 4000)),
        lambda k: fpfast.fp_residual(score, points + k, 0.5, estimator="exact").value,
        lambda k: fpfast.log_likelihood(score, points + k, steps=3).value,
        lambda k: fpfast.divergence(unknown, points, 0.5, estimator="hutchinson", seed=k).value,
    ]


def stress(options: argparse.Namespace) -> None:
    work = list(itertools.product(jobs(), range(6)))
    alone = [job(k) for job, k in work]
    end, counts = time.perf_counter() + 60 * options.minutes, [0] * CALLERS

    def run(caller: int) -> Iterator[str]:
        order = torch.Generator().manual_seed(caller)
        while time.perf_counter() < end:
            at = int(torch.randint(len(work), (), generator=order))
            job, k = work[at]
            if not torch.equal(job(k), alone[at]):
                yield f"call {counts[caller]} of thread {caller}: job {at // 6}, {k}"
            counts[caller] += 1

    with ThreadPoolExecutor(CALLERS) as pool:
        wrong = [one for found in pool.map(lambda caller: list(run(caller)), range(CALLERS)) for one in found]
    print(f"{sum(counts)} calls by {CALLERS} threads in {options.minutes:g} minutes: {len(wrong)} with other bits")
    print(*wrong[:20], sep="\n")


TASKS = {"memory": memory, "callers": callers, "stress": stress}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--minutes", type=float, default=10.0)
    options = parser.parse_args()
    for task in options.tasks:
        TASKS[task](options)


if __name__ == "__main__":
    main()
