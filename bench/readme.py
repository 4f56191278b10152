"""Writes the tables of speed from the kept result files: ``python -m bench.readme``.                          PAGES"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
PAGES = {"README.md": ("sizes", "grid", "residual", "peers"), "docs/fused-engine.md": ("cpu-engine",)}  # and suites
END = "<!-- end of what is made -->"
# title -> side (of several names the one that a case has), for each suite
PEERS: dict[str, dict[str, str | tuple[str, ...]]] = {
    "cpu-engine": {"torch eager": "torch eager", "torch.compile": "torch.compile", "JAX": "jax"},
    "residual": {
        "torch eager": "torch eager",
        "torch.compile": "torch.compile",
        "JAX, Hessian": "jax, Hessian",
        "JAX, by hand": "jax",
    },
    "peers": {
        "plain torch": "torch eager",
        "diffusers": ("diffusers EulerDiscreteScheduler", "diffusers DDIMScheduler"),
        "k-diffusion": "k-diffusion sample_euler",
        "torchdiffeq": ("torchdiffeq euler", "torchdiffeq rk4"),
        "torchsde": "torchsde euler",
        "torchsde on [0, 1]": "torchsde euler, [0, 1]",
        "JAX (diffrax)": ("jax, diffrax Euler", "jax"),
    },
    "sizes": {
        "torch eager": "torch eager",
        "with a buffer kept": "torch eager, buffer reused",
        "torch.compile": "torch.compile",
        "JAX": "jax",
    },
    "grid": {
        "torch eager": "torch eager",
        "torch.compile": "torch.compile",
        "JAX": "jax",
        "diffusers": "diffusers EulerDiscreteScheduler",
        "k-diffusion": "k-diffusion sample_euler",
        "torchdiffeq": "torchdiffeq euler",
        "torchsde": "torchsde euler",
    },
}
TITLES = {
    "authors": "trajectory, {case}",
    "small": "trajectory, {case}",
    "combine": "x' = a x + b s + c z, {case}",
    "normal": "normal noise, {case}",
    "training": "gradients of the residual loss, {case}",
    "overhead": "a step of any network (one Linear), {case}",
    "pipeline": "a pipeline's step, {case}",
    "likelihood": "log-likelihood, {case}",
    "sizes": "x' = a x + b s + c z, {case}",
}
Row = dict[str, Any]
# group -> what its cases are put together by, a number, and how the line is called
SPREADS: dict[str, tuple[Callable[[Row], str], str]] = {
    "widths": (lambda row: row["case"].split()[0], "{cases} perceptrons, 3 hidden layers of {value}"),
    "grid": (lambda row: f"{row['size']:.0f}", "{cases} networks of width 64 to 256, d = 2, 10, 64, {value} samples"),
}


def table(results: dict[str, Any]) -> str:
    """Ratios of the peers' times to fpfast's, of the largest number of threads."""
    threads, peers = max(results["threads"]), PEERS[results["suite"]]
    rows = [row for row in results["rows"] if row["threads"] == threads]
    lines = [["", "fpfast", *(f"{title} takes" for title in peers)]]
    for (group, case), sides in groupby(rows, lambda row: (row["group"], row["case"])):
        if group in TITLES:
            lines.append(_line(TITLES[group].format(case=case), {row["side"]: row for row in sides}, peers))
    for group, (of, name) in SPREADS.items():
        lines += _spreads([row for row in rows if row["group"] == group], peers, of, name)
    lines.insert(1, ["---"] * len(lines[0]))
    made = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    peaks = {peak["threads"]: peak for peak in results["peaks"]}
    about = (
        f"{results['processor']}, {threads} threads, {peaks[threads]['gflops']:.0f} GFLOPS of float32 multiply-adds; "
        f"torch {results['torch']}, JAX {results['jax']}; commit {results['commit'][:7]}, {results['date'][:10]}."
    )
    return f"{made}\n\n{about}\n"


def _line(name: str, sides: dict[str, Row], peers: dict[str, str | tuple[str, ...]]) -> list[str]:
    ours = sides["fpfast"]
    share = "" if ours["share_of_peak"] is None else f", {ours['share_of_peak']:.0%} of peak"
    return [
        name,
        f"{ours['median']:.3g} {ours['unit']}{share}",
        *(_ratio(_found(sides, side)) for side in peers.values()),
    ]


def _found(sides: dict[str, Row], names: str | tuple[str, ...]) -> Row | None:
    return next((sides[name] for name in ((names,) if isinstance(names, str) else names) if name in sides), None)


def _ratio(row: Row | None) -> str:
    if row is None or not row["ratios"]:
        return "" if row is None else "failed"
    ratio = row["ratios"]["fpfast"]
    return f"{ratio:.1f} x" if ratio > 0.1 else f"{ratio:.2f} x"


def _spreads(
    rows: list[Row], peers: dict[str, str | tuple[str, ...]], of: Callable[[Row], str], name: str
) -> Iterator[list[str]]:
    """A line for each value of ``of``: the least, the median and the greatest ratio over all of its cases."""
    for value, cells in groupby(sorted(rows, key=lambda row: float(of(row))), of):
        sides: dict[str, list[Row]] = {}
        for row in cells:
            sides.setdefault(row["side"], []).append(row)
        shares = [row["share_of_peak"] for row in sides["fpfast"]]
        ratios = {side: [row["ratios"]["fpfast"] for row in found if row["ratios"]] for side, found in sides.items()}
        yield [
            name.format(cases=len(shares), value=value) + ": least, median, greatest",
            f"{min(shares):.0%}, {median(shares):.0%}, {max(shares):.0%} of peak",
            *(_spread(ratios.get(str(side), [])) for side in peers.values()),
        ]


def _spread(ratios: list[float]) -> str:
    return f"{min(ratios):.1f}, {median(ratios):.1f}, {max(ratios):.1f} x" if ratios else ""


def put(text: str, suite: str, made: str, by: str = "bench.readme") -> str:
    """``text`` with ``made`` between the marks of a suite."""
    start = f"<!-- {suite}: made by python -m {by} -->\n"
    return re.sub(f"{re.escape(start)}.*?{re.escape(END)}", lambda _: f"{start}{made}{END}", text, flags=re.DOTALL)


def whole(text: str, suites: Iterable[str]) -> str:
    """A page with the tables of ``suites`` made anew."""
    for suite in suites:
        text = put(text, suite, table(json.loads((RESULTS / f"{suite}.json").read_text())))
    return text


if __name__ == "__main__":
    for name, suites in PAGES.items():
        page = ROOT / name
        page.write_text(whole(page.read_text(), suites))
