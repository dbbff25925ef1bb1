"""A share of the training images: in proportion to the classes, nested, and the same wherever it is chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from rtdetrv4.data.fraction import take_fraction
from rtdetrv4.data.records import RecordTable, Split
from rtdetrv4.types import ClassMap

CLASSES = ClassMap(("a", "b", "c"), (1, 2, 3))


def make_split(labels: Sequence[Sequence[int]], names: Sequence[str] | None = None, crowds: bool = False) -> Split:
    counts = [len(each) for each in labels]
    names = names or [f"photos/{index:03}.jpg" for index in range(len(labels))]
    table = RecordTable(
        image_ids=np.arange(len(labels), dtype=np.int64),
        file_names=np.array([name.encode() for name in names]),
        sizes_hw=np.full((len(labels), 2), 64, dtype=np.int32),
        first_box=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes_xyxy_px=np.tile(np.array([0, 0, 9, 9], dtype=np.float32), (sum(counts), 1)),
        labels=np.array([label for each in labels for label in each], dtype=np.int64),
        is_crowd=np.full(sum(counts), crowds),
        areas=np.full(sum(counts), 81.0),
    )
    return Split(Path("images"), table, CLASSES, table.fingerprint(CLASSES), ("a problem",))


def names_of(split: Split) -> list[str]:
    return [record.info.file_name for record in split.records]


MIXED = [[0]] * 60 + [[0, 1]] * 24 + [[1, 2, 2]] * 4 + [[]] * 12


def test_classes_keep_their_proportions() -> None:
    split = make_split(MIXED)
    for fraction, rare in ((0.25, 1), (0.5, 2), (0.75, 3)):
        taken, note = take_fraction(split, fraction)
        count = round(100 * fraction)
        assert len(taken.records) == count
        assert note == f"{count} of 100 training images are used (data.fraction)"
        kinds = Counter(tuple(record.labels.tolist()) for record in taken.records)
        assert kinds == {(0,): 60 * fraction, (0, 1): 24 * fraction, (1, 2, 2): rare, (): 12 * fraction}
        assert names_of(taken) == sorted(names_of(taken)), "they keep their order"
        assert taken.problems == split.problems
        assert taken.fingerprint != split.fingerprint
    assert take_fraction(split, 1.0)[0].fingerprint == split.fingerprint


def test_a_small_share_still_has_every_class() -> None:
    taken, _ = take_fraction(make_split(MIXED), 0.04)
    assert {label for record in taken.records for label in record.labels.tolist()} == {0, 1, 2}
    one, note = take_fraction(make_split(MIXED), 0.001)
    assert [record.labels.tolist() for record in one.records] == [[1, 2, 2]]
    assert note.startswith("1 of 100 ")


def test_smaller_shares_are_part_of_larger_ones() -> None:
    split = make_split(MIXED)
    before: set[str] = set()
    for fraction in (0.01, 0.1, 0.3, 0.55, 0.9, 1.0):
        now = set(names_of(take_fraction(split, fraction)[0]))
        assert before < now
        before = now


def test_the_choice_depends_on_names_and_seed_alone() -> None:
    names = [f"photos/{index:03}.jpg" for index in range(100)]
    forward = set(names_of(take_fraction(make_split(MIXED, names), 0.2)[0]))
    backward = set(names_of(take_fraction(make_split(MIXED[::-1], names[::-1]), 0.2)[0]))
    assert forward == backward
    moved = names_of(take_fraction(make_split(MIXED, [f"train/{Path(name).name}" for name in names]), 0.2)[0])
    assert {Path(name).name for name in moved} == {Path(name).name for name in forward}
    others = [frozenset(names_of(take_fraction(make_split(MIXED, names), 0.2, seed)[0])) for seed in range(4)]
    assert others[0] == forward
    assert len(set(others)) == 4


@pytest.mark.parametrize(("labels", "crowds"), [([[]] * 10, False), ([[0]] * 10, True)])
def test_images_without_objects(labels: list[list[int]], crowds: bool) -> None:
    assert len(take_fraction(make_split(labels, crowds=crowds), 0.3)[0].records) == 3
