"""The pictures of a report: examples with truth beside prediction, and F5 beside the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from PIL import Image

from rtdetrv4.data.decode import read_image
from rtdetrv4.errors import DatasetError, SourceError
from rtdetrv4.pages import thumbnail
from rtdetrv4.runtime.draw import Color, color_of_class

SIDE = 320
MARK: Color = (255, 0, 0)
"""The color of the box that an example is about."""
KINDS = {
    "worst": ("Worst images", "Most mistakes in relation to what was found."),
    "confused": ("Confused", "Objects detected as another class, the most confident first."),
    "false": ("False", "Detections where there is no such object, the most confident first."),
    "missed": ("Missed", "Objects that were not found, the largest first."),
    "best": ("Best images", "For comparison."),
}


class Shown(NamedTuple):
    """An example of a gallery: two pictures, the truth and what was detected."""

    truth: np.ndarray
    found: np.ndarray
    file: str
    link: str
    """file:// URI of the image."""
    detail: str


class Gallery(NamedTuple):
    """Examples of one kind."""

    title: str
    note: str
    examples: tuple[Shown, ...]


def draw_galleries(galleries: Mapping[str, Any], names: Sequence[str], image_dir: Path) -> list[Gallery]:
    """Draw the examples whose image can be read; in galleries without one, nothing.

    Args:
        galleries: those of analysis.json.
        names: all class names, in the order of the model, which determines the colors.
        image_dir: the folder that their files are relative to.
    """
    numbers = {name: index for index, name in enumerate(names)}
    drawn = []
    for kind, (title, note) in KINDS.items():
        examples = [_draw(example, numbers, image_dir) for example in galleries.get(kind, ())]
        if shown := tuple(example for example in examples if example is not None):
            drawn.append(Gallery(title, note, shown))
    return drawn


def _draw(example: Mapping[str, Any], numbers: Mapping[str, int], image_dir: Path) -> Shown | None:
    path = (image_dir / example["file"]).resolve()
    height, width = example["size_hw"]
    try:
        image = read_image(path, (height, width), SIDE / max(height, width))
    except DatasetError:
        return None
    pictures = []
    for kind in ("truth", "found"):
        boxes = [box for box in example["boxes"] if box["kind"] == kind]
        boxes.sort(key=lambda box: not box["is_marked"])  # the first ones are on top
        classes = [numbers[box["name"]] for box in boxes]
        colors = [MARK if box["is_marked"] else color_of_class(k) for box, k in zip(boxes, classes, strict=True)]
        scale = image.shape[1] / width
        xyxy = [[scale * side for side in box["xyxy"]] for box in boxes]
        labels = [_label(box) for box in boxes]
        pictures.append(thumbnail(image, xyxy, classes, labels, max_side=SIDE, colors=colors))
    return Shown(*pictures, file=example["file"], link=path.as_uri(), detail=example["detail"])


def _label(box: Mapping[str, Any]) -> str:
    return box["name"] if box["score"] is None else f"{box['name']} {box['score']:.2f}"


class Likeness(NamedTuple):
    """How F5 resembles the teacher in one image."""

    image: np.ndarray
    cosine: np.ndarray
    """The image under the similarity by position, dark for 0 and bright for 1."""
    student: np.ndarray
    teacher: np.ndarray
    name: str
    mean: float
    """Mean cosine similarity."""


def draw_similarity(path: Path) -> list[Likeness]:
    """Draw what `rtdetrv4.distillation.similarity.save_similarity` has written.

    Raises:
        SourceError: the file is damaged.
    """
    try:
        with path.open("rb") as file, np.load(file) as saved:
            arrays = [saved[name] for name in ("cosine", "student", "teacher", "images", "names")]
    except Exception as error:  # of zip, zlib, and what parses the headers of arrays
        raise SourceError(f"{path} is damaged; delete it to get a report without it.") from error
    colors = colormaps["viridis"]
    drawn = []
    for cosine, student, teacher, image, name in zip(*arrays, strict=True):
        picture = thumbnail(image, max_side=SIDE)
        size = (picture.shape[1], picture.shape[0])
        heat = (255 * colors(cosine.clip(0, 1))[..., :3]).astype(np.uint8)
        overlay = 0.7 * _enlarged(heat, size) + 0.3 * picture
        drawn.append(
            Likeness(
                picture,
                overlay.astype(np.uint8),
                _enlarged(student, size),
                _enlarged(teacher, size),
                str(name),
                float(cosine.mean()),
            )
        )
    return drawn


def _enlarged(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The cells of a grid as squares, because its resolution is what it is."""
    return np.array(Image.fromarray(grid).resize(size, Image.Resampling.NEAREST))
