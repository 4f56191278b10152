"""The data sets are what their definitions say."""

import io
import zipfile

import numpy
import pytest
import torch
from conftest import REFERENCE

from fpfast import data, metrics


@pytest.mark.parametrize("name", data.DATA)
def test_shape_and_seed(name):
    x = data.draw(name, 100, seed=1)
    assert x.dtype == torch.float32
    assert x.shape == ((100, 1, 8, 8) if name == "digits" else (100, 2))
    assert torch.equal(x, data.draw(name, 100, seed=1))
    assert not torch.equal(x, data.draw(name, 100, seed=2))
    assert 0.3 < float(x.std()) < 3


def test_blob_moments():
    x = data.draw("blob", 200_000).double()
    true = 0.65**2 * ((4 * 4 + 2 * 16) / 9 + 0.2)
    torch.testing.assert_close(x.T.cov(), true * torch.eye(2, dtype=torch.float64), atol=0.03, rtol=0)


def test_checker_is_a_checkerboard():
    x = data.draw("checker", 20_000)
    cell = ((x / 6 + 0.5) / 0.25).floor().long()
    assert bool(((cell >= 0) & (cell < 4)).all())
    assert set(((cell[:, 0] + cell[:, 1]) % 2).tolist()) == {0}
    counts = torch.bincount(cell[:, 0] * 4 + cell[:, 1], minlength=16)
    assert int((counts > 0).sum()) == 8
    assert int(counts[counts > 0].min()) > 2200


def test_circles2_radii():
    r = data.draw("circles2", 200_000).norm(dim=1) / 2
    inner = r < 1.02
    assert float(inner.float().mean()) == pytest.approx(0.5, abs=0.01)
    assert float(r[inner].mean()) == pytest.approx(0.65, abs=0.01)
    assert float(r[~inner].std()) == pytest.approx(0.1, abs=0.01)


def test_digits_are_the_images():
    x = data.draw("digits", 10)
    assert bool(((x >= -1) & (x <= 1)).all())
    assert len(x.unique()) > 10


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the published histograms are not on this machine")
@pytest.mark.parametrize("name", ["blob", "circles2"])
def test_histograms_are_the_published_ones(name):
    """Total variation to the paper's truth, of 3,000,000 samples, is at the level of multinomial noise."""
    import numpy

    published = numpy.load(REFERENCE / f"{name}_w0.0_hist.npz")["truth"].reshape(64, 64).astype(float)
    ours = metrics.histogram(data.draw(name, 1_000_000))
    theirs = metrics.Histogram(published, 3.5, 3_000_000)
    floor = metrics.total_variation_floor(theirs, ours.n, theirs.n)
    assert metrics.total_variation(ours, theirs).value < floor.value + 6 * floor.error + 0.001


@pytest.mark.parametrize(("name", "n", "argument"), [("blobs", 3, "data"), ("blob", 0, "n")])
def test_bad_input(name, n, argument):
    with pytest.raises(ValueError, match=f"^{argument}: expected .*, got "):
        data.draw(name, n)


def test_load(tmp_path):
    x = torch.arange(12.0).reshape(6, 2)
    numpy.save(tmp_path / "x.npy", x.numpy().astype(">f8"))
    numpy.savez(tmp_path / "x.npz", x=x.numpy().astype("int16"))
    torch.save(torch.nn.Parameter(x), tmp_path / "x.pt")
    for ending in ("npy", "npz", "pt"):
        read = data.load(tmp_path / f"x.{ending}")
        assert torch.equal(read, x)
        assert read.dtype == torch.float32
        assert not read.requires_grad


def absurd_npy(path, shape="(1000000000000, 2)"):
    """A header that says more than there is."""
    with io.BytesIO() as file:
        numpy.save(file, numpy.ones((2, 2)))
        text = file.getvalue()
    said = text.replace(b"(2, 2), }" + b" " * (len(shape) - 6), f"{shape}, }}".encode())
    assert said != text
    assert len(said) == len(text)
    path.write_bytes(said)


def absurd_npz(path, claim=2**40):
    """An entry that says it becomes a terabyte."""
    numpy.savez_compressed(path, x=numpy.ones((2, 2)))
    text = bytearray(path.read_bytes())
    at = text.rindex(b"PK\x01\x02") + 24  # of the central directory
    text[at : at + 4] = min(claim, 2**32 - 2).to_bytes(4, "little")
    path.write_bytes(text)


def absurd_npz_header(path):
    absurd_npy(path.parent / "x.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(path.parent / "x.npy", "x.npy")


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("x.npy", absurd_npy, r"shape \(1000000000000, 2\) of float64 in 32 bytes"),
        ("x.npy", lambda path: absurd_npy(path, "(2**70, 2, 0)"), "nothing else"),
        ("x.npz", absurd_npz_header, r"shape \(1000000000000, 2\) of float64 in 32 bytes"),
        ("x.npz", absurd_npz, "claims 4294967294 bytes"),
        ("x.pt", lambda path: torch.save(torch.ones(1).expand(10**9, 1000), path), r"shape \(1000000000, 1000\)"),
        ("x.pt", lambda path: torch.save(torch.ones(2, 2).to_sparse(), path), r"shape \(2, 2\)"),
        ("x.pt", lambda path: torch.save(torch.empty(2, 2, device="meta"), path), r"shape \(2, 2\)"),
        ("x.csv", lambda path: path.write_text("1,2"), "one of blob"),
        ("x.npz", lambda path: numpy.savez(path, a=numpy.ones((2, 2)), b=numpy.ones(2)), "one array .* 2 arrays"),
        ("x.npz", lambda path: numpy.savez(path), "one array .* 0 arrays"),
        ("x.npy", lambda path: numpy.save(path, numpy.ones(3)), r"one array .* shape \(3,\)"),
        ("x.npy", lambda path: numpy.save(path, numpy.full((2, 2), numpy.nan)), "finite numbers"),
        ("x.npy", lambda path: numpy.save(path, numpy.array([[print]]), allow_pickle=True), "no code"),
        ("x.pt", lambda path: torch.save({"x": torch.ones(2, 2)}, path), "one array .* dict"),
        ("x.pt", lambda path: path.write_bytes(b"PK"), "nothing else"),
    ],
)
def test_files_that_are_no_data(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=f"data: expected .*{message}"):
        data.load(tmp_path / name)
