"""Regions of interest, lines and zones."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from rtdetrv4.errors import ConfigError, MissingDependencyError
from rtdetrv4.runtime import Detections
from rtdetrv4.runtime.regions import Counting, RegionsOfInterest, contains, named_shapes

SQUARE = [(20, 20), (60, 20), (60, 60), (20, 60)]


def boxes_at(
    centers: Sequence[tuple[float, float]],
    *,
    ids: Sequence[int] | None = None,
    frame: int | None = None,
    path: str = "a",
) -> Detections:
    """Boxes of 10×10 in an image of 100×100."""
    middle = np.array(centers, dtype=np.float32).reshape(-1, 2)
    return Detections(
        xyxy=np.concatenate([middle - 5, middle + 5], axis=1),
        confidence=np.full(len(middle), 0.9, np.float32),
        class_id=np.zeros(len(middle), np.int64),
        names=("thing",),
        image=np.zeros((100, 100, 3), np.uint8),
        path=path,
        frame_index=frame,
        tracker_id=None if ids is None else np.array(ids),
    )


def test_a_point_in_a_concave_polygon() -> None:
    polygon = np.array([(0, 0), (10, 0), (10, 10), (5, 2), (0, 10)], float)
    points = np.array([(5, 1), (5, 5), (1, 7), (9, 7), (11, 5), (-1, 0), (5, -1)], float)
    assert contains(polygon, points).tolist() == [True, False, True, True, False, False, False]


@pytest.mark.parametrize(
    ("roi", "kept"),
    [
        (SQUARE, [0, 2]),
        ([SQUARE], [0, 2]),
        (np.array(SQUARE), [0, 2]),
        ("20,20 60,20 60,60 20,60", [0, 2]),
        ("0.2,0.2 0.6,0.2 0.6,0.6 0.2,0.6", [0, 2]),
        ([(0.2, 0.2), (0.6, 0.2), (0.6, 0.6), (0.2, 0.6)], [0, 2]),
        (["20,20 60,20 60,60 20,60", "80,80 100,80 100,100"], [0, 1, 2]),
        ("0,0 1,0 1,1 0,1", [0, 1, 2, 3]),
    ],
)
def test_objects_in_regions(roi: object, kept: list[int]) -> None:
    found = boxes_at([(40, 40), (95, 85), (22, 58), (61, 40)], ids=[0, 1, 2, 3])
    inside = RegionsOfInterest(roi)(found)  # pyright: ignore[reportArgumentType]
    assert inside.tracker_id is not None
    assert inside.tracker_id.tolist() == kept


@pytest.mark.parametrize(
    "roi",
    ["", "1,2 3,4", "1,2 3,4 5", "1,2 3,4 a,b", "1;2 3;4 5;6", [(1, 2), (3, 4)], [(1, 2, 3)] * 3, "nan,1 2,3 4,5"],
)
def test_regions_that_are_none(roi: object) -> None:
    with pytest.raises(ConfigError, match=r"expected 3 points or more as x,y in pixels, .* such as \"0,0 1,0 1,1\"\.$"):
        RegionsOfInterest(roi)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="got no polygon"):
        RegionsOfInterest([])


def test_a_line_is_crossed_in_both_directions() -> None:
    count = Counting(lines={"door": "50,0 50,100"})
    values = []
    for frame, x in enumerate((20, 40, 60, 80, 60, 40, 20)):
        values.append(count(boxes_at([(x, 50), (x, 80)], ids=[3, -1], frame=frame)).counts[0])
    # Seen from (50, 0) to (50, 100), that is downward, left is the right side of the image.
    assert [each.values for each in values] == [
        *[{"in": 0, "out": 0}] * 2,
        *[{"in": 1, "out": 0}] * 3,
        *[{"in": 1, "out": 1}] * 2,
    ]
    assert str(values[-1]) == "door: 1 in, 1 out"
    assert values[-1].points == ((50, 0), (50, 100))


def test_each_source_is_counted_on_its_own_and_anew() -> None:
    count = Counting(lines={"door": [(0.5, 0), (0.5, 1)]})
    for frame, x in enumerate((20, 80)):
        one = count(boxes_at([(x, 50)], ids=[0], frame=frame, path="one"))
        other = count(boxes_at([(20, 50)], ids=[0], frame=frame, path="other"))
    assert (one.counts[0].values, other.counts[0].values) == ({"in": 1, "out": 0}, {"in": 0, "out": 0})
    again = count(boxes_at([(20, 50)], ids=[0], frame=0, path="one"))
    assert again.counts[0].values == {"in": 0, "out": 0}, "the video from its beginning"


def test_objects_in_a_zone() -> None:
    count = Counting(zones={"lot": SQUARE, "all": "0,0 1,0 1,1 0,1"})
    # The middle of the lower edge decides: it is 5 pixels below the center.
    found = count(boxes_at([(40, 40), (40, 18), (40, 58), (90, 90)]))
    assert [(each.name, each.values) for each in found.counts] == [("lot", {"inside": 2}), ("all", {"inside": 4})]
    assert count(boxes_at([])).counts[0].values == {"inside": 0}
    picture = found.plot()
    assert picture[20, 30].tolist() == [255, 255, 255], "the outline of the zone"


def test_zones_given_as_shares_are_those_of_each_image() -> None:
    """Two images of different sizes, with a box at the same relative place each."""
    for sides in [(100, 1000), (1000, 100)]:
        count = Counting(zones={"lower half": "0,0.5 1,0.5 1,1 0,1"})
        for side in sides:
            image = np.zeros((side, side, 3), np.uint8)
            box = np.array([[0.4, 0.6, 0.6, 0.8]], np.float32) * side
            found = replace(boxes_at([(0, 0)]), xyxy=box, image=image)
            assert count(found).counts[0].values == {"inside": 1}


def test_what_cannot_be_counted() -> None:
    with pytest.raises(ConfigError, match=r"Lines count objects that are tracked; add track=True\."):
        Counting(lines={"door": "0,0 9,9"})(boxes_at([(20, 50)]))
    with pytest.raises(ConfigError, match=r"line door: got .* expected 2 points as x,y"):
        Counting(lines={"door": "0,0 9,9 5,5"})
    with pytest.raises(ConfigError, match=r"zone lot: got .* expected 3 points or more"):
        Counting(zones={"lot": "0,0 9,9"})
    with pytest.raises(ConfigError, match="two points at the same place"):
        Counting(lines={"door": "5,5 5,5"})
    with pytest.raises(ConfigError, match='A line and a zone are called "a"'):
        Counting({"a": "0,0 9,9"}, {"a": SQUARE})


def test_names_of_lines() -> None:
    assert named_shapes(["0,0 9,9", "my  door=1,1 2,2", "3,3 4,4"], "line") == {
        "line": "0,0 9,9",
        "my door": "1,1 2,2",
        "line 3": "3,3 4,4",
    }
    with pytest.raises(ConfigError, match=r'--zone: got the name "a" twice\.'):
        named_shapes(["a=1,1 2,2", "a=1,1 3,3"], "zone")
    with pytest.raises(ConfigError, match='--zone: got the name "", expected NAME=POINTS'):
        named_shapes(["=1,1 2,2"], "zone")


def test_without_supervision_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingDependencyError, match=r'supervision is not installed; .* "rtdetrv4\[track\]"'):
        Counting(zones={"lot": SQUARE})
    RegionsOfInterest(SQUARE)
