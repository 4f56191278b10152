"""The commands ``fpfast paper NAME``.                                                                         PAPERS"""

from __future__ import annotations

import argparse
from types import ModuleType
from typing import Any

from fpfast.errors import integer
from fpfast.papers import fp_diffusion, noise, ode_sde_gap

# Each has TITLE, add(parser) for options of its own, and run(args).
PAPERS: dict[str, ModuleType] = {
    "ode-sde-gap": ode_sde_gap,
    "fp-diffusion": fp_diffusion,
    "noise": noise,
}


def add(commands: Any) -> None:
    one = commands.add_parser("paper", help="the papers' claims: train, measure, draw")
    papers = one.add_subparsers(required=True, metavar="PAPER")
    for name, module in PAPERS.items():
        paper = papers.add_parser(name, help=module.TITLE)
        paper.set_defaults(run=run, paper=name)
        paper.add_argument(
            "--out",
            default=f"fpfast_{name.replace('-', '_')}",
            metavar="FOLDER",
            help="for tables, pictures and training runs, which are taken up again (default: %(default)s)",
        )
        paper.add_argument("--seeds", type=int, default=3, help="networks of each kind (default: %(default)s)")
        paper.add_argument("--jobs", type=int, help="runs side by side (default: one a core)")
        module.add(paper)


def run(args: argparse.Namespace) -> None:
    integer("--seeds", args.seeds, 1)
    if args.jobs is None:
        from joblib import cpu_count  # which knows of limits

        args.jobs = cpu_count()
    integer("--jobs", args.jobs, 1)
    PAPERS[args.paper].run(args)
