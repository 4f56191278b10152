"""Imports point down: sample -> solvers -> score -> fused -> sde -> noise -> ops -> backends -> kernels."""

import ast
from pathlib import Path

import pytest

import fpfast

ROOT = Path(fpfast.__file__).parent
LAYERS = [
    ["__main__"],
    ["cli"],
    ["cli_train"],
    ["doctor", "plot", "embedded"],
    ["__init__"],
    ["gap", "likelihood", "certificate", "train", "model"],
    ["metrics", "data", "network", "convnet", "batches", "checkpoint", "processes"],
    ["output"],
    ["sample"],
    ["trajectory"],
    ["loop"],
    ["graph"],
    ["solvers", "times", "mixture"],
    ["losses"],
    ["residual"],
    ["fused_residual"],
    ["divergence"],
    ["points"],
    ["score"],
    ["fused"],
    ["fragments", "tiles", "jets"],
    ["recognise"],
    ["layers"],
    ["shapes"],
    ["traced"],
    ["assemble"],
    ["program"],
    ["activation"],
    ["sde"],
    ["noise"],
    ["pair_ops"],
    ["ops"],
    ["backends"],
    ["native"],
    ["packing"],
    ["reference"],
    ["errors"],
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
FILES = sorted(path.stem for path in ROOT.glob("*.py"))


def imported(name):
    """Modules of fpfast that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] if "." in alias.name else "__init__" for alias in node.names
                      if alias.name.split(".")[0] == "fpfast"}  # fmt: skip
        if isinstance(node, ast.ImportFrom) and node.module == "fpfast":
            found |= {alias.name if (ROOT / f"{alias.name}.py").exists() else "__init__" for alias in node.names}
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fpfast."):
            found.add(node.module.split(".")[1])
    return found


def test_every_file_has_a_layer():
    assert set(FILES) == set(RANK)


@pytest.mark.parametrize("name", FILES)
def test_imports_point_down(name):
    allowed = {"kernels"} if name == "backends" else set()
    compiled = {"__init__"} if name in ("native", "backends") else set()  # `from fpfast import _native`
    for other in imported(name) - allowed - compiled:
        assert RANK[other] > RANK[name], f"{name} imports {other}"
