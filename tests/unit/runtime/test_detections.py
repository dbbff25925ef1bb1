from __future__ import annotations

import copy
import json
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from rtdetrv4.errors import ConfigError, MissingDependencyError, SourceError
from rtdetrv4.runtime import Detections, draw_boxes
from rtdetrv4.runtime.detections import ELSEWHERE
from rtdetrv4.runtime.draw import color_of_class, draw_outlines, draw_text

NAMES = ("cat", "dog", "细胞")


NOTHING = (np.zeros(0), np.zeros(0), np.zeros((0, 4)))
"""Scores, labels and boxes."""


def make_detections(image: np.ndarray | None = None) -> Detections:
    return Detections.from_predictions(
        np.array([0.9, 0.6, 0.3]),
        np.array([1, 0, 1]),
        np.array([[10, 10, 50, 40], [-5, 20, 30, 90], [60, 5, 200, 70]]),
        names=NAMES,
        image=np.full((80, 120, 3), 128, np.uint8) if image is None else image,
        path="a.jpg",
    )


def test_boxes_are_cut_off_at_the_border_and_types_are_fixed() -> None:
    found = make_detections()
    assert found.xyxy.tolist() == [[10, 10, 50, 40], [0, 20, 30, 80], [60, 5, 120, 70]]
    assert (found.xyxy.dtype, found.confidence.dtype, found.class_id.dtype) == (np.float32, np.float32, np.int64)


def test_boxes_outside_the_image_are_left_out() -> None:
    """In the bars of a letterbox, or NaN."""
    boxes = [[-30, 5, -10, 20], [5, 90, 20, 95], [10, 10, np.nan, 20], [-10, 5, 10, 20]]
    found = Detections.from_predictions(
        np.full(4, 0.9), np.zeros(4), np.array(boxes), names=NAMES, image=np.zeros((80, 120, 3), np.uint8)
    )
    assert found.xyxy.tolist() == [[0, 5, 10, 20]]


def test_length_iteration_and_indexing() -> None:
    found = make_detections()
    assert len(found) == 3
    first = next(iter(found))
    assert (first.class_id, first.name, first.confidence) == (1, "dog", pytest.approx(0.9))
    assert first.xyxy.tolist() == [10, 10, 50, 40]
    assert found.class_name == ["dog", "cat", "dog"]
    assert found[1].class_name == ["cat"]
    assert found[-1].xyxy.tolist() == [[60, 5, 120, 70]]
    assert found[1:].class_name == ["cat", "dog"]
    assert found[found.class_id == 1].confidence == pytest.approx([0.9, 0.3])
    assert found[[2, 0]].confidence == pytest.approx([0.3, 0.9])
    assert found[1].image is found.image
    assert repr(found) == "Detections(2 dog, 1 cat in a.jpg)"


def test_filter_by_one_threshold_or_one_per_class() -> None:
    found = make_detections()
    assert len(found.filter(0.6)) == 2  # 0.6 is enough, in spite of rounding
    assert found.filter({"dog": 0.2}).class_name == ["dog", "dog"]
    assert found.filter({"dog": 0.5, "cat": 0.7}).class_name == ["dog"]
    with pytest.raises(ConfigError, match=r'there is no class "dig"; .*\. Did you mean "dog"\?'):
        found.filter({"dig": 0.2})


def test_nothing_found() -> None:
    found = make_detections().filter(0.95)
    assert len(found) == 0
    assert list(found) == found.to_dicts() == []
    assert found.xyxy.shape == (0, 4)
    assert found.image is not None
    np.testing.assert_array_equal(found.plot(), found.image)
    assert repr(found) == "Detections(nothing in a.jpg)"
    assert len(found.to_supervision()) == 0


def test_plain_values_and_json() -> None:
    found = make_detections()
    assert found.to_dicts()[0] == {
        "class_id": 1, "category_id": 1, "name": "dog", "confidence": pytest.approx(0.9), "xyxy": [10, 10, 50, 40],
    }  # fmt: skip
    content = json.loads(found.to_json())
    assert content["detections"] == found.to_dicts()
    assert (content["path"], content["height"], content["width"]) == ("a.jpg", 80, 120)
    assert json.loads(found.to_json(picture="b.jpg")) == {**content, "picture": "b.jpg"}


