"""The evaluator against pycocotools, number by number."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import json
import math
import re
from typing import Any

import numpy as np
import pytest
import torch

from rtdetrv4.data.records import Record
from rtdetrv4.errors import DatasetError
from rtdetrv4.evaluation import CocoEvaluator, Metrics
from rtdetrv4.types import ClassMap, ImageInfo, PostprocessedBatch

SUMMARY = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100", "ar_small", "ar_medium",
    "ar_large",
)  # fmt: skip


def random_boxes(rng: np.random.Generator, num: int) -> np.ndarray:
    corner = rng.uniform(0, 400, (num, 2))
    return np.concatenate([corner, corner + np.exp(rng.uniform(1, 5.3, (num, 2)))], axis=1).astype(np.float32)


def random_record(rng: np.random.Generator, image_id: int, num: int, num_classes: int, crowd_share: float) -> Record:
    boxes = random_boxes(rng, num)
    return Record(
        info=ImageInfo(image_id, f"{image_id}.jpg", 480, 640),
        boxes_xyxy_px=boxes,
        labels=rng.integers(0, num_classes, num),
        is_crowd=rng.random(num) < crowd_share,
        areas=np.prod(boxes[:, 2:].astype(np.float64) - boxes[:, :2], axis=1) * rng.uniform(0.5, 1, num),
    )


def random_detections(rng: np.random.Generator, record: Record, num: int, num_classes: int) -> PostprocessedBatch:
    """Boxes near those of the record with mostly the right label, among others; many scores tie."""
    boxes, labels = random_boxes(rng, num), rng.integers(0, num_classes, num)
    if len(record.labels):
        near = rng.integers(0, len(record.labels), num // 2)
        boxes[: num // 2] = record.boxes_xyxy_px[near] + rng.normal(0, 3, (num // 2, 4))
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
        labels[: num // 2] = np.where(rng.random(num // 2) < 0.8, record.labels[near], labels[: num // 2])
    scores = np.sort(rng.integers(1, 50, num) / 50)[::-1].astype(np.float32)
    order = rng.permutation(num)
    return PostprocessedBatch(
        torch.from_numpy(scores.copy())[None],
        torch.from_numpy(labels[order])[None],
        torch.from_numpy(boxes[order])[None],
    )


def pycocotools_says(evaluator: CocoEvaluator) -> tuple[list[float], list[float]]:
    """The twelve numbers, and AP per class, of the original on the same boxes with the original ids."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    ids = itertools.count(1)
    classes = evaluator.classes
    annotations: list[dict[str, Any]] = []
    for record in evaluator.records:
        for box, label, crowd, area in zip(*record[1:], strict=True):
            x1, y1, x2, y2 = box.astype(np.float64).tolist()
            annotations.append(
                {
                    "id": next(ids),
                    "image_id": record.info.image_id,
                    "category_id": classes.category_ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(area),
                    "iscrowd": int(crowd),
                }
            )
    truth = COCO()
    truth.dataset = {
        "images": [
            {"id": record.info.image_id, "height": record.info.height, "width": record.info.width}
            for record in evaluator.records
        ],
        "annotations": annotations,
        "categories": [
            {"id": i, "name": name} for name, i in zip(classes.names, classes.category_ids, strict=True)
        ],
    }  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        results = evaluator.results()
        if results:
            found = truth.loadRes(results)
        else:  # pycocotools cannot load an empty list
            found = COCO()
            found.dataset = truth.dataset | {"annotations": []}
            found.createIndex()
        referee = COCOeval(truth, found, "bbox")
        referee.evaluate()
        referee.accumulate()
        referee.summarize()
    precision = referee.eval["precision"][:, :, :, 0, -1]
    per_class = [precision[:, :, k] for k in range(precision.shape[2])]
    return referee.stats.tolist(), [p[p > -1].mean() if (p > -1).any() else -1.0 for p in per_class]


def make_evaluator(
    *,
    category_ids: tuple[int, ...] = (1, 2, 3),
    boxes_per_image: tuple[int, ...] = (5, 0, 12, 1, 7, 3),
    detections_per_image: int = 40,
    crowd_share: float = 0.0,
    seed: int = 0,
) -> CocoEvaluator:
    rng = np.random.default_rng(seed)
    num_classes = len(category_ids)
    image_ids = rng.permutation(10 * len(boxes_per_image))[: len(boxes_per_image)].tolist()
    records = [
        random_record(rng, image_id, num, num_classes, crowd_share)
        for image_id, num in zip(image_ids, boxes_per_image, strict=True)
    ]
    names = tuple(f"class {i}" for i in category_ids)
    evaluator = CocoEvaluator(records, ClassMap(names, category_ids))
    for record in records:
        evaluator.update([record.info], random_detections(rng, record, detections_per_image, num_classes))
    return evaluator


