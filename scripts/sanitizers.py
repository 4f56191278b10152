"""Builds the native module under a sanitizer and runs tests or fuzzers with it:

    python scripts/sanitizers.py address              AddressSanitizer and UBSan, the native tests
    python scripts/sanitizers.py thread               ThreadSanitizer, the same tests
    python scripts/sanitizers.py fuzzer engine residual -max_total_time=120    the first, targets of scripts/fuzz.py

Works on a copy of the source tree, build/sanitizer-*; CUDA parts are left out. Before the tests a fault is planted,
which must be reported. Wants clang with its runtime (Debian: clang, libclang-rt-14-dev, libomp-dev), "fuzzer" also
``pip install atheris``. "thread" compiles with gcc and loads clang's OpenMP with its watcher, libarcher: gcc's is not
compiled to be watched, so each barrier would look like a race.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
NATIVE_TESTS = [
    "combine",
    "noise",
    "pair_ops",
    "fused",
    "fused_residual",
    "trajectory",
    "watch",
    "threads",
    "likelihood",
]
# Memory that Python and torch never give back is theirs.
ADDRESS = "detect_leaks=0:allocator_may_return_null=1"


class Build(NamedTuple):
    compiler: str
    flags: str
    preload: list[str]  # patterns of files, or names that the compiler knows
    environment: dict[str, str]
    selection: str = ""
    planted: str = ""  # the body of a C function with a fault that has to be reported


# With counters of branches, which a fuzzer reads.
CHECKED = "-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize=vptr,function -fno-sanitize-recover=undefined"
BUILDS = {
    "address": Build(
        "clang",
        CHECKED,
        ["libclang_rt.asan-x86_64.so"],
        {"ASAN_OPTIONS": ADDRESS, "UBSAN_OPTIONS": "print_stacktrace=1"},
        "not ctrl_c",  # whose seconds are those of a build without checks
        "float* x = new float[8]; for (int k = 0; k <= 8; ++k) x[k] = k; return x[0];",
    ),
    "thread": Build(
        "gcc",
        "-fsanitize=thread",
        ["libtsan.so", "/usr/lib/llvm-*/lib/libomp.so.5"],
        {
            "TSAN_OPTIONS": "ignore_noninstrumented_modules=1:exitcode=66",
            "OMP_TOOL_LIBRARIES": "/usr/lib/llvm-*/lib/libarcher.so",
            "OMP_NUM_THREADS": "4",
        },
        "not ctrl_c and not forked and not workers",
        "float x = 0;\n#pragma omp parallel for\n  for (int k = 0; k < 100000; ++k) x += k;\n  return x;",
    ),
    "fuzzer": Build("clang", CHECKED, ["asan_with_fuzzer.so"], {"ASAN_OPTIONS": ADDRESS}),
}


def path_of(name: str, compiler: str) -> str:
    if name == "asan_with_fuzzer.so":
        import atheris

        return str(Path(atheris.path()) / name)
    if "*" in name:
        return sorted(glob.glob(name))[-1]
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def copy(tree: Path) -> None:
    """What is new of the sources."""
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, kept):
        source, target = ROOT / name, tree / name
        if not target.is_file() or target.stat().st_mtime < source.stat().st_mtime:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    kernels = tree / "fpfast/kernels"
    if not kernels.is_symlink():
        kernels.symlink_to("../kernels")


def reports(build: Build, tree: Path, environment: dict[str, str]) -> bool:
    """Whether the planted fault, in a library that Python loads as it does the native module, ends in a report."""
    source, library = tree / "planted.cpp", tree / "planted.so"
    source.write_text(f'extern "C" float planted() {{\n  {build.planted}\n}}\n')
    compiler = {"gcc": "g++", "clang": "clang++"}[build.compiler]
    options = ["-O0", "-fopenmp", "-shared", "-fPIC", *build.flags.split()]
    subprocess.run([compiler, *options, str(source), "-o", str(library)], check=True)
    # A symbolizer would outlive the process, and hold the pipe that its report is read from.
    environment = {
        k: f"{v}:symbolize=0" if k in ("ASAN_OPTIONS", "TSAN_OPTIONS") else v for k, v in environment.items()
    }
    call = f"import ctypes, torch; ctypes.CDLL({str(library)!r}).planted()"
    found = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, env=environment)
    return found.returncode != 0 and "Sanitizer" in found.stderr and library.name in found.stderr


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in BUILDS:
        sys.exit(__doc__)
    build, rest = BUILDS[sys.argv[1]], sys.argv[2:]
    tree = ROOT / "build" / f"sanitizer-{build.compiler}"
    copy(tree)
    made = list((tree / "fpfast").glob("_native*.so"))
    if not made or made[0].stat().st_mtime < max(
        path.stat().st_mtime for path in [*tree.rglob("csrc/**/*"), tree / "setup.py"]
    ):
        # Less optimised: unrolled loops of checked accesses take compilers many minutes.
        setup = (ROOT / "setup.py").read_text()
        (tree / "setup.py").write_text(setup.replace('"-O3"', '"-O0"' if build.compiler == "clang" else '"-O1"'))
        flags = {"CC": build.compiler, "CFLAGS": build.flags, "LDFLAGS": build.flags}
        flags |= {"FPFAST_CUDA": "0", "FPFAST_NATIVE": "1"}
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(command, cwd=tree, env={**os.environ, **flags}, check=True)
    environment = {name: path_of(value, "") if "*" in value else value for name, value in build.environment.items()}
    environment |= {
        "PYTHONPATH": str(tree),
        "LD_PRELOAD": " ".join(path_of(one, build.compiler) for one in build.preload),
    }
    if sys.argv[1] == "fuzzer":
        options = [one for one in rest if one.startswith("-")]
        runs = [["scripts/fuzz.py", target, *options] for target in rest if target not in options]
    else:
        tests = [f"tests/test_{name}.py" for name in NATIVE_TESTS]
        if not reports(build, tree, {**os.environ, **environment}):
            sys.exit("the planted fault was not reported: this build would not see one in the native module either")
        runs = [["-m", "pytest", "-p", "no:cacheprovider", "--capture=sys", "-k", build.selection, *tests, *rest]]
    codes = [
        subprocess.run([sys.executable, *run], cwd=tree, env={**os.environ, **environment}).returncode for run in runs
    ]
    sys.exit(max(codes, key=abs, default=0))


if __name__ == "__main__":
    main()
