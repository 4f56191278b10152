"""The GPU suite, on the CPU: its checks find nothing, its cases run, and without a GPU it says so."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import native
from emulated import ROOT

PRESENT = (ROOT / "bench").is_dir()
if PRESENT:
    sys.path.append(str(ROOT))
    from bench import gpu, gpu_checks
    from bench.timing import measure

pytestmark = pytest.mark.skipif(not PRESENT, reason="bench is not beside the tests (a wheel's install)")
CPU = torch.device("cpu")


@native
def test_checks_find_nothing(capsys):
    assert gpu.failures(CPU) == []
    assert capsys.readouterr().err.count("right: ") == len(list(gpu_checks.checks(CPU)))


def test_checks_find_a_wrong_bit(monkeypatch):
    reference = gpu_checks.reference.noise

    def wrong(out, kind, key):
        reference(out, kind, key)
        out.view(-1)[-1] += 1

    monkeypatch.setattr(gpu_checks.reference, "noise", wrong)
    if gpu_checks.serving(CPU):
        assert "1 of 21 elements have other bits" in gpu_checks._noise("cpu", (3, 7), CPU)


@native
def test_cases_run():
    for case in gpu.cases(CPU, quick=True):
        sides = {name: side for name, side in case.sides.items() if name != "torch.compile"}  # which takes a minute
        assert [row.failed for row in measure(replace(case, sides=sides), 1, 1, 1.0)] == [""] * len(sides)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so():
    command = [sys.executable, "-m", "bench.run", "--suite", "gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "expected a CUDA device that torch can use" in done.stderr
