from __future__ import annotations

import glob
import http.server
import io
import json
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from rtdetrv4.errors import SourceError
from rtdetrv4.runtime import Detections, read_source, urls


def make_image(seed: int = 0, height: int = 24, width: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def test_file_is_read_as_rgb(tmp_path: Path) -> None:
    path = write(tmp_path / "ünïcode name.png", make_image())
    for given in (path, str(path)):
        (frame,) = read_source(given)
        np.testing.assert_array_equal(frame.image, make_image())
        assert frame[1:] == (str(path), 0, None, None, False)


def test_folder_and_glob_in_order_of_names(tmp_path: Path) -> None:
    for seed, name in enumerate(["b.png", "a.PNG", "sub/c.png"]):
        write(tmp_path / name, make_image(seed))
    (tmp_path / "notes.txt").write_text("no image")
    assert [Path(frame.path or "").name for frame in read_source(tmp_path)] == ["a.PNG", "b.png"]
    found = list(read_source(str(tmp_path / "**" / "*")))
    assert [Path(frame.path or "").name for frame in found] == ["a.PNG", "b.png", "c.png"]
    assert [frame.number for frame in found] == [0, 1, 2]
    np.testing.assert_array_equal(found[2].image, make_image(2))


def test_what_systems_leave_in_a_folder_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ["b.png", "._b.png", ".hidden.png", ".thumbs/a.png", "__MACOSX/b.png", "@eaDir/b.png"]:
        write(tmp_path / name, make_image())
    for source in (tmp_path, str(tmp_path / "*")):
        assert [Path(frame.path or "").name for frame in read_source(source)] == ["b.png"]
    (tmp_path / "b.png").unlink()
    with pytest.raises(SourceError, match="has no images"):
        read_source(tmp_path)
    assert caplog.text == ""


def test_what_systems_leave_is_skipped_by_patterns_too(tmp_path: Path) -> None:
    write(tmp_path / "set [1]" / "a" / "x.png", make_image())
    write(tmp_path / "set [1]" / "a" / "@eaDir" / "x.png" / "SYNOPHOTO_THUMB_XL.jpg", make_image())
    pattern = tmp_path / glob.escape("set [1]") / "**"
    assert [Path(frame.path or "").name for frame in read_source(pattern)] == ["x.png"]


def test_a_folder_of_folders_gives_their_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ["cats/1.JPG", "dogs/small/2.png", ".git/3.png"]:
        write(tmp_path / name, make_image())
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "dogs" / "named like an image.png").mkdir()
    caplog.set_level(logging.INFO)
    found = [Path(frame.path or "").relative_to(tmp_path).as_posix() for frame in read_source(tmp_path)]
    assert found == ["cats/1.JPG", "dogs/small/2.png"]
    assert "has images in subfolders only, 2 of them" in caplog.text


def test_images_in_subfolders_are_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ["a.png", "cats/1.JPG", "dogs/small/2.png", ".git/3.png"]:
        write(tmp_path / name, make_image())
    assert [Path(frame.path or "").name for frame in read_source(tmp_path)] == ["a.png"]
    pattern = f"{tmp_path}/**"
    assert f'2 images in subfolders of {tmp_path} are left out; to include them, give "{pattern}"' in caplog.text
    assert [Path(frame.path or "").name for frame in read_source(pattern)] == ["a.png", "1.JPG", "2.png"]


@pytest.mark.parametrize("pattern", ["", "*", "**/*"])
def test_pictures_that_predict_wrote_are_no_sources(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, pattern: str
) -> None:
    for name in ["a.png", "a-found.jpg", "other-found.jpg"]:
        write(tmp_path / name, make_image())
    (tmp_path / "predictions.jsonl").write_text('{"picture": "a-found.jpg"}\n{"picture": 3}\nno JSON\n[1]\n')
    caplog.set_level(logging.INFO)
    source = str(tmp_path / pattern) if pattern else tmp_path
    assert [Path(frame.path or "").name for frame in read_source(source)] == ["a.png", "other-found.jpg"]
    assert "Skipped, because an earlier predict wrote them (predictions.jsonl): 1" in caplog.text
    assert read_source(tmp_path / "a-found.jpg"), "one that is named is read"
    for name in ["a.png", "other-found.jpg"]:
        (tmp_path / name).unlink()
    with pytest.raises(SourceError, match="has only pictures that an earlier predict wrote"):
        read_source(source)


