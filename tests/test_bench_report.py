"""What is made of measured times: slopes, comparisons of two runs, and the report."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("bench.timing", reason="bench/ is not beside the tests (a wheel's install)")
pytest.importorskip("markdown", reason="the report needs markdown, of the extra 'bench'")
from bench import compare, page, report
from bench.machine import build, memory_of
from bench.run import KEPT
from bench.timing import Row


def row(side, size, seconds, group="sizes", case=None, spread=0.1, **more):
    time = seconds * 1e9 / size
    return Row(
        group,
        case or f"{size} elements",
        side,
        2,
        "ns/element",
        median=time,
        low=time * (1 - spread),
        high=time * (1 + spread),
        curve="combine",
        size=size,
        **more,
    )


def test_slope_of_known_cost():
    """A call that costs 10 us and n^1.5 ns: the slope of the larger half of the sizes is 1.5."""
    rows = [row("fpfast", n, 1e-5 + 1e-9 * n**1.5) for n in (2**k for k in range(8, 27, 2))]
    assert report.slope(rows) == pytest.approx(1.5, abs=0.01)
    assert report.slope(rows[:2]) is None  # two points have no slope worth printing
    printed = "\n".join(report.tables(rows))
    assert re.search(r"1\.50\s+256 \.\. 6\.71089e\+07\s+2\s+fpfast\s+combine", printed)


def results(**times):
    rows = [row(side, 1024, seconds) for side, seconds in times.items()]
    about = {"suite": "scaling", "commit": "abc", "date": "2026-01-01", "processor": "one"}
    return {**about, "rows": [vars(one) for one in rows]}


def test_runs_that_agree_and_that_do_not(tmp_path, capsys):
    """Spreads of 10% on either side: a ratio of 2 has [1.64, 2.44]; 2.9 has [2.37, 3.54], 3.2 has [2.62, 3.91]."""
    for name, other in (("first", 2.0), ("near", 2.9), ("far", 3.2)):
        (tmp_path / name).write_text(json.dumps(results(fpfast=1e-6, jax=other * 1e-6)))
    assert compare.main([tmp_path / "first", tmp_path / "near"]) == 0
    assert "1 of 1 ratios agree" in capsys.readouterr().out
    assert compare.main([tmp_path / "first", tmp_path / "far"]) == 1
    assert "apart: 2 [1.64 .. 2.44] and 3.2 [2.62 .. 3.91]" in capsys.readouterr().out
    (tmp_path / "other").write_text(json.dumps({**results(fpfast=1e-6), "suite": "grid"}))
    assert compare.main([tmp_path / "first", tmp_path / "other"]) == 1  # nothing to be compared


def test_folders_of_runs(tmp_path):
    """Each file is compared with the one of its name, where there is one."""
    for folder in ("one", "two", "three"):
        (tmp_path / folder).mkdir()
        for suite in ("a.json", "b.json"):
            (tmp_path / folder / suite).write_text(json.dumps(results(fpfast=1e-6, jax=2e-6)))
    (tmp_path / "three" / "b.json").write_text(json.dumps(results(fpfast=1e-6, jax=4e-6)))
    assert compare.main([tmp_path / "one", tmp_path / "two"]) == 0
    assert compare.main([tmp_path / "one", tmp_path / "three"]) == 1
    (tmp_path / "two" / "b.json").unlink()
    (tmp_path / "two" / "static.json").write_text("{}")
    assert compare.main([tmp_path / "two", tmp_path / "three"]) == 0  # a.json, which both have
    for pair in (("one", "none"), ("one/a.json", "two"), ("one",)):
        with pytest.raises(SystemExit, match="expected two result files"):
            compare.main([tmp_path / name for name in pair])


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++, which builds the library that counts")
def test_processes_that_are_timed(tmp_path):
    """Pages of freed memory are not cleared again, and what a run allocates at most is seen all the same."""
    program = """
import resource
import torch
from bench.machine import build, memory_of

def run():
    for _ in range(3):
        torch.ones(8, 2**20) + torch.ones(8, 2**20)

idle = memory_of(lambda: None)
seen = [memory_of(run) for _ in range(2)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
run()
print(idle, *seen, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    environment = {**os.environ, **KEPT, "LD_PRELOAD": str(build("allocations.cpp", tmp_path))}
    root = Path(__file__).resolve().parents[1]
    made = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environment, stdout=subprocess.PIPE, check=True
    )
    idle, *seen, faults = map(float, made.stdout.split())
    assert idle < 1
    assert seen == pytest.approx([96, 96], abs=1)  # two operands and their sum, of 32 MiB each
    assert faults < 1000  # of 73,728 pages
    assert memory_of(lambda: None) is None  # here, where nothing counts


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.outside, self.pictures, self.tables = [], 0, 0

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.outside += [named[key] for key in ("href", "src", "xlink:href") if not named.get(key, "#").startswith("#")]
        self.pictures, self.tables = self.pictures + (tag == "svg"), self.tables + (tag == "table")


def test_report(tmp_path):
    """Every row is in every form; the page asks for nothing from elsewhere, and a loss is marked."""
    rows = [row("fpfast", n, 1e-6, ratios={"fpfast": 1.0}) for n in (1024, 4096, 16384)]
    rows += [row("jax", n, 5e-7, ratios={"fpfast": 0.5}, memory=3.0) for n in (1024, 4096, 16384)]
    other = Row("overhead", "a|b <c>", "jax", 2, "us", median=2.0, low=1.0, high=3.0, ratios={"fpfast": 2.0})
    rows += [other, Row("overhead", "a|b <c>", "torch eager", 2, "us", failed="ValueError: <no>")]
    about = {
        "suite": "scaling",
        "commit": "abc",
        "date": "now",
        "processor": "one",
        "rows": [vars(one) for one in rows],
    }
    (tmp_path / "scaling.json").write_text(json.dumps(about))
    (tmp_path / "other.json").write_text("{}")  # of something else
    page.write(tmp_path, tmp_path / "out")
    lines = list(csv.DictReader((tmp_path / "out" / "rows.csv").open()))
    assert [line["side"] for line in lines] == [one.side for one in rows]
    assert (lines[3]["ratio"], lines[3]["memory"]) == ("0.5", "3.0")
    text = (tmp_path / "out" / "report.md").read_text()
    for part in ("**0.5**", "| combine | fpfast | 2 | 0.00 |", "a/b <c>"):
        assert part in text
    found = Links()
    found.feed((tmp_path / "out" / "report.html").read_text())
    assert (found.outside, found.pictures, found.tables) == ([], 2, 3)
    assert "ValueError: &lt;no&gt;" in (tmp_path / "out" / "report.html").read_text()


def test_a_report_of_nothing(tmp_path):
    with pytest.raises(SystemExit, match="--results: expected a folder with result files"):
        page.write(tmp_path, tmp_path)
