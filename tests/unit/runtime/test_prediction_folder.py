"""What `predict` writes: results of every image, over nothing that is there."""

from __future__ import annotations

import errno
import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from rtdetrv4.errors import ConfigError
from rtdetrv4.runtime import Detections, PredictionFolder, prediction_folder
from rtdetrv4.runtime.prediction_lines import pictures_in


def found_in(path: str | None, frame: int | None = None, *, is_last: bool = False) -> Detections:
    """A cat in a black image, which may be that of a video."""
    return Detections(
        xyxy=np.array([[0, 0, 5, 5]], dtype=np.float32),
        confidence=np.array([0.9], dtype=np.float32),
        class_id=np.array([1]),
        names=("dog", "cat"),
        image=np.zeros((8, 8, 3), dtype=np.uint8),
        path=path,
        category_ids=(17, 5),
        frame_index=frame,
        time=None if frame is None else frame / 10,
        is_last=is_last,
    )


def num_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return len(list(container.decode(video=0)))


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


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_videos_become_videos(tmp_path: Path) -> None:
    with PredictionFolder(tmp_path / "found") as results:
        names = [results.add(found_in("a/clip.mov", frame, is_last=frame == 2)) for frame in range(3)]
        assert num_frames(results.path / "clip.mp4") == 3, "complete when the video ends"
        names += [results.add(found_in("b/clip.mp4", 0)), results.add(found_in("photo.png"))]
    assert names == [*(f"clip.mp4, frame {frame}" for frame in range(3)), "clip-2.mp4, frame 0", "photo.jpg"]
    assert names_in(results.path) == {"clip.mp4", "clip-2.mp4", "photo.jpg", "predictions.jsonl"}
    assert num_frames(results.path / "clip-2.mp4") == 1
    lines = read_lines(results.path)
    assert [line.get("video") or line.get("picture") for line in lines] == [
        *["clip.mp4"] * 3,
        "clip-2.mp4",
        "photo.jpg",
    ]
    assert [line.get("frame") for line in lines] == [0, 1, 2, 0, None]
    assert lines[2]["time"] == 0.2
    assert pictures_in(results.path) == {"clip.mp4", "clip-2.mp4", "photo.jpg"}, "no sources of a later run"


def test_videos_of_a_folder_keep_theirs(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"mine")
    with PredictionFolder(tmp_path) as results:
        assert results.add(found_in(str(tmp_path / "clip.mp4"), 0)) == "clip-found.mp4, frame 0"
    assert (tmp_path / "clip.mp4").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("kinds", "written"),
    [
        (["video"], {"clip.mp4", "photo.jpg", "predictions.jsonl"}),
        (["pictures"], {"clip.jpg", "clip-000001.jpg", "photo.jpg", "predictions.jsonl"}),
        (["pictures", "video"], {"clip.mp4", "clip.jpg", "clip-000001.jpg", "photo.jpg", "predictions.jsonl"}),
        (["jsonl"], {"predictions.jsonl"}),
        (["csv"], {"predictions.csv"}),
        (["coco", "csv"], {"predictions.coco.json", "predictions.csv"}),
        (["yolo"], {f"labels/{name}.txt" for name in ("classes", "clip", "clip-000001", "photo")}),
        ([], set()),
    ],
)
def test_what_is_written_is_what_is_asked_for(tmp_path: Path, kinds: list[str], written: set[str]) -> None:
    with PredictionFolder(tmp_path / "found", kinds) as results:
        for detections in (found_in("clip.mp4", 0), found_in("clip.mp4", 1, is_last=True), found_in("photo.png")):
            results.add(detections)
    assert results.path.exists() == bool(written)
    assert names_in(results.path) == written
    second = PredictionFolder(tmp_path / "found", kinds)
    assert second.path == (tmp_path / "found-2" if written else tmp_path / "found"), "nothing is written over"
    assert results.num_images == 3


def test_labels_are_called_as_their_pictures(tmp_path: Path) -> None:
    with PredictionFolder(tmp_path, ["pictures", "yolo-conf"]) as results:
        for source in ("a/cat.jpg", "b/cat.jpg"):
            results.add(found_in(source))
    pictures = {path.stem for path in tmp_path.glob("*.jpg")}
    assert pictures == {"cat", "cat-000001"}
    assert {path.stem for path in (tmp_path / "labels").iterdir()} == {*pictures, "classes"}


def test_labels_of_photos_beside_them_are_called_as_these_are(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg")
    with PredictionFolder(tmp_path, ["yolo"]) as results:
        results.add(found_in(str(tmp_path / "photo.jpg")))
    assert names_in(tmp_path) == {"photo.jpg", "labels/photo.txt", "labels/classes.txt"}


def test_labels_do_not_write_over_each_other_or_the_names(tmp_path: Path) -> None:
    with PredictionFolder(tmp_path / "found", ["yolo"]) as results:
        for index, source in enumerate(["photo-000001.jpg", "photo.jpg", "photo.png", "classes.jpg"]):
            found = found_in(source)
            results.add(replace(found, class_id=np.array([index % 2])))
    labels = {path.name: path.read_text()[:1] for path in (tmp_path / "found" / "labels").iterdir()}
    assert labels == {
        "photo-000001.txt": "0",
        "photo.txt": "1",
        "photo-000002.txt": "0",
        "classes-000001.txt": "1",
        "classes.txt": "d",
    }


@pytest.mark.parametrize("stem", ["é" * 125, "a" * 251, "写" * 83])
def test_long_names_are_cut(stem: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / f"{stem}.jpg")
    with PredictionFolder(tmp_path) as results:
        names = [results.add(found_in(str(tmp_path / f"{stem}.jpg"))) for _ in range(2)]
    cut = os.fsencode(stem)[:200].decode(errors="ignore")
    assert names == [f"{cut}-found.jpg", f"{cut}-found-000001.jpg"]


def test_without_pyav_videos_become_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prediction_folder, "can_write_video", lambda: False)
    caplog.set_level(logging.INFO)
    with PredictionFolder(tmp_path / "found") as results:
        for frame in range(2):
            results.add(found_in("clip.mp4", frame))
    assert names_in(results.path) == {"clip.jpg", "clip-000001.jpg", "predictions.jsonl"}
    assert caplog.text.count('PyAV is missing: pip install "rtdetrv4[video]"') == 1


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("https://site/photos/cat.png?token=secret", "cat.jpg"),
        ("rtsp://***@10.0.0.5:554/cam/main?channel=1", "10.0.0.5-cam-main.jpg"),
        ("http://yard/video.mjpg (2)", "yard-video-2.jpg"),
        ("http://yard:80", "yard.jpg"),
        ("rtsp://***", "stream.jpg"),
        ("camera 0", "camera 0.jpg"),
    ],
)
def test_pictures_of_streams(tmp_path: Path, source: str, name: str) -> None:
    assert PredictionFolder(tmp_path / "found").add(found_in(source)) == name


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (["vidoe"], 'save: got "vidoe", expected pictures, video, jsonl, .* Did you mean "video"?'),
        (["yolo", "yolo-conf"], "yolo and yolo-conf write the same files"),
    ],
)
def test_kinds_that_cannot_be(tmp_path: Path, kinds: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PredictionFolder(tmp_path, kinds)


def test_a_full_disk_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = PredictionFolder(tmp_path / "found", ["csv"])
    results.add(found_in("a.jpg"))

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(results._files[0], "add", fail)
    with pytest.raises(OSError, match="No space left on device") as error:
        results.add(found_in("b.jpg"))
    assert error.value.filename == str(tmp_path / "found")
    assert results.num_images == 1
