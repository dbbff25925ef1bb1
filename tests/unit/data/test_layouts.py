"""Whatever lies in a folder is recognized: the same boxes come out of every layout."""

from __future__ import annotations

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rtdetrv4.data.formats import Split, read_splits
from rtdetrv4.data.tree import Tree
from rtdetrv4.errors import DatasetError
from rtdetrv4.types import ClassMap

SIZE = (80, 40)
"""Width and height of every image."""
NAMES = ("cat", "dog")
PARTS = {
    "train": {"a": [(0, 8, 4, 40, 20)], "b": [(1, 16, 8, 24, 12), (0, 40, 20, 8, 4)]},
    "val": {"c": [(1, 0, 0, 80, 40)]},
}
"""Class number, left, top, width and height of the boxes of each image."""
Boxes = list[tuple[int, int, int, int, int]]
TRAIN_ONLY = {"train": PARTS["train"]}


def write_image(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SIZE, (shade, 60, 120)).save(path, "JPEG")


def write_text(path: Path, text: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def coco(images: Mapping[str, Boxes], first_image: int = 0, first_class: int = 1) -> str:
    rows = [
        {"id": first_image + i, "file_name": name, "width": SIZE[0], "height": SIZE[1]} for i, name in enumerate(images)
    ]
    boxes = [
        {"image_id": row["id"], "category_id": first_class + label, "bbox": box, "iscrowd": 0}
        for row, objects in zip(rows, images.values(), strict=True)
        for label, *box in objects
    ]
    for number, box in enumerate(boxes):
        box["id"] = number
    categories = [{"id": first_class + i, "name": name} for i, name in enumerate(NAMES)]
    return json.dumps({"images": rows, "annotations": boxes, "categories": categories})


def yolo(objects: Boxes) -> str:
    width, height = SIZE
    return "".join(
        f"{label} {(x + w / 2) / width} {(y + h / 2) / height} {w / width} {h / height}\n"
        for label, x, y, w, h in objects
    )


def voc(name: str, objects: Boxes) -> str:
    rows = "".join(
        f"<object><name>{NAMES[label]}</name><bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{x + w}</xmax>"
        f"<ymax>{y + h}</ymax></bndbox></object>"
        for label, x, y, w, h in objects
    )
    size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}</filename>{size}{rows}</annotation>"


def labelme(image: str, objects: Boxes, *, polygons: bool = False) -> str:
    shapes = []
    for label, x, y, w, h in objects:
        corners = [[x, y], [x + w, y], [x + w, y + h], [x, y + h]]
        points = corners if polygons else corners[::2]
        shapes.append(
            {"label": NAMES[label], "points": points, "shape_type": "polygon" if polygons else "rectangle", "flags": {}}
        )
    return json.dumps(
        {"version": "5.4.1", "shapes": shapes, "imagePath": image, "imageHeight": SIZE[1], "imageWidth": SIZE[0]}
    )


def cvat(images: Mapping[str, Boxes], subsets: Mapping[str, str] | None = None, task: str = "task") -> str:
    """A file as CVAT writes it; `subsets` gives that of each image, as in the export of a project."""
    labels = "".join(f"<label><name>{name}</name><type>any</type><attributes/></label>" for name in NAMES)
    rows = "".join(
        f'<image id="{number}" name="{name}" width="{SIZE[0]}" height="{SIZE[1]}"'
        + (f' subset="{subsets[name]}" task_id="7">' if subsets else ">")
        + "".join(
            f'<box label="{NAMES[label]}" source="manual" occluded="1" xtl="{x:.2f}" ytl="{y:.2f}" xbr="{x + w:.2f}" '
            f'ybr="{y + h:.2f}" z_order="0"><attribute name="color">red</attribute></box>'
            for label, x, y, w, h in boxes
        )
        + "</image>\n"
        for number, (name, boxes) in enumerate(images.items())
    )
    head = '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n'
    return f"{head}<meta><{task}><name>cats</name><labels>{labels}</labels></{task}></meta>\n{rows}</annotations>\n"


# Generators -----------------------------------------------------------------------------------------------------------

Generator = Callable[[Path], Any]
"""Writes a data set into a folder; returns what is given as data, if it is not the folder."""
WITH_VAL: dict[str, Generator] = {}
WITHOUT_VAL: dict[str, Generator] = {}


def layout(table: dict[str, Generator]) -> Callable[[Generator], Generator]:
    def register(function: Generator) -> Generator:
        table[function.__name__] = function
        return function

    return register


def write_coco(root: Path, images: str, annotations: str, file_name: str = "{stem}.jpg", parts: Any = PARTS) -> None:
    """Paths may have {split} and {stem} in them."""
    for number, (split, content) in enumerate(parts.items()):
        for stem in content:
            write_image(root / images.format(split=split) / f"{stem}.jpg", ord(stem))
        named = {file_name.format(split=split, stem=stem): boxes for stem, boxes in content.items()}
        write_text(root / annotations.format(split=split), coco(named, 10 * number, 1 + number))


