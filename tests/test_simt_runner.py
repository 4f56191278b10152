"""The runner of tests/simt: what kernels may use, and planted faults, each of which it must find."""

import ctypes
import itertools
from pathlib import Path

import pytest
import torch
from simt_runner import EXAMPLES, FOLDER, NEEDED, Simt, build, sanitized
from test_triton import BRAIN, HALF, SINGLE

pytestmark = NEEDED

ORDERS = list(itertools.product([False, True], repeat=2))  # of threads and of blocks, reversed or not


@pytest.fixture(scope="module")
def runner(tmp_path_factory) -> Simt:
    return Simt(build(tmp_path_factory.mktemp("examples"), EXAMPLES))


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_threads_exchange_values(runner, order):
    runner.order(*order)
    out, total, half = torch.zeros(9, 64, dtype=torch.int32), torch.tensor([3], dtype=torch.int32), torch.zeros(1)
    runner.call("exchange", [out, total, half], [], out, total, half)
    k = torch.arange(64)
    lane, base = k % 32, k // 32 * 32
    ballots = [sum((at % 3 == 0) << at - first for at in range(first, first + 32)) for first in (0, 32)]
    signed = torch.tensor([ballot - (ballot >> 31 << 32) for ballot in ballots])
    expected = [
        base + 5,
        k // 8 * 8 + 1,
        k ^ 3,
        torch.where(k % 16 < 2, k, k - 2),
        torch.where(lane >= 30, k, k + 2),
        signed[k // 32],
        k // 32,
        lane < 16,
        torch.full((64,), 63 * 32),
    ]
    assert out.tolist() == torch.stack([row.long() for row in expected]).tolist()
    assert (total.item(), half.item()) == (3 + 128, 64)


def test_conversions_between_16_and_32_bits(runner):
    patterns = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    floats, back = torch.zeros(2, 2**16), torch.zeros(2, 2**16, dtype=torch.int16)
    runner.call("convert", [floats, back], [], floats, back)
    expected = torch.stack([patterns.view(dtype).float() for dtype in (HALF, BRAIN)])
    torch.testing.assert_close(floats, expected, rtol=0, atol=0, equal_nan=True)
    narrow = torch.stack([expected[1].to(HALF).float(), expected[0].to(BRAIN).float()])
    got = torch.stack([back[0].view(HALF).float(), back[1].view(BRAIN).float()])
    torch.testing.assert_close(got, narrow, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [SINGLE, BRAIN], ids=["tf32", "bf16"])
def test_tensor_cores(runner, dtype):
    generator = torch.Generator().manual_seed(6)
    k = 8 if dtype == SINGLE else 16
    a, b, c = (torch.randn(shape, generator=generator) for shape in ((16, k), (8, k), (16, 8)))
    a, b = (matrix.to(dtype) for matrix in (a, b))
    exact = [matrix.float() for matrix in (a, b)]
    if dtype == SINGLE:  # the lower bits of float32 operands do not count
        exact = [(matrix.view(torch.int32) & ~0x1FFF).view(SINGLE) for matrix in (a, b)]
    expected = c + exact[0] @ exact[1].T
    for right in (True, False):
        d = c.clone()
        runner.call("multiply", [d], [a, b], d, a, b, dtype == BRAIN, right)
        assert torch.allclose(d, expected, rtol=1e-5, atol=1e-5) == right


def test_large_shared_memory_must_be_asked_for(runner):
    floats, back = torch.zeros(2), torch.zeros(2, dtype=torch.int16)
    with pytest.raises(RuntimeError, match="invalid argument"):
        runner.call("large", [floats, back], [], 100_000, False, floats, back)
    runner.call("large", [floats, back], [], 100_000, True, floats, back)


FAULT_TEXTS = {
    "absent_source": "takes a value from a lane that is not in the mask of the shuffle",
    "deadlock": "waits at __syncthreads for thread 32, which waits at __any_sync of lanes 00000003",
    "dynamic_overrun": r"writes 8 bytes at \d+ of 160 bytes of dynamic shared memory",
    "misaligned": "uses a misaligned address",
    "missing_lane": r"waits at __shfl_xor_sync of lanes ffffffff for thread \d+, which has ended",
    "missing_wait": "reads shared memory that a copy_async is under way to",
    "out_of_bounds_read": "reads 4 bytes at -4 of a buffer of 160 bytes",
    "out_of_bounds_write": "writes 4 bytes at 160 of a buffer of 160 bytes",
    "race": r"(reads|writes) shared memory that .*thread \d+.*, without a barrier between",
    "race_of_lanes": r"writes shared memory that other threads read, the last thread \d+, without a barrier between",
    "static_overrun": "indexes past the end of an array",
    "uninitialised": "reads shared memory that nobody wrote",
}


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("name", FAULT_TEXTS)
def test_faults_are_found(runner, name, reverse):
    """Each by its text, and at the line of the source."""
    runner.order(reverse, False)
    source = (FOLDER / "faults" / f"{name}.cu").read_text().splitlines()
    (line,) = (number for number, text in enumerate(source, 1) if "// fault" in text)
    out = torch.zeros(40)
    with pytest.raises(RuntimeError, match=rf" {name}::kernel\(.*\) at {name}.cu:{line}: {FAULT_TEXTS[name]}$"):
        runner.call(name, [out], [], out, ctypes.c_int(40))


def test_inputs_are_not_written(runner):
    out = torch.zeros(64)
    with pytest.raises(RuntimeError, match="writes 4 bytes of a buffer that is only to be read"):
        runner.call("out_of_bounds_write", [], [out], out, ctypes.c_int(40))


@pytest.fixture(scope="module")
def sanitized_faults(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("sanitized_faults"), EXAMPLES, under_sanitizers=True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dynamic_overrun", "AddressSanitizer: use-after-poison"),
        ("misaligned", "misaligned address"),
        ("out_of_bounds_read", "AddressSanitizer: heap-buffer-overflow"),
        ("out_of_bounds_write", "AddressSanitizer: heap-buffer-overflow"),
        ("static_overrun", "index 32 out of bounds"),
    ],
)
def test_faults_under_sanitizers(sanitized_faults, name, text):
    program = """if True:
        import ctypes, sys
        allocate = ctypes.CDLL(None).malloc
        allocate.restype = ctypes.c_void_p
        getattr(ctypes.CDLL(sys.argv[1]), sys.argv[2])(ctypes.c_void_p(allocate(160)), 40)
    """
    done = sanitized("-c", program, str(sanitized_faults), f"simt_{name}")
    assert done.returncode != 0
    assert text in done.stderr
    assert f"{name}.cu" in done.stderr
