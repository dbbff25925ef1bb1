"""The folder of a run that never was, with an evaluation of made-up detections, for tests of reports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from made_up_run import play
from rtdetrv4.config import load_recipe, override, to_yaml
from rtdetrv4.data.records import Split
from rtdetrv4.evaluation import CocoEvaluator, ImageDetections
from rtdetrv4.evaluation.analysis import analyze
from rtdetrv4.training.observers import JsonLog
from rtdetrv4.types import ClassMap
from small_training import write_images

NAMES = ("red", '<b>"green"</b>', "blue")
SPEED = {"median_ms": 41.37, "p90_ms": 55.2, "num_runs": 30, "processor": "A processor, 2 cores", "device": "cpu"}
VERSIONS = {"python": "3.11.7", "rtdetrv4": "0.1.0"}


def write_evaluation(folder: Path, split: Split, *, finds: bool = True) -> None:
    """Detections: every box found, the first of each image as another class, and one where nothing is; or none."""
    evaluator = CocoEvaluator(split.records, split.classes)
    states = {}
    for record in split.records if finds else ():
        labels = record.labels.copy()
        labels[:1] = (labels[:1] + 1) % 3
        boxes = np.concatenate([record.boxes_xyxy_px, [[50, 50, 60, 62]]]).astype(np.float32)
        scores = np.linspace(0.9, 0.6, len(boxes)).astype(np.float32)
        states[record.info.image_id] = ImageDetections(boxes, scores, np.append(labels, 0))
    evaluator.merge([states])
    metrics = evaluator.compute()
    analysis = analyze(evaluator.records, evaluator.detections, split.classes, metrics)
    facts = {
        "model": "test",
        "weights": "runs/mine/weights.safetensors",
        "data": "datasets/mine",
        "split": "val",
        "image_dir": str(split.image_dir),
        "num_images": len(split.records),
        "image_size": [64, 96],
        "resize": "stretch",
        "speed": SPEED,
        "versions": VERSIONS,
    }
    folder.mkdir(parents=True, exist_ok=True)
    content = metrics.to_dict() | {"confidence": analysis.confidence}
    for name, data in (("metrics", content), ("analysis", analysis.to_dict()), ("evaluation", facts)):
        (folder / f"{name}.json").write_text(json.dumps(data), encoding="utf-8")


def write_split(folder: Path) -> Split:
    return write_images(folder, 8)._replace(classes=ClassMap(NAMES, (1, 2, 3)))


def write_run(folder: Path, split: Split | None, *, teacher: str | None = "dino") -> None:
    """A run of three epochs, evaluated on `split`."""
    recipe = override(
        load_recipe("test"), {"data.path": "datasets/mine", "schedule.epochs": 3, "distillation.mode": "fixed"}
    )
    record = {
        "versions": VERSIONS,
        "seed": 7,
        "start": {"kind": "file", "source": "my weights.safetensors", "sha256": "ab" * 32},
        "classes": {name: index for index, name in enumerate(NAMES)},
        "data": {"train": {"images": 8, "fingerprint": "cd" * 32, "problems": ["a.jpg: a box has no <area>"]}},
        "data_notes": [],
        "derived": [{"name": "optimizer.lr", "value": 0.001, "reason": "a short run"}],
    }
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    play([JsonLog(folder / "log.jsonl", log_every=1)], folder, teacher=teacher, metrics=split is not None)
    if split is not None:
        write_evaluation(folder / "val", split)