def test_ids_of_the_annotations_come_back() -> None:
    found = replace(make_detections(), category_ids=(5, 17, 90))
    assert found.category_id.tolist() == [17, 5, 17]
    assert found.category_id.dtype == np.int64
    assert found[1:].category_id.tolist() == [5, 17]
    assert found.filter(0.95).category_id.shape == (0,)
    assert [each["category_id"] for each in found.to_dicts()] == [17, 5, 17]
    assert found.to_supervision().data["category_id"].tolist() == [17, 5, 17]


def test_the_image_itself_is_not_written_over(tmp_path: Path) -> None:
    photo, link = tmp_path / "a.png", tmp_path / "link.png"
    make_detections().save(photo)
    link.symlink_to(photo)
    before = photo.read_bytes()
    found = replace(make_detections(), path=str(photo))
    for name in (photo, tmp_path / "." / "a.png", link):
        with pytest.raises(ConfigError, match="is the image that these detections were made in; give another name"):
            found.save(name)
    assert photo.read_bytes() == before
    assert found.save(tmp_path / "new" / "a.png").is_file()
    assert found.save(tmp_path / "new" / "a.png").is_file(), "an earlier picture of the same name is replaced"


def test_labels_of_any_name_are_drawn(tmp_path: Path) -> None:
    names = ("bolt [red]", "valve [/open]", "two\nlines $x_1$")
    found = replace(make_detections(), names=names)
    assert (found.plot() != make_detections().plot()).any()
    assert found.class_name == ["valve [/open]", "bolt [red]", "valve [/open]"]
    replace(found, class_id=np.array([2, 2, 2])).save(tmp_path / "a.jpg")


def test_to_supervision() -> None:
    theirs = make_detections().to_supervision()
    assert theirs.xyxy.tolist() == [[10, 10, 50, 40], [0, 20, 30, 80], [60, 5, 120, 70]]
    assert theirs.class_id.tolist() == [1, 0, 1]
    assert theirs.data["class_name"].tolist() == ["dog", "cat", "dog"]
    assert theirs[theirs.class_id == 1].confidence == pytest.approx([0.9, 0.3])


def test_supervision_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(MissingDependencyError) as error:
        make_detections().to_supervision()
    assert str(error.value) == "supervision is not installed; install it with: pip install supervision"


def test_save_writes_the_plot(tmp_path: Path) -> None:
    found = make_detections()
    path = found.save(tmp_path / "new" / "å.png")
    read = cv2.cvtColor(cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    np.testing.assert_array_equal(read, found.plot())
    with pytest.raises(ConfigError, match=r'cannot write 120×80 pixels in color as ".xyz"'):
        found.save(tmp_path / "a.xyz")


def test_a_picture_too_long_for_jpeg(tmp_path: Path) -> None:
    found = make_detections(np.zeros((2, 70_000, 3), np.uint8))
    with pytest.raises(ConfigError, match=r"a\.jpg would be 70000×2 pixels, and JPEG ends at 65500 a side; use \.png"):
        found.save(tmp_path / "a.jpg")
    assert found.save(tmp_path / "a.png").is_file()


@pytest.mark.parametrize(("name", "expected"), [("a.webp", ".png"), ("a.pbm", ".png"), ("a.pdf", ".jpg or .png")])
def test_pictures_that_a_format_does_not_take(name: str, expected: str, tmp_path: Path) -> None:
    found = Detections.from_predictions(*NOTHING, names=("a",), image=np.zeros((16, 20_000, 3), np.uint8))
    with pytest.raises(ConfigError, match=rf"20000×16 pixels in color as .* use {expected}$"):
        found.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_names_of_other_packages_are_answered() -> None:
    found = Detections.from_predictions(*NOTHING, names=("a",), image=np.zeros((16, 20, 3), np.uint8))
    with pytest.raises(AttributeError, match=r"Detections has no 'boxes'\. Use xyxy, confidence and class_id\."):
        found.boxes  # noqa: B018 # pyright: ignore[reportAttributeAccessIssue, reportUnusedExpression]
    assert not hasattr(found, "masks")
    for copied in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert copied.names == ("a",)
    for hint in ELSEWHERE.values():
        names = [word for word in re.split(r"\W+", re.sub(r"\(\w*\)", "", hint)) if word not in {"and", "or"}]
        assert hasattr(found, names[0]), hint


def test_without_an_image_there_is_nothing_to_draw_on() -> None:
    found = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), NAMES)
    with pytest.raises(SourceError, match="without an image"):
        found.plot()
    assert json.loads(found.to_json())["height"] is None


