"""Networks from files: ours, and those published with the paper, whose histograms a sampler must reproduce."""

import json
import pickle

import numpy
import pytest
import torch
from conftest import REFERENCE
from safetensors.torch import save_file

import fpfast
from fpfast import activation, metrics, model, network
from fpfast.embedded import EMBEDDED, embedded

PAPER = {"hidden": (80, 80, 80), "activation": "softplus:100", "potential": True, "time_first": True}
GRID = "10:0.125:790,0.125:0:100"


def test_round_trip(tmp_path):
    net = network.MLP(3, (7, 5), activation="tanh")
    for name in ("net.safetensors", "net.pt"):
        path = tmp_path / name
        save_file(net.state_dict(), path) if path.suffix == ".safetensors" else torch.save(net.state_dict(), path)
        again = network.load_mlp(path, (7, 5), activation="tanh")
        x, t = torch.randn(4, 3), torch.rand(4)
        assert torch.equal(net(x, t), again(x, t))
        assert not any(p.requires_grad for p in again.parameters())


def test_layers_are_ordered_by_number():
    order = sorted((str(k) for k in range(12)), key=network._order)
    assert order == [str(k) for k in range(12)]
    assert sorted(["output", "hidden10", "hidden2", "input"], key=network._order) == [
        "input",
        "hidden2",
        "hidden10",
        "output",
    ]


def test_input_order_and_potential():
    net = network.MLP(2, (4,), potential=True, time_first=True, activation="sine")
    x, t = torch.randn(5, 2), torch.rand(5)
    h = torch.sin(net.input(torch.cat((t[:, None], x), 1)))
    assert torch.equal(net(x, t), net.output(h))
    assert net(x, t).shape == (5, 1)


@pytest.mark.parametrize("beta", [1.0, 100.0])
def test_softplus(beta):
    x = torch.linspace(-50, 50, 10_001)
    exact = torch.logaddexp(beta * x.double(), torch.zeros(())) / beta
    assert float((activation.softplus(x, beta) - exact).abs().max()) < 4e-6  # one unit in the last place of 50
    small = x[x.abs() < 2]
    assert float((activation.softplus(small, beta) - exact[x.abs() < 2]).abs().max()) < 3e-7
    z = torch.randn(20, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: activation.softplus(z, 3.0), z)
    assert torch.autograd.gradgradcheck(lambda z: activation.softplus(z, 3.0), z)


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_networks(name):
    score = embedded(name)
    assert isinstance(score.sde, fpfast.OU)
    x, info = fpfast.sample(score, (500, 2), steps=100, seed=0, return_info=True)
    assert info.nonfinite == 0
    assert 1.0 < float(x.std()) < 2.0


class Code:
    def __reduce__(self):
        import os

        return os.system, ("echo executed > executed",)


def write_bad_files(folder):
    net = network.MLP(2, (4, 4)).state_dict()
    save_file(net, folder / "good.safetensors")
    save_file({**net, "input.weight": torch.full((4, 3), float("nan"))}, folder / "nan.safetensors")
    save_file({k: v for k, v in net.items() if k != "output.bias"}, folder / "partial.safetensors")
    (folder / "noise.safetensors").write_bytes(bytes(range(256)) * 10)
    (folder / "cut.safetensors").write_bytes((folder / "good.safetensors").read_bytes()[:200])
    (folder / "huge.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    (folder / "code.pt").write_bytes(pickle.dumps(Code()))
    torch.save(Code(), folder / "code2.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save({"a.weight": torch.ones(1, 1).expand(2**40, 3)}, folder / "expanded.pt")
    (folder / "long.safetensors").write_bytes((2**25).to_bytes(8, "little") + b" " * 2**25)
    save_file({"a.weight": torch.ones(())}, folder / "number.safetensors")
    (folder / "net.pkl").write_bytes(pickle.dumps(Code()))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    ("file", "hidden", "message"),
    [
        ("nan.safetensors", (4, 4), "finite weights"),
        ("partial.safetensors", (4, 4), "output.bias of shape .2,. in"),
        ("noise.safetensors", (4, 4), "weights and nothing else"),
        ("cut.safetensors", (4, 4), "weights and nothing else"),
        ("huge.safetensors", (4, 4), "weights and nothing else"),
        ("code.pt", (4, 4), "weights and nothing else"),
        ("code2.pt", (4, 4), "weights and nothing else"),
        ("list.pt", (4, 4), "a mapping of names to tensors"),
        ("expanded.pt", (), "a mapping of names to tensors"),
        ("long.safetensors", (4, 4), "weights and nothing else"),
        ("number.safetensors", (), "a matrix 'a.weight'"),
        ("net.pkl", (4, 4), "a name that ends in .safetensors, .pt or .pth"),
        ("good.safetensors", (4,), "2 widths for the 3 layers"),
        ("good.safetensors", (4, 5), "hidden1.weight of shape .5, 4."),
    ],
)
def test_bad_files(tmp_path, monkeypatch, file, hidden, message):
    monkeypatch.chdir(tmp_path)
    write_bad_files(tmp_path)
    with pytest.raises(ValueError, match=f"(file|hidden): expected {message}.*, got "):
        network.load_mlp(tmp_path / file, hidden)
    assert not (tmp_path / "executed").exists()


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="file: expected"):
        network.load_mlp(tmp_path / "none.safetensors", (4,))


def compare(name, n):
    """(process, total variation to the published histogram, what multinomial noise gives) of ODE and SDE samples."""
    net = network.load_mlp(REFERENCE / f"{name}.safetensors", **PAPER)
    score = fpfast.Score(net, fpfast.OU(), predicts="potential")
    published = numpy.load(REFERENCE / f"{name}_hist.npz")
    for process, noise in (("ode", 0.0), ("sde", 1.0)):
        x = fpfast.sample(score, (n, 2), times=GRID, noise=noise, seed=0, batch_size=2048)
        theirs = metrics.Histogram(published[process].reshape(64, 64).astype(float), 3.5, 3_000_000)
        ours = metrics.histogram(x)
        floor = metrics.total_variation_floor(theirs, ours.n, theirs.n)
        yield process, metrics.total_variation(ours, theirs).value, floor


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the published networks are not on this machine")
@pytest.mark.parametrize("name", ["blob_w0.0", "blob_w1.0", "circles2_w0.0", "circles2_w1.0"])
@pytest.mark.parametrize("n", [1_000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_published_histograms_are_reproduced(name, n):
    for process, measured, floor in compare(name, n):
        assert measured < floor.value + 5 * floor.error, process


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"name": "mlp", "dimension": 2, "hidden": [10**9, 10**9]}, "layers of other names or shapes"),
        ({"name": "mlp", "dimension": 2, "hidden": [4] * 30_000}, "a description of [0-9]+ characters"),
        ({"name": "conv", "shape": [1, 2, 2], "width": 8 * 10**6}, "layers of other names or shapes"),
        ({"name": "mlp", "dimension": "2", "hidden": [4]}, "dimension"),
        ([1, 2], "a description that fits"),
    ],
)
def test_descriptions_are_compared_before_there_is_memory_for_them(tmp_path, described, message):
    text = json.dumps({"network": described, "sde": {"name": "vp"}, "predicts": "noise"})
    save_file(network.MLP(2, (4,)).state_dict(), tmp_path / "x.safetensors", {"fpfast": text})
    with pytest.raises(ValueError, match=f"file: expected .*{message}"):
        model.load(tmp_path / "x.safetensors")
