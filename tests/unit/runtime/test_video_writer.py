"""Videos that are written: their codec, sizes and times, and that they are whole after a crash."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from cameras import gray
from rtdetrv4.errors import MissingDependencyError
from rtdetrv4.runtime import video_writer
from rtdetrv4.runtime.video_writer import VideoWriter, can_write_video, check_video


def read_back(path: Path) -> tuple[av.VideoStream, list[tuple[float, np.ndarray]]]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = []
        with contextlib.suppress(av.error.InvalidDataError):  # where it was cut off
            for frame in container.decode(video=0):
                frames.append((frame.time or 0.0, frame.to_ndarray(format="rgb24")))
        return stream, frames


def test_a_video_that_plays_everywhere(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4")
    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 0] = 200
    for index in range(10):
        writer.add(red, 100 + index / 5)
    writer.close()
    stream, frames = read_back(tmp_path / "a.mp4")
    context = stream.codec_context
    assert (context.name, context.pix_fmt, context.width, context.height) == ("h264", "yuv420p", 64, 48)
    assert (context.colorspace, context.color_range) == (1, 1), "the colors that players take for granted"
    assert [time for time, _ in frames] == pytest.approx([index / 5 for index in range(10)])
    with av.open(str(tmp_path / "a.mp4")) as container:
        luma = next(container.decode(video=0)).to_ndarray()[:48]
        duration = container.duration
    np.testing.assert_allclose(luma, 16 + 219 * 0.2126 * 200 / 255, atol=2)  # BT.709, limited range
    assert duration / 1e6 == pytest.approx(2), "the last image is shown as long as the others"
    # An index, without which some players refuse a file; it is a fragmented one while it grows.
    assert b"moof" not in (tmp_path / "a.mp4").read_bytes()


def test_odd_sizes_gain_a_row_and_others_are_scaled(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4")
    for height, width in ((47, 63), (47, 63), (94, 126), (30, 30)):
        writer.add(gray(100, height, width), None)
    writer.close()
    stream, frames = read_back(tmp_path / "a.mp4")
    assert (stream.codec_context.width, stream.codec_context.height) == (64, 48)
    assert [time for time, _ in frames] == pytest.approx([0, 0.04, 0.08, 0.12])
    for _, image in frames:
        np.testing.assert_allclose(image, gray(100), atol=4)


def test_times_that_stand_still_or_go_back_are_moved(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "a.mp4")
    for time in (5.0, 5.0, 4.0, 6.0):
        writer.add(gray(50), time)
    writer.close()
    times = [time for time, _ in read_back(tmp_path / "a.mp4")[1]]
    assert times == pytest.approx([0, 0, 0, 1], abs=1e-3)
    assert len(set(times)) == 4


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("mine")
    with pytest.raises(FileExistsError):
        VideoWriter(tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").read_text() == "mine"


def test_a_process_that_dies_leaves_a_video(tmp_path: Path) -> None:
    code = f"""
import os
from pathlib import Path
import numpy as np
from rtdetrv4.runtime import video_writer
video_writer.USUAL_FPS = 4  # and so a fragment is forty images
writer = video_writer.VideoWriter(Path({str(tmp_path)!r}) / "a.mp4")
noise = np.random.default_rng(0)
for index in range(130):
    writer.add(noise.integers(0, 255, (48, 64, 3), dtype=np.uint8), index / 25)
os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert len(read_back(tmp_path / "a.mp4")[1]) >= 40, "what was complete"


def test_other_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_writer, "_ENCODERS", video_writer._ENCODERS[2:])
    writer = VideoWriter(tmp_path / "a.mp4")
    assert writer.path == tmp_path / "a.webm"
    for index in range(3):
        writer.add(gray(100), index / 10)
    writer.close()
    stream, frames = read_back(tmp_path / "a.webm")
    assert (stream.codec_context.name, len(frames)) == ("vp9", 3)
    monkeypatch.setattr(video_writer, "_ENCODERS", (video_writer._Encoder("none", ".mp4", {}),))
    with pytest.raises(
        MissingDependencyError, match=r'without an encoder \(none\); .* pip install "rtdetrv4\[video\]"'
    ):
        check_video()


def test_without_pyav_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert can_write_video()
    can_write_video.cache_clear()
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match=r'av is not installed; .* pip install "rtdetrv4\[video\]"'):
        VideoWriter(tmp_path / "a.mp4")
    assert not can_write_video()
    can_write_video.cache_clear()
    assert list(tmp_path.iterdir()) == []