@pytest.mark.skipif(os.name == "nt", reason="patterns do not tell cases apart there")
def test_a_pattern_that_matches_nothing_says_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "a.JPG", make_image())
    (tmp_path / "b.txt").write_text("no image")
    (tmp_path / "deeper").mkdir()
    write(tmp_path / "deeper" / "c.JPG", make_image())
    for pattern, message in [
        ("*.jpg", r"holds 1 × \.JPG, 1 × \.txt, and a pattern tells upper from lower case$"),
        ("*.png", r"holds 1 × \.JPG, 1 × \.txt$"),
        ("*.txt", r"it matches 1 × \.txt$"),
        ("gone/*.jpg", "gone does not exist$"),
        ("**/*.jpgg", r"holds 2 × \.JPG, 1 × \.txt$"),
    ]:
        with pytest.raises(SourceError, match=message):
            read_source(str(tmp_path / pattern))


def test_links_are_followed_and_broken_ones_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "away" / "a.png", make_image())
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "linked.png").symlink_to(tmp_path / "away" / "a.png")
    (folder / "lost.png").symlink_to(tmp_path / "away" / "b.png")
    (tmp_path / "elsewhere").symlink_to(folder)
    (frame,) = read_source(tmp_path / "elsewhere")
    assert frame.path == str(tmp_path / "elsewhere" / "linked.png")
    assert "lost.png cannot be read: No such file or directory; skipped" in caplog.text
    with pytest.raises(SourceError, match="does not exist"):
        read_source(folder / "lost.png")


@pytest.mark.skipif(os.name == "nt" or sys.platform == "darwin", reason="names are Unicode on this system")
def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    write(path, make_image())
    for source in (tmp_path, str(path), str(tmp_path / "*.png")):
        (frame,) = read_source(source)
        assert frame.path == str(path)
    found = Detections.from_predictions(
        np.zeros(0), np.zeros(0), np.zeros((0, 4)), names=("a",), image=frame.image, path=frame.path
    )
    (tmp_path / "found.json").write_text(found.to_json(), encoding="utf-8")
    assert json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["path"] == str(path)


def test_damaged_files_of_a_folder_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "a.png", make_image())
    (tmp_path / "b.png").write_bytes(b"not an image")
    assert len(list(read_source(tmp_path))) == 1
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "b.png is damaged or not an image (12 bytes); skipped" in caplog.text
    (tmp_path / "a.png").unlink()
    with pytest.raises(SourceError, match="none of the images could be read"):
        list(read_source(tmp_path))