def assert_equal_to_pycocotools(evaluator: CocoEvaluator) -> Metrics:
    metrics = evaluator.compute()
    expected, expected_per_class = pycocotools_says(evaluator)
    ours = np.array([getattr(metrics, name) for name in SUMMARY])
    np.testing.assert_allclose(np.nan_to_num(ours, nan=-1), expected, rtol=0, atol=1e-9)
    assert tuple(metrics.per_class) == evaluator.classes.names
    np.testing.assert_allclose(
        np.nan_to_num(list(metrics.per_class.values()), nan=-1), expected_per_class, rtol=0, atol=1e-9
    )
    return metrics


@pytest.mark.parametrize(
    "case",
    [
        pytest.param({}, id="plain"),
        pytest.param({"crowd_share": 0.4, "seed": 1}, id="crowd"),
        pytest.param({"crowd_share": 1.0, "seed": 2}, id="only crowd"),
        pytest.param({"category_ids": (7, 30056), "seed": 3}, id="sparse ids"),
        pytest.param({"category_ids": (30056,), "seed": 4}, id="one class"),
        pytest.param({"category_ids": tuple(range(1, 60)), "seed": 5}, id="many classes, most without boxes"),
        pytest.param({"detections_per_image": 0}, id="no detections"),
        pytest.param({"boxes_per_image": (0, 0)}, id="no boxes"),
        pytest.param({"category_ids": (1,), "detections_per_image": 300, "seed": 6}, id="more than 100 of a class"),
        pytest.param({"boxes_per_image": (150, 130), "detections_per_image": 300, "seed": 7}, id="crowded images"),
    ],
)
def test_equals_pycocotools(case: dict[str, Any]) -> None:
    assert_equal_to_pycocotools(make_evaluator(**case))


def test_images_without_an_update_count_as_missed(caplog: pytest.LogCaptureFixture) -> None:
    evaluator = make_evaluator()
    complete = evaluator.compute()
    evaluator.reset()
    rng = np.random.default_rng(0)
    record = max(evaluator.records, key=lambda record: len(record.labels))
    evaluator.update([record.info], random_detections(rng, record, 40, 3))
    assert assert_equal_to_pycocotools(evaluator).ar100 < complete.ar100
    assert "5 of 6 images were not evaluated" in caplog.text


def test_perfect_detections_score_one_and_absent_classes_are_null_in_json() -> None:
    boxes = np.array([[10, 10, 20, 20], [30, 30, 90, 90]], dtype=np.float32)
    areas = np.array([100.0, 3600.0])
    info = ImageInfo(5, "a.jpg", 100, 100)
    record = Record(info, boxes, np.array([0, 2]), np.zeros(2, dtype=bool), areas)
    evaluator = CocoEvaluator([record], ClassMap(("cat", "never", "dog"), (1, 2, 3)))
    evaluator.update(
        [info],
        PostprocessedBatch(torch.tensor([[0.9, 0.8]]), torch.tensor([[0, 2]]), torch.from_numpy(boxes)[None]),
    )
    metrics = evaluator.compute()
    assert metrics.ap == pytest.approx(1, abs=1e-12)
    assert metrics.per_class["cat"] == pytest.approx(1, abs=1e-12)
    assert math.isnan(metrics.per_class["never"])
    assert math.isnan(metrics.ap_large)
    written = json.loads(json.dumps(metrics.to_dict(), allow_nan=False))
    assert written["per_class"]["never"] is None
    assert written["ap_large"] is None
    assert written["ap"] == metrics.ap
    again = Metrics.from_dict({**written, "confidence": 0.5})
    assert again.per_class["cat"] == metrics.per_class["cat"]
    assert math.isnan(again.per_class["never"])
    assert again.to_dict() == written
    with pytest.raises(KeyError, match="ap75"):
        Metrics.from_dict({name: value for name, value in written.items() if name != "ap75"})


def test_images_that_could_not_be_read_are_left_out() -> None:
    rng = np.random.default_rng(6)
    records = [random_record(rng, image_id, 5, 3, 0.0) for image_id in range(6)]
    classes = ClassMap(("a", "b", "c"), (1, 2, 3))
    found = [random_detections(rng, record, 20, 3) for record in records]
    ranks = [CocoEvaluator(records, classes) for _ in range(2)]
    expected = CocoEvaluator([records[index] for index in (0, 1, 3, 4)], classes)
    for index, (record, detections) in enumerate(zip(records, found, strict=True)):
        is_readable = index not in (2, 5)
        ranks[index % 2].update([record.info._replace(is_readable=is_readable)], detections)
        if is_readable:
            expected.update([record.info], detections)
    ranks[0].merge([rank.state() for rank in ranks])
    assert [record.info.image_id for record in ranks[0].records] == [0, 1, 3, 4]
    assert len(ranks[0].detections) == 4
    assert ranks[0].compute() == expected.compute()
    assert ranks[0].results() == expected.results()
    ranks[0].reset()
    assert len(ranks[0].records) == 6


