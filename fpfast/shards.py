"""Runs that are too long for one sitting or one file: samples in a folder, a file for each part of them.

A file is written under another name, flushed to the disk and put in its place, so it is there as a whole or not at all.
Samples are numbered and their noise is made from their numbers: a part that is missing or damaged is made again with
the same bits, and a run that was killed goes on where it stopped.

    manifest.json                what run this is: everything that its bits depend on, and versions
    samples-000000000000.safetensors   "samples" from that number on, and beside them a record with a SHA-256 of both
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import IO, Any, NamedTuple

import filelock
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from fpfast import output
from fpfast.backends import BACKENDS
from fpfast.errors import as_path, bad, flag, integer, sizes
from fpfast.processes import Processes
from fpfast.sample import Bar, sample, settled
from fpfast.score import Score
from fpfast.watch import ON_NONFINITE

FORMAT = 1
SHARD_BYTES = 1 << 26
MANIFEST, LOCK, PATTERN = "manifest.json", ".lock", "samples-*.safetensors"
ALONE = Processes()
# Of fpfast.sample, what a run in parts has no use for.
REFUSED = ("x", "callback", "callback_steps", "return_info")


class Shard(NamedTuple):
    """One file of a run."""

    file: str
    first: int  # number of its first sample
    samples: int
    nonfinite: int  # samples that hold NaN or infinity, or were frozen
    sha256: str


class Written(NamedTuple):
    """What :func:`sample_to_folder` has done."""

    shards: list[Shard]
    made: int  # samples that were not there already
    mended: list[str]  # files that were there and were made again, each with the reason
    nonfinite: int


def sample_to_folder(
    score: Score,
    shape: tuple[int, ...],
    folder: str | Path,
    *,
    seed: int = 0,
    first_sample: int = 0,
    shard_samples: int | None = None,
    progress: bool = False,
    processes: Processes = ALONE,
    **options: Any,
) -> Written:
    """Samples as :func:`fpfast.sample` does, into files of a folder; called again it goes on, or mends what is damaged.

    The samples are those of ``fpfast.sample(score, shape, seed=seed, first_sample=first_sample, **options)``, bit for
    bit (as far as the network gives the same bits for other batches). Memory is that of one file. One run at a time
    can write to a folder; what is in a file is checked by its SHA-256 before it counts as done.

    Args:
        score, shape, seed, first_sample: as for :func:`fpfast.sample`; the seed is an integer.
        folder: is made if it is not there. Of one run only: another one's is refused, with what differs.
        shard_samples: samples a file; default: about 64 MiB.
        progress: a progress bar on stderr.
        processes: those that share the run (see fpfast/processes.py), a part of the files each.
        options: of :func:`fpfast.sample`, but not "x", "callback", "callback_steps" and "return_info".

    Raises:
        ValueError: an argument is out of range, or the folder is another run's.
        RuntimeError: another process is writing to the folder.
        OSError: the folder cannot be written, or the disk is full; what was done stays done.
        FloatingPointError: as :func:`fpfast.sample`.

    Warns with RuntimeWarning of files that were made again, and when samples hold NaN or infinity.
    """
    shape = sizes("shape", shape, 1)
    for name in REFUSED:
        if name in options:
            raise bad(name, "nothing: samples go to files", repr(options[name]))
    seed, progress = integer("seed", seed, 0, 2**64 - 1), flag("progress", progress)
    first_sample = integer("first_sample", first_sample, 0, 2**48 - shape[0])
    described = _described(score, options)
    bytes_each = max(1, torch.Size(shape[1:]).numel()) * options.get("dtype", torch.float32).itemsize
    size = max(1, SHARD_BYTES // bytes_each) if shard_samples is None else integer("shard_samples", shard_samples, 1)
    folder = as_path("folder", folder)
    if folder.exists() and not folder.is_dir():
        raise bad("folder", "a folder, or a name that is free", repr(str(folder)))
    run = _named({"shape": list(shape), "seed": seed, "first_sample": first_sample, "shard_samples": size, **described})
    starts = range(0, shape[0], size)
    mended: list[str] = []
    made = 0
    with _alone(folder) if processes.first else contextlib.nullcontext():
        if processes.first:
            _claim(folder, run)
        processes.wait()
        mine = [starts[k] for k in processes.share(len(starts))]
        with Bar(total=len(mine), desc="sampling", unit="file", disable=not progress) as bar:
            for start in mine:
                path, count = _path(folder, first_sample + start), min(size, shape[0] - start)
                found = _read(path, run, first_sample + start, (count, *shape[1:]))
                if isinstance(found, str):
                    if path.exists():
                        mended.append(f"{path.name}: {found}")
                    try:
                        _make(path, run, score, (count, *shape[1:]), first_sample + start, seed, options)
                    except FloatingPointError as error:
                        raise FloatingPointError(f"{path.name}: {error}") from error
                    except OSError as error:
                        said = f"{error.strerror} (what was done stays; call again to go on)"
                        raise OSError(error.errno, said, str(path)) from error
                    made += count
                bar.update()
        processes.wait()
        shards = [_record(_path(folder, first_sample + start)) for start in starts]
        if processes.first:
            output.write(folder / MANIFEST, output.as_json({**run, "complete": True, "shards": _plain(shards)}))
    if mended:
        warnings.warn(f"made again: {'; '.join(mended)}", RuntimeWarning, stacklevel=2)
    nonfinite = sum(shard.nonfinite for shard in shards)
    if nonfinite:
        said = ON_NONFINITE[options.get("on_nonfinite", "ignore")]
        warnings.warn(f"{nonfinite} of {shape[0]} samples {said}", RuntimeWarning, stacklevel=2)
    return Written(shards, made, mended, nonfinite)


def read(folder: str | Path) -> Iterator[Tensor]:
    """The samples of a folder that is complete, a file at a time, each checked against its SHA-256.

    Raises ValueError where files are missing or damaged: ``sample_to_folder`` makes these again.
    """
    folder = as_path("folder", folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if not manifest["complete"]:
            raise bad("folder", "a run that is complete", repr(str(folder)))
        shards = [
            Shard(str(file), int(first), int(samples), int(nonfinite), str(sha256))
            for file, first, samples, nonfinite, sha256 in (shard.values() for shard in manifest["shards"])
        ]
        shape = sizes("shape", manifest["run"]["shape"], 1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise bad("folder", f"a {MANIFEST} of a complete run", f"{str(folder)!r}: {error}") from error
    for shard in shards:
        found = _read(folder / shard.file, manifest, shard.first, (shard.samples, *shape[1:]))
        if isinstance(found, str):
            raise bad("folder", "files as they were written", f"{shard.file}: {found}")
        yield found


def _plain(shards: list[Shard]) -> list[dict[str, Any]]:
    return [shard._asdict() for shard in shards]


def _path(folder: Path, first: int) -> Path:
    return folder / PATTERN.replace("*", f"{first:012d}")


# ------------------------------------------------------------------------------------------------ what run it is


def _named(run: dict[str, Any]) -> dict[str, Any]:
    """A run and its name, which is made from what its bits depend on."""
    return {"name": hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest(), "run": run}


def _described(score: Score, options: dict[str, Any]) -> dict[str, Any]:
    """What the bits of samples depend on beside their numbers and their seed, in plain values. Checks the options."""
    known, table = settled(score, options)
    digest = hashlib.sha256(repr(table.stages).encode())
    for numbers in (table.coef, table.times, table.evaluate):
        digest.update(numbers.contiguous().numpy().tobytes())
    solver, times = known["solver"], known["times"]
    return {
        "format": FORMAT,
        "network": _digest_of(score.module),
        "predicts": score.predicts,
        "guidance": score.guidance,
        "sde": repr(score.sde),
        "solver": solver if isinstance(solver, str) else getattr(solver, "__qualname__", type(solver).__name__),
        "steps": len(table.coef),
        "times": times if times is None or isinstance(times, str) else "a sequence",
        **{name: known[name] for name in ("noise", "final", "backend", "batch_size", "graph", "on_nonfinite")},
        **{name: str(known[name]) for name in ("dtype", "device")},
        "table": digest.hexdigest(),
        "fpfast": metadata.version("fpfast"),
        "torch": torch.__version__,
        "processor": torch.backends.cpu.get_cpu_capability(),
        "kernels": _kernels(),
    }


def _kernels() -> str:
    """The instruction set of the native kernels, in which the fused engine rounds."""
    if BACKENDS["cpu"].missing() is not None:
        return "plain torch"
    from fpfast.native import Cpu  # which is not there where the kernels are not built

    return Cpu().level


def _digest_of(net: Any) -> str | None:
    """Of a module's parts, options, parameters and buffers; None for a function, which cannot be told from another."""
    if not isinstance(net, nn.Module):
        return None
    parts = [(name, type(part).__qualname__) for name, part in net.named_modules()]
    digest = hashlib.sha256(f"{parts} {getattr(net, 'options', None)}".encode())
    for name, value in net.state_dict().items():
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While no other process writes to the folder; the lock goes with the process that holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise RuntimeError(f"folder: another process is writing to {str(folder)!r}; wait for it or stop it") from error
    try:
        yield
    finally:
        lock.release()


