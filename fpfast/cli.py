"""The command ``fpfast``: train, sample, gap, likelihood, paper, doctor, info."""

from __future__ import annotations

import argparse
import math
import sys
import time
import zipfile
from pathlib import Path
from typing import Any, cast

import numpy
import torch

import fpfast
import fpfast.doctor
from fpfast import cli_bench, cli_paper, cli_train, model, output, times
from fpfast import sde as sdes
from fpfast.backends import BACKENDS
from fpfast.data import DATA, draw, load
from fpfast.divergence import ESTIMATORS
from fpfast.embedded import DATA as EMBEDDED_DATA
from fpfast.embedded import EMBEDDED, embedded
from fpfast.errors import bad, integer
from fpfast.gap import Gap, gap
from fpfast.likelihood import ODE_SOLVERS, bits_per_dimension, dequantise, log_likelihood
from fpfast.network import load_mlp, load_tensors
from fpfast.processes import join, leave
from fpfast.sample import sample
from fpfast.score import PREDICTIONS, Score
from fpfast.shards import sample_to_folder
from fpfast.solvers import SOLVERS
from fpfast.watch import ON_NONFINITE

BATCH = 2048  # activations of a small network then stay in the second-level cache


SHAPE_OPTIONS = ("hidden", "activation", "potential", "time_first", "predicts", "sde")


def load_score(net: str, args: argparse.Namespace) -> Score:
    """The score of an embedded network, of a file of ``fpfast train``, or of one whose shape the other options give."""
    if net in EMBEDDED or model.description(net) is not None:
        given = [name for name in SHAPE_OPTIONS if getattr(args, name) not in (None, False)]
        if given:
            name, value = given[0].replace("_", "-"), getattr(args, given[0])
            raise bad(f"--{name}", f"nothing, as it is known what {net} is", value)
        return embedded(net) if net in EMBEDDED else model.load(net)
    if args.potential and args.predicts is not None:
        raise bad("--predicts", "nothing beside --potential", args.predicts)
    if args.hidden is None:
        raise bad("--hidden", f"the widths of the hidden layers of {net}, as in --hidden 80 80 80", "nothing")
    module = load_mlp(
        net, args.hidden, activation=args.activation or "silu", potential=args.potential, time_first=args.time_first
    )
    predicts = "potential" if args.potential else args.predicts or "score"
    return Score(module, sdes.parse(args.sde or "ou", "--sde"), predicts=predicts)


def sample_shape(score: Score) -> tuple[int, ...]:
    """Of one sample, as the network takes it."""
    options = cast(Any, score.net).options
    return tuple(options.get("shape") or (options["dimension"],))


def run_options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "solver": args.solver,
        "steps": args.steps,
        "times": args.times,
        "seed": args.seed,
        "backend": args.backend,
        "batch_size": args.batch_size,
        "progress": sys.stderr.isatty(),
    }


COLUMNS = {
    "w2_grid": "W2^2 grid",
    "w2_sliced": "W2^2 sliced",
    "total_variation": "total variation",
    "density_l2": "L2 of densities",
}


def gap_rows(results: dict[str, Gap]) -> list[list[str]]:
    rows = [["network", "pair", *COLUMNS.values()]]
    for name, result in results.items():
        for pair, measures in result.table.items():
            cells = [f"{measures[metric].value:.5f} ± {measures[metric].error:.5f}" for metric in COLUMNS]
            rows.append([name, pair, *cells])
    return rows


def gap_json(results: dict[str, Gap], args: argparse.Namespace) -> dict[str, Any]:
    return {
        "fpfast": fpfast.__version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "options": {key: value for key, value in vars(args).items() if key not in ("run", "out")},
        "networks": {
            name: {
                "n": result.n,
                "evaluations": result.evaluations,
                "seconds": result.seconds,
                "outside": result.outside,
                "distances": {
                    pair: {metric: estimate._asdict() for metric, estimate in measures.items()}
                    for pair, measures in result.table.items()
                },
            }
            for name, result in results.items()
        },
    }


def gap_csv(results: dict[str, Gap]) -> list[list[Any]]:
    rows: list[list[Any]] = [["network", "pair", "metric", "value", "error"]]
    for name, result in results.items():
        for pair, measures in result.table.items():
            rows += [[name, pair, metric, estimate.value, estimate.error] for metric, estimate in measures.items()]
    return rows