def write_yolo(root: Path, images: str, labels: str, parts: Any = PARTS) -> None:
    for split, content in parts.items():
        for stem, boxes in content.items():
            write_image(root / images.format(split=split) / f"{stem}.jpg", ord(stem))
            write_text(root / labels.format(split=split) / f"{stem}.txt", yolo(boxes))


def write_voc(root: Path, images: str, annotations: str, parts: Any = PARTS, suffix: str = ".jpg") -> None:
    for split, content in parts.items():
        for stem, boxes in content.items():
            write_image(root / images.format(split=split) / f"{stem}{suffix}", ord(stem))
            write_text(root / annotations.format(split=split) / f"{stem}.xml", voc(f"{stem}{suffix}", boxes))


def write_lists(folder: Path, line: str, names: Mapping[str, str] | None = None, end: str = "\n") -> None:
    for split, content in PARTS.items():
        lines = [line.format(split=split, stem=stem) for stem in content]
        write_text(folder / (names or {}).get(split, f"{split}.txt"), end.join(lines) + end)


@layout(WITH_VAL)
def coco_of_roboflow(root: Path) -> None:
    write_coco(root, "{split}", "{split}/_annotations.coco.json")
    (root / "val").rename(root / "valid")
    write_text(root / "README.roboflow.txt", "exported")


@layout(WITH_VAL)
def coco_of_roboflow_in_one_folder(root: Path) -> None:
    write_coco(root, "", "_annotations.coco.{split}.json")


