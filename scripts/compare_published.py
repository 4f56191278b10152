"""Our histograms of the published networks beside the published ones (Deveney et al., arXiv 2311.15996).

    python scripts/compare_published.py FOLDER gap1.npz [gap2.npz ...]

FOLDER holds the published ``NAME_hist.npz``; the others are what ``fpfast gap --net NAME.safetensors ... --n N --out
NAME.npz`` wrote. For ODE and SDE it prints the total variation between the two histograms, and what multinomial noise
alone would give between N and their 3,000,000 samples of one law.
"""

import argparse
from pathlib import Path

import numpy

from fpfast import metrics

PUBLISHED_SAMPLES = 3_000_000


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--n", type=int, default=200_000, help="samples of ours (default: %(default)s)")
    args = parser.parse_args()
    for path in args.files:
        ours, published = numpy.load(path), numpy.load(args.folder / f"{path.stem}_hist.npz")
        for process in ("ode", "sde"):
            weights = published[process].reshape(64, 64).astype(float)
            theirs = metrics.Histogram(weights, 3.5, PUBLISHED_SAMPLES)
            mine = metrics.Histogram(ours[f"{path.stem}/{process}"], 3.5, args.n)
            floor = metrics.total_variation_floor(theirs, args.n, PUBLISHED_SAMPLES)
            measured = metrics.total_variation(mine, theirs).value
            print(f"{path.stem:14} {process}: {measured:.5f}; multinomial noise {floor.value:.5f} +- {floor.error:.5f}")


if __name__ == "__main__":
    main()
