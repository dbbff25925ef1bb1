"""`predict` on videos, streams and pipes, from the command line to the files, with an exported model and no torch.

The model finds one box, the middle of the image, with the mean red, green and blue as logits of its three classes.
"""

from __future__ import annotations

import http.server
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import onnx
import onnx.parser
import pytest

from cameras import PASSWORD, USER, gray, jpeg, mjpeg_camera, rtsp_camera, write_video
from color_model import GRAPH, METADATA
from rtdetrv4 import Detector, ExportedDetector
from rtdetrv4.cli import main
from rtdetrv4.runtime import PredictionFolder, videos


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(videos, "FIRST_DELAY_S", 0.01)
    graph = onnx.parser.parse_model(GRAPH.format(batch="batch"))
    onnx.helper.set_model_props(graph, {"rtdetrv4": METADATA.to_json()})
    onnx.save(graph, "model.onnx")
    return "model.onnx"


def reader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rtdetrv4")]


def lines_of(folder: str) -> list[dict]:
    return [json.loads(line) for line in Path(folder, "predictions.jsonl").read_text("utf-8").splitlines()]


def test_results_know_their_frames(model: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [0, 100, 200], fps=5)
    found = Detector(model).predict(path, conf=0.0, max_det=1, batch=2)
    assert [(each.path, each.frame_index, each.is_last) for each in found] == [
        *((str(path), 0, False), (str(path), 1, False), (str(path), 2, True))
    ]
    assert [each.time for each in found] == pytest.approx([0, 0.2, 0.4])
    assert np.ptp([each.confidence[0] for each in found]) > 0.1, "of its own image each"
    assert found[1].to_json().startswith(f'{{"path": "{path}", "height": 48, "width": 64, "frame": 1, "time": 0.2, ')
    assert reader_threads() == []


def test_stopping_early_leaves_no_thread(model: str, tmp_path: Path) -> None:
    detector = Detector(model)
    path = write_video(tmp_path / "a.mp4", [0] * 40)
    stream = detector.predict(path, stream=True)
    next(stream)
    assert reader_threads() == ["rtdetrv4-reader"]
    stream.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert reader_threads() == []
    for _ in detector.predict(path, stream=True):
        break
    assert reader_threads() == [], "nor does a loop that is left"
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the loop is what is tested
        for _ in detector.predict(path, stream=True):
            _ = 1 / 0
    assert reader_threads() == []


