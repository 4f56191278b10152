"""The command ``fpfast bench``, which is ``python -m bench.run`` of the source tree that one stands in."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from fpfast.errors import bad, key

FULL = ("sizes", "grid", "residual", "peers")
SUITES = (*FULL, "cpu-engine", "gpu")


def add(commands: Any) -> None:
    one = commands.add_parser("bench", help="checks and times fpfast beside other packages (in its source tree)")
    one.set_defaults(run=run)
    one.add_argument(
        "--suite", nargs="+", default=list(FULL), help=f"of {', '.join(SUITES)} (default: {', '.join(FULL)})"
    )
    one.add_argument("--quick", action="store_true", help="tiny sizes: does everything run? The times say nothing")
    one.add_argument("--out", metavar="FOLDER", help="for the results (default: bench/results; with --quick nowhere)")
    one.add_argument(
        "rest", nargs=argparse.REMAINDER, help="-- and what python -m bench.run takes, such as --threads 2"
    )


def run(args: argparse.Namespace) -> None:
    for suite in args.suite:
        key("--suite", suite, SUITES)
    if not Path("bench", "run.py").is_file():
        raise bad("fpfast bench", "to be started in fpfast's source tree, where bench/run.py is", str(Path.cwd()))
    further = args.rest[1:] if args.rest[:1] == ["--"] else args.rest
    for suite in args.suite:
        command = [sys.executable, "-m", "bench.run", "--suite", suite, *further]
        if args.quick:
            command += ["--quick", "--repeats", "2"]
        if args.out or args.quick:
            command += ["--out", str(Path(args.out) / f"{suite}.json") if args.out else "-"]
        if subprocess.run(command).returncode:
            raise RuntimeError(f"bench: the suite {suite!r} did not end well; see above")
