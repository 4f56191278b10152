"""The README's Python example runs and is true."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.skipif(not README.is_file(), reason="the README is not beside the tests (installed from a wheel)")
def test_example(capsys):
    names: dict = {}
    for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL):
        exec(code, names)
    assert names["x"].shape == names["y"].shape == (1000, 2)
    assert torch.equal(names["rest"], names["y"][500:])
    assert abs(float(names["x"].std()) - 1) < 0.1
    assert names["z"].shape == (1000, 2)
    assert capsys.readouterr().out.startswith("Estimate(value=")
