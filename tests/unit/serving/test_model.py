"""From the bytes of an image to what is found in it, with the smallest exported model."""

from __future__ import annotations

import io
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
from rtdetrv4.runtime.pixels import MAX_SCANS
from rtdetrv4.serving import BatchSettings, Limits, Network, Service
from rtdetrv4.serving.budget import Budget
from rtdetrv4.serving.model import Found, Wish, wish_of
from rtdetrv4.serving.refusals import RefusedError
from running_server import write_color_model

PATIENCE_S = 20.0


@pytest.fixture
def service(network: Network) -> Iterator[Service]:
    service = Service({"color": network}, BatchSettings(max_batch=4), Limits(pixels=20_000, tiles=20, images=2))
    yield service
    service.close()


def wish(network: Network, **options: Any) -> Wish:
    defaults: dict[str, Any] = {
        "conf": 0.25,
        "classes": (),
        "max_det": None,
        "duplicates": "drop",
        "slice": None,
        "overlap": 0.2,
        "whole": True,
        "picture": None,
    }
    return wish_of(network, **defaults | options)


def file_of(image: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(height: int, width: int) -> np.ndarray:
    ramp = np.linspace(0, 255, height * width * 3).reshape(height, width, 3)
    return ramp.astype(np.uint8)


def find(service: Service, *images: bytes, **options: Any) -> list[Found]:
    model = service.model(None)
    jobs = model.start(images, wish(model.network, **options), time.monotonic() + PATIENCE_S)
    return [job.found.result(PATIENCE_S) for job in jobs]


def refusal(service: Service, image: bytes, **options: Any) -> RefusedError:
    with pytest.raises(RefusedError) as refused:
        find(service, image, **options)
    return refused.value


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"conf": 0.6},
        {"conf": 0.0, "duplicates": "keep"},
        {"conf": 0.0, "duplicates": "keep", "classes": ["blue", "0"]},
        {"conf": 0.0, "duplicates": "keep", "max_det": 2},
        {"slice": "40"},
        {"slice": "40x50", "overlap": 0.5, "whole": False, "conf": 0.5},
    ],
)
def test_it_finds_what_predict_finds(service: Service, model_path: Path, options: dict[str, Any]) -> None:
    images = [gradient(90, 120), gradient(30, 100)[..., ::-1].copy()]
    found = find(service, *map(file_of, images), **options)
    python = {"classes": ["blue", 0]} if "classes" in options else {}
    expected = ExportedDetector(model_path, threads=1).predict(images, **options | python)
    for one, other, image in zip(found, expected, images, strict=True):
        assert (one.height, one.width) == image.shape[:2]
        assert [each["name"] for each in one.objects] == other.class_name
        assert len(other) > 0
        np.testing.assert_allclose([each["xyxy"] for each in one.objects], other.xyxy, atol=1e-4)
        np.testing.assert_allclose([each["confidence"] for each in one.objects], other.confidence, atol=1e-6)
        assert one.picture is None
        assert min(one.times) >= 0
        assert one.times.run_s > 0


def test_photos_are_turned_upright(service: Service) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (found,) = find(service, file_of(gradient(30, 100), "JPEG", exif=exif))
    assert (found.height, found.width) == (100, 30)
    np.testing.assert_allclose(found.objects[0]["xyxy"], [7.5, 0, 22.5, 100], atol=1e-4)


@pytest.mark.parametrize(("picture", "kind"), [("jpeg", "JPEG"), ("png", "PNG")])
def test_a_picture_has_the_boxes_drawn(service: Service, picture: str, kind: str) -> None:
    image = np.full((60, 100, 3), (200, 10, 10), dtype=np.uint8)
    (found,) = find(service, file_of(image), picture=picture)
    assert found.picture is not None
    with Image.open(io.BytesIO(found.picture)) as drawn:
        assert (drawn.format, drawn.size) == (kind, (100, 60))
        pixels = np.asarray(drawn.convert("RGB")).astype(int)
    assert np.abs(pixels[30, 10] - (200, 10, 10)).max() < 12  # outside the box
    assert np.abs(pixels[30, 25] - (200, 10, 10)).max() > 50  # its left side


