"""Damaged annotation files: images and a warning, or one `DatasetError`; nothing else, and never silence.

The doctor finds what stops training, and nothing stops the doctor.

RTDETRV4_MUTATIONS=3000 tries that many damages of each format instead of a few.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rtdetrv4.data.formats import read_splits
from rtdetrv4.doctor import doctor
from rtdetrv4.errors import DatasetError

NUM_EXAMPLES = int(os.environ.get("RTDETRV4_MUTATIONS", "30"))
BOXES = {"a": [(0, 8, 4, 40, 20)], "b": [(1, 16, 8, 24, 12), (0, 40, 20, 8, 4)], "c": []}
SIZE = (80, 40)
OTHER_VALUES: list[Any] = [
    *(None, True, -1, 0, 1.5, 10**30, float("nan"), float("inf"), 1e300),
    *("", "x", "1", "../x", "\ud800", "\0", [], {}, [[]], [1, 2, 3, 4], {"id": 1}),
]
OTHER_TEXTS = [
    "",
    "-1",
    "nan",
    "inf",
    "1e400",
    "9" * 400,
    "0x10",
    "a b",
    "#",
    "\x00",
    "é",
    "[",
    "{",
    ": :",
    "<",
    "&",
    "٣",
]


def coco() -> dict[str, str]:
    images = [{"id": i, "file_name": f"{stem}.jpg", "width": 80, "height": 40} for i, stem in enumerate(BOXES)]
    annotations = [
        {"id": 10 * i + j, "image_id": i, "category_id": label + 1, "bbox": box, "area": 9, "iscrowd": 0}
        for i, boxes in enumerate(BOXES.values())
        for j, (label, *box) in enumerate(boxes)
    ]
    categories = [{"id": 1, "name": "cat", "supercategory": "animal"}, {"id": 2, "name": "dog"}]
    return {"train.json": json.dumps({"images": images, "annotations": annotations, "categories": categories})}


def labels() -> dict[str, str]:
    lines = {
        stem: [
            f"{label} {(x + w / 2) / SIZE[0]} {(y + h / 2) / SIZE[1]} {w / SIZE[0]} {h / SIZE[1]}"
            for label, x, y, w, h in boxes
        ]
        for stem, boxes in BOXES.items()
    }
    return {f"{stem}.txt": "\n".join(each) for stem, each in lines.items()}


def yolo() -> dict[str, str]:
    yaml = "path: .\ntrain: train.txt\nval: [.]\nnc: 2\nnames:\n  0: cat\n  1: dog\nkpt_shape: null\n"
    return labels() | {"data.yaml": yaml, "train.txt": "./a.jpg\nb.jpg\n/mnt/c.jpg\n"}


def darknet() -> dict[str, str]:
    lists = {"obj.data": "train = data/train.txt\nnames = obj.names\n", "train.txt": "data/a.jpg\nb.jpg\nc.jpg\n"}
    return labels() | lists | {"obj.names": "cat\ndog\n"}


def label_studio() -> dict[str, str]:
    return labels() | {"notes.json": '{"categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]}'}


def voc() -> dict[str, str]:
    files = {}
    for stem, boxes in BOXES.items():
        objects = "\n".join(
            f"<object><name>{label}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax>"
            f"<ymax>{y + h}</ymax></bndbox></object>"
            for label, x, y, w, h in boxes
        )
        size = "<size>\n<width>80</width>\n<height>40</height>\n</size>"
        files[f"{stem}.xml"] = f"<annotation>\n<filename>{stem}.jpg</filename>\n{size}\n{objects}\n</annotation>"
    return files | {"train.txt": "a\nb\nc\n"}


def cvat() -> dict[str, str]:
    labels = "\n".join(f"<label>\n<name>class {label}</name>\n</label>" for label in range(2))
    rows = "\n".join(
        f'<image id="{number}" name="{stem}.jpg" subset="Train" width="80" height="40">\n'
        + "\n".join(
            f'<box label="class {label}" xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}" rotation="0.0">\n</box>'
            for label, x, y, w, h in boxes
        )
        + "\n</image>"
        for number, (stem, boxes) in enumerate(BOXES.items())
    )
    meta = f"<meta>\n<task>\n<labels>\n{labels}\n</labels>\n</task>\n</meta>"
    return {"annotations.xml": f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n{meta}\n{rows}\n</annotations>'}


def labelme() -> dict[str, str]:
    return {
        f"{stem}.json": json.dumps(
            {
                "shapes": [
                    {
                        "label": f"class {label}",
                        "points": [[x, y], [x + w, y + h]],
                        "group_id": None,
                        "shape_type": kind,
                    }
                    for label, x, y, w, h in boxes
                    for kind in ("rectangle", "circle")
                ],
                "imagePath": f"{stem}.jpg",
                "imageHeight": 40,
                "imageWidth": 80,
            }
        )
        for stem, boxes in BOXES.items()
    }


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in a JSON value with each of its keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, each in items for place in ((value, key), *places(each))]


@st.composite
def damaged(draw: st.DrawFn, files: dict[str, str]) -> tuple[str, bytes]:
    """The name of a file and its new content: bytes, JSON values or the words of lines changed."""
    name = draw(st.sampled_from(sorted(files)))
    text = files[name]
    kind = draw(
        st.sampled_from(["bytes", "words", "lines", "cut", *(["values"] * 3 if name.endswith(".json") else [])])
    )
    if kind == "values":
        content = json.loads(text)
        for _ in range(draw(st.integers(1, 3))):
            if found := places(content):
                container, key = draw(st.sampled_from(found))
                if draw(st.booleans()) and isinstance(container, dict):
                    del container[key]
                else:
                    container[key] = copy.deepcopy(draw(st.sampled_from(OTHER_VALUES)))
        return name, json.dumps(content).encode()
    if kind == "cut":
        return name, text.encode()[: draw(st.integers(0, len(text)))]
    if kind == "bytes":
        data = bytearray(text.encode())
        for _ in range(draw(st.integers(1, 8))):
            if data:
                position = draw(st.integers(0, len(data) - 1))
                data[position : position + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
        return name, bytes(data)
    lines = text.split("\n")
    position = draw(st.integers(0, len(lines) - 1))
    if kind == "lines":
        lines[position : position + 1] = draw(st.sampled_from([[], [lines[position]] * 2, lines[::-1], ["\ufeff", ""]]))
    else:
        words = lines[position].split(" ")
        words[draw(st.integers(0, len(words) - 1))] = draw(st.sampled_from(OTHER_TEXTS))
        lines[position] = " ".join(words)
    return name, "\n".join(lines).encode("utf-8", errors="surrogatepass")


@pytest.mark.parametrize("write", [coco, yolo, darknet, label_studio, voc, cvat, labelme])
def test_damaged_files(tmp_path_factory: pytest.TempPathFactory, write: Callable[[], dict[str, str]]) -> None:
    root: Path = tmp_path_factory.mktemp("data")
    for shade, stem in enumerate(BOXES):
        Image.new("RGB", SIZE, (90 * shade, 60, 120)).save(root / f"{stem}.jpg")
    files = write()
    for name, text in files.items():
        (root / name).write_text(text, encoding="utf-8")
    whole = read_splits(root).train
    assert whole is not None
    assert [len(record.labels) for record in whole.records][1:] in ([2, 0], [4, 0])

    @settings(max_examples=NUM_EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(damaged(files))
    def check(change: tuple[str, bytes]) -> None:
        name, content = change
        (root / name).write_bytes(content)
        findings = doctor(root)
        json.loads(findings.to_json())
        stops = {"D001", "D003"}.intersection(finding.code for finding in findings.findings)
        try:
            splits = read_splits(root)
        except DatasetError as error:
            assert "\n" not in str(error)  # noqa: PT017
            assert stops, "the doctor does not say that training stops"
        else:
            assert sum(len(part.records) for part in splits.parts.values()) > 0
            told = [*splits.notes, *(problem for part in splits.parts.values() for problem in part.problems)]
            assert all("\n" not in each for each in told)
            num_boxes = sum(len(record.labels) for part in splits.parts.values() for record in part.records)
            assert num_boxes or len(told) > 1, "all boxes are gone, and nothing says so"
            is_trained_on = splits.train is not None and any(len(record.labels) for record in splits.train.records)
            assert bool(stops) != is_trained_on, "the doctor says that training stops, and it does not, or the reverse"
        finally:
            (root / name).write_text(files[name], encoding="utf-8")

    check()