def gap_npz(results: dict[str, Gap]) -> dict[str, numpy.ndarray]:
    return {f"{name}/{part}": h.weights for name, result in results.items() for part, h in result.histograms.items()}


def gap_picture(results: dict[str, Gap]) -> Any:
    from fpfast import plot

    return plot.gaps(results)


GAP_OUT = {
    ".png": lambda results, args: output.as_png(gap_picture(results)),
    ".json": lambda results, args: output.as_json(gap_json(results, args)),
    ".csv": lambda results, args: output.as_csv(gap_csv(results)),
    ".npz": lambda results, args: output.as_npz(gap_npz(results)),
}


def run_gap(args: argparse.Namespace) -> None:
    paths = output.check(args.out, GAP_OUT)
    names = list(EMBEDDED) if args.net is None else [args.net]
    data = args.data or (EMBEDDED_DATA if names[0] in EMBEDDED else None)
    if data is None:
        raise bad("--data", "the data set that the network was trained on: " + ", ".join(DATA), "nothing")
    results = {}
    for name in names:
        label = Path(name).stem
        score = load_score(name, args)
        if sample_shape(score) != (2,):
            raise bad("--net", "a network for samples of shape (2,), to compare with the data", sample_shape(score))
        print(f"{label}: {EMBEDDED.get(name, 'sampling the ODE and the SDE')} ...", file=sys.stderr)
        results[label] = gap(score, data, n=args.n, noise=args.noise, **run_options(args))
    output.print_table(gap_rows(results))
    for label, result in results.items():
        outside = ", ".join(f"{name} {share:.2%}" for name, share in result.outside.items())
        print(f"{label}: {result.n} samples each, {result.evaluations} network evaluations, "
              f"{result.seconds:.1f} s of sampling; outside the grid: {outside}")  # fmt: skip
    for path in paths:
        output.write(path, GAP_OUT[path.suffix](results, args))
        print(f"wrote {path}")


def sample_picture(x: torch.Tensor) -> Any:
    from fpfast import plot

    return plot.samples(x)


SAMPLE_OUT = {
    ".png": lambda x, info: output.as_png(sample_picture(x)),
    ".json": lambda x, info: output.as_json({**info._asdict(), "samples": x.tolist()}),
    ".csv": lambda x, info: output.as_csv(x.flatten(1).tolist()),
    ".npz": lambda x, info: output.as_npz({"samples": x.numpy()}),
}


def run_sample(args: argparse.Namespace) -> None:
    if len(args.out) == 1 and (Path(args.out[0]).is_dir() or not Path(args.out[0]).suffix):
        run_sample_to_folder(args)
        return
    if args.shard is not None:
        raise bad("--shard", "nothing beside files: it is for a folder", args.shard)
    paths = output.check(args.out, SAMPLE_OUT)
    score = load_score(args.net, args)
    processes = join()
    share = processes.share(integer("--n", args.n, processes.count))
    part, info = sample(
        score,
        (len(share), *sample_shape(score)),
        noise=args.noise,
        on_nonfinite=args.on_nonfinite,
        first_sample=args.first_sample + share.start,
        return_info=True,
        **run_options(args),
    )
    nonfinite = torch.tensor([info.nonfinite])
    processes.add([nonfinite])
    x = processes.gather(part, args.n)
    if x is None:
        return
    info = info._replace(nonfinite=int(nonfinite))
    print(f"{args.n} samples in {info.seconds:.2f} s, {info.evaluations} network evaluations, "
          f"backend {info.backend}, seed {info.seed}, {info.nonfinite} not finite")  # fmt: skip
    print(f"mean {_brief(x.flatten(1).mean(0))}, std {_brief(x.flatten(1).std(0, correction=0))}")
    for path in paths:
        output.write(path, SAMPLE_OUT[path.suffix](x, info))
        print(f"wrote {path}")


def run_sample_to_folder(args: argparse.Namespace) -> None:
    score, (folder,), processes, began = load_score(args.net, args), args.out, join(), time.perf_counter()
    found = sample_to_folder(
        score,
        (integer("--n", args.n, 1), *sample_shape(score)),
        folder,
        first_sample=args.first_sample,
        shard_samples=args.shard,
        processes=processes,
        noise=args.noise,
        on_nonfinite=args.on_nonfinite,
        **run_options(args),
    )
    if processes.first:
        seconds, here = time.perf_counter() - began, " by the first process" if processes.count > 1 else ""
        print(f"{args.n} samples in {len(found.shards)} files in {folder}: {found.made} made now{here} "
              f"in {seconds:.2f} s, seed {args.seed}, {found.nonfinite} not finite")  # fmt: skip


