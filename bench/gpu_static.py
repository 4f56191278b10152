"""What the compilers made of the GPU kernels, no GPU needed: ``python -m bench.gpu_static``.

Compiles every CUDA and Triton kernel for four architectures and reads the machine code. Prints a table and writes it to
docs/gpu-kernels.md, and all figures to bench/results/gpu-static.json; a test fails if one of these gets worse.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from bench import cubins
from bench.gpus import GPUS, occupancy, times
from bench.readme import put
from bench.sass import FUSED, accesses, main_path

RESULTS = cubins.ROOT / "bench" / "results" / "gpu-static.json"
PAGE = cubins.ROOT / "docs" / "gpu-kernels.md"
ELEMENTS = 4  # a thread's turn is a group of so many
NO_ELEMENTS = "add_parts_kernel"  # adds a few numbers of each sample
RISING = (  # these are worse if they rise, the others if they fall
    *("registers", "spills", "stack", "shared", "instructions", "bytes", "shared_bytes"),
    *("narrow", "calls", "before", "fused"),
)
FALLING = ("occupancy", "tensor")
Figures = dict[str, Any]
Compiler = Callable[[str, Path], Iterator[cubins.Kernel]]


def figures(kernel: cubins.Kernel, architecture: str) -> Figures:
    path, before = main_path(kernel.code)
    loads, stores = accesses(path, stores=False), accesses(path, stores=True)
    kinds = Counter(one.kind() for one in path)
    found: Figures = {
        "registers": kernel.registers,
        "spills": sum(one.base in ("LDL", "STL") for one in kernel.code.instructions),
        "stack": kernel.stack,
        "shared": kernel.shared,
        "threads": kernel.threads,
        "occupancy": occupancy(architecture, kernel.registers, kernel.shared, kernel.threads),
        "loads": {str(width): count for width, count in loads.items()},
        "stores": {str(width): count for width, count in stores.items()},
        "narrow": sum(count for widths in (loads, stores) for width, count in widths.items() if width < 128),
        "calls": sum(kernel.code.calls(one) for one in path),
        "before": before,
        "fused": round(sum(one.base in FUSED for one in path) / len(path), 4),
        "tensor": round(kinds["tensor"] / len(path), 4),
    }
    if kinds["tensor"] or NO_ELEMENTS in kernel.name:
        return found
    # Narrow loads beside wide ones are of what a group shares: coefficients, a seed.
    least = 128 if max([*loads, *stores], default=0) >= 128 else 32
    read = sum(width // 8 * count for width, count in loads.items() if width >= least)
    shared = sum(width // 8 * count for width, count in loads.items() if width < least)
    moved = (read + sum(width // 8 * count for width, count in stores.items())) / ELEMENTS
    mix = {kind: kinds[kind] / ELEMENTS for kind in ("float", "multiply", "logic", "special", "other")}
    gpus = {name: times(gpu, moved, mix) for name, gpu in GPUS.items() if gpu.architecture == architecture}
    return {
        **found,
        "bytes": moved,
        "shared_bytes": shared / ELEMENTS,
        "instructions": len(path) / ELEMENTS,
        "mix": mix,
        "picoseconds": {name: {part: round(time, 3) for part, time in parts.items()} for name, parts in gpus.items()},
    }


def measure(architecture: str, compilers: Iterable[Compiler]) -> dict[str, Figures]:
    with tempfile.TemporaryDirectory() as folder:
        kernels = [kernel for compiler in compilers for kernel in compiler(architecture, Path(folder))]
    return {kernel.name: figures(kernel, architecture) for kernel in kernels}


def worse(kept: dict[str, Figures], made: dict[str, Figures]) -> list[str]:
    """What got worse in the kernels of one architecture, one line each."""
    found = []
    for name, before in kept.items():
        after = made.get(name)
        if after is None:
            found.append(f"{name} is gone")
            continue
        for figure in (*RISING, *FALLING):
            old, new = before.get(figure), after.get(figure)
            if old is not None and (new is None or (new > old if figure in RISING else new < old)):
                found.append(f"{name}: {figure} {new}, kept {old}")
    return found


def table(results: dict[str, Any]) -> str:
    """A line for each kernel. Where architectures differ: sm_80; sm_90; sm_100; sm_120."""
    columns: dict[str, Callable[[Figures], str]] = {
        "registers": lambda row: f"{row['registers']}",
        "spills, stack, shared": lambda row: f"{row['spills']}, {row['stack']}, {row['shared']}",
        "occupancy": lambda row: f"{row['occupancy']:.0%}",
        "loads": lambda row: _widths(row["loads"]),
        "stores": lambda row: _widths(row["stores"]),
        "bytes": lambda row: f"{row['bytes']:g}" if "bytes" in row else "",
        "instructions": lambda row: f"{row['instructions']:.1f}" if "instructions" in row else "",
        "before": lambda row: f"{row['before']}",
        "fused, tensor": lambda row: f"{row['fused']:.0%}, {row['tensor']:.0%}",
    }
    lines = [["kernel", *columns, *GPUS]]
    for name, rows in results["kernels"].items():
        values = [[cell(row) for row in rows.values()] for cell in columns.values()]
        cells = ["; ".join(each if len(set(each)) > 1 else each[:1]) for each in values]
        limits = [_limit(rows[gpu.architecture].get("picoseconds", {}).get(title)) for title, gpu in GPUS.items()]
        lines.append([name, *cells, *limits])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    made = "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)
    return f"{made}\n\nnvcc {results['nvcc']}, Triton {results['triton']}; commit {results['commit'][:7]}.\n"


def _widths(accesses: dict[str, int]) -> str:
    return " + ".join(f"{count} x {width}" for width, count in accesses.items())


def _limit(times: dict[str, float] | None) -> str:
    """The part that takes longest; the memory, or what comes next to it."""
    if times is None:
        return ""
    (first, most), *rest = sorted(times.items(), key=lambda item: -item[1])
    second, next_most = rest[0] if first == "memory" else ("memory", times["memory"])
    return f"{first} {most:.2f} > {second} {next_most:.2f}"


def main() -> None:
    compilers = (cubins.cuda, cubins.triton)
    architectures = cubins.setting("CUDA_ARCHITECTURES")
    made = {architecture: measure(architecture, compilers) for architecture in architectures}
    commit = ["git", "describe", "--always", "--match=", "--abbrev=40", "--dirty=-modified"]
    names = sorted(made[architectures[0]], key=str.casefold)
    results: dict[str, Any] = {
        "suite": "gpu-static",
        "commit": subprocess.run(commit, capture_output=True, text=True, check=True, cwd=cubins.ROOT).stdout.strip(),
        "nvcc": cubins.nvcc_version(),
        "triton": metadata.version("triton"),
        "sources": [gpu.source for gpu in GPUS.values()],
        "kernels": {name: {one: made[one][name] for one in architectures} for name in names},
    }
    head = json.dumps({**results, "kernels": {}}, indent=1).removesuffix("{}\n}")
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(rows)}" for name, rows in results["kernels"].items())
    RESULTS.write_text(f"{head}{{\n{lines}\n}}}}\n")  # a kernel a line
    PAGE.write_text(put(PAGE.read_text(), "gpu-static", table(results), by="bench.gpu_static"))
    print(table(results))


if __name__ == "__main__":
    main()
