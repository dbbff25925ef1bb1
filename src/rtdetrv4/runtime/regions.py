"""Parts of an image: regions of interest, and lines and zones at which objects are counted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from rtdetrv4.errors import ConfigError, require
from rtdetrv4.runtime.detections import Count, Detections

EXTRA = "track"
_NUMBER = r"-?\d+(?:\.\d*)?|-?\.\d+"

Points = Sequence[tuple[float, float]]
"""(x, y), in pixels; or in shares of width and height, if all are from 0 to 1."""


class _Shape(NamedTuple):
    """Corners of a region, or ends of a line."""

    points: np.ndarray
    """(m, 2)"""
    are_shares: bool

    @classmethod
    def of(cls, points: Any, what: str, least: int, most: int | None = None) -> _Shape:
        """Take points, or a text such as "0,0 640,0 640,480".

        Raises:
            ConfigError: there are no such points.
        """
        wanted = f"{least} points" if most == least else f"{least} points or more"
        fault = ConfigError(
            f'{what}: got "{points}", expected {wanted} as x,y in pixels, or in shares from 0 to 1, with blanks '
            f'between, such as "{" ".join(["0,0", "1,0", "1,1"][:least])}".'
        )
        if isinstance(points, str):
            words = points.split()
            if not all(re.fullmatch(rf"(?:{_NUMBER}),(?:{_NUMBER})", word) for word in words):
                raise fault
            points = [[float(side) for side in word.split(",")] for word in words]
        try:
            corners = np.asarray(points, dtype=np.float64)
        except (TypeError, ValueError):
            raise fault from None
        is_right = corners.ndim == 2 and corners.shape[1:] == (2,) and np.isfinite(corners).all()
        if not is_right or len(corners) < least or (most is not None and len(corners) > most):
            raise fault
        return cls(corners, bool(((corners >= 0) & (corners <= 1)).all()))

    def in_pixels(self, detections: Detections) -> np.ndarray:
        """(m, 2), in pixels of the image."""
        if not self.are_shares:
            return self.points
        assert detections.image is not None
        height, width = detections.image.shape[:2]
        return self.points * (width, height)


class RegionsOfInterest:
    """Leaves only objects whose center is in one of some polygons.

    Args:
        roi: a polygon or several, each as points or as a text such as "0,0 640,0 640,480".

    Raises:
        ConfigError: a polygon has fewer than three points, or others than numbers.
    """

    def __init__(self, roi: str | Points | Sequence[str | Points]) -> None:
        polygons = [roi] if isinstance(roi, str) or _is_polygon(roi) else list(roi)
        if not polygons:
            raise ConfigError("roi: got no polygon; leave it out to look at the whole image.")
        self._shapes = [_Shape.of(polygon, "roi", 3) for polygon in polygons]

    def __call__(self, detections: Detections) -> Detections:
        """Return those of the detections that are inside."""
        centers = (detections.xyxy[:, :2] + detections.xyxy[:, 2:]) / 2
        is_inside = np.zeros(len(detections), dtype=bool)
        for shape in self._shapes:
            is_inside |= contains(shape.in_pixels(detections), centers)
        return detections[is_inside]


def _is_polygon(roi: Any) -> bool:
    """Whether these are points, and not polygons."""
    return len(roi) > 0 and not isinstance(roi[0], str) and np.ndim(roi[0]) == 1


def contains(polygon: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Which points a polygon contains: those from which a ray to the right crosses its outline an odd number of times.

    Args:
        polygon: (m, 2), which may be concave.
        points: (n, 2)

    Returns:
        (n,) bool
    """
    x, y = points[:, :1], points[:, 1:]
    start, end = polygon, np.roll(polygon, -1, axis=0)
    spans = (start[:, 1] > y) != (end[:, 1] > y)
    with np.errstate(divide="ignore", invalid="ignore"):  # of edges that span nothing
        crossing = start[:, 0] + (y - start[:, 1]) / (end[:, 1] - start[:, 1]) * (end[:, 0] - start[:, 0])
    return (spans & (x < crossing)).sum(axis=1) % 2 == 1


