from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clean_data import edit_coco, picture, write_coco
from made_up_set import Shown, inspected
from rtdetrv4.doctor import doctor, examine
from rtdetrv4.doctor.finding import Example
from rtdetrv4.doctor.inspection import inspect
from rtdetrv4.doctor.overview import overview
from rtdetrv4.doctor.page import FAULTY, OTHER, page, write_pages
from rtdetrv4.pages import MAX_BYTES


class Elements(HTMLParser):
    """All elements of a page, and whether they are closed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in {"img", "meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def parsed(html: str) -> Elements:
    elements = Elements()
    elements.feed(html)
    assert elements.open == []
    return elements


def pixels_of(uri: str | None) -> np.ndarray:
    assert uri is not None
    return np.array(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))), dtype=int)


def num_near(pixels: np.ndarray, color: tuple[int, int, int]) -> int:
    return int((np.abs(pixels - color).max(axis=2) < 70).sum())


def faulty_set(folder: Path) -> Path:
    write_coco(folder)
    row = {"id": 99, "image_id": 1, "category_id": 0, "bbox": [80, 20, 30, 20], "iscrowd": 0}
    edit_coco(folder, lambda content: content["annotations"].append(row))
    return folder


def test_the_page_stands_alone_and_shows_every_finding(tmp_path: Path) -> None:
    folder = faulty_set(tmp_path / "data")
    findings = doctor(folder, out=tmp_path / "out")
    html = (tmp_path / "out/doctor.html").read_text(encoding="utf-8")
    assert len(html) < MAX_BYTES
    elements = parsed(html)
    assert not elements.all("script")
    assert not elements.all("link")
    assert all((image["src"] or "").startswith("data:image/jpeg;base64,") for image in elements.all("img"))
    assert all(image["alt"] for image in elements.all("img"))
    assert all(svg["aria-label"] for svg in elements.all("svg"))
    links = [link["href"] or "" for link in elements.all("a")]
    ids = {attributes.get("id") for _, attributes in elements.found}
    assert all(link[1:] in ids for link in links if link.startswith("#"))
    assert {f"#{finding.code}" for finding in findings.findings} <= set(links)
    assert (folder / "train/_annotations.coco.json").as_uri() in links
    assert json.loads((tmp_path / "out/doctor.json").read_text()) == json.loads(findings.to_json())
    line = next(finding for finding in findings.findings if finding.code == "D218").examples[0].line
    assert f"train/_annotations.coco.json:{line}" in html


def test_boxes_in_question_stand_out_even_beyond_the_image(tmp_path: Path) -> None:
    folder = faulty_set(tmp_path / "data")
    Image.new("RGB", (96, 64), "green").save(folder / "train/b.jpg")
    html = page(examine(inspection := inspect(folder)), inspection)
    (image,) = (image for image in parsed(html).all("img") if "annotation 99" in (image["alt"] or ""))
    pixels = pixels_of(image["src"])
    # The box reaches 14 pixels beyond 96, and the picture 5 % of 96 more: its right edge is drawn on gray.
    assert pixels.shape[:2] == (round(320 * 64 / 115), 320)
    beyond = pixels[:, round(320 * 98 / 115) :]
    assert np.abs(np.median(beyond.reshape(-1, 3), axis=0) - 128).max() < 6
    assert num_near(pixels[:, round(320 * 105 / 115) :], FAULTY) > 20
    assert num_near(pixels[:, : round(320 * 60 / 115)], FAULTY) == 0
    assert num_near(pixels[:, : round(320 * 45 / 115)], OTHER) > 40


def test_a_tiny_box_is_shown_from_near(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data")
    Image.new("RGB", (1200, 800), "green").save(folder / "train/a.jpg")
    inspection = inspect(folder)
    path = str(folder / "train/a.jpg")
    tiny = Example("train", "train/a.jpg", None, "tiny", path, ((600.0, 400.0, 602.0, 402.0),))
    html = page(examine(inspection, [("D220", tiny)]), inspection)
    (image,) = (image for image in parsed(html).all("img") if (image["alt"] or "").endswith("tiny"))
    pixels = pixels_of(image["src"])
    # 8 % of 1200 pixels around it: 194 pixels fill 320, and the box is drawn 8 wide, with lines around it.
    assert pixels.shape[:2] == (320, 320)
    rows, columns = np.nonzero(np.abs(pixels - FAULTY).max(axis=2) < 90)
    assert 9 <= np.ptp(rows) <= 11
    assert abs(np.median(columns) - 160) < 10


def test_names_are_text_and_no_markup(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data")
    name = "<script>alert(1)</script> & \"<img src=x onerror='x'>\""
    for part in ("train", "val"):
        edit_coco(folder, lambda content: content["categories"][0].update(name=name), part)
    html = page(examine(inspection := inspect(folder)), inspection)
    elements = parsed(html)
    assert not elements.all("script")
    assert all(image["src"] != "x" for image in elements.all("img"))
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_a_page_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    findings = doctor(tmp_path / "data", out=tmp_path / "out")
    assert not findings.is_readable
    parsed((tmp_path / "out/doctor.html").read_text(encoding="utf-8"))


def test_an_earlier_page_is_kept(tmp_path: Path) -> None:
    inspection = inspect(write_coco(tmp_path / "data"))
    findings = examine(inspection)
    first, second = (write_pages(tmp_path / "out", findings, inspection) for _ in range(2))
    assert (first, second) == (tmp_path / "out/doctor.html", tmp_path / "out-2/doctor.html")


def test_suspects_are_all_listed_and_other_findings_in_part(tmp_path: Path) -> None:
    inspection = inspect(write_coco(tmp_path / "data"))
    more = [
        (code, Example("train", f"{n}.jpg", None, f"{code} is {n}")) for code in ("D109", "D401") for n in range(90)
    ]
    html = page(examine(inspection, more), inspection)
    assert [len(re.findall(f"{code} is ", html)) for code in ("D109", "D401")] == [20, 90]


def test_many_pictures_keep_to_the_size(tmp_path: Path) -> None:
    folder = tmp_path / "set/train"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(4):
        noise = rng.integers(0, 256, (320, 320, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.jpg", quality=95)
    images = [Shown(f"{index}.jpg", ((0, 10.0, 10.0, 100.0, 100.0),), (320, 320)) for index in range(4)]
    inspection = inspected({"train": images}, root=tmp_path / "set")
    examples = [
        (code, Example("train", "0.jpg", None, "x", str(folder / f"{index % 4}.jpg")))
        for code in ("D105", "D106", "D109", "D110", "D115")
        for index in range(12)
    ]
    html = page(examine(inspection, examples), inspection)
    assert len(re.findall("data:image/jpeg", html)) > 50
    assert len(html) < MAX_BYTES


def test_the_overview_counts() -> None:
    boxes = ((0, 0.0, 0.0, 64.0, 64.0), (1, 0.0, 0.0, 32.0, 32.0), (1, 0.0, 0.0, 4.0, 4.0))
    images = [Shown("a.jpg", boxes, (320, 640)), Shown("b.jpg", boxes[:1], (640, 640)), Shown("c.jpg", (), (640, 640))]
    shown = overview(inspected({"train": images, "val": images[:1]}))
    assert shown.boxes_of_class == {"train": (2, 2), "val": (1, 2)}
    assert shown.objects_per_image == ((1, 1, 0, 2), (0, 1, 2, 3, 4))
    assert shown.image_sizes == (("640×320", 2), ("640×640", 2))
    assert {name: len(samples) for name, samples in shown.samples.items()} == {"train": 3, "val": 1}
    # Stretched from 640×320 to 640×640, √area grows by √2: twice 5.7, twice 45.3, twice 90.5, and 64 once.
    counts = dict(zip(shown.box_sides.edges, shown.box_sides.counts, strict=False))
    assert {round(edge, 1): count for edge, count in counts.items() if count} == {5.7: 2, 45.3: 2, 64: 1, 90.5: 2}


@pytest.mark.parametrize("number", [3, 30, 700])
def test_objects_per_image_are_counted_in_at_most_thirty_bins(number: int) -> None:
    boxes = ((0, 0.0, 0.0, 9.0, 9.0),) * number
    histogram = overview(inspected({"train": [Shown("a.jpg", boxes), Shown("b.jpg")]})).objects_per_image
    assert len(histogram.counts) <= 31
    assert sum(histogram.counts) == 2
    assert histogram.counts[0] == 1


def test_copies_are_shown_beside_each_other(tmp_path: Path) -> None:
    folder = write_coco(tmp_path / "data")
    for name, quality in (("train/a.jpg", 95), ("val/e.jpg", 80)):
        picture("a").save(folder / name, quality=quality)
    html = page(examine(inspection := inspect(folder)), inspection)
    (image,) = (image for image in parsed(html).all("img") if "looks like train/a.jpg" in (image["alt"] or ""))
    pixels = pixels_of(image["src"])
    half = (pixels.shape[1] - 6) // 2
    assert pixels.shape[:2] == (213, 2 * 320 + 6)
    assert np.abs(pixels[:, half + 1 : half + 5] - 128).mean() < 20
    assert np.abs(pixels[:, : half - 2] - pixels[:, -half:-2]).mean() < 8
