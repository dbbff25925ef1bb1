"""What lies in a folder: which files belong to which part of a data set, and what reads them.

A recognizer looks at the listed files and returns a `Reading` if its layout is there, in any folder and under any name.
They are tried in order, and the first one decides.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rtdetrv4.data.document import some_of
from rtdetrv4.data.layouts.coco import EXAMPLE, describe_coco_file, is_coco, recognize_coco
from rtdetrv4.data.layouts.cvat import describe_cvat_file, is_cvat, recognize_cvat
from rtdetrv4.data.layouts.labelme import recognize_labelme
from rtdetrv4.data.layouts.reading import AbsentPartError, Reading
from rtdetrv4.data.layouts.voc import recognize_voc
from rtdetrv4.data.layouts.yolo import describe_yaml, recognize_yaml, recognize_yolo
from rtdetrv4.data.text import read_yaml
from rtdetrv4.data.tree import Tree, suffix_of
from rtdetrv4.errors import DatasetError

__all__ = ["RECOGNIZERS", "AbsentPartError", "Reading", "describe", "recognize"]

# A description was written to say what belongs where; label files alone may be left over from anything.
RECOGNIZERS = (recognize_yaml, recognize_coco, recognize_cvat, recognize_voc, recognize_yolo, recognize_labelme)


def recognize(root: Path) -> Reading:
    """Find out how a folder is to be read; what else it could be is noted.

    Raises:
        DatasetError: nothing is recognized, or what describes the folder is damaged.
    """
    tree = Tree(root)
    readings: dict[str, Reading] = {}
    errors: list[DatasetError] = []
    of_yaml: DatasetError | None = None
    for recognizer in RECOGNIZERS:
        try:
            reading = recognizer(tree)
        except DatasetError as error:
            errors.append(error)
            of_yaml = error if recognizer is recognize_yaml else of_yaml
            continue
        if reading is not None:
            readings.setdefault(reading.format, reading)
    if not readings:
        raise errors[0] if errors else DatasetError(_nothing_found(tree))
    chosen, *others = readings.values()
    if of_yaml is not None and chosen.is_numbered:  # the names that are missing are in that file
        raise of_yaml
    notes = [f"Not used: {error}" for error in errors]
    notes += [f"{other.what} is there as well; to use that instead, give {other.choose} as data" for other in others]
    return chosen._replace(notes=(*chosen.notes, *notes))


def describe(path: Path) -> Reading:
    """Find out how a file that was given as data is to be read.

    Raises:
        DatasetError: it describes no data set.
    """
    if suffix_of(path.name) in {".yaml", ".yml"}:
        return describe_yaml(path, read_yaml(path, EXAMPLE))
    if suffix_of(path.name) == ".json":
        if not is_coco(path):
            raise DatasetError(
                f'{path} is not in COCO\'s object detection format: expected "images", "annotations" and "categories"; '
                "give such a file, or the folder of the data set"
            )
        return describe_coco_file(path)
    if suffix_of(path.name) == ".xml" and is_cvat(path):
        return describe_cvat_file(path)
    raise DatasetError(
        f"{path} is neither a folder nor a .yaml or .json file, nor CVAT's; give the folder that holds images and "
        "annotations"
    )


def _nothing_found(tree: Tree) -> str:
    counts = Counter(suffix_of(file) or "no suffix" for file in tree.files)
    got = some_of(f"{count} × {suffix}" for suffix, count in counts.most_common())
    return (
        f"{tree.root} holds no annotations that are known: expected COCO's .json, YOLO's data.yaml or label files, "
        f"Pascal VOC's or CVAT's .xml or LabelMe's .json; got {f'files with {got}' if got else 'an empty folder'}"
    )
