"""Whether two runs agree: ``python -m bench.compare FIRST SECOND``, two files of one suite or two folders of some.

A ratio is that of two medians; its spread goes from the least time over the greatest to the greatest over the least.
Two runs agree in a ratio where their spreads overlap. Exits with 1 where some do not, or there is none.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

Key = tuple[int, str, str, str]  # threads, group, case, side


class Ratio(NamedTuple):
    value: float
    low: float
    high: float


def ratios(results: dict[str, Any]) -> dict[Key, Ratio]:
    """Each side's time over fpfast's."""
    base = {(row["threads"], row["group"], row["case"]): row for row in results["rows"] if row["side"] == "fpfast"}
    found = {}
    for row in results["rows"]:
        case = (row["threads"], row["group"], row["case"])
        ours = base.get(case)
        if ours is row or ours is None or row["median"] is None or ours["median"] is None:
            continue
        value = row["median"] / ours["median"]
        found[(*case, row["side"])] = Ratio(value, row["low"] / ours["high"], row["high"] / ours["low"])
    return found


def apart(first: dict[Key, Ratio], second: dict[Key, Ratio]) -> list[Key]:
    """Ratios of both runs whose spreads do not overlap."""
    both = first.keys() & second.keys()
    return sorted(key for key in both if first[key].low > second[key].high or second[key].low > first[key].high)


def pairs(first: Path, second: Path) -> list[tuple[Path, Path]]:
    """Files to be compared: those of one name in both folders. Raises SystemExit where there are none."""
    if first.is_file() and second.is_file():
        return [(first, second)]
    names = sorted({path.name for path in first.glob("*.json")} & {path.name for path in second.glob("*.json")})
    found = [(first / name, second / name) for name in names if "rows" in json.loads((first / name).read_text())]
    if not found:
        sys.exit("python -m bench.compare: expected two result files, or two folders with result files of one name")
    return found


def compare(first_file: Path, second_file: Path) -> bool:
    """Prints in which ratios two runs do not agree; True where there are ratios, and they all do."""
    results = [json.loads(path.read_text()) for path in (first_file, second_file)]
    first, second = map(ratios, results)
    for one in results:
        print(f"{one['suite']}, commit {one['commit'][:9]}, {one['date']}, {one['processor']}")
    different = apart(first, second)
    for key in different:
        a, b = first[key], second[key]
        print(
            f"apart: {a.value:.3g} [{a.low:.3g} .. {a.high:.3g}] and {b.value:.3g} [{b.low:.3g} .. {b.high:.3g}]: {key}"
        )
    for key in sorted(first.keys() ^ second.keys()):
        print(f"in one run only: {key}")
    both = len(first.keys() & second.keys())
    print(f"{both - len(different)} of {both} ratios agree within their spreads")
    return both > 0 and not different


def main(paths: list[str]) -> int:
    if len(paths) != 2:
        sys.exit("python -m bench.compare: expected two result files or folders")
    agree = [compare(*files) for files in pairs(*map(Path, paths))]
    return 0 if all(agree) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