def _claim(folder: Path, run: dict[str, Any]) -> None:
    """Makes the folder this run's, if it is not another's."""
    for pattern in (PATTERN, MANIFEST):
        for path in folder.glob(f".{pattern}.*"):  # of a process that was killed while it wrote
            path.unlink()
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_text())
        there = dict(found["run"])
        whole = found["name"] == _named(there)["name"]
    except FileNotFoundError:
        if any(folder.glob(PATTERN)) and not any(_of(path, run) for path in folder.glob(PATTERN)):
            raise bad("folder", f"one with a {MANIFEST}, or without samples", repr(str(folder))) from None
        whole = False
    except (ValueError, KeyError, TypeError):
        whole = False  # damaged; each file says which run it is of
    if whole and found["name"] != run["name"]:
        differs = {name for name in {**there, **run["run"]} if there.get(name) != run["run"].get(name)}
        name = min(differs, key=list({**run["run"], **there}).index)
        raise bad(
            "folder", f"one of this run ({name} {run['run'].get(name)!r})", f"{str(folder)!r} ({there.get(name)!r})"
        )
    output.write(path, output.as_json({**run, "complete": False, "shards": []}))


def _of(path: Path, run: dict[str, Any]) -> bool:
    with contextlib.suppress(Exception):
        return bool(_metadata(path)["run"] == run["name"])
    return False


