"""What the server answers, asked over a socket."""

from __future__ import annotations

import gc
import io
import json
import logging
import re
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rtdetrv4.errors import ConfigError
from rtdetrv4.runtime import ExportedDetector
from rtdetrv4.serving import BatchSettings, Limits, Network, Service
from rtdetrv4.serving.access import HEADERS, Access, host_names, is_loopback
from running_server import PATIENCE_S, Answer, Client, form, running

TOKEN = "a-token-of-some-length"


def file_of(image: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(height: int, width: int) -> np.ndarray:
    return np.linspace(0, 255, height * width * 3).reshape(height, width, 3).astype(np.uint8)


PICTURE = file_of(gradient(60, 100))


@pytest.fixture(scope="module")
def client(network: Network) -> Iterator[Client]:
    limits = Limits(request_bytes=300_000, image_bytes=100_000, images=3, pixels=20_000, tiles=20)
    with running(Service({"color": network, "other": network}, BatchSettings(max_batch=4), limits)) as client:
        yield client


@pytest.fixture(scope="module")
def guarded(network: Network) -> Iterator[Client]:
    access = Access(token=TOKEN, hosts=None, origins=("https://example.com",))
    with running(Service({"color": network}), access) as client:
        yield client


def test_one_image_as_the_body(client: Client, model_path: Path) -> None:
    answer = client.ask("POST", "/predict?conf=0.5", PICTURE, {"Content-Type": "image/png"})
    assert answer.status == 200
    assert answer.json["model"] == "color"
    (image,) = answer.json["images"]
    assert (image["height"], image["width"]) == (60, 100)
    (expected,) = ExportedDetector(model_path, threads=1).predict(gradient(60, 100), conf=0.5)
    assert len(image["detections"]) == len(expected) == 1
    found = image["detections"][0]
    assert set(found) == {"class_id", "category_id", "name", "confidence", "xyxy"}
    assert found["name"] == expected.class_name[0]
    np.testing.assert_allclose(found["xyxy"], expected.xyxy[0], atol=0.0051)
    assert found["confidence"] == pytest.approx(float(expected.confidence[0]), abs=5.1e-5)
    assert set(image["times_ms"]) == {"decode", "wait", "run"}
    assert answer.json["total_ms"] >= image["times_ms"]["run"] >= 0  # a tenth may be more than it took


def test_numbers_have_few_digits(network: Network) -> None:
    def run(images: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        boxes = np.array([[[0.0184171498, 0.2633044434, 0.5123456789, 0.6123456789]]], dtype=np.float32)
        return np.array([[0.8712345678]], dtype=np.float32), np.array([[1]]), boxes

    with running(Service({"color": network._replace(run=run)})) as client:
        answer = client.predict(PICTURE)
    (image,) = answer.json["images"]
    (found,) = image["detections"]
    assert found["confidence"] == 0.8712
    assert found["xyxy"] == [1.84, 15.8, 51.23, 36.74]
    for value in (answer.json["total_ms"], *image["times_ms"].values()):
        assert value == round(value, 1)


def test_several_images_as_a_form(client: Client) -> None:
    other = file_of(gradient(30, 40), "JPEG")
    answer = client.predict(PICTURE, other, PICTURE, query="model=other&conf=0")
    assert answer.status == 200
    assert answer.json["model"] == "other"
    sizes = [(image["height"], image["width"]) for image in answer.json["images"]]
    assert sizes == [(60, 100), (30, 40), (60, 100)]
    first, _, last = answer.json["images"]
    assert first["detections"] == last["detections"]


def test_photos_are_turned_upright(client: Client) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    answer = client.predict(file_of(gradient(30, 100), "JPEG", exif=exif))
    assert (answer.json["images"][0]["height"], answer.json["images"][0]["width"]) == (100, 30)


def test_options(client: Client) -> None:
    def names(query: str) -> list[str]:
        answer = client.predict(PICTURE, query=query)
        assert answer.status == 200, answer.body
        return [each["name"] for each in answer.json["images"][0]["detections"]]

    assert sorted(names("conf=0&duplicates=keep")) == ["blue", "green", "red"]
    assert sorted(names("conf=0&duplicates=keep&classes=blue&classes=0")) == ["blue", "red"]
    assert len(names("conf=0&duplicates=keep&max_det=1")) == 1
    assert names("conf=1") == []
    assert len(names("conf=0&slice=50&overlap=0.1&whole=false")) > 1


@pytest.mark.parametrize(("format", "kind"), [("image", "JPEG"), ("png", "PNG")])
def test_a_drawn_picture(client: Client, format: str, kind: str) -> None:
    answer = client.predict(PICTURE, query=f"format={format}")
    assert answer.headers["content-type"] == f"image/{kind.lower()}"
    with Image.open(io.BytesIO(answer.body)) as image:
        assert (image.format, image.size) == (kind, (100, 60))
    refused = client.predict(PICTURE, PICTURE, query=f"format={format}")
    assert (refused.status, refused.error["code"]) == (422, "several_images")


def test_what_is_served(client: Client) -> None:
    found = client.get("/models").json
    assert [model["name"] for model in found["models"]] == ["color", "other"]
    model = found["models"][0]
    assert (model["architecture"], model["height"], model["width"], model["max_batch"]) == ("test", 32, 64, 4)
    assert model["classes"][2] == {
        "id": 2,
        "category_id": 3,
        "name": "blue",
        "color": "#009e73",
        "threshold": None,
    }
    assert found["limits"]["images"] == 3
    assert "/" not in json.dumps([model["runtime"], model["architecture"]])


def test_health_and_readiness(client: Client) -> None:
    assert (client.get("/health").status, client.get("/health").json) == (200, {"status": "alive"})
    assert (client.get("/ready").status, client.get("/ready").json) == (200, {"status": "ready"})


def test_balancers_may_ask_for_heads(client: Client) -> None:
    for path in ("/health", "/ready", "/"):
        answer = client.ask("HEAD", path)
        assert (answer.status, answer.body) == (200, b"")
        assert int(answer.headers["content-length"]) > 0
    assert client.ask("HEAD", "/predict").status == 405


def test_metrics(client: Client) -> None:
    def value(name: str, text: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    predicted = 'rtdetrv4_requests_total{route="/predict",status="200"}'
    refused = 'rtdetrv4_requests_total{route="/predict",status="404"}'
    elsewhere = 'rtdetrv4_requests_total{route="other",status="404"}'
    images = 'rtdetrv4_images_total{model="color"}'
    before = client.get("/metrics")
    assert before.headers["content-type"].startswith("text/plain")
    client.predict(PICTURE, PICTURE)
    client.predict(PICTURE, query="model=none")
    client.get("/some/path")
    after = client.get("/metrics").body.decode()
    text = before.body.decode()
    assert value(predicted, after) == value(predicted, text) + 1
    assert value(refused, after) == value(refused, text) + 1
    assert value(elsewhere, after) == value(elsewhere, text) + 1
    assert value(images, after) == value(images, text) + 2
    assert value('rtdetrv4_batch_images_sum{model="color"}', after) == value(images, after)
    assert value('rtdetrv4_queue_images{model="color"}', after) == 0
    assert 'rtdetrv4_request_seconds_bucket{le="0.005",route="/predict"}' in after
    assert "process_resident_memory_bytes" in after
    assert "/some/path" not in after


@pytest.mark.parametrize(
    ("query", "status", "code", "text"),
    [
        ("model=none", 404, "no_such_model", "none of this name"),
        ("conf=2", 422, "invalid_option", "conf: "),
        ("conf=nan", 422, "invalid_option", "conf: "),
        ("conf=high", 422, "invalid_option", "conf: "),
        ("conf=best", 422, "invalid_option", "remembers no thresholds"),
        ("classes=pink", 422, "invalid_option", 'there is no class "pink"; the classes are red, green, blue'),
        ("max_det=0", 422, "invalid_option", "max_det: "),
        ("slice=3", 422, "invalid_option", "slice: "),
        ("slice=31", 422, "invalid_option", "slice: "),
        ("overlap=0.99", 422, "invalid_option", "overlap: "),
        ("format=gif", 422, "invalid_option", "format: "),
        ("conff=0.5", 422, "unknown_option", "no such option"),
        ("conf=0.3&conf=0.5", 422, "invalid_option", "conf: it can be given only once"),
        ("model=a&model=b", 422, "invalid_option", "model: it can be given only once"),
        ("slice=32&overlap=0.8", 413, "too_many_tiles", "too many tiles"),
    ],
)
def test_wrong_options(client: Client, query: str, status: int, code: str, text: str) -> None:
    answer = client.predict(PICTURE, query=query)
    assert (answer.status, answer.error["code"]) == (status, code)
    assert text in answer.error["what"]


TILES = "the side of a tile from 32 to 99999 pixels, such as 640, or HEIGHTxWIDTH, such as 480x640"


@pytest.mark.parametrize(
    ("query", "got", "expected"),
    [
        ("slice=1", "1", TILES),
        ("slice=31", "31", TILES),
        ("slice=640x31", "640x31", TILES),
        ("slice=100000", "100000", TILES),
        ("conf=2", "2", "a number from 0 to 1, or best"),
        ("max_det=0", "0", "a whole number from 1 to 10000"),
        ("duplicates=some", "some", "drop or keep"),
        ("overlap=1", "1", "a number from 0 to 0.9"),
        ("whole=perhaps", "perhaps", "true or false"),
        ("format=gif", "gif", "json, image or png"),
        ("classes=red&classes=pink", "pink", "red, green, blue"),
        ("classes=3", "3", "red, green, blue"),
    ],
)
def test_wrong_options_are_told_in_words(client: Client, query: str, got: str, expected: str) -> None:
    error = client.predict(PICTURE, query=query).error
    assert (error["got"], error["expected"]) == (got, expected)
    assert "pattern" not in error["what"]
    assert error["what"].startswith(f"{query.partition('=')[0]}: ")


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "application/x-www-form-urlencoded"}])
def test_a_body_without_a_type_is_told_how_to_have_one(client: Client, headers: dict[str, str]) -> None:
    answer = client.ask("POST", "/predict", PICTURE, headers)
    assert answer.status == 415
    assert 'add -H "Content-Type: image/jpeg"' in answer.error["what"]


