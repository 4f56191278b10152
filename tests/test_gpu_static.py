"""What the compilers make of the GPU kernels is no worse than the kept report says, and the report reads them right."""

import copy
import json
import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRESENT = (ROOT / "bench").is_dir()
if PRESENT:
    sys.path.append(str(ROOT))
    from bench import cubins, gpu_static
    from bench.gpus import GPUS, occupancy, times
    from bench.sass import accesses, functions, main_path

    KEPT = json.loads(gpu_static.RESULTS.read_text())

pytestmark = pytest.mark.skipif(not PRESENT, reason="bench is not beside the tests (a wheel's install)")
ARCHITECTURES = ["80", *(pytest.param(number, marks=pytest.mark.slow) for number in ("90", "100", "120"))]


def kept(architecture: str, language: str = "") -> dict:
    return {name: rows[architecture] for name, rows in KEPT["kernels"].items() if f".{language}" in name}


def compare(architecture: str, language: str, compiler) -> None:
    made = gpu_static.measure(architecture, [compiler])
    before = kept(architecture, language)
    assert gpu_static.worse(before, made) == []
    assert made.keys() == before.keys(), "there are new kernels; keep their figures by python -m bench.gpu_static"


def same_version(compiler: str, here: str) -> None:
    if here != KEPT[compiler]:
        pytest.skip(f"the kept figures are of {compiler} {KEPT[compiler]}, here is {here}")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cuda_is_no_worse(architecture):
    for tool in ("nvcc", "c++filt"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not on PATH")
    if shutil.which("nvdisasm") is None:
        pytest.importorskip("triton", reason="nvdisasm is neither on PATH nor installed with triton")
    same_version("nvcc", cubins.nvcc_version())
    compare(architecture, "cu", cubins.cuda)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_triton_is_no_worse(architecture):
    pytest.importorskip("triton", reason="triton is not installed")
    if shutil.which("c++filt") is None:
        pytest.skip("c++filt is not on PATH")
    same_version("triton", metadata.version("triton"))
    compare(architecture, "py", cubins.triton)


def test_a_worse_figure_is_reported():
    made = kept("80")
    name, row = next((name, row) for name, row in made.items() if "bytes" in row)
    assert gpu_static.worse(made, made) == []
    for figure in (*gpu_static.RISING, *gpu_static.FALLING):
        planted = copy.deepcopy(made)
        planted[name][figure] += -1 if figure in gpu_static.RISING else 1
        assert gpu_static.worse(planted, made) == [f"{name}: {figure} {row[figure]}, kept {planted[name][figure]}"]
    assert gpu_static.worse(made, {}) == [f"{name} is gone" for name in made]
    without = {name: {figure: value for figure, value in row.items() if figure != "bytes"}}
    assert gpu_static.worse({name: row}, without) == [f"{name}: bytes None, kept {row['bytes']}"]


def test_every_kernel_is_kept():
    sources = [*ROOT.glob("csrc/cuda/*.cu"), *ROOT.glob("kernels/*.py")]
    declared = r"__global__ void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(|^def (\w+_kernel)\("
    for source in sources:
        for names in re.findall(declared, source.read_text(), re.MULTILINE):
            start = f"{source.name}: {''.join(names)}"
            assert any(re.match(rf"{re.escape(start)}\b", name) for name in KEPT["kernels"]), start


def test_nothing_spills():
    for name, rows in KEPT["kernels"].items():
        assert {(row["spills"], row["stack"]) for row in rows.values()} == {(0, 0)}, name


def test_page():
    """Its table is what the kept results say."""
    text = gpu_static.PAGE.read_text()
    assert text.count("<!-- gpu-static: made by python -m bench.gpu_static -->") == 1
    assert gpu_static.put(text, "gpu-static", gpu_static.table(KEPT), by="bench.gpu_static") == text


LOOP = """
.text.loop:
        /*0000*/                   S2R R0, SR_TID.X ;
        /*0010*/               @P0 EXIT ;
.L_x_1:
        /*0020*/                   BSSY B0, `(.L_x_3) ;
        /*0030*/              @!P0 BRA `(.L_x_2) ;
        /*0040*/                   CALL.REL.NOINC `($__internal_0_$__cuda_sm20_div_s64) ;
        /*0050*/                   BRA `(.L_x_3) ;
.L_x_2:
        /*0060*/                   MUFU.RCP R2, R2 ;
        /*0070*/                   IMAD.HI.U32 R3, R3, R5, R2 ;
        /*0080*/                   IADD3 R2, R0, 0xffffffe, RZ ;
.L_x_3:
        /*0090*/                   LDG.E.64 R4, [R4.64] ;
        /*00a0*/              @!P0 BRA P1, `(.L_x_4) ;
        /*00b0*/               @P1 LDG.E R8, [R6.64] ;
        /*00c0*/                   BRA `(.L_x_5) ;
.L_x_4:
        /*00d0*/                   LDG.E.128.CONSTANT R8, [R6.64] ;
        /*00e0*/                   FMUL R8, R8, R9 ;
.L_x_5:
        /*00f0*/                   FFMA R8, R8, R9, R10 ;
        /*0100*/              @!P0 STG.E.128 desc[UR20][R2.64], R8 ;
        /*0110*/              @!P0 BRA `(.L_x_6) ;
        /*0120*/               @P1 STG.E desc[UR20][R2.64], R8 ;
.L_x_6:
        /*0130*/               @P0 CALL.REL.NOINC `(.L_x_7) ;
        /*0140*/                   BRA `(.L_x_1) ;
.L_x_7:
        /*0150*/                   EXIT ;
        .weak           $__internal_0_$__cuda_sm20_div_s64
$__internal_0_$__cuda_sm20_div_s64:
        /*0160*/                   LDG.E.128 R1, [R1] ;
        /*0170*/                   RET.REL.NODEC R4 `(loop) ;
.L_x_8:
        /*0180*/                   BRA `(.L_x_8);
"""
STRAIGHT = """
.text.straight:
        /*0000*/               @P0 EXIT ;
        /*0010*/                   LDGSTS.E.BYPASS.128 [R4], [R2.64] ;
        /*0020*/                   HMMA.1688.F32.TF32 R4, R4, R8, R4 ;
        /*0030*/                   UTCQMMA gdesc[UR4], gdesc[UR6] ;
        /*0040*/                   STG.E.U16 [R2.64], R4 ;
        /*0050*/                   EXIT ;
"""


def test_the_path_of_a_loop():
    code = functions(LOOP)["loop"]
    path, before = main_path(code)
    assert before == 2
    assert [one.opcode for one in path] == [
        *("BSSY", "BRA", "MUFU.RCP", "IMAD.HI.U32", "IADD3", "LDG.E.64", "BRA", "LDG.E.128.CONSTANT", "FMUL", "FFMA"),
        *("STG.E.128", "BRA", "CALL.REL.NOINC", "BRA"),
    ]
    assert not any(code.calls(one) for one in path)
    assert [one.kind() for one in path[2:5]] == ["special", "multiply", "logic"]
    assert accesses(path, stores=False) == {128: 1, 64: 1}
    assert accesses(path, stores=True) == {128: 1}


def test_the_path_without_a_loop():
    path, before = main_path(functions(LOOP + STRAIGHT)["straight"])
    assert before == 0
    assert len(path) == 6
    assert accesses(path, stores=False) == {128: 1}
    assert accesses(path, stores=True) == {16: 1}
    assert [one.tensor for one in path] == [False, False, True, True, False, False]


def test_narrow_accesses_count_where_there_are_no_others():
    narrow = functions(LOOP.replace(".128", ""))["loop"]
    assert accesses(main_path(narrow).path, stores=False) == {64: 1, 32: 1}
    assert accesses(main_path(narrow).path, stores=True) == {32: 2}


@pytest.mark.parametrize(
    ("architecture", "registers", "shared", "threads", "share"),
    [
        ("80", 32, 0, 256, 1),
        ("80", 37, 0, 128, 12 * 4 / 64),  # both of the CUDA Best Practices Guide, "Occupancy"
        ("80", 37, 0, 320, 4 * 10 / 64),
        ("80", 40, 0, 256, 48 / 64),  # these as cuda_occupancy.h has them
        ("90", 16, 30000, 128, 7 * 4 / 64),
        ("80", 16, 49152, 128, 3 * 4 / 64),
        ("120", 32, 0, 256, 1),
        ("120", 255, 0, 128, 2 * 4 / 48),
    ],
)
def test_occupancy(architecture, registers, shared, threads, share):
    assert occupancy(architecture, registers, shared, threads) == share


def test_times():
    """Of an A100: 2,039 GB/s; 108 multiprocessors of 64 lanes at 1.41 GHz."""
    mix = {"float": 3.0, "multiply": 1.0, "logic": 2.0, "special": 0.0, "other": 2.0}
    found = times(GPUS["A100"], 12, mix)
    assert found["memory"] == pytest.approx(5.885, abs=1e-3)
    assert found["issue"] == found["float and multiply"] == pytest.approx(4e3 / (108 * 64 * 1.41))
    assert found["multiply"] == found["logic"] / 2