def test_many_at_once_are_joined(network: Network) -> None:
    sizes: list[int] = []
    gate = threading.Event()

    def run(images: Sequence[np.ndarray]) -> Any:
        assert gate.wait(PATIENCE_S)
        sizes.append(len(images))
        return network.run(images)

    service = Service({"color": network._replace(run=run)}, BatchSettings(max_batch=4), Limits(images=2))
    model = service.model(None)
    data = file_of(gradient(30, 40))
    jobs = [job for _ in range(6) for job in model.start([data] * 2, wish(network), time.monotonic() + PATIENCE_S)]
    gate.set()
    first = jobs[0].found.result(PATIENCE_S)
    assert all(job.found.result(PATIENCE_S).objects == first.objects for job in jobs)
    service.close()
    assert sum(sizes) == 12
    assert max(sizes) > 1
    assert model.batcher.num_reserved == 0


def bmp(compression: int) -> bytes:
    """A BMP file, perhaps with run-length coding, which Pillow decodes in Python."""
    data = bytearray(file_of(Image.new("P", (20, 20)), "BMP"))
    data[30:34] = compression.to_bytes(4, "little")
    return bytes(data)


def test_a_usual_bmp_is_served(service: Service) -> None:
    assert len(find(service, bmp(compression=0))) == 1


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 422, "unreadable_image"),
        (b"not an image", 422, "unreadable_image"),
        (file_of(gradient(20, 20))[:90], 422, "unreadable_image"),
        (file_of(gradient(101, 200)), 413, "too_many_pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", 422, "unreadable_image"),
        (b"P6 10 10 255 " + bytes(300), 422, "unreadable_image"),
        (bmp(compression=1), 422, "unreadable_image"),
        (bmp(compression=2), 422, "unreadable_image"),
    ],
    ids=["empty", "text", "truncated", "large", "postscript", "ppm", "run lengths", "run lengths of 4 bits"],
)
def test_what_is_no_image_to_be_served_is_refused(service: Service, data: bytes, status: int, code: str) -> None:
    refused = refusal(service, data)
    assert (refused.status, refused.code) == (status, code)
    assert refused.expected


def bomb(side: int) -> bytes:
    """The beginning of a PNG of that many pixels a side."""
    import struct
    import zlib

    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(1000))
    chunks = (struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, data, b"IEND"))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("side", [142, 30_000, 2**31 - 1])
def test_a_bomb_is_refused_before_it_is_decoded(service: Service, monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    monkeypatch.setattr("rtdetrv4.serving.model.decode_image", None)
    refused = refusal(service, bomb(side))
    assert (refused.status, refused.code) == (413, "too_many_pixels")
    assert refused.expected == "at most 20000 pixels"


def test_a_jpeg_of_a_thousand_scans_is_refused(service: Service) -> None:
    data = file_of(gradient(16, 16), "JPEG", progressive=True)
    find(service, data)
    scan = data.index(b"\xff\xda")
    again = data[:scan] + data[scan:-2] * MAX_SCANS + data[-2:]
    assert refusal(service, again).code == "too_many_scans"
    find(service, data + b"\xff\xda\x00\x02" * 1000)  # what follows the end is another file


@pytest.mark.parametrize(("size", "slice", "refused"), [((100, 200), "40", True), ((100, 200), "60", False)])
def test_an_image_has_a_limited_number_of_tiles(
    service: Service, size: tuple[int, int], slice: str, refused: bool
) -> None:
    data = file_of(gradient(*size))
    if refused:
        assert refusal(service, data, slice=slice, overlap=0.5).code == "too_many_tiles"
    else:
        assert find(service, data, slice=slice)


def test_millions_of_tiles_are_counted_without_making_them(network: Network) -> None:
    service = Service({"color": network})
    start = time.monotonic()
    refused = refusal(service, bomb(8000), slice="32", overlap=0.9)
    assert time.monotonic() - start < 5
    assert refused.got == f"{((8000 - 32 + 2) // 3 + 1) ** 2 + 1} tiles"
    service.close()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"conf": 1.5}, "conf: got 1.5, expected a number from 0 to 1"),
        ({"conf": float("nan")}, "conf: got nan"),
        ({"conf": "best"}, "this model remembers no thresholds"),
        ({"classes": ["pink"]}, 'classes: there is no class "pink"; the classes are red, green, blue'),
        ({"classes": ["3"]}, 'classes: there is no class "3"'),
        ({"classes": ["9" * 5000]}, "classes: there is no class"),
        ({"max_det": 0}, "max_det: got 0"),
        ({"slice": "12"}, "slice: got 12"),
        ({"slice": "640", "overlap": 0.95}, "overlap: got 0.95"),
    ],
)
def test_a_wrong_option_is_named(network: Network, options: dict[str, Any], text: str) -> None:
    with pytest.raises(RefusedError) as refused:
        wish(network, **options)
    assert refused.value.status == 422
    assert text in refused.value.what