@pytest.mark.parametrize("name", ["empty.jpg", "half.png", "text.jpg", "half.jpg"])
def test_damaged_file_is_one_clear_error(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = write(tmp_path / f"whole{Path(name).suffix}", make_image(0, 200, 200)).read_bytes()
    content = {"empty": b"", "half": whole[: len(whole) // 2], "text": b"hello"}[Path(name).stem]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=rf"{name} is damaged or not an image") as error:
        list(read_source(tmp_path / name))
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_sources_that_are_not_there_fail_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for source, message in [
        (tmp_path / "missing.jpg", "does not exist"),
        ("", "the path of the images is empty"),
        (" ", "the path of the images is empty"),
        (tmp_path, "has no images; expected files ending in .avif"),
        (str(tmp_path / "*.jpg"), "no image or video matches"),
        ("99", "camera 99 cannot be read"),
        (99, "camera 99 cannot be read"),
        (np.int64(99), "camera 99 cannot be read"),
        ("x" * 300, "x does not exist"),
        (3.5, "cannot read images from float"),
        (None, "cannot read images from NoneType"),
        (b"bytes", r"the image is damaged or not an image \(5 bytes\)"),
    ]:
        with pytest.raises(SourceError, match=message):
            read_source(source)
    with pytest.raises(SourceError, match="the path of the images is empty"):
        list(read_source([""]))
    assert capfd.readouterr() == ("", "")


def test_images_in_memory(tmp_path: Path) -> None:
    image = make_image()
    channels_first = torch.from_numpy(image).permute(2, 0, 1)
    for source in (
        image,
        Image.fromarray(image),
        channels_first,
        channels_first / 255,
        (channels_first / 255).double(),
    ):
        (frame,) = read_source(source)
        np.testing.assert_array_equal(frame.image, image)
        assert frame.image.flags.c_contiguous
        assert frame[1:] == (None, 0, None, None, False)
    (frame,) = read_source(write(tmp_path / "a.png", image).read_bytes())
    np.testing.assert_array_equal(frame.image, image)
    for number in (2, 0):
        with (tmp_path / "a.png").open("rb") as file:
            file.seek(number)  # as after somebody has read or written it
            (frame,) = read_source(file)
        np.testing.assert_array_equal(frame.image, image)
    (frame,) = read_source([io.BytesIO((tmp_path / "a.png").read_bytes())])
    np.testing.assert_array_equal(frame.image, image)
    with (tmp_path / "a.png").open() as text, pytest.raises(SourceError, match='open it with "rb"'):
        read_source(text)
    with pytest.raises(SourceError, match="closed file"):
        read_source(file)
    for batch in (np.stack([image, image]), torch.stack([channels_first, channels_first]).requires_grad_(False)):
        assert [frame.number for frame in read_source(batch)] == [0, 1]
    (frame,) = read_source((channels_first / 255).requires_grad_())
    np.testing.assert_array_equal(frame.image, image)


def test_lists_and_generators_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", make_image(1))
    frames = list(read_source([path, make_image(2), [Image.fromarray(make_image(3))]]))
    assert [frame.number for frame in frames] == [0, 1, 2]
    assert [frame.path for frame in frames] == [str(path), None, None]

    asked: list[int] = []

    def generate() -> Iterator[np.ndarray]:
        for seed in range(100):
            asked.append(seed)
            yield make_image(seed)

    stream = read_source(generate())
    np.testing.assert_array_equal(next(stream).image, make_image(0))
    assert asked == [0]
    with pytest.raises(SourceError, match="does not exist"):
        list(read_source([path, tmp_path / "missing.png"]))


def test_video(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    if not writer.isOpened():
        pytest.skip("OpenCV was built without video")
    for level in (0, 100, 200):
        writer.write(np.full((48, 64, 3), (level, 0, 0), np.uint8))  # blue, as OpenCV sees it
    writer.release()
    frames = list(read_source(path))
    assert [frame.number for frame in frames] == [0, 1, 2]
    assert {frame.path for frame in frames} == {str(path)}
    for frame, level in zip(frames, (0, 100, 200), strict=True):
        assert frame.image[..., 2].mean() == pytest.approx(level, abs=8)
        assert frame.image[..., 0].mean() == pytest.approx(0, abs=8)
    (tmp_path / "b.mp4").write_bytes(b"no video")
    with pytest.raises(SourceError, match=r"b.mp4 cannot be read"):
        read_source(tmp_path / "b.mp4")


def test_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write(tmp_path / "a.png", make_image()).read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/a.png" else 404)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        (frame,) = read_source(f"{url}/a.png")
        np.testing.assert_array_equal(frame.image, make_image())
        assert frame.path == f"{url}/a.png"
        (frame,) = read_source(f"HTTP{url[4:]}/a.png")
        assert frame.path == f"{url}/a.png"
        with pytest.raises(SourceError, match="cannot be downloaded: HTTP Error 404"):
            read_source(f"{url}/b.png")
        monkeypatch.setattr(urls, "MAX_DOWNLOAD_BYTES", 100)
        with pytest.raises(SourceError, match="is larger than"):
            read_source(f"{url}/a.png")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    with pytest.raises(SourceError, match="cannot be downloaded"):
        read_source(f"{url}/a.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_pipes_devices_and_playlists_are_refused(tmp_path: Path) -> None:
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile other.mp4\n")
    (tmp_path / "live.mp4").write_text("#EXTM3U\n#EXTINF:10.0,\nhttp://127.0.0.1:9/other.mp4\n")
    for name in ("pipe.jpg", "pipe.mp4", "predictions.jsonl"):
        os.mkfifo(tmp_path / name)
    for name in ("zero.jpg", "zero.mp4"):
        (tmp_path / name).symlink_to("/dev/zero")
    for name, message in (
        ("list.mp4", "cannot be read: it is text, perhaps a playlist, expected a video"),
        ("live.mp4", "cannot be read: it is text, perhaps a playlist, expected a video"),
        ("pipe.jpg", "cannot be read: it is a pipe, expected a file"),
        ("pipe.mp4", "cannot be read: it is a pipe, expected a file"),
        ("zero.jpg", "cannot be read: it is a device, expected a file"),
        ("zero.mp4", "cannot be read: it is a device, expected a file"),
    ):
        with pytest.raises(SourceError, match=message):
            next(read_source(tmp_path / name))
    Image.new("RGB", (8, 8)).save(tmp_path / "image.jpg")
    assert [frame.path for frame in read_source(tmp_path)] == [str(tmp_path / "image.jpg")]


def test_lines_of_predictions_without_end(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "image.jpg")
    Image.new("RGB", (8, 8)).save(tmp_path / "written.jpg")
    lines = ["[" * 10**5, '"' + "x" * 2**25, '{"picture": "written.jpg"}', '{"picture": "a", "picture": "b"}']
    (tmp_path / "predictions.jsonl").write_text("\n".join(lines))
    assert [Path(str(frame.path)).name for frame in read_source(tmp_path)] == ["image.jpg"]
    with (tmp_path / "predictions.jsonl").open("wb") as file:
        file.truncate(10**12)
    assert len(list(read_source(tmp_path))) == 2
