"""The command ``fpfast train``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import typing
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fpfast import data, fused, model, output, train
from fpfast.backends import usable
from fpfast.batches import Draw
from fpfast.convnet import ConvNet
from fpfast.errors import bad, integer, real
from fpfast.network import MLP
from fpfast.processes import join
from fpfast.score import PREDICTIONS, Score
from fpfast.sde import SDE, parse

DRAWN = 2048  # held-out samples of a data set that is drawn


def add(commands: Any) -> None:
    """The command's parser. The recipe's fields are options by their names, with its defaults."""
    one = commands.add_parser("train", help="a network's training, with a Fokker-Planck regulariser or without")
    one.set_defaults(run=run)
    one.add_argument("--data", required=True, metavar="DATA", help=f"{', '.join(data.DATA)}, or a .npy, .npz, .pt file")
    one.add_argument("--out", default="fpfast_model.safetensors", metavar="FILE", help="(default: %(default)s)")
    one.add_argument(
        "--held-out", type=float, default=0.1, help="share of a file's samples, or of the digits (default: 0.1)"
    )
    one.add_argument("--checkpoint", metavar="FILE", help="a .pt file to go on from, should the run be stopped")
    one.add_argument("--resume", action="store_true", help="go on from the checkpoint, if it is there")
    one.add_argument("--every", type=int, default=500, help="steps between validations and checkpoints (default: 500)")
    one.add_argument("--log-dir", metavar="FOLDER", help="for TensorBoard")
    one.add_argument("--device", default="cpu", help="(default: %(default)s)")
    one.add_argument("--threads", type=int, help="(default: torch's)")
    net = one.add_argument_group("network", "a perceptron for data of shape (N, d), a convolutional one for images")
    net.add_argument("--hidden", type=int, nargs="+", metavar="WIDTH", help="of a perceptron (default: 128 128 128)")
    net.add_argument("--activation", help="of a perceptron (default: silu)")
    net.add_argument("--potential", action="store_true", help="a perceptron phi(x, t), the score its gradient")
    net.add_argument("--width", type=int, help="channels of a convolutional network (default: 32)")
    net.add_argument("--predicts", choices=PREDICTIONS, help="(default: noise)")
    net.add_argument("--sde", default="vp", help="such as ou, vp, vp:beta_max=10 (default: %(default)s)")
    recipe = one.add_argument_group("recipe", "see fpfast.train.Recipe")
    for field, kind in _fields():
        flag, default = "--" + field.name.replace("_", "-"), field.default
        if kind is bool:
            recipe.add_argument(flag, action=argparse.BooleanOptionalAction, default=default)
        else:
            shown = "none" if default is None else "%(default)s"
            recipe.add_argument(flag, type=kind, default=default, help=f"(default: {shown})")


def _fields() -> list[tuple[dataclasses.Field[Any], type]]:
    """The recipe's fields, and the type of each (of those that may be None, the other one)."""
    hints = typing.get_type_hints(train.Recipe)
    kinds = {name: next(kind for kind in typing.get_args(hint) or (hint,)) for name, hint in hints.items()}
    return [(field, kinds[field.name]) for field in dataclasses.fields(train.Recipe)]


def _data(args: argparse.Namespace) -> tuple[Tensor | Draw, Tensor]:
    """What is trained on, and what is held out."""
    if not 0 < real("--held-out", args.held_out, "a share in (0, 1)") < 1:
        raise bad("--held-out", "a share in (0, 1)", args.held_out)
    if args.data in data.DATA and args.data != "digits":
        return data.DATA[args.data], data.draw(args.data, DRAWN, seed=args.seed + 1)
    x = data.digit_images() if args.data == "digits" else data.load(args.data)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    held = min(max(1, round(args.held_out * len(x))), len(x) - 1)
    if held < 1:
        raise bad("data", "two samples or more", f"{len(x)} in {args.data!r}")
    return x[held:], x[:held]


def _score(args: argparse.Namespace, shape: torch.Size, sde: SDE) -> Score:
    """An untrained score for samples of a shape; the weights follow from the seed."""
    unfit = {1: ("width",), 3: ("hidden", "activation", "potential")}.get(len(shape))
    if unfit is None:
        raise bad("data", "samples of shape (d,) or (C, H, W)", tuple(shape))
    for name in unfit:
        if getattr(args, name) not in (None, False):
            raise bad(f"--{name}", f"nothing for samples of shape {tuple(shape)}", getattr(args, name))
    if args.potential and args.predicts not in (None, "potential"):
        raise bad("--predicts", "nothing beside --potential", args.predicts)
    if args.predicts == "potential" and not args.potential:
        raise bad("--predicts", "--potential in its place", args.predicts)
    torch.manual_seed(args.seed)
    if len(shape) == 3:
        if shape[1] % 2 or shape[2] % 2:
            raise bad("--data", "images of even height and width", tuple(shape))
        width = integer("--width", 32 if args.width is None else args.width, 8)
        net: nn.Module = ConvNet(cast(Any, tuple(shape)), width=width, time_scale=sde.T)
    else:
        hidden, activation = args.hidden or [128, 128, 128], args.activation or "silu"
        net = MLP(shape[0], hidden, activation=activation, potential=args.potential)
    net = net.to(args.device)
    predicts = "potential" if args.potential else args.predicts or "noise"
    return Score(fused.compile(net, shape[0]) if isinstance(net, MLP) else net, sde, predicts)


def run(args: argparse.Namespace) -> None:
    out = Path(args.out)
    if out.suffix != ".safetensors" or not out.parent.is_dir():
        raise bad("--out", "a name that ends in .safetensors, in a folder that exists", repr(args.out))
    recipe = train.Recipe(**{field.name: getattr(args, field.name) for field, _ in _fields()})
    usable("--device", args.device)
    processes = join(args.device)
    args.device = processes.device
    samples, held_out = _data(args)
    score = _score(args, held_out.shape[1:], parse(args.sde, "--sde"))
    fit = train.fit(
        score,
        samples,
        recipe,
        validation=held_out,
        every=args.every,
        checkpoint_file=args.checkpoint,
        resume=args.resume,
        log_dir=args.log_dir,
        progress=sys.stderr.isatty(),
    )
    if not processes.first:
        return
    rows = [["step", "denoising loss", "regulariser", "held-out loss"]]
    for record in fit.history[:: max(1, len(fit.history) // 10)] + fit.history[-1:]:
        row = [str(record.step), *(f"{value:.5g}" for value in record[1:] if value is not None)]
        if row != rows[-1]:
            rows.append(row)
    output.print_table(rows)
    model.write(out, fit.score)
    print(f"wrote {out}")