LARGE = file_of(np.random.default_rng(0).integers(0, 256, (190, 200, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("images", "status", "code"),
    [
        ([b"no image"], 422, "unreadable_image"),
        ([b""], 422, "unreadable_image"),
        ([PICTURE[:200]], 422, "unreadable_image"),
        ([file_of(gradient(101, 200))], 413, "too_many_pixels"),
        ([LARGE], 413, "image_too_large"),
        ([PICTURE] * 4, 413, "too_many_images"),
    ],
)
def test_wrong_images(client: Client, images: list[bytes], status: int, code: str) -> None:
    answer = client.predict(*images)
    assert (answer.status, answer.error["code"]) == (status, code)
    assert answer.error["expected"]


def test_a_form_without_parts(client: Client) -> None:
    assert client.predict().status in (400, 422)  # older parsers do not take it for a form


def test_the_damaged_one_of_several_is_named(client: Client) -> None:
    answer = client.predict(PICTURE, b"no image", PICTURE)
    assert answer.status == 422
    assert answer.error["what"] == "image 2: the image is damaged or not an image (8 bytes)"


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (PICTURE, {}, 415, "unknown_type"),
        (PICTURE, {"Content-Type": "application/x-www-form-urlencoded"}, 415, "unknown_type"),
        (b"{}", {"Content-Type": "application/json"}, 415, "unknown_type"),
        (PICTURE, {"Content-Type": "image/png", "Content-Encoding": "gzip"}, 415, "compressed_body"),
        (b"", {"Content-Type": "image/png"}, 422, "no_image"),
        (b"", {"Content-Type": "multipart/form-data"}, 400, "malformed_body"),
        (b"", {"Content-Type": "multipart/form-data; boundary="}, 400, "malformed_body"),
        (b"", {"Content-Type": "multipart/form-data; boundary=" + "b" * 1000}, 400, "malformed_body"),
        (b"", {"Content-Type": "multipart/form-data; boundary=b"}, 400, "malformed_body"),
        (b"nonsense", {"Content-Type": "multipart/form-data; boundary=b"}, 400, "malformed_body"),
        (form([("image", PICTURE)])[0][:-20], {"Content-Type": form([])[1]}, 400, "malformed_body"),
        (form([("file", PICTURE)])[0], {"Content-Type": form([])[1]}, 422, "unknown_field"),
        (form([("url", b"http://example.com/a.png")])[0], {"Content-Type": form([])[1]}, 403, "urls_off"),
        (form([("url", b"x" * 5000)])[0], {"Content-Type": form([])[1]}, 422, "bad_url"),
        (b"--b\r\n" + b"X: y\r\n" * 3000, {"Content-Type": "multipart/form-data; boundary=b"}, 400, "malformed_body"),
        (b"--b\r\nX: " + b"y" * 9000, {"Content-Type": "multipart/form-data; boundary=b"}, 400, "malformed_body"),
        (bytes(300_001), {"Content-Type": "image/png"}, 413, "request_too_large"),
        (bytes(200_001), {"Content-Type": "image/png"}, 413, "image_too_large"),
    ],
)
def test_wrong_bodies(client: Client, body: bytes, headers: dict[str, str], status: int, code: str) -> None:
    answer = client.ask("POST", "/predict", body, headers)
    assert (answer.status, answer.error["code"]) == (status, code)


