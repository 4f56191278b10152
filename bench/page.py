"""A report of kept result files: ``python -m bench.page [--results FOLDER] [--out FOLDER]``.

Writes rows.csv, report.md and report.html, which holds its pictures and asks for nothing from elsewhere.
"""

from __future__ import annotations

import argparse
import csv
import html
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from itertools import groupby
from pathlib import Path
from typing import Any

import markdown
from matplotlib import rc_context
from matplotlib.figure import Figure

from bench.report import curves, slope
from bench.timing import Row

RESULTS = Path(__file__).with_name("results")
ABOUT = ("commit", "date", "processor", "python", "torch", "jax", "diffusers", "k-diffusion", "torchdiffeq", "torchsde")
COLUMNS = [field.name for field in fields(Row) if field.name not in ("samples", "ratios")]
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px } th, td { padding: .2rem .6rem; text-align: left }
th { border-bottom: 2px solid #999 } td { border-bottom: 1px solid #ddd } svg { max-width: 100%; height: auto }
"""
LOSS = "**"  # marks a peer that is faster


def load(folder: Path) -> list[dict[str, Any]]:
    """Results of suites with rows. Raises SystemExit where there is none."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    found = [results for results in found if "rows" in results]
    if not found:
        raise SystemExit(f"--results: expected a folder with result files of bench.run, got {str(folder)!r}")
    for results in found:
        results["rows"] = [Row(**row) for row in results["rows"]]
    return found


def as_csv(suites: list[dict[str, Any]]) -> str:
    """A line a row; the ratio is to fpfast's median."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["suite", "commit", *COLUMNS, "ratio"], extrasaction="ignore")
    writer.writeheader()
    for results in suites:
        for row in results["rows"]:
            about = {"suite": results["suite"], "commit": results["commit"]}
            writer.writerow({**about, **asdict(row), "ratio": row.ratios.get("fpfast")})
    return text.getvalue()


def sections(suites: list[dict[str, Any]]) -> Iterator[tuple[str, list[Figure]]]:
    """Markdown, and the pictures that follow it."""
    yield "# fpfast beside other packages\n\nTimes are medians [least .. greatest]; ratios are to fpfast's median.", []
    for results in suites:
        about = "; ".join(f"{name} {results[name]}" for name in ABOUT if name in results)
        peaks = "; ".join(f"{p['gflops']:.0f} GFLOPS with {p['threads']} thread(s)" for p in results.get("peaks", ()))
        yield f"## Suite {results['suite']}\n\n{about}. {peaks}", []
        for (threads, group), found in groupby(results["rows"], lambda row: (row.threads, row.group)):
            rows = list(found)
            title = f"### {group}, {threads} thread{'s' * (threads > 1)}"
            yield f"{title}\n\n{_table(rows)}", _figures(rows)
        if lines := list(_slopes(results["rows"])):
            yield (
                "### Cost by size\n\nThe time of a run grows like size^slope, by the larger sizes.\n\n" + _rows(lines),
                [],
            )


def _rows(lines: list[list[str]]) -> str:
    head, *body = ([cell.replace("|", "/") for cell in line] for line in lines)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *body))


def _table(rows: list[Row]) -> str:
    lines = [["case", "side", rows[0].unit, "times fpfast's", "of peak", "MB", "how"]]
    for row in rows:
        ratio = row.ratios.get("fpfast")
        mark = LOSS if ratio is not None and ratio < 1 and not row.side.startswith("fpfast") else ""
        time = f"{row.median:.4g} [{row.low:.4g} .. {row.high:.4g}]" if row.median is not None else "none"
        share = "" if row.share_of_peak is None else f"{row.share_of_peak:.0%}"
        memory = "" if row.memory is None else f"{row.memory:.0f}"
        times = "" if ratio is None else f"{mark}{ratio:.3g}{mark}"
        lines.append([row.case, row.side, time, times, share, memory, row.failed or row.remark])
    return _rows(lines)


def _slopes(rows: list[Row]) -> Iterator[list[str]]:
    found = [(key, slope(some)) for key, some in curves(rows).items()]
    if any(steep is not None for _, steep in found):
        yield ["curve", "side", "threads", "slope"]
        for (threads, curve, side), steep in found:
            if steep is not None:
                yield [curve, side, str(threads), f"{steep:.2f}"]


def _figures(rows: list[Row]) -> list[Figure]:
    """Times by size where rows lie on curves, else ratios by case."""
    names = list(dict.fromkeys(row.curve for row in rows if row.curve))
    if names:
        return [_curves(rows, names)]
    peers = [row for row in rows if row.ratios.get("fpfast") and row.median and not row.side.startswith("fpfast")]
    return [_ratios(peers)] if peers else []


def _curves(rows: list[Row], names: list[str]) -> Figure:
    across = min(3, len(names))
    down = -(-len(names) // across)
    figure = Figure(figsize=(1.5 + 4.2 * across, 0.8 + 3 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False, sharex=True)
    for place in axes.flat[len(names) :]:
        place.set_axis_off()
    sides = list(dict.fromkeys(row.side for row in rows))
    for name, place in zip(names, axes.flat, strict=False):
        for number, side in enumerate(sides):
            timed = [row for row in rows if row.curve == name and row.side == side and row.median]
            width = 2.5 if side == "fpfast" else 1.2
            line = [[row.size for row in timed], [row.median for row in timed]]
            place.plot(*line, marker="o", markersize=3, linewidth=width, color=f"C{number}", label=side)
        place.set(xscale="log", yscale="log", title=name)
        place.set_ylabel(rows[0].unit)
        place.grid(alpha=0.3)
    figure.supxlabel("samples" if names != ["combine"] else "elements", fontsize=10)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    return figure


def _ratios(rows: list[Row]) -> Figure:
    """A point and its spread for each peer, a band for each case."""
    cases = list(dict.fromkeys(row.case for row in rows))
    sides = list(dict.fromkeys(row.side for row in rows))
    figure = Figure(figsize=(11, 1.2 + 0.16 * len(rows)), layout="constrained")
    place = figure.subplots()
    for number, side in enumerate(sides):
        some = [row for row in rows if row.side == side]
        heights = [-cases.index(row.case) - 0.8 * number / len(sides) for row in some]
        middle = [row.ratios["fpfast"] for row in some]
        spread = [[row.ratios["fpfast"] * part(row) for row in some] for part in (_below, _above)]
        place.errorbar(middle, heights, xerr=spread, fmt="o", markersize=3, color=f"C{number}", label=side)
    place.axvline(1, color="black", linewidth=0.8)
    place.set_yticks([-k - 0.4 for k in range(len(cases))], cases, fontsize=7)
    place.set(xscale="log", xlabel="time over fpfast's (right of 1: fpfast is faster)")
    place.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _below(row: Row) -> float:
    return 1 - row.low / row.median if row.low and row.median else 0.0


def _above(row: Row) -> float:
    return row.high / row.median - 1 if row.high and row.median else 0.0


def as_html(parts: Iterable[tuple[str, list[Figure]]]) -> str:
    body = []
    for text, figures in parts:
        body += [markdown.markdown(html.escape(text, quote=False), extensions=["tables"]), *map(_svg, figures)]
    head = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>fpfast: benchmark</title><style>{STYLE}</style>'
    )
    return f"{head}<body>{''.join(body)}</body></html>\n"


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    with rc_context({"svg.hashsalt": "fpfast"}):  # the same figure has the same bytes
        figure.savefig(text, format="svg", metadata={"Date": None})
    return "<svg" + text.getvalue().partition("<svg")[2]


def write(results: Path, out: Path) -> list[Path]:
    suites = load(results)
    parts = list(sections(suites))
    files = {
        "rows.csv": as_csv(suites),
        "report.md": "\n\n".join(text for text, _ in parts) + "\n",
        "report.html": as_html(parts),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (out / name).write_text(text)
    return [out / name for name in files]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.page", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of result files (default bench/results)")
    parser.add_argument(
        "--out", type=Path, default=Path("bench-report"), help="folder for the report (default bench-report)"
    )
    options = parser.parse_args()
    print(*write(options.results, options.out), sep="\n")
