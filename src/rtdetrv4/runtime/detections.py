"""The objects detected in an image."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np

from rtdetrv4.errors import ConfigError, SourceError, require
from rtdetrv4.outputs import write_whole
from rtdetrv4.runtime.draw import draw_boxes, draw_outlines
from rtdetrv4.runtime.selection import thresholds

JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe")
MAX_JPEG_SIDE = 65500


class Detection(NamedTuple):
    """One detected object."""

    xyxy: np.ndarray
    """(4,) float32, pixels."""
    confidence: float
    class_id: int
    name: str


class Count(NamedTuple):
    """What was counted at a line, or in a zone."""

    name: str
    points: tuple[tuple[float, float], ...]
    """Two ends of a line, or the corners of a zone: (x, y) in pixels of the image."""
    values: dict[str, int]
    """"in" and "out" of a line, so far; "inside" a zone, in this image."""

    def __str__(self) -> str:
        return f"{self.name}: {', '.join(f'{number} {what}' for what, number in self.values.items())}"


ELSEWHERE: Mapping[str, str] = {
    "boxes": "xyxy, confidence and class_id",
    "cls": "class_id",
    "conf": "confidence",
    "data": "xyxy, confidence and class_id",
    "labels": "class_id, or class_name",
    "orig_img": "image",
    "orig_shape": "image.shape",
    "scores": "confidence",
    "show": "save(PATH), or plot() for the picture",
    "summary": "to_dicts()",
    "to_df": "to_dicts()",
    "tojson": "to_json()",
}
"""What to write in place of what the results of other packages have."""


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """The n objects detected in an image, by descending confidence.

    `len(found)` is n; iteration yields each as a `Detection`; indexing with a number, slice, mask or list selects some
    as `Detections`, as in supervision: ``found[found.confidence > 0.8]``.
    """

    xyxy: np.ndarray
    """(n, 4) float32: left, top, right, bottom in pixels of the image, inside it."""
    confidence: np.ndarray
    """(n,) float32 in [0, 1]."""
    class_id: np.ndarray
    """(n,) int64, an index into `names`."""
    names: tuple[str, ...]
    """Names of all K classes."""
    image: np.ndarray | None = None
    """H×W×3 uint8 RGB, or None."""
    path: str | None = None
    """Where the image came from."""
    category_ids: tuple[int, ...] | None = None
    """The ids of all K classes in the annotations; None: 0 to K - 1."""
    frame_index: int | None = None
    """Position of the image in its video or stream, counted from 0; None if it is in none."""
    time: float | None = None
    """Seconds: in a video file, from its beginning; in a camera, stream or pipe, since 1970 when the image came."""
    is_last: bool = False
    """Whether a video file ends with this image. Streams do not know."""
    tracker_id: np.ndarray | None = None
    """(n,) int64, the same for the same object in all images of a source; -1 for objects that are not followed (yet).
    None without tracking."""
    counts: tuple[Count, ...] = ()
    """What crossed lines or is in zones so far, where that is counted."""

    @classmethod
    def from_predictions(
        cls,
        scores: np.ndarray,
        labels: np.ndarray,
        boxes_xyxy_px: np.ndarray,
        *,
        names: tuple[str, ...],
        category_ids: tuple[int, ...] | None = None,
        image: np.ndarray,
        path: str | None = None,
        conf: float | Mapping[str, float] = 0.0,
        frame_index: int | None = None,
        time: float | None = None,
        is_last: bool = False,
    ) -> Detections:
        """Make detections from a model's predictions: those above `conf`, clipped to the image; none outside it.

        Args:
            scores: (n,) in descending order.
            labels: (n,) in [0, K).
            boxes_xyxy_px: (n, 4), pixels of `image`.
            names: K class names.
            category_ids: their ids in the annotations.
            image: H×W×3 uint8 RGB.
            path: where the image came from.
            conf: as in `filter`.
            frame_index: position of the image in its video.
            time: when that is.
            is_last: whether its video ends with it.
        """
        height, width = image.shape[:2]
        boxes = np.asarray(boxes_xyxy_px, dtype=np.float32).reshape(-1, 4)
        # False for NaN.
        is_inside = np.all((boxes[:, 2:] >= 0) & (boxes[:, :2] <= [width, height]), axis=1, keepdims=False)
        found = cls(
            boxes.clip(0, [width, height] * 2).astype(np.float32),
            np.asarray(scores, dtype=np.float32),
            np.asarray(labels, dtype=np.int64),
            names,
            image,
            path,
            category_ids,
            frame_index,
            time,
            is_last,
        )
        return found[is_inside].filter(conf)

    def __len__(self) -> int:
        return len(self.confidence)

    def __iter__(self) -> Iterator[Detection]:
        for xyxy, confidence, class_id in zip(self.xyxy, self.confidence.tolist(), self.class_id.tolist(), strict=True):
            yield Detection(xyxy, confidence, class_id, self.names[class_id])

    def __getitem__(self, index: int | slice | list[int] | np.ndarray) -> Detections:
        if isinstance(index, int | np.integer):
            index = [int(index)]
        return replace(
            self,
            xyxy=self.xyxy[index],
            confidence=self.confidence[index],
            class_id=self.class_id[index],
            tracker_id=None if self.tracker_id is None else self.tracker_id[index],
        )

    def __repr__(self) -> str:
        counts = Counter(self.class_name).most_common()
        found = ", ".join(f"{count} {name}" for name, count in counts) or "nothing"
        return f"Detections({found}{f' in {self.path}' if self.path else ''})"

    @property
    def class_name(self) -> list[str]:
        """The name of each detection's class."""
        return [self.names[k] for k in self.class_id.tolist()]

    @property
    def category_id(self) -> np.ndarray:
        """(n,) int64, the id that each detection's class has in the annotations."""
        ids = range(len(self.names)) if self.category_ids is None else self.category_ids
        return np.array(ids, dtype=np.int64)[self.class_id]

    if not TYPE_CHECKING:  # which would take any name for one that there is

        def __getattr__(self, name: str) -> Any:
            """Say what is called otherwise in other packages."""
            hint = f" Use {ELSEWHERE[name]}." if name in ELSEWHERE else ""
            raise AttributeError(f"Detections has no {name!r}.{hint}", name=name, obj=self)  # Python suggests more

    def filter(self, conf: float | Mapping[str, float]) -> Detections:
        """Return only detections of at least this confidence.

        Args:
            conf: one threshold, or a mapping from class name to threshold, which drops classes that it does not name.

        Raises:
            ConfigError: a threshold is not in [0, 1], or there is no such class.
        """
        return self[self.confidence >= thresholds(conf, self.names)[self.class_id]]

    def plot(self) -> np.ndarray:
        """Draw boxes, ids, class names, confidences and counts on a copy of the image: H×W×3 uint8 RGB."""
        if self.image is None:
            raise SourceError("these detections were made without an image to draw on")
        labels = [f"{name} {confidence:.2f}" for _, confidence, _, name in self]
        if self.tracker_id is not None:
            labels = [
                label if number < 0 else f"#{number} {label}"
                for label, number in zip(labels, self.tracker_id.tolist(), strict=True)
            ]
        picture = draw_boxes(self.image, self.xyxy, self.class_id, labels)
        return draw_outlines(picture, [(count.points, str(count)) for count in self.counts]) if self.counts else picture

    def save(self, path: str | Path) -> Path:
        """Write `plot()` to an image file, creating its folder if needed; never to the file of the image itself.

        Raises:
            ConfigError: the suffix is unknown, or the file is the image that the detections were made in.
        """
        path = Path(path)
        if self.path is not None and path.exists() and Path(self.path).exists() and path.samefile(self.path):
            raise ConfigError(f"{path} is the image that these detections were made in; give another name.")
        picture = cv2.cvtColor(self.plot(), cv2.COLOR_RGB2BGR)
        if path.suffix.lower() in JPEG_SUFFIXES and max(picture.shape) > MAX_JPEG_SIDE:
            raise ConfigError(
                f"{path} would be {picture.shape[1]}×{picture.shape[0]} pixels, and JPEG ends at {MAX_JPEG_SIDE} a "
                "side; use .png"
            )
        problem = f'cannot write {picture.shape[1]}×{picture.shape[0]} pixels in color as "{path.suffix}" ({path}); use'
        try:
            is_encoded, data = cv2.imencode(path.suffix, picture)
        except cv2.error as error:
            raise ConfigError(f"{problem} .jpg or .png") from error
        if not is_encoded:  # too long a side for WebP
            raise ConfigError(f"{problem} .png")
        write_whole(path, lambda temporary: temporary.write_bytes(data.tobytes()))
        return path

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return a dict of plain values per detection: class_id, category_id, name, confidence and xyxy.

        With tracking, tracker_id is one more, None for objects that are not followed.
        """
        found = [
            {
                "class_id": class_id,
                "category_id": category_id,
                "name": name,
                "confidence": confidence,
                "xyxy": xyxy.tolist(),
            }
            for (xyxy, confidence, class_id, name), category_id in zip(self, self.category_id.tolist(), strict=True)
        ]
        if self.tracker_id is not None:
            for values, number in zip(found, self.tracker_id.tolist(), strict=True):
                values["tracker_id"] = number if number >= 0 else None
        return found

    def to_json(self, **facts: Any) -> str:
        """Return a JSON object with the path and size of the image, `facts` that you add, and `to_dicts`.

        Images of videos and streams have "frame" and "time" too, and where something is counted, "counts".
        """
        height, width = self.image.shape[:2] if self.image is not None else (None, None)
        content: dict[str, Any] = {"path": self.path, "height": height, "width": width}
        if self.frame_index is not None:
            content |= {"frame": self.frame_index, "time": self.time}
        content |= facts
        if self.counts:
            content["counts"] = {count.name: count.values for count in self.counts}
        content["detections"] = self.to_dicts()
        # A path that is not UTF-8 holds surrogates, which no UTF-8 file takes; as JSON escapes they come back.
        return json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace").decode("utf-8")

    def to_supervision(self) -> Any:
        """Return a `supervision.Detections`, for that package's trackers, zones and annotators.

        Raises:
            MissingDependencyError: supervision is not installed.
        """
        supervision = require("supervision")
        return supervision.Detections(
            xyxy=self.xyxy,
            confidence=self.confidence,
            class_id=self.class_id,
            tracker_id=self.tracker_id,
            data={"class_name": np.array(self.class_name, dtype=np.str_), "category_id": self.category_id},
        )