def _brief(values: torch.Tensor) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values[:8].tolist()) + (", ..." if len(values) > 8 else "") + ")"


LIKELIHOOD_OPTIONS = ("solver", "steps", "times", "estimator", "probes", "seed", "batch_size")


def load_samples(data: str, n: int, seed: int) -> torch.Tensor:
    """n samples of a named data set, or the first n of those in a file, (n, ...)."""
    n = integer("--n", n, 2)
    x = draw(data, n, seed=seed) if data in DATA else load(data)[:n]
    if len(x) < 2:
        raise bad("--data", "two samples or more", len(x))
    return x


def run_likelihood(args: argparse.Namespace) -> None:
    score = load_score(args.net, args)
    x, shape = load_samples(args.data, args.n, args.seed), sample_shape(score)
    if x.shape[1:].numel() != math.prod(shape):
        raise bad("--data", f"samples of shape {shape}, as the network takes", tuple(x.shape[1:]))
    if args.levels is None and (args.low, args.high) != (-1.0, 1.0):
        raise bad("--low, --high", "--levels too, as they are about whole numbers", (args.low, args.high))
    scale = {"levels": 1 if args.levels is None else args.levels, "low": args.low, "high": args.high}
    x = x.reshape(len(x), *shape)
    x = x if args.levels is None else dequantise(x, seed=args.seed, **scale)
    options = {name: getattr(args, name) for name in LIKELIHOOD_OPTIONS}
    found = log_likelihood(score, x, progress=sys.stderr.isatty(), **options)
    how = f"{args.solver}, {found.evaluations} evaluations, {args.estimator} divergence, seed {args.seed}"
    print(f"{len(x)} samples: {how}")
    print(f"log-likelihood: {_mean(found.value)} nats")
    if args.levels is not None:
        print(f"bits per dimension: {_mean(bits_per_dimension(found, **scale).value)}")


def _mean(values: torch.Tensor) -> str:
    """Over samples, with its standard error, which the probes' noise is a part of."""
    return f"{values.mean():.4f} ± {values.std() / len(values) ** 0.5:.4f}"


def run_doctor(args: argparse.Namespace) -> None:
    print("\n".join(fpfast.doctor.report()))


