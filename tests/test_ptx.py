"""The compiled PTX (sm_80) of the CUDA and Triton kernels, run on the CPU, against the reference.

Only this sees what the compilers made of the kernels, and counts the bytes that the threads ask for.
"""

import shutil

import pytest
import torch
from emulated import PRESENT, ROOT, Backend, Cuda, Modules, Triton, blocks_for, compiled_by_nvcc
from test_triton import (
    BIG_SEED,
    BRAIN,
    FAR,
    HALF,
    PAIR_CASES,
    SINGLE,
    ZERO,
    Case,
    PairCase,
    compare,
    compare_pair,
    difference,
)

from fpfast import reference

pytestmark = [
    pytest.mark.ptx,
    pytest.mark.skipif(not PRESENT, reason="ptxrun, a PTX emulator, is not here (FPFAST_PTXRUN names its folder)"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++, with which ptxrun compiles, is not on PATH"),
]


@pytest.fixture(scope="module")
def cuda_modules(tmp_path_factory) -> dict[str, Modules]:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on PATH")
    assert '"-fmad=false"' in (ROOT / "setup.py").read_text(), "setup.py lets nvcc contract multiplies and adds"
    folder = tmp_path_factory.mktemp("ptx")
    return {source: compiled_by_nvcc(source, folder) for source in ("combine", "pairs")}


@pytest.fixture
def cuda(cuda_modules) -> Cuda:
    return Cuda(cuda_modules)


@pytest.fixture
def triton(monkeypatch) -> Triton:
    pytest.importorskip("triton", minversion="3.6", reason="triton is not installed")
    return Triton(monkeypatch)


@pytest.fixture(params=["cuda", "triton"])
def backend(request) -> Backend:
    return request.getfixturevalue(request.param)


CASES = [
    Case((2, 8), "normal", first=ZERO),
    *(Case((65, 4, 8), kind, (), "one") for kind in reference.KINDS),
    Case((65, 4, 8), "normal", (), "each"),
    Case((2, 1030), "normal", (), "one"),
    Case((2, 1030), "uniform", (), "each"),
    Case((96, 32), "", (SINGLE,), "none"),
    Case((96, 32), "", (SINGLE, BRAIN, HALF, SINGLE), "one"),
    Case((96, 32), "", (SINGLE, SINGLE), "each", "each"),
    Case((96, 32), "", (SINGLE, HALF, BRAIN), "one", "each", in_place=True),
    Case((3, 7), "", (HALF, SINGLE, BRAIN, SINGLE), "each"),
    Case((300, 5, 1), "", (SINGLE, BRAIN), "one", "each"),
    Case((300, 5, 1), "", (SINGLE, HALF), "each", "each", in_place=True),
    Case((600, 2), "", (SINGLE, SINGLE, SINGLE), "one", in_place=True),
    Case((600, 2), "", (SINGLE,), "none", "each"),
    Case((1, 4099), "", (SINGLE, SINGLE), "one"),
    *(Case((96, 32), "", (SINGLE, BRAIN, HALF, SINGLE)[:n], "one", placed=True) for n in range(1, 5)),
    Case((96, 32), "", (SINGLE, SINGLE), "none", placed=True),
    Case((96, 32), "", (SINGLE, SINGLE), "each", placed=True),
    Case((300, 5, 1), "", (SINGLE, BRAIN), "one", in_place=True, placed=True),
    Case((8, 8), "", (SINGLE,), first=2**32 - 3),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_compiled_kernels_have_the_reference_bits(backend, case):
    for backend.reverse in (False, True):
        assert compare(backend, case) == ""


@pytest.mark.parametrize("case", PAIR_CASES, ids=str)
def test_compiled_pairs(backend, case):
    for backend.reverse in (False, True):
        assert compare_pair(backend, case) == ""


@pytest.mark.parametrize("shape", [(96, 32), (300, 5)], ids=str)
def test_triton_counts_in_64_bits_where_it_must(triton, monkeypatch, shape):
    monkeypatch.setattr(triton.groups, "SMALL", 0)
    assert compare(triton, Case(shape, "", (SINGLE, BRAIN), "one", "each")) == ""
    assert "div.s64" in triton.compiled[-1].asm["ptx"]


def test_triton_compiles_once_for_all_numbers(triton):
    for number in (0, 1, 16, 2**32 - 1):
        for samples in (1, 16, 17):
            key = reference.Key(torch.tensor(1), first_sample=number * 2**15, stream=number % 2**16, draw=number)
            out, expected = torch.empty(samples, 8), torch.empty(samples, 8)
            triton.noise(out, "uniform", key)
            reference.noise(expected, "uniform", key)
            assert difference(out, expected) == ""
    assert len(set(map(id, triton.compiled))) == 1


@pytest.mark.parametrize("case", [case for case in CASES if not case.kind and case.coefs == "one"], ids=str)
def test_the_general_kernel_serves_plain_calls_too(cuda, case):
    cuda.plain = False
    assert compare(cuda, case) == ""


def test_cuda_threads_take_several_groups_where_blocks_run_out(cuda):
    cuda.most_blocks = 2
    cases = [
        Case((900, 4), "normal"),
        Case((900, 3), "", (SINGLE, BRAIN), "each", "each"),
        Case((450, 8), "", (SINGLE, BRAIN), "one"),
    ]
    for case in cases:
        assert compare(cuda, case) == ""
        assert cuda.stats.blocks == 2


def test_triton_programs_take_several_blocks_where_programs_run_out(triton, monkeypatch):
    monkeypatch.setattr(triton.combinations, "PROGRAMS", 2)
    for case in (Case((700, 8), "", (SINGLE, BRAIN), "one"), Case((1024, 8), "", (SINGLE,), "none")):
        assert compare(triton, case) == ""
        assert triton.stats.blocks == 2


@pytest.mark.parametrize("misaligned", ["out", "operands"])
def test_addresses_that_are_not_aligned(backend, misaligned):
    """By one element, so that no 128-bit (or for 16-bit operands 64-bit) access is possible."""
    shape, key = (64, 12), reference.Key(torch.tensor(3), 0, 1, 2)
    generator = torch.Generator().manual_seed(2)
    operands = [torch.randn(64 * 12 + 1, generator=generator).to(dtype) for dtype in (SINGLE, BRAIN)]
    operands = [operand[int(misaligned == "operands") :][: 64 * 12].view(shape) for operand in operands]
    out = torch.empty(64 * 12 + 1)[int(misaligned == "out") :][: 64 * 12].view(shape)
    coef, expected = torch.randn(5, generator=generator), torch.empty(shape)
    reference.combine(expected, operands, coef, key)
    backend.combine(out, operands, coef, key)
    assert difference(out, expected) == ""


@pytest.mark.parametrize("elements", [4096, 4095])
def test_offsets_that_need_more_than_32_bits(backend, elements):
    """The last sample of 2^31 elements and more; the memory of the others (8 GiB) is never touched."""
    last = 2**31 // 4095 + 1
    x = torch.empty(last + 1, elements)
    x[last] = torch.randn(elements, generator=torch.Generator().manual_seed(3))
    coef, key = torch.tensor([0.5, 0, 0, 0, 1.5]), reference.Key(torch.tensor(BIG_SEED), stream=1, **FAR)
    expected = torch.empty(1, elements)
    reference.combine(expected, [x[last:]], coef, key._replace(first_sample=key.first_sample + last))
    backend.first_block = blocks_for(x) - 4
    backend.combine(x, [x], coef, key)
    assert difference(x[last:], expected) == ""


@pytest.mark.parametrize(
    ("dtypes", "seeds"),
    [
        ((SINGLE,), "none"),
        ((SINGLE,), "one"),
        ((SINGLE,) * 2, "one"),
        ((SINGLE,) * 3, "one"),
        ((SINGLE,) * 4, "one"),
        ((SINGLE, BRAIN, HALF), "one"),
    ],
    ids=["one-quiet", "one", "two", "three", "four", "mixed"],
)
def test_bytes_that_a_combination_moves(backend, dtypes, seeds):
    """Each operand is read once and the result written once, four elements at a time."""
    assert compare(backend, Case((64, 64), "", dtypes, seeds)) == ""
    stats, noisy, threads = backend.stats, seeds == "one", 64 * 64 // 4
    assert stats.threads == threads
    numbers = len(dtypes) + noisy  # coefficients
    assert stats.global_loads == threads * (len(dtypes) + numbers + noisy)
    assert stats.global_load_bytes == threads * (sum(4 * dtype.itemsize for dtype in dtypes) + 4 * numbers + 8 * noisy)
    assert (stats.global_stores, stats.global_store_bytes) == (threads, 16 * threads)
    assert stats.local_loads == stats.local_stores == stats.shared_loads == 0


def test_bytes_that_noise_moves(backend):
    assert compare(backend, Case((64, 64), "normal")) == ""
    assert backend.stats.global_load_bytes == 64 * 64 // 4 * 8  # the seed
    assert (backend.stats.global_stores, backend.stats.global_store_bytes) == (64 * 64 // 4, 4 * 64 * 64)


@pytest.mark.parametrize(
    ("op", "reads", "writes"), [("pair", 2, 2), ("defect", 3, 1), ("product", 5, 0), ("probe_dot", 1, 0)]
)
def test_bytes_that_pairs_and_defects_move(backend, op, reads, writes):
    """Each state is read once and written once; a thread also reads its sample's coefficients and the seed."""
    assert compare_pair(backend, PairCase(op, (64, 64), "normal")) == ""
    stats, groups = backend.stats, 64 * 64 // 4
    small = {"pair": 3 * 4 + 8, "defect": 2 * 4, "product": 2 * 4, "probe_dot": 8}[op]  # coefficients and seed
    assert stats.threads == groups
    assert stats.global_load_bytes == groups * (16 * reads + small)
    assert stats.global_store_bytes == groups * 16 * writes + (0 if op == "pair" else 4 * 64)
    assert stats.local_loads == stats.local_stores == 0


@pytest.mark.parametrize("elements", [4096, 4095])
def test_pairs_whose_offsets_need_more_than_32_bits(backend, elements):
    """The memory of all samples but the last is never touched."""
    last = 2**31 // 4095 + 1
    x, out, generator = torch.empty(last + 1, elements), torch.empty(2, last + 1, elements), torch.Generator()
    x[last] = torch.randn(elements, generator=generator.manual_seed(3))
    coef, key = torch.randn(last + 1, 3, generator=generator), reference.Key(torch.tensor(BIG_SEED), stream=1, **FAR)
    expected = torch.empty(2, 1, elements)
    later = key._replace(first_sample=key.first_sample + last)
    reference.pair(expected, x[last:], x[last:], coef[last:], "normal", later)
    backend.first_block = blocks_for(x) - 4
    backend.pair(out, x, x, coef, "normal", key)
    assert difference(out[:, last:], expected) == ""