def test_a_failing_network_ends_the_reader(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = ExportedDetector(model)

    def fail(_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(detector, "run", fail)
    with pytest.raises(MemoryError):
        detector.predict(write_video(tmp_path / "a.mp4", [0] * 40))
    assert reader_threads() == []


def test_images_of_several_streams_share_a_batch(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    detector = ExportedDetector(model)
    sizes: list[int] = []
    run = detector.run

    def note(images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        time.sleep(0.02)  # meanwhile, both have sent
        sizes.append(len(images))
        return run(images)

    monkeypatch.setattr(detector, "run", note)
    with mjpeg_camera([[10] * 10]) as one, mjpeg_camera([[200] * 10]) as other:
        urls = [f"http://127.0.0.1:{camera.port}/video.mjpg" for camera in (one, other)]
        Path("yard.streams").write_text("\n".join(urls))
        found = detector.predict("yard.streams", batch=4, reconnect=0)
    assert len(found) == sum(sizes) == 20
    assert max(sizes) == 4
    assert {each.path for each in found} == set(urls)


def test_a_batch_does_not_wait_for_a_silent_stream(model: str) -> None:
    with mjpeg_camera([[10, 10, 10]]) as camera:
        camera.is_held = True
        start = time.monotonic()
        stream = Detector(model).predict(
            f"http://127.0.0.1:{camera.port}/video.mjpg", batch=8, reconnect=0, stream=True
        )
        for _ in range(2):
            next(stream)
        assert time.monotonic() - start < videos.READ_TIMEOUT_S
        camera.released.set()
        stream.close()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_video_on_the_command_line(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "clip.avi", [0, 0, 255, 255, 0])
    words = ["--conf", "0.6", "--classes", "red,1", "--track", "bytetrack", "--zone", "all=0,0 1,0 1,1 0,1"]
    words += ["--save", "video,csv,coco,yolo", "--out", "found"]
    pytest.importorskip("trackers")
    assert main(["predict", "clip.avi", "-m", model, *words]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "clip.mp4, frame 0: nothing; all: 0 inside",
        "clip.mp4, frame 2: 1 red; all: 1 inside",
        "clip.mp4, frame 4: nothing; all: 0 inside",
        "clip.avi: 5 images, 1 red tracked",
        "Results: found",
    ]
    names = {path.relative_to("found").as_posix() for path in Path("found").rglob("*") if path.is_file()}
    assert {"clip.mp4", "predictions.jsonl", "predictions.csv", "predictions.coco.json"} <= names
    assert len([name for name in names if name.startswith("labels/clip")]) == 5
    with av.open("found/clip.mp4") as container:
        assert [frame.time for frame in container.decode(video=0)] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    lines = lines_of("found")
    assert [line["counts"]["all"]["inside"] for line in lines] == [0, 0, 1, 1, 0]
    assert "tracker_id" in lines[2]["detections"][0]


def test_every_image_is_written_though_writing_is_slow(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "clip.avi", [0] * 12)
    add = PredictionFolder.add

    def slow(*args: object) -> str:
        time.sleep(0.02)
        return add(*args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(PredictionFolder, "add", slow)
    assert main(["predict", "clip.avi", "-m", model, "--save", "jsonl", "--every", "2"]) == 0
    assert [line["frame"] for line in lines_of("runs/predict")] == [0, 2, 4, 6, 8, 10]
    assert reader_threads() == []


def test_an_error_in_writing_is_one_line(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "clip.avi", [0] * 40)

    def fail(*_: object) -> str:
        raise OSError(28, "No space left on device", "found")

    monkeypatch.setattr(PredictionFolder, "add", fail)
    assert main(["predict", "clip.avi", "-m", model]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: found: No space left on device"
    assert reader_threads() == []


def test_ctrl_c_leaves_whole_results(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with mjpeg_camera([[10, 10, 10]]) as camera:
        camera.is_held = True

        def press() -> None:
            written, end = Path("found/predictions.jsonl"), time.monotonic() + 20
            while time.monotonic() < end and not (written.exists() and b"\n" in written.read_bytes()):
                time.sleep(0.02)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)
            camera.released.set()  # a read that waits for data ends by its time limit, which is long for a test

        presser = threading.Thread(target=press)
        presser.start()
        code = main(["predict", f"http://127.0.0.1:{camera.port}/video.mjpg", "-m", model, "--out", "found"])
        presser.join()
    assert code == 130
    assert "images in found." in capsys.readouterr().err
    assert reader_threads() == []
    (video,) = Path("found").glob("*.mp4")
    with av.open(str(video)) as container:
        assert len(list(container.decode(video=0))) == len(lines_of("found"))


@pytest.mark.parametrize("is_rtsp", [False, True])
def test_passwords_reach_no_output_and_no_file(
    model: str, is_rtsp: bool, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    with (rtsp_camera if is_rtsp else mjpeg_camera)([[10, 10], [10]]) as camera:
        url = f"{'rtsp' if is_rtsp else 'http'}://{USER}:{PASSWORD}@127.0.0.1:{camera.port}/secret.mjpg?token=t0ken"
        words = ["--reconnect", "1", "--save", "pictures,video,csv,coco,yolo", "--out", "found"]
        assert main(["predict", url, "-m", model, *words]) == 2  # the camera is gone at last
    assert len(lines_of("found")) == 3
    written = f"{capfd.readouterr()} {caplog.text} {[str(path) for path in tmp_path.rglob('*')]}"
    for path in Path("found").rglob("*"):
        written += path.read_bytes().decode("latin-1") if path.is_file() else ""
    assert "***@127.0.0.1" in written
    assert [word for word in (USER, PASSWORD, "t0ken") if word in written] == []


def test_a_pipe(model: str, tmp_path: Path) -> None:
    script = [sys.executable, "-m", "rtdetrv4.cli", "predict", "-", "-m", model, "--conf", "0.6"]
    raw = b"".join(gray(level).tobytes() for level in (0, 255))
    done = subprocess.run(
        [*script, "--stdin-format", "rgb24:64x48", "--out", "raw"], input=raw, capture_output=True, check=True
    )
    assert done.stdout.decode().splitlines() == [
        *("stdin.mp4, frame 0: nothing", "stdin.mp4, frame 1: 1 red", "stdin: 2 images", "Results: raw")
    ]
    done = subprocess.run(
        [*script, "--out", "jpeg", "--save", "jsonl"], input=jpeg(0) + jpeg(255), capture_output=True, check=True
    )
    assert [len(line["detections"]) for line in lines_of("jpeg")] == [0, 1]


def test_the_base_install_predicts_on_videos(model: str, tmp_path: Path) -> None:
    write_video(tmp_path / "clip.avi", [0, 255])
    code = f"""
import sys
import time
for module in ("torch", "scipy", "av", "supervision", "trackers", "paho", "matplotlib"):
    sys.modules[module] = None
from rtdetrv4.cli import main
assert main(["predict", "clip.avi", "-m", {model!r}, "--out", "found", "--roi", "0,0 1,0 1,1 0,1"]) == 0
for option, extra in (("--track=bytetrack", "track"), ("--zone=0,0 1,0 1,1", "track"), ("--save=video", "video"),
                      ("--mqtt=mqtt://host/topic", "mqtt")):
    assert main(["predict", "clip.avi", "-m", {model!r}, option]) == 2
    print(extra, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {path.name for path in Path("found").iterdir()} == {"clip.jpg", "clip-000001.jpg", "predictions.jsonl"}
    lines = done.stderr.splitlines()
    assert 'Videos become pictures, because PyAV is missing: pip install "rtdetrv4[video]"' in done.stderr
    for line, extra in zip(lines, lines[1:], strict=False):
        if not extra.startswith(("INFO", "error")):
            assert line.endswith(f'is not installed; install it with: pip install "rtdetrv4[{extra}]"')


@pytest.mark.parametrize(
    ("status", "counts"), [(204, "3 results delivered, 0 lost"), (404, "0 results delivered, 3 lost")]
)
def test_a_webhook_hears_of_every_image(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int, counts: str
) -> None:
    heard: list[dict] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["results"])
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    write_video(tmp_path / "clip.avi", [0, 255, 0])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        words = ["--conf", "0.6", "--save", "none", "--webhook", f"{url}/secret"]
        assert main(["predict", "clip.avi", "-m", model, *words]) == int(status != 204)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert [(each["frame"], len(each["detections"])) for each in heard] == [(0, 0), (1, 1), (2, 0)]
    out = capsys.readouterr().out.splitlines()
    assert out[-2:] == [f"{url}: {counts}", "Nothing was written, as --save says."]
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.mp4", "--stdin-format", "mjpeg"], "--stdin-format belongs to the source -; got a.mp4."),
        (["a.mp4", "-"], "The source - is read alone; leave the others out."),
        (["a.mp4", "--line", "0,0 9,9"], "--line counts objects that are tracked; add --track bytetrack."),
        (["a.mp4", "--track", "sort"], 'track: got "sort", expected bytetrack or ocsort.'),
        (["a.mp4", "--roi", "1,2"], 'roi: got "1,2", expected 3 points or more as x,y in pixels'),
        (["a.mp4", "--save", "mp4"], 'save: got "mp4", expected pictures, video, jsonl, csv, coco, yolo, yolo-conf.'),
        (["a.mp4", "--webhook", "host"], 'webhook: got "host", expected a URL that begins with http:// or https://.'),
        (["a.mp4", "--every", "0"], "every: got 0, expected a whole number, 1 or more"),
        (["b.mp4"], "b.mp4 does not exist"),
    ],
)
def test_mistakes(model: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.mp4").touch()
    assert main(["predict", *words, "-m", model]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith(f"error: {message}")
    assert not Path("runs").exists()
    assert reader_threads() == []


def test_a_stream_that_is_gone_leaves_its_results(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with mjpeg_camera([[10, 10, 10]]) as camera:
        url = f"http://127.0.0.1:{camera.port}/video.mjpg"
        assert main(["predict", url, "-m", model, "--reconnect", "1", "--out", "found"]) == 2
        assert "given up after 1 try in" in capsys.readouterr().err
    assert len(lines_of("found")) == 3
