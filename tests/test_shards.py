"""Long runs in a folder: the bits of one run, whatever happened on the way; faults are found, said and mended."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fpfast
from fpfast import cli, shards
from fpfast.network import MLP

OPTIONS = {"steps": 4, "noise": 0.7, "seed": 5}
N, SIZE = 100, 30
FIRST = "samples-000000000000.safetensors"
SECOND = "samples-000000000030.safetensors"


def score(seed=0, activation="tanh"):
    torch.manual_seed(seed)
    net = MLP(3, [8, 8], activation=activation).requires_grad_(False)
    return fpfast.Score(net, fpfast.VP(), predicts="noise")


def write(folder, *, of=None, shape=(N, 3), size=SIZE, **options):
    return fpfast.sample_to_folder(of or score(), shape, folder, shard_samples=size, **{**OPTIONS, **options})


def whole(**options):
    return fpfast.sample(score(), (N, 3), **{**OPTIONS, **options})


def together(folder):
    return torch.cat(list(shards.read(folder)))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".safetensors"}


@pytest.fixture
def done(tmp_path):
    write(tmp_path)
    return tmp_path


@pytest.mark.parametrize("size", [1, 7, 30, 100, 1000])
@pytest.mark.parametrize("options", [{}, {"first_sample": 2**40}, {"solver": "dpmpp_2m", "noise": 0.0}])
def test_bits_are_those_of_one_run(tmp_path, size, options):
    found = write(tmp_path, size=size, **options)
    assert torch.equal(together(tmp_path), whole(**options))
    assert [shard.samples for shard in found.shards] == [min(size, N - at) for at in range(0, N, size)]
    assert (found.made, found.mended, found.nonfinite) == (N, [], 0)


def test_shapes_and_dtypes(tmp_path):
    images = fpfast.Score(lambda x, t: x.sin(), fpfast.VP())
    write(tmp_path / "images", of=images, shape=(10, 1, 4, 4), size=3)
    assert torch.equal(together(tmp_path / "images"), fpfast.sample(images, (10, 1, 4, 4), **OPTIONS))
    write(tmp_path / "double", of=images, dtype=torch.float64)
    assert together(tmp_path / "double").dtype == torch.float64


def test_a_file_has_about_64_mib_by_default(tmp_path):
    found = write(tmp_path, size=None)
    assert len(found.shards) == 1
    assert json.loads((tmp_path / "manifest.json").read_text())["run"]["shard_samples"] == 2**26 // 12


def test_a_run_that_is_there_is_read_not_made(done):
    before = {path: path.stat().st_mtime_ns for path in done.glob("samples-*")}
    assert write(done).made == 0
    assert {path: path.stat().st_mtime_ns for path in done.glob("samples-*")} == before


def flip(where):
    def damage(path):
        content = bytearray(path.read_bytes())
        content[int(where * (len(content) - 1))] ^= 4
        path.write_bytes(content)

    return damage


def other_run(path):
    record = {"run": "of something else", "first": 30, "sha256": ""}
    save_file({"samples": torch.zeros(SIZE, 3)}, path, {"fpfast": json.dumps(record)})


DAMAGES = {
    **{f"bit at {where:.0%}": flip(where) for where in (0.0, 0.02, 0.2, 0.4, 0.6, 0.8, 1.0)},
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-50]),
    "header only": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "empty": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "a file of another run": other_run,
    "another file of this run": lambda path: path.write_bytes((path.parent / FIRST).read_bytes()),
    "text": lambda path: path.write_text("no samples here"),
    "lost": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_again_with_the_same_bytes(done, damage):
    before = files(done)
    DAMAGES[damage](done / SECOND)
    with pytest.raises(ValueError, match=f"folder: expected files as they were written, got {SECOND}: "):
        together(done)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = write(done)
    assert found.made == SIZE
    assert [str(one.message).startswith(f"made again: {SECOND}: ") for one in said] == [True] * (damage != "lost")
    assert files(done) == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"run": 3}', '{"name": "x", "run": {"seed": 5}}', None])
def test_a_damaged_manifest_is_written_again(done, content):
    (done / "manifest.json").unlink()
    if content is not None:
        (done / "manifest.json").write_text(content)
        with pytest.raises(ValueError, match=r"folder: expected a manifest.json of a complete run"):
            together(done)
    assert write(done).made == 0
    assert torch.equal(together(done), whole())


CHANGES = {
    "seed": ({"seed": 6}, "seed 6"),
    "noise": ({"noise": 0.5}, "noise 0.5"),
    "steps": ({"steps": 5}, "steps 5"),
    "solver": ({"solver": "heun"}, "solver 'heun'"),
    "final": ({"final": "noise"}, "final 'noise'"),
    "samples": ({"shape": (N + 1, 3)}, r"shape \[101, 3\]"),
    "first": ({"first_sample": 1}, "first_sample 1"),
    "size": ({"size": 31}, "shard_samples 31"),
    "weights": ({"of": score(1)}, "network '"),
    "activation": ({"of": score(activation="silu")}, "network '"),
    "times": ({"times": [1.0, 0.7, 0.3, 0.1, 0.01]}, "times 'a sequence'"),
    "sde": ({"of": fpfast.Score(score().net, fpfast.VP(beta_max=10.0), predicts="noise")}, "sde 'VP"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_of_another_run_is_refused(done, change):
    before, (options, message) = files(done), CHANGES[change]
    with pytest.raises(ValueError, match=rf"folder: expected one of this run \({message}"):
        write(done, **options)
    assert files(done) == before
    assert torch.equal(together(done), whole())


def test_samples_without_a_manifest_are_somebody_elses(tmp_path):
    (tmp_path / SECOND).write_text("precious")
    with pytest.raises(ValueError, match=r"folder: expected one with a manifest.json, or without samples"):
        write(tmp_path)
    assert (tmp_path / SECOND).read_text() == "precious"


HOLD = """
import sys, filelock, pathlib
with filelock.FileLock(pathlib.Path(sys.argv[1]) / ".lock"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_writers(done):
    command = [sys.executable, "-c", HOLD, str(done)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(RuntimeError, match="folder: another process is writing to"):
            write(done)
        other.kill()  # a lock goes with its process
    assert write(done).made == 0


def test_a_full_disk_loses_nothing(tmp_path):
    """No file may be longer than 500 bytes, as if the disk were full; what was done stays, and the run goes on."""
    write(tmp_path, size=10)
    kept = files(tmp_path)
    for name in list(kept)[3:]:
        (tmp_path / name).unlink()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(tmp_path, size=10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert not list(tmp_path.glob(".samples*"))
    assert write(tmp_path, size=10).made == N - 30
    assert files(tmp_path) == kept


def test_folders_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="folder: expected a folder, or a name that is free"):
        write(tmp_path / "file")
    with pytest.raises(OSError, match="/proc/fpfast"):
        write("/proc/fpfast")


def test_left_over_temporary_files_are_cleared_away(done):
    (done / f".{SECOND}.abc").write_text("half of it")
    write(done)
    assert not list(done.glob(".samples*"))


BAD = {
    "x": ({"x": torch.zeros(N, 3)}, "x: expected nothing: samples go to files"),
    "return_info": ({"return_info": True}, "return_info: expected nothing"),
    "seed": ({"seed": None}, "seed: expected"),
    "size": ({"size": 0}, "shard_samples: expected"),
    "noise": ({"noise": -1.0}, "noise: expected"),
    "solver": ({"solver": "none"}, "solver: expected"),
    "first_sample": ({"first_sample": 2**48}, "first_sample: expected"),
    "dtype": ({"dtype": torch.float16}, "dtype: expected"),
    "progress": ({"progress": 1}, "progress: expected True or False"),
}


@pytest.mark.parametrize("name", BAD)
def test_messages(tmp_path, name):
    options, message = BAD[name]
    with pytest.raises((ValueError, TypeError), match=message):
        write(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_unknown_options(tmp_path):
    with pytest.raises(TypeError, match="step_size"):
        write(tmp_path / "new", step_size=3)


def test_samples_that_are_not_finite_are_counted(tmp_path):
    of = fpfast.Score(lambda x, t: torch.where(x[:, :1] > 1, torch.nan, x), fpfast.VP())
    with pytest.warns(RuntimeWarning, match=r"\d+ of 100 samples hold NaN or infinity"):
        found = write(tmp_path, of=of)
    bad = ~together(tmp_path).isfinite().all(1)
    assert found.nonfinite == int(bad.sum()) > 0
    assert [shard.nonfinite for shard in found.shards] == [int(part.sum()) for part in bad.split(SIZE)]


def test_other_kernels_are_another_run(done, monkeypatch):
    """The engine rounds by its instruction set, and plain torch in its own way."""
    monkeypatch.setattr(shards, "_kernels", lambda: "of another machine")
    with pytest.raises(ValueError, match=r"folder: expected one of this run \(kernels 'of another machine'\)"):
        write(done)


def test_command(tmp_path, capsys):
    command = ["sample", "--n", "100", "--steps", "3", "--shard", "40", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 0
    assert "100 samples in 3 files" in capsys.readouterr().out
    assert cli.main(command) == 0
    assert "0 made now" in capsys.readouterr().out
    assert cli.main([*command, "--seed", "1"]) == 2
    assert "folder: expected one of this run (seed 1)" in capsys.readouterr().err
    assert cli.main([*command[:-1], str(tmp_path / "a.csv")]) == 2
    assert "--shard: expected nothing beside files" in capsys.readouterr().err


RUN = """
import sys, torch, fpfast
sys.path.insert(0, sys.argv[1])
from test_shards import write
torch.set_num_threads(1)
print("ready", flush=True)
write(sys.argv[2], size=2, steps=20)
"""


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_runs_go_on_and_have_the_same_bytes(tmp_path, kills):
    write(tmp_path / "whole", size=2, steps=20)
    moments, lost = random.Random(0), 0
    while lost < kills:
        command = [sys.executable, "-c", RUN, str(Path(__file__).parent), str(tmp_path / "killed")]
        # Not in the source tree, whose fpfast may be another than the installed one, without kernels.
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=tmp_path) as process:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(moments.uniform(0, 0.1))
            os.kill(process.pid, signal.SIGKILL)
        lost += 1
    assert write(tmp_path / "killed", size=2, steps=20).mended == []
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


FORKED = """
import os, signal, sys, threading, torch, fpfast
torch.set_num_threads(1)
score = fpfast.Score(lambda x, t: -x, fpfast.VP())
fpfast.sample(score, (2, 2), steps=2)
for moment in range(20):  # children that are killed at work, some of them inside a lock
    child = os.fork()
    if child == 0:
        while True:
            fpfast.sample(score, (2, 2), steps=1)
    threading.Event().wait(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    fpfast.sample(score, (2, 2), steps=2)
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork processes")
def test_forked_processes_that_are_killed_hold_nobody_up(tmp_path):
    command = [sys.executable, "-c", FORKED]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert found.stdout == "done\n", found.stderr
