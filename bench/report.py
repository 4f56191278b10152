"""Tables of the measured rows, ratios first."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from statistics import linear_regression
from typing import Any

from bench.timing import Row

# How the names of the sides begin that are not fpfast's or the machine's.
PEERS = ("torch", "jax", "diffusers", "k-diffusion")


def tables(rows: list[Row]) -> Iterator[str]:
    for (_, threads, group), found in groupby(rows, key=lambda row: (row.threads, row.threads, row.group)):
        yield ""
        yield f"## {group}, {threads} thread" + "s" * (threads > 1)
        yield from (_lines if group == "widths" else _blocks)(list(found))
    yield from _slopes(rows)
    yield from _threads(rows)
    yield from _losses(rows)


def write(out: Path, about: dict[str, Any], rows: list[Row]) -> None:
    """A row a line; nothing to "-"."""
    if str(out) == "-":
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    head = json.dumps(about, indent=1).removesuffix("\n}")
    lines = ",\n".join(json.dumps(asdict(row)) for row in rows)
    out.write_text(f'{head},\n "rows": [\n{lines}\n]}}\n')
    print(f"\nwritten: {out}")


def _cases(rows: Iterable[Row]) -> Iterator[tuple[str, list[Row]]]:
    for case, found in groupby(rows, key=lambda row: row.case):
        yield case, list(found)


def _time(row: Row) -> str:
    if row.median is None:
        return "no time: " + row.failed
    return f"{_number(row.median)} [{_number(row.low)} .. {_number(row.high)}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _share(row: Row) -> str:
    return "" if row.share_of_peak is None else f"{row.share_of_peak:.1%}"


def _blocks(rows: list[Row]) -> Iterator[str]:
    """A block for each case, a line for each side."""
    for case, sides in _cases(rows):
        bases = list(dict.fromkeys(base for row in sides for base in row.ratios))
        share = any(row.share_of_peak is not None for row in sides)
        header = [f"/ {base}" for base in bases] + ["side", sides[0].unit] + ["of peak"] * share + ["how"]
        body = [
            [_ratio(row, base) for base in bases] + [row.side, _time(row)] + [_share(row)] * share + [row.remark]
            for row in sides
        ]
        yield ""
        yield case
        yield from _aligned([header, *body])


def _lines(rows: list[Row]) -> Iterator[str]:
    """A line for each case."""
    table: list[list[str]] = []
    for case, sides in _cases(rows):
        first, *others = sides
        if not table:
            names = [row.side for row in others]
            table.append([*(f"{name} / {first.side}" for name in names), "", first.side, "of peak", *names])
        ratios = [_ratio(row, first.side) for row in others]
        table.append([*ratios, case, _time(first), _share(first), *(_time(row) for row in others)])
    yield f"times in {rows[0].unit}"
    yield from _aligned(table)


def _ratio(row: Row, base: str) -> str:
    return f"{row.ratios[base]:.2f}" if base in row.ratios else "-"


def _aligned(table: list[list[str]]) -> Iterator[str]:
    sizes = [max(len(line[k]) for line in table) for k in range(len(table[0]))]
    for line in table:
        yield "  ".join(cell.ljust(size) for cell, size in zip(line, sizes, strict=True)).rstrip()


def slope(rows: list[Row]) -> float | None:
    """Of log time by log size, for the upper half of the sizes but at least three: cost grows like size^slope."""
    timed = sorted((row.size, row.median * row.size) for row in rows if row.median is not None)  # they are per sample
    timed = timed[-max(3, (len(timed) + 1) // 2) :]
    if len(timed) < 3:
        return None
    return linear_regression(*zip(*((math.log(size), math.log(time)) for size, time in timed), strict=True)).slope


def curves(rows: list[Row]) -> dict[tuple[int, str, str], list[Row]]:
    """(threads, curve, side) -> its rows, of those that lie on a curve."""
    found: dict[tuple[int, str, str], list[Row]] = {}
    for row in rows:
        if row.curve:
            found.setdefault((row.threads, row.curve, row.side), []).append(row)
    return found


def _slopes(rows: list[Row]) -> Iterator[str]:
    table = [["slope", "sizes", "threads", "side", "curve"]]
    for (threads, curve, side), found in curves(rows).items():
        if (steep := slope(found)) is not None:
            sizes = f"{min(row.size for row in found):g} .. {max(row.size for row in found):g}"
            table.append([f"{steep:.2f}", sizes, str(threads), side, curve])
    if len(table) > 1:
        yield from ("", "## cost by size: time ~ size^slope over the larger sizes", "")
        yield from _aligned(table)


def _threads(rows: list[Row]) -> Iterator[str]:
    """How much faster several threads are than one."""
    single = {(row.group, row.case, row.side): row.median for row in rows if row.threads == 1 and row.median}
    table = [["speed-up", "threads", "side", "case"]]
    for row in rows:
        alone = single.get((row.group, row.case, row.side))
        if row.threads > 1 and row.median and alone and row.group in ("authors", "combine", "normal"):
            table.append([f"{alone / row.median:.2f}", str(row.threads), row.side, f"{row.group}: {row.case}"])
    if len(table) > 1:
        yield from ("", "## threads", "")
        yield from _aligned(table)


def _losses(rows: list[Row]) -> Iterator[str]:
    compared = [row for row in rows if row.side.startswith(PEERS) and "fpfast" in row.ratios]
    slower = [row for row in compared if row.ratios["fpfast"] < 1]
    yield from ("", f"## fpfast is slower in {len(slower)} of {len(compared)} comparisons")
    for row in slower:
        threads = f"{row.threads} thread" + "s" * (row.threads > 1)
        yield f"{row.ratios['fpfast']:.2f}  {row.side}  {row.group}: {row.case}, {threads}"
    failed = [row for row in rows if row.failed]
    if failed:
        yield from ("", f"## no time for {len(failed)} sides")
        for row in failed:
            yield f"{row.side}, {row.group}: {row.case}, {row.threads} thread(s): {row.failed}"
