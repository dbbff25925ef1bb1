"""How many of planted label errors `rtdetrv4 doctor --model` finds among its first suspects.

    python benchmarks/label_errors.py DATA WEIGHTS [--split val] [--share 0.05] [--seeds 3]

In a copy of the labels, a share of the boxes is removed, as many are moved by half their size, and as many are given
another class. Of the most suspicious labels, those are counted that were planted, the box of a moved or renamed one
having to be named, and a removed one to be overlapped by half. Suspects that were in the data before count as false, so
the numbers are lower bounds. The weights should come from other images, or from the labels with the errors.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rtdetrv4 import Detector
from rtdetrv4.data.formats import read_splits
from rtdetrv4.data.records import RecordTable, Split
from rtdetrv4.doctor.suspects import CODE_OF, MIN_SCORE, Suspect, suspects
from rtdetrv4.evaluation.matching import box_overlaps

FIRST = (20, 50)
SHIFT = 0.5
MAX_OVERLAP = 0.5
"""Of a box to be planted with another one, so that a removed label is missing and a moved one is off."""


class Planted(NamedTuple):
    """Labels with errors, and where they are."""

    split: Split
    kinds: np.ndarray
    """(N,) of each box: "", "misplaced" or "other class"."""
    removed: dict[int, np.ndarray]
    """(n, 4) boxes in pixels that an image lacks, by its index."""


def plant(split: Split, share: float, seed: int) -> Planted:
    """Remove, move and rename a share of the boxes each, without crowds."""
    table = split.records
    assert isinstance(table, RecordTable)
    rng = np.random.default_rng(seed)
    owners = np.repeat(np.arange(len(table)), np.diff(table.first_box))
    able = rng.permutation(np.flatnonzero(~table.is_crowd))
    number = round(share * len(able))
    removed, moved, renamed = (able[index * number : (index + 1) * number] for index in range(3))

    boxes, labels = table.boxes_xyxy_px.copy(), table.labels.copy()
    sides = boxes[moved, 2:] - boxes[moved, :2]
    angles = rng.uniform(0, 2 * np.pi, number)
    steps = SHIFT * sides * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    limit = table.sizes_hw[owners[moved], ::-1]
    # Beside the border, the other way.
    out = (boxes[moved, :2] + steps < 0) | (boxes[moved, 2:] + steps > limit)
    steps = np.where(out, -steps, steps)
    boxes[moved] = np.clip(boxes[moved] + np.tile(steps, 2), 0, np.tile(limit, 2))
    if (num_classes := split.classes.num_classes) > 1:
        labels[renamed] = (labels[renamed] + rng.integers(1, num_classes, number)) % num_classes

    kinds = np.full(len(labels), "", dtype="<U11")
    kinds[moved] = "misplaced"
    kinds[renamed] = "other class" if num_classes > 1 else ""
    kept = np.ones(len(labels), dtype=np.bool_)
    kept[removed] = False
    changed = RecordTable(
        image_ids=table.image_ids,
        file_names=table.file_names,
        sizes_hw=table.sizes_hw,
        first_box=np.concatenate([[0], np.cumsum(np.bincount(owners[kept], minlength=len(table)))]),
        boxes_xyxy_px=boxes[kept],
        labels=labels[kept],
        is_crowd=table.is_crowd[kept],
        areas=table.areas[kept],
    )
    gone = {int(index): table.boxes_xyxy_px[removed[owners[removed] == index]] for index in np.unique(owners[removed])}
    return Planted(split._replace(records=changed), kinds[kept], gone)


def is_planted(suspect: Suspect, planted: Planted) -> bool:
    """Whether a suspect is one of the errors, whatever kind it was taken for."""
    table = planted.split.records
    assert isinstance(table, RecordTable)
    if suspect.box is not None and planted.kinds[table.first_box[suspect.image] + suspect.box]:
        return True
    gone = planted.removed.get(suspect.image)
    if suspect.seen_xyxy_px is None or gone is None:
        return False
    overlap = box_overlaps(np.array([suspect.seen_xyxy_px]), gone, np.zeros(len(gone), dtype=np.bool_))
    return bool(overlap.max() >= MAX_OVERLAP)


def precision(ranked: Sequence[Suspect], planted: Planted, first: int) -> float:
    """The share of planted errors among the first suspects."""
    return float(np.mean([is_planted(each, planted) for each in ranked[:first]])) if ranked else 0.0


def main() -> None:
    """Plant errors with several seeds, and print how many of them come first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="data set with labels that are taken to be right")
    parser.add_argument("weights", type=Path, help="weights of a model trained for its classes")
    parser.add_argument("--split", default="val", choices=("train", "val", "test"))
    parser.add_argument("--share", type=float, default=0.05, help="of the boxes, for each kind of error")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    given = parser.parse_args()
    split = read_splits(given.data, make_val=True).parts[given.split]
    detections = Detector(weights=given.weights).detections_in(split)
    rows = []
    for seed in range(given.seeds):
        planted = plant(split, given.share, seed)
        ranked = suspects(planted.split, detections)
        num_errors = int((planted.kinds != "").sum()) + sum(map(len, planted.removed.values()))
        row = {"seed": seed, "boxes": len(planted.kinds), "errors": num_errors}
        row |= {f"precision_{first}": round(precision(ranked, planted, first), 3) for first in FIRST}
        for kind in CODE_OF:
            own = [each for each in ranked if each.kind == kind]
            row[f"precision_{FIRST[0]} {kind}"] = round(precision(own, planted, FIRST[0]), 3)
        rows.append(row)
        print(json.dumps(row))
    means = {name: round(float(np.mean([row[name] for row in rows])), 3) for name in rows[0] if "precision" in name}
    num_before = sum(each.score >= MIN_SCORE for each in suspects(split, detections))
    content = {
        "data": given.data.name,
        "split": given.split,
        "share": given.share,
        "mean": means,
        "suspects_before": num_before,
        "runs": rows,
    }
    print(json.dumps({"mean": means, "suspects_before": num_before}))
    if given.out is not None:
        given.out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
