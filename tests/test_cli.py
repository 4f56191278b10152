"""The command line, as a user types it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from conftest import REFERENCE
from safetensors.torch import save_file

import fpfast
from fpfast import cli, network

QUICK = ["--n", "400", "--steps", "10"]


def run(*argv):
    return cli.main([str(word) for word in argv])


def test_gap_on_the_embedded_networks(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("gap", *QUICK) == 0
    out = capsys.readouterr().out
    for word in ("blob_w0", "blob_w1", "ODE-truth", "SDE-truth", "ODE-SDE", "floor", "wrote fpfast_gap.png"):
        assert word in out
    result = json.loads((tmp_path / "fpfast_gap.json").read_text())
    assert result["networks"]["blob_w0"]["distances"]["ODE-SDE"]["w2_grid"]["value"] > 0
    assert result["options"]["seed"] == 0
    assert (tmp_path / "fpfast_gap.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_gap_writes_every_kind_of_file(tmp_path, capsys):
    files = [tmp_path / f"gap{ending}" for ending in cli.GAP_OUT]
    assert run("gap", "--net", "blob_w1", *QUICK, "--out", *files) == 0
    rows = (tmp_path / "gap.csv").read_text().splitlines()
    assert rows[0] == "network,pair,metric,value,error"
    assert len(rows) == 1 + 4 * 4
    assert abs(numpy.load(tmp_path / "gap.npz")["blob_w1/ode"].sum() - 1) < 1e-9


def test_sample_writes_every_kind_of_file(tmp_path, capsys):
    files = [tmp_path / f"x{ending}" for ending in cli.SAMPLE_OUT]
    assert run("sample", *QUICK, "--seed", 7, "--solver", "heun", "--out", *files) == 0
    x = numpy.load(tmp_path / "x.npz")["samples"]
    expected = fpfast.sample(cli.embedded("blob_w1"), (400, 2), solver="heun", steps=10, seed=7)
    numpy.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "x.json").read_text())["seed"] == 7
    assert len((tmp_path / "x.csv").read_text().splitlines()) == 400


def test_sample_a_file_of_weights(tmp_path, capsys):
    net = network.MLP(3, (6, 6), activation="tanh")
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    options = ["--net", tmp_path / "net.safetensors", "--hidden", 6, 6, "--activation", "tanh", "--predicts", "noise"]
    assert run("sample", *options, "--sde", "vp:beta_max=10", *QUICK, "--times", "1:0.1:5,0.1:0.01:3",
               "--out", tmp_path / "x.npz") == 0  # fmt: skip
    expected = fpfast.sample(fpfast.Score(net, fpfast.VP(beta_max=10.0), predicts="noise"), (400, 3),
                             times="1:0.1:5,0.1:0.01:3", seed=0)  # fmt: skip
    numpy.testing.assert_allclose(numpy.load(tmp_path / "x.npz")["samples"], expected, rtol=1e-4, atol=1e-5)
    assert "8 network evaluations" in capsys.readouterr().out


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the published networks are not on this machine")
def test_gap_of_a_published_network(tmp_path, capsys):
    options = ["--hidden", 80, 80, 80, "--activation", "softplus:100", "--potential", "--time-first", "--sde", "ou"]
    grid = ["--data", "circles2", "--n", 500, "--times", "10:0.125:20,0.125:0:10"]
    net = REFERENCE / "circles2_w0.0.safetensors"
    assert run("gap", "--net", net, *options, *grid, "--out", tmp_path / "gap.json") == 0
    assert "circles2_w0.0" in json.loads((tmp_path / "gap.json").read_text())["networks"]


def test_train_then_sample(tmp_path, capsys):
    out = tmp_path / "net.safetensors"
    few = ["--steps", 6, "--batch-size", 16, "--every", 3, "--hidden", 8, 8, "--out", out]
    assert run("train", "--data", "moons", *few, "--potential", "--activation", "softplus:5", "--sde", "ou:T=4",
               "--regulariser", "log_density", "--box", 2, "--no-unbiased") == 0  # fmt: skip
    assert "held-out loss" in capsys.readouterr().out
    assert run("sample", "--net", out, *QUICK, "--out", tmp_path / "x.npz") == 0
    score = fpfast.model.load(out)
    assert score.sde == fpfast.OU(T=4.0)
    assert score.predicts == "potential"
    expected = fpfast.sample(score, (400, 2), steps=10, seed=0)
    numpy.testing.assert_array_equal(numpy.load(tmp_path / "x.npz")["samples"], expected)
    assert run("gap", "--net", out, "--data", "moons", *QUICK, "--out", tmp_path / "gap.json") == 0
    numpy.save(tmp_path / "images.npy", numpy.random.default_rng(0).normal(size=(20, 1, 4, 4)).astype(">f4"))
    few = ["--steps", 2, "--batch-size", 8, "--width", 8, "--out", out]
    assert run("train", "--data", tmp_path / "images.npy", *few, "--checkpoint", tmp_path / "run.pt") == 0
    assert run("sample", "--net", out, "--n", 3, "--steps", 2, "--out", tmp_path / "x.npz", tmp_path / "x.png") == 0
    assert numpy.load(tmp_path / "x.npz")["samples"].shape == (3, 1, 4, 4)
    assert run("likelihood", "--net", out, "--data", tmp_path / "images.npy", "--n", 2, "--steps", 2) == 0
    capsys.readouterr()
    assert run("gap", "--net", out, "--data", "blob") == 2
    assert "--net: expected a network for samples of shape (2,)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data", "nothing"], "data: expected one of blob"),
        (["--data", "moons", "--held-out", "7"], "--held-out: expected a share in (0, 1), got 7"),
        (["--data", "moons", "--width", "8"], "--width: expected nothing for samples of shape (2,)"),
        (["--data", "digits", "--hidden", "8"], "--hidden: expected nothing for samples of shape (1, 8, 8)"),
        (["--data", "moons", "--device", "nowhere"], "--device: expected a device that torch can use here"),
        (["--data", "moons", "--predicts", "potential"], "--predicts: expected --potential"),
        (["--data", "moons", "--out", "x.pt"], "--out: expected a name that ends in .safetensors"),
        (["--data", "moons", "--ema", "1.5"], "ema: expected a number in [0, 1)"),
        (["--data", "moons", "--sde", "xp"], "--sde: expected one of"),
        (["--data", "moons", "--resume"], "resume: expected a checkpoint_file"),
    ],
)
def test_train_says_what_is_wrong(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("train", *argv, "--steps", "2", "--batch-size", "4") == 2
    assert message in capsys.readouterr().err


def test_likelihood_of_named_data(capsys):
    assert run("likelihood", "--n", 50, "--steps", 10, "--threads", torch.get_num_threads()) == 0
    data = fpfast.data.draw("blob", 50, seed=0)
    expected = fpfast.log_likelihood(cli.embedded("blob_w1"), data, steps=10).value
    out = capsys.readouterr().out
    assert f"log-likelihood: {expected.mean():.4f} ± {expected.std() / 50**0.5:.4f} nats" in out
    assert "40 evaluations, exact divergence" in out
    assert "bits" not in out


def test_likelihood_of_a_file_of_whole_numbers(tmp_path, capsys):
    net = network.MLP(4, (6, 6), activation="tanh")
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    whole = torch.randint(0, 17, (30, 2, 2), generator=torch.Generator().manual_seed(0))
    numpy.savez(tmp_path / "data.npz", images=whole)
    shape = ["--net", tmp_path / "net.safetensors", "--hidden", 6, 6, "--activation", "tanh", "--predicts", "noise"]
    options = ["--n", 20, "--levels", 17, "--low", 0, "--estimator", "hutchinson", "--probes", 2, "--solver", "heun"]
    assert run("likelihood", *shape, "--sde", "vp", "--data", tmp_path / "data.npz", *options, "--seed", 3) == 0
    scale = {"levels": 17, "low": 0.0, "high": 1.0}
    x = fpfast.dequantise(whole[:20].flatten(1), seed=3, **scale)
    found = fpfast.log_likelihood(fpfast.Score(net, fpfast.VP(), predicts="noise"), x, estimator="hutchinson", probes=2,
                                  solver="heun", seed=3)  # fmt: skip
    bits = fpfast.bits_per_dimension(found, **scale).value
    assert f"bits per dimension: {bits.mean():.4f} ± {bits.std() / 20**0.5:.4f}" in capsys.readouterr().out


def test_info(tmp_path, capsys):
    save_file({"a": torch.full((2, 3), float("nan")), "b": torch.tensor(5)}, tmp_path / "t.safetensors")
    numpy.savez(tmp_path / "t.npz", c=numpy.zeros((4, 0)))
    assert run("info", tmp_path / "t.safetensors") == 0
    assert run("info", tmp_path / "t.npz") == 0
    out = capsys.readouterr().out
    assert "2x3" in out
    assert "2 tensors, 7 values" in out
    assert "4x0" in out


def test_doctor(capsys):
    assert run("doctor") == 0
    out = capsys.readouterr().out
    assert "backend reference: ready" in out
    assert "backend='auto' on" in out


def test_doctor_without_native_kernels(capsys, monkeypatch):
    monkeypatch.setattr(fpfast.noise.ops.backends, "NATIVE_ERROR", "No module named 'fpfast._native'")
    monkeypatch.setenv("PATH", "")
    assert run("doctor") == 0
    out = capsys.readouterr().out
    assert "native kernels: missing (no C++ compiler on PATH)" in out
    assert "install g++, then: pip install" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sample", "--net", "none.safetensors", "--hidden", "3"], "file: expected a readable file"),
        (["sample", "--net", "net.bin", "--hidden", "3"], "file: expected a name that ends in"),
        (["sample", "--net", "net.safetensors"], "--hidden: expected"),
        (["sample", "--sde", "vpp", "--net", "good.safetensors", "--hidden", "4"], "--sde: expected one of"),
        (["sample", "--sde", "vp:beta=3", "--net", "good.safetensors", "--hidden", "4"], "--sde vp: expected one of"),
        (
            ["sample", "--sde", "vp:beta_min=x", "--net", "good.safetensors", "--hidden", "4"],
            "expected a finite number",
        ),
        (["sample", "--activation", "relu", "--net", "good.safetensors", "--hidden", "4"], "activation: expected"),
        (
            ["sample", "--activation", "softplus:-1", "--net", "good.safetensors", "--hidden", "4"],
            "activation: expected",
        ),
        (["sample", "--n", "0"], "--n: expected"),
        (["sample", "--seed", "-1"], "seed: expected"),
        (["sample", "--threads", "0"], "--threads: expected"),
        (["sample", "--noise", "-1"], "noise: expected"),
        (["sample", "--times", "3:1"], "times: expected"),
        (["sample", "--out", "x.gif"], "--out: expected files that end in"),
        (["sample", "--out", "none/x.npz"], "--out: expected files in a folder that exists"),
        (["gap", "--net", "good.safetensors", "--hidden", "4"], "--data: expected"),
        (["sample", "--backend", "cuda", "--n", "3"], "backend: 'cuda' cannot serve"),
        (["info", "cut.npz"], "file: expected arrays of numbers"),
        (["info", "empty.npz"], "file: expected arrays of numbers"),
        (["sample", "--net", "numbers.pt", "--hidden", "3"], "file: expected a mapping of names to tensors"),
        (["sample", "--sde", "vp"], "--sde: expected nothing, as it is known what blob_w1 is"),
        (["gap", "--hidden", "3"], "--hidden: expected nothing"),
        (["sample", "--net", "good.safetensors", "--potential", "--predicts", "x0"], "--predicts: expected nothing"),
        (["likelihood", "--data", "none.npz"], "none.npz"),
        (["likelihood", "--data", "good.safetensors"], "data: expected one of blob"),
        (["likelihood", "--data", "whole.npz"], "data: expected one array of numbers of shape (N, ...)"),
        (["likelihood", "--data", "digits"], "expected samples of shape (2,), as the network takes, got (1, 8, 8)"),
        (["likelihood", "--levels", "4"], "x: expected whole numbers in [0, 3]"),
        (["likelihood", "--levels", "0"], "levels: expected"),
        (["likelihood", "--n", "1"], "--n: expected"),
        (["info", "good.pkl"], "file: expected a name that ends in"),
    ],
)
def test_bad_arguments(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_file(network.MLP(2, (4,)).state_dict(), tmp_path / "good.safetensors")
    numpy.savez(tmp_path / "whole.npz", a=numpy.zeros(100))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:100])
    (tmp_path / "empty.npz").write_bytes(b"")
    torch.save({1: torch.zeros(2)}, tmp_path / "numbers.pt")
    files = sorted(tmp_path.iterdir())
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("fpfast: ")
    assert "Traceback" not in captured.err
    assert sorted(tmp_path.iterdir()) == files


def test_the_command_is_installed():
    version = subprocess.run([sys.executable, "-m", "fpfast", "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.strip() == fpfast.__version__


def test_bench_needs_the_source_tree(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run("bench", "--quick") == 2
    assert "expected to be started in fpfast's source tree, where bench/run.py is" in capsys.readouterr().err
    assert run("bench", "--suite", "cpu", "--quick") == 2
    assert (
        "--suite: expected one of 'sizes', 'grid', 'residual', 'peers', 'cpu-engine', 'gpu', got 'cpu'"
        in capsys.readouterr().err
    )


def test_bench_runs_the_suites(capfd, monkeypatch):
    """What it starts; the suites themselves take minutes."""
    started = []
    monkeypatch.chdir(Path(__file__).parents[1])
    monkeypatch.setattr(
        subprocess, "run", lambda command: started.append(command[2:]) or subprocess.CompletedProcess(command, 0)
    )
    assert run("bench", "--quick", "--suite", "peers", "residual", "--", "--only", "pipeline") == 0
    quick = ["--only", "pipeline", "--quick", "--repeats", "2", "--out", "-"]
    assert started == [["bench.run", "--suite", "peers", *quick], ["bench.run", "--suite", "residual", *quick]]
    started.clear()
    assert run("bench") == 0
    assert started == [["bench.run", "--suite", suite] for suite in ("sizes", "grid", "residual", "peers")]
