"""Videos, cameras and streams: their times and numbers, drops, several at once, and passwords that nobody sees."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cameras import PASSWORD, USER, gray, mjpeg_camera, rtsp_camera, write_video
from rtdetrv4.errors import ConfigError, SourceError
from rtdetrv4.runtime import Frame, read_source, sources, videos
from rtdetrv4.runtime.overlap import close_iterator
from rtdetrv4.runtime.sources import Reading, open_frames
from rtdetrv4.runtime.videos import Clock


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropped streams are opened again soon."""
    monkeypatch.setattr(videos, "FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(videos, "MAX_DELAY_S", 0.02)


def shade(frame: Frame) -> int:
    """The shade that the image was made of, which compression changes a little."""
    return int(np.round(frame.image.mean() / 10) * 10)


def reader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rtdetrv4")]


def test_the_images_of_a_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [0, 100, 200], fps=10)
    frames = list(read_source(path))
    assert [(frame.frame_index, shade(frame)) for frame in frames] == [(0, 0), (1, 100), (2, 200)]
    assert [frame.time for frame in frames] == pytest.approx([0, 0.1, 0.2])
    assert [frame.is_last for frame in frames] == [False, False, True]
    assert {frame.path for frame in frames} == {str(path)}
    assert frames[0].image.shape == (48, 64, 3)
    assert reader_threads() == []


def test_every_third_image(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [0, 30, 60, 90, 120, 150, 180, 210])
    frames = list(read_source(path, every=3))
    assert [(frame.frame_index, shade(frame), frame.is_last) for frame in frames] == [
        *((0, 0, False), (3, 90, False), (6, 180, True))
    ]
    assert [frame.time for frame in frames] == pytest.approx([0, 0.3, 0.6])
    (image,) = read_source(gray(7), every=3)
    assert image.frame_index is None, "photos are all read"


def test_several_files_follow_each_other(tmp_path: Path) -> None:
    paths = [write_video(tmp_path / name, [0, 100]) for name in ("a.mp4", "b.mp4")]
    for source in (paths, str(tmp_path / "*.mp4"), iter(paths)):
        frames = list(read_source(source))
        assert [(frame.path, frame.frame_index, frame.number) for frame in frames] == [
            *((str(paths[0]), 0, 0), (str(paths[0]), 1, 1), (str(paths[1]), 0, 2), (str(paths[1]), 1, 3))
        ]
        assert [frame.is_last for frame in frames] == [False, True] * 2


def test_files_lose_nothing_where_only_the_newest_is_wanted(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [0] * 30)
    frames = read_source(path, latest=True)
    next(frames)
    time.sleep(0.3)
    assert [frame.frame_index for frame in frames] == list(range(1, 30))


def test_stopping_early_leaves_no_thread(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [0] * 30)
    for source in (path, [path], iter([path]), tmp_path / "*.mp4"):
        frames = read_source(source)
        next(frames)
        assert reader_threads() == ["rtdetrv4-reader"]
        frames.close()  # pyright: ignore[reportAttributeAccessIssue]
        assert reader_threads() == []
    read_source(path)
    assert reader_threads() == [], "nothing was asked for"


def test_images_of_a_generator_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    asked: list[int] = []

    def images() -> object:
        for number in range(3):
            asked.append(number)
            yield gray(number)

    frames = read_source(images())
    next(frames)
    assert asked == [0], "the next image may depend on what was found in this one"


def test_a_camera_over_http(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.INFO)
    with mjpeg_camera([[], [10, 50, 100]]) as camera:  # the first answer says what it is
        url = f"http://127.0.0.1:{camera.port}/video"
        start = time.time()
        frames = list(read_source(url, reconnect=0))
    assert [(frame.frame_index, shade(frame), frame.path) for frame in frames] == [
        *((0, 10, url), (1, 50, url), (2, 100, url))
    ]
    times = [frame.time or 0.0 for frame in frames]
    assert start - 1 < times[0] <= times[1] <= times[2] < time.time() + 1
    assert not any(frame.is_last for frame in frames), "a stream does not know"
    assert caplog.text == ""
    assert capfd.readouterr() == ("", "")
    assert reader_threads() == []


