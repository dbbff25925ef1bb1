"""Follow made-up objects with known identities: are our ids as good as those of `trackers` itself, and the same?

    pip install "rtdetrv4[track]"
    python benchmarks/robustness/tracking.py

Objects cross a picture of 1280×720 pixels, enter and leave it, stop on their way, and hide behind others. A made-up
network misses some, is unsure of what is half hidden, is off by some pixels, and sees things that are not there; "hard"
has more of all that. Its detections take the way that `predict(..., track=True)` takes, and are given to the trackers
of `trackers` directly as well. Both results are written in the format of MOT challenges, and `trackers` evaluates them:
HOTA, MOTA, IDF1. "known ids" are the same detections with their true ids: the most that any tracker could reach with
them.

Results go to benchmarks/results/tracking.json, with a table on the screen. Expected: two minutes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import supervision
import trackers
from trackers.eval import evaluate_mot_sequence

from rtdetrv4.runtime import Detections
from rtdetrv4.runtime.detect import detect
from rtdetrv4.runtime.selection import Selection
from rtdetrv4.runtime.sources import Frame
from rtdetrv4.runtime.tracking import TRACKERS, steps_of
from rtdetrv4.types import ClassMap

RESULTS = Path(__file__).parents[1] / "results" / "tracking.json"
SIZE_WH = (1280, 720)
RATE = 30
CONF = 0.1
"""Least confidence of a detection: ByteTrack makes use of those that are unsure."""
CLASSES = ClassMap(("object",), (0,))
METRICS = ("HOTA", "MOTA", "IDF1")


class Difficulty(NamedTuple):
    """What a network makes of a scene."""

    num_objects: int
    """That come and go, each at its time."""
    missed: float
    """Share of the objects in sight that it does not see."""
    noise: float
    """Standard deviation of each side of a box, in shares of its width or height."""
    ghosts: float
    """Objects per image that are not there."""


DIFFICULTIES = {"easy": Difficulty(16, 0.02, 0.02, 0.1), "hard": Difficulty(40, 0.12, 0.06, 1.0)}


class Scene(NamedTuple):
    """Where which objects are, and what is seen of them."""

    truth: list[tuple[np.ndarray, np.ndarray]]
    """Ids N and boxes N×4, xyxy in pixels, of each image."""
    seen: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    """Scores M in descending order, boxes M×4 in pixels, and the true ids M of each image; 0: none."""


def make_scene(difficulty: Difficulty, num_images: int, seed: int) -> Scene:
    """Make a scene; objects are numbered from 1 in the order of their depth, the nearest last."""
    rng = np.random.default_rng(seed)
    width, height = SIZE_WH
    num = difficulty.num_objects
    begin = np.sort(rng.integers(-num_images // 4, num_images * 3 // 4, num))
    sizes = rng.uniform((40, 80), (110, 220), (num, 2))
    from_left = rng.random(num) < 0.5
    speed = rng.uniform(2.5, 7, num) * np.where(from_left, 1, -1)
    start_x = np.where(from_left, -60, width + 60)
    start_y = rng.uniform(0.2, 0.8, num) * height
    drift, sway, period = rng.uniform(-0.6, 0.6, num), rng.uniform(0, 70, num), rng.uniform(60, 200, num)
    pause = rng.uniform(20, 120, num), rng.uniform(0, 40, num)
    truth, seen = [], []
    for index in range(num_images):
        age = index - begin
        # Each stands still for a while on its way.
        walked = np.clip(age, None, pause[0]) + np.clip(age - pause[0] - pause[1], 0, None)
        centers = np.stack(
            [start_x + speed * walked, start_y + drift * walked + sway * np.sin(2 * np.pi * walked / period)], axis=1
        )
        boxes = np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=1)
        inside = boxes.clip(0, (width, height, width, height))
        in_sight = _area(inside) / _area(boxes)
        there = np.flatnonzero((age >= 0) & (in_sight > 0.25))
        boxes = inside[there]
        truth.append((there + 1, boxes))
        free = np.array([1 - _hidden(boxes[place], boxes[place + 1 :]) for place in range(len(there))])
        is_seen = (free > 0.3) & (rng.random(len(there)) >= difficulty.missed)
        scores = np.clip(0.92 * free**0.5 - np.abs(rng.normal(0, 0.12, len(there))), 0.05, 0.98)
        sides = boxes[:, 2:] - boxes[:, :2]
        noisy = boxes + rng.normal(0, difficulty.noise, boxes.shape) * np.concatenate([sides, sides], axis=1)
        num_ghosts = rng.poisson(difficulty.ghosts)
        corner = rng.uniform((0, 0), (width - 120, height - 200), (num_ghosts, 2))
        ghosts = np.concatenate([corner, corner + rng.uniform((40, 60), (120, 200), (num_ghosts, 2))], axis=1)
        boxes = np.concatenate([noisy[is_seen], ghosts]).clip(0, (width, height, width, height))
        scores = np.concatenate([scores[is_seen], rng.uniform(0.1, 0.65, num_ghosts)])
        ids = np.concatenate([there[is_seen] + 1, np.zeros(num_ghosts, int)])
        order = np.argsort(-scores)
        seen.append((scores[order], boxes[order], ids[order]))
    return Scene(truth, seen)


def detections_of(scene: Scene, track: str | None) -> Iterator[Detections]:
    """What `predict` makes of what the network sees."""
    image = np.zeros((SIZE_WH[1], SIZE_WH[0], 3), np.uint8)
    last = len(scene.seen) - 1
    frames = (Frame(image, "made-up.mp4", index, index, index / RATE, index == last) for index in range(last + 1))
    outputs = iter(scene.seen)

    def run(images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        scores, boxes, _ = next(outputs)
        shares = boxes / (SIZE_WH * 2)
        return scores[None].astype(np.float32), np.zeros((1, len(scores)), int), shares[None].astype(np.float32)

    return detect(
        frames,
        run,
        classes=CLASSES,
        size_hw=SIZE_WH[::-1],
        mode="stretch",
        batch=1,
        selection=Selection(CLASSES.names, conf=CONF, duplicates="keep"),
        steps=steps_of(track, None),
    )


def our_rows(scene: Scene, track: str) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Ids and boxes of each image, of `predict(..., track=track)`."""
    for number, found in enumerate(detections_of(scene, track), 1):
        assert found.tracker_id is not None
        yield number, found.tracker_id, found.xyxy


