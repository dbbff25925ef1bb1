from __future__ import annotations

import io
import os
import threading
import time

import numpy as np
import pytest
from PIL import Image

from cameras import gray, jpeg
from rtdetrv4.errors import ConfigError, SourceError
from rtdetrv4.runtime import Pipe, PipeFormat, pipes, read_source
from rtdetrv4.runtime.pipes import JpegSplitter


def shades(pipe: Pipe, **options: int) -> list[tuple[int | None, int]]:
    return [(frame.frame_index, round(frame.image.mean())) for frame in read_source(pipe, **options)]


def photo_with_preview() -> bytes:
    """A JPEG file with another one inside, as cameras write them, and several scans."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x010E] = "preview" + jpeg(9).decode("latin-1")
    file = io.BytesIO()
    image.save(file, "JPEG", progressive=True, exif=exif.tobytes() + jpeg(9))
    return file.getvalue()


@pytest.mark.parametrize("size", [1, 7, 100, 100_000])
def test_jpeg_files_are_cut_out_wherever_the_pieces_end(size: int) -> None:
    files = [jpeg(10), photo_with_preview(), jpeg(200)]
    stream = b"\r\n--frame\r\nContent-Type: image/jpeg\r\n\r\n".join([b"", *files]) + b"\xff"
    splitter = JpegSplitter()
    found = [image for start in range(0, len(stream), size) for image in splitter.add(stream[start : start + size])]
    assert found == files
    assert splitter.num_waiting == 0


def test_a_file_that_is_cut_off_is_left_out() -> None:
    whole = photo_with_preview()
    splitter = JpegSplitter()
    assert list(splitter.add(whole[:-30] + jpeg(7))) == [jpeg(7)]
    assert list(splitter.add(jpeg(8)[:100])) == []
    assert splitter.num_waiting == 100


def test_mjpeg(caplog: pytest.LogCaptureFixture) -> None:
    data = b"".join(map(jpeg, (0, 50, 100, 150, 200)))
    assert shades(Pipe(io.BytesIO(data))) == [(0, 0), (1, 50), (2, 100), (3, 150), (4, 200)]
    assert shades(Pipe(io.BytesIO(data)), every=2) == [(0, 0), (2, 100), (4, 200)]
    assert caplog.text == ""
    assert len(shades(Pipe(io.BytesIO(data[:-50])))) == 4
    assert "stdin ends within an image, which is left out" in caplog.text


def test_raw_images(caplog: pytest.LogCaptureFixture) -> None:
    images = [np.random.default_rng(seed).integers(0, 256, (3, 5, 3), dtype=np.uint8) for seed in range(3)]
    data = b"".join(image.tobytes() for image in images)
    form = PipeFormat.parse("rgb24:5x3")
    frames = list(read_source(Pipe(io.BytesIO(data), form)))
    for frame, image in zip(frames, images, strict=True):
        np.testing.assert_array_equal(frame.image, image)
    assert caplog.text == ""
    assert len(list(read_source(Pipe(io.BytesIO(data[:-1]), form)))) == 2
    assert "stdin ends within an image of 5×3; is that its size?" in caplog.text


def test_data_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match="no JPEG image is in the 9 bytes that came"):
        shades(Pipe(io.BytesIO(b"no images")))
    with pytest.raises(SourceError, match="0 bytes came, and an RGB image of 640×480 has 921600"):
        shades(Pipe(io.BytesIO(), PipeFormat.parse("rgb24:640x480")))
    damaged = jpeg(0)[:2] + b"\xff\xda\x00\x02" + b"\xff\xd9"
    with pytest.raises(SourceError, match="stdin: image 1 is damaged or not an image"):
        shades(Pipe(io.BytesIO(jpeg(0) + damaged)))
    monkeypatch.setattr(pipes, "MAX_JPEG_BYTES", 300)
    with pytest.raises(SourceError, match="image 0 is larger than"):
        shades(Pipe(io.BytesIO(photo_with_preview()[:-2])))


@pytest.mark.parametrize(
    "text", ["", "jpeg", "rgb24", "rgb24:5", "rgb24:0x3", "rgb24:5x70000", "rgb24:-5x3", "bgr24:5x3"]
)
def test_formats_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match=r"expected mjpeg, or rgb24:WIDTHxHEIGHT such as rgb24:640x480\.$"):
        PipeFormat.parse(text)


def test_a_silent_pipe_does_not_hold_up_who_stops_reading() -> None:
    end, beginning = os.pipe()
    with os.fdopen(end, "rb") as file, os.fdopen(beginning, "wb", buffering=0) as writer:
        frames = read_source(Pipe(file))
        writer.write(jpeg(30))
        start = time.time()
        first = next(frames)
        assert round(first.image.mean()) == 30
        assert first.time is not None
        assert start - 1 < first.time < time.time() + 1
        frames.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("rtdetrv4")] == []


def test_the_newest_image_of_a_pipe() -> None:
    end, beginning = os.pipe()
    with os.fdopen(end, "rb") as file, os.fdopen(beginning, "wb", buffering=0) as writer:
        frames = read_source(Pipe(file), latest=True)
        writer.write(jpeg(30))
        assert next(frames).frame_index == 0
        for level in (40, 50, 60):
            writer.write(jpeg(level))
        time.sleep(0.5)
        newest = next(frames)
        assert (newest.frame_index, round(newest.image.mean())) == (3, 60)
        frames.close()  # pyright: ignore[reportAttributeAccessIssue]


def test_nothing_is_piped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(SourceError, match="- reads images from a pipe, and nothing is piped"):
        read_source("-")
    data = io.BytesIO(jpeg(70))
    monkeypatch.setattr("sys.stdin", type("Stdin", (), {"buffer": data, "isatty": lambda self: False})())
    (frame,) = read_source("-")
    assert frame.path == "stdin"
    np.testing.assert_allclose(frame.image, gray(70), atol=2)
