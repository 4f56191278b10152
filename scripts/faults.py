"""Faults injected into long jobs, and what they cost: python scripts/faults.py [--kills 200] [--damages 50]

Each job is compared, byte for byte, with one that nothing happened to. A full disk and a read-only folder are mounted
(tmpfs), which takes root; without it these two are left out, and the table says so.

lost: files that were whole before the fault and are not after it. wrong: bytes that differ in the end.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

import fpfast
from fpfast import shards, train
from fpfast.data import draw
from fpfast.network import MLP
from fpfast.output import print_table
from fpfast.train import Recipe

SAMPLES, SIZE, STEPS = 6000, 100, 100
RECIPE = Recipe(steps=150, batch_size=64, learning_rate=1e-3)


class Outcome(NamedTuple):
    tries: int
    lost: int
    wrong: int
    message: str


def score() -> fpfast.Score:
    torch.manual_seed(0)
    net = MLP(2, [32, 32, 32], activation="tanh").requires_grad_(False)
    return fpfast.Score(net, fpfast.VP(), predicts="noise")


def write(folder: Path) -> shards.Written:
    return fpfast.sample_to_folder(score(), (SAMPLES, 2), folder, shard_samples=SIZE, steps=STEPS, seed=0)


def fit(path: Path) -> None:
    torch.manual_seed(0)
    learner = fpfast.Score(MLP(2, [16, 16], activation="tanh"), fpfast.VP(), predicts="noise")
    done = train.fit(learner, draw("blob", 1000, seed=0), RECIPE, checkpoint_file=path, resume=True, every=1)
    torch.save([p.detach() for p in done.score.module.parameters()], path.with_suffix(".weights"))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def killed(job: Callable[[], None], seconds: float) -> bool:
    """If kill -9 found the job, in a process of its own, still at work after so many seconds."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        try:
            job()
        finally:
            os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def kills_of_sampling(folder: Path, count: int, moments: random.Random) -> Outcome:
    write(folder / "whole")
    began = time.perf_counter()
    write(folder / "again")  # the first run of a process takes longer
    longest, whole = time.perf_counter() - began, files(folder / "whole")
    kills = lost = wrong = job = 0
    while kills < count:
        here, before = folder / f"job{job}", {}
        job += 1
        while kills < count and killed(lambda here=here: write(here), moments.uniform(0, longest / 3)):
            now = files(here) if here.exists() else {}
            kills, lost = kills + 1, lost + sum(now.get(name) != content for name, content in before.items())
            before = now
        wrong += bool(write(here).mended) or files(here) != whole
    return Outcome(kills, lost, wrong, f"none, in {job} jobs")


def kills_of_training(folder: Path, count: int, moments: random.Random) -> Outcome:
    fit(folder / "whole.pt")
    began = time.perf_counter()
    fit(folder / "again.pt")  # the first run of a process takes longer
    longest, whole = time.perf_counter() - began, torch.load(folder / "whole.weights", weights_only=True)
    kills = lost = wrong = job = 0
    while kills < count:
        path, before = folder / f"job{job}.pt", -1
        job += 1
        while kills < count and killed(lambda path=path: fit(path), moments.uniform(0, longest / 2)):
            now = torch.load(path, weights_only=True)["step"] if path.exists() else -1  # raises if it cannot be read
            kills, lost, before = kills + 1, lost + (now < before), now
        fit(path)
        found = torch.load(path.with_suffix(".weights"), weights_only=True)
        wrong += not all(map(torch.equal, found, whole))
    return Outcome(kills, lost, wrong, f"none, in {job} jobs")


def _flip(content: bytearray, chance: random.Random) -> bytearray:
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return content


DAMAGES: dict[str, Callable[[bytearray, random.Random], bytearray]] = {
    "a bit": _flip,
    "truncated": lambda content, chance: content[: chance.randrange(len(content))],
    "zeros": lambda content, chance: bytearray(len(content)),
    "longer": lambda content, chance: content + chance.randbytes(8),
    "noise": lambda content, chance: bytearray(chance.randbytes(len(content))),
}


def damaged(folder: Path, count: int, chance: random.Random) -> Outcome:
    write(folder)
    whole, lost, wrong, said = files(folder), 0, 0, ""
    for k in range(count):
        name = chance.choice(sorted(whole))
        kind = list(DAMAGES)[k % len(DAMAGES)]
        (folder / name).write_bytes(DAMAGES[kind](bytearray(whole[name]), chance))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = write(folder)
        said = said or str(caught[0].message)
        lost += found.made != SIZE
        wrong += files(folder) != whole
    return Outcome(count, lost, wrong, said)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def refused(job: Callable[[], object]) -> str:
    try:
        job()
    except (OSError, RuntimeError) as error:
        return str(error)
    raise AssertionError("expected to be refused")


def full_disk(folder: Path, whole: dict[str, bytes]) -> Outcome:
    with mounted(folder, "size=64k"):
        said = refused(lambda: write(folder / "job"))
        kept = files(folder / "job")
        subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
        found = write(folder / "job")
        lost = sum(content != whole[name] for name, content in kept.items()) + (found.made > SAMPLES - SIZE * len(kept))
        return Outcome(1, lost, int(files(folder / "job") != whole), said)


def read_only(folder: Path, whole: dict[str, bytes]) -> Outcome:
    with mounted(folder, "size=64m"):
        write(folder / "job")
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        said = refused(lambda: write(folder / "job"))
        return Outcome(1, int(files(folder / "job") != whole), 0, said)


def two_writers(folder: Path, whole: dict[str, bytes]) -> Outcome:
    """One is at work in a process of its own when the other begins."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        write(folder)
        os._exit(0)
    while not list(folder.glob("samples-*")):
        time.sleep(0.001)
    said = refused(lambda: write(folder))
    os.waitpid(child, 0)
    return Outcome(1, int(files(folder) != whole), 0, said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--damages", type=int, default=50)
    args = parser.parse_args()
    torch.set_num_threads(1)  # before there are others, so that children can be forked
    table = [["fault", "tries", "lost", "wrong", "message"]]

    def say(fault: str, found: Outcome) -> None:
        table.append([fault, *map(str, found[:3]), found.message])
        print(f"{fault}: {found}", flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder, chance = Path(name), random.Random(0)
        for part in ("sampling", "training", "damaged"):
            (folder / part).mkdir()
        say("kill -9 while sampling", kills_of_sampling(folder / "sampling", args.kills, chance))
        say("kill -9 while training", kills_of_training(folder / "training", args.kills, chance))
        say("damaged file", damaged(folder / "damaged", args.damages, chance))
        whole = files(folder / "sampling" / "whole")
        say("two writers", two_writers(folder / "two", whole))
        for fault, test in (("full disk", full_disk), ("read-only folder", read_only)):
            if os.geteuid() == 0:
                say(fault, test(folder / fault.replace(" ", "_"), whole))
            else:
                table.append([fault, "0", "", "", "left out: mounting takes root"])
    print()
    print_table(table)
    if any(cell not in ("0", "") for row in table[1:] for cell in row[2:4]):
        raise SystemExit("something was lost or wrong")


if __name__ == "__main__":
    main()