def direct_rows(scene: Scene, track: str) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The same of `trackers`, called as its documentation does, with the time of each image."""
    tracker = getattr(trackers, TRACKERS[track])()
    for number, found in enumerate(detections_of(scene, None), 1):
        given = supervision.Detections(xyxy=found.xyxy, confidence=found.confidence, class_id=found.class_id)
        followed = tracker.update(given, timestamp=found.time)
        ids = followed.tracker_id if len(followed) else np.zeros(0, int)
        yield number, ids, followed.xyxy


def known_rows(scene: Scene) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """What is seen, with the true ids."""
    for number, (scores, boxes, ids) in enumerate(scene.seen, 1):
        kept = scores >= CONF
        yield number, np.where(ids == 0, -1, ids)[kept], boxes[kept]


def write_mot(path: Path, rows: Iterator[tuple[int, np.ndarray, np.ndarray]]) -> str:
    """Write a file of a MOT challenge, objects without an id left out, and return its text."""
    lines = [
        f"{number},{name},{left:.2f},{top:.2f},{right - left:.2f},{bottom - top:.2f},1,1,1"
        for number, ids, boxes in rows
        for name, (left, top, right, bottom) in sorted(zip(ids.tolist(), boxes.tolist(), strict=True))
        if name >= 0
    ]
    text = "".join(f"{line}\n" for line in lines)
    path.write_text(text, encoding="ascii")
    return text


def evaluate(truth: Path, result: Path) -> dict[str, float]:
    """HOTA, MOTA and IDF1 in percent, and how often an object got another id."""
    found = evaluate_mot_sequence(truth, result, metrics=["CLEAR", "HOTA", "Identity"])
    assert found.CLEAR is not None
    assert found.HOTA is not None
    assert found.Identity is not None
    values = {"HOTA": found.HOTA.HOTA, "MOTA": found.CLEAR.MOTA, "IDF1": found.Identity.IDF1}
    return {name: round(100 * float(value), 3) for name, value in values.items()} | {"IDSW": int(found.CLEAR.IDSW)}


def compare_trackers(difficulty: Difficulty, num_images: int, seed: int) -> dict[str, Any]:
    """Follow one scene with every tracker, ours and directly."""
    scene = make_scene(difficulty, num_images, seed)
    results: dict[str, Any] = {"num_boxes": sum(len(ids) for ids, _ in scene.truth)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_mot(folder / "truth.txt", ((number, *each) for number, each in enumerate(scene.truth, 1)))
        write_mot(folder / "known.txt", known_rows(scene))
        results["known"] = evaluate(folder / "truth.txt", folder / "known.txt")
        for track in TRACKERS:
            ours = write_mot(folder / "ours.txt", our_rows(scene, track))
            direct = write_mot(folder / "direct.txt", direct_rows(scene, track))
            results[track] = {
                "ours": evaluate(folder / "truth.txt", folder / "ours.txt"),
                "direct": evaluate(folder / "truth.txt", folder / "direct.txt"),
                "same_file": ours == direct,
            }
    return results


def mean_of(results: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every metric over scenes."""
    return {name: round(float(np.mean([each[name] for each in results])), 2) for name in results[0]}


