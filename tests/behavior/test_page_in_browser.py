"""The page in a browser: Chromium by Playwright, with a camera that it makes up.

Neither is needed for development. The tests are skipped where there is no playwright (`pip install playwright`) or no
Chromium: RTDETRV4_CHROMIUM names one, and otherwise it is that of `playwright install chromium`, or /usr/bin/chromium.
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from rtdetrv4.serving import BatchSettings, Limits, Network, Service
from rtdetrv4.serving.access import Access
from running_server import Client, running, write_color_model

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

TOKEN = "a-token-of-some-length"
PATIENCE_MS = 30_000
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
)
DROP = """([name, type, data]) => {
  const transfer = new DataTransfer();
  transfer.items.add(new File([Uint8Array.from(data)], name, { type }));
  document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
}"""
PASTE = """([name, type, data]) => {
  const clipboardData = new DataTransfer();
  clipboardData.items.add(new File([Uint8Array.from(data)], name, { type }));
  document.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
}"""
PIXEL = """([x, y]) => {
  const canvas = document.getElementById("canvas");
  const [column, row] = [Math.floor(x * canvas.width), Math.floor(y * canvas.height)];
  return [...canvas.getContext("2d").getImageData(column, row, 1, 1).data];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running_playwright:
        named = os.environ.get("RTDETRV4_CHROMIUM")
        places = [named] if named else [running_playwright.chromium.executable_path, "/usr/bin/chromium"]
        found = next((place for place in places if Path(place).is_file()), None)
        if found is None:
            pytest.skip("there is no Chromium")
        browser = running_playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    path = write_color_model(tmp_path_factory.mktemp("model") / "color.onnx")
    return Network.of_file(path, max_batch=4, threads=1)


@pytest.fixture(scope="module")
def client(network: Network) -> Iterator[Client]:
    better = network._replace(thresholds={"red": 0.9, "green": 0.1, "blue": 0.1})
    with running(Service({"plain": network, "with best": better}, limits=Limits(pixels=1_000_000))) as client:
        yield client


@contextmanager
def opened(browser: Any, client: Client, *, waits: bool = True, **options: Any) -> Iterator[Any]:
    """The page; nothing may go wrong in it, or leave for elsewhere."""
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    origin = f"http://127.0.0.1:{client.port}"
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on(
        "request",
        lambda request: wrong.append(request.url) if not request.url.startswith((origin, "blob:", "data:")) else None,
    )
    page.goto(f"{origin}/")
    if waits:
        page.wait_for_selector("#model-line:has-text('plain · 3 classes')")
    yield page
    context.close()
    expected = ("401", "429")  # Chromium tells the console of such answers
    assert [text for text in wrong if not any(f"status of {status}" in text for status in expected)] == []


@pytest.fixture
def page(browser: Any, client: Client) -> Iterator[Any]:
    with opened(browser, client) as page:
        yield page


def picture(color: tuple[int, int, int] = (250, 0, 0), size: tuple[int, int] = (60, 100), **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((*size, 3), color, np.uint8)).save(buffer, options.pop("kind", "PNG"), **options)
    return buffer.getvalue()


def give(page: Any, data: bytes, kind: str = "image/png") -> None:
    page.set_input_files("#file", {"name": "given", "mimeType": kind, "buffer": data})


def wait_for_summary(page: Any, text: str) -> None:
    page.wait_for_selector(f"#summary:has-text('{text}')")


def until(page: Any, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not condition():
        assert time.monotonic() < deadline
        page.wait_for_timeout(20)


def test_a_picture_that_is_chosen(page: Any) -> None:
    give(page, picture())
    wait_for_summary(page, "1 red")
    inside, side = page.evaluate(PIXEL, [0.5, 0.9]), page.evaluate(PIXEL, [0.25, 0.5])
    assert np.abs(np.array(inside[:3]) - (250, 0, 0)).max() < 20
    assert np.abs(np.array(side[:3]) - (0x56, 0xB4, 0xE9)).max() < 60  # the color of class 0
    assert page.get_attribute("#canvas", "aria-label") == "1 red"
    assert page.text_content("#announce") == "1 red"
    assert "ms" in page.text_content("#latency")
    assert page.locator("#classes .count").all_text_contents() == ["1", "", ""]


@pytest.mark.parametrize("how", [DROP, PASTE], ids=["drop", "paste"])
def test_a_picture_that_is_dropped_or_pasted(page: Any, how: str) -> None:
    page.evaluate(how, ["a.png", "image/png", list(picture((0, 250, 0)))])
    wait_for_summary(page, "1 green")


def test_threshold_and_classes_choose_among_what_was_found(page: Any) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "predict" in request.url else None)
    give(page, picture())
    wait_for_summary(page, "1 red")
    page.fill("#threshold", "0.8")
    wait_for_summary(page, "Nothing found at this confidence")
    assert page.text_content("#threshold-value") == "0.80"
    page.fill("#threshold", "0.5")
    wait_for_summary(page, "1 red")
    page.click("#none")
    wait_for_summary(page, "Nothing found")
    page.click("#classes label:has-text('red')")
    wait_for_summary(page, "1 red")
    page.click("#classes label:has-text('red')")
    wait_for_summary(page, "Nothing found")
    page.click("#all")
    wait_for_summary(page, "1 red")
    assert len(asked) == 1
    assert "conf=0.05" in asked[0]


def test_another_model_is_asked_about_the_same_picture(page: Any) -> None:
    give(page, picture())
    wait_for_summary(page, "1 red")
    assert not page.is_visible("#best-field")
    page.select_option("#model", "with best")
    wait_for_summary(page, "Nothing found")  # 0.73 is less than the 0.9 that is best
    assert page.is_checked("#best")
    assert page.text_content("#threshold-value") == "by class"
    page.fill("#threshold", "0.6")
    wait_for_summary(page, "1 red")
    assert not page.is_checked("#best")
    page.click("text=About this model")
    assert "64 × 32 (stretch)" in page.text_content("#facts")


def test_results_are_saved(page: Any, client: Client) -> None:
    data = picture()
    give(page, data)
    wait_for_summary(page, "1 red")
    with page.expect_download() as download:
        page.click("#save-json")
    saved = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    answer = client.ask("POST", "/predict?conf=0.25", data, {"Content-Type": "image/png"}).json["images"][0]
    assert download.value.suggested_filename == "detections.json"
    assert saved == {key: answer[key] for key in ("width", "height", "detections")} | {"model": "plain"}
    with page.expect_download() as download:
        page.click("#save-png")
    with Image.open(download.value.path()) as image:
        assert image.format == "PNG"
        assert image.width / image.height == pytest.approx(100 / 60, rel=0.02)
    page.click("#list-details summary")
    assert page.locator("#objects td").all_text_contents()[:2] == [
        "red",
        f"{answer['detections'][0]['confidence']:.2f}",
    ]


def test_a_photo_is_shown_as_the_server_turns_it(page: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    give(page, picture(size=(40, 100), kind="JPEG", exif=exif), "image/jpeg")
    wait_for_summary(page, "1 red")
    width, height = page.evaluate("() => [canvas.width, canvas.height]")
    assert height / width == pytest.approx(2.5, rel=0.02)


def test_a_picture_that_is_too_large_is_sent_smaller(page: Any) -> None:
    give(page, picture(size=(1200, 1600)))  # 1.9 megapixels, and the server takes one
    wait_for_summary(page, "1 red")
    assert page.text_content("#message") == ""


def test_a_file_that_is_no_picture(page: Any) -> None:
    give(page, b"nonsense")
    page.wait_for_selector("#message:has-text('cannot show this file')")
    give(page, picture())
    wait_for_summary(page, "1 red")
    assert page.text_content("#message") == ""


def write_video(path: Path) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"VP80"), 10, (96, 64))
    for number in range(20):
        writer.write(np.full((64, 96, 3), (0, 255, 0) if number < 10 else (255, 0, 0), np.uint8))  # BGR
    writer.release()