def test_an_abandoned_job_is_not_computed(network: Network) -> None:
    gate, began = threading.Event(), threading.Semaphore(0)
    seen: list[int] = []

    def run(images: Sequence[np.ndarray]) -> Any:
        began.release()
        assert gate.wait(PATIENCE_S)
        seen.append(len(images))
        return network.run(images)

    service = Service({"color": network._replace(run=run)}, BatchSettings(max_batch=1), Limits(images=1))
    model = service.model(None)
    data = file_of(gradient(30, 40))
    deadline = time.monotonic() + PATIENCE_S
    first = model.start([data], wish(network), deadline)[0]
    assert began.acquire(timeout=PATIENCE_S)
    second, third = (model.start([data], wish(network), deadline)[0] for _ in range(2))
    second.abandon()
    gate.set()
    assert first.found.result(PATIENCE_S).objects
    assert third.found.result(PATIENCE_S).objects
    service.close()
    assert second.found.done()
    assert sum(seen) == 2
    assert model.batcher.num_reserved == 0


def test_a_late_job_is_refused(service: Service) -> None:
    model = service.model(None)
    (job,) = model.start([file_of(gradient(9, 9))], wish(model.network), time.monotonic() - 1)
    with pytest.raises(RefusedError) as refused:
        job.found.result(PATIENCE_S)
    assert refused.value.status == 504


def test_pixels_in_memory_are_limited(network: Network) -> None:
    limits = Limits(pixels=1000, images_held=1)
    service = Service({"color": network}, limits=limits)
    model = service.model(None)
    pixels = model._pixels
    assert pixels.take(500)
    data = file_of(gradient(20, 40))
    (job,) = model.start([data], wish(network), time.monotonic() + PATIENCE_S)
    time.sleep(0.05)
    assert not job.found.done()  # it waits for the others
    pixels.give(500)
    assert job.found.result(PATIENCE_S).objects
    pixels.take(500)
    (job,) = model.start([data], wish(network), time.monotonic() + 0.05)
    with pytest.raises(RefusedError) as refused:
        job.found.result(PATIENCE_S)
    assert refused.value.status == 429
    pixels.give(500)
    service.close()
    assert pixels.taken == 0


def test_a_network_that_fails_is_told_apart_from_a_wrong_image(network: Network) -> None:
    def run(images: Sequence[np.ndarray]) -> Any:
        raise RuntimeError("broken")

    service = Service({"color": network._replace(run=run)})
    with pytest.raises(RuntimeError, match="broken"):
        find(service, file_of(gradient(9, 9)))
    service.close()


def test_a_long_strip(network: Network) -> None:
    service = Service({"color": network})
    (found,) = find(service, file_of(Image.new("RGB", (70_000, 1))))
    assert (found.height, found.width) == (1, 70_000)
    assert refusal(service, file_of(Image.new("RGB", (70_000, 1))), picture="jpeg").code == "picture_too_long"
    assert find(service, file_of(Image.new("RGB", (70_000, 1))), picture="png")[0].picture
    service.close()


def test_models_by_name(network: Network) -> None:
    service = Service({"one": network, "two": network})
    assert service.model(None).name == "one"
    assert service.model("two").name == "two"
    with pytest.raises(RefusedError) as refused:
        service.model("three")
    assert (refused.value.status, refused.value.got, refused.value.expected) == (404, "three", "one or two")
    assert service.trouble() is None
    service.refuse()
    assert service.trouble() == "the server is stopping"
    with pytest.raises(RefusedError) as refused:
        find(service, b"")
    assert refused.value.status == 503
    service.close()
    assert not any(model.batcher.is_alive for model in service.models.values())


