"""`rtdetrv4 serve` as a process, and what it refuses before it begins."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rtdetrv4.assembly import create_model
from rtdetrv4.cli import main
from rtdetrv4.cli.serving import named_models, network_of
from rtdetrv4.detector import Detector
from rtdetrv4.errors import ConfigError, WeightsError
from rtdetrv4.runtime import Detections
from rtdetrv4.serving import Service
from rtdetrv4.weights.files import save_weights
from running_server import PATIENCE_S, write_color_model

TOKEN = "a-token-of-some-length"
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from rtdetrv4.cli import main; sys.exit(main())"


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 40, 3), (255, 0, 0), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def serving(*arguments: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that serves, where torch cannot be imported."""
    command = [sys.executable, "-c", WITHOUT_TORCH, "serve", "--port", "0", *arguments]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=os.environ | environment)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.search(r"^Serving at http://127.0.0.1:(\d+); Ctrl-C stops.$", line):
                break
        else:
            pytest.fail(process.communicate()[1])
        yield process, int(found[1])
    finally:
        process.kill()
        process.communicate()


def ask(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    found = response.status, response.read()
    connection.close()
    return found


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_server_without_torch(tmp_path: Path, stop: signal.Signals) -> None:
    path = write_color_model(tmp_path / "color.onnx")
    with serving(str(path), f"second={path}", "--max-batch", "4", RTDETRV4_TOKEN=TOKEN) as (process, port):
        assert ask(port, "GET", "/ready")[0] == 200
        assert ask(port, "GET", "/models")[0] == 401
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        status, body = ask(port, "GET", "/models", **bearer)
        assert [model["name"] for model in json.loads(body)["models"]] == ["color", "second"]
        status, body = ask(port, "POST", "/predict?model=second", picture(), **bearer, **{"Content-Type": "image/png"})
        assert status == 200
        assert json.loads(body)["images"][0]["detections"][0]["name"] == "red"
        process.send_signal(stop)
        out, errors = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, errors
        assert out.splitlines()[-1] == "Stopped."
        assert "Traceback" not in errors
        assert TOKEN not in out + errors


def test_what_the_log_says(tmp_path: Path) -> None:
    path = write_color_model(tmp_path / "color.onnx")
    with serving(str(path), "--access-log", "--threads", "1", "--hint", "throughput") as (process, port):
        ask(port, "GET", "/health?x=%0aINFO:%20forged")
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"nonsense\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 400")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert 'GET /health?x=%0aINFO:%20forged HTTP/1.1" 200' in errors
    assert "nonsense" not in errors
    assert "Invalid HTTP" not in errors


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("", "Missing argument [NAME=]MODEL…: Exported files"),
        ("missing.onnx", "missing.onnx does not exist"),
        ("color.onnx --host 0.0.0.0", "--host 0.0.0.0 lets others in, so there must be a token, in RTDETRV4_TOKEN"),
        ("color.onnx --host 0.0.0.0 --token short", "token: expected at least 16"),
        ("color.onnx --host nowhere.invalid", 'host: there is no "nowhere.invalid"'),
        ("color.onnx color.onnx", 'Two models have the name "color"'),
        ("a=", '"a=" names no model'),
        ("color.onnx --allow-origin *", 'allow-origin: got "*"'),
        ("color.onnx --key key.pem", "--certificate and --key belong together"),
        ("color.onnx --certificate color.onnx --key color.onnx", "color.onnx or its key cannot be used"),
        ("color.onnx --certificate no.pem --key no.pem", "no.pem or its key cannot be used"),
        ("color.onnx --queue 2", "queue: got 2, expected room for the images of one request, 16"),
        ("color.onnx --timeout 0", "timeout_s: got 0.0"),
        ("color.onnx --max-image-mib 100", "image_bytes: got 104857600, expected at most request_bytes"),
        ("color.onnx --max-connections 1000000000", "ulimit -n"),
        ("color.onnx --device tpu", 'device: got "tpu"'),
        ("weights.safetensors --hint throughput", "--threads and --hint are for exported files"),
        ("weights.safetensors", "weights.safetensors"),
    ],
)
def test_mistakes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RTDETRV4_TOKEN", raising=False)
    write_color_model(tmp_path / "color.onnx")
    assert main(["serve", "--port", "0", *arguments.split()]) == 2
    error = capsys.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert text in line


def test_a_port_that_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", str(write_color_model(tmp_path / "color.onnx")), "--port", str(port)]) == 2
    assert f"cannot listen at 127.0.0.1, port {port}" in capsys.readouterr().err


def test_what_models_are_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.c.onnx").touch()
    given = ["a/cells.onnx", "b.c.onnx", "x=a=b.onnx", "runs/mine/weights.safetensors", "runs/v 2/best_openvino"]
    expected = {
        "cells": "a/cells.onnx",
        "b.c": "b.c.onnx",
        "x": "a=b.onnx",
        "mine": "runs/mine/weights.safetensors",
        "v-2": "runs/v 2/best_openvino",
        "rtdetrv4-s": "rtdetrv4-s",
    }
    assert named_models([*given, "rtdetrv4-s"]) == expected
    with pytest.raises(ConfigError, match="Two models"):
        named_models(["a/x.onnx", "b/x.onnx"])


def test_a_detector_of_torch_is_served_as_it_predicts(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    save_weights(create_model("test").state_dict(), weights, {"model": "test"})
    detector = Detector(weights=weights)
    network = network_of(detector)
    assert network.runtime.startswith("PyTorch ")
    service = Service({"torch": network.warmed_up(2)})
    model = service.model(None)
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    (expected,) = detector.predict(image, conf=0.0, duplicates="keep")
    assert len(expected) > 0
    (place,) = model.batcher.reserve(1)
    output = place.submit([image], float("inf")).result(PATIENCE_S)
    place.leave()
    found = Detections.from_predictions(
        output.scores[0], output.labels[0], output.boxes[0] * [70, 50, 70, 50], names=detector.names, image=image
    )
    np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-6)
    np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=1e-3)
    service.close()


def test_a_detector_without_weights_is_not_served() -> None:
    with pytest.raises((ConfigError, WeightsError)):
        network_of(Detector("rtdetrv4-s", "none"))
