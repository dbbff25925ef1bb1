"""What `predict` writes: results of every image, over nothing that is there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rtdetrv4.errors import ConfigError
from rtdetrv4.runtime import Detections, PredictionFolder


def found_in(path: str | None) -> Detections:
    """A cat in a black image."""
    return Detections(
        xyxy=np.array([[0, 0, 5, 5]], dtype=np.float32),
        confidence=np.array([0.9], dtype=np.float32),
        class_id=np.array([1]),
        names=("dog", "cat"),
        image=np.zeros((8, 8, 3), dtype=np.uint8),
        path=path,
        category_ids=(17, 5),
    )


def read_lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text("utf-8").splitlines()]


def test_every_image_gets_a_picture_and_a_line(tmp_path: Path) -> None:
    results = PredictionFolder(tmp_path / "found")
    assert not results.path.exists(), "a source that cannot be read leaves no folder"
    sources = ["a/cat.jpg", "a/cat.png", "b/cat.jpg", "clip.mp4", "clip.mp4", "clip.mp4", "camera 0", None, None]
    pictures = [results.add(found_in(source)) for source in sources]
    assert pictures == [
        *("cat.jpg", "cat-000001.jpg", "cat-000002.jpg"),
        *("clip.jpg", "clip-000001.jpg", "clip-000002.jpg"),
        *("camera 0.jpg", "frame.jpg", "frame-000001.jpg"),
    ]
    lines = read_lines(results.path)
    assert [(line["path"], line["picture"]) for line in lines] == list(zip(sources, pictures, strict=True))
    assert lines[0]["detections"][0]["category_id"] == 5
    assert {path.name for path in results.path.iterdir()} == {*pictures, "predictions.jsonl"}
    assert str(results) == f"9 images in {tmp_path / 'found'}"


def test_pictures_that_are_there_stay_what_they_are(tmp_path: Path) -> None:
    photos = {tmp_path / name for name in ("a.jpg", "a.png", "a-found-000001.jpg", "b.jpg")}
    for photo in photos:
        Image.new("RGB", (8, 8), "red").save(photo)
    before = {photo: photo.read_bytes() for photo in photos}
    results = PredictionFolder(tmp_path)
    pictures = [results.add(found_in(str(photo))) for photo in sorted(photos)]
    assert pictures == ["a-found-000001-found.jpg", "a-found.jpg", "a-found-000002.jpg", "b-found.jpg"]
    assert {photo: photo.read_bytes() for photo in photos} == before


def test_a_name_that_another_file_has_gets_a_number(tmp_path: Path) -> None:
    results = PredictionFolder(tmp_path)
    (tmp_path / "clip-000001.jpg").symlink_to("gone.jpg")
    assert [results.add(found_in("clip.mp4")) for _ in range(3)] == ["clip.jpg", "clip-000002.jpg", "clip-000003.jpg"]


def test_earlier_predictions_stay(tmp_path: Path) -> None:
    first = PredictionFolder(tmp_path / "found")
    first.add(found_in("a.jpg"))
    before = {path: path.read_bytes() for path in first.path.iterdir()}
    second = PredictionFolder(tmp_path / "found")
    assert second.path == tmp_path / "found-2"
    assert second.add(found_in("a.jpg")) == "a.jpg"
    assert {path: path.read_bytes() for path in first.path.iterdir()} == before


def test_another_folder_is_told_with_the_first_result(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    PredictionFolder(tmp_path / "found").add(found_in("a.jpg"))
    second = PredictionFolder(tmp_path / "found")
    assert caplog.text == ""
    second.add(found_in("a.jpg"))
    second.add(found_in("b.jpg"))
    assert caplog.text.count("holds earlier results; the new ones go to") == 1


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "found").write_text("mine")
    with pytest.raises(ConfigError, match="is a file, and results go to a folder"):
        PredictionFolder(tmp_path / "found")


def test_of_two_at_the_same_time_the_second_stops(tmp_path: Path) -> None:
    first, second = PredictionFolder(tmp_path), PredictionFolder(tmp_path)
    first.add(found_in("a.jpg"))
    with pytest.raises(FileExistsError):
        second.add(found_in("b.jpg"))
    assert len(read_lines(tmp_path)) == 1


def test_lines_are_whole_when_the_process_dies(tmp_path: Path) -> None:
    results = PredictionFolder(tmp_path)
    for name in ("a.jpg", "b.jpg"):
        results.add(found_in(name))
        assert (tmp_path / "predictions.jsonl").read_bytes().endswith(b"}]}\n"), "nothing waits in a buffer"


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX only")
def test_names_that_are_not_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    results = PredictionFolder(tmp_path / "found")
    picture = results.add(found_in(name))
    (line,) = read_lines(results.path)
    assert (line["path"], line["picture"]) == (name, picture)
    assert (results.path / picture).is_file()
