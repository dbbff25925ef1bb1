"""How much a teacher tells about images: what L_DSI is left where the projector ignores them.

    python benchmarks/compare/teacher_signal.py --data ../shared/data/bccd --data ../shared/data/aquarium

A projector that gives the same vector everywhere already agrees with the mean of the teacher's map. The loss it is left
with, 1 − ‖mean of the unit vectors‖, is what there is to learn; one vector for each image instead leaves what differs
within images. Both are measured on validation images, for blocks of the teacher.

Expected: half a minute on two cores.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rtdetrv4.data.decode import read_image
from rtdetrv4.data.formats import read_splits
from rtdetrv4.distillation import Teacher, load_teacher
from rtdetrv4.runtime import preprocess

RESULT = Path(__file__).parents[1] / "results" / "compare" / "teacher_signal.json"


def main() -> None:
    """Print a line for each data set and block, and write them down."""
    parser = argparse.ArgumentParser(description="How much a teacher tells about images.")
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--teacher", default="efficientnet_lite2")
    parser.add_argument("--block", type=int, action="append", help="as distillation.teacher_block; default: the last")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--images", type=int, default=64)
    args = parser.parse_args()
    rows = []
    for data in args.data:
        images = _images(data, args.size, args.images)
        for block in args.block or [None]:
            teacher = load_teacher(args.teacher, block=block)
            row = {"data": Path(data).name, "block": block, "width": teacher.dim, **_signal(teacher, images)}
            rows.append(row)
            print(
                " ".join(
                    f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}"
                    for name, value in row.items()
                )
            )
    facts = {"teacher": args.teacher, "size": args.size, "images": args.images, "rows": rows}
    RESULT.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _images(data: str, size: int, number: int) -> Tensor:
    """N×3×size×size in [0, 1], of the validation part."""
    split = read_splits(data).val
    assert split is not None, f"{data} has no validation part"
    infos = [record.info for record in itertools.islice(split.records, number)]
    images = [read_image(split.image_dir / info.file_name, (info.height, info.width)) for info in infos]
    return torch.from_numpy(preprocess(images, (size, size)))


def _signal(teacher: Teacher, images: Tensor) -> dict[str, float]:
    """L_DSI of the best constant, over all images and for each image."""
    cells = images.shape[-1] // 32
    maps = torch.cat([F.normalize(teacher(part, (cells, cells)).flatten(2), dim=1) for part in images.split(16)])
    return {
        "one vector": 1 - maps.mean((0, 2)).norm().item(),
        "one per image": 1 - maps.mean(2).norm(dim=1).mean().item(),
    }


if __name__ == "__main__":
    main()
