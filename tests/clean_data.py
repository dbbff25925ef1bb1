"""Tiny data sets without a fault, in each format, for tests that plant one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 96, 64
NAMES = ("cat", "dog")
PARTS = {"train": ("a", "b", "c", "d"), "val": ("e", "f")}
"""The images of each part; all have the same boxes."""
BOXES = {"cat": (10, 12, 30, 20), "dog": (50, 8, 40, 48)}
"""Left, top, width and height."""


def picture(name: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """An image that looks like no other."""
    rng = np.random.default_rng(sum(name.encode()))
    return Image.fromarray(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


def write_coco(folder: Path) -> Path:
    """Roboflow's layout, one entry per line: annotation k of an image is 2 × its number + k."""
    for part, names in PARTS.items():
        place = folder / part
        place.mkdir(parents=True)
        for name in names:
            picture(name).save(place / f"{name}.jpg")
        images = [
            {"id": i, "file_name": f"{name}.jpg", "width": WIDTH, "height": HEIGHT} for i, name in enumerate(names)
        ]
        annotations = [
            {"id": 2 * i + k, "image_id": i, "category_id": k, "bbox": list(box), "iscrowd": 0}
            for i in range(len(names))
            for k, box in enumerate(BOXES.values())
        ]
        categories = [{"id": k, "name": name} for k, name in enumerate(NAMES)]
        write_json(coco_file(folder, part), {"images": images, "annotations": annotations, "categories": categories})
    return folder


def coco_file(folder: Path, part: str = "train") -> Path:
    """The annotations of a part."""
    return folder / part / "_annotations.coco.json"


def write_json(path: Path, content: dict[str, Any]) -> None:
    """JSON with a line for each entry of a list: the first entry of the first list is on line 3."""
    lists = (
        f"{json.dumps(key)}: [\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]" for key, rows in content.items()
    )
    path.write_text("{\n" + ",\n".join(lists) + "\n}\n", encoding="utf-8")


def edit_coco(folder: Path, change: Callable[[dict[str, Any]], object], part: str = "train") -> None:
    """Change the content of a part's annotations."""
    content = json.loads(coco_file(folder, part).read_text(encoding="utf-8"))
    change(content)
    write_json(coco_file(folder, part), content)


def write_yolo(folder: Path) -> Path:
    """data.yaml, images/ and labels/."""
    for part, names in PARTS.items():
        for name in names:
            for kind in ("images", "labels"):
                (folder / kind / part).mkdir(parents=True, exist_ok=True)
            picture(name).save(folder / "images" / part / f"{name}.jpg")
            lines = [yolo_line(k, *box) for k, box in enumerate(BOXES.values())]
            (folder / "labels" / part / f"{name}.txt").write_text("".join(lines))
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {list(NAMES)}\n")
    return folder


def yolo_line(label: int, left: float, top: float, width: float, height: float) -> str:
    """A line of a label file."""
    center = (left + width / 2) / WIDTH, (top + height / 2) / HEIGHT
    return f"{label} {center[0]:.7f} {center[1]:.7f} {width / WIDTH:.7f} {height / HEIGHT:.7f}\n"


def write_voc(folder: Path) -> Path:
    """Annotations/, JPEGImages/ and ImageSets/Main/."""
    for kind in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / kind).mkdir(parents=True)
    for part, names in PARTS.items():
        (folder / "ImageSets/Main" / f"{part}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            picture(name).save(folder / "JPEGImages" / f"{name}.jpg")
            (folder / "Annotations" / f"{name}.xml").write_text(voc_xml(f"{name}.jpg"))
    return folder


def voc_xml(file_name: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> str:
    """An annotation: the objects begin on lines 4 and 5."""
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
        "</bndbox></object>\n"
        for name, (x, y, w, h) in BOXES.items()
    )
    shape = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation>\n<filename>{file_name}</filename>\n{shape}\n{objects}</annotation>\n"


def write_labelme(folder: Path) -> Path:
    """A JSON file beside each image."""
    for part, names in PARTS.items():
        (folder / part).mkdir(parents=True)
        for name in names:
            picture(name).save(folder / part / f"{name}.jpg")
            shapes = [
                {"label": label, "points": [[x, y], [x + w, y + h]], "shape_type": "rectangle", "group_id": None}
                for label, (x, y, w, h) in BOXES.items()
            ]
            content = {"imagePath": f"{name}.jpg", "imageWidth": WIDTH, "imageHeight": HEIGHT, "shapes": shapes}
            (folder / part / f"{name}.json").write_text(json.dumps(content, indent=0))
    return folder


def write_cvat(folder: Path) -> Path:
    """The export of a project: annotations.xml, and the images of each subset in images/."""
    subset_of = {"train": "Train", "val": "Validation"}
    rows = []
    for part, names in PARTS.items():
        place = folder / "images" / subset_of[part]
        place.mkdir(parents=True)
        for name in names:
            picture(name).save(place / f"{name}.jpg")
            boxes = "".join(
                f'<box label="{label}" xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}"/>\n'
                for label, (x, y, w, h) in BOXES.items()
            )
            size = f'width="{WIDTH}" height="{HEIGHT}"'
            rows.append(f'<image id="0" name="{name}.jpg" subset="{subset_of[part]}" {size}>\n{boxes}</image>\n')
    labels = "".join(f"<label><name>{name}</name></label>" for name in NAMES)
    head = f"<annotations>\n<meta><project><labels>{labels}</labels></project></meta>\n"
    (folder / "annotations.xml").write_text(f"{head}{''.join(rows)}</annotations>\n")
    return folder
