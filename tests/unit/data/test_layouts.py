"""Whatever lies in a folder is recognized: the same boxes come out of every layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rtdetrv4.data.formats import Split, read_splits

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