def load_arrays(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file of weights, or the arrays of an .npz file."""
    if path.suffix != ".npz":
        return load_tensors(path)
    try:
        with numpy.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise bad("file", "arrays of numbers", f"{str(path)!r}: {error}") from error


def run_info(args: argparse.Namespace) -> None:
    tensors = load_arrays(Path(args.file))
    rows = [["tensor", "shape", "dtype", "min", "max"]]
    for name, value in tensors.items():
        ends = [f"{float(value.min()):.4g}", f"{float(value.max()):.4g}"] if value.numel() else ["", ""]
        rows.append([name, "x".join(map(str, value.shape)) or "scalar", str(value.dtype).removeprefix("torch."), *ends])
    output.print_table(rows)
    print(f"{len(tensors)} tensors, {sum(value.numel() for value in tensors.values())} values")


def _network(parser: argparse.ArgumentParser) -> None:
    net = parser.add_argument_group("network")
    net.add_argument("--hidden", type=int, nargs="+", metavar="WIDTH", help="widths of the hidden layers of a file")
    net.add_argument("--activation", help="such as tanh, silu, softplus:100 (default: silu)")
    net.add_argument("--potential", action="store_true", help="the network is phi(x, t), the score its gradient")
    net.add_argument("--time-first", action="store_true", help="the network's input is (t, x), not (x, t)")
    net.add_argument("--predicts", choices=PREDICTIONS, help="(default: score)")
    net.add_argument("--sde", help="such as ou, vp, vp:beta_max=10 (default: ou)")


def _common(parser: argparse.ArgumentParser) -> None:
    _network(parser)
    run = parser.add_argument_group("sampling")
    run.add_argument("--solver", default="euler_maruyama", choices=SOLVERS, help="(default: %(default)s)")
    run.add_argument("--steps", type=int, default=250, help="of a named time grid (default: %(default)s)")
    run.add_argument("--times", help=f"{', '.join(times.TIMES)}, or START:STOP:STEPS,... (default: the SDE's)")
    run.add_argument("--noise", type=float, default=1.0, help="noise level of the SDE (default: %(default)s)")
    _batches(run)
    run.add_argument("--backend", default="auto", choices=["auto", *BACKENDS], help="(default: %(default)s)")


def _batches(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    group.add_argument("--batch-size", type=int, default=BATCH, help="samples at a time (default: %(default)s)")
    group.add_argument("--threads", type=int, help="(default: torch's)")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="fpfast", description=fpfast.__doc__)
    top.add_argument("--version", action="version", version=fpfast.__version__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    one = commands.add_parser("gap", help="distances between ODE samples, SDE samples and data, with a picture")
    one.set_defaults(run=run_gap)
    one.add_argument("--net", metavar="FILE", help=f"weights, or one of {', '.join(EMBEDDED)} (default: both)")
    one.add_argument("--data", choices=DATA, help="the truth (default: blob for the embedded networks)")
    one.add_argument("--n", "--samples", type=int, default=30_000, help="samples of each (default: %(default)s)")
    one.add_argument("--out", nargs="+", default=["fpfast_gap.png", "fpfast_gap.json"], metavar="FILE",
                     help=f"files ending in {', '.join(GAP_OUT)} (default: %(default)s)")  # fmt: skip
    _common(one)

    cli_train.add(commands)
    cli_paper.add(commands)
    cli_bench.add(commands)

    one = commands.add_parser("sample", help="samples of a network")
    one.set_defaults(run=run_sample)
    one.add_argument("--net", metavar="FILE", default="blob_w1", help="weights, or an embedded network's name")
    one.add_argument("--n", "--samples", type=int, default=10_000,
                     help="samples; torchrun takes --n for its own (default: %(default)s)")  # fmt: skip
    one.add_argument("--first-sample", type=int, default=0, help="number of the first one (default: %(default)s)")
    one.add_argument("--out", nargs="+", default=[], metavar="PATH",
                     help=f"files ending in {', '.join(SAMPLE_OUT)}, or a folder: a run of any length, which goes on "
                     "where it was stopped")  # fmt: skip
    one.add_argument("--on-nonfinite", default="ignore", choices=ON_NONFINITE,
                     help="what to do with samples that become NaN or infinite (default: %(default)s)")  # fmt: skip
    one.add_argument("--shard", type=int, metavar="N", help="samples a file of the folder (default: about 64 MiB)")
    _common(one)

    one = commands.add_parser("likelihood", help="mean log-likelihood of data under a network, bits per dimension")
    one.set_defaults(run=run_likelihood)
    one.add_argument("--net", metavar="FILE", default="blob_w1", help="weights, or an embedded network's name")
    one.add_argument("--data", metavar="DATA", default=EMBEDDED_DATA,
                     help=f"one of {', '.join(DATA)}, or a file of one array (default: %(default)s)")  # fmt: skip
    one.add_argument("--n", "--samples", type=int, default=1000, help="samples (default: %(default)s)")
    one.add_argument("--levels", type=int, help="data are whole numbers below this: dequantise, bits per dimension")
    one.add_argument("--low", type=float, default=-1.0, help="where levels begin for the network (default: -1)")
    one.add_argument("--high", type=float, default=1.0, help="where they end (default: 1)")
    _network(one)
    run = one.add_argument_group("integration")
    run.add_argument("--solver", default="rk4", choices=ODE_SOLVERS, help="(default: %(default)s)")
    run.add_argument("--steps", type=int, default=50, help="of a named time grid (default: %(default)s)")
    run.add_argument("--times", default="asinh", help=f"{', '.join(times.TIMES)}, or as sample has it (default: asinh)")
    run.add_argument("--estimator", default="exact", choices=ESTIMATORS, help="of divergences (default: %(default)s)")
    run.add_argument("--probes", type=int, default=1, help="of each sample (default: %(default)s)")
    _batches(run)

    one = commands.add_parser("doctor", help="what is installed, what is missing and how to get it")
    one.set_defaults(run=run_doctor)

    one = commands.add_parser("info", help="the tensors of a file")
    one.set_defaults(run=run_info)
    one.add_argument("file", help="a .safetensors, .pt, .pth or .npz file")
    return top


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    began = time.perf_counter()
    try:
        if (threads := getattr(args, "threads", None)) is not None:
            torch.set_num_threads(integer("--threads", threads, 1, 4096))
        args.run(args)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, OSError, ImportError) as error:
        print(f"fpfast: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"fpfast: interrupted after {time.perf_counter() - began:.0f} s", file=sys.stderr)
        return 130
    finally:
        leave()
    return 0
