"""How far rounding alone moves the scores of the models that `matrix.py` makes up.

    python benchmarks/export/rounding.py rtdetrv4-s rtdetrv4-l

PyTorch runs each model on images, and again, three times, on the same images with every pixel multiplied by a random
factor within one part in a million of 1, which is what some layers round by. Printed is how many scores, in order of
size, then differ by more than `verify` allows. A model in which some do cannot tell a wrong file from another way to
round.

Expected: two minutes for each model on two cores.
"""

from __future__ import annotations

import argparse
from itertools import islice

import numpy as np
import torch
from matrix import made_up
from torch import Tensor

from rtdetrv4.models import DetectionModel
from rtdetrv4.runtime.agreement import MAX_SCORE
from rtdetrv4.runtime.preprocess import preprocess
from rtdetrv4.runtime.scenes import scenes

NOISE = 1e-6
SIZE = (384, 640)


def ordered_scores(model: DetectionModel, images: Tensor) -> Tensor:
    """Images B×3×H×W → the score of each query B×Q, highest first."""
    with torch.no_grad():
        return model(images).logits.sigmoid().amax(dim=-1).sort(dim=1, descending=True).values


def main() -> None:
    """Print a line for each model and image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--draws", type=int, default=3, help="of random factors for each image")
    args = parser.parse_args()
    images = torch.from_numpy(preprocess(list(islice(scenes(SIZE), args.images)), SIZE))
    random = np.random.default_rng(0)
    for name in args.models:
        model = made_up(name).eval()
        for image in images.split(1):
            scores, gaps = ordered_scores(model, image), []
            for _ in range(args.draws):
                factor = 1 + NOISE * random.uniform(-1, 1, tuple(image.shape)).astype(np.float32)
                gaps.append((ordered_scores(model, image * torch.from_numpy(factor)) - scores).abs())
            moved = [int((gap > MAX_SCORE).sum()) for gap in gaps]
            most = max(float(gap.max()) for gap in gaps)
            print(
                f"{name}: {moved} of {scores.numel()} scores move by more than {MAX_SCORE:g}; most {most:.2g}",
                flush=True,
            )


if __name__ == "__main__":
    main()