def test_merged_ranks_equal_one_and_padding_does_not_count_twice() -> None:
    whole = make_evaluator(seed=8)
    ranks = [CocoEvaluator(whole.records, whole.classes) for _ in range(2)]
    for index, (record, found) in enumerate(zip(whole.records, whole.detections, strict=True)):
        batch = PostprocessedBatch(
            torch.from_numpy(found.scores)[None],
            torch.from_numpy(found.labels)[None],
            torch.from_numpy(found.boxes_xyxy_px)[None],
        )
        ranks[index % 2].update([record.info], batch)
        if index == 0:
            ranks[1].update([record.info], batch)
    ranks[0].merge([rank.state() for rank in ranks])
    assert ranks[0].compute() == whole.compute()


def test_large_image_ids_do_not_collide() -> None:
    """Two ids that are the same number once they are doubles."""
    infos = [ImageInfo(2**53, "a.jpg", 50, 50), ImageInfo(2**53 + 1, "b.jpg", 50, 50)]
    box = np.array([[0, 0, 10, 10]], dtype=np.float32)
    label, crowd, area = np.array([0]), np.array([False]), np.array([100.0])
    evaluator = CocoEvaluator([Record(info, box, label, crowd, area) for info in infos], ClassMap(("a",), (1,)))
    found = PostprocessedBatch(
        torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.int64), torch.from_numpy(box).repeat(2, 1, 1)
    )
    evaluator.update(infos, found)
    assert evaluator.compute().ap == pytest.approx(1, abs=1e-12)


def test_takes_half_precision_and_leaves_out_what_is_not_finite(caplog: pytest.LogCaptureFixture) -> None:
    evaluator = make_evaluator()
    found = PostprocessedBatch(
        torch.tensor([[0.5, math.nan, 0.25]], dtype=torch.bfloat16),
        torch.tensor([[0, 1, 2]]),
        torch.tensor([[[0, 0, 8, 8], [0, 0, 8, 8], [0, math.inf, 8, 8]]], dtype=torch.bfloat16),
    )
    evaluator.update([evaluator.records[0].info], found)
    kept = evaluator.detections[0]
    assert kept.scores.tolist() == [0.5]
    assert kept.labels.tolist() == [0]
    evaluator.update([evaluator.records[1].info], found)
    name = evaluator.records[0].info.file_name
    assert [record.message for record in caplog.records] == [
        f"detections in {name} are NaN or infinite; they and others like them are ignored"
    ]
    assert not evaluator.is_invalid


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    make_evaluator().compute()
    assert capfd.readouterr() == ("", "")


def test_what_does_not_fit_the_ground_truth_is_refused() -> None:
    evaluator = make_evaluator()
    found = PostprocessedBatch(torch.ones(1, 1), torch.tensor([[90]]), torch.ones(1, 1, 4))
    with pytest.raises(DatasetError, match=r"labels 90...90, but the data set has classes 0...2"):
        evaluator.update([evaluator.records[0].info], found)
    with pytest.raises(DatasetError, match=r"image id 12345 \(x.jpg\) is not among the 6 images"):
        evaluator.update([ImageInfo(12345, "x.jpg", 1, 1)], found._replace(labels=torch.tensor([[0]])))
    with pytest.raises(DatasetError, match="no images"):
        CocoEvaluator([], evaluator.classes)
    with pytest.raises(DatasetError, match="12 images share 6 image ids"):
        CocoEvaluator(evaluator.records * 2, evaluator.classes)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("map", 'Did you mean "ap"?'),
        ("map50_95", 'Did you mean "ap"?'),
        ("maps", 'Did you mean "per_class"?'),
        ("ap_smal", 'Did you mean "ap_small"?'),
        ("confusion", "Known: ap, ap50, "),
    ],
)
def test_names_of_other_packages_are_answered(name: str, answer: str) -> None:
    metrics = Metrics.from_dict({**dict.fromkeys(SUMMARY, 0.5), "per_class": {}, "per_class_ap50": {}, "num_images": 1})
    assert copy.deepcopy(metrics) == metrics
    with pytest.raises(AttributeError, match=re.escape(f'Metrics have no "{name}". {answer}')):
        getattr(metrics, name)
