"""The two networks inside the package, trained by ``scripts/train_embedded.py``.                            EMBEDDED"""

from __future__ import annotations

from pathlib import Path

from fpfast.errors import unknown
from fpfast.network import load_mlp
from fpfast.score import Score
from fpfast.sde import OU

EMBEDDED = {
    "blob_w0": "blob, denoising score matching alone",
    "blob_w1": "blob, with the Fokker-Planck residual, weight 1",
}
DATA = "blob"


def embedded(name: str) -> Score:
    """The score of an embedded network: a potential phi(t, x) of width 80 for dX = -X dt + dW on [0, 10]."""
    if name not in EMBEDDED:
        raise unknown("net", name, EMBEDDED)
    path = Path(__file__).parent / "weights" / f"{name}.safetensors"
    net = load_mlp(path, (80, 80, 80), activation="softplus:20", potential=True, time_first=True)
    return Score(net, OU(), predicts="potential")
