"""Builds ``fpfast._native``: CPU kernels at three instruction-set levels, and CUDA kernels if nvcc is there.

FPFAST_NATIVE and FPFAST_CUDA, each ``auto`` (default: build if the compiler is there), ``0`` (leave it out) or ``1``
(fail if it cannot be built), are read here and nowhere else. The result depends on neither torch nor this machine's
processor; a CUDA part is linked with the static runtime, so the module imports without a GPU or a driver.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
X86 = platform.machine().lower() in ("x86_64", "amd64")
LEVELS = {
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"],
    "avx2": ["-mavx2", "-mfma"],
    "baseline": ["-march=x86-64"],
}
# No contraction: the noise must have the same bits everywhere. errno and traps only stand in the way of SIMD.
KERNEL_FLAGS = [
    *("-std=c++17", "-O3", "-fopenmp"),
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
]
CPU_SOURCES = ("kernels", "trajectory", "residual")
BINDINGS = ("bindings", "bind_pairs", "bind_residual", "bind_trajectory")
CUDA_SOURCES = ("combine", "pairs", "residual", "trajectory")
CUDA_ARCHITECTURES = ("80", "90", "100", "120")
CUDA_FLAGS = ["-std=c++17", "-O3", "-fmad=false"]  # bench/cubins.py reads these three lines too


def wanted(name: str) -> str:
    value = os.environ.get(name, "auto")
    if value not in ("auto", "0", "1"):
        sys.exit(f"{name}: expected auto, 0 or 1, got {value!r}")
    return value


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")


class BuildNative(build_ext):
    """Compiles each kernel source with flags of its own, then links one module."""

    def run(self) -> None:
        native, cuda = wanted("FPFAST_NATIVE"), wanted("FPFAST_CUDA")
        if native == "0":
            if cuda == "1":
                sys.exit("FPFAST_CUDA=1: expected FPFAST_NATIVE=auto or 1, got 0")
            self.remove_built()
            return
        try:
            super().run()
        except Exception as error:  # no compiler, or one that is too old: the package works without
            if "1" in (native, cuda):
                raise
            self.remove_built()
            self.warn(
                f"fpfast is installed without its native kernels, as plain torch; `fpfast doctor` tells more. {error}"
            )

    def remove_built(self) -> None:
        """Leaves no extension, not even one of an earlier build in this folder."""
        for ext in self.extensions:
            Path(self.get_ext_fullpath(ext.name)).unlink(missing_ok=True)
        self.extensions = []

    def build_extension(self, ext: Pybind11Extension) -> None:
        temporary = Path(self.build_temp)
        temporary.mkdir(parents=True, exist_ok=True)
        include = ["-I" + directory for directory in (*ext.include_dirs, *self.compiler.include_dirs)]
        levels = LEVELS if X86 else {"baseline": []}
        # Python's own flags ask for debugging symbols, which would be nineteen twentieths of the module.
        compiler = [*self.compiler.compiler_so, "-g0", "-fPIC", "-fvisibility=hidden"]
        objects, commands = [], []
        for level, flags in levels.items():
            for source in CPU_SOURCES:
                objects.append(temporary / f"{source}_{level}.o")
                command = [*compiler, *KERNEL_FLAGS, *flags, f"-DFPFAST_LEVEL={level}"]
                commands.append([*command, "-c", str(ROOT / f"csrc/cpu/{source}.cpp"), "-o", str(objects[-1])])
        defines = ["-DFPFAST_X86"] if X86 else []
        libraries: list[str] = []
        if cuda_objects := self.build_cuda(temporary):
            objects += cuda_objects
            defines.append("-DFPFAST_CUDA")
            libraries = [str(self.cuda_runtime), "-ldl", "-lrt", "-lpthread"]
        for name in BINDINGS:
            objects.append(temporary / f"{name}.o")
            source = str(ROOT / f"csrc/{name}.cpp")
            commands.append([*compiler, "-std=c++17", "-O2", *include, *defines, "-c", source, "-o", str(objects[-1])])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(self.spawn, commands))
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.spawn(
            [*self.compiler.linker_so, *map(str, objects), *libraries, "-fopenmp", "-lstdc++", "-o", str(target)]
        )

    def build_cuda(self, temporary: Path) -> list[Path]:
        cuda, compiler = wanted("FPFAST_CUDA"), nvcc()
        if cuda == "0" or (cuda == "auto" and compiler is None):
            return []
        if compiler is None:
            sys.exit("FPFAST_CUDA=1: expected nvcc on PATH or under CUDA_HOME, found none")
        try:
            return self.compile_cuda(compiler, temporary)
        except Exception as error:  # such as a host compiler that nvcc does not know
            if cuda == "1":
                raise
            self.warn(f"fpfast is built without its CUDA kernels: {error}")
            return []

    def compile_cuda(self, compiler: str, temporary: Path) -> list[Path]:
        # nvcc knows where its libraries are, wherever it is installed and whatever wraps it.
        plan = subprocess.run([compiler, "-dryrun", "-x", "cu", os.devnull], capture_output=True, text=True).stderr
        folders = [Path(word.strip('"')) for word in re.findall(r"-L(\S+)", plan)]
        found = [folder / "libcudart_static.a" for folder in folders if (folder / "libcudart_static.a").is_file()]
        if not found:
            raise FileNotFoundError(f"libcudart_static.a is in none of nvcc's folders {[str(f) for f in folders]}")
        self.cuda_runtime = found[0].resolve()
        known = subprocess.run([compiler, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
        usable = [number for number in CUDA_ARCHITECTURES if f"sm_{number}" in known.split()]
        targets = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in usable]
        newest = f"-gencode=arch=compute_{usable[-1]},code=compute_{usable[-1]}"  # PTX for GPUs yet to come
        flags = [*CUDA_FLAGS, "--threads=0", "-cudart=static", "-Xcompiler=-fPIC,-fvisibility=hidden"]
        outputs = {source: temporary / f"cuda_{source}.o" for source in CUDA_SOURCES}
        for source, output in outputs.items():
            self.spawn(
                [compiler, *flags, *targets, newest, "-c", str(ROOT / f"csrc/cuda/{source}.cu"), "-o", str(output)]
            )
        return list(outputs.values())


setup(ext_modules=[Pybind11Extension("fpfast._native", ["csrc/bindings.cpp"])], cmdclass={"build_ext": BuildNative})
