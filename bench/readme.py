"""Writes the README's table of speed from a result file: ``python -m bench.readme [RESULTS.json]``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "cpu-engine.json"
START, END = "<!-- made by python -m bench.readme -->\n", "<!-- end of what is made -->"
PEERS = {"torch eager": "torch eager", "torch.compile": "torch.compile", "JAX": "jax"}  # title -> side
TITLES = {
    "authors": "trajectory, {case}",
    "small": "trajectory, {case}",
    "combine": "x' = a x + b s + c z, {case}",
    "normal": "normal noise, {case}",
}
Row = dict[str, Any]


def table(results: dict[str, Any]) -> str:
    """Ratios of the peers' times to fpfast's, of the largest number of threads."""
    threads = max(results["threads"])
    rows = [row for row in results["rows"] if row["threads"] == threads]
    lines = [["", "fpfast", *(f"{title} takes" for title in PEERS)]]
    for (group, case), sides in groupby(rows, lambda row: (row["group"], row["case"])):
        if group in TITLES:
            lines.append(_line(TITLES[group].format(case=case), {row["side"]: row for row in sides}))
    lines += _widths([row for row in rows if row["group"] == "widths"])
    lines.insert(1, ["---"] * len(lines[0]))
    made = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    peaks = {peak["threads"]: peak for peak in results["peaks"]}
    about = (
        f"{results['processor']}, {threads} threads, {peaks[threads]['gflops']:.0f} GFLOPS of float32 multiply-adds; "
        f"torch {results['torch']}, JAX {results['jax']}; commit {results['commit'][:7]}, {results['date'][:10]}."
    )
    return f"{made}\n\n{about}\n"


def _line(name: str, sides: dict[str, Row]) -> list[str]:
    ours = sides["fpfast"]
    share = "" if ours["share_of_peak"] is None else f", {ours['share_of_peak']:.0%} of peak"
    return [name, f"{ours['median']:.3g} {ours['unit']}{share}", *(_ratio(sides.get(side)) for side in PEERS.values())]


def _ratio(row: Row | None) -> str:
    return "" if row is None else f"{row['ratios']['fpfast']:.1f} x" if row["ratios"] else "failed"


def _widths(rows: list[Row]) -> Iterator[list[str]]:
    """One line for each width: the least, the median and the greatest ratio over activations, dimensions and kinds."""
    for width, cells in groupby(rows, lambda row: row["case"].split()[0]):
        sides: dict[str, list[Row]] = {}
        for row in cells:
            sides.setdefault(row["side"], []).append(row)
        shares = [row["share_of_peak"] for row in sides["fpfast"]]
        ratios = {side: [row["ratios"]["fpfast"] for row in found if row["ratios"]] for side, found in sides.items()}
        yield [
            f"{len(shares)} perceptrons, 3 hidden layers of {width}: least, median, greatest",
            f"{min(shares):.0%}, {median(shares):.0%}, {max(shares):.0%} of peak",
            *(_spread(ratios.get(side, [])) for side in PEERS.values()),
        ]


def _spread(ratios: list[float]) -> str:
    return f"{min(ratios):.1f}, {median(ratios):.1f}, {max(ratios):.1f} x" if ratios else ""


def put(text: str, made: str) -> str:
    """``text`` with ``made`` between its marks."""
    return re.sub(f"{re.escape(START)}.*?{re.escape(END)}", lambda _: f"{START}{made}{END}", text, flags=re.DOTALL)


def main() -> None:
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    readme = ROOT / "README.md"
    readme.write_text(put(readme.read_text(), table(json.loads(source.read_text()))))


if __name__ == "__main__":
    main()