@layout(WITH_VAL)
def coco_official(root: Path) -> None:
    write_coco(root, "{split}2017", "annotations/instances_{split}2017.json")
    write_coco(root, "{split}2017", "annotations/person_keypoints_{split}2017.json")
    write_text(
        root / "annotations" / "captions_train2017.json",
        json.dumps({"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "a cat"}]}),
    )


@layout(WITH_VAL)
def coco_beside_one_folder_of_images(root: Path) -> None:
    write_coco(root, "images/deep/{split}", "{split}.json")


@layout(WITH_VAL)
def coco_with_paths_in_file_names(root: Path) -> None:
    write_coco(root, "images/{split}", "labels/{split}.json", "images/{split}/{stem}.jpg")


@layout(WITH_VAL)
def coco_of_cvat_with_parts(root: Path) -> None:
    write_coco(root, "images/{split}", "annotations/instances_{split}.json")
    for split, name in (("train", "Train"), ("val", "Validation")):
        (root / "images" / split).rename(root / "images" / name)
        (root / "annotations" / f"instances_{split}.json").rename(root / "annotations" / f"instances_{name}.json")


@layout(WITH_VAL)
def coco_absolute_from_another_machine(root: Path) -> None:
    write_coco(root, "{split}/images", "{split}/coco.json", "C:\\Users\\Jo\\test\\{split}\\images\\{stem}.jpg")


@layout(WITH_VAL)
def coco_named_by_yaml(root: Path) -> Path:
    write_coco(root, "photos/{split}", "boxes/{split}1.json", parts=PARTS)
    a = {"photos/train/a.jpg": PARTS["train"]["a"]}
    b = {"photos/train/b.jpg": PARTS["train"]["b"]}
    write_text(root / "boxes" / "train1.json", coco(a))
    write_text(root / "boxes" / "more.json", coco(b, 0, 4))
    write_text(root / "set.yaml", "train: [boxes/train1.json, boxes/more.json]\nval: boxes\\val1.json\nimages: .\n")
    return root / "set.yaml"


@layout(WITHOUT_VAL)
def coco_of_cvat(root: Path) -> None:
    write_coco(root, "images/default", "annotations/instances_default.json", parts=TRAIN_ONLY)


@layout(WITHOUT_VAL)
def coco_of_label_studio(root: Path) -> None:
    write_coco(root, "images", "result.json", "images/{stem}.jpg", TRAIN_ONLY)


@layout(WITHOUT_VAL)
def coco_of_label_studio_with_the_servers_paths(root: Path) -> None:
    write_coco(root, "images", "result.json", "../../label-studio/data/media/upload/1/{stem}.jpg", TRAIN_ONLY)


@layout(WITHOUT_VAL)
def coco_of_label_studio_with_local_files(root: Path) -> None:
    write_coco(root, "images", "result.json", "/data/local-files/?d=images/{stem}.jpg", TRAIN_ONLY)


@layout(WITHOUT_VAL)
def coco_of_label_studio_without_its_images(root: Path) -> None:
    write_coco(root, "photos", "result.json", "images/1f2e3d4c-{stem}.jpg", TRAIN_ONLY)


@layout(WITHOUT_VAL)
def coco_absolute_inside(root: Path) -> None:
    write_coco(root, "images", "result.json", f"{root.resolve()}/images/{{stem}}.jpg", TRAIN_ONLY)


@layout(WITHOUT_VAL)
def coco_file_itself(root: Path) -> Path:
    write_coco(root, "images", "annotations/all.json", parts=TRAIN_ONLY)
    return root / "annotations" / "all.json"


@layout(WITHOUT_VAL)
def coco_one_file_per_batch(root: Path) -> None:
    for number, (stem, boxes) in enumerate(PARTS["train"].items()):
        write_image(root / f"batch{number}" / "images" / f"{stem}.jpg", number)
        write_text(root / f"batch{number}" / "result.json", coco({f"{stem}.jpg": boxes}))


@layout(WITH_VAL)
def yolo_usual(root: Path) -> None:
    write_yolo(root, "images/{split}", "labels/{split}")
    write_text(root / "data.yaml", f"train: images/train\nval: images/val\nnc: 2\nnames: {list(NAMES)}\n")


@layout(WITH_VAL)
def yolo_of_roboflow(root: Path) -> None:
    write_yolo(root, "{split}/images", "{split}/labels")
    (root / "val").rename(root / "valid")
    write_text(
        root / "data.yaml",
        f"train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: {list(NAMES)}\n",
    )


@layout(WITH_VAL)
def yolo_of_windows(root: Path) -> None:
    write_yolo(root, "images/{split}", "labels/{split}")
    text = (
        f"path: C:\\Users\\Jo\\set\ntrain: C:\\Users\\Jo\\set\\images\\train\nval: images\\val\nnames: {list(NAMES)}\n"
    )
    write_text(root / "data.yaml", b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())


@layout(WITH_VAL)
def yolo_of_another_user(root: Path) -> None:
    write_yolo(root, "images/{split}", "labels/{split}")
    write_text(
        root / "dataset.yml",
        f"path: /home/someone/else\ntrain: /home/someone/else/images/train/\nval: /home/someone/else/images/val/\n"
        f"names:\n  0: {NAMES[0]}\n  1: {NAMES[1]}\n",
    )


@layout(WITH_VAL)
def yolo_with_several_folders(root: Path) -> Path:
    for stem in PARTS["train"]:
        write_yolo(root, f"{stem}/images", f"{stem}/labels", {"train": {stem: PARTS["train"][stem]}})
    write_yolo(root, "c/images", "c/labels", {"val": PARTS["val"]})
    write_text(root / "data.yaml", f"train:\n  - a/images\n  - b/images\nval: [c/images]\nnames: {list(NAMES)}\n")
    return root / "data.yaml"


@layout(WITH_VAL)
def yolo_without_yaml(root: Path) -> None:
    write_yolo(root, "images/{split}", "labels/{split}")
    write_text(root / "classes.txt", "cat\r\ndog\r\n")


@layout(WITH_VAL)
def yolo_without_yaml_in_folders_of_parts(root: Path) -> None:
    write_yolo(root, "{split}/images", "{split}/labels")
    for split in PARTS:
        write_text(root / split / "labels" / "classes.txt", "cat\ndog\n"[: 4 if split == "val" else None])


@layout(WITH_VAL)
def yolo_of_cvat(root: Path) -> None:
    write_yolo(root, "obj_{split}_data", "obj_{split}_data")
    write_text(
        root / "obj.data", "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\n"
    )
    write_text(root / "obj.names", "cat\ndog\n")
    write_lists(root, "data/obj_{split}_data/{stem}.jpg", {"val": "valid.txt"})


@layout(WITH_VAL)
def yolo_of_cvat_for_ultralytics(root: Path) -> None:
    write_yolo(root, "images/{split}", "labels/{split}")
    write_text(root / "data.yaml", "names:\n  0: cat\n  1: dog\npath: .\ntrain: train.txt\nval: val.txt\n")
    write_lists(root, "data/images/{split}/{stem}.jpg")


@layout(WITH_VAL)
def yolo_lists_of_absolute_paths(root: Path) -> None:
    write_yolo(root, "images", "labels")
    write_text(root / "data.yaml", f"train: train.txt\nval: val.txt\nnames: {list(NAMES)}\n")
    write_lists(root, "D:\\work\\set\\images\\{stem}.jpg", end="\r\n")


@layout(WITH_VAL)
def yolo_linked_and_given_through_a_link(root: Path) -> Path:
    real = root.with_name("real")
    write_yolo(real, "images/{split}", "labels/{split}")
    write_lists(real, f"{real.resolve()}/images/{{split}}/{{stem}}.jpg")
    write_text(real / "data.yaml", f"train: train.txt\nval: val.txt\nnames: {list(NAMES)}\n")
    root.rmdir()
    root.symlink_to(real, target_is_directory=True)
    (real / "images" / "loop").symlink_to(real, target_is_directory=True)
    return root / "data.yaml"


@layout(WITHOUT_VAL)
def yolo_of_labelimg(root: Path) -> None:
    write_yolo(root, "", "", TRAIN_ONLY)
    write_text(root / "classes.txt", "cat\ndog\n")


@layout(WITHOUT_VAL)
def yolo_of_label_studio(root: Path) -> None:
    write_yolo(root, "images", "labels", TRAIN_ONLY)
    write_text(
        root / "notes.json",
        json.dumps({"categories": [{"id": i, "name": name} for i, name in enumerate(NAMES)], "info": {"version": "1"}}),
    )


@layout(WITHOUT_VAL)
def yolo_of_roboflow_for_darknet(root: Path) -> None:
    write_yolo(root, "train", "train", TRAIN_ONLY)
    write_text(root / "train" / "_darknet.labels", "cat\ndog\n")


@layout(WITHOUT_VAL)
def yolo_with_labels_arranged_differently(root: Path) -> None:
    write_yolo(root, "photos/batch1", "labels", TRAIN_ONLY)
    write_text(root / "obj.names", "cat\ndog\n\n")


@layout(WITH_VAL)
def voc_of_the_challenges(root: Path) -> None:
    write_voc(root / "VOC2012", "JPEGImages", "Annotations")
    write_lists(root / "VOC2012" / "ImageSets" / "Main", "{stem}")
    write_text(root / "VOC2012" / "ImageSets" / "Main" / "cat_train.txt", "a  1\nb -1\n")
    write_text(root / "VOC2012" / "ImageSets" / "Main" / "trainval.txt", "a\nb\nc\n")


@layout(WITH_VAL)
def voc_of_roboflow(root: Path) -> None:
    write_voc(root, "{split}", "{split}")


@layout(WITH_VAL)
def voc_in_folders_of_parts(root: Path) -> None:
    write_voc(root, "{split}/images", "{split}/annots")


@layout(WITH_VAL)
def voc_lists_with_extensions_and_columns(root: Path) -> None:
    write_voc(root, "images", "xmls", suffix=".JPG")
    write_text(root / "train.txt", "images/a.JPG xmls/a.xml\nimages/b.JPG xmls/b.xml\n")
    write_text(root / "val.txt", "c.JPG\n")


@layout(WITH_VAL)
def voc_lists_with_folders(root: Path) -> None:
    write_voc(root, "JPEGImages/cam (1)/{split}", "Annotations/cam (1)/{split}")
    write_lists(root / "ImageSets" / "Main", "cam (1)/{split}/{stem}")


@layout(WITHOUT_VAL)
def voc_of_cvat(root: Path) -> None:
    write_voc(root, "JPEGImages", "Annotations", TRAIN_ONLY)
    write_text(root / "ImageSets" / "Main" / "default.txt", "a\nb\n")
    write_text(root / "labelmap.txt", "# label:color_rgb:parts:actions\ncat:1,2,3::\ndog:3,2,1::\n")


@layout(WITHOUT_VAL)
def cvat_task(root: Path) -> None:
    for stem in PARTS["train"]:
        write_image(root / "images" / "cam 1" / f"{stem}.jpg", ord(stem))
    named = {f"cam 1/{stem}.jpg": boxes for stem, boxes in PARTS["train"].items()}
    write_text(root / "annotations.xml", cvat(named))


@layout(WITHOUT_VAL)
def cvat_jobs_without_images(root: Path) -> None:
    for number, (stem, boxes) in enumerate(PARTS["train"].items()):
        write_image(root / "photos" / f"{stem}.jpg", ord(stem))
        write_text(root / f"job_{number}" / "annotations.xml", cvat({f"{stem}.jpg": boxes}, task="job"))


@layout(WITH_VAL)
def cvat_project(root: Path) -> None:
    subset_of = {"train": "Train", "val": "Validation"}
    for split, content in PARTS.items():
        for stem in content:
            write_image(root / "images" / subset_of[split] / f"{stem}.jpg", ord(stem))
    named = {f"{stem}.jpg": boxes for content in PARTS.values() for stem, boxes in content.items()}
    subsets = {f"{stem}.jpg": subset_of[split] for split, content in PARTS.items() for stem in content}
    write_text(root / "annotations.xml", cvat(named, subsets, "project"))


@layout(WITH_VAL)
def cvat_files_named_after_parts(root: Path) -> None:
    for split, content in PARTS.items():
        for stem in content:
            write_image(root / split / "images" / f"{stem}.jpg", ord(stem))
        write_text(root / split / "annotations.xml", cvat({f"{stem}.jpg": boxes for stem, boxes in content.items()}))


@layout(WITHOUT_VAL)
def cvat_file_that_is_given(root: Path) -> Path:
    cvat_task(root)
    return root / "annotations.xml"


@layout(WITHOUT_VAL)
def voc_side_by_side(root: Path) -> None:
    write_voc(root, "", "", TRAIN_ONLY)


@layout(WITHOUT_VAL)
def voc_without_lists(root: Path) -> None:
    write_voc(root, "images", "annotations", TRAIN_ONLY)


@layout(WITHOUT_VAL)
def labelme_beside_the_images(root: Path) -> None:
    for stem, boxes in PARTS["train"].items():
        write_image(root / f"{stem}.jpg", ord(stem))
        write_text(root / f"{stem}.json", labelme(f"{stem}.jpg", boxes))


@layout(WITHOUT_VAL)
def labelme_in_a_folder_of_its_own(root: Path) -> None:
    for stem, boxes in PARTS["train"].items():
        write_image(root / "images" / f"{stem}.jpg", ord(stem))
        write_text(root / "json" / f"{stem}.json", labelme(f"..\\images\\{stem}.jpg", boxes, polygons=True))


@layout(WITH_VAL)
def labelme_in_folders_of_parts(root: Path) -> None:
    for split, content in PARTS.items():
        for stem, boxes in content.items():
            write_image(root / split / f"{stem}.jpg", ord(stem))
            write_text(root / split / f"{stem}.json", labelme(f"{stem}.jpg", boxes))


def shown(split: Split | None) -> dict[str, list[tuple[str, list[float]]]]:
    """Class names and boxes by the stems of the images, after checking that the images are there."""
    assert split is not None
    assert all((split.image_dir / record.info.file_name).is_file() for record in split.records)
    return {
        Path(record.info.file_name).stem: [
            (split.classes.names[label], box.round(3).tolist())
            for label, box in zip(record.labels, record.boxes_xyxy_px, strict=True)
        ]
        for record in split.records
    }


def expected(split: str) -> dict[str, list[tuple[str, list[float]]]]:
    return {
        stem: [(NAMES[label], [x, y, x + w, y + h]) for label, x, y, w, h in boxes]
        for stem, boxes in PARTS[split].items()
    }


def add_what_does_not_belong(root: Path) -> None:
    """Files and folders that other tools leave behind."""
    write_text(root / "environment.yml", "name: base\nchannels: [conda-forge]\ndependencies:\n  - python=3.11\n")
    write_text(root / "requirements.txt", "torch\n")
    write_text(root / "package.json", '{"name": "viewer", "images": ["logo.jpg"], "files": {}}')
    write_text(root / "README.md", "train: read me\n")
    write_text(root / "broken.yaml", "a: [1\n")
    write_text(root / ".git" / "data.yaml", "train: images\nnames: [wrong]\n")
    write_image(root / "docs" / "screenshot.jpg")
    for folder in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
        for name in ("a.jpg", "a-checkpoint.jpg"):
            write_image(root / folder / name)
        write_text(root / folder / "a.txt", "1 0.5 0.5 1 1\n")
        write_text(root / folder / "train.json", coco({"a.jpg": [(0, 0, 0, 5, 5)]}))
    for file in [file for file in root.rglob("*") if file.is_file() and not file.name.startswith(".")]:
        file.with_name(f"._{file.name}").write_bytes(b"\x00\x05\x16\x07" * 9)


@pytest.mark.parametrize("is_cluttered", [False, True])
@pytest.mark.parametrize("generator", [*WITH_VAL.values(), *WITHOUT_VAL.values()], ids=lambda each: each.__name__)
def test_every_layout_gives_the_same_boxes(tmp_path: Path, generator: Generator, is_cluttered: bool) -> None:
    root = tmp_path / "data"
    root.mkdir()
    given = generator(root) or root
    if is_cluttered:
        add_what_does_not_belong(root)
    splits = read_splits(given)
    assert shown(splits.train) == expected("train")
    assert splits.train is not None
    assert splits.train.classes.names == NAMES
    assert splits.train.problems == ()
    if generator.__name__ in WITH_VAL:
        assert shown(splits.val) == expected("val")
    else:
        assert splits.val is None
    assert splits.test is None


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    return root


def test_of_two_readings_one_is_taken_and_the_other_told(root: Path) -> None:
    yolo_usual(root)
    write_text(root / "train.json", coco({"images/train/a.jpg": PARTS["val"]["c"]}))
    splits = read_splits(root)
    assert shown(splits.train) == expected("train")
    assert splits.notes == (
        "Data read as YOLO, described by data.yaml",
        f"COCO (train.json) is there as well; to use that instead, give {root / 'train.json'} as data",
    )
    assert shown(read_splits(root / "train.json").train) == {"a": [("dog", [0, 0, 80, 40])]}


def test_a_damaged_description_is_told(root: Path) -> None:
    yolo_usual(root)
    write_text(root / "data.yaml", "train: images/train\nnames: [cat, dog\n")
    write_text(root / "classes.txt", "cat\ndog\n")
    splits = read_splits(root)
    assert shown(splits.train) == expected("train")
    assert "data.yaml is not valid YAML" in splits.notes[1]
    write_yolo(root / "other", "images", "texts", TRAIN_ONLY)
    write_text(root / "other" / "data.yaml", "train: images\nnames: [cat, dog\n")
    with pytest.raises(DatasetError, match=r"data\.yaml is not valid YAML"):
        read_splits(root / "other")


@pytest.mark.parametrize("yaml", [None, "train: images/train\nval: images/val\n", "nc: 2\ntrain: images/train\n"])
def test_classes_without_names_are_numbered(root: Path, yaml: str | None) -> None:
    write_yolo(root, "images/{split}", "labels/{split}")
    if yaml:
        write_text(root / "data.yaml", yaml)
    splits = read_splits(root)
    assert splits.train is not None
    assert splits.train.classes.names == ("0", "1")
    assert [label for _, boxes in sorted(shown(splits.train).items()) for label, _ in boxes] == ["0", "1", "0"]
    assert "no names, so their numbers are used, 0 to 1; write the names into" in splits.notes[1]


@pytest.mark.parametrize(
    ("yaml", "told"),
    [
        (
            "train: images/train\nvall: images/val\nnames: [cat, dog]\n",
            '"vall" is unknown and ignored. Did you mean "val"?',
        ),
        (
            "train: images/train\nval: images/val\nname: [cat, dog]\n",
            '"name" is unknown and ignored. Did you mean "names"?',
        ),
        ("train: images/train\nvalid: images/val\nvall: x\nnames: [cat, dog]\ndownload: x\nkpt_shape: null\n", None),
    ],
)
def test_a_misspelled_entry_is_told(root: Path, yaml: str, told: str | None) -> None:
    write_yolo(root, "images/{split}", "labels/{split}")
    write_text(root / "data.yaml", yaml)
    notes = [note for note in read_splits(root).notes if "is unknown" in note]
    assert notes == ([] if told is None else [f"data.yaml: {told}"])


def test_lists_of_names_that_contradict_each_other(root: Path) -> None:
    yolo_without_yaml(root)
    write_text(root / "labels" / "train" / "classes.txt", "dog\ncat\n")
    with pytest.raises(DatasetError, match="number the classes differently"):
        read_splits(root)


@pytest.mark.parametrize("damage", ["missing", "empty", "unlabeled", "broken"])
def test_a_test_part_is_no_reason_to_stop(root: Path, damage: str) -> None:
    yolo_usual(root)
    write_text(root / "data.yaml", f"train: images/train\nval: images/val\ntest: images/test\nnames: {list(NAMES)}\n")
    if damage == "empty":
        (root / "images" / "test").mkdir()
    elif damage != "missing":
        write_image(root / "images" / "test" / "t.jpg")
    if damage == "broken":
        write_text(root / "labels" / "test" / "t.txt", "9 a b c d\n")
    splits = read_splits(root, parts=("train", "val"))
    assert shown(splits.train) == expected("train")
    assert splits.notes == ("Data read as YOLO, described by data.yaml",)
    everything = read_splits(root)
    assert everything.test is None
    assert everything.notes[1].startswith("No test part: ")
    if damage in {"unlabeled", "broken"}:
        with pytest.raises(DatasetError, match=r"none of the 1 images|class 9 is not one of"):
            read_splits(root, parts=("test",))
    else:
        assert read_splits(root, parts=("test",)).test is None


def test_parts_that_are_not_needed_are_not_read(root: Path) -> None:
    coco_of_roboflow(root)
    classes = ClassMap(NAMES, (1, 2))
    write_text(root / "train" / "_annotations.coco.json", '{"images": [], "annotations": [')
    splits = read_splits(root, classes, ("val",))
    assert shown(splits.val) == expected("val")
    assert splits.train is None
    assert "the training part is not: " in read_splits(root, parts=("val",)).notes[1]
    with pytest.raises(DatasetError, match="not valid JSON"):
        read_splits(root)


def test_a_described_validation_part_that_is_absent_is_made(root: Path) -> None:
    write_yolo(root, "images/{split}", "labels/{split}", TRAIN_ONLY)
    write_text(root / "data.yaml", f"train: images/train\nval: images/val\nnames: {list(NAMES)}\n")
    splits = read_splits(root, make_val=True)
    assert sorted([*shown(splits.train), *shown(splits.val)]) == ["a", "b"]
    assert splits.notes[1].startswith("No val part: ")
    assert read_splits(root).val is None
    only_val = read_splits(root, parts=("val",), make_val=True)
    assert only_val.train is None
    assert shown(only_val.val) == shown(splits.val)


def test_a_description_does_not_take_another_part(root: Path) -> None:
    """`valid/images` of another machine is not the `images` that lie here, even though the path ends like them."""
    write_yolo(root, "images", "labels", TRAIN_ONLY)
    write_text(root / "data.yaml", f"train: images\nval: /home/jo/set/valid/images\nnames: {list(NAMES)}\n")
    splits = read_splits(root)
    assert splits.val is None
    assert "val" in splits.notes[1]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("kind", ["coco", "yolo", "voc", "labelme"])
def test_names_in_another_unicode_form_or_case(root: Path, kind: str, form: Any) -> None:
    stem, other = (unicodedata.normalize(each, "Früh (1) größe") for each in (form, "NFD" if form == "NFC" else "NFC"))
    assert stem != other
    boxes = PARTS["train"]["a"]
    write_image(root / "images" / f"{stem}.JPG")
    text = {
        "coco": coco({f"{other}.jpg": boxes}),
        "yolo": yolo(boxes),
        "voc": voc(f"{other}.jpg", boxes),
        "labelme": labelme(f"{other}.jpg", boxes),
    }[kind]
    suffix = {"coco": "json", "yolo": "txt", "voc": "XML", "labelme": "json"}[kind]
    write_text(root / "labels" / f"{'train' if kind == 'coco' else other}.{suffix}", text)
    write_text(root / "classes.txt", "cat\ndog\n")
    train = read_splits(root).train
    assert shown(train) == {stem: expected("train")["a"]}


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
@pytest.mark.parametrize("kind", ["coco", "yolo", "voc"])
def test_names_that_are_not_utf8(root: Path, kind: str) -> None:
    stem = os.fsdecode("größe".encode("latin-1"))
    boxes = PARTS["train"]["a"]
    write_image(root / "images" / f"{stem}.jpg")
    if kind == "coco":
        write_text(root / "train.json", coco({"größe.jpg": boxes}))
    elif kind == "yolo":
        write_text(root / "labels" / f"{stem}.txt", yolo(boxes))
        write_text(root / "classes.txt", "cat\ndog\n")
    else:
        write_text(root / "xmls" / "größe.xml", voc("größe.jpg", boxes))
    train = read_splits(root).train
    assert shown(train) == {stem: expected("train")["a"]}


def test_annotations_cannot_lead_out_of_the_folder(root: Path) -> None:
    for name in ("out.jpg", "other.jpg"):
        write_image(root.parent / name)
    for name in ("../out.jpg", str(root.parent / "out.jpg")):
        write_text(root / "train.json", coco({name: PARTS["train"]["a"]}))
        with pytest.raises(DatasetError, match="1 images and 1 are missing"):
            read_splits(root)
    (root / "mine").symlink_to(root.parent, target_is_directory=True)
    write_text(root / "train.json", coco({"mine/out.jpg": PARTS["train"]["a"]}))
    assert shown(read_splits(root).train) == {"out": expected("train")["a"]}


def test_an_image_that_may_be_one_of_two(root: Path) -> None:
    for folder in ("day", "night"):
        write_image(root / folder / "a.jpg")
    write_text(root / "all.json", coco({"/mnt/a.jpg": PARTS["train"]["a"]}))
    with pytest.raises(DatasetError, match=r"/mnt/a\.jpg may be .*day/a\.jpg or .*night/a\.jpg; give them different"):
        read_splits(root)
    write_text(root / "all.json", coco({"/mnt/night/a.jpg": PARTS["train"]["a"]}))
    train = read_splits(root).train
    assert train is not None
    assert train.records[0].info.file_name == "night/a.jpg"


def test_a_name_means_its_own_part(root: Path) -> None:
    for split in ("train", "val"):
        write_image(root / split / "a.jpg")
    write_text(root / "val.json", coco({"/mnt/val/a.jpg": PARTS["val"]["c"]}))
    write_text(root / "train.json", coco({"a.jpg": PARTS["train"]["a"]}))
    splits = read_splits(root)
    for split in ("train", "val"):
        part = splits.parts[split]
        assert part.image_dir / part.records[0].info.file_name == root / split / "a.jpg"


@pytest.mark.parametrize("generator", [coco_of_roboflow, voc_of_roboflow, labelme_in_folders_of_parts])
def test_a_missing_image_is_not_replaced_by_one_of_another_part(root: Path, generator: Generator) -> None:
    generator(root)
    (root / "train" / "a.jpg").unlink()
    for folder in root.iterdir():
        if folder.name.startswith("val"):
            write_image(folder / "a.jpg")
    assert shown(read_splits(root, parts=("train",)).train) == {"b": expected("train")["b"]}


def test_a_few_missing_images_of_a_list_are_left_out(root: Path) -> None:
    for index in range(20):
        write_image(root / "images" / f"{index}.jpg")
        write_text(root / "labels" / f"{index}.txt", yolo([(0, 8, 4, 40, 20)]))
    lines = [f"images/{index}.jpg" for index in range(20)]
    write_text(root / "train.txt", "\n".join([*lines, "images/gone.jpg"]))
    write_text(root / "data.yaml", f"train: train.txt\nnames: {list(NAMES)}\n")
    train = read_splits(root).train
    assert train is not None
    assert len(train.records) == 20
    assert train.problems[0] == "1 image of train.txt left out: missing (first: images/gone.jpg)"
    write_text(root / "train.txt", "\n".join([*lines[:10], "images/gone.jpg", "images/lost.jpg"]))
    with pytest.raises(DatasetError, match=r"lists 12 images, and 2 of them are not below"):
        read_splits(root)


def test_voc_images_without_xml(root: Path) -> None:
    voc_without_lists(root)
    write_image(root / "images" / "empty.jpg")
    train = read_splits(root).train
    assert shown(train) == expected("train")
    assert train is not None
    assert train.problems == ("1 image left out: without an annotation file (first: images/empty.jpg)",)
    write_text(root / "ImageSets" / "Main" / "train.txt", "a\nb\nempty\n")
    train = read_splits(root).train
    assert shown(train) == expected("train") | {"empty": []}
    assert train is not None
    assert train.problems[0].startswith("1 image listed without an XML file, taken as background (first: images/empty")


def test_labelme_shapes(root: Path) -> None:
    write_image(root / "a.jpg")
    shapes = [
        {"label": "cat", "shape_type": "circle", "points": [[20, 20], [23, 24]]},
        {"label": "dog", "shape_type": "polygon", "points": [[1, 1], [9, 2], [5, 8]], "group_id": 1},
        {"label": "dog", "shape_type": "rectangle", "points": [[30, 30], [20, 10]], "group_id": 1},
        {"label": "cat", "shape_type": "rectangle", "points": [[30, 30], [20, 10]], "group_id": None},
        {"label": "cat", "shape_type": "point", "points": [[3, 3]]},
        {"label": "dog", "shape_type": "polygon", "points": [[1, 1], [9, "x"], [5, 8]]},
    ]
    write_text(root / "a.json", json.dumps({"shapes": shapes, "imagePath": "gone.png", "imageData": None}))
    train = read_splits(root).train
    assert shown(train) == {"a": [("cat", [15, 15, 25, 25]), ("dog", [1, 1, 30, 30]), ("cat", [20, 10, 30, 30])]}
    assert train is not None
    assert train.problems == (
        "1 point or line left out: no area",
        "1 image size read from the files: not in the annotations",
        "1 box dropped: not four finite numbers (first: annotation a.json:6 of a.jpg)",
    )


def test_captions_are_no_boxes(root: Path) -> None:
    write_image(root / "a.jpg")
    write_text(root / "a.txt", "2 cats on a red mat\n")
    with pytest.raises(DatasetError, match="holds no annotations that are known"):
        read_splits(root)


def test_images_of_other_subsets_of_a_cvat_project(root: Path) -> None:
    names = {"a.jpg": "Train", "b.jpg": "Test", "c.jpg": "batch 3"}
    for name, subset in names.items():
        write_image(root / "images" / subset / name)
    write_text(root / "annotations.xml", cvat({name: [(0, 8, 4, 40, 20)] for name in names}, names, "project"))
    splits = read_splits(root)
    assert {split: list(shown(part)) for split, part in splits.parts.items()} == {"train": ["a"], "test": ["b"]}
    assert "1 image of batch 3 not used, because other subsets are named after the parts" in splits.notes


def test_images_called_alike_in_two_subsets_of_a_cvat_project(root: Path) -> None:
    for subset, shade in (("Train", 0), ("Validation", 90)):
        write_image(root / "images" / subset / "a.jpg", shade)
    rows = [
        cvat({"a.jpg": [box]}, {"a.jpg": subset})
        for subset, box in (("Train", (0, 8, 4, 40, 20)), ("Validation", (1, 0, 0, 80, 40)))
    ]
    images = [row[row.index("<image") : row.index("</annotations>")] for row in rows]
    write_text(root / "annotations.xml", rows[0].replace(images[0], "".join(images)))
    splits = read_splits(root)
    assert splits.train is not None
    assert splits.val is not None
    assert splits.train.image_dir == root / "images" / "Train"
    assert splits.val.image_dir == root / "images" / "Validation"
    assert shown(splits.val) == {"a": [("dog", [0, 0, 80, 40])]}


def test_a_video_of_cvat(root: Path) -> None:
    track = '<track id="0" label="cat"><box frame="0" xtl="1" ytl="1" xbr="9" ybr="9" outside="0"/></track>'
    write_text(root / "annotations.xml", f'<?xml version="1.0"?>\n<annotations>{track}</annotations>')
    write_image(root / "images" / "frame_000000.jpg")
    with pytest.raises(DatasetError, match=r'annotations\.xml is in the format "CVAT for video", .* "CVAT for images'):
        read_splits(root)
    write_text(root / "images" / "frame_000000.xml", voc("frame_000000.jpg", [(0, 8, 4, 40, 20)]))
    splits = read_splits(root)
    assert len(splits.parts["train"].records) == 1
    assert any(note.startswith("Not used: ") and "CVAT for video" in note for note in splits.notes)


def test_frames_of_many_videos_are_called_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is found by the end of its path, without a look at all the others."""
    names = [f"seq{sequence}/img1/{frame:06d}.jpg" for sequence in range(60) for frame in range(4)]
    for name in names:
        write_text(tmp_path / "Data" / name, "")
    tree, looked_at = Tree(tmp_path), Counter[str]()
    monkeypatch.setattr("rtdetrv4.data.tree._agreement", lambda parts, file: looked_at.update([file[-1]]) or 0)
    for name in names:
        assert tree.nearest(f"/home/x/{name}") == f"Data/{name}"
        assert tree.nearest(f"{name.upper()[:-4]}.png") == f"Data/{name}", "of another type and spelling"
    assert not looked_at
    monkeypatch.undo()
    with pytest.raises(DatasetError, match="may be"):
        tree.nearest("000001.jpg")
    assert tree.nearest("000001.jpg", ("Data/seq7",)) == "Data/seq7/img1/000001.jpg"
    assert tree.nearest("other/img1/000001.jpg", ("Data/seq7",)) == "Data/seq7/img1/000001.jpg"