def test_a_stream_that_drops_is_opened_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with mjpeg_camera([[10, 50], [100], [], [], [150]]) as camera:
        url = f"http://127.0.0.1:{camera.port}/video.mjpg"
        frames: list[Frame] = []
        with pytest.raises(SourceError, match=r"given up after 3 tries in \d+ s") as error:
            frames.extend(read_source(url, reconnect=3))  # the list has what came before the error
        assert url in str(error.value)
    assert [(frame.frame_index, shade(frame)) for frame in frames] == [(0, 10), (1, 50), (2, 100), (3, 150)]
    drops = [record.getMessage() for record in caplog.records]
    again = f"{url} sends nothing more; trying to open it again, up to 3 times"
    assert drops == [again, f"{url} is back", again, f"{url} is back", again], "one line a drop, however many tries"
    assert reader_threads() == []


def test_delays_grow_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "FIRST_DELAY_S", 1.0)
    monkeypatch.setattr(videos, "MAX_DELAY_S", 30.0)
    waited: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout or 0.0)
            return False

    def fail(_: object) -> None:
        raise SourceError("camera 7 cannot be read")

    monkeypatch.setattr(videos, "Capture", fail)
    with pytest.raises(SourceError, match="camera 7 cannot be read; given up after 8 tries"):
        list(videos.read_live(7, None, Stop(), reconnect=8))
    assert waited == [2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_a_stream_that_keeps_dropping_is_opened_ever_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "FIRST_DELAY_S", 1.0)
    monkeypatch.setattr(videos, "MAX_DELAY_S", 30.0)
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    waited: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout or 0.0)
            return len(waited) == 7

    class Short:
        """A stream of one image, which comes late the third time."""

        is_live = True

        def __init__(self, _: object) -> None:
            self.is_read = False

        def grab(self) -> bool:
            nonlocal now
            now += 100.0 if self.is_read and len(waited) == 3 else 1.0
            self.is_read = not self.is_read
            return self.is_read

        def retrieve(self) -> np.ndarray:
            return gray(0)

        def close(self) -> None: ...

    monkeypatch.setattr(videos, "Capture", Short)
    assert len(list(videos.read_live(7, None, Stop()))) == 7
    assert waited == [2.0, 4.0, 8.0, 1.0, 2.0, 4.0, 8.0]


def test_the_newest_image_of_a_camera(capfd: pytest.CaptureFixture[str]) -> None:
    with mjpeg_camera([[10, 20, 30, 50, 100, 150, 200]]) as camera:
        camera.pauses_after, camera.is_held = 3, True
        frames = read_source(f"http://127.0.0.1:{camera.port}/video.mjpg", latest=True, reconnect=0)
        first = next(frames)
        assert first.frame_index in range(3)
        camera.goes_on.set()
        time.sleep(1.0)
        newest = next(frames)
        if first.frame_index != 2 and newest.frame_index == 2:  # it came between the two
            newest = next(frames)
        assert (newest.frame_index, shade(newest)) == (6, 200)
        camera.released.set()
        frames.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert capfd.readouterr() == ("", "")