def test_trouble_of_a_network_that_hangs(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, began = threading.Event(), threading.Event()

    def run(images: Sequence[np.ndarray]) -> Any:
        began.set()
        assert gate.wait(PATIENCE_S)
        return network.run(images)

    service = Service({"color": network._replace(run=run)})
    model = service.model(None)
    (job,) = model.start([file_of(gradient(9, 9))], wish(network), time.monotonic() + PATIENCE_S)
    assert began.wait(PATIENCE_S)
    monkeypatch.setattr("rtdetrv4.serving.service.STUCK_S", 0.0)
    assert service.trouble() == "a model has not answered for 0 s"
    gate.set()
    job.found.result(PATIENCE_S)
    service.close()


@pytest.mark.parametrize(
    ("settings", "limits", "text"),
    [
        (BatchSettings(max_batch=0), Limits(), "max_batch: got 0"),
        (BatchSettings(max_wait_s=-1), Limits(), "max_wait: got -1"),
        (BatchSettings(max_queue=3), Limits(images=4), "queue: got 3, expected room for the images of one request, 4"),
        (BatchSettings(), Limits(pixels=0), "pixels: got 0"),
        (BatchSettings(), Limits(image_bytes=9, request_bytes=8), "image_bytes: got 9, expected at most"),
    ],
)
def test_impossible_settings(network: Network, settings: BatchSettings, limits: Limits, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Service({"color": network}, settings, limits)
    with pytest.raises(ConfigError, match="no model"):
        Service({})


def test_what_a_network_is_made_of(model_path: Path, network: Network) -> None:
    assert (network.architecture, network.size_hw, network.sizes) == ("test", (32, 64), None)
    assert network.num_parallel == 1
    several = Network.of_file(model_path, max_batch=4, hint="throughput")
    assert several.num_parallel >= 1
    model = Service({"color": several}).model(None)
    assert len(model.batcher._workers) == several.num_parallel
    model.close()


def of_seconds(network: Network, seconds: dict[int, float], sizes: tuple[int, ...] | None = None) -> Network:
    """A network whose batches take so long, by a clock of its own."""
    clock = [0.0]

    def run(images: Sequence[np.ndarray]) -> Any:
        clock[0] += seconds[len(images)]

    network = network._replace(run=run, sizes=sizes)
    network.run.__dict__["clock"] = clock
    return network


@pytest.mark.parametrize(
    ("seconds", "sizes", "expected"),
    [
        ({1: 1.0, 2: 1.1, 4: 1.2, 8: 1.3}, None, tuple(range(1, 9))),  # on a GPU
        ({1: 1.0, 2: 2.0, 4: 4.4}, None, (1,)),  # on two cores
        ({1: 1.0, 2: 1.6, 4: 3.15, 8: 8.0}, None, (1, 2)),  # four gain nothing that is worth the waiting
        ({1: 1.0, 2: 1.1, 4: 1.2, 8: 1.3}, (1, 2, 4, 8), (1, 2, 4, 8)),
        ({1: 1.0, 2: 1.1, 4: 4.8}, (1, 2, 4, 8), (1, 2)),
        ({1: 1.0, 2: 1.0, 3: 1.0}, (1, 2, 3), (1, 2, 3)),  # of a fixed batch size
        ({1: 20.0, 2: 1.0}, None, (1,)),  # too slow to try more
    ],
)
def test_batches_are_as_large_as_pays(
    network: Network,
    monkeypatch: pytest.MonkeyPatch,
    seconds: dict[int, float],
    sizes: tuple[int, ...] | None,
    expected: tuple[int, ...],
) -> None:
    slow = of_seconds(network, {size: value / 10 for size, value in seconds.items()}, sizes)
    clock = slow.run.__dict__["clock"]
    monkeypatch.setattr("rtdetrv4.serving.network.time.perf_counter", lambda: clock[0])
    assert slow.tuned(8).sizes == expected


def test_a_network_is_warmed_up_with_all_its_sizes(network: Network) -> None:
    seen: list[int] = []

    def run(images: Sequence[np.ndarray]) -> Any:
        seen.append(len(images))
        assert images[0].shape == (32, 64, 3)

    network = network._replace(run=run)
    assert network.warmed_up(8) is network
    network._replace(sizes=(1, 2, 4)).warmed_up(8)
    assert seen == [1, 8, 1, 2, 4]


def test_a_file_of_a_fixed_batch(tmp_path: Path) -> None:
    network = Network.of_file(write_color_model(tmp_path / "fixed.onnx", batch="3"), max_batch=8)
    assert network.sizes == (1, 2, 3)
    service = Service({"fixed": network})
    assert service.model(None).batcher.max_batch == 3
    assert find(service, *[file_of(gradient(30, 40))] * 5)[4].objects
    service.close()


def test_budget() -> None:
    budget = Budget(10)
    assert budget.take(7)
    assert not budget.take(4)
    assert not budget.take(11, time.monotonic() + PATIENCE_S)  # never
    assert not budget.take(4, time.monotonic() + 0.01)
    threading.Timer(0.05, budget.give, [7]).start()
    assert budget.take(4, time.monotonic() + PATIENCE_S)
    assert budget.taken == 4
