"""Coverage-guided fuzzing of what takes text, files and programs: python scripts/fuzz.py TARGET [libFuzzer's options]

    specs     the parsers of --sde, --times and --activation, and the command line itself
    files     .npy, .npz, .pt, .safetensors and manifests, begun from whole ones
    engine    programs, actions and sizes for the fused engine, through the checks of the native module
    residual  the same for the residual engine

Needs ``pip install atheris``. A call may give a result, or an error of the kinds that a user is told of; whatever else
happens stops the run, and libFuzzer writes down the bytes that did it. For the last two let
``scripts/sanitizers.py fuzzer`` run this: it builds a module that counts its branches and finds wrong accesses.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fpfast"]):
    from fpfast import activation, cli, data, files, model, network, sde, shards, times

import numpy
import torch
from safetensors.torch import save

import fpfast
from fpfast import _native

REFUSED = (ValueError, TypeError, FileNotFoundError, MemoryError)
FOLDER = Path(tempfile.mkdtemp())
INT64 = 2**63 - 1


# ------------------------------------------------------------------------------------------------ texts


# To begin with: what is parsed, and its text.
SPECS = [
    *("svp:beta_max=10,beta_min=0.5", "sve:sigma_min=1e-3", "sou:theta=1,sigma=2,T=3", "asoftplus:100", "asine"),
    *(
        "t1:0.5:3,0.5:0.1:20",
        "t10:0:5",
        "c--noise 0.5 --solver heun",
        "c--sde ou --times karras",
        "c--seed 3 --hidden 8",
    ),
]


def specs(raw: bytes) -> None:
    which, text = raw[:1], raw[1:80].decode("utf8", "ignore")
    with contextlib.suppress(*REFUSED):
        if which == b"s":
            made = sde.parse(text)
            assert all(map(numpy.isfinite, (made.T, made.prior_std, *made.marginal(made.T))))
        elif which == b"t" and text.count(":") < 20:
            grid = times.parse(limited(text))
            assert bool(grid.isfinite().all()), text
        elif which == b"a":
            activation.activation(text)
        elif which == b"c":
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                # Names of files and numbers of steps are ours: what is looked for is in the texts.
                words = [word for word in text.split() if word.startswith("--") or ":" in word or word.isalpha()]
                with contextlib.suppress(SystemExit):
                    cli.main(["sample", "--net", "blob_w1", "--n", "2", "--out", str(FOLDER / "x.csv"), *words,
                              "--steps", "2", "--threads", "1"])  # fmt: skip


def limited(text: str) -> str:
    """With numbers of steps of at most four digits: that ten millions of them take their time is known."""
    pieces = (piece.split(":") for piece in text.split(","))
    return ",".join(
        ":".join([*piece[:2], piece[2][:4], *piece[3:]]) if len(piece) > 2 else ":".join(piece) for piece in pieces
    )


# ------------------------------------------------------------------------------------------------ files


def whole() -> list[tuple[str, bytes]]:
    x = numpy.arange(12, dtype="f4").reshape(6, 2)
    score = fpfast.Score(network.MLP(2, [4]), fpfast.VP(), "noise")
    made = []
    for name, write in (
        ("x.npy", lambda path: numpy.save(path, x)),
        ("x.npz", lambda path: numpy.savez_compressed(path, x=x)),
        ("x.pt", lambda path: torch.save(torch.from_numpy(x), path)),
        ("net.pt", lambda path: torch.save(score.net.state_dict(), path)),
        ("net.safetensors", lambda path: model.write(path, score)),
        (
            "samples.safetensors",
            lambda path: path.write_bytes(save({"samples": torch.from_numpy(x)}, {"fpfast": "{}"})),
        ),
    ):
        write(FOLDER / name)
        made.append((name, (FOLDER / name).read_bytes()))
    return [*made, ("manifest.json", json.dumps({"name": "x", "run": {}, "shards": []}).encode())]


WHOLE = whole()


def a_file(raw: bytes) -> None:
    given = atheris.FuzzedDataProvider(raw)
    name, content = WHOLE[given.ConsumeIntInRange(0, len(WHOLE) - 1)]
    changed = bytearray(content)
    for _ in range(given.ConsumeIntInRange(0, 6)):
        if changed:
            changed[given.ConsumeIntInRange(0, len(changed) - 1)] = given.ConsumeIntInRange(0, 255)
    if given.ConsumeBool():
        at = given.ConsumeIntInRange(0, len(changed))
        changed[at : at + given.ConsumeIntInRange(0, 64)] = given.ConsumeBytes(64)
    path = FOLDER / name
    path.write_bytes(changed)
    with contextlib.suppress(*REFUSED):
        if name.startswith("x."):
            assert bool(data.load(path).isfinite().all())
        elif name == "manifest.json":
            list(shards.read(FOLDER))
        elif name == "samples.safetensors":
            files.check_header(path)
            network.load_tensors(path)
        elif name == "net.safetensors":
            model.load(path)
        else:
            network.load_mlp(path, [4])


# ------------------------------------------------------------------------------------------------ programs


class Numbers:
    """Numbers that mostly fit together: small ones, and now and then any."""

    def __init__(self, raw: bytes) -> None:
        self.given = atheris.FuzzedDataProvider(raw)

    def small(self, most: int, least: int = 0) -> int:
        return self.given.ConsumeIntInRange(least, most)

    def any(self, most: int) -> int:
        most = max(most, 0)
        kind = self.given.ConsumeIntInRange(0, 15)
        return self.given.ConsumeIntInRange(-INT64 - 1, INT64) if kind == 0 else self.small(most, -3 if kind < 4 else 0)

    def table(self, rows: int, most: list[int]) -> torch.Tensor:
        return torch.tensor([[self.any(one) for one in most] for _ in range(rows)], dtype=torch.int64).reshape(
            rows, len(most)
        )


def engine(raw: bytes) -> None:
    draw = Numbers(raw)
    dtype = torch.float64 if draw.small(1) else torch.float32
    samples, dimension, rows = draw.small(70), draw.small(9), draw.small(40, 1)
    weights, width, bias_rows = draw.small(200), draw.small(40), draw.small(3)
    steps, stages = draw.small(3), draw.small(3)
    room = [rows - 1] * 4
    program = draw.table(draw.small(4), [5, *room, rows - 1, 9, 9, weights, width, 5])
    actions = draw.table(draw.small(4), [1, stages - 1, rows - 1, rows - 1, 4, *room, 9])
    evaluations = draw.table(steps, [bias_rows - 1] * stages)
    arrays = {
        "program": program, "weights": torch.randn(weights, dtype=dtype),
        "biases": torch.randn(bias_rows, width, dtype=dtype),
        "actions": actions, "evaluations": evaluations, "coef": torch.randn(steps, stages, 5, dtype=dtype),
    }  # fmt: skip
    seeds, broken = torch.zeros(samples, dtype=torch.int64), torch.zeros(samples, dtype=torch.int64)
    ports = [[(torch.randn(samples, size, dtype=dtype), draw.any(rows - 1)) for size in (dimension, draw.small(9))]
             for _ in range(2)]  # fmt: skip
    arguments = {
        **{name: array.data_ptr() for name, array in arrays.items()},
        "steps": steps, "dimension": dimension, "rows": rows, "float64": dtype == torch.float64,
        "instructions": len(program), "weight_count": weights, "bias_rows": bias_rows, "bias_width": width,
        "count": len(actions), "first_step": draw.any(steps), "last_step": draw.any(steps), "stages": stages,
        "samples": samples, "seeds": seeds.data_ptr(), "seeds_per_sample": bool(draw.small(1)),
        "first_sample": draw.any(9),
    }  # fmt: skip
    watched = draw.small(1) and broken.data_ptr()
    level = _native.levels()[draw.small(len(_native.levels()) - 1)]
    places = [[(tensor.data_ptr(), row, tensor.shape[1]) for tensor, row in port] for port in ports]
    with contextlib.suppress(*REFUSED):
        _native.cpu_trajectory(level, arguments, *places, watched, bool(draw.small(1)), draw.any(3), draw.any(3))


def residual(raw: bytes) -> None:
    draw = Numbers(raw)
    dtype = torch.float64 if draw.small(1) else torch.float32
    samples, d, form = draw.small(40), draw.small(5, 1), draw.small(3)
    jets, adjoints, slopes, weights, gradients = (draw.small(60) for _ in range(5))
    features, probes = draw.small(3), draw.small(1)
    directions = draw.small(4, 1) if probes else d
    kinds = [
        4,
        8,
        8,
        jets,
        jets,
        jets,
        adjoints,
        adjoints,
        adjoints,
        1,
        1,
        weights,
        weights,
        weights,
        gradients,
        gradients,
        slopes,
        5,
    ]
    program = draw.table(draw.small(4), kinds)

    def numbers(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(*shape, dtype=of)

    optional = {
        "value": numbers(samples, d), "upstream": numbers(samples, d), "weight": numbers(samples),
        "loss": numbers(1, of=torch.float64), "gradient": numbers(gradients, of=torch.float64),
        "feature_adjoints": numbers(samples, features), "rate_adjoints": numbers(samples, features),
    }  # fmt: skip
    held = {
        "program_here": program, "weights": numbers(weights), "x": numbers(samples, d),
        "feature_values": numbers(samples, features), "feature_rates": numbers(samples, features),
        "coef": numbers(6, samples),
        "probes": numbers(directions, samples, d) if probes else None,
        **{name: tensor if draw.small(1) else None for name, tensor in optional.items()},
    }  # fmt: skip
    arguments = {
        **{name: 0 if tensor is None else tensor.data_ptr() for name, tensor in held.items()},
        "float64": dtype == torch.float64, "form": form, "instructions": len(program), "weight_count": weights,
        "dimension": d, "directions": directions, "share": 1.0, "scale": 0.5, "samples": samples,
        "output": draw.any(jets), "outputs": d if form == 3 else 1, "output_adjoint": draw.any(adjoints),
        "features": draw.any(jets), "feature_count": features, "features_adjoint": draw.any(adjoints),
        "jets": jets, "adjoints": adjoints, "slopes": slopes, "gradient_count": gradients,
    }  # fmt: skip
    level = _native.levels()[draw.small(len(_native.levels()) - 1)]
    with contextlib.suppress(*REFUSED):
        _native.cpu_residual(level, arguments, draw.any(3))


TARGETS = {"specs": specs, "files": a_file, "engine": engine, "residual": residual}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        sys.exit(__doc__)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    target = TARGETS[sys.argv.pop(1)]
    for number, text in enumerate(SPECS if target is specs else ()):
        (FOLDER / "corpus").mkdir(exist_ok=True)
        (FOLDER / f"corpus/{number}").write_text(text)
        sys.argv += [str(FOLDER / "corpus")] * (number == 0)
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