def test_a_video(page: Any, tmp_path: Path) -> None:
    write_video(tmp_path / "video.webm")
    give(page, (tmp_path / "video.webm").read_bytes(), "video/webm")
    wait_for_summary(page, "1 green")
    assert "frames/s" in page.text_content("#latency")
    wait_for_summary(page, "1 blue")
    page.wait_for_selector("#stop", state="hidden")  # it is over
    assert page.text_content("#announce") == "1 blue"
    give(page, b"nonsense", "video/webm")
    page.wait_for_selector("#message:has-text('cannot play this video')")


def test_the_camera_sends_one_frame_after_the_other(page: Any) -> None:
    flying, most, sent = 0, 0, 0

    def begin(request: Any) -> None:
        nonlocal flying, most, sent
        if "predict" in request.url:
            flying, sent = flying + 1, sent + 1
            most = max(most, flying)

    def end(request: Any) -> None:
        nonlocal flying
        flying -= "predict" in request.url

    page.on("request", begin)
    page.on("requestfinished", end)
    page.on("requestfailed", end)
    page.click("#camera")
    until(page, lambda: sent > 4)
    assert most == 1
    first = page.evaluate("() => canvas.toDataURL()")
    until(page, lambda: page.evaluate("() => canvas.toDataURL()") != first)
    page.click("#pause")
    assert page.get_attribute("#pause", "aria-pressed") == "true"
    until(page, lambda: flying == 0)
    page.wait_for_timeout(300)
    before = sent
    page.wait_for_timeout(500)
    assert sent <= before + 1
    page.click("#pause")
    until(page, lambda: sent > before + 2)
    page.click("#stop")
    assert not page.is_visible("#stop")
    until(page, lambda: flying == 0)
    before = sent
    page.wait_for_timeout(500)
    assert sent == before
    give(page, picture())
    wait_for_summary(page, "1 red")


