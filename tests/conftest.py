"""What several tests share."""

import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import fpfast
from fpfast import backends

ROOT = Path(__file__).parents[1]
if (ROOT / "bench").is_dir() and str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # for what tests and benchmarks share
REFERENCE = Path(os.environ.get("FPFAST_REFERENCE_DATA", Path(__file__).parents[2] / "shared" / "data" / "ode_sde_gap"))
LEVELS: list[str] = []
if backends.NATIVE_ERROR is None:
    from fpfast import _native

    LEVELS = _native.levels()

settings.register_profile("short", derandomize=True)
settings.register_profile("long", max_examples=1500)  # pytest --hypothesis-profile=long tests/test_fuzz*.py
settings.load_profile("short")

if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):  # they share the processors
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(workers)))

native = pytest.mark.skipif(not LEVELS, reason="the native kernels are not built (fpfast doctor says why)")


def mixture() -> fpfast.GaussianMixture:
    """Three round components in the plane: elementwise arithmetic, so a sample's score does not depend on its batch."""
    means = torch.tensor([[1.0, 0.5], [-1.0, 1.0], [0.0, -1.5]])
    return fpfast.GaussianMixture(means, torch.tensor([0.1, 0.2, 0.15]), torch.tensor([0.5, 0.3, 0.2]))


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int64)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool((bits(a) == bits(b)).all())


@pytest.fixture
def threads():
    """Sets torch's thread count, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def simt_library(tmp_path_factory):
    """The CUDA kernels compiled for the CPU, with every access checked."""
    from simt_runner import KERNELS, build

    return build(tmp_path_factory.mktemp("simt"), KERNELS)


@pytest.fixture(scope="session")
def sanitized_library(tmp_path_factory):
    """The same under AddressSanitizer and UBSan."""
    from simt_runner import KERNELS, build

    return build(tmp_path_factory.mktemp("sanitized"), KERNELS, under_sanitizers=True)