def test_boxes_are_drawn_where_they_are_in_the_color_of_their_class() -> None:
    image = np.zeros((200, 300, 3), np.uint8)
    drawn = draw_boxes(image, np.array([[50, 80, 200, 150]]), np.array([1]), ["dog 0.90"])
    assert not image.any()
    for y, x in ((120, 50), (120, 200), (150, 120)):
        assert tuple(drawn[y, x]) == color_of_class(1)
    assert not drawn[100:140, 60:190].any()  # nothing inside
    label = drawn[60:80, 50:120].reshape(-1, 3)
    assert (label == color_of_class(1)).all(axis=1).sum() > 150  # above: the label
    assert not drawn[:50].any()


@pytest.mark.parametrize("hw", [(1, 1), (16, 16), (30, 2000), (2000, 30), (1500, 2500)])
def test_any_image_size(hw: tuple[int, int]) -> None:
    height, width = hw
    boxes = np.array([[0, 0, width, height], [width / 2, 0, width, height], [width - 1, height - 1, width, height]])
    drawn = draw_boxes(
        np.zeros((*hw, 3), np.uint8), boxes, np.array([0, 1, 2]), ["cat 0.9", "a long class name 0.8", "细"]
    )
    assert drawn.shape == (*hw, 3)
    assert drawn.any()


def test_labels_hide_neither_each_other_nor_small_objects() -> None:
    """Twice the same box and a small one above: the labels must leave the small box and each other visible."""
    boxes = np.array([[100, 100, 300, 250], [100, 100, 300, 250], [100, 78, 118, 96]])
    black = np.zeros((400, 400, 3), np.uint8)
    drawn = draw_boxes(black, boxes, np.array([0, 1, 2]), ["first 0.9", "second 0.8", ""])
    bare = draw_boxes(black, boxes, np.array([0, 1, 2]), ["", "", ""])
    assert tuple(drawn[96, 110]) == tuple(drawn[78, 110]) == color_of_class(2)
    for class_id in (0, 1):
        is_label = (drawn == color_of_class(class_id)).all(axis=2) & (drawn != bare).any(axis=2)
        assert is_label.sum() > 200


def test_labels_of_lines_and_zones_do_not_hide_each_other() -> None:
    """The labels of three shapes with the same middle are as visible as each is alone."""
    image = np.full((400, 400, 3), 90, np.uint8)
    outline = [(100, 200), (300, 200)]

    def ink(labels: list[str]) -> int:
        drawn = draw_outlines(image, [(outline, label) for label in labels])
        bare = draw_outlines(image, [(outline, "") for _ in labels])
        return int((drawn != bare).any(axis=2).sum())

    labels = ["door: 3 in, 4 out", "hall: 2 inside", "yard: 7 inside"]
    one, *_, three = ink(labels[:1]), ink(labels)
    assert one > 500
    assert three > 2.3 * one  # the others are shorter
    assert draw_outlines(image[:8, :8], [([(0, 0), (1, 1)], "too large")] * 3).shape == (8, 8, 3)


def test_colors_of_many_classes_differ() -> None:
    assert len({color_of_class(k) for k in range(80)}) == 80


def test_the_runtime_needs_no_torch() -> None:
    code = (
        "import sys; import rtdetrv4.runtime; "
        "bad = {'torch', 'matplotlib', 'supervision', 'onnxruntime'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_text_is_broken_into_lines_that_fit() -> None:
    one, two = (draw_text(text, 200, size=20) for text in ("word", "word " * 12))
    assert one.shape[1] == two.shape[1] == 200
    assert two.shape[0] - one.shape[0] >= 26
    long, odd = draw_text("x" * 200, 200, size=20), draw_text("a\udcff.jpg", 200, size=20)
    assert long.shape == odd.shape == one.shape
    dark = np.flatnonzero((long < 128).any(axis=(0, 2)))
    assert 150 < dark[-1] < 200, "the end is shown too"
