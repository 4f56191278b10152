"""What a paper's command leaves: tables on standard output; in a folder text, numbers and pictures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpfast import output
from fpfast.errors import bad
from fpfast.metrics import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean and its standard error, of one value a seed; NaN for the error of a single one."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(statistics.fmean(values), error)


def cell(e: Estimate, digits: int = 3) -> str:
    """A value and its error, both to the same place: the last of ``digits`` significant ones of the value."""
    if not math.isfinite(e.value):
        return str(e.value)
    size = max(abs(e.value), e.error if math.isfinite(e.error) else 0.0)
    exponent = math.floor(math.log10(size)) if size > 0 else 0
    if not -4 <= exponent < 5:
        scaled = cell(Estimate(e.value / 10.0**exponent, e.error / 10.0**exponent), digits)
        return f"({scaled})e{exponent}" if math.isfinite(e.error) else f"{scaled}e{exponent}"
    places = max(0, digits - 1 - exponent)
    return f"{e.value:.{places}f}" + (f" ± {e.error:.{places}f}" if math.isfinite(e.error) else "")


def plain(value: Any) -> Any:
    """For JSON, which has neither NaN nor infinity: None in their place, and estimates by their fields' names."""
    if isinstance(value, Estimate):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Report:
    """Tables, sentences and pictures of one run, written to ``folder`` as NAME.md, NAME.json and PNG files.

    Raises ValueError where the folder cannot be made.
    """

    def __init__(self, folder: str | Path, title: str, settings: dict[str, Any], name: str = "report") -> None:
        self.folder, self.name = Path(folder), name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise bad("--out", "a folder that can be made", f"{str(folder)!r}: {error}") from error
        self.lines = [f"# {title}", ""]
        self.numbers: dict[str, Any] = {"settings": settings, "tables": {}}

    def say(self, sentence: str) -> None:
        print(sentence)
        self.lines += [sentence, ""]

    def table(self, name: str, rows: list[list[str]], numbers: Any = None) -> None:
        """``rows``: the first is the heading. ``numbers``: what report.json holds of it, by default the rows."""
        print(f"\n{name}")
        output.print_table(rows)
        print()
        self.lines += [f"## {name}", ""]
        self.lines += ["| " + " | ".join(row) + " |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])] + [""]
        self.numbers["tables"][name] = rows if numbers is None else numbers

    def picture(self, name: str, figure: Figure, caption: str) -> None:
        path = self.folder / f"{name}.png"
        output.write(path, output.as_png(figure))
        self.lines += [f"![{caption}]({path.name})", "", caption, ""]
        print(f"wrote {path}")

    def close(self) -> None:
        text, numbers = (self.folder / f"{self.name}.{suffix}" for suffix in ("md", "json"))
        output.write(text, output.as_text("\n".join(self.lines)))
        output.write(numbers, output.as_json(plain(self.numbers)))
        print(f"wrote {text} and {numbers}")