def test_an_image_that_comes_in_chunks(client: Client) -> None:
    chunks = (PICTURE[:100], PICTURE[100:])
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    headers = {"Content-Type": "image/png", "Transfer-Encoding": "chunked"}
    assert client.ask("POST", "/predict", body, headers).status == 200


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/none", 404), ("GET", "/predict", 405)])
def test_other_paths_and_methods(client: Client, method: str, path: str, status: int) -> None:
    answer = client.ask(method, path)
    assert answer.status == status
    found = tuple(answer.error[name] for name in ("code", "got", "expected"))
    if status == 404:
        assert found == ("no_such_path", "/none", "a path that /openapi.json lists")
    else:
        assert found == ("wrong_method", "GET", "POST")
        assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/", "/models", "/none", "/predict", "/page/../app.py", "/page/%2e%2e/app.py"])
def test_every_answer_has_the_headers_that_protect(client: Client, path: str) -> None:
    answer = client.get(path)
    for name in HEADERS:
        assert name in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in answer.headers
    assert "server" not in answer.headers
    assert "http" not in answer.headers["content-security-policy"]
    if ".." in path or "%2e" in path:
        assert answer.status == 404


def test_the_interface_is_documented(client: Client) -> None:
    schema = client.get("/openapi.json").json
    assert set(schema["paths"]) == {"/predict", "/models", "/health", "/ready", "/metrics"}
    predict = schema["paths"]["/predict"]["post"]
    assert set(predict["requestBody"]["content"]) >= {"multipart/form-data", "image/jpeg"}
    assert {parameter["name"] for parameter in predict["parameters"]} == {
        *("model", "conf", "classes", "max_det", "duplicates", "slice", "overlap", "whole", "format")
    }
    assert schema["components"]["schemas"]["Predictions"]["examples"]
    assert {"413", "429", "504"} <= set(predict["responses"])