def main() -> None:
    """Follow every scene, and write what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="scenes per difficulty (default: %(default)s)")
    parser.add_argument("--images", type=int, default=600, help="of a scene (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    options = parser.parse_args()
    versions = {name: importlib.metadata.version(name) for name in ("rtdetrv4", "trackers", "supervision", "numpy")}
    content: dict[str, Any] = {
        "command": f"python benchmarks/robustness/tracking.py --seeds {options.seeds} --images {options.images}",
        "versions": versions | {"python": platform.python_version()},
        "scenes": {},
        "means": {},
    }
    print(
        "| scenes | tracker | ids of | HOTA | MOTA | IDF1 | other ids | same ids |\n|---|---|---|---|---|---|---|---|"
    )
    for name, difficulty in DIFFICULTIES.items():
        scenes = [compare_trackers(difficulty, options.images, seed) for seed in range(options.seeds)]
        content["scenes"][name] = {"difficulty": difficulty._asdict(), "by_seed": scenes}
        means: dict[str, Any] = {"known": mean_of([scene["known"] for scene in scenes])}
        _print_row(name, "known ids", "", means["known"], "")
        for track in TRACKERS:
            same = sum(scene[track]["same_file"] for scene in scenes)
            means[track] = {whose: mean_of([scene[track][whose] for scene in scenes]) for whose in ("ours", "direct")}
            for whose, values in means[track].items():
                _print_row(name, track, whose, values, f"{same} of {len(scenes)}" if whose == "ours" else "")
        content["means"][name] = means
    options.results.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _print_row(scenes: str, track: str, whose: str, values: Mapping[str, float], same: str) -> None:
    numbers = " | ".join(f"{values[metric]:.2f}" for metric in METRICS)
    print(f"| {scenes} | {track} | {whose} | {numbers} | {values['IDSW']:.1f} | {same} |", flush=True)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2:] - boxes[..., :2]).clip(0).prod(axis=-1)


def _hidden(box: np.ndarray, nearer: np.ndarray) -> float:
    """The largest share of a box that one of the nearer ones covers."""
    if not len(nearer):
        return 0.0
    shared = np.concatenate([np.maximum(box[:2], nearer[:, :2]), np.minimum(box[2:], nearer[:, 2:])], axis=1)
    return float((_area(shared) / _area(box)).max())


if __name__ == "__main__":
    main()
