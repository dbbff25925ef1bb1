"""Ids that objects keep: the same as those of `trackers` itself, whatever else is done here."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import supervision

from rtdetrv4.errors import ConfigError, MissingDependencyError
from rtdetrv4.runtime import Detections
from rtdetrv4.runtime.tracking import Tracking, steps_of

# Not in [dev]: it brings opencv-python, which a machine without graphics cannot load. pip install "rtdetrv4[track]"
trackers = pytest.importorskip("trackers")


def scene(
    frame: int | None, rng: np.random.Generator, path: str = "a.mp4", time: float | None = None, shift: float = 0
) -> Detections:
    """Four objects that move, some of which are missed or unsure, in any order."""
    t = float(frame or 0)
    centers = np.array([(20 + 5 * t, 30), (180 - 5 * t, 35), (100, 20 + 4 * t), (40 + 2 * t, 150 - 3 * t)]) + shift
    seen = np.flatnonzero(rng.random(4) > 0.15)
    rng.shuffle(seen)
    corners = centers[seen] + rng.normal(0, 1, (len(seen), 2))
    return Detections(
        xyxy=np.concatenate([corners - 10, corners + 10], axis=1).astype(np.float32),
        confidence=rng.uniform(0.3, 0.95, len(seen)).astype(np.float32),
        class_id=seen % 2,
        names=("one", "other"),
        image=np.zeros((200, 200, 3), np.uint8),
        path=path,
        frame_index=frame,
        time=time,
    )


def direct(tracker: Any, detections: Detections, timestamp: float | None = None) -> dict[tuple, int]:
    """What `trackers` says of the same boxes; some of its versions leave out those that it does not follow."""
    given = supervision.Detections(xyxy=detections.xyxy, confidence=detections.confidence, class_id=detections.class_id)
    found = tracker.update(given, timestamp=timestamp)
    ids = dict.fromkeys(map(tuple, detections.xyxy.tolist()), -1)
    ids.update(zip(map(tuple, found.xyxy.tolist()), found.tracker_id.tolist(), strict=True))
    return ids


def ours(detections: Detections) -> dict[tuple, int]:
    assert detections.tracker_id is not None
    return {
        tuple(box): number for box, number in zip(detections.xyxy.tolist(), detections.tracker_id.tolist(), strict=True)
    }


@pytest.mark.parametrize("is_timed", [False, True])
@pytest.mark.parametrize(("name", "of_trackers"), [("bytetrack", "ByteTrackTracker"), ("ocsort", "OCSORTTracker")])
def test_ids_are_those_of_trackers(name: str, of_trackers: str, is_timed: bool) -> None:
    rng = np.random.default_rng(0)
    tracker, track = getattr(trackers, of_trackers)(), Tracking(name)
    numbers: set[int] = set()
    for frame in range(30):
        time = frame / 30 + 0.01 * (frame % 3) if is_timed else None
        detections = scene(frame, rng, time=time)
        found = track(detections)
        np.testing.assert_array_equal(found.xyxy, detections.xyxy)
        assert ours(found) == direct(tracker, detections, time)
        numbers.update(ours(found).values())
    assert len(numbers - {-1}) >= 4, "there is something to compare"


def test_every_source_has_its_own_tracker() -> None:
    one, other = np.random.default_rng(1), np.random.default_rng(2)
    of_one, of_other, track = trackers.ByteTrackTracker(), trackers.ByteTrackTracker(), Tracking()
    for frame in range(20):
        for path, rng, tracker, shift in (("a.mp4", one, of_one, 0), ("b.mp4", other, of_other, 5)):
            detections = scene(frame, rng, path, shift=shift)
            assert ours(track(detections)) == direct(tracker, detections)


def test_a_video_starts_anew_and_images_are_one_sequence() -> None:
    track = Tracking()
    first = [ours(track(scene(frame, np.random.default_rng(frame)))) for frame in range(10)]
    again = [ours(track(scene(frame, np.random.default_rng(frame)))) for frame in range(10)]
    assert first == again
    tracker = trackers.ByteTrackTracker()
    for number in range(10):
        detections = scene(number, np.random.default_rng(number), path=f"{number}.jpg")
        image = Detections(**{**vars(detections), "frame_index": None})
        assert ours(track(image)) == direct(tracker, detections)


def test_times_that_stand_still_do_not_stop_the_tracker() -> None:
    track = Tracking()
    rng = np.random.default_rng(3)
    found = [track(scene(frame, rng, time=7.0)) for frame in range(10)]
    assert max(max(ours(each).values(), default=-1) for each in found) >= 0


def test_images_without_objects() -> None:
    track = Tracking("ocsort")
    for frame in range(3):
        found = track(scene(frame, np.random.default_rng(0))[:0])
        assert found.tracker_id is not None
        assert found.tracker_id.shape == (0,)


def test_settings_reach_the_tracker() -> None:
    tracker = trackers.ByteTrackTracker(minimum_consecutive_frames=1, track_activation_threshold=0.35)
    track = Tracking("bytetrack:minimum_consecutive_frames=1,track_activation_threshold=0.35")
    rng = np.random.default_rng(4)
    for frame in range(10):
        detections = scene(frame, rng)
        assert ours(track(detections)) == direct(tracker, detections)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bytetrak", 'track: got "bytetrak", expected bytetrack or ocsort. Did you mean "bytetrack"?'),
        ("bytetrack:lost=3", "track: ByteTrackTracker of trackers refuses lost=3: "),
        ("bytetrack:lost_track_buffer=-3", "track: ByteTrackTracker of trackers refuses lost_track_buffer=-3"),
        ("ocsort:delta_t", 'track: got "delta_t", expected NAME=NUMBER, such as lost_track_buffer=60.'),
    ],
)
def test_trackers_that_are_none(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Tracking(name)
    assert str(error.value).startswith(message)


def test_steps() -> None:
    assert steps_of(None, None) == steps_of(False, None) == []
    track, region = steps_of(True, "0,0 9,0 9,9")
    assert isinstance(track, Tracking), "before objects outside of regions are dropped"
    assert callable(region)


def test_without_trackers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trackers", None)
    with pytest.raises(MissingDependencyError, match=r'trackers is not installed; .* pip install "rtdetrv4\[track\]"'):
        steps_of("ocsort", None)