def test_a_network_that_fails_is_no_fault_of_the_client(network: Network, caplog: pytest.LogCaptureFixture) -> None:
    def run(images: Sequence[np.ndarray]) -> Any:
        raise RuntimeError("/home/someone/secret.onnx is broken")

    with running(Service({"color": network._replace(run=run)})) as client:
        answer = client.predict(PICTURE)
        assert (answer.status, answer.error["code"]) == (500, "server_error")
        assert b"secret" not in answer.body
        number = answer.error["what"].split()[-1]
        assert f"error {number} in POST /predict" in caplog.text
        assert "secret.onnx is broken" in caplog.text
        assert client.get("/health").status == 200


class Gate:
    """A network that runs when it is told to."""

    def __init__(self, network: Network) -> None:
        self.may_run, self.began = threading.Event(), threading.Semaphore(0)
        self.sizes: list[int] = []
        self.network = network._replace(run=self._run)
        self._inner = network.run

    def _run(self, images: Sequence[np.ndarray]) -> Any:
        self.sizes.append(len(images))
        self.began.release()
        assert self.may_run.wait(PATIENCE_S)
        return self._inner(images)


def asked_at_once(client: Client, count: int) -> tuple[list[threading.Thread], list[Answer]]:
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda: answers.append(client.predict(PICTURE))) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads, answers