# ------------------------------------------------------------------------------------------------ files


def _make(
    path: Path,
    run: dict[str, Any],
    score: Score,
    shape: tuple[int, ...],
    first: int,
    seed: int,
    options: dict[str, Any],
) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "[0-9]+ of [0-9]+ samples ", RuntimeWarning)  # said once, at the end
        x, info = sample(score, shape, seed=seed, first_sample=first, return_info=True, **options)
    x = x.cpu()
    about = {"run": run["name"], "first": first, "samples": len(x), "nonfinite": info.nonfinite}
    # One item, as safetensors writes several in an order that changes.
    content = save({"samples": x}, {"fpfast": json.dumps({**about, "sha256": _digest(about, x)})})

    def writer(file: IO[bytes]) -> None:
        file.write(content)

    output.write(path, writer)


def _digest(about: dict[str, Any], x: Tensor) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    digest.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return dict(json.loads(file.metadata()["fpfast"]))


def _record(path: Path) -> Shard:
    about = _metadata(path)
    return Shard(path.name, about["first"], about["samples"], about["nonfinite"], about["sha256"])


def _read(path: Path, run: dict[str, Any], first: int, shape: tuple[int, ...]) -> Tensor | str:
    """The samples of a file, or what is wrong with it."""
    if not path.exists():
        return "missing"
    try:
        about = _metadata(path)
        with safe_open(path, "pt") as file:
            x = file.get_tensor("samples")
        said = about.pop("sha256")
        if (about["run"], about["first"], tuple(x.shape)) != (run["name"], first, shape):
            return "of another run"
        return x if _digest(about, x) == said else "its SHA-256 is not what it says"
    except Exception as error:  # safetensors has an error type of its own
        return f"damaged ({str(error).splitlines()[0]})"
