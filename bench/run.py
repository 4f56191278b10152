"""``python -m bench.run --suite grid``: checks, times and compares, prints tables and writes a JSON file.

Each number of threads has a process of its own, because XLA's pool has as many threads as the process has processors,
once and for all. The process is confined to that many processors before it imports torch and JAX.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from bench import report, timing
from bench.machine import Machine, build, cores, processor
from bench.timing import Row, measure

SUITES = {
    "sizes": ("sizes",),
    "grid": ("grid",),
    "residual": ("training", "unet"),
    "peers": ("overhead", "pipeline", "likelihood"),
    "cpu-engine": ("authors", "small", "combine", "normal", "interleaved", "levels", "widths"),
    "gpu": (),  # bench/gpu.py
}
PEERS = ("diffusers", "k-diffusion", "torchsde", "torchdiffeq", "diffrax")
RESULTS = Path(__file__).with_name("results")
# Freed memory is kept. As it comes, glibc gives large blocks back and the kernel clears each page anew, which was more
# than half of what torch took on 262,144 samples, and another share in each run.
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__)
    parser.add_argument("--suite", choices=SUITES, required=True)
    every = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, nargs="+", default=[every], metavar="N", help="default: all processors")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="samples of each side (default 7)")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose 'group: name' contains TEXT")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does everything run? The times say nothing")
    parser.add_argument("--reference-data", type=Path, metavar="FOLDER", help="networks of arXiv 2311.15996")
    parser.add_argument("--device", default="cuda", help="of the suite gpu (cpu: does everything run?)")
    parser.add_argument("--out", type=Path, help="default: bench/results/SUITE.json")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)  # the file for one process's results
    return parser.parse_args(argv)


def work(options: argparse.Namespace) -> None:
    """All cases with one number of threads, each written to the worker's file when it is done."""
    import torch

    (threads,) = options.threads
    torch.set_num_threads(threads)
    from bench import cases  # after the number of threads is set: JAX is told of it at import

    machine = Machine(threads)
    peak = machine.peak()
    settings = timing.Settings(threads, options.quick, options.reference_data, machine)
    with options.worker.open("w") as file:

        def write(**line: Any) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        for group in SUITES[options.suite]:
            for case in cases.GROUPS[group](settings):
                if options.only in f"{case.group}: {case.name}":
                    print(f"[{threads}] {case.group}: {case.name}", file=sys.stderr, flush=True)
                    cases.forget()
                    peak = max(peak, machine.peak())  # the most seen: a busy neighbour lowers single readings
                    for row in measure(case, threads, options.repeats, peak):
                        write(row=asdict(row))
        write(peak={"threads": threads, "gflops": peak, "vector_bits": machine.vector_bits})


def collect(options: argparse.Namespace) -> tuple[list[Row], list[dict[str, Any]], list[str]]:
    """Rows and peaks of a process for each number of threads, and what went wrong."""
    rows: list[Row] = []
    peaks: list[dict[str, Any]] = []
    wrong: list[str] = []
    for threads in options.threads:
        confine = partial(os.sched_setaffinity, 0, cores(threads))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "rows.jsonl"
            own = ["--threads", str(threads), "--worker", str(file)]  # the last of two options counts
            command = [sys.executable, "-m", "bench.run", *sys.argv[1:], *own]
            # Bound: else Linux may leave two threads of OpenMP on one processor, until its tick comes (4 ms).
            own_threads = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "OMP_PROC_BIND": "true"}
            preloaded = {"LD_PRELOAD": str(build("allocations.cpp", Path(folder)))}
            environment = {**os.environ, **own_threads, **KEPT, **preloaded}
            status = subprocess.run(command, env=environment, preexec_fn=confine).returncode
            if status:
                wrong.append(f"the process with {threads} thread(s) ended with status {status}")
            for line in map(json.loads, file.read_text().splitlines() if file.exists() else ()):
                if "row" in line:
                    rows.append(Row(**line["row"]))
                else:
                    peaks.append(line["peak"])
    return rows, peaks, wrong


def version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def origin(options: argparse.Namespace) -> dict[str, Any]:
    """What a result must be read with."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True, cwd=RESULTS.parent).stdout

    try:
        changed = "-modified" if git("status", "--porcelain", "--untracked-files=no").strip() else ""
        commit = git("rev-parse", "HEAD").strip() + changed
    except (OSError, subprocess.CalledProcessError):  # a copy without its history
        commit = "unknown"
    return {
        "suite": options.suite,
        "commit": commit,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "processor": processor(),
        "threads": options.threads,
        "repeats": options.repeats,
        "quick": options.quick,
        "weights": "published" if options.reference_data else "embedded",
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        **({} if options.suite == "gpu" else {"jax": metadata.version("jax")}),
        **({name: version(name) for name in PEERS} if options.suite == "peers" else {}),
    }


def main() -> None:
    options = arguments()
    if options.suite == "gpu":
        from bench import gpu

        gpu.main(origin(options), options)
        return
    if options.worker:
        work(options)
        return
    about = origin(options)
    rows, peaks, wrong = collect(options)
    for name, value in about.items():
        print(f"{name}: {value}")
    for peak in peaks:
        print(f"peak with {peak['threads']} thread(s): {peak['gflops']:.1f} GFLOPS ({peak['vector_bits']}-bit vectors)")
    print("\n".join(report.tables(rows)))
    report.write(options.out or RESULTS / f"{options.suite}.json", {**about, "incomplete": wrong, "peaks": peaks}, rows)
    if wrong:
        sys.exit("incomplete: " + "; ".join(wrong))


if __name__ == "__main__":
    main()
