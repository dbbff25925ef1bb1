"""COCO evaluation of 5,000 images with 100 detections each, against pycocotools.

    python benchmarks/coco_evaluation.py

Ours starts from the tensors that the model returns and ends with `Metrics`. pycocotools starts from its lists of
dicts, whose construction is not timed, and ends with `summarize`. All twelve numbers and every class's AP must agree to
1e-9, or the script fails.

Expected: 3 to 4 minutes, nearly all of it in pycocotools.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from _measure import Results, arguments, function_shares, in_turn
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rtdetrv4.data.records import Record
from rtdetrv4.evaluation import CocoEvaluator, Metrics
from rtdetrv4.types import ClassMap, ImageInfo, PostprocessedBatch

TARGET = 0.2
TOLERANCE = 1e-9
NUM_CLASSES, NUM_DETECTIONS, BATCH = 80, 100, 50
HEIGHT, WIDTH = 480, 640
CROWD_SHARE = 0.01
CLASSES = ClassMap(tuple(f"class {k}" for k in range(NUM_CLASSES)), tuple(range(1, NUM_CLASSES + 1)))
SUMMARY = (
    *("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"),
    *("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"),
)


class Detected(NamedTuple):
    """A batch of detections."""

    infos: list[ImageInfo]
    found: PostprocessedBatch


def make_truth(num_images: int) -> list[Record]:
    """Make 7 boxes per image on average, of all sizes, a few of them crowds."""
    rng = np.random.default_rng(0)
    records = []
    for index in range(num_images):
        num_boxes = int(rng.poisson(7))
        sides = np.exp(rng.uniform(np.log(8), np.log(300), (num_boxes, 2)))
        low = rng.random((num_boxes, 2)) * ([WIDTH, HEIGHT] - sides)
        records.append(
            Record(
                info=ImageInfo(index + 1, f"{index}.jpg", HEIGHT, WIDTH),
                boxes_xyxy_px=np.concatenate([low, low + sides], axis=1).astype(np.float32),
                labels=rng.integers(NUM_CLASSES, size=num_boxes),
                is_crowd=rng.random(num_boxes) < CROWD_SHARE,
                areas=np.prod(sides, axis=1) * rng.uniform(0.4, 1, num_boxes),
            )
        )
    return records


def detect(records: list[Record]) -> list[Detected]:
    """Make detections: half near a true box, with higher scores the nearer they are, the rest anywhere."""
    rng = np.random.default_rng(1)
    batches = []
    for start in range(0, len(records), BATCH):
        part = records[start : start + BATCH]
        arrays = [_detect_one(record, rng) for record in part]
        boxes, scores, labels = (torch.from_numpy(np.stack(column)) for column in zip(*arrays, strict=True))
        batches.append(Detected([record.info for record in part], PostprocessedBatch(scores, labels, boxes)))
    return batches


def _detect_one(record: Record, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    sides = np.exp(rng.uniform(np.log(8), np.log(300), (NUM_DETECTIONS, 2)))
    low = rng.random((NUM_DETECTIONS, 2)) * ([WIDTH, HEIGHT] - sides)
    boxes = np.concatenate([low, low + sides], axis=1)
    labels = rng.choice(rng.integers(NUM_CLASSES, size=12), NUM_DETECTIONS)
    scores = 0.6 * rng.random(NUM_DETECTIONS) ** 2
    if len(record.labels):
        near = NUM_DETECTIONS // 2
        seen = rng.integers(len(record.labels), size=near)
        true = record.boxes_xyxy_px[seen]
        noise = rng.exponential(0.06, near)
        sides = np.tile(true[:, 2:] - true[:, :2], 2)
        boxes[:near] = true + noise[:, None] * sides * rng.standard_normal((near, 4))
        boxes[:near, 2:] = np.maximum(boxes[:near, 2:], boxes[:near, :2] + 1)
        labels[:near] = np.where(rng.random(near) < 0.85, record.labels[seen], labels[:near])
        scores[:near] = np.exp(-8 * noise) * rng.uniform(0.5, 1, near)
    order = np.argsort(-scores)
    return boxes[order].astype(np.float32), scores[order].astype(np.float32), labels[order]


def our_metrics(records: list[Record], detections: list[Detected]) -> Metrics:
    """Compute metrics from tensors."""
    evaluator = CocoEvaluator(records, CLASSES)
    for batch in detections:
        evaluator.update(batch.infos, batch.found)
    return evaluator.compute()


def their_evaluation(records: list[Record], detections: list[Detected]) -> Callable[[], COCOeval]:
    """Return the same for pycocotools, whose input is made here, once."""
    evaluator = CocoEvaluator(records, CLASSES)
    for batch in detections:
        evaluator.update(batch.infos, batch.found)
    results = evaluator.results()
    annotations: list[dict[str, Any]] = []
    for record in records:
        boxes = record.boxes_xyxy_px.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        columns = (boxes.tolist(), record.labels.tolist(), record.is_crowd.tolist(), record.areas.tolist())
        for box, label, is_crowd, area in zip(*columns, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record.info.image_id,
                    "category_id": CLASSES.category_ids[label],
                    "bbox": box,
                    "iscrowd": int(is_crowd),
                    "area": area,
                }
            )
    dataset = {
        "images": [{"id": record.info.image_id} for record in records],
        "categories": [{"id": k, "name": name} for name, k in zip(*CLASSES, strict=True)],
        "annotations": annotations,
    }

    def work() -> COCOeval:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO()
            truth.dataset = dataset
            truth.createIndex()
            evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return evaluation

    return work


def largest_difference(ours: Metrics, theirs: COCOeval) -> float:
    """Return the largest difference in the twelve numbers and class APs; our NaN is their -1."""
    precision = theirs.eval["precision"][:, :, :, 0, -1]
    their_values = list(theirs.stats)
    for k in range(NUM_CLASSES):
        defined = precision[:, :, k][precision[:, :, k] > -1]
        their_values.append(defined.mean() if defined.size else -1.0)
    our_values = [*(getattr(ours, name) for name in SUMMARY), *ours.per_class.values()]
    pairs = zip(our_values, their_values, strict=True)
    return max(abs((-1.0 if math.isnan(own) else own) - other) for own, other in pairs)


def main() -> None:
    """Compare the times, and check that the results agree."""
    args = arguments(__doc__, repeats=3).parse_args()
    num_images, repeats = (60, 1) if args.quick else (5000, args.repeats)
    results = Results("coco_evaluation", args)
    records = make_truth(num_images)
    detections = detect(records)
    evaluate = their_evaluation(records, detections)

    ours, theirs = our_metrics(records, detections), evaluate()
    difference = largest_difference(ours, theirs)
    results.note(ap=round(ours.ap, 4), largest_difference=difference)
    assert 0.1 < ours.ap < 0.9, "the made-up detections are no test"
    assert difference <= TOLERANCE, f"differs by {difference} from pycocotools"

    # The run above was the warm-up.
    seconds = in_turn({"ours": lambda: our_metrics(records, detections), "pycocotools": evaluate}, repeats, warmup=0)
    own, other = seconds["ours"], seconds["pycocotools"]
    name = f"COCO evaluation, {num_images} images × {NUM_DETECTIONS} detections"
    results.add(name, own.median / other.median, TARGET, ours_s=own, pycocotools_s=other)
    results.note(**{"profile of ours": function_shares(lambda: our_metrics(records, detections))})
    results.save()


if __name__ == "__main__":
    main()
