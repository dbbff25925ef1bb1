"""Augmented samples per second on one core, against the same pipeline in torchvision.transforms.v2 on PIL images.

    python benchmarks/augmentation.py

Reads, decodes and augments 640×480 JPEG files, with about the file size and number of boxes of COCO's, to 640×640, in
the two training stages with augmentation: with mosaics for half of the samples, and without. Every library uses one
thread. The reference is `_torchvision_pipeline.py`; the number of boxes left per sample, recorded for both, shows that
they do the same.

Expected: 1 to 2 minutes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from _measure import Results, arguments, function_shares, in_turn
from _torchvision_pipeline import Labeled, TorchvisionPipeline

from rtdetrv4.data.dataset import DetectionDataset
from rtdetrv4.data.records import Record, Split
from rtdetrv4.data.transforms import Augmentation
from rtdetrv4.types import ClassMap, ImageInfo

TARGET = 0.25
IMAGE_SIZE = (640, 640)
WIDTH, HEIGHT = 640, 480
NUM_CLASSES = 80
WITHOUT_MOSAIC = Augmentation(photometric=0.5, zoom_out=0.5, iou_crop=0.8, flip=0.5)
STAGES = {"mosaic stage": WITHOUT_MOSAIC._replace(mosaic=0.5), "no-mosaic stage": WITHOUT_MOSAIC}


def write_photos(folder: Path, count: int) -> list[Record]:
    """Write JPEG files with detail at every scale, like photos, and with 1 to 14 boxes each."""
    records = []
    for index in range(count):
        rng = np.random.default_rng(index)
        photo = np.full((HEIGHT, WIDTH, 3), 128.0, np.float32)
        for side in (4, 8, 16, 32, 64, 128, 256):
            coarse = rng.standard_normal((side * 3 // 4, side, 3)).astype(np.float32)
            photo += cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) * (120 / side**0.5)
        name = f"{index:04d}.jpg"
        encoded = cv2.imencode(".jpg", photo.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        (folder / name).write_bytes(encoded.tobytes())

        num_boxes = int(rng.integers(1, 15))
        sides = np.exp(rng.uniform(np.log(16), np.log(320), (num_boxes, 2)))
        low = rng.random((num_boxes, 2)) * ([WIDTH, HEIGHT] - sides)
        boxes = np.concatenate([low, low + sides], axis=1).astype(np.float32)
        records.append(
            Record(
                info=ImageInfo(index, name, HEIGHT, WIDTH),
                boxes_xyxy_px=boxes,
                labels=rng.integers(NUM_CLASSES, size=num_boxes),
                is_crowd=np.zeros(num_boxes, dtype=bool),
                areas=np.prod(sides, axis=1),
            )
        )
    return records


def our_samples(
    folder: Path, records: list[Record], stage: Augmentation, boxes_per_sample: list[float]
) -> Callable[[], None]:
    """Return a pass over all images, with new random choices each time, that records how many boxes are left."""
    names = tuple(str(k) for k in range(NUM_CLASSES))
    split = Split(folder, records, ClassMap(names, tuple(range(NUM_CLASSES))), "", ())
    dataset = DetectionDataset(split, IMAGE_SIZE, stage)
    check(dataset[0].image, dataset[0].boxes)
    epoch = 0

    def work() -> None:
        nonlocal epoch
        epoch += 1
        dataset.set_epoch(epoch, stage)
        num_boxes = 0
        for index in range(len(records)):
            num_boxes += len(dataset[index].labels)
        boxes_per_sample.append(num_boxes / len(records))

    return work


def their_samples(
    folder: Path, records: list[Record], stage: Augmentation, boxes_per_sample: list[float]
) -> Callable[[], None]:
    """Return the same pass with torchvision."""
    images = [
        Labeled(folder / r.info.file_name, torch.from_numpy(r.boxes_xyxy_px), torch.from_numpy(r.labels))
        for r in records
    ]
    pipeline = TorchvisionPipeline(images, IMAGE_SIZE, stage)
    image, target = pipeline[0]
    check(image, target["boxes"])

    def work() -> None:
        num_boxes = 0
        for index in range(len(records)):
            num_boxes += len(pipeline[index][1]["labels"])
        boxes_per_sample.append(num_boxes / len(records))

    return work


def check(image: torch.Tensor, boxes: torch.Tensor | np.ndarray) -> None:
    """Check that both sides yield the same kind of sample."""
    assert image.shape == (3, *IMAGE_SIZE)
    assert image.dtype == torch.uint8
    assert boxes.shape[1:] == (4,)
    assert not len(boxes) or 0 <= boxes.min() <= boxes.max() <= 1


def main() -> None:
    """Compare in both stages."""
    parser = arguments(__doc__, repeats=7)
    parser.add_argument("--images", type=int, default=96)
    args = parser.parse_args()
    count, repeats = (8, 1) if args.quick else (args.images, args.repeats)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    torch.manual_seed(0)

    results = Results("augmentation", args)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        records = write_photos(folder, count)
        weight = sum(path.stat().st_size for path in folder.iterdir()) / count / 1000
        results.note(images=count, kilobytes_per_image=round(weight))
        for stage_name, stage in STAGES.items():
            boxes: dict[str, list[float]] = {"ours": [], "torchvision": []}
            works = {
                "ours": our_samples(folder, records, stage, boxes["ours"]),
                "torchvision": their_samples(folder, records, stage, boxes["torchvision"]),
            }
            seconds = in_turn(works, repeats)
            own, other = seconds["ours"], seconds["torchvision"]
            results.add(
                f"augmentation, {stage_name}",
                own.median / other.median,
                TARGET,
                ours_samples_per_s=round(count / own.median, 1),
                torchvision_samples_per_s=round(count / other.median, 1),
                ours_s=own,
                torchvision_s=other,
                boxes_per_sample={side: round(float(np.mean(found)), 2) for side, found in boxes.items()},
            )
            results.note(**{f"profile of ours, {stage_name}": function_shares(works["ours"])})
    results.save()


if __name__ == "__main__":
    main()
