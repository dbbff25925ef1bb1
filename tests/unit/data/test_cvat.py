"""Shapes of CVAT's own format as boxes, and what cannot be read of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rtdetrv4.data.cvat import parse_cvat
from rtdetrv4.data.formats import Split, read_splits
from rtdetrv4.doctor import doctor
from rtdetrv4.errors import DatasetError

LABELS = """<label><name>cat</name><type>any</type></label><label><name>wheel</name><type>points</type></label>
<label><name>face</name><type>skeleton</type></label>
<label><name>eye</name><type>points</type><parent>face</parent></label><label><name>dog</name></label>"""

FACES = """label="cat" xtl1="10" ytl1="10" xbl1="10" ybl1="40" xtr1="30" ytr1="10" xbr1="30" ybr1="40"
xtl2="20" ytl2="5" xbl2="20" ybl2="35" xtr2="45" ytr2="5" xbr2="45" ybr2="35\""""


def write(root: Path, shapes: str, meta: str = f"<task><labels>{LABELS}</labels></task>") -> Path:
    """A data set of one image of 100×100 pixels, a.png."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (100, 100), (9, 90, 200)).save(root / "images" / "a.png")
    image = f'<image id="0" name="a.png" width="100" height="100">\n{shapes}\n</image>'
    text = f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<meta>{meta}</meta>\n{image}\n</annotations>\n'
    (root / "annotations.xml").write_text(text)
    return root


def train(root: Path) -> Split:
    found = read_splits(root).train
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ('<box label="cat" xtl="10.5" ytl="20" xbr="30" ybr="40"/>', (10.5, 20, 30, 40)),
        ('<box label="cat" xtl="30" ytl="40" xbr="10.5" ybr="20"/>', (10.5, 20, 30, 40)),
        # A square of side 20, turned by 45°, is as wide as its diagonal: 28.2843.
        ('<box label="cat" xtl="40" ytl="40" xbr="60" ybr="60" rotation="45"/>', (35.8579, 35.8579, 64.1421, 64.1421)),
        ('<box label="cat" xtl="30" ytl="40" xbr="70" ybr="60" rotation="90"/>', (40, 30, 60, 70)),
        ('<polygon label="cat" points="10.00,20.00;30.00,5.00;25.00,40.00"/>', (10, 5, 30, 40)),
        ('<ellipse label="cat" cx="50" cy="40" rx="20" ry="10"/>', (30, 30, 70, 50)),
        ('<ellipse label="cat" cx="50" cy="40" rx="20" ry="10" rotation="90"/>', (40, 20, 60, 60)),
        ('<mask label="cat" rle="0, 6" left="5" top="7" width="3" height="2"/>', (5, 7, 8, 9)),
        (
            f"<cuboid {FACES}/>",
            (10, 5, 45, 40),
        ),
    ],
)
def test_shapes(tmp_path: Path, shape: str, box: tuple[float, ...]) -> None:
    record = train(write(tmp_path, shape)).records[0]
    np.testing.assert_allclose(record.boxes_xyxy_px, [box], atol=1e-4)


def test_what_marks_no_area_is_counted(tmp_path: Path) -> None:
    shapes = (
        '<box label="dog" xtl="1" ytl="1" xbr="9" ybr="9"/>\n'
        '<points label="wheel" points="1,1;2,2"/><points label="wheel" points="3,1"/>'
        '<polyline label="cat" points="1,1;9,9"/><tag label="cat"/>'
        '<skeleton label="face"><points label="eye" points="5,5"/></skeleton>'
    )
    found = train(write(tmp_path, shapes))
    assert found.classes.names == ("cat", "dog")
    assert found.records[0].labels.tolist() == [1]
    assert found.problems[0] == "2 points, 1 line, 1 tag, 1 skeleton left out: no area"
    assert {finding.code: finding.count for finding in doctor(tmp_path).findings if finding.code == "D231"} == {
        "D231": 5
    }


def test_polygons_and_masks_of_a_group_are_one_object(tmp_path: Path) -> None:
    shapes = "".join(
        f'<polygon label="{label}" group_id="{group}" points="{x},10;{x + 5},10;{x},15"/>'
        for label, group, x in (("cat", 1, 10), ("cat", 1, 40), ("dog", 1, 60), ("cat", 0, 70), ("cat", 0, 80))
    )
    shapes += '<box label="cat" group_id="1" xtl="1" ytl="1" xbr="9" ybr="9"/>'
    found = train(write(tmp_path, shapes))
    assert found.records[0].boxes_xyxy_px.tolist() == [
        [10, 10, 45, 15],
        [60, 10, 65, 15],
        [70, 10, 75, 15],
        [80, 10, 85, 15],
        [1, 1, 9, 9],
    ]
    assert found.problems[0] == "4 polygons or rotated boxes replaced by the upright boxes around them"


def test_the_subset_of_a_task(tmp_path: Path) -> None:
    write(tmp_path, "", f"<task><subset>Validation</subset><labels>{LABELS}</labels></task>")
    assert parse_cvat(tmp_path / "annotations.xml").images[0].subset == "Validation"


def test_a_file_that_ends_early(tmp_path: Path) -> None:
    write(tmp_path, '<box label="cat" xtl="1" ytl="1" xbr="9" ybr="9"/>')
    file = tmp_path / "annotations.xml"
    file.write_text(file.read_text()[:-20])
    with pytest.raises(DatasetError, match=r"annotations\.xml is damaged: .*is the export complete\?"):
        read_splits(tmp_path)
    assert {"D001", "D206"} <= {finding.code for finding in doctor(tmp_path).findings}


def test_entities_are_refused(tmp_path: Path) -> None:
    write(tmp_path, '<box label="&a;" xtl="1" ytl="1" xbr="9" ybr="9"/>')
    file = tmp_path / "annotations.xml"
    file.write_text(file.read_text().replace("<annotations>", '<!DOCTYPE x [<!ENTITY a "cat">]>\n<annotations>'))
    with pytest.raises(DatasetError, match="declares the entity a, which CVAT never does"):
        read_splits(tmp_path)


def test_single_faults_have_lines(tmp_path: Path) -> None:
    shapes = "\n".join(
        [
            '<box label="cat" xtl="10" ytl="10" xbr="60" ybr="60"/>',
            '<box label="cat" xtl="x" ytl="10" xbr="60" ybr="60"/>',
            '<box xtl="10" ytl="10" xbr="60" ybr="60"/>',
            '<box label="dog" xtl="70" ytl="10" xbr="60" ybr="60"/>',
            '<polygon label="dog" points="10,20;30"/>',
        ]
    )
    found = train(write(tmp_path, shapes))
    assert found.problems[:2] == (
        "1 box dropped: no label (first: line 9)",
        "1 box turned round: a minimum was above its maximum",
    )
    assert "2 boxes dropped: not four finite numbers (first: annotation annotations.xml:8 of a.png)" in found.problems
    lines = {finding.code: [example.line for example in finding.examples] for finding in doctor(tmp_path).findings}
    assert lines["D207"] == [8, 11]
    assert lines["D209"] == [9]
    assert lines["D225"] == [10]
    assert "D233" not in lines
