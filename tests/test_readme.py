"""The README's Python examples run and are true, and its table is the generated one."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from conftest import native

README = Path(__file__).parents[1] / "README.md"
pytestmark = pytest.mark.skipif(not README.is_file(), reason="the README is not beside the tests (a wheel's install)")


def run(*numbers):
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    for number in numbers:
        exec(blocks[number], names)
    return names


def test_example(capsys):
    names = run(0)
    assert names["x"].shape == names["y"].shape == (1000, 2)
    assert torch.equal(names["rest"], names["y"][500:])
    assert abs(float(names["x"].std()) - 1) < 0.1
    assert capsys.readouterr().out.startswith("Estimate(value=")


def test_residual_example(capsys):
    names = run(2)
    assert all(bool(p.grad.isfinite().all()) for p in names["potential"].net.parameters() if p.grad is not None)
    assert float(names["loss"].detach()) < 1e3
    assert capsys.readouterr().out.endswith("torch.Size([100])\n")


@native
def test_compiled_example(capsys):
    assert run(0, 1)["z"].shape == (1000, 2)
    capsys.readouterr()


@native
def test_training_example(capsys):
    assert run(2, 3)["fit"].history[-1].step == 50
    capsys.readouterr()


def test_speed_tables():
    """They are what the kept results say."""
    path = README.parent / "bench" / "readme.py"
    spec = importlib.util.spec_from_file_location("bench_readme", path)
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert {suite for suites in maker.PAGES.values() for suite in suites} == set(maker.PEERS)
    for page, suites in maker.PAGES.items():
        text = (README.parent / page).read_text()
        assert maker.whole(text, suites) == text
        for suite in suites:
            assert text.count(f"<!-- {suite}: made by python -m bench.readme -->") == 1