class Counting:
    """Counts objects that cross lines, and those in zones, by supervision's LineZone and PolygonZone.

    ```python
    count = Counting(lines={"door": "320,0 320,480"}, zones={"queue": "0,300 640,300 640,480 0,480"})
    for detections in detector.predict("rtsp://camera/stream", track=True, stream=True):
        print(count(detections).counts)
    ```

    An object has crossed a line when all four corners of its box have: "in" to the left of it as seen from its first
    point to its second, "out" to the right, one count for each source. An object is inside a zone if the middle of the
    lower edge of its box is.

    Args:
        lines: two points for each name, which need tracking.
        zones: three points or more for each name.

    Raises:
        ConfigError: there are no such points.
        MissingDependencyError: supervision is not installed.
    """

    def __init__(
        self, lines: Mapping[str, str | Points] | None = None, zones: Mapping[str, str | Points] | None = None
    ) -> None:
        self._supervision: Any = require("supervision", EXTRA)
        self._lines = {name: _Shape.of(points, f"line {name}", 2, 2) for name, points in (lines or {}).items()}
        self._zones = {name: _Shape.of(points, f"zone {name}", 3) for name, points in (zones or {}).items()}
        if same := self._lines.keys() & self._zones.keys():
            raise ConfigError(f'A line and a zone are called "{min(same)}"; give them different names.')
        if any(np.ptp(shape.points, axis=0).max() == 0 for shape in self._lines.values()):
            raise ConfigError("A line has two points at the same place; give its ends.")
        self._by_source: dict[str | None, dict[str, Any]] = {}

    def __call__(self, detections: Detections) -> Detections:
        """Count, and return the detections with `counts`.

        Raises:
            ConfigError: there are lines, and objects have no ids.
        """
        if self._lines and detections.tracker_id is None:
            raise ConfigError("Lines count objects that are tracked; add track=True.")
        source = detections.path if detections.frame_index is not None else None
        if detections.frame_index == 0:
            self._by_source.pop(source, None)  # a video from its beginning
        counters = self._by_source.setdefault(source, {})
        found = detections.to_supervision()
        followed = None if detections.tracker_id is None else detections[detections.tracker_id >= 0].to_supervision()
        counts = []
        for name, shape in self._lines.items():
            ends = shape.in_pixels(detections)
            if name not in counters:
                counters[name] = self._supervision.LineZone(*(self._supervision.Point(*end) for end in ends.tolist()))
            counters[name].trigger(followed)
            values = {"in": counters[name].in_count, "out": counters[name].out_count}
            counts.append(Count(name, _pairs(ends), values))
        for name, shape in self._zones.items():
            corners = shape.in_pixels(detections)
            pixels = corners.round().astype(np.int64)  # shares are other numbers in a larger image
            if name not in counters or not np.array_equal(counters[name].polygon, pixels):
                counters[name] = self._supervision.PolygonZone(pixels)
            inside = int(counters[name].trigger(found).sum())
            counts.append(Count(name, _pairs(corners), {"inside": inside}))
        if detections.is_last:
            del self._by_source[source]
        return replace(detections, counts=tuple(counts))


def _pairs(points: np.ndarray) -> tuple[tuple[float, float], ...]:
    return tuple((x, y) for x, y in points.tolist())


def named_shapes(texts: Iterable[str], kind: str) -> dict[str, str]:
    """Names and points of lines or zones, given as NAME=POINTS or POINTS.

    >>> named_shapes(["door=0,0 9,9", "1,1 2,2"], "line")
    {'door': '0,0 9,9', 'line 2': '1,1 2,2'}

    Raises:
        ConfigError: two have the same name.
    """
    shapes: dict[str, str] = {}
    for number, text in enumerate(texts, 1):
        name, separator, points = text.rpartition("=")
        name = " ".join(name.split()) if separator else (kind if number == 1 else f"{kind} {number}")
        if name in shapes or not name:
            raise ConfigError(f'--{kind}: got the name "{name}"' + (" twice." if name else ", expected NAME=POINTS."))
        shapes[name] = points
    return shapes