def test_a_full_queue_refuses_and_says_when_to_come_again(network: Network) -> None:
    gate = Gate(network)
    settings = BatchSettings(max_batch=2, max_queue=3)
    service = Service({"color": gate.network}, settings, Limits(images=3))
    with running(service) as client:
        threads, answers = asked_at_once(client, 3)
        assert gate.began.acquire(timeout=PATIENCE_S)
        deadline = time.monotonic() + PATIENCE_S
        while service.model(None).batcher.num_reserved < 3:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        refused = client.predict(PICTURE)
        assert (refused.status, refused.error["code"]) == (429, "busy")
        assert int(refused.headers["retry-after"]) >= 1
        assert client.get("/health").status == 200
        gate.may_run.set()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert [answer.status for answer in answers] == [200] * 3
        assert client.predict(PICTURE).status == 200
        # Room for two, but not for three of one request.
        places = service.model(None).batcher.reserve(1)
        assert client.predict(PICTURE, PICTURE, PICTURE).status == 429
        assert client.predict(PICTURE, PICTURE).status == 200
        places[0].leave()


def test_what_is_late_is_given_up(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtdetrv4.serving.app.GRACE_S", 0.05)
    gate = Gate(network)
    with running(Service({"color": gate.network}, BatchSettings(max_batch=1), Limits(timeout_s=0.3))) as client:
        threads, answers = asked_at_once(client, 3)
        for thread in threads:
            thread.join(PATIENCE_S)
        assert [(answer.status, answer.error["code"]) for answer in answers] == [(504, "late")] * 3
        gate.may_run.set()
        assert client.predict(PICTURE).status == 200
    assert len(gate.sizes) == 2  # the one that had begun, and the last one


def test_a_client_that_goes_is_not_worked_for(network: Network, caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate(network)
    service = Service({"color": gate.network}, BatchSettings(max_batch=1))
    with running(service) as client:
        threads, _ = asked_at_once(client, 1)
        assert gate.began.acquire(timeout=PATIENCE_S)
        with client.connected() as connection:
            head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: "
            connection.sendall(f"{head}{len(PICTURE)}\r\n\r\n".encode() + PICTURE)
            batcher = service.model(None).batcher
            deadline = time.monotonic() + PATIENCE_S
            while batcher.num_waiting < 1:
                assert time.monotonic() < deadline
                time.sleep(0.005)
        while batcher.num_reserved > 1:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        gate.may_run.set()
        threads[0].join(PATIENCE_S)
        while 'status="499"' not in (text := client.get("/metrics").body.decode()):
            assert time.monotonic() < deadline
        assert 'rtdetrv4_requests_total{route="/predict",status="499"} 1.0' in text
    assert gate.sizes == [1]
    gc.collect()  # asyncio complains of exceptions that nobody saw when their futures go
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_server_that_is_told_to_stop_answers_what_it_took(network: Network) -> None:
    gate = Gate(network)
    service = Service({"color": gate.network}, BatchSettings(max_batch=1))
    with running(service) as client:
        threads, answers = asked_at_once(client, 3)
        assert gate.began.acquire(timeout=PATIENCE_S)
        deadline = time.monotonic() + PATIENCE_S
        while service.model(None).batcher.num_reserved < 3:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        client.server.should_exit = True
        while True:  # until nobody listens any more
            try:
                client.get("/health")
            except OSError:
                break
            assert time.monotonic() < deadline
        gate.may_run.set()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert [answer.status for answer in answers] == [200] * 3


def test_a_server_in_trouble_is_not_ready(network: Network) -> None:
    service = Service({"color": network})
    with running(service) as client:
        service.refuse()
        answer = client.get("/ready")
        assert (answer.status, answer.error["code"]) == (503, "not_ready")
        assert answer.headers["retry-after"]
        assert client.get("/health").status == 200
        assert client.predict(PICTURE).status == 503


@pytest.mark.parametrize("path", ["/predict", "/models", "/metrics", "/openapi.json", "/none", "//health", "/health/"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": "Bearer \xe9"},
    ],
)
def test_without_the_token_nothing_is_told(guarded: Client, path: str, headers: dict[str, str]) -> None:
    answer = guarded.ask("POST" if path == "/predict" else "GET", path, headers=headers)
    assert (answer.status, answer.error["code"]) == (401, "no_token")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_with_the_token(guarded: Client) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert guarded.predict(PICTURE, headers=bearer).status == 200
    assert guarded.predict(PICTURE, headers={"Authorization": f"bearer {TOKEN}"}).status == 200
    schema = guarded.ask("GET", "/openapi.json", headers=bearer).json
    assert schema["paths"]["/predict"]["post"]["security"] == [{"token": []}]
    assert schema["paths"]["/health"]["get"]["security"] == []
    for path in ("/", "/health", "/ready"):
        assert guarded.get(path).status == 200


def test_other_origins(guarded: Client, client: Client) -> None:
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    allowed = guarded.predict(PICTURE, headers=bearer | {"Origin": "https://example.com"})
    assert allowed.status == 200
    assert allowed.headers["access-control-allow-origin"] == "https://example.com"
    asking = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    preflight = guarded.ask("OPTIONS", "/predict", headers=asking | {"Origin": "https://example.com"})
    assert preflight.status == 200
    assert preflight.headers["access-control-allow-origin"] == "https://example.com"
    for origin in ("https://evil.com", "https://example.com.evil.com", "http://example.com", "null", "http://["):
        answer = guarded.predict(PICTURE, headers=bearer | {"Origin": origin})
        assert (answer.status, answer.error["code"]) == (403, "wrong_origin")
        assert "access-control-allow-origin" not in answer.headers
        refused = guarded.ask("OPTIONS", "/predict", headers=asking | {"Origin": origin})
        assert "access-control-allow-origin" not in refused.headers
        assert client.predict(PICTURE, headers={"Origin": origin}).status == 403
    own = {"Origin": f"http://127.0.0.1:{client.port}"}
    assert client.predict(PICTURE, headers=own).status == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("LOCALHOST:8000", 200), ("127.0.0.1", 200), ("[::1]:1", 200), ("evil.com", 403), ("", 403)],
)
def test_other_names(client: Client, host: str, status: int) -> None:
    assert client.get("/models", Host=host).status == status


