"""Imports point down: sample -> solvers -> score -> fused -> sde -> noise -> ops -> backends -> kernels."""

import ast
from pathlib import Path

import pytest

import fpfast

ROOT = Path(fpfast.__file__).parent
LAYERS = [
    ["__main__"],
    ["cli"],
    ["cli_train", "cli_paper", "cli_bench"],
    ["papers.ode_sde_gap", "papers.fp_diffusion", "papers.noise"],
    ["papers.tracking_tables"],
    ["papers.tracking_plots"],
    ["papers.noise_plots"],
    ["papers.noise_tables"],
    ["papers.noise_cases"],
    ["papers.tracking"],
    ["papers.cells", "papers.score_errors"],
    ["papers.trajectories"],
    ["papers.gap_pictures", "papers.identity", "papers.published"],
    ["papers.fp_measures", "papers.fp_pictures", "papers.fp_problems"],
    ["papers.gap_networks"],
    ["papers.report", "papers.runs"],
    ["doctor", "plot", "embedded", "papers.__init__"],
    ["__init__"],
    ["compat.diffusers"],
    ["compat.runs"],
    ["compat.plan"],
    ["compat.edm", "compat.score_sde"],
    ["compat.levels", "compat.k_diffusion", "compat.__init__"],
    ["gap", "likelihood", "certificate", "train", "model", "shards"],
    ["metrics", "data", "network", "convnet", "batches", "checkpoint", "processes"],
    ["output", "files"],
    ["sample"],
    ["trajectory"],
    ["loop"],
    ["graph"],
    ["rows"],
    ["tables"],
    ["solvers", "times", "mixture"],
    ["losses"],
    ["residual"],
    ["fused_residual"],
    ["divergence"],
    ["points"],
    ["score"],
    ["fused"],
    ["packed", "fragments", "tiles", "jets"],
    ["recognise"],
    ["layers"],
    ["shapes"],
    ["traced"],
    ["assemble"],
    ["program"],
    ["activation"],
    ["sde", "watch"],
    ["noise"],
    ["pair_ops"],
    ["ops"],
    ["backends"],
    ["native"],
    ["packing"],
    ["reference"],
    ["vmap"],
    ["errors"],
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
FILES = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in ROOT.rglob("*.py"))
FILES = [name for name in FILES if not name.startswith("kernels.")]


def path_of(name):
    return ROOT.joinpath(*name.split(".")).with_suffix(".py")


def imported(name):
    """Modules of fpfast that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path_of(name).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[2] or "__init__" for alias in node.names
                      if alias.name.split(".")[0] == "fpfast"}  # fmt: skip
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fpfast":
            within = node.module.partition(".")[2]
            if within and path_of(within).exists():
                found.add(within)
            else:  # a package, whose names are modules or its own
                inside = [f"{within}.{alias.name}".strip(".") for alias in node.names]
                found |= {one if path_of(one).exists() else f"{within}.__init__".strip(".") for one in inside}
    return found


def test_every_file_has_a_layer():
    assert set(FILES) == set(RANK)


@pytest.mark.parametrize("name", FILES)
def test_imports_point_down(name):
    compiled = {"__init__"} if name in ("native", "backends") else set()  # `from fpfast import _native`
    kernels = {other for other in imported(name) if other.split(".")[0] == "kernels"} if name == "backends" else set()
    for other in imported(name) - kernels - compiled:
        assert RANK[other] > RANK[name], f"{name} imports {other}"