def test_an_rtsp_camera_with_a_password(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    caplog.set_level(logging.INFO)
    with rtsp_camera([[10, 50], [100]]) as camera:
        url = f"rtsp://{USER}:{PASSWORD}@127.0.0.1:{camera.port}/live"
        shown = f"rtsp://***@127.0.0.1:{camera.port}/live"
        frames: list[Frame] = []
        with pytest.raises(SourceError, match="are the path, the user name and the password right") as error:
            frames.extend(read_source(url, reconnect=1))
        assert [(frame.frame_index, shade(frame)) for frame in frames] == [(0, 10), (1, 50), (2, 100)]
        assert {frame.path for frame in frames} == {shown}
        written = f"{error.getrepr()} {caplog.text} {capfd.readouterr()}"
        assert shown in written
        assert PASSWORD not in written
        assert USER not in written


@pytest.mark.parametrize("path", ["secret", "secret.mjpg", "live"])
def test_a_wrong_password_is_not_told(
    path: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    wrong = "wr0ng"
    with mjpeg_camera([]) as camera, rtsp_camera([]) as rtsp:
        answering = f"rtsp://{USER}:{wrong}@127.0.0.1:{rtsp.port}/{path}"
        if path != "live":
            answering = f"http://{USER}:{wrong}@127.0.0.1:{camera.port}/{path}?token={wrong}"
        told = []
        for url, message in [
            (answering, "are the path, the user name and the password right"),
            (f"rtsp://{USER}:{wrong}@127.0.0.1:1/{path}", "no connection to 127.0.0.1, port 1: Connection refused"),
            (f"http://{USER}:{wrong}@127.0.0.1:1/{path}.jpg", "cannot be downloaded: Connection refused"),
            (f"http://{USER}:{wrong}#@127.0.0.1:1/{path}.jpg", "is no URL; in a user name or password"),
            (f"http://{USER}:{wrong}@127.0.0.1:1/{wrong} {path}.jpg?{wrong}", "cannot be downloaded: InvalidURL"),
        ]:
            with pytest.raises(SourceError, match=message) as error:
                read_source(url)
            told.append("".join(traceback.format_exception(error.value)))  # as it reaches the terminal or a log
    written = f"{told} {caplog.text} {capfd.readouterr()}"
    assert wrong not in written.replace(f"/{wrong} {path}", ""), "only the path of a URL is shown"


def test_a_password_for_images(tmp_path: Path) -> None:
    with mjpeg_camera([[], [10]]) as camera:
        url = f"http://{USER}:{PASSWORD}@127.0.0.1:{camera.port}/secret"
        (frame,) = read_source(url, reconnect=0)
        assert frame.path == f"http://***@127.0.0.1:{camera.port}/secret"


def write_list(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_several_streams_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with mjpeg_camera([[10] * 5]) as one, mjpeg_camera([[200] * 5]) as other:
        urls = [f"http://127.0.0.1:{camera.port}/video.mjpg" for camera in (one, other)]
        path = write_list(tmp_path / "cameras.streams", ["# the yard", urls[0], "", urls[1]])
        frames = list(read_source(path, reconnect=0))
    for url, level in zip(urls, (10, 200), strict=True):
        own = [frame for frame in frames if frame.path == url]
        assert [(frame.frame_index, shade(frame)) for frame in own] == [(index, level) for index in range(5)]
    assert [frame.number for frame in frames] == list(range(10))
    assert caplog.text == ""
    assert reader_threads() == []


def test_files_of_a_list_are_read_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4"):
        write_video(folder / name, [0, 100, 200])
    Image.fromarray(gray(9)).save(folder / "c.png")
    path = write_list(folder / "all.streams", ["a.mp4", str(folder / "b.mp4"), "c.png"])
    frames = list(read_source(path))
    found = {name: [f.frame_index for f in frames if Path(f.path or "").name == name] for name in ("a.mp4", "b.mp4")}
    assert found == {"a.mp4": [0, 1, 2], "b.mp4": [0, 1, 2]}
    assert len(frames) == 7


def test_only_cameras_lose_what_is_not_new(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [0] * 20)
    with mjpeg_camera([[10] * 20]) as camera:
        url = f"http://127.0.0.1:{camera.port}/video.mjpg"
        frames = []
        for frame in read_source(write_list(tmp_path / "a.streams", ["a.mp4", url]), latest=True, reconnect=0):
            frames.append(frame)
            time.sleep(0.02)
    assert [frame.frame_index for frame in frames if frame.path != url] == list(range(20))
    of_camera = [frame.frame_index for frame in frames if frame.path == url]
    assert of_camera[-1] == 19
    assert len(of_camera) < 20


def test_one_stream_that_is_gone_does_not_end_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with mjpeg_camera([[10] * 5]) as camera:
        live = f"http://127.0.0.1:{camera.port}/video.mjpg"
        path = write_list(tmp_path / "cameras.streams", [live, f"rtsp://{USER}:{PASSWORD}@127.0.0.1:1/gone", "no.mp4"])
        frames = list(read_source(path, reconnect=0))
    assert [frame.path for frame in frames] == [live] * 5
    assert "rtsp://***@127.0.0.1:1/gone cannot be read: no connection to 127.0.0.1, port 1" in caplog.text
    assert "no.mp4 does not exist" in caplog.text
    assert PASSWORD not in caplog.text
    path = write_list(tmp_path / "gone.streams", ["a.mp4", "b.mp4"])
    with pytest.raises(SourceError, match="none of the 2 sources can be read any more; the last: "):
        list(read_source(path))


def test_streams_that_are_called_the_same_stay_apart() -> None:
    with mjpeg_camera([[10], [10]]) as camera:
        url = f"http://127.0.0.1:{camera.port}/video.mjpg?token="
        frames = [frame.path for frame in read_source([f"{url}one", f"{url}other"], reconnect=0)]
        assert sorted(map(str, frames)) == [f"{url}***", f"{url}*** (2)"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("http://camera/live.MJPG?user=a#b", True),
        ("HTTPS://camera/live.m3u8", True),
        ("http://camera/photo.jpg?next=live.mjpg", False),
        ("http://camera/live", False),
        ("rtsp://user:pa[ss@camera/live", True),
        ("http://user:pa[ss@camera/live.mjpg", True),
        ("file:///a/live.mjpg", False),
        (0, True),
    ],
)
def test_what_never_ends_is_known_by_its_name(source: str | int, expected: bool) -> None:
    assert sources._is_live(source) == expected


@pytest.mark.parametrize("num_sources", [1, 2])
@pytest.mark.parametrize("is_list", [True, False])
def test_nobody_waits_for_a_stream_that_nobody_reads(
    num_sources: int,
    is_list: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The pauses between the tries to open it again take minutes."""
    for name in ("FIRST_DELAY_S", "MAX_DELAY_S"):
        monkeypatch.setattr(videos, name, 60)
    with mjpeg_camera([[10] * 3] * num_sources) as camera:
        urls = [f"http://127.0.0.1:{camera.port}/video{number}.mjpg" for number in range(num_sources)]
        frames = read_source(urls if is_list else write_list(tmp_path / "a.streams", urls))
        assert len(list(itertools.islice(frames, 3 * num_sources))) == 3 * num_sources
        start = time.monotonic()
        while caplog.text.count("sends nothing more") < num_sources:
            assert time.monotonic() - start < 30, "the camera has sent all it has"
            time.sleep(0.01)
        start = time.monotonic()
        close_iterator(frames)
    assert time.monotonic() - start < 30
    assert reader_threads() == []


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["# none"], "names no source; expected one in each line"),
        (["a.mp4", "b.streams"], "names .*b.streams; expected cameras, streams, videos and images"),
        (["a.mp4", "-"], "names .*-; expected cameras"),
    ],
)
def test_lists_that_cannot_be(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        read_source(write_list(tmp_path / "a.streams", lines))
    (tmp_path / "b.streams").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SourceError, match="expected a text file with a source in each line"):
        read_source(tmp_path / "b.streams")


def test_a_batch_need_not_wait_for_a_silent_stream() -> None:
    with mjpeg_camera([[10, 50]]) as camera:
        camera.is_held = True
        frames = open_frames(f"http://127.0.0.1:{camera.port}/video.mjpg", Reading(reconnect=0))
        found = [next(frames), next(frames), next(frames)]
        while len([frame for frame in found if frame is not None]) < 2:  # the second image may take its time
            found.append(next(frames))
        found.append(next(frames) if found[-1] is not None else None)
        assert found[-1] is None, "nothing more has come"
        camera.released.set()
        frames.close()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every: got 0, expected a whole number, 1 or more"),
        ({"every": 1.5}, "every: got 1.5"),
        ({"reconnect": -1}, "reconnect: got -1, expected a number of tries, 0 or more"),
    ],
)
def test_numbers_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_source("missing.mp4", **options)


def test_file_urls_and_device_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_video(tmp_path / "a b.mp4", [0, 100])
    assert len(list(read_source(path.as_uri()))) == 2
    if os.name == "posix":
        with pytest.raises(SourceError, match="/dev/null cannot be read: it is a device, expected a file"):
            read_source("/dev/null")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["a.mkv", "a.avi"])
def test_a_damaged_video_gives_what_can_be_decoded(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = write_video(tmp_path / name, [0, 50, 100, 150, 200] * 20)
    assert len(list(read_source(path))) == 100
    assert not caplog.messages
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: len(data) // 2])
    frames = list(read_source(path))
    assert 10 < len(frames) < 100
    assert frames[-1].is_last
    assert caplog.messages == [f"{path} is damaged or cut off: of about 100 images, {len(frames)} could be read"]
    assert capfd.readouterr() == ("", "")


def test_the_clock_never_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    before = clock()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert before <= clock() < before + 60


def after(seconds: float, do: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(seconds, do)
    timer.start()
    return timer


def test_closing_ends_the_wait_for_a_dropped_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(videos, "FIRST_DELAY_S", 60.0)
    with mjpeg_camera([[10]]) as camera:
        frames = read_source(f"http://127.0.0.1:{camera.port}/video.mjpg", reconnect=5)
        next(frames)
        time.sleep(0.3)  # by now it waits to open the stream again
        start = time.monotonic()
        frames.close()  # pyright: ignore[reportAttributeAccessIssue]
        assert time.monotonic() - start < 20
    assert reader_threads() == []
