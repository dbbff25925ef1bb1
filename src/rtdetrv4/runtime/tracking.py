"""Ids for objects, the same in all images of a source: ByteTrack and OC-SORT of the package `trackers`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from rtdetrv4.errors import ConfigError, did_you_mean, require
from rtdetrv4.runtime.detections import Detections
from rtdetrv4.runtime.regions import EXTRA, Points, RegionsOfInterest

TRACKERS = {"bytetrack": "ByteTrackTracker", "ocsort": "OCSORTTracker"}
DEFAULT = "bytetrack"
SHORTEST_STEP_S = 1e-3
"""Between images that claim the same time."""


class _Followed(NamedTuple):
    """A source, and when its last image was."""

    tracker: Any
    time: float | None


class Tracking:
    """Gives objects ids. Each video, camera and stream has a tracker of its own; other images are one sequence.

    Trackers are told the times of images, where there are any, so that gaps (`every`, `latest`, a stream that dropped)
    count as long as they were.

    Args:
        name: "bytetrack" or "ocsort", and settings of their classes in `trackers` after a colon, such as
            "bytetrack:lost_track_buffer=60,track_activation_threshold=0.5".

    Raises:
        ConfigError: there is no such tracker or setting.
        MissingDependencyError: trackers is not installed.

    References:
        ByteTrack (Zhang et al., 2022); OC-SORT (Cao et al., 2023).
    """

    def __init__(self, name: str = DEFAULT) -> None:
        kind, _, settings = name.partition(":")
        if kind not in TRACKERS:
            raise ConfigError(f'track: got "{kind}", expected {" or ".join(TRACKERS)}.{did_you_mean(kind, TRACKERS)}')
        package: Any = require("trackers", EXTRA)
        self._supervision: Any = require("supervision", EXTRA)
        self._class = getattr(package, TRACKERS[kind])
        self._settings = _settings_of(settings)
        self._by_source: dict[str | None, _Followed] = {}
        self._new_tracker()

    def __call__(self, detections: Detections) -> Detections:
        """Return the detections of the next image of a source with `tracker_id`."""
        source = detections.path if detections.frame_index is not None else None
        followed = self._by_source.get(source)
        if followed is None or detections.frame_index == 0:  # a video from its beginning
            followed = _Followed(self._new_tracker(), None)
        time = detections.time
        if time is not None and followed.time is not None:
            time = max(time, followed.time + SHORTEST_STEP_S)
        found = self._supervision.Detections(
            xyxy=detections.xyxy,
            confidence=detections.confidence,
            class_id=detections.class_id,
            data={"row": np.arange(len(detections))},
        )
        found = followed.tracker.update(found, timestamp=time)
        ids = np.full(len(detections), -1, dtype=np.int64)
        if len(found):  # in another order
            ids[found.data["row"]] = found.tracker_id
        if detections.is_last:
            self._by_source.pop(source, None)
        else:
            self._by_source[source] = followed._replace(time=time)
        return replace(detections, tracker_id=ids)

    def _new_tracker(self) -> Any:
        try:
            return self._class(**self._settings)
        except (TypeError, ValueError) as error:
            settings = ", ".join(f"{name}={value}" for name, value in self._settings.items())
            raise ConfigError(f"track: {self._class.__name__} of trackers refuses {settings}: {error}.") from None


def _settings_of(text: str) -> dict[str, int | float]:
    settings: dict[str, int | float] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        try:
            settings[name.strip()] = int(value) if value.strip().isdecimal() else float(value)
        except ValueError:
            raise ConfigError(f'track: got "{part}", expected NAME=NUMBER, such as lost_track_buffer=60.') from None
    return settings


def steps_of(
    track: bool | str | None, roi: str | Points | Sequence[str | Points] | None
) -> list[Callable[[Detections], Detections]]:
    """What is done with the detections of each image: ids are given, then objects outside of regions dropped.

    Args:
        track: True for ByteTrack, or as `Tracking`; None or False for no ids.
        roi: as `RegionsOfInterest`; None for the whole image.

    Raises:
        ConfigError: one of them is invalid.
        MissingDependencyError: trackers is not installed.
    """
    steps: list[Callable[[Detections], Detections]] = []
    if track is not None and track is not False:
        steps.append(Tracking(DEFAULT if track is True else track))
    if roi is not None:
        steps.append(RegionsOfInterest(roi))
    return steps