@pytest.mark.parametrize(
    ("access", "text"),
    [
        (Access(token="short"), "token: expected at least 16"),
        (Access(token="sixteen letters or more"), "token: expected"),
        (Access(token="sixteen-letters-or-more\n"), "token: expected .* without space or line end"),
        (Access(origins=("*",)), 'allow-origin: got "\\*"'),
        (Access(origins=("https://example.com/page",)), "allow-origin: got"),
    ],
)
def test_impossible_rules(access: Access, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        access.checked()


def test_rules_as_browsers_write_them() -> None:
    given = ("https://Example.com", "https://b.com:443", "http://c.com:80", "http://d.com:443", "https://[::1]:8443")
    assert Access(origins=given).checked().origins == (
        *("https://example.com", "https://b.com", "http://c.com", "http://d.com:443", "https://[::1]:8443"),
    )
    assert host_names("0.0.0.0", ["Cam.local", "[fd00::1]"])[-2:] == ("cam.local", "[fd00::1]")
    for wrong in ("cam.local:8000", "http://cam.local", "cam.local/", ""):
        with pytest.raises(ConfigError, match="allow-host: got"):
            host_names("0.0.0.0", [wrong])


def test_which_addresses_are_this_machine_only() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("localhost")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("192.0.2.1")
    with pytest.raises(ConfigError, match="host: there is no"):
        is_loopback("no such host")
    assert host_names("::1", ["Example.com"]) == ("[::1]", "localhost", "127.0.0.1", "example.com")