def test_a_server_that_asks_for_a_token(browser: Any, network: Network) -> None:
    with (
        running(Service({"plain": network}), Access(token=TOKEN, hosts=None)) as client,
        opened(browser, client, waits=False) as page,
    ):
        page.wait_for_selector("#token-dialog[open]")
        assert page.evaluate("() => document.activeElement.id") == "token"
        page.keyboard.press("Escape")
        page.fill("#token", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#token-text:has-text('not the token')")
        page.fill("#token", TOKEN)
        page.keyboard.press("Enter")
        page.wait_for_selector("#model-line:has-text('plain')")
        give(page, picture())
        wait_for_summary(page, "1 red")
        page.reload()
        page.wait_for_selector("#model-line:has-text('plain')")
        assert not page.is_visible("#token-dialog")


def test_a_busy_server_is_asked_again(browser: Any, network: Network) -> None:
    service = Service({"plain": network}, BatchSettings(max_queue=16))
    with running(service) as client, opened(browser, client) as page:
        places = service.model(None).batcher.reserve(16)
        give(page, picture())
        page.wait_for_selector("#message:has-text('The server is busy; trying again in')")
        for place in places:
            place.leave()
        wait_for_summary(page, "1 red")
        assert page.text_content("#message") == ""


def test_by_keyboard(page: Any) -> None:
    give(page, picture())
    wait_for_summary(page, "1 red")
    page.evaluate("() => document.activeElement.blur()")
    reached = []
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("() => document.activeElement.id || document.activeElement.textContent.trim()"))
    for name in ("file", "camera", "save-png", "save-json", "model", "threshold", "labels", "all", "none", "Objects"):
        assert name in reached
    page.focus("#threshold")
    for _ in range(60):
        page.keyboard.press("ArrowRight")
    wait_for_summary(page, "Nothing found")
    page.focus("#labels")
    page.keyboard.press("Space")
    assert not page.is_checked("#labels")


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_screen(browser: Any, client: Client, width: int) -> None:
    with opened(browser, client, viewport={"width": width, "height": 800}) as page:
        give(page, picture(size=(400, 30)))
        wait_for_summary(page, "1 red")
        page.click("#list-details summary")
        page.click("text=About this model")
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        box = page.locator("#canvas").bounding_box()
        assert box["height"] <= 800
        for button in page.locator("button:visible, .button:visible").all():
            assert button.bounding_box()["height"] >= 35  # wide enough for a finger
